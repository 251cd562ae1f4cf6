# SPDX-License-Identifier: LGPL-2.1-or-later
"""Forwarding: every byte, both ways, in order, bounded, until the office lets go."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator

import pytest

from ooodd import forward
from ooodd.forward import Ended, Forwarding, Side

SIZES = [1, 8, 109, 4096, forward.CHUNK_SIZE, 3 * forward.CHUNK_SIZE + 1, 8 * 1024 * 1024]


class Session:
    """A running forwarding with the far ends of both its sockets."""

    def __init__(self) -> None:
        self.client, self.near_client = _tcp_pair()
        self.office, self.near_office = socket.socketpair()
        for each in (self.client, self.near_client, self.office, self.near_office):
            each.setblocking(False)  # noqa: FBT003
        self.forwarding = Forwarding(self.near_client, self.near_office)
        self.task: asyncio.Task[Ended] | None = None

    def close(self) -> None:
        for each in (self.client, self.near_client, self.office, self.near_office):
            each.close()


@contextlib.asynccontextmanager
async def session(first: bytes = b"") -> AsyncIterator[Session]:
    it = Session()
    it.task = asyncio.create_task(it.forwarding.run(first))
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


async def send_until_stuck(end: socket.socket) -> int:
    """Send until nothing has been taken for a second; return how many bytes were sent in whole chunks."""
    sent = 0
    with contextlib.suppress(TimeoutError):
        while True:
            await asyncio.wait_for(send(end, bytes(65536)), 1)
            sent += 65536
    return sent


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
    assert it.task is not None
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
    async with session(b"early ") as it:
        await send(it.client, b"late")
        assert await receive(it.office, 10) == b"early late"


async def test_a_half_closed_client_still_gets_its_answer() -> None:
    async with session() as it:
        await send(it.client, b"question")
        it.client.shutdown(socket.SHUT_WR)
        assert await receive(it.office) == b"question"
        answer = bytes(4 * forward.CHUNK_SIZE)
        answering = asyncio.create_task(send(it.office, answer))
        assert await receive(it.client, len(answer)) == answer
        await answering
        it.office.close()
        assert await result(it) == Ended(Side.CLIENT, office_let_go=True, to_office=8, to_client=len(answer))


async def test_a_dying_office_s_last_words_reach_the_client() -> None:
    async with session() as it:
        words = bytes(2 * forward.CHUNK_SIZE)
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
        sent = await send_until_stuck(it.client)
        kernel = 32 * 1024 * 1024  # what the four socket buffers may hold, generously
        assert sent < kernel
        assert it.forwarding._to_office._pending is not None
        assert len(it.forwarding._to_office._pending) <= forward.CHUNK_SIZE
        received = await receive(it.office, sent)  # sock_sendall was cut short, so at least this much
        assert received == bytes(len(received))


async def test_a_vanished_client_is_drained_until_the_office_lets_go() -> None:
    async with session() as it:
        await send(it.office, b"nobody reads this")
        await receive(it.client, 5)
        it.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        it.client.close()  # reset
        assert await receive(it.office) == b""
        await send(it.office, bytes(2 * forward.CHUNK_SIZE))
        it.office.close()
        ended = await result(it)
        assert (ended.by, ended.office_let_go) == (Side.CLIENT, True)


async def test_an_office_that_never_lets_go_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "LINGER_LIMIT", 0.01)
    async with session() as it:
        it.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        it.client.close()
        ended = await result(it)
        assert (ended.by, ended.office_let_go) == (Side.CLIENT, False)


async def test_an_office_that_hangs_for_a_client_that_died_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "HALF_CLOSED_LIMIT", 0.05)
    async with session() as it:
        it.client.shutdown(socket.SHUT_WR)
        assert await receive(it.office) == b""
        await send(it.office, b"still at it")
        assert await receive(it.client, 11) == b"still at it"
        ended = await result(it)
        assert (ended.by, ended.office_let_go) == (Side.CLIENT, False)


async def test_a_lost_office_whose_socket_lives_on_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "LINGER_LIMIT", 0.01)
    async with session() as it:
        it.forwarding.office_lost()
        ended = await result(it)
        assert (ended.by, ended.office_let_go) == (Side.OFFICE, False)


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
    async with session() as it:
        assert it.task is not None
        it.task.cancel()
        await asyncio.gather(it.task, return_exceptions=True)
        loop = asyncio.get_running_loop()
        assert not loop.remove_reader(it.near_client)
        assert not loop.remove_reader(it.near_office)
