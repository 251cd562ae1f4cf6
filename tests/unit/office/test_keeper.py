# SPDX-License-Identifier: LGPL-2.1-or-later
"""Offices as the broker reaches them, and the keeper that carries out the pool's starts and stops."""

import asyncio
import contextlib
import gc
import os
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes import GREETING, OPENING, FakeOffice, FakeSupervisor, until
from ooodd.errors import (
    NoDescriptorError,
    OooddError,
    ProtocolError,
    StartError,
    WorkerHungError,
    WorkerLostError,
)
from ooodd.office.keeper import Keeper, Verdict, inspect, probe, wait_ready
from ooodd.office.office import Office
from ooodd.pool.actions import Reason
from ooodd.uno.probe import Findings

CLEAN = Findings(0, 0, current=False)

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


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Lower the limit to what is open, so that the next socket is one too many."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        for _ in range(100):  # the gaps between what is open
            stack.enter_context(socket.socket())
        least = stack.enter_context(socket.socket()).fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_without_a_descriptor_nothing_is_said_of_the_office(directory: Path) -> None:
    office = an_office(directory)
    with listen(next(office.pipes())):
        with no_descriptor_left(), pytest.raises(NoDescriptorError, match="worker-1: Too many open files"):
            office.connect()
        office.connect().close()


# Office.memory


def test_the_memory_of_an_office_is_what_it_shares_with_no_file(directory: Path) -> None:
    before = an_office(directory).memory()
    ballast = bytearray(os.urandom(1)) * (64 << 20)
    assert an_office(directory).memory() - before > len(ballast) * 0.9


def test_an_office_that_is_gone_has_no_memory(directory: Path) -> None:
    assert an_office(directory, 2**22 + 1).memory() == 0  # PID_MAX_LIMIT


# Office.probe


@contextlib.asynccontextmanager
async def fake(directory: Path, fault: str = "") -> AsyncIterator[tuple[Office, FakeOffice]]:
    office = an_office(directory)
    it = FakeOffice(next(office.pipes()), fault)
    it.open()
    try:
        yield office, it
    finally:
        await it.close()


async def be_client(office: Office) -> None:
    """Have a session with the office."""
    loop = asyncio.get_running_loop()
    with office.connect() as connection:
        await loop.sock_sendall(connection, OPENING)
        heard = b""
        while len(heard) < len(GREETING + OPENING):
            heard += await loop.sock_recv(connection, 65536)
        connection.shutdown(socket.SHUT_WR)
        while await loop.sock_recv(connection, 65536):
            pass


async def test_a_probe_finds_nothing_in_a_new_office_and_leaves_it_alone(directory: Path) -> None:
    async with fake(directory) as (office, it):
        for _ in range(20):
            assert await probe(office, 60) == CLEAN
        assert it.most_clients == 1, "a probe returned before the office had let go of it"
        assert it.probes == 20
        assert it.sessions == []


@pytest.mark.parametrize(
    ("fault", "findings"),
    [("", CLEAN), ("leaves-document", Findings(1, 0, current=True)), ("leaves-frame", Findings(0, 1, current=False))],
)
async def test_a_probe_finds_what_a_client_has_left(directory: Path, fault: str, findings: Findings) -> None:
    async with fake(directory, fault) as (office, _):
        assert await probe(office, 60) == CLEAN
        await be_client(office)
        assert await probe(office, 60) == findings


@pytest.mark.parametrize("fault", ["hang", "deaf"])
async def test_an_office_that_does_not_answer_is_hung(directory: Path, fault: str) -> None:
    async with fake(directory, fault) as (office, _):
        with pytest.raises(WorkerHungError, match=r"^no answer within 0\.01 s$"):
            await probe(office, 0.01)


async def test_an_office_that_does_not_let_go_of_a_probe_is_hung(directory: Path) -> None:
    async with fake(directory, "never-let-go") as (office, it):
        released = asyncio.Event()

        async def talk(connection: socket.socket) -> None:
            await it._be_probed(connection, await greet(connection))
            await released.wait()

        it._talk = talk  # type: ignore[method-assign]
        with pytest.raises(WorkerHungError):
            await probe(office, 0.05)
        assert it.probes == 1
        released.set()


async def greet(connection: socket.socket) -> bytes:
    """Greet a probe, and return its first words."""
    await asyncio.get_running_loop().sock_sendall(connection, GREETING)
    return await asyncio.get_running_loop().sock_recv(connection, 65536)


async def test_an_office_that_closes_without_a_word_is_lost(directory: Path) -> None:
    async with fake(directory, "close-early") as (office, _):
        with pytest.raises(WorkerLostError, match="worker-1 closed its pipe") as lost:
            await probe(office, 60)
        assert not isinstance(lost.value, WorkerHungError)


async def test_an_office_that_closes_amid_a_probe_is_lost(directory: Path) -> None:
    async with fake(directory) as (office, it):

        async def talk(connection: socket.socket) -> None:
            await greet(connection)

        it._talk = talk  # type: ignore[method-assign]
        with pytest.raises(WorkerLostError) as lost:
            await probe(office, 60)
        assert not isinstance(lost.value, WorkerHungError)


async def test_an_office_that_resets_the_connection_is_lost(directory: Path) -> None:
    office = an_office(directory)
    with listen(next(office.pipes())):
        probing = asyncio.create_task(probe(office, 60))
        await asyncio.sleep(0)
    with pytest.raises(WorkerLostError, match="reset"):
        await probing


async def test_no_office_is_lost(directory: Path) -> None:
    with pytest.raises(WorkerLostError, match="no pipe"):
        await probe(an_office(directory), 60)


async def test_what_speaks_no_urp_is_told_apart(directory: Path) -> None:
    async with fake(directory, "rubbish") as (office, _):
        await be_client(office)
        with pytest.raises(ProtocolError):
            await probe(office, 60)


async def test_a_cancelled_probe_leaves_nothing(directory: Path) -> None:
    async with fake(directory, "hang") as (office, _):
        probing = asyncio.create_task(probe(office, 60))
        await asyncio.sleep(0)
        probing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probing


# Office.inspect


async def test_an_office_that_is_as_it_was_has_no_fault(directory: Path) -> None:
    async with fake(directory) as (office, _):
        await be_client(office)
        verdict = await inspect(office, 60)
        assert (verdict.fault, verdict.detail) == (None, "")
        assert verdict.memory > 0


@pytest.mark.parametrize(
    ("fault", "reason", "detail"),
    [
        ("leaves-document", Reason.DIRTY, "left open: 1 documents"),
        ("leaves-frame", Reason.DIRTY, "left open: 1 frames"),
        ("rubbish", Reason.DIRTY, "what answers is no office any more: "),
        ("hang-after-session", Reason.HUNG, "no answer within 0.05 s"),
    ],
)
async def test_what_a_client_has_done_to_an_office_is_a_fault(
    directory: Path, fault: str, reason: Reason, detail: str
) -> None:
    async with fake(directory, fault) as (office, _):
        await be_client(office)
        verdict = await inspect(office, 0.05)
        assert verdict.fault is reason
        assert verdict.detail.startswith(detail)
        assert verdict.detail.isprintable()


async def test_documents_and_frames_are_counted(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def probe(_: Office, __: float) -> Findings:
        return findings

    monkeypatch.setattr(Office, "probe", probe)
    findings = Findings(3, 2, current=True)
    assert (await inspect(an_office(directory), 60)).detail == "left open: 3 documents and 2 frames"
    findings = Findings(0, 0, current=True)  # it went as it was counted
    assert (await inspect(an_office(directory), 60)).detail == "left open: a document"


@pytest.mark.parametrize("fault", ["close-early", "no-pipe"])
async def test_an_office_that_cannot_be_reached_goes_for_crashed(directory: Path, fault: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        if fault != "no-pipe":
            await stack.enter_async_context(fake(directory, fault))
        assert (await inspect(an_office(directory), 60)).fault is Reason.CRASHED


async def test_another_process_at_the_pipe_goes_for_crashed(directory: Path) -> None:
    office = an_office(directory)
    with other_process(next(office.pipes())) as pid:
        verdict = await inspect(office, 60)
    assert verdict.fault is Reason.CRASHED
    assert f"belongs to process {pid}," in verdict.detail


async def test_without_a_descriptor_there_is_no_verdict(directory: Path) -> None:
    async with fake(directory) as (office, _):
        with no_descriptor_left(), pytest.raises(NoDescriptorError):
            await inspect(office, 60)


# Office.wait_ready


async def test_ready_is_when_the_pipe_appears(directory: Path) -> None:
    waiting = asyncio.create_task(wait_ready(an_office(directory), 60))
    await asyncio.sleep(0)
    assert not waiting.done()
    async with fake(directory) as (_, it):
        await waiting
        assert it.probes == 1


@pytest.mark.parametrize("fault", ["no-pipe", "close-early", "hang", "deaf"])
async def test_an_office_that_never_gets_ready_is_a_start_error(directory: Path, fault: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        if fault != "no-pipe":
            await stack.enter_async_context(fake(directory, fault))
        with pytest.raises(StartError, match=r"^not ready within 0\.05 s: raise \[pool\] start_timeout if it is only"):
            await wait_ready(an_office(directory), 0.05)


async def test_an_office_that_closes_early_at_first_is_tried_again(directory: Path) -> None:
    async with fake(directory, "close-early") as (office, it):
        waiting = asyncio.create_task(wait_ready(office, 60))
        await until(lambda: it.most_clients)
        it.fault = ""
        await waiting
        assert it.probes == 1


async def test_an_office_that_takes_its_time_is_waited_for_by_one_probe(directory: Path) -> None:
    # A probe has the whole of start_timeout: an office that greets early and answers late is not asked again.
    async with fake(directory) as (office, it):
        answer = asyncio.Event()

        async def talk(connection: socket.socket) -> None:
            first = await greet(connection)
            await answer.wait()
            await it._be_probed(connection, first)

        it._talk = talk  # type: ignore[method-assign]
        waiting = asyncio.create_task(wait_ready(office, 60))
        await until(lambda: it.most_clients)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not waiting.done()
        answer.set()
        await waiting
        assert (it.probes, it.most_clients) == (1, 1)


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

    def worker_probed(self, number: int, verdict: Verdict) -> None:
        self._tell("probed", number, verdict.fault, verdict.detail)

    def worker_lost(self, number: int, reason: Reason, detail: str) -> None:
        self._tell("lost", number, reason, detail)

    def worker_stopped(self, number: int) -> None:
        self._tell("stopped", number)

    def worker_not_stopped(self, number: int, detail: str) -> None:
        self._tell("not stopped", number, detail)


class World:
    """A keeper with what surrounds it."""

    def __init__(self, directory: Path, plan: list[str], start_timeout: float, probe_timeout: float) -> None:
        self.supervisor = FakeSupervisor(directory, plan)
        self.record = Record()
        self.keeper = Keeper(self.supervisor, self.record, start_timeout, probe_timeout)

    async def start(self, number: int = 1) -> None:
        """Start a worker, and forget that it was told."""
        self.keeper.start(number)
        await self.record.wait_for(("ready", number))
        self.record.told.clear()


@contextlib.asynccontextmanager
async def world(
    plan: list[str] | None = None, start_timeout: float = 60, probe_timeout: float = 60
) -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory() as directory:
        it = World(Path(directory), plan or [], start_timeout, probe_timeout)
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


@pytest.mark.parametrize("fault", ["hang", "deaf", "no-pipe", "close-early"])
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
    keeper = Keeper(supervisor, record, 60, 60)
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


@pytest.mark.parametrize("fault", ["no-pipe", "deaf"])
async def test_a_start_that_is_not_ready_in_time_is_stopped(fault: str) -> None:
    async with world([fault], start_timeout=0.02) as it:
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


class HastySupervisor(FakeSupervisor):
    """Tells that an office has ended before it returns it; or that another one has, of which nobody knows."""

    def __init__(self, directory: Path, *, own: bool) -> None:
        super().__init__(directory)
        self._own = own

    async def start(self, number: int) -> Office:
        office = await super().start(number)
        which = office if self._own else Office("fake-1", 1, 1, self._directory)
        self.lost(number, which, Reason.CRASHED, "killed by signal 6")
        return office


async def test_an_office_that_ends_before_its_start_has_returned_is_not_started(directory: Path) -> None:
    supervisor = HastySupervisor(directory, own=True)
    record = Record()
    keeper = Keeper(supervisor, record, 60, 60)
    keeper.start(1)
    await record.wait_for(("not started", 1, "killed by signal 6"))
    keeper.stop(1)  # its start has returned, so something of it may be left
    await record.wait_for(("not started", 1, "killed by signal 6"), ("stopped", 1))
    assert supervisor.stopped == [1]
    await keeper.close()


async def test_an_earlier_office_that_ends_during_a_start_does_not_matter(directory: Path) -> None:
    supervisor = HastySupervisor(directory, own=False)
    record = Record()
    keeper = Keeper(supervisor, record, 60, 60)
    keeper.start(1)
    await record.wait_for(("ready", 1))
    await keeper.close()
    await supervisor.close()


async def test_an_end_that_came_early_is_not_held_against_the_next_start() -> None:
    async with world(["", ""]) as it:
        await it.start()
        earlier = it.keeper.office(1)
        it.keeper.stop(1)
        it.supervisor.lost(1, earlier, Reason.CRASHED, "while it is stopped")
        await it.record.wait_for(("stopped", 1))
        it.record.told.clear()
        it.keeper.start(1)
        await it.record.wait_for(("ready", 1))


async def test_a_start_that_fails_after_it_was_given_up_is_no_surprise(directory: Path) -> None:
    unexpected: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unexpected.append(context))
    supervisor = SlowSupervisor(directory)
    supervisor._plan = ["refuse"]
    record = Record()
    keeper = Keeper(supervisor, record, 60, 60)
    keeper.start(1)
    await asyncio.sleep(0)
    keeper.stop(1)
    await asyncio.sleep(0)
    supervisor.let.set()
    await record.wait_for(("stopped", 1))
    await keeper.close()
    gc.collect()
    assert unexpected == []


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


async def test_a_probe_tells_its_verdict() -> None:
    async with world() as it:
        await it.start()
        for _ in range(3):
            it.keeper.probe(1)
            await it.record.wait_for(("probed", 1, None, ""))
            it.record.told.clear()
        assert it.supervisor.offices[1].probes == 4


@pytest.mark.parametrize(
    ("fault", "reason", "detail"),
    [
        ("leaves-document", Reason.DIRTY, "left open: 1 documents"),
        ("hang", Reason.HUNG, "no answer within 0.05 s"),
        ("deaf", Reason.HUNG, "no answer within 0.05 s"),
        ("close-early", Reason.CRASHED, "fake-1 closed its pipe"),
    ],
)
async def test_a_probe_tells_what_is_wrong(fault: str, reason: Reason, detail: str) -> None:
    async with world(probe_timeout=0.05) as it:
        await it.start()
        await be_client(it.keeper.office(1))
        it.supervisor.offices[1].fault = fault
        it.keeper.probe(1)
        await it.record.wait_for(("probed", 1, reason, detail))


async def test_a_probe_that_has_no_descriptor_finds_no_fault() -> None:
    async with world() as it:
        await it.start()
        with no_descriptor_left():
            it.keeper.probe(1)
            await it.record.wait_for(("probed", 1, None, ""))
        assert it.supervisor.offices[1].probes == 1


async def test_a_bug_in_a_probe_costs_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> Verdict:
        raise ZeroDivisionError

    async with world() as it:
        await it.start()
        monkeypatch.setattr(Office, "inspect", fail)
        it.keeper.probe(1)
        await it.record.wait_for(("probed", 1, Reason.CUT_OFF, "internal error: ZeroDivisionError()"))


async def test_probing_a_worker_that_runs_no_office_says_so() -> None:
    async with world() as it:
        it.keeper.probe(1)
        await it.record.wait_for(("probed", 1, Reason.CUT_OFF, "worker 1 runs no office"))


async def test_a_stop_ends_a_probe_of_which_nothing_is_told_any_more() -> None:
    async with world() as it:
        await it.start()
        it.supervisor.offices[1].fault = "deaf"
        it.keeper.probe(1)
        await until(lambda: it.supervisor.offices[1]._clients)
        it.keeper.stop(1)
        await it.record.wait_for(("stopped", 1))


async def test_a_probe_goes_by_the_timeout_in_force() -> None:
    async with world(probe_timeout=3600) as it:
        await it.start()
        it.supervisor.offices[1].fault = "hang"
        it.keeper.probe_timeout = 0.01
        it.keeper.probe(1)
        await it.record.wait_for(("probed", 1, Reason.HUNG, "no answer within 0.01 s"))


async def test_an_adopted_office_is_one_like_all_others() -> None:
    async with world() as it:
        await it.start()
        record = Record()
        keeper = Keeper(it.supervisor, record, 60, 60)  # the next broker's
        office = (await it.supervisor.running())[1]
        keeper.adopt(1, office)
        assert keeper.office(1) is keeper.running(1) is office
        keeper.probe(1)
        await record.wait_for(("probed", 1, None, ""))
        await it.supervisor.kill(1)
        lost = ("lost", 1, Reason.CRASHED, "killed by signal 9")
        await record.wait_for(("probed", 1, None, ""), lost)
        keeper.stop(1)
        await record.wait_for(("probed", 1, None, ""), lost, ("stopped", 1))
        assert it.supervisor.stopped == [1]
        assert keeper.running(1) is None
        await keeper.close()


async def test_closing_leaves_no_task_whatever_is_under_way() -> None:
    async with world(["hang", ""]) as it:
        it.keeper.start(1)
        it.keeper.start(2)
        await it.record.wait_for(("ready", 2))
        it.keeper.stop(2)
