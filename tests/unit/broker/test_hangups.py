# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hangups: whoever waits is told of once as it leaves, and by nothing else."""

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
    """Watch for a while, in which nothing that the loop calls may fail."""
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
    """A client and the broker's end of its connection."""
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
    """Let the loop look at its sockets so often."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("leave", [_close, _half_close, _reset])
@pytest.mark.parametrize("unread", [b"", b"first words"])
async def test_who_leaves_is_told_of_once_whatever_is_unread(
    leave: Callable[[socket.socket], None], unread: bytes
) -> None:
    told: list[str] = []
    with watching() as hangups, pair() as (client, near):
        client.sendall(unread)
        hangups.watch(near, partial(told.append, "left"))
        leave(client)
        await until(lambda: told)
        await turns()
        assert told == ["left"]
        assert hangups._epoll is not None
        assert hangups._epoll.poll(0) == [], "the loop is called for nothing"
        if leave is not _reset:  # that takes the bytes away
            assert near.recv(100) == unread


async def test_who_left_before_it_was_watched_is_told_of_too() -> None:
    told: list[str] = []
    with watching() as hangups, pair() as (client, near):
        client.close()
        hangups.watch(near, partial(told.append, "left"))
        await until(lambda: told)


async def test_mere_bytes_are_no_departure_and_stay_where_they_are() -> None:
    told: list[str] = []
    with watching() as hangups, pair() as (client, near), pair() as (other, near_other):
        hangups.watch(near, partial(told.append, "silent"))
        hangups.watch(near_other, partial(told.append, "leaves"))
        client.sendall(b"first words")
        await asyncio.to_thread(near.recv, 1, socket.MSG_PEEK)
        other.close()
        await until(lambda: told)  # by now the loop has looked at both
        await turns()
        assert told == ["leaves"]
        assert near.recv(100) == b"first words"
        hangups.unwatch(near)


async def test_who_is_not_watched_any_more_leaves_unnoticed() -> None:
    told: list[str] = []
    with watching() as hangups, pair() as (client, near), pair() as (other, near_other):
        hangups.watch(near, partial(told.append, "unwatched"))
        hangups.watch(near_other, partial(told.append, "watched"))
        hangups.unwatch(near)
        client.close()
        other.close()
        await until(lambda: told)
        await turns()
        assert told == ["watched"]


async def test_unwatching_is_for_everybody() -> None:
    with watching() as hangups, pair() as (client, near):
        hangups.unwatch(near)  # never watched
        told: list[str] = []
        hangups.watch(near, partial(told.append, "left"))
        client.close()
        await until(lambda: told)
        hangups.unwatch(near)  # told of already


async def test_who_was_unwatched_can_be_watched_again() -> None:
    told: list[str] = []
    with watching() as hangups, pair() as (client, near):
        hangups.watch(near, partial(told.append, "first"))
        hangups.unwatch(near)
        hangups.watch(near, partial(told.append, "second"))
        client.close()
        await until(lambda: told)
        assert told == ["second"]


async def test_one_that_goes_can_take_another_of_the_same_batch_along() -> None:
    told: list[int] = []
    with watching() as hangups, contextlib.ExitStack() as stack:
        pairs = dict(enumerate(stack.enter_context(pair()) for _ in range(2)))

        def left(number: int) -> None:
            told.append(number)
            _, other = pairs[1 - number]
            hangups.unwatch(other)
            other.close()

        for number, (_, near) in pairs.items():
            hangups.watch(near, partial(left, number))
        for client, _ in pairs.values():
            client.close()
        await until(lambda: told)
        await turns()
        assert len(told) == 1


async def test_of_many_each_is_told_of_by_its_own_name() -> None:
    told: list[int] = []
    with watching() as hangups, contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(pair()) for _ in range(100)]
        for number, (_, near) in enumerate(pairs):
            hangups.watch(near, partial(told.append, number))
        for client, _ in pairs[::2]:
            client.close()
        await until(lambda: len(told) == 50)
        await turns()
        assert sorted(told) == list(range(0, 100, 2))
        for _, near in pairs:
            hangups.unwatch(near)


async def test_a_duplicate_that_lives_on_tells_nothing_once_it_is_unwatched() -> None:
    # epoll(7): a descriptor that is closed stays watched as long as a duplicate is open, as it is in the fd store.
    told: list[str] = []
    with watching() as hangups, pair() as (client, near), pair() as (other, near_other):
        with near.dup():
            hangups.watch(near, partial(told.append, "closed"))
            hangups.unwatch(near)
            near.close()
            client.close()
            hangups.watch(near_other, partial(told.append, "other"))
            other.close()
            await until(lambda: told)
            await turns()
        assert told == ["other"]


async def test_closing_leaves_nothing_on_the_loop_and_no_descriptor() -> None:
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
