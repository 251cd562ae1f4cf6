# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a broker that is killed, or hands over, leaves to the next: sessions, places in the queue, offices, counts.

A kill here is as sudden as `kill -9` can be in one process: from one moment on, nothing of the dead broker reads, sends
or closes anything in the order of a living one, what it notes in its marks is not seen any more, and its descriptors go
without a word, while those in the store stay open. It comes between two turns of the loop, or at any line (`deaths`).
"""

import asyncio
import contextlib
import random
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest

from fakes import (
    GREETING,
    OPENING,
    FakeClient,
    FakeSupervisor,
    LastingSupervisor,
    ListJournal,
    ListNotifier,
    first_request,
    settled,
    states,
    until,
)
from fakesystemd import FakeSystemd
from ooodd import messages
from ooodd.broker import adoption
from ooodd.broker import broker as broker_module
from ooodd.broker import client as client_module
from ooodd.broker.broker import Broker, End
from ooodd.config import parse
from ooodd.datapath import forward
from ooodd.datapath.forward import Forwarding
from ooodd.office.keeper import Verdict
from ooodd.office.office import Office
from ooodd.pool.actions import Reason
from ooodd.pool.pool import State
from ooodd.systemd import fdstore as store
from ooodd.systemd.fdstore import Marks, MemoryStore, SystemdStore
from ooodd.systemd.listeners import listen

HELLO = GREETING + OPENING
ONE = "[pool]\nworkers=1"
TWO = "[pool]\nworkers=2\nmin_workers=2"


class PlainKeep:
    """The store for most tests: what a broker has kept, and its marks as they were when it died."""

    def __init__(self) -> None:
        self.store = MemoryStore()

    def die(self) -> None:
        """Have what the dead broker does from now on reach nobody."""
        self._old = self.store
        self.store, self._left = self._old.take_over()
        self.store.marks = Marks(bytearray(self._old.marks.memory))

    def take_over(self) -> dict[str, list[socket.socket]]:
        left, self._left = self._left, {}
        return left

    def close(self) -> None:
        self.store.close()


class SystemdKeep:
    """The real store, and a systemd whose fd store does what the real one was measured to do."""

    def __init__(self) -> None:
        self.systemd = FakeSystemd()
        self.store, _ = SystemdStore.take_over(self.systemd, {})
        self._marks = b""

    def die(self) -> None:
        self._marks = bytes(self.store.marks.memory)
        self._passed = self.systemd.pass_on()
        self._old, self.systemd.notify = self.store, lambda *_: None  # type: ignore[method-assign]

    def take_over(self) -> dict[str, list[socket.socket]]:
        del self.systemd.notify
        self.store, left = SystemdStore.take_over(self.systemd, self._passed)
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
        self._doomed: list[socket.socket] = []
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
        self._doomed = [each for sockets in left.values() for each in sockets]
        with watch or contextlib.nullcontext():
            self.broker.adopt(left, running)
            self.running = asyncio.create_task(self.broker.run([self.listener]), name="broker")
            await turns(2 if watch else 0)

    def kill(self) -> None:
        """End the broker's effects at once; `bury` has to follow before the next one begins."""
        self.keep.die()
        broker, self.supervisor.lost = self.broker, lambda *_: None
        broker._end = End.HAND_OVER
        broker._acceptor.accept_from([])
        broker._loop.remove_reader(broker._departures._epoll)
        for client in list(broker.clients.values()):
            self._doomed += [each for each in (client.connection, client.office) if each is not None]
            if client.connection.fileno() == -1:  # the dead had closed it
                continue
            broker._loop.remove_reader(client.connection)
            if client.forwarding is not None:
                client.forwarding._to_office.stop()
                client.forwarding._to_client.stop()
        self._dying = [task for task in asyncio.all_tasks() if task.get_name().startswith(("session ", "worker "))]
        self._dying += [self.running] if self.running is not None else []
        for task in self._dying:
            task.cancel()

    def doom(self, things: Iterable[object]) -> None:
        """Have `bury` close what the dead had in its hands."""
        self._doomed += [thing for thing in things if isinstance(thing, socket.socket) and thing is not self.listener]

    async def bury(self) -> None:
        """Wait until nothing is left of the dead, and see what it has left."""
        if self._dying:
            await asyncio.wait(self._dying)
        if not self.broker._departures._epoll.closed:  # it had not even begun
            await self.broker._leave_nothing()
        for each in self._doomed:
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
            await self.broker._leave_nothing()
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


# The bytes of sessions


@pytest.mark.parametrize("seed", range(12))
async def test_every_byte_arrives_once_and_in_order_across_kills(seed: int) -> None:
    chance = random.Random(seed)
    everything = [OPENING + chance.randbytes(chance.randrange(100_000)) for _ in range(4)]
    async with machine("[pool]\nworkers=4\nmin_workers=4") as it, contextlib.AsyncExitStack() as stack:
        await settled(it.broker.pool, *[State.IDLE] * 4)
        clients = [await stack.enter_async_context(it.client()) for _ in everything]
        for client in clients:
            await client.send(OPENING)
        await until(lambda: states(it.broker.pool) == [State.BUSY] * 4)
        offices = list(it.fake.offices.values())
        tasks = [asyncio.create_task(all_of(client)) for client in clients]
        tasks += [
            asyncio.create_task(say(client, data[len(OPENING) :], chance))  # type: ignore[arg-type]
            for client, data in zip(clients, everything, strict=True)
        ]
        lost = 0
        for _ in range(chance.randrange(1, 8)):
            await turns(chance.randrange(60))
            await it.replace()
            lost += it.journal.count(messages.SESSION_LOST)
        received = (await asyncio.gather(*tasks))[:4]
        assert lost == 0
        assert sorted(received) == sorted(GREETING + data for data in everything)
        heard = [session for office in offices for session in office.sessions]
        assert sorted(heard) == sorted(everything)


async def test_many_kills_in_a_row_take_nothing() -> None:
    async with machine(TWO) as it, it.client() as client:
        assert await client.open() == HELLO
        for number in range(50):
            await it.replace()
            await turns(number % 7)
            assert number % 3 or await echoes(client, b"%d" % number)
        assert await echoes(client)
        assert it.broker.pool.totals.sessions == 1
        assert it.broker.pool.totals.recycled == it.broker.pool.totals.crashed == 0


@pytest.mark.parametrize("which", ["client", "office"])
async def test_a_session_of_which_bytes_were_held_is_ended_and_never_corrupted(which: str) -> None:
    async with machine(TWO) as it, it.client() as client, it.client() as other:
        assert await client.open() == HELLO
        assert await other.open() == HELLO
        number = next(worker.id for worker in it.broker.pool.workers.values() if worker.client == 1)
        forwarding = it.broker.clients[1].forwarding
        assert forwarding is not None
        office = it.fake.offices[number]
        data = random.Random(1).randbytes(1 << 20)
        if which == "client":  # does not read what it has asked for
            direction = forwarding._to_client
            sending = asyncio.create_task(client.send(data * 16))
            await until(lambda: direction._pending is not None)
        else:  # does not read what it is told
            for task in office._tasks:
                task.cancel()  # a frozen process, but its socket is open
            direction = forwarding._to_office
            sending = asyncio.create_task(client.send(data * 16))
            await until(lambda: direction._pending is not None)
        await it.replace()
        line = await it.journal.wait_for(messages.SESSION_LOST)
        assert (line["session"], line["worker"], line["why"]) == (1, number, "bytes of it may be lost")
        received = await all_of(client)
        assert (data * 16).startswith(received)
        with contextlib.suppress(ConnectionError):
            await sending
        heard = office.sessions[0][len(OPENING) :]
        assert (data * 16).startswith(heard)
        assert await echoes(other)
        assert it.journal.count(messages.SESSION_LOST) == 1
        await until(lambda: it.fake.started.count(number) == 2)
        assert it.broker.pool.totals.recycled == 1


@pytest.mark.parametrize("side", ["client", "office"])
async def test_a_half_closed_session_goes_on(side: str) -> None:
    async with machine() as it, it.client() as client:
        assert await client.open() == HELLO
        office = it.fake.offices[1]
        if side == "client":
            client.socket.shutdown(socket.SHUT_WR)
        else:
            (task,) = office._tasks
            (connection,) = office._clients
            connection.shutdown(socket.SHUT_WR)
        it.kill()
        await it.bury()
        await it.begin()
        assert await client.ended()
        client.socket.close()
        await until(lambda: it.fake.started == [1, 1])
        if side == "office":
            await asyncio.wait([task])


# Handing over


async def test_a_broker_that_hands_over_flushes_what_it_holds() -> None:
    # An office takes so much, even one that does not read while it can't write.
    data = random.Random(2).randbytes(600_000)
    async with machine(TWO) as it, it.client() as client, it.client() as other:
        assert await client.open() == HELLO
        assert await other.open() == HELLO
        session = it.broker.clients[1]
        forwarding = session.forwarding
        assert forwarding is not None
        session.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        await client.send(data)
        await until(lambda: forwarding._to_office.total == len(OPENING) + len(data))
        assert forwarding._to_office._pending is None
        assert forwarding._to_client._pending is not None
        it.broker.end(End.HAND_OVER)
        await it.journal.wait_for(messages.BROKER_HANDS_OVER)
        session.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        received = asyncio.create_task(client.receive(len(data)))
        await it.hand_over()
        await it.begin()
        assert it.journal.count(messages.SESSION_LOST) == 0
        assert await received == data
        assert await echoes(client)
        assert await echoes(other)


async def test_a_broker_that_hands_over_does_not_wait_for_who_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "_FREEZE_LIMIT", 0.05)
    async with machine(TWO) as it, it.client() as client, it.client() as other:
        assert await client.open() == HELLO
        assert await other.open() == HELLO
        forwarding = it.broker.clients[1].forwarding
        assert forwarding is not None
        sending = asyncio.create_task(client.send(bytes(8 << 20)))
        await until(lambda: forwarding._to_client._pending is not None)
        await it.hand_over()
        await it.begin()
        assert (await it.journal.wait_for(messages.SESSION_LOST))["session"] == 1
        assert await client.ended()
        with contextlib.suppress(ConnectionError):
            await sending
        assert await echoes(other)


async def test_a_session_that_is_leased_while_another_is_handed_over_begins_under_the_next_broker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(broker_module, "_FREEZE_LIMIT", 0.2)
    inspected = asyncio.Event()

    async def inspect(*_: object) -> Verdict:
        await inspected.wait()
        return Verdict()

    async with machine(TWO) as it, it.client() as stalled, it.client() as waiting:
        assert await stalled.open() == HELLO
        async with it.client() as other:
            assert await other.open() == HELLO
            await waiting.send(OPENING)
            await until(lambda: it.broker.pool.queue)
            monkeypatch.setattr(Office, "inspect", inspect)
        await until(lambda: State.INSPECTING in states(it.broker.pool))
        forwarding = it.broker.clients[1].forwarding
        assert forwarding is not None
        sending = asyncio.create_task(stalled.send(bytes(8 << 20)))
        await until(lambda: forwarding._to_client._pending is not None)
        it.broker.end(End.HAND_OVER)
        await it.journal.wait_for(messages.BROKER_HANDS_OVER)
        inspected.set()
        await it.journal.wait_for(messages.SESSION_BEGIN, 3)
        await it.hand_over()
        with pytest.raises(BlockingIOError):
            waiting.socket.recv(1)
        await it.begin()
        assert await waiting.receive(len(HELLO)) == HELLO
        assert it.journal.count(messages.SESSION_LOST) == 1
        with contextlib.suppress(ConnectionError):
            await sending


async def test_an_office_that_is_lost_as_its_broker_leaves_is_told_of_by_the_next() -> None:
    async with machine(TWO) as it, it.client() as client:
        assert await client.open() == HELLO
        before = it.journal
        await it.hand_over()
        await it.fake.kill(int(next(iter(it.left)).split("-")[2]))
        await turns(10)
        assert before.count(messages.WORKER_CRASHED) == before.count(messages.INTERNAL_ERROR) == 0
        await it.begin()
        assert it.journal.count(messages.WORKER_CRASHED) == it.journal.count(messages.SESSION_LOST) == 1


async def test_a_broker_that_hands_over_finishes_what_it_tells_refused_clients() -> None:
    query = first_request()
    async with machine(f"{ONE}\n[queue]\nmax_clients=0") as it, it.client() as busy, it.client() as client:
        await busy.open()
        await client.send(query[:20])
        await it.journal.wait_for(messages.CLIENT_REFUSED)
        it.broker.end(End.HAND_OVER)
        await it.journal.wait_for(messages.BROKER_HANDS_OVER)
        await turns(10)
        await client.send(query[20:])
        assert b"0 clients wait already" in await client.receive(1 << 20)
        client.socket.close()
        await it.hand_over()
        await it.begin()
        assert await echoes(busy)


@pytest.mark.parametrize("seed", range(6))
async def test_every_byte_arrives_once_and_in_order_across_restarts(seed: int) -> None:
    chance = random.Random(seed)
    data = chance.randbytes(2_000_000)
    async with machine() as it, it.client() as client:
        assert await client.open() == HELLO
        received = asyncio.create_task(all_of(client))
        saying = asyncio.create_task(say(client, data, chance))
        for _ in range(5):
            await turns(chance.randrange(30))
            await it.hand_over()
            await it.begin()
            assert it.journal.count(messages.SESSION_LOST) == 0
        await saying
        assert await received == data


# Waiting clients


async def test_waiting_clients_keep_their_places_and_their_first_bytes() -> None:
    served: list[int] = []
    async with machine() as it:
        await settled(it.broker.pool, State.IDLE)

        async def one(number: int) -> None:
            async with it.client() as client:
                words = OPENING + b"of %d" % number
                await client.send(words)
                assert await client.receive(len(GREETING + words)) == GREETING + words
                served.append(number)

        async with it.client() as busy:
            await busy.open()
            tasks = []
            for number in range(10):
                tasks.append(asyncio.create_task(one(number)))
                while len(it.broker.pool.queue) <= number:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            for number in range(3):
                await it.replace()
                await turns(1 + number)
                assert list(it.broker.pool.queue) == list(range(2, 12))
            assert it.journal.lines[0][1] == {"workers": 1, "sessions": 1, "queued": 10}
            assert await echoes(busy)
        await asyncio.gather(*tasks)
        assert served == list(range(10))
        assert it.broker.pool.totals.sessions == 11
        assert it.broker.pool.totals.refused == 0


async def test_who_left_the_queue_while_no_broker_ran_is_dropped() -> None:
    async with machine() as it, it.client() as busy:
        await busy.open()
        async with it.client() as waiting:
            await waiting.send(OPENING)
            await until(lambda: it.broker.pool.queue)
            it.kill()
            await it.bury()
        await it.begin()
        await it.journal.wait_for(messages.CLIENT_LEFT)
        assert not it.broker.pool.queue
        assert await echoes(busy)


async def test_a_client_that_was_just_accepted_is_kept_or_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    async with machine(ONE) as it, it.client() as client:
        with monkeypatch.context() as patch:
            patch.setattr(Broker, "_keep_waiting", lambda *_: it.kill())
            await client.send(OPENING)
            await until(lambda: it._dying)
        await it.bury()
        await it.begin()
        assert await client.ended()
        name = "{}:{}".format(*client.socket.getsockname())
        assert await it.journal.wait_for(messages.CLIENT_LOST) == {"session": 1, "client": name}
        it.kill()
        await it.bury()
        await it.begin()
        assert it.journal.count(messages.CLIENT_LOST) == 0


async def test_silent_clients_are_closed() -> None:
    async with machine() as it, it.client() as silent, it.client() as half:
        await half.send(OPENING[:5])
        await until(lambda: len(it.broker.clients) == 2)
        it.kill()
        await it.bury()
        assert await silent.ended()
        assert await half.ended()
        assert it.left == {}
        await it.begin()


async def test_who_connects_while_no_broker_runs_is_served() -> None:
    async with machine() as it:
        await settled(it.broker.pool, State.IDLE)
        it.kill()
        await it.bury()
        async with it.client() as client:
            await client.send(OPENING)
            await it.begin()
            assert await client.receive(len(HELLO)) == HELLO


async def test_a_client_that_waits_for_itself_is_told_so_by_the_next_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    async with machine("[pool]\nworkers=1\n[queue]\ntimeout=1") as it, it.client() as first, it.client() as second:
        await first.open()
        await second.send(OPENING)
        await until(lambda: it.broker.pool.queue)
        monkeypatch.setattr("ooodd.pool.pool.STANDSTILL", 0.05)
        monkeypatch.setattr("ooodd.pool.pool._LOOK_INTERVAL", 0.05)
        await it.replace()
        refused = await it.journal.wait_for(messages.CLIENT_REFUSED)
        assert "waits for itself" in str(refused["text"])


def an_hour_earlier(it: Machine, session: int) -> None:
    """Have a client that a broker left be an hour older."""
    (name,) = (name for name in it.left if name.split("-")[1] == str(session))
    start, since = name.rsplit("-", 1)
    it.left[f"{start}-{int(since) - 3_600_000}"] = it.left.pop(name)


async def test_the_time_to_wait_does_not_begin_anew() -> None:
    async with machine(f'{ONE}\n[queue]\ntimeout="1h"') as it, it.client() as busy, it.client() as waiting:
        await busy.open()
        await waiting.send(OPENING)
        await until(lambda: len(it.broker.pool.queue) == 1)
        it.kill()
        await it.bury()
        an_hour_earlier(it, 2)
        await it.begin()
        refused = await it.journal.wait_for(messages.CLIENT_REFUSED)
        assert "[queue] timeout" in str(refused["text"])
        assert float(str(refused["seconds"])) >= 3600
        assert await echoes(busy)


async def test_the_time_of_a_session_does_not_begin_anew() -> None:
    async with machine(f'{ONE}\n[session]\ntimeout="1h"') as it, it.client() as client:
        await client.open()
        it.kill()
        await it.bury()
        an_hour_earlier(it, 1)
        await it.begin()
        assert await client.ended()
        end = await it.journal.wait_for(messages.SESSION_END)
        assert "[session] timeout" in str(end["by"])
        assert float(str(end["seconds"])) >= 3600


async def test_a_session_that_was_just_leased_is_found_once() -> None:
    async with machine() as it, it.client() as client:
        await client.open()
        (session,) = it.broker.clients.values()
        it.broker._store.keep("waiting-1-0", session.connection)
        it.kill()
        await it.bury()
        assert it.left.keys() == {session.session_name()}
        (kept,) = it.left.values()
        it.left["waiting-1-0"] = [kept[0].dup()]  # as if the store had not known
        await it.begin()
        assert not it.broker.pool.queue
        assert await echoes(client)
        assert it.broker.clients.keys() == {1}


async def test_what_is_neither_session_nor_waiting_is_closed() -> None:
    async with machine() as it, it.client() as client:
        await client.open()
        it.kill()
        await it.bury()
        ours, theirs = socket.socketpair()
        it.left["session-9-0"] = [ours]
        it.left["waiting-9-0"] = [ours.dup(), ours.dup()]
        await it.begin()
        assert theirs.recv(1) == b""
        theirs.close()
        assert await echoes(client)


# Workers


async def test_after_an_adopted_session_its_worker_is_recycled() -> None:
    async with machine() as it:
        async with it.client() as client:
            await client.open()
            await it.replace()
            assert await echoes(client)
        line = await it.journal.wait_for(messages.WORKER_RECYCLED)
        assert line["detail"] == Reason.ADOPTED
        async with it.client() as client:
            assert await client.open() == HELLO
        assert it.fake.started == [1, 1]
        assert it.broker.pool.totals.recycled == 1


async def test_a_client_that_waited_leaves_a_worker_that_can_go_on() -> None:
    async with machine() as it:
        async with it.client() as busy, it.client() as waiting:
            await busy.open()
            await waiting.send(OPENING)
            await until(lambda: it.broker.pool.queue)
            await it.replace()
            busy.socket.close()
            assert await waiting.receive(len(HELLO)) == HELLO
        await settled(it.broker.pool, State.IDLE)
        assert it.fake.started == [1, 1]


@pytest.mark.parametrize("after", [False, True], ids=["amid-inspection", "amid-stop"])
async def test_a_worker_whose_session_had_ended_is_recycled_and_never_handed_out(after: bool) -> None:  # noqa: FBT001
    async with machine("[pool]\nworkers=1\nprobe_timeout=0.1") as it:
        async with it.client() as client:
            await client.open()
            it.fake.offices[1].fault = "hang-after-session"
        while states(it.broker.pool) != [State.STOPPING if after else State.INSPECTING]:  # for a few turns alone  # noqa: ASYNC110
            await asyncio.sleep(0)
        old = it.fake.offices.get(1)
        await it.replace()
        async with it.client() as client:
            assert await client.open() == HELLO
        assert it.fake.started == [1, 1]
        assert old is None or len(old.sessions) == 1
        assert it.broker.pool.totals.sessions == 2


async def test_a_worker_amid_inspection_does_not_keep_the_next_broker_from_the_others() -> None:
    config = "[pool]\nworkers=2\nmin_workers=2\nprobe_timeout=0.5"
    async with machine(config) as it, it.client() as one, it.client() as two:
        await settled(it.broker.pool, State.IDLE, State.IDLE)
        await one.open()
        await two.open()
        client, other = (one, two) if it.broker.pool.workers[1].client == 1 else (two, one)
        it.fake.offices[1].fault = "hang-after-session"
        client.socket.close()
        await settled(it.broker.pool, State.INSPECTING, State.BUSY)
        await it.replace()
        assert await echoes(other)
        await settled(it.broker.pool, State.IDLE, State.BUSY)


async def test_an_idle_worker_is_probed_and_serves_with_its_uses_kept() -> None:
    async with machine("[pool]\nworkers=1\nmax_uses=5\nmax_uses_jitter=2") as it:
        for _ in range(2):
            async with it.client() as client:
                await client.open()
            await settled(it.broker.pool, State.IDLE)
        before = it.broker.pool.workers[1]
        probes = it.fake.offices[1].probes
        await it.replace()
        assert states(it.broker.pool) == [State.INSPECTING]
        await settled(it.broker.pool, State.IDLE)
        after = it.broker.pool.workers[1]
        assert (after.uses, after.max_uses, after.started) == (2, before.max_uses, before.started)
        assert it.fake.offices[1].probes == probes + 1
        for uses in range(3, before.max_uses + 1):
            assert it.fake.started == [1]
            async with it.client() as client:
                assert await client.open() == HELLO
                assert it.broker.pool.workers[1].uses == uses
            await settled(it.broker.pool, State.IDLE) if uses < before.max_uses else None
        await until(lambda: it.fake.started == [1, 1])


@pytest.mark.parametrize("fault", ["hang", "deaf", "close-early", "never-let-go"])
async def test_an_idle_worker_that_went_bad_meanwhile_is_not_handed_out(fault: str) -> None:
    async with machine("[pool]\nworkers=1\nprobe_timeout=0.1") as it:
        await settled(it.broker.pool, State.IDLE)
        it.kill()
        await it.bury()
        (old,) = it.fake.offices.values()
        old.fault = fault
        await it.begin()
        async with it.client() as client:
            assert await client.open() == HELLO
        assert old.sessions == [] or fault == "never-let-go"


async def test_of_another_process_the_marks_say_nothing() -> None:
    async with machine() as it, it.client() as client:
        await client.open()
        it.kill()
        await it.bury()
        await it.supervisor.vanish(1)
        await it.fake.start(1)  # by somebody else
        slot = it.keep.store.marks.slot(1)
        slot.pid, slot.uses, slot.max_uses = slot.pid + 1, 3, 4
        await it.begin()
        line = await it.journal.wait_for(messages.SESSION_LOST)
        assert line["why"] == "its office ended meanwhile"
        assert await client.ended()
        await settled(it.broker.pool, State.IDLE)
        worker = it.broker.pool.workers[1]
        assert worker.uses == 0
        assert worker.max_uses > 4
        async with it.client() as another:
            assert await another.open() == HELLO


@pytest.mark.parametrize("busy", [True, False])
async def test_an_office_that_ended_while_no_broker_ran_counts_once(busy: bool) -> None:  # noqa: FBT001
    async with machine(TWO) as it, it.client() as client, it.client() as other:
        await settled(it.broker.pool, State.IDLE, State.IDLE)
        await other.open()
        number = 2 if it.broker.pool.workers[1].client else 1
        if busy:
            await client.open()
        it.kill()
        await it.bury()
        await it.supervisor.vanish(number)
        await it.begin()
        assert not busy or (await it.journal.wait_for(messages.SESSION_LOST))["worker"] == number
        assert not busy or await client.ended()
        assert await echoes(other)
        await until(lambda: it.fake.started.count(number) == 2)
        await until(lambda: it.broker.pool.workers[number].state is State.IDLE)
        assert it.broker.pool.totals.crashed == 1
        await it.replace()
        assert it.broker.pool.totals.crashed == 1
        assert it.journal.count(messages.SESSION_LOST) == 0


async def test_totals_and_session_numbers_go_on() -> None:
    async with machine("[pool]\nworkers=1\n[queue]\nmax_clients=0") as it:
        await settled(it.broker.pool, State.IDLE)
        numbers = []
        for _ in range(3):
            async with it.client() as client, it.client() as too_many:
                await client.open()
                await too_many.send(OPENING)
                await it.journal.wait_for(messages.CLIENT_REFUSED)
            await settled(it.broker.pool, State.IDLE)
            await it.supervisor.fake.kill(1)
            await settled(it.broker.pool, State.IDLE)
            numbers.append((await it.journal.wait_for(messages.SESSION_BEGIN))["session"])
            await it.replace()
            await settled(it.broker.pool, State.IDLE)
        totals = it.broker.pool.totals
        assert (totals.sessions, totals.refused, totals.crashed) == (3, 3, 3)
        assert numbers == [1, 3, 5]
        assert it.keep.store.marks.totals == (3, 3, totals.recycled, 3, 0, 0)


async def test_with_fewer_workers_sessions_go_on_and_their_workers_go_afterwards() -> None:
    async with machine("[pool]\nworkers=4\nmin_workers=4") as it, contextlib.AsyncExitStack() as stack:
        await settled(it.broker.pool, *[State.IDLE] * 4)
        clients = {}
        for session in range(1, 5):
            client = await stack.enter_async_context(it.client())
            await client.open()
            clients[it.broker.clients[session].worker] = client
        clients.pop(4).socket.close()
        await settled(it.broker.pool, *[State.BUSY] * 3, State.IDLE)
        await it.replace("[pool]\nworkers=1")
        for client in clients.values():
            assert await echoes(client)
        async with it.client() as waiting:
            await waiting.send(OPENING)
            await until(lambda: it.broker.pool.queue)
            await until(lambda: len(it.fake.offices) == 3)  # the idle one was probed, and goes
            for client in clients.values():
                client.socket.close()
            assert await waiting.receive(len(HELLO)) == HELLO
        await until(lambda: it.broker.pool.workers.keys() == {1})
        await settled(it.broker.pool, State.IDLE)
        assert it.fake.offices.keys() == {1}


async def test_a_worker_that_was_being_started_is_probed_or_started_anew() -> None:
    async with machine(TWO, ["", "deaf"]) as it:
        await settled(it.broker.pool, State.IDLE, State.STARTING)
        it.fake.offices[2].fault = ""
        await it.replace("[pool]\nworkers=2\nmin_workers=2\nprobe_timeout=0.2")
        await settled(it.broker.pool, State.IDLE, State.IDLE)
        async with it.client() as first, it.client() as second:
            assert await first.open() == HELLO
            assert await second.open() == HELLO


# A session that lingers after its office


@contextlib.asynccontextmanager
async def lingering(it: Machine, old: FakeClient) -> AsyncIterator[Forwarding]:
    """Have the first client not read the last words of its office, which is killed meanwhile."""
    await old.open()
    forwarding = it.broker.clients[1].forwarding
    assert forwarding is not None
    async with stalled(old, forwarding):
        await it.fake.kill(1)
        yield forwarding


@contextlib.asynccontextmanager
async def stalled(client: FakeClient, forwarding: Forwarding) -> AsyncIterator[None]:
    """Have a client ask for more than it reads, so that the broker holds some of it."""
    sending = asyncio.create_task(client.send(bytes(16 << 20)))
    while forwarding._to_client._pending is None:  # noqa: ASYNC110
        await asyncio.sleep(0)
    yield
    sending.cancel()
    await asyncio.wait([sending])


async def test_a_session_without_office_does_not_take_the_next_ones_place() -> None:
    async with machine() as it, it.client() as old, it.client() as new, lingering(it, old):
        assert await new.open() == HELLO
        assert it.broker.clients.keys() == {1, 2}
        (name,) = it.keep.store.kept  # type: ignore[union-attr]
        assert name.startswith("session-2-1-")
        await it.replace()
        assert await echoes(new)
        assert await old.ended()
        assert it.broker.pool.totals.crashed == 1


async def test_a_session_without_office_does_not_count_twice() -> None:
    async with machine() as it, it.client() as client, lingering(it, client):
        assert it.broker.pool.totals.crashed == 1
        await it.replace()
        assert await client.ended()
        assert it.broker.pool.totals.crashed == 1


async def test_a_session_without_office_does_not_touch_the_next_ones_marks() -> None:
    async with machine() as it, it.client() as old, it.client() as new, lingering(it, old):
        assert await new.open() == HELLO
        forwarding = it.broker.clients[2].forwarding
        assert forwarding is not None
        async with stalled(new, forwarding):
            marks = it.keep.store.marks.slot(1)
            assert marks.holding_to_client
            await all_of(old)
            assert forwarding._to_client._pending is not None
            held = marks.holding_to_client
        assert held


# Killed at any line


class Killed(BaseException):
    """The broker is dead."""


class KilledEagerly(Exception):  # noqa: N818 - the same, where the selector would pass on no other
    """The broker is dead."""


VISITS = 4
TRACED = {module.__file__ for module in (adoption, broker_module, client_module, forward, store)}


class Death:
    """Kills the broker at the n-th line that it comes to, and counts them; a line of a long loop counts a few times."""

    def __init__(self, it: Machine, line: int | None) -> None:
        self.it = it
        self.line = line
        self.lines = 0
        self.where = ""
        self.names = [""]
        self.happened = asyncio.Event()
        self._visits: Counter[str] = Counter()

    def trace(self, frame: FrameType, _: str, __: object) -> Any:  # noqa: ANN401 - as sys.settrace wants it
        return self.step if frame.f_code.co_filename in TRACED else None

    def step(self, frame: FrameType, event: str, _: object) -> Any:  # noqa: ANN401
        if event == "line":
            place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
            self._visits[place] += 1
            if self._visits[place] > VISITS:
                return self.step
            self.lines += 1
            if self.lines == self.line:
                self.where = place
                self.it.kill()
                self.happened.set()
                self.names = [each.f_code.co_name for each in _stack(frame)]
                self.it.doom(each for at in _stack(frame) for each in at.f_locals.values())
                raise KilledEagerly if "_handle" in self.names else Killed
        return self.step

    def __enter__(self) -> Self:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


class Story:
    """Two clients, one after the other on one office, each with something to say, and what they hear."""

    def __init__(self, it: Machine) -> None:
        self.said = [OPENING + (OPENING[:10] + b"client%d" % number) * 200 for number in range(2)]
        self.heard: list[bytes] = []
        self._it = it
        self._tasks: list[asyncio.Task[bytes]] = []

    async def tell(self) -> None:
        """Tell it, whatever becomes of the broker."""
        self._tasks = [asyncio.create_task(self._one(said)) for said in self.said]
        self.heard = await asyncio.gather(*self._tasks)

    async def _one(self, said: bytes) -> bytes:
        async with self._it.client() as client:
            heard = b""
            with contextlib.suppress(OSError):
                for at in range(0, len(said), 1000):
                    await client.send(said[at : at + 1000])
                    await turns(2)
                heard = await client.receive(len(GREETING + said))
                client.socket.shutdown(socket.SHUT_WR)
            return heard + await all_of(client)


async def live_and_die(line: int | None) -> Death:
    """Let a broker die at a line of that story, and see that the next one makes the best of it."""
    async with machine(ONE, keep=SystemdKeep()) as it:
        it.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 10)  # as ooodd.socket does
        await settled(it.broker.pool, State.IDLE)
        offices = set(it.fake.offices.values())
        story = Story(it)
        with Death(it, line) as death:
            telling = asyncio.create_task(story.tell())
            dying = asyncio.create_task(death.happened.wait())
            await asyncio.wait([telling, dying], return_when=asyncio.FIRST_COMPLETED)
            dying.cancel()
            if line is None:
                await settled(it.broker.pool, State.IDLE)
        lost: set[object] = set()
        stored: set[str] = set()
        if death.happened.is_set():
            await it.bury()
            stored = set(it.left)
            await it.begin()
            lost = {fields["session"] for message, fields in it.journal.lines if message is messages.SESSION_LOST}
        await telling
        await settled(it.broker.pool, State.IDLE)
        offices |= set(it.fake.offices.values())
        whole = [GREETING + said for said in story.said]
        cut = [number for number, heard in enumerate(story.heard) if heard != whole[number]]
        assert all(whole[number].startswith(story.heard[number]) for number in cut), death.where
        # A client is cut off only if it wasn't in the store, or if bytes of it may be lost.
        spared = {name.split("-")[1] for name in stored} - {str(session) for session in lost}
        assert len(cut) <= 2 - len(spared), death.where
        # And the journal tells of it, unless the kill came just before the mark that it was accepted.
        told = it.journal.count(messages.SESSION_LOST) + it.journal.count(messages.CLIENT_LOST)
        assert len(cut) <= told or death.names[0] in ("_accept", "accepted", "last_session"), death.where
        sessions = [session for office in offices for session in office.sessions]
        assert all(any(said.startswith(session) for said in story.said) for session in sessions), death.where
        assert all(sessions.count(story.said[number]) == 1 for number in {0, 1} - set(cut)), death.where
        assert all(office.most_clients <= 1 for office in offices), death.where
        between = "_mark" in death.names  # a session's total and the mark that it is counted
        assert 2 - len(cut) <= it.broker.pool.totals.sessions <= 2 + between, death.where
        async with it.client() as client:
            assert await client.open() == HELLO, death.where
        assert it.broker.pool.totals.crashed == it.broker.pool.totals.hung == 0, death.where
        return death


async def test_a_broker_may_be_killed_at_any_line() -> None:
    lines = (await live_and_die(None)).lines
    assert lines > 500
    places = {(await live_and_die(line)).where for line in range(1, lines + 50, 6)}
    assert len(places) > 100


async def test_a_broker_may_be_killed_at_any_line_of_its_taking_over() -> None:
    for line in count(1, 5):
        async with machine(TWO, keep=SystemdKeep()) as it, contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(it.client()) for _ in range(4)]
            for client in clients:
                await client.send(OPENING)
            await it.journal.wait_for(messages.SESSION_BEGIN, 2)
            await until(lambda: len(it.broker.pool.queue) == 2)
            it.kill()
            await it.bury()
            death = Death(it, line)
            with contextlib.suppress(Killed):
                await it.begin(watch=death)
            if death.happened.is_set():
                await it.bury()
                await it.begin()
            # One is given up if the kill came while bytes of it were, or may have been, in the broker.
            lost = {fields["session"] for message, fields in it.journal.lines if message is messages.SESSION_LOST}
            for session, client in enumerate(clients[:2], 1):
                if session in lost:
                    assert await client.ended(), death.where
                else:
                    assert await client.receive(len(HELLO)) == HELLO, death.where
                    assert await echoes(client), death.where
                client.socket.close()
            for client in clients[2:]:
                assert await client.receive(len(HELLO)) == HELLO, death.where
            if not death.happened.is_set():
                assert line > 100
                break
