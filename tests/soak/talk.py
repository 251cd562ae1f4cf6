# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client of an office with a plain socket. A session takes a millisecond, and one process can run thousands.

It begins as pyuno and the C++ library do, with a request for protocol properties. Then it makes the calls of ooodd's
own probe: for the context, the desktop, the current document, all documents. It can also read a refusal.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Self

from ooodd.errors import ProtocolError
from ooodd.uno import conversation
from ooodd.uno.caller import OPENING, Caller

PORT = 2002


class Talk(Caller[conversation.Findings]):
    """A conversation with an office of some rounds. Send OPENING first. `refused` is the text of ooodd's refusal."""

    def __init__(self, rounds: int) -> None:
        super().__init__(_rounds(rounds))


def _rounds(count: int) -> conversation.Turns[conversation.Findings]:
    for _ in range(count - 1):
        yield from conversation.look()
    return (yield from conversation.look())


class Connection:
    """A client's socket. The with statement closes it."""

    def __init__(self, host: str = "127.0.0.1", first_bytes: bytes = b"") -> None:
        """Take the local address, and the bytes to send as soon as it is connected."""
        self._loop = asyncio.get_running_loop()
        self._first_bytes = first_bytes
        self.socket = socket.socket()
        self.socket.bind((host, 0))
        self.received = 0

    async def __aenter__(self) -> Self:
        if self._first_bytes:  # without an iteration of the loop between the two, in which others would connect
            self.socket.connect(("127.0.0.1", PORT))
            self.socket.send(self._first_bytes)
        self.socket.setblocking(False)  # noqa: FBT003
        if not self._first_bytes:
            await self._loop.sock_connect(self.socket, ("127.0.0.1", PORT))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.socket.close()

    @property
    def name(self) -> str:
        """The client's name in ooodd's journal."""
        host, port = self.socket.getsockname()
        return f"{host}:{port}"

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.socket, data)

    async def receive(self) -> bytes:
        """Return the bytes that have arrived. Raise EOFError at the end."""
        data = await self._loop.sock_recv(self.socket, 65536)
        if not data:
            raise EOFError("the connection was closed")
        self.received += len(data)
        return data

    async def until_end(self) -> None:
        """Read and drop everything up to the end of file."""
        while await self._loop.sock_recv(self.socket, 65536):
            pass

    def reset_at_close(self) -> None:
        """Make the close send a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def receive_until_answer(connection: Connection, talk: Talk) -> bytes:
    """Receive until the client has bytes to send, and return them. Return none when the conversation has ended."""
    answer = b""
    while not answer and not talk.done:
        answer = talk.receive(await connection.receive())
    return answer


__all__ = ["OPENING", "PORT", "Connection", "ProtocolError", "Talk", "receive_until_answer"]
