# SPDX-License-Identifier: LGPL-2.1-or-later
"""Counts for those who graph them: how long clients wait, how long sessions last, why clients and offices go.

They begin at zero with each broker, unlike the totals. Whoever graphs counts expects that.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ooodd.pool.actions import Reason

# Upper bounds in seconds. A start takes some tenths of a second, the default of [queue] timeout is a minute.
_WAITS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0)
# A conversion takes from tenths of a second to minutes.
_DURATIONS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


class Histogram:
    """How many of the observed values are within each of some bounds, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """Take the upper bounds, which belong to their buckets, in ascending order. What is above has a last bucket."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def as_dict(self) -> dict[str, Any]:
        """Return bounds, the count of each bucket alone, and the sum."""
        return {"bounds": list(self._bounds), "counts": list(self._counts), "sum": self._sum}


@dataclass
class Statistics:
    """What one broker has counted."""

    # In seconds: of clients that got a worker; of sessions that ended.
    waits: Histogram = field(default_factory=lambda: Histogram(_WAITS))
    durations: Histogram = field(default_factory=lambda: Histogram(_DURATIONS))
    refused: "Counter[str]" = field(default_factory=Counter)
    stopped: "Counter[str]" = field(default_factory=Counter)
    # The most clients that have waited at a time, and how often all workers came to have a client.
    longest_queue: int = 0
    times_full: int = 0
    _is_full: bool = False

    def look(self, queued: int, *, is_full: bool) -> None:
        """Look at the pool, after each of its events: how many clients wait, and whether all workers have one."""
        self.longest_queue = max(self.longest_queue, queued)
        self.times_full += is_full and not self._is_full
        self._is_full = is_full

    def as_dict(self) -> dict[str, Any]:
        """Return all counts, for the status."""
        return {
            "waits": self.waits.as_dict(),
            "durations": self.durations.as_dict(),
            "refused": dict(self.refused),
            "stopped": dict(self.stopped),
            "longest_queue": self.longest_queue,
            "times_full": self.times_full,
        }


def word(reason: Reason) -> str:
    """Return a reason as one word, for programs: "queue-full"."""
    return reason.name.lower().replace("_", "-")
