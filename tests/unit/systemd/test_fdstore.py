# SPDX-License-Identifier: LGPL-2.1-or-later
"""What outlives the broker, with a fake systemd that does with descriptors what the real one was measured to do."""

import mmap
import os
import random
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import pytest

from fakesystemd import FakeSystemd
from ooodd.systemd import fdstore
from ooodd.systemd.fdstore import NoFdStore, shut_down
from ooodd.systemd.marks import MAGIC_2, SIZE_2, Marks


class World:
    """systemd, the broker's store, and sockets."""

    def __init__(self) -> None:
        self.systemd = FakeSystemd()
        self.store, left = fdstore.take_over(self.systemd, {})
        assert left == {}
        self._sockets: list[socket.socket] = []

    def new_socket(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self._sockets += [ours, theirs]
        return ours

    def restart(self) -> dict[str, list[socket.socket]]:
        """Begin as the next broker. The one before leaves nothing but what systemd has."""
        self.store.close()
        self.store, left = fdstore.take_over(self.systemd, self.systemd.pass_on())
        self._sockets += [each for kept in left.values() for each in kept]
        return left

    def close(self) -> None:
        for each in self._sockets:
            each.close()
        self.store.close()
        self.systemd.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def it() -> Iterator[World]:
    with World() as world:
        yield world


def same(left: Sequence[socket.socket], kept: Sequence[socket.socket]) -> bool:
    """Whether these are the same sockets, in any order."""
    return {os.fstat(each.fileno()).st_ino for each in left} == {os.fstat(each.fileno()).st_ino for each in kept}


def test_what_is_kept_comes_back_by_name(it: World) -> None:
    kept = {f"set-{number}": [it.new_socket() for _ in range(number)] for number in range(1, 6)}
    for name, sockets in kept.items():
        it.store.keep(name, *sockets)
    for _ in range(3):
        left = it.restart()
        assert left.keys() == kept.keys()
        assert all(same(left[name], sockets) for name, sockets in kept.items())
        assert not any(each.getblocking() for sockets in left.values() for each in sockets)


def test_what_is_dropped_does_not_come_back(it: World) -> None:
    it.store.keep("client-1-0", it.new_socket())
    it.store.keep("client-2-0", it.new_socket())
    it.store.drop("client-1-0")
    it.store.drop("client-3-0")
    assert it.restart().keys() == {"client-2-0"}


def test_keep_and_drop_are_one_message_each(it: World) -> None:
    it.systemd.messages.clear()
    it.store.keep("office-1-1-0", it.new_socket(), it.new_socket())
    it.store.drop("office-1-1-0")
    assert [fds for _, fds in it.systemd.messages] == [2, 0]
    assert it.systemd.names() == {"marks"}


def test_what_finds_no_room_is_not_kept(it: World) -> None:
    it.systemd.limit = 2
    it.store.keep("office-1-1-0", it.new_socket(), it.new_socket())
    it.store.keep("client-2-0", it.new_socket())
    left = it.restart()
    assert [len(sockets) for sockets in left.values()] == [1]


def test_what_is_no_socket_is_closed_and_dropped(it: World) -> None:
    reader, writer = os.pipe()
    it.systemd.notify("FDSTORE=1\nFDPOLL=0\nFDNAME=client-1-0", [reader])
    os.close(reader)
    os.close(writer)
    assert it.restart() == {}
    assert it.systemd.names() == {"marks"}


def test_any_sequence_leaves_what_it_says(it: World) -> None:
    chance = random.Random(7)
    expected: dict[str, list[socket.socket]] = {}
    for number in range(500):
        name = f"set-{chance.randrange(20)}"
        if chance.random() < 0.5 and name not in expected:
            expected[name] = [it.new_socket() for _ in range(chance.randrange(1, 4))]
            it.store.keep(name, *expected[name])
        else:
            it.store.drop(name)
            expected.pop(name, None)
        if number % 50 == 0:
            left = it.restart()
            assert left.keys() == expected.keys()
            assert all(same(left[name], sockets) for name, sockets in expected.items())
    assert len(it.systemd.stored) == 1 + sum(map(len, expected.values()))


def test_a_socket_that_is_shut_down_ends_for_its_peer_though_it_is_kept(it: World) -> None:
    ours, theirs = socket.socketpair()
    it.store.keep("client-1-0", ours)
    shut_down(ours)
    ours.close()
    assert theirs.recv(1) == b""
    theirs.close()


# The marks


def test_marks_come_back(it: World) -> None:
    assert not it.store.marks.inherited
    it.store.marks.last_session = 2**40
    it.restart()
    assert it.store.marks.inherited
    assert it.store.marks.last_session == 2**40


def _grow(fd: int) -> None:
    os.ftruncate(fd, 10**6)


def _cut(fd: int) -> None:
    os.ftruncate(fd, 100)


def _change(fd: int) -> None:
    os.pwrite(fd, b"\xff", 7)


def _old_magic_alone(fd: int) -> None:
    os.pwrite(fd, MAGIC_2, 0)


@pytest.mark.parametrize("spoil", [_grow, _cut, _change, _old_magic_alone])
def test_marks_of_another_layout_are_replaced(it: World, spoil: Callable[[int], None]) -> None:
    it.store.marks.last_session = 7
    it.store.marks.close()
    spoil(next(fd for name, fd in it.systemd.stored if name == "marks"))
    it.store.marks = Marks()
    it.restart()
    assert not it.store.marks.inherited
    assert it.store.marks.last_session == 0
    it.store.marks.last_session = 8
    it.restart()
    assert it.store.marks.last_session == 8


def test_marks_of_version_0_2_are_upgraded(it: World) -> None:
    it.store.marks.close()
    fd = next(fd for name, fd in it.systemd.stored if name == "marks")
    os.ftruncate(fd, SIZE_2)
    with mmap.mmap(fd, SIZE_2) as old:
        old[:] = bytes(SIZE_2)
        old[: len(MAGIC_2)] = MAGIC_2
        old[64:72] = (17).to_bytes(8, "little")
    it.store.marks = Marks()
    it.restart()
    assert it.store.marks.inherited
    assert it.store.marks.last_session == 17
    it.store.marks.last_session = 18
    it.restart()
    assert it.store.marks.last_session == 18


def test_in_the_foreground_nothing_is_kept() -> None:
    store = NoFdStore()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        store.keep("client-1-0", ours)
        store.drop("client-1-0")
    store.marks.last_session = 1
    assert store.marks.last_session == 1
