# SPDX-License-Identifier: LGPL-2.1-or-later
"""The report: the medians of each path, and the paired ratios of ooodd to the other paths."""

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

# The goal: a call through ooodd takes at most this many times the time of a call through HAProxy.
GOAL = 1.05

# For each path, one figure for each round.
Rounds = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles of some figures."""

    lower_quartile: float
    median: float
    upper_quartile: float


@dataclass(frozen=True)
class Calls:
    """The time of a call: for each path the times of single calls in µs, and ooodd's ratio to each other path.

    A ratio is that of two means of the same round. A mean includes calls that are slow now and then.
    """

    times: dict[str, Spread]
    ratios: dict[str, Spread]


@dataclass(frozen=True)
class Blocks:
    """The speed of big blocks in one direction: for each path MB/s, and ooodd's ratio to each other path."""

    speeds: dict[str, Spread]
    ratios: dict[str, Spread]


@dataclass(frozen=True)
class Report:
    """All results."""

    machine: dict[str, str]
    goal: float
    call: Calls
    to_office: Blocks
    to_client: Blocks

    def text(self) -> str:
        """Return the results as tables."""
        lines = [f"{name}: {value}" for name, value in self.machine.items()]
        lines += _table("a call", "µs", self.call.times, self.call.ratios)
        lines += _table("big blocks to the office", "MB/s", self.to_office.speeds, self.to_office.ratios)
        lines += _table("big blocks to the client", "MB/s", self.to_client.speeds, self.to_client.ratios)
        ratio = self.call.ratios["HAProxy"].median
        verdict = f"the goal of at most {self.goal} is {'met' if ratio <= self.goal else 'missed'}"
        return "\n".join(
            [*lines, "", f"A call through ooodd takes {ratio:.3f} times as long as through HAProxy; {verdict}."]
        )


def calls(rounds: Mapping[str, Sequence[Sequence[int]]]) -> Calls:
    """Evaluate the rounds of each path. A round is a list of nanoseconds."""
    times = {
        path: _spread([time / 1e3 for time in chain.from_iterable(path_rounds)]) for path, path_rounds in rounds.items()
    }
    return Calls(
        times,
        _ratios({path: [statistics.fmean(times) for times in path_rounds] for path, path_rounds in rounds.items()}),
    )


def blocks(speeds: Rounds) -> Blocks:
    """Evaluate the rounds of each path. A round is a speed in MB/s."""
    return Blocks({path: _spread(path_speeds) for path, path_speeds in speeds.items()}, _ratios(speeds))


def machine(versions: Mapping[str, str]) -> dict[str, str]:
    """Return the properties of the machine that the figures depend on."""
    load = " ".join(f"{average:.2f}" for average in os.getloadavg())
    return {"CPUs": str(os.cpu_count()), "kernel": platform.release(), "load before": load, **versions}


def _ratios(rounds: Rounds) -> dict[str, Spread]:
    return {
        path: _spread([ours / other for ours, other in zip(rounds["ooodd"], others, strict=True)])
        for path, others in rounds.items()
        if path != "ooodd"
    }


def _spread(figures: Sequence[float]) -> Spread:
    return Spread(*statistics.quantiles(figures, n=4, method="inclusive"))


def _table(title: str, unit: str, figures: Mapping[str, Spread], ratios: Mapping[str, Spread]) -> list[str]:
    lines = ["", f"{title:26}{unit:>10}{'(quartiles)':>20}{'ooodd to it':>16}{'(quartiles)':>20}"]
    for path, figure in figures.items():
        digits = 1 if unit == "µs" else 0
        line = f"    {path:22}" + _cell(figure, digits)
        lines.append(line + (" " * 6 + _cell(ratios[path], 3) if path in ratios else ""))
    return lines


def _cell(spread: Spread, digits: int) -> str:
    quartiles = f"({spread.lower_quartile:.{digits}f} - {spread.upper_quartile:.{digits}f})"
    return f"{spread.median:10.{digits}f}{quartiles:>20}"
