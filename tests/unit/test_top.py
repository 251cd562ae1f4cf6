# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ooodd top`: what is on its screen, and in a real terminal of 80 x 24."""

import os
import pty
import select
import struct
import subprocess
import sys
import termios
from datetime import UTC, datetime, timedelta
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest

import ooodd
from ooodd.__main__ import main
from ooodd.commands.top import BAD, CHOSEN, HEAD, View, screen

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


def a_worker(number: int, state: str = "idle", **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    worker = {"id": number, "state": state, "uses": 0, "memory": 20 << 20, "client": None}
    worker |= {"session": None, "user": None, "detail": "", "since": (NOW - timedelta(seconds=number)).isoformat()}
    return worker | fields


def a_status(*workers: dict[str, Any], sessions: int = 0, **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    names = ("refused", "recycled", "crashed", "hung", "dirty", "reclaimed")
    return {
        "workers": list(workers),
        "queue": {"length": 0, "oldest_wait": 0.0},
        "waiting": [],
        "totals": {"sessions": sessions, **dict.fromkeys(names, 0)},
        "paused": False,
        "draining": False,
        "start_error": "",
        "warnings": [],
    } | fields


def a_view(*statuses: dict[str, Any]) -> View:
    view = View()
    for second, status in enumerate(statuses):
        view.add(float(second), status)
    return view


def lines(view: View, width: int = 80, height: int = 24) -> list[str]:
    shown = screen(view, width, height, NOW)
    assert len(shown) == height
    assert all(len(line) == width for _, line in shown)
    return [line.rstrip() for _, line in shown]


def test_a_screen_has_all_that_is_asked_for() -> None:
    busy = a_worker(2, "busy", client="192.0.2.1:50123", session=7, user=0, uses=3)
    since = (NOW - timedelta(minutes=2)).isoformat()
    waiting = {"session": 9, "client": "192.0.2.1:50124", "user": None, "since": since}
    before = a_status(a_worker(1), busy, sessions=10)
    now = a_status(a_worker(1), busy, sessions=14, waiting=[waiting], queue={"length": 1, "oldest_wait": 120.0})
    shown = lines(a_view(before, now))
    assert "2 workers: 1 busy, 1 idle" in shown[0]
    assert shown[1] == "1 waiting, the first for 120.0 s; memory of all offices: 40M"
    assert shown[2] == "14 sessions (4.0/s), 0 refused (0.0/s)"
    assert shown[5].split() == ["WORKER", "STATE", "SINCE", "USES", "MEMORY", "SESSION", "CLIENT", "USER"]
    assert shown[6].split() == ["1", "idle", "1s", "0", "20M", "-", "-", "-"]
    assert shown[7].split() == ["2", "busy", "2s", "3", "20M", "7", "192.0.2.1:50123", "root"]
    assert shown[8].split() == ["-", "waiting", "2min", "-", "-", "9", "192.0.2.1:50124", "-"]
    assert "q quit" in shown[23]


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (a_status(a_worker(1), start_error="none is there"), "no office can be started: none is there"),
        (a_status(a_worker(1), paused=True), "paused: no client gets a worker"),
        (a_status(a_worker(1), draining=True), "draining: ooodd ends when the last session has"),
        (a_status(a_worker(1, "failed", detail="why")), "worker 1 failed: why"),
        (a_status(a_worker(1), warnings=["exposed"]), "warning: exposed"),
    ],
)
def test_what_is_wrong_is_told(status: dict[str, Any], text: str) -> None:
    assert lines(a_view(status))[4] == text


def test_a_failed_worker_and_the_chosen_row_stand_out() -> None:
    view = a_view(a_status(a_worker(1), a_worker(2, "failed")))
    assert [style for style, _ in screen(view, 80, 24, NOW)][5:8] == [HEAD, CHOSEN, BAD]


def test_rows_are_ordered_as_chosen() -> None:
    workers = a_worker(1, uses=1, memory=5), a_worker(2, "busy", uses=2, memory=None), a_worker(3, memory=9)
    view = a_view(a_status(*workers))
    orders = {}
    for _ in range(5):
        orders[view.order] = [row["id"] for row in view.rows]
        view.sort()
    assert orders == {
        "number": [1, 2, 3],
        "state": [2, 1, 3],
        "time": [3, 2, 1],
        "memory": [3, 1, 2],
        "uses": [2, 1, 3],
    }
    assert view.order == "number"


def test_of_many_rows_those_around_the_chosen_one_are_shown() -> None:
    view = a_view(a_status(*(a_worker(number) for number in range(1, 101))))
    assert "83 more" in lines(view)[23]
    view.move(1000)
    assert lines(view)[22].split()[0] == "100"
    assert "more" not in lines(view)[23]
    view.move(-50)
    assert any(line.split()[:1] == ["50"] for line in lines(view))


def test_a_row_that_is_gone_is_chosen_no_more() -> None:
    view = a_view(a_status(a_worker(1), a_worker(2)))
    view.move(1)
    view.add(2.0, a_status(a_worker(1)))
    assert view.chosen_row["id"] == 1


@pytest.mark.parametrize(("width", "height"), [(1, 1), (20, 3), (80, 7), (300, 100)])
def test_every_size_of_a_terminal_is_filled(width: int, height: int) -> None:
    lines(a_view(a_status(a_worker(1), a_worker(2, "failed"))), width, height)


def test_without_a_terminal_there_is_another_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top"]) == 2
    assert capsys.readouterr().err == "ooodd: top needs a terminal: use `ooodd status`\n"


def test_in_a_terminal_an_error_is_told_before_it_is_changed(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    done = subprocess.run(
        [sys.executable, "-m", "ooodd", "top", "--runtime-directory", tmp_path],
        env={**os.environ, "PYTHONPATH": str(Path(ooodd.__file__).parents[1]), "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    shown = select.select([ours], [], [], 0)[0]
    for end in (ours, theirs):
        os.close(end)
    assert done.returncode == 3
    assert done.stderr.startswith("ooodd: no ooodd runs (")
    assert not shown
