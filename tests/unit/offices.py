# SPDX-License-Identifier: LGPL-2.1-or-later
"""Offices for tests: the handle, a fake process for it, and a session of a client."""

import asyncio
import contextlib
import os
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from fakes import GREETING, OPENING, FakeOffice
from ooodd.office.office import Office

# Listens as sal does and prints a line when it is ready. Ends at the end of its standard input.
_OTHER_PROCESS = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(5)
print("listening", flush=True)
sys.stdin.read()
"""


def an_office(directory: Path, pid: int | None = None) -> Office:
    return Office("worker-1", os.getpid() if pid is None else pid, os.getuid(), directory)


def listen(path: Path, backlog: int = 5) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(backlog)
    return listener


@contextlib.contextmanager
def other_process(path: Path) -> Iterator[int]:
    """Run another process that listens at `path`, and yield its process id."""
    with subprocess.Popen(
        [sys.executable, "-c", _OTHER_PROCESS, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.communicate()


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Lower the limit of descriptors to the number that is open, so that the next socket fails."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        for _ in range(100):  # fills the gaps between the open descriptors
            stack.enter_context(socket.socket())
        least = stack.enter_context(socket.socket()).fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextlib.asynccontextmanager
async def fake(directory: Path, fault: str = "") -> AsyncIterator[tuple[Office, FakeOffice]]:
    office = an_office(directory)
    it = FakeOffice(next(office.pipes()), fault)
    it.open()
    try:
        yield office, it
    finally:
        await it.close()


async def be_client(office: Office) -> None:
    """Run a session with the office."""
    loop = asyncio.get_running_loop()
    with office.connect() as connection:
        await loop.sock_sendall(connection, OPENING)
        heard = b""
        while len(heard) < len(GREETING + OPENING):
            heard += await loop.sock_recv(connection, 65536)
        connection.shutdown(socket.SHUT_WR)
        while await loop.sock_recv(connection, 65536):
            pass
