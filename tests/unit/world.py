# SPDX-License-Identifier: LGPL-2.1-or-later
"""A running broker with fake offices, for tests with clients, commands and faults."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from fakes import GREETING, OPENING, FakeClient, FakeSupervisor, ListJournal, ListNotifier, first_request, settings
from ooodd.broker.broker import Broker, End
from ooodd.systemd.fdstore import NoFdStore
from ooodd.systemd.listeners import listen

HELLO = GREETING + OPENING
# A call that needs a reply. The fake office echoes it, and the echo is no valid reply.
CALL = OPENING[:9] + b"\x03" + OPENING[10:]
# The first request of a real client that does not negotiate protocol properties first.
QUERY = first_request()


async def asks(client: FakeClient) -> bytes:
    """Request the office's component context as a client does, and return all data up to the end."""
    await client.send(QUERY)
    return await client.receive(1 << 20)


class World:
    """A running broker with its listener, its fake supervisor, its journal and its notifier."""

    def __init__(self, config: str, plan: list[str], directory: Path, *, ends_unused: bool) -> None:
        self.listener = listen("127.0.0.1:0")
        self.supervisor = FakeSupervisor(directory, plan)
        self.journal = ListJournal()
        self.notifier = ListNotifier()
        self.broker = Broker(settings(config), self.supervisor, self.journal, self.notifier, NoFdStore())
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
    # A socket path is limited to 108 bytes, and tmp_path of a test with a long name may exceed that.
    with tempfile.TemporaryDirectory() as directory:
        it = World(config, plan or [], Path(directory), ends_unused=ends_unused)
        try:
            yield it
        finally:
            it.broker.end(End.STOP)
            await it.running
            assert not it.supervisor.offices, "offices are still running"
            it.listener.close()
