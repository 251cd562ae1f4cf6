# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is known of a session outlives a process that is killed at any moment."""

import asyncio
import fcntl
import random
import socket
import struct
import sys
import termios
from collections import Counter
from functools import cache
from types import FrameType
from typing import Any

import pytest

from datapath.sessions import CALL, REPLY
from ooodd.datapath import direction
from ooodd.datapath.forward import Forwarding
from ooodd.datapath.path import SessionLimits
from ooodd.datapath.record import Record
from ooodd.uno import urp


def test_zeros_are_a_session_of_which_no_byte_has_passed() -> None:
    for record in (Record(), Record(bytearray(Record.SIZE)), Record(memoryview(bytearray(Record.SIZE)))):
        assert not record.holding
        assert record.calls().followed
        assert not record.calls().under_way
        assert bytes(record.memory) == bytes(Record.SIZE)


@pytest.mark.parametrize("hold", [Record.TO_OFFICE, Record.TO_CLIENT])
def test_either_hold_is_one(hold: int) -> None:
    record = Record()
    record.memory[hold] = 1
    assert record.holding
    record.memory[:] = bytes(Record.SIZE)
    assert not record.holding


def test_calls_that_are_forgotten_are_not_known_for_good() -> None:
    record = Record()
    record.forget_calls()
    calls = Record(record.memory).calls()
    assert not record.calls().followed
    assert calls.under_way
    assert not calls.followed
    record.memory[:] = bytes(Record.SIZE)
    assert record.calls().followed


def test_memory_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="a record has 64 bytes, not 65"):
        Record(bytearray(65))


def test_memory_can_be_given_back() -> None:
    """Whoever maps it can't unmap it as long as there are views of it; so there is none but the caller's."""
    whole = bytearray(3 * Record.SIZE)
    view = memoryview(whole)[Record.SIZE : 2 * Record.SIZE]
    record = Record(view)
    calls = record.calls()
    calls.to_office(memoryview(CALL))
    view.release()
    whole.clear()


# A kill at any moment


def block(head: bytes, length: int) -> bytes:
    return struct.pack(">II", len(head) + length, 1) + head + bytes(length)


# A conversation: calls and a release of all sizes, and what the office says to each.
UP = [CALL, block(b"\xf0\2", 30), block(b"\3", 0), block(b"\3\0", 400_000), block(b"\5\1", 7), CALL]
DOWN = [REPLY, b"", block(b"\x80", 0), block(b"\x80\0", 500_000), block(b"\xf8\4", 20), REPLY]
ALL_UP, ALL_DOWN = b"".join(UP), b"".join(DOWN)
SOURCES = {direction.__file__, urp.__file__}


@cache
def memory_after(up: int, down: int) -> bytes:
    """What the record is to hold when so many bytes have passed."""
    record = Record()
    calls = record.calls()
    calls.to_office(memoryview(ALL_UP[:up]))
    calls.to_client(memoryview(ALL_DOWN[:down]))
    return bytes(record.memory)


def unread(end: socket.socket) -> int:
    """How many bytes a socket of a pair has received that nobody has taken."""
    size: int = struct.unpack("i", fcntl.ioctl(end, termios.FIONREAD, bytes(4)))[0]
    return size


class Witness:
    """A session whose record is looked at before each instruction of what forwards and counts."""

    def __init__(self) -> None:
        self.client, self.near_client = socket.socketpair()
        self.office, self.near_office = socket.socketpair()
        for each in self.sockets:
            each.setblocking(False)  # noqa: FBT003
        self.record = Record()
        self.forwarding = Forwarding(self.near_client, self.near_office, SessionLimits(), self.record)
        self.sent = Counter[str]()
        self.received = Counter[str]()
        # Where nothing was held, and where something was.
        self.free: set[str] = set()
        self.held: set[str] = set()
        self.bad: list[str] = []

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        return self.client, self.near_client, self.office, self.near_office

    def trace(self, frame: FrameType, _: str, __: object) -> Any:  # noqa: ANN401 - as sys.settrace wants it
        if frame.f_code.co_filename not in SOURCES:
            return None
        frame.f_trace_opcodes = True
        return self.step

    def step(self, frame: FrameType, _: str, __: object) -> Any:  # noqa: ANN401
        """See what a kill would leave here."""
        where = frame.f_code.co_name
        if self.record.holding:
            self.held.add(where)
            return self.step
        self.free.add(where)
        up, down = self.sent["up"] - unread(self.near_client), self.sent["down"] - unread(self.near_office)
        delivered = self.received["up"] + unread(self.office), self.received["down"] + unread(self.client)
        if delivered != (up, down) or bytes(self.record.memory) != memory_after(up, down):
            self.bad.append(f"{where}:{frame.f_lineno}")
        return self.step

    async def send(self, way: str, data: bytes, pieces: random.Random) -> None:
        """Send in pieces, each of which is taken before the next comes."""
        source, near = (self.client, self.near_client) if way == "up" else (self.office, self.near_office)
        while data:
            size = pieces.choice([1, 3, 9, 10, len(data), len(data)])
            try:
                sent = source.send(data[:size])
            except BlockingIOError:
                sent = 0
            # There is no instruction of the session in between: all of it is on this thread.
            self.sent[way] += sent
            data = data[sent:]
            await asyncio.sleep(0)
            if not sent or not unread(near):
                self.receive(way)

    def receive(self, way: str) -> None:
        sink = self.office if way == "up" else self.client
        try:
            self.received[way] += len(sink.recv(50_000))
        except BlockingIOError:
            return


async def talk(it: Witness, seed: int) -> None:
    pieces = random.Random(seed)
    for up, down in zip(UP, DOWN, strict=True):
        await it.send("up", up, pieces)
        await it.send("down", down, pieces)
    while it.received["up"] < len(ALL_UP) or it.received["down"] < len(ALL_DOWN):
        await asyncio.sleep(0)
        it.receive("up")
        it.receive("down")


@pytest.mark.parametrize("seed", range(4))
async def test_a_kill_at_any_moment_leaves_a_hold_or_the_exact_state(seed: int) -> None:
    it = Witness()
    task = asyncio.create_task(it.forwarding.run())
    await asyncio.sleep(0)
    sys.settrace(it.trace)
    try:
        await talk(it, seed)
    finally:
        sys.settrace(None)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for each in it.sockets:
            each.close()
    assert it.bad == []
    assert it.held >= {"_readable", "_forward", "_send_pending", "_forget_pending", "to_office", "to_client", "_save"}
    assert it.free >= {"_readable", "_forward", "_forget_pending"}
    assert not it.record.holding
    assert bytes(it.record.memory) == memory_after(len(ALL_UP), len(ALL_DOWN))
    assert it.forwarding.quiet_since is None  # five calls, four replies
