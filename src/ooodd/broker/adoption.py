# SPDX-License-Identifier: LGPL-2.1-or-later
"""Adoption: what a broker takes over from the one before, which are offices, sessions, queued clients and the totals.

What it finds depends on how the other one ended. After a restart everything fits. After a kill it may be amid anything.
So a session goes on only if the marks say that the other broker held no byte of it. A worker is trusted only if they
say that no client had it, and only after a probe. For each client that can't be taken over there is one line in the
journal.
"""

import socket
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace

from ooodd import messages
from ooodd.broker.client import Client, Phase, Tenure, peek_opening
from ooodd.broker.kept import Kept, read
from ooodd.datapath.path import SessionLimits
from ooodd.datapath.paths import new_path
from ooodd.datapath.record import Record
from ooodd.journal import Journal
from ooodd.office.keeper import Keeper, Verdict
from ooodd.office.office import Office
from ooodd.pool.actions import Action, Reason
from ooodd.pool.pool import Place, Pool, Worker
from ooodd.systemd.fdstore import FdStore, shut_down
from ooodd.systemd.marks import MOST_WORKERS, Slot
from ooodd.systemd.peer import peer
from ooodd.systemd.users import Users
from ooodd.uno.urp import is_opening


class Adoption:
    """Tells pool and keeper what there is. What the broker has to do then is in `clients` and `actions`."""

    def __init__(
        self, pool: Pool, keeper: Keeper, store: FdStore, users: Users, journal: Journal, limits: SessionLimits
    ) -> None:
        """Take over nothing yet."""
        self._pool = pool
        self._keeper = keeper
        self._store = store
        self._marks = store.marks
        self._users = users
        self._journal = journal
        # Nobody knows what has been called in a session that goes on.
        self._limits = replace(limits, first_call_timeout=None)
        self._now = time.monotonic()
        # Those with a session, and then those that are queued, in the order in which they joined.
        self.clients: list[Client] = []
        self.actions: list[Action] = []

    def take_over(self, left: Mapping[str, Sequence[socket.socket]], running: Mapping[int, Office]) -> None:
        """Find out what goes on. Sockets that are of no use are closed; the others are their clients'."""
        found = self._read(left)
        sessions = self._sort_sessions(found)
        queued = {kept.session: kept for kept in found if not kept.worker}
        self._count_sessions(queued, {kept.session for kept in found})
        self._count_losses(running)
        verdicts = {
            number: self._take_over_office(number, office, sessions.pop(number, None))
            for number, office in sorted(running.items())
        }
        for kept in sessions.values():
            self._give_up(kept, "its office ended meanwhile")
        if left or running:
            adopted = len(self.clients)
            self._journal.log(messages.BROKER_TAKES_OVER, workers=len(running), sessions=adopted, queued=len(queued))
        for number, verdict in verdicts.items():  # now that the pool knows what runs, and starts nothing twice
            if verdict is not None:
                self.actions += self._pool.probed(number, self._now, **asdict(verdict))
        for kept in sorted(queued.values(), key=lambda kept: (kept.since, kept.session)):
            self._take_over_queued(kept)

    def _read(self, left: Mapping[str, Sequence[socket.socket]]) -> list[Kept]:
        """Return what is kept of each client, and drop all else. No new session gets a number that is in use."""
        found, unknown = read(left)
        for name in unknown:
            self._drop([name], left[name])
        self._marks.last_session = max([self._marks.last_session, *(kept.session for kept in found)])
        whole = []
        for kept in found:
            if not kept.whole and kept.worker:
                self._give_up(kept, "not all of it could be kept")
            elif not kept.whole:
                self._drop(kept.names, kept.sockets)
            elif kept.worker and not self._marks.inherited:
                self._give_up(kept, "the ooodd before was of another version")
            else:
                whole.append(kept)
        return whole

    def _sort_sessions(self, found: list[Kept]) -> dict[int, Kept]:
        """Return the sessions by worker. One whose worker has been leased again since was ending, and is given up."""
        sessions: dict[int, Kept] = {}
        for kept in found:
            if not kept.worker:
                continue
            if self._leased_to_another(kept):
                self._give_up(kept, "it was just ending")
                continue
            if (twice := sessions.pop(kept.worker, None)) is not None:
                self._give_up(twice, "it was just ending")
            sessions[kept.worker] = kept
        return sessions

    def _leased_to_another(self, kept: Kept) -> bool:
        return 1 <= kept.worker <= MOST_WORKERS and self._marks.slot(kept.worker).session not in (0, kept.session)

    def _count_sessions(self, queued: dict[int, Kept], kept: Collection[int]) -> None:
        """Count the sessions once that were counted, but not begun. Their clients are still queued, or are lost.

        A client that has begun a session and is found without its office was just ending. It is not queued again.
        """
        for number in self._marks.used():
            slot = self._marks.slot(number)
            if not slot.session or slot.stopping:
                continue
            began = slot.begun or (slot.begun_by_2 and not _has_opening(queued.get(slot.session)))
            if slot.session in queued and began:
                self._give_up(queued.pop(slot.session), "it was just ending", number)
            elif not began and (slot.session in queued or slot.session not in kept):
                self._pool.totals.uncount_session()
        session, name = self._marks.accepted
        if session and session not in kept:
            self._journal.log(messages.CLIENT_LOST, session=session, client=name)
        self._marks.accepted = 0, ""

    def _count_losses(self, running: Mapping[int, Office]) -> None:
        """Count the offices that ended while no broker ran: those that were ready, and not about to be stopped."""
        for number in self._marks.used():
            slot = self._marks.slot(number)
            alive = number in running and slot.pid in (0, running[number].pid)
            if slot.pid and not alive and not slot.stopping:
                self._pool.totals.count_lost()
                self._journal.log(messages.WORKER_CRASHED, worker=number, detail="while no ooodd ran")
            if not alive:
                slot.clear()

    def _take_over_office(self, number: int, office: Office, kept: Kept | None) -> Verdict | None:
        """Take over a worker; a verdict on one that is to be recycled without a probe."""
        slot = self._marks.slot(number)
        ready = slot.pid == office.pid
        before = Worker(number, uses=slot.uses, max_uses=slot.max_uses, started=slot.started)
        self._keeper.adopt(number, office)
        if kept is not None and (reason := _objection(slot, ready=ready)):
            self._give_up(kept, reason)
        elif kept is not None:
            client = self._client(kept, Phase.LEASED)
            self.actions += self._pool.adopt(number, self._now, before, (client.session, _place(client)))
            client.tenure = self._tenure(kept, client, slot)
            return None
        probe = self._pool.adopt(number, self._now, before)
        if not ready or slot.stopping:  # why it is stopped has been told and counted
            return Verdict(Reason.NOT_NEEDED)
        if slot.session:
            return Verdict(Reason.ADOPTED)
        self.actions += probe
        return None

    def _tenure(self, kept: Kept, client: Client, slot: Slot) -> Tenure:
        record = Record(slot.record)
        if slot.begun_by_2:
            record.forget_calls()
        (office,) = kept.offices
        path = new_path(client.connection, office, self._limits, record.memory, client.since)
        if not slot.begun:  # the other broker may have been killed just before this, or just after it
            path.begin()
        slot.begun = True  # as it was kept with its office, whatever the other broker came to
        return Tenure(kept.worker, office, path)

    def _take_over_queued(self, kept: Kept) -> None:
        client = self._client(kept, Phase.QUEUED)
        self.actions += self._pool.rejoin(client.session, _place(client), self._now)

    def _client(self, kept: Kept, phase: Phase) -> Client:
        (connection,) = kept.clients
        client = Client(kept.session, connection, peer(connection), kept.since, phase=phase, kept=kept.names)
        client.user = self._users.user(connection)
        self.clients.append(client)
        return client

    def _give_up(self, kept: Kept, why: str, worker: int = 0) -> None:
        client = peer(kept.clients[0]).name if kept.clients else "a client"
        number = worker or kept.worker
        self._journal.log(messages.SESSION_LOST, session=kept.session, client=client, worker=number, why=why)
        self._drop(kept.names, kept.sockets)

    def _drop(self, names: Sequence[str], sockets: Sequence[socket.socket]) -> None:
        for each in sockets:
            shut_down(each)
            each.close()
        for name in reversed(names):
            self._store.drop(name)


def _place(client: Client) -> Place:
    return Place(client.since, client.peer.host, client.user)


def _has_opening(kept: Kept | None) -> bool:
    """Return whether a client's first bytes are still in its socket: then its session has not begun."""
    return kept is not None and bool(is_opening(peek_opening(kept.clients[0])))


def _objection(slot: Slot, *, ready: bool) -> str:
    """Return why a session can't go on with the worker that runs; empty if it can."""
    if not ready or slot.stopping:
        return "its office ended meanwhile"
    if slot.held_by_2 or Record(slot.record).holding:
        return "bytes of it may be lost"
    return ""
