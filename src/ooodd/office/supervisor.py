# SPDX-License-Identifier: LGPL-2.1-or-later
"""The interface by which offices are started and stopped: by systemd (`units`), or as child processes (`processes`)."""

from collections.abc import Callable
from typing import Protocol

from ooodd.office.office import Office
from ooodd.pool.actions import Reason


class Supervisor(Protocol):
    """Starts and stops the office of each worker.

    `lost` is called when an office has ended by itself, with the worker's number, the office, the reason and a detail.
    """

    lost: Callable[[int, Office, Reason, str], None]

    def unit(self, number: int) -> str:
        """Return the name of the worker's unit."""

    def journal(self, number: int) -> str:
        """Return the command that shows the journal of the worker's office; empty if there is none of its own."""

    async def start(self, number: int) -> Office:
        """Start an office with a new profile. An office that still runs under this number is ended first.

        Raises `StartError` if that fails and nothing runs, and another `OooddError` if something may run.
        """

    def ready(self, number: int) -> None:
        """Take note that the office answers. It needs no longer what it needed only to start."""

    async def stop(self, number: int) -> None:
        """End the office, if there is one, and return when nothing of it is left. `OooddError` if that fails."""

    async def running(self) -> dict[int, Office]:
        """Return the offices of an earlier broker that still run. From now on `lost` reports their ends too."""

    async def close(self) -> None:
        """Close what the supervisor itself has open. Offices of `units` are left running."""
