# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who starts and stops offices: systemd (`units`), or ooodd itself in the foreground (`processes`)."""

from collections.abc import Callable
from typing import Protocol

from ooodd.office.office import Office
from ooodd.pool.actions import Reason


class Supervisor(Protocol):
    """Who starts and stops offices: systemd, or ooodd itself in the foreground.

    `lost` is called when an office ended by itself, with the worker's number, the office, the reason and a detail.
    """

    lost: Callable[[int, Office, Reason, str], None]

    def unit(self, number: int) -> str:
        """Return the name under which the worker is known."""

    def details(self, number: int) -> str:
        """Return where an administrator finds more of the worker, as the end of a message; empty if nowhere."""

    async def start(self, number: int) -> Office:
        """Start a new office with a new profile; one still running under this number ends first.

        Raises `StartError` if that fails and nothing is left running, any other `OooddError` if something may be.
        """

    async def stop(self, number: int) -> None:
        """End the office, if there is one, and wait until nothing of it is left. `OooddError` if that fails."""

    async def running(self) -> dict[int, Office]:
        """Return the offices that an earlier broker started and that still run; from now on `lost` tells of them."""

    async def close(self) -> None:
        """Let go of all that the supervisor itself holds. Every office has been stopped before, or is left running."""
