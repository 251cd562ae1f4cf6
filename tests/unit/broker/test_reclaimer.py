# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sessions that are ended for a client that waits, with fake offices: what the office and the client see of it."""

import asyncio
import contextlib
import select
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from fakes import OPENING, FakeClient, settled, until
from ooodd import messages
from ooodd.errors import ProtocolError, WorkerHungError
from ooodd.pool.pool import State
from world import CALL, HELLO, World, world

CONFIG = """
    [pool]
    workers = 1
    max_uses = 1
    [session]
    reclaim_after = "100ms"
"""


@contextlib.asynccontextmanager
async def one_waits(plan: list[str] | None = None) -> AsyncIterator[tuple[World, FakeClient, FakeClient]]:
    """One client has the only worker, and another one waits for it."""
    async with world(CONFIG, plan) as it, it.client() as first, it.client() as second:
        await settled(it.broker.pool, State.IDLE)
        assert await first.open() == HELLO
        await second.send(OPENING)
        await until(lambda: it.queued(1))
        yield it, first, second


def instead(it: World, is_clean: Callable[[int], Awaitable[bool]]) -> None:
    """Let this answer for the office when a session is asked for."""
    it.broker.driver._reclaimer._is_clean = is_clean


async def test_a_session_that_was_left_behind_is_ended_for_the_client_that_waits() -> None:
    async with one_waits() as (it, first, second):
        assert await second.receive(len(HELLO)) == HELLO
        assert await first.ended()
        assert (await it.journal.wait_for(messages.SESSION_RECLAIMED))["session"] == 1
        assert it.journal.count(messages.SESSION_END) == 0
        assert it.journal.count(messages.WORKER_RECYCLED) == 0, "one line is enough"
        assert it.broker.pool.totals.reclaimed == 1
        assert it.supervisor.started == [1, 1], "it is not the same office"


@pytest.mark.parametrize("fault", ["leaves-document", "leaves-frame", "rubbish"])
async def test_a_session_with_something_open_goes_on(fault: str) -> None:
    async with one_waits([fault]) as (it, first, _):
        await until(lambda: 1 in it.broker.pool.reclaiming._spared)
        await first.send(CALL)
        assert await first.receive(len(CALL)) == CALL
        assert it.queued(1)
        assert it.broker.pool.totals.reclaimed == 0


@pytest.mark.parametrize("error", [WorkerHungError("no answer"), ProtocolError("what is that")])
async def test_without_an_answer_the_session_goes_on(error: Exception) -> None:
    async def is_clean(_: int) -> bool:
        raise error

    async with world(CONFIG) as it, it.client() as first, it.client() as second:
        instead(it, is_clean)
        assert await first.open() == HELLO
        await second.send(OPENING)
        await until(lambda: 1 in it.broker.pool.reclaiming._spared)
        await first.send(CALL)
        assert await first.receive(len(CALL)) == CALL


async def test_a_call_that_comes_while_the_office_is_asked_is_not_lost() -> None:
    asked = asyncio.Event()
    async with world(CONFIG) as it, it.client() as first, it.client() as second:

        async def is_clean(_: int) -> bool:
            if not asked.is_set():
                asked.set()
                await first.send(CALL)
                near = it.broker.driver.clients[1].connection
                await until(lambda: bool(select.select([near], [], [], 0)[0]))
            return True

        instead(it, is_clean)
        assert await first.open() == HELLO
        await second.send(OPENING)
        await asked.wait()
        assert await first.receive(len(CALL)) == CALL
        assert it.journal.count(messages.SESSION_RECLAIMED) == 0


async def test_a_client_that_ends_while_its_office_is_asked_is_not_counted_as_reclaimed() -> None:
    async with world(CONFIG) as it, it.client() as first, it.client() as second:

        async def is_clean(_: int) -> bool:
            first.socket.close()
            near = it.broker.driver.clients[1].connection
            await until(lambda: bool(select.select([near], [], [], 0)[0]))
            return True

        instead(it, is_clean)
        assert await first.open() == HELLO
        await second.send(OPENING)
        assert await second.receive(len(HELLO)) == HELLO
        assert it.broker.pool.totals.reclaimed == 0
        assert (await it.journal.wait_for(messages.SESSION_END))["session"] == 1


async def test_an_office_that_dies_while_it_is_asked() -> None:
    async with world(CONFIG) as it, it.client() as first, it.client() as second:

        async def is_clean(_: int) -> bool:
            await it.supervisor.kill(1)
            return True

        instead(it, is_clean)
        assert await first.open() == HELLO
        await second.send(OPENING)
        assert await first.ended()
        assert await second.receive(len(HELLO)) == HELLO
        assert it.broker.pool.totals.reclaimed == 0
        assert it.broker.pool.totals.crashed == 1


async def test_a_client_that_waited_and_has_gone_ends_no_session() -> None:
    async with world(CONFIG) as it, it.client() as first, it.client() as second:

        async def is_clean(_: int) -> bool:
            second.socket.close()
            await until(lambda: it.queued(0))
            return True

        instead(it, is_clean)
        assert await first.open() == HELLO
        await second.send(OPENING)
        await it.journal.wait_for(messages.CLIENT_LEFT)
        await first.send(CALL)
        assert await first.receive(len(CALL)) == CALL


async def test_the_end_of_the_broker_amid_it() -> None:
    asked, never = asyncio.Event(), asyncio.Event()

    async def is_clean(_: int) -> bool:
        asked.set()
        return await never.wait()

    async with world(CONFIG) as it, it.client() as first, it.client() as second:
        instead(it, is_clean)
        assert await first.open() == HELLO
        await second.send(OPENING)
        await asked.wait()
    assert it.journal.count(messages.INTERNAL_ERROR) == 0


async def test_jobs_of_a_program_that_never_closes_anything_are_all_served() -> None:
    async with world(CONFIG) as it, contextlib.AsyncExitStack() as stack:
        for _ in range(12):
            client = await stack.enter_async_context(it.client())
            assert await client.open() == HELLO
        assert it.broker.pool.totals.reclaimed == 11
        assert it.broker.pool.totals.refused == 0
