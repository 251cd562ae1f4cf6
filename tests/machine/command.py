# SPDX-License-Identifier: LGPL-2.1-or-later
"""Commands in a throwaway machine: how a process of the host becomes one of the machine's.

It takes two steps. Still outside, it joins the control group "commands" of the machine: outside systemd's own slices,
which systemd leaves alone, and out of the host's tree. Nobody may do that from within the cgroup namespace. Then
nsenter enters all namespaces and stays outside itself, as the parent of the command.
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
"""All of a command's environment; nothing of the host's is passed on."""

Stream = int | IO[Any] | None

JOIN = 'echo $$ > "$0/cgroup.procs" && exec "$@"'

# PDEATHSIG: whoever kills nsenter kills the command.
ENTER = f"""
limits='--pdeathsig KILL --bounding-set {WITHOUT_CAPABILITIES}'
user=$0 directory=$1; shift
cd "$directory" || exit 126
if test "$user" = root; then exec setpriv $limits -- "$@"; fi
HOME=$(getent passwd "$user" | cut -d: -f6) || exit 126
exec setpriv --reuid "$user" --regid "$(id -g "$user")" --init-groups $limits -- "$@"
"""


class CommandFailed(subprocess.CalledProcessError):
    """A checked command's exit status was not 0; unlike its parent this says what the command wrote."""

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.stdout or ''}{self.stderr or ''}".rstrip()


class Command(subprocess.Popen[str]):
    """A command that runs in a machine.

    The local process is nsenter, whose exit status is the command's, or death by the signal that ended the command.
    Signals sent with the methods here go to the command itself, so that nsenter reaps it and leaves no zombie. At the
    end of a with statement the command is killed, unlike subprocess.Popen, which would wait for its end.
    """

    def send_signal(self, sig: int) -> None:
        """Send a signal to the command; ``terminate`` and ``kill`` come here too."""
        if self.poll() is None:
            os.kill(self._child() or self.pid, sig)

    @property
    def pid_inside(self) -> int:
        """The command's pid in the machine. No event tells when nsenter has forked, so this may look twice."""
        child = until(self._child, 5.0, "a command to enter the machine")
        status = Path(f"/proc/{child}/status").read_text()
        return int(status.split("NSpid:")[1].split("\n")[0].split()[-1])

    def _child(self) -> int | None:
        """The host's pid of the command."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Kill the command if it still runs, reap it and close its streams."""
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
    """Start a command in the namespaces of a process, through a control group of the machine's subtree."""
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
