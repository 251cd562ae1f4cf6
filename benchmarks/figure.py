# SPDX-License-Identifier: LGPL-2.1-or-later
"""A figure: what was measured on several paths, in turn, and how it compares. All of it goes through JSON."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles of some figures."""

    lower: float
    median: float
    upper: float


@dataclass(frozen=True)
class Figure:
    """One figure on several paths: for each the values of all rounds. The same round is the same moment."""

    name: str
    title: str
    unit: str
    rounds: dict[str, list[float]]
    # The path that the others are compared with; empty for none.
    reference: str = ""
    # What has to be known to read it.
    note: str = ""
    # What a ratio has to be, by path: at most, or at least if `more_is_better`.
    goals: dict[str, float] = field(default_factory=dict)
    more_is_better: bool = False

    def spread(self, path: str) -> Spread:
        """Return the values of a path."""
        return spread(self.rounds[path])

    def ratio(self, path: str) -> Spread:
        """Return the ratio of a path to the reference, round by round."""
        pairs = zip(self.rounds[path], self.rounds[self.reference], strict=True)
        return spread([value / other for value, other in pairs])

    def met(self, path: str) -> bool | None:
        """Whether the goal of a path is met; None if it has none."""
        if (goal := self.goals.get(path)) is None:
            return None
        ratio = self.ratio(path).median
        return ratio >= goal if self.more_is_better else ratio <= goal

    def as_json(self) -> dict[str, Any]:
        """Return what `Figure(**…)` takes."""
        return asdict(self)


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


def in_turn(paths: Mapping[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """Measure the paths in turn, in so many rounds. Each path is first as often as any other."""
    found: dict[str, list[float]] = {path: [] for path in paths}
    order = list(paths)
    for number in range(count):
        first = number % len(order)
        turned = order[first:] + order[:first]
        for path in turned if number // len(order) % 2 == 0 else reversed(turned):
            found[path].append(paths[path]())
    return found
