# SPDX-License-Identifier: LGPL-2.1-or-later
"""Forwarding: the bytes of one session, both ways, between a client and its office.

One eager callback a direction: what has been received is sent at once, without a turn of the loop (see `eager`). Only
what the other side doesn't take is kept, at most one chunk, and nothing more is received in that direction until it
has gone (back-pressure). So an idle session holds no buffer, and a stalled one two chunks.

End of file is passed on by half-close: a client that has sent its last byte still gets its answers. The session ends
with the office's end of file, because only then the office has let go of it; a client that has vanished is therefore
replaced by a sink until the office has noticed. See shutdown(2), and systemd's socket-proxyd for the same duties.

While a byte is in nobody's socket but in our memory, a mark says so, in memory that outlives us: a session may go on
under the next broker only if this one held nothing of it.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from ooodd.datapath import eager
from ooodd.uno.urp import Calls

# socket-proxyd's buffer.
CHUNK_SIZE = 256 * 1024
# How long, in seconds, a client may take for the last bytes of an office that has ended.
LINGER_LIMIT = 5.0

# Received bytes pass through here. One loop, one callback at a time: one buffer serves all sessions.
_chunk = bytearray(CHUNK_SIZE)
_view = memoryview(_chunk)


class Side(StrEnum):
    """Who ended a session."""

    CLIENT = "the client"
    OFFICE = "its office"
    BROKER = "ooodd"


@dataclass(frozen=True)
class SessionLimits:
    """What the configuration says of a session, in seconds; None for no limit."""

    timeout: float | None = None
    idle_timeout: float | None = None
    # How long an office may go on without a byte for a client that has closed its sending side, or has gone.
    grace: float = 10.0


@dataclass(frozen=True)
class Ended:
    """How a session ended."""

    # Who was first,
    by: Side
    # by which of the limits, if that was ooodd,
    limit: str
    # whether the office let go of it by itself,
    office_let_go: bool
    # whether the client's last call was still without an answer,
    call_under_way: bool
    # and how much was forwarded.
    to_office: int
    to_client: int


class Holding:
    """Where a session marks that it holds bytes: a byte for each direction, in memory that may outlive the process."""

    def __init__(self, memory: "memoryview | bytearray | None" = None, to_office: int = 0, to_client: int = 1) -> None:
        """Take the memory and the two places in it; none of it for memory of our own."""
        self.memory = bytearray(2) if memory is None else memory
        self.to_office = to_office
        self.to_client = to_client


class Forwarding:
    """One session's forwarding. Both sockets must not block; they stay the caller's to close."""

    def __init__(
        self,
        client: socket.socket,
        office: socket.socket,
        limits: SessionLimits,
        holding: Holding | None = None,
        began: float | None = None,
    ) -> None:
        """Prepare; `run` does it. The session began just now, or when `time.monotonic` was `began`."""
        # So a whole chunk is taken at once, while the office reads the one before. wmem_max limits it, see socket(7).
        office.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * CHUNK_SIZE)
        self._loop = asyncio.get_running_loop()
        self._limits = limits
        self._began = time.monotonic() if began is None else began
        self._calls = Calls()
        marks = holding or Holding()
        self._to_office = _Direction(self._loop, client, office, (marks.memory, marks.to_office), self._calls.to_office)
        self._to_client = _Direction(self._loop, office, client, (marks.memory, marks.to_client), self._calls.to_client)
        self._to_office.on_end(self._client_ended, self._office_deaf)
        self._to_client.on_end(self._office_ended, self._client_vanished)
        self._first: Side | None = None
        self._limit = ""
        self._done: asyncio.Future[bool] = self._loop.create_future()
        self._timers: dict[str, asyncio.TimerHandle] = {}

    async def run(self) -> Ended:
        """Forward everything until the session ends.

        Cancellation stops at once; both sockets are then only good for closing.
        """
        try:
            self._to_office.start()
            self._to_client.start()
            if self._limits.timeout is not None:
                left = max(0.0, self._began + self._limits.timeout - time.monotonic())
                self._set_timer("limit", left, self._exceed, "timeout", self._limits.timeout)
            if self._limits.idle_timeout is not None:
                self._set_timer("idle", self._limits.idle_timeout, self._check_idle, self._limits.idle_timeout)
            let_go = await self._done
        finally:
            self._to_office.stop()
            self._to_client.stop()
            for timer in self._timers.values():
                timer.cancel()
        return Ended(
            by=self._first or Side.BROKER,
            limit=self._limit,
            office_let_go=let_go,
            call_under_way=self._calls.under_way,
            to_office=self._to_office.total,
            to_client=self._to_client.total,
        )

    @property
    def still_since(self) -> float | None:
        """Since when no byte has moved, in seconds of `time.monotonic`; None while a call is under way."""
        return None if self._calls.under_way else max(self._to_office.moved, self._to_client.moved)

    def freeze(self) -> "asyncio.Future[list[None]]":
        """Receive nothing more from now on; the future is done when nothing is held any more. `run` goes on to wait.

        It may have begun or not. One that has ended touches its sockets no more.
        """
        directions = () if self._done.done() else (self._to_office, self._to_client)
        return asyncio.gather(*(direction.freeze() for direction in directions))

    def office_lost(self) -> None:
        """Take note that the office is gone. Its last bytes and its end of file are still passed on, within limits.

        Nothing of it is marked any more: the next office has the marks.
        """
        self._first = self._first or Side.OFFICE
        self._to_office.unmark()
        self._to_client.unmark()
        if not self._done.done():
            self._set_timer("gone", LINGER_LIMIT, self._finish, False)  # noqa: FBT003

    def _client_ended(self, *, reset: bool) -> None:
        """End of file from the client: unless it was reset, it may still want its answers."""
        self._first = self._first or Side.CLIENT
        if reset:
            self._client_vanished()
        elif "gone" not in self._timers:
            self._set_timer("gone", self._limits.grace, self._check_half_closed)

    def _client_vanished(self) -> None:
        """Nobody takes the answers: drop them until the office has noticed that its client is gone."""
        self._first = self._first or Side.CLIENT
        self._to_office.end()
        self._to_client.drop()
        self._set_timer("gone", self._limits.grace, self._finish, False)  # noqa: FBT003

    def _office_deaf(self) -> None:
        """The office takes nothing any more; its own end of file follows."""

    def _office_ended(self, *, reset: bool) -> None:  # noqa: ARG002 - a reset office has let go as well
        """End of file from the office, and all that it sent has been passed on."""
        self._first = self._first or Side.OFFICE
        self._finish(True)  # noqa: FBT003

    def _check_half_closed(self) -> None:
        """Give the office up if it has said nothing more for so long, and wait on if it has."""
        left = self._to_client.moved + self._limits.grace - time.monotonic()
        if left > 0:
            self._set_timer("gone", left, self._check_half_closed)
        else:
            self._finish(False)  # noqa: FBT003

    def _check_idle(self, idle_timeout: float) -> None:
        left = max(self._to_office.moved, self._to_client.moved) + idle_timeout - time.monotonic()
        if left > 0:
            self._set_timer("idle", left, self._check_idle, idle_timeout)
        else:
            self._exceed("idle_timeout", idle_timeout)

    def _exceed(self, limit: str, seconds: float) -> None:
        if self._first is None:
            self._first = Side.BROKER
            self._limit = f"[session] {limit} = {seconds:g} s"
        self._finish(False)  # noqa: FBT003

    def _set_timer(self, name: str, delay: float, call: Callable[..., None], *arguments: object) -> None:
        if name in self._timers:
            self._timers[name].cancel()
        self._timers[name] = self._loop.call_later(delay, call, *arguments)

    def _finish(self, let_go: bool) -> None:  # noqa: FBT001
        if not self._done.done():
            self._done.set_result(let_go)


class _OnEnd(Protocol):
    def __call__(self, *, reset: bool) -> None: ...


class _Direction:
    """Forwards what `source` sends to `sink`. Calls `ended` once after the last byte, `broken` if the sink is gone."""

    __slots__ = (
        "_broken",
        "_drop",
        "_ended",
        "_flushed",
        "_follow",
        "_loop",
        "_mark",
        "_marks",
        "_pending",
        "_sink",
        "_source",
        "moved",
        "total",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        source: socket.socket,
        sink: socket.socket,
        mark: "tuple[memoryview | bytearray, int]",
        follow: Callable[[memoryview], None],
    ) -> None:
        self._loop = loop
        self._source = source
        self._sink = sink
        self._marks, self._mark = mark
        self._follow = follow
        self._pending: memoryview | None = None
        self._drop = False
        self._flushed: asyncio.Future[None] | None = None
        self.total = 0
        # When a byte last came from the source or was taken by the sink, of time.monotonic.
        self.moved = time.monotonic()

    def on_end(self, ended: "_OnEnd", broken: Callable[[], None]) -> None:
        self._ended = ended
        self._broken = broken

    def start(self) -> None:
        self._marks[self._mark] = 0
        self._watch()

    def unmark(self) -> None:
        """Leave the marks to somebody else."""
        self._marks, self._mark = bytearray(1), 0

    def freeze(self) -> "asyncio.Future[None]":
        """Receive no more; the future is done when the sink has taken what is pending."""
        self._flushed = self._loop.create_future()
        self._unwatch()
        if self._pending is None:
            self._flushed.set_result(None)
        return self._flushed

    def stop(self) -> None:
        """Touch neither socket any more. What is pending stays marked as held."""
        self._unwatch()
        self._drop_pending()

    def end(self) -> None:
        """Give up the source; tell the sink that nothing more comes."""
        self.stop()
        self._half_close()

    def drop(self) -> None:
        """Go on to receive, for the end of file, but keep nothing."""
        self._drop = True
        if self._pending is not None:
            self._forget_pending()
            self._watch()

    def _readable(self) -> bool:
        """Pass on what there is. Return whether that was all, see `eager.callbacks`."""
        self._marks[self._mark] = 1
        try:
            size = self._source.recv_into(_chunk)
        except BlockingIOError:
            self._marks[self._mark] = 0
            return True
        except OSError:
            self._end_of_file(reset=True)
            return False
        if not size:
            self._end_of_file(reset=False)
            return False
        return self._pass_on(_view[:size])

    def _pass_on(self, data: memoryview) -> bool:
        """Send the data, and hold what the sink doesn't take. Return as `_readable` does."""
        size = len(data)
        self.total += size
        try:
            sent = size if self._drop else self._sink.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lose_sink()
            sent = size
        if sent == size:
            self._marks[self._mark] = 0
        self.moved = time.monotonic()
        self._follow(data)
        if sent == size:
            return not self._drop
        self._unwatch()
        self._hold(bytes(data[sent:]))
        return False

    def _end_of_file(self, *, reset: bool) -> None:
        self._marks[self._mark] = 0
        self._unwatch()
        self._half_close()
        self._ended(reset=reset)

    def _hold(self, data: bytes) -> None:
        self._pending = memoryview(data)
        self._loop.add_writer(self._sink, self._writable)

    def _forget_pending(self) -> None:
        """Keep nothing for the sink any more: it has taken all, or never will."""
        self._drop_pending()
        self._marks[self._mark] = 0

    def _drop_pending(self) -> None:
        if self._pending is not None:
            self._loop.remove_writer(self._sink)
            self._pending = None
        if self._flushed is not None and not self._flushed.done():
            self._flushed.set_result(None)

    def _writable(self) -> None:
        assert self._pending is not None
        try:
            sent = self._sink.send(self._pending)
        except BlockingIOError:
            return
        except OSError:
            self._forget_pending()
            self._watch()
            self._lose_sink()
            return
        self.moved = time.monotonic()  # a slow reader is none that stands still
        if sent < len(self._pending):
            self._pending = self._pending[sent:]
            return
        self._forget_pending()
        self._watch()

    def _watch(self) -> None:
        if self._flushed is not None:  # frozen
            return
        self._loop.add_reader(self._source, self._readable)
        eager.callbacks[self._source.fileno()] = self._readable

    def _unwatch(self) -> None:
        self._loop.remove_reader(self._source)
        eager.callbacks.pop(self._source.fileno(), None)

    def _lose_sink(self) -> None:
        self._drop = True
        self._broken()

    def _half_close(self) -> None:
        with contextlib.suppress(OSError):  # the sink is gone already
            self._sink.shutdown(socket.SHUT_WR)
