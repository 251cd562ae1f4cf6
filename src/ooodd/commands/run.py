# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ooodd run`: serve clients, as ooodd.service or in the foreground."""

import argparse
import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ooodd import config, messages
from ooodd.broker.access import user_name
from ooodd.broker.broker import Broker, End
from ooodd.broker.kept import read
from ooodd.commands.common import Subparsers, add_runtime_directory, runtime_directory
from ooodd.control.server import ControlServer
from ooodd.control.status import snapshot
from ooodd.control.varlink import Method, Nothing
from ooodd.datapath import eager
from ooodd.errors import AdminError, ConfigError, OooddError
from ooodd.journal import Journal, StreamJournal, SystemdJournal
from ooodd.office.office import Office
from ooodd.office.processes import ProcessSupervisor
from ooodd.office.units import UnitSupervisor
from ooodd.pool.pool import State
from ooodd.systemd import fdstore, listeners, users
from ooodd.systemd.fdstore import FdStore, NoFdStore
from ooodd.systemd.marks import MOST_WORKERS
from ooodd.systemd.notify import NoNotifier, SystemdNotifier

_OFFICE = Path("/usr/lib/libreoffice/program")


class _Recycle(BaseModel, extra="forbid"):
    """The parameters of Recycle."""

    worker: int | None = None
    wait: bool | None = None


class _Kick(BaseModel, extra="forbid"):
    """The parameters of Kick."""

    session: int


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser("run", help="serve clients: as ooodd.service, or in the foreground without systemd")
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"instead of {config.DEFAULT_PATH}")
    parser.add_argument("--listen", default="127.0.0.1:2002", metavar="HOST:PORT", help="in the foreground: where")
    parser.add_argument("--office", type=Path, default=_default_office(), metavar="DIR", help="in the foreground: the "
                        "office's program directory, that of soffice.bin (%(default)s)")  # fmt: skip
    add_runtime_directory(parser)
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    with asyncio.Runner(loop_factory=eager.new_event_loop) as runner:
        return runner.run(_run_as_service(options) if _under_systemd() else _run_in_foreground(options))


def _default_office() -> Path:
    """Return the same default as ooodd-worker@.service has."""
    return Path(os.environ.get("OOODD_OFFICE", _OFFICE))


def _under_systemd() -> bool:
    """Return whether this is ooodd.service: systemd passes it sockets, and a socket for notifications."""
    return "LISTEN_FDS" in os.environ or "NOTIFY_SOCKET" in os.environ


async def _run_as_service(options: argparse.Namespace) -> int:
    """Offices are units, the listeners come from systemd, messages go to the journal."""
    journal = SystemdJournal("info")
    notifier = SystemdNotifier()
    sockets: list[socket.socket] = []
    try:
        sockets, passed = listeners.from_systemd()
        lookup, passed = users.take(passed)
        store, left = fdstore.take_over(notifier, passed)
        try:
            settings = _load(options, store, len(read(left)[0]), journal)
            journal.set_level(settings.log.level)
            broker = partial(Broker, settings, journal=journal, notifier=notifier, store=store, users=lookup)
            await _serve_as_service(options, broker, journal, left, sockets)
        finally:
            store.close()
            lookup.close()
            for connection in chain(*left.values()):  # those that no broker has adopted; they stay in the store
                connection.close()
    except OooddError as error:
        journal.log(messages.BROKER_FAILED, error=error)
        if isinstance(error, ConfigError):
            listeners.refuse_waiting(sockets)
        return error.exit_status
    finally:
        for listener in sockets:
            listener.close()
        notifier.close()
        journal.close()
    return 0


async def _serve_as_service(
    options: argparse.Namespace,
    make_broker: Callable[..., Broker],
    journal: Journal,
    left: dict[str, list[socket.socket]],
    sockets: Sequence[socket.socket],
) -> None:
    """Go on with what an earlier broker left. All that can fail comes before: then it stays in the store."""
    supervisor = await UnitSupervisor.connect()
    supervisor.on_bus = partial(_report_bus, journal)
    try:
        broker = make_broker(supervisor=supervisor)
        async with _controlled(broker, options, supervisor) as control:
            await supervisor.stop_others(_ours(await supervisor.running()))
            running = _ours(await supervisor.running())  # nothing is awaited until they are the broker's
            broker.adopt(left, running)
            left.clear()  # the broker's to close from now on
            await control.serve()
            await broker.run(sockets, ends_unused=True)
    finally:
        await supervisor.close()


def _load(options: argparse.Namespace, store: FdStore, clients: int, journal: Journal) -> config.Config:
    """Return the configuration; if it can't be used and clients were left here, the one that was in force before."""
    try:
        return config.load(options.config)
    except ConfigError as error:
        before = config.from_json(store.marks.config) if clients else None
        if before is None:
            raise
        journal.log(messages.CONFIG_REFUSED, error=error, clients=clients)
        return before


def _ours(running: dict[int, Office]) -> dict[int, Office]:
    """Return those that a broker can have started; somebody may have started any by hand."""
    return {number: office for number, office in running.items() if 1 <= number <= MOST_WORKERS}


async def _run_in_foreground(options: argparse.Namespace) -> int:
    """Offices are child processes, messages go to stderr; no root, no systemd."""
    settings = config.load(options.config)
    listener = listeners.listen(options.listen)
    supervisor = ProcessSupervisor(options.office)
    supervisor.remove_leftovers()
    lookup = users.open_own()
    try:
        journal = StreamJournal(settings.log.level)
        broker = Broker(settings, supervisor, journal, NoNotifier(), NoFdStore(), lookup)
        async with _controlled(broker, options) as control:
            await control.serve()
            await broker.run([listener])
    finally:
        await supervisor.close()
        lookup.close()
        listener.close()
    return 0


@contextlib.asynccontextmanager
async def _controlled(
    broker: Broker, options: argparse.Namespace, units: UnitSupervisor | None = None
) -> AsyncIterator[ControlServer]:
    """Have the broker obey signals, and open the control socket, or raise `AdminError`. Serving it is the caller's."""
    loop = asyncio.get_running_loop()
    ending: set[asyncio.Task[None]] = set()
    control = ControlServer(runtime_directory(options, in_foreground=True), _Methods(broker, options).table())
    control.open()
    loop.add_signal_handler(signal.SIGTERM, lambda: ending.add(asyncio.create_task(_terminate(broker, units))))
    loop.add_signal_handler(signal.SIGINT, broker.end, End.STOP)
    try:
        yield control
    finally:
        await asyncio.gather(*ending, return_exceptions=True)
        await control.close()


class _Methods:
    """What the control socket can be asked for, see data/io.ooodd.varlink."""

    def __init__(self, broker: Broker, options: argparse.Namespace) -> None:
        self._broker = broker
        self._options = options

    def table(self) -> dict[str, Method]:
        """Return the methods by name."""
        broker, orders = self._broker, self._broker.orders
        return {
            "Status": Method(self._status),
            "Recycle": Method(self._recycle, _Recycle, acts=True),
            "Kick": Method(self._kick, _Kick, acts=True),
            "Pause": _act(orders.pause),
            "Resume": _act(orders.resume),
            "Drain": _act(lambda _: broker.end(End.DRAIN)),
            "Stop": _act(lambda _: broker.end(End.STOP)),
            "Reload": _act(lambda _: self._reload()),
            "Outdate": _act(lambda _: broker.outdate()),
        }

    def _status(self, _: Nothing, __: int) -> dict[str, Any]:
        broker, driver = self._broker, self._broker.driver
        statistics = driver.statistics.as_dict()
        return snapshot(broker.pool, driver.keeper, driver.clients, broker.config, broker.warnings, statistics)

    async def _recycle(self, asked: _Recycle, uid: int) -> dict[str, Any]:
        orders, pool = self._broker.orders, self._broker.pool
        before = orders.offices(pool.workers)
        numbers = orders.recycle(asked.worker, _who(uid))
        if asked.wait:
            old = {(number, office) for number, office in before.items() if number in numbers}
            await self._broker.until(lambda: old.isdisjoint(orders.offices(numbers).items()))
            await self._broker.until(lambda: not pool.count(State.STARTING, State.STOPPING))
        return {"workers": numbers}

    def _kick(self, asked: _Kick, uid: int) -> dict[str, Any]:
        return {"client": self._broker.orders.kick(asked.session, _who(uid))}

    def _reload(self) -> None:
        try:
            settings = config.load(self._options.config)
        except ConfigError as error:
            raise AdminError(f"{error}; the configuration before stays in force") from error
        self._broker.reload(settings)


def _act(work: Callable[[str], object]) -> Method:
    """Return a method that only does something, and is told who has called it."""

    def answer(_: Nothing, uid: int) -> dict[str, Any]:
        work(_who(uid))
        return {}

    return Method(answer, acts=True)


def _who(uid: int) -> str:
    return f"user {user_name(uid)}"


async def _terminate(broker: Broker, units: UnitSupervisor | None) -> None:
    """End as SIGTERM means it: systemd sends it to stop the service and to restart it, and only it knows which."""
    restarts = units is not None and await units.own_job() == "restart"
    broker.end(End.HAND_OVER if restarts else End.DRAIN)


def _report_bus(journal: Journal, why: str | None) -> None:
    if why is None:
        journal.log(messages.BUS_BACK)
    else:
        journal.log(messages.BUS_LOST, detail=why)
