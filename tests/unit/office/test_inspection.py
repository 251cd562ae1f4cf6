# SPDX-License-Identifier: LGPL-2.1-or-later
"""Probing an office, inspecting it after a session, and waiting until a new one is ready."""

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fakes import GREETING, until
from offices import an_office, be_client, fake, listen, no_descriptor_left, other_process
from ooodd.errors import NoDescriptorError, ProtocolError, StartError, WorkerHungError, WorkerLostError
from ooodd.office import keeper
from ooodd.office.keeper import inspect, probe, wait_ready
from ooodd.office.office import Office
from ooodd.pool.actions import Reason
from ooodd.uno.conversation import Findings

CLEAN = Findings(0, 0, current=False)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: a unix socket's has 108 bytes at the most."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


# Probing


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


# Inspecting


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

    monkeypatch.setattr(keeper, "probe", probe)
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


# Waiting until ready


async def test_ready_is_when_the_pipe_appears(directory: Path) -> None:
    waiting = asyncio.create_task(wait_ready(an_office(directory), 60))
    await asyncio.sleep(0)
    assert not waiting.done()
    async with fake(directory) as (_, it):
        await waiting
        assert it.probes == 1


async def test_an_office_that_says_that_it_is_ready_is_tried_at_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ooodd.office.keeper._FIRST_PAUSE", 3600.0)
    monkeypatch.setattr("ooodd.office.keeper._LAST_PAUSE", 3600.0)
    waiting = asyncio.create_task(wait_ready(replace(an_office(directory), control_group="/a"), 7200))
    await until((directory / "ready").is_socket)
    assert (directory / "ready").stat().st_mode & 0o777 == 0o777
    async with fake(directory) as (_, it):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as announcer:
            announcer.sendto(b"ready", str(directory / "ready"))
        await waiting
        assert it.probes == 1
    assert not (directory / "ready").exists()


async def test_where_nothing_can_be_said_it_is_tried_again_and_again(directory: Path) -> None:
    (directory / "ready").touch()  # what an office can do
    waiting = asyncio.create_task(wait_ready(replace(an_office(directory), control_group="/a"), 60))
    await asyncio.sleep(0)
    async with fake(directory) as (_, it):
        await waiting
        assert it.probes == 1
    assert (directory / "ready").exists()


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
