# SPDX-License-Identifier: LGPL-2.1-or-later
"""Offices as units, against a scripted systemd: jobs, signals in any order, refusals, and a bus that goes away."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from jeepney import DBusAddress, HeaderFields, Message, new_error, new_signal

from fakebus import FakeBus, fake_bus, reply
from fakes import until
from ooodd import units
from ooodd.errors import BusError, OooddError, StartError
from ooodd.pool import Reason
from ooodd.units import UnitSupervisor, unit_path
from ooodd.worker import Office

SYSTEMD = "org.freedesktop.systemd1"
MANAGER = DBusAddress("/org/freedesktop/systemd1", SYSTEMD, f"{SYSTEMD}.Manager")
UNIT = "ooodd-worker@1.service"
EXITED, KILLED = 1, 2
SIGNATURES = {"MainPID": "u", "UID": "u", "Result": "s", "ExecMainCode": "i", "ExecMainStatus": "i"}
SIGNATURES["ExecStartPre"] = "a(sasbttttuii)"


@dataclass
class FakeManager:
    """systemd's manager, as far as it is asked: every job ends as `result`."""

    result: str = "done"
    # What the properties of the service say.
    service: dict[str, object] = field(
        default_factory=lambda: {
            "MainPID": 4711,
            "UID": 61234,
            "Result": "success",
            "ExecMainCode": 0,
            "ExecMainStatus": 0,
            "ExecStartPre": [new_profile(0)],
        }
    )
    loaded: list[str] = field(default_factory=list)
    # What was asked, as (method, unit, mode).
    jobs: list[tuple[str, ...]] = field(default_factory=list)
    # Put the job's end before the reply to the call that asked for it.
    early: bool = False
    # What else is sent after the end of a job.
    after_job: list[Message] = field(default_factory=list)
    # How many answers to Get it takes until the office ends; never, if 0.
    ends_after: int = 0

    def answer(self, call: Message) -> Iterable[Message]:
        match call.header.fields[HeaderFields.member]:
            case "Subscribe":
                return [reply(call)]
            case "ListUnitsByPatterns":
                assert call.body == (["active", "activating", "deactivating"], ["ooodd-worker@*.service"])
                return [reply(call, "a(ssssssouso)", [listed(name) for name in self.loaded])]
            case "Get":
                interface, name = call.body
                assert interface == f"{SYSTEMD}.Service"
                answer = reply(call, "v", (SIGNATURES[name], self.service[name]))
                self.ends_after -= 1
                return [answer, *self._end()] if self.ends_after == 0 else [answer]
            case "RestartUnit" | "StopUnit" as method:
                return self._job(call, method)
        return [new_error(call, "org.freedesktop.DBus.Error.UnknownMethod")]

    def _end(self) -> list[Message]:
        self.service |= {"MainPID": 0, "ExecMainCode": KILLED, "ExecMainStatus": 9, "Result": "signal"}
        return ended()

    def _job(self, call: Message, method: str) -> list[Message]:
        self.jobs.append((method, *call.body))
        unit = call.body[0]
        number = len(self.jobs)
        answer = reply(call, "o", job(number))
        # Another job of the same unit ends at the same time: one that this one has replaced.
        ends = [job_removed(0, unit, "canceled"), job_removed(number, unit, self.result), *self.after_job]
        return [*ends, answer] if self.early else [answer, *ends]


def new_profile(status: int) -> tuple[object, ...]:
    """ExecStartPre= as a property: command, arguments, times, pid, si_code, status."""
    return ("/usr/lib/ooodd/new-profile", ["new-profile"], False, 1, 1, 1, 1, 99, EXITED, status)


def listed(name: str) -> tuple[object, ...]:
    return (name, "", "loaded", "active", "running", "", unit_path(name), 0, "", "/")


def job(number: int) -> str:
    return f"/org/freedesktop/systemd1/job/{number}"


def job_removed(number: int, unit: str, result: str) -> Message:
    return new_signal(MANAGER, "JobRemoved", "uoss", (number, job(number), unit, result))


def changed(unit: str, interface: str, **values: tuple[str, object]) -> Message:
    thing = DBusAddress(unit_path(unit), SYSTEMD, "org.freedesktop.DBus.Properties")
    return new_signal(thing, "PropertiesChanged", "sa{sv}as", (f"{SYSTEMD}.{interface}", values, []))


def ended(
    unit: str = UNIT, code: int = KILLED, status: int = 9, result: str = "signal", state: str = "failed"
) -> list[Message]:
    """Signals that a main process has ended."""
    facts = {"ExecMainCode": ("i", code), "ExecMainStatus": ("i", status), "Result": ("s", result), "MainPID": ("u", 0)}
    return [changed(unit, "Service", **facts), changed(unit, "Unit", ActiveState=("s", state), SubState=("s", state))]


@dataclass
class World:
    bus: FakeBus
    manager: FakeManager
    supervisor: UnitSupervisor
    lost: list[tuple[int, Office, Reason, str]]

    async def settled(self) -> None:
        """Have everything that was sent so far been handled."""
        await self.supervisor.stop_leftovers(1000)


@contextlib.asynccontextmanager
async def world(manager: FakeManager | None = None) -> AsyncIterator[World]:
    manager = manager or FakeManager()
    async with fake_bus(manager.answer) as bus:
        supervisor = await UnitSupervisor.connect()
        lost: list[tuple[int, Office, Reason, str]] = []
        supervisor.lost = lambda *news: lost.append(news)
        try:
            yield World(bus, manager, supervisor, lost)
        finally:
            await supervisor.close()


# Starting


@pytest.mark.parametrize("early", [False, True], ids=["reply-first", "signal-first"])
async def test_a_start_restarts_the_unit_and_tells_what_runs(early: bool) -> None:  # noqa: FBT001
    async with world(FakeManager(early=early)) as it:
        office = await it.supervisor.start(1)
        assert office == Office(UNIT, 4711, 61234, Path("/run/ooodd-worker/1"))
        assert it.manager.jobs == [("RestartUnit", UNIT, "replace")]
        assert it.lost == []


async def test_it_subscribes_before_it_starts_anything() -> None:
    async with world() as it:
        assert it.bus.calls == ["Hello", "AddMatch", "AddMatch", "Subscribe"]


async def test_a_hundred_starts_at_once_get_each_its_own() -> None:
    async with world() as it:
        offices = await asyncio.gather(*(it.supervisor.start(number) for number in range(1, 101)))
        assert [office.unit for office in offices] == [f"ooodd-worker@{number}.service" for number in range(1, 101)]


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
        ({"ExecStartPre": [new_profile(72)], "Result": "exit-code"}, "there is no office: install libreoffice-writer"),
        ({"ExecStartPre": [new_profile(1)], "Result": "exit-code"}, "ExecStartPre= ended with status 1"),
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


@pytest.mark.parametrize("answers", range(1, 15))
async def test_an_office_that_ends_while_it_is_asked_for_is_not_missed(answers: int) -> None:
    async with world(FakeManager(ends_after=answers)) as it:
        office = None
        with contextlib.suppress(StartError):
            office = await it.supervisor.start(1)
        if office is None:
            return
        assert it.lost == []
        await it.supervisor._get_service(UNIT)
        await it.supervisor._get_service(UNIT)
        assert it.lost == [(1, office, Reason.CRASHED, "killed by signal 9")]


@pytest.mark.parametrize("fault", ["close", "half-answer", "garbage"])
@pytest.mark.parametrize("method", ["RestartUnit", "Get"])
async def test_a_bus_lost_during_a_start_is_told_and_noticed(method: str, fault: str) -> None:
    async with world() as it:
        it.bus.faults[method] = fault
        with pytest.raises(OooddError, match="message bus"):
            await it.supervisor.start(1)
        await it.supervisor.bus_lost


async def test_a_bus_lost_while_a_job_runs_is_told() -> None:
    async with world() as it:
        it.bus._answer = lambda call: [reply(call, "o", job(1))]
        start = asyncio.create_task(it.supervisor.start(1))
        await until(lambda: "RestartUnit" in it.bus.calls)
        it.bus.hang_up()
        with pytest.raises(OooddError, match="lost"):
            await start


async def test_a_job_that_does_not_end_is_told_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "_JOB_TIMEOUT", 0.05)
    async with world() as it:
        it.bus._answer = lambda call: [reply(call, "o", job(1))]
        with pytest.raises(
            OooddError, match=r"RestartUnit of ooodd-worker@1\.service did not end within 0\.05 s"
        ) as late:
            await it.supervisor.start(1)
        assert not isinstance(late.value, StartError), "who knows what runs"


async def test_a_cancelled_start_leaves_nothing_behind() -> None:
    async with world() as it:
        it.bus._answer = lambda call: [reply(call, "o", job(1))]
        start = asyncio.create_task(it.supervisor.start(1))
        await until(lambda: "RestartUnit" in it.bus.calls)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        it.bus._answer = it.manager.answer
        assert (await it.supervisor.start(1)).pid == 4711


async def test_jobs_leave_nothing_behind() -> None:
    async with world() as it:
        for _ in range(50):
            await it.supervisor.start(1)
            await it.supervisor.stop(1)
        waiting = it.supervisor.bus_lost._callbacks
        assert len(waiting or []) <= 2


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


@pytest.mark.parametrize(
    ("end", "reason", "detail"),
    [
        ({"code": KILLED, "status": 9}, Reason.CRASHED, "killed by signal 9"),
        ({"code": 3, "status": 6, "result": "core-dump"}, Reason.CRASHED, "killed by signal 6"),
        ({"code": KILLED, "status": 9, "result": "oom-kill"}, Reason.CRASHED, "killed by signal 9 (out of memory)"),
        ({"code": EXITED, "status": 1}, Reason.CRASHED, "exit status 1"),
        ({"code": EXITED, "status": 0, "state": "inactive"}, Reason.ENDED, "exit status 0"),
        ({"code": EXITED, "status": 255, "state": "inactive"}, Reason.ENDED, "exit status 255"),
        ({"code": EXITED, "status": 81, "state": "activating"}, Reason.ENDED, "exit status 81"),
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


# Leftovers


async def test_leftovers_beyond_the_pool_are_stopped() -> None:
    names = [f"ooodd-worker@{instance}.service" for instance in (1, 4, 5, 17, "x", "5x", "")]
    async with world(FakeManager(loaded=names)) as it:
        await it.supervisor.stop_leftovers(4)
        assert it.manager.jobs == [("StopUnit", f"ooodd-worker@{number}.service", "replace") for number in (5, 17)]


async def test_leftovers_that_cannot_be_listed_are_told() -> None:
    async with world() as it:
        it.bus.faults["ListUnitsByPatterns"] = "org.freedesktop.DBus.Error.AccessDenied"
        with pytest.raises(BusError):
            await it.supervisor.stop_leftovers(4)


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
