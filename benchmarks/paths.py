# SPDX-License-Identifier: LGPL-2.1-or-later
"""The paths to one office: the broker that owns it, the proxies put in front of the very same pipe, and the pipe.

Everything is started here, in the foreground, and ended here by its own process; nothing is left.
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
# How long to wait before the next look, in seconds.
PERIOD = 0.02

# One worker, and no recycling while something is measured.
CONFIGURATION = """\
[pool]
workers = 1
max_uses = 1000000
max_uses_jitter = 0
"""

# One thread, as ooodd has. No log: ooodd writes none for a call either. The buffer is as big as that of ooodd and of
# systemd-socket-proxyd; HAProxy's own of 16 KiB is made for HTTP headers. HAProxy sets TCP_NODELAY by itself.
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
    """A running `ooodd run`, with a directory for all that is needed along with it."""

    process: subprocess.Popen[bytes]
    port: int
    directory: Path


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def broker(directory: Path) -> Iterator[Broker]:
    """Run the work tree's ooodd with one worker."""
    port = free_port()
    (directory / "ooodd.toml").write_text(CONFIGURATION)
    command = [*("/usr/bin/python3", "-m", "ooodd", "run", "--config", str(directory / "ooodd.toml"))]
    command += ["--listen", f"127.0.0.1:{port}", "--runtime-directory", str(directory)]
    # It would take itself for a service if this runs in one.
    environment = {name: value for name, value in os.environ.items() if name not in {"LISTEN_FDS", "NOTIFY_SOCKET"}}
    with _running(command, directory / "ooodd.log", {**environment, "PYTHONPATH": str(SOURCE)}) as process:
        _wait_port(process, port, directory / "ooodd.log")
        yield Broker(process, port, directory)


def office_pipe(owner: Broker) -> Path:
    """Return the pipe of the worker, which must have a session or have had one: before, there may be none yet."""
    found = list(Path("/tmp").glob(f"OSL_PIPE_*ooodd-{owner.process.pid}-1-*"))
    if len(found) != 1:
        raise SystemExit(f"pipes of the office: {found}; one was expected")
    return found[0]


@contextmanager
def haproxy(owner: Broker, pipe: Path) -> Iterator[int]:
    """Run HAProxy in front of the pipe; yield its port."""
    port = free_port()
    file = owner.directory / "haproxy.cfg"
    file.write_text(HAPROXY.format(port=port, pipe=pipe))
    with _running([_haproxy_program(), "-db", "-f", str(file)], owner.directory / "haproxy.log") as process:
        _wait_port(process, port, owner.directory / "haproxy.log")
        yield port


@contextmanager
def socket_proxyd(owner: Broker, pipe: Path) -> Iterator[int]:
    """Run systemd-socket-proxyd in front of the pipe; yield its port. It gets its socket as systemd would pass it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # The shell becomes the proxy, and so knows its process id.
        script = f'LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$1" 3<&{listener.fileno()} {listener.fileno()}<&-'
        command = ["/bin/bash", "-c", script, str(SOCKET_PROXYD), str(pipe)]
        log = owner.directory / "socket-proxyd.log"
        with _running(command, log, keep=[listener.fileno()]):
            yield int(listener.getsockname()[1])


def versions() -> dict[str, str]:
    """Return the versions of what is compared; the office's is told by the office."""
    return {
        "ooodd": _first_line(["/usr/bin/python3", "-m", "ooodd", "--version"], {"PYTHONPATH": str(SOURCE)}),
        "Python": _first_line(["/usr/bin/python3", "--version"]),
        "HAProxy": _first_line([_haproxy_program(), "-v"]),
        "systemd": _first_line(["systemctl", "--version"]),
    }


def _haproxy_program() -> str:
    """/usr/sbin is not in everybody's PATH."""
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
    """Run a command in a session of its own, so that Ctrl-C reaches only us, and end it with SIGTERM."""
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
    """Wait until a port takes connections. A connection that says nothing costs ooodd no worker."""

    def taken() -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), START_TIMEOUT).close()
            return True
        if process.poll() is not None:
            raise SystemExit(f"{process.args!r} ended with {process.returncode}:\n{log.read_text()}")
        return False

    _wait_for(taken, f"nobody listens on port {port}")


def _wait_for(happened: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not happened():
        if time.monotonic() > deadline:
            raise SystemExit(f"{complaint} after {START_TIMEOUT:g} s")
        time.sleep(PERIOD)
