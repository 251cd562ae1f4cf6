# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every data path offers, whatever way the bytes of a session take between the client and its office."""

import asyncio
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

# Before its first call a client and its office agree on the protocol, which takes milliseconds. If the office seems to
# owe the client an answer, the client has so many times `first_call_timeout`: it may have asked for none.
OFFICE_OWES_FACTOR = 10


class Side(StrEnum):
    """Who ended a session."""

    CLIENT = "the client"
    OFFICE = "its office"
    BROKER = "ooodd"


@dataclass(frozen=True)
class SessionLimits:
    """The limits of a session from the configuration, in seconds; None for no limit."""

    timeout: float | None = None
    idle_timeout: float | None = None
    # How long a client may owe the next bytes of its first call.
    first_call_timeout: float | None = None
    # How long an office may send nothing after its client has closed its sending side, or has gone.
    grace: float = 10.0


@dataclass(frozen=True)
class Ended:
    """How a session ended."""

    # Who ended it first.
    by: Side
    # The limit that was exceeded, if `by` is BROKER; empty otherwise.
    limit: str
    # Whether the office closed the connection by itself.
    office_let_go: bool
    # Whether a call of the client was still without a reply.
    call_under_way: bool
    # Whether the calls could be followed. If not, `call_under_way` is True as a precaution.
    followed: bool
    # How many bytes were forwarded.
    to_office: int
    to_client: int
    # Whether the pool has taken the session back for another client, see `DataPath.end`.
    reclaimed: bool = False


class DataPath(Protocol):
    """The data path of one session. The sockets stay the caller's to close, once `run` has ended."""

    # "forward" or "handoff".
    mode: str
    # Whether it reads the client's bytes, and so sees its end. If not, somebody has to tell it by `client_left`.
    reads_client: bool

    def begin(self) -> None:
        """Let the client have its office: its connections are kept for the next broker. Called once, before `run`."""

    async def run(self) -> Ended:
        """Serve the session until it ends. Raises whatever went wrong within; the session has ended then, too.

        Cancellation stops at once. The sockets are then good only for closing, unless the path was frozen before.
        """

    def freeze(self) -> "asyncio.Future[None]":
        """Receive nothing more. The future is done when the process holds no bytes that can still be delivered.

        `run` goes on to wait. A path may be frozen before it runs, or after it has ended.
        """

    def office_lost(self) -> None:
        """Take note that the office's process has ended. Its last bytes are still delivered, for a limited time."""

    def client_left(self) -> None:
        """Take note that the client has closed its side. Does nothing if `reads_client`."""

    def pause(self) -> None:
        """Receive nothing more from the client, until `resume`. What the office sends still goes to the client."""

    def resume(self) -> None:
        """Receive from the client again. Does nothing after `freeze`, and after the end."""

    async def end(self) -> bool:
        """End the session for the sake of another client. False if its client has made a call since the last look."""

    async def look(self) -> None:
        """Find out anew what `quiet_since` and `process` tell. Does nothing if `reads_client`."""

    @property
    def quiet_since(self) -> float | None:
        """Since when no byte has moved, in seconds of `time.monotonic`; None while a call is, or may be, under way.

        It is also None once the session has ended, and as long as a byte waits to be sent.
        """

    @property
    def process(self) -> bytes:
        """What tells the client's process from every other one; empty as long as that is not known."""
