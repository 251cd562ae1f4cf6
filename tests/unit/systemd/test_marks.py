# SPDX-License-Identifier: LGPL-2.1-or-later
"""The layout of the marks, and how that of version 0.2 is read."""

import struct

import pytest

from ooodd.systemd.marks import MAGIC_2, MOST_WORKERS, SIZE, SIZE_2, Marks, upgrade


def filled(marks: Marks) -> None:
    """Set a mark of each kind."""
    slot = marks.slot(3)
    slot.pid, slot.uses, slot.max_uses, slot.started, slot.session = 4_000_000, 9, 13, 12345.678, 2**40
    slot.stopping = slot.begun = True
    slot.record[5] = 7
    marks.totals = (1, 2, 3, 4, 5, 6, 2**63)
    marks.last_session = 2**40
    marks.accepted = 2**40, "[2001:db8:1111:2222:3333:4444:5555:6666]:65535"
    marks.config = "[pool] ä"


def test_marks_are_read_as_they_were_written() -> None:
    memory = bytearray(SIZE)
    filled(Marks(memory))
    marks = Marks(memory)
    slot = marks.slot(3)
    assert (slot.pid, slot.uses, slot.max_uses, slot.started, slot.session) == (4_000_000, 9, 13, 12345.678, 2**40)
    assert (slot.stopping, slot.begun, slot.begun_by_2, slot.held_by_2) == (True, True, False, False)
    assert bytes(slot.record) == bytes(5) + b"\7" + bytes(58)
    assert marks.totals == (1, 2, 3, 4, 5, 6, 2**63)
    assert marks.last_session == 2**40
    assert marks.config == "[pool] ä"
    assert marks.accepted == (2**40, "[2001:db8:1111:2222:3333:4444:5555:6666]:65535")
    assert marks.used() == [3]


def test_slots_are_apart() -> None:
    marks = Marks()
    for number in range(1, MOST_WORKERS + 1):
        slot = marks.slot(number)
        slot.pid = slot.uses = slot.max_uses = slot.session = number
        slot.started = float(number)
        slot.stopping = slot.begun = number % 2 == 0
        slot.record[:] = bytes([number % 256]) * len(slot.record)
    marks.slot(5).clear()
    assert marks.totals == (0, 0, 0, 0, 0, 0, 0)
    assert marks.last_session == 0
    assert marks.config == ""
    for number in range(1, MOST_WORKERS + 1):
        slot = marks.slot(number)
        expected = 0 if number == 5 else number
        assert (slot.pid, slot.uses, slot.max_uses, slot.session) == (expected, expected, expected, expected)
        assert slot.started == float(expected)
        assert slot.stopping == slot.begun == (number % 2 == 0)
        assert set(slot.record) == {expected % 256}
    assert len(marks.used()) == MOST_WORKERS - 1


def test_a_lease_begins_with_nothing_of_the_session_before() -> None:
    marks = Marks()
    slot = marks.slot(1)
    slot.begun = slot.begun_by_2 = slot.held_by_2 = True
    slot.record[:] = b"\1" * len(slot.record)
    slot.lease(7)
    assert (slot.session, slot.begun, slot.begun_by_2, slot.held_by_2) == (7, False, False, False)
    assert not any(slot.record)


@pytest.mark.parametrize("number", [-1, 0, MOST_WORKERS + 1])
def test_there_is_no_other_slot(number: int) -> None:
    with pytest.raises(ValueError, match="no worker"):
        Marks().slot(number)


def test_a_configuration_is_there_as_a_whole_or_not_at_all() -> None:
    marks = Marks()
    assert marks.config == ""
    marks.config = "x" * 4092
    assert marks.config == "x" * 4092
    marks.config = "x" * 4093
    assert marks.config == ""
    assert marks.slot(MOST_WORKERS).session == 0


def test_the_memory_is_released_though_a_record_is_in_use() -> None:
    marks = Marks()
    record = marks.slot(1).record[:8]
    marks.close()
    record[0] = 1


def version_2() -> bytes:
    """Return marks as version 0.2 wrote them: of two workers, of which the second has a session and held bytes."""
    memory = bytearray(SIZE_2)
    memory[: len(MAGIC_2)] = MAGIC_2
    struct.pack_into("6Q", memory, 16, 10, 1, 2, 3, 4, 5)
    struct.pack_into("Q", memory, 64, 17)
    struct.pack_into("Q48s", memory, 72, 17, b"192.0.2.1:5")
    struct.pack_into("BBxxIIIdQ", memory, 128, 0, 0, 3, 10, 501, 1.5, 0)
    struct.pack_into("BBBxIIIdQ", memory, 128 + 32, 0, 1, 1, 4, 11, 502, 2.5, 16)
    config = b'{"pool": {}}'
    struct.pack_into(f"I{len(config)}s", memory, 128 + 32 * MOST_WORKERS, len(config), config)
    return bytes(memory)


def test_marks_of_version_0_2_are_understood() -> None:
    marks = Marks()
    upgrade(version_2(), marks)
    assert marks.inherited
    assert marks.totals == (10, 1, 2, 3, 4, 5, 0)
    assert (marks.last_session, marks.accepted) == (17, (17, "192.0.2.1:5"))
    assert marks.config == '{"pool": {}}'
    assert marks.used() == [1, 2]
    idle, busy = marks.slot(1), marks.slot(2)
    assert (idle.uses, idle.max_uses, idle.pid, idle.started, idle.session) == (3, 10, 501, 1.5, 0)
    assert (idle.held_by_2, idle.begun_by_2, idle.stopping, idle.begun) == (False, False, False, False)
    assert (busy.uses, busy.max_uses, busy.pid, busy.started, busy.session) == (4, 11, 502, 2.5, 16)
    assert (busy.held_by_2, busy.begun_by_2, busy.stopping, busy.begun) == (True, True, True, False)
    assert not any(busy.record)


def test_a_pause_is_marked_and_marks_of_before_have_none() -> None:
    memory = bytearray(SIZE)
    marks = Marks(memory)
    assert not marks.paused
    marks.paused = True
    assert Marks(memory).paused
    marks.paused = False
    assert not Marks(memory).paused
