# SPDX-License-Identifier: LGPL-2.1-or-later
"""A broker, its death or its restart, and the broker that follows it, with fake offices.

A kill here is as sudden as `kill -9` can be in one process. From one moment on, the dead broker reads, sends and closes
nothing in the order of a living one, its marks do not change any more, and its descriptors go without a word. What is
in the store stays open. A kill comes between two turns of the loop, or at any line (`test_kills`).
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
)
from fakesystemd import FakeSystemd
from ooodd.broker.broker import Broker, End
from ooodd.config import parse
from ooodd.datapath.forward import Forwarding
from ooodd.systemd import fdstore
from ooodd.systemd.listeners import listen
from ooodd.systemd.marks import Marks

HELLO = GREETING + OPENING
ONE = "[pool]\nworkers=1"
TWO = "[pool]\nworkers=2\nmin_workers=2"


class PlainKeep:
    """The store for most tests: what a broker has kept, and its marks as they were when it died."""

    def __init__(self) -> None:
        self.store = MemoryFdStore()

    def die(self) -> None:
        """Have what the dead broker does from now on reach nobody."""
        self._old = self.store
        self.store, self._left = self._old.take_over()
        self.store.marks = Marks(bytearray(self._old.marks.memory))

    def take_over(self) -> dict[str, list[socket.socket]]:
        left, self._left = self._left, {}
        return left

    def close(self) -> None:
        self.store.discard()


class SystemdKeep:
    """The real store, and a systemd whose fd store does what the real one was measured to do."""

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
    """What outlives a broker: the port, the offices, the store. Brokers come, by `begin`, and go."""

    def __init__(self, config: str, plan: list[str], directory: Path, keep: PlainKeep | SystemdKeep) -> None:
        self.config = config
        self.listener = listen("127.0.0.1:0")
        self.fake = FakeSupervisor(directory, plan)
        self.supervisor = LastingSupervisor(self.fake)
        self.keep = keep
        self.left: dict[str, list[socket.socket]] = {}
        self.journal = ListJournal()
        self._inherited: list[socket.socket] = []
        self._dying: list[asyncio.Task[None]] = []

    def client(self) -> FakeClient:
        return FakeClient(self.listener.getsockname())

    async def begin(
        self, config: str | None = None, watch: contextlib.AbstractContextManager[object] | None = None
    ) -> None:
        """Start a broker, which takes over what there is, watched by somebody."""
        self.config = config or self.config
        self.journal = ListJournal()
        running = await self.supervisor.running()
        self.broker = Broker(parse(self.config, "test"), self.supervisor, self.journal, ListNotifier(), self.keep.store)
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
        """End the broker's effects at once; `bury` has to follow before the next one begins."""
        self.keep.die()
        broker, self.supervisor.lost = self.broker, lambda *_: None
        broker._end, broker._serving = End.HAND_OVER, False
        broker._acceptor.accept_from([])
        if broker._hangups._epoll is not None:
            asyncio.get_running_loop().remove_reader(broker._hangups._epoll)
        for client in list(broker.driver.clients.values()):
            self._inherited += client.connections
            if client.connection.fileno() == -1:  # the dead had closed it
                continue
            asyncio.get_running_loop().remove_reader(client.connection)
            if client.tenure is not None:
                client.tenure.path._stop()  # type: ignore[attr-defined]
        self._dying = [task for task in asyncio.all_tasks() if task.get_name().startswith(("session ", "worker "))]
        self._dying += [self.running] if self.running is not None else []
        for task in self._dying:
            task.cancel()

    def seize(self, things: Iterable[object]) -> None:
        """Have `bury` close what the dead had in its hands."""
        self._inherited += [
            thing for thing in things if isinstance(thing, socket.socket) and thing is not self.listener
        ]

    async def bury(self) -> None:
        """Wait until nothing is left of the dead, and see what it has left."""
        if self._dying:
            await asyncio.wait(self._dying)
        await self.broker._close()
        for each in self._inherited:
            each.close()
        self.left = self.keep.take_over()

    async def replace(self, config: str | None = None) -> None:
        """Kill the broker and start another."""
        self.kill()
        await self.bury()
        await self.begin(config)

    async def hand_over(self) -> None:
        """End the broker as a restart does."""
        assert self.running is not None
        self.broker.end(End.HAND_OVER)
        await self.running
        self.keep.die()
        self.left = self.keep.take_over()

    async def close(self) -> None:
        """End all, offices too."""
        self.broker.end(End.STOP)
        if self.running is None:
            await self.broker._close()
        else:
            await self.running
        await self.supervisor.close()
        assert not self.fake.offices, "offices left"
        self.listener.close()
        self.keep.close()


@contextlib.asynccontextmanager
async def machine(
    config: str = ONE, plan: list[str] | None = None, keep: PlainKeep | SystemdKeep | None = None
) -> AsyncIterator[Machine]:
    # A pipe's path has 108 bytes at the most: tmp_path of a long test name may be too long.
    with tempfile.TemporaryDirectory() as directory:
        it = Machine(config, plan or [], Path(directory), keep or PlainKeep())
        await it.begin()
        try:
            yield it
        finally:
            await it.close()


async def echoes(client: FakeClient, words: bytes = b"still there") -> bool:
    """Whether an open session goes on."""
    await client.send(words)
    return await client.receive(len(words)) == words


async def all_of(client: FakeClient) -> bytes:
    """Return all that comes until the end, whatever the end is."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while more := await asyncio.get_running_loop().sock_recv(client.socket, 65536):
            data += more
    return data


async def say(client: FakeClient, data: bytes, chance: random.Random) -> None:
    """Send it in pieces, and then the end."""
    with contextlib.suppress(OSError):
        while data:
            size = chance.choice([1, 10, 100, 1000, 10000])
            await client.send(data[:size])
            data = data[size:]
            await turns(chance.randrange(4))
        client.socket.shutdown(socket.SHUT_WR)


async def turns(number: int) -> None:
    """Let the loop turn so many times."""
    for _ in range(number):
        await asyncio.sleep(0)


async def fill(client: FakeClient) -> None:
    """Send until nobody takes any more."""
    sent = -1
    while sent:
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += client.socket.send(bytes(65536))
        await turns(20)
