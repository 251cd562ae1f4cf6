# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ooodd status` for humans: the snapshot as a table."""

from datetime import UTC, datetime
from typing import Any

_COLUMNS = ("WORKER", "STATE", "SINCE", "USES", "PID", "MEMORY", "MODE", "CLIENT")


def table(status: dict[str, Any]) -> str:
    """Return workers, queue and totals as text."""
    now = datetime.now(UTC)
    rows = [_COLUMNS, *(_row(worker, now) for worker in status["workers"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    queue, totals = status["queue"], status["totals"]
    waiting = f", the first for {queue['oldest_wait']:.1f} s" if queue["length"] else ""
    lines += ["", f"{queue['length']} waiting{waiting}", ", ".join(f"{value} {name}" for name, value in totals.items())]
    lines += [
        f"worker {worker['id']} failed: {worker['detail']}"
        for worker in status["workers"]
        if worker["state"] == "failed"
    ]
    if status.get("start_error"):  # an ooodd that is being upgraded may not have it yet
        lines.append(f"no office can be started: {status['start_error']}")
    lines += [f"warning: {text}" for text in status.get("warnings", ())]
    return "\n".join(lines)


def _row(worker: dict[str, Any], now: datetime) -> tuple[str, ...]:
    age = (now - datetime.fromisoformat(worker["since"])).total_seconds()
    return (
        str(worker["id"]),
        worker["state"],
        _span(max(0.0, age)),
        str(worker["uses"]),
        str(worker["pid"] or "-"),
        f"{worker['memory'] / 2**20:.0f}M" if worker["memory"] is not None else "-",
        worker.get("mode") or "-",  # an ooodd that is being upgraded may not have it yet
        worker["client"] or "-",
    )


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"
