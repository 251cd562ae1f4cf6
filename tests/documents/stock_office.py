# SPDX-License-Identifier: LGPL-2.1-or-later
"""A stock soffice of one's own: its own profile and its own port or pipe, gone with the with statement.

The yardstick for everything else: what a client gets from LibreOffice with no ooodd in between. Needs a Python that has
``uno`` only in ``connect``.
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
"""soffice.bin's exit status after it has filled an empty profile; the soffice script would start it again."""
PERIOD = 0.02


@dataclass(frozen=True)
class Office:
    """A running office and the directory of all it writes: profile, pipes and temporary files."""

    process: subprocess.Popen[bytes]
    directory: Path


@contextmanager
def stock_office(accept: str) -> Iterator[Office]:
    """Run an office that accepts ("socket,host=127.0.0.1,port=2003" or "pipe,name=unique"); killed at the end.

    It may not accept yet when this returns: no event tells. Use ``wait_port`` or ``connect``.
    """
    directory = Path(tempfile.mkdtemp(prefix="stock-office-"))
    environment = {**os.environ, "TMPDIR": str(directory)}
    command = [str(PROGRAM), "--headless", "--norestore", "--nologo", "--nodefault", f"--accept={accept};urp"]
    command.append(f"-env:UserInstallation=file://{directory}/profile")
    try:
        # The first start in an empty profile only fills it and exits.
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
    """The files of a process's unix sockets. A killed office leaves its pipes in /tmp, and takes no other directory.

    None are found once the process has crashed; its pipes then stay.
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
    """A TCP port of the loopback interface that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def connect(accept: str, office: Office, timeout: float = START_TIMEOUT) -> Any:
    """Connect through UNO, as soon as the office accepts; return its component context."""
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
