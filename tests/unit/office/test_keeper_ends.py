# SPDX-License-Identifier: LGPL-2.1-or-later
"""Offices that can't be reached. Their processes may end later, and only the supervisor knows how."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from keeperworld import World, world
from ooodd.office import keeper as module
from ooodd.office.keeper import Verdict
from ooodd.office.office import Office
from ooodd.pool.actions import Reason


@contextlib.asynccontextmanager
async def unreachable(*, inspect: bool) -> AsyncIterator[tuple[World, Office, "asyncio.Task[Verdict] | None"]]:
    """A started office that has closed its pipe; it is inspected, or else probed, by now."""
    async with world() as it:
        await it.start()
        office = it.keeper.office(1)
        await it.supervisor.offices[1].close()
        inspecting = asyncio.create_task(it.keeper.inspect(1, 60)) if inspect else None
        if inspecting is None:
            it.keeper.probe(1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert it.record.told == []
        assert inspecting is None or not inspecting.done()
        yield it, office, inspecting


@pytest.mark.parametrize(
    ("reason", "detail"), [(Reason.ENDED, "exit status 0"), (Reason.CRASHED, "killed by signal 9")]
)
async def test_an_inspected_office_that_ends_late_ended_as_the_supervisor_reports(reason: Reason, detail: str) -> None:
    async with unreachable(inspect=True) as (it, office, inspecting):
        assert inspecting is not None
        it.supervisor.lost(1, office, reason, detail)
        assert it.record.told == [("lost", 1, reason, detail)]
        assert (await inspecting).fault is Reason.CRASHED, "which comes too late: the loss was reported before"


@pytest.mark.parametrize(
    ("reason", "detail"), [(Reason.ENDED, "exit status 0"), (Reason.CRASHED, "killed by signal 9")]
)
async def test_a_probed_office_that_ends_late_ended_as_the_supervisor_reports(reason: Reason, detail: str) -> None:
    async with unreachable(inspect=False) as (it, office, _):
        it.supervisor.lost(1, office, reason, detail)
        it.keeper.stop(1)  # as the pool answers
        await it.record.wait_for(("lost", 1, reason, detail), ("stopped", 1))


async def test_an_office_whose_end_was_reported_during_the_probe_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world() as it:
        await it.start()
        office = it.keeper.office(1)

        async def end(*_: object) -> Verdict:
            it.supervisor.lost(1, office, Reason.ENDED, "exit status 0")
            return Verdict(Reason.CRASHED, "closed its pipe")

        monkeypatch.setattr(module, "inspect", end)
        assert (await it.keeper.inspect(1, 60)).fault is Reason.CRASHED
        assert it.record.told == [("lost", 1, Reason.ENDED, "exit status 0")]


async def test_the_end_of_another_office_is_not_the_inspected_one_s() -> None:
    async with unreachable(inspect=True) as (it, office, inspecting):
        assert inspecting is not None
        it.supervisor.lost(1, Office("fake-1", office.pid, office.uid, office.pipe_directory), Reason.CRASHED, "before")
        it.supervisor.lost(2, office, Reason.CRASHED, "of a worker that never was")
        for _ in range(20):
            await asyncio.sleep(0)
        assert not inspecting.done()
        it.supervisor.lost(1, office, Reason.ENDED, "exit status 0")
        await inspecting
        assert it.record.told == [("lost", 1, Reason.ENDED, "exit status 0")]


async def test_an_inspection_does_not_wait_for_an_office_that_is_stopped_meanwhile() -> None:
    async with unreachable(inspect=True) as (it, _, inspecting):
        assert inspecting is not None
        it.keeper.stop(1)
        assert (await inspecting).fault is Reason.CRASHED
        await it.record.wait_for(("stopped", 1))


UNREACHABLE = {
    "close-early": "fake-1 closed its pipe, and its end was not reported within 0.02 s",
    "no-pipe": "no pipe of fake-1 in {directory}, and its end was not reported within 0.02 s",
}


@pytest.mark.parametrize("fault", UNREACHABLE)
@pytest.mark.parametrize("inspect", [True, False], ids=["inspected", "probed"])
async def test_an_unreachable_office_that_lives_on_hangs(
    fault: str,
    inspect: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "END_TIMEOUT", 0.02)
    async with world() as it:
        await it.start()
        expected = UNREACHABLE[fault].format(directory=it.keeper.office(1).pipe_directory)
        it.supervisor.offices[1].fault = fault
        if fault == "no-pipe":
            next(it.keeper.office(1).pipe_directory.glob("OSL_PIPE_*")).unlink()
        if inspect:
            verdict = await it.keeper.inspect(1, 60)
            assert (verdict.fault, verdict.detail) == (Reason.HUNG, expected)
        else:
            it.keeper.probe(1)
            await it.record.wait_for(("probed", 1, Reason.HUNG, expected))


async def test_an_inspection_that_is_cancelled_leaves_nothing() -> None:
    async with unreachable(inspect=True) as (_, _, inspecting):
        assert inspecting is not None
        inspecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await inspecting
