# SPDX-License-Identifier: LGPL-2.1-or-later
"""Restarts at bad moments: amid a start or stop of a worker, between a lease and its session, while an office dies."""

import asyncio
import random
import socket
from collections import Counter, defaultdict

import pytest

from fakes import GREETING, OPENING, FakeClient, settled, states, until
from ooodd import messages
from ooodd.broker.broker import End
from ooodd.broker.client import Left, Refused, Turn
from ooodd.messages import Message
from ooodd.office.office import Office
from ooodd.pool.actions import Lease, Reason
from ooodd.pool.pool import State
from succession import HELLO, ONE, TWO, Machine, SystemdStorage, echoes, machine, turns
from world import CALL, world


async def test_a_stop_interrupted_by_a_restart_ends_no_later_session(monkeypatch: pytest.MonkeyPatch) -> None:
    async with machine(ONE, ["deaf"]) as it:
        await until(lambda: it.fake.offices)
        await it.hand_over()  # the office runs, but is not ready yet
        with monkeypatch.context() as patch:
            stop = it.supervisor.stop

            async def stop_and_hang(number: int) -> None:
                await stop(number)
                await asyncio.Event().wait()

            patch.setattr(it.supervisor, "stop", stop_and_hang)
            await it.begin()
            await until(lambda: states(it.broker.pool) == [State.STOPPING] and not it.fake.offices)
            await it.hand_over()
        await it.begin()
        async with it.client() as client:
            assert await client.open() == HELLO
            await it.replace()
            assert it.journal.count(messages.SESSION_LOST) == 0
            assert await echoes(client)


@pytest.mark.parametrize("event", ["crash", "stop"])
async def test_a_lease_that_ends_before_its_session_begins_is_no_session(
    monkeypatch: pytest.MonkeyPatch, event: str
) -> None:
    async with world() as it, it.client() as one, it.client() as two:
        await settled(it.broker.pool, State.IDLE)
        assert await one.open() == HELLO
        await two.send(OPENING)
        await until(lambda: it.queued(1))
        decide = Turn.decide

        def decide_and_meet(turn: Turn, decision: Lease | Refused | Left) -> None:
            monkeypatch.setattr(Turn, "decide", decide)
            soon = asyncio.get_running_loop().call_soon  # before the client's task
            if event == "crash":
                soon(it.supervisor.lost, 1, it.supervisor._handles[1], Reason.CRASHED, "killed by signal 9")
            else:
                soon(lambda: it.broker.driver.do(it.broker.pool.close(0.0)))
            decide(turn, decision)

        monkeypatch.setattr(Turn, "decide", decide_and_meet)
        one.socket.close()
        if event == "crash":
            assert await two.receive(len(HELLO)) == HELLO
            assert it.broker.pool.totals.sessions == 2
        else:
            assert await two.ended()
            assert it.broker.pool.totals.sessions == 1
        assert it.journal.count(messages.INTERNAL_ERROR) == 0


async def test_an_office_lost_while_its_session_is_frozen_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    async with machine(TWO) as it, it.client() as client:
        await settled(it.broker.pool, State.IDLE, State.IDLE)
        assert await client.open() == HELLO
        gate = asyncio.create_task(asyncio.Event().wait(), name="gate")
        monkeypatch.setattr(it.broker, "_being_refused", lambda: [] if gate.done() else [gate])
        it.broker.end(End.HAND_OVER)
        await it.journal.wait_for(messages.BROKER_HANDS_OVER)
        await it.fake.kill(it.worker_of(1))
        gate.cancel()
        assert it.running is not None
        await it.running
        assert it.journal.count(messages.SESSION_LOST) + it.journal.count(messages.SESSION_END) == 1
        assert await client.ended()
        await it.hand_over()
        await it.begin()
        assert it.journal.count(messages.SESSION_LOST) == 0


async def test_a_client_that_hangs_up_during_a_hand_over_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with machine(ONE) as it, it.client() as busy, it.client() as waiting:
        assert await busy.open() == HELLO
        await waiting.send(OPENING)
        await until(lambda: it.broker.pool.queue)
        before = it.journal
        gate = asyncio.create_task(asyncio.Event().wait(), name="gate")
        monkeypatch.setattr(it.broker, "_being_refused", lambda: [] if gate.done() else [gate])
        it.broker.end(End.HAND_OVER)
        await before.wait_for(messages.BROKER_HANDS_OVER)
        waiting.socket.close()
        await before.wait_for(messages.CLIENT_LEFT)
        gate.cancel()
        await it.hand_over()
        await it.begin()
        assert not it.broker.pool.queue
        assert before.count(messages.CLIENT_LEFT) + it.journal.count(messages.CLIENT_LEFT) == 1
        assert await echoes(busy)


async def test_a_stop_in_progress_at_a_restart_counts_once() -> None:
    async with machine(ONE) as it:
        async with it.client() as client:
            assert await client.open() == HELLO
            it.fake.offices[1].fault = "leaves-document"
        await it.journal.wait_for(messages.WORKER_DIRTY)
        before = it.journal
        await it.replace()
        await settled(it.broker.pool, State.IDLE)
        assert it.broker.pool.totals.dirty == 1
        assert it.broker.pool.totals.recycled == 0
        assert before.count(messages.WORKER_DIRTY) + it.journal.count(messages.WORKER_DIRTY) == 1
        assert it.journal.count(messages.WORKER_RECYCLED) == 0


@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_a_session_that_was_asked_for_goes_on_after_a_restart_amid_it(how: str) -> None:
    """What comes from the client meanwhile stays in its socket, and the next broker passes it on."""
    asked = asyncio.Event()

    async def is_clean(_: int) -> bool:
        asked.set()
        return await asyncio.Event().wait()

    config = "[pool]\nworkers=1\n[session]\nreclaim_after='100ms'"
    async with machine(config) as it, it.client() as first, it.client() as second:
        assert await first.open() == HELLO
        it.broker.driver._reclaimer._is_clean = is_clean
        await second.send(OPENING)
        await asked.wait()
        await first.send(CALL)
        if how == "kill":
            it.kill()
            await it.clean_up_after_kill()
        else:
            await it.hand_over()
        await it.begin()
        assert await first.receive(len(CALL)) == CALL
        assert it.journal.count(messages.SESSION_LOST) == 0
        first.socket.close()
        assert await second.receive(len(HELLO)) == HELLO


async def test_after_an_error_during_adoption_the_next_broker_adopts_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async with machine(ONE) as it, it.client() as busy, it.client() as waiting:
        assert await busy.open() == HELLO
        await waiting.send(OPENING)
        await until(lambda: it.broker.pool.queue)
        await it.hand_over()
        with monkeypatch.context() as patch:
            patch.setattr("ooodd.broker.hangups.Hangups.watch", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await it.begin()
        for task in (sessions := [each for each in asyncio.all_tasks() if each.get_name().startswith("session ")]):
            task.cancel()  # as asyncio.Runner does
        await asyncio.gather(*sessions, return_exceptions=True)
        await turns(2)
        it.kill()
        await it.clean_up_after_kill()
        await it.begin()
        assert await echoes(busy)
        busy.socket.close()
        assert await waiting.receive(len(HELLO)) == HELLO


class SlowJobs:
    """Makes starts and stops of offices slow. Like jobs of systemd, they go on when the broker ends."""

    def __init__(self, it: Machine, chance: random.Random) -> None:
        self._fake = it.fake
        self._chance = chance
        self._locks: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.jobs: set[asyncio.Task[Office]] = set()
        it.supervisor.start = self.start  # type: ignore[method-assign]
        it.supervisor.stop = self.stop  # type: ignore[method-assign]

    async def start(self, number: int) -> Office:
        job = asyncio.create_task(self._start(number), name="start job")
        self.jobs.add(job)
        job.add_done_callback(self.jobs.discard)
        return await asyncio.shield(job)

    async def stop(self, number: int) -> None:
        job = asyncio.create_task(self._stop(number), name="stop job")
        self.jobs.add(job)  # type: ignore[arg-type]
        job.add_done_callback(self.jobs.discard)
        await asyncio.shield(job)

    async def _start(self, number: int) -> Office:
        async with self._locks[number]:
            await turns(self._chance.randrange(20))
            if number in self._fake.offices:
                await self._fake.stop(number)
            office = await self._fake.start(number)
            if self._chance.random() < 0.3:
                self._fake.offices[number].fault = "leaves-document"
            await turns(self._chance.randrange(20))
            return office

    async def _stop(self, number: int) -> None:
        async with self._locks[number]:
            await turns(self._chance.randrange(20))
            await self._fake.stop(number)


class Clients:
    """Clients that open one session after the other until `stopping` is set."""

    def __init__(self, it: Machine, chance: random.Random) -> None:
        self._address = it.listener.getsockname()
        self._chance = chance
        self.served = 0
        self.failed: list[str] = []
        self.stopping = False

    async def client(self) -> None:
        while not self.stopping:
            await turns(self._chance.randrange(20))
            async with FakeClient(self._address) as client:
                try:
                    await self._session(client)
                except OSError as error:
                    self.failed.append(repr(error))

    async def _session(self, client: FakeClient) -> None:
        data = OPENING + self._chance.randbytes(8).hex().encode()
        await client.send(data)
        received = await client.receive(len(GREETING + data))
        for _ in range(self._chance.randrange(4)):
            await turns(self._chance.randrange(20))
            await client.send(OPENING)
            received += await client.receive(len(OPENING))
        client.socket.shutdown(socket.SHUT_WR)
        if not received.startswith(GREETING + data) or await client.receive(1):
            self.failed.append(repr(received))
        self.served += 1


@pytest.mark.parametrize("seed", range(12))
async def test_restarts_at_any_moment_affect_no_client(seed: int) -> None:
    chance = random.Random(seed)
    config = "[pool]\nworkers=3\nmin_workers=3\nmax_uses=4\nmax_uses_jitter=2\n"
    lines: list[Message] = []
    async with machine(config, storage=SystemdStorage()) as it:
        it.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 10)  # as ooodd.socket does
        slow = SlowJobs(it, chance)
        load = Clients(it, chance)
        clients = [asyncio.create_task(load.client(), name=f"client {number}") for number in range(7)]
        for _ in range(10):
            await turns(chance.randrange(120))
            await it.hand_over()
            lines += [message for message, _ in it.journal.lines]
            if slow.jobs:  # systemd finishes the jobs before it answers the next broker
                await asyncio.wait(slow.jobs)
            await it.begin()
        load.stopping = True
        await asyncio.gather(*clients)
        await until(lambda: not it.broker.driver.clients)
        await settled(it.broker.pool, *[State.IDLE] * 3)
        count = Counter(lines + [message for message, _ in it.journal.lines])
        totals = it.broker.pool.totals
        assert load.failed == []
        assert count[messages.SESSION_LOST] == count[messages.INTERNAL_ERROR] == count[messages.CLIENT_LOST] == 0
        assert totals.sessions == load.served == count[messages.SESSION_BEGIN] == count[messages.SESSION_END]
        assert (totals.dirty, totals.recycled) == (count[messages.WORKER_DIRTY], count[messages.WORKER_RECYCLED])
        assert totals.crashed == totals.hung == 0
