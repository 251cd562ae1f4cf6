# SPDX-License-Identifier: LGPL-2.1-or-later
"""A fake of ooodd's acceptor, by which a fake office takes clients' sockets. It says what src/acceptor says."""

import array
import asyncio
import contextlib
import select
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from ooodd.uno.urp import Calls

HAND_OVER = b"ooodd 1 session"


class Counted:
    """A client's connection, and what the office says of it over the control connection."""

    def __init__(self, connection: socket.socket, control: socket.socket) -> None:
        self.connection = connection
        self.control = control
        self.calls = Calls()
        self.total = self.received = self.sent = 0
        self.opening = b""
        self.moved = time.monotonic()
        self.by_client = False
        self.closed = False

    def took(self, data: bytes) -> None:
        """Take note of what the office has received."""
        self.by_client = self.by_client or not data
        self.moved = time.monotonic()
        self.received += len(data)
        self.opening += data
        before = self.calls._count
        self.calls.to_office(memoryview(data))
        self.total += self.calls._count - before

    def gave(self, data: bytes) -> None:
        """Take note of what the office has sent."""
        self.moved = time.monotonic()
        self.sent += len(data)
        self.calls.to_client(memoryview(data))

    def answer(self) -> None:
        """Answer one question of the broker."""
        try:
            question = self.control.recv(64)
        except BlockingIOError:
            return
        if not question:
            asyncio.get_running_loop().remove_reader(self.control)
            return
        self.tell(self._answer(question))

    def _answer(self, question: bytes) -> bytes:
        under_way = int(self.calls.under_way)
        if question == b"calls":
            quiet = int(1000 * (time.monotonic() - self.moved))
            return f"calls {self.total} {under_way} {quiet} 0 0".encode()
        if question == b"opening":
            return b"opening " + self.opening[:4096]
        if question == f"end {self.total}".encode() and not under_way and not self._has_more():
            self.tell(b"ended")
            self.close()
            return b""
        return b"busy" if question.startswith(b"end ") else b"unknown"

    def _has_more(self) -> bool:
        try:
            self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        return True

    def tell(self, message: bytes) -> None:
        with contextlib.suppress(OSError):
            self.control.send(message, socket.MSG_NOSIGNAL)

    def close(self) -> None:
        """Close the session for both sides, as the office does first."""
        if not self.closed:
            self.closed = True
            poll = select.poll()
            poll.register(self.connection, select.POLLRDHUP)
            self.by_client = self.by_client or bool(poll.poll(0))
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            by = "client" if self.by_client else "office"
            self.tell(f"closed {by} {int(self.calls.under_way)} {self.received} {self.sent}".encode())


class FakeAcceptor:
    """Listens for control connections, and has each client that is handed over served."""

    def __init__(self, path: Path, serve: Callable[[Counted], Awaitable[None]]) -> None:
        self._path = path
        self._serve = serve
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        self._listener.bind(str(self._path))
        self._listener.listen(128)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    async def close(self) -> None:
        """End: what has been handed over is closed, without a word about it."""
        if self._listener.fileno() == -1:
            return
        asyncio.get_running_loop().remove_reader(self._listener)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            control, _ = self._listener.accept()
            control.setblocking(False)  # noqa: FBT003
            task = asyncio.create_task(self._take(control), name="fake acceptor")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(lambda _: control.close())

    async def _take(self, control: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with control:
            readable = asyncio.Event()
            loop.add_reader(control, readable.set)
            try:
                await readable.wait()
                text, numbers = _receive(control)
            except OSError:
                return
            finally:
                loop.remove_reader(control)
            sockets = [socket.socket(fileno=number) for number in numbers]
            try:
                if text == HAND_OVER and len(sockets) == 1:
                    await self._have_served(Counted(sockets[0], control))
            finally:
                for each in sockets:
                    each.close()

    async def _have_served(self, session: Counted) -> None:
        loop = asyncio.get_running_loop()
        session.tell(b"began")
        loop.add_reader(session.control, session.answer)
        try:
            await self._serve(session)
            session.close()
        finally:
            loop.remove_reader(session.control)
            # The broker has another descriptor of the connection, as it has when a real office dies.
            session.connection.close()


def _receive(control: socket.socket) -> tuple[bytes, list[int]]:
    numbers = array.array("i")
    text, ancillary, _, _ = control.recvmsg(64, socket.CMSG_SPACE(4 * numbers.itemsize))
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return text, list(numbers)
