# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a client's bytes tell of its process."""

import struct

import pytest

from ooodd.uno.process import ProcessReader, process_of_thread
from ooodd.uno.wire import request

CPP = b"\x12\x34\0\0" + bytes(range(16))
PROPERTIES = request(
    4, "com.sun.star.bridge.XProtocolProperties", "UrpProtocolProperties", b".UrpProtocolPropertiesTid", b""
)


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
    reader, data = ProcessReader(), opening(CPP)
    for at in range(0, len(data), size):
        assert not reader.done
        reader.feed(memoryview(data)[at : at + size])
    assert reader.done
    assert reader.process == bytes(range(16))


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", struct.pack(">II", 2, 1) + b"\x80\x00", bytes(100)])
def test_other_bytes_tell_nothing(data: bytes) -> None:
    reader = ProcessReader()
    reader.feed(memoryview(data))
    assert reader.process == b""
    assert reader.done


def test_nothing_is_looked_for_beyond_the_first_kilobytes() -> None:
    reader = ProcessReader()
    for _ in range(300):
        reader.feed(memoryview(PROPERTIES))
    assert reader.done
    assert reader.process == b""
