# SPDX-License-Identifier: LGPL-2.1-or-later
"""The driver: carries out what the pool decides, and tells the pool what becomes of its workers.

What is logged, counted and marked of one event is done in one go, so that a kill hardly ever comes between.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, astuple
from functools import partial

from ooodd import messages
from ooodd.broker import refusals
from ooodd.broker.access import Access
from ooodd.broker.client import Client, Refused
from ooodd.broker.reclaimer import Reclaimer
from ooodd.broker.statistics import Statistics, word
from ooodd.config import Config
from ooodd.datapath.path import DataPath
from ooodd.errors import describe
from ooodd.journal import Journal
from ooodd.office.keeper import Keeper, Verdict
from ooodd.office.office import Office
from ooodd.office.supervisor import Supervisor
from ooodd.pool.actions import Action, Break, Lease, Probe, Reason, Reclaim, Refuse, Start, Stop
from ooodd.pool.pool import Look, Pool, State
from ooodd.systemd.fdstore import FdStore
from ooodd.systemd.users import Users, uid_of

_STOP_MESSAGES = {
    Reason.CRASHED: messages.WORKER_CRASHED,
    Reason.HUNG: messages.WORKER_HUNG,
    Reason.DIRTY: messages.WORKER_DIRTY,
}
# What is known of an office that has aborted.
_ABORTED = (
    "; it aborted, as LibreOffice 25.2 does when it reads a stream that the client implements: let the office have the "
    "stream (clients.md)"
)
# How long the pool waits for what offices say of their sessions, in seconds. They take a millisecond.
_LOOK_LIMIT = 0.1
# Reasons to stop a worker that are not worth a line: the broker's own lines tell.
_EXPECTED = frozenset(
    {Reason.ASKED, Reason.CLOSING, Reason.KICKED, Reason.NOT_NEEDED, Reason.OUTDATED, Reason.RECLAIMED}
)


class Driver:
    """Stands between the pool, which decides, and offices, clients, marks and journal. Implements `keeper.Events`.

    Its owner calls `close`.
    """

    def __init__(
        self, config: Config, pool: Pool, supervisor: Supervisor, journal: Journal, store: FdStore, users: Users
    ) -> None:
        """Take what it works on. Supervisor, store and users stay the caller's to close."""
        self.config = config
        self.pool = pool
        self.journal = journal
        self.store = store
        self.users = users
        self.access = Access.configured(config)
        self.keeper = Keeper(supervisor, self, config.pool.start_timeout, config.pool.probe_timeout)
        self.keeper.preload = config.pool.preload
        self.keeper.is_awaited = lambda: bool(pool.queue)
        self.clients: dict[int, Client] = {}
        self.statistics = Statistics()
        self._reclaimer = Reclaimer(pool.reclaiming, self.keeper.is_clean, partial(self.do, ()))
        # Whether the broker hands over: a session that begins now is forwarded by the next one.
        self.frozen = False
        # Called after each event of the pool.
        self.changed: Callable[[], None] = lambda: None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._closed = False
        # Whether it has been said that sessions are forwarded though they were to be handed off.
        self._told_of_forwarding = False
        # Whether it has been said that dpkg keeps offices from starting.
        self._held_up = False

    def configure(self, config: Config) -> None:
        """Use another configuration. The pool has its own event for that."""
        self.config = config
        self.access = Access.configured(config)
        self.keeper.start_timeout = config.pool.start_timeout
        self.keeper.probe_timeout = config.pool.probe_timeout
        self.keeper.preload = config.pool.preload

    def stop(self) -> None:
        """Carry out nothing any more. The next broker decides anew."""
        self._closed = True
        self._reclaimer.stop()
        self.keeper.ignore_losses()
        if self._timer is not None:
            self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()

    async def close(self) -> None:
        """Stop, and cancel what is under way for workers."""
        self.stop()
        await self._reclaimer.close()
        await self.keeper.close()

    def survive(self, where: str, error: Exception) -> None:
        """Report an error of ooodd itself, with all that helps to find it. Only what it happened to ends by it."""
        self.journal.log(messages.INTERNAL_ERROR, where=where, error=describe(error))
        self._loop.default_exception_handler({"message": where, "exception": error})

    # What the pool decides

    def do(self, actions: Iterable[Action]) -> None:
        """Carry out the actions of one event, in order. An error in one leaves none of the others undone."""
        if self._closed:
            return
        for action in actions:
            try:
                self._carry_out(action)
            except Exception as error:  # noqa: BLE001 - a bug, and no reason to leave the others undone
                self.survive(str(action), error)
        self._save_totals()
        is_full = self.pool.workers.leased >= self.config.pool.workers
        self.statistics.look(len(self.pool.queue), is_full=is_full)
        self._set_timer()
        self.changed()

    def _carry_out(self, action: Action) -> None:
        match action:
            case Start(number):
                self.keeper.start(number)
            case Stop(number, reason, detail):
                self._stop(number, reason, detail)
            case Probe(number):
                self.keeper.probe(number)
            case Lease(number, session):
                self._lease(number, session)
            case Break(_, session):
                self._break(self.clients[session])
            case Reclaim(number, session):
                self._reclaim(number, self.clients[session])
            case Refuse(session, reason):
                self._refuse(self.clients[session], reason)

    def _lease(self, number: int, session: int) -> None:
        self.mark(number)
        self.clients[session].turn.decide(Lease(number, session))

    def _stop(self, number: int, reason: Reason, detail: str) -> None:
        if reason is Reason.NOT_STARTED:
            self.journal.log(messages.WORKER_NOT_STARTED, worker=number, detail=detail)
        elif reason not in _EXPECTED:
            message = _STOP_MESSAGES.get(reason, messages.WORKER_RECYCLED)
            hint = _ABORTED if reason is Reason.CRASHED and "signal 6" in detail else ""
            self.journal.log(message, worker=number, reason=word(reason), detail=f"{detail or reason}{hint}")
        self.statistics.stopped[word(reason)] += 1
        self._save_totals()
        self.store.marks.slot(number).stopping = True
        self.keeper.stop(number)

    def _break(self, client: Client) -> None:
        if client.tenure is None:  # it has a lease that it has not taken up; `session` queues it again
            self.pool.totals.uncount_session()
            return
        self.forget(client)  # no other broker can go on with it
        client.tenure.path.office_lost()

    def _reclaim(self, number: int, client: Client) -> None:
        if client.path is None:  # it has a lease that it has not taken up, or its session has just ended
            self.pool.reclaiming.spare(client.session, time.monotonic())
        else:
            self._reclaimer.begin(client.session, number, client.connection, client.path)

    def _refuse(self, client: Client, reason: Reason) -> None:
        text = refusals.text(
            reason,
            paused=self.pool.queue.paused,
            workers=self.config.pool.workers,
            queued=len(self.pool.queue),
            host=client.peer.host,
            owner=client.user or client.peer.host,
            max_per_host=self.config.queue.max_per_host,
            max_per_user=self.config.queue.max_per_user,
            objection=client.objection,
            timeout=self.config.queue.timeout,
            start_error=self.pool.start_error,
        )
        self.journal.log(
            messages.CLIENT_REFUSED,
            session=client.session,
            client=client.peer.name,
            user=uid_of(client.user),
            wait=client.seconds,
            reason=word(reason),
            text=text,
        )
        self.statistics.refused[word(reason)] += 1
        client.turn.decide(Refused(text))

    def way_to(self, number: int) -> socket.socket:
        """Return a connection to the worker's office for a session: a control connection where it is to be handed off.

        Raises `WorkerLostError` and `NoDescriptorError`.
        """
        office, mode = self.keeper.office(number), self.config.data_path.mode
        if mode != "forward" and (connection := office.control()) is not None:
            return connection
        if mode == "handoff" and not self._told_of_forwarding:
            self._told_of_forwarding = True
            self.journal.log(messages.OFFICE_TAKES_NO_SOCKET, worker=number)
        return office.connect()

    # What becomes of the workers

    def worker_ready(self, number: int, office: Office) -> None:
        """Take the worker into service."""
        self._held_up = self._held_up and bool(self.keeper.packages.unpacking())
        now = time.monotonic()
        duration = now - self.pool.workers[number].since
        self.journal.log(messages.WORKER_READY, worker=number, pid=office.pid, duration=duration)
        actions = self.pool.ready(number, now)
        self.mark(number)
        self.do(actions)

    def worker_not_started(self, number: int, detail: str) -> None:
        """Have the pool back off from the worker."""
        self.do(self.pool.not_started(number, time.monotonic(), f"{detail}{_see(self.keeper.journal(number))}"))

    def worker_held_up(self, number: int, package: str) -> None:
        """Say so once for all workers."""
        if not self._held_up:
            self._held_up = True
            self.journal.log(messages.OFFICE_UNPACKED, worker=number, package=package)

    def worker_probed(self, number: int, verdict: Verdict) -> None:
        """Have the pool keep or replace the worker."""
        self.do(self.pool.probed(number, time.monotonic(), **asdict(verdict)))

    def worker_lost(self, number: int, reason: Reason, detail: str) -> None:
        """Have the pool replace the worker."""
        if self.pool.workers[number].state is State.STARTING:
            detail = f"{detail}{_see(self.keeper.journal(number))}"
        self.do(self.pool.lost(number, time.monotonic(), reason, detail))

    def worker_stopped(self, number: int) -> None:
        """Have the pool start the worker again if it is needed."""
        self.store.marks.slot(number).clear()
        self.do(self.pool.stopped(number, time.monotonic()))

    def worker_not_preloaded(self, number: int, detail: str) -> None:
        """Report it."""
        self.journal.log(messages.OFFICE_NOT_PRELOADED, worker=number, detail=detail)

    def worker_not_stopped(self, number: int, detail: str) -> None:
        """Report it. The next start ends what is left."""
        self.journal.log(messages.WORKER_NOT_STOPPED, worker=number, detail=detail)

    # What the next broker has to know

    def keep(self, client: Client, name: str, *connections: socket.socket) -> None:
        """Keep connections of a client in the store, which are not kept yet."""
        client.kept.append(name)
        self.store.keep(name, *connections)

    def forget(self, client: Client) -> None:
        """Keep nothing of a client any more; that to its office goes first, see `adoption`."""
        while client.kept:
            self.store.drop(client.kept[-1])
            client.kept.pop()

    def mark(self, number: int) -> None:
        """Note what the next broker has to know of a worker whose office runs."""
        worker, slot = self.pool.workers[number], self.store.marks.slot(number)
        self._save_totals()  # if it has a client, that was counted
        slot.lease(worker.client or 0)
        slot.pid = self.keeper.office(number).pid
        slot.uses, slot.max_uses, slot.started = worker.uses, worker.max_uses, worker.started

    def _save_totals(self) -> None:
        self.store.marks.totals = astuple(self.pool.totals)

    # What is due

    def _set_timer(self) -> None:
        """Call the pool's `tick` when it has something to do."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (deadline := self.pool.deadline) is not None:
            self._timer = self._loop.call_later(max(0.0, deadline - time.monotonic()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._looking is not None:
            return
        paths = self._paths()
        if unseen := [path for path in paths.values() if not path.reads_client]:
            self._looking = asyncio.create_task(self._look_and_tick(unseen), name="look at the sessions")
        else:
            self._tick_now(paths)

    async def _look_and_tick(self, paths: Iterable[DataPath]) -> None:
        """Have the offices say what becomes of their sessions, before the pool decides by that."""
        looks = [asyncio.create_task(path.look()) for path in paths]
        try:
            await asyncio.wait(looks, timeout=_LOOK_LIMIT)
        finally:
            for look in looks:
                look.cancel()
            self._looking = None
        self._tick_now(self._paths())  # others may have come meanwhile

    def _tick_now(self, paths: Mapping[int, DataPath]) -> None:
        looks = {session: Look(path.quiet_since, path.process) for session, path in paths.items()}
        self.do(self.pool.tick(time.monotonic(), looks))

    def _paths(self) -> dict[int, DataPath]:
        """Return the data paths of the sessions that have a worker."""
        holders = [
            self.clients[worker.client] for worker in self.pool.workers.values() if worker.client in self.clients
        ]
        return {client.session: client.path for client in holders if client.path is not None}


def _see(command: str) -> str:
    """Return where to find more, as the end of a message."""
    return f"; details: {command}" if command else ""
