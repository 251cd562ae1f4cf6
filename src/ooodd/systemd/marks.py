# SPDX-License-Identifier: LGPL-2.1-or-later
"""Marks: what is known of workers and sessions, in shared memory that a `kill -9` of the broker does not touch.

The memory is a memfd in systemd's fd store (`fdstore`). Its layout is fixed. Whoever changes it changes the magic, and
says in `_upgrade` how the layout before is read: the next broker may be of another version. All numbers have native
sizes and byte order, for the memory never leaves the machine.

    header   256   magic, totals, number of the last session, the client that is being accepted, whether it is paused
    slots    1000 x 128   one for each worker
    config   4096   the configuration in force, as JSON

A mark is written by one `pack_into`, so a kill leaves the old value or the new one.
"""

import mmap
import struct
from contextlib import suppress
from typing import Generic, TypeVar

MOST_WORKERS = 1000
# What a data path may note about the session that has the worker, in bytes (`datapath.record`).
RECORD_SIZE = 64
# How many totals there are; there is room for one more.
_TOTALS = 7

MAGIC = b"ooodd\0\0\4"
_HEADER_SIZE = 256
_LAST_SESSION_AT, _ACCEPTED_AT = 64, 72
# Zero where an earlier version made the marks, which means no.
_PAUSED_AT = 192
_TOTALS_AT, _TOTALS_END = 128, 192
# The longest name is that of an IPv6 client, 47 characters.
_ACCEPTED = struct.Struct("Q48s")
_SLOT_SIZE = 128
_RECORD_AT = 32
_CONFIG_AT = _HEADER_SIZE + MOST_WORKERS * _SLOT_SIZE
_CONFIG_SIZE = 4096
SIZE = _CONFIG_AT + _CONFIG_SIZE
_U32, _U64 = struct.Struct("I"), struct.Struct("Q")

# Version 0.2 had half the header, with its six totals in another place, and of each slot only the first 32 bytes.
MAGIC_2 = b"ooodd\0\0\2"
_HEADER_SIZE_2 = 128
_TOTALS_AT_2, _TOTALS_END_2 = 16, 64
_SLOT_SIZE_2 = 32
_CONFIG_AT_2 = _HEADER_SIZE_2 + MOST_WORKERS * _SLOT_SIZE_2
SIZE_2 = _CONFIG_AT_2 + _CONFIG_SIZE

_Value = TypeVar("_Value", bool, int, float)


class _Field(Generic[_Value]):
    """A value at a fixed place of a slot."""

    def __init__(self, code: str, at: int) -> None:
        """Take the value's code for `struct`, and its offset in the slot."""
        self._struct = struct.Struct(code)
        self._at = at

    def __get__(self, slot: "Slot", _: type) -> _Value:
        value: _Value = self._struct.unpack_from(slot.memory, slot.at + self._at)[0]
        return value

    def __set__(self, slot: "Slot", value: _Value) -> None:
        self._struct.pack_into(slot.memory, slot.at + self._at, value)


class Slot:
    """The marks of one worker."""

    # Whether a broker of version 0.2 held bytes of the session when it ended.
    held_by_2 = _Field[bool]("?", 0)
    # Whether the session began under version 0.2, which does not keep what it knows of calls.
    begun_by_2 = _Field[bool]("?", 1)
    # Whether the worker is about to be stopped. Why is in the journal and in the totals already.
    stopping = _Field[bool]("?", 2)
    # Whether the client's session has begun: its connection and the office's are in the store. From then on no other
    # session may begin with the client.
    begun = _Field[bool]("?", 3)
    uses = _Field[int]("I", 4)
    max_uses = _Field[int]("I", 8)
    # The office's main process, by which the next broker knows whether it is the same office; 0 for none.
    pid = _Field[int]("I", 12)
    # When the office started, in seconds of `time.monotonic()`, which is the same for all processes.
    started = _Field[float]("d", 16)
    # The session that has the worker, or has had it while the worker is not inspected yet; 0 for none.
    session = _Field[int]("Q", 24)

    def __init__(self, memory: memoryview, at: int) -> None:
        """Take the memory of all marks, and the slot's place in it."""
        self.memory = memory
        self.at = at
        # The data path's own memory: RECORD_SIZE bytes.
        self.record = memory[at + _RECORD_AT : at + _RECORD_AT + RECORD_SIZE]

    def lease(self, session: int) -> None:
        """Note which session has the worker, whose office runs; 0 for none."""
        self.record[:] = bytes(RECORD_SIZE)
        self.held_by_2 = self.begun_by_2 = self.begun = self.stopping = False
        self.session = session

    def clear(self) -> None:
        """Forget the worker."""
        self.memory[self.at : self.at + _SLOT_SIZE] = bytes(_SLOT_SIZE)


class Marks:
    """All marks. Its owner calls `close`."""

    def __init__(self, buffer: "mmap.mmap | bytearray | None" = None) -> None:
        """Take the memory, or plain memory that ends with the process. What is in it stays if it has this layout."""
        self._buffer = bytearray(SIZE) if buffer is None else buffer
        self.memory = memoryview(self._buffer)
        # Whether there are marks of an earlier broker.
        self.inherited = bytes(self.memory[: len(MAGIC)]) == MAGIC
        if not self.inherited:
            self.memory[:] = bytes(SIZE)
            self.memory[: len(MAGIC)] = MAGIC
        self._totals = self.memory[_TOTALS_AT:_TOTALS_END].cast("Q")
        self._slots: dict[int, Slot] = {}

    def slot(self, number: int) -> Slot:
        """Return the marks of a worker, 1 to 1000."""
        if not 1 <= number <= MOST_WORKERS:
            raise ValueError(f"there is no worker {number}")
        if number not in self._slots:
            self._slots[number] = Slot(self.memory, _HEADER_SIZE + (number - 1) * _SLOT_SIZE)
        return self._slots[number]

    def used(self) -> list[int]:
        """Return the numbers of the workers of which there are marks."""
        unused = bytes(_SLOT_SIZE)
        begins = range(_HEADER_SIZE, _CONFIG_AT, _SLOT_SIZE)
        return [number for number, at in enumerate(begins, 1) if self.memory[at : at + _SLOT_SIZE] != unused]

    @property
    def totals(self) -> tuple[int, ...]:
        """Sessions, refused, recycled, crashed, hung, dirty, reclaimed: since the service was started."""
        return tuple(self._totals[:_TOTALS])

    @totals.setter
    def totals(self, values: tuple[int, ...]) -> None:
        for index, value in enumerate(values):
            self._totals[index] = value

    @property
    def last_session(self) -> int:
        """The number of the last session."""
        number: int = _U64.unpack_from(self.memory, _LAST_SESSION_AT)[0]
        return number

    @last_session.setter
    def last_session(self, number: int) -> None:
        _U64.pack_into(self.memory, _LAST_SESSION_AT, number)

    @property
    def accepted(self) -> tuple[int, str]:
        """The client, by session and name, that is accepted but not kept in the store yet; session 0 for none."""
        session, name = _ACCEPTED.unpack_from(self.memory, _ACCEPTED_AT)
        return session, name.rstrip(b"\0").decode("ascii", "replace")

    @accepted.setter
    def accepted(self, client: tuple[int, str]) -> None:
        session, name = client
        _ACCEPTED.pack_into(self.memory, _ACCEPTED_AT, session, name.encode("ascii", "replace"))

    @property
    def paused(self) -> bool:
        """Whether an administrator has paused the pool."""
        return bool(self.memory[_PAUSED_AT])

    @paused.setter
    def paused(self, value: bool) -> None:
        self.memory[_PAUSED_AT] = value

    @property
    def config(self) -> str:
        """The configuration in force, as the broker writes it; empty if there is none, or it is too long."""
        (length,) = _U32.unpack_from(self.memory, _CONFIG_AT)
        begin = _CONFIG_AT + _U32.size
        return bytes(self.memory[begin : begin + length]).decode("utf-8", "replace")

    @config.setter
    def config(self, text: str) -> None:
        data = text.encode()
        _U32.pack_into(self.memory, _CONFIG_AT, 0)  # none, until the new one is whole
        if len(data) <= _CONFIG_SIZE - _U32.size:
            begin = _CONFIG_AT + _U32.size
            self.memory[begin : begin + len(data)] = data
            _U32.pack_into(self.memory, _CONFIG_AT, len(data))

    def close(self) -> None:
        """Release the memory. Slots can't be used any more."""
        with suppress(BufferError):  # a session's record is still in use: the memory goes with it
            for slot in self._slots.values():
                slot.record.release()
            self._totals.release()
            self.memory.release()
            if isinstance(self._buffer, mmap.mmap):
                self._buffer.close()


def upgrade(old: bytes, marks: Marks) -> None:
    """Copy the marks of version 0.2 into new ones. `old` has to begin with MAGIC_2 and to be SIZE_2 long."""
    memory = marks.memory
    memory[_LAST_SESSION_AT:_HEADER_SIZE_2] = old[_LAST_SESSION_AT:_HEADER_SIZE_2]
    totals = old[_TOTALS_AT_2:_TOTALS_END_2]
    memory[_TOTALS_AT : _TOTALS_AT + len(totals)] = totals
    for number in range(1, MOST_WORKERS + 1):
        begin = _HEADER_SIZE_2 + (number - 1) * _SLOT_SIZE_2
        values = old[begin : begin + _SLOT_SIZE_2]
        if any(values):
            slot = marks.slot(number)
            memory[slot.at : slot.at + _SLOT_SIZE_2] = values
            slot.held_by_2 = bool(values[0] or values[1])
            slot.begun_by_2 = bool(slot.session)
            slot.begun = False
    memory[_CONFIG_AT:SIZE] = old[_CONFIG_AT_2:SIZE_2]
    marks.inherited = True
