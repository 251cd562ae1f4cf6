# SPDX-License-Identifier: LGPL-2.1-or-later
"""One direction of a session: what one socket sends is received and sent to the other at once.

What the other side does not take at once is kept, at most one chunk, and nothing more is received until all of it has
been taken (back-pressure). So an idle direction holds no buffer, and a stalled one a single chunk.

While bytes are in our memory only, the hold of the direction is set, see `record`. It is set before each receive. It is
cleared when the bytes have been sent and their calls counted, or when they can be sent to nobody. An exception between
the two leaves it set, and ends the session: what comes after lost bytes must not be forwarded.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from ooodd.datapath import eager

# The size of socket-proxyd's buffer.
CHUNK_SIZE = 256 * 1024

# Received bytes pass through here. There is one loop, and it runs one callback at a time: so one buffer is enough.
_chunk = bytearray(CHUNK_SIZE)
_view = memoryview(_chunk)


@dataclass(frozen=True)
class Callbacks:
    """What a direction reports to its session."""

    # End of file, after the last byte; True if the source has reset the connection.
    ended: Callable[[bool], None]
    # The sink is gone. What is received from now on is dropped.
    sink_lost: Callable[[], None]
    # Nothing is pending any more.
    flushed: Callable[[], None]
    # Any error of our own. Bytes may be lost; the hold tells.
    failed: Callable[[BaseException], None]


class Direction:
    """Forwards what `source` sends to `sink`. Both must not block; they stay the caller's to close."""

    __slots__ = (
        "_callbacks",
        "_drop",
        "_frozen",
        "_hold",
        "_holds",
        "_loop",
        "_pending",
        "_receive_into",
        "_send",
        "_sink",
        "_source",
        "count_calls",
        "moved",
        "total",
    )

    def __init__(
        self,
        source: socket.socket,
        sink: socket.socket,
        holds: "memoryview | bytearray",
        hold: int,
        count_calls: Callable[[memoryview], None],
        callbacks: Callbacks,
    ) -> None:
        """Prepare. `holds[hold]` is the hold."""
        self._loop = asyncio.get_running_loop()
        self._source = source
        self._sink = sink
        # They are called for each chunk, and to look them up takes time.
        self._receive_into = source.recv_into
        self._send = sink.send
        self._holds = holds
        self._hold = hold
        # Is told all bytes, in their order.
        self.count_calls = count_calls
        self._callbacks = callbacks
        self._pending: memoryview | None = None
        self._drop = False
        self._frozen = False
        # How many bytes have been received.
        self.total = 0
        # When a byte was last received or sent, in seconds of `time.monotonic`.
        self.moved = time.monotonic()

    @property
    def pending(self) -> int:
        """How many bytes wait for the sink to take them."""
        return 0 if self._pending is None else len(self._pending)

    def start(self) -> None:
        """Begin to forward."""
        self._watch()

    def detach(self) -> None:
        """Leave the hold to somebody else."""
        self._holds, self._hold = bytearray(1), 0

    def freeze(self) -> None:
        """Receive nothing more. What is pending is still sent."""
        self._frozen = True
        self._unwatch()

    def thaw(self) -> None:
        """Receive again after `freeze`."""
        self._frozen = False
        if self._pending is None:
            self._watch()

    def stop(self) -> None:
        """Touch neither socket any more. If bytes are pending, the hold stays set."""
        self._unwatch()
        self._drop_pending()

    def close(self) -> None:
        """Stop, and tell the sink that nothing more comes."""
        self.stop()
        self._half_close()

    def drop(self) -> None:
        """Go on to receive, for the sake of the end of file, but drop what is received."""
        self._drop = True
        if self._pending is not None:
            self._forget_pending()

    def _readable(self) -> bool:
        """Forward what there is. Return whether the selector may go on waiting, see `eager`."""
        try:
            self._holds[self._hold] = 1
            try:
                size = self._receive_into(_chunk)
            except BlockingIOError:
                self._holds[self._hold] = 0
                return True
            except OSError:
                return self._end(reset=True)
            return self._forward(_view[:size], size) if size else self._end(reset=False)
        except BaseException as error:
            self._callbacks.failed(error)
            raise

    def _forward(self, data: memoryview, size: int) -> bool:
        """Send the data, and keep what the sink does not take. Return as `_readable` does.

        What is done before the data is sent, the peer waits for.
        """
        try:
            sent = size if self._drop else self._send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lose_sink()
            sent = size
        self.total += size
        self.moved = time.monotonic()
        self.count_calls(data)
        if sent == size:
            self._holds[self._hold] = 0
            return not self._drop
        self._unwatch()
        self._pending = memoryview(bytes(data[sent:]))
        self._loop.add_writer(self._sink, self._writable)
        return False

    def _end(self, *, reset: bool) -> bool:
        """Pass the end of file on. Return as `_readable` does."""
        self._holds[self._hold] = 0
        self._unwatch()
        self._half_close()
        self._callbacks.ended(reset)
        return False

    def _writable(self) -> None:
        try:
            self._send_pending()
        except BaseException as error:
            self._callbacks.failed(error)
            raise

    def _send_pending(self) -> None:
        assert self._pending is not None
        try:
            sent = self._send(self._pending)
        except BlockingIOError:
            return
        except OSError:
            self._forget_pending()
            self._lose_sink()
            return
        self.moved = time.monotonic()  # a slow reader is not an idle one
        if sent < len(self._pending):
            self._pending = self._pending[sent:]
        else:
            self._forget_pending()

    def _forget_pending(self) -> None:
        """Receive again: the sink has taken all that was pending, or never will."""
        self._drop_pending()
        self._holds[self._hold] = 0
        self._callbacks.flushed()
        self._watch()

    def _drop_pending(self) -> None:
        if self._pending is not None:
            self._loop.remove_writer(self._sink)
            self._pending = None

    def _watch(self) -> None:
        if not self._frozen:
            eager.add_reader(self._loop, self._source, self._readable)

    def _unwatch(self) -> None:
        self._loop.remove_reader(self._source)

    def _lose_sink(self) -> None:
        self._drop = True
        self._callbacks.sink_lost()

    def _half_close(self) -> None:
        with contextlib.suppress(OSError):  # the sink is gone already
            self._sink.shutdown(socket.SHUT_WR)
