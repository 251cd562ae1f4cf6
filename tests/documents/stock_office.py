# SPDX-License-Identifier: LGPL-2.1-or-later
"""A stock soffice with its own profile and its own port or pipe. The with statement ends it.

Tests compare with it: it shows what a client gets from LibreOffice without ooodd. Only ``connect`` needs a Python that
has ``uno``.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = Path("/usr/lib/libreoffice/program/soffice.bin")
START_TIMEOUT = 60.0
START_AGAIN = 81
"""soffice.bin's exit status after it has filled an empty profile. The soffice script then starts it again."""
PERIOD = 0.02
"""The pause between two tries, in seconds."""


@dataclass(frozen=True)
class Office:
    """A running office, and the directory of its profile and temporary files."""

    process: subprocess.Popen[bytes]
    directory: Path


@contextmanager
def stock_office(accept: str) -> Iterator[Office]:
    """Run an office that accepts on "socket,host=127.0.0.1,port=2003" or "pipe,name=unique", and kill it at the end.

    The office may not accept yet when this returns, because no event tells that. Use ``wait_port`` or ``connect``.
    """
    directory = Path(tempfile.mkdtemp(prefix="stock-office-"))
    environment = {**os.environ, "TMPDIR": str(directory)}
    command = [str(PROGRAM), "--headless", "--norestore", "--nologo", "--nodefault", f"--accept={accept};urp"]
    command.append(f"-env:UserInstallation=file://{directory}/profile")
    try:
        # The first start in an empty profile fills the profile and exits.
        subprocess.run([*command, "--terminate_after_init"], env=environment, timeout=START_TIMEOUT, check=False)
        with subprocess.Popen(command, env=environment) as process:
            try:
                yield Office(process, directory)
            finally:
                left = unix_sockets(process.pid)
                process.kill()
                for path in left:
                    path.unlink(missing_ok=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def unix_sockets(pid: int) -> list[Path]:
    """Return the files of a process's unix sockets. A killed office leaves its pipes in /tmp.

    After a crash of the process none are found, and its pipes stay.
    """
    try:
        links = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:
        return []
    lines = [line.split() for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]]
    return [Path(line[7]) for line in lines if len(line) > 7 and f"socket:[{line[6]}]" in links]


def wait_port(port: int, office: Office, timeout: float = START_TIMEOUT) -> None:
    """Wait until an office's TCP port accepts."""
    deadline = time.monotonic() + timeout
    while office.process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(PERIOD)
        else:
            return
    raise TimeoutError(f"no office on port {port} (exit status {office.process.poll()})")


def free_port() -> int:
    """Return a TCP port of the loopback interface on which no process listens now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def connect(accept: str, office: Office, timeout: float = START_TIMEOUT) -> Any:
    """Wait until the office accepts, connect through UNO, and return its component context."""
    import uno

    local = uno.getComponentContext()
    resolver = local.ServiceManager.createInstanceWithContext("com.sun.star.bridge.UnoUrlResolver", local)
    deadline = time.monotonic() + timeout
    while office.process.poll() is None and time.monotonic() < deadline:
        try:
            return resolver.resolve(f"uno:{accept};urp;StarOffice.ComponentContext")
        except uno.getClass("com.sun.star.connection.NoConnectException"):
            time.sleep(PERIOD)
    raise TimeoutError(f"no office at {accept} (exit status {office.process.poll()})")
