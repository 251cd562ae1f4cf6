# SPDX-License-Identifier: LGPL-2.1-or-later
"""The process that starts one throwaway machine, and removes it whatever happens to its owner.

    python3 keeper.py --root / --timeout 30 [--share SOURCE:TARGET ...]

The owner (machine.py) keeps the keeper's standard input open and writes nothing to it. Its end of file tells the keeper
to remove the machine; the kernel sends that even if the owner is killed. The keeper writes one line of JSON to standard
output when the machine has booted, ``{"pid": HOST_PID_OF_SYSTEMD, "cgroup": PATH}``, or when it has not,
``{"error": TEXT}``. After an error it has removed everything, and exits.

The host sees three things of a machine: its processes, a control group, and a directory in /run with the mount point,
the notify socket and the boot script's stderr. The two directories are named after the keeper's pid namespace and pid.
All mounts are in the machine's own mount namespace and end with its last process. If the keeper itself is killed,
PDEATHSIG ends the processes, and the next keeper removes the two empty directories.

Machines run side by side: each sees its control group as the root of the tree, and so none sees another's groups.

With --hybrid a machine also has groups in the host's trees of cgroup version 1, and systemd uses both, its "hybrid"
hierarchy. So limits hold on a host that has the controllers in version 1.
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
"""How long the kernel may take to end the killed processes, in seconds."""
JOURNAL_LINES = 40

V1_TREES = ("systemd", "memory", "pids", "cpu", "cpuacct")
"""The trees of cgroup version 1 that a hybrid machine has groups in, by their directories beside that of cgroup2."""

WITHOUT_CAPABILITIES = "-sys_module,-sys_rawio,-sys_time,-wake_alarm"
"""Capabilities that root in the machine does not get, because they reach the host's kernel (setpriv's notation)."""


class BootError(Exception):
    """The machine did not boot; the text says why."""


def cgroup2_mount() -> Path | None:
    """Return where cgroup2 is mounted: /sys/fs/cgroup, or beside v1 in /sys/fs/cgroup/unified."""
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
    v1 = [path for tree in V1_TREES for path in (cgroups.parent / tree).glob(f"{prefix}*")]
    for path in (*cgroups.glob(f"{prefix}*"), *v1, *directories.glob(f"{prefix}*")):
        pid = path.name.removeprefix(prefix)
        if not re.fullmatch(r"[0-9]+", pid) or Path("/proc", pid).exists():
            continue
        if path in v1:
            remove_v1_group(path)
        elif path.parent == cgroups:
            remove_cgroup(path)
        else:
            shutil.rmtree(path, ignore_errors=True)


def remove_cgroup(cgroup: Path) -> None:
    """Kill the processes of a control group, wait for their end, and remove the group with all groups below it.

    If they have not ended after TEARDOWN_TIMEOUT seconds, the directories stay.
    """
    with suppress(OSError):
        (cgroup / "cgroup.kill").write_text("1")  # Linux 5.14; before, the pid namespace's end has to do
    if not cgroup.is_dir() or not wait_unpopulated(cgroup):
        return
    for directory, _, _ in os.walk(cgroup, topdown=False):
        Path(directory).rmdir()


def remove_v1_group(group: Path) -> None:
    """Remove an empty group of cgroup version 1, with all groups below it. What is busy stays for the next `sweep`."""
    for directory, _, _ in os.walk(group, topdown=False):
        with suppress(OSError):
            Path(directory).rmdir()


def wait_unpopulated(cgroup: Path) -> bool:
    """Wait until no process is in the control group or below it. poll(2) reports each change of its events file."""
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
    """One machine. ``close`` removes all that ``start`` has made; it must be called, and may be called at any time."""

    def __init__(self, cgroups: Path, directories: Path = Path("/run"), *, hybrid: bool = False) -> None:
        name = f"{name_prefix()}{os.getpid()}"
        self.cgroup = cgroups / name
        self.v1_groups = [cgroups.parent / tree / name for tree in V1_TREES] if hybrid else []
        self.directory = directories / name
        self.machine: subprocess.Popen[bytes] | None = None
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def start(self, root: Path, shares: list[str]) -> None:
        """Start the boot script in new namespaces and in the machine's own control group."""
        groups = [self.cgroup, *self.v1_groups]
        for group in groups:
            group.mkdir()
        self.directory.mkdir(mode=0o700)
        (self.directory / "machine").mkdir()
        self.notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.notify.bind(str(self.directory / "notify"))
        limits = ["setpriv", "--pdeathsig", "KILL", "--bounding-set", WITHOUT_CAPABILITIES]
        enter = ["unshare", "--pid", "--mount", "--uts", "--ipc", "--net", "--fork", "--kill-child"]
        # The machine's first process alone joins the control group ("0" is the writer), and then makes it the root of
        # its view. Any process that stayed there would keep systemd from passing controllers on to its units.
        procs = " ".join(f"{group}/cgroup.procs" for group in groups)
        join = ["sh", "-c", 'for to in $0; do echo 0 >"$to" || exit; done; exec unshare --cgroup "$@"', procs]
        boot = [str(BOOT), str(root), str(self.directory), "hybrid" if self.v1_groups else "unified", *shares]
        with (self.directory / "boot.log").open("wb") as log:
            command = [*limits, *enter, *join, *boot]
            self.machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait_ready(self, timeout: float) -> int:
        """Wait for systemd's READY=1, which it sends when its first jobs are done; return its pid on the host.

        :raises BootError: after ``timeout`` seconds, or when the machine ends.
        :raises EOFError: the owner has ended.
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
        """Receive one notification; return its sender's pid on the host, and its text."""
        data, control, _, _ = self.notify.recvmsg(4096, socket.CMSG_SPACE(12))
        pid = 0
        for level, kind, value in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                pid = struct.unpack("3i", value)[0]
        return pid, data.decode()

    def boot_report(self) -> str:
        """What is known of a failed boot: the boot script's stderr and the end of the machine's journal."""
        text = (self.directory / "boot.log").read_text(errors="replace").strip()
        if self.machine is not None:
            text += "".join(f"\n{journal_tail(pid)}" for pid in self.children())
        return text.strip()

    def wait_end(self) -> None:
        """Wait until the owner closes standard input or dies, or the machine powers off.

        systemd goes on to send notifications, at each reload for example. It hangs if nobody reads them.
        """
        assert self.machine is not None
        ended = os.pidfd_open(self.machine.pid)
        while select.select([sys.stdin, self.notify, ended], [], [])[0] == [self.notify]:
            self.receive()
        os.close(ended)

    def close(self) -> None:
        """Kill every process of the machine, and remove its control group and directory. May be called twice.

        PID 1 is killed first, and the kernel then kills all others in its pid namespace. So unshare, and the nsenter of
        each command, reap their own children. Otherwise zombies would keep the namespace alive on a host whose PID 1
        reaps nothing (in a container).
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
        for group in self.v1_groups:
            remove_v1_group(group)
        self.notify.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def children(self) -> list[int]:
        """The pid on the host of the machine's PID 1, unshare's only child. Empty before its fork and after its end."""
        assert self.machine is not None
        if self.machine.poll() is not None:
            return []
        children = Path(f"/proc/{self.machine.pid}/task/{self.machine.pid}/children")
        return [int(pid) for pid in children.read_text().split()]


def journal_tail(pid: int) -> str:
    """The last lines of a machine's journal, read in its mount namespace. The machine's systemd need not work."""
    enter = ["nsenter", f"--target={pid}", "--mount", "--pid", "--"]
    read = ["journalctl", "--no-pager", "--quiet", "--output=short-precise", f"--lines={JOURNAL_LINES}"]
    try:
        done = subprocess.run([*enter, *read], capture_output=True, encoding="utf-8", timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"(no journal: {error})"
    return "the end of its journal:\n" + (done.stdout or done.stderr)


def keep(keeper: Keeper, arguments: argparse.Namespace) -> None:
    """Run one machine from its start to its end."""
    try:
        keeper.start(arguments.root, arguments.share)
        pid = keeper.wait_ready(arguments.timeout)
    except (BootError, OSError) as error:
        # Remove the machine first: the owner goes on as soon as it reads the error.
        text = f"{error}\n{keeper.boot_report()}".strip() if keeper.directory.exists() else str(error)
        keeper.close()
        print(json.dumps({"error": text}), flush=True)
        return
    except EOFError:
        return
    print(json.dumps({"pid": pid, "cgroup": str(keeper.cgroup)}), flush=True)
    keeper.wait_end()


def stop(_number: int, _frame: object) -> NoReturn:
    """Exit at a termination signal, so that the machine is removed."""
    sys.exit(1)


def main() -> None:
    """Run one machine."""
    parser = argparse.ArgumentParser(description="Keep one throwaway machine until standard input ends.")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--timeout", type=float, required=True, help="seconds until systemd must be ready")
    parser.add_argument("--hybrid", action="store_true")
    parser.add_argument("--share", action="append", default=[], metavar="SOURCE:TARGET")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    cgroups = cgroup2_mount()
    if cgroups is None:
        print(json.dumps({"error": "the host has no cgroup2 mounted"}), flush=True)
        return
    sweep(cgroups, Path("/run"))
    keeper = Keeper(cgroups, hybrid=arguments.hybrid)
    try:
        keep(keeper, arguments)
    finally:
        keeper.close()


if __name__ == "__main__":
    main()
