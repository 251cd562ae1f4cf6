# SPDX-License-Identifier: LGPL-2.1-or-later
"""Forwarding: every byte, both ways, in order, bounded, until the office lets go or a limit is exceeded."""

import asyncio
import contextlib
import random
import socket
import struct
import time
from collections.abc import AsyncIterator

import pytest

from fakes import until
from ooodd.datapath import forward
from ooodd.datapath.direction import CHUNK_SIZE
from ooodd.datapath.forward import Forwarding
from ooodd.datapath.path import Ended, SessionLimits, Side
from ooodd.datapath.record import Record

SIZES = [1, 8, 109, 4096, CHUNK_SIZE, 3 * CHUNK_SIZE + 1, 8 * 1024 * 1024]

# A call with the number 3, and a reply to one: block header, flags and what else a head has.
CALL = struct.pack(">IIBB", 2, 1, 0xF8, 3)
REPLY = struct.pack(">IIBB", 2, 1, 0x80, 0)


class Session:
    """A running forwarding with the far ends of both its sockets."""

    def __init__(self, limits: SessionLimits, before: bytes) -> None:
        self.client, self.near_client = _tcp_pair()
        self.office, self.near_office = socket.socketpair()
        for each in (self.client, self.near_client, self.office, self.near_office):
            each.setblocking(False)  # noqa: FBT003
        self.client.send(before)
        self.record = Record()
        self.forwarding = Forwarding(self.near_client, self.near_office, limits, self.record)
        self.task = asyncio.create_task(self.forwarding.run())

    @property
    def marks(self) -> tuple[int, int]:
        """What is marked as held, on the way to the office and to the client."""
        return self.record.memory[Record.TO_OFFICE], self.record.memory[Record.TO_CLIENT]

    def reset(self) -> None:
        """Let the client vanish."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.client.close()

    def close(self) -> None:
        for each in (self.client, self.near_client, self.office, self.near_office):
            each.close()


@contextlib.asynccontextmanager
async def session(limits: SessionLimits | None = None, before: bytes = b"") -> AsyncIterator[Session]:
    it = Session(limits or SessionLimits(), before)
    await asyncio.sleep(0)
    try:
        yield it
    finally:
        it.task.cancel()
        await asyncio.gather(it.task, return_exceptions=True)
        it.close()


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    return far, near


async def send(end: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(end, data)


async def stall(it: Session, source: socket.socket) -> int:
    """Send what nobody reads until it is in the forwarding's memory and more isn't taken; return how much was sent."""
    sent = 0
    hold = Record.TO_OFFICE if source is it.client else Record.TO_CLIENT
    direction = it.forwarding._to_office if source is it.client else it.forwarding._to_client
    while True:
        try:
            sent += source.send(bytes(65536))
        except BlockingIOError:
            if direction.pending:
                assert it.record.memory[hold] == 1
                return sent
        await asyncio.sleep(0)


async def receive(end: socket.socket, size: int = -1) -> bytes:
    """Return `size` bytes, or all until the end."""
    data = bytearray()
    while len(data) != size:
        most = size - len(data) if size > 0 else 1 << 20
        if not (more := await asyncio.get_running_loop().sock_recv(end, most)):
            break
        data += more
    return bytes(data)


async def result(it: Session) -> Ended:
    return await asyncio.wait_for(asyncio.shield(it.task), 20)


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
        assert await result(it) == Ended(
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
        ended = await result(it)
        assert (ended.by, ended.office_let_go) == (Side.OFFICE, True)
        it.near_client.close()
        assert await receive(it.client) == b"last"


async def test_a_slow_reader_holds_up_the_sender_and_bounds_the_buffer() -> None:
    async with session() as it:
        sent = await stall(it, it.client)
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
        ended = await result(it)
        assert (ended.by, ended.office_let_go) == (Side.CLIENT, True)


async def test_a_client_that_vanishes_while_bytes_wait_for_it_is_drained_as_well() -> None:
    async with session() as it:
        await stall(it, it.office)
        it.reset()
        assert await receive(it.office) == b""
        await send(it.office, bytes(8 * CHUNK_SIZE))
        assert it.marks == (0, 0)
        it.office.close()
        ended = await result(it)
        assert (ended.by, ended.office_let_go) == (Side.CLIENT, True)


async def test_an_office_that_goes_while_its_client_sends_ends_the_session() -> None:
    async with session() as it:
        sending = asyncio.create_task(send(it.client, bytes(64 * 1024 * 1024)))
        await receive(it.office, 1)
        it.office.close()
        ended = await result(it)
        assert ended.by is Side.OFFICE
        it.near_client.close()
        with pytest.raises(ConnectionError):
            await sending


async def test_cancelled_it_leaves_nothing_on_the_loop() -> None:
    async with session(SessionLimits(timeout=3600, idle_timeout=3600)) as it:
        await stall(it, it.client)
        it.task.cancel()
        await asyncio.gather(it.task, return_exceptions=True)
        loop = asyncio.get_running_loop()
        for near in (it.near_client, it.near_office):
            assert not loop.remove_reader(near)
            assert not loop.remove_writer(near)
        assert all(timer.cancelled() for timer in it.forwarding._timers.values())


# Offices that don't let go


async def test_an_office_that_never_lets_go_of_a_vanished_client_is_given_up() -> None:
    async with session(SessionLimits(grace=0.01)) as it:
        it.reset()
        ended = await result(it)
        assert (ended.by, ended.limit, ended.office_let_go) == (Side.CLIENT, "", False)


async def test_an_office_that_hangs_for_a_client_that_half_closed_is_given_up() -> None:
    async with session(SessionLimits(grace=0.05)) as it:
        it.client.shutdown(socket.SHUT_WR)
        assert await receive(it.office) == b""
        await send(it.office, b"still at it")
        assert await receive(it.client, 11) == b"still at it"
        ended = await result(it)
        assert (ended.by, ended.limit, ended.office_let_go) == (Side.CLIENT, "", False)


async def test_without_grace_an_office_is_given_up_at_once() -> None:
    async with session(SessionLimits(grace=0)) as it:
        it.client.shutdown(socket.SHUT_WR)
        ended = await result(it)
        assert (ended.by, ended.office_let_go) == (Side.CLIENT, False)


async def test_each_byte_of_the_office_begins_its_grace_anew() -> None:
    async with session(SessionLimits(grace=0.05)) as it:
        it.client.shutdown(socket.SHUT_WR)
        await receive(it.office)
        last = it.forwarding._to_client.moved = time.monotonic() + 0.05  # as if a byte had come then
        await result(it)
        assert time.monotonic() >= last + 0.045


async def test_a_lost_office_whose_socket_lives_on_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "LINGER_LIMIT", 0.01)
    async with session() as it:
        it.forwarding.office_lost()
        ended = await result(it)
        assert (ended.by, ended.limit, ended.office_let_go) == (Side.OFFICE, "", False)


async def test_a_lost_office_s_last_words_still_reach_the_client() -> None:
    async with session() as it:
        await send(it.office, b"last")
        it.forwarding.office_lost()
        it.office.close()
        ended = await result(it)
        assert (ended.by, ended.office_let_go, ended.to_client) == (Side.OFFICE, True, 4)
        assert await receive(it.client) == b"last"


async def test_an_office_that_is_lost_when_all_is_over_changes_nothing() -> None:
    async with session() as it:
        it.client.shutdown(socket.SHUT_WR)
        await receive(it.office)
        it.office.close()
        ended = await result(it)
        it.forwarding.office_lost()
        assert ended.by is Side.CLIENT
        assert all(timer.cancelled() for timer in it.forwarding._timers.values())


# Limits of a session


async def test_a_session_is_ended_when_its_time_is_over_however_busy_it_is() -> None:
    async with session(SessionLimits(timeout=0.05)) as it:
        while not it.task.done():
            await send(it.client, b".")
            await asyncio.sleep(0)
        ended = await result(it)
        assert (ended.by, ended.limit, ended.office_let_go) == (Side.BROKER, "[session] timeout = 0.05 s", False)
        assert ended.to_office > 1


async def test_a_session_on_which_nothing_moves_is_ended() -> None:
    async with session(SessionLimits(idle_timeout=0.05)) as it:
        ended = await result(it)
        assert (ended.by, ended.limit, ended.office_let_go) == (Side.BROKER, "[session] idle_timeout = 0.05 s", False)


@pytest.mark.parametrize("sender", ["client", "office"])
async def test_bytes_either_way_begin_the_idle_time_anew(sender: str) -> None:
    async with session(SessionLimits(idle_timeout=0.05)) as it:
        direction = it.forwarding._to_office if sender == "client" else it.forwarding._to_client
        last = direction.moved = time.monotonic() + 0.05  # as if a byte had come then
        ended = await result(it)
        assert ended.limit == "[session] idle_timeout = 0.05 s"
        assert time.monotonic() >= last + 0.045


async def test_what_a_slow_reader_takes_moves_as_well() -> None:
    async with session() as it:
        sent = await stall(it, it.office)
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
    async with session(SessionLimits(timeout=0.05, grace=3600)) as it:
        it.client.shutdown(socket.SHUT_WR)
        await receive(it.office)
        ended = await result(it)
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
        assert (await result(it)).call_under_way


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


# What is held


async def test_a_session_that_begins_holds_nothing() -> None:
    async with session() as it:
        assert it.marks == (0, 0)


async def test_what_is_passed_on_at_once_is_not_held() -> None:
    async with session() as it:
        await send(it.client, b"up")
        await send(it.office, b"down")
        assert await receive(it.office, 2) == b"up"
        assert await receive(it.client, 4) == b"down"
        assert it.marks == (0, 0)


@pytest.mark.parametrize("way", ["to the office", "to the client"])
async def test_what_the_other_side_does_not_take_is_held_until_it_does(way: str) -> None:
    async with session() as it:
        source, sink = (it.client, it.office) if way == "to the office" else (it.office, it.client)
        sent = await stall(it, source)
        assert it.marks == ((1, 0) if way == "to the office" else (0, 1))
        assert await receive(sink, sent) == bytes(sent)
        assert it.marks == (0, 0)


async def test_an_end_of_file_is_nothing_that_is_held() -> None:
    async with session() as it:
        it.client.shutdown(socket.SHUT_WR)
        assert await receive(it.office) == b""
        assert it.marks == (0, 0)
        it.office.close()
        await result(it)
        assert it.marks == (0, 0)


async def test_what_was_held_when_it_was_cancelled_stays_marked() -> None:
    async with session() as it:
        await stall(it, it.office)
        it.task.cancel()
        await asyncio.gather(it.task, return_exceptions=True)
        assert it.marks == (0, 1)


async def test_cancelled_it_holds_nothing_if_nothing_was_pending() -> None:
    async with session() as it:
        await send(it.client, b"up")
        assert await receive(it.office, 2) == b"up"
        it.task.cancel()
        await asyncio.gather(it.task, return_exceptions=True)
        assert it.marks == (0, 0)


# Freezing


async def test_nothing_is_received_once_it_is_frozen() -> None:
    async with session() as it:
        await it.forwarding.freeze()
        await send(it.client, b"for the next broker")
        await send(it.office, b"this too")
        for _ in range(5):
            await asyncio.sleep(0)
        assert it.marks == (0, 0)
        assert it.near_client.recv(100) == b"for the next broker"
        assert it.near_office.recv(100) == b"this too"
        assert not it.task.done()


async def test_freezing_without_anything_pending_does_not_wait() -> None:
    async with session() as it:
        assert it.forwarding.freeze().done()


@pytest.mark.parametrize("way", ["to the office", "to the client"])
async def test_freezing_waits_until_what_is_pending_has_been_taken(way: str) -> None:
    async with session() as it:
        source, sink = (it.client, it.office) if way == "to the office" else (it.office, it.client)
        near = it.near_client if source is it.client else it.near_office
        sent = await stall(it, source)
        direction = it.forwarding._to_office if source is it.client else it.forwarding._to_client
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
        assert it.marks == (0, 0)
        with contextlib.suppress(BlockingIOError):
            while more := sink.recv(1 << 20):
                received += more
        left = await receive(near, sent - len(received))  # not a byte is lost: the rest is still in the socket
        assert len(received) + len(left) == sent


async def test_a_sink_that_goes_while_it_is_frozen_is_waited_for_no_longer() -> None:
    async with session() as it:
        await stall(it, it.client)
        freezing = it.forwarding.freeze()
        await asyncio.sleep(0)
        it.office.close()
        await freezing
        assert it.marks == (0, 0)


async def test_a_session_that_ends_while_it_is_frozen_is_waited_for_no_longer() -> None:
    async with session(SessionLimits(timeout=0.05)) as it:
        await stall(it, it.client)
        freezing = it.forwarding.freeze()
        await result(it)
        await asyncio.wait_for(freezing, 5)


async def test_one_that_has_ended_can_be_frozen_though_its_sockets_are_closed() -> None:
    async with session() as it:
        it.office.close()
        await result(it)
        for each in (it.near_client, it.near_office):
            each.close()
        await it.forwarding.freeze()


async def test_cancelled_while_frozen_it_leaves_nothing() -> None:
    async with session() as it:
        await it.forwarding.freeze()
        it.task.cancel()
        await asyncio.gather(it.task, return_exceptions=True)
        assert it.marks == (0, 0)
        assert not asyncio.get_running_loop().remove_reader(it.near_client)


async def test_the_next_one_goes_on_where_a_frozen_one_has_stopped() -> None:
    async with session() as it:
        await send(it.client, b"one ")
        assert await receive(it.office, 4) == b"one "
        await it.forwarding.freeze()
        it.task.cancel()
        await asyncio.gather(it.task, return_exceptions=True)
        await send(it.client, b"two")
        following = Forwarding(it.near_client, it.near_office, SessionLimits(), it.record)
        task = asyncio.create_task(following.run())
        assert await receive(it.office, 3) == b"two"
        it.client.shutdown(socket.SHUT_WR)
        await receive(it.office)
        it.office.close()
        ended = await task
        assert (ended.by, ended.office_let_go, ended.to_office) == (Side.CLIENT, True, 3)


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
