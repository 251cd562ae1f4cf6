# SPDX-License-Identifier: LGPL-2.1-or-later
"""The process that keeps one throwaway machine, and cleans up after it whatever happens to its owner.

    python3 keeper.py --root / --timeout 30 [--share SOURCE:TARGET ...]

The owner (machine.py) holds the keeper's standard input open and writes nothing to it: its end of file, which the
kernel sends even when the owner is killed, is the order to tear down. One line of JSON on standard output tells how
the boot went, either ``{"pid": HOST_PID_OF_SYSTEMD, "cgroup": PATH}`` or ``{"error": TEXT}``; after an error the
keeper has torn down and exits.

Three things of a machine are on the host, all named after the keeper's pid: a control group, a directory in /run
(mount point, notify socket, the boot script's stderr), and the processes. All mounts are in the machine's own mount
namespace and end with its last process. Should the keeper itself be killed, PDEATHSIG ends the processes and the next
keeper removes the two empty directories.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

BOOT = Path(__file__).with_name("boot")
NAME = "ooodd-machine-"
TEARDOWN_TIMEOUT = 10.0
"""Seconds the kernel may take to end the killed processes."""
JOURNAL_LINES = 40

WITHOUT_CAPABILITIES = "-sys_module,-sys_rawio,-sys_time,-wake_alarm"
"""What root in the machine could still do to the host's kernel (setpriv's notation)."""


class BootError(Exception):
    """The machine did not come up; the text says why."""


def cgroup2_mount() -> Path | None:
    """Tell where the host has its cgroup2 hierarchy: /sys/fs/cgroup, or beside v1 in /sys/fs/cgroup/unified."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(target)
    return None


def name_prefix() -> str:
    """The names of this pid namespace's machines, up to the keeper's pid.

    A pid alone would not do: a keeper in a container can see the control groups of the host's machines, but not their
    keepers, and would take them for left over.
    """
    return f"{NAME}{Path('/proc/self/ns/pid').stat().st_ino}-"


def sweep(cgroups: Path, directories: Path) -> None:
    """Remove what is left of machines whose keepers were killed. Machines of other pid namespaces are left alone."""
    prefix = name_prefix()
    for path in (*cgroups.glob(f"{prefix}*"), *directories.glob(f"{prefix}*")):
        pid = path.name.removeprefix(prefix)
        if not re.fullmatch(r"[0-9]+", pid) or Path("/proc", pid).exists():
            continue
        if path.parent == cgroups:
            remove_cgroup(path)
        else:
            shutil.rmtree(path, ignore_errors=True)


def remove_cgroup(cgroup: Path) -> None:
    """Kill what is left in a control group, wait for its end, remove it with all below it.

    Waits for the kernel's event, TEARDOWN_TIMEOUT seconds at most; then the directories stay.
    """
    with suppress(OSError):
        (cgroup / "cgroup.kill").write_text("1")  # Linux 5.14; before, the pid namespace's end has to do
    if not cgroup.is_dir() or not wait_unpopulated(cgroup):
        return
    for directory, _, _ in os.walk(cgroup, topdown=False):
        Path(directory).rmdir()


def wait_unpopulated(cgroup: Path) -> bool:
    """Wait until no process is in the control group or below: its events file becomes "ready" on every change."""
    deadline = time.monotonic() + TEARDOWN_TIMEOUT
    with (cgroup / "cgroup.events").open() as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        while "populated 1" in events.read():
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return False
            events.seek(0)
    return True


class Keeper:
    """One machine, from its control group to its removal. ``close`` may be called at any point, and must be."""

    def __init__(self, cgroups: Path, directories: Path = Path("/run")) -> None:
        name = f"{name_prefix()}{os.getpid()}"
        self.cgroup = cgroups / name
        self.directory = directories / name
        self.machine: subprocess.Popen[bytes] | None = None
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def start(self, root: Path, shares: list[str]) -> None:
        """Start the boot script in new namespaces and in the machine's own control group."""
        self.cgroup.mkdir()
        self.directory.mkdir(mode=0o700)
        (self.directory / "machine").mkdir()
        self.notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.notify.bind(str(self.directory / "notify"))
        # The shell joins the control group before unshare makes it the root of the machine's view.
        join = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
        limits = ["setpriv", "--pdeathsig", "KILL", "--bounding-set", WITHOUT_CAPABILITIES]
        enter = ["unshare", "--pid", "--mount", "--uts", "--ipc", "--cgroup", "--net", "--fork", "--kill-child"]
        boot = [str(BOOT), str(root), str(self.directory), *shares]
        with (self.directory / "boot.log").open("wb") as log:
            command = ["sh", "-c", join, str(self.cgroup), *limits, *enter, *boot]
            self.machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait_ready(self, timeout: float) -> int:
        """Wait for systemd's READY=1, which it sends when its start-up job queue is empty; return its pid.

        :raises BootError: after ``timeout`` seconds, or when the machine ends.
        :raises EOFError: the owner is gone.
        """
        assert self.machine is not None
        deadline = time.monotonic() + timeout
        ended = os.pidfd_open(self.machine.pid)
        try:
            while True:
                left = max(0.0, deadline - time.monotonic())
                ready, _, _ = select.select([sys.stdin, self.notify, ended], [], [], left)
                if sys.stdin in ready:
                    raise EOFError
                if ended in ready:
                    raise BootError("the machine ended while it booted")
                if not ready:
                    raise BootError(f"the machine was not ready after {timeout:g} s")
                pid, text = self.receive()
                if "READY=1" in text.splitlines():
                    return pid
        finally:
            os.close(ended)

    def receive(self) -> tuple[int, str]:
        """Receive one notification, with its sender's pid as the host sees it."""
        data, control, _, _ = self.notify.recvmsg(4096, socket.CMSG_SPACE(12))
        pid = 0
        for level, kind, value in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                pid = struct.unpack("3i", value)[0]
        return pid, data.decode()

    def tell(self) -> str:
        """What a failed boot left to read: the boot script's own words and the end of the machine's journal."""
        text = (self.directory / "boot.log").read_text(errors="replace").strip()
        if self.machine is not None:
            text += "".join(f"\n{journal_tail(pid)}" for pid in self.children())
        return text.strip()

    def wait_end(self) -> None:
        """Wait until the owner closes or dies, or the machine powers off.

        Its systemd goes on to notify, of each reload for example, and PID 1 hangs if nobody reads what it says.
        """
        assert self.machine is not None
        ended = os.pidfd_open(self.machine.pid)
        while select.select([sys.stdin, self.notify, ended], [], [])[0] == [self.notify]:
            self.receive()
        os.close(ended)

    def close(self) -> None:
        """Kill every process of the machine, remove its control group and directory. May be called twice.

        PID 1 goes first and takes its namespace with it, so that unshare, and the nsenter of each command, reap their
        own children: a host whose own PID 1 reaps nothing (a container's) would keep the namespace alive.
        """
        if self.machine is not None:
            for pid in self.children():
                os.kill(pid, signal.SIGKILL)
            try:
                self.machine.wait(TEARDOWN_TIMEOUT if self.children() else 0.0)
            except subprocess.TimeoutExpired:
                self.machine.kill()
                self.machine.wait()
        remove_cgroup(self.cgroup)
        self.notify.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def children(self) -> list[int]:
        """The machine's PID 1, unshare's one child, as the host sees it; none before the fork and after the end."""
        assert self.machine is not None
        if self.machine.poll() is not None:
            return []
        children = Path(f"/proc/{self.machine.pid}/task/{self.machine.pid}/children")
        return [int(pid) for pid in children.read_text().split()]


def journal_tail(pid: int) -> str:
    """The last lines of a machine's journal, read in its mount namespace without any help of its systemd."""
    enter = ["nsenter", f"--target={pid}", "--mount", "--pid", "--"]
    read = ["journalctl", "--no-pager", "--quiet", "--output=short-precise", f"--lines={JOURNAL_LINES}"]
    try:
        done = subprocess.run([*enter, *read], capture_output=True, encoding="utf-8", timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"(no journal: {error})"
    return "the end of its journal:\n" + (done.stdout or done.stderr)


def keep(keeper: Keeper, arguments: argparse.Namespace) -> None:
    """Tell one machine's whole life."""
    try:
        keeper.start(arguments.root, arguments.share)
        pid = keeper.wait_ready(arguments.timeout)
    except (BootError, OSError) as error:
        # Said after the teardown, which wants no one to wait for it.
        text = f"{error}\n{keeper.tell()}".strip() if keeper.directory.exists() else str(error)
        keeper.close()
        print(json.dumps({"error": text}), flush=True)
        return
    except EOFError:
        return
    print(json.dumps({"pid": pid, "cgroup": str(keeper.cgroup)}), flush=True)
    keeper.wait_end()


def stop(_number: int, _frame: object) -> NoReturn:
    """Make a termination signal a normal end, so that the teardown runs."""
    sys.exit(1)


def main() -> None:
    """Run one machine."""
    parser = argparse.ArgumentParser(description="Keep one throwaway machine until standard input ends.")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--timeout", type=float, required=True, help="seconds until systemd must be ready")
    parser.add_argument("--share", action="append", default=[], metavar="SOURCE:TARGET")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    cgroups = cgroup2_mount()
    if cgroups is None:
        print(json.dumps({"error": "the host has no cgroup2 mounted"}), flush=True)
        return
    sweep(cgroups, Path("/run"))
    keeper = Keeper(cgroups)
    try:
        keep(keeper, arguments)
    finally:
        keeper.close()


if __name__ == "__main__":
    main()
