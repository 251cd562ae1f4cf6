# SPDX-License-Identifier: LGPL-2.1-or-later
"""Handing off: the data path in which the office has the client's own socket, and the broker none of its bytes.

The broker keeps a duplicate of the socket, to end the session by, and the control connection, by which the office
tells of it (`datapath.control`). So a broker that ends in any way takes nothing of a session with it, and the next one
goes on with these two.

The session ends when the control connection does: only then has the office let go of it. An office that closes a
session and still keeps something of it for longer than GONE_LIMIT is amid a call, or has been left something. An office
that dies ends its control connection without a word; its client sees nothing until the broker shuts the duplicate down.
"""

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Callable, Coroutine

from ooodd.datapath import control
from ooodd.datapath.control import Answer, Calls, Closed, Opening
from ooodd.datapath.path import OFFICE_OWES_FACTOR, Ended, SessionLimits, Side
from ooodd.datapath.timers import Timers
from ooodd.uno.opening import OpeningReader

# How long an office may take, in seconds, from the end of the connection to letting go. It takes 0.2 ms, and has taken
# 30.
GONE_LIMIT = 1.0
# How long it may take to answer, in seconds: its reader answers between two blocks, whatever the office does.
_ANSWER_LIMIT = 1.0
_NO_LINGER = struct.pack("ii", 0, 0)

_Work = Coroutine[None, None, None]


class Handoff:
    """The data path of one session, see `DataPath`. Both sockets must not block; they stay the caller's to close."""

    mode = "handoff"
    reads_client = False

    def __init__(
        self, client: socket.socket, connection: socket.socket, limits: SessionLimits, began: float | None = None
    ) -> None:
        """Prepare: `connection` is the control connection. The session began when `time.monotonic` was `began`."""
        self._loop = asyncio.get_running_loop()
        self._client = client
        self._control = connection
        self._limits = limits
        self._began = time.monotonic() if began is None else began
        self._closed: Closed | None = None
        self._first: Side | None = None
        self._limit = ""
        self._reclaimed = False
        # The result is whether the office has let go.
        self._done: asyncio.Future[bool] = self._loop.create_future()
        # What the office has said last, and since when the client is quiet by that.
        self._calls: Calls | None = None
        self._quiet_since: float | None = None
        self._opening = OpeningReader()
        self._asked: dict[type, asyncio.Future[Calls | Opening | Answer]] = {}
        self._timers = Timers(self._fail)
        self._tasks: set[asyncio.Task[None]] = set()
        self._reads = False

    def begin(self) -> None:
        """Give the client's socket to the office. If that fails the office has ended, and so will `run`."""
        with contextlib.suppress(OSError):
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        with contextlib.suppress(OSError):
            control.hand_over(self._control, self._client)

    async def run(self) -> Ended:
        """Wait until the session ends. Cancellation leaves it to the next broker."""
        try:
            self._start()
            let_go = await self._done
        finally:
            self._stop()
        # An office can have the last close of its client's socket block.
        with contextlib.suppress(OSError):
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        closed = self._closed
        by_office = Side.CLIENT if closed is not None and closed.by_client else Side.OFFICE
        return Ended(
            by=self._first or by_office,
            limit=self._limit,
            office_let_go=let_go,
            call_under_way=closed is None or closed.under_way > 0,
            followed=True,
            to_office=closed.to_office if closed else 0,
            to_client=closed.to_client if closed else 0,
            reclaimed=self._reclaimed,
        )

    async def look(self) -> None:
        """Ask the office, which answers within a millisecond unless it hangs."""
        if not self._done.done() and self._reads:
            try:
                await self._look()
            except asyncio.CancelledError:
                self._quiet_since = None
                raise

    @property
    def quiet_since(self) -> float | None:
        """Since when no byte has moved, as the last look has found it; None while a call is, or may be, under way."""
        return self._quiet_since

    @property
    def process(self) -> bytes:
        """What tells the client's process from every other one; empty as long as that is not known."""
        return self._opening.process

    def pause(self) -> None:
        """Do nothing: a call that comes after the last look keeps the session from ending, see `end`."""

    def resume(self) -> None:
        """Do nothing."""

    async def end(self) -> bool:
        """End the session for the sake of another client, unless the client has made a call since the last look."""
        if self._calls is None or self._first is not None or self._done.done():
            return False
        answer = await self._ask(Answer, control.end(self._calls.total))
        self._reclaimed = isinstance(answer, Answer) and answer.ended
        return self._reclaimed

    def freeze(self) -> "asyncio.Future[None]":
        """Return a future that is done: no byte of the session is in this process."""
        frozen: asyncio.Future[None] = self._loop.create_future()
        frozen.set_result(None)
        return frozen

    def office_lost(self) -> None:
        """Take note that the office's process has ended. Its last bytes are with the client already."""
        self._first = self._first or Side.OFFICE
        self._finish(let_go=True)

    def client_left(self) -> None:
        """Take note that the client has closed its side. The office has noticed too, unless it hangs."""
        if not self._done.done() and "grace" not in self._timers:
            self._timers.set("grace", self._limits.grace, self._give_up, Side.CLIENT)

    def _start(self) -> None:
        self._reads = True
        self._loop.add_reader(self._control, self._readable)
        if self._limits.timeout is not None:
            left = max(0.0, self._began + self._limits.timeout - time.monotonic())
            self._timers.set("timeout", left, self._exceed, "timeout", self._limits.timeout)
        if self._limits.idle_timeout is not None:
            limit = self._limits.idle_timeout
            self._check_after(limit, "idle_timeout", self._check_idle, limit)
        if self._limits.first_call_timeout is not None:
            limit = self._limits.first_call_timeout
            self._check_after(limit, "first_call", self._check_first_call, limit)

    def _stop(self) -> None:
        self._reads = False
        self._loop.remove_reader(self._control)
        self._timers.stop()
        for task in self._tasks:
            task.cancel()

    # What the office says

    def _readable(self) -> None:
        try:
            self._listen()
        except BaseException as error:
            self._fail(error)
            raise

    def _listen(self) -> None:
        """Act on the office's next message."""
        try:
            message = self._control.recv(control.MESSAGE_SIZE)
        except OSError:
            # Nothing there; or the office has closed before it read a question: what it said before comes next.
            return
        if not message:
            self._gone()
            return
        match said := control.parse(message):
            case Closed():
                if self._closed is None:
                    self._closed = said
                    self._await_gone()
            case Calls() | Opening() | Answer():
                if isinstance(said, Answer) and said.ended:  # perhaps later than anybody waited for it
                    self._first = self._first or Side.BROKER
                    self._await_gone()
                if (asked := self._asked.pop(type(said), None)) is not None and not asked.done():
                    asked.set_result(said)

    def _gone(self) -> None:
        """Nothing of the office has the session any more; or the office has ended."""
        self._loop.remove_reader(self._control)
        self._finish(let_go=True)

    async def _ask(self, kind: type, question: bytes) -> Calls | Opening | Answer | None:
        """Return the office's answer; None if there is none in time. There is one question of a kind at a time."""
        if (asked := self._asked.get(kind)) is None:
            asked = self._asked[kind] = self._loop.create_future()
            with contextlib.suppress(OSError):
                self._control.send(question, socket.MSG_NOSIGNAL)
        await asyncio.wait([asked], timeout=_ANSWER_LIMIT)
        if asked.done():
            return asked.result()
        self._asked.pop(kind, None)
        return None

    async def _look(self) -> None:
        """Find out which calls the client has made, and which process it is."""
        said = await self._ask(Calls, control.CALLS)
        if not isinstance(said, Calls):
            self._calls, self._quiet_since = None, None
            return
        if not self._opening.done:
            opening = await self._ask(Opening, control.OPENING)
            reader = OpeningReader()
            if isinstance(opening, Opening):
                reader.feed(memoryview(opening.data))
            self._opening = reader
        moved = time.monotonic() - said.quiet
        if self._opening.done:
            self._timers.cancel("first_call")
        # A client that has not come to its first call has another limit.
        begins = "first_call" in self._timers
        quiet = not (begins or said.under_way or said.amid_block) and self._first is None
        # As long as no call comes it is the same moment, whatever the clocks' steps are.
        if self._calls is None or self._calls.total != said.total or self._quiet_since is None:
            self._quiet_since = moved
        self._calls = said
        if not quiet:
            self._quiet_since = None

    # Limits

    async def _check_idle(self, limit: float) -> None:
        said = await self._ask(Calls, control.CALLS)
        left = limit - said.quiet if isinstance(said, Calls) and not said.under_way else limit
        if left > 0:
            self._check_after(left, "idle_timeout", self._check_idle, limit)
        else:
            self._exceed("idle_timeout", limit)

    async def _check_first_call(self, limit: float) -> None:
        """End a session whose client has not come to its first call, though it was its turn."""
        await self._look()
        if self._opening.done:
            return
        said = self._calls
        # An office that does not answer ooodd does not answer its client.
        owes = said is not None and self._opening.client_owes(
            amid_block=said.amid_block, office_waits=said.office_waits > 0, client_waits=said.under_way > 0
        )
        if not owes and time.monotonic() < self._began + OFFICE_OWES_FACTOR * limit:
            self._check_after(limit, "first_call", self._check_first_call, limit)
        else:
            self._exceed("first_call_timeout", limit)

    def _exceed(self, limit: str, seconds: float) -> None:
        """End the client's connection. The office then tells what it knows of the session, and lets go."""
        if self._first is None and self._closed is None:
            self._first = Side.BROKER
            self._limit = f"[session] {limit} = {seconds:g} s"
            with contextlib.suppress(OSError):
                self._client.shutdown(socket.SHUT_RDWR)
            self._await_gone()

    def _await_gone(self) -> None:
        if "gone" not in self._timers:
            self._timers.set("gone", GONE_LIMIT, self._give_up, None)

    def _give_up(self, by: Side | None) -> None:
        self._first = self._first or by
        self._finish(let_go=False)

    def _finish(self, *, let_go: bool) -> None:
        if not self._done.done():
            self._done.set_result(let_go)

    def _fail(self, error: BaseException) -> None:
        """End the session at once."""
        if not self._done.done():
            self._done.set_exception(error)

    def _check_after(self, delay: float, name: str, check: Callable[[float], _Work], limit: float) -> None:
        self._timers.set(name, delay, lambda: self._spawn(check(limit)))

    def _spawn(self, work: _Work) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._worked)

    def _worked(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)
