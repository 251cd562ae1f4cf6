# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ooodd top`: what the running broker does, live. `screen` draws, without a terminal; `_Top` has the terminal."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ooodd.commands.common import Subparsers, add_runtime_directory, parse_time, runtime_directory
from ooodd.control.client import call
from ooodd.control.table import size, span, user
from ooodd.errors import OooddError, UsageError

_KEYS = "q quit  arrows  s sort  r recycle  k kick  p pause/resume"
_HEADS = ("WORKER", "STATE", "SINCE", "USES", "MEMORY", "SESSION", "CLIENT", "USER")
# The width of each column but the last.
_WIDTHS = (6, 10, 6, 5, 6, 8, 21)
# How lines are shown; `_Top` knows how its terminal does that.
PLAIN, HEAD, CHOSEN, BAD = range(4)
_MORE = 6
# What orders the workers, by the key "s".
_Order = Callable[[dict[str, Any]], Any]
_ORDERS: dict[str, _Order] = {
    "number": lambda worker: worker["id"],
    "state": lambda worker: (worker["state"], worker["id"]),
    "time": lambda worker: worker["since"],
    "memory": lambda worker: -(worker["memory"] or 0),
    "uses": lambda worker: -worker["uses"],
}


@dataclass
class View:
    """What is shown: the last two snapshots with their times, and what the user has chosen."""

    # In seconds of `time.monotonic()`.
    snapshots: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    order: str = "number"
    chosen: int = 0
    # What the last key did, or why there is no new snapshot.
    told: str = ""

    def add(self, now: float, status: dict[str, Any]) -> None:
        """Take a new snapshot."""
        self.snapshots = [*self.snapshots[-1:], (now, status)]
        self.move(0)

    @property
    def status(self) -> dict[str, Any]:
        """The last snapshot."""
        return self.snapshots[-1][1]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The workers in their order, and then the clients that wait."""
        return [*sorted(self.status["workers"], key=_ORDERS[self.order]), *self.status["waiting"]]

    @property
    def chosen_row(self) -> dict[str, Any]:
        """The worker, or the client that waits, that the user has chosen."""
        return self.rows[self.chosen]

    def move(self, by: int) -> None:
        """Choose another row."""
        self.chosen = max(0, min(self.chosen + by, len(self.rows) - 1))

    def sort(self) -> None:
        """Take the next order."""
        names = list(_ORDERS)
        self.order = names[(names.index(self.order) + 1) % len(names)]

    def rate(self, name: str) -> float:
        """Return by how much a total has grown a second, between the last two snapshots."""
        if len(self.snapshots) < 2:  # noqa: PLR2004
            return 0.0
        (before, old), (now, new) = self.snapshots
        more = float(new["totals"][name] - old["totals"][name])
        return max(0.0, more) / max(now - before, 0.001)


def screen(view: View, width: int, height: int, now: datetime) -> list[tuple[int, str]]:
    """Return the lines of a screen, each with the way in which it is shown."""
    rows = view.rows
    room = max(1, height - _MORE - 1)
    first = max(0, min(view.chosen - room // 2, len(rows) - room))
    lines = _summary(view, now)
    lines.append((HEAD, _cells(_HEADS)))
    for index, row in enumerate(rows[first : first + room], first):
        bad = row.get("state") == "failed"
        lines.append((CHOSEN if index == view.chosen else BAD if bad else PLAIN, _cells(_row(row, now))))
    lines += [(PLAIN, "")] * (height - 1 - len(lines))
    below = len(rows) - first - room
    keys = f"{_KEYS}  (by {view.order}{f', {below} more' if below > 0 else ''})"
    return [(style, line[:width].ljust(width)) for style, line in [*lines, (HEAD, keys)][:height]]


def _summary(view: View, now: datetime) -> list[tuple[int, str]]:
    status, queue, totals = view.status, view.status["queue"], view.status["totals"]
    workers = status["workers"]
    states = [worker["state"] for worker in workers]
    counts = ", ".join(
        f"{states.count(state)} {state}" for state in sorted(set(states), key=lambda each: (each != "busy", each))
    )
    memory = sum(worker["memory"] or 0 for worker in workers) or None
    waits = f", the first for {queue['oldest_wait']:.1f} s" if queue["length"] else ""
    rates = f"{totals['sessions']} sessions ({view.rate('sessions'):.1f}/s), {totals['refused']} refused"
    rates += f" ({view.rate('refused'):.1f}/s)"
    ends = ", ".join(f"{totals[name]} {name}" for name in ("recycled", "crashed", "hung", "dirty", "reclaimed"))
    return [
        (PLAIN, f"ooodd  {now.astimezone():%H:%M:%S}  {len(workers)} workers: {counts}"),
        (PLAIN, f"{queue['length']} waiting{waits}; memory of all offices: {size(memory)}"),
        (PLAIN, rates),
        (PLAIN, ends),
        _news(view),
    ]


def _news(view: View) -> tuple[int, str]:
    """Return what matters most."""
    status = view.status
    if view.told:
        return BAD, view.told
    if status["start_error"]:
        return BAD, f"no office can be started: {status['start_error']}"
    if status["draining"]:
        return BAD, "draining: ooodd ends when the last session has"
    if status["paused"]:
        return BAD, "paused: no client gets a worker"
    for worker in status["workers"]:
        if worker["state"] == "failed":
            return BAD, f"worker {worker['id']} failed: {worker['detail']}"
    return PLAIN, f"warning: {status['warnings'][0]}" if status["warnings"] else ""


def _row(row: dict[str, Any], now: datetime) -> tuple[str, ...]:
    session, client, who = str(row["session"] or "-"), row["client"] or "-", user(row["user"])
    if "id" not in row:
        return "-", "waiting", span(row["since"], now), "-", "-", session, client, who
    since, memory = span(row["since"], now), size(row["memory"])
    return str(row["id"]), row["state"], since, str(row["uses"]), memory, session, client, who


def _cells(cells: Sequence[str]) -> str:
    return " ".join([*map(str.ljust, cells, _WIDTHS), cells[-1]])


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser("top", help="show workers, clients and rates, live")
    parser.add_argument("-d", "--delay", default="1s", metavar="TIME", help="between two looks (%(default)s)")
    add_runtime_directory(parser)
    parser.set_defaults(command=_top)


def _top(options: argparse.Namespace) -> int:
    import curses  # noqa: PLC0415 - the broker is the same program, and does without it

    delay = parse_time("--delay", options.delay)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("top needs a terminal", "use `ooodd status`")
    top = _Top(runtime_directory(options), delay)
    top.look()  # so that an error is told before the terminal is another
    with suppress(KeyboardInterrupt):
        curses.wrapper(top.run)
    return 0


class _Top:
    """Shows a view in a terminal, and does what the keys say."""

    def __init__(self, directory: Path, delay: float) -> None:
        self._directory = directory
        self._delay = delay
        self._view = View()

    def look(self) -> None:
        """Take a new snapshot. Raises as `call` does."""
        self._view.add(time.monotonic(), call(self._directory, "Status"))

    def run(self, window: Any) -> None:  # noqa: ANN401 - curses.window has no public name
        """Show and listen until the user quits."""
        import curses  # noqa: PLC0415 - see above

        with suppress(curses.error):
            curses.curs_set(0)
            curses.use_default_colors()
            curses.init_pair(1, curses.COLOR_RED, -1)
        bad = curses.color_pair(1) | curses.A_BOLD
        styles = {PLAIN: curses.A_NORMAL, HEAD: curses.A_REVERSE, CHOSEN: curses.A_STANDOUT | curses.A_BOLD, BAD: bad}
        following = time.monotonic() + self._delay
        while True:
            height, width = window.getmaxyx()
            for number, (style, line) in enumerate(screen(self._view, width, height, datetime.now(UTC))):
                with suppress(curses.error):  # of the last cell, behind which there is no place for the cursor
                    window.addstr(number, 0, line, styles[style])
            window.refresh()
            window.timeout(max(0, int(1000 * (following - time.monotonic()))))
            key = window.getch()
            if key in map(ord, "qQ"):
                return
            self._obey(key, {curses.KEY_UP: -1, curses.KEY_DOWN: 1, curses.KEY_PPAGE: -10, curses.KEY_NPAGE: 10})
            if key in (-1, *map(ord, "rkp")):
                self._try(self.look)
                following = time.monotonic() + self._delay

    def _obey(self, key: int, moves: dict[int, int]) -> None:
        if key == -1:
            return
        view, row = self._view, self._view.chosen_row
        view.told = ""
        if key in moves:
            view.move(moves[key])
        elif key == ord("s"):
            view.sort()
        elif key == ord("p"):
            self._order("Resume" if view.status["paused"] else "Pause", {})
        elif key == ord("r") and "id" in row:
            self._order("Recycle", {"worker": row["id"]})
        elif key == ord("k") and row["session"] is not None:
            self._order("Kick", {"session": row["session"]})

    def _order(self, method: str, parameters: dict[str, Any]) -> None:
        def order() -> None:
            call(self._directory, method, parameters)
            self._view.told = " ".join([method.lower(), *map(str, parameters.values())]) + ": done"

        self._try(order)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OooddError as error:
            self._view.told = str(error)
