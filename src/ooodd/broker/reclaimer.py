# SPDX-License-Identifier: LGPL-2.1-or-later
"""The reclaimer: looks whether a session that the pool asks for can be ended, and ends it or lets it go on.

While the office is asked what is open in it, nothing is received from the client. So a call that comes meanwhile stays
in the client's socket. It is found there before the session would be ended, and the session goes on with it. No call
that has reached the office is cut off.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable

from ooodd.datapath.path import DataPath
from ooodd.errors import OooddError
from ooodd.pool.reclaim import Reclaiming


class Reclaimer:
    """Carries out the pool's Reclaim. Its owner calls `stop` and `close`."""

    def __init__(
        self, reclaiming: Reclaiming, is_clean: Callable[[int], Awaitable[bool]], answered: Callable[[], None]
    ) -> None:
        """Call `answered` when the pool has been told that a session can't be ended.

        `is_clean` finds out whether nothing is open in a worker's office. It may raise `OooddError`.
        """
        self._reclaiming = reclaiming
        self._is_clean = is_clean
        self._answered = answered
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    def begin(self, session: int, worker: int, client: socket.socket, path: DataPath) -> None:
        """Begin with the session that a client has with a worker, on this data path."""
        task = asyncio.create_task(self._reclaim(session, worker, client, path), name=f"reclaim session {session}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """End no session any more: the next broker decides anew."""
        self._stopped = True

    async def close(self) -> None:
        """Cancel what is under way."""
        self.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _reclaim(self, session: int, worker: int, client: socket.socket, path: DataPath) -> None:
        ended = False
        try:
            ended = await self._end_if_left(session, worker, client, path)
        finally:
            if not ended:
                self._reclaiming.spare(session, time.monotonic())
                self._answered()

    async def _end_if_left(self, session: int, worker: int, client: socket.socket, path: DataPath) -> bool:
        """End the session if nothing is open in its office and nothing comes meanwhile."""
        quiet_since = path.quiet_since
        if quiet_since is None:
            return False
        path.pause()
        try:
            if not await self._has_nothing_open(worker):
                return False
            # From here on nothing is awaited before the end is granted.
            if self._stopped or path.quiet_since != quiet_since or _has_more(client):
                return False
            if not self._reclaiming.grant(session, time.monotonic()):
                return False
            ended = await path.end()
            if not ended:
                self._reclaiming.take_back(session)
            return ended
        finally:
            path.resume()

    async def _has_nothing_open(self, worker: int) -> bool:
        """Ask the office. Without an answer nothing is certain."""
        try:
            return await self._is_clean(worker)
        except OooddError:
            return False


def _has_more(connection: socket.socket) -> bool:
    """Whether bytes, or the end, have come from the client and wait in its socket."""
    try:
        connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
