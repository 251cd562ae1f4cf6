# SPDX-License-Identifier: LGPL-2.1-or-later
"""Forwarding: the bytes of one session, both ways, between a client and its office.

One eager callback a direction: what has been received is sent at once, without a turn of the loop (see `eager`). Only
what the other side doesn't take is kept, at most one chunk, and nothing more is received in that direction until it
has gone (back-pressure). So an idle session holds no buffer, and a stalled one two chunks.

End of file is passed on by half-close: a client that has sent its last byte still gets its answers. The session ends
with the office's end of file, because only then the office has let go of it; a client that has vanished is therefore
replaced by a sink until the office has noticed. See shutdown(2), and systemd's socket-proxyd for the same duties.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from ooodd import eager

# socket-proxyd's buffer.
CHUNK_SIZE = 256 * 1024
# How long, in seconds, an office may take to let go of a client that has vanished, and a client to take the last bytes
# of an office that has ended.
LINGER_LIMIT = 5.0
# How long an office may go on without a word for a client that has closed its sending side. Such a client may want its
# answers; but the UNO ones that do this have died, perhaps while the office hangs.
HALF_CLOSED_LIMIT = 60.0

# Received bytes pass through here. One loop, one callback at a time: one buffer serves all sessions.
_chunk = bytearray(CHUNK_SIZE)
_view = memoryview(_chunk)


class Side(StrEnum):
    """Who ended a session."""

    CLIENT = "the client"
    OFFICE = "its office"
    BROKER = "ooodd"


@dataclass(frozen=True)
class Ended:
    """How a session ended: who was first, whether the office let go of it by itself, and how much was forwarded."""

    by: Side
    office_let_go: bool
    to_office: int
    to_client: int


class Forwarding:
    """One session's forwarding. Both sockets must not block; they stay the caller's to close."""

    def __init__(self, client: socket.socket, office: socket.socket) -> None:
        """Prepare; `run` does it."""
        # So a whole chunk is taken at once, while the office reads the one before. wmem_max limits it, see socket(7).
        office.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * CHUNK_SIZE)
        self._loop = asyncio.get_running_loop()
        self._to_office = _Direction(self._loop, client, office, self._client_ended, self._office_deaf)
        self._to_client = _Direction(self._loop, office, client, self._office_ended, self._client_vanished)
        self._first: Side | None = None
        self._done: asyncio.Future[bool] = self._loop.create_future()
        self._linger: asyncio.TimerHandle | None = None

    async def run(self, first: bytes) -> Ended:
        """Forward `first`, which the client sent before, and then everything, until the session ends.

        Cancellation stops at once; both sockets are then only good for closing.
        """
        try:
            self._to_office.start(first)
            self._to_client.start()
            let_go = await self._done
        finally:
            self._to_office.stop()
            self._to_client.stop()
            if self._linger is not None:
                self._linger.cancel()
        return Ended(self._first or Side.BROKER, let_go, self._to_office.total, self._to_client.total)

    def office_lost(self) -> None:
        """Take note that the office is gone. Its last bytes and its end of file are still passed on, within limits."""
        self._first = self._first or Side.OFFICE
        if not self._done.done():
            self._set_linger()

    def _client_ended(self, *, reset: bool) -> None:
        """End of file from the client: unless it was reset, it may still want its answers."""
        self._first = self._first or Side.CLIENT
        if reset:
            self._client_vanished()
        elif self._linger is None:
            self._linger = self._loop.call_later(HALF_CLOSED_LIMIT, self._check_half_closed, self._to_client.total)

    def _client_vanished(self) -> None:
        """Nobody takes the answers: drop them until the office has noticed that its client is gone."""
        self._first = self._first or Side.CLIENT
        self._to_office.end()
        self._to_client.drop()
        self._set_linger()

    def _office_deaf(self) -> None:
        """The office takes nothing any more; its own end of file follows."""

    def _office_ended(self, *, reset: bool) -> None:  # noqa: ARG002 - a reset office has let go as well
        """End of file from the office, and all that it sent has been passed on."""
        self._first = self._first or Side.OFFICE
        self._finish(True)  # noqa: FBT003

    def _check_half_closed(self, total: int) -> None:
        """Give the office up if it has said nothing more, and wait on if it has."""
        if self._to_client.total == total:
            self._finish(False)  # noqa: FBT003
        else:
            self._linger = self._loop.call_later(HALF_CLOSED_LIMIT, self._check_half_closed, self._to_client.total)

    def _set_linger(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
        self._linger = self._loop.call_later(LINGER_LIMIT, self._finish, False)  # noqa: FBT003

    def _finish(self, let_go: bool) -> None:  # noqa: FBT001
        if not self._done.done():
            self._done.set_result(let_go)


class _OnEnd(Protocol):
    def __call__(self, *, reset: bool) -> None: ...


class _Direction:
    """Forwards what `source` sends to `sink`. Calls `ended` once after the last byte, `broken` if the sink is gone."""

    __slots__ = ("_broken", "_drop", "_ended", "_loop", "_pending", "_sink", "_source", "total")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        source: socket.socket,
        sink: socket.socket,
        ended: "_OnEnd",
        broken: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._source = source
        self._sink = sink
        self._ended = ended
        self._broken = broken
        self._pending: memoryview | None = None
        self._drop = False
        self.total = 0

    def start(self, first: bytes = b"") -> None:
        if first:
            self.total += len(first)
            self._hold(first)
        else:
            self._watch()

    def stop(self) -> None:
        """Touch neither socket any more."""
        self._unwatch()
        self._forget_pending()

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
        try:
            size = self._source.recv_into(_chunk)
        except BlockingIOError:
            return True
        except OSError:
            self._end_of_file(reset=True)
            return False
        if not size:
            self._end_of_file(reset=False)
            return False
        return self._drop or self._pass_on(size)

    def _pass_on(self, size: int) -> bool:
        """Send what is in the chunk, and hold what the sink doesn't take. Return as `_readable` does."""
        self.total += size
        try:
            sent = self._sink.send(_view[:size])
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lose_sink()
            return False
        if sent == size:
            return True
        self._unwatch()
        self._hold(bytes(_view[sent:size]))
        return False

    def _end_of_file(self, *, reset: bool) -> None:
        self._unwatch()
        self._half_close()
        self._ended(reset=reset)

    def _hold(self, data: bytes) -> None:
        self._pending = memoryview(data)
        self._loop.add_writer(self._sink, self._writable)

    def _forget_pending(self) -> None:
        """Keep nothing for the sink any more."""
        if self._pending is not None:
            self._loop.remove_writer(self._sink)
            self._pending = None

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
        if sent < len(self._pending):
            self._pending = self._pending[sent:]
            return
        self._forget_pending()
        self._watch()

    def _watch(self) -> None:
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
