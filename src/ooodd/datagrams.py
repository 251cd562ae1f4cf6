# SPDX-License-Identifier: LGPL-2.1-or-later
"""Datagrams to a unix socket of the system, from a broker that must never wait for it.

Both systemd-journald and the service manager stop reading now and then: a disk is slow, or many descriptors are to be
kept. sd_journal_send(3) and sd_notify(3) block meanwhile, and a broker that blocks serves nobody and is ended by its
watchdog. sd_notify(3) also opens a socket for each message, which fails when no descriptor is left. So here is one
connected, non-blocking socket. What the receiver has no room for waits in a queue, in order.
"""

import asyncio
import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

# How many datagrams may wait, each with two descriptors or none. If more come, the receiver is stuck, and they are
# dropped.
_MAX_WAITING = 4096
# A receiver that is absent, or a kernel without memory or with too many descriptors under way (unix(7)), does not
# tell when there is room again. So try again after this time, in seconds.
_RETRY_INTERVAL = 0.1
# How long `close` waits for the receiver to take what is left, in seconds.
_FLUSH_TIMEOUT = 2.0

_NO_ROOM = {errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS}
# The receiver has closed its socket, or none is there yet.
_NO_RECEIVER = {errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOENT, errno.ENOTCONN}

_Datagram = tuple[bytes, list[int]]


class Datagrams:
    """Sends datagrams to one address, and never waits, but in `close`. Its owner calls `close`.

    It works before a loop runs too: then a datagram that waits is sent with the next one, or by `close`. Linux queues
    what is sent to a socket that nobody reads, so "sent" means queued there.
    """

    def __init__(self, address: str, dropped: Callable[[int], None] = lambda _: None) -> None:
        r"""Connect to a path, or to an abstract address, which begins with "\0". Nobody needs to listen there yet.

        `dropped` is called with the number of datagrams that had to be dropped, once all others have been sent.
        """
        self._address = address
        self._report_dropped = dropped
        self._waiting: deque[_Datagram] = deque()
        self._dropped = 0
        # The loop that watches the socket, or the timer, that calls `_flush` when there may be room.
        self._watching: asyncio.AbstractEventLoop | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with suppress(OSError):
            self._socket.connect(address)

    @property
    def waiting(self) -> int:
        """Return how many datagrams wait."""
        return len(self._waiting)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send the data now, or when there is room, with descriptors that stay the caller's to close.

        After `close` it is dropped.
        """
        if self._socket.fileno() < 0:
            return
        self._send_waiting()
        if self._waiting or not self._try_to_send((data, list(fds))):
            self._enqueue(data, fds)

    def close(self) -> None:
        """Send what waits, for two seconds at the most, and close the socket."""
        self._unwatch()
        deadline = time.monotonic() + _FLUSH_TIMEOUT
        while self._waiting and (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            if not self._try_to_send(self._waiting[0]):
                break
            _release(self._waiting.popleft())
        self._socket.close()
        while self._waiting:
            _release(self._waiting.popleft())

    def _try_to_send(self, datagram: _Datagram) -> bool:
        """Return whether it is done with: sent, or dropped as nobody can send it (EMSGSIZE for example)."""
        number = self._send_error(datagram)
        if number in _NO_RECEIVER:  # perhaps it has a new socket since
            with suppress(OSError):
                self._socket.connect(self._address)
            number = self._send_error(datagram)
        if number in _NO_ROOM or number in _NO_RECEIVER:
            return False
        self._dropped += number != 0
        return True

    def _send_error(self, datagram: _Datagram) -> int:
        """Send it and return 0, or the error's number."""
        data, fds = datagram
        try:
            if fds:
                socket.send_fds(self._socket, [data], fds)
            else:
                self._socket.send(data)
        except TimeoutError:  # in `close`
            return errno.EAGAIN
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _enqueue(self, data: bytes, fds: Sequence[int]) -> None:
        """Put the datagram at the queue's end, with descriptors of its own."""
        if len(self._waiting) >= _MAX_WAITING:
            self._dropped += 1
            return
        held: list[int] = []
        try:
            for fd in fds:
                held.append(os.dup(fd))  # noqa: PERF401 - if one fails, those before it have to be closed
        except OSError:  # no descriptor left
            self._dropped += 1
            _release((data, held))
            return
        self._waiting.append((data, held))
        self._watch()

    def _send_waiting(self) -> None:
        """Send what waits while there is room, and then report what was dropped."""
        while self._waiting and self._try_to_send(self._waiting[0]):
            _release(self._waiting.popleft())
        if self._dropped and not self._waiting:
            count, self._dropped = self._dropped, 0
            self._report_dropped(count)

    def _flush(self) -> None:
        """Send what waits, and wait for room for the rest."""
        self._unwatch()
        self._send_waiting()
        if self._waiting:
            self._watch()

    def _watch(self) -> None:
        """Arrange that `_flush` is called when there is room, if a loop runs."""
        if self._watching is not None or self._retry is not None:
            return
        with suppress(RuntimeError):
            loop = asyncio.get_running_loop()
            if _is_writable(self._socket):
                self._retry = loop.call_later(_RETRY_INTERVAL, self._flush)
            else:
                loop.add_writer(self._socket, self._flush)
                self._watching = loop

    def _unwatch(self) -> None:
        if self._watching is not None:
            self._watching.remove_writer(self._socket)
        if self._retry is not None:
            self._retry.cancel()
        self._watching = self._retry = None


def _is_writable(connection: socket.socket) -> bool:
    poll = select.poll()  # not select(): the descriptor may be above 1023
    poll.register(connection, select.POLLOUT)
    return bool(poll.poll(0))


def _release(datagram: _Datagram) -> None:
    for fd in datagram[1]:
        os.close(fd)
