# SPDX-License-Identifier: LGPL-2.1-or-later
"""Forwarding: the data path through the broker, two `Direction`s between a client and its office.

End of file is passed on by a half-close: a client that has sent its last byte still gets its replies. The session ends
with the office's end of file, because only then has the office let go of it. If the client vanishes, what the office
sends is dropped until the office has noticed. See shutdown(2), and systemd's socket-proxyd, which has the same tasks.

What outlives the process is in a `Record`. A forwarding on a record with a history goes on from there.
"""

import asyncio
import socket
import time

from ooodd.datapath.direction import CHUNK_SIZE, Callbacks, Direction
from ooodd.datapath.path import OFFICE_OWES_FACTOR, Ended, SessionLimits, Side
from ooodd.datapath.record import Record
from ooodd.datapath.timers import Timers
from ooodd.uno.opening import OpeningReader
from ooodd.uno.urp import Calls

# How long, in seconds, a client may take for the last bytes of an office that has ended.
LINGER_LIMIT = 5.0


class Forwarding:
    """The data path of one session, see `DataPath`. Both sockets must not block; they stay the caller's to close."""

    mode = "forward"
    reads_client = True

    def __init__(
        self,
        client: socket.socket,
        office: socket.socket,
        limits: SessionLimits,
        record: Record | None = None,
        began: float | None = None,
    ) -> None:
        """Prepare; `run` does it. The session began when `time.monotonic` was `began`; None for just now."""
        # So a whole chunk is sent at once, while the office reads the one before. wmem_max limits it, see socket(7).
        office.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * CHUNK_SIZE)
        self._loop = asyncio.get_running_loop()
        self._limits = limits
        self._began = time.monotonic() if began is None else began
        record = record or Record()
        self._calls = record.calls()
        # Followed until the client's first call: the calls of the office are there to agree on the protocol.
        self._opening = OpeningReader()
        self._office_calls = Calls()
        self._to_office = Direction(
            client,
            office,
            record.memory,
            Record.TO_OFFICE,
            self._read_first,
            Callbacks(self._client_ended, self._office_deaf, self._check_frozen, self._fail),
        )
        self._to_client = Direction(
            office,
            client,
            record.memory,
            Record.TO_CLIENT,
            self._read_first_answer,
            Callbacks(self._office_ended, self._client_vanished, self._check_frozen, self._fail),
        )
        self._first: Side | None = None
        self._limit = ""
        self._reclaimed = False
        # The result is whether the office has let go.
        self._done: asyncio.Future[bool] = self._loop.create_future()
        self._frozen: asyncio.Future[None] | None = None
        self._timers = Timers(self._fail)

    def begin(self) -> None:
        """Do nothing: `run` begins."""

    async def run(self) -> Ended:
        """Forward everything until the session ends. Raises any error of a callback, which ends the session as well.

        Cancellation stops at once; both sockets are then good only for closing, unless it was frozen before.
        """
        try:
            self._start()
            let_go = await self._done
        finally:
            self._stop()
            self._timers.stop()
        return Ended(
            by=self._first or Side.BROKER,
            limit=self._limit,
            office_let_go=let_go,
            call_under_way=self._calls.under_way,
            followed=self._calls.followed,
            to_office=self._to_office.total,
            to_client=self._to_client.total,
            reclaimed=self._reclaimed,
        )

    async def look(self) -> None:
        """Do nothing: what passes is seen."""

    @property
    def quiet_since(self) -> float | None:
        """Since when no byte has moved, in seconds of `time.monotonic`; None while a call is, or may be, under way.

        A forwarding that goes on with a session knows only of the time since it was made.
        """
        moving = self._calls.under_way or self._to_office.pending or self._to_client.pending or self._done.done()
        # A client that has not come to its first call has another limit.
        begins = "first_call" in self._timers
        return None if moving or begins or self._first is not None else self._last_moved()

    @property
    def process(self) -> bytes:
        """What tells the client's process from every other one; empty as long as that is not known.

        A forwarding that goes on with a session seldom learns it.
        """
        return self._opening.process

    def pause(self) -> None:
        """Receive nothing more from the client, until `resume`."""
        self._to_office.freeze()

    def resume(self) -> None:
        """Receive from the client again, unless it is frozen or has ended."""
        if self._frozen is None and self._first is None and not self._done.done():
            self._to_office.thaw()

    async def end(self) -> bool:
        """End the session for the sake of another client. It is `pause` that keeps calls away meanwhile."""
        if self._first is None:
            self._first = Side.BROKER
            self._reclaimed = True
        self._give_up()
        return True

    def freeze(self) -> "asyncio.Future[None]":
        """Receive nothing more from now on; the future is done when nothing is pending. `run` goes on to wait.

        `run` may have begun or not. If it has ended, the sockets are not touched any more. If the session ends before
        all that is pending has been sent, the future is done as well, but the record still holds.
        """
        if self._frozen is None or self._frozen.cancelled():
            self._frozen = self._loop.create_future()
        if not self._done.done():
            self._to_office.freeze()
            self._to_client.freeze()
        self._check_frozen()
        return self._frozen

    def office_lost(self) -> None:
        """Take note that the office's process has ended.

        Its last bytes and its end of file are still delivered, within LINGER_LIMIT. Nothing is written to the record
        any more: the worker's next session has that memory.
        """
        self._first = self._first or Side.OFFICE
        self._calls.detach()
        self._to_office.detach()
        self._to_client.detach()
        if not self._done.done():
            self._timers.set("linger", LINGER_LIMIT, self._give_up)

    def client_left(self) -> None:
        """Do nothing: the end of file tells it."""

    def _start(self) -> None:
        self._to_office.start()
        self._to_client.start()
        if self._limits.timeout is not None:
            left = max(0.0, self._began + self._limits.timeout - time.monotonic())
            self._timers.set("timeout", left, self._exceed, "timeout", self._limits.timeout)
        if self._limits.idle_timeout is not None:
            self._timers.set("idle_timeout", self._limits.idle_timeout, self._check_idle, self._limits.idle_timeout)
        if self._limits.first_call_timeout is not None:
            limit = self._limits.first_call_timeout
            self._timers.set("first_call", limit, self._check_first_call, limit)

    def _stop(self) -> None:
        self._to_office.stop()
        self._to_client.stop()
        self._check_frozen()

    def _read_first(self, view: memoryview) -> None:
        """Count the calls in the client's first bytes, and look for what they tell of it."""
        self._calls.to_office(view)
        self._office_calls.to_client(view)
        self._opening.feed(view)
        if self._opening.done:
            self._to_office.count_calls = self._calls.to_office
            self._to_client.count_calls = self._calls.to_client
            self._timers.cancel("first_call")

    def _read_first_answer(self, view: memoryview) -> None:
        """Count the calls of both sides in the office's first bytes."""
        self._calls.to_client(view)
        self._office_calls.to_office(view)

    def _last_moved(self) -> float:
        return max(self._to_office.moved, self._to_client.moved)

    # What the directions report

    def _client_ended(self, reset: bool) -> None:  # noqa: FBT001
        """End of file from the client: unless it has reset the connection, it may still want its replies."""
        self._first = self._first or Side.CLIENT
        if reset:
            self._client_vanished()
        else:
            self._begin_grace()

    def _client_vanished(self) -> None:
        """Nobody takes the replies: drop them until the office has noticed that its client is gone."""
        self._first = self._first or Side.CLIENT
        self._to_office.close()
        self._to_client.drop()
        self._check_frozen()
        self._begin_grace()

    def _office_deaf(self) -> None:
        """The office receives nothing more; its own end of file follows."""

    def _office_ended(self, reset: bool) -> None:  # noqa: ARG002, FBT001 - an office that resets has let go as well
        """End of file from the office, and all that it sent has been delivered."""
        self._first = self._first or Side.OFFICE
        self._finish(let_go=True)

    def _check_frozen(self) -> None:
        if self._frozen is None or self._frozen.done():
            return
        if not (self._to_office.pending or self._to_client.pending):
            self._frozen.set_result(None)

    def _fail(self, error: BaseException) -> None:
        """End the session at once: after lost bytes, no other byte may be delivered."""
        try:
            self._stop()
        finally:
            if not self._done.done():
                self._done.set_exception(error)

    # Timers

    def _begin_grace(self) -> None:
        self._timers.set("grace", self._limits.grace, self._check_grace)

    def _check_grace(self) -> None:
        """Give the office up if it has sent nothing for the grace period, or wait on."""
        left = self._to_client.moved + self._limits.grace - time.monotonic()
        if left > 0:
            self._timers.set("grace", left, self._check_grace)
        else:
            self._give_up()

    def _check_idle(self, idle_timeout: float) -> None:
        # A call may take long. Of one that can't be followed nothing is known but its silence.
        working = self._calls.followed and self._calls.under_way
        left = idle_timeout if working else self._last_moved() + idle_timeout - time.monotonic()
        if left > 0:
            self._timers.set("idle_timeout", left, self._check_idle, idle_timeout)
        else:
            self._exceed("idle_timeout", idle_timeout)

    def _check_first_call(self, limit: float) -> None:
        """End a session whose client has not come to its first call, though it was its turn."""
        calls = self._calls
        owes = self._opening.client_owes(
            amid_block=calls.amid_block, office_waits=self._office_calls.under_way, client_waits=calls.under_way
        )
        most = self._began + OFFICE_OWES_FACTOR * limit
        if calls.followed and not owes and time.monotonic() < most:
            self._timers.set("first_call", limit, self._check_first_call, limit)
        else:
            self._exceed("first_call_timeout", limit)

    def _exceed(self, limit: str, seconds: float) -> None:
        if self._first is None:
            self._first = Side.BROKER
            self._limit = f"[session] {limit} = {seconds:g} s"
        self._give_up()

    def _give_up(self) -> None:
        self._finish(let_go=False)

    def _finish(self, *, let_go: bool) -> None:
        if not self._done.done():
            self._done.set_result(let_go)
