# SPDX-License-Identifier: LGPL-2.1-or-later
"""Offices as units, against a scripted systemd: jobs, signals in any order, refusals, and a bus that goes away."""

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from jeepney import DBusAddress, HeaderFields, Message, new_error, new_signal

from fakebus import FakeBus, fake_bus, reply
from fakes import until
from ooodd.errors import BusError, OooddError, StartError
from ooodd.office import units
from ooodd.office.office import Office
from ooodd.office.units import UnitSupervisor, unit_path
from ooodd.pool.actions import Reason

SYSTEMD = "org.freedesktop.systemd1"
MANAGER = DBusAddress("/org/freedesktop/systemd1", SYSTEMD, f"{SYSTEMD}.Manager")
UNIT = "ooodd-worker@1.service"
EXITED, KILLED = 1, 2
SIGNATURES = {"MainPID": "u", "UID": "u", "Result": "s", "ExecMainCode": "i", "ExecMainStatus": "i"}
SIGNATURES |= {"ExecStartPre": "a(sasbttttuii)", "ActiveState": "s", "Job": "(uo)", "JobType": "s"}
OWN_PATH = "/org/freedesktop/systemd1/unit/ooodd_2eservice"


# What systemd says of an office that was killed.
DEAD = {"MainPID": 0, "ExecMainCode": KILLED, "ExecMainStatus": 9, "Result": "signal", "ActiveState": "failed"}


@dataclass
class FakeManager:
    """systemd's manager, as far as it is asked: every job ends as `result`."""

    result: str = "done"
    # What the properties of every unit say.
    service: dict[str, object] = field(
        default_factory=lambda: {
            "MainPID": 4711,
            "UID": 61234,
            "Result": "success",
            "ExecMainCode": 0,
            "ExecMainStatus": 0,
            "ExecStartPre": [new_profile(0)],
            "ActiveState": "active",
            "Job": (0, "/"),
        }
    )
    # What those of one thing say instead, by object path.
    special: dict[str, dict[str, object]] = field(default_factory=dict)
    # The workers that are loaded, as (unit, ActiveState, SubState).
    loaded: list[tuple[str, str, str]] = field(default_factory=list)
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
                assert call.body == ([], ["ooodd-worker@*.service"])
                return [reply(call, "a(ssssssouso)", [listed(*unit) for unit in self.loaded])]
            case "GetUnitByPID":
                assert call.body == (os.getpid(),)
                return [reply(call, "o", OWN_PATH)]
            case "Get":
                interface, name = call.body
                at = {"ActiveState": "Unit", "Job": "Unit", "JobType": "Job"}.get(name, "Service")
                assert interface == f"{SYSTEMD}.{at}"
                properties = self.service | self.special.get(call.header.fields[HeaderFields.path], {})
                answer = reply(call, "v", (SIGNATURES[name], properties[name]))
                self.ends_after -= 1
                return [answer, *self._end()] if self.ends_after == 0 else [answer]
            case "RestartUnit" | "StopUnit" as method:
                return self._job(call, method)
        return [new_error(call, "org.freedesktop.DBus.Error.UnknownMethod")]

    def _end(self) -> list[Message]:
        self.service |= DEAD
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


def listed(name: str, active: str, sub: str) -> tuple[object, ...]:
    return (name, "", "loaded", active, sub, "", unit_path(name), 0, "", "/")


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
    # What `on_bus` was told.
    told: list[str | None]

    async def settled(self) -> None:
        """Have everything that was sent so far been handled."""
        await self.supervisor._list()

    async def back(self) -> None:
        """Wait until the bus is back."""
        await until(lambda: self.told and self.told[-1] is None)


@contextlib.asynccontextmanager
async def world(manager: FakeManager | None = None) -> AsyncIterator[World]:
    manager = manager or FakeManager()
    async with fake_bus(manager.answer) as bus:
        supervisor = await UnitSupervisor.connect()
        it = World(bus, manager, supervisor, [], [])
        supervisor.lost = lambda *news: it.lost.append(news)
        supervisor.on_bus = it.told.append
        try:
            yield it
        finally:
            await supervisor.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try ten times a millisecond where ten times a second is usual."""
    monkeypatch.setattr(units, "_FIRST_PAUSE", 0.0001)


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


@pytest.mark.parametrize("answers", range(1, 14))
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
        it.bus._answer = lambda call: [reply(call, "o", job(1))]
        start = asyncio.create_task(it.supervisor.start(1))
        await until(lambda: "RestartUnit" in it.bus.calls)
        it.bus.hang_up()
        with pytest.raises(BusError, match=r"is lost \(closed by the bus\): is dbus running"):
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


# Losing the bus


async def test_a_lost_bus_is_reached_again_every_time() -> None:
    async with world() as it:
        office = await it.supervisor.start(1)
        for losses in range(1, 6):
            it.bus.hang_up()
            await until(lambda: len(it.told) == 2 * losses)  # noqa: B023 - called before the next turn
        assert it.told == ["closed by the bus", None] * 5
        assert it.lost == []
        it.bus.send(*ended())
        await it.settled()
        assert it.lost == [(1, office, Reason.CRASHED, "killed by signal 9")]
        assert (await it.supervisor.start(1)).pid == 4711


async def test_a_bus_that_is_back_is_subscribed_to_before_it_is_asked_anything() -> None:
    async with world() as it:
        await it.supervisor.start(1)
        it.bus.calls.clear()
        it.bus.hang_up()
        await it.back()
        assert it.bus.calls == ["Hello", "AddMatch", "AddMatch", "Subscribe"] + 6 * ["Get"]


async def test_while_there_is_no_bus_all_fails_at_once_and_all_works_when_it_is_back() -> None:
    async with world() as it:
        office = await it.supervisor.start(1)
        it.bus.vanish()
        await until(lambda: it.told)
        for work in (it.supervisor.start(2), it.supervisor.stop(1), it.supervisor.running()):
            with pytest.raises(BusError, match=r"message bus is lost \(closed by the bus\): is dbus running"):
                await work
        with pytest.raises(OooddError, match="is dbus running"):
            await it.supervisor.stop_others([])
        assert await it.supervisor.own_job() is None
        assert it.told == ["closed by the bus"]
        await it.bus.appear()
        await it.back()
        assert await it.supervisor.start(1) == office
        assert it.told == ["closed by the bus", None]
        assert it.lost == [], "it was about to be stopped"


async def test_tries_to_reach_the_bus_again_become_ever_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def hurry(seconds: float) -> None:
        pauses.extend([seconds] if seconds else [])
        await sleep(0)

    monkeypatch.setattr(units, "_FIRST_PAUSE", 0.1)
    async with world() as it:
        monkeypatch.setattr(asyncio, "sleep", hurry)
        it.bus.vanish()
        await until(lambda: len(pauses) == 8)
        assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
        await it.bus.appear()
        await it.back()
        it.bus.hang_up()
        await until(lambda: len(it.told) == 4)
        assert pauses[-1] == 5.0, "it was back for a moment only"
        monkeypatch.setattr(units, "_LAST_PAUSE", -1.0)  # so a moment is enough
        it.bus.hang_up()
        await until(lambda: len(it.told) == 6)
        assert pauses[-1] == 0.1


@pytest.mark.parametrize("method", ["Hello", "AddMatch", "Subscribe", "Get"])
@pytest.mark.parametrize("fault", ["close", "half-answer", "garbage", "org.freedesktop.DBus.Error.ServiceUnknown"])
async def test_a_bus_that_is_not_really_back_is_tried_again(method: str, fault: str) -> None:
    async with world() as it:
        office = await it.supervisor.start(1)
        it.bus.calls.clear()
        it.bus.faults[method] = fault
        it.bus.hang_up()
        await until(lambda: it.bus.calls.count(method) >= 3)
        assert it.told == ["closed by the bus"]
        it.bus.faults.clear()
        it.manager.service |= DEAD
        await it.back()
        assert it.told == ["closed by the bus", None]
        assert it.lost == [(1, office, Reason.CRASHED, "killed by signal 9")]


GONE = {"MainPID": 0, "ActiveState": "inactive"}


@pytest.mark.parametrize(
    ("service", "reason", "detail"),
    [
        (DEAD, Reason.CRASHED, "killed by signal 9"),
        ({**DEAD, "Result": "oom-kill"}, Reason.CRASHED, "killed by signal 9 (out of memory)"),
        ({**DEAD, "ExecMainCode": EXITED, "ExecMainStatus": 77}, Reason.CRASHED, "exit status 77"),
        ({**GONE, "ExecMainCode": EXITED, "ExecMainStatus": 255}, Reason.ENDED, "exit status 255"),
        # systemd forgets a unit that has ended in order.
        (GONE, Reason.ENDED, "the unit is inactive"),
        ({"ActiveState": "deactivating"}, Reason.ENDED, "somebody stopped the unit"),
        ({"MainPID": 0, "ActiveState": "activating"}, Reason.ENDED, "the unit is activating"),
        ({"MainPID": 4712}, Reason.ENDED, "somebody restarted the unit"),
        ({**DEAD, "ActiveState": "active"}, Reason.CRASHED, "killed by signal 9"),
    ],
)
async def test_an_office_that_ended_while_there_was_no_bus_is_told(
    service: dict[str, object], reason: Reason, detail: str
) -> None:
    async with world() as it:
        office, other = await it.supervisor.start(1), await it.supervisor.start(2)
        it.bus.vanish()
        it.manager.special[unit_path(UNIT)] = service
        await it.bus.appear()
        await it.back()
        assert it.lost == [(1, office, reason, detail)]
        it.bus.send(*ended(), *ended(other.unit))
        await it.settled()
        assert it.lost[1:] == [(2, other, Reason.CRASHED, "killed by signal 9")], "each once"


@pytest.mark.parametrize("answers", range(1, 13))
async def test_an_office_that_ends_while_it_is_looked_at_is_told_once(answers: int) -> None:
    async with world() as it:
        office, _ = await it.supervisor.start(1), await it.supervisor.start(2)
        it.manager.ends_after = answers
        it.bus.hang_up()
        await it.back()
        await it.settled()
        assert it.lost[0] == (1, office, Reason.CRASHED, "killed by signal 9")
        assert len([number for number, *_ in it.lost if number == 1]) == 1


async def test_an_office_that_is_replaced_while_the_old_one_is_looked_at_is_not_lost() -> None:
    async with world() as it:
        await it.supervisor.start(1)
        it.bus.faults["Get"] = "no-answer"
        it.bus.calls.clear()
        it.bus.hang_up()
        await until(lambda: "Get" in it.bus.calls)
        it.manager.service |= DEAD
        stop = asyncio.create_task(it.supervisor.stop(1))
        it.bus.hang_up()
        with pytest.raises(BusError):
            await stop
        it.bus.faults.clear()
        await it.back()
        assert it.lost == []


async def test_a_start_under_way_as_the_bus_is_lost_fails_and_the_next_one_works() -> None:
    async with world() as it:
        it.bus._answer = lambda call: [reply(call, "o", job(1))]
        starts = [asyncio.create_task(it.supervisor.start(number)) for number in (1, 2, 3)]
        await until(lambda: it.bus.calls.count("RestartUnit") == 3)
        it.bus.vanish()
        for error in await asyncio.gather(*starts, return_exceptions=True):
            assert isinstance(error, BusError)
        it.bus._answer = it.manager.answer
        await it.bus.appear()
        await it.back()
        assert (await it.supervisor.start(1)).pid == 4711
        assert not it.supervisor._waiting


async def test_a_callback_that_fails_ends_nothing() -> None:
    async with world() as it:
        await it.supervisor.start(1)
        errors: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
        it.supervisor.lost = lambda *_: 1 // 0  # type: ignore[assignment]
        it.manager.service |= DEAD
        it.bus.hang_up()
        await it.back()
        assert [type(error) for error in errors] == [ZeroDivisionError]
        assert it.told == ["closed by the bus", None]


@pytest.mark.parametrize("refused", ["", "Get", "Subscribe"])
@pytest.mark.parametrize("turns", range(40))
async def test_closing_at_any_moment_of_reaching_the_bus_again_leaves_nothing(turns: int, refused: str) -> None:
    async with world() as it:
        await it.supervisor.start(1)
        it.bus.faults[refused] = "org.freedesktop.DBus.Error.NoReply"
        it.bus.hang_up()
        await until(lambda: it.told)
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.wait_for(it.supervisor.close(), 10)


@pytest.mark.parametrize("method", ["Hello", "AddMatch", "Subscribe", "Get"])
async def test_closing_while_the_bus_is_silent_leaves_nothing(method: str) -> None:
    async with world() as it:
        await it.supervisor.start(1)
        it.bus.calls.clear()
        it.bus.faults[method] = "no-answer"
        it.bus.hang_up()
        await until(lambda: method in it.bus.calls)
        await it.supervisor.close()


async def test_closing_while_there_is_no_bus_leaves_nothing() -> None:
    async with world() as it:
        it.bus.vanish()
        await until(lambda: it.told)
        await it.supervisor.close()
        await it.supervisor.close()
        assert it.told == ["closed by the bus"]
        await it.bus.appear()


async def test_a_supervisor_that_is_closed_tells_no_loss() -> None:
    async with world() as it:
        await it.supervisor.close()
        await asyncio.sleep(0)
        assert it.told == []


async def test_closing_fails_a_start_under_way() -> None:
    async with world() as it:
        it.bus._answer = lambda call: [reply(call, "o", job(1))]
        start = asyncio.create_task(it.supervisor.start(1))
        await until(lambda: "RestartUnit" in it.bus.calls)
        await it.supervisor.close()
        with pytest.raises(BusError):
            await start


# Offices of an earlier broker

ALL_STATES = [
    ("ooodd-worker@1.service", "active", "running"),
    ("ooodd-worker@2.service", "active", "exited"),
    ("ooodd-worker@3.service", "activating", "start-pre"),
    ("ooodd-worker@4.service", "activating", "auto-restart"),
    ("ooodd-worker@5.service", "deactivating", "stop-sigterm"),
    ("ooodd-worker@6.service", "reloading", "reload"),
    ("ooodd-worker@7.service", "inactive", "dead"),
    ("ooodd-worker@8.service", "failed", "failed"),
    ("ooodd-worker@12.service", "active", "running"),
    *((f"ooodd-worker@{name}.service", "active", "running") for name in ("x", "5x", "", "09", "-1", "²", "1\\x2d2")),
]


async def test_what_runs_is_adopted_and_heard_of_when_it_ends() -> None:
    async with world(FakeManager(loaded=ALL_STATES)) as it:
        it.manager.special[unit_path("ooodd-worker@12.service")] = {"MainPID": 815, "UID": 61235}
        offices = await it.supervisor.running()
        assert offices == {
            1: Office(UNIT, 4711, 61234, Path("/run/ooodd-worker/1")),
            12: Office("ooodd-worker@12.service", 815, 61235, Path("/run/ooodd-worker/12")),
        }
        assert it.manager.jobs == []
        it.bus.send(*(message for name, *_ in ALL_STATES for message in ended(name)))
        await it.settled()
        assert [(number, office) for number, office, *_ in it.lost] == list(offices.items())
        assert all(office is offices[number] for number, office, *_ in it.lost)


async def test_nothing_runs() -> None:
    async with world() as it:
        assert await it.supervisor.running() == {}


async def test_what_runs_can_be_asked_for_again() -> None:
    async with world(FakeManager(loaded=ALL_STATES)) as it:
        await it.supervisor.running()
        offices = await it.supervisor.running()
        it.bus.send(*ended())
        await it.settled()
        assert it.lost == [(1, offices[1], Reason.CRASHED, "killed by signal 9")]
        assert it.lost[0][1] is offices[1]


async def test_an_office_that_ended_after_the_list_was_made_is_not_adopted() -> None:
    async with world(FakeManager(loaded=ALL_STATES)) as it:
        it.manager.special[unit_path(UNIT)] = DEAD
        assert list(await it.supervisor.running()) == [12]
        it.bus.send(*ended())
        await it.settled()
        assert it.lost == []


@pytest.mark.parametrize("answers", range(1, 8))
async def test_an_office_that_ends_while_it_is_adopted_is_not_missed(answers: int) -> None:
    async with world(FakeManager(loaded=ALL_STATES, ends_after=answers)) as it:
        it.manager.special[unit_path("ooodd-worker@12.service")] = {"MainPID": 815}
        offices = await it.supervisor.running()
        known = list(it.lost)
        await it.settled()
        assert 12 in offices
        if 1 in offices:
            assert known == []
            it.manager.ends_after = 1
            await it.supervisor._get(unit_path(UNIT), "Service", "UID")
            assert it.lost == [(1, offices[1], Reason.CRASHED, "killed by signal 9")]
        else:
            assert it.supervisor._offices.keys() == {unit_path("ooodd-worker@12.service")}


async def test_an_adopted_office_is_looked_at_when_the_bus_is_back() -> None:
    async with world(FakeManager(loaded=ALL_STATES[:1])) as it:
        offices = await it.supervisor.running()
        it.bus.vanish()
        it.manager.service |= DEAD
        await it.bus.appear()
        await it.back()
        assert it.lost == [(1, offices[1], Reason.CRASHED, "killed by signal 9")]


async def test_all_others_are_stopped_whatever_they_do() -> None:
    async with world(FakeManager(loaded=ALL_STATES)) as it:
        await it.supervisor.stop_others({1, 4})
        stopped = {("StopUnit", f"ooodd-worker@{number}.service", "replace") for number in (2, 3, 5, 6, 12)}
        assert set(it.manager.jobs) == stopped
        assert len(it.manager.jobs) == len(stopped)


async def test_others_are_stopped_side_by_side() -> None:
    async with world(FakeManager(loaded=ALL_STATES)) as it:
        listing = it.manager.answer
        calls: list[Message] = []

        def hold(call: Message) -> Iterable[Message]:
            if call.header.fields[HeaderFields.member] != "StopUnit":
                return listing(call)
            calls.append(call)
            return [message for held in calls for message in listing(held)] if len(calls) == 5 else []

        it.bus._answer = hold
        await it.supervisor.stop_others([1, 4])


async def test_others_that_cannot_be_stopped_are_told_when_all_have_been_tried() -> None:
    async with world(FakeManager(loaded=ALL_STATES, result="timeout")) as it:
        with pytest.raises(OooddError) as failed:
            await it.supervisor.stop_others([1, 4, 5, 6, 12])
        assert str(failed.value) == (
            "ooodd-worker@2.service: the stop job ended as timeout: see journalctl -u ooodd-worker@2.service; "
            "ooodd-worker@3.service: the stop job ended as timeout: see journalctl -u ooodd-worker@3.service"
        )
        assert len(it.manager.jobs) == 2


async def test_a_reason_that_all_others_share_is_told_once() -> None:
    async with world(FakeManager(loaded=ALL_STATES)) as it:
        it.bus.faults["StopUnit"] = "org.freedesktop.DBus.Error.AccessDenied"
        with pytest.raises(OooddError, match=r"^as the test wants it: the polkit rule[^;]*;[^;]*$"):
            await it.supervisor.stop_others([])


@pytest.mark.parametrize("fault", ["close", "org.freedesktop.DBus.Error.AccessDenied"])
async def test_workers_that_cannot_be_listed_are_told(fault: str) -> None:
    async with world() as it:
        it.bus.faults["ListUnitsByPatterns"] = fault
        with pytest.raises(BusError):
            await it.supervisor.running()
        it.bus.calls.clear()
        with pytest.raises(BusError):
            await it.supervisor.stop_others([])


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
