# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is compared: the installed pool, offices that are started by hand, and proxies in front of those.

All offices have the same program and a copy of the same profile. Whoever enters a context manager here has it ended.
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

PROGRAM = Path("/usr/lib/libreoffice/program/soffice.bin")
PROFILES = Path("/var/cache/private/ooodd-profile/ooodd-profiles")
CONFIGURATION = Path("/etc/ooodd/ooodd.toml")
POOL_PORT = 2002
FIRST_PORT = 2100
# As in ooodd-worker@.service: they make an office smaller, and not slower.
MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "131072"}
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
START_LIMIT = 60.0

# One thread, as in ooodd. The buffer has the size of those of ooodd and of systemd-socket-proxyd; HAProxy's default of
# 16 KiB is meant for HTTP headers. HAProxy sets TCP_NODELAY by default.
HAPROXY = """\
global
    nbthread 1
    maxconn 1000
    tune.bufsize 262144
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
"""
HAPROXY_LISTEN = """\
listen office{number}
    bind 127.0.0.1:{port}
    server office unix@{pipe}
"""


@dataclass(frozen=True)
class Office:
    """An office that was started by hand."""

    process: psutil.Popen
    port: int
    pipe: Path
    directory: Path


class Pool:
    """The installed ooodd."""

    def configure(self, text: str) -> None:
        """Start it anew with this configuration, and wait until as many workers are idle as it says at least."""
        _systemctl("stop", "ooodd.service", "ooodd.socket")
        CONFIGURATION.write_text(text)
        _systemctl("start", "ooodd.socket", "ooodd.service")
        least = self.status()["config"]["pool"]["min_workers"]
        self.wait(lambda: self.states().count("idle") >= least)

    def sleep(self) -> None:
        """Stop all but the socket."""
        _systemctl("stop", "ooodd.service")
        _systemctl("start", "ooodd.socket")

    def change(self, before: str, after: str) -> None:
        """Change the configuration of the running one."""
        CONFIGURATION.write_text(CONFIGURATION.read_text().replace(before, after))
        _systemctl("reload", "ooodd.service")

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(_output("ooodd", "status", "--json"))
        return found

    def states(self) -> list[str]:
        return [worker["state"] for worker in self.status()["workers"]]

    def wait(self, condition: Callable[[], object]) -> None:
        _wait(condition, "the pool")

    def broker(self) -> psutil.Process:
        return psutil.Process(int(_output("systemctl", "show", "--value", "-p", "MainPID", "ooodd.service")))


def _systemctl(*words: str) -> None:
    subprocess.run(["systemctl", *words], check=True)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _wait(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + START_LIMIT
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {START_LIMIT:g} s for {what}")
        time.sleep(0.01)


def cpu_of_worker(number: int = 1) -> float:
    """Return the seconds of CPU that a worker's unit has used since its start."""
    return int(_output("systemctl", "show", "--value", "-p", "CPUUsageNSec", f"ooodd-worker@{number}.service")) / 1e9


def made_profile() -> Path:
    """Return the profile of which the pool's offices get copies."""
    _systemctl("start", "ooodd-profile.service")
    (found,) = PROFILES.iterdir()
    return found


def prepare(number: int, *, stock: bool = False) -> Path:
    """Make a directory for an office, with a copy of the pool's profile or, for a stock one, without a profile."""
    directory = Path(f"/tmp/bench/{number}")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    if not stock:
        shutil.copytree(made_profile(), directory / "profile")
    return directory


def start(number: int, directory: Path, *, stock: bool = False) -> Office:
    """Start an office by hand in its directory. It may not be ready on return."""
    # It puts its pipes into /tmp if it can write there.
    port, pipe = FIRST_PORT + number, Path(f"/tmp/OSL_PIPE_{os.getuid()}_bench{number}")
    # A stock office asks to be started again with its first profile, which is what the program `soffice` is for.
    program = PROGRAM.with_name("soffice") if stock else PROGRAM
    command = [
        *(str(program), "--headless", "--norestore", "--nologo", "--nodefault"),
        f"-env:UserInstallation={(directory / 'profile').as_uri()}",
        *(f"--accept=socket,host=127.0.0.1,port={port},tcpNoDelay=1;urp", f"--accept=pipe,name=bench{number};urp"),
    ]
    environment = {**ENVIRONMENT, "HOME": str(directory), "TMPDIR": str(directory)} | ({} if stock else MEMORY)
    process = psutil.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=2)
    return Office(process, port, pipe, directory)


def end(office: Office) -> None:
    """End an office, and remove what it had."""
    for process in (*office.process.children(recursive=True), office.process):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
            process.wait()
    shutil.rmtree(office.directory, ignore_errors=True)
    office.pipe.unlink(missing_ok=True)


def answers(port: int) -> bool:
    """Whether somebody listens."""
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False


@contextmanager
def plain(count: int, first: int = 0, *, stock: bool = False) -> Iterator[list[Office]]:
    """Run so many offices by hand."""
    with ExitStack() as stack:
        found = []
        for number in range(first, first + count):
            office = start(number, prepare(number, stock=stock), stock=stock)
            stack.callback(end, office)
            _wait(lambda: answers(office.port), "an office")  # noqa: B023 - called at once
            found.append(office)
        yield found


@contextmanager
def haproxy(offices: Sequence[Office]) -> Iterator[list[int]]:
    """Run HAProxy in front of the offices' pipes, and yield its ports."""
    ports = [office.port + 200 for office in offices]
    listens = (HAPROXY_LISTEN.format(number=p, port=p, pipe=o.pipe) for p, o in zip(ports, offices, strict=True))
    file = Path("/tmp/bench/haproxy.cfg")
    file.write_text(HAPROXY + "".join(listens))
    with subprocess.Popen(["/usr/sbin/haproxy", "-q", "-db", "-f", str(file)]) as process:
        try:
            for port in ports:
                _wait(lambda: answers(port), "HAProxy")  # noqa: B023 - called at once
            yield ports
        finally:
            process.terminate()


@contextmanager
def socket_proxyd(office: Office) -> Iterator[int]:
    """Run systemd-socket-proxyd in front of the office's pipe, and yield its port. It gets a socket as from systemd."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = fcntl.fcntl(listener, fcntl.F_DUPFD, 10)  # not 3, where it has to be
        script = f'LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$1" 3<&{number} {number}<&-'  # the shell's pid is the proxy's
        command = ["/bin/bash", "-c", script, "/usr/lib/systemd/systemd-socket-proxyd", str(office.pipe)]
        with subprocess.Popen(command, pass_fds=[number]) as process:
            os.close(number)
            try:
                yield int(listener.getsockname()[1])
            finally:
                process.terminate()
