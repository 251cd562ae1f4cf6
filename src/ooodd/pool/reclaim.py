# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reclaiming: a session that its client has left behind is ended for a client that waits.

pyuno and Java keep a connection for the rest of the process, whatever the program drops. On a plain office that is an
idle connection. Here it is a worker, and a program that does one job after the other would soon have them all.

When a client waits and no worker is free, sessions that are quiet are asked for: the caller looks whether the office
has anything open, and has `grant` say whether the session still has to end. There are never more such ends under way
than clients that wait less workers that are free or will be without that: idle, starting, stopping or stopped ones.

A session counts as quiet for a client of the same owner after `reclaim_after`, for another's after ten times that. A
client may need its session although it was quiet. Then it comes back, and would end another one's, which comes back,
and so on. So a client that comes back has to be patient: it gets only what has been quiet for twice as long as the time
before, up to a minute. It is known by its process, which had no connection left when its session was ended. Of a client
that waits nothing is known but its owner; so it is taken for the one that has been missed for the longest time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf

from ooodd.pool.actions import Reclaim
from ooodd.pool.admission import Queue
from ooodd.pool.limits import Limits
from ooodd.pool.workers import Place, State, Worker, Workers

# How much longer than for its own owner's clients a session has to be quiet for those of others.
OTHERS_FACTOR = 10.0
# The most that a client which comes back has to wait, in seconds, unless `reclaim_after` is longer.
MOST_PATIENCE = 60.0
# For how long, in seconds, a client is expected back.
MISSED_FOR = 60.0
# When to ask again for a session that could not be ended and that has been quiet since, in seconds.
ASK_AGAIN_AFTER = 60.0


@dataclass(frozen=True)
class Look:
    """What can be seen of a session from outside."""

    # Since when no byte has moved; None while a call is, or may be, under way.
    quiet_since: float | None
    # What tells the client's process from every other one; empty if that is not known.
    process: bytes = b""


@dataclass(frozen=True)
class _Missed:
    """A process whose last session was ended, and how patient its client had to be."""

    since: float
    patience: float

    def expects(self, place: Place) -> bool:
        """Whether a client may be the one that is missed, by the time at which it came."""
        return self.since < place.joined < self.since + MISSED_FOR


@dataclass
class Reclaiming:
    """Decides which sessions are asked for, and which of them end."""

    limits: Limits
    workers: Workers
    queue: Queue
    # When to look next, if a client waits.
    _next_look: float = -inf
    # By client, since when its session was quiet: those that are asked for, and those that could not be ended.
    _asked: dict[int, float] = field(default_factory=dict)
    _spared: dict[int, tuple[float, float]] = field(default_factory=dict)
    # Those whose session is being ended.
    _ending: set[int] = field(default_factory=set)
    # By owner and process.
    _missed: dict[str, dict[bytes, _Missed]] = field(default_factory=dict)

    def look_soon(self) -> None:
        """Look again at the next opportunity: somebody has come to wait, or a session could not be ended."""
        self._next_look = -inf

    def times(self) -> Iterator[float]:
        """Yield the time at which `due` may have something to do."""
        if self.limits.reclaim_after is not None and self._demand() > 0:
            yield self._next_look

    def due(self, now: float, looks: Mapping[int, Look], *, starts_fail: bool) -> list[Reclaim]:
        """Return the sessions to ask for. While offices can't be started, none: it would be lost without a use."""
        after = self.limits.reclaim_after
        if after is None or now < self._next_look or not self.queue:
            return []
        self._learn(looks)
        self._forget_gone()
        self._next_look = now + after
        wanted = 0 if starts_fail else self._demand() - len(self._asked)
        if wanted <= 0:
            return []
        ready = []
        required = self._required(now, after)
        for worker in self.workers.above(0, State.BUSY):
            look = looks.get(worker.client or 0)
            if look is None or look.quiet_since is None or not self._may_ask(worker, look.quiet_since, now):
                continue
            due_at = look.quiet_since + required(worker.place.owner)
            if due_at <= now:
                ready.append((not required.waits(worker.place.owner), look.quiet_since, worker))
            else:
                self._next_look = min(self._next_look, due_at)
        ready.sort(key=lambda entry: entry[:2])
        return [self._ask(worker, quiet_since) for _, quiet_since, worker in ready[:wanted]]

    def kept(self, looks: Mapping[int, Look]) -> dict[int, float]:
        """Return since when those sessions are quiet that no client gets for that: they have something open."""
        off = self.limits.reclaim_after is None
        quiet = {client: look.quiet_since for client, look in looks.items() if look.quiet_since is not None}
        return {client: since for client, since in quiet.items() if off or self._spared.get(client, (inf,))[0] == since}

    def grant(self, client: int, now: float) -> bool:
        """Whether the client's session, which has nothing open, is to end now. If so, end it and release its worker."""
        worker = self.workers.of_client(client)
        if self._asked.pop(client, None) is None or worker is None or self._demand() <= 0:
            return False
        self._ending.add(client)
        self._miss(worker, now)
        return True

    def take_back(self, client: int) -> None:
        """Note that the client's session, whose end was granted, goes on: a call of it came first."""
        self._ending.discard(client)
        self.look_soon()

    def spare(self, client: int, now: float) -> None:
        """Note that the client's session can't be ended as long as nothing happens in it."""
        if (quiet_since := self._asked.pop(client, None)) is not None:
            self._spared[client] = quiet_since, now + ASK_AGAIN_AFTER
            self.look_soon()

    def is_ending(self, client: int) -> bool:
        """Whether the end of the client's session was granted."""
        return client in self._ending

    # How many

    def _demand(self) -> int:
        """Return for how many waiting clients no worker is free, will be soon, or is being made free; 0 if paused."""
        if self.queue.paused:
            return 0
        size, workers = self.limits.workers, self.workers
        coming = workers.count(State.IDLE, State.STARTING, State.STOPPING)  # also of those above a lowered limit
        free = max(coming, size - workers.leased_up_to(size) - workers.count(State.FAILED))
        self._ending = {client for client in self._ending if self.workers.of_client(client) is not None}
        return len(self.queue) - free - len(self._ending)

    # Which

    def _ask(self, worker: Worker, quiet_since: float) -> Reclaim:
        assert worker.client is not None
        self._asked[worker.client] = quiet_since
        return Reclaim(worker.id, worker.client)

    def _may_ask(self, worker: Worker, quiet_since: float, now: float) -> bool:
        assert worker.client is not None
        before, again_at = self._spared.get(worker.client, (-inf, -inf))
        asked = worker.client in self._asked or worker.client in self._ending
        return not asked and worker.id <= self.limits.workers and (quiet_since != before or now >= again_at)

    def _forget_gone(self) -> None:
        for known in (self._asked, self._spared):
            for client in [client for client in known if self.workers.of_client(client) is None]:
                del known[client]

    def _required(self, now: float, after: float) -> "_Required":
        """Return for how long a session has to be quiet for one of the clients that wait."""
        missed = {owner: self._patiences(owner, now) for owner in list(self._missed)}
        least: dict[str, float] = {}
        for place in self.queue.values():
            patience = missed[place.owner].take(place) if place.owner in missed else 1.0
            least[place.owner] = min(patience, least.get(place.owner, inf))
        return _Required(after, least)

    # Who comes back

    def _learn(self, looks: Mapping[int, Look]) -> None:
        """Take note of the processes that have become known. One that has been missed is back, or was never away."""
        for client, look in looks.items():
            worker = self.workers.of_client(client)
            if worker is None or not look.process or worker.process:
                continue
            worker.process = look.process
            missed = self._missed.get(worker.place.owner, {}).pop(look.process, None)
            if missed is not None and missed.expects(worker.place):
                worker.patience = missed.patience

    def _miss(self, worker: Worker, now: float) -> None:
        """Expect the client of a worker back, if its process has no other connection."""
        process = worker.process
        others = (each for each in self.workers.above(0, State.BUSY) if each is not worker)
        if process and all(each.process != process for each in others):
            of_owner = self._missed.setdefault(worker.place.owner, {})
            of_owner[process] = _Missed(
                now, min(2.0 * worker.patience, MOST_PATIENCE / (self.limits.reclaim_after or 1))
            )

    def _patiences(self, owner: str, now: float) -> "_Patiences":
        """Return how patient the clients of an owner have to be, and forget those for whom none that waits can be."""
        missed = self._missed[owner]
        longest = MISSED_FOR + self.limits.queue_timeout
        for process in [process for process, each in missed.items() if now >= each.since + longest]:
            del missed[process]
        if not missed:
            del self._missed[owner]
        return _Patiences(sorted(missed.values(), key=lambda each: each.since))


@dataclass
class _Patiences:
    """Those of an owner who are missed, the longest first, each to be given to one client that has come since."""

    missed: list[_Missed]

    def take(self, place: Place) -> float:
        """Return how patient the next client in the queue has to be."""
        for index, each in enumerate(self.missed):
            if each.expects(place):
                return self.missed.pop(index).patience
        return 1.0


class _Required:
    """For how long a session of an owner has to be quiet."""

    def __init__(self, after: float, least: Mapping[str, float]) -> None:
        """Take `reclaim_after`, and for each owner that waits the patience of its least patient client."""
        self._after = after
        self._least = least
        # The least patient two: one of them is another's, whose session it may be.
        self._two = sorted((patience, owner) for owner, patience in least.items())[:2]

    def waits(self, owner: str) -> bool:
        """Whether a client of this owner waits."""
        return owner in self._least

    def __call__(self, owner: str) -> float:
        """Return the seconds, infinity if nobody waits."""
        own = self._seconds(self._least.get(owner, inf))
        others = (OTHERS_FACTOR * self._seconds(patience) for patience, other in self._two if other != owner)
        return min(own, *others, inf)

    def _seconds(self, patience: float) -> float:
        return inf if patience == inf else max(self._after, min(self._after * patience, MOST_PATIENCE))
