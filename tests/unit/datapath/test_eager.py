# SPDX-License-Identifier: LGPL-2.1-or-later
"""Eager readers: the selector calls them, everything else gets to the loop in time, and an error ends none but one."""

import asyncio
import itertools
import selectors
import socket
from collections.abc import Callable, Iterator

import pytest

from fakes import until
from ooodd.datapath import eager
from ooodd.datapath.eager import EagerLoop


class Selector(eager.EagerSelector):
    """A selector with readable sockets: eager ones, and some of the loop's."""

    def __init__(self) -> None:
        super().__init__(self._report)
        self.errors: list[tuple[int, Exception]] = []
        self.sockets: list[socket.socket] = []

    def readable(self, callback: Callable[[socket.socket], bool] | None = None) -> socket.socket:
        near, far = socket.socketpair()
        self.sockets += [near, far]
        far.send(b"some bytes")
        self.register(near, selectors.EVENT_READ)
        if callback is not None:
            self.readers[near.fileno()] = lambda: callback(near)
        return near

    def _report(self, descriptor: int, error: Exception) -> None:
        del self.readers[descriptor]
        self.errors.append((descriptor, error))

    def ready(self, timeout: float | None) -> list[object]:
        return [key.fileobj for key, _ in self.select(timeout)]


@pytest.fixture
def selector() -> Iterator[Selector]:
    it = Selector()
    yield it
    it.close()
    for each in it.sockets:
        each.close()


def take(near: socket.socket) -> bool:
    return bool(near.recv(100))


def test_an_eager_callback_is_called_and_the_loop_hears_nothing(selector: Selector) -> None:
    near = selector.readable(take)
    assert selector.ready(0) == []
    with pytest.raises(BlockingIOError):
        near.recv(100, socket.MSG_DONTWAIT)


def test_without_any_it_is_a_selector_like_all_others(selector: Selector) -> None:
    near = selector.readable()
    assert selector.ready(None) == [near]
    near.recv(100)
    assert selector.ready(0.001) == []


def test_what_is_the_loop_s_is_returned_at_once(selector: Selector) -> None:
    selector.readable(lambda _: True)
    near = selector.readable()
    assert near in selector.ready(None)


def test_a_callback_that_gave_the_loop_something_to_do_ends_the_wait(selector: Selector) -> None:
    selector.readable(lambda near: not take(near))
    assert selector.ready(None) == []


def test_eager_sockets_that_are_always_ready_do_not_hold_up_a_timer(selector: Selector) -> None:
    calls = itertools.count()
    selector.readable(lambda _: next(calls) >= 0)
    assert selector.ready(0.01) == []
    assert next(calls) > 1


def test_the_end_of_a_connection_is_the_loop_s(selector: Selector) -> None:
    calls = itertools.count()
    near = selector.readable(lambda _: next(calls) >= 0)
    selector.sockets[1].close()
    assert selector.ready(None) == [near]
    assert next(calls) == 0


def test_a_reader_that_fails_is_reported_and_the_loop_gets_a_turn(selector: Selector) -> None:
    def fail(_: socket.socket) -> bool:
        raise MemoryError

    near = selector.readable(fail)
    other = selector.readable(take)
    assert selector.ready(None) == [near]
    assert [(descriptor, type(error)) for descriptor, error in selector.errors] == [(near.fileno(), MemoryError)]
    with pytest.raises(BlockingIOError):
        other.recv(100, socket.MSG_DONTWAIT)


# The loop


class Reader:
    """An eager reader of one end of a pair, and what it has received."""

    def __init__(self, loop: EagerLoop) -> None:
        self.near, self.far = socket.socketpair()
        self.received = b""
        self.error: Exception | None = None
        loop.add_eager_reader(self.near, self.read)

    def read(self) -> bool:
        if self.error is not None:
            raise self.error
        self.received += self.near.recv(100)
        return True

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture
def loop() -> Iterator[EagerLoop]:
    it = eager.new_event_loop()
    yield it
    it.close()


@pytest.fixture
def readers(loop: EagerLoop) -> Iterator[list[Reader]]:
    made = [Reader(loop) for _ in range(2)]
    yield made
    for each in made:
        loop.remove_reader(each.near)
        each.close()


def run_until(loop: EagerLoop, condition: Callable[[], object]) -> None:
    loop.run_until_complete(asyncio.wait_for(until(condition), 20))


def test_each_loop_has_readers_of_its_own(loop: EagerLoop, readers: list[Reader]) -> None:
    other = EagerLoop()
    assert not other._eager_selector.readers
    other.close()
    for each in readers:
        each.far.send(b"some bytes")
    run_until(loop, lambda: all(each.received == b"some bytes" for each in readers))


def test_a_removed_reader_is_not_called(loop: EagerLoop, readers: list[Reader]) -> None:
    first, second = readers
    assert loop.remove_reader(first.near)
    assert not loop.remove_reader(first.near)
    first.far.send(b"unheard")
    second.far.send(b"heard")
    run_until(loop, lambda: second.received)
    assert not first.received


def test_an_ordinary_reader_replaces_an_eager_one(loop: EagerLoop, readers: list[Reader]) -> None:
    first, second = readers
    heard: list[int] = []
    loop.add_reader(first.near, heard.append, 1)
    first.far.send(b"for the other one")
    second.far.send(b"heard")
    run_until(loop, lambda: heard and second.received)
    assert not first.received


@pytest.mark.parametrize("at_end", [False, True])
def test_a_reader_that_fails_is_removed_and_the_others_go_on(
    loop: EagerLoop,
    readers: list[Reader],
    at_end: bool,  # noqa: FBT001
) -> None:
    """Whether the selector has called it, or the loop: an end of file is an event of the loop's."""
    told: list[BaseException] = []
    loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
    first, second = readers
    first.error = MemoryError()
    first.far.send(b"unheard")
    if at_end:
        first.far.close()
    run_until(loop, lambda: told)
    second.far.send(b"heard")
    run_until(loop, lambda: second.received)
    assert told == [first.error]
    assert not loop.remove_reader(first.near)


def test_on_any_other_loop_it_is_an_ordinary_reader() -> None:
    loop = asyncio.SelectorEventLoop()
    near, far = socket.socketpair()
    with near, far:
        heard: list[bytes] = []
        eager.add_reader(loop, near, lambda: bool(heard.append(near.recv(100))))  # type: ignore[func-returns-value]
        far.send(b"heard")
        loop.run_until_complete(asyncio.wait_for(until(lambda: heard), 20))
        assert loop.remove_reader(near)
    loop.close()
