# SPDX-License-Identifier: LGPL-2.1-or-later
"""The farewell of a client that gets no office: it is told why by an exception of UNO's, and closes its connection."""

import asyncio
import contextlib
import socket

from ooodd.broker.client import Client
from ooodd.errors import ProtocolError
from ooodd.systemd.peer import read_to_end
from ooodd.uno.refusal import Refusal

# How long a client that has been refused may take to close by itself, in seconds; libraries take 0.1 ms.
_CLOSE_LIMIT = 0.5


async def refuse(client: Client, text: str) -> None:
    """Answer the client's first request with an exception; return when the client has closed.

    The caller limits the time: a client may read nothing, or never close.
    """
    loop, connection = asyncio.get_running_loop(), client.connection
    refusal = Refusal(text)
    client.read_every_byte()
    with contextlib.suppress(OSError, ProtocolError):
        while not refusal.done and (data := await loop.sock_recv(connection, 4096)):
            await loop.sock_sendall(connection, refusal.receive(data))
        # The client should close first, as libraries do once they have the exception. If the end of file comes right
        # behind the exception, binaryurp drops the exception in one of five times, and the client is told "Binary URP
        # bridge disposed during call" instead.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_LIMIT):
                await read_to_end(connection)
        connection.shutdown(socket.SHUT_WR)
        await read_to_end(connection)  # a close with unread bytes would take back what was sent
