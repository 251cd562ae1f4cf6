# SPDX-License-Identifier: LGPL-2.1-or-later
"""Offices as units: starting and stopping them, and the ends that systemd reports."""

import asyncio
import contextlib
import re

import pytest

from fakebus import fake_bus
from fakemanager import (
    EXITED,
    KILLED,
    OWN_PATH,
    SYSTEMD,
    UNIT,
    FakeManager,
    changed,
    ended,
    job,
    job_removed,
    world,
)
from fakes import until
from ooodd.errors import BusError, OooddError, StartError
from ooodd.office import pipedirectory, units
from ooodd.office.office import Office
from ooodd.office.units import UnitSupervisor, unit_path
from ooodd.pool.actions import Reason

# Starting


@pytest.mark.parametrize("early", [False, True], ids=["reply-first", "signal-first"])
async def test_a_start_restarts_the_unit_and_tells_what_runs(early: bool) -> None:  # noqa: FBT001
    async with world(FakeManager(early=early)) as it:
        office = await it.supervisor.start(1)
        assert office == Office(UNIT, 4711, 61234, pipedirectory.of(1))
        assert it.manager.jobs == [("RestartUnit", UNIT, "replace")]
        assert it.lost == []


async def test_it_subscribes_before_it_starts_anything() -> None:
    async with world() as it:
        assert it.bus.calls == ["Hello", "AddMatch", "AddMatch", "Subscribe"]


async def test_a_hundred_starts_at_once_get_each_its_own() -> None:
    async with world() as it:
        offices = await asyncio.gather(*(it.supervisor.start(number) for number in range(1, 101)))
        assert [office.unit for office in offices] == [f"ooodd-worker@{number}.service" for number in range(1, 101)]


async def test_an_office_that_a_start_ends_is_not_lost() -> None:
    async with world() as it:
        await it.supervisor.start(1)
        it.manager.early, it.manager.after_job = True, ended(code=EXITED, status=255, state="inactive")
        await it.supervisor.start(1)
        await it.settled()
        assert it.lost == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("org.freedesktop.DBus.Error.AccessDenied", "the polkit rule of ooodd is missing"),
        ("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", "the polkit rule of ooodd is missing"),
        ("org.freedesktop.PolicyKit1.Error.Failed", "systemctl status polkit"),
        ("org.freedesktop.systemd1.NoSuchUnit", "apt-get install --reinstall ooodd"),
        ("org.freedesktop.systemd1.UnitMasked", "systemctl unmask"),
    ],
)
async def test_a_refused_start_names_the_remedy(name: str, hint: str) -> None:
    async with world() as it:
        it.bus.faults["RestartUnit"] = name
        with pytest.raises(StartError) as refused:
            await it.supervisor.start(1)
        assert refused.value.message == "as the test wants it"
        assert hint in refused.value.hint
        it.bus.faults.clear()
        assert (await it.supervisor.start(1)).pid == 4711


async def test_a_refusal_that_nobody_knows_has_no_remedy() -> None:
    async with world() as it:
        it.bus.faults["RestartUnit"] = "org.example.Error.New"
        with pytest.raises(StartError, match=r"^as the test wants it$"):
            await it.supervisor.start(1)


@pytest.mark.parametrize(
    ("service", "reason"),
    [
        ({"ExecMainCode": EXITED, "ExecMainStatus": 72, "Result": "exit-code"}, "there is no office: install libreof"),
        (
            {"ExecMainCode": EXITED, "ExecMainStatus": 78, "Result": "exit-code"},
            "the offices' /etc has not been made: syst",
        ),
        (
            {"ExecMainCode": EXITED, "ExecMainStatus": 226, "Result": "exit-code"},
            "systemd can't set up the unit's namespaces (status 226/NAMESPACE): in a container, install the drop-in",
        ),
        ({"ExecMainCode": EXITED, "ExecMainStatus": 203, "Result": "exit-code"}, "exit status 203"),
        ({"ExecMainCode": KILLED, "ExecMainStatus": 11, "Result": "signal"}, "killed by signal 11"),
        ({"Result": "resources"}, "resources"),
        ({}, "failed"),
    ],
)
async def test_a_failed_job_is_told_with_what_failed(service: dict[str, object], reason: str) -> None:
    manager = FakeManager(result="failed")
    manager.service.update(service)
    async with world(manager) as it:
        with pytest.raises(StartError, match=f"^{re.escape(reason)}"):
            await it.supervisor.start(1)


@pytest.mark.parametrize("result", ["canceled", "timeout", "dependency", "skipped", "something new"])
async def test_any_other_result_of_a_job_is_a_start_error(result: str) -> None:
    async with world(FakeManager(result=result)) as it:
        with pytest.raises(StartError, match=result):
            await it.supervisor.start(1)


async def test_an_office_that_ended_before_it_was_asked_for_is_a_start_error_and_left_to_nobody() -> None:
    manager = FakeManager()
    manager.service |= {"MainPID": 0, "ExecMainCode": EXITED, "ExecMainStatus": 77}
    async with world(manager) as it:
        with pytest.raises(StartError, match="exit status 77"):
            await it.supervisor.start(1)
        # RestartForceExitStatus= may start it again, and nobody would know of it.
        assert it.manager.jobs[-1] == ("StopUnit", UNIT, "replace")
        it.bus.send(*ended())
        await it.settled()
        assert it.lost == []


@pytest.mark.parametrize("answers", range(1, 12))
async def test_an_office_that_ends_while_it_is_asked_for_is_not_missed(answers: int) -> None:
    async with world(FakeManager(ends_after=answers)) as it:
        office = None
        with contextlib.suppress(StartError):
            office = await it.supervisor.start(1)
        if office is None:
            return
        assert it.lost == []
        await it.supervisor._get_service(unit_path(UNIT))
        await it.supervisor._get_service(unit_path(UNIT))
        assert it.lost == [(1, office, Reason.CRASHED, "killed by signal 9")]


@pytest.mark.parametrize("fault", ["close", "half-answer", "garbage"])
@pytest.mark.parametrize("method", ["RestartUnit", "Get"])
async def test_a_bus_lost_during_a_start_is_told_and_reached_again(method: str, fault: str) -> None:
    async with world() as it:
        it.bus.faults[method] = fault
        with pytest.raises(BusError, match="message bus") as lost:
            await it.supervisor.start(1)
        assert not isinstance(lost.value, StartError), "who knows what runs"
        it.bus.faults.clear()
        await it.back()
        await it.supervisor.stop(1)
        assert (await it.supervisor.start(1)).pid == 4711


async def test_a_bus_lost_while_a_job_runs_is_told() -> None:
    async with world() as it:
        it.manager.jobs_end = False
        start = asyncio.create_task(it.supervisor.start(1))
        await until(lambda: "RestartUnit" in it.bus.calls)
        it.bus.hang_up()
        with pytest.raises(BusError, match=r"is lost \(closed by the bus\): is dbus running"):
            await start


async def test_a_job_that_does_not_end_is_told_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "_JOB_TIMEOUT", 0.05)
    async with world() as it:
        it.manager.jobs_end = False
        with pytest.raises(
            OooddError, match=r"RestartUnit of ooodd-worker@1\.service did not end within 0\.05 s"
        ) as late:
            await it.supervisor.start(1)
        assert not isinstance(late.value, StartError), "who knows what runs"


async def test_a_cancelled_start_leaves_nothing_behind() -> None:
    async with world() as it:
        it.manager.jobs_end = False
        start = asyncio.create_task(it.supervisor.start(1))
        await until(lambda: "RestartUnit" in it.bus.calls)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        it.manager.jobs_end = True
        assert (await it.supervisor.start(1)).pid == 4711


async def test_jobs_leave_nothing_behind() -> None:
    async with world() as it:
        for _ in range(50):
            await it.supervisor.start(1)
            await it.supervisor.stop(1)
        assert len(it.supervisor._bus.lost._callbacks or []) <= 2


# Stopping


async def test_a_stop_waits_for_the_job() -> None:
    async with world() as it:
        await it.supervisor.start(1)
        await it.supervisor.stop(1)
        assert it.manager.jobs[1:] == [("StopUnit", UNIT, "replace")]


async def test_a_unit_that_was_never_loaded_is_stopped() -> None:
    async with world() as it:
        it.bus.faults["StopUnit"] = f"{SYSTEMD}.NoSuchUnit"
        await it.supervisor.stop(1)


async def test_a_refused_stop_names_the_remedy() -> None:
    async with world() as it:
        it.bus.faults["StopUnit"] = "org.freedesktop.DBus.Error.AccessDenied"
        with pytest.raises(BusError, match=r"as the test wants it: the polkit rule"):
            await it.supervisor.stop(1)


@pytest.mark.parametrize("result", ["failed", "timeout", "canceled"])
async def test_a_stop_that_fails_says_where_to_look(result: str) -> None:
    async with world(FakeManager(result=result)) as it:
        with pytest.raises(OooddError, match=f"stop job ended as {result}: see journalctl -u ooodd-worker@1"):
            await it.supervisor.stop(1)


async def test_an_office_that_is_stopped_is_not_lost() -> None:
    async with world() as it:
        await it.supervisor.start(1)
        it.manager.after_job = ended(code=EXITED, status=255, state="inactive")
        await it.supervisor.stop(1)
        await it.settled()
        assert it.lost == []


# Losing

ORDERLY = {"code": EXITED, "result": "success", "state": "inactive"}


@pytest.mark.parametrize(
    ("end", "reason", "detail"),
    [
        ({"code": KILLED, "status": 9}, Reason.CRASHED, "killed by signal 9"),
        ({"code": 3, "status": 6, "result": "core-dump"}, Reason.CRASHED, "killed by signal 6"),
        ({"code": KILLED, "status": 9, "result": "oom-kill"}, Reason.CRASHED, "killed by signal 9 (out of memory)"),
        # OOMPolicy=stop: a child was killed for its memory, or the office was and systemd has yet to wait for it.
        ({"code": 0, "status": 0, "result": "oom-kill", "state": "deactivating"}, Reason.CRASHED, "out of memory"),
        ({"code": EXITED, "status": 255, "result": "oom-kill"}, Reason.CRASHED, "exit status 255 (out of memory)"),
        ({"code": 0, "status": 0, "result": "timeout", "state": "deactivating"}, Reason.CRASHED, "timeout"),
        ({"code": EXITED, "status": 1}, Reason.CRASHED, "exit status 1"),
        ({**ORDERLY, "status": 0}, Reason.ENDED, "exit status 0"),
        ({**ORDERLY, "status": 255}, Reason.ENDED, "exit status 255"),
        ({**ORDERLY, "status": 81, "state": "activating"}, Reason.ENDED, "exit status 81"),
        ({"code": KILLED, "status": 9, "state": "deactivating"}, Reason.CRASHED, "killed by signal 9"),
    ],
)
async def test_a_lost_office_is_told_once_with_its_reason(end: dict[str, object], reason: Reason, detail: str) -> None:
    async with world() as it:
        office = await it.supervisor.start(1)
        it.bus.send(*ended(**end), *ended(**end))  # type: ignore[arg-type]
        await it.settled()
        assert it.lost == [(1, office, reason, detail)]


async def test_an_office_that_is_lost_without_a_word_on_its_process_is_told_by_its_state() -> None:
    async with world() as it:
        office = await it.supervisor.start(1)
        it.bus.send(changed(UNIT, "Unit", ActiveState=("s", "failed")))
        await it.settled()
        assert it.lost == [(1, office, Reason.CRASHED, "failed")]


async def test_a_unit_that_somebody_stops_is_no_crash() -> None:
    async with world() as it:
        office = await it.supervisor.start(1)
        it.bus.send(changed(UNIT, "Unit", ActiveState=("s", "deactivating")))
        await it.settled()
        assert it.lost == [(1, office, Reason.ENDED, "somebody stopped the unit")]


async def test_an_earlier_end_says_nothing_of_a_later_one() -> None:
    async with world() as it:
        await it.supervisor.start(1)
        it.bus.send(*ended(status=11))
        await it.settled()
        office = await it.supervisor.start(1)
        it.bus.send(changed(UNIT, "Unit", ActiveState=("s", "failed")))
        await it.settled()
        assert it.lost[1:] == [(1, office, Reason.CRASHED, "failed")]


async def test_what_does_not_end_an_office_is_no_loss() -> None:
    async with world() as it:
        await it.supervisor.start(1)
        it.bus.send(
            changed(UNIT, "Unit", ActiveState=("s", "active")),
            changed(UNIT, "Unit"),
            changed(UNIT, "Service", MainPID=("u", 4711)),
            *ended("ooodd-worker@2.service"),
            *ended("ooodd.service"),
            job_removed(77, UNIT, "failed"),
        )
        await it.settled()
        assert it.lost == []


# Our own unit


@pytest.mark.parametrize("kind", ["stop", "restart", "start"])
async def test_what_systemd_is_about_to_do_to_us_is_told(kind: str) -> None:
    async with world() as it:
        assert await it.supervisor.own_job() is None
        it.manager.special[OWN_PATH] = {"Job": (7, job(7))}
        it.manager.special[job(7)] = {"JobType": kind}
        assert await it.supervisor.own_job() == kind
        assert it.bus.calls.count("GetUnitByPID") == 1


@pytest.mark.parametrize("method", ["GetUnitByPID", "Get"])
@pytest.mark.parametrize("fault", ["close", "no-answer", "org.freedesktop.DBus.Error.UnknownObject"])
async def test_no_job_is_known_if_systemd_does_not_say(
    method: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "_OWN_JOB_TIMEOUT", 0.02)
    async with world() as it:
        it.manager.special[OWN_PATH] = {"Job": (7, job(7))}
        it.manager.special[job(7)] = {"JobType": "stop"}
        it.bus.faults[method] = fault
        assert await it.supervisor.own_job() is None
        it.bus.faults.clear()
        if fault == "close":
            await it.back()
        assert await it.supervisor.own_job() == "stop"


@pytest.mark.parametrize("method", ["AddMatch", "Subscribe"])
@pytest.mark.parametrize("fault", ["close", "garbage", "org.freedesktop.DBus.Error.AccessDenied"])
async def test_a_systemd_that_cannot_be_subscribed_to_is_a_bus_error(method: str, fault: str) -> None:
    async with fake_bus(FakeManager().answer) as bus:
        bus.faults[method] = fault
        with pytest.raises(BusError):
            await UnitSupervisor.connect()


@pytest.mark.parametrize(
    ("unit", "path"),
    [
        ("ooodd-worker@1.service", "ooodd_2dworker_401_2eservice"),
        ("ooodd.socket", "ooodd_2esocket"),
        ("1.service", "_31_2eservice"),
    ],
)
def test_units_have_the_paths_that_systemd_gives_them(unit: str, path: str) -> None:
    assert unit_path(unit) == f"/org/freedesktop/systemd1/unit/{path}"
