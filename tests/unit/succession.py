# SPDX-License-Identifier: LGPL-2.1-or-later
"""A broker that is killed or restarted, and the broker that follows it, with fake offices.

A kill here imitates `kill -9` within one process. From the kill on, the dead broker reads and sends nothing, and its
marks no longer change. Its sockets are closed without a shutdown; those in the fd store stay open. A kill comes
between two turns of the event loop, or at any line (`test_kills`).
"""

import asyncio
import contextlib
import random
import socket
import tempfile
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from fakes import (
    GREETING,
    OPENING,
    FakeClient,
    FakeSupervisor,
    LastingSupervisor,
    ListJournal,
    ListNotifier,
    MemoryFdStore,
    settings,
)
from fakesystemd import FakeSystemd
from ooodd.broker.broker import Broker, End
from ooodd.datapath.forward import Forwarding
from ooodd.systemd import fdstore
from ooodd.systemd.listeners import listen
from ooodd.systemd.marks import Marks

HELLO = GREETING + OPENING
ONE = "[pool]\nworkers=1"
TWO = "[pool]\nworkers=2\nmin_workers=2"


class PlainStorage:
    """An fd store in memory, for most tests. It passes on the kept sockets, and the marks as they were at the kill."""

    def __init__(self) -> None:
        self.store = MemoryFdStore()

    def die(self) -> None:
        """Detach the store from the dead broker, so that it can change nothing any more."""
        self._old = self.store
        self.store, self._left = self._old.take_over()
        self.store.marks = Marks(bytearray(self._old.marks.memory))

    def take_over(self) -> dict[str, list[socket.socket]]:
        left, self._left = self._left, {}
        return left

    def close(self) -> None:
        self.store.discard()


class SystemdStorage:
    """The real `SystemdFdStore` with a fake systemd that behaves as the real one was measured to behave."""

    def __init__(self) -> None:
        self.systemd = FakeSystemd()
        self.store, _ = fdstore.take_over(self.systemd, {})
        self._marks = b""

    def die(self) -> None:
        self._marks = bytes(self.store.marks.memory)
        self._passed = self.systemd.pass_on()
        self._old, self.systemd.notify = self.store, lambda *_: None  # type: ignore[method-assign]

    def take_over(self) -> dict[str, list[socket.socket]]:
        del self.systemd.notify
        self.store, left = fdstore.take_over(self.systemd, self._passed)
        self.store.marks.memory[:] = self._marks
        self._old.close()
        return left

    def close(self) -> None:
        self.store.close()
        self.systemd.close()


class Machine:
    """What outlives a broker: the listener, the offices and the fd store. `begin` starts the next broker."""

    def __init__(self, config: str, plan: list[str], directory: Path, storage: PlainStorage | SystemdStorage) -> None:
        self.config = config
        self.listener = listen("127.0.0.1:0")
        self.fake = FakeSupervisor(directory, plan)
        self.supervisor = LastingSupervisor(self.fake)
        self.storage = storage
        self.left: dict[str, list[socket.socket]] = {}
        self.journal = ListJournal()
        self._inherited: list[socket.socket] = []
        self._dying: list[asyncio.Task[None]] = []

    def client(self) -> FakeClient:
        return FakeClient(self.listener.getsockname())

    async def begin(
        self, config: str | None = None, watch: contextlib.AbstractContextManager[object] | None = None
    ) -> None:
        """Start a broker that takes over what the last one left, inside the context `watch`."""
        self.config = config or self.config
        self.journal = ListJournal()
        running = await self.supervisor.running()
        self.broker = Broker(settings(self.config), self.supervisor, self.journal, ListNotifier(), self.storage.store)
        self.running: asyncio.Task[None] | None = None
        left, self.left = self.left, {}
        self._inherited = [each for sockets in left.values() for each in sockets]
        with watch or contextlib.nullcontext():
            self.broker.adopt(left, running)
            self.running = asyncio.create_task(self.broker.run([self.listener]), name="broker")
            await turns(2 if watch else 0)

    def forwarding(self, session: int) -> Forwarding:
        """Return the data path of a session."""
        tenure = self.broker.driver.clients[session].tenure
        assert tenure is not None
        assert isinstance(tenure.path, Forwarding)
        return tenure.path

    def worker_of(self, session: int) -> int:
        """Return the number of a session's worker."""
        tenure = self.broker.driver.clients[session].tenure
        assert tenure is not None
        return tenure.worker

    def kill(self) -> None:
        """Kill the broker. Call `clean_up_after_kill` before the next one begins."""
        self.storage.die()
        broker, self.supervisor.lost = self.broker, lambda *_: None
        broker._end, broker._serving = End.HAND_OVER, False
        broker._acceptor.accept_from([])
        if broker._hangups._epoll is not None:
            asyncio.get_running_loop().remove_reader(broker._hangups._epoll)
        for client in list(broker.driver.clients.values()):
            self._inherited += client.connections
            if client.connection.fileno() == -1:  # the broker had closed it
                continue
            asyncio.get_running_loop().remove_reader(client.connection)
            if client.tenure is not None:
                client.tenure.path._stop()  # type: ignore[attr-defined]
        self._dying = [task for task in asyncio.all_tasks() if task.get_name().startswith(("session ", "worker "))]
        self._dying += [self.running] if self.running is not None else []
        for task in self._dying:
            task.cancel()

    def note_sockets(self, objects: Iterable[object]) -> None:
        """Note sockets that the dead broker held, for `clean_up_after_kill` to close."""
        self._inherited += [each for each in objects if isinstance(each, socket.socket) and each is not self.listener]

    async def clean_up_after_kill(self) -> None:
        """Wait for the tasks of the dead broker to end, close its sockets, and take over the fd store."""
        if self._dying:
            await asyncio.wait(self._dying)
        await self.broker._close()
        for each in self._inherited:
            each.close()
        self.left = self.storage.take_over()

    async def replace(self, config: str | None = None) -> None:
        """Kill the broker and start another."""
        self.kill()
        await self.clean_up_after_kill()
        await self.begin(config)

    async def hand_over(self) -> None:
        """End the broker as a restart of the service does."""
        assert self.running is not None
        self.broker.end(End.HAND_OVER)
        await self.running
        self.storage.die()
        self.left = self.storage.take_over()

    async def close(self) -> None:
        """Stop the broker and all offices."""
        self.broker.end(End.STOP)
        if self.running is None:
            await self.broker._close()
        else:
            await self.running
        await self.supervisor.close()
        assert not self.fake.offices, "offices are still running"
        self.listener.close()
        self.storage.close()


@contextlib.asynccontextmanager
async def machine(
    config: str = ONE, plan: list[str] | None = None, storage: PlainStorage | SystemdStorage | None = None
) -> AsyncIterator[Machine]:
    # A socket path is limited to 108 bytes, and tmp_path of a test with a long name may exceed that.
    with tempfile.TemporaryDirectory() as directory:
        it = Machine(config, plan or [], Path(directory), storage or PlainStorage())
        await it.begin()
        try:
            yield it
        finally:
            await it.close()


async def echoes(client: FakeClient, words: bytes = b"still there") -> bool:
    """Return whether an open session still echoes."""
    await client.send(words)
    return await client.receive(len(words)) == words


async def all_of(client: FakeClient) -> bytes:
    """Return all data up to the end of the connection, be it a close or a reset."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while more := await asyncio.get_running_loop().sock_recv(client.socket, 65536):
            data += more
    return data


async def send_in_pieces(client: FakeClient, data: bytes, chance: random.Random) -> None:
    """Send data in pieces of random size, then half-close the connection."""
    with contextlib.suppress(OSError):
        while data:
            size = chance.choice([1, 10, 100, 1000, 10000])
            await client.send(data[:size])
            data = data[size:]
            await turns(chance.randrange(4))
        client.socket.shutdown(socket.SHUT_WR)


async def turns(number: int) -> None:
    """Run the event loop for a number of turns."""
    for _ in range(number):
        await asyncio.sleep(0)
