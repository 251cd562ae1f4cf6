# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hangups: the hang-up of a waiting client is reported once, and nothing else is reported."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from fakes import until
from ooodd.broker.hangups import Hangups

_RESET = b"\1\0\0\0\0\0\0\0"  # struct linger: on, 0 s


@contextlib.contextmanager
def watching() -> Iterator[Hangups]:
    """Yield an open `Hangups`, and check that no callback of the event loop failed."""
    failed: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
    hangups = Hangups()
    hangups.open()
    try:
        yield hangups
    finally:
        hangups.close()
    assert failed == []


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield a client and the broker's end of its connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    near.setblocking(False)  # noqa: FBT003
    with client, near:
        yield client, near


def _close(client: socket.socket) -> None:
    client.close()


def _half_close(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    client.close()


async def turns(count: int = 5) -> None:
    """Run the event loop for a number of turns."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("leave", [_close, _half_close, _reset])
@pytest.mark.parametrize("unread", [b"", b"first data"])
async def test_a_hangup_is_reported_once_even_with_unread_data(
    leave: Callable[[socket.socket], None], unread: bytes
) -> None:
    reported: list[str] = []
    with watching() as hangups, pair() as (client, near):
        client.sendall(unread)
        hangups.watch(near, partial(reported.append, "left"))
        leave(client)
        await until(lambda: reported)
        await turns()
        assert reported == ["left"]
        assert hangups._epoll is not None
        assert hangups._epoll.poll(0) == [], "the descriptor is still ready"
        if leave is not _reset:  # a reset discards unread data
            assert near.recv(100) == unread


async def test_a_hangup_before_watch_is_reported() -> None:
    reported: list[str] = []
    with watching() as hangups, pair() as (client, near):
        client.close()
        hangups.watch(near, partial(reported.append, "left"))
        await until(lambda: reported)


async def test_data_is_no_hangup_and_stays_unread() -> None:
    reported: list[str] = []
    with watching() as hangups, pair() as (client, near), pair() as (other, near_other):
        hangups.watch(near, partial(reported.append, "silent"))
        hangups.watch(near_other, partial(reported.append, "leaves"))
        client.sendall(b"first data")
        await asyncio.to_thread(near.recv, 1, socket.MSG_PEEK)
        other.close()
        await until(lambda: reported)  # by now the event loop has polled both
        await turns()
        assert reported == ["leaves"]
        assert near.recv(100) == b"first data"
        hangups.unwatch(near)


async def test_a_hangup_after_unwatch_is_not_reported() -> None:
    reported: list[str] = []
    with watching() as hangups, pair() as (client, near), pair() as (other, near_other):
        hangups.watch(near, partial(reported.append, "unwatched"))
        hangups.watch(near_other, partial(reported.append, "watched"))
        hangups.unwatch(near)
        client.close()
        other.close()
        await until(lambda: reported)
        await turns()
        assert reported == ["watched"]


async def test_unwatch_accepts_a_socket_that_is_not_watched() -> None:
    with watching() as hangups, pair() as (client, near):
        hangups.unwatch(near)  # never watched
        reported: list[str] = []
        hangups.watch(near, partial(reported.append, "left"))
        client.close()
        await until(lambda: reported)
        hangups.unwatch(near)  # already reported


async def test_a_socket_can_be_watched_again() -> None:
    reported: list[str] = []
    with watching() as hangups, pair() as (client, near):
        hangups.watch(near, partial(reported.append, "first"))
        hangups.unwatch(near)
        hangups.watch(near, partial(reported.append, "second"))
        client.close()
        await until(lambda: reported)
        assert reported == ["second"]


async def test_a_callback_can_unwatch_another_socket_of_the_same_batch() -> None:
    reported: list[int] = []
    with watching() as hangups, contextlib.ExitStack() as stack:
        pairs = dict(enumerate(stack.enter_context(pair()) for _ in range(2)))

        def left(number: int) -> None:
            reported.append(number)
            _, other = pairs[1 - number]
            hangups.unwatch(other)
            other.close()

        for number, (_, near) in pairs.items():
            hangups.watch(near, partial(left, number))
        for client, _ in pairs.values():
            client.close()
        await until(lambda: reported)
        await turns()
        assert len(reported) == 1


async def test_each_of_many_hangups_calls_its_own_callback() -> None:
    reported: list[int] = []
    with watching() as hangups, contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(pair()) for _ in range(100)]
        for number, (_, near) in enumerate(pairs):
            hangups.watch(near, partial(reported.append, number))
        for client, _ in pairs[::2]:
            client.close()
        await until(lambda: len(reported) == 50)
        await turns()
        assert sorted(reported) == list(range(0, 100, 2))
        for _, near in pairs:
            hangups.unwatch(near)


async def test_an_open_duplicate_reports_nothing_after_unwatch() -> None:
    # epoll(7): a closed descriptor stays watched while a duplicate is open. The fd store holds such duplicates.
    reported: list[str] = []
    with watching() as hangups, pair() as (client, near), pair() as (other, near_other):
        with near.dup():
            hangups.watch(near, partial(reported.append, "closed"))
            hangups.unwatch(near)
            near.close()
            client.close()
            hangups.watch(near_other, partial(reported.append, "other"))
            other.close()
            await until(lambda: reported)
            await turns()
        assert reported == ["other"]


async def test_close_removes_the_reader_and_closes_the_descriptor() -> None:
    with pair() as (_, near):
        hangups = Hangups()
        hangups.open()
        hangups.watch(near, partial(pytest.fail, "nobody left"))
        assert hangups._epoll is not None
        descriptor = hangups._epoll.fileno()
        hangups.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
        assert not asyncio.get_running_loop().remove_reader(descriptor)
