# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is read from a session's bytes in passing: how it begins, and whether a call is under way when it ends."""

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ooodd.uno.urp import OPENING_SIZE, Calls, is_opening

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


def block(message: bytes, count: int = 1) -> bytes:
    return struct.pack(">II", len(message), count) + message


# Heads of messages that the client sends, and how many of them want a reply.
CALLS = {
    b"\xf8\4": 1,  # as recorded: requestChange
    b"\5": 1,  # commitChange
    b"\3\0\xff\xff": 1,
    b"\0": 1,  # queryInterface
    b"\x43\1\0\xff\xff": 1,  # a short header with a long number
    b"\x40\2": 1,  # which might be release, but nobody writes it so
    b"\xc4\1\2\0\xff\xff": 1,  # number 258
    b"\xc4\0\2": 1,
    b"\xc1\xc0\3": 1,  # oneway, with a reply
    b"\xc1\2\3": 1,
    b"\xc1\xc0\2": 1,  # release, with a reply
    b"\xc0\3": 1,
    b"\xc0": 1,
    b"\2": 0,  # release
    b"\xf0\2\x16\0\1": 0,
    b"\xc0\2": 0,
    b"\x80": 0,  # a reply, to what the office asks
    b"\x80\2": 0,
    b"\x88\x10": 0,
    b"\xa0\x93": 0,
    b"\xbf\3": 0,
}
REPLIES = [b"\x80", b"\x80\1", b"\x88\x10", b"\xa0\x93", b"\xa8\x10"]
# The office's own calls and releases.
NO_REPLIES = [b"\xf8\4", b"\5", b"\2", b"\xf0\2", b"\x43\1", b"\xc0", b"\0"]


def under_way(to_office: bytes, to_client: bytes = b"") -> bool:
    calls = Calls()
    calls.to_office(memoryview(to_office))
    calls.to_client(memoryview(to_client))
    return calls.under_way


def test_nothing_is_under_way_at_first() -> None:
    assert not Calls().under_way


@pytest.mark.parametrize(("head", "count"), CALLS.items())
@pytest.mark.parametrize("length", [0, 1, 300])
def test_what_wants_a_reply(head: bytes, count: int, length: int) -> None:
    sent = block(head + bytes(length))
    assert under_way(sent) is bool(count)
    assert under_way(sent * 2) is bool(count)
    if count:
        assert not under_way(sent, block(b"\x80"))


@pytest.mark.parametrize("reply", REPLIES)
def test_what_is_a_reply(reply: bytes) -> None:
    call = block(b"\3\0\xff\xff")
    assert not under_way(call, block(reply))
    assert under_way(call * 2, block(reply))
    assert not under_way(call * 2, block(reply) * 2)


@pytest.mark.parametrize("message", NO_REPLIES)
def test_what_is_no_reply(message: bytes) -> None:
    assert under_way(block(b"\3\0\xff\xff"), block(message))
    assert not under_way(b"", block(message))


@pytest.mark.parametrize(
    ("to_office", "to_client"),
    [
        (b"", block(b"\x80")),  # a reply to nothing
        (block(b"\2", 2), b""),
        (block(b"\2\2", 2), b""),
        (block(b"\2", 0), b""),
        (block(b""), b""),
        (b"", block(b"\2", 2)),
        (b"", block(b"")),
        (b"GET / HTTP/1.1\r\n\r\n", b""),
    ],
)
def test_what_cannot_be_followed_stays_under_way(to_office: bytes, to_client: bytes) -> None:
    calls = Calls()
    calls.to_office(memoryview(to_office))
    calls.to_client(memoryview(to_client))
    assert calls.under_way
    calls.to_office(memoryview(block(b"\3")))
    calls.to_client(memoryview(block(b"\x80")))
    assert calls.under_way


def test_a_call_counts_from_its_head_on() -> None:
    """The office does nothing before it has the whole, but that is not looked for; of its reply the head is enough."""
    request, reply = block(b"\3" + bytes(100)), block(b"\x80" + bytes(100))
    calls = Calls()
    calls.to_office(memoryview(request[:9]))
    assert not calls.under_way
    calls.to_office(memoryview(request[9:10]))
    assert calls.under_way
    calls.to_office(memoryview(request[10:]))
    calls.to_client(memoryview(reply[:10]))
    assert not calls.under_way


_MESSAGES = st.tuples(st.sampled_from([*CALLS.items()]), st.sampled_from([0, 1, 2, 7, 8, 9, 10, 400]))


@settings(deadline=None)
@given(st.lists(_MESSAGES, max_size=12), st.data())
def test_however_it_is_split(messages: list[tuple[tuple[bytes, int], int]], data: st.DataObject) -> None:
    sent = b"".join(block(head + bytes(length)) for (head, _), length in messages)
    calls = Calls()
    while sent:
        size = data.draw(st.integers(1, len(sent)))
        calls.to_office(memoryview(sent[:size]))
        sent = sent[size:]
    for _ in range(sum(count for (_, count), _ in messages)):
        assert calls.under_way
        calls.to_client(memoryview(block(b"\x80\0")))
    assert not calls.under_way


# Going on from the state in memory

# Blocks that can be followed, and a few that can't.
_BLOCKS = st.one_of(
    st.builds(
        lambda head, length: block(head + bytes(length)),
        st.sampled_from([*CALLS, *REPLIES]),
        st.integers(0, 12) | st.just(300),
    ),
    st.builds(block, st.sampled_from([b"", b"\2", b"\3"]), st.integers(0, 2)),
    st.binary(max_size=12),
)
_STREAM = st.lists(_BLOCKS, max_size=6).map(b"".join)


class Restored:
    """Calls that are taken up by another object, on a copy of the memory, again and again."""

    def __init__(self) -> None:
        self._memory = bytearray(3 + Calls.SIZE + 3)

    @property
    def calls(self) -> Calls:
        assert self._memory[:3] == self._memory[-3:] == bytes(3), "the memory is others' too"
        self._memory = bytearray(self._memory)
        return Calls(self._memory, 3)


def see(calls: Calls, chunk: tuple[bool, bytes]) -> tuple[bool, bool]:
    to_office, data = chunk
    (calls.to_office if to_office else calls.to_client)(memoryview(data))
    return calls.under_way, calls.followed


@st.composite
def conversations(draw: st.DrawFn) -> list[tuple[bool, bytes]]:
    """Both directions, cut anywhere, and the pieces in any order of the two."""
    streams = {True: draw(_STREAM), False: draw(_STREAM)}
    chunks = []
    while streams[True] or streams[False]:
        way = draw(st.booleans()) if streams[True] and streams[False] else bool(streams[True])
        size = draw(st.integers(1, min(40, len(streams[way]))) | st.just(len(streams[way])))
        chunks.append((way, streams[way][:size]))
        streams[way] = streams[way][size:]
    return chunks


@settings(deadline=None, max_examples=500)
@given(conversations())
@example([(True, block(b"\3")), (False, block(b"\x80") * 2), (True, block(b"\3"))])
def test_another_object_goes_on_from_the_memory(chunks: list[tuple[bool, bytes]]) -> None:
    whole, restored = Calls(), Restored()
    for chunk in chunks:
        assert see(restored.calls, chunk) == see(whole, chunk)


@pytest.mark.parametrize("order", [(True, False), (False, True)])
def test_a_conversation_may_be_cut_at_any_byte(order: tuple[bool, bool]) -> None:
    up = b"".join(block(head + bytes(3)) for head in CALLS)
    down = b"".join(block(head + bytes(3)) for head in (*REPLIES, *NO_REPLIES))
    streams = {True: up, False: down}
    whole = Calls()
    expected = [see(whole, (way, streams[way])) for way in order]
    for first in range(len(streams[order[0]]) + 1):
        for second in range(0, len(streams[order[1]]) + 1, 7):
            restored = Restored()
            answers = []
            for way, cut in zip(order, (first, second), strict=True):
                see(restored.calls, (way, streams[way][:cut]))
                answers.append(see(restored.calls, (way, streams[way][cut:])))
            assert answers == expected


def test_calls_that_left_their_memory_go_on_and_do_not_touch_it() -> None:
    memory = bytearray(Calls.SIZE)
    calls = Calls(memory)
    calls.to_office(memoryview(block(b"\3")[:9]))
    before = bytes(memory)
    calls.detach()
    calls.to_office(memoryview(block(b"\3")[9:] + block(b"\3")))
    calls.to_client(memoryview(block(b"\x80")))
    assert calls.under_way
    calls.to_client(memoryview(block(b"\x80")[:8]))
    assert calls.under_way
    calls.lose()
    assert not calls.followed
    assert memory == before


def test_the_largest_block_can_be_followed() -> None:
    calls = Restored()
    calls.calls.to_office(memoryview(struct.pack(">IIBB", 2**32 - 1, 1, 0xF8, 3)))
    assert see(calls.calls, (False, block(b"\x80"))) == (False, True)
    assert see(calls.calls, (True, b"\0" * 1000)) == (False, True)
