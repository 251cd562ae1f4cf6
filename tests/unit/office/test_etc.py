# SPDX-License-Identifier: LGPL-2.1-or-later
"""When files of which offices have copies were last changed, and that the copies are renewed then."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fakemanager import UNIT, FakeManager, world
from ooodd.office import etc
from ooodd.office.units import unit_path

SYSTEMD = Path(__file__).resolve().parents[3] / "systemd"


def renewals(manager: FakeManager) -> int:
    return manager.jobs.count(("StartUnit", etc.UNIT, "replace"))


def test_they_are_those_that_the_unit_copies() -> None:
    text = (SYSTEMD / etc.UNIT).read_text()
    assert set(re.findall(r"-(/etc/\S+):/run/etc/", text)) == {str(path) for path in etc.COPIED}


def test_any_change_counts_also_that_something_is_gone(tmp_path: Path) -> None:
    file, directory, missing = tmp_path / "timezone", tmp_path / "alternatives", tmp_path / "papersize"
    file.write_text("UTC")
    directory.mkdir()
    (directory / "java").symlink_to("/nowhere")
    paths = [file, directory, missing]

    def link() -> None:
        (directory / "java").unlink(missing_ok=True)
        (directory / "java").symlink_to("/other")

    def remove() -> None:
        missing.touch()
        missing.unlink()

    changes: list[Callable[[], object]] = [lambda: file.write_text("Asia/Tokyo"), link, missing.touch, remove]
    for change in changes:
        before = etc.changed(paths)
        change()
        deadline = time.monotonic() + 10
        while etc.changed(paths) == before and time.monotonic() < deadline:
            change()  # again: the clock of files goes in steps of some milliseconds
        assert etc.changed(paths) > before, change


def test_what_is_not_there_has_never_changed(tmp_path: Path) -> None:
    assert etc.changed([tmp_path / "missing" / "file"]) == 0.0


def test_a_time_in_the_future_counts_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "timezone").write_text("UTC")
    assert etc.changed([tmp_path / "timezone"], now=1000.0) == 0.0


@pytest.mark.parametrize(("started", "renewed"), [(100.0, 0), (99.0, 1), (0.0, 1), (101.0, 0)])
async def test_a_start_renews_the_copies_that_are_older(
    started: float, renewed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etc, "changed", lambda: 99.5)
    async with world() as it:
        it.manager.special[unit_path(etc.UNIT)] = {"ExecMainStartTimestamp": int(started * 1e6)}
        await it.supervisor.start(1)
        assert renewals(it.manager) == renewed
        assert it.manager.jobs[-1] == ("RestartUnit", UNIT, "replace"), "it comes last, and waits for the other"


async def test_offices_start_with_the_copies_there_are_if_new_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etc, "changed", lambda: 99.5)
    async with world() as it:
        it.manager.special[unit_path(etc.UNIT)] = {"ExecMainStartTimestamp": 0}
        it.bus.faults["StartUnit"] = "org.freedesktop.systemd1.UnitMasked"
        assert (await it.supervisor.start(1)).pid == 4711
