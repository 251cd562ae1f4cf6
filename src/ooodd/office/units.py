# SPDX-License-Identifier: LGPL-2.1-or-later
"""Offices as units of systemd: ooodd-worker@N.service, over org.freedesktop.systemd1(5).

A method of the manager returns a job. The signal JobRemoved tells when the job has ended, and how. It can come before
the reply that names the job, so `_job` listens first and calls then. PropertiesChanged tells the state of a unit, first
for its Service interface and then for its Unit interface.

Offices and sessions go on without the message bus. When it is lost, calls under way fail, and the supervisor tries to
connect until it succeeds. Then it looks at each office, since it may have missed signals.
"""

import asyncio
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jeepney import DBusAddress, MatchRule

from ooodd.errors import BusError, OooddError, StartError, describe
from ooodd.office import etc, pipedirectory
from ooodd.office.office import EX_CONFIG, EX_OSFILE, ORDERLY_STATUSES, Office
from ooodd.pool.actions import Reason
from ooodd.systemd.bus import Bus, BusRefusalError, method_call

_SYSTEMD = "org.freedesktop.systemd1"
_MANAGER = DBusAddress("/org/freedesktop/systemd1", _SYSTEMD, f"{_SYSTEMD}.Manager")
_UNIT_PREFIX = "/org/freedesktop/systemd1/unit/"
_WORKER = re.compile(r"ooodd-worker@(0|[1-9][0-9]*)\.service")
# A stop takes TimeoutStopSec=5s at most, and a start a second. A job that takes this long has failed, in seconds.
_JOB_TIMEOUT = 30.0
# The pause before each try to connect to a lost bus again, in seconds. It doubles from the first to the last.
_FIRST_PAUSE = 0.1
_LAST_PAUSE = 5.0
# How long SIGTERM waits for systemd to say whether it is a stop or a restart, in seconds. It takes a millisecond.
_OWN_JOB_TIMEOUT = 2.0
# waitid(2): the si_code of a process that has exited. Others are killed by a signal.
_CLD_EXITED = 1

# Why an office has ended if systemd has told its unit's state, but not how its process ended.
_BY_HAND = {"active": "somebody restarted the unit", "deactivating": "somebody stopped the unit"}

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
# The variable of the worker's unit that names the directory of soffice.bin.
_PROGRAM = "OOODD_OFFICE="
# What an exit status of a worker's unit says.
_EXITS = {
    EX_OSFILE: "there is no office: install libreoffice-writer, or name the office's program directory in OOODD_OFFICE "
    "(systemctl edit ooodd-worker@ ooodd-profile), and bind it if it is not below /usr, or below /usr/local "
    "(BindReadOnlyPaths=)",
    EX_CONFIG: "the offices' /etc has not been made: systemctl start ooodd-profile, journalctl -u ooodd-profile",
    # Of systemd.exec(5).
    226: "systemd can't set up the unit's namespaces (status 226/NAMESPACE): in a container, install the drop-in "
    "/usr/lib/ooodd/container.conf (see there)",
}


class UnitSupervisor:
    """Starts and stops ooodd-worker@N.service. Implements `Supervisor`. It connects to the bus, and closes it.

    `on_bus` is called with the reason when the bus is lost, and with None when it is back.
    """

    _bus: Bus
    _reconnecting: "asyncio.Task[None]"

    def __init__(self) -> None:
        """Use `connect` instead."""
        # By object path, as signals name units.
        self._offices: dict[str, tuple[int, Office]] = {}
        # The last properties of a unit's Service interface. They say how it has ended, once its Unit interface says so.
        self._service: dict[str, dict[str, Any]] = {}
        self._waiting: dict[str, _Job] = {}
        self._own_path = ""
        self.lost: Callable[[int, Office, Reason, str], None] = lambda *_: None
        self.on_bus: Callable[[str | None], None] = lambda _: None

    @classmethod
    async def connect(cls) -> "UnitSupervisor":
        """Return a supervisor that is connected to systemd; `BusError` if that fails."""
        supervisor = cls()
        supervisor._bus = await supervisor._open()
        supervisor._reconnecting = asyncio.create_task(supervisor._keep_connected(), name="bus again")
        return supervisor

    def unit(self, number: int) -> str:
        """Return the unit's name."""
        return f"ooodd-worker@{number}.service"

    def journal(self, number: int) -> str:
        """Return the command that shows the unit's journal."""
        return f"journalctl -u {self.unit(number)}"

    async def start(self, number: int) -> Office:
        """Start a worker. RestartUnit ends an office that an earlier broker has left running."""
        unit, path = self.unit(number), unit_path(self.unit(number))
        self._offices.pop(path, None)
        pipedirectory.make(number)
        await self._renew_copies()
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

    async def _renew_copies(self) -> None:
        """Have what offices see of /etc copied again if it has changed. The worker's unit waits for that."""
        started = await self._get(unit_path(etc.UNIT), "Service", "ExecMainStartTimestamp")
        if etc.changed() > started / 1e6:
            with suppress(BusRefusalError):  # then with the copies there are
                await self._bus.call(method_call(_MANAGER, "StartUnit", "ss", etc.UNIT, "replace"))

    def ready(self, number: int) -> None:
        """Take the office's permission to write to the directory of its pipe, which now stands."""
        pipedirectory.guard(number)

    async def stop(self, number: int) -> None:
        """Stop a worker, with all processes in its control group."""
        unit = self.unit(number)
        self._offices.pop(unit_path(unit), None)
        try:
            result = await self._job(unit, "StopUnit")
        except BusRefusalError as error:
            if error.name != f"{_SYSTEMD}.NoSuchUnit":  # then it has never run
                raise
        else:
            if result != "done":
                raise OooddError(f"{unit}: the stop job ended as {result}", f"see journalctl -u {unit}")
        pipedirectory.remove(number)

    async def running(self) -> dict[int, Office]:
        """Return the offices that an earlier broker has started and that run now, by number; `BusError` if that fails.

        From now on `lost` is called for each that ends. So the caller must not await anything before it knows them.
        """
        units = await self._list()
        numbers = [number for number, state in units.items() if state == ("active", "running")]
        await asyncio.gather(*(self._adopt(number) for number in numbers))
        for number in numbers:  # the earlier broker may not have come to that
            self.ready(number)
        # Not what each call has returned: an office may have ended before the last call returned.
        return {number: office for number, office in self._offices.values() if number in numbers}

    async def stop_others(self, numbers: Collection[int]) -> None:
        """Stop all workers but these. `OooddError` if that fails for any, after all others have been stopped."""
        units = await self._list()
        others = [n for n, (active, _) in units.items() if n not in numbers and active not in ("inactive", "failed")]
        results = await asyncio.gather(*(self.stop(number) for number in others), return_exceptions=True)
        errors = [describe(result) for result in results if isinstance(result, Exception)]
        if errors:
            raise OooddError("; ".join(dict.fromkeys(errors)))

    async def own_job(self) -> str | None:
        """Return what systemd is doing to the unit of this process, "stop" or "restart" for example, or None.

        Also None if systemd does not answer within 2 s.
        """
        try:
            async with asyncio.timeout(_OWN_JOB_TIMEOUT):
                if not self._own_path:
                    (self._own_path,) = await self._bus.call(method_call(_MANAGER, "GetUnitByPID", "u", os.getpid()))
                number, job = await self._get(self._own_path, "Unit", "Job")
                return str(await self._get(job, "Job", "JobType")) if number else None
        except (BusError, TimeoutError):  # the job may have just ended
            return None

    async def close(self) -> None:
        """Close the bus, or stop trying to connect."""
        self._reconnecting.cancel()
        await asyncio.wait([self._reconnecting])
        await self._bus.close()

    async def _keep_connected(self) -> None:
        """Connect again whenever the bus is lost, until cancelled."""
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE
        while True:
            since = loop.time()
            await asyncio.wait([self._bus.lost])
            if loop.time() - since > _LAST_PAUSE:  # else it was lost at once, so the pause keeps growing
                pause = _FIRST_PAUSE
            self.on_bus(self._bus.lost.result())
            while self._bus.lost.done():
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LAST_PAUSE)
                try:
                    await self._reconnect()
                except Exception as error:  # noqa: BLE001 - bugs too: without a bus no office can be started
                    await self._bus.close()
                    if not isinstance(error, BusError):
                        loop.call_exception_handler(
                            {"message": "connecting to the bus again failed", "exception": error}
                        )
            self.on_bus(None)

    async def _reconnect(self) -> None:
        """Connect, and find out which offices have ended meanwhile."""
        await self._bus.close()
        self._bus = await self._open()
        self._service.clear()
        for path, known in list(self._offices.items()):
            # In this order: a change after the first call is signalled.
            state = await self._get(path, "Unit", "ActiveState")
            service = await self._get_service(path)
            alive = state == "active" and service["MainPID"] == known[1].pid
            if not alive and self._offices.get(path) is known:  # it was not stopped or started meanwhile
                self._lose(path, service, state)

    async def _open(self) -> Bus:
        """Return a bus that is connected and subscribed."""
        bus = await Bus.connect()
        bus.on_signal(self._signal)
        try:
            await _subscribe(bus)
        except BaseException:
            await bus.close()
            raise
        return bus

    async def _list(self) -> dict[int, tuple[str, str]]:
        """Return ActiveState and SubState of each loaded worker, by number."""
        call = method_call(_MANAGER, "ListUnitsByPatterns", "asas", [], ["ooodd-worker@*.service"])
        (units,) = await self._bus.call(call)
        found = ((_WORKER.fullmatch(name), active, sub) for name, _, _, active, sub, *_ in units)
        return {int(name[1]): (active, sub) for name, active, sub in found if name}

    async def _adopt(self, number: int) -> Office | None:
        """Return the office that the unit runs, and watch it from now on; None if it has ended."""
        unit, path = self.unit(number), unit_path(self.unit(number))
        names = ("MainPID", "UID", "ControlGroup", "ExecMainStartTimestamp", "Environment")
        pid, uid, group, started, environment = await asyncio.gather(*(self._get(path, "Service", n) for n in names))
        program = next((Path(text.removeprefix(_PROGRAM)) for text in environment if text.startswith(_PROGRAM)), None)
        office = Office(
            unit,
            pid,
            uid,
            pipedirectory.of(number),
            program=(program or Path()) / "soffice.bin",
            started=started / 1e6 if program else 0.0,
            control_group=group,
        )
        self._offices[path] = (number, office)
        # Signals that came before this line were ignored, so ask again.
        if pid and await self._get(path, "Service", "MainPID") == pid and path in self._offices:
            return office
        self._offices.pop(path, None)
        return None

    async def _job(self, unit: str, method: str) -> str:
        """Call a method of the manager for the unit and return the job's result, "done" if it has succeeded."""
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
        """Return the properties that tell which process runs, or why none does."""
        names = ("MainPID", "Result", "ExecMainCode", "ExecMainStatus")
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
    """Waits for the end of a job. Its JobRemoved may come before its path is known."""

    def __init__(self, bus: Bus) -> None:
        self._results: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._bus = bus

    def ended(self, path: str, result: str) -> None:
        self._results[path] = result
        self._changed.set()

    def bus_lost(self, _: "asyncio.Future[str]") -> None:
        self._changed.set()

    async def result(self, path: str) -> str:
        while path not in self._results:
            if self._bus.lost.done():
                raise self._bus.lost_error()
            self._changed.clear()
            await self._changed.wait()
        return self._results[path]


async def _subscribe(bus: Bus) -> None:
    """Subscribe to the ends of jobs and to the changes of units."""
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
    """Return a unit's object path, with its name escaped as in sd_bus_path_encode(3)."""
    encoded = "".join(
        char if char.isascii() and char.isalnum() and not (char.isdigit() and index == 0) else f"_{ord(char):02x}"
        for index, char in enumerate(unit)
    )
    return _UNIT_PREFIX + encoded


def _end(service: dict[str, Any], state: str) -> tuple[Reason, str]:
    """Return whether the office has crashed or ended in order, and the detail.

    If the out-of-memory killer has killed a child of the office, systemd stops the office, which then exits in order.
    """
    code, result = service.get("ExecMainCode"), service.get("Result", "success")
    if not code and result == "success" and state != "failed":
        return Reason.ENDED, _BY_HAND.get(state, f"the unit is {state}")
    orderly = code == _CLD_EXITED and service.get("ExecMainStatus") in ORDERLY_STATUSES and result != "oom-kill"
    return Reason.ENDED if orderly else Reason.CRASHED, _describe(service, state)


def _describe(service: dict[str, Any], otherwise: str) -> str:
    """Return how a unit's main process has ended, in the words of systemctl status."""
    code, status, result = service.get("ExecMainCode"), service.get("ExecMainStatus"), service.get("Result")
    memory = "out of memory" if result == "oom-kill" else ""
    if code:
        if code == _CLD_EXITED and status in _EXITS:
            return _EXITS[status]
        how = f"exit status {status}" if code == _CLD_EXITED else f"killed by signal {status}"
        return f"{how} ({memory})" if memory else how
    return memory or (str(result) if result and result != "success" else otherwise)


def _start_error(service: dict[str, Any], otherwise: str) -> StartError:
    """Return why a start has failed, with the remedy if it is known."""
    return StartError(_describe(service, otherwise))
