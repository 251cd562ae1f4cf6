# SPDX-License-Identifier: LGPL-2.1-or-later
"""The orders of an administrator to a running broker: recycle, kick, pause, resume.

Each is one event of the pool and one line of the journal, with the user who gave it.
"""

import time
from collections.abc import Iterable

from ooodd import messages
from ooodd.broker.client import Phase
from ooodd.broker.driver import Driver
from ooodd.errors import AdminError
from ooodd.pool.actions import Reason


class Orders:
    """Carries out orders. `by` is the user who gives one, as words for the journal."""

    def __init__(self, driver: Driver) -> None:
        """Take up a pause of an earlier broker."""
        self._driver = driver
        self._pool = driver.pool
        self._pool.queue.paused = driver.store.marks.paused

    def recycle(self, number: int | None, by: str) -> list[int]:
        """Replace the office of a worker, or of all; one with a client after its session. Return which run one.

        Raises `AdminError` if there is no such worker.
        """
        workers = self._pool.workers
        if number is not None and number not in workers:
            raise AdminError(f"there is no worker {number}", f"they are 1 to {len(workers)}")
        asked = [each for each in workers if number in (None, each) and self._driver.keeper.running(each) is not None]
        names = "all workers" if number is None else f"worker {number}"
        self._driver.journal.log(messages.RECYCLE_ASKED, workers=names, by=by)
        self._driver.do(self._pool.recycle(asked, time.monotonic(), Reason.ASKED))
        return asked

    def offices(self, numbers: Iterable[int]) -> dict[int, object]:
        """Return the offices that these workers run now."""
        running = {number: self._driver.keeper.running(number) for number in numbers}
        return {number: office for number, office in running.items() if office is not None}

    def kick(self, session: int, by: str) -> str:
        """End a session, or the wait of a client. The worker is replaced. Return the client's name.

        Raises `AdminError` if there is no such session, or none any more.
        """
        client = self._driver.clients.get(session)
        if client is None or client.phase in (Phase.INSPECTING, Phase.CLOSED):
            raise AdminError(f"there is no session {session}", "`ooodd status` shows those that there are")
        self._driver.journal.log(messages.SESSION_KICKED, session=session, client=client.peer.name, by=by)
        if session in self._pool.queue:
            self._driver.do(self._pool.turn_away(session, Reason.KICKED))
        elif client.path is not None:
            client.is_kicked = True
            self._driver.do(self._pool.leave(session, time.monotonic(), Reason.KICKED))
        else:  # it is silent, refused, or about to take up a worker
            client.hang_up()
        return client.peer.name

    def pause(self, by: str) -> None:
        """Give no client a worker from now on. Sessions go on. Outlives a restart of the broker."""
        if not self._pool.queue.paused:
            self._driver.journal.log(messages.POOL_PAUSED, by=by)
            self._set_paused(paused=True)

    def resume(self, by: str) -> None:
        """Give clients workers again."""
        if self._pool.queue.paused:
            self._driver.journal.log(messages.POOL_RESUMED, by=by)
            self._set_paused(paused=False)

    def _set_paused(self, *, paused: bool) -> None:
        self._driver.store.marks.paused = paused
        self._driver.do(self._pool.pause(time.monotonic(), paused=paused))
