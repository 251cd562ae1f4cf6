# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pool: who waits, who gets which worker, when a worker is started, recycled, or not needed any more.

A pure state machine. It has no socket, no bus and no clock: the caller tells it what happened and when, and carries
out what it answers, a list of actions in order. Whatever the order of events, it holds that

- a worker is leased to one client at a time, and only while idle;
- clients are served in the order in which they joined;
- nobody waits while a worker is idle, nor while one more may be started;
- a worker that was lost, or failed its inspection, is never leased again before it was stopped and started anew.

An event that comes too late, about a worker or client that has moved on meanwhile, changes nothing. An event that
can't happen in a worker's state is a bug of the caller: it raises `IllegalTransition` and changes nothing either.

Times are seconds of any monotonic clock, the same in all calls. Every event ends with `_settle`, which does all that is
due; `deadline` tells when something will be due next, if nothing else happens before.
"""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from math import inf
from random import Random

from ooodd.pool.actions import Action, Break, Lease, Probe, Reason, Refuse, Start, Stop
from ooodd.pool.admission import Queue, Waiting

# For how long, in seconds, nothing may move on sessions that hold every worker before a client of the same host that
# has waited as long is told that it waits for itself. Others of that host only think for a while between two calls.
STANDSTILL = 30.0
# How often to look, in seconds.
_LOOK_INTERVAL = 5.0
# For how long starting may fail, with no worker in service, before waiting clients are told: five quick tries.
TROUBLE = 3.0
# An office may go up to this much of max_age earlier, so that those that were started together don't go together.
AGE_SPREAD = 0.1


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
    GIVE_BACK = "give back"
    INSPECT = "inspect"
    KEEP = "keep"
    STOP = "stop"
    STOPPED = "stopped"
    BACK_OFF = "back-off"
    REST = "rest"
    ADOPT_BUSY = "adopt busy"
    ADOPT = "adopt"


# Every transition there is. All that ends a worker's life goes through STOPPING, because even a worker that died
# or never got ready may have left something behind that the supervisor has to end. A worker is INSPECTING after a
# session, with that session's client, and now and then while nobody uses it, without.
TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.STOPPED, Event.START): State.STARTING,
    (State.STOPPED, Event.ADOPT_BUSY): State.BUSY,
    (State.STOPPED, Event.ADOPT): State.INSPECTING,
    (State.STARTING, Event.READY): State.IDLE,
    (State.STARTING, Event.STOP): State.STOPPING,
    (State.IDLE, Event.LEASE): State.BUSY,
    (State.IDLE, Event.INSPECT): State.INSPECTING,
    (State.IDLE, Event.STOP): State.STOPPING,
    (State.BUSY, Event.GIVE_BACK): State.IDLE,
    (State.BUSY, Event.INSPECT): State.INSPECTING,
    (State.BUSY, Event.STOP): State.STOPPING,
    (State.INSPECTING, Event.KEEP): State.IDLE,
    (State.INSPECTING, Event.STOP): State.STOPPING,
    (State.STOPPING, Event.STOPPED): State.STOPPED,
    (State.STOPPING, Event.BACK_OFF): State.FAILED,
    (State.FAILED, Event.START): State.STARTING,
    (State.FAILED, Event.REST): State.STOPPED,
}

ALIVE = frozenset({State.STARTING, State.IDLE, State.BUSY, State.INSPECTING})
IN_SERVICE = frozenset({State.IDLE, State.BUSY, State.INSPECTING})

_RECYCLED = frozenset(
    {Reason.USED_UP, Reason.TOO_OLD, Reason.TOO_BIG, Reason.ADOPTED, Reason.ENDED, Reason.CUT_OFF},
)


class IllegalTransition(Exception):  # noqa: N818 - a bug of the caller, not an error of the running service
    """The event can't happen in the worker's state."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the configuration says of pool and queue; times in seconds, memory in bytes, None for no limit."""

    workers: int
    min_workers: int
    spare_workers: int
    max_uses: int
    max_uses_jitter: int
    max_age: float | None = None
    max_memory: int | None = None
    idle_timeout: float | None = None
    probe_interval: float | None = None
    max_clients: int
    max_per_host: int | None = None
    queue_timeout: float
    # How many offices may be starting at a time: what the CPUs carry.
    starts: int
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
    started: float = 0.0
    # The share of max_age that this life may last.
    lifespan: float = 1.0
    # When it last was anybody's, and when it last was asked whether it is well.
    used: float = 0.0
    probed: float = 0.0
    client: int | None = None
    host: str = ""
    failures: int = 0
    retry_at: float = 0.0
    detail: str = ""


@dataclass
class Totals:
    """Counts since the service's start, as in `ooodd status`."""

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
    # No new leases from now on; `closing`: no workers either.
    draining: bool = field(default=False, init=False)
    closing: bool = field(default=False, init=False)
    # Why no office can be started, once clients are told so; empty if all is well.
    start_error: str = field(default="", init=False)
    queue: Queue = field(default_factory=Queue, init=False)
    # When a client last came or went.
    _used: float = field(default=0.0, init=False)
    # Starts that failed in a row, whichever worker's; since when, and until when none is tried.
    _failures: int = field(default=0, init=False)
    _failing_since: float = field(default=0.0, init=False)
    _hold_until: float = field(default=0.0, init=False)
    # When to look next whether a client waits for itself.
    _look_at: float = field(default=0.0, init=False)
    _settled: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        """Number the workers from 1, all stopped."""
        self.workers = {number: Worker(number) for number in range(1, self.limits.workers + 1)}

    # Events of the pool as a whole

    def open(self, now: float) -> list[Action]:
        """Begin: start the first workers."""
        self._used = now
        for worker in self.workers.values():
            worker.since = worker.since or now
        return self._settle(now)

    def reconfigure(self, limits: Limits, now: float) -> list[Action]:
        """Go by other limits from now on. No session ends; a worker that is too many goes when its client has gone."""
        self.limits = limits
        for number in range(1, limits.workers + 1):
            self.workers.setdefault(number, Worker(number, since=now))
        for worker in self.workers.values():
            worker.max_uses = self._draw_uses()
        return self._settle(now)

    def drain(self, now: float) -> list[Action]:
        """Refuse who waits and who comes; who has a worker keeps it. `drained` tells when the last has gone."""
        self.draining = True
        return [self._refuse(client, Reason.CLOSING) for client in list(self.queue)] + self._settle(now)

    @property
    def drained(self) -> bool:
        """Whether no client has a worker."""
        return not any(worker.client is not None for worker in self.workers.values())

    def close(self, now: float) -> list[Action]:
        """End: refuse who waits, break every session, stop every worker. `closed` tells when all has been done."""
        actions = self.drain(now)
        self.closing = True
        for worker in self.workers.values():
            actions += self._stop(worker, now, Reason.CLOSING)
        return actions

    @property
    def closed(self) -> bool:
        """Whether nothing is left running after `close`."""
        return self.closing and self._at_rest

    @property
    def unused(self) -> bool:
        """Whether nothing runs, nothing is needed and nobody has come for `idle_timeout`."""
        return self._at_rest and not self._needed(self._settled) and not self._in_use(self._settled)

    def tick(self, now: float, quiet_since: Mapping[int, float] | None = None) -> list[Action]:
        """Do what is due; call it at `deadline`.

        `still` tells, of each client that has a worker and no call under way there, since when no byte has moved.
        """
        return [*self._refuse_who_waited(now, quiet_since or {}), *self._settle(now)]

    @property
    def deadline(self) -> float | None:
        """When `tick` has something to do next, if nothing else happens before."""
        # What was due has been done, or waits for an event and not for a time; but who waited too long, for `tick`.
        later = [time for time in self._times() if time > self._settled]
        if (oldest := self.queue.oldest) is not None and not self.draining:
            later += [self._look_at, oldest + self.limits.queue_timeout]
        return min(later, default=None)

    def count(self, state: State) -> int:
        return sum(worker.state is state for worker in self.workers.values())

    def count_lost(self) -> None:
        self.totals.crashed += 1

    def uncount_session(self) -> None:
        self.totals.sessions -= 1

    # Events of a client

    def join(self, client: int, now: float, host: str = "") -> list[Action]:
        """Queue a client that has been admitted."""
        self._used = now
        if (reason := self._objection(host)) is not None:
            return [self._refuse(client, reason)]
        self.queue.add(client, Waiting(now, host))
        return self._settle(now)

    def has_room(self, host: str) -> bool:
        """Whether a client of that host that joined now would not be refused."""
        return self._objection(host) is None

    def rejoin(self, client: int, place: Waiting, now: float) -> list[Action]:
        """Queue a client again whose worker turned out lost before it got a byte; it keeps its place, the first."""
        self.totals.sessions -= 1
        if self.draining:
            return [self._refuse(client, Reason.CLOSING)]
        self.queue.add_first(client, place)
        return self._settle(now)

    def turn_away(self, client: int, reason: Reason) -> list[Action]:
        """Refuse a client for a reason that the pool can't know."""
        return [self._refuse(client, reason)]

    def leave(self, client: int, now: float) -> list[Action]:
        """Forget a client that is gone, wherever it was; a worker that it had not released is recycled."""
        if client in self.queue:
            self.queue.remove(client)
            return self._settle(now)
        for worker in self.workers.values():
            if worker.client == client:
                return self._stop(worker, now, Reason.CUT_OFF) + self._settle(now)
        return []

    # Events of a worker

    def ready(self, number: int, now: float) -> list[Action]:
        """Take a started worker into service."""
        worker = self.workers[number]
        self._move(worker, Event.READY, now)
        worker.uses = worker.failures = self._failures = 0
        worker.max_uses = self._draw_uses()
        worker.lifespan = 1.0 - self.random.uniform(0.0, AGE_SPREAD)
        worker.started = worker.used = worker.probed = now
        worker.detail = self.start_error = ""
        return self._settle(now)

    def not_started(self, number: int, now: float, detail: str) -> list[Action]:
        """Back off from a worker that could not be started or did not get ready."""
        worker = self.workers[number]
        if worker.state is not State.STARTING:
            return []
        if not self._failures:
            self._failing_since = worker.since
        worker.failures += 1
        self._failures += 1
        self._hold_until = now + self._back_off(self._failures)
        actions = self._stop(worker, now, Reason.NOT_STARTED, detail)
        if not self._number(IN_SERVICE) and now - self._failing_since >= TROUBLE:
            self.start_error = detail
            actions += [self._refuse(client, Reason.NO_OFFICE) for client in list(self.queue)]
        return actions + self._settle(now)

    def give_back(self, number: int, client: int, now: float) -> list[Action]:
        """Take back a worker that the client has not touched."""
        worker = self.workers[number]
        if worker.client != client or worker.state is not State.BUSY:
            return []
        self._move(worker, Event.GIVE_BACK, now)
        worker.client = None
        worker.uses -= 1
        self.totals.sessions -= 1
        return self._settle(now)

    def inspect(self, number: int, client: int, now: float) -> bool:
        """Begin the inspection after the client's session; False if the worker isn't the client's any more."""
        worker = self.workers[number]
        if worker.client != client or worker.state is not State.BUSY:
            return False
        self._move(worker, Event.INSPECT, now)
        return True

    def release(
        self, number: int, client: int, now: float, fault: Reason | None = None, detail: str = "", memory: int = 0
    ) -> list[Action]:
        """Take the worker back from the client: into service again, or, worn or with a `fault`, to be recycled.

        Without a fault it has to have been inspected. `memory` is what its office has taken.
        """
        worker = self.workers[number]
        if worker.client != client:
            return []
        self._used = worker.used = now
        return self._return(worker, now, fault or self._wear(worker, now, memory), detail)

    def probed(
        self, number: int, now: float, fault: Reason | None = None, detail: str = "", memory: int = 0
    ) -> list[Action]:
        """Take the worker back from a probe."""
        worker = self.workers[number]
        if worker.state is not State.INSPECTING or worker.client is not None:
            return []
        return self._return(worker, now, fault or self._wear(worker, now, memory), detail)

    def lost(self, number: int, now: float, reason: Reason, detail: str) -> list[Action]:
        """Recover a worker that crashed or ended by itself, in whatever state it was."""
        worker = self.workers[number]
        if worker.state is State.STARTING:
            return self.not_started(number, now, detail)
        return self._stop(worker, now, reason, detail) + self._settle(now)

    def stopped(self, number: int, now: float) -> list[Action]:
        """Take note that nothing is left of a worker; it is started anew if it is needed."""
        worker = self.workers[number]
        if self.closing or not worker.failures:
            self._move(worker, Event.STOPPED, now)
        else:
            self._move(worker, Event.BACK_OFF, now)
            worker.retry_at = now + self._back_off(worker.failures)
        return self._settle(now)

    # Events of a broker that takes over from one before it

    def adopt(self, number: int, now: float, before: Worker, holder: tuple[int, str] | None = None) -> list[Action]:
        """Take over a running worker: busy for its `holder`, a client and its host, or to be probed before any use."""
        worker = self.workers.setdefault(number, Worker(number))
        self._move(worker, Event.ADOPT if holder is None else Event.ADOPT_BUSY, now)
        worker.uses, worker.started = before.uses, before.started or now
        worker.max_uses = before.max_uses or self._draw_uses()
        worker.used = worker.probed = now
        if holder is None:
            return [Probe(number)]
        worker.client, worker.host = holder
        return []

    def adopt_client(self, client: int, place: Waiting, now: float) -> list[Action]:
        """Queue a client that has its place already, after all that were adopted before it."""
        self.queue.add(client, place)
        return self._settle(now)

    # What the events are made of

    def _settle(self, now: float) -> list[Action]:
        """Do all that is due but to refuse: serve, look after the idle ones, start what is needed."""
        self._settled = now
        if self.draining:
            return []
        actions = [*self._serve(now), *self._look_after_idle(now), *self._staff(now)]
        self._remove_surplus_numbers()
        return actions

    def _times(self) -> Iterator[float]:
        """Yield when time alone makes something due."""
        limits = self.limits
        if self.draining:
            return
        if limits.idle_timeout is not None:
            yield self._used + limits.idle_timeout
        yield self._hold_until
        for worker in self.workers.values():
            if worker.state is State.FAILED:
                yield worker.retry_at
            elif worker.state is State.IDLE:
                if limits.idle_timeout is not None:
                    yield worker.used + limits.idle_timeout
                if limits.probe_interval is not None:
                    yield worker.probed + limits.probe_interval
                if limits.max_age is not None:
                    yield worker.started + limits.max_age * worker.lifespan

    def _objection(self, host: str) -> Reason | None:
        """Say why a client that joins may not wait. For whom an office is free or on its way, that is no waiting."""
        if self.draining:
            return Reason.CLOSING
        if self.start_error:
            return Reason.NO_OFFICE
        free = sum(
            worker.client is None and worker.state is not State.FAILED and worker.id <= self.limits.workers
            for worker in self.workers.values()
        )
        if len(self.queue) >= self.limits.max_clients + free:
            return Reason.QUEUE_FULL
        most = self.limits.max_per_host
        if most is not None and self.queue.of_host(host) >= most and len(self.queue) >= free:
            return Reason.HOST_FULL
        return None

    def _serve(self, now: float) -> Iterator[Lease]:
        while self.queue and (worker := self._idle(now)) is not None:
            client = self.queue.first
            worker.host = self.queue.remove(client).host
            self._move(worker, Event.LEASE, now)
            worker.client = client
            worker.uses += 1
            self.totals.sessions += 1
            yield Lease(worker.id, client)

    def _idle(self, now: float) -> Worker | None:
        """Return the worker that was used last, so that the others can prove unneeded; a worn one only if need be."""
        idle = (worker for worker in self.workers.values() if worker.state is State.IDLE)
        return max(idle, key=lambda worker: (not self._is_old(worker, now), worker.used, -worker.id), default=None)

    # How many workers there are

    def _in_use(self, now: float) -> bool:
        """Whether a client is here, or has been within `idle_timeout`."""
        idle_timeout = self.limits.idle_timeout
        return bool(self.queue) or not self.drained or idle_timeout is None or now < self._used + idle_timeout

    def _needed(self, now: float) -> int:
        leased = sum(worker.client is not None for worker in self.workers.values())
        spare = self.limits.spare_workers if self._in_use(now) else 0
        least = max(
            self.limits.min_workers, 1 if self.start_error else 0
        )  # in start_error, somebody has to find its end
        return min(self.limits.workers, max(least, leased + len(self.queue) + spare))

    def _staff(self, now: float) -> Iterator[Start]:
        """Start what is missing, as fast as the CPUs carry; what failed is tried again in its own time."""
        if now < self._hold_until and not self._number(IN_SERVICE):
            return
        missing = self._needed(now) - sum(self._counts(worker, now) for worker in self.workers.values())
        room = min(
            missing,
            self.limits.workers - self._number(ALIVE),
            self.limits.starts - self._number({State.STARTING}),
        )
        for worker in [worker for worker in self.workers.values() if self._is_startable(worker, now)][: max(0, room)]:
            self._move(worker, Event.START, now)
            yield Start(worker.id)
        if missing <= 0:
            self._let_rest(now)

    def _let_rest(self, now: float) -> None:
        """Have the failed ones that nobody needs count as stopped when they could be tried again."""
        for worker in self.workers.values():
            if worker.state is State.FAILED and worker.retry_at <= now:
                self._move(worker, Event.REST, now)

    def _is_startable(self, worker: Worker, now: float) -> bool:
        stopped = worker.state is State.STOPPED or (worker.state is State.FAILED and worker.retry_at <= now)
        return stopped and worker.id <= self.limits.workers

    def _look_after_idle(self, now: float) -> Iterator[Action]:
        """Stop what is not needed, replace what is too old, probe what has not been asked for long."""
        limits = self.limits
        idle = sorted((w for w in self.workers.values() if w.state is State.IDLE), key=lambda worker: worker.used)
        surplus = self._number(ALIVE) - self._needed(now)
        for worker in idle:
            unneeded = limits.idle_timeout is not None and worker.used + limits.idle_timeout <= now
            if worker.id > limits.workers or (unneeded and surplus > 0):
                surplus -= 1
                yield from self._stop(worker, now, Reason.NOT_NEEDED)
            elif self._is_old(worker, now) and self._may_go(worker):
                yield from self._stop(worker, now, Reason.TOO_OLD)
            elif limits.probe_interval is not None and worker.probed + limits.probe_interval <= now:
                self._move(worker, Event.INSPECT, now)
                yield Probe(worker.id)

    def _may_go(self, worker: Worker) -> bool:
        """Whether an idle worker can be replaced: while another is idle, or else if no other could be started before.

        One at a time: none while another is on its way.
        """
        others = [other for other in self.workers.values() if other is not worker]
        if any(other.state in (State.STARTING, State.STOPPING) for other in others):
            return False
        if any(other.state is State.IDLE for other in others):
            return True
        return not any(other.state is State.STOPPED and other.id <= self.limits.workers for other in others)

    def _is_old(self, worker: Worker, now: float) -> bool:
        return self.limits.max_age is not None and worker.started + self.limits.max_age * worker.lifespan <= now

    def _counts(self, worker: Worker, now: float) -> bool:
        """Whether a worker fills a need. One that is too old doesn't: its replacement is started before it goes.

        Nor does one that is being probed while clients wait: it may turn out hung.
        """
        if worker.state is State.IDLE:
            return not self._is_old(worker, now)
        if worker.state is State.INSPECTING and worker.client is None:
            return not self.queue
        return worker.state in ALIVE

    def _wear(self, worker: Worker, now: float, memory: int) -> Reason | None:
        """Say why a well worker is to be replaced all the same."""
        limits = self.limits
        if worker.uses >= worker.max_uses:
            return Reason.USED_UP
        if worker.id > limits.workers:
            return Reason.NOT_NEEDED
        too_big = limits.max_memory is not None and memory > limits.max_memory
        if not too_big and not self._is_old(worker, now):
            return None
        on_their_way = self._number({State.STARTING, State.STOPPING})
        if self.queue and on_their_way:  # one at a time while clients wait
            return None
        return Reason.TOO_BIG if too_big else Reason.TOO_OLD

    def _remove_surplus_numbers(self) -> None:
        for number in [number for number in self.workers if number > self.limits.workers]:
            if self.workers[number].state in (State.STOPPED, State.FAILED):
                del self.workers[number]

    # The rest

    def _refuse_who_waited(self, now: float, quiet_since: Mapping[int, float]) -> Iterator[Refuse]:
        """Refuse who has waited for as long as one may, and earlier one that waits for itself."""
        timeout = self.limits.queue_timeout
        host = self._still_host(now - min(STANDSTILL, timeout / 2), quiet_since)
        while self.queue and (place := self.queue[self.queue.first]).joined + timeout <= now:
            reason = Reason.WAITS_FOR_ITSELF if place.host == host else Reason.WAITED_TOO_LONG
            yield self._refuse(self.queue.first, reason)
        if self._look_at <= now:
            self._look_at = now + _LOOK_INTERVAL
            since = now - STANDSTILL
            host = self._still_host(since, quiet_since)
            itself = (client for client, place in self.queue.items() if place.host == host and place.joined <= since)
            for client in islice(itself, 1):  # it may be the one that the others wait for
                yield self._refuse(client, Reason.WAITS_FOR_ITSELF)

    def _still_host(self, since: float, quiet_since: Mapping[int, float]) -> str | None:
        """Return the host whose sessions hold every worker, if nothing has moved on any of them since then."""
        hosts = {
            worker.host if quiet_since.get(worker.client or 0, inf) <= since else None
            for worker in self.workers.values()
        }
        return hosts.pop() if len(hosts) == 1 else None

    def _return(self, worker: Worker, now: float, fault: Reason | None, detail: str) -> list[Action]:
        if fault is None:
            self._move(worker, Event.KEEP, now)
        worker.client = None
        worker.probed = now
        stop = [] if fault is None else self._stop(worker, now, fault, detail)
        return stop + self._settle(now)

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
        if client in self.queue:
            self.queue.remove(client)
        self.totals.refused += 1
        return Refuse(client, reason)

    def _count(self, reason: Reason) -> None:
        if reason in _RECYCLED:
            self.totals.recycled += 1
        elif reason is Reason.CRASHED:
            self.totals.crashed += 1
        elif reason is Reason.HUNG:
            self.totals.hung += 1
        elif reason is Reason.DIRTY:
            self.totals.dirty += 1

    def _number(self, states: AbstractSet[State]) -> int:
        return sum(worker.state in states for worker in self.workers.values())

    @property
    def _at_rest(self) -> bool:
        """Whether nothing runs, nor is about to start or to stop."""
        return self._number({State.STOPPED, State.FAILED}) == len(self.workers)

    def _draw_uses(self) -> int:
        jitter = self.limits.max_uses_jitter
        return self.limits.max_uses + self.random.randint(-jitter, jitter)

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
