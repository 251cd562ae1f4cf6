# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a forwarding holds, how it is frozen, and how the next one goes on."""

import asyncio
import contextlib
import socket

import pytest

from datapath.sessions import CALL, REPLY, TO_CLIENT, TO_OFFICE, receive, send, session
from ooodd.datapath.forward import Forwarding
from ooodd.datapath.path import SessionLimits, Side
from ooodd.datapath.record import Record


async def test_a_session_that_begins_holds_nothing() -> None:
    async with session() as it:
        assert it.holds == (0, 0)


async def test_what_is_passed_on_at_once_is_not_held() -> None:
    async with session() as it:
        await send(it.client, b"up")
        await send(it.office, b"down")
        assert await receive(it.office, 2) == b"up"
        assert await receive(it.client, 4) == b"down"
        assert it.holds == (0, 0)


@pytest.mark.parametrize("way", [TO_OFFICE, TO_CLIENT])
async def test_what_the_other_side_does_not_take_is_held_until_it_does(way: str) -> None:
    async with session() as it:
        _, sink = it.ends(way)
        sent = await it.stall(way)
        assert it.holds == ((1, 0) if way == TO_OFFICE else (0, 1))
        assert await receive(sink, sent) == bytes(sent)
        assert it.holds == (0, 0)


async def test_an_end_of_file_is_nothing_that_is_held() -> None:
    async with session() as it:
        it.client.shutdown(socket.SHUT_WR)
        assert await receive(it.office) == b""
        assert it.holds == (0, 0)
        it.office.close()
        await it.result()
        assert it.holds == (0, 0)


async def test_what_was_held_when_it_was_cancelled_stays_marked() -> None:
    async with session() as it:
        await it.stall(TO_CLIENT)
        await it.cancel()
        assert it.holds == (0, 1)


async def test_cancelled_it_holds_nothing_if_nothing_was_pending() -> None:
    async with session() as it:
        await send(it.client, b"up")
        assert await receive(it.office, 2) == b"up"
        await it.cancel()
        assert it.holds == (0, 0)


# Freezing


async def test_nothing_is_received_once_it_is_frozen() -> None:
    async with session() as it:
        await it.forwarding.freeze()
        await send(it.client, b"for the next broker")
        await send(it.office, b"this too")
        for _ in range(5):
            await asyncio.sleep(0)
        assert it.holds == (0, 0)
        assert it.near_client.recv(100) == b"for the next broker"
        assert it.near_office.recv(100) == b"this too"
        assert not it.task.done()


async def test_freezing_without_anything_pending_does_not_wait() -> None:
    async with session() as it:
        assert it.forwarding.freeze().done()


@pytest.mark.parametrize("way", [TO_OFFICE, TO_CLIENT])
async def test_freezing_waits_until_what_is_pending_has_been_taken(way: str) -> None:
    async with session() as it:
        _, sink = it.ends(way)
        near = it.near_client if way == TO_OFFICE else it.near_office
        sent = await it.stall(way)
        direction = it.direction(way)
        total = direction.total
        freezing = it.forwarding.freeze()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not freezing.done()
        received = b""
        while not freezing.done():
            with contextlib.suppress(BlockingIOError):
                received += sink.recv(1 << 20)
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        assert direction.total == total, "more has been received"
        assert it.holds == (0, 0)
        with contextlib.suppress(BlockingIOError):
            while more := sink.recv(1 << 20):
                received += more
        left = await receive(near, sent - len(received))  # not a byte is lost: the rest is still in the socket
        assert len(received) + len(left) == sent


async def test_a_sink_that_goes_while_it_is_frozen_is_waited_for_no_longer() -> None:
    async with session() as it:
        await it.stall(TO_OFFICE)
        freezing = it.forwarding.freeze()
        await asyncio.sleep(0)
        it.office.close()
        await freezing
        assert it.holds == (0, 0)


async def test_a_session_that_ends_while_it_is_frozen_is_waited_for_no_longer() -> None:
    async with session(SessionLimits(timeout=3600)) as it:
        await it.stall(TO_OFFICE)
        freezing = it.forwarding.freeze()
        it.expire("timeout")
        await it.result()
        await freezing
        assert it.record.holding


async def test_one_that_has_ended_can_be_frozen_though_its_sockets_are_closed() -> None:
    async with session() as it:
        it.office.close()
        await it.result()
        for each in (it.near_client, it.near_office):
            each.close()
        await it.forwarding.freeze()


async def test_cancelled_while_frozen_it_leaves_nothing() -> None:
    async with session() as it:
        await it.forwarding.freeze()
        await it.cancel()
        assert it.holds == (0, 0)
        assert not asyncio.get_running_loop().remove_reader(it.near_client)


async def test_the_next_one_goes_on_where_a_frozen_one_has_stopped() -> None:
    async with session() as it:
        await send(it.client, b"one ")
        assert await receive(it.office, 4) == b"one "
        await it.forwarding.freeze()
        await it.cancel()
        await send(it.client, b"two")
        following = Forwarding(it.near_client, it.near_office, SessionLimits(), it.record)
        task = asyncio.create_task(following.run())
        assert await receive(it.office, 3) == b"two"
        it.client.shutdown(socket.SHUT_WR)
        await receive(it.office)
        it.office.close()
        ended = await task
        assert (ended.by, ended.office_let_go, ended.to_office) == (Side.CLIENT, True, 3)


async def test_the_next_one_goes_on_to_follow_the_calls() -> None:
    async with session() as it:
        await send(it.client, CALL + CALL[:5])
        assert await receive(it.office, len(CALL) + 5) == CALL + CALL[:5]
        await it.forwarding.freeze()
        await it.cancel()
        following = Forwarding(it.near_client, it.near_office, SessionLimits(), Record(bytearray(it.record.memory)))
        task = asyncio.create_task(following.run())
        assert following.quiet_since is None
        await send(it.client, CALL[5:])
        await send(it.office, REPLY)
        assert await receive(it.client, len(REPLY)) == REPLY
        assert await receive(it.office, len(CALL) - 5) == CALL[5:]
        assert following.quiet_since is None
        await send(it.office, REPLY)
        assert await receive(it.client, len(REPLY)) == REPLY
        assert following.quiet_since is not None
        it.office.close()
        ended = await task
        assert (ended.call_under_way, ended.followed) == (False, True)


async def test_calls_that_are_not_known_may_be_under_way() -> None:
    async with session() as it:
        await it.forwarding.freeze()
        await it.cancel()
        it.record.forget_calls()
        following = Forwarding(it.near_client, it.near_office, SessionLimits(), it.record)
        assert following.quiet_since is None
        it.office.close()
        ended = await following.run()
        assert (ended.call_under_way, ended.followed) == (True, False)


async def test_freezing_twice_is_freezing_once() -> None:
    async with session() as it:
        sent = await it.stall(TO_OFFICE)
        first, second = it.forwarding.freeze(), it.forwarding.freeze()
        assert not first.done()
        received = 0
        while not first.done():
            with contextlib.suppress(BlockingIOError):
                received += len(it.office.recv(1 << 20))
            await asyncio.sleep(0)
        assert second.done()
        assert received <= sent


async def test_a_caller_that_waits_no_longer_can_freeze_again() -> None:
    async with session() as it:
        await it.stall(TO_OFFICE)
        it.forwarding.freeze().cancel()
        again = it.forwarding.freeze()
        assert not again.done()
        it.office.close()
        await again


# A lost office


async def test_the_record_of_a_lost_office_is_left_alone() -> None:
    """Its worker's next session has the memory, and may have it before this one has ended."""
    async with session() as it:
        await send(it.client, CALL)
        await receive(it.office, len(CALL))
        it.record.memory[:] = bytes(Record.SIZE)
        it.forwarding.office_lost()
        await send(it.office, REPLY[:9])
        assert await receive(it.client, 9) == REPLY[:9]
        assert bytes(it.record.memory) == bytes(Record.SIZE)
        assert it.forwarding.quiet_since is None
        await send(it.office, REPLY[9:])
        await it.stall(TO_CLIENT)
        assert bytes(it.record.memory) == bytes(Record.SIZE)
        assert it.forwarding._calls._count == 0


@pytest.mark.parametrize("way", [TO_OFFICE, TO_CLIENT])
async def test_a_lost_office_s_pending_bytes_are_not_held_in_the_record_of_the_next(way: str) -> None:
    async with session() as it:
        await it.stall(way)
        it.forwarding.office_lost()
        it.record.memory[:] = bytes(Record.SIZE)
        await it.cancel()
        assert bytes(it.record.memory) == bytes(Record.SIZE)
