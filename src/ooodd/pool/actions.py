# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the pool decides: actions for others to carry out, each with its reason."""

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a worker's life ended, or why a client was turned away."""

    # A worker's.
    USED_UP = "used up"
    TOO_OLD = "older than [pool] max_age"
    TOO_BIG = "bigger than [pool] max_memory"
    NOT_NEEDED = "not needed"
    ADOPTED = "its session outlived a broker, so what is left of it can't be told"
    ENDED = "ended by itself"
    CUT_OFF = "the session did not end in order"
    DIRTY = "not as it was before its session"
    CRASHED = "crashed"
    HUNG = "does not answer"
    NOT_STARTED = "not started"
    # A client's, and, at the end of all, a worker's too.
    CLOSING = "ooodd stops"
    # A client's.
    QUEUE_FULL = "queue full"
    HOST_FULL = "queue full for its host"
    WAITED_TOO_LONG = "waited too long"
    WAITS_FOR_ITSELF = "waits for itself"
    NO_OFFICE = "no office can be started"
    NO_DESCRIPTOR = "no file descriptor left"


@dataclass(frozen=True)
class Start:
    """Start the worker; answer with `ready` or `not_started`."""

    worker: int


@dataclass(frozen=True)
class Stop:
    """Stop the worker, whatever it is doing; answer with `stopped`."""

    worker: int
    reason: Reason
    detail: str = ""


@dataclass(frozen=True)
class Probe:
    """Ask the worker, which has no client, whether it is well; answer with `probed`."""

    worker: int


@dataclass(frozen=True)
class Lease:
    """The worker is the client's alone until `inspect` and `release`."""

    worker: int
    client: int


@dataclass(frozen=True)
class Break:
    """The client's worker is not its any more, and is being stopped: end its session. Nothing is to be released."""

    worker: int
    client: int


@dataclass(frozen=True)
class Refuse:
    """The client is no longer in the queue and gets no worker."""

    client: int
    reason: Reason


Action = Start | Stop | Probe | Lease | Break | Refuse
