# SPDX-License-Identifier: LGPL-2.1-or-later
"""Offices as the broker reaches them, and the keeper that carries out the pool's starts and stops."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from fakes import FakeOffice, FakeSupervisor, until
from ooodd.errors import OooddError, StartError, WorkerHungError, WorkerLostError
from ooodd.pool import Reason
from ooodd.worker import Keeper, Office

# Listens as sal does and says so; ends with its standard input.
_OTHER_PROCESS = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(5)
print("listening", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: a unix socket's has 108 bytes at the most."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def an_office(directory: Path, pid: int | None = None) -> Office:
    return Office("worker-1", os.getpid() if pid is None else pid, os.getuid(), directory)


def listen(path: Path, backlog: int = 5) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(backlog)
    return listener


@contextlib.contextmanager
def other_process(path: Path) -> Iterator[int]:
    """Another process that listens at `path`; yields its id."""
    with subprocess.Popen(
        [sys.executable, "-c", _OTHER_PROCESS, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.communicate()


# Office.connect


@pytest.mark.parametrize("number", [0, 1], ids=["with-user", "without-user"])
def test_the_pipe_is_found_under_either_name(directory: Path, number: int) -> None:
    office = an_office(directory)
    with listen(list(office.pipes())[number]), office.connect() as connection:
        assert not connection.getblocking()
        assert connection.getpeername()


def test_no_pipe_means_lost(directory: Path) -> None:
    with pytest.raises(WorkerLostError, match="no pipe of worker-1"):
        an_office(directory).connect()


def test_a_pipe_that_nobody_listens_at_means_lost(directory: Path) -> None:
    office = an_office(directory)
    listen(next(office.pipes())).close()
    with pytest.raises(WorkerLostError, match="Connection refused"):
        office.connect()


def test_another_process_at_the_pipe_is_not_the_office(directory: Path) -> None:
    office = an_office(directory)
    with other_process(next(office.pipes())) as pid, pytest.raises(WorkerLostError, match=f"belongs to process {pid},"):
        office.connect()


def test_the_office_is_known_by_its_process_alone(directory: Path) -> None:
    path = directory / f"OSL_PIPE_{os.getuid()}_uno"
    with other_process(path) as pid, an_office(directory, pid).connect():
        pass


def test_a_symlink_to_a_strangers_socket_is_not_the_office(directory: Path) -> None:
    office = an_office(directory)
    with other_process(directory / "elsewhere"):
        next(office.pipes()).symlink_to(directory / "elsewhere")
        with pytest.raises(WorkerLostError, match="belongs to process"):
            office.connect()


def test_a_dangling_symlink_means_lost(directory: Path) -> None:
    office = an_office(directory)
    next(office.pipes()).symlink_to(directory / "nowhere")
    with pytest.raises(WorkerLostError):
        office.connect()


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, Path.touch, Path.mkdir, lambda path: path.symlink_to(path)],
    ids=["fifo", "file", "directory", "symlink-to-itself"],
)
def test_what_is_no_socket_means_lost(directory: Path, make: Callable[[Path], None]) -> None:
    office = an_office(directory)
    make(next(office.pipes()))
    with pytest.raises(WorkerLostError):
        office.connect()


def test_a_datagram_socket_means_lost(directory: Path) -> None:
    office = an_office(directory)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.bind(str(next(office.pipes())))
        with pytest.raises(WorkerLostError):
            office.connect()


def test_a_full_backlog_means_lost_and_leaks_nothing(directory: Path) -> None:
    office = an_office(directory)
    with listen(next(office.pipes()), backlog=1), contextlib.ExitStack() as pending:
        for _ in range(2):  # listen(2): one more than the backlog
            pending.enter_context(office.connect())
        with pytest.raises(WorkerLostError, match="temporarily unavailable"):
            office.connect()


def test_a_too_long_path_means_lost(directory: Path) -> None:
    with pytest.raises(WorkerLostError):
        an_office(directory / ("x" * 200)).connect()


# Office.greet and wait_ready


@contextlib.asynccontextmanager
async def fake(directory: Path, fault: str = "") -> AsyncIterator[Office]:
    office = an_office(directory)
    it = FakeOffice(next(office.pipes()), fault)
    it.open()
    try:
        yield office
    finally:
        await it.close()


async def test_a_greeting_returns_when_the_office_is_free_again(directory: Path) -> None:
    office = an_office(directory)
    it = FakeOffice(next(office.pipes()))
    it.open()
    for _ in range(20):
        await office.greet(60)
    assert it.most_clients == 1
    assert it.sessions == []
    await it.close()


async def test_a_silent_office_is_hung(directory: Path) -> None:
    async with fake(directory, "hang") as office:
        with pytest.raises(WorkerHungError, match=r"did not greet within 0\.01 s"):
            await office.greet(0.01)


async def test_an_office_that_does_not_let_go_of_a_greeting_is_hung(directory: Path) -> None:
    office = an_office(directory)
    with listen(next(office.pipes())) as listener:
        greeting = asyncio.create_task(office.greet(0.05))
        await asyncio.sleep(0)
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"hello")
            with pytest.raises(WorkerHungError):
                await greeting


async def test_an_office_that_closes_without_a_word_is_lost(directory: Path) -> None:
    async with fake(directory, "close-early") as office:
        with pytest.raises(WorkerLostError, match="without a greeting"):
            await office.greet(60)


async def test_an_office_that_resets_the_connection_is_lost(directory: Path) -> None:
    office = an_office(directory)
    with listen(next(office.pipes())):
        greeting = asyncio.create_task(office.greet(60))
        await asyncio.sleep(0)
    with pytest.raises(WorkerLostError, match="reset"):
        await greeting


async def test_a_cancelled_greeting_leaves_nothing(directory: Path) -> None:
    async with fake(directory, "hang") as office:
        greeting = asyncio.create_task(office.greet(60))
        await asyncio.sleep(0)
        greeting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await greeting


async def test_ready_is_when_the_pipe_appears(directory: Path) -> None:
    office = an_office(directory)
    waiting = asyncio.create_task(office.wait_ready(60))
    await asyncio.sleep(0)
    assert not waiting.done()
    it = FakeOffice(next(office.pipes()))
    it.open()
    await waiting
    await it.close()


@pytest.mark.parametrize("fault", ["no-pipe", "close-early", "hang"])
async def test_an_office_that_never_gets_ready_is_a_start_error(directory: Path, fault: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        office = an_office(directory)
        if fault != "no-pipe":
            office = await stack.enter_async_context(fake(directory, fault))
        with pytest.raises(StartError, match=r"not ready within 0\.05 s: raise \[pool\] start_timeout"):
            await office.wait_ready(0.05)


async def test_an_office_that_hangs_at_its_first_greeting_is_tried_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ooodd.worker.GREETING_LIMIT", 0.01)
    office = an_office(directory)
    it = FakeOffice(next(office.pipes()), "hang")
    it.open()
    waiting = asyncio.create_task(office.wait_ready(60))
    await until(lambda: it.most_clients)
    it.fault = ""
    await waiting
    await it.close()


# Keeper


class Record:
    """Takes down what the keeper tells."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []
        self._news = asyncio.Event()

    async def wait_for(self, *told: tuple[object, ...]) -> None:
        while self.told != list(told):
            self._news.clear()
            await self._news.wait()

    def _tell(self, *told: object) -> None:
        self.told.append(told)
        self._news.set()

    def worker_ready(self, number: int, office: Office) -> None:
        assert office.unit == f"fake-{number}"
        self._tell("ready", number)

    def worker_not_started(self, number: int, detail: str) -> None:
        self._tell("not started", number, detail)

    def worker_lost(self, number: int, reason: Reason, detail: str) -> None:
        self._tell("lost", number, reason, detail)

    def worker_stopped(self, number: int) -> None:
        self._tell("stopped", number)

    def worker_not_stopped(self, number: int, detail: str) -> None:
        self._tell("not stopped", number, detail)


class World:
    """A keeper with what surrounds it."""

    def __init__(self, directory: Path, plan: list[str], start_timeout: float) -> None:
        self.supervisor = FakeSupervisor(directory, plan)
        self.record = Record()
        self.keeper = Keeper(self.supervisor, self.record, start_timeout)


@contextlib.asynccontextmanager
async def world(plan: list[str] | None = None, start_timeout: float = 60) -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory() as directory:
        it = World(Path(directory), plan or [], start_timeout)
        try:
            yield it
        finally:
            await it.keeper.close()
            await it.supervisor.close()


async def test_start_stop_start() -> None:
    async with world() as it:
        for times in range(1, 4):
            it.keeper.start(1)
            await it.record.wait_for(("ready", 1))
            assert it.keeper.office(1) is it.keeper.running(1)
            it.keeper.stop(1)
            assert it.keeper.running(1) is None
            with pytest.raises(WorkerLostError, match="worker 1 runs no office"):
                it.keeper.office(1)
            await it.record.wait_for(("ready", 1), ("stopped", 1))
            it.record.told.clear()
            assert it.supervisor.stopped == [1] * times


async def test_workers_are_started_side_by_side() -> None:
    async with world(["hang", ""]) as it:
        it.keeper.start(1)
        it.keeper.start(2)
        await it.record.wait_for(("ready", 2))


@pytest.mark.parametrize("fault", ["hang", "no-pipe", "close-early"])
async def test_a_stop_ends_a_start_that_is_under_way(fault: str) -> None:
    async with world([fault]) as it:
        it.keeper.start(1)
        await until(lambda: it.supervisor.started)
        it.keeper.stop(1)
        await it.record.wait_for(("stopped", 1))
        assert it.supervisor.stopped == [1]
        assert not it.supervisor.offices


async def test_a_stop_before_the_start_has_begun_is_carried_out_all_the_same() -> None:
    async with world() as it:
        it.keeper.start(1)
        it.keeper.stop(1)
        await it.record.wait_for(("stopped", 1))
        assert not it.supervisor.offices


class SlowSupervisor(FakeSupervisor):
    """Starts when it is let."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.order: list[str] = []
        self.let = asyncio.Event()

    async def start(self, number: int) -> Office:
        self.order.append("start")
        await self.let.wait()
        self.order.append("started")
        return await super().start(number)

    async def stop(self, number: int) -> None:
        self.order.append("stop")
        await super().stop(number)


async def test_a_start_under_way_is_not_broken_off_but_stopped_when_it_has_ended(directory: Path) -> None:
    supervisor = SlowSupervisor(directory)
    record = Record()
    keeper = Keeper(supervisor, record, 60)
    keeper.start(1)
    await asyncio.sleep(0)
    keeper.stop(1)
    await asyncio.sleep(0)
    supervisor.let.set()
    await record.wait_for(("stopped", 1))
    assert supervisor.order == ["start", "started", "stop"]
    await keeper.close()


async def test_a_refused_start_leaves_nothing_to_stop() -> None:
    async with world(["refuse"]) as it:
        it.keeper.start(1)
        await it.record.wait_for(("not started", 1, "refused by plan: none"))
        it.keeper.stop(1)
        await it.record.wait_for(("not started", 1, "refused by plan: none"), ("stopped", 1))
        assert it.supervisor.stopped == []


async def test_after_a_refused_start_the_next_one_is_stopped_again() -> None:
    async with world(["refuse", ""]) as it:
        it.keeper.start(1)
        await it.record.wait_for(("not started", 1, "refused by plan: none"))
        it.keeper.stop(1)
        await it.record.wait_for(("not started", 1, "refused by plan: none"), ("stopped", 1))
        it.record.told.clear()
        it.keeper.start(1)
        await it.record.wait_for(("ready", 1))
        it.keeper.stop(1)
        await it.record.wait_for(("ready", 1), ("stopped", 1))
        assert it.supervisor.stopped == [1]


async def test_a_start_that_is_not_ready_in_time_is_stopped() -> None:
    async with world(["no-pipe"], start_timeout=0.02) as it:
        it.keeper.start(1)
        why = "not ready within 0.02 s: raise [pool] start_timeout if it is only slow"
        await it.record.wait_for(("not started", 1, why))
        it.keeper.stop(1)
        await it.record.wait_for(("not started", 1, why), ("stopped", 1))
        assert it.supervisor.stopped == [1]


async def test_a_bug_in_a_start_is_told_and_what_may_run_is_stopped() -> None:
    async with world(["bug"]) as it:
        it.keeper.start(1)
        told = ("not started", 1, "internal error: ZeroDivisionError()")
        await it.record.wait_for(told)
        it.keeper.stop(1)
        await it.record.wait_for(told, ("stopped", 1))
        assert it.supervisor.stopped == [1]


@pytest.mark.parametrize(
    ("error", "detail"),
    [(OooddError("stuck", "kill it"), "stuck: kill it"), (OSError(5, "I/O"), "internal error: OSError(5, 'I/O')")],
)
async def test_a_failed_stop_is_told_and_goes_for_stopped(
    error: Exception, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world() as it:
        it.keeper.start(1)
        await it.record.wait_for(("ready", 1))

        async def fail(_: int) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(it.supervisor, "stop", fail)
            it.keeper.stop(1)
            await it.record.wait_for(("ready", 1), ("not stopped", 1, detail), ("stopped", 1))


async def test_a_lost_office_is_told_with_its_reason() -> None:
    async with world() as it:
        it.keeper.start(1)
        await it.record.wait_for(("ready", 1))
        await it.supervisor.kill(1)
        assert it.record.told[1:] == [("lost", 1, Reason.CRASHED, "killed by signal 9")]


async def test_an_office_lost_while_it_starts_is_told() -> None:
    async with world(["hang"]) as it:
        it.keeper.start(1)
        await until(lambda: it.keeper.running(1))
        await it.supervisor.kill(1)
        assert it.record.told == [("lost", 1, Reason.CRASHED, "killed by signal 9")]


async def test_late_news_of_an_earlier_office_are_ignored() -> None:
    async with world() as it:
        it.keeper.start(1)
        await it.record.wait_for(("ready", 1))
        earlier = it.keeper.office(1)
        it.keeper.stop(1)
        it.supervisor.lost(1, earlier, Reason.CRASHED, "while it is stopped")
        await it.record.wait_for(("ready", 1), ("stopped", 1))
        it.keeper.start(1)
        await it.record.wait_for(("ready", 1), ("stopped", 1), ("ready", 1))
        it.supervisor.lost(1, earlier, Reason.CRASHED, "too late")
        it.supervisor.lost(2, earlier, Reason.CRASHED, "of a worker that never was")
        assert len(it.record.told) == 3


async def test_closing_leaves_no_task_whatever_is_under_way() -> None:
    async with world(["hang", ""]) as it:
        it.keeper.start(1)
        it.keeper.start(2)
        await it.record.wait_for(("ready", 2))
        it.keeper.stop(2)
