# SPDX-License-Identifier: LGPL-2.1-or-later
"""A keeper of fake offices, and a record of its reports."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from fakes import FakeSupervisor
from ooodd.office.keeper import Keeper, Verdict
from ooodd.office.office import Office
from ooodd.pool.actions import Reason


class Record:
    """Records the reports of the keeper."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []
        self._news = asyncio.Event()

    async def wait_for(self, *told: tuple[object, ...]) -> None:
        while self.told != list(told):
            self._news.clear()
            await self._news.wait()

    def _tell(self, *told: object) -> None:
        self.told.append(told)
        self._news.set()

    def worker_ready(self, number: int, office: Office) -> None:
        assert office.unit == f"fake-{number}"
        self._tell("ready", number)

    def worker_not_started(self, number: int, detail: str) -> None:
        self._tell("not started", number, detail)

    def worker_held_up(self, number: int, package: str) -> None:
        self._tell("held up", number, package)

    def worker_probed(self, number: int, verdict: Verdict) -> None:
        self._tell("probed", number, verdict.fault, verdict.detail)

    def worker_lost(self, number: int, reason: Reason, detail: str) -> None:
        self._tell("lost", number, reason, detail)

    def worker_stopped(self, number: int) -> None:
        self._tell("stopped", number)

    def worker_not_preloaded(self, number: int, detail: str) -> None:
        self._tell("not preloaded", number, detail)

    def worker_not_stopped(self, number: int, detail: str) -> None:
        self._tell("not stopped", number, detail)


class World:
    """A keeper with its fake supervisor and its record."""

    def __init__(self, directory: Path, plan: list[str], start_timeout: float, probe_timeout: float) -> None:
        self.supervisor = FakeSupervisor(directory, plan)
        self.record = Record()
        self.keeper = Keeper(self.supervisor, self.record, start_timeout, probe_timeout)

    async def start(self, number: int = 1) -> None:
        """Start a worker, and remove the report of this from the record."""
        self.keeper.start(number)
        await self.record.wait_for(("ready", number))
        self.record.told.clear()


@contextlib.asynccontextmanager
async def world(
    plan: list[str] | None = None, start_timeout: float = 60, probe_timeout: float = 60
) -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory() as directory:
        it = World(Path(directory), plan or [], start_timeout, probe_timeout)
        try:
            yield it
        finally:
            await it.keeper.close()
            await it.supervisor.close()
