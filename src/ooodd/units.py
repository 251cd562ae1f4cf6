# SPDX-License-Identifier: LGPL-2.1-or-later
"""Offices as units of systemd: ooodd-worker@N.service, over org.freedesktop.systemd1(5).

What a method of the manager returns is a job, and only the job's end, signalled as JobRemoved, tells what happened. A
signal can come before the reply to the call that caused it, so who waits for a job subscribes first. State changes of
units come as PropertiesChanged, first for the Service interface and then for the Unit interface.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jeepney import DBusAddress, MatchRule

from ooodd.bus import Bus, BusRefusalError, method_call
from ooodd.errors import BusError, OooddError, StartError
from ooodd.pool import Reason
from ooodd.worker import EX_OSFILE, ORDERLY_STATUSES, Office

RUNTIME_DIRECTORY = Path("/run/ooodd-worker")

_SYSTEMD = "org.freedesktop.systemd1"
_MANAGER = DBusAddress("/org/freedesktop/systemd1", _SYSTEMD, f"{_SYSTEMD}.Manager")
_UNIT_PREFIX = "/org/freedesktop/systemd1/unit/"
# A stop lasts TimeoutStopSec=5s at most, then SIGKILL; ExecStartPre takes milliseconds. Six times that is a fault.
_JOB_TIMEOUT = 30.0
# waitid(2)'s si_code for a process that exited, rather than was killed by a signal.
_CLD_EXITED = 1

_POLKIT_HINT = (
    "the polkit rule of ooodd is missing or polkit does not run; look for /usr/share/polkit-1/rules.d/ooodd.rules "
    "(apt-get install --reinstall ooodd) and at systemctl status polkit"
)
_REFUSALS = {
    "org.freedesktop.DBus.Error.AccessDenied": _POLKIT_HINT,
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": _POLKIT_HINT,
    "org.freedesktop.PolicyKit1.Error.Failed": _POLKIT_HINT,
    f"{_SYSTEMD}.NoSuchUnit": "the unit file is missing; apt-get install --reinstall ooodd",
    f"{_SYSTEMD}.UnitMasked": "unmask it; systemctl unmask 'ooodd-worker@.service'",
}
_OFFICE_HINT = (
    "install libreoffice-writer, or name the office's program directory in OOODD_OFFICE (systemctl edit ooodd-worker@)"
)


class UnitSupervisor:
    """Starts and stops ooodd-worker@N.service. Implements `worker.Supervisor`; closes its bus."""

    def __init__(self, bus: Bus) -> None:
        """Take a connected bus; `connect` makes one and subscribes."""
        self._bus = bus
        # By object path, as the signals name units.
        self._offices: dict[str, tuple[int, Office]] = {}
        # What the Service interface last said of a unit, for when the Unit interface says that it has ended.
        self._service: dict[str, dict[str, Any]] = {}
        self._waiting: dict[str, _Job] = {}
        self.lost: Callable[[int, Office, Reason, str], None] = lambda *_: None
        bus.on_signal(self._signal)

    @classmethod
    async def connect(cls) -> "UnitSupervisor":
        """Connect to systemd and subscribe to its signals; `BusError` if that fails."""
        supervisor = cls(await Bus.connect())
        try:
            await supervisor._subscribe()
        except BaseException:
            await supervisor.close()
            raise
        return supervisor

    @property
    def bus_lost(self) -> "asyncio.Future[None]":
        """Done when the bus is gone; nothing can be started or stopped from then on."""
        return self._bus.lost

    def unit(self, number: int) -> str:
        """Return the unit's name."""
        return f"ooodd-worker@{number}.service"

    def details(self, number: int) -> str:
        """Name the unit's own journal."""
        return f"; details: journalctl -u {self.unit(number)}"

    async def start(self, number: int) -> Office:
        """Start a worker; RestartUnit also ends what an earlier broker may have left running."""
        unit, path = self.unit(number), unit_path(self.unit(number))
        try:
            result = await self._job(unit, "RestartUnit")
        except BusRefusalError as error:
            raise StartError(error.message, error.hint) from error
        service = await self._get_service(unit)
        if result != "done":
            raise _start_error(service, result)
        office = Office(unit, service["MainPID"], service["UID"], RUNTIME_DIRECTORY / str(number))
        self._offices[path] = (number, office)
        # Signals of what happened before this line were ignored, so ask again.
        if not office.pid or await self._get(unit, "MainPID") != office.pid or path not in self._offices:
            service = await self._get_service(unit)
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

    async def stop_leftovers(self, workers: int) -> None:
        """Stop what an earlier broker with more than `workers` workers may have left running."""
        active = ["active", "activating", "deactivating"]
        call = method_call(_MANAGER, "ListUnitsByPatterns", "asas", active, ["ooodd-worker@*.service"])
        (units,) = await self._bus.call(call)
        for name, *_ in units:
            instance = name.removeprefix("ooodd-worker@").removesuffix(".service")
            if instance.isdigit() and int(instance) > workers:
                await self.stop(int(instance))

    async def close(self) -> None:
        """Close the bus."""
        await self._bus.close()

    async def _subscribe(self) -> None:
        manager = _MANAGER.object_path
        await self._bus.subscribe(
            MatchRule(type="signal", sender=_SYSTEMD, path=manager, interface=_MANAGER.interface, member="JobRemoved"),
            MatchRule(
                type="signal",
                sender=_SYSTEMD,
                path_namespace=_UNIT_PREFIX.rstrip("/"),
                interface="org.freedesktop.DBus.Properties",
                member="PropertiesChanged",
            ),
        )
        await self._bus.call(method_call(_MANAGER, "Subscribe"))

    async def _job(self, unit: str, method: str) -> str:
        """Have systemd do `method` to the unit and return the job's result, "done" if all is well."""
        with self._wait_for(unit) as job:
            try:
                (path,) = await self._bus.call(method_call(_MANAGER, method, "ss", unit, "replace"))
            except BusRefusalError as error:
                error.hint = _REFUSALS.get(error.name, "")
                raise
            try:
                async with asyncio.timeout(_JOB_TIMEOUT):
                    return await job.result(path)
            except TimeoutError as error:
                raise BusError(f"{method} of {unit} did not end within {_JOB_TIMEOUT:g} s") from error

    @contextmanager
    def _wait_for(self, unit: str) -> "Iterator[_Job]":
        job = self._waiting[unit] = _Job(self._bus.lost)
        self._bus.lost.add_done_callback(job.bus_lost)
        try:
            yield job
        finally:
            self._bus.lost.remove_done_callback(job.bus_lost)
            del self._waiting[unit]

    async def _get_service(self, unit: str) -> dict[str, Any]:
        """Return the properties of the service that tell what runs, or why nothing does."""
        names = ("MainPID", "UID", "Result", "ExecMainCode", "ExecMainStatus", "ExecStartPre")
        return dict(zip(names, await asyncio.gather(*(self._get(unit, name) for name in names)), strict=True))

    async def _get(self, unit: str, name: str) -> Any:  # noqa: ANN401 - of whatever type the property is
        properties = DBusAddress(unit_path(unit), _SYSTEMD, "org.freedesktop.DBus.Properties")
        ((_, value),) = await self._bus.call(method_call(properties, "Get", "ss", f"{_SYSTEMD}.Service", name))
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
            number, office = self._offices.pop(path)
            service = self._service.pop(path, {})
            self.lost(number, office, *_end(service, values["ActiveState"]))


class _Job:
    """Waits for the end of one job of a unit; its JobRemoved may come before its path is known."""

    def __init__(self, lost: "asyncio.Future[None]") -> None:
        self._results: dict[str, str] = {}
        self._news = asyncio.Event()
        self._lost = lost

    def ended(self, path: str, result: str) -> None:
        self._results[path] = result
        self._news.set()

    def bus_lost(self, _: "asyncio.Future[None]") -> None:
        self._news.set()

    async def result(self, path: str) -> str:
        while path not in self._results:
            if self._lost.done():
                raise BusError("the connection to the system message bus is lost")
            self._news.clear()
            await self._news.wait()
        return self._results[path]


def unit_path(unit: str) -> str:
    """Return a unit's object path; sd_bus_path_encode(3) tells how names are escaped."""
    encoded = "".join(
        char if char.isascii() and char.isalnum() and not (char.isdigit() and index == 0) else f"_{ord(char):02x}"
        for index, char in enumerate(unit)
    )
    return _UNIT_PREFIX + encoded


def _end(service: dict[str, Any], state: str) -> tuple[Reason, str]:
    """Tell a crash from an orderly end; a unit that is being stopped while its process runs is somebody's doing."""
    if not service.get("ExecMainCode") and state == "deactivating":
        return Reason.ENDED, "somebody stopped the unit"
    orderly = service.get("ExecMainCode") == _CLD_EXITED and service.get("ExecMainStatus") in ORDERLY_STATUSES
    return Reason.ENDED if orderly else Reason.CRASHED, _describe(service, state)


def _describe(service: dict[str, Any], otherwise: str) -> str:
    """Say how a unit's main process ended, in the words of systemctl status."""
    code, status, result = service.get("ExecMainCode"), service.get("ExecMainStatus"), service.get("Result")
    if code == _CLD_EXITED:
        return f"exit status {status}"
    if code:
        return f"killed by signal {status}" + (" (out of memory)" if result == "oom-kill" else "")
    return str(result) if result and result != "success" else otherwise


def _start_error(service: dict[str, Any], otherwise: str) -> StartError:
    """Say why a start failed, with the remedy where it is known. Only ExecStartPre= tells how new-profile ended."""
    statuses = [command[-1] for command in service["ExecStartPre"] if command[-1]]
    if EX_OSFILE in statuses:
        return StartError("there is no office", _OFFICE_HINT)
    if statuses:
        return StartError(f"ExecStartPre= ended with status {statuses[0]}")
    return StartError(_describe(service, otherwise))
