# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the service manager is told, and how often."""

import asyncio
import os
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
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


async def test_more_time_is_asked_for_in_microseconds() -> None:
    it = World()
    it.reporter.extend(1.5)
    assert it.told == ["EXTEND_TIMEOUT_USEC=1500000"]


# The ears


class Ear:
    """A service manager's socket, and a notifier that speaks to it."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        self.notifier = SystemdNotifier()

    def hear(self) -> str:
        return self.socket.recv(4096).decode()

    def hear_all(self) -> list[str]:
        heard = []
        with suppress(BlockingIOError):
            while True:
                heard.append(self.hear())
        return heard

    def fill(self) -> int:
        """Have the notifier speak until it has to wait."""
        number = 0
        while not self.notifier._waiting:
            self.notifier.notify(f"STATUS={number}")
            number += 1
        return number

    def close(self) -> None:
        self.notifier.close()
        self.socket.close()


@pytest.fixture
def ear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ear]:
    ear = Ear(tmp_path / "notify", monkeypatch)
    yield ear
    ear.close()


def identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def test_systemd_gets_what_is_told(ear: Ear) -> None:
    ear.notifier.notify("READY=1\nSTATUS=0 of 4 busy")
    assert ear.hear() == "READY=1\nSTATUS=0 of 4 busy"


def test_an_abstract_address_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind("")  # unix(7): the kernel chooses an abstract one
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + ear.getsockname()[1:].decode())
        notifier = SystemdNotifier()
        notifier.notify("READY=1")
        assert ear.recv(4096) == b"READY=1"
        notifier.close()


def test_descriptors_go_along_and_stay_the_callers(ear: Ear) -> None:
    ours, theirs = os.pipe()
    ear.notifier.notify("FDSTORE=1", [ours, theirs])
    state, passed, _, _ = socket.recv_fds(ear.socket, 4096, 10)
    assert state == b"FDSTORE=1"
    assert [identity(fd) for fd in passed] == [identity(ours), identity(theirs)]
    for fd in (*passed, ours, theirs):
        os.close(fd)


def test_without_a_free_descriptor_it_is_told_all_the_same(ear: Ear) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
        ear.notifier.notify("WATCHDOG=1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert ear.hear() == "WATCHDOG=1"


async def test_what_a_slow_manager_has_no_room_for_comes_later_and_in_order(ear: Ear) -> None:
    told = ear.fill()
    ours, theirs = os.pipe()
    kept = identity(ours)
    ear.notifier.notify("FDSTORE=1", [ours])
    ear.notifier.notify("FDSTOREREMOVE=1")
    os.close(ours)
    os.close(theirs)
    heard = ear.hear_all()
    assert heard[-1] == f"STATUS={told - 2}"
    await until(lambda: not ear.notifier._waiting)
    assert ear.hear() == f"STATUS={told - 1}"
    state, passed, _, _ = socket.recv_fds(ear.socket, 4096, 10)
    assert (state, [identity(fd) for fd in passed]) == (b"FDSTORE=1", [kept])
    os.close(passed[0])
    assert ear.hear() == "FDSTOREREMOVE=1"


async def test_a_manager_without_memory_is_tried_again(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "_RETRY_INTERVAL", 0.0)
    send = ear.notifier._send
    monkeypatch.setattr(ear.notifier, "_send", lambda _: False)
    ear.notifier.notify("READY=1")
    monkeypatch.setattr(ear.notifier, "_send", send)
    await until(lambda: not ear.notifier._waiting)
    assert ear.hear() == "READY=1"


def test_close_sends_what_waits(ear: Ear) -> None:
    told = ear.fill()
    heard: list[str] = []
    listener = threading.Thread(target=lambda: heard.extend(_hear(ear.socket, told)))
    ear.socket.setblocking(True)  # noqa: FBT003
    listener.start()
    ear.notifier.close()
    listener.join()
    assert heard[-1] == f"STATUS={told - 1}"
    ear.notifier.notify("READY=1")
    ear.socket.setblocking(False)  # noqa: FBT003
    assert ear.hear_all() == []


def _hear(ear: socket.socket, count: int) -> list[str]:
    return [ear.recv(4096).decode() for _ in range(count)]


def test_a_stuck_manager_does_not_hold_the_end_up(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "_FLUSH_LIMIT", 0.001)
    ear.fill()
    ours, theirs = os.pipe()
    ear.notifier.notify("FDSTORE=1", [ours, theirs])
    os.close(ours)
    os.close(theirs)
    ear.notifier.close()
    assert not ear.notifier._waiting


def test_a_stuck_manager_does_not_fill_the_memory(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "_MOST_WAITING", 10)
    monkeypatch.setattr(notify, "_FLUSH_LIMIT", 0.001)
    ear.fill()
    for number in range(100):
        ear.notifier.notify(f"STATUS=more {number}")
    assert len(ear.notifier._waiting) == 10


def test_a_manager_with_a_new_socket_is_found_again(ear: Ear) -> None:
    ear.socket.close()
    ear.path.unlink()
    ear.notifier.notify("STATUS=nobody hears")
    ear.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    ear.socket.bind(str(ear.path))
    ear.notifier.notify("STATUS=here again")
    assert ear.hear() == "STATUS=here again"


def test_without_an_ear_nothing_fails() -> None:
    SystemdNotifier().notify("READY=1")
    NoNotifier().notify("READY=1")


def test_an_ear_that_is_not_there_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "absent"))
    notifier = SystemdNotifier()
    notifier.notify("READY=1")
    notifier.close()
