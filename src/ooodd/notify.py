# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the service manager is told: readiness, the status line, the watchdog (sd_notify(3))."""

import asyncio
import os
from collections.abc import Callable
from typing import Protocol

# STATUS= goes through PID 1, which tells every subscriber of the bus: once a second is enough for a reader.
_STATUS_INTERVAL = 1.0


class Notifier(Protocol):
    """The service manager's ear."""

    def notify(self, state: str) -> None:
        """Send assignments such as "READY=1", one a line."""


class SystemdNotifier:
    """The socket in $NOTIFY_SOCKET."""

    def __init__(self) -> None:
        """Import systemd-python, which foreground use does without."""
        from systemd.daemon import notify  # noqa: PLC0415

        self._notify = notify

    def notify(self, state: str) -> None:
        """Send the assignments."""
        self._notify(state)


class NoNotifier:
    """Nobody listens."""

    def notify(self, state: str) -> None:
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
