# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker: accept, admit, queue, lease, forward, inspect, release.

`Broker._serve` is the life of one client from top to bottom. What to decide about workers and queue is the pool's:
the broker tells it what happened and carries out what it answers. Everything runs on one event loop. Nothing that one
client does, and nothing that fails for it, ends more than its own session.
"""

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from ooodd import __version__, listeners, messages, urp
from ooodd.config import Config
from ooodd.errors import WorkerHungError, WorkerLostError, describe
from ooodd.forward import LINGER_LIMIT, Ended, Forwarding, Side
from ooodd.journal import Journal
from ooodd.notify import Notifier, Reporter
from ooodd.pool import Action, Break, Lease, Limits, Pool, Reason, Refuse, Start, State, Stop
from ooodd.worker import GREETING_LIMIT, Keeper, Office, Supervisor

# What a client may send before it has an office; UNO's clients send some hundred bytes and wait for the answer.
_EARLY_BYTES = 64 * 1024
# Connections that have not said anything. More than these are port checks or an attack: the longest silent one goes.
_MOST_SILENT = 256
# How long an office that can't be reached any more may take to exit before it is stopped, in seconds.
_EXIT_LIMIT = 0.5
# While no descriptor is left, the time to the next try to accept, in seconds.
_ACCEPT_PAUSE = 1.0

_STOP_MESSAGES = {Reason.CRASHED: messages.WORKER_CRASHED, Reason.HUNG: messages.WORKER_HUNG}


@dataclass(eq=False, slots=True)
class Client:
    """One connection, from accept to close. `session` is its number everywhere: pool, journal, status."""

    session: int
    connection: socket.socket
    peer: str
    since: float
    # What it sent before it had an office.
    early: bytearray = field(default_factory=bytearray)
    # While it waits: gets the number of its worker, or None if it is to go without.
    turn: "asyncio.Future[int | None] | None" = None
    worker: int | None = None
    forwarding: Forwarding | None = None
    # Set when the pool has taken its worker away.
    broken: asyncio.Event = field(default_factory=asyncio.Event)


class Broker:
    """Serves UNO clients from a pool of offices. Implements `worker.Events`."""

    def __init__(self, config: Config, supervisor: Supervisor, journal: Journal, notifier: Notifier) -> None:
        """Prepare; `run` does it. The supervisor stays the caller's to close."""
        self.config = config
        self.pool = Pool(_limits(config), random.Random())  # noqa: S311 - spreads restarts, no secret
        self.keeper = Keeper(supervisor, self, config.pool.start_timeout)
        self.clients: dict[int, Client] = {}
        self._journal = journal
        self._reporter = Reporter(notifier, self.status_line)
        self._loop = asyncio.get_running_loop()
        self._silent: dict[int, Client] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting: list[socket.socket] = []
        self._sessions = 0
        self._due: asyncio.TimerHandle | None = None
        self._stop = asyncio.Event()
        self._all_stopped = asyncio.Event()

    def status_line(self) -> str:
        """Return what an administrator reads first, in systemctl status."""
        failed = self._count(State.FAILED)
        advice = ": journalctl -u ooodd" if failed else ""
        workers, queued = self.config.pool.workers, len(self.pool.queue)
        return f"{self._count(State.BUSY)} of {workers} busy, {queued} queued, {failed} failed{advice}"

    # The life of the broker

    async def run(self, sockets: Sequence[socket.socket]) -> None:
        """Serve the listeners until `stop`, and then end every session and every office."""
        try:
            self._do(self.pool.open(time.monotonic()))
            self._accept_from(sockets)
            names = ", ".join(map(listeners.name, sockets))
            self._journal.log(
                messages.BROKER_READY, version=__version__, listeners=names, workers=self.config.pool.workers
            )
            self._reporter.ready()
            await self._stop.wait()
            await self._wind_up()
        finally:
            await self._leave_nothing()

    def stop(self) -> None:
        """Have `run` end."""
        self._stop.set()

    async def _wind_up(self) -> None:
        """Stop every office; the sessions end with them. New clients wait in the socket from now on."""
        self._reporter.stopping()
        self._journal.log(messages.BROKER_STOPPING, sessions=self._count(State.BUSY), queued=len(self.pool.queue))
        self._accept_from([])
        self._do(self.pool.close(time.monotonic()))
        for client in list(self._silent.values()):
            _hang_up(client)
        await self._all_stopped.wait()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LINGER_LIMIT)

    async def _leave_nothing(self) -> None:
        """Leave nothing on the loop, however `run` ends."""
        self._accept_from([])
        self._reporter.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.keeper.close()
        if self._due is not None:
            self._due.cancel()

    # The life of a client

    def _accept(self, listener: socket.socket) -> None:
        try:
            for connection, peer in listeners.accept(listener):
                self._sessions += 1
                client = Client(self._sessions, connection, peer, time.monotonic())
                self.clients[client.session] = client
                task = asyncio.create_task(self._guard(client), name=f"session {client.session}")
                self._tasks.add(task)
                task.add_done_callback(partial(self._forget, client))
        except OSError as error:  # no descriptor or no memory left
            self._journal.log(messages.ACCEPT_PAUSED, error=error.strerror, seconds=_ACCEPT_PAUSE)
            paused = list(self._accepting)
            self._accept_from([])
            self._loop.call_later(_ACCEPT_PAUSE, self._accept_again, paused)

    def _forget(self, client: Client, task: "asyncio.Task[None]") -> None:
        """Close a client, whatever happened to it, and take back what it still holds."""
        self._tasks.discard(task)
        self._silent.pop(client.session, None)
        client.connection.close()
        self._do(self.pool.leave(client.session, time.monotonic()))
        del self.clients[client.session]

    async def _guard(self, client: Client) -> None:
        """Serve a client; an error of ours is its own end and nobody else's."""
        try:
            await self._serve(client)
        except Exception as error:  # noqa: BLE001 - the last resort
            self._journal.log(messages.INTERNAL_ERROR, where=f"session {client.session}", error=describe(error))

    async def _serve(self, client: Client) -> None:
        """One client's life."""
        if not await self._admit(client):
            return
        lease = await self._lease(client)
        if lease is None:
            return
        office, connection = lease
        ended = await self._forward(client, connection)
        fault = await self._inspect(client, office, ended)
        self._release(client, fault)

    async def _admit(self, client: Client) -> bool:
        """Wait for the first bytes: only what begins as URP gets an office, and only then."""
        self._silent[client.session] = client
        if len(self._silent) > _MOST_SILENT:
            self._hang_up_on_the_most_silent()
        admitted = None
        while admitted is None:
            try:
                data = await self._loop.sock_recv(client.connection, _EARLY_BYTES)
            except OSError:
                data = b""
            if not data:
                return False
            client.early += data
            admitted = urp.is_opening(bytes(client.early[: urp.OPENING_SIZE]))
        if self._silent.pop(client.session, None) is None:  # hung up on meanwhile, though its bytes came yet
            return False
        if not admitted:
            self._journal.log(messages.CLIENT_NOT_UNO, client=client.peer)
        return admitted

    async def _lease(self, client: Client) -> tuple[Office, socket.socket] | None:
        """Queue until there is a worker that can be reached; None for a client that was refused or has left."""
        joined = time.monotonic()
        actions = self.pool.join(client.session, joined)
        while (number := await self._queue(client, actions)) is not None:
            try:
                office = self.keeper.office(number)
                connection = office.connect()
                break
            except WorkerLostError as error:
                self.worker_lost(number, Reason.CRASHED, str(error))
            actions = self.pool.rejoin(client.session, joined, time.monotonic())
        else:
            return None
        client.worker = number
        client.broken.clear()
        waited = time.monotonic() - joined
        self._journal.log(
            messages.SESSION_BEGIN, session=client.session, client=client.peer, worker=number, seconds=waited
        )
        return office, connection

    async def _queue(self, client: Client, actions: Iterable[Action]) -> int | None:
        """Wait for the client's turn; a client that leaves while it waits is dropped at once."""
        client.turn = self._loop.create_future()
        self._loop.add_reader(client.connection, self._hear_waiting, client)
        self._do(actions)
        try:
            return await client.turn
        finally:
            self._loop.remove_reader(client.connection)

    async def _forward(self, client: Client, connection: socket.socket) -> Ended:
        """Let client and office talk until the office lets go. Closes both connections."""
        began = time.monotonic()
        with contextlib.closing(client.connection), contextlib.closing(connection):
            client.forwarding = Forwarding(client.connection, connection)
            first = bytes(client.early)
            client.early.clear()
            ended = await client.forwarding.run(first)
        self._journal.log(
            messages.SESSION_END,
            session=client.session,
            worker=client.worker,
            client=client.peer,
            by=ended.by,
            seconds=time.monotonic() - began,
            to_office=ended.to_office,
            to_client=ended.to_client,
        )
        return ended

    async def _inspect(self, client: Client, office: Office, ended: Ended) -> Reason | None:
        """Say why the worker can't go on to the next client; None if it can, or if it has been taken away already."""
        if client.worker is None or not self.pool.inspect(client.worker, client.session, time.monotonic()):
            return None
        if not ended.office_let_go:
            return Reason.HUNG
        try:
            await office.greet(GREETING_LIMIT)
        except WorkerHungError:
            return Reason.HUNG
        except WorkerLostError:
            # It is about to exit; how, the supervisor tells, and the pool then acts on that.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(client.broken.wait(), _EXIT_LIMIT)
            return Reason.CRASHED
        return Reason.CUT_OFF if ended.by is Side.OFFICE else None

    def _release(self, client: Client, fault: Reason | None) -> None:
        """Give the worker back to the pool."""
        if client.worker is not None:
            self._do(self.pool.release(client.worker, client.session, time.monotonic(), fault))

    # What the life of a client is made of

    def _accept_from(self, sockets: Sequence[socket.socket]) -> None:
        for listener in self._accepting:
            self._loop.remove_reader(listener)
        self._accepting = list(sockets)
        for listener in self._accepting:
            self._loop.add_reader(listener, self._accept, listener)

    def _accept_again(self, sockets: Sequence[socket.socket]) -> None:
        if not self._stop.is_set():
            self._accept_from(sockets)

    def _hang_up_on_the_most_silent(self) -> None:
        client = self._silent.pop(next(iter(self._silent)))
        silent = time.monotonic() - client.since
        self._journal.log(messages.CLIENT_SILENT, client=client.peer, seconds=silent, limit=_MOST_SILENT)
        _hang_up(client)

    def _hear_waiting(self, client: Client) -> None:
        """Keep what a waiting client says, up to a limit, and notice when it leaves."""
        try:
            data = client.connection.recv(_EARLY_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        client.early += data
        if len(client.early) > _EARLY_BYTES:
            self._loop.remove_reader(client.connection)
        if not data:
            self._loop.remove_reader(client.connection)
            waited = time.monotonic() - client.since
            self._journal.log(messages.CLIENT_LEFT, client=client.peer, session=client.session, seconds=waited)
            self._do(self.pool.leave(client.session, time.monotonic()))
            self._take_turn(client.session, None)

    def _take_turn(self, session: int, number: int | None) -> None:
        client = self.clients[session]
        if client.turn is not None and not client.turn.done():
            client.turn.set_result(number)

    # What became of the workers

    def worker_ready(self, number: int, office: Office) -> None:
        """Take the worker into service."""
        seconds = time.monotonic() - self.pool.workers[number].since
        self._journal.log(messages.WORKER_READY, worker=number, pid=office.pid, seconds=seconds)
        self._do(self.pool.ready(number, time.monotonic()))

    def worker_not_started(self, number: int, detail: str) -> None:
        """Have the pool back off."""
        self._do(self.pool.not_started(number, time.monotonic(), detail))

    def worker_lost(self, number: int, reason: Reason, detail: str) -> None:
        """Have the pool recover it."""
        self._do(self.pool.lost(number, time.monotonic(), reason, detail))

    def worker_stopped(self, number: int) -> None:
        """Have the pool start it anew."""
        self._do(self.pool.stopped(number, time.monotonic()))

    def worker_not_stopped(self, number: int, detail: str) -> None:
        """Say so: the next start ends what is left."""
        self._journal.log(messages.WORKER_NOT_STOPPED, worker=number, detail=detail)

    # What the pool decided

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Start(number):
                    self.keeper.start(number)
                case Stop(number, reason, detail):
                    self._tell_why(number, reason, detail)
                    self.keeper.stop(number)
                case Lease(number, session):
                    self._take_turn(session, number)
                case Break(_, session):
                    self._break(self.clients[session])
                case Refuse(session, reason):
                    self._refuse(self.clients[session], reason)
        self._reporter.changed()
        self._set_timer()
        if self.pool.closed:
            self._all_stopped.set()

    def _tell_why(self, number: int, reason: Reason, detail: str) -> None:
        if reason is Reason.NOT_STARTED:
            self._journal.log(
                messages.WORKER_NOT_STARTED, worker=number, detail=detail, details=self.keeper.details(number)
            )
        elif reason is not Reason.CLOSING:
            message = _STOP_MESSAGES.get(reason, messages.WORKER_RECYCLED)
            self._journal.log(message, worker=number, detail=detail or reason)

    def _break(self, client: Client) -> None:
        client.broken.set()
        if client.forwarding is not None:
            client.forwarding.office_lost()

    def _refuse(self, client: Client, reason: Reason) -> None:
        waited = time.monotonic() - client.since
        self._journal.log(
            messages.CLIENT_REFUSED, session=client.session, client=client.peer, seconds=waited, reason=reason
        )
        self._take_turn(client.session, None)

    def _set_timer(self) -> None:
        """Call the pool's `tick` when it has something to do."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if (deadline := self.pool.deadline) is not None:
            delay = max(0.0, deadline - time.monotonic())
            self._due = self._loop.call_later(delay, lambda: self._do(self.pool.tick(time.monotonic())))

    def _count(self, state: State) -> int:
        return sum(worker.state is state for worker in self.pool.workers.values())


def _hang_up(client: Client) -> None:
    """End the connection; whoever waits for its bytes then gets the end of file."""
    with contextlib.suppress(OSError):
        client.connection.shutdown(socket.SHUT_RDWR)


def _limits(config: Config) -> Limits:
    return Limits(
        workers=config.pool.workers,
        max_uses=config.pool.max_uses,
        max_uses_jitter=config.pool.max_uses_jitter,
        max_clients=config.queue.max_clients,
        queue_timeout=config.queue.timeout,
    )
