# SPDX-License-Identifier: LGPL-2.1-or-later
"""The paths to one office: the broker that owns it, the proxies in front of the same pipe, and the pipe itself.

This module starts the broker and the proxies in the foreground, and ends them.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src"
SOCKET_PROXYD = Path("/usr/lib/systemd/systemd-socket-proxyd")
START_TIMEOUT = 30.0
STOP_TIMEOUT = 10.0
# The pause between two tries, in seconds.
PERIOD = 0.02

# One worker, which is not recycled during a measurement.
CONFIGURATION = """\
[pool]
workers = 1
max_uses = 1000000
max_uses_jitter = 0
"""

# One thread, as in ooodd. No log, because ooodd does not log calls. The buffer has the size of those of ooodd and of
# systemd-socket-proxyd; HAProxy's default of 16 KiB is meant for HTTP headers. HAProxy sets TCP_NODELAY by default.
HAPROXY = """\
global
    nbthread 1
    maxconn 100
    tune.bufsize 262144

defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h

listen office
    bind 127.0.0.1:{port}
    server office unix@{pipe}
"""


@dataclass(frozen=True)
class Broker:
    """A running `ooodd run`, and a directory for the files of all processes."""

    process: subprocess.Popen[bytes]
    port: int
    directory: Path


def free_port() -> int:
    """Return a port of 127.0.0.1 that no process uses now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def broker(directory: Path) -> Iterator[Broker]:
    """Run ooodd from the source tree with one worker."""
    port = free_port()
    (directory / "ooodd.toml").write_text(CONFIGURATION)
    command = [*("/usr/bin/python3", "-m", "ooodd", "run", "--config", str(directory / "ooodd.toml"))]
    command += ["--listen", f"127.0.0.1:{port}", "--runtime-directory", str(directory)]
    # With these variables, which are set if this runs in a service, ooodd would run as a service.
    environment = {name: value for name, value in os.environ.items() if name not in {"LISTEN_FDS", "NOTIFY_SOCKET"}}
    with _running(command, directory / "ooodd.log", {**environment, "PYTHONPATH": str(SOURCE)}) as process:
        _wait_port(process, port, directory / "ooodd.log")
        yield Broker(process, port, directory)


def office_pipe(owner: Broker) -> Path:
    """Return the pipe of the worker. It may not exist before the worker's first session."""
    found = list(Path("/tmp").glob(f"OSL_PIPE_*ooodd-{owner.process.pid}-1-*"))
    if len(found) != 1:
        raise SystemExit(f"expected one pipe of the office, found {found}")
    return found[0]


@contextmanager
def haproxy(owner: Broker, pipe: Path) -> Iterator[int]:
    """Run HAProxy in front of the pipe, and yield its port."""
    port = free_port()
    file = owner.directory / "haproxy.cfg"
    file.write_text(HAPROXY.format(port=port, pipe=pipe))
    with _running([_haproxy_program(), "-db", "-f", str(file)], owner.directory / "haproxy.log") as process:
        _wait_port(process, port, owner.directory / "haproxy.log")
        yield port


@contextmanager
def socket_proxyd(owner: Broker, pipe: Path) -> Iterator[int]:
    """Run systemd-socket-proxyd in front of the pipe, and yield its port. It gets a socket as from systemd."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # The shell execs the proxy, so $$ is the pid of the proxy.
        script = f'LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$1" 3<&{listener.fileno()} {listener.fileno()}<&-'
        command = ["/bin/bash", "-c", script, str(SOCKET_PROXYD), str(pipe)]
        log = owner.directory / "socket-proxyd.log"
        with _running(command, log, keep=[listener.fileno()]):
            yield int(listener.getsockname()[1])


def versions() -> dict[str, str]:
    """Return the versions of all programs except the office."""
    return {
        "ooodd": _first_line(["/usr/bin/python3", "-m", "ooodd", "--version"], {"PYTHONPATH": str(SOURCE)}),
        "Python": _first_line(["/usr/bin/python3", "--version"]),
        "HAProxy": _first_line([_haproxy_program(), "-v"]),
        "systemd": _first_line(["systemctl", "--version"]),
    }


def _haproxy_program() -> str:
    """Return the path of HAProxy. It is in /usr/sbin, which may not be in PATH."""
    return shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or "haproxy"


def _first_line(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    output = subprocess.run(
        command, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=True
    )
    return output.stdout.splitlines()[0]


@contextmanager
def _running(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, keep: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command and end it with SIGTERM. It has a session of its own, so Ctrl-C does not reach it."""
    with log.open("wb") as output, ExitStack() as stack:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=keep,
            start_new_session=True,
        )
        stack.callback(_end, process)
        yield process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until a port accepts connections. A connection that sends nothing takes no worker of ooodd."""

    def accepts() -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), START_TIMEOUT).close()
            return True
        if process.poll() is not None:
            raise SystemExit(f"{process.args!r} ended with {process.returncode}:\n{log.read_text()}")
        return False

    _wait_for(accepts, f"no process listens on port {port}")


def _wait_for(condition: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{complaint} after {START_TIMEOUT:g} s")
        time.sleep(PERIOD)
