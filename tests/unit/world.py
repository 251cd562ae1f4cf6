# SPDX-License-Identifier: LGPL-2.1-or-later
"""A running broker with fake offices, for tests of what clients, commands and faults do to it."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from fakes import GREETING, OPENING, FakeClient, FakeSupervisor, ListJournal, ListNotifier, first_request
from ooodd.broker.broker import Broker, End
from ooodd.config import parse
from ooodd.systemd.fdstore import NoFdStore
from ooodd.systemd.listeners import listen

HELLO = GREETING + OPENING
# A call that wants a reply, and which the fake office's echo doesn't answer as one.
CALL = OPENING[:9] + b"\x03" + OPENING[10:]
# A real client's first request, with no agreement on the protocol's properties before it.
QUERY = first_request()


async def asks(client: FakeClient) -> bytes:
    """Ask for the office's context as a client does, and return all that comes."""
    await client.send(QUERY)
    return await client.receive(1 << 20)


class World:
    """A running broker with what surrounds it."""

    def __init__(self, config: str, plan: list[str], directory: Path, *, ends_unused: bool) -> None:
        self.listener = listen("127.0.0.1:0")
        self.supervisor = FakeSupervisor(directory, plan)
        self.journal = ListJournal()
        self.notifier = ListNotifier()
        self.broker = Broker(parse(config, "test"), self.supervisor, self.journal, self.notifier, NoFdStore())
        running = self.broker.run([self.listener], ends_unused=ends_unused)
        self.running = asyncio.create_task(running, name="broker")

    def client(self) -> FakeClient:
        return FakeClient(self.listener.getsockname())

    def queued(self, count: int) -> bool:
        return len(self.broker.pool.queue) == count


@contextlib.asynccontextmanager
async def world(
    config: str = "[pool]\nworkers=1", plan: list[str] | None = None, *, ends_unused: bool = False
) -> AsyncIterator[World]:
    # A pipe's path has 108 bytes at the most: tmp_path of a long test name may be too long.
    with tempfile.TemporaryDirectory() as directory:
        it = World(config, plan or [], Path(directory), ends_unused=ends_unused)
        try:
            yield it
        finally:
            it.broker.end(End.STOP)
            await it.running
            assert not it.supervisor.offices, "offices left"
            it.listener.close()
