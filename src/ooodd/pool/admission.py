# SPDX-License-Identifier: LGPL-2.1-or-later
"""Admission: the queue, who may wait in it, and who is refused because the wait is too long or can't end."""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf

from ooodd.pool.actions import Reason, Refuse, Totals
from ooodd.pool.limits import Limits
from ooodd.pool.workers import Place, State, Workers

# A client waits for itself if sessions of its own user hold every worker and no byte moves on any of them. It is told
# so when both, its wait and that silence, have lasted for so many seconds: a client may think between two calls.
WAITS_FOR_ITSELF_AFTER = 30.0
# How often, in seconds, to look for a client that waits for itself.
CHECK_INTERVAL = 5.0


class Queue(Mapping[int, Place]):
    """The clients that wait, by number, in the order in which they joined."""

    def __init__(self) -> None:
        """Begin empty."""
        # Whether all wait, since an administrator has paused the pool.
        self.paused = False
        self._places: dict[int, Place] = {}
        self._order: list[tuple[float, int]] = []
        self._of_owner: dict[str, list[tuple[float, int]]] = {}
        self._hosts: Counter[str] = Counter()

    def __getitem__(self, client: int) -> Place:
        return self._places[client]

    def __iter__(self) -> Iterator[int]:
        return (client for _, client in self._order)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, client: object) -> bool:
        return client in self._places

    def next(self, holders: Container[str]) -> int:
        """Return the client that is served next: the first whose owner is no holder of a worker, or else the first.

        The queue must not be empty.
        """
        heads = (order[0] for owner, order in self._of_owner.items() if owner not in holders)
        return min(heads, default=self._order[0])[1]

    @property
    def oldest(self) -> float | None:
        """When the first client joined; None if nobody waits."""
        return self._order[0][0] if self._order else None

    def of_host(self, host: str) -> int:
        """Return how many clients of a host wait."""
        return self._hosts[host]

    def of_owner(self, owner: str) -> int:
        """Return how many clients of an owner wait."""
        return len(self._of_owner.get(owner, ()))

    def add(self, client: int, place: Place) -> None:
        """Add a client at its place by the time of joining. Clients that joined at the same time go by number."""
        self._places[client] = place
        insort(self._order, (place.joined, client))
        insort(self._of_owner.setdefault(place.owner, []), (place.joined, client))
        self._hosts[place.host] += 1

    def remove(self, client: int) -> Place:
        """Remove a client and return the place that it had."""
        place = self._places.pop(client)
        of_owner = self._of_owner[place.owner]
        for order in (self._order, of_owner):
            del order[bisect_left(order, (place.joined, client))]
        if not of_owner:
            del self._of_owner[place.owner]
        self._hosts[place.host] -= 1
        if not self._hosts[place.host]:
            del self._hosts[place.host]
        return place


@dataclass
class Admission:
    """Decides who may join the queue and who has to leave it. Counts the refusals."""

    limits: Limits
    workers: Workers
    totals: Totals
    queue: Queue = field(default_factory=Queue)
    # When to look next for a client that waits for itself.
    _next_check: float = -inf

    def reason_to_refuse(self, place: Place) -> Reason | None:
        """Return why a client may not join, or None. Clients for which a worker is free, or starts, do not wait."""
        limits, waiting, free = self.limits, len(self.queue), self._free_workers()
        if waiting >= limits.max_clients + free:
            return Reason.QUEUE_FULL
        if waiting < free:
            return None
        of_owner = self.queue.of_owner(place.owner)
        if limits.max_per_host is not None and self.queue.of_host(place.host) >= limits.max_per_host:
            return Reason.HOST_FULL
        if limits.max_per_user is not None and place.user and of_owner >= limits.max_per_user:
            return Reason.USER_FULL
        if of_owner - free >= max(1, limits.max_clients // 2):
            return Reason.SHARE_FULL
        return None

    def refuse(self, client: int, reason: Reason) -> Refuse:
        """Refuse a client, whether it is in the queue or not."""
        if client in self.queue:
            self.queue.remove(client)
        self.totals.refused += 1
        return Refuse(client, reason)

    def refuse_all(self, reason: Reason) -> list[Refuse]:
        """Refuse every client in the queue."""
        return [self.refuse(client, reason) for client in list(self.queue)]

    def refuse_overdue(self, now: float, quiet_since: Mapping[int, float]) -> list[Refuse]:
        """Refuse the clients that have waited for `queue_timeout`, and earlier one that waits for itself.

        `quiet_since` has the quiet sessions that can't be reclaimed: since when no byte has moved.
        """
        return [*self._refuse_after_timeout(now, quiet_since), *self._refuse_before_timeout(now, quiet_since)]

    def times(self) -> Iterator[float]:
        """Yield the times at which `refuse_overdue` may have something to do."""
        if (oldest := self.queue.oldest) is not None:
            yield oldest + self.limits.queue_timeout
            yield max(oldest + WAITS_FOR_ITSELF_AFTER, self._next_check)

    def _free_workers(self) -> int:
        """Return how many workers have no client, or will have none soon; not failed ones, and none while paused."""
        if self.queue.paused:
            return 0
        size = self.limits.workers
        return size - self.workers.leased_up_to(size) - self.workers.count(State.FAILED)

    def _refuse_after_timeout(self, now: float, quiet_since: Mapping[int, float]) -> list[Refuse]:
        timeout = self.limits.queue_timeout
        overdue = []
        for client, place in self.queue.items():
            if place.joined + timeout > now:
                break
            overdue.append((client, place.owner))
        if not overdue:
            return []
        owner = self._owner_of_all_workers(now - min(WAITS_FOR_ITSELF_AFTER, timeout / 2), quiet_since)
        return [
            self.refuse(client, Reason.WAITS_FOR_ITSELF if whose == owner else Reason.WAITED_TOO_LONG)
            for client, whose in overdue
        ]

    def _refuse_before_timeout(self, now: float, quiet_since: Mapping[int, float]) -> list[Refuse]:
        """Refuse one client that waits for itself. Only one: the others may wait for that one."""
        oldest = self.queue.oldest
        if oldest is None or now < max(oldest + WAITS_FOR_ITSELF_AFTER, self._next_check):
            return []
        self._next_check = now + CHECK_INTERVAL
        owner = self._owner_of_all_workers(now - WAITS_FOR_ITSELF_AFTER, quiet_since)
        client = next((client for client, place in self.queue.items() if place.owner == owner), None)
        if client is None or self.queue[client].joined + WAITS_FOR_ITSELF_AFTER > now:
            return []
        return [self.refuse(client, Reason.WAITS_FOR_ITSELF)]

    def _owner_of_all_workers(self, since: float, quiet_since: Mapping[int, float]) -> str | None:
        """Return whose sessions hold every worker, if no byte has moved on any of them after `since`."""
        if self.queue.paused or self.workers.leased < len(self.workers):
            return None
        owners = set()
        for worker in self.workers.values():
            if worker.client is None or quiet_since.get(worker.client, inf) > since:
                return None
            owners.add(worker.place.owner)
        return owners.pop() if len(owners) == 1 else None
