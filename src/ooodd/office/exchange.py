# SPDX-License-Identifier: LGPL-2.1-or-later
"""Has a sans-IO conversation over a socket, in the loop's callback: to wake a task for each turn takes longer."""

import asyncio
import contextlib
import socket
from typing import Protocol, TypeVar

_Result_co = TypeVar("_Result_co", covariant=True)
# How many bytes are read at once.
_CHUNK = 65536


class Conversation(Protocol[_Result_co]):
    """Our side of a conversation, see `uno.conversation.Conversation`."""

    @property
    def result(self) -> _Result_co | None:
        """What has been found out, at the end; None before."""

    def receive(self, data: bytes) -> bytes:
        """Take bytes of the other side, and return the bytes to send."""


async def converse(connection: socket.socket, conversation: Conversation[_Result_co]) -> _Result_co:
    """Return the conversation's result when the other side has closed, after we have. The caller limits the time.

    The connection must not block; it stays the caller's to close. Raises `EOFError` if the other side closes too soon,
    `OSError`, and what `conversation` raises.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[_Result_co] = loop.create_future()

    def read() -> None:
        data = connection.recv(_CHUNK)
        if conversation.result is not None:
            if not data and not ended.done():
                ended.set_result(conversation.result)
        elif not data:
            raise EOFError
        else:
            connection.sendall(conversation.receive(data))  # there is room: all that ooodd asks is less than 4 KiB
            if conversation.result is not None:
                connection.shutdown(socket.SHUT_WR)

    def readable() -> None:
        try:
            with contextlib.suppress(BlockingIOError):  # nothing there; or no room, and then the other side hangs
                read()
        except Exception as error:  # noqa: BLE001 - whoever waits for the end gets it
            if not ended.done():
                ended.set_exception(error)

    loop.add_reader(connection, readable)
    try:
        return await ended
    finally:
        loop.remove_reader(connection)
