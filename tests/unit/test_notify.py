# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the service manager is told, and how often."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from fakes import ListNotifier, until
from ooodd import notify
from ooodd.notify import NoNotifier, Reporter, SystemdNotifier, watchdog_interval


@pytest.fixture(autouse=True)
def no_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID", "NOTIFY_SOCKET"):
        monkeypatch.delenv(name, raising=False)


class World:
    """A reporter, its status line and what was told."""

    def __init__(self) -> None:
        self.line = "first"
        self.notifier = ListNotifier()
        self.reporter = Reporter(self.notifier, lambda: self.line)

    @property
    def told(self) -> list[str]:
        return self.notifier.states


# The watchdog's interval


@pytest.mark.parametrize(
    ("microseconds", "seconds"),
    [
        ("30000000", 15.0),
        ("1", 5e-7),
        ("0", 0.0),  # off, as is None
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_asked(
    microseconds: str, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    assert watchdog_interval() == seconds


def test_without_a_watchdog_nothing_is_fed() -> None:
    assert watchdog_interval() is None


def test_the_watchdog_of_another_process_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getppid()))
    assert watchdog_interval() is None
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog_interval() == 15.0


# The reporter


async def test_ready_comes_with_the_status_line() -> None:
    it = World()
    it.reporter.ready()
    assert it.told == ["READY=1\nSTATUS=first"]
    it.reporter.close()


async def test_many_changes_are_told_once_and_as_they_are_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "_STATUS_INTERVAL", 0.01)
    it = World()
    it.reporter.ready()
    for number in range(1000):
        it.line = f"line {number}"
        it.reporter.changed()
    assert it.told == ["READY=1\nSTATUS=first"]
    await until(lambda: len(it.told) > 1)
    assert it.told[1:] == ["STATUS=line 999"]
    it.line = "later"
    it.reporter.changed()
    await until(lambda: len(it.told) > 2)
    assert it.told[2:] == ["STATUS=later"]
    it.reporter.close()


async def test_a_line_that_is_as_it_was_is_not_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "_STATUS_INTERVAL", 0.0)
    it = World()
    it.reporter.ready()
    it.line = "other"
    it.reporter.changed()
    it.line = "first"
    await until(lambda: it.reporter._pending is None)
    assert it.told == ["READY=1\nSTATUS=first"]
    it.reporter.close()


async def test_the_watchdog_is_fed_until_close_though_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    it = World()
    it.reporter.ready()
    await until(lambda: it.told.count("WATCHDOG=1") >= 3)
    it.reporter.stopping()
    fed = it.told.count("WATCHDOG=1")
    await until(lambda: it.told.count("WATCHDOG=1") > fed)
    assert "STOPPING=1\nSTATUS=stopping" in it.told
    it.reporter.close()
    after = len(it.told)
    await _a_while(0.01)
    assert len(it.told) == after


async def test_after_close_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "_STATUS_INTERVAL", 0.0)
    it = World()
    it.reporter.ready()
    it.line = "other"
    it.reporter.changed()
    it.reporter.close()
    await _a_while(0.01)
    assert it.told == ["READY=1\nSTATUS=first"]


async def _a_while(seconds: float) -> None:
    """Let every timer that is due by then run: the loop calls them in the order of their times."""
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, passed.set)
    await passed.wait()


# The ears


def test_systemd_gets_what_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("systemd.daemon")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        SystemdNotifier().notify("READY=1\nSTATUS=0 of 4 busy")
        assert ear.recv(4096) == b"READY=1\nSTATUS=0 of 4 busy"


def test_without_an_ear_nothing_fails() -> None:
    pytest.importorskip("systemd.daemon")
    SystemdNotifier().notify("READY=1")
    NoNotifier().notify("READY=1")
