# SPDX-License-Identifier: LGPL-2.1-or-later
"""What outlives the broker: the fake systemd here does with descriptors what the real one was measured to do."""

import os
import random
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import pytest

from fakesystemd import FakeSystemd
from ooodd.systemd.fdstore import MOST_WORKERS, Marks, MemoryStore, NoStore, SystemdStore


class World:
    """systemd, the broker's store, and sockets."""

    def __init__(self) -> None:
        self.systemd = FakeSystemd()
        self.store, left = SystemdStore.take_over(self.systemd, {})
        assert left == {}
        self._sockets: list[socket.socket] = []

    def new_socket(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self._sockets += [ours, theirs]
        return ours

    def restart(self) -> dict[str, list[socket.socket]]:
        """Let a new broker take over; the old one leaves nothing but what systemd has."""
        self.store.close()
        self.store, left = SystemdStore.take_over(self.systemd, self.systemd.pass_on())
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
    return [os.fstat(each.fileno()).st_ino for each in left] == [os.fstat(each.fileno()).st_ino for each in kept]


# The store


def test_what_is_kept_comes_back_by_name_and_in_order(it: World) -> None:
    kept = {f"set-{number}": [it.new_socket() for _ in range(number)] for number in range(1, 9)}
    for name, sockets in kept.items():
        it.store.keep(name, *sockets)
    for _ in range(3):
        left = it.restart()
        assert left.keys() == kept.keys()
        assert all(same(left[name], sockets) for name, sockets in kept.items())
        assert not any(each.getblocking() for sockets in left.values() for each in sockets)


def test_what_is_dropped_does_not_come_back(it: World) -> None:
    for number in range(4):
        it.store.keep(f"set-{number}", it.new_socket(), it.new_socket())
    it.store.drop("set-1")
    it.store.drop("set-1")
    it.store.drop("never-kept")
    assert it.restart().keys() == {"set-0", "set-2", "set-3"}
    it.store.drop("set-2")
    assert it.restart().keys() == {"set-0", "set-3"}


def test_a_set_is_one_message(it: World) -> None:
    it.systemd.messages.clear()
    it.store.keep("session-1-1", it.new_socket(), it.new_socket())
    assert [fds for _, fds in it.systemd.messages] == [2]


def test_a_client_that_waited_gets_its_office_and_its_name_by_one_message(it: World) -> None:
    client, office = it.new_socket(), it.new_socket()
    it.store.keep("waiting-7", client)
    it.systemd.messages.clear()
    it.store.keep("session-7-2", client, office)
    assert [fds for _, fds in it.systemd.messages] == [1]
    left = it.restart()  # killed before the other name was dropped
    assert left.keys() == {"session-7-2"}
    assert same(left["session-7-2"], [client, office])
    it.store.drop("session-7-2")
    assert it.systemd.names() == {"marks"}


def test_the_earlier_name_is_dropped_without_the_socket(it: World) -> None:
    client, office = it.new_socket(), it.new_socket()
    it.store.keep("waiting-7", client)
    it.store.keep("session-7-2", client, office)
    it.store.drop("waiting-7")
    left = it.restart()
    assert left.keys() == {"session-7-2"}
    assert same(left["session-7-2"], [client, office])
    it.store.drop("session-7-2")
    assert it.systemd.names() == {"marks"}


def test_a_client_that_goes_back_to_wait_comes_back_as_that(it: World) -> None:
    client, office = it.new_socket(), it.new_socket()
    it.store.keep("waiting-7", client)
    it.store.keep("session-7-2", client, office)
    it.store.drop("waiting-7")
    it.store.keep("waiting-7", client)
    it.store.drop("session-7-2")
    left = it.restart()
    assert left.keys() == {"waiting-7"}
    assert same(left["waiting-7"], [client])


def test_a_socket_can_be_renamed(it: World) -> None:
    client, office = it.new_socket(), it.new_socket()
    it.store.keep("session-7-2", client, office)
    it.store.keep("waiting-7", client)
    it.store.drop("session-7-2")
    left = it.restart()
    assert left.keys() == {"waiting-7"}
    assert same(left["waiting-7"], [client])
    it.store.drop("waiting-7")
    assert it.systemd.names() == {"marks"}


def test_a_set_can_grow(it: World) -> None:
    client, office = it.new_socket(), it.new_socket()
    it.store.keep("session-7", client)
    it.store.keep("session-7", client)
    it.store.keep("session-7", client, office)
    left = it.restart()
    assert same(left["session-7"], [client, office])
    it.store.drop("session-7")
    assert it.systemd.names() == {"marks"}


def test_a_set_that_is_not_whole_is_dropped(it: World) -> None:
    it.systemd.limit = 2
    it.store.keep("session-7-2", it.new_socket(), it.new_socket())
    assert it.systemd.names() == {"session-7-2", "marks"}
    assert it.restart() == {}
    assert it.systemd.names() == {"marks"}


@pytest.mark.parametrize("name", ["stored", "session-1/x", "session-1/7", "/7", "session-1"])
def test_what_is_not_ours_is_closed_and_dropped(it: World, name: str) -> None:
    it.systemd.notify(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", [it.new_socket().fileno()])
    assert it.restart() == {}
    assert {name for name, _ in it.systemd.stored} == {"marks"}


def test_what_is_no_socket_is_closed_and_dropped(it: World) -> None:
    reader, writer = os.pipe()
    name = f"session-1/{os.fstat(reader).st_ino}"
    it.systemd.notify(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", [reader])
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


# The marks


def test_marks_come_back(it: World) -> None:
    slot = it.store.marks.slot(3)
    slot.pid, slot.uses, slot.max_uses, slot.since, slot.client = 4_000_000, 9, 13, 12345.678, 2**40
    slot.memory[slot.to_office_index] = 1
    it.store.marks.totals = (1, 2, 3, 4, 5, 2**63)
    it.store.marks.last_session = 2**40
    it.store.marks.accepted = 2**40, "[2001:db8:1111:2222:3333:4444:5555:6666]:65535"
    it.store.marks.config = "[pool] ä"
    del slot
    it.restart()
    slot = it.store.marks.slot(3)
    assert (slot.pid, slot.uses, slot.max_uses, slot.since, slot.client) == (4_000_000, 9, 13, 12345.678, 2**40)
    assert (slot.holding_to_office, slot.holding_to_client) == (True, False)
    assert it.store.marks.totals == (1, 2, 3, 4, 5, 2**63)
    assert it.store.marks.last_session == 2**40
    assert it.store.marks.config == "[pool] ä"
    assert it.store.marks.accepted == (2**40, "[2001:db8:1111:2222:3333:4444:5555:6666]:65535")


def _grow(fd: int) -> None:
    os.ftruncate(fd, 10**6)


def _cut(fd: int) -> None:
    os.ftruncate(fd, 100)


def _change(fd: int) -> None:
    os.pwrite(fd, b"\xff", 7)


@pytest.mark.parametrize("spoil", [_grow, _cut, _change])
def test_marks_of_another_make_are_replaced(it: World, spoil: Callable[[int], None]) -> None:
    it.store.marks.last_session = 7
    it.store.marks.close()
    spoil(next(fd for name, fd in it.systemd.stored if name == "marks"))
    it.store.marks = Marks()
    it.restart()
    assert it.store.marks.last_session == 0
    it.store.marks.last_session = 8
    it.restart()
    assert it.store.marks.last_session == 8


def test_a_configuration_is_there_as_a_whole_or_not_at_all() -> None:
    marks = Marks()
    assert marks.config == ""
    marks.config = "x" * 4092
    assert marks.config == "x" * 4092
    marks.config = "x" * 4093
    assert marks.config == ""
    assert marks.slot(MOST_WORKERS).client == 0


def test_slots_are_apart() -> None:
    marks = Marks()
    for number in range(1, MOST_WORKERS + 1):
        slot = marks.slot(number)
        slot.pid = slot.uses = slot.max_uses = slot.client = number
        slot.since = float(number)
        slot.doomed = slot.holding_to_office = slot.holding_to_client = number % 2 == 0
    marks.slot(5).clear()
    assert marks.totals == (0, 0, 0, 0, 0, 0)
    assert marks.last_session == 0
    for number in range(1, MOST_WORKERS + 1):
        slot = marks.slot(number)
        expected = 0 if number == 5 else number
        assert (slot.pid, slot.uses, slot.max_uses, slot.client) == (expected, expected, expected, expected)
        assert slot.since == float(expected)
        assert slot.doomed == slot.holding_to_office == slot.holding_to_client == (number % 2 == 0)


@pytest.mark.parametrize("number", [-1, 0, MOST_WORKERS + 1])
def test_there_is_no_other_slot(number: int) -> None:
    with pytest.raises(ValueError, match="no worker"):
        Marks().slot(number)


# The other stores


def test_in_the_foreground_nothing_is_kept() -> None:
    store = NoStore()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        store.keep("session-1-1", ours)
        store.drop("session-1-1")
    store.marks.last_session = 1
    assert store.marks.last_session == 1


def test_the_fake_passes_on_what_is_kept() -> None:
    store = MemoryStore()
    store.marks.last_session = 7
    client, office = socket.socketpair()
    other, _ = pair = socket.socketpair()
    store.keep("waiting-1", client)
    store.keep("session-1-1", client, office)
    store.keep("waiting-2", other)
    store.drop("waiting-2")
    heir, found = store.take_over()
    assert heir.marks.last_session == 7
    assert found.keys() == {"session-1-1"}
    assert same(found["session-1-1"], [client, office])
    heir.close()
    for each in (client, office, *pair, *found["session-1-1"]):
        each.close()
