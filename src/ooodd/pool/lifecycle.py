# SPDX-License-Identifier: LGPL-2.1-or-later
"""The life of a worker: what each transition does to the worker and the totals, and which action follows from it."""

from dataclasses import dataclass

from ooodd.pool.actions import Action, Break, Lease, Probe, Reason, Start, Stop, Totals
from ooodd.pool.workers import ALIVE, Event, Place, Worker, Workers


@dataclass(frozen=True)
class Lifecycle:
    """Moves workers from state to state. An event that can't happen raises IllegalTransition and changes nothing."""

    workers: Workers
    totals: Totals

    def start(self, worker: Worker, now: float) -> Start:
        """Start an office."""
        with self.workers.move(worker, Event.START, now):
            return Start(worker.id)

    def ready(self, worker: Worker, now: float, max_uses: int, lifespan: float) -> None:
        """Take a new office into service."""
        with self.workers.move(worker, Event.READY, now):
            worker.uses, worker.max_uses = 0, max_uses
            worker.replace_for = ""
            worker.started = worker.used = worker.probed = now
            worker.lifespan = lifespan
            worker.failures = 0
            worker.detail = ""

    def adopt(
        self, worker: Worker, now: float, before: Worker, max_uses: int, holder: tuple[int, Place] | None
    ) -> None:
        """Take over an office that an earlier broker started: busy if it has a holder, otherwise to be probed."""
        with self.workers.move(worker, Event.ADOPT if holder is None else Event.ADOPT_BUSY, now):
            worker.uses, worker.max_uses = before.uses, max_uses
            worker.started = before.started
            worker.used = worker.probed = now
            if holder is not None:
                self._give(worker, *holder)

    def lease(self, worker: Worker, now: float, client: int, place: Place) -> Lease:
        """Give a worker to a client."""
        with self.workers.move(worker, Event.LEASE, now):
            self._give(worker, client, place)
            worker.uses += 1
            self.totals.sessions += 1
        return Lease(worker.id, client)

    def undo_lease(self, worker: Worker, now: float) -> None:
        """Take a worker back that its client has not touched. The session does not count."""
        with self.workers.move(worker, Event.GIVE_BACK, now):
            worker.client = None
            worker.uses -= 1
            self.totals.sessions -= 1

    def inspect(self, worker: Worker, now: float) -> None:
        """Begin the inspection after a session. The worker is still the client's."""
        with self.workers.move(worker, Event.INSPECT, now):
            pass

    def probe(self, worker: Worker, now: float) -> Probe:
        """Probe an idle worker."""
        with self.workers.move(worker, Event.INSPECT, now):
            return Probe(worker.id)

    def keep(self, worker: Worker, now: float) -> None:
        """Put a worker that passed its inspection or probe back into service."""
        with self.workers.move(worker, Event.KEEP, now):
            if worker.client is not None:
                worker.used = now
            worker.client = None
            worker.probed = now

    def stop(self, worker: Worker, now: float, reason: Reason, detail: str = "") -> Stop:
        """Stop a worker. Its client, if it has one, has ended its session."""
        with self.workers.move(worker, Event.STOP, now):
            worker.client = None
            worker.detail = detail or reason
            self.totals.count_stop(reason)
        return Stop(worker.id, reason, detail)

    def break_off(self, worker: Worker, now: float, reason: Reason, detail: str = "") -> list[Action]:
        """Stop a worker and break its client's session. Do nothing if it is being stopped, or has been."""
        if worker.state not in ALIVE:
            return []
        broken = [] if worker.client is None else [Break(worker.id, worker.client)]
        return [*broken, self.stop(worker, now, reason, detail)]

    def stopped(self, worker: Worker, now: float) -> None:
        """Nothing is left of the office."""
        with self.workers.move(worker, Event.STOPPED, now):
            pass

    def back_off(self, worker: Worker, now: float, retry_at: float) -> None:
        """Nothing is left of an office that did not start. It is tried again at `retry_at`."""
        with self.workers.move(worker, Event.BACK_OFF, now):
            worker.retry_at = retry_at

    def rest(self, worker: Worker, now: float) -> None:
        """Nobody needs a worker that failed: it counts as stopped."""
        with self.workers.move(worker, Event.REST, now):
            pass

    def _give(self, worker: Worker, client: int, place: Place) -> None:
        worker.client, worker.place = client, place
        worker.process, worker.patience = b"", 1.0
