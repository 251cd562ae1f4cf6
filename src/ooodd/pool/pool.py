# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pool: who waits, who gets which worker, and when a worker is started, recycled or stopped.

The pool is a pure state machine. It has no socket, no bus and no clock. The caller reports what happened and when, and
carries out the actions that the pool returns, in their order. Whatever the order of events:

- A worker is leased to one client at a time, and only while it is idle.
- A client whose owner, a user or a host, has no worker is served before one whose owner has some. Among those, clients
  are served in the order in which they joined.
- No owner's clients take more than half of the queue.
- Nobody waits while a worker is idle, unless the pool is paused, nor while one more may be started.
- A worker that was lost, that failed its inspection or that has had its uses is not leased before it has been stopped
  and started again.

An event that comes late, about a worker or a client that has moved on or no longer exists, changes nothing. An event
that can't happen in the worker's state is a bug of the caller: it raises `IllegalTransition` and changes nothing.

Times are seconds of one monotonic clock, whatever its zero. Every event ends with `_settle`, which does everything that
is due. `deadline` is the time at which something becomes due if nothing else happens.
"""

from collections.abc import Iterable, Mapping
from math import inf
from random import Random

from ooodd.pool.actions import Action, Probe, Reason, Totals
from ooodd.pool.admission import Admission
from ooodd.pool.backoff import BackOff
from ooodd.pool.lifecycle import Lifecycle
from ooodd.pool.limits import Limits
from ooodd.pool.reclaim import Look, Reclaiming
from ooodd.pool.sizing import Sizing
from ooodd.pool.workers import AT_REST, IN_SERVICE, IllegalTransition, Place, State, Worker, Workers

__all__ = ["IllegalTransition", "Limits", "Look", "Place", "Pool", "State", "Totals", "Worker"]


class Pool:
    """The workers and the queue. Methods are events; each returns the actions that follow from it."""

    def __init__(self, limits: Limits, random: Random, totals: Totals | None = None) -> None:
        """Create the workers, all stopped. `totals` are those of an earlier broker."""
        self.limits = limits
        self.totals = totals or Totals()
        self.workers = Workers(limits.workers, limits.max_age)
        # No more leases; `closing`: no more workers either.
        self.draining = False
        self.closing = False
        # Why no office can be started, as clients are told. Empty while all is well.
        self.start_error = ""
        # Why the last start has failed, if none has succeeded since.
        self._last_failure = ""
        self._admission = Admission(limits, self.workers, self.totals)
        self.queue = self._admission.queue
        self.reclaiming = Reclaiming(limits, self.workers, self.queue)
        self._sizing = Sizing(limits, self.workers, self.queue, random)
        self._lifecycle = Lifecycle(self.workers, self.totals)
        self._back_off = BackOff(limits, random)
        self._settled_at = -inf

    # Events of the pool as a whole

    def open(self, now: float) -> list[Action]:
        """Start the first workers."""
        self._sizing.last_client_at = now
        for worker in self.workers.values():
            if worker.state is State.STOPPED:
                worker.since = now
        return self._settle(now)

    def reconfigure(self, limits: Limits, now: float) -> list[Action]:
        """Apply other limits. No session ends: a busy worker that is too many, or worn, goes after its session."""
        self.limits = self._admission.limits = self._sizing.limits = self._back_off.limits = limits
        self.reclaiming.limits = limits
        self.reclaiming.look_soon()
        self.workers.set_max_age(limits.max_age)
        actions: list[Action] = []
        for number in range(1, limits.workers + 1):
            self.workers.add(number, since=now)
        for worker in self.workers.values():
            worker.max_uses = self._sizing.checked_max_uses(worker.max_uses)
            if worker.state is State.IDLE and worker.uses >= worker.max_uses:
                actions.append(self._lifecycle.stop(worker, now, Reason.USED_UP))
        return actions + self._settle(now)

    def recycle(self, numbers: Iterable[int], now: float, reason: Reason) -> list[Action]:
        """Replace the offices of these workers; one with a client after its session, one being inspected after that."""
        actions: list[Action] = []
        for worker in [self.workers[number] for number in numbers if number in self.workers]:
            worker.replace_for = reason
            if worker.state in (State.STARTING, State.IDLE):
                actions.append(self._lifecycle.stop(worker, now, reason))
        return actions + self._settle(now)

    def pause(self, now: float, *, paused: bool) -> list[Action]:
        """Lease no worker from now on, or go on. Sessions are not touched; clients wait as they do for a worker."""
        self.queue.paused = paused
        return self._settle(now)

    def tick(self, now: float, looks: Mapping[int, Look] | None = None) -> list[Action]:
        """Do what is due. Call it at `deadline`. `looks` tells of each client that has a worker."""
        looks = looks or {}
        kept = self.reclaiming.kept(looks)
        actions: list[Action] = [*self._admission.refuse_overdue(now, kept), *self._settle(now)]
        starts_fail = bool(self.start_error) or now < self._back_off.hold_until
        return [*actions, *self.reclaiming.due(now, looks, starts_fail=starts_fail)]

    def drain(self, now: float) -> list[Action]:
        """Refuse the clients that wait and all that come. Those that have a worker keep it, until `drained`."""
        self.draining = True
        return [*self._admission.refuse_all(Reason.CLOSING), *self._settle(now)]

    def close(self, now: float) -> list[Action]:
        """Refuse the clients that wait, break every session and stop every worker, until `closed`."""
        actions = self.drain(now)
        self.closing = True
        for worker in self.workers.values():
            actions += self._lifecycle.break_off(worker, now, Reason.CLOSING)
        return actions

    @property
    def drained(self) -> bool:
        """Whether no client has a worker."""
        return not self.workers.leased

    @property
    def closed(self) -> bool:
        """Whether nothing runs any more after `close`."""
        return self.closing and self.count(*AT_REST) == len(self.workers)

    @property
    def unused(self) -> bool:
        """Whether nothing runs, nothing is needed, and no client has come for `idle_timeout`. Never while paused."""
        now = self._settled_at
        needed = self._sizing.needed(now, failing=bool(self.start_error))
        idle = not needed and not self._sizing.in_use(now) and self.count(*AT_REST) == len(self.workers)
        return idle and not self.queue.paused

    @property
    def deadline(self) -> float | None:
        """When to call `tick`, if nothing else happens before; None if time alone makes nothing due."""
        if self.draining:
            return None
        # What is due already and not done waits for an event. But only `tick` refuses clients.
        now = self._settled_at
        later = [time for time in (*self._sizing.times(now), self._back_off.hold_until) if now < time < inf]
        return min((*later, *self._admission.times(), *self.reclaiming.times()), default=None)

    @property
    def cannot_start(self) -> str:
        """Why no office can be started, from the first failure on; empty while one is in service."""
        return "" if self.count(*IN_SERVICE) else self._last_failure

    def count(self, *states: State) -> int:
        """Return how many workers are in one of the states."""
        return self.workers.count(*states)

    # Events of a client

    def join(self, client: int, now: float, host: str = "", user: str = "") -> list[Action]:
        """Add a client to the queue, or refuse it."""
        self._sizing.last_client_at = now
        if self.draining:
            return [self._admission.refuse(client, Reason.CLOSING)]
        if self.start_error:
            return [self._admission.refuse(client, Reason.NO_OFFICE)]
        place = Place(now, host, user)
        if (reason := self._admission.reason_to_refuse(place)) is not None:
            return [self._admission.refuse(client, reason)]
        self.queue.add(client, place)
        self.reclaiming.look_soon()
        return self._settle(now)

    def rejoin(self, client: int, place: Place, now: float) -> list[Action]:
        """Put a client back at its place: its worker could not be reached, or it waited for an earlier broker."""
        if self.draining:
            return [self._admission.refuse(client, Reason.CLOSING)]
        self.queue.add(client, place)
        self.reclaiming.look_soon()
        return self._settle(now)

    def turn_away(self, client: int, reason: Reason) -> list[Action]:
        """Refuse a client for a reason that only the caller knows."""
        return [self._admission.refuse(client, reason)]

    def leave(self, client: int, now: float, reason: Reason = Reason.CUT_OFF) -> list[Action]:
        """Forget a client that has gone, or has to go. A worker that it has not released is recycled for the reason."""
        actions: list[Action] = []
        if client in self.queue:
            self.queue.remove(client)
        elif (worker := self.workers.of_client(client)) is not None:
            actions = self._lifecycle.break_off(worker, now, reason)
        else:
            return []
        return actions + self._settle(now)

    # Events of a worker

    def ready(self, number: int, now: float) -> list[Action]:
        """Take a worker into service: its office has started."""
        if (worker := self.workers.get(number)) is None:
            return []
        max_uses, lifespan = self._sizing.draw_max_uses(), self._sizing.draw_lifespan()
        self._lifecycle.ready(worker, now, max_uses, lifespan)
        self._back_off.start_succeeded()
        self.start_error = self._last_failure = ""
        return self._settle(now)

    def not_started(self, number: int, now: float, detail: str) -> list[Action]:
        """Stop a worker whose office did not start, and try it again later."""
        worker = self.workers.get(number)
        if worker is None or worker.state is not State.STARTING:
            return []
        worker.failures += 1
        self._last_failure = detail or Reason.NOT_STARTED
        self._back_off.start_failed(worker.since, now)
        actions: list[Action] = [self._lifecycle.stop(worker, now, Reason.NOT_STARTED, detail)]
        if not self.count(*IN_SERVICE) and self._back_off.lasts_too_long(now):
            self.start_error = worker.detail
            actions += self._admission.refuse_all(Reason.NO_OFFICE)
        return actions + self._settle(now)

    def give_back(self, number: int, client: int, now: float, *, reached: bool = True) -> list[Action]:
        """Take back a worker that the client has not touched. If its office could not be reached, it is probed first.

        The session does not count. The client is in no queue; see `rejoin`.
        """
        worker = self.workers.get(number)
        if worker is None or worker.client != client or worker.state is not State.BUSY:
            return []
        self._lifecycle.undo_lease(worker, now)
        actions: list[Action] = []
        if not reached:
            actions = [self._lifecycle.probe(worker, now)]
        elif (reason := self._sizing.wear(worker, now)) is not None:
            actions = [self._lifecycle.stop(worker, now, reason)]
        return actions + self._settle(now)

    def inspect(self, number: int, client: int, now: float) -> bool:
        """Begin the inspection after the client's session. False if the worker is not the client's any more."""
        worker = self.workers.get(number)
        if worker is None or worker.client != client or worker.state is not State.BUSY:
            return False
        self._lifecycle.inspect(worker, now)
        return True

    def release(
        self, number: int, client: int, now: float, fault: Reason | None = None, detail: str = "", memory: int = 0
    ) -> list[Action]:
        """Take a worker back from its client: into service, or to be recycled if it is worn or has a `fault`.

        A worker without a fault must have been inspected, unless this was its last use. `memory` is what its office
        takes, in bytes.
        """
        worker = self.workers.get(number)
        if worker is None or worker.client != client:
            return []
        self._sizing.last_client_at = now
        if self.reclaiming.is_ending(client) and fault in (None, Reason.CUT_OFF):
            fault = Reason.RECLAIMED
        return self._take_back(worker, now, fault or self._sizing.wear(worker, now, memory), detail)

    def probed(
        self, number: int, now: float, fault: Reason | None = None, detail: str = "", memory: int = 0
    ) -> list[Action]:
        """Take a worker back from a probe; otherwise as `release`."""
        worker = self.workers.get(number)
        if worker is None or worker.state is not State.INSPECTING or worker.client is not None:
            return []
        return self._take_back(worker, now, fault or self._sizing.wear(worker, now, memory), detail)

    def lost(self, number: int, now: float, reason: Reason, detail: str) -> list[Action]:
        """Recycle a worker whose office crashed or exited by itself, whatever it was doing."""
        if (worker := self.workers.get(number)) is None:
            return []
        if worker.state is State.STARTING:
            return self.not_started(number, now, detail)
        return self._lifecycle.break_off(worker, now, reason, detail) + self._settle(now)

    def stopped(self, number: int, now: float) -> list[Action]:
        """Note that nothing is left of a worker's office. It is started again if it is needed."""
        if (worker := self.workers.get(number)) is None:
            return []
        if self.closing or not worker.failures:
            self._lifecycle.stopped(worker, now)
        else:
            self._lifecycle.back_off(worker, now, now + self._back_off.delay(worker.failures))
        return self._settle(now)

    # Events of a broker that takes over from an earlier one

    def adopt(self, number: int, now: float, before: Worker, holder: tuple[int, Place] | None = None) -> list[Action]:
        """Take over a running office. It is busy for its `holder`, a client and its place, or else probed first."""
        max_uses = self._sizing.checked_max_uses(before.max_uses)
        self._lifecycle.adopt(self.workers.add(number), now, before, max_uses, holder)
        return [] if holder else [Probe(number)]

    # What follows from an event

    def _take_back(self, worker: Worker, now: float, fault: Reason | None, detail: str) -> list[Action]:
        """Keep a worker after an inspection or a probe, or stop it for its fault."""
        if fault is None:
            self._lifecycle.keep(worker, now)
            return self._settle(now)
        return [self._lifecycle.stop(worker, now, fault, detail), *self._settle(now)]

    def _settle(self, now: float) -> list[Action]:
        """Do everything that is due, except refuse: lease, stop, probe, start."""
        self._settled_at = now
        if self.draining:
            return []
        workers, sizing, lifecycle = self.workers, self._sizing, self._lifecycle
        workers.remove_above(self.limits.workers)
        workers.sort_out_old(now)
        actions: list[Action] = []
        while self.queue and not self.queue.paused and (idle := workers.next_idle()) is not None:
            client = self.queue.next(workers.holders)
            actions.append(lifecycle.lease(idle, now, client, self.queue.remove(client)))
        needed = sizing.needed(now, failing=bool(self.start_error))
        actions += [lifecycle.stop(worker, now, Reason.NOT_NEEDED) for worker in sizing.unneeded(needed, now)]
        if (old := sizing.to_replace()) is not None:
            actions.append(lifecycle.stop(old, now, Reason.TOO_OLD))
        actions += [lifecycle.probe(worker, now) for worker in sizing.to_probe(now)]
        if now < self._back_off.hold_until and not self.count(*IN_SERVICE):
            return actions
        actions += [lifecycle.start(worker, now) for worker in sizing.to_start(needed, now)]
        for worker in sizing.to_rest(needed, now):
            lifecycle.rest(worker, now)
        return actions
