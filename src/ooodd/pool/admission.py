# SPDX-License-Identifier: LGPL-2.1-or-later
"""The queue: who waits, in the order in which they are served."""

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from typing import NamedTuple


class Waiting(NamedTuple):
    """A place in the queue: when the client joined, and from where."""

    joined: float
    host: str


class Queue(Mapping[int, Waiting]):
    """Clients by number, the first is served next. Knows how many there are of each host."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self._places: OrderedDict[int, Waiting] = OrderedDict()
        self._hosts: Counter[str] = Counter()

    def __getitem__(self, client: int) -> Waiting:
        return self._places[client]

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def first(self) -> int:
        """Who is served next; there has to be somebody."""
        return next(iter(self._places))

    @property
    def oldest(self) -> float | None:
        """Since when the first has waited; None if nobody does."""
        return self._places[self.first].joined if self._places else None

    def of_host(self, host: str) -> int:
        """Return how many clients of a host wait."""
        return self._hosts[host]

    def add(self, client: int, place: Waiting) -> None:
        """Have a client wait behind all others."""
        self._places[client] = place
        self._hosts[place.host] += 1

    def add_first(self, client: int, place: Waiting) -> None:
        """Have a client wait before all others, once more."""
        self.add(client, place)
        self._places.move_to_end(client, last=False)

    def remove(self, client: int) -> Waiting:
        """Take a client out, and return the place that it had."""
        place = self._places.pop(client)
        self._hosts[place.host] -= 1
        if not self._hosts[place.host]:
            del self._hosts[place.host]
        return place
