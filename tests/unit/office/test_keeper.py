# SPDX-License-Identifier: LGPL-2.1-or-later
"""The keeper: starts, probes and stops offices, and reports the outcome."""

import asyncio
import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpkgdatabase import Database
from fakes import CALC, FakeSupervisor, until
from keeperworld import Record, world
from offices import be_client, no_descriptor_left
from ooodd.errors import NoDescriptorError, OooddError, WorkerLostError
from ooodd.office import keeper as module
from ooodd.office.keeper import Keeper, Verdict
from ooodd.office.office import Office
from ooodd.pool.actions import Reason


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: a unix socket's has 108 bytes at the most."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


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


async def test_an_office_is_preloaded_before_it_is_ready() -> None:
    async with world() as it:
        it.keeper.preload = ["writer", "calc"]
        await it.start()
        assert it.supervisor.offices[1].made == ["private:factory/swriter", CALC]


async def test_an_office_for_which_a_client_waits_is_not_preloaded() -> None:
    async with world() as it:
        it.keeper.preload = ["writer"]
        it.keeper.is_awaited = lambda: True
        await it.start()
        assert it.supervisor.offices[1].made == []


async def test_a_kind_that_there_is_not_is_named_once_and_the_office_is_used() -> None:
    async with world(["no-calc", ""]) as it:
        it.keeper.preload = ["calc", "writer"]
        it.keeper.start(1)
        await it.record.wait_for(("not preloaded", 1, "this office has no calc"), ("ready", 1))
        assert it.supervisor.offices[1].made == ["private:factory/swriter"]
        it.record.told.clear()
        await it.start(2)
        assert it.supervisor.offices[2].made == []


async def test_two_offices_that_start_at_once_are_one_report() -> None:
    async with world(["no-calc", "no-calc"]) as it:
        it.keeper.preload = ["calc"]
        it.keeper.start(1)
        it.keeper.start(2)
        await until(lambda: {("ready", 1), ("ready", 2)} <= set(it.record.told))
        assert [event[0] for event in it.record.told].count("not preloaded") == 1


@pytest.mark.parametrize(
    ("fault", "why"), [("hates-calc", "fake-1 closed its pipe"), ("keeps-calc", "it left a document open")]
)
async def test_an_office_that_fails_to_preload_is_replaced_and_no_other_is_asked(fault: str, why: str) -> None:
    async with world([fault]) as it:
        it.keeper.preload = ["calc"]
        it.keeper.start(1)
        await it.record.wait_for(("not preloaded", 1, why), ("not started", 1, f"preloading failed: {why}"))
        it.keeper.stop(1)
        await until(lambda: ("stopped", 1) in it.record.told)
        it.record.told.clear()
        await it.start()
        assert it.supervisor.offices[1].made == []


async def test_without_a_descriptor_an_office_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object) -> None:
        raise NoDescriptorError("none left")

    async with world() as it:
        it.keeper.preload = ["calc"]
        monkeypatch.setattr(module, "new_preload", ask)
        await it.start()
        assert it.keeper.preload == ["calc"]


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
    ],
)
async def test_a_probe_tells_what_is_wrong(fault: str, reason: Reason, detail: str) -> None:
    async with world(probe_timeout=0.05) as it:
        await it.start()
        await be_client(it.keeper.office(1))
        it.supervisor.offices[1].fault = fault
        it.keeper.probe(1)
        await it.record.wait_for(("probed", 1, reason, detail))


# Probing


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
        monkeypatch.setattr(module, "inspect", fail)
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


async def test_no_office_starts_while_dpkg_installs_libreoffice(tmp_path: Path) -> None:
    database = Database(tmp_path)
    async with world() as it:
        it.keeper.packages = database.packages
        with database.locked():
            database.update(0, "half-installed")
            it.keeper.start(1)
            await it.record.wait_for(("held up", 1, "libreoffice-core"))
            assert not it.supervisor.started
            database.update(1, "installed")
            await it.record.wait_for(("held up", 1, "libreoffice-core"), ("ready", 1))


async def test_an_installation_that_takes_too_long_is_a_failed_start(tmp_path: Path) -> None:
    database = Database(tmp_path)
    async with world(start_timeout=0.2) as it:
        it.keeper.packages = database.packages
        with database.locked():
            database.update(0, "unpacked")
            it.keeper.start(1)
            why = "dpkg is installing libreoffice-core: offices start again when it has ended"
            await it.record.wait_for(("held up", 1, "libreoffice-core"), ("not started", 1, why))
            assert not it.supervisor.started


async def test_a_worker_that_waits_for_dpkg_can_be_stopped(tmp_path: Path) -> None:
    database = Database(tmp_path)
    async with world() as it:
        it.keeper.packages = database.packages
        with database.locked():
            database.update(0, "unpacked")
            it.keeper.start(1)
            await it.record.wait_for(("held up", 1, "libreoffice-core"))
            it.keeper.stop(1)
            await it.record.wait_for(("held up", 1, "libreoffice-core"), ("stopped", 1))
            assert not it.supervisor.started
