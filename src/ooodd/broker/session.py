# SPDX-License-Identifier: LGPL-2.1-or-later
"""The life of one client: accept, admit, queue, lease, forward, inspect, release.

`Session.run` is that life from top to bottom. Until the office can take them, the client's first bytes are looked at
but not read. So a broker that is killed is followed by one that finds the client as it came.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterable
from dataclasses import asdict

from ooodd import messages
from ooodd.broker.access import who
from ooodd.broker.bound import Bound
from ooodd.broker.client import Client, Left, Phase, Refused, Tenure, Turn
from ooodd.broker.driver import Driver
from ooodd.broker.farewell import refuse
from ooodd.broker.hangups import Hangups
from ooodd.broker.kept import client_name, office_name
from ooodd.config import Config
from ooodd.datapath.path import DataPath, Ended, SessionLimits, Side
from ooodd.datapath.paths import new_path
from ooodd.errors import NoDescriptorError, WorkerLostError
from ooodd.office.keeper import Verdict
from ooodd.pool.actions import Action, Lease, Reason
from ooodd.pool.pool import Place, State
from ooodd.systemd.marks import Slot
from ooodd.systemd.users import uid_of, words
from ooodd.uno.urp import OPENING_SIZE, is_opening

# So many waiting clients are kept in the store. systemd compares each new one with all that are there.
MOST_KEPT = 1500
# For how long, in seconds, an office is asked whether it hangs that is recycled in any case: its session did not end in
# order.
_DIAGNOSIS_LIMIT = 0.4
# How long a client may take to hear why it is refused, in seconds.
_REFUSAL_LIMIT = 5.0


class Session:
    """One client's life. Its owner calls `begin` or, for an adopted client, `resume`; then `run`; then `end`."""

    def __init__(self, client: Client, driver: Driver, hangups: Hangups, silent: Bound, refused: Bound) -> None:
        """Take a client in any phase. `silent` and `refused` count the clients that do nothing else."""
        self.client = client
        self._driver = driver
        self._pool = driver.pool
        self._hangups = hangups
        self._silent = silent
        self._refused = refused
        self._place = Place(client.since, client.peer.host, client.user)

    def begin(self) -> None:
        """Do what needs no waiting: queue a client that has spoken already, and lease it a worker if one is idle.

        On return it is kept in the store, where it is to be kept at all.
        """
        if is_opening(self.client.opening()):
            self._join()
            while self.client.phase is Phase.QUEUED and isinstance(self.client.turn.decision, Lease):
                self._occupy(self.client.turn.decision)

    def resume(self) -> None:
        """Go on with an adopted client. One that waits has been queued again by the pool."""
        if self.client.phase is Phase.QUEUED and self.client.turn.decision is None:
            self._wait_in_queue()

    async def run(self) -> None:
        """Serve the client from the phase that it is in to its end."""
        if self.client.phase is Phase.ACCEPTED and not await self._admit():
            return
        if self.client.phase is Phase.QUEUED and not await self._lease():
            return
        ended = await self._forward()
        verdict = await self._inspect(ended)
        self._release(verdict)

    def end(self) -> None:
        """Close the client, whatever has happened to it, and take back what it still holds."""
        self._hangups.unwatch(self.client.connection)
        self._silent.remove(self.client)
        self._refused.remove(self.client)
        self._disconnect()
        self.client.enter(Phase.CLOSED)
        self._driver.do(self._pool.leave(self.client.session, time.monotonic()))

    def hand_over(self) -> None:
        """Close the broker's descriptors of a client that the next broker goes on with, if it is kept."""
        client = self.client
        if not client.kept and client.tenure is not None and client.phase in (Phase.LEASED, Phase.FORWARDING):
            self._driver.journal.log(
                messages.SESSION_LOST,
                session=client.session,
                client=client.peer.name,
                worker=client.tenure.worker,
                why="its office ended meanwhile",
            )
            client.hang_up()
        client.close()

    # accept, admit

    async def _admit(self) -> bool:
        """Wait for the first bytes. Only what begins as URP gets an office, and only then."""
        client = self.client
        if len(client.opening()) < OPENING_SIZE:
            self._silent.add(client)
            await client.wait_for_opening()
            if client not in self._silent:  # hung up on, though its bytes may have come since
                return False
            self._silent.remove(client)
            client.since = time.monotonic()
        opening = client.opening()
        if not is_opening(opening):
            if opening:
                self._driver.journal.log(messages.CLIENT_NOT_UNO, client=client.peer.name)
            return False
        self._join()
        return True

    # queue

    def _join(self) -> None:
        """Join the pool's queue, if the client may connect at all."""
        client, now = self.client, time.monotonic()
        uid = self._driver.users.uid(client.connection)
        client.user = words(uid)
        self._place = Place(now, client.peer.host, client.user)
        if rule := self._driver.access.objection(client.peer.host, uid):
            client.objection = f"{who(client.peer.host, uid, client.pid)} may not connect ({rule})"
            self._enqueue(self._pool.turn_away(client.session, Reason.NOT_ALLOWED))
        else:
            self._enqueue(self._pool.join(client.session, *self._place))

    def _enqueue(self, actions: Iterable[Action]) -> None:
        """Be queued, as `actions` of the pool say. Most clients have their turn at once."""
        if self.client.phase is Phase.ACCEPTED:
            self.client.enter(Phase.QUEUED)
        self.client.turn = Turn()
        self._driver.do(actions)
        if self.client.turn.decision is None:
            self._wait_in_queue()

    def _wait_in_queue(self) -> None:
        if not self.client.kept and len(self._pool.queue) <= MOST_KEPT:
            name = client_name(self.client.session, self._place.joined)
            self._driver.keep(self.client, name, self.client.connection)
        self._hangups.watch(self.client.connection, self._leave_queue)

    def _leave_queue(self) -> None:
        """Act on a client that has hung up. A worker that it got in this very turn of the loop is untouched."""
        client, now = self.client, time.monotonic()
        match client.turn.decision:
            case Lease(number, _):
                self._give_back(number)
            case None:
                self._driver.do(self._pool.leave(client.session, now))
            case _:
                return
        self._driver.journal.log(
            messages.CLIENT_LEFT, client=client.peer.name, session=client.session, wait=client.seconds
        )
        client.turn.decide(Left())

    def _give_back(self, number: int, *, reached: bool = True) -> None:
        """Give back a worker whose office the client has not touched, or could not reach."""
        actions = self._pool.give_back(number, self.client.session, time.monotonic(), reached=reached)
        worker = self._pool.workers.get(number)
        if worker is not None and worker.state in (State.IDLE, State.INSPECTING) and worker.client is None:
            self._driver.mark(number)
        self._driver.do(actions)

    # lease

    async def _lease(self) -> bool:
        """Wait for the client's turn; False for one that is refused or has left."""
        while self.client.phase is Phase.QUEUED:
            decision = await self.client.turn.decided()
            waited = self._hangups.unwatch(self.client.connection)
            match decision:
                case Lease() if waited and self.client.has_hung_up:  # in this very turn of the loop
                    self._leave_queue()
                case Lease():
                    self._occupy(decision)
                case Refused(text):
                    await self._refuse(text)
                case Left():
                    return False
        return self.client.phase is Phase.LEASED

    def _occupy(self, lease: Lease) -> None:
        """Connect to the worker's office, and keep the session. If that fails, the client is queued again."""
        client, number = self.client, lease.worker
        try:
            self._replace_if_outdated(number)
            office = self._driver.way_to(number)
        except WorkerLostError:  # the probe finds out why
            self._give_back(number, reached=False)
            self._enqueue(self._pool.rejoin(client.session, self._place, time.monotonic()))
            return
        except NoDescriptorError:
            self._give_back(number)
            self._enqueue(self._pool.turn_away(client.session, Reason.NO_DESCRIPTOR))
            return
        client.enter(Phase.LEASED)
        client.since = time.monotonic()
        slot = self._driver.store.marks.slot(number)
        client.tenure = Tenure(number, office, self._new_path(office, slot))
        connections = [office] if client.kept else [client.connection, office]
        self._driver.keep(client, office_name(client.session, number, client.since), *connections)
        client.tenure.path.begin()
        slot.begun = True
        wait = client.since - self._place.joined
        self._driver.statistics.waits.observe(wait)
        self._driver.journal.log(
            messages.SESSION_BEGIN,
            session=client.session,
            client=client.peer.name,
            worker=number,
            wait=wait,
            user=uid_of(client.user),
        )

    def _replace_if_outdated(self, number: int) -> None:
        """Raise `WorkerLostError` for an office whose program has been or is being replaced; have it replaced too."""
        keeper = self._driver.keeper
        outdated = keeper.office(number).outdated()
        if outdated or keeper.packages.unpacking():
            if outdated:
                self._driver.journal.log(messages.WORKER_OUTDATED, worker=number)
            self._driver.do(self._pool.lost(number, time.monotonic(), Reason.OUTDATED, ""))
            raise WorkerLostError(f"worker {number} is outdated")

    def _new_path(self, office: socket.socket, slot: Slot) -> DataPath:
        """Return the way of the client's bytes to its office. On an error the office's connection is closed."""
        limits = session_limits(self._driver.config)
        try:
            path = new_path(self.client.connection, office, limits, slot.record, self.client.since)
        except BaseException:
            office.close()
            raise
        if self._driver.frozen:
            path.freeze()
        return path

    async def _refuse(self, text: str) -> None:
        """Answer the client's first request with the reason for which it gets no office."""
        self.client.enter(Phase.REFUSED)
        self._driver.forget(self.client)  # what it says is read from here on, so no other broker can go on with it
        self._refused.add(self.client)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REFUSAL_LIMIT):
                await refuse(self.client, text)

    # forward

    async def _forward(self) -> Ended:
        """Let client and office talk until the office has let go. Ends both connections."""
        client, tenure = self.client, self.client.tenure
        assert tenure is not None
        client.enter(Phase.FORWARDING)
        client.read_every_byte()
        if not tenure.path.reads_client:
            self._hangups.watch(client.connection, tenure.path.client_left)
        ended = await tenure.path.run()
        self._hangups.unwatch(client.connection)
        self._disconnect()  # now, for the inspection takes a descriptor
        self._report_end(tenure.worker, ended)
        return ended

    def _report_end(self, worker: int, ended: Ended) -> None:
        client, journal = self.client, self._driver.journal
        self._driver.statistics.durations.observe(client.seconds)
        if ended.reclaimed:
            journal.log(
                messages.SESSION_RECLAIMED,
                session=client.session,
                worker=worker,
                client=client.peer.name,
                duration=client.seconds,
            )
            return
        journal.log(
            messages.SESSION_END,
            session=client.session,
            worker=worker,
            client=client.peer.name,
            by=_who_ended(client, ended),
            duration=client.seconds,
            to_office=ended.to_office,
            to_client=ended.to_client,
        )

    def _disconnect(self) -> None:
        """End the client's connections, and keep them no more."""
        self.client.hang_up()
        self._driver.forget(self.client)
        self.client.close()

    # inspect, release

    async def _inspect(self, ended: Ended) -> Verdict | None:
        """Return whether the worker can go on to the next client; None if it has been taken away already."""
        client, tenure = self.client, self.client.tenure
        assert tenure is not None
        client.enter(Phase.INSPECTING)
        if not self._pool.inspect(tenure.worker, client.session, time.monotonic()):
            return None
        worker = self._pool.workers[tenure.worker]
        suspicion = _suspect(ended)
        # Then it is replaced in any case; all that is asked is whether it hangs, if it may.
        is_last = ended.by is not Side.OFFICE and (ended.reclaimed or worker.is_used_up)
        if is_last and (ended.reclaimed or suspicion.fault is not Reason.DIRTY):
            return Verdict()
        within = self._driver.config.pool.probe_timeout
        try:
            within = min(within, _DIAGNOSIS_LIMIT) if suspicion.fault else within
            verdict = await self._driver.keeper.inspect(tenure.worker, within)
        except (NoDescriptorError, WorkerLostError) as error:
            verdict = Verdict(Reason.CUT_OFF, error.message)
        if verdict.fault is Reason.HUNG and suspicion.fault:
            return Verdict(Reason.HUNG, f"{suspicion.detail or suspicion.fault}, {verdict.detail}")
        if is_last:
            return Verdict()
        return suspicion if suspicion.fault and not verdict.fault else verdict

    def _release(self, verdict: Verdict | None) -> None:
        """Give the worker back to the pool."""
        tenure = self.client.tenure
        if tenure is None or verdict is None:
            return
        actions = self._pool.release(tenure.worker, self.client.session, time.monotonic(), **asdict(verdict))
        worker = self._pool.workers.get(tenure.worker)
        if worker is not None and worker.state is State.IDLE:
            self._driver.mark(tenure.worker)
        self._driver.do(actions)


def _who_ended(client: Client, ended: Ended) -> str:
    """Return who ended a session, as words for the journal."""
    if client.is_kicked:
        return f"{Side.BROKER}: an administrator"
    return f"{ended.by}: {ended.limit}" if ended.limit else ended.by


def session_limits(config: Config) -> SessionLimits:
    """Return what the configuration says of a session."""
    session = config.session
    return SessionLimits(session.timeout, session.idle_timeout, session.first_call_timeout, session.grace)


def _suspect(ended: Ended) -> Verdict:
    """Return what speaks against an office because of the way its session ended, however well it answers a probe."""
    if ended.by is Side.OFFICE:
        return Verdict(Reason.CUT_OFF)
    if not ended.followed:
        return Verdict(Reason.DIRTY, "its session may have ended amid a call: the calls could not be followed")
    if ended.call_under_way:
        return Verdict(Reason.DIRTY, "its session ended amid a call")
    if not ended.office_let_go and ended.by is Side.CLIENT:
        return Verdict(Reason.DIRTY, "it did not let go of a client that had gone")
    # A client that ooodd has cut off comes back, and finds its old objects by their ids if it gets the same office.
    return Verdict(Reason.CUT_OFF, "ooodd ended its session") if ended.by is Side.BROKER else Verdict()
