# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sessions across kills and restarts of the broker: every byte arrives once and in order."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator

import pytest

from fakes import (
    GREETING,
    OPENING,
    FakeClient,
    first_request,
    forward_only,
    settled,
    states,
    until,
)
from ooodd import messages
from ooodd.broker import broker as broker_module
from ooodd.broker.broker import End
from ooodd.datapath.forward import Forwarding
from ooodd.datapath.record import Record
from ooodd.office.keeper import Keeper, Verdict
from ooodd.pool.pool import State
from succession import HELLO, ONE, TWO, Machine, all_of, echoes, machine, send_in_pieces, turns


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
            asyncio.create_task(send_in_pieces(client, data[len(OPENING) :], chance))  # type: ignore[arg-type]
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


@forward_only
async def test_a_session_that_goes_on_may_be_silent() -> None:
    """The first call may have been made. So the limit for it is no limit any more."""
    async with machine(f'{ONE}\n[session]\ntimeout="1h"\nfirst_call_timeout="1h"') as it, it.client() as client:
        await client.open()
        await it.replace()
        (after,) = (each.path for each in it.broker.driver.clients.values())
        assert isinstance(after, Forwarding)
        timers = after._timers
        await until(lambda: "timeout" in timers)
        assert "first_call" not in timers


async def test_many_kills_in_a_row_lose_no_data() -> None:
    async with machine(TWO) as it, it.client() as client:
        assert await client.open() == HELLO
        for number in range(50):
            await it.replace()
            await turns(number % 7)
            assert number % 3 or await echoes(client, b"%d" % number)
        assert await echoes(client)
        assert it.broker.pool.totals.sessions == 1
        assert it.broker.pool.totals.recycled == it.broker.pool.totals.crashed == 0


@forward_only
@pytest.mark.parametrize("which", ["client", "office"])
async def test_a_session_with_data_in_the_killed_broker_is_ended_and_not_corrupted(which: str) -> None:
    async with machine(TWO) as it, it.client() as client, it.client() as other:
        assert await client.open() == HELLO
        assert await other.open() == HELLO
        number = next(worker.id for worker in it.broker.pool.workers.values() if worker.client == 1)
        forwarding = it.forwarding(1)
        office = it.fake.offices[number]
        data = random.Random(1).randbytes(1 << 20)
        if which == "client":  # does not read the answers
            direction = forwarding._to_client
            sending = asyncio.create_task(client.send(data * 16))
            await until(lambda: direction._pending is not None)
        else:  # does not read its requests
            for task in office._tasks:
                task.cancel()  # like a frozen process: it reads nothing, and its socket stays open
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


@forward_only
@pytest.mark.parametrize("side", ["client", "office"])
async def test_a_half_closed_session_continues(side: str) -> None:
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
        await it.clean_up_after_kill()
        await it.begin()
        assert await client.ended()
        client.socket.close()
        if side == "client":
            await settled(it.broker.pool, State.IDLE)
            assert it.fake.started == [1]
        else:
            await until(lambda: it.fake.started == [1, 1])
            await asyncio.wait([task])


@forward_only
async def test_a_hand_over_flushes_the_data_that_the_broker_holds() -> None:
    # An office reads this much, even one that stops reading while it can't write.
    data = random.Random(2).randbytes(600_000)
    async with machine(TWO) as it, it.client() as client, it.client() as other:
        assert await client.open() == HELLO
        assert await other.open() == HELLO
        session = it.broker.driver.clients[1]
        forwarding = it.forwarding(1)
        session.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        await client.send(data)
        await until(
            lambda: forwarding._to_office.total == len(OPENING) + len(data) and not forwarding._to_office.pending
        )
        await until(lambda: forwarding._to_client.pending)
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


@forward_only
async def test_a_hand_over_does_not_wait_for_a_client_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "_FREEZE_LIMIT", 0.05)
    async with machine(TWO) as it, it.client() as client, it.client() as other:
        assert await client.open() == HELLO
        assert await other.open() == HELLO
        forwarding = it.forwarding(1)
        sending = asyncio.create_task(client.send(bytes(8 << 20)))
        await until(lambda: forwarding._to_client._pending is not None)
        await it.hand_over()
        await it.begin()
        assert (await it.journal.wait_for(messages.SESSION_LOST))["session"] == 1
        assert await client.ended()
        with contextlib.suppress(ConnectionError):
            await sending
        assert await echoes(other)


@forward_only
async def test_a_client_leased_during_a_hand_over_begins_its_session_with_the_next_broker(
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
            monkeypatch.setattr(Keeper, "inspect", inspect)
        await until(lambda: State.INSPECTING in states(it.broker.pool))
        forwarding = it.forwarding(1)
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


async def test_an_office_lost_during_a_hand_over_is_reported_by_the_next_broker() -> None:
    async with machine(TWO) as it, it.client() as client:
        assert await client.open() == HELLO
        before = it.journal
        await it.hand_over()
        await it.fake.kill(next(int(name.split("-")[2]) for name in it.left if name.startswith("office-")))
        await turns(10)
        assert before.count(messages.WORKER_CRASHED) == before.count(messages.INTERNAL_ERROR) == 0
        await it.begin()
        assert it.journal.count(messages.WORKER_CRASHED) == it.journal.count(messages.SESSION_LOST) == 1


async def test_a_hand_over_finishes_the_answers_to_refused_clients() -> None:
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
        saying = asyncio.create_task(send_in_pieces(client, data, chance))
        for _ in range(5):
            await turns(chance.randrange(30))
            await it.hand_over()
            await it.begin()
            assert it.journal.count(messages.SESSION_LOST) == 0
        await saying
        assert await received == data


@contextlib.asynccontextmanager
async def lingering(it: Machine, old: FakeClient) -> AsyncIterator[Forwarding]:
    """Kill the office of a client that has not read the last data from it."""
    await old.open()
    forwarding = it.forwarding(1)
    async with stalled(old, forwarding):
        await it.fake.kill(1)
        yield forwarding


@contextlib.asynccontextmanager
async def stalled(client: FakeClient, forwarding: Forwarding) -> AsyncIterator[None]:
    """Make a client request more data than it reads, so that the broker holds some of the data."""
    sending = asyncio.create_task(client.send(bytes(16 << 20)))
    while forwarding._to_client._pending is None:  # noqa: ASYNC110
        await asyncio.sleep(0)
    yield
    sending.cancel()
    await asyncio.wait([sending])


@forward_only
async def test_a_session_that_lost_its_office_does_not_replace_the_next_session() -> None:
    async with machine() as it, it.client() as old, it.client() as new, lingering(it, old):
        assert await new.open() == HELLO
        assert it.broker.driver.clients.keys() == {1, 2}
        assert {name.split("-")[1] for name in it.storage.store.kept} == {"2"}  # type: ignore[union-attr]
        await it.replace()
        assert await echoes(new)
        assert await old.ended()
        assert it.broker.pool.totals.crashed == 1


@forward_only
async def test_a_session_that_lost_its_office_does_not_count_twice() -> None:
    async with machine() as it, it.client() as client, lingering(it, client):
        assert it.broker.pool.totals.crashed == 1
        await it.replace()
        assert await client.ended()
        assert it.broker.pool.totals.crashed == 1


@forward_only
async def test_a_session_that_lost_its_office_does_not_change_the_marks_of_the_next() -> None:
    async with machine() as it, it.client() as old, it.client() as new, lingering(it, old):
        assert await new.open() == HELLO
        forwarding = it.forwarding(2)
        async with stalled(new, forwarding):
            marks = it.storage.store.marks.slot(1)
            assert marks.record[Record.TO_CLIENT]
            await all_of(old)
            assert forwarding._to_client._pending is not None
            held = marks.record[Record.TO_CLIENT]
        assert held
