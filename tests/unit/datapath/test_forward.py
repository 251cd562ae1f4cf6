# SPDX-License-Identifier: LGPL-2.1-or-later
"""Forwarding: every byte, both ways, in order, bounded, until the office lets go or a limit is exceeded."""

import asyncio
import contextlib
import random
import socket
import struct
import time
from collections.abc import Awaitable, Callable

import pytest

from datapath.sessions import CALL, REPLY, TO_CLIENT, TO_OFFICE, Session, receive, send, session
from fakes import until
from ooodd.datapath import forward
from ooodd.datapath.direction import CHUNK_SIZE
from ooodd.datapath.forward import Forwarding
from ooodd.datapath.path import Ended, SessionLimits, Side

SIZES = [1, 8, 109, 4096, CHUNK_SIZE, 3 * CHUNK_SIZE + 1, 8 * 1024 * 1024]


@pytest.mark.parametrize("size", SIZES)
async def test_every_byte_both_ways_at_once(size: int) -> None:
    up, down = random.Random(size).randbytes(size), random.Random(-size).randbytes(size)
    async with session() as it:
        sending = asyncio.gather(send(it.client, up), send(it.office, down))
        received_up, received_down = await asyncio.gather(receive(it.office, size), receive(it.client, size))
        assert received_up == up
        assert received_down == down
        await sending


async def test_what_the_client_said_before_comes_first() -> None:
    async with session(before=b"early ") as it:
        await send(it.client, b"late")
        assert await receive(it.office, 10) == b"early late"


async def test_a_half_closed_client_still_gets_its_answer() -> None:
    async with session() as it:
        await send(it.client, CALL)
        it.client.shutdown(socket.SHUT_WR)
        assert await receive(it.office) == CALL
        answer = struct.pack(">IIBB", 4 * CHUNK_SIZE - 8, 1, 0x80, 0) + bytes(4 * CHUNK_SIZE - 10)
        answering = asyncio.create_task(send(it.office, answer))
        assert await receive(it.client, len(answer)) == answer
        await answering
        it.office.close()
        assert await it.result() == Ended(
            Side.CLIENT,
            limit="",
            office_let_go=True,
            call_under_way=False,
            followed=True,
            to_office=len(CALL),
            to_client=len(answer),
        )


async def test_a_dying_office_s_last_words_reach_the_client() -> None:
    async with session() as it:
        words = bytes(2 * CHUNK_SIZE)
        sending = asyncio.create_task(send(it.office, words))
        assert await receive(it.client, len(words)) == words
        await sending
        await send(it.office, b"last")
        it.office.close()
        ended = await it.result()
        assert (ended.by, ended.office_let_go) == (Side.OFFICE, True)
        it.near_client.close()
        assert await receive(it.client) == b"last"


async def test_a_slow_reader_holds_up_the_sender_and_bounds_the_buffer() -> None:
    async with session() as it:
        sent = await it.stall(TO_OFFICE)
        kernel = 32 * 1024 * 1024  # what the four socket buffers may hold, generously
        assert sent < kernel
        assert it.forwarding._to_office.pending
        assert it.forwarding._to_office.pending <= CHUNK_SIZE
        assert await receive(it.office, sent) == bytes(sent)


async def test_a_vanished_client_is_drained_until_the_office_lets_go() -> None:
    async with session() as it:
        await send(it.office, b"nobody reads this")
        await receive(it.client, 5)
        it.reset()
        assert await receive(it.office) == b""
        await send(it.office, bytes(2 * CHUNK_SIZE))
        it.office.close()
        ended = await it.result()
        assert (ended.by, ended.office_let_go) == (Side.CLIENT, True)


async def test_a_client_that_vanishes_while_bytes_wait_for_it_is_drained_as_well() -> None:
    async with session() as it:
        await it.stall(TO_CLIENT)
        it.reset()
        assert await receive(it.office) == b""
        await send(it.office, bytes(8 * CHUNK_SIZE))
        assert it.holds == (0, 0)
        it.office.close()
        ended = await it.result()
        assert (ended.by, ended.office_let_go) == (Side.CLIENT, True)


async def test_an_office_that_goes_while_its_client_sends_ends_the_session() -> None:
    async with session() as it:
        sending = asyncio.create_task(send(it.client, bytes(64 * 1024 * 1024)))
        await receive(it.office, 1)
        it.office.close()
        ended = await it.result()
        assert ended.by is Side.OFFICE
        it.near_client.close()
        with pytest.raises(ConnectionError):
            await sending


async def test_cancelled_it_leaves_nothing_on_the_loop() -> None:
    async with session(SessionLimits(timeout=3600, idle_timeout=3600)) as it:
        await it.stall(TO_OFFICE)
        await it.cancel()
        loop = asyncio.get_running_loop()
        for near in (it.near_client, it.near_office):
            assert not loop.remove_reader(near)
            assert not loop.remove_writer(near)
        assert not it.forwarding._timers._set


# Offices that don't let go


async def test_an_office_that_never_lets_go_of_a_vanished_client_is_given_up() -> None:
    async with session(SessionLimits(grace=0.01)) as it:
        it.reset()
        ended = await it.result()
        assert (ended.by, ended.limit, ended.office_let_go) == (Side.CLIENT, "", False)


async def test_without_grace_an_office_is_given_up_at_once() -> None:
    async with session(SessionLimits(grace=0)) as it:
        it.client.shutdown(socket.SHUT_WR)
        ended = await it.result()
        assert (ended.by, ended.office_let_go) == (Side.CLIENT, False)


async def half_close(it: Session) -> None:
    it.client.shutdown(socket.SHUT_WR)
    assert await receive(it.office) == b""


async def reset(it: Session) -> None:
    it.reset()
    assert await receive(it.office) == b""


async def reset_amid_a_reply(it: Session) -> None:
    await it.stall(TO_CLIENT)
    await reset(it)


async def vanish(it: Session) -> None:
    """Half-close, and then let a send to the client find out that it is gone."""
    await half_close(it)
    it.client.close()
    while not it.direction(TO_CLIENT)._drop:
        await send(it.office, b"anybody there?")
        await asyncio.sleep(0)


@pytest.mark.parametrize("leave", [half_close, reset, reset_amid_a_reply, vanish])
async def test_each_byte_of_the_office_begins_the_grace_anew(leave: Callable[[Session], Awaitable[None]]) -> None:
    async with session(SessionLimits(grace=3600)) as it:
        await leave(it)
        for _ in range(2):
            it.age(3601)
            it.direction(TO_CLIENT).total = 0
            await send(it.office, b"still at it")
            await until(lambda: it.direction(TO_CLIENT).total)
            it.expire("grace")
            assert not it.forwarding._done.done()
        it.age(3601)
        it.expire("grace")
        ended = await it.result()
        assert (ended.by, ended.limit, ended.office_let_go) == (Side.CLIENT, "", False)


@pytest.mark.parametrize("leave", [half_close, reset, vanish])
async def test_what_the_client_does_gives_a_lost_office_no_more_time(
    leave: Callable[[Session], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "LINGER_LIMIT", 0.0)
    async with session(SessionLimits(grace=3600)) as it:
        await leave(it)
        it.forwarding.office_lost()
        assert not (await it.result()).office_let_go


async def test_a_client_that_is_reset_later_gives_a_lost_office_no_more_time() -> None:
    async with session(SessionLimits(grace=3600)) as it:
        it.forwarding.office_lost()
        await reset(it)
        it.expire("linger")
        ended = await it.result()
        assert (ended.by, ended.office_let_go) == (Side.OFFICE, False)


async def test_a_lost_office_whose_socket_lives_on_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "LINGER_LIMIT", 0.01)
    async with session() as it:
        it.forwarding.office_lost()
        ended = await it.result()
        assert (ended.by, ended.limit, ended.office_let_go) == (Side.OFFICE, "", False)


async def test_a_lost_office_s_last_words_still_reach_the_client() -> None:
    async with session() as it:
        await send(it.office, b"last")
        it.forwarding.office_lost()
        it.office.close()
        ended = await it.result()
        assert (ended.by, ended.office_let_go, ended.to_client) == (Side.OFFICE, True, 4)
        assert await receive(it.client) == b"last"


async def test_an_office_that_is_lost_when_all_is_over_changes_nothing() -> None:
    async with session() as it:
        it.client.shutdown(socket.SHUT_WR)
        await receive(it.office)
        it.office.close()
        ended = await it.result()
        it.forwarding.office_lost()
        assert ended.by is Side.CLIENT
        assert not it.forwarding._timers._set


# Limits of a session


async def test_a_session_is_ended_when_its_time_is_over_however_busy_it_is() -> None:
    async with session(SessionLimits(timeout=3600)) as it:
        await send(it.client, b"busy")
        await receive(it.office, 4)
        it.expire("timeout")
        ended = await it.result()
        assert (ended.by, ended.limit, ended.office_let_go) == (Side.BROKER, "[session] timeout = 3600 s", False)
        assert ended.to_office == 4


async def test_the_time_of_a_session_that_is_continued_has_begun_before() -> None:
    async with session() as it:
        await it.cancel()
        limits = SessionLimits(timeout=3600)
        ended = await Forwarding(it.near_client, it.near_office, limits, began=time.monotonic() - 3601).run()
        assert ended.limit == "[session] timeout = 3600 s"


async def test_a_session_on_which_nothing_moves_is_ended() -> None:
    async with session(SessionLimits(idle_timeout=0.05)) as it:
        ended = await it.result()
        assert (ended.by, ended.limit, ended.office_let_go) == (Side.BROKER, "[session] idle_timeout = 0.05 s", False)


@pytest.mark.parametrize("way", [TO_OFFICE, TO_CLIENT])
async def test_bytes_either_way_begin_the_idle_time_anew(way: str) -> None:
    async with session(SessionLimits(idle_timeout=3600)) as it:
        source, sink = it.ends(way)
        it.age(3601)
        await send(source, b".")
        await receive(sink, 1)
        it.expire("idle_timeout")
        assert not it.forwarding._done.done()
        it.age(3601)
        it.expire("idle_timeout")
        assert (await it.result()).limit == "[session] idle_timeout = 3600 s"


async def test_what_a_slow_reader_takes_moves_as_well() -> None:
    async with session() as it:
        sent = await it.stall(TO_CLIENT)
        freezing = it.forwarding.freeze()  # so that nothing comes from the office
        await asyncio.sleep(0)
        received, before = 0, it.forwarding._to_client.moved
        while not freezing.done():
            with contextlib.suppress(BlockingIOError):
                received += len(it.client.recv(4096))
            await asyncio.sleep(0)
        assert received < sent
        assert it.forwarding._to_client.moved > before


async def test_a_limit_after_the_client_has_ended_is_no_reason_any_more() -> None:
    async with session(SessionLimits(timeout=3600, grace=3600)) as it:
        await half_close(it)
        it.expire("timeout")
        ended = await it.result()
        assert (ended.by, ended.limit, ended.office_let_go) == (Side.CLIENT, "", False)


# Calls


async def test_a_call_without_its_reply_is_under_way() -> None:
    async with session() as it:
        await send(it.client, CALL + CALL)
        assert await receive(it.office, 2 * len(CALL)) == CALL + CALL
        assert it.forwarding.quiet_since is None
        await send(it.office, REPLY)
        assert await receive(it.client, len(REPLY)) == REPLY
        assert it.forwarding.quiet_since is None
        it.office.close()
        assert (await it.result()).call_under_way


async def test_with_every_reply_there_it_is_quiet_since_the_last_byte() -> None:
    async with session() as it:
        began = it.forwarding.quiet_since
        assert began is not None
        await send(it.client, CALL)
        await receive(it.office, len(CALL))
        await send(it.office, REPLY)
        await receive(it.client, len(REPLY))
        since = it.forwarding.quiet_since
        assert since is not None
        assert began < since <= time.monotonic()
        assert it.forwarding.quiet_since == since


async def test_memory_of_its_own_will_do() -> None:
    one, other = socket.socketpair()
    with one, other:
        for each in (one, other):
            each.setblocking(False)  # noqa: FBT003
        forwarding = Forwarding(one, other, SessionLimits())
        task = asyncio.create_task(forwarding.run())
        await until(lambda: asyncio.get_running_loop().time())
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_call_that_takes_long_is_not_idle() -> None:
    async with session(SessionLimits(idle_timeout=100.0)) as it:
        await send(it.client, CALL)
        assert await receive(it.office, len(CALL)) == CALL
        it.age(500.0)
        it.expire("idle_timeout")
        assert not it.task.done()
        await send(it.office, REPLY)
        assert await receive(it.client, len(REPLY)) == REPLY
        it.age(500.0)
        it.expire("idle_timeout")
        assert (await it.result()).limit == "[session] idle_timeout = 100 s"


async def test_of_a_call_that_cannot_be_followed_the_silence_counts() -> None:
    async with session(SessionLimits(idle_timeout=100.0)) as it:
        await send(it.client, b"no URP at all, so whatever may be under way")
        await receive(it.office, 10)
        it.age(500.0)
        it.expire("idle_timeout")
        assert (await it.result()).limit == "[session] idle_timeout = 100 s"


async def test_what_a_paused_client_sends_stays_in_its_socket_until_it_goes_on() -> None:
    async with session() as it:
        it.forwarding.pause()
        await send(it.client, b"call")
        await send(it.office, b"event")
        assert await receive(it.client, 5) == b"event"
        assert it.near_client.recv(9, socket.MSG_PEEK) == b"call"
        it.forwarding.resume()
        assert await receive(it.office, 4) == b"call"


async def test_a_frozen_session_does_not_go_on_after_a_pause() -> None:
    async with session() as it:
        it.forwarding.pause()
        assert it.forwarding.freeze().done()
        it.forwarding.resume()
        await send(it.client, b"call")
        await asyncio.sleep(0)
        assert it.near_client.recv(9) == b"call"


async def test_a_session_that_is_ended_for_another_client_says_so() -> None:
    async with session() as it:
        assert await it.forwarding.end()
        ended = await it.result()
        assert (ended.by, ended.reclaimed, ended.office_let_go) == (Side.BROKER, True, False)
        it.forwarding.resume()  # does nothing
        assert await it.forwarding.end()


async def test_a_session_that_ends_by_itself_was_not_ended_for_another_client() -> None:
    async with session() as it:
        it.client.shutdown(socket.SHUT_WR)
        assert await receive(it.office) == b""
        assert it.forwarding.quiet_since is None
        assert await it.forwarding.end()
        ended = await it.result()
        assert (ended.by, ended.reclaimed) == (Side.CLIENT, False)
