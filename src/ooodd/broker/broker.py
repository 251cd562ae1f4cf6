# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker: the life of the service, from the adoption of what an earlier broker left to an orderly end.

`session` is the life of one client. `pool` decides about workers and queue, and `driver` carries that out. Everything
runs on one event loop. Whatever one client does, and whatever fails for it, ends no more than its own session.

What has to outlive the broker is in systemd's fd store: the connections of clients that are queued or have a session,
and a few marks about each worker.
"""

import asyncio
import contextlib
import os
import random
import resource
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import partial

from ooodd import __version__, messages
from ooodd.broker.access import exposed
from ooodd.broker.adoption import Adoption
from ooodd.broker.bound import Bound
from ooodd.broker.client import Client, Phase
from ooodd.broker.driver import Driver
from ooodd.broker.hangups import Hangups
from ooodd.broker.orders import Orders
from ooodd.broker.session import MOST_KEPT, Session, session_limits
from ooodd.config import Config
from ooodd.datapath.forward import LINGER_LIMIT
from ooodd.journal import Journal
from ooodd.office.office import Office
from ooodd.office.supervisor import Supervisor
from ooodd.pool.actions import Reason
from ooodd.pool.pool import Limits, Pool, State, Totals
from ooodd.systemd import listeners
from ooodd.systemd.fdstore import FdStore
from ooodd.systemd.listeners import Acceptor
from ooodd.systemd.notify import Notifier, Reporter
from ooodd.systemd.peer import Peer
from ooodd.systemd.users import Users

# More silent connections than these are port checks or an attack: the oldest is closed. With many connections at once
# the kernel does without DeferAcceptSec= and sends cookies (tcp_max_syn_backlog): 900 of 5,000 came unheard.
_MOST_SILENT = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
# Refused clients that have not closed yet, thousands if a crowd comes at once. Each goes within seconds.
_MOST_REFUSED = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4
# How long a restarting broker may take to pass on what it holds, in seconds.
_FREEZE_LIMIT = 2.0
# What systemd is asked to wait beyond the time for which sessions may go on, in seconds.
_STOP_LIMIT = 20.0


class End(StrEnum):
    """How a broker ends."""

    # Sessions may end by themselves for a while; new clients wait in the socket.
    DRAIN = "drain"
    # Everything ends at once.
    STOP = "stop"
    # Sessions, queued clients and offices are the next broker's.
    HAND_OVER = "hand over"


class Broker:
    """Serves UNO clients from a pool of offices."""

    def __init__(
        self,
        config: Config,
        supervisor: Supervisor,
        journal: Journal,
        notifier: Notifier,
        store: FdStore,
        users: Users | None = None,
    ) -> None:
        """Prepare; `run` does it. Supervisor, store and users stay the caller's to close."""
        self.config = config
        self.pool = Pool(_limits(config), random.Random(), Totals(*store.marks.totals))  # noqa: S311 - no secret
        self.driver = Driver(config, self.pool, supervisor, journal, store, users or Users())
        self.driver.changed = self._pool_changed
        self.orders = Orders(self.driver)
        self._journal = journal
        self._store = store
        self._store.marks.config = config.as_json()
        self._reporter = Reporter(notifier, self.status_line)
        self._hangups = Hangups()
        self._silent = Bound(_MOST_SILENT, self._report_silent)
        self._refused = Bound(_MOST_REFUSED, self._report_refused)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._acceptor = Acceptor(journal, self._accept)
        self._listeners: Sequence[socket.socket] = ()
        self._end: End | None = None
        # Whether a client whose task is cancelled is this broker's to end. Else it is the next one's.
        self._serving = False
        self._ends_unused = False
        self._news = asyncio.Event()

    @property
    def warnings(self) -> list[str]:
        """What an administrator should know, for `ooodd status`."""
        names = exposed(self._listeners, self.config)
        return [messages.LISTENER_EXPOSED.text.format(listeners=", ".join(names))] if names else []

    def status_line(self) -> str:
        """Return the line that systemctl status shows."""
        if self.pool.cannot_start:
            return f"no office can be started: {self.pool.cannot_start}"
        failed = self.pool.count(State.FAILED)
        advice = ": journalctl -u ooodd" if failed else ""
        workers, queued = self.config.pool.workers, len(self.pool.queue)
        paused = "paused: " if self.pool.queue.paused else ""
        return f"{paused}{self.pool.count(State.BUSY)} of {workers} busy, {queued} queued, {failed} failed{advice}"

    # The life of the service

    def adopt(self, left: Mapping[str, Sequence[socket.socket]], running: Mapping[int, Office]) -> None:
        """Take over, before `run`, what the store has kept, which is the broker's to close from now on, and offices."""
        self._hangups.open()
        driver = self.driver
        adoption = Adoption(
            self.pool, driver.keeper, self._store, driver.users, self._journal, session_limits(self.config)
        )
        adoption.take_over(left, running)
        sessions = [self._session(client) for client in adoption.clients]
        self.driver.do(adoption.actions)
        for session in sessions:
            session.resume()
            self._serve(session)

    async def run(self, sockets: Sequence[socket.socket], *, ends_unused: bool = False) -> None:
        """Serve the listeners until `end`; with `ends_unused` also until nothing runs and no client comes any more.

        An error, or cancellation, leaves sessions, queued clients and offices to the next broker.
        """
        self._ends_unused = ends_unused
        try:
            self._serving = True
            self._hangups.open()
            self.driver.do(self.pool.open(time.monotonic()))
            self._acceptor.accept_from(sockets)
            self._listeners = sockets
            names = ", ".join(map(listeners.name, sockets))
            workers = self.config.pool.workers
            self._journal.log(messages.BROKER_READY, version=__version__, listeners=names, workers=workers)
            self._warn()
            self._reporter.ready()
            await self.until(lambda: self._end is not None)
            await self._wind_up()
        finally:
            await self._close()

    def end(self, how: End) -> None:
        """Have `run` end. Nothing but STOP can follow, and that only on DRAIN."""
        if self._end is None or (how is End.STOP and self._end is End.DRAIN):
            self._end = how
            self._news.set()

    def reload(self, config: Config) -> None:
        """Use another configuration from now on. No session, no queued client and no office in use is touched."""
        self.config = config
        self.driver.configure(config)
        self._store.marks.config = config.as_json()
        self._journal.set_level(config.log.level)
        self._journal.log(messages.BROKER_RELOADED, workers=config.pool.workers)
        self._warn()
        self.driver.do(self.pool.reconfigure(_limits(config), time.monotonic()))

    def outdate(self) -> None:
        """Replace all offices, since another LibreOffice has been installed; those with a session after it."""
        idle, busy = self.pool.count(State.STARTING, State.IDLE), self.pool.count(State.BUSY)
        self._journal.log(messages.OFFICE_CHANGED, idle=idle, busy=busy)
        self.driver.do(self.pool.recycle(self.pool.workers, time.monotonic(), Reason.OUTDATED))

    def _warn(self) -> None:
        """Warn of what the configuration asks for and will not get."""
        if names := exposed(self._listeners, self.config):
            self._journal.log(messages.LISTENER_EXPOSED, listeners=", ".join(names))
        most = self.config.queue.max_clients
        if most > MOST_KEPT:
            self._journal.log(messages.QUEUE_BEYOND_STORE, max_clients=most, kept=MOST_KEPT)

    async def _wind_up(self) -> None:
        """End as asked. New clients wait in the socket from now on."""
        self._acceptor.accept_from([])
        self._silent.hang_up()  # but those who have just spoken: they go on to the queue
        if self._end is End.HAND_OVER:
            await self._hand_over()
            return
        draining = self._end is not End.STOP
        seconds = self.config.session.drain_timeout if draining else 0.0
        self._reporter.stopping()
        self._reporter.extend(seconds + _STOP_LIMIT)
        sessions, queued = self.pool.count(State.BUSY), len(self.pool.queue)
        self._journal.log(messages.BROKER_STOPPING, sessions=sessions, queued=queued, seconds=seconds)
        if draining:
            self.driver.do(self.pool.drain(time.monotonic()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.until(lambda: self.pool.drained or self._end is End.STOP)
        self.driver.do(self.pool.close(time.monotonic()))
        await self.until(lambda: self.pool.closed)
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=LINGER_LIMIT)

    async def _hand_over(self) -> None:
        """Leave all to the next broker, with no byte of a session in memory, and no refused client without its text."""
        self.driver.frozen = True
        sessions, queued = self.pool.count(State.BUSY), len(self.pool.queue)
        self._journal.log(messages.BROKER_HANDS_OVER, sessions=sessions, queued=queued)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FREEZE_LIMIT):
                while len(self._silent):  # noqa: ASYNC110 - they have spoken, so the loop's next turn takes them on
                    await asyncio.sleep(0)
                self._refuse_unkept()
                paths = [client.path for client in self.driver.clients.values() if client.path is not None]
                await asyncio.gather(*(path.freeze() for path in paths))
                while refused := self._being_refused():
                    await asyncio.wait(refused)

    def _refuse_unkept(self) -> None:
        """Refuse the queued clients that are not in the store, so that the next broker can't go on with them."""
        for client in list(self.driver.clients.values()):
            if client.phase is Phase.QUEUED and client.turn.decision is None and not client.kept:
                self.driver.do(self.pool.turn_away(client.session, Reason.CLOSING))

    def _being_refused(self) -> list["asyncio.Task[None]"]:
        """Return the tasks of the clients that are refused, also of those whose task has not come to it."""
        clients = self.driver.clients.values()
        return [self._tasks[client.session] for client in clients if client.is_refused]

    async def _close(self) -> None:
        """Leave nothing on the loop. What has not ended yet is the next broker's."""
        self._serving = self._end in (End.DRAIN, End.STOP)
        self._acceptor.accept_from([])
        self.driver.stop()  # before anything is awaited: no client that goes now gets a worker, or is refused
        self._hangups.close()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self.driver.close()
        self._reporter.close()

    # Clients

    def _accept(self, connection: socket.socket, peer: Peer) -> None:
        """Take a new client. Until it is kept in the store, a mark tells the next broker of it."""
        marks = self._store.marks
        number = marks.last_session = marks.last_session + 1
        marks.accepted = number, peer.name  # first of all: until then nobody else knows of it
        listeners.set_options(connection)
        session = self._session(Client(number, connection, peer, time.monotonic()))
        try:
            session.begin()
        except Exception as error:  # noqa: BLE001 - a bug: it ends this session and nothing else
            self.driver.survive(f"session {number}", error)
            session.end()
            del self.driver.clients[number]
        else:
            self._serve(session)
        marks.accepted = 0, ""

    def _session(self, client: Client) -> Session:
        self.driver.clients[client.session] = client
        return Session(client, self.driver, self._hangups, self._silent, self._refused)

    def _serve(self, session: Session) -> None:
        """Serve a client in a task of its own."""
        number = session.client.session
        task = self._tasks[number] = asyncio.create_task(self._guard(session), name=f"session {number}")
        task.add_done_callback(partial(self._served, session))

    async def _guard(self, session: Session) -> None:
        """Serve a client. A bug ends its session and nothing else."""
        try:
            await session.run()
        except Exception as error:  # noqa: BLE001 - see above
            self.driver.survive(f"session {session.client.session}", error)

    def _served(self, session: Session, task: "asyncio.Task[None]") -> None:
        """Close a client whose life is over; or just its descriptors, if the next broker goes on with it."""
        number = session.client.session
        del self._tasks[number]
        if self._serving or not (task.cancelled() or task.exception()):  # _guard lets no exception out but SystemExit
            session.end()
        else:
            session.hand_over()
        del self.driver.clients[number]
        self._end_if_unused()

    def _report_silent(self, client: Client) -> None:
        name, seconds = client.peer.name, client.seconds
        self._journal.log(messages.CLIENT_SILENT, client=name, seconds=seconds, limit=_MOST_SILENT)

    def _report_refused(self, client: Client) -> None:
        name, seconds = client.peer.name, client.seconds
        self._journal.log(messages.CLIENT_GAVE_NO_END, client=name, seconds=seconds, limit=_MOST_REFUSED)

    # What the life of the service is made of

    def _pool_changed(self) -> None:
        self._reporter.changed()
        self._end_if_unused()
        self._news.set()

    def _end_if_unused(self) -> None:
        if self._ends_unused and self.pool.unused and not self.driver.clients and self._end is None:
            self._journal.log(messages.BROKER_UNUSED, seconds=self.config.pool.idle_timeout)
            self.end(End.STOP)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until it holds. What may change that sets `_news`."""
        while not holds():
            self._news.clear()
            await self._news.wait()


def _limits(config: Config) -> Limits:
    """Return what the configuration says of pool and queue."""
    pool, queue = config.pool, config.queue
    return Limits(
        workers=pool.workers,
        min_workers=pool.min_workers,
        spare_workers=pool.spare_workers,
        max_uses=pool.max_uses,
        max_uses_jitter=pool.max_uses_jitter,
        max_age=pool.max_age,
        max_memory=pool.max_memory,
        idle_timeout=pool.idle_timeout,
        probe_interval=pool.probe_interval,
        max_clients=queue.max_clients,
        max_per_host=queue.max_per_host,
        max_per_user=queue.max_per_user,
        queue_timeout=queue.timeout,
        reclaim_after=config.session.reclaim_after,
        starts=os.cpu_count() or 1,
    )
