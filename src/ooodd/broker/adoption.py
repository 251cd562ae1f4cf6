# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a broker takes over from the one before: the offices that run, who has one of them, who waits, the totals.

What it finds depends on how the other one ended. After a restart everything fits. After a kill it may be amid anything:
so a session goes on only if the marks say that the other broker held nothing of it, a worker is trusted only if they
say that nobody had it, and only after a probe. Who can't be taken over is told of in the journal, each by one line.
"""

import socket
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict

from ooodd import messages
from ooodd.broker.client import Client, clients_left
from ooodd.journal import Journal
from ooodd.office.keeper import Keeper, Verdict
from ooodd.office.office import Office
from ooodd.pool.actions import Action, Reason
from ooodd.pool.pool import Pool, Worker
from ooodd.systemd.fdstore import MOST_WORKERS, Store
from ooodd.uno.urp import is_opening


class Adoption:
    """Tells pool and keeper what there is; what is to be done then is in `clients` and `actions`."""

    def __init__(self, pool: Pool, keeper: Keeper, store: Store, journal: Journal) -> None:
        """Take over nothing yet."""
        self._pool = pool
        self._keeper = keeper
        self._store = store
        self._journal = journal
        # To be served: those with a session first, then those that wait, in their order.
        self.clients: list[Client] = []
        self.actions: list[Action] = []

    def take_over(self, left: Mapping[str, Sequence[socket.socket]], running: Mapping[int, Office]) -> None:
        """Find out what goes on. Sockets that are of no use are closed, the others are their clients'."""
        now = time.monotonic()
        sessions, waiting = clients_left(left)
        self._tell_of_the_lost({client.session for client in sessions.values()} | waiting.keys())
        if not left and not running:
            return
        self._correct_the_totals(running, waiting)
        verdicts = {
            number: self._take_over_office(number, office, sessions.pop(number, None), now)
            for number, office in sorted(running.items())
        }
        for number, client in sessions.items():
            self._give_up(client, number, "its office ended meanwhile")
        self._journal.log(
            messages.BROKER_TAKES_OVER, workers=len(running), sessions=len(self.clients), queued=len(waiting)
        )
        for number, verdict in verdicts.items():  # now that the pool knows what runs, and starts nothing twice
            if verdict is not None:
                self.actions += self._pool.probed(number, now, **asdict(verdict))
        self.clients += waiting.values()

    def _tell_of_the_lost(self, kept: AbstractSet[int]) -> None:
        """Tell of the client that the earlier broker had accepted, but not kept yet, when it was killed."""
        session, name = self._store.marks.accepted
        if session and session not in kept:
            self._journal.log(messages.CLIENT_LOST, session=session, client=name)
        self._store.marks.accepted = 0, ""

    def _correct_the_totals(self, running: Mapping[int, Office], waiting: dict[int, Client]) -> None:
        """Count the offices that ended while no broker ran: those that were ready, and not about to be stopped.

        And count the sessions once that were leased a worker, but had not begun: they are to be leased one again. Those
        that had begun were ending, and half of their sockets were kept no more; they wait for nothing.
        """
        for number in range(1, MOST_WORKERS + 1):
            slot = self._store.marks.slot(number)
            if slot.client in waiting and not slot.doomed:
                if is_opening(waiting[slot.client].opening()):
                    self._pool.totals.sessions -= 1
                else:
                    self._give_up(waiting.pop(slot.client), number, "it was just ending")
            alive = number in running and running[number].pid == slot.pid
            if slot.pid and not alive:
                if not slot.doomed:
                    self._pool.totals.crashed += 1
                    self._journal.log(messages.WORKER_CRASHED, worker=number, detail="while no ooodd ran")
                slot.clear()

    def _take_over_office(self, number: int, office: Office, client: Client | None, now: float) -> Verdict | None:
        """Take over a worker; a verdict on one that is to be recycled without a look, as one without its client."""
        slot = self._store.marks.slot(number)
        ready = slot.pid == office.pid
        before = Worker(number, uses=slot.uses, max_uses=slot.max_uses, started=slot.since)
        self._keeper.adopt(number, office)
        held = bool(slot.holding_to_office or slot.holding_to_client)
        if client is not None and ready and not held and not slot.doomed:
            self._pool.adopt(number, now, before, (client.session, client.peer.host))
            self.clients.append(client)
            return None
        if client is not None:
            self._give_up(client, number, "bytes of it may be lost" if ready else "its office ended meanwhile")
        probe = self._pool.adopt(number, now, before)
        if not ready:
            return Verdict(Reason.NOT_NEEDED, "it was about to start")
        if slot.client or slot.doomed:
            return Verdict(Reason.ADOPTED)
        self.actions += probe
        return None

    def _give_up(self, client: Client, number: int, why: str) -> None:
        self._journal.log(
            messages.SESSION_LOST, session=client.session, client=client.peer.name, worker=number, why=why
        )
        client.hang_up()
        self._store.drop(client.stored)
        client.close()
