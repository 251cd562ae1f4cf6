# SPDX-License-Identifier: LGPL-2.1-or-later
"""The directory of an office's pipe: when the office may write to it, and what becomes of what others have left."""

import stat
from pathlib import Path

import pytest

from ooodd.errors import StartError
from ooodd.office import pipedirectory


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_an_office_may_write_only_until_its_pipe_stands() -> None:
    pipedirectory.make(3)
    assert mode(pipedirectory.of(3)) == 0o770
    (pipedirectory.of(3) / "OSL_PIPE_1_uno").touch()
    pipedirectory.guard(3)
    assert mode(pipedirectory.of(3)) == 0o700
    pipedirectory.remove(3)
    assert not pipedirectory.of(3).exists()


def test_each_start_finds_it_empty() -> None:
    pipedirectory.make(3)
    (pipedirectory.of(3) / "left" / "deep").mkdir(parents=True)
    pipedirectory.make(3)
    assert list(pipedirectory.of(3).iterdir()) == []


def test_what_cannot_be_removed_is_put_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    pipedirectory.make(3)
    (pipedirectory.of(3) / "of another user").touch()
    monkeypatch.setattr(pipedirectory, "remove", lambda _: None)
    pipedirectory.make(3)
    assert list(pipedirectory.of(3).iterdir()) == []
    assert sum(path.name.startswith("left-3-") for path in pipedirectory.PARENT.iterdir()) == 1


def test_without_the_parent_no_office_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pipedirectory, "PARENT", tmp_path / "absent")
    with pytest.raises(StartError, match="no directory for the pipe"):
        pipedirectory.make(3)
    pipedirectory.guard(3)
    pipedirectory.remove(3)
