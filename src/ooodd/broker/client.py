# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client: one connection, from accept to close, and the phase of its life that it is in.

`session` tells what happens in each phase, `TRANSITIONS` which phases there are and what can follow. A phase has its
own data: a client that is queued has a `Turn`, one that has a worker has a `Tenure`.
"""

import asyncio
import contextlib
import select
import socket
import time
from dataclasses import dataclass, field
from enum import StrEnum

from ooodd.datapath.path import DataPath
from ooodd.pool.actions import Lease
from ooodd.systemd.fdstore import shut_down
from ooodd.systemd.peer import Peer, credentials
from ooodd.uno.urp import OPENING_SIZE


class Phase(StrEnum):
    """What a client is in the middle of."""

    # Accepted, and its first bytes are awaited.
    ACCEPTED = "accepted"
    # Admitted, because it speaks UNO; it waits for its turn.
    QUEUED = "queued"
    # It has a worker, and is connected to its office. No byte has been forwarded yet.
    LEASED = "leased"
    FORWARDING = "forwarding"
    # Its connection is closed. Its worker is inspected.
    INSPECTING = "inspecting"
    # It is told why it gets no office.
    REFUSED = "refused"
    CLOSED = "closed"


# Every transition there is.
TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.ACCEPTED: frozenset({Phase.QUEUED, Phase.CLOSED}),
    Phase.QUEUED: frozenset({Phase.LEASED, Phase.REFUSED, Phase.CLOSED}),
    Phase.LEASED: frozenset({Phase.FORWARDING, Phase.CLOSED}),
    Phase.FORWARDING: frozenset({Phase.INSPECTING, Phase.CLOSED}),
    Phase.INSPECTING: frozenset({Phase.CLOSED}),
    Phase.REFUSED: frozenset({Phase.CLOSED}),
    Phase.CLOSED: frozenset(),
}


class IllegalPhase(Exception):  # noqa: N818 - a bug of the caller, not an error of the running service
    """The phase can't follow the one that the client is in."""


@dataclass(frozen=True)
class Refused:
    """The client gets no office. `text` says why, and is what it is told."""

    text: str


@dataclass(frozen=True)
class Left:
    """The client has closed its connection while it was queued."""


class Turn:
    """What becomes of a queued client: undecided at first, then a worker, a refusal, or the client's own leave."""

    def __init__(self) -> None:
        """Begin undecided."""
        self.decision: Lease | Refused | Left | None = None
        self._decided = asyncio.Event()

    def decide(self, decision: Lease | Refused | Left) -> None:
        """Set the decision. A later one replaces it: a client can leave before it takes up the worker that it got."""
        self.decision = decision
        self._decided.set()

    async def decided(self) -> Lease | Refused | Left:
        """Wait for the decision, and return the latest."""
        await self._decided.wait()
        assert self.decision is not None
        return self.decision


@dataclass(frozen=True)
class Tenure:
    """What a client has while it has a worker: the worker's number, and the way of its bytes to the office."""

    worker: int
    office: socket.socket
    path: DataPath


@dataclass(eq=False, slots=True)
class Client:
    """One connection, from accept to close. `session` is its number everywhere: pool, store, journal, status."""

    session: int
    connection: socket.socket
    peer: Peer
    # Since when it is silent, queued, or has its office: seconds of `time.monotonic()`, the same for all processes.
    since: float
    phase: Phase = Phase.ACCEPTED
    turn: Turn = field(default_factory=Turn)
    tenure: Tenure | None = None
    # The names of its connections in the fd store.
    kept: list[str] = field(default_factory=list)
    # The user whose process is at the other end, as words, if that is known.
    user: str = ""
    # Why it may not connect, if it may not.
    objection: str = ""
    # Whether an administrator has ended its session.
    is_kicked: bool = False

    def enter(self, phase: Phase) -> None:
        """Go on to a phase. `IllegalPhase` if it can't follow, and then nothing changes."""
        if phase not in TRANSITIONS[self.phase]:
            raise IllegalPhase(f"session {self.session} is {self.phase}: {phase} can't follow")
        self.phase = phase

    @property
    def path(self) -> DataPath | None:
        """The data path of its session, while it has one."""
        return self.tenure.path if self.tenure and self.phase in (Phase.LEASED, Phase.FORWARDING) else None

    @property
    def is_refused(self) -> bool:
        """Whether it is told why it gets no office, or will be in a moment."""
        decided = self.phase is Phase.QUEUED and isinstance(self.turn.decision, Refused)
        return decided or self.phase is Phase.REFUSED

    @property
    def pid(self) -> int | None:
        """The process at the other end, if that is known: of a unix socket."""
        with contextlib.suppress(OSError):
            return credentials(self.connection).pid if self.connection.family == socket.AF_UNIX else None
        return None

    @property
    def seconds(self) -> float:
        """For how long it has been silent, queued, or has had its office."""
        return time.monotonic() - self.since

    @property
    def has_hung_up(self) -> bool:
        """Whether it has closed its connection, or at least its sending side."""
        poll = select.poll()
        poll.register(self.connection, select.POLLRDHUP)
        return bool(poll.poll(0))

    def opening(self) -> bytes:
        """Return the first bytes, which stay in the socket; none if nothing has come, or nothing will."""
        return peek_opening(self.connection)

    async def wait_for_opening(self) -> None:
        """Wait until the first bytes are there, as many as tell a UNO client, or the end.

        A TCP socket then reports less than that as nothing to read, so `read_every_byte` has to follow before anything
        else is read.
        """
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, OPENING_SIZE)
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self.connection, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self.connection)

    def read_every_byte(self) -> None:
        """Have the socket report each byte, as sockets do by default."""
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def hang_up(self) -> None:
        """End its connections, whatever other descriptors of them there are: the fd store may have some."""
        for connection in self.connections:
            shut_down(connection)

    def close(self) -> None:
        """Close its descriptors. May be called twice."""
        for connection in self.connections:
            connection.close()

    @property
    def connections(self) -> list[socket.socket]:
        """Its own connection, and that to its office if it has one."""
        return [self.connection] if self.tenure is None else [self.connection, self.tenure.office]


def peek_opening(connection: socket.socket) -> bytes:
    """Return a connection's first bytes, which stay in the socket; none if nothing has come, or nothing will."""
    try:
        return connection.recv(OPENING_SIZE, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return b""
