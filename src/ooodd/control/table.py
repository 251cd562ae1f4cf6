# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ooodd status` for humans: the snapshot as a table."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from ooodd.broker.access import user_name

COLUMNS = ("WORKER", "STATE", "SINCE", "USES", "PID", "MEMORY", "MODE", "SESSION", "CLIENT", "USER")
_WAITING = ("SESSION", "WAITING", "CLIENT", "USER")
# Of a terminal: SGR parameters.
_COLOURS = {"busy": "32", "starting": "33", "stopping": "33", "inspecting": "33", "failed": "31"}
# So many of the clients that wait are shown. `--json` has all.
_MOST_WAITING = 20


def table(status: dict[str, Any], *, colour: bool = False) -> str:
    """Return workers, queue and totals as text."""
    now = datetime.now(UTC)
    lines = _aligned([COLUMNS, *(row(worker, now) for worker in status["workers"])])
    if colour:
        states = [worker["state"] for worker in status["workers"]]
        lines[1:] = [_coloured(line, state) for line, state in zip(lines[1:], states, strict=True)]
    return "\n".join([*lines, "", *_waiting(status, now), *_summary(status), *_complaints(status)])


def row(worker: dict[str, Any], now: datetime) -> tuple[str, ...]:
    """Return a worker's cells, one for each of COLUMNS."""
    return (
        str(worker["id"]),
        worker["state"],
        span(worker["since"], now),
        str(worker["uses"]),
        str(worker["pid"] or "-"),
        size(worker["memory"]),
        worker["mode"] or "-",
        str(worker["session"] or "-"),
        worker["client"] or "-",
        user(worker["user"]),
    )


def span(since: str, now: datetime) -> str:
    """Return for how long something has been so."""
    seconds = max(0.0, (now - datetime.fromisoformat(since)).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"


def size(memory: int | None) -> str:
    """Return an amount of memory."""
    return "-" if memory is None else f"{memory / 2**20:.0f}M"


def user(uid: int | None) -> str:
    """Return the name of a user."""
    return "-" if uid is None else user_name(uid)


def _waiting(status: dict[str, Any], now: datetime) -> list[str]:
    waiting = status["waiting"]
    if not waiting:
        return []
    shown = waiting[:_MOST_WAITING]
    rows = [(str(each["session"]), span(each["since"], now), each["client"], user(each["user"])) for each in shown]
    more = [f"and {len(waiting) - len(shown)} more"] if len(waiting) > len(shown) else []
    return [*_aligned([_WAITING, *rows]), *more, ""]


def _summary(status: dict[str, Any]) -> list[str]:
    queue, totals = status["queue"], status["totals"]
    first = f", the first for {queue['oldest_wait']:.1f} s" if queue["length"] else ""
    return [f"{queue['length']} waiting{first}", ", ".join(f"{value} {name}" for name, value in totals.items())]


def _complaints(status: dict[str, Any]) -> list[str]:
    paused = ["paused: no client gets a worker until `ooodd resume`"] if status["paused"] else []
    draining = ["draining: ooodd ends when the last session has"] if status["draining"] else []
    failed = [
        f"worker {worker['id']} failed: {worker['detail']}"
        for worker in status["workers"]
        if worker["state"] == "failed"
    ]
    none = [f"no office can be started: {status['start_error']}"] if status["start_error"] else []
    return [*paused, *draining, *failed, *none, *(f"warning: {text}" for text in status["warnings"])]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in rows]


def _coloured(line: str, state: str) -> str:
    return f"\033[{_COLOURS[state]}m{line}\033[0m" if state in _COLOURS else line
