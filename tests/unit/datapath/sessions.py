# SPDX-License-Identifier: LGPL-2.1-or-later
"""A running session for the tests of forwarding, and what they do with its far ends."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator

from ooodd.datapath.direction import Direction
from ooodd.datapath.forward import Forwarding
from ooodd.datapath.path import Ended, SessionLimits
from ooodd.datapath.record import Record

# A call with the number 3, and a reply to one: block header, flags and what else a head has.
CALL = struct.pack(">IIBB", 2, 1, 0xF8, 3)
REPLY = struct.pack(">IIBB", 2, 1, 0x80, 0)
# Only catches what hangs.
HANG_LIMIT = 20.0

TO_OFFICE, TO_CLIENT = "to the office", "to the client"


class Session:
    """A running forwarding with the far ends of both its sockets."""

    def __init__(self, limits: SessionLimits, before: bytes) -> None:
        self.client, self.near_client = _tcp_pair()
        self.office, self.near_office = socket.socketpair()
        for each in (self.client, self.near_client, self.office, self.near_office):
            each.setblocking(False)  # noqa: FBT003
        self.client.send(before)
        self.record = Record()
        self.forwarding = Forwarding(self.near_client, self.near_office, limits, self.record)
        self.task = asyncio.create_task(self.forwarding.run())

    @property
    def holds(self) -> tuple[int, int]:
        """What is held, on the way to the office and to the client."""
        return self.record.memory[Record.TO_OFFICE], self.record.memory[Record.TO_CLIENT]

    def ends(self, way: str) -> tuple[socket.socket, socket.socket]:
        """Return the far ends of a direction: where it begins and where it ends."""
        return (self.client, self.office) if way == TO_OFFICE else (self.office, self.client)

    def direction(self, way: str) -> Direction:
        return self.forwarding._to_office if way == TO_OFFICE else self.forwarding._to_client

    def reset(self) -> None:
        """Let the client vanish."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.client.close()

    async def stall(self, way: str) -> int:
        """Send what nobody reads until some is pending and no more is taken; return how much was sent."""
        source, _ = self.ends(way)
        sent = 0
        while True:
            try:
                sent += source.send(bytes(65536))
            except BlockingIOError:
                if self.direction(way).pending:
                    return sent
            await asyncio.sleep(0)

    def expire(self, timer: str) -> None:
        """Let a timer expire now."""
        handle = self.forwarding._timers._set[timer]
        assert not handle.cancelled()
        call, arguments = handle._args  # a cancelled handle forgets them
        handle.cancel()
        self.forwarding._timers._expire(call, arguments)

    def age(self, seconds: float) -> None:
        """Let the last byte have moved so much earlier."""
        self.direction(TO_OFFICE).moved -= seconds
        self.direction(TO_CLIENT).moved -= seconds

    async def result(self) -> Ended:
        return await asyncio.wait_for(asyncio.shield(self.task), HANG_LIMIT)

    async def cancel(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    def close(self) -> None:
        for each in (self.client, self.near_client, self.office, self.near_office):
            each.close()


@contextlib.asynccontextmanager
async def session(limits: SessionLimits | None = None, before: bytes = b"") -> AsyncIterator[Session]:
    it = Session(limits or SessionLimits(), before)
    await asyncio.sleep(0)
    try:
        yield it
    finally:
        await it.cancel()
        it.close()


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    return far, near


async def send(end: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(end, data)


async def receive(end: socket.socket, size: int = -1) -> bytes:
    """Return `size` bytes, or all until the end."""
    data = bytearray()
    while len(data) != size:
        most = size - len(data) if size > 0 else 1 << 20
        if not (more := await asyncio.get_running_loop().sock_recv(end, most)):
            break
        data += more
    return bytes(data)
