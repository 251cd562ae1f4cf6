# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the service manager is told: readiness, the status line, the watchdog, what to keep (sd_notify(3)).

Not by libsystemd's sd_notify(): it opens a socket for each message, which fails when no descriptor is left, and then
the watchdog ends a broker that only has many clients. And it waits while the manager is slow, which it is with many
descriptors to keep: measured, up to a second.
"""

import asyncio
import errno
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

# STATUS= goes through PID 1, which tells every subscriber of the bus: once a second is enough for a reader.
_STATUS_INTERVAL = 1.0
# Messages that wait for the manager, each with two descriptors or none. One that is stuck for that long does not come
# back: more are dropped.
_MOST_WAITING = 4096
# A manager without memory, or with too many descriptors under way (unix(7)), does not tell when it has room again.
_RETRY_INTERVAL = 0.1
# How long `close` waits for the manager to take what is left, in seconds.
_FLUSH_LIMIT = 2.0

_Message = tuple[bytes, list[int]]


class Notifier(Protocol):
    """The service manager's ear."""

    def notify(self, state: str, fds: Sequence[int] = ()) -> None:
        """Send assignments such as "READY=1", one a line, with descriptors that stay the caller's to close.

        Never waits, never raises. What can't be sent at once is sent in order when the manager has room.
        """


class SystemdNotifier:
    """The socket in $NOTIFY_SOCKET, by one connected socket of our own. Without the variable, nobody listens."""

    def __init__(self) -> None:
        """Connect."""
        self._address = _address()
        self._socket: socket.socket | None = None
        self._waiting: deque[_Message] = deque()
        # Who calls `_flush` when there is room: the loop that watches the socket, or its timer.
        self._watching: asyncio.AbstractEventLoop | None = None
        self._retry: asyncio.TimerHandle | None = None
        if self._address:
            with suppress(OSError):
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                self._socket.connect(self._address)

    def notify(self, state: str, fds: Sequence[int] = ()) -> None:
        """Send the assignments, now or when there is room."""
        if self._socket is None:
            return
        message = (state.encode(), list(fds))
        if self._waiting or not self._send(message):
            self._wait(message)

    def close(self) -> None:
        """Send what waits, for two seconds at the most, and close the socket."""
        self._unwatch()
        if self._socket is not None:
            self._socket.settimeout(_FLUSH_LIMIT)
            while self._waiting and self._send(self._waiting[0]):
                _release(self._waiting.popleft())
            self._socket.close()
            self._socket = None
        while self._waiting:
            _release(self._waiting.popleft())

    def _send(self, message: _Message) -> bool:
        """Return False if there is no room. A message that can't be sent at all counts as sent."""
        assert self._socket is not None
        state, fds = message
        for _ in range(2):
            try:
                socket.send_fds(self._socket, [state], fds) if fds else self._socket.send(state)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS):
                    return False
                with suppress(OSError):  # the manager has a new socket since
                    self._socket.connect(self._address)
            else:
                break
        return True

    def _wait(self, message: _Message) -> None:
        """Put the message at the queue's end, with descriptors that live until it is sent."""
        state, fds = message
        if len(self._waiting) >= _MOST_WAITING:
            return
        held: list[int] = []
        try:
            for fd in fds:
                held.append(os.dup(fd))  # noqa: PERF401 - those that worked are closed if one does not
        except OSError:  # no descriptor left: then this is not kept
            _release((state, held))
            return
        self._waiting.append((state, held))
        self._watch()

    def _flush(self) -> None:
        while self._waiting and self._send(self._waiting[0]):
            _release(self._waiting.popleft())
        self._unwatch()
        if self._waiting:
            self._watch()

    def _watch(self) -> None:
        """Have `_flush` called when there is room. Without a loop, the next message and `close` try again."""
        assert self._socket is not None
        if self._watching is not None or self._retry is not None:
            return
        with suppress(RuntimeError):
            loop = asyncio.get_running_loop()
            if _has_room(self._socket):
                self._retry = loop.call_later(_RETRY_INTERVAL, self._flush)
            else:
                loop.add_writer(self._socket, self._flush)
                self._watching = loop

    def _unwatch(self) -> None:
        if self._watching is not None and self._socket is not None:
            self._watching.remove_writer(self._socket)
        if self._retry is not None:
            self._retry.cancel()
        self._watching = self._retry = None


def _address() -> str:
    """Return the manager's address in the kernel's spelling, empty if there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address.startswith("@"):
        return f"\0{address[1:]}"
    return address if address.startswith("/") else ""


def _has_room(ear: socket.socket) -> bool:
    poll = select.poll()  # not select(): the descriptor may be above 1023
    poll.register(ear, select.POLLOUT)
    return bool(poll.poll(0))


def _release(message: _Message) -> None:
    for fd in message[1]:
        os.close(fd)


class NoNotifier:
    """Nobody listens."""

    def notify(self, state: str, fds: Sequence[int] = ()) -> None:
        """Drop the assignments."""


class Reporter:
    """Keeps the status line current and the watchdog fed, from the loop's own timers.

    A loop that hangs feeds no watchdog, which is the watchdog's point: systemd then ends and restarts the broker.
    """

    def __init__(self, notifier: Notifier, describe: Callable[[], str]) -> None:
        """Take the function that gives the status line in force."""
        self._notifier = notifier
        self._describe = describe
        self._last = ""
        self._pending: asyncio.TimerHandle | None = None
        self._watchdog: asyncio.TimerHandle | None = None

    def ready(self) -> None:
        """Say that clients are served from now on, and begin to feed the watchdog."""
        self._last = self._describe()
        self._notifier.notify(f"READY=1\nSTATUS={self._last}")
        if interval := watchdog_interval():
            self._feed(interval)

    def changed(self) -> None:
        """Bring the status line up to date, soon."""
        if self._pending is None:
            self._pending = asyncio.get_running_loop().call_later(_STATUS_INTERVAL, self._update)

    def stopping(self) -> None:
        """Say that the broker stops. The watchdog is fed until `close`."""
        self._notifier.notify("STOPPING=1\nSTATUS=stopping")

    def extend(self, seconds: float) -> None:
        """Ask for that much time from now on for the start or stop under way; systemd ends us after it."""
        self._notifier.notify(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def close(self) -> None:
        """Cancel the timers."""
        for timer in (self._pending, self._watchdog):
            if timer is not None:
                timer.cancel()

    def _update(self) -> None:
        self._pending = None
        status = self._describe()
        if status != self._last:
            self._last = status
            self._notifier.notify(f"STATUS={status}")

    def _feed(self, interval: float) -> None:
        self._notifier.notify("WATCHDOG=1")
        self._watchdog = asyncio.get_running_loop().call_later(interval, self._feed, interval)


def watchdog_interval() -> float | None:
    """Return half of what WatchdogSec= asks for, in seconds, as sd_watchdog_enabled(3) recommends; None if off."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 1e6 / 2
