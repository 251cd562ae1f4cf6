# SPDX-License-Identifier: LGPL-2.1-or-later
"""Commands in a throwaway machine: how a process of the host becomes one of the machine's.

This takes two steps. First, still outside, the process joins the machine's control group "commands". systemd leaves
that group alone, because it is outside its slices. A process in the cgroup namespace could not do this. Then nsenter
enters all namespaces. nsenter itself stays outside, as the parent of the command.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from deadline import until
from keeper import WITHOUT_CAPABILITIES

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/root"}
"""The whole environment of a command; nothing of the host's is passed on."""

Stream = int | IO[Any] | None

JOIN = 'echo $$ > "$0/cgroup.procs" && exec "$@"'

# --pdeathsig: the command is killed when nsenter dies.
ENTER = f"""
umask 022
limits='--pdeathsig KILL --bounding-set {WITHOUT_CAPABILITIES}'
user=$0 directory=$1; shift
cd "$directory" || exit 126
if test "$user" = root; then exec setpriv $limits -- "$@"; fi
HOME=$(getent passwd "$user" | cut -d: -f6) || exit 126
exec setpriv --reuid "$user" --regid "$(id -g "$user")" --init-groups $limits -- "$@"
"""


class CommandFailed(subprocess.CalledProcessError):
    """The exit status of a checked command was not 0. Unlike its base class, it shows what the command wrote."""

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.stdout or ''}{self.stderr or ''}".rstrip()


class Command(subprocess.Popen[str]):
    """A command that runs in a machine.

    The local process is nsenter. It ends as the command does, with the same exit status or signal. The methods here
    send signals to the command itself, so that nsenter reaps it and leaves no zombie. The end of a with statement kills
    the command; subprocess.Popen would wait for it.
    """

    def send_signal(self, sig: int) -> None:
        """Send a signal to the command. ``terminate`` and ``kill`` call this."""
        if self.poll() is None:
            os.kill(self._child() or self.pid, sig)

    @property
    def pid_inside(self) -> int:
        """The command's pid in the machine. There is no event for nsenter's fork, so this may have to look twice."""
        child = until(self._child, 5.0, "a command to enter the machine")
        status = Path(f"/proc/{child}/status").read_text()
        return int(status.split("NSpid:")[1].split("\n")[0].split()[-1])

    def _child(self) -> int | None:
        """The command's pid on the host, or None before nsenter has forked."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Kill the command if it runs, reap it, and close its streams."""
        self.kill()
        self.wait()
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()


def start(
    pid: int,
    cgroup: Path,
    command: Sequence[str],
    *,
    user: str,
    env: Mapping[str, str] | None,
    cwd: str,
    streams: tuple[Stream, Stream, Stream],
) -> Command:
    """Start a command in the namespaces of a process and in a control group of the machine."""
    join = ["sh", "-c", JOIN, str(cgroup)]
    enter = ["nsenter", f"--target={pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"]
    stdin, stdout, stderr = streams
    return Command(
        [*join, *enter, "/bin/sh", "-c", ENTER, user, cwd, *command],
        env={**ENVIRONMENT, **(env or {})},
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        encoding="utf-8",
        errors="replace",
    )
