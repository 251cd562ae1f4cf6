# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client: its connection from accept to close, and what is done with the connection alone."""

import asyncio
import contextlib
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ooodd.datapath.forward import Forwarding
from ooodd.errors import ProtocolError
from ooodd.systemd.listeners import Peer, peer
from ooodd.uno.refusal import Refusal
from ooodd.uno.urp import OPENING_SIZE

# How long a client that has been refused may take to close by itself, in seconds; libraries take 0.1 ms.
_FAREWELL = 0.5


@dataclass(eq=False, slots=True)
class Client:
    """One connection, from accept to close. `session` is its number everywhere: pool, store, journal, status."""

    session: int
    connection: socket.socket
    peer: Peer
    # Since when it has been silent, has waited, or has had its office, as `time.monotonic` tells it to any process.
    since: float
    # While it waits: gets the number of its worker, or None if it is to go without.
    turn: "asyncio.Future[int | None] | None" = None
    # Why it gets no office, if it was told so.
    refusal: str = ""
    worker: int | None = None
    office: socket.socket | None = None
    forwarding: Forwarding | None = None
    # Its worker has been taken away by the pool; whoever waits for that is told.
    broken: bool = False
    on_broken: "asyncio.Future[None] | None" = None
    # The name under which the store has it.
    stored: str = ""
    # It had its worker, or its place in the queue, from a broker before this one.
    adopted: bool = False

    def waiting_name(self) -> str:
        """Return what the store is to call it while it waits; `clients_left` reads that."""
        return f"waiting-{self.session}-{self.since * 1000:.0f}"

    def session_name(self) -> str:
        """Return what the store is to call it, with its office, while it has one; `clients_left` reads that."""
        return f"session-{self.session}-{self.worker}-{self.since * 1000:.0f}"

    def opening(self) -> bytes:
        """Look at the first bytes, which stay in the socket; none if nothing has come, or nothing will."""
        try:
            return self.connection.recv(OPENING_SIZE, socket.MSG_PEEK)
        except OSError:
            return b""

    async def speaks(self) -> None:
        """Wait until there is something to look at. For an opening, that is: who sends less at once is no UNO client.

        `hear_every_byte` has to follow before anything else is done with the connection.
        """
        with contextlib.suppress(OSError):  # a TCP socket is not readable before so much has come, or the end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, OPENING_SIZE)
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self.connection, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self.connection)

    def hear_every_byte(self) -> None:
        """Have the socket be readable as soon as there is a byte, as sockets are."""
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    async def refuse(self, text: str) -> None:
        """Answer the client's first request with an exception of UNO's; return when it has been heard."""
        loop = asyncio.get_running_loop()
        refusal = Refusal(text)
        self.hear_every_byte()
        with contextlib.suppress(OSError, ProtocolError):
            while not refusal.done and (data := await loop.sock_recv(self.connection, 4096)):
                await loop.sock_sendall(self.connection, refusal.receive(data))
            # Let the client close first, as it does once it has the exception: an end of file that comes on its heels
            # makes binaryurp forget it, in one of five times (it says "Binary URP bridge disposed during call").
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELL):
                    await self._read_to_end()
            self.connection.shutdown(socket.SHUT_WR)
            await self._read_to_end()

    async def _read_to_end(self) -> None:
        """Read and forget: to close with bytes unread would take away what we sent."""
        while await asyncio.get_running_loop().sock_recv(self.connection, 4096):
            pass

    def hang_up(self) -> None:
        """End the connections, whoever else has a descriptor of them; who waits for bytes gets the end of file."""
        for connection in (self.connection, self.office):
            if connection is not None:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close our descriptors."""
        self.connection.close()
        if self.office is not None:
            self.office.close()


def clients_left(left: Mapping[str, Sequence[socket.socket]]) -> tuple[dict[int, Client], dict[int, Client]]:
    """Return the clients that the store has kept: those with a session by worker, those that wait by session, in order.

    Closes what is neither.
    """
    sessions: dict[int, Client] = {}
    waiting: dict[int, Client] = {}
    for name, sockets in left.items():
        match name.split("-"), sockets:
            case ["session", session, worker, since], [connection, office]:
                client = _adopted(name, int(session), connection, int(since))
                client.office, client.worker = office, int(worker)
                sessions[int(worker)] = client
            case ["waiting", session, since], [connection]:
                waiting[int(session)] = _adopted(name, int(session), connection, int(since))
            case _:
                for connection in sockets:
                    connection.close()
    for client in sessions.values():  # the broker before was killed as it leased
        if (twice := waiting.pop(client.session, None)) is not None:
            twice.close()
    return sessions, {session: waiting[session] for session in sorted(waiting)}


def _adopted(name: str, session: int, connection: socket.socket, since: int) -> Client:
    return Client(session, connection, peer(connection), since / 1000, stored=name, adopted=True)
