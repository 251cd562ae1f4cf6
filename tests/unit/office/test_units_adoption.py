# SPDX-License-Identifier: LGPL-2.1-or-later
"""Offices as units that an earlier broker has started."""

from collections.abc import Iterable

import pytest
from jeepney import HeaderFields, Message

from fakemanager import DEAD, UNIT, FakeManager, ended, world
from ooodd.errors import BusError, OooddError
from ooodd.office import pipedirectory
from ooodd.office.office import Office
from ooodd.office.units import unit_path
from ooodd.pool.actions import Reason

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
            1: Office(UNIT, 4711, 61234, pipedirectory.of(1)),
            12: Office("ooodd-worker@12.service", 815, 61235, pipedirectory.of(12)),
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
