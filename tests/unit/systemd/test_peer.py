# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reading what nobody wants, from a peer that may send for ever."""

import asyncio
import socket

import pytest

from ooodd.systemd.peer import read_to_end


async def test_a_peer_that_sends_without_a_pause_does_not_have_the_loop_for_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chunks = iter([b"x"] * 1000 + [b""])
    turns = 0

    async def at_once(_connection: socket.socket, _size: int) -> bytes:
        """As sock_recv, if something is there."""
        return next(chunks)

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_recv", at_once)
    task = asyncio.create_task(others())
    with socket.socket() as connection:
        await read_to_end(connection)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert turns > 900


async def test_the_end_of_file_is_waited_for() -> None:
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)  # noqa: FBT003
        reading = asyncio.create_task(read_to_end(near))
        far.sendall(bytes(100_000))
        await asyncio.sleep(0)
        assert not reading.done()
        far.shutdown(socket.SHUT_WR)
        await reading
