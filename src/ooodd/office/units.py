# SPDX-License-Identifier: LGPL-2.1-or-later
"""Offices as units of systemd: ooodd-worker@N.service, over org.freedesktop.systemd1(5).

What a method of the manager returns is a job, and only the job's end, signalled as JobRemoved, tells what happened. A
signal can come before the reply to the call that caused it, so who waits for a job subscribes first. State changes of
units come as PropertiesChanged, first for the Service interface and then for the Unit interface.

A lost message bus ends nothing: offices and sessions do without it. What was asked of systemd fails, and the supervisor
connects again, for as long as it takes. What it has not heard meanwhile it finds out by looking at each office.
"""

import asyncio
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jeepney import DBusAddress, MatchRule

from ooodd.errors import BusError, OooddError, StartError, describe
from ooodd.office.office import EX_OSFILE, ORDERLY_STATUSES, Office
from ooodd.pool.actions import Reason
from ooodd.systemd.bus import Bus, BusRefusalError, method_call

RUNTIME_DIRECTORY = Path("/run/ooodd-worker")

_SYSTEMD = "org.freedesktop.systemd1"
_MANAGER = DBusAddress("/org/freedesktop/systemd1", _SYSTEMD, f"{_SYSTEMD}.Manager")
_UNIT_PREFIX = "/org/freedesktop/systemd1/unit/"
_WORKER = re.compile(r"ooodd-worker@(0|[1-9][0-9]*)\.service")
# A stop lasts TimeoutStopSec=5s at most, then SIGKILL; ExecStartPre takes milliseconds. Six times that is a fault.
_JOB_TIMEOUT = 30.0
# Until the first try to reach a lost bus again, doubled from try to try up to the last. In seconds.
_FIRST_PAUSE = 0.1
_LAST_PAUSE = 5.0
# Who asks why the broker is to end wants to end it; systemd answers within a millisecond.
_OWN_JOB_TIMEOUT = 2.0
# waitid(2)'s si_code for a process that exited, rather than was killed by a signal.
_CLD_EXITED = 1

# What a unit's state says of an office that ended without a word on its process: it is somebody's doing.
_UNSEEN = {"active": "somebody restarted the unit", "deactivating": "somebody stopped the unit"}

_POLKIT_HINT = (
    "the polkit rule of ooodd is missing or polkit does not run; look for /usr/share/polkit-1/rules.d/ooodd.rules "
    "(apt-get install --reinstall ooodd) and at systemctl status polkit"
)
_REFUSALS = {
    "org.freedesktop.DBus.Error.AccessDenied": _POLKIT_HINT,
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": _POLKIT_HINT,
    "org.freedesktop.PolicyKit1.Error.Failed": _POLKIT_HINT,
    f"{_SYSTEMD}.NoSuchUnit": "the unit file is missing; apt-get install --reinstall ooodd",
    f"{_SYSTEMD}.UnitMasked": "unmask that unit; systemctl unmask",
}
_OFFICE_HINT = (
    "install libreoffice-writer, or name the office's program directory in OOODD_OFFICE (systemctl edit ooodd-worker@)"
)


class UnitSupervisor:
    """Starts and stops ooodd-worker@N.service. Implements `worker.Supervisor`; outlives the bus, and closes it.

    `on_bus` is called when the bus is lost, with the reason, and when it is back, with None.
    """

    _bus: Bus
    _staying: "asyncio.Task[None]"

    def __init__(self) -> None:
        """Know of nothing yet; `connect` makes one that does."""
        # By object path, as the signals name units.
        self._offices: dict[str, tuple[int, Office]] = {}
        # What the Service interface last said of a unit, for when the Unit interface says that it has ended.
        self._service: dict[str, dict[str, Any]] = {}
        self._waiting: dict[str, _Job] = {}
        self._own_path = ""
        self.lost: Callable[[int, Office, Reason, str], None] = lambda *_: None
        self.on_bus: Callable[[str | None], None] = lambda _: None

    @classmethod
    async def connect(cls) -> "UnitSupervisor":
        """Connect to systemd and subscribe to its signals; `BusError` if that fails."""
        supervisor = cls()
        supervisor._bus = await supervisor._open()
        supervisor._staying = asyncio.create_task(supervisor._stay_connected(), name="bus again")
        return supervisor

    def unit(self, number: int) -> str:
        """Return the unit's name."""
        return f"ooodd-worker@{number}.service"

    def details(self, number: int) -> str:
        """Name the unit's own journal."""
        return f"; details: journalctl -u {self.unit(number)}"

    async def start(self, number: int) -> Office:
        """Start a worker; RestartUnit also ends what an earlier broker may have left running."""
        unit, path = self.unit(number), unit_path(self.unit(number))
        self._offices.pop(path, None)
        try:
            result = await self._job(unit, "RestartUnit")
        except BusRefusalError as error:
            raise StartError(error.message, error.hint) from error
        if result != "done":
            raise _start_error(await self._get_service(path), result)
        office = await self._adopt(number)
        if office is None:
            service = await self._get_service(path)
            await self.stop(number)
            raise _start_error(service, "ended at once")
        return office

    async def stop(self, number: int) -> None:
        """Stop a worker, with everything in its control group."""
        unit = self.unit(number)
        self._offices.pop(unit_path(unit), None)
        try:
            result = await self._job(unit, "StopUnit")
        except BusRefusalError as error:
            if error.name != f"{_SYSTEMD}.NoSuchUnit":  # never loaded, so nothing to stop
                raise
        else:
            if result != "done":
                raise OooddError(f"{unit}: the stop job ended as {result}", f"see journalctl -u {unit}")

    async def running(self) -> dict[int, Office]:
        """Return the offices that an earlier broker has started and that run now, by number; `BusError` if that fails.

        From now on `lost` is called for each that ends: take note of them before anything else is awaited.
        """
        units = await self._list()
        numbers = [number for number, state in units.items() if state == ("active", "running")]
        await asyncio.gather(*(self._adopt(number) for number in numbers))
        # Not what each has returned: one that ended while the last was asked for doesn't run any more.
        return {number: office for number, office in self._offices.values() if number in numbers}

    async def stop_others(self, numbers: Collection[int]) -> None:
        """Stop all workers but these; `OooddError` if any could not be stopped, after the others have been."""
        units = await self._list()
        others = [n for n, (active, _) in units.items() if n not in numbers and active not in ("inactive", "failed")]
        results = await asyncio.gather(*(self.stop(number) for number in others), return_exceptions=True)
        errors = [describe(result) for result in results if isinstance(result, Exception)]
        if errors:
            raise OooddError("; ".join(dict.fromkeys(errors)))

    async def own_job(self) -> str | None:
        """Return what systemd is about to do to our own unit, "stop" or "restart" for example; None if nothing.

        None as well if systemd doesn't say so within 2 s.
        """
        try:
            async with asyncio.timeout(_OWN_JOB_TIMEOUT):
                if not self._own_path:
                    (self._own_path,) = await self._bus.call(method_call(_MANAGER, "GetUnitByPID", "u", os.getpid()))
                number, job = await self._get(self._own_path, "Unit", "Job")
                return str(await self._get(job, "Job", "JobType")) if number else None
        except (BusError, TimeoutError):  # among them: the job has just ended
            return None

    async def close(self) -> None:
        """Close the bus, or give up to reach it."""
        self._staying.cancel()
        await asyncio.wait([self._staying])
        await self._bus.close()

    async def _stay_connected(self) -> None:
        """Reach a lost bus again, until cancelled. One that is lost at once, again and again, is given time too."""
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE
        while True:
            since = loop.time()
            await asyncio.wait([self._bus.lost])
            if loop.time() - since > _LAST_PAUSE:
                pause = _FIRST_PAUSE
            self.on_bus(self._bus.lost.result())
            while self._bus.lost.done():
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LAST_PAUSE)
                try:
                    await self._reconnect()
                except Exception as error:  # noqa: BLE001 - without a bus nothing can be started, so try again
                    await self._bus.close()
                    if not isinstance(error, BusError):
                        loop.call_exception_handler({"message": "while the bus was reached again", "exception": error})
            self.on_bus(None)

    async def _reconnect(self) -> None:
        """Connect, and find out which offices have ended while nobody listened."""
        await self._bus.close()
        self._bus = await self._open()
        self._service.clear()
        for path, known in list(self._offices.items()):
            # In this order: whatever changes after the state was told is signalled.
            state = await self._get(path, "Unit", "ActiveState")
            service = await self._get_service(path)
            alive = state == "active" and service["MainPID"] == known[1].pid
            if not alive and self._offices.get(path) is known:  # and not stopped or started meanwhile
                self._lose(path, service, state)

    async def _open(self) -> Bus:
        """Connect and subscribe."""
        bus = await Bus.connect()
        bus.on_signal(self._signal)
        try:
            await _subscribe(bus)
        except BaseException:
            await bus.close()
            raise
        return bus

    async def _list(self) -> dict[int, tuple[str, str]]:
        """Return ActiveState and SubState of each loaded worker."""
        call = method_call(_MANAGER, "ListUnitsByPatterns", "asas", [], ["ooodd-worker@*.service"])
        (units,) = await self._bus.call(call)
        found = ((_WORKER.fullmatch(name), active, sub) for name, _, _, active, sub, *_ in units)
        return {int(name[1]): (active, sub) for name, active, sub in found if name}

    async def _adopt(self, number: int) -> Office | None:
        """Know a running office from now on; None if it has ended."""
        unit, path = self.unit(number), unit_path(self.unit(number))
        pid, uid = await asyncio.gather(self._get(path, "Service", "MainPID"), self._get(path, "Service", "UID"))
        office = Office(unit, pid, uid, RUNTIME_DIRECTORY / str(number))
        self._offices[path] = (number, office)
        # Signals of what happened before this line were ignored, so ask again.
        if pid and await self._get(path, "Service", "MainPID") == pid and path in self._offices:
            return office
        self._offices.pop(path, None)
        return None

    async def _job(self, unit: str, method: str) -> str:
        """Have systemd do `method` to the unit and return the job's result, "done" if all is well."""
        bus = self._bus
        with self._wait_for(unit, bus) as job:
            try:
                (path,) = await bus.call(method_call(_MANAGER, method, "ss", unit, "replace"))
            except BusRefusalError as error:
                error.hint = _REFUSALS.get(error.name, "")
                raise
            try:
                async with asyncio.timeout(_JOB_TIMEOUT):
                    return await job.result(path)
            except TimeoutError as error:
                raise BusError(f"{method} of {unit} did not end within {_JOB_TIMEOUT:g} s") from error

    @contextmanager
    def _wait_for(self, unit: str, bus: Bus) -> "Iterator[_Job]":
        job = self._waiting[unit] = _Job(bus)
        bus.lost.add_done_callback(job.bus_lost)
        try:
            yield job
        finally:
            bus.lost.remove_done_callback(job.bus_lost)
            del self._waiting[unit]

    async def _get_service(self, path: str) -> dict[str, Any]:
        """Return the properties of the service that tell what runs, or why nothing does."""
        names = ("MainPID", "Result", "ExecMainCode", "ExecMainStatus", "ExecStartPre")
        values = await asyncio.gather(*(self._get(path, "Service", name) for name in names))
        return dict(zip(names, values, strict=True))

    async def _get(self, path: str, interface: str, name: str) -> Any:  # noqa: ANN401 - of whatever type the property is
        properties = DBusAddress(path, _SYSTEMD, "org.freedesktop.DBus.Properties")
        ((_, value),) = await self._bus.call(method_call(properties, "Get", "ss", f"{_SYSTEMD}.{interface}", name))
        return value

    def _signal(self, path: str, member: str, body: tuple[Any, ...]) -> None:
        if member == "JobRemoved":
            _, job, unit, result = body
            if unit in self._waiting:
                self._waiting[unit].ended(job, result)
        elif member == "PropertiesChanged" and path.startswith(_UNIT_PREFIX):
            self._changed(path, body[0], {name: value for name, (_, value) in body[1].items()})

    def _changed(self, path: str, interface: str, values: dict[str, Any]) -> None:
        if path not in self._offices:
            return
        if interface == f"{_SYSTEMD}.Service":
            self._service[path] = values
        elif values.get("ActiveState", "active") != "active":
            self._lose(path, self._service.pop(path, {}), values["ActiveState"])

    def _lose(self, path: str, service: dict[str, Any], state: str) -> None:
        number, office = self._offices.pop(path)
        self.lost(number, office, *_end(service, state))


class _Job:
    """Waits for the end of one job of a unit; its JobRemoved may come before its path is known."""

    def __init__(self, bus: Bus) -> None:
        self._results: dict[str, str] = {}
        self._news = asyncio.Event()
        self._bus = bus

    def ended(self, path: str, result: str) -> None:
        self._results[path] = result
        self._news.set()

    def bus_lost(self, _: "asyncio.Future[str]") -> None:
        self._news.set()

    async def result(self, path: str) -> str:
        while path not in self._results:
            if self._bus.lost.done():
                raise self._bus.lost_error()
            self._news.clear()
            await self._news.wait()
        return self._results[path]


async def _subscribe(bus: Bus) -> None:
    """Ask for the signals of ends of jobs and of changes of units."""
    manager = _MANAGER.object_path
    await bus.subscribe(
        MatchRule(type="signal", sender=_SYSTEMD, path=manager, interface=_MANAGER.interface, member="JobRemoved"),
        MatchRule(
            type="signal",
            sender=_SYSTEMD,
            path_namespace=_UNIT_PREFIX.rstrip("/"),
            interface="org.freedesktop.DBus.Properties",
            member="PropertiesChanged",
        ),
    )
    await bus.call(method_call(_MANAGER, "Subscribe"))


def unit_path(unit: str) -> str:
    """Return a unit's object path; sd_bus_path_encode(3) tells how names are escaped."""
    encoded = "".join(
        char if char.isascii() and char.isalnum() and not (char.isdigit() and index == 0) else f"_{ord(char):02x}"
        for index, char in enumerate(unit)
    )
    return _UNIT_PREFIX + encoded


def _end(service: dict[str, Any], state: str) -> tuple[Reason, str]:
    """Tell a crash from an orderly end.

    The out-of-memory killer may have taken a child process; systemd then stops the office, which obeys in all order.
    """
    code, result = service.get("ExecMainCode"), service.get("Result", "success")
    if not code and result == "success" and state != "failed":
        return Reason.ENDED, _UNSEEN.get(state, f"the unit is {state}")
    orderly = code == _CLD_EXITED and service.get("ExecMainStatus") in ORDERLY_STATUSES and result != "oom-kill"
    return Reason.ENDED if orderly else Reason.CRASHED, _describe(service, state)


def _describe(service: dict[str, Any], otherwise: str) -> str:
    """Say how a unit's main process ended, in the words of systemctl status."""
    code, status, result = service.get("ExecMainCode"), service.get("ExecMainStatus"), service.get("Result")
    memory = "out of memory" if result == "oom-kill" else ""
    if code:
        how = f"exit status {status}" if code == _CLD_EXITED else f"killed by signal {status}"
        return f"{how} ({memory})" if memory else how
    return memory or (str(result) if result and result != "success" else otherwise)


def _start_error(service: dict[str, Any], otherwise: str) -> StartError:
    """Say why a start failed, with the remedy where it is known. Only ExecStartPre= tells how new-profile ended."""
    statuses = [command[-1] for command in service["ExecStartPre"] if command[-1]]
    if EX_OSFILE in statuses:
        return StartError("there is no office", _OFFICE_HINT)
    if statuses:
        return StartError(f"ExecStartPre= ended with status {statuses[0]}")
    return StartError(_describe(service, otherwise))
