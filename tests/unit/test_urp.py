# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a client's first bytes look like: recorded from real ones, and whatever else may come."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ooodd.urp import OPENING_SIZE, is_opening

_REQUEST_CHANGE = b"\xf8\x04\x96\0\0'com.sun.star.bridge.XProtocolProperties\x15UrpProtocolProperties\0\0"
# As received by a listening socket from clients of LibreOffice 7.4; after the first nine bytes only the end is random.
RECORDED = {
    "pyuno": b"\0\0\0e\0\0\0\1" + _REQUEST_CHANGE + b"\x19.UrpProtocolPropertiesTid\0\0NI\x8f;",
    "c++": b"\0\0\0e\0\0\0\1" + _REQUEST_CHANGE + b"\x19.UrpProtocolPropertiesTid\0\0}=S\x81",
    "java": (
        b"\0\0\0y\0\0\0\1" + _REQUEST_CHANGE + b"-java:63961c42:1a20cdabb04:-7fffffffffffffff:0\0\0\x95\\\x05\xc2"
    ),
}
# Who else comes to a port: a browser, TLS, SSH, SOCKS, PostgreSQL, Redis, a proxy's greeting, Windows' file sharing.
STRANGERS = [
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"\x05\x01\x00",
    b"\0\0\0\x08\x04\xd2\x16\x2f",
    b"*1\r\n$4\r\nPING\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 2002\r\n",
    b"\0\0\0\x2f\xffSMB\x72\0\0\0\0",
]


@pytest.mark.parametrize("client", RECORDED)
def test_a_recorded_opening_is_one_from_its_ninth_byte_on(client: str) -> None:
    opening = RECORDED[client]
    size, count = struct.unpack_from(">II", opening)
    assert (size + 8, count) == (len(opening), 1)
    for length in range(len(opening) + 1):
        assert is_opening(opening[:length]) is (None if length < OPENING_SIZE else True)


@pytest.mark.parametrize("stranger", STRANGERS)
def test_strangers_are_never_taken_for_uno(stranger: bytes) -> None:
    assert True not in {is_opening(stranger[:length]) for length in range(len(stranger) + 1)}
    assert is_opening(stranger + bytes(OPENING_SIZE)) is False


def opening(size: int, messages: int, flags: int) -> bytes:
    return struct.pack(">IIB", size, messages, flags)


@pytest.mark.parametrize(
    ("data", "verdict"),
    [
        (opening(1, 1, 0xF8), True),
        (opening(64 * 1024, 64, 0xFF), True),
        (opening(0, 1, 0xF8), False),
        (opening(64 * 1024 + 1, 1, 0xF8), False),
        (opening(2**32 - 1, 1, 0xF8), False),
        (opening(101, 0, 0xF8), False),
        (opening(101, 65, 0xF8), False),
        (opening(101, 2**32 - 1, 0xF8), False),
        *((opening(101, 1, 0xF8 & ~bit), False) for bit in (0x80, 0x40, 0x20, 0x10, 0x08)),
    ],
)
def test_the_limits_are_exact(data: bytes, verdict: bool) -> None:  # noqa: FBT001
    assert is_opening(data) is verdict


def test_the_first_byte_can_tell() -> None:
    assert {byte for byte in range(256) if is_opening(bytes([byte])) is None} == {0}


_LIKELY = st.builds(opening, st.integers(0, 70_000), st.integers(0, 70), st.integers(0, 255))


@settings(deadline=None)
@given(st.binary() | st.builds(bytes.__add__, _LIKELY, st.binary()))
def test_a_verdict_once_given_holds_for_all_that_follows(data: bytes) -> None:
    verdicts = [is_opening(data[:length]) for length in range(len(data) + 1)]
    assert verdicts[0] is None
    decided = [verdict for verdict in verdicts if verdict is not None]
    assert len(set(decided)) <= 1
    assert verdicts == [None] * (len(verdicts) - len(decided)) + decided
    assert None not in verdicts[OPENING_SIZE:]
