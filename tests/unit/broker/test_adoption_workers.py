# SPDX-License-Identifier: LGPL-2.1-or-later
"""Offices and totals across kills and restarts of the broker."""

import asyncio
import contextlib

import pytest

from fakes import (
    OPENING,
    forward_only,
    settled,
    states,
    until,
)
from ooodd import messages
from ooodd.pool.pool import State
from succession import HELLO, TWO, echoes, machine
from world import CALL


async def test_a_worker_serves_again_after_an_adopted_session() -> None:
    async with machine() as it:
        async with it.client() as client:
            await client.open()
            await it.replace()
            assert await echoes(client, OPENING)
        await settled(it.broker.pool, State.IDLE)
        async with it.client() as client:
            assert await client.open() == HELLO
        assert it.fake.started == [1]
        assert it.broker.pool.totals.recycled == it.broker.pool.totals.dirty == 0


async def test_an_adopted_session_that_ends_during_a_call_leaves_a_dirty_worker() -> None:
    async with machine() as it:
        async with it.client() as client:
            await client.open()
            await client.send(CALL)
            await client.receive(len(CALL))
            await it.replace()
        await it.journal.wait_for(messages.WORKER_DIRTY)
        assert it.broker.pool.totals.dirty == 1


async def test_a_worker_serves_again_after_an_adopted_client_of_the_queue() -> None:
    async with machine() as it:
        async with it.client() as busy, it.client() as waiting:
            await busy.open()
            await waiting.send(OPENING)
            await until(lambda: it.broker.pool.queue)
            await it.replace()
            busy.socket.close()
            assert await waiting.receive(len(HELLO)) == HELLO
        await settled(it.broker.pool, State.IDLE)
        assert it.fake.started == [1]


@pytest.mark.parametrize("after", [False, True], ids=["amid-inspection", "amid-stop"])
async def test_a_worker_whose_session_had_ended_is_recycled_and_gets_no_client(after: bool) -> None:  # noqa: FBT001
    async with machine("[pool]\nworkers=1\nprobe_timeout=0.1") as it:
        async with it.client() as client:
            await client.open()
            it.fake.offices[1].fault = "hang-after-session"
        passing = [State.STOPPING if after else State.INSPECTING]  # lasts a few turns only
        while states(it.broker.pool) != passing:  # noqa: ASYNC110
            await asyncio.sleep(0)
        old = it.fake.offices.get(1)
        await it.replace()
        async with it.client() as client:
            assert await client.open() == HELLO
        assert it.fake.started == [1, 1]
        assert old is None or len(old.sessions) == 1
        assert it.broker.pool.totals.sessions == 2


async def test_a_worker_under_inspection_does_not_delay_the_other_workers() -> None:
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


async def test_an_idle_worker_is_probed_and_keeps_its_number_of_uses() -> None:
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
async def test_an_idle_worker_that_became_faulty_meanwhile_gets_no_client(fault: str) -> None:
    async with machine("[pool]\nworkers=1\nprobe_timeout=0.1") as it:
        await settled(it.broker.pool, State.IDLE)
        it.kill()
        await it.clean_up_after_kill()
        (old,) = it.fake.offices.values()
        old.fault = fault
        await it.begin()
        async with it.client() as client:
            assert await client.open() == HELLO
        assert old.sessions == [] or fault == "never-let-go"


async def test_marks_of_another_process_are_ignored() -> None:
    async with machine() as it, it.client() as client:
        await client.open()
        it.kill()
        await it.clean_up_after_kill()
        await it.supervisor.vanish(1)
        await it.fake.start(1)  # not started by this broker
        slot = it.storage.store.marks.slot(1)
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
        await it.clean_up_after_kill()
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


async def test_totals_and_session_numbers_continue() -> None:
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
        assert it.storage.store.marks.totals == (3, 3, totals.recycled, 3, 0, 0, 0)


async def test_surplus_workers_stop_after_their_sessions() -> None:
    async with machine("[pool]\nworkers=4\nmin_workers=4") as it, contextlib.AsyncExitStack() as stack:
        await settled(it.broker.pool, *[State.IDLE] * 4)
        clients = {}
        for session in range(1, 5):
            client = await stack.enter_async_context(it.client())
            await client.open()
            clients[it.worker_of(session)] = client
        clients.pop(4).socket.close()
        await settled(it.broker.pool, *[State.BUSY] * 3, State.IDLE)
        await it.replace("[pool]\nworkers=1")
        for client in clients.values():
            assert await echoes(client)
        async with it.client() as waiting:
            await waiting.send(OPENING)
            await until(lambda: it.broker.pool.queue)
            await until(lambda: len(it.fake.offices) == 3)  # the idle one was probed and stops
            for client in clients.values():
                client.socket.close()
            assert await waiting.receive(len(HELLO)) == HELLO
        await until(lambda: it.broker.pool.workers.keys() == {1})
        await settled(it.broker.pool, State.IDLE)
        assert it.fake.offices.keys() == {1}


async def test_a_worker_that_was_starting_is_probed_or_started_again() -> None:
    async with machine(TWO, ["", "deaf"]) as it:
        await settled(it.broker.pool, State.IDLE, State.STARTING)
        it.fake.offices[2].fault = ""
        await it.replace("[pool]\nworkers=2\nmin_workers=2\nprobe_timeout=0.2")
        await settled(it.broker.pool, State.IDLE, State.IDLE)
        async with it.client() as first, it.client() as second:
            assert await first.open() == HELLO
            assert await second.open() == HELLO


async def test_an_office_that_ended_with_its_broker_is_counted_by_the_next() -> None:
    async with machine() as it:
        await settled(it.broker.pool, State.IDLE)
        it.kill()
        await it.clean_up_after_kill()
        await it.supervisor.vanish(1)
        assert it.left == {}
        await it.begin()
        assert it.broker.pool.totals.crashed == 1
        assert it.journal.count(messages.WORKER_CRASHED) == 1
        await settled(it.broker.pool, State.IDLE)


@forward_only
async def test_the_next_broker_knows_of_a_long_call() -> None:
    async with machine() as it, it.client() as client:
        await client.open()
        await client.send(CALL)
        await client.receive(len(CALL))
        assert it.forwarding(1).quiet_since is None
        await it.replace()
        assert it.forwarding(1).quiet_since is None
        await it.hand_over()
        await it.begin()
        assert it.forwarding(1).quiet_since is None


async def test_a_lower_max_uses_applies_to_running_offices() -> None:
    async with machine("[pool]\nworkers=1\nmax_uses=10\nmax_uses_jitter=0") as it:
        for _ in range(3):
            async with it.client() as client:
                await client.open()
            await settled(it.broker.pool, State.IDLE)
        await it.replace("[pool]\nworkers=1\nmax_uses=1")
        async with it.client() as client:
            assert await client.open() == HELLO
        assert it.fake.started == [1, 1]
        assert len(it.fake.offices[1].sessions) == 1
