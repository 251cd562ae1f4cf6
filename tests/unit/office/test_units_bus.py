# SPDX-License-Identifier: LGPL-2.1-or-later
"""Offices as units while the bus is lost and comes back."""

import asyncio

import pytest

from fakemanager import DEAD, EXITED, UNIT, ended, world
from fakes import until
from ooodd.errors import BusError, OooddError
from ooodd.office import units
from ooodd.office.units import unit_path
from ooodd.pool.actions import Reason

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
        assert it.bus.calls == ["Hello", "AddMatch", "AddMatch", "Subscribe"] + 5 * ["Get"]


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

    async with world(first_pause=0.1) as it:
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


@pytest.mark.parametrize("answers", range(1, 11))
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
        it.manager.jobs_end = False
        starts = [asyncio.create_task(it.supervisor.start(number)) for number in (1, 2, 3)]
        await until(lambda: it.bus.calls.count("RestartUnit") == 3)
        it.bus.vanish()
        for error in await asyncio.gather(*starts, return_exceptions=True):
            assert isinstance(error, BusError)
        it.manager.jobs_end = True
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
        it.manager.jobs_end = False
        start = asyncio.create_task(it.supervisor.start(1))
        await until(lambda: "RestartUnit" in it.bus.calls)
        await it.supervisor.close()
        with pytest.raises(BusError):
            await start
