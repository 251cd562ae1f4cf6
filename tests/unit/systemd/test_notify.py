# SPDX-License-Identifier: LGPL-2.1-or-later
"""Notifications to the service manager, and how often they are sent."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from fakes import ListNotifier, until
from ooodd.systemd import notify
from ooodd.systemd.notify import NoNotifier, Reporter, SystemdNotifier, watchdog_interval


@pytest.fixture(autouse=True)
def no_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID", "NOTIFY_SOCKET"):
        monkeypatch.delenv(name, raising=False)


class World:
    """A reporter, its status line and what it has sent."""

    def __init__(self) -> None:
        self.line = "first"
        self.notifier = ListNotifier()
        self.reporter = Reporter(self.notifier, lambda: self.line)

    @property
    def sent(self) -> list[str]:
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
def test_the_watchdog_is_pinged_twice_as_often_as_asked(
    microseconds: str, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    assert watchdog_interval() == seconds


def test_without_a_watchdog_nothing_is_pinged() -> None:
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
    assert it.sent == ["READY=1\nSTATUS=first"]
    it.reporter.close()


async def test_many_changes_are_sent_once_with_the_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "_STATUS_INTERVAL", 0.01)
    it = World()
    it.reporter.ready()
    for number in range(1000):
        it.line = f"line {number}"
        it.reporter.changed()
    assert it.sent == ["READY=1\nSTATUS=first"]
    await until(lambda: len(it.sent) > 1)
    assert it.sent[1:] == ["STATUS=line 999"]
    it.line = "later"
    it.reporter.changed()
    await until(lambda: len(it.sent) > 2)
    assert it.sent[2:] == ["STATUS=later"]
    it.reporter.close()


async def test_an_unchanged_line_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "_STATUS_INTERVAL", 0.0)
    it = World()
    it.reporter.ready()
    it.line = "other"
    it.reporter.changed()
    it.line = "first"
    await until(lambda: it.reporter._pending is None)
    assert it.sent == ["READY=1\nSTATUS=first"]
    it.reporter.close()


async def test_the_watchdog_is_pinged_until_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    it = World()
    it.reporter.ready()
    await until(lambda: it.sent.count("WATCHDOG=1") >= 3)
    it.reporter.stopping()
    pings = it.sent.count("WATCHDOG=1")
    await until(lambda: it.sent.count("WATCHDOG=1") > pings)
    assert "STOPPING=1\nSTATUS=stopping" in it.sent
    it.reporter.close()
    after = len(it.sent)
    await _a_while(0.01)
    assert len(it.sent) == after


async def test_after_close_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "_STATUS_INTERVAL", 0.0)
    it = World()
    it.reporter.ready()
    it.line = "other"
    it.reporter.changed()
    it.reporter.close()
    await _a_while(0.01)
    assert it.sent == ["READY=1\nSTATUS=first"]


async def _a_while(seconds: float) -> None:
    """Let every timer that is due by then run: the loop calls them in the order of their times."""
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, passed.set)
    await passed.wait()


async def test_more_time_is_asked_for_in_microseconds() -> None:
    it = World()
    it.reporter.extend(1.5)
    assert it.sent == ["EXTEND_TIMEOUT_USEC=1500000"]


# The socket


def test_systemd_gets_the_assignments_and_the_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notifier = SystemdNotifier()
        notifier.notify("READY=1\nSTATUS=0 of 4 busy")
        assert manager.recv(4096) == b"READY=1\nSTATUS=0 of 4 busy"
        notifier.notify("FDSTORE=1", [manager.fileno()])
        state, passed, _, _ = socket.recv_fds(manager, 4096, 10)
        assert state == b"FDSTORE=1"
        assert os.path.sameopenfile(passed[0], manager.fileno())
        os.close(passed[0])
        notifier.close()
        notifier.notify("READY=1")
        manager.setblocking(False)  # noqa: FBT003
        with pytest.raises(BlockingIOError):
            manager.recv(4096)


def test_an_abstract_address_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("")  # unix(7): the kernel chooses an abstract one
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + manager.getsockname()[1:].decode())
        notifier = SystemdNotifier()
        notifier.notify("READY=1")
        assert manager.recv(4096) == b"READY=1"
        notifier.close()


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234"])
def test_without_an_address_that_is_understood_nothing_fails(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notifier = SystemdNotifier()
    notifier.notify("READY=1")
    notifier.close()
    NoNotifier().notify("READY=1")


def test_a_manager_that_is_not_there_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "absent"))
    notifier = SystemdNotifier()
    notifier.notify("READY=1")
    notifier.close()
