# SPDX-License-Identifier: LGPL-2.1-or-later
"""A throwaway machine: a real systemd as PID 1 on an overlay of the host's /, up in a third of a second.

    with Machine.boot() as machine:
        machine.install(Path("dist/ooodd_0.3.0_all.deb"))
        machine.run("systemctl", "status", "ooodd.socket", check=True)

The machine has its own pid, mount, uts, ipc, net and cgroup namespaces. So it has its own loopback, journal, system
bus, /tmp and /run, and every package of the host. What it writes stays in memory and is lost with the machine. The
kernel, the clocks and the user ids are the host's; /sys and /proc/sys (except net) are read-only. A machine needs root:
it has no user namespace, in which systemd's sandboxing would be incomplete.

A separate process (keeper.py) starts the machine, and removes it on ``close`` or when the owner dies in any way.

Each machine has a control group of its own, which it sees as the root of the cgroup2 tree. Its controllers are those
that the host offers there. On a host that has them in cgroup v1 there are none, and ``MemoryMax=`` limits nothing: see
``has_controller``, and ``hybrid`` of ``Machine.boot``.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import command as commands
import journal as journals
from command import Command, CommandFailed, Stream
from journal import Entry
from keeper import cgroup2_mount

__all__ = ["Command", "CommandFailed", "Entry", "Machine", "MachineError", "missing"]

KEEPER = Path(__file__).with_name("keeper.py")
SOURCE_TREE = Path(__file__).resolve().parents[2]
BOOT_TIMEOUT = 60.0
"""Seconds; a boot takes 0.3 s on two idle cores."""
RUN_TIMEOUT = 60.0
INSTALL_TIMEOUT = 300.0
CLOSE_TIMEOUT = 30.0


class MachineError(Exception):
    """The machine did not boot, or a unit has failed; the text has the end of its journal."""


def missing(root: Path = Path("/")) -> str | None:
    """Return in one line why no machine can be booted here, or None. Takes about 10 ms."""
    if os.geteuid() != 0:
        return "booting a machine takes root"
    tools = [tool for tool in ("unshare", "nsenter", "setpriv", "mount") if shutil.which(tool) is None]
    if tools:
        return f"booting a machine takes the commands {', '.join(tools)} (package util-linux)"
    if not any((root / path).is_file() for path in ("usr/lib/systemd/systemd", "lib/systemd/systemd")):
        return f"no systemd is installed in {root}"
    cgroups = cgroup2_mount()
    if cgroups is None:
        return "booting a machine takes a mounted cgroup2 file system"
    if not os.access(cgroups, os.W_OK):
        return f"the cgroup2 file system at {cgroups} is read-only"
    return missing_from_kernel()


def missing_from_kernel() -> str | None:
    """Try namespaces and overlayfs; no file in /proc reliably says whether they work. The trial leaves nothing."""
    overlay = "mount -t overlay -o lowerdir=a,upperdir=b,workdir=c overlay d"
    trial = f"mount -t tmpfs trial /run && cd /run && mkdir a b c d && {overlay}"
    unshare = ["unshare", "--pid", "--mount", "--uts", "--ipc", "--cgroup", "--net", "--fork"]
    done = subprocess.run([*unshare, "sh", "-c", trial], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode == 0:
        return None
    return f"the kernel refuses namespaces or overlayfs: {' '.join(done.stderr.split())}"


class Machine:
    """One booted machine. ``close`` or the with statement removes it, or its keeper when its owner ends without."""

    def __init__(self, keeper: subprocess.Popen[str], pid: int, cgroup: Path) -> None:
        self.pid = pid
        """The pid of the machine's systemd, as the host sees it."""
        self.cgroup = cgroup
        """The machine's root control group, a directory of the host."""
        self._keeper = keeper
        self._commands = cgroup / "commands"
        self._commands.mkdir()

    @classmethod
    def boot(
        cls,
        root: Path = Path("/"),
        *,
        share: Mapping[Path, str] | None = None,
        timeout: float = BOOT_TIMEOUT,
        hybrid: bool = False,
    ) -> Self:
        """Boot a machine and return it when systemd is ready.

        :param root: the machine's / is an overlay of this directory. File systems mounted below it are not seen.
        :param share: directories of the host, each with its path in the machine, where it is read-only. The machine
            always has the source tree, under the same path.
        :param timeout: how long systemd may take to be ready, in seconds.
        :param hybrid: also use the control groups of version 1, for a host that has the controllers there.
        :raises MachineError: it was not ready in time, ended, or a unit failed. Nothing is left then.
        """
        shares = {SOURCE_TREE: str(SOURCE_TREE), **(share or {})}
        options = ["--hybrid"] if hybrid else []
        options += [f"--share={source.resolve()}:{target}" for source, target in shares.items()]
        # In a session of its own, so that a Ctrl-C or a kill of the owner's process group does not reach the keeper.
        keeper = subprocess.Popen(
            [sys.executable, str(KEEPER), f"--root={root.resolve()}", f"--timeout={timeout}", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            answer = read_answer(keeper)
            machine = cls(keeper, answer["pid"], Path(answer["cgroup"]))
            machine.check_health()
            # A clone can be in /root, for example, which the machine's other users may not enter.
            above = {str(parent) for target in shares.values() for parent in Path(target).parents}
            machine.run("chmod", "o+x", *sorted(above), check=True)
        except BaseException:
            end(keeper)
            raise
        return machine

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the machine, without a shutdown of its units. Returns when nothing of it is left."""
        end(self._keeper)

    def check_health(self) -> None:
        """Raise MachineError if a unit has failed or the machine does not run."""
        state = self.run("systemctl", "is-system-running").stdout.strip()
        if state != "running":
            failed = self.run("systemctl", "--failed", "--no-legend", "--plain").stdout
            raise MachineError(f"the machine is {state}\n{failed}\nthe end of its journal:\n{self.journal_tail()}")

    def has_controller(self, name: str) -> bool:
        """Return whether the machine has a cgroup controller ("memory", "pids"). Without it, limits do not hold."""
        v1 = self.cgroup.parent.parent / name / self.cgroup.name
        return v1.is_dir() or name in (self.cgroup / "cgroup.controllers").read_text().split()

    # Commands

    def popen(
        self,
        *command: str,
        user: str = "root",
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        stdin: Stream = subprocess.PIPE,
        stdout: Stream = subprocess.PIPE,
        stderr: Stream = subprocess.PIPE,
    ) -> Command:
        """Start a command in the machine, in all its namespaces. The streams are text. The caller ends the command.

        :param user: a user of the machine; no PAM session is made.
        :param env: added to a small fixed environment; nothing of the host's is passed on.
        """
        streams = (stdin, stdout, stderr)
        return commands.start(self.pid, self._commands, command, user=user, env=env, cwd=cwd, streams=streams)

    def run(
        self,
        *command: str,
        check: bool = False,
        input: str | None = None,  # noqa: A002 - as subprocess.run calls it
        user: str = "root",
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        timeout: float = RUN_TIMEOUT,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine to its end. Its standard input is ``input``, or empty.

        :raises CommandFailed: with ``check``, if the exit status is not 0.
        :raises TimeoutError: after ``timeout`` seconds; the command is killed.
        """
        process = self.popen(*command, user=user, env=env, cwd=cwd)
        try:
            stdout, stderr = process.communicate(input or "", timeout)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"in the machine: {' '.join(command)!r} took more than {timeout:g} s") from error
        finally:
            process.release()
        if check and process.returncode != 0:
            raise CommandFailed(process.returncode, command, stdout, stderr)
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)

    # Files

    def read(self, path: str) -> str:
        """The text of a file of the machine."""
        return self.run("cat", "--", path, check=True).stdout

    def put(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file of the machine, owned by root, with the directories above it."""
        self.run("install", "-D", f"--mode={mode:o}", "/dev/stdin", path, input=text, check=True)

    def copy_in(self, source: Path, target: str) -> None:
        """Copy a file of the host to a path in the machine, with its mode and with the directories above it."""
        mode = source.stat().st_mode & 0o7777
        with source.open("rb") as content:
            copy = self.popen("install", "-D", f"--mode={mode:o}", "/dev/stdin", target, stdin=content)
            try:
                _, stderr = copy.communicate(timeout=RUN_TIMEOUT)
            finally:
                copy.release()
        if copy.returncode != 0:
            raise CommandFailed(copy.returncode, ["install", target], "", stderr)

    def copy_out(self, source: str, target: Path) -> None:
        """Copy a file of the machine, of any content, to a path of the host."""
        with target.open("wb") as content:
            copy = self.popen("cat", "--", source, stdout=content)
            try:
                _, stderr = copy.communicate(timeout=RUN_TIMEOUT)
            finally:
                copy.release()
        if copy.returncode != 0:
            raise CommandFailed(copy.returncode, ["cat", source], "", stderr)

    def install(self, *debs: Path) -> None:
        """Install packages and start their units. There is no network: the root must have what they depend on."""
        targets = [f"/tmp/{deb.name}" for deb in debs]
        for deb, target in zip(debs, targets, strict=True):
            self.copy_in(deb, target)
        if debs:
            environment = {"DEBIAN_FRONTEND": "noninteractive"}
            self.run("dpkg", "--install", *targets, env=environment, timeout=INSTALL_TIMEOUT, check=True)

    # Journal

    def journal(self, unit: str | None = None, *matches: str, after: str | None = None) -> list[Entry]:
        """The journal entries of a unit, or those that match ("MESSAGE_ID=..."), oldest first.

        All that was written before the call is included, and so is what systemd writes about the unit.

        :param after: a result of ``journal_moment``; only later entries are returned.
        """
        self.run("journalctl", "--sync", check=True)
        lines = self.run(*journals.command(unit, matches, after), check=True).stdout
        return [journals.parse(line) for line in lines.splitlines()]

    def journal_moment(self) -> str:
        """The present time, for the parameter ``after``.

        It is no cursor: with --after-cursor and further matches, journalctl 252 leaves out the first entry.
        """
        return f"@{time.time():.6f}"

    def journal_tail(self, lines: int = 40, after: str | None = None) -> str:
        """The last lines of the journal, to be read by people."""
        since = [] if after is None else [f"--since={after}"]
        return self.run("journalctl", "--no-pager", "--quiet", "-o", "short-precise", f"--lines={lines}", *since).stdout

    def wait_journal(
        self, unit: str | None = None, *matches: str, after: str | None = None, timeout: float = 10.0
    ) -> Entry:
        """Wait for the first journal entry that matches, whether it is there or still to come. journalctl follows.

        :raises TimeoutError: after ``timeout`` seconds, with the end of the journal.
        """
        follow = self.popen(*journals.command(unit, matches, after), "--follow", "--no-tail", stdin=subprocess.DEVNULL)
        try:
            line = read_line(follow, timeout)
        finally:
            follow.release()
        if not line:
            what = " ".join((unit or "", *matches))
            raise TimeoutError(f"waited {timeout:g} s for a journal entry {what}; the end is:\n{self.journal_tail()}")
        return journals.parse(line)


def read_answer(keeper: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for the keeper's report of the boot. The keeper has its own time limit."""
    assert keeper.stdout is not None
    answer: dict[str, Any] = json.loads(keeper.stdout.readline() or '{"error": "its keeper died"}')
    if "error" in answer:
        raise MachineError(f"the machine did not boot: {answer['error']}")
    return answer


def end(keeper: subprocess.Popen[str]) -> None:
    """Close the keeper's standard input, which makes it remove the machine, and wait for it. May be called twice."""
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    keeper.stdin.close()
    keeper.wait(CLOSE_TIMEOUT)
    keeper.stdout.close()


def read_line(process: Command, timeout: float) -> str:
    """Read the first line of a command's output. Empty if it writes nothing for ``timeout`` seconds, or ends."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], timeout)
    return process.stdout.readline() if ready else ""
