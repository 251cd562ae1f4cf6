# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a client's first bytes tell: its process, and whose turn it is."""

import struct

import pytest

from ooodd.uno.opening import OpeningReader, process_of_thread
from ooodd.uno.wire import reply, request

CPP = b"\x12\x34\0\0" + bytes(range(16))
PROPERTIES_TID = b".UrpProtocolPropertiesTid"
PROPERTIES = request(4, "com.sun.star.bridge.XProtocolProperties", "UrpProtocolProperties", PROPERTIES_TID, b"")
YOURS, MINE, AGAIN = (reply(PROPERTIES_TID, struct.pack(">i", value)) for value in (1, 0, -1))
COMMITTED = reply(PROPERTIES_TID, b"")


def opening(tid: bytes) -> bytes:
    return PROPERTIES + request(0, "com.sun.star.uno.XInterface", "StarOffice.ComponentContext", tid, b"")


@pytest.mark.parametrize(
    ("tid", "process"),
    [
        (CPP, bytes(range(16))),
        (b"java:33c7353a:1765:0", b"java:33c7353a:1765"),
        (b"anything", b""),
        (b"java:", b"java"),
    ],
)
def test_all_threads_of_a_process_share_a_part_of_their_names(tid: bytes, process: bytes) -> None:
    assert process_of_thread(tid) == process


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_first_call_tells_whatever_pieces_the_bytes_come_in(size: int) -> None:
    reader, data = OpeningReader(), opening(CPP)
    for at in range(0, len(data), size):
        assert not reader.done
        reader.feed(memoryview(data)[at : at + size])
    assert reader.done
    assert reader.process == bytes(range(16))


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", struct.pack(">II", 2, 1) + b"\x80\x00", bytes(100)])
def test_other_bytes_tell_nothing(data: bytes) -> None:
    reader = OpeningReader()
    reader.feed(memoryview(data))
    assert reader.process == b""
    assert reader.done


def test_nothing_is_looked_for_beyond_the_first_kilobytes() -> None:
    reader = OpeningReader()
    for _ in range(300):
        reader.feed(memoryview(PROPERTIES))
    assert reader.done
    assert reader.process == b""


@pytest.mark.parametrize(
    ("said", "commits"),
    [
        ([], False),
        ([PROPERTIES], False),
        ([PROPERTIES, YOURS], True),
        ([YOURS, PROPERTIES], True),
        ([PROPERTIES, MINE], False),
        ([PROPERTIES, AGAIN, PROPERTIES], False),
        ([PROPERTIES, AGAIN, PROPERTIES, YOURS], True),
        ([PROPERTIES, YOURS, COMMITTED], False),
    ],
)
def test_an_office_whose_number_is_greater_has_to_commit(said: list[bytes], commits: bool) -> None:  # noqa: FBT001
    reader = OpeningReader()
    reader.feed(memoryview(b"".join(said)))
    assert not reader.done
    assert reader.office_commits is commits
    assert reader.client_owes(amid_block=False, office_waits=False, client_waits=False) is not commits


def test_who_has_been_asked_owes() -> None:
    reader = OpeningReader()
    reader.feed(memoryview(PROPERTIES + YOURS))
    assert reader.client_owes(amid_block=False, office_waits=True, client_waits=False), "the office has committed"
    assert reader.client_owes(amid_block=True, office_waits=False, client_waits=True)
    assert not reader.client_owes(amid_block=False, office_waits=False, client_waits=True)
