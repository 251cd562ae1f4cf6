# SPDX-License-Identifier: LGPL-2.1-or-later
"""Notifications to the service manager: readiness, the status line, the watchdog, what to keep (sd_notify(3))."""

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Protocol

from ooodd.datagrams import Datagrams

# PID 1 announces STATUS= to every subscriber of the bus. Once a second is enough for a reader.
_STATUS_INTERVAL = 1.0


class Notifier(Protocol):
    """Sends notifications."""

    def notify(self, state: str, fds: Sequence[int] = ()) -> None:
        """Send assignments such as "READY=1", one a line, with descriptors that stay the caller's to close.

        Never waits, never raises. What can't be sent at once is sent, in order, when the manager has room.
        """


class SystemdNotifier:
    """Notifies the service manager by the socket in $NOTIFY_SOCKET. Without the variable it does nothing."""

    def __init__(self) -> None:
        """Connect to the socket."""
        address = _address()
        self._datagrams = Datagrams(address) if address else None

    def notify(self, state: str, fds: Sequence[int] = ()) -> None:
        """Send the assignments, now or when there is room."""
        if self._datagrams is not None:
            self._datagrams.send(state.encode(), fds)

    def close(self) -> None:
        """Send what waits, for two seconds at the most, and close the socket."""
        if self._datagrams is not None:
            self._datagrams.close()


def _address() -> str:
    r"""Return the manager's address, with "\0" before an abstract one; empty if there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address.startswith("@"):
        return f"\0{address[1:]}"
    return address if address.startswith("/") else ""


class NoNotifier:
    """Notifies nobody, for the foreground."""

    def notify(self, state: str, fds: Sequence[int] = ()) -> None:
        """Drop the assignments."""


class Reporter:
    """Updates the status line and pings the watchdog, by timers of the loop.

    A loop that hangs does not ping the watchdog. Then systemd ends and restarts the broker, as it should.
    """

    def __init__(self, notifier: Notifier, describe: Callable[[], str]) -> None:
        """Take a function that returns the current status line."""
        self._notifier = notifier
        self._describe = describe
        self._last = ""
        self._pending: asyncio.TimerHandle | None = None
        self._watchdog: asyncio.TimerHandle | None = None

    def ready(self) -> None:
        """Notify that clients are served from now on, and begin to ping the watchdog."""
        self._last = self._describe()
        self._notifier.notify(f"READY=1\nSTATUS={self._last}")
        if interval := watchdog_interval():
            self._ping(interval)

    def changed(self) -> None:
        """Update the status line within a second."""
        if self._pending is None:
            self._pending = asyncio.get_running_loop().call_later(_STATUS_INTERVAL, self._update)

    def stopping(self) -> None:
        """Notify that the broker stops. The watchdog is pinged until `close`."""
        self._notifier.notify("STOPPING=1\nSTATUS=stopping")

    def extend(self, seconds: float) -> None:
        """Ask systemd for more time for the start or stop under way. It kills the broker after `seconds` from now."""
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

    def _ping(self, interval: float) -> None:
        self._notifier.notify("WATCHDOG=1")
        self._watchdog = asyncio.get_running_loop().call_later(interval, self._ping, interval)


def watchdog_interval() -> float | None:
    """Return half of WatchdogSec= in seconds, as sd_watchdog_enabled(3) recommends; None if it is off."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 1e6 / 2
