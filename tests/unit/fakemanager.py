# SPDX-License-Identifier: LGPL-2.1-or-later
"""A fake of systemd's manager on a fake bus, with jobs, signals and errors, and a supervisor of units that uses it."""

import contextlib
import os
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

import pytest
from jeepney import DBusAddress, HeaderFields, Message, new_error, new_signal

from fakebus import FakeBus, fake_bus, reply
from fakes import until
from ooodd.office import units
from ooodd.office.office import Office
from ooodd.office.units import UnitSupervisor, unit_path
from ooodd.pool.actions import Reason

SYSTEMD = "org.freedesktop.systemd1"
MANAGER = DBusAddress("/org/freedesktop/systemd1", SYSTEMD, f"{SYSTEMD}.Manager")
UNIT = "ooodd-worker@1.service"
EXITED, KILLED = 1, 2
SIGNATURES = {"MainPID": "u", "UID": "u", "Result": "s", "ExecMainCode": "i", "ExecMainStatus": "i"}
SIGNATURES |= {"ControlGroup": "s", "ExecMainStartTimestamp": "t", "Environment": "as"}
SIGNATURES |= {"ExecStartPre": "a(sasbttttuii)", "ActiveState": "s", "Job": "(uo)", "JobType": "s"}
OWN_PATH = "/org/freedesktop/systemd1/unit/ooodd_2eservice"


# The properties of an office that was killed.
DEAD = {"MainPID": 0, "ExecMainCode": KILLED, "ExecMainStatus": 9, "Result": "signal", "ActiveState": "failed"}


@dataclass
class FakeManager:
    """systemd's manager, with the methods that ooodd calls. Every job ends as `result`."""

    result: str = "done"
    # The properties of every unit.
    service: dict[str, object] = field(
        default_factory=lambda: {
            "MainPID": 4711,
            "UID": 61234,
            "ControlGroup": "/ooodd.slice/worker",
            "ExecMainStartTimestamp": 1_000_000,
            "Environment": ["HOME=/nowhere", "OOODD_OFFICE=/opt/office"],
            "Result": "success",
            "ExecMainCode": 0,
            "ExecMainStatus": 0,
            "ActiveState": "active",
            "Job": (0, "/"),
        }
    )
    # Properties of a single object, by its path. They override the properties of every unit.
    special: dict[str, dict[str, object]] = field(
        default_factory=lambda: {unit_path("ooodd-profile.service"): {"ExecMainStartTimestamp": 1 << 62}}
    )
    # The workers that are loaded, as (unit, ActiveState, SubState).
    loaded: list[tuple[str, str, str]] = field(default_factory=list)
    # The calls that make jobs, as (method, unit, mode).
    jobs: list[tuple[str, ...]] = field(default_factory=list)
    # Whether jobs end at all.
    jobs_end: bool = True
    # Send the job's end before the reply to the call.
    early: bool = False
    # Further messages that are sent after the end of a job.
    after_job: list[Message] = field(default_factory=list)
    # The office ends after this many answers to Get; 0 means never.
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
            case "RestartUnit" | "StartUnit" | "StopUnit" as method:
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
        if not self.jobs_end:
            return [answer]
        # Another job of the same unit, which this one has replaced, ends at the same time.
        ends = [job_removed(0, unit, "canceled"), job_removed(number, unit, self.result), *self.after_job]
        return [*ends, answer] if self.early else [answer, *ends]


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
    """Return the signals for the end of a main process."""
    facts = {"ExecMainCode": ("i", code), "ExecMainStatus": ("i", status), "Result": ("s", result), "MainPID": ("u", 0)}
    return [changed(unit, "Service", **facts), changed(unit, "Unit", ActiveState=("s", state), SubState=("s", state))]


@dataclass
class World:
    bus: FakeBus
    manager: FakeManager
    supervisor: UnitSupervisor
    lost: list[tuple[int, Office, Reason, str]]
    # The calls of `on_bus`.
    told: list[str | None]

    async def settled(self) -> None:
        """Wait until all messages sent so far have been handled."""
        await self.supervisor._list()

    async def back(self) -> None:
        """Wait until the bus is back."""
        await until(lambda: self.told and self.told[-1] is None)


@contextlib.asynccontextmanager
async def world(manager: FakeManager | None = None, first_pause: float = 0.0001) -> AsyncIterator[World]:
    """Run a supervisor on a fake bus. After a loss of the bus, it reconnects almost at once."""
    manager = manager or FakeManager()
    async with fake_bus(manager.answer) as bus, contextlib.AsyncExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(units, "_FIRST_PAUSE", first_pause)
        supervisor = await UnitSupervisor.connect()
        it = World(bus, manager, supervisor, [], [])
        supervisor.lost = lambda *news: it.lost.append(news)
        supervisor.on_bus = it.told.append
        try:
            yield it
        finally:
            await supervisor.close()
