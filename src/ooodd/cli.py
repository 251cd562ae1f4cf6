# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one command, ooodd(8): run, status, stop, drain, check-config, convert."""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from ooodd import __version__, config, messages
from ooodd.broker.access import Access
from ooodd.broker.broker import Broker, End
from ooodd.broker.kept import read
from ooodd.control.client import ask
from ooodd.control.server import ControlServer
from ooodd.control.status import snapshot
from ooodd.control.table import table
from ooodd.convert.plan import parse_format, plan
from ooodd.convert.run import Settings, convert
from ooodd.datapath import eager
from ooodd.errors import AdminError, ConfigError, OooddError, UsageError
from ooodd.journal import Journal, StreamJournal, SystemdJournal
from ooodd.office.office import Office
from ooodd.office.processes import ProcessSupervisor
from ooodd.office.profile import check_site_settings, make_profile
from ooodd.office.units import UnitSupervisor
from ooodd.systemd import fdstore, listeners, users
from ooodd.systemd.fdstore import FdStore, NoFdStore
from ooodd.systemd.marks import MOST_WORKERS
from ooodd.systemd.notify import NoNotifier, SystemdNotifier
from ooodd.systemd.socketfailure import socket_failure

_SYSTEM_RUNTIME_DIRECTORY = Path("/run/ooodd")
_OFFICE = Path("/usr/lib/libreoffice/program")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 1 for what went wrong, 2 for usage, 78 for configuration."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except OooddError as error:
        print(f"ooodd: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:  # of `ooodd status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ooodd", description="A pool of LibreOffice workers behind one UNO port.")
    parser.add_argument("--version", action="version", version=f"ooodd {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="serve clients: as ooodd.service, or in the foreground without systemd")
    run.add_argument("--config", type=Path, metavar="FILE", help=f"instead of {config.DEFAULT_PATH}")
    run.add_argument("--listen", default="127.0.0.1:2002", metavar="HOST:PORT", help="in the foreground: where")
    run.add_argument("--office", type=Path, default=_default_office(), metavar="DIR", help="in the foreground: the "
                     "office's program directory, that of soffice.bin (%(default)s)")  # fmt: skip
    run.set_defaults(command=_run)

    status = commands.add_parser("status", help="show workers, queue and totals")
    status.add_argument("--json", action="store_true", help="for programs")
    status.set_defaults(command=_status)

    stop = commands.add_parser("stop", help="end the running broker with its sessions and offices, at once")
    stop.set_defaults(command=_stop)

    drain = commands.add_parser("drain", help="end the running broker and its offices when the last session has ended")
    drain.set_defaults(command=_drain)

    _add_convert(commands)

    check = commands.add_parser("check-config", help="say whether the configuration can be used")
    check.add_argument("file", type=Path, nargs="?", help=f"instead of {config.DEFAULT_PATH}")
    check.set_defaults(command=_check_config)

    # For start-office and ooodd-profile.service, without help.
    make = commands.add_parser("make-profile")
    make.add_argument("target", type=Path)
    make.add_argument("program", type=Path)
    make.set_defaults(command=_make_profile)

    # For dpkg's trigger, without help.
    outdate = commands.add_parser("outdate")
    outdate.set_defaults(command=_outdate)

    # For ExecReload= of ooodd.service and for ooodd-socket-failed.service, so without help.
    reload = commands.add_parser("reload")
    reload.set_defaults(command=_reload)
    commands.add_parser("explain-socket-failure").set_defaults(command=_explain_socket_failure)

    for command in (run, status, stop, drain, reload, outdate):
        command.add_argument("--runtime-directory", type=Path, metavar="DIR", default=None, help="where the control "
                             "socket is (/run/ooodd, or one of your own in the foreground)")  # fmt: skip
    return parser


def _add_convert(commands: Any) -> None:  # noqa: ANN401 - argparse's type for it has no public name
    parser = commands.add_parser("convert", help="convert documents through the port")
    parser.add_argument("files", nargs="+", metavar="FILE", help='a document, or "-" for standard input')
    parser.add_argument("-f", "--format", default="pdf", metavar="FORMAT", help="the extension of the new files, or "
                        "EXTENSION:FILTER (%(default)s)")  # fmt: skip
    parser.add_argument("-o", "--output", metavar="PATH", help='a directory, the file for a single document, or "-" '
                        "for standard output; by default beside each document")  # fmt: skip
    parser.add_argument("--filter-options", default="", metavar="TEXT", help="FilterOptions of the export filter")
    parser.add_argument("--password-file", type=Path, metavar="FILE", help="the documents' password is its first line")
    parser.add_argument("-j", "--jobs", type=int, metavar="N", help="how many at once (as many as there are workers)")
    parser.add_argument("--timeout", metavar="TIME", help='how long each may take, e.g. "5min" (no limit)')
    parser.add_argument("--address", default=os.environ.get("OOODD_ADDRESS", "127.0.0.1:2002"), metavar="HOST:PORT",
                        help="where ooodd listens (%(default)s; OOODD_ADDRESS)")  # fmt: skip
    parser.add_argument("--runtime-directory", type=Path, default=None, help=argparse.SUPPRESS)
    parser.set_defaults(command=_convert)


def _convert(options: argparse.Namespace) -> int:
    wanted = parse_format(options.format)
    jobs = plan(options.files, options.output, wanted)
    host, _, port = options.address.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f'"{options.address}" is no address', "give HOST:PORT, e.g. 127.0.0.1:2002")
    try:
        password = options.password_file.read_text().partition("\n")[0] if options.password_file else ""
        timeout = config.parse_duration(options.timeout) if options.timeout else None
    except OSError as error:
        raise UsageError(f"{options.password_file}: {error.strerror}", "name a readable file") from error
    except ValueError as error:
        raise UsageError(f"--timeout: {error}") from error
    return convert(
        jobs,
        Settings(
            address=f"socket,host={host.strip('[]')},port={port},tcpNoDelay=1",
            extension=wanted.extension,
            filter=wanted.filter,
            filter_options=options.filter_options,
            password=password,
            lanes=options.jobs or _workers(options),
            timeout=timeout,
        ),
    )


def _workers(options: argparse.Namespace) -> int:
    """Return how many workers the pool has. Who may not ask it assumes the default."""
    try:
        return int(ask(_runtime_directory(options), "status")["config"]["pool"]["workers"])
    except OooddError:
        return config.Config().pool.workers


def _run(options: argparse.Namespace) -> int:
    with asyncio.Runner(loop_factory=eager.new_event_loop) as runner:
        return runner.run(_run_as_service(options) if _under_systemd() else _run_in_foreground(options))


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
    control = ControlServer(_runtime_directory(options), _commands(broker, options))
    control.open()
    loop.add_signal_handler(signal.SIGTERM, lambda: ending.add(asyncio.create_task(_terminate(broker, units))))
    loop.add_signal_handler(signal.SIGINT, broker.end, End.STOP)
    try:
        yield control
    finally:
        await asyncio.gather(*ending, return_exceptions=True)
        await control.close()


def _commands(broker: Broker, options: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what the control socket can be asked for."""
    driver = broker.driver

    def end(how: End) -> dict[str, Any]:
        broker.end(how)
        return {"done": True}

    def outdate() -> dict[str, Any]:
        broker.outdate()
        return {"done": True}

    def reload() -> dict[str, Any]:
        try:
            settings = config.load(options.config)
        except ConfigError as error:
            raise AdminError(f"{error}; the configuration before stays in force") from error
        broker.reload(settings)
        return {"done": True}

    return {
        "status": lambda: snapshot(broker.pool, driver.keeper, driver.clients, broker.config, broker.warnings),
        "stop": partial(end, End.STOP),
        "drain": partial(end, End.DRAIN),
        "reload": reload,
        "outdate": outdate,
    }


async def _terminate(broker: Broker, units: UnitSupervisor | None) -> None:
    """End as SIGTERM means it: systemd sends it to stop the service and to restart it, and only it knows which."""
    restarts = units is not None and await units.own_job() == "restart"
    broker.end(End.HAND_OVER if restarts else End.DRAIN)


def _report_bus(journal: Journal, why: str | None) -> None:
    if why is None:
        journal.log(messages.BUS_BACK)
    else:
        journal.log(messages.BUS_LOST, detail=why)


def _status(options: argparse.Namespace) -> int:
    answer = ask(_runtime_directory(options), "status")
    print(json.dumps(answer, indent=2) if options.json else table(answer))
    return 0


def _stop(options: argparse.Namespace) -> int:
    ask(_runtime_directory(options), "stop")
    print("ooodd stops. Where ooodd.socket is active, the next client starts it again (systemctl stop ooodd.socket).")
    return 0


def _drain(options: argparse.Namespace) -> int:
    ask(_runtime_directory(options), "drain")
    print("ooodd ends when the last session has, or after [session] drain_timeout; new clients wait in the socket.")
    return 0


def _reload(options: argparse.Namespace) -> int:
    ask(_runtime_directory(options), "reload")
    return 0


def _outdate(options: argparse.Namespace) -> int:
    ask(_runtime_directory(options), "outdate")
    return 0


def _check_config(options: argparse.Namespace) -> int:
    path = options.file
    access = Access.configured(config.load(path))
    if path is None:
        check_site_settings()
    for line in access.unknown():
        print(f"ooodd: {path or config.DEFAULT_PATH}: {line}", file=sys.stderr)
    absent = path is None and not config.DEFAULT_PATH.exists()
    print(f"{path or config.DEFAULT_PATH}: {'absent, so all defaults' if absent else 'ok'}")
    return 0


def _make_profile(options: argparse.Namespace) -> int:
    if report := make_profile(options.target, options.program):
        print(f"<5>{report}", file=sys.stderr)
    return 0


def _explain_socket_failure(_: argparse.Namespace) -> int:
    with contextlib.closing(SystemdJournal("info")) as journal:
        journal.log(messages.SOCKET_FAILED, **asyncio.run(socket_failure()))
    return 0


def _runtime_directory(options: argparse.Namespace) -> Path:
    """Return where the control socket is: as asked, as systemd says, or in the user's own runtime directory."""
    if options.runtime_directory is not None:
        return Path(options.runtime_directory)
    if "RUNTIME_DIRECTORY" in os.environ:  # RuntimeDirectory= of ooodd.service; its first is ours
        return Path(os.environ["RUNTIME_DIRECTORY"].split(":")[0])
    own = Path(os.environ.get("XDG_RUNTIME_DIR", tempfile.gettempdir())) / f"ooodd-{os.getuid()}"
    in_foreground = options.command is _run
    return own if in_foreground or not _SYSTEM_RUNTIME_DIRECTORY.exists() else _SYSTEM_RUNTIME_DIRECTORY


def _default_office() -> Path:
    """Return the same default as ooodd-worker@.service has."""
    return Path(os.environ.get("OOODD_OFFICE", _OFFICE))
