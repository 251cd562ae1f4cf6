# SPDX-License-Identifier: LGPL-2.1-or-later
"""A sender of datagrams that must not block, and receivers that are slow, stuck, absent or restarted."""

import asyncio
import errno
import os
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fakes import until
from ooodd import datagrams
from ooodd.datagrams import Datagrams


class Receiver:
    """A receiver that reads only when a test asks it to, and its sender."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dropped: list[int] = []
        self.open()
        self.datagrams = Datagrams(str(path), self.dropped.append)

    def open(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(str(self.path))

    def vanish(self) -> None:
        self.socket.close()
        self.path.unlink()

    def receive(self) -> str:
        return self.socket.recv(4096).decode()

    def receive_all(self) -> list[str]:
        received = []
        with suppress(BlockingIOError):
            while True:
                received.append(self.receive())
        return received

    def fill(self) -> int:
        """Send numbers until one is queued. Return how many were sent or queued."""
        number = 0
        while not self.datagrams.waiting:
            self.datagrams.send(b"%d" % number)
            number += 1
        return number

    def close(self) -> None:
        self.datagrams.close()
        self.socket.close()


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    it = Receiver(tmp_path / "receiver")
    yield it
    it.close()


def numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def test_data_arrives(receiver: Receiver) -> None:
    receiver.datagrams.send(b"one\ntwo")
    assert receiver.receive() == "one\ntwo"


def test_descriptors_are_sent_and_stay_open_for_the_caller(receiver: Receiver) -> None:
    pipe = os.pipe()
    receiver.datagrams.send(b"two", pipe)
    data, passed, _, _ = socket.recv_fds(receiver.socket, 4096, 10)
    assert data == b"two"
    assert [os.path.sameopenfile(*pair) for pair in zip(passed, pipe, strict=True)] == [True, True]
    for fd in (*passed, *pipe):
        os.close(fd)


def test_data_arrives_without_a_free_descriptor(receiver: Receiver) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
        receiver.datagrams.send(b"here")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert receiver.receive() == "here"


async def test_a_slow_receiver_gets_queued_data_later_and_in_order(receiver: Receiver) -> None:
    count = receiver.fill()
    ours, theirs = os.pipe()
    kept = os.fstat(ours)
    receiver.datagrams.send(b"with descriptor", [ours])
    receiver.datagrams.send(b"last")
    os.close(ours)
    os.close(theirs)
    assert receiver.receive_all() == numbers(count - 1)
    await until(lambda: not receiver.datagrams.waiting)
    assert receiver.receive() == str(count - 1)
    data, passed, _, _ = socket.recv_fds(receiver.socket, 4096, 10)
    assert data == b"with descriptor"
    assert [os.path.samestat(os.fstat(fd), kept) for fd in passed] == [True]
    os.close(passed[0])
    assert receiver.receive() == "last"
    assert receiver.dropped == []


def test_without_a_loop_queued_data_is_sent_with_the_next_datagram(receiver: Receiver) -> None:
    count = receiver.fill()
    assert receiver.receive_all() == numbers(count - 1)
    receiver.datagrams.send(b"next")
    assert receiver.receive_all() == [str(count - 1), "next"]
    assert not receiver.datagrams.waiting


async def test_data_queued_before_the_loop_is_sent_by_the_loop(receiver: Receiver) -> None:
    count = await asyncio.to_thread(receiver.fill)  # no loop runs in that thread
    assert receiver.datagrams._watching is None
    receiver.datagrams.send(b"next")
    received = receiver.receive_all()
    await until(lambda: not receiver.datagrams.waiting)
    assert [*received, *receiver.receive_all()] == [*numbers(count), "next"]


async def test_a_stuck_receiver_does_not_block_and_the_queue_is_bounded(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagrams, "_MAX_WAITING", 10)
    count = receiver.fill()
    for number in range(100):
        receiver.datagrams.send(b"%d" % (count + number))
    assert receiver.datagrams.waiting == 10
    received = receiver.receive_all()
    await until(lambda: receiver.dropped)
    received += receiver.receive_all()
    assert received == numbers(count + 9)
    assert receiver.dropped == [91]
    receiver.datagrams.send(b"again")
    assert receiver.receive() == "again"
    assert receiver.dropped == [91], "they were reported"


def test_without_a_loop_drops_are_reported_with_the_next_datagram(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagrams, "_MAX_WAITING", 1)
    receiver.fill()
    receiver.datagrams.send(b"dropped")
    receiver.receive_all()
    assert receiver.dropped == []
    receiver.datagrams.send(b"next")
    assert receiver.dropped == [1]
    assert receiver.receive_all()[-1] == "next"


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS])
async def test_a_send_is_retried_if_the_kernel_has_no_memory(
    number: int, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagrams, "_RETRY_INTERVAL", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(receiver.datagrams, "_send_error", lambda _: number)
        receiver.datagrams.send(b"data")
    assert receiver.datagrams.waiting == 1
    await until(lambda: not receiver.datagrams.waiting)
    assert receiver.receive() == "data"


def test_an_unsendable_datagram_is_dropped_and_does_not_delay_others(receiver: Receiver) -> None:
    receiver.datagrams.send(bytes(16 << 20))  # EMSGSIZE
    receiver.datagrams.send(b"next")
    assert receiver.receive() == "next"
    assert receiver.dropped == [1]


def test_a_queued_datagram_is_dropped_if_its_descriptors_cannot_be_duplicated(receiver: Receiver) -> None:
    receiver.fill()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    ours, theirs = os.pipe()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
        receiver.datagrams.send(b"dropped", [ours])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    os.close(ours)
    os.close(theirs)
    receiver.receive_all()
    receiver.datagrams.send(b"next")
    assert receiver.dropped == [1]


def test_a_receiver_with_a_new_socket_gets_data(receiver: Receiver) -> None:
    receiver.vanish()
    receiver.datagrams.send(b"while it was away")
    assert receiver.datagrams.waiting == 1
    receiver.open()
    receiver.datagrams.send(b"here again")
    assert receiver.receive_all() == ["while it was away", "here again"]


async def test_a_receiver_with_a_new_socket_gets_queued_data_from_the_loop(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagrams, "_RETRY_INTERVAL", 0.0)
    receiver.vanish()
    receiver.datagrams.send(b"while it was away")
    for _ in range(10):
        await asyncio.sleep(0)
    receiver.open()
    await until(lambda: not receiver.datagrams.waiting)
    assert receiver.receive() == "while it was away"


async def test_queued_data_goes_to_the_replacement_of_a_full_receiver(receiver: Receiver) -> None:
    count = receiver.fill()
    receiver.vanish()
    receiver.open()
    await until(lambda: not receiver.datagrams.waiting)
    assert receiver.receive_all() == [str(count - 1)]


def test_a_receiver_that_starts_after_the_sender_gets_all_data(tmp_path: Path) -> None:
    sender = Datagrams(str(tmp_path / "late"))
    sender.send(b"early")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as late:
        late.bind(str(tmp_path / "late"))
        sender.send(b"later")
        assert [late.recv(4096), late.recv(4096)] == [b"early", b"later"]
    sender.close()


def test_close_sends_queued_data(receiver: Receiver) -> None:
    count = receiver.fill()
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.extend(receiver.receive() for _ in range(count)))
    receiver.socket.setblocking(True)  # noqa: FBT003
    reader.start()
    receiver.datagrams.close()
    reader.join()
    assert received == numbers(count)
    receiver.datagrams.send(b"after close")
    receiver.socket.setblocking(False)  # noqa: FBT003
    assert receiver.receive_all() == []


def test_close_does_not_wait_long_for_a_stuck_receiver(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "_FLUSH_TIMEOUT", 0.001)
    receiver.fill()
    ours, theirs = os.pipe()
    receiver.datagrams.send(b"with descriptors", [ours, theirs])
    os.close(ours)
    os.close(theirs)
    receiver.datagrams.close()
    assert not receiver.datagrams.waiting


def test_close_does_not_wait_for_an_absent_receiver(tmp_path: Path) -> None:
    sender = Datagrams(str(tmp_path / "absent"))
    sender.send(b"data")
    sender.close()
    sender.close()


async def test_close_removes_all_callbacks_from_the_loop(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "_FLUSH_TIMEOUT", 0.0)
    receiver.fill()
    descriptor = receiver.datagrams._socket.fileno()
    receiver.datagrams.close()
    assert not asyncio.get_running_loop().remove_writer(descriptor)
