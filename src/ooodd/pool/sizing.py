# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sizing: how many workers are needed, and which one is started, probed, recycled or stopped.

Nothing is changed here: the pool carries out what these methods return.
"""

from collections.abc import Iterator, Sized
from dataclasses import dataclass
from math import inf
from random import Random

from ooodd.pool.actions import Reason
from ooodd.pool.limits import Limits
from ooodd.pool.workers import ALIVE, State, Worker, Workers

# An office may go up to this share of max_age earlier, so that offices that started together don't go together.
AGE_SPREAD = 0.1


@dataclass
class Sizing:
    """Decides by the limits, the workers and the number of waiting clients."""

    limits: Limits
    workers: Workers
    queue: Sized
    random: Random
    # When a client last came or went.
    last_client_at: float = -inf

    # How many workers are needed

    def in_use(self, now: float) -> bool:
        """Whether a client is here, or has been within `idle_timeout`."""
        idle_timeout = self.limits.idle_timeout
        if self.queue or self.workers.leased or idle_timeout is None:
            return True
        return now < self.last_client_at + idle_timeout

    def needed(self, now: float, *, failing: bool) -> int:
        """Return how many workers there should be. While starting fails, one is tried even if nobody waits."""
        spare = self.limits.spare_workers if self.in_use(now) else 0
        least = max(self.limits.min_workers, 1 if failing else 0)
        return min(self.limits.workers, max(least, self.workers.leased + len(self.queue) + spare))

    def to_start(self, needed: int, now: float) -> list[Worker]:
        """Return the workers to start: first those that never failed, then those whose back-off is over."""
        room = min(
            self._missing(needed),
            self.limits.workers - self.workers.count(*ALIVE),
            self.limits.starts - self.workers.count(State.STARTING),
        )
        stopped = self.workers.first(State.STOPPED, max(0, room))
        failed = self.workers.retries.due(now, most=max(0, room - len(stopped)))
        return stopped + [self.workers[number] for number in failed]

    def to_rest(self, needed: int, now: float) -> list[Worker]:
        """Return the failed workers that could be tried again, but that nobody needs."""
        return [] if self._missing(needed) > 0 else [self.workers[number] for number in self.workers.retries.due(now)]

    def unneeded(self, needed: int, now: float) -> list[Worker]:
        """Return the idle workers to stop: those above the limit, and the surplus that was idle for `idle_timeout`.

        Of the surplus, workers that are too old go first, and then those that were not used for the longest time.
        """
        above = self.workers.above(self.limits.workers, State.IDLE)
        surplus = self.workers.count(*ALIVE) - len(above) - needed
        idle_timeout = self.limits.idle_timeout
        if idle_timeout is None or surplus <= 0:
            return above
        most = surplus + len(above)
        due = self.workers.old.due(now, idle_timeout, most) + self.workers.fresh.due(now, idle_timeout, most)
        return above + [self.workers[number] for number in due if number <= self.limits.workers][:surplus]

    def _missing(self, needed: int) -> int:
        """Return how many workers have to come.

        An idle worker that is too old doesn't count: its replacement starts before it goes. Nor does a worker that is
        being probed while clients wait: it may turn out to be hung.
        """
        alive = self.workers.count(State.STARTING) + self.workers.leased + len(self.workers.fresh)
        return needed - alive - (0 if self.queue else self._probing())

    def _probing(self) -> int:
        return self.workers.count(State.BUSY, State.INSPECTING) - self.workers.leased

    # Wear

    def draw_max_uses(self) -> int:
        """Return how many sessions an office may serve, within the jitter of max_uses."""
        jitter = self.limits.max_uses_jitter
        return self.limits.max_uses + self.random.randint(-jitter, jitter)

    def checked_max_uses(self, drawn: int) -> int:
        """Return `drawn`, or draw again if the limits have changed so that it could not be drawn any more."""
        return drawn if abs(drawn - self.limits.max_uses) <= self.limits.max_uses_jitter else self.draw_max_uses()

    def draw_lifespan(self) -> float:
        """Return which share of max_age an office may reach."""
        return 1.0 - self.random.uniform(0.0, AGE_SPREAD)

    def wear(self, worker: Worker, now: float, memory: int = 0) -> Reason | None:
        """Return why a healthy worker should be recycled, or None."""
        if worker.is_used_up:
            return Reason(worker.replace_for or Reason.USED_UP)
        if worker.id > self.limits.workers:
            return Reason.NOT_NEEDED
        if self.queue and self._one_is_on_its_way():  # while clients wait, one at a time
            return None
        if self.limits.max_memory is not None and memory > self.limits.max_memory:
            return Reason.TOO_BIG
        return Reason.TOO_OLD if self.workers.expiry(worker) <= now else None

    def to_replace(self) -> Worker | None:
        """Return the idle worker to stop because it is too old, or None if it has to wait.

        One at a time: only if no other worker is on its way. And only if another worker is idle, or if no replacement
        can be started before, because every number is in use.
        """
        old = self.workers.old.due(inf, most=1)
        if not old or self._one_is_on_its_way():
            return None
        replaceable = self.workers.count(State.IDLE) > 1 or not self.workers.count(State.STOPPED, State.FAILED)
        return self.workers[old[0]] if replaceable else None

    def _one_is_on_its_way(self) -> bool:
        return self.workers.count(State.STARTING, State.STOPPING) > 0

    # Time

    def to_probe(self, now: float) -> list[Worker]:
        """Return the idle workers that were not probed for `probe_interval`."""
        interval = self.limits.probe_interval
        return [] if interval is None else [self.workers[number] for number in self.workers.probes.due(now, interval)]

    def times(self, now: float) -> Iterator[float]:
        """Yield the times after `now` at which something becomes due for a worker."""
        workers, idle_timeout, interval = self.workers, self.limits.idle_timeout, self.limits.probe_interval
        yield workers.retries.next_after(now)
        yield workers.expiries.next_after(now)
        if interval is not None:
            yield workers.probes.next_after(now, interval)
        if idle_timeout is not None:
            yield workers.old.next_after(now, idle_timeout)
            yield workers.fresh.next_after(now, idle_timeout)
            if self.last_client_at + idle_timeout > now:
                yield self.last_client_at + idle_timeout
