# SPDX-License-Identifier: LGPL-2.1-or-later
"""An administrator's orders to a running broker."""

import asyncio
import time

import pytest

from fakes import GREETING, OPENING, settled, until
from ooodd import messages
from ooodd.broker.orders import Orders
from ooodd.errors import AdminError
from ooodd.pool.pool import State
from world import HELLO, asks, world

ROOT = "user root"


async def test_recycle_replaces_idle_offices_now_and_others_after_their_session() -> None:
    async with world("[pool]\nworkers=2\nmin_workers=2\nmax_uses=5") as it, it.client() as client:
        await settled(it.broker.pool, State.IDLE, State.IDLE)
        assert await client.open() == HELLO
        orders = it.broker.orders
        before = orders.offices([1, 2])
        assert orders.recycle(None, ROOT) == [1, 2]
        await until(lambda: len(it.supervisor.started) == 3)
        busy = next(iter(set(orders.offices([1, 2]).items()) & set(before.items())))
        client.socket.close()
        await until(lambda: busy not in orders.offices([1, 2]).items())
        asked = await it.journal.wait_for(messages.RECYCLE_ASKED)
        assert (asked["workers"], asked["by"]) == ("all workers", ROOT)
        assert it.broker.pool.totals.recycled == 2


async def test_recycle_of_one_leaves_the_others() -> None:
    async with world("[pool]\nworkers=2\nmin_workers=2") as it:
        await settled(it.broker.pool, State.IDLE, State.IDLE)
        before = it.broker.orders.offices([1, 2])
        assert it.broker.orders.recycle(2, ROOT) == [2]
        await until(lambda: len(it.supervisor.started) == 3)
        assert it.broker.orders.offices([1, 2])[1] is before[1]


@pytest.mark.parametrize("number", [0, -1, 3])
async def test_a_worker_that_there_is_not_can_not_be_recycled(number: int) -> None:
    async with world("[pool]\nworkers=2") as it:
        with pytest.raises(AdminError, match=f"^there is no worker {number}: they are 1 to 2$"):
            it.broker.orders.recycle(number, ROOT)
        assert it.journal.count(messages.RECYCLE_ASKED) == 0


async def test_kick_ends_exactly_one_session() -> None:
    async with world("[pool]\nworkers=2") as it, it.client() as first, it.client() as second:
        assert await first.open() == HELLO
        assert await second.open() == HELLO
        sessions = list(it.broker.driver.clients)
        name = it.broker.orders.kick(sessions[0], ROOT)
        assert await first.ended()
        await second.send(b"on and on")
        assert await second.receive(9) == b"on and on"
        kicked = await it.journal.wait_for(messages.SESSION_KICKED)
        assert (kicked["session"], kicked["client"], kicked["by"]) == (sessions[0], name, ROOT)
        await until(lambda: it.broker.pool.totals.recycled == 1)
        assert (await it.journal.wait_for(messages.SESSION_END))["by"] == "ooodd: an administrator"


async def test_kick_tells_a_client_that_waits_why() -> None:
    async with world("[pool]\nworkers=1") as it, it.client() as first, it.client() as second:
        assert await first.open() == HELLO
        asking = asyncio.create_task(asks(second))
        await until(lambda: it.queued(1))
        it.broker.orders.kick(next(iter(it.broker.pool.queue)), ROOT)
        assert b"ooodd: an administrator has sent this client away" in await asking
        await first.send(b"on and on")
        assert await first.receive(9) == b"on and on"


async def test_kick_closes_a_client_that_has_said_nothing() -> None:
    async with world("[pool]\nworkers=1") as it, it.client() as client:
        await until(lambda: it.broker.driver.clients)
        it.broker.orders.kick(next(iter(it.broker.driver.clients)), ROOT)
        assert await client.ended()
        await until(lambda: not it.broker.driver.clients)


@pytest.mark.parametrize("session", [0, -1, 99])
async def test_a_session_that_there_is_not_can_not_be_kicked(session: int) -> None:
    async with world("[pool]\nworkers=1") as it:
        with pytest.raises(AdminError, match=f"^there is no session {session}: `ooodd status` shows"):
            it.broker.orders.kick(session, ROOT)


async def test_while_paused_a_client_waits_and_a_session_goes_on() -> None:
    async with world("[pool]\nworkers=2") as it, it.client() as first, it.client() as second:
        assert await first.open() == HELLO
        it.broker.orders.pause(ROOT)
        assert it.broker.status_line().startswith("paused: 1 of 2 busy")
        await second.send(OPENING)
        await until(lambda: it.queued(1))
        await first.send(b"on and on")
        assert await first.receive(9) == b"on and on"
        first.socket.close()
        await until(lambda: it.broker.pool.count(State.BUSY, State.INSPECTING) == 0)
        assert it.queued(1)
        it.broker.orders.resume(ROOT)
        assert await second.receive(len(GREETING + OPENING)) == HELLO
        assert it.journal.count(messages.POOL_PAUSED) == it.journal.count(messages.POOL_RESUMED) == 1


async def test_to_pause_twice_is_one_pause() -> None:
    async with world("[pool]\nworkers=1") as it:
        for _ in range(2):
            it.broker.orders.pause(ROOT)
        for _ in range(2):
            it.broker.orders.resume(ROOT)
        assert it.journal.count(messages.POOL_PAUSED) == it.journal.count(messages.POOL_RESUMED) == 1


async def test_who_waits_too_long_while_paused_is_told_so() -> None:
    async with world('[pool]\nworkers=1\n[queue]\ntimeout="1s"') as it, it.client() as client:
        it.broker.orders.pause(ROOT)
        begun = time.monotonic()
        assert b"the service is paused, and this client has waited for 1 s" in await asks(client)
        assert time.monotonic() - begun >= 1.0


async def test_the_next_broker_is_paused_too() -> None:
    async with world("[pool]\nworkers=1") as it:
        it.broker.orders.pause(ROOT)
        Orders(it.broker.driver)
        assert it.broker.pool.queue.paused
        it.broker.orders.resume(ROOT)
        Orders(it.broker.driver)
        assert not it.broker.pool.queue.paused
