# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pool: who waits, who gets which worker, when a worker is recycled.

A pure state machine. It has no socket, no bus and no clock: the caller tells it what happened and when, and carries
out what it answers, a list of actions in order. Whatever the order of events, it holds that

- a worker is leased to one client at a time, and only while idle;
- clients are served in the order in which they joined;
- nobody waits while a worker is idle;
- a worker that was lost, or failed its inspection, is never leased again before it was stopped and started anew.

An event that comes too late, about a worker or client that has moved on meanwhile, changes nothing. An event that
can't happen in a worker's state is a bug of the caller: it raises `IllegalTransition` and changes nothing either.

Times are seconds of any monotonic clock, the same in all calls.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random


class State(StrEnum):
    """What a worker is doing; these words are those of `ooodd status`."""

    STOPPED = "stopped"
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    INSPECTING = "inspecting"
    STOPPING = "stopping"
    FAILED = "failed"


class Event(StrEnum):
    """What can happen to a worker."""

    START = "start"
    READY = "ready"
    LEASE = "lease"
    INSPECT = "inspect"
    KEEP = "keep"
    STOP = "stop"
    STOPPED = "stopped"
    BACK_OFF = "back-off"


# Every transition there is. All that ends a worker's life goes through STOPPING, because even a worker that died
# or never got ready may have left something behind that the supervisor has to end.
TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.STOPPED, Event.START): State.STARTING,
    (State.STARTING, Event.READY): State.IDLE,
    (State.STARTING, Event.STOP): State.STOPPING,
    (State.IDLE, Event.LEASE): State.BUSY,
    (State.IDLE, Event.STOP): State.STOPPING,
    (State.BUSY, Event.INSPECT): State.INSPECTING,
    (State.BUSY, Event.STOP): State.STOPPING,
    (State.INSPECTING, Event.KEEP): State.IDLE,
    (State.INSPECTING, Event.STOP): State.STOPPING,
    (State.STOPPING, Event.STOPPED): State.STOPPED,
    (State.STOPPING, Event.BACK_OFF): State.FAILED,
    (State.FAILED, Event.START): State.STARTING,
}

ALIVE = frozenset({State.STARTING, State.IDLE, State.BUSY, State.INSPECTING})


class IllegalTransition(Exception):  # noqa: N818 - a bug of the caller, not an error of the running service
    """The event can't happen in the worker's state."""


class Reason(StrEnum):
    """Why a worker's life ended, or why a client was turned away."""

    USED_UP = "used up"
    ENDED = "ended by itself"
    CUT_OFF = "the session did not end in order"
    CRASHED = "crashed"
    HUNG = "hung"
    NOT_STARTED = "not started"
    CLOSING = "closing"
    QUEUE_FULL = "queue full"
    WAITED_TOO_LONG = "waited too long"


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


Action = Start | Stop | Lease | Break | Refuse


@dataclass(frozen=True)
class Limits:
    """What the configuration says of pool and queue; times in seconds."""

    workers: int
    max_uses: int
    max_uses_jitter: int
    max_clients: int
    queue_timeout: float
    # systemd's own RestartSec=100ms is the least, half a minute the most that an administrator waits after a repair.
    back_off_first: float = 0.1
    back_off_most: float = 30.0


@dataclass
class Worker:
    """One worker as the pool sees it. Read it freely; only the pool changes it."""

    id: int
    state: State = State.STOPPED
    since: float = 0.0
    uses: int = 0
    max_uses: int = 0
    client: int | None = None
    failures: int = 0
    retry_at: float | None = None
    detail: str = ""


@dataclass
class Totals:
    """Counts since the broker's start, as in `ooodd status`."""

    sessions: int = 0
    refused: int = 0
    recycled: int = 0
    crashed: int = 0
    hung: int = 0
    dirty: int = 0


@dataclass
class Pool:
    """The workers and the queue. Methods are events; each returns the actions it asks for, in order."""

    limits: Limits
    random: Random
    workers: dict[int, Worker] = field(init=False)
    totals: Totals = field(default_factory=Totals)
    closing: bool = field(default=False, init=False)
    # Client -> the time it joined. Ordered: the first is served next.
    queue: OrderedDict[int, float] = field(default_factory=OrderedDict, init=False)

    def __post_init__(self) -> None:
        """Number the workers from 1, all stopped."""
        self.workers = {number: Worker(number) for number in range(1, self.limits.workers + 1)}

    # Events of the pool as a whole

    def open(self, now: float) -> list[Action]:
        """Begin: start every worker."""
        return [self._start(worker, now) for worker in self.workers.values() if worker.state is State.STOPPED]

    def close(self, now: float) -> list[Action]:
        """End: refuse who waits, break every session, stop every worker. `closed` tells when all has been done."""
        self.closing = True
        actions: list[Action] = [self._refuse(client, Reason.CLOSING) for client in list(self.queue)]
        for worker in self.workers.values():
            worker.retry_at = None
            actions += self._stop(worker, now, Reason.CLOSING)
        return actions

    @property
    def closed(self) -> bool:
        """Whether nothing is left running after `close`."""
        return self.closing and all(worker.state in (State.STOPPED, State.FAILED) for worker in self.workers.values())

    def tick(self, now: float) -> list[Action]:
        """Do what is due: retry failed workers, refuse who has waited too long. Call it at `deadline`."""
        failed = [worker for worker in self.workers.values() if worker.retry_at is not None and worker.retry_at <= now]
        actions: list[Action] = [self._start(worker, now) for worker in failed]
        while self.queue and next(iter(self.queue.values())) + self.limits.queue_timeout <= now:
            actions.append(self._refuse(next(iter(self.queue)), Reason.WAITED_TOO_LONG))
        return actions

    @property
    def deadline(self) -> float | None:
        """When `tick` has something to do next, if nothing else happens before."""
        times = [worker.retry_at for worker in self.workers.values() if worker.retry_at is not None]
        if (longest := next(iter(self.queue.values()), None)) is not None:
            times.append(longest + self.limits.queue_timeout)
        return min(times, default=None)

    # Events of a client

    def join(self, client: int, now: float) -> list[Action]:
        """Queue a client that has been admitted."""
        if self.closing:
            return [self._refuse(client, Reason.CLOSING)]
        if len(self.queue) >= self.limits.max_clients and self._idle() is None:
            return [self._refuse(client, Reason.QUEUE_FULL)]
        self.queue[client] = now
        return list(self._serve(now))

    def rejoin(self, client: int, joined: float, now: float) -> list[Action]:
        """Queue a client again whose worker turned out lost before it got a byte; it keeps its place, the first."""
        if self.closing:
            return [self._refuse(client, Reason.CLOSING)]
        self.queue[client] = joined
        self.queue.move_to_end(client, last=False)
        return list(self._serve(now))

    def leave(self, client: int, now: float) -> list[Action]:
        """Forget a client that is gone, wherever it was; a worker that it had not released is recycled."""
        self.queue.pop(client, None)
        for worker in self.workers.values():
            if worker.client == client:
                return self._stop(worker, now, Reason.CUT_OFF)
        return []

    # Events of a worker

    def ready(self, number: int, now: float) -> list[Action]:
        """Take a started worker into service."""
        worker = self.workers[number]
        self._move(worker, Event.READY, now)
        worker.uses = 0
        worker.failures = 0
        jitter = self.limits.max_uses_jitter
        worker.max_uses = self.limits.max_uses + self.random.randint(-jitter, jitter)
        return list(self._serve(now))

    def not_started(self, number: int, now: float, detail: str) -> list[Action]:
        """Back off from a worker that could not be started or did not get ready."""
        worker = self.workers[number]
        if worker.state is not State.STARTING:
            return []
        worker.failures += 1
        return self._stop(worker, now, Reason.NOT_STARTED, detail)

    def inspect(self, number: int, client: int, now: float) -> bool:
        """Begin the inspection after the client's session; False if the worker isn't the client's any more."""
        worker = self.workers[number]
        if worker.client != client or worker.state is not State.BUSY:
            return False
        self._move(worker, Event.INSPECT, now)
        return True

    def release(self, number: int, client: int, now: float, fault: Reason | None = None) -> list[Action]:
        """Take the worker back from the client: into service again, or, used up or with a `fault`, to be recycled.

        Without a fault it has to have been inspected.
        """
        worker = self.workers[number]
        if worker.client != client:
            return []
        if fault is None and worker.uses >= worker.max_uses:
            fault = Reason.USED_UP
        if fault is None:
            self._move(worker, Event.KEEP, now)
        worker.client = None
        if fault is not None:
            return self._stop(worker, now, fault)
        return list(self._serve(now))

    def lost(self, number: int, now: float, reason: Reason, detail: str) -> list[Action]:
        """Recover a worker that crashed or ended by itself, in whatever state it was."""
        worker = self.workers[number]
        if worker.state is State.STARTING:
            return self.not_started(number, now, detail)
        return self._stop(worker, now, reason, detail)

    def stopped(self, number: int, now: float) -> list[Action]:
        """Start a stopped worker anew, at once or after its back-off."""
        worker = self.workers[number]
        if self.closing or not worker.failures:
            self._move(worker, Event.STOPPED, now)
            return [] if self.closing else [self._start(worker, now)]
        self._move(worker, Event.BACK_OFF, now)
        worker.retry_at = now + self._back_off(worker.failures)
        return []

    # What the events are made of

    def _serve(self, now: float) -> Iterator[Lease]:
        while self.queue and (worker := self._idle()) is not None:
            client, _ = self.queue.popitem(last=False)
            self._move(worker, Event.LEASE, now)
            worker.client = client
            worker.uses += 1
            self.totals.sessions += 1
            yield Lease(worker.id, client)

    def _idle(self) -> Worker | None:
        """Return the worker that has been idle longest: use is spread evenly."""
        idle = (worker for worker in self.workers.values() if worker.state is State.IDLE)
        return min(idle, key=lambda worker: worker.since, default=None)

    def _start(self, worker: Worker, now: float) -> Start:
        self._move(worker, Event.START, now)
        worker.retry_at = None
        return Start(worker.id)

    def _stop(self, worker: Worker, now: float, reason: Reason, detail: str = "") -> list[Action]:
        if worker.state not in ALIVE:
            return []
        actions: list[Action] = []
        if worker.client is not None:
            actions.append(Break(worker.id, worker.client))
        self._move(worker, Event.STOP, now)
        worker.client = None
        worker.detail = detail or reason
        self._count(reason)
        return [*actions, Stop(worker.id, reason, detail)]

    def _refuse(self, client: int, reason: Reason) -> Refuse:
        self.queue.pop(client, None)
        self.totals.refused += 1
        return Refuse(client, reason)

    def _count(self, reason: Reason) -> None:
        if reason in (Reason.USED_UP, Reason.ENDED, Reason.CUT_OFF):
            self.totals.recycled += 1
        elif reason is Reason.CRASHED:
            self.totals.crashed += 1
        elif reason is Reason.HUNG:
            self.totals.hung += 1

    def _back_off(self, failures: int) -> float:
        """Double with each failure, and spread: workers that failed together don't all come back together."""
        longest = self.limits.back_off_first * 2.0 ** min(failures - 1, 20)
        return min(longest, self.limits.back_off_most) * self.random.uniform(0.75, 1.25)

    @staticmethod
    def _move(worker: Worker, event: Event, now: float) -> None:
        try:
            state = TRANSITIONS[worker.state, event]
        except KeyError:
            msg = f"worker {worker.id} is {worker.state}: no {event}"
            raise IllegalTransition(msg) from None
        worker.state = state
        worker.since = now
