# SPDX-License-Identifier: LGPL-2.1-or-later
"""The workers: the states of a worker, every transition, and the collection of all workers.

The collection keeps the workers in each order that the pool asks for: by state, by client, by the times at which
something is due. So an event costs no more with 1,000 workers than with ten, but for binary searches.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from sys import maxsize
from typing import NamedTuple


class State(StrEnum):
    """What a worker is doing. `ooodd status` shows these words."""

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
    BACK_OFF = "back off"
    REST = "rest"
    ADOPT_BUSY = "adopt busy"
    ADOPT = "adopt"


# Every transition there is. A worker always passes through STOPPING before it is stopped: even one that crashed or
# never became ready may have left something that the supervisor has to remove. A worker is INSPECTING after a session,
# and then it still has its client. It is also INSPECTING during a probe, and then it has no client.
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
AT_REST = frozenset({State.STOPPED, State.FAILED})


class IllegalTransition(Exception):  # noqa: N818 - a bug of the caller, not an error of the running service
    """The event can't happen in the worker's state."""


class Place(NamedTuple):
    """A place in the queue: when the client joined, from which host, and as which user if it is a local client."""

    joined: float
    host: str = ""
    user: str = ""

    @property
    def owner(self) -> str:
        """Whose client it is: the user's, or the host's if the user is not known."""
        return self.user or self.host


NOWHERE = Place(-inf)


@dataclass
class Worker:
    """One worker as the pool sees it. Anyone may read it; only the pool changes it."""

    id: int
    state: State = State.STOPPED
    since: float = 0.0
    uses: int = 0
    max_uses: int = 0
    # Why its office is to be replaced as soon as it has no client, one of `Reason`; empty if it is not.
    replace_for: str = ""
    # When its office became ready, and which share of max_age this office may reach.
    started: float = 0.0
    lifespan: float = 1.0
    # When a client last had it, and when it last answered a probe or an inspection.
    used: float = 0.0
    probed: float = 0.0
    # The client that has it, the place that this client had in the queue, and what tells its process, if that is known.
    client: int | None = None
    place: Place = NOWHERE
    process: bytes = b""
    # How much longer than others this client has to wait for a session to be reclaimed, see `reclaim`.
    patience: float = 1.0
    # Starts that failed in a row, and when to try again.
    failures: int = 0
    retry_at: float = 0.0
    detail: str = ""

    @property
    def is_used_up(self) -> bool:
        """Whether its office serves no other client."""
        return bool(self.replace_for) or self.uses >= self.max_uses


class Schedule:
    """Worker numbers in the order of a time that each has."""

    def __init__(self) -> None:
        """Begin empty."""
        self._times: dict[int, float] = {}
        self._entries: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, number: int, time: float) -> None:
        """Add a number that is not there yet."""
        self._times[number] = time
        insort(self._entries, (time, number))

    def discard(self, number: int) -> None:
        """Remove a number, if it is there."""
        if (time := self._times.pop(number, None)) is not None:
            del self._entries[bisect_left(self._entries, (time, number))]

    def latest(self) -> int | None:
        """Return the number with the latest time, and the lowest of those with the same time; None if empty."""
        if not self._entries:
            return None
        return self._entries[bisect_left(self._entries, (self._entries[-1][0],))][1]

    def due(self, now: float, delay: float = 0.0, most: int = maxsize) -> list[int]:
        """Return the numbers whose time plus `delay` has come, the earliest first, and no more than `most`."""
        return [number for _, number in self._entries[: min(self._count_due(now, delay), most)]]

    def next_after(self, now: float, delay: float = 0.0) -> float:
        """Return the first time plus `delay` that is still to come; infinity if there is none."""
        position = self._count_due(now, delay)
        return self._entries[position][0] + delay if position < len(self._entries) else inf

    def _count_due(self, now: float, delay: float) -> int:
        return bisect_right(self._entries, now, key=lambda entry: entry[0] + delay)


class Workers(Mapping[int, Worker]):
    """All workers by number, in ascending order. `move` is the only way to change a state."""

    def __init__(self, size: int, max_age: float | None) -> None:
        """Create the workers 1 to `size`, all stopped."""
        self._workers: dict[int, Worker] = {}
        self._max_age = max_age
        # Numbers in ascending order: of the workers in each state, and of those that have a client.
        self._by_state: dict[State, list[int]] = {state: [] for state in State}
        self._leased: list[int] = []
        self._by_client: dict[int, Worker] = {}
        # How many workers each owner has.
        self.holders: Counter[str] = Counter()
        # Idle workers by when they were last used: those within max_age, and older ones (see `sort_out_old`).
        self.fresh = Schedule()
        self.old = Schedule()
        # Fresh workers by when they exceed max_age; idle workers by their last probe; failed ones by their next try.
        self.expiries = Schedule()
        self.probes = Schedule()
        self.retries = Schedule()
        for number in range(1, size + 1):
            self.add(number)

    def __getitem__(self, number: int) -> Worker:
        return self._workers[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._workers)

    def __len__(self) -> int:
        return len(self._workers)

    # Questions

    def count(self, *states: State) -> int:
        """Return how many workers are in one of the states."""
        return sum(len(self._by_state[state]) for state in states)

    @property
    def leased(self) -> int:
        """How many workers have a client."""
        return len(self._leased)

    def leased_up_to(self, size: int) -> int:
        """Return how many of the workers 1 to `size` have a client."""
        return bisect_right(self._leased, size)

    def of_client(self, client: int) -> Worker | None:
        """Return the client's worker, if it has one."""
        return self._by_client.get(client)

    def first(self, state: State, most: int) -> list[Worker]:
        """Return the workers with the lowest numbers in a state."""
        return [self._workers[number] for number in self._by_state[state][:most]]

    def above(self, size: int, state: State) -> list[Worker]:
        """Return the workers in a state whose number is above `size`."""
        numbers = self._by_state[state]
        return [self._workers[number] for number in numbers[bisect_right(numbers, size) :]]

    def expiry(self, worker: Worker) -> float:
        """Return when a worker exceeds max_age."""
        return inf if self._max_age is None else worker.started + self._max_age * worker.lifespan

    def next_idle(self) -> Worker | None:
        """Return the worker to lease next: the one used last, so that the others prove unneeded. Old ones come last."""
        number = self.fresh.latest() or self.old.latest()
        return None if number is None else self._workers[number]

    # Changes

    @contextmanager
    def move(self, worker: Worker, event: Event, now: float) -> Iterator[None]:
        """Carry out a transition. The worker's other fields may change only inside the `with` block.

        An event that can't happen raises IllegalTransition and changes nothing.
        """
        if (state := TRANSITIONS.get((worker.state, event))) is None:
            raise IllegalTransition(f"worker {worker.id} is {worker.state}: no {event}")
        self._remove_from_orders(worker)
        worker.state, worker.since = state, now
        try:
            yield
        finally:
            self._add_to_orders(worker)

    def add(self, number: int, since: float = 0.0) -> Worker:
        """Return the worker of this number; create it, stopped, if it does not exist."""
        if number not in self._workers:
            ascending = not self._workers or number > next(reversed(self._workers))
            self._workers[number] = worker = Worker(number, since=since)
            self._add_to_orders(worker)
            if not ascending:
                self._workers = dict(sorted(self._workers.items()))
        return self._workers[number]

    def set_max_age(self, max_age: float | None) -> None:
        """Order the workers by another max_age."""
        self._max_age = max_age
        for worker in self._workers.values():
            self._remove_from_orders(worker)
            self._add_to_orders(worker)

    def remove_above(self, size: int) -> None:
        """Remove the workers at rest whose number is above `size`."""
        for state in AT_REST:
            for worker in self.above(size, state):
                self._remove_from_orders(worker)
                del self._workers[worker.id]

    def sort_out_old(self, now: float) -> None:
        """Separate the idle workers that exceed max_age from the fresh ones."""
        for number in self.expiries.due(now):
            self.expiries.discard(number)
            self.fresh.discard(number)
            self.old.add(number, self._workers[number].used)

    def _add_to_orders(self, worker: Worker) -> None:
        insort(self._by_state[worker.state], worker.id)
        if worker.client is not None:
            insort(self._leased, worker.id)
            self._by_client[worker.client] = worker
            self.holders[worker.place.owner] += 1
        if worker.state is State.IDLE:
            self.fresh.add(worker.id, worker.used)
            self.probes.add(worker.id, worker.probed)
            self.expiries.add(worker.id, self.expiry(worker))
        elif worker.state is State.FAILED:
            self.retries.add(worker.id, worker.retry_at)

    def _remove_from_orders(self, worker: Worker) -> None:
        _remove(self._by_state[worker.state], worker.id)
        if worker.client is not None:
            _remove(self._leased, worker.id)
            del self._by_client[worker.client]
            self.holders[worker.place.owner] -= 1
            if not self.holders[worker.place.owner]:
                del self.holders[worker.place.owner]
        for schedule in (self.fresh, self.old, self.probes, self.expiries, self.retries):
            schedule.discard(worker.id)


def _remove(numbers: list[int], number: int) -> None:
    del numbers[bisect_left(numbers, number)]
