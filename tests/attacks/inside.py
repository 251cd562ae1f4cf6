# SPDX-License-Identifier: LGPL-2.1-or-later
"""Code that an attacker runs inside an office. attack.py brings it there and calls it.

Whoever reaches an office by UNO can do that: com.sun.star.loader.Python runs a file that the client has just written.
Each attack tries several things, and tells of each "allowed" or why it was refused. It knows nothing of ooodd but the
paths and numbers that it is given. System calls have their x86-64 numbers.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import unohelper
from com.sun.star.task import XJob

ALLOWED = "allowed"
HERE = os.environ.get("TMPDIR", "/tmp")
LIBC = ctypes.CDLL(None, use_errno=True)
Findings = dict[str, str]


def call(function: Callable[..., int], *arguments: object) -> int:
    """Call a function of libc, and raise OSError if it fails."""
    ctypes.set_errno(0)
    result = function(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def system_call(number: int, *arguments: object) -> int:
    """Make a system call by its number."""
    return call(LIBC.syscall, ctypes.c_long(number), *arguments)


def tried(attempt: Callable[[], object]) -> str:
    """Whether an attempt is allowed. An error that comes after the permission was checked counts as allowed."""
    try:
        attempt()
    except OSError as error:
        refused = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EAFNOSUPPORT, errno.ENOENT, errno.EROFS}
        refused |= {errno.ECONNREFUSED, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT, errno.ESRCH}
        name = errno.errorcode.get(error.errno or 0, str(error))
        return name if error.errno in refused else f"{ALLOWED}, {name}"
    return ALLOWED


# What it can see and write


def read(paths: list[str]) -> Findings:
    """Read files."""
    return {path: tried(lambda path=path: Path(path).read_bytes()) for path in paths}  # type: ignore[misc]


def walk(roots: list[str]) -> Findings:
    """Find all files below some directories that can be read."""
    found: Findings = {}
    for root in roots:
        for directory, _, names in os.walk(root):
            for name in names:
                path = f"{directory}/{name}"
                with contextlib.suppress(OSError):
                    if stat.S_ISREG(os.lstat(path).st_mode):
                        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
                        found[path] = ALLOWED
    return found


def directories() -> Iterator[str]:
    """All directories that can be listed, but those of the kernel."""
    for directory, names, _ in os.walk("/"):
        if directory == "/":
            names[:] = [name for name in names if name not in ("proc", "sys")]
        yield directory


def write(_: object) -> Findings:
    """Make a file in each directory that lets it."""

    def attempt(directory: str) -> None:
        path = f"{directory}/attack-{os.getpid()}"
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        Path(path).unlink()

    found = {directory: tried(lambda: attempt(directory)) for directory in directories()}  # noqa: B023 - called at once
    return {path: result for path, result in found.items() if result.startswith(ALLOWED)}


def fill(paths: list[str]) -> Findings:
    """Write 64 MiB into files in some directories, and make 2,000 small ones."""

    def attempt(directory: str) -> None:
        with Path(f"{directory}/attack-big").open("wb") as file:
            file.writelines(bytes(1 << 20) for _ in range(64))
        for number in range(2000):
            Path(f"{directory}/attack-{number}").write_bytes(b"")

    return {path: tried(lambda path=path: attempt(path)) for path in paths}  # type: ignore[misc]


def execute(_: object) -> Findings:
    """Run a program of its own, from each directory in which it can make one."""

    def attempt(directory: str) -> None:
        program = Path(directory, f"program-{os.getpid()}")
        program.write_bytes(Path("/bin/true").read_bytes())
        program.chmod(0o755)
        try:
            subprocess.run([program], check=True)
        finally:
            program.unlink()

    places = [HERE, "/tmp", "/var/tmp", "/dev/shm"]
    return {place: tried(lambda place=place: attempt(place)) for place in dict.fromkeys(places)}  # type: ignore[misc]


def devices(_: object) -> Findings:
    """Open devices."""
    harmless = {"null", "zero", "full", "random", "urandom", "tty", "ptmx"}
    found: Findings = {}
    for path in Path("/dev").rglob("*"):
        with contextlib.suppress(OSError):
            mode = path.lstat().st_mode
            if path.name not in harmless and (stat.S_ISBLK(mode) or stat.S_ISCHR(mode)) and path.parent.name != "pts":
                found[str(path)] = tried(lambda: os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK)))  # noqa: B023
    return found


# Networks, and other processes by sockets


def networks(_: object) -> Findings:
    """Make sockets of each family."""
    found = {}
    for family, number in (
        *(("AF_INET", 2), ("AF_INET6", 10), ("AF_NETLINK", 16), ("AF_PACKET", 17), ("AF_VSOCK", 40), ("AF_XDP", 44)),
    ):
        kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET)
        results = [tried(lambda: socket.socket(number, kind).close()) for kind in kinds]  # noqa: B023
        found[family] = next((result for result in results if result == ALLOWED), results[0])
    found["io_uring"] = tried(lambda: os.close(system_call(425, 8, ctypes.create_string_buffer(120))))
    return found


def tcp(addresses: list[list[Any]]) -> Findings:
    """Connect to servers."""
    return {
        f"{host}:{port}": tried(lambda: socket.create_connection((host, port), 2).close())  # noqa: B023
        for host, port in addresses
    }


def handed(parameter: list[Any]) -> Findings:
    """Make the client's own socket, which is one of the machine's network, into one to a server: host, port, report.

    Nobody is connected any more to be told what is found. Without a file it goes to stderr.
    """
    host, port, path = parameter
    own = next(filter(None, map(tcp_socket, sorted(int(each.name) for each in Path("/proc/self/fd").iterdir()))))
    no_address = ctypes.create_string_buffer(16)  # of the family AF_UNSPEC

    def reconnect() -> None:
        own.setblocking(True)
        own.connect((host, port))
        own.sendall(b"attack by connect")

    def fast_open() -> None:
        own.setblocking(True)
        own.sendto(b"attack by MSG_FASTOPEN", 0x20000000, (host, port))

    def disconnect() -> None:
        with contextlib.suppress(OSError):  # first what has been sent has to arrive
            own.settimeout(2)
            own.shutdown(socket.SHUT_WR)
            own.recv(1)
        call(LIBC.connect, own.fileno(), no_address, 16)

    found = {
        "io_uring": tried(lambda: os.close(system_call(425, 8, ctypes.create_string_buffer(120)))),
        "SO_MARK": tried(lambda: own.setsockopt(socket.SOL_SOCKET, 36, 1)),
        "TCP_REPAIR": tried(lambda: own.setsockopt(socket.IPPROTO_TCP, 19, 1)),
    }
    if found["TCP_REPAIR"] == ALLOWED:
        own.setsockopt(socket.IPPROTO_TCP, 19, 0)
    found["disconnect"] = tried(lambda: call(LIBC.connect, own.fileno(), no_address, 16))
    if found["disconnect"] != ALLOWED:
        # The other way: the client ends the connection.
        own.shutdown(socket.SHUT_RDWR)
        end = time.monotonic() + 0.8
        while own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != b"\7" and time.monotonic() < end:
            pass
        found["closed"] = str(time.monotonic() < end)
    found["connect"] = tried(reconnect)
    tried(disconnect)
    found["MSG_FASTOPEN"] = tried(fast_open).removeprefix(f"{ALLOWED}, ")  # EISCONN: no
    tried(disconnect)
    found["listen"] = tried(own.listen).removeprefix(f"{ALLOWED}, ")  # EINVAL: no
    line = f"handed {json.dumps(found)}\n".encode()
    if path:
        Path(path).write_bytes(line)
    else:
        os.write(2, line)
    return found


def tcp_socket(number: int) -> socket.socket | None:
    """Return a duplicate of a descriptor that is a connection by TCP."""
    try:
        own = socket.socket(fileno=os.dup(number))
    except OSError:
        return None
    with contextlib.suppress(OSError):
        if own.family == socket.AF_INET and own.type == socket.SOCK_STREAM and own.getpeername():
            return own
    own.close()
    return None


def peers(paths: list[str]) -> Findings:
    """Reach other processes by their sockets in the file system: by connecting, and by a message without connecting."""

    def connect(path: str, kind: socket.SocketKind) -> None:
        with socket.socket(socket.AF_UNIX, kind) as own:
            own.settimeout(2)
            own.connect(path)

    def send(path: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            own.sendto(b"MESSAGE=attack\n", path)

    found = {}
    for path in paths:
        ways = (
            lambda: connect(path, socket.SOCK_STREAM),  # noqa: B023
            lambda: connect(path, socket.SOCK_SEQPACKET),  # noqa: B023
            lambda: send(path),  # noqa: B023
        )
        results = [tried(way) for way in ways]
        found[path] = next((result for result in results if result == ALLOWED), results[0])
    return found


def all_sockets(_: object) -> Findings:
    """Reach whatever socket is in the file system, but its own."""
    paths = []
    for directory in directories():
        with contextlib.suppress(OSError):
            for entry in os.scandir(directory):
                is_socket = stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)
                paths += [entry.path] if is_socket and "OSL_PIPE" not in entry.name else []
    return {path: result for path, result in peers(paths).items() if result == ALLOWED}


def ipc(key: int) -> Findings:
    """Share memory and queues with others."""

    def queue() -> None:
        call(ctypes.CDLL("librt.so.1", use_errno=True).mq_open, b"/attack", os.O_CREAT | os.O_RDWR, 0o666, None)

    def share(path: str) -> None:
        Path(path).write_bytes(b"attack")

    return {
        "shmget": tried(lambda: system_call(29, key, 4096, 0o1666)),
        "semget": tried(lambda: system_call(64, key, 1, 0o1666)),
        "msgget": tried(lambda: system_call(68, key, 0o1666)),
        "mq_open": tried(queue),
        "/dev/shm": tried(lambda: share("/dev/shm/attack")),
        "/run/lock": tried(lambda: share("/run/lock/attack")),
    }


# The kernel, and its privileges


def keyring(_: object) -> Findings:
    """Use keys that other processes of the user see too."""
    return {
        "add_key": tried(lambda: system_call(248, b"user", b"attack", b"x", 1, -4)),
        "request_key": tried(lambda: system_call(249, b"user", b"attack", None, -4)),
        "keyctl": tried(lambda: system_call(250, 0, -4, 1)),
    }


def in_child(attempt: Callable[[], object]) -> str:
    """Try something in a process of its own, because it would change this one."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, tried(attempt).encode())
        except BaseException as error:  # noqa: BLE001 - whatever it is, this process must not go on as an office
            os.write(writing, repr(error)[:100].encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    result = os.read(reading, 100).decode()
    os.close(reading)
    return result or "killed"


def namespaces(_: object) -> Findings:
    """Make and enter namespaces."""
    flags = {"user": 0x10000000, "mnt": 0x20000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x8000000}
    flags |= {"uts": 0x4000000, "cgroup": 0x2000000}
    found = {f"unshare {name}": in_child(lambda: call(LIBC.unshare, flag)) for name, flag in flags.items()}  # noqa: B023
    found["setns"] = in_child(lambda: call(LIBC.setns, os.open("/proc/1/ns/net", os.O_RDONLY), 0))
    return found


def mount() -> None:
    """Mount a file system, and remove it."""
    call(LIBC.mount, b"attack", b"/mnt", b"tmpfs", 0, None)
    call(LIBC.umount2, b"/mnt", 0)


def mounts(_: object) -> Findings:
    """Change what is mounted, and what / is."""
    return {
        "mount": in_child(mount),
        "umount": in_child(lambda: call(LIBC.umount2, b"/usr/lib", 0)),
        "chroot": in_child(lambda: os.chroot("/usr")),
        "pivot_root": in_child(lambda: system_call(155, b"/", b"/")),
        "open_tree": in_child(lambda: system_call(428, -100, b"/", 1)),
        "mknod": in_child(
            lambda: os.mknod(f"{HERE}/attack-node-{os.getpid()}", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        ),
        "fsopen": in_child(lambda: system_call(430, b"tmpfs", 0)),
    }


def processes(pids: list[int]) -> Findings:
    """Look at and touch other processes."""
    found = {}
    for pid in pids:
        found[f"{pid} seen"] = tried(lambda: Path(f"/proc/{pid}").stat())  # noqa: B023
        for name in ("environ", "mem", "cmdline", "root/etc/hostname"):
            found[f"{pid} {name}"] = tried(lambda: Path(f"/proc/{pid}/{name}").open("rb").read(1))  # noqa: B023, SIM115
        found[f"{pid} signal"] = tried(lambda: os.kill(pid, 0))  # noqa: B023
        found[f"{pid} ptrace"] = in_child(lambda: system_call(101, 0x4206, pid, 0, 0))  # noqa: B023
        found[f"{pid} process_vm_readv"] = tried(lambda: system_call(310, pid, None, 0, None, 0, 0))  # noqa: B023
        found[f"{pid} priority"] = tried(lambda: os.setpriority(os.PRIO_PROCESS, pid, 5))  # noqa: B023
    return found


def privileges(_: object) -> Findings:
    """Become somebody else, or more than it is."""
    return {
        "setuid": in_child(lambda: os.setresuid(1, 1, 1)),
        "setgid": in_child(set_group),
        "setgroups": in_child(lambda: os.setgroups([0])),
        "set-user-ID file": in_child(set_user_id),
        "nice -20": in_child(lambda: os.setpriority(os.PRIO_PROCESS, 0, -20)),
        "SCHED_FIFO": in_child(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))),
        "mlockall": in_child(lambda: call(LIBC.mlockall, 3)),
        "core files": in_child(lambda: resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))),
        "personality": in_child(lambda: system_call(135, 0x0020000)),
    }


def set_group() -> None:
    """Get another group. In a user namespace the error for one that is not mapped is EINVAL."""
    try:
        os.setresgid(1, 1, 1)
    except OSError as error:
        raise PermissionError(errno.EPERM, str(error)) from error


def set_user_id() -> None:
    """Make a file that runs as its owner for everybody."""
    path = Path(HERE, "attack-suid")
    path.write_bytes(b"")
    path.chmod(0o4755)
    path.unlink()


def kernel(_: object) -> Findings:
    """Make system calls that change the machine, or that bugs of the kernel were found in."""
    calls: dict[str, tuple[object, ...]] = {
        "bpf": (321, 0, ctypes.create_string_buffer(bytes([1, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 1]), 128), 128),
        "userfaultfd": (323, 1),
        "memfd_secret": (447, 0),
        "io_setup": (206, 1, ctypes.byref(ctypes.c_ulong())),
        "vmsplice": (278, 0, None, 0, 0),
        "kcmp": (312, os.getpid(), os.getpid(), 0, 0, 1),
        "syslog": (103, 10, None, 0),
        "sethostname": (170, b"attack", -1),
        "clock_settime": (227, 0, ctypes.create_string_buffer(b"\xff" * 16)),
        "swapon": (167, b"/usr", 0),
        "reboot": (169, 0, 0, 0, 0),
        "fanotify_init": (300, 0, 0),
        "perf_event_open": (298, perf_attributes(), 0, -1, -1, 0),
    }
    found = {name: in_child(lambda: system_call(*arguments)) for name, arguments in calls.items()}  # type: ignore[arg-type]  # noqa: B023
    found["/proc/sys"] = tried(lambda: Path("/proc/sys/net/ipv4/ip_forward").open("r+b").close())
    found["open_by_handle_at"] = in_child(lambda: system_call(304, -100, ctypes.create_string_buffer(128), 0))
    return found


def perf_attributes() -> Any:
    """Those of an event that counts the clock of the CPU."""
    return ctypes.create_string_buffer(b"\x01\0\0\0\x70\0\0\0" + bytes(0x68), 0x70)


# What is too much


def stderr(mebibytes: int) -> Findings:
    """Write into the journal."""
    line = b"attack " * 140 + b"\n"
    for _ in range(mebibytes * (1 << 20) // len(line)):
        os.write(2, line)
    return {"written": ALLOWED}


def processes_without_end(most: int) -> Findings:
    """Start processes that stay until the office ends."""
    children = []
    try:
        for _ in range(most):
            pid = os.fork()
            if pid == 0:
                signal.pause()
                os._exit(0)
            children.append(pid)
    except OSError as error:
        return {"processes": f"{len(children)}, then {errno.errorcode[error.errno or 0]}"}
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            os.waitpid(pid, 0)
    return {"processes": f"{ALLOWED}, {len(children)}"}


def memory(mebibytes: int) -> Findings:
    """Take memory and write to it."""
    blocks: list[bytearray] = []
    try:
        while len(blocks) < mebibytes:
            blocks += [bytearray(b"x" * (1 << 20))]
    except MemoryError:
        return {"memory": f"{len(blocks)} MiB, then no more"}
    return {"memory": f"{ALLOWED}, {len(blocks)} MiB"}


def spin(threads: int) -> Findings:
    """Compute for ever, in processes of its own."""
    for _ in range(threads):
        if os.fork() == 0:
            while True:
                pass
    return {"processes": ALLOWED}


def stay(how: str) -> Findings:
    """Leave something behind for the next client of this office."""
    if how == "thread":
        threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()
    elif (child := os.fork()) == 0:
        os.setsid()
        if os.fork() == 0:
            signal.pause()
        os._exit(0)
    else:
        os.waitpid(child, 0)  # or it would be left, too
    return {how: ALLOWED}


def facts(_: object) -> Findings:
    """Not an attack: what this process is."""
    status = Path("/proc/self/status").read_text()
    return {line.partition(":")[0]: line.partition(":")[2].strip() for line in status.splitlines()} | {
        "pid": str(os.getpid()),
        "python": sys.version,
    }


ATTACKS: dict[str, Callable[[Any], Findings]] = {
    function.__name__: function
    for function in (
        *(read, walk, write, fill, execute, devices, networks, tcp, handed, peers, all_sockets, ipc, keyring),
        *(namespaces, mounts, processes, privileges, kernel, stderr, processes_without_end, memory, spin, stay, facts),
    )
}


class Attack(unohelper.Base, XJob):  # type: ignore[misc]
    """What the client gets to call."""

    def execute(self, arguments: tuple[Any, ...]) -> str:
        """Run an attack. Its name and its parameter, JSON, come as the first argument."""
        name, parameter = json.loads(arguments[0].Value)
        return json.dumps(ATTACKS[name](parameter))


def getComponentFactory(_implementation: str, _manager: object, _key: object) -> Attack:
    """Answer pythonloader.py."""
    return Attack()
