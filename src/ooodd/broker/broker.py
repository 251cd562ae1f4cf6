# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker: accept, admit, queue, lease, forward, inspect, release.

`Broker._serve` is the life of one client from top to bottom. What to decide about workers and queue is the pool's:
the broker tells it what happened and carries out what it answers. Everything runs on one event loop. Nothing that one
client does, and nothing that fails for it, ends more than its own session.

What has to outlive the broker is in its store: the sockets of whoever waits or has a session, and a few marks about
each worker. Nothing else does, and nothing is read from a client's socket before it can be passed on, so a broker that
is killed is followed by one that goes on where it was.
"""

import asyncio
import contextlib
import os
import random
import resource
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple
from enum import StrEnum
from functools import partial

from ooodd import __version__, messages
from ooodd.broker.adoption import Adoption
from ooodd.broker.client import Client
from ooodd.broker.hangups import Departures
from ooodd.config import Config
from ooodd.datapath.forward import LINGER_LIMIT, Ended, Forwarding, Holding, SessionLimits, Side
from ooodd.errors import NoDescriptorError, WorkerLostError, describe
from ooodd.journal import Journal
from ooodd.office.keeper import Keeper, Verdict
from ooodd.office.office import Office
from ooodd.office.supervisor import Supervisor
from ooodd.pool.actions import Action, Break, Lease, Probe, Reason, Refuse, Start, Stop
from ooodd.pool.admission import Waiting
from ooodd.pool.pool import Limits, Pool, State, Totals
from ooodd.systemd import listeners
from ooodd.systemd.fdstore import Store
from ooodd.systemd.listeners import Acceptor, Peer
from ooodd.systemd.notify import Notifier, Reporter
from ooodd.uno.urp import OPENING_SIZE, is_opening

# Connections that have not said anything. More than these are port checks or an attack: the longest silent one goes.
# In a crowd the kernel leaves DeferAcceptSec= off and sends cookies (tcp_max_syn_backlog): 900 of 5,000 came unheard.
_MOST_SILENT = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
# So many waiting clients outlive the broker. Each costs systemd a comparison with all that it keeps already.
_MOST_KEPT = 1500
# How long an office that can't be reached any more may take to exit before it is stopped, in seconds.
_EXIT_LIMIT = 0.5
# An office whose session did not end in order is recycled in any case; so long it is asked whether it hangs.
_DIAGNOSIS_LIMIT = 0.4
# How long a client may take to hear why it is refused, and a restarting broker to pass on what it holds, in seconds.
_REFUSAL_LIMIT = 5.0
_FREEZE_LIMIT = 2.0
# What systemd is asked to wait beyond the time for which sessions may go on, in seconds.
_STOP_LIMIT = 20.0

_STOP_MESSAGES = {
    Reason.CRASHED: messages.WORKER_CRASHED,
    Reason.HUNG: messages.WORKER_HUNG,
    Reason.DIRTY: messages.WORKER_DIRTY,
}


class End(StrEnum):
    """How a broker ends."""

    # Sessions may end by themselves for a while; new clients wait in the socket.
    DRAIN = "drain"
    # Everything at once.
    STOP = "stop"
    # Sessions, waiting clients and offices are the next broker's.
    HAND_OVER = "hand over"


class Broker:
    """Serves UNO clients from a pool of offices. Implements `worker.Events`."""

    def __init__(
        self, config: Config, supervisor: Supervisor, journal: Journal, notifier: Notifier, store: Store
    ) -> None:
        """Prepare; `run` does it. Supervisor and store stay the caller's to close."""
        self.config = config
        store.marks.config = config.as_json()
        self.pool = Pool(_limits(config), random.Random(), Totals(*store.marks.totals))  # noqa: S311 - no secret
        self.keeper = Keeper(supervisor, self, config.pool.start_timeout, config.pool.probe_timeout)
        self.clients: dict[int, Client] = {}
        self._journal = journal
        self._store = store
        self._reporter = Reporter(notifier, self.status_line)
        self._loop = asyncio.get_running_loop()
        self._departures = Departures()
        self._silent: dict[int, Client] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._acceptor = Acceptor(journal, self._accept)
        self._due: asyncio.TimerHandle | None = None
        self._end: End | None = None
        self._ends_unused = False
        self._news = asyncio.Event()

    def status_line(self) -> str:
        """Return what an administrator reads first, in systemctl status."""
        failed = self._count(State.FAILED)
        advice = ": journalctl -u ooodd" if failed else ""
        workers, queued = self.config.pool.workers, len(self.pool.queue)
        return f"{self._count(State.BUSY)} of {workers} busy, {queued} queued, {failed} failed{advice}"

    # The life of the broker

    def adopt(self, left: Mapping[str, Sequence[socket.socket]], running: Mapping[int, Office]) -> None:
        """Take over, before `run`, what the store has kept, which is the broker's from now on, and what offices run."""
        adoption = Adoption(self.pool, self.keeper, self._store, self._journal)
        adoption.take_over(left, running)
        for client in adoption.clients:  # who waits joins the pool's queue when its task begins, in this order
            self._take_in(client)
        self._do(adoption.actions)

    async def run(self, sockets: Sequence[socket.socket], *, ends_unused: bool = False) -> None:
        """Serve the listeners until `end`; with `ends_unused` also until nothing runs and nobody comes any more."""
        self._ends_unused = ends_unused
        try:
            self._do(self.pool.open(time.monotonic()))
            self._acceptor.accept_from(sockets)
            names = ", ".join(map(listeners.name, sockets))
            self._journal.log(
                messages.BROKER_READY, version=__version__, listeners=names, workers=self.config.pool.workers
            )
            self._reporter.ready()
            await self._until(lambda: self._end is not None)
            await self._wind_up()
        finally:
            await self._leave_nothing()

    def end(self, how: End) -> None:
        """Have `run` end. What is under way can be cut short by STOP, and by nothing else."""
        if self._end is None or (how is End.STOP and self._end is End.DRAIN):
            self._end = how
            self._news.set()

    def reload(self, config: Config) -> None:
        """Go by another configuration from now on. No session, no waiting client and no office of one is touched."""
        self.config = config
        self._store.marks.config = config.as_json()
        self.keeper.start_timeout = config.pool.start_timeout
        self.keeper.probe_timeout = config.pool.probe_timeout
        self._journal.set_level(config.log.level)
        self._journal.log(messages.BROKER_RELOADED, workers=config.pool.workers)
        self._do(self.pool.reconfigure(_limits(config), time.monotonic()))

    async def _wind_up(self) -> None:
        """End as asked. New clients wait in the socket from now on."""
        self._acceptor.accept_from([])
        for client in list(self._silent.values()):
            client.hang_up()
        if self._end is End.HAND_OVER:
            await self._hand_over()
            return
        draining = self._end is not End.STOP
        seconds = self.config.session.drain_timeout if draining else 0.0
        self._reporter.stopping()
        self._reporter.extend(seconds + _STOP_LIMIT)
        sessions, queued = self._count(State.BUSY), len(self.pool.queue)
        self._journal.log(messages.BROKER_STOPPING, sessions=sessions, queued=queued, seconds=seconds)
        if draining:
            self._do(self.pool.drain(time.monotonic()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._until(lambda: self.pool.drained or self._end is End.STOP)
        self._do(self.pool.close(time.monotonic()))
        await self._until(lambda: self.pool.closed)
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=LINGER_LIMIT)

    async def _hand_over(self) -> None:
        """Leave everything as it is, with nothing in our own memory that a session needs, and nobody told by halves."""
        running = [client.forwarding for client in self.clients.values() if client.forwarding is not None]
        self._journal.log(messages.BROKER_HANDS_OVER, sessions=len(running), queued=len(self.pool.queue))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FREEZE_LIMIT):
                await asyncio.gather(*(forwarding.freeze() for forwarding in running))
                while refused := [self._tasks[client.session] for client in self.clients.values() if client.refusal]:
                    await asyncio.wait(refused)

    async def _leave_nothing(self) -> None:
        """Leave nothing on the loop, however `run` ends."""
        self._acceptor.accept_from([])
        self.keeper.ignore_losses()
        self._reporter.close()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self.keeper.close()
        self._departures.close()
        if self._due is not None:
            self._due.cancel()

    def _survive(self, where: str, error: Exception) -> None:
        """Tell of an error of ours that ends nothing more than what it happened to; with all there is to find it by."""
        self._journal.log(messages.INTERNAL_ERROR, where=where, error=describe(error))
        self._loop.default_exception_handler({"message": where, "exception": error})

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Wait until it holds; what may change that sets `_news`."""
        while not holds():
            self._news.clear()
            await self._news.wait()

    # The life of a client

    def _accept(self, connection: socket.socket, peer: Peer) -> None:
        marks = self._store.marks
        session = marks.last_session = marks.last_session + 1
        marks.accepted = session, peer.name
        client = Client(session, connection, peer, time.monotonic())
        if self.pool.has_room(peer.host) and is_opening(client.opening()):
            self._keep_waiting(client)  # before anything else: until then it is lost if we are killed
        marks.accepted = 0, ""
        self._take_in(client)

    def _take_in(self, client: Client) -> None:
        """Begin to serve a client, in a task of its own."""
        self.clients[client.session] = client
        task = asyncio.create_task(self._guard(client), name=f"session {client.session}")
        self._tasks[client.session] = task
        task.add_done_callback(partial(self._forget, client))

    def _forget(self, client: Client, _: "asyncio.Task[None]") -> None:
        """Close a client, whatever happened to it, and take back what it still holds."""
        del self._tasks[client.session]
        self._silent.pop(client.session, None)
        if self._end is not End.HAND_OVER:
            self._close(client)
            self._do(self.pool.leave(client.session, time.monotonic()))
        client.close()
        del self.clients[client.session]
        self._end_if_unused()

    async def _guard(self, client: Client) -> None:
        """Serve a client; an error of ours is its own end and nobody else's."""
        try:
            await self._serve(client)
        except Exception as error:  # noqa: BLE001 - the last resort
            self._survive(f"session {client.session}", error)

    async def _serve(self, client: Client) -> None:
        """One client's life. One that was adopted goes on where it was."""
        if not client.adopted and not await self._admit(client):
            return
        if client.office is None and not await self._lease(client):
            return
        ended = await self._forward(client)
        verdict = await self._inspect(client, ended)
        self._release(client, verdict)

    async def _admit(self, client: Client) -> bool:
        """Wait for the first bytes: only what begins as URP gets an office, and only then. They stay in the socket."""
        opening = client.opening()
        if len(opening) < OPENING_SIZE:
            opening = await self._wait_for_words(client)
        admitted = bool(is_opening(opening))
        if opening and not admitted:
            self._journal.log(messages.CLIENT_NOT_UNO, client=client.peer.name)
        return admitted

    async def _lease(self, client: Client) -> bool:
        """Queue until there is a worker that can be reached; False for a client that was refused or has left."""
        place, now = Waiting(client.since, client.peer.host), time.monotonic()
        if client.adopted:
            actions = self.pool.adopt_client(client.session, place, now)
        else:
            actions = self.pool.join(client.session, now, place.host)
        while (turn := await self._queue(client, actions)) is not None:
            try:
                client.office = self.keeper.office(turn).connect()
                break
            except WorkerLostError as error:
                self.worker_lost(turn, Reason.CRASHED, str(error))
                actions = self.pool.rejoin(client.session, place, time.monotonic())
            except NoDescriptorError:
                back = self.pool.give_back(turn, client.session, time.monotonic())
                self._mark(turn)
                self._do(back)
                actions = self.pool.turn_away(client.session, Reason.NO_DESCRIPTOR)
        if turn is None or client.office is None:
            await self._tell(client)
            return False
        client.worker = turn
        client.since = time.monotonic()
        client.adopted = client.broken = False
        self._keep(client, client.session_name(), client.connection, client.office)
        self._journal.log(
            messages.SESSION_BEGIN,
            session=client.session,
            client=client.peer.name,
            worker=turn,
            seconds=client.since - place.joined,
        )
        return True

    async def _queue(self, client: Client, actions: Iterable[Action]) -> int | None:
        """Wait for the client's turn; None for a client that is refused or has left, which is dropped at once."""
        client.turn = self._loop.create_future()
        self._do(actions)
        if not client.turn.done():
            self._departures.watch(client.connection, partial(self._left, client))
            self._keep_waiting(client)
        try:
            return await client.turn
        finally:
            self._departures.unwatch(client.connection)

    async def _tell(self, client: Client) -> None:
        """Answer the client's first request with the reason for which it gets no office, if it was refused."""
        self._let_go(client)  # what it says is read from here on, so no other broker could go on with it
        if client.refusal:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REFUSAL_LIMIT):
                    await client.refuse(client.refusal)

    async def _forward(self, client: Client) -> Ended:
        """Let client and office talk until the office lets go. Ends both connections."""
        assert client.office is not None
        assert client.worker is not None
        slot = self._store.marks.slot(client.worker)
        holding = Holding(slot.memory, slot.to_office_index, slot.to_client_index)
        client.hear_every_byte()
        limits = self._session_limits()
        client.forwarding = Forwarding(client.connection, client.office, limits, holding, client.since)
        if client.broken:
            client.forwarding.office_lost()
        if self._end is End.HAND_OVER:
            client.forwarding.freeze()  # it only begins under the next broker
        ended = await client.forwarding.run()
        client.forwarding = None  # its sockets are about to be closed; a hand-over freezes those that run
        self._close(client)
        client.close()  # now: the inspection takes a descriptor
        self._journal.log(
            messages.SESSION_END,
            session=client.session,
            worker=client.worker,
            client=client.peer.name,
            by=f"{ended.by}: {ended.limit}" if ended.limit else ended.by,
            seconds=time.monotonic() - client.since,
            to_office=ended.to_office,
            to_client=ended.to_client,
        )
        return ended

    async def _inspect(self, client: Client, ended: Ended) -> Verdict | None:
        """Say whether the worker can go on to the next client; None if it has been taken away already."""
        assert client.worker is not None
        if not self.pool.inspect(client.worker, client.session, time.monotonic()):
            return None
        doubt = _doubt(client, ended)
        within = self.config.pool.probe_timeout
        try:
            within = min(within, _DIAGNOSIS_LIMIT) if doubt.fault else within
            verdict = await self.keeper.inspect(client.worker, within)
        except (NoDescriptorError, WorkerLostError) as error:
            verdict = Verdict(Reason.CUT_OFF, error.message)
        if verdict.fault is Reason.CRASHED:
            await self._wait_for_exit(client)
        if verdict.fault is Reason.HUNG and doubt.fault:
            return Verdict(Reason.HUNG, f"{doubt.detail or doubt.fault}, {verdict.detail}")
        return verdict if verdict.fault else doubt if doubt.fault else verdict

    def _release(self, client: Client, verdict: Verdict | None) -> None:
        """Give the worker back to the pool."""
        if client.worker is not None and verdict is not None:
            number, now = client.worker, time.monotonic()
            actions = self.pool.release(number, client.session, now, **asdict(verdict))
            if self.pool.workers[number].state is State.IDLE:
                self._mark(number)
            self._do(actions)

    # What the life of a client is made of

    async def _wait_for_words(self, client: Client) -> bytes:
        """Return what a client says first; nothing if it leaves, or if more clients than we bear are as silent."""
        self._silent[client.session] = client
        if len(self._silent) > _MOST_SILENT:
            self._hang_up_on_the_most_silent()
        await client.speaks()
        if self._silent.pop(client.session, None) is None:  # hung up on meanwhile, though its bytes came yet
            return b""
        client.since = time.monotonic()
        return client.opening()

    def _hang_up_on_the_most_silent(self) -> None:
        client = self._silent.pop(next(iter(self._silent)))
        silent = time.monotonic() - client.since
        self._journal.log(messages.CLIENT_SILENT, client=client.peer.name, seconds=silent, limit=_MOST_SILENT)
        client.hang_up()

    def _left(self, client: Client) -> None:
        """Drop a client that has left the queue."""
        waited = time.monotonic() - client.since
        self._journal.log(messages.CLIENT_LEFT, client=client.peer.name, session=client.session, seconds=waited)
        self._do(self.pool.leave(client.session, time.monotonic()))
        self._take_turn(client.session, None)

    def _take_turn(self, session: int, turn: int | None) -> None:
        client = self.clients[session]
        if client.turn is not None and not client.turn.done():
            client.turn.set_result(turn)

    def _keep(self, client: Client, name: str, *sockets: socket.socket) -> None:
        """Let the client outlive us, under this name from now on."""
        if client.stored != name:
            before, client.stored = client.stored, name
            self._store.keep(name, *sockets)
            if before:
                self._store.drop(before)

    def _keep_waiting(self, client: Client) -> None:
        if len(self.pool.queue) <= _MOST_KEPT:
            self._keep(client, client.waiting_name(), client.connection)

    def _let_go(self, client: Client) -> None:
        """Let the client outlive us no more."""
        if client.stored:
            self._store.drop(client.stored)
            client.stored = ""

    def _close(self, client: Client) -> None:
        """End the client's connections, to which the store may hold another descriptor, and have it forget them."""
        client.hang_up()
        self._let_go(client)

    async def _wait_for_exit(self, client: Client) -> None:
        """Give an office that can't be reached time to exit: how, its supervisor tells, and the pool acts on that."""
        if not client.broken:
            client.on_broken = self._loop.create_future()
            await asyncio.wait([client.on_broken], timeout=_EXIT_LIMIT)

    def _session_limits(self) -> SessionLimits:
        session = self.config.session
        return SessionLimits(session.timeout, session.idle_timeout, session.grace)

    def _refusal(self, client: Client, reason: Reason) -> str:
        """Return what to tell a client that gets no office."""
        return messages.REFUSALS[reason].format(
            workers=self.config.pool.workers,
            queued=len(self.pool.queue),
            host=client.peer.host,
            max_per_host=self.config.queue.max_per_host,
            timeout=self.config.queue.timeout,
            trouble=self.pool.trouble,
        )

    # What became of the workers

    def worker_ready(self, number: int, office: Office) -> None:
        """Take the worker into service."""
        seconds = time.monotonic() - self.pool.workers[number].since
        self._journal.log(messages.WORKER_READY, worker=number, pid=office.pid, seconds=seconds)
        actions = self.pool.ready(number, time.monotonic())
        self._mark(number)
        self._do(actions)

    def worker_not_started(self, number: int, detail: str) -> None:
        """Have the pool back off."""
        self._do(self.pool.not_started(number, time.monotonic(), f"{detail}{self.keeper.details(number)}"))

    def worker_probed(self, number: int, verdict: Verdict) -> None:
        """Have the pool keep or replace it."""
        self._do(self.pool.probed(number, time.monotonic(), **asdict(verdict)))

    def worker_lost(self, number: int, reason: Reason, detail: str) -> None:
        """Have the pool recover it."""
        self._do(self.pool.lost(number, time.monotonic(), reason, detail))

    def worker_stopped(self, number: int) -> None:
        """Have the pool start it anew."""
        self._store.marks.slot(number).clear()
        self._do(self.pool.stopped(number, time.monotonic()))

    def worker_not_stopped(self, number: int, detail: str) -> None:
        """Say so: the next start ends what is left."""
        self._journal.log(messages.WORKER_NOT_STOPPED, worker=number, detail=detail)

    # What the pool decided

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            try:
                self._carry_out(action)
            except Exception as error:  # noqa: BLE001 - ours, and no reason to leave the others undone
                self._survive(str(action), error)
        self._keep_totals()
        self._reporter.changed()
        self._set_timer()
        self._end_if_unused()
        self._news.set()

    def _carry_out(self, action: Action) -> None:
        """Do it. What is told, counted and marked of it is so close together that a kill hardly comes between."""
        match action:
            case Start(number):
                self.keeper.start(number)
            case Stop(number, reason, detail):
                self._tell_why(number, reason, detail)
                self._keep_totals()
                self._store.marks.slot(number).doomed = True
                self.keeper.stop(number)
            case Probe(number):
                self.keeper.probe(number)
            case Lease(number, session):
                self._mark(number)
                self._take_turn(session, number)
            case Break(_, session):
                self._break(self.clients[session])
            case Refuse(session, reason):
                self._refuse(self.clients[session], reason)

    def _tell_why(self, number: int, reason: Reason, detail: str) -> None:
        if reason is Reason.NOT_STARTED:
            self._journal.log(messages.WORKER_NOT_STARTED, worker=number, detail=detail)
        elif reason not in (Reason.CLOSING, Reason.NOT_NEEDED):
            message = _STOP_MESSAGES.get(reason, messages.WORKER_RECYCLED)
            self._journal.log(message, worker=number, detail=detail or reason)

    def _break(self, client: Client) -> None:
        client.broken = True
        self._let_go(client)  # no other broker could go on with it
        if client.forwarding is not None:
            client.forwarding.office_lost()
        if client.on_broken is not None and not client.on_broken.done():
            client.on_broken.set_result(None)

    def _refuse(self, client: Client, reason: Reason) -> None:
        client.refusal = self._refusal(client, reason)
        waited = time.monotonic() - client.since
        self._journal.log(
            messages.CLIENT_REFUSED,
            session=client.session,
            client=client.peer.name,
            seconds=waited,
            text=client.refusal,
        )
        self._take_turn(client.session, None)

    def _keep_totals(self) -> None:
        self._store.marks.totals = astuple(self.pool.totals)

    def _mark(self, number: int) -> None:
        """Note about a worker what the next broker has to know of it, if this one is killed."""
        worker, slot = self.pool.workers[number], self._store.marks.slot(number)
        self._keep_totals()  # if it has a client, that was counted
        slot.client = worker.client or 0
        slot.pid = self.keeper.office(number).pid
        slot.uses, slot.max_uses, slot.since = worker.uses, worker.max_uses, worker.started

    def _set_timer(self) -> None:
        """Call the pool's `tick` when it has something to do."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if (deadline := self.pool.deadline) is not None:
            self._due = self._loop.call_later(max(0.0, deadline - time.monotonic()), self._tick)

    def _tick(self) -> None:
        self._due = None
        forwardings = {client.session: client.forwarding for client in self.clients.values() if client.forwarding}
        still = {client: since for client, it in forwardings.items() if (since := it.still_since) is not None}
        self._do(self.pool.tick(time.monotonic(), still))

    def _end_if_unused(self) -> None:
        if self._ends_unused and self.pool.unused and not self.clients and self._end is None:
            self._journal.log(messages.BROKER_UNUSED, seconds=self.config.pool.idle_timeout)
            self.end(End.STOP)

    def _count(self, state: State) -> int:
        return sum(worker.state is state for worker in self.pool.workers.values())


def _doubt(client: Client, ended: Ended) -> Verdict:
    """Say what, of the way a session ended, speaks against its office, however well that answers."""
    if client.adopted:
        return Verdict(Reason.ADOPTED)
    if ended.by is Side.OFFICE:
        return Verdict(Reason.CUT_OFF)
    if ended.call_under_way:
        return Verdict(Reason.DIRTY, "its session ended amid a call")
    if not ended.office_let_go and ended.by is Side.CLIENT:
        return Verdict(Reason.DIRTY, "it did not let go of a client that had gone")
    return Verdict()


def _limits(config: Config) -> Limits:
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
        queue_timeout=queue.timeout,
        starts=os.cpu_count() or 1,
    )
