# SPDX-License-Identifier: LGPL-2.1-or-later
"""The loop's selector: what is eager stays with it, and everything else gets to the loop in time."""

import itertools
import selectors
import socket
from collections.abc import Callable, Iterator

import pytest

from ooodd.datapath import eager


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


def test_a_callback_that_fails_is_left_to_the_loop(selector: Selector) -> None:
    def fail(_: socket.socket) -> bool:
        raise MemoryError

    near = selector.readable(fail)
    assert selector.ready(None) == [near]
    assert not selector.readers
