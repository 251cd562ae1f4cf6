# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the pool asks the broker to do: actions, each with its reason. And how often each thing happened."""

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a worker is stopped, or why a client is refused. The texts appear in the journal."""

    # Of a worker.
    USED_UP = "it has served [pool] max_uses sessions"
    TOO_OLD = "older than [pool] max_age"
    OUTDATED = "another LibreOffice has been installed"
    TOO_BIG = "bigger than [pool] max_memory"
    NOT_NEEDED = "not needed"
    ADOPTED = "ooodd restarted during its session, so the state of the office is unknown"
    ENDED = "the office exited by itself"
    CUT_OFF = "its session was cut off"
    DIRTY = "its session left something behind"
    RECLAIMED = "its session was ended for a client that waited"
    CRASHED = "the office crashed"
    HUNG = "the office does not answer"
    NOT_STARTED = "the office did not start"
    ASKED = "an administrator has asked for it"
    # Of a client, and of its worker.
    KICKED = "an administrator has ended the session"
    # Of a client, and of every worker when the service ends.
    CLOSING = "ooodd stops"
    # Of a client.
    QUEUE_FULL = "the queue is full"
    HOST_FULL = "the queue is full for clients of this host"
    USER_FULL = "the queue is full for clients of this user"
    SHARE_FULL = "half of the queue is taken by clients of this user or host"
    NOT_ALLOWED = "not among those that may connect"
    WAITED_TOO_LONG = "waited longer than [queue] timeout"
    WAITS_FOR_ITSELF = "waits for itself: sessions of its own user hold all workers"
    NO_OFFICE = "no office can be started"
    NO_DESCRIPTOR = "no file descriptor is left"


@dataclass(frozen=True)
class Start:
    """Start the worker. Answer with `ready` or `not_started`."""

    worker: int


@dataclass(frozen=True)
class Stop:
    """Stop the worker, whatever it is doing. Answer with `stopped`."""

    worker: int
    reason: Reason
    detail: str = ""


@dataclass(frozen=True)
class Probe:
    """Check whether the worker, which has no client, still answers. Answer with `probed`."""

    worker: int


@dataclass(frozen=True)
class Lease:
    """The worker belongs to the client until `inspect` and `release`."""

    worker: int
    client: int


@dataclass(frozen=True)
class Break:
    """End the client's session: its worker is being stopped. Do not release the worker."""

    worker: int
    client: int


@dataclass(frozen=True)
class Reclaim:
    """End the client's session, if it has nothing open and stays quiet. Answer by `Reclaiming.grant` or `spare`."""

    worker: int
    client: int


@dataclass(frozen=True)
class Refuse:
    """The client gets no worker. It is no longer in the queue."""

    client: int
    reason: Reason


Action = Start | Stop | Probe | Lease | Break | Reclaim | Refuse

_RECYCLED = frozenset(
    {
        Reason.USED_UP,
        Reason.TOO_OLD,
        Reason.OUTDATED,
        Reason.TOO_BIG,
        Reason.ADOPTED,
        Reason.ENDED,
        Reason.CUT_OFF,
        Reason.ASKED,
        Reason.KICKED,
    },
)


@dataclass
class Totals:
    """Counts since the service started, as `ooodd status` shows them."""

    sessions: int = 0
    refused: int = 0
    recycled: int = 0
    crashed: int = 0
    hung: int = 0
    dirty: int = 0
    reclaimed: int = 0

    def count_lost(self) -> None:
        """Count an office that ended while no broker ran."""
        self.crashed += 1

    def uncount_session(self) -> None:
        """Do not count a session that was counted, but never began."""
        self.sessions = max(0, self.sessions - 1)

    def count_stop(self, reason: Reason) -> None:
        """Count a worker that is stopped. Not needed, not started and closing are not counted."""
        if reason in _RECYCLED:
            self.recycled += 1
        elif reason is Reason.CRASHED:
            self.crashed += 1
        elif reason is Reason.HUNG:
            self.hung += 1
        elif reason is Reason.DIRTY:
            self.dirty += 1
        elif reason is Reason.RECLAIMED:
            self.reclaimed += 1
