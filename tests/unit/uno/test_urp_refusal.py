# SPDX-License-Identifier: LGPL-2.1-or-later
"""Refusing a client in its own language: what real ones send first, and what others might."""

import itertools
import struct

import pytest

from ooodd.errors import ProtocolError
from ooodd.uno.refusal import Refusal
from urp_recorded import CLIENT_TID, COMMIT, JAVA, JAVA_TID, OLD, PYUNO

TEXT = "All workers are busy: später ✓"
CLIENTS = {"pyuno": (PYUNO, CLIENT_TID), "java": (JAVA, JAVA_TID + b"1"), "old": (OLD, CLIENT_TID)}


def block(message: bytes, count: int = 1) -> bytes:
    return struct.pack(">II", len(message), count) + message


def refusal_to(tid: bytes) -> bytes:
    text = TEXT.encode()
    return block(
        b"\xa8"
        + tid
        + b"\xff\xff\x93\xff\xff!com.sun.star.uno.RuntimeException"
        + bytes([len(text)])
        + text
        + b"\0\xff\xff"
    )


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_gets_the_text(client: str) -> None:
    blocks, tid = CLIENTS[client]
    refusal = Refusal(TEXT)
    *agreed, last = blocks
    answers = [refusal.receive(each) for each in agreed]
    assert not refusal.done
    if agreed:
        own = agreed[0][8:].split(b"UrpProtocolProperties\0\0")[1][:-6]
        assert answers == [block(b"\x88" + own + b"\xff\xff\0\0\0\1"), block(b"\x88" + own + b"\xff\xff")]
    assert refusal.receive(last) == refusal_to(tid)
    assert refusal.done


@pytest.mark.parametrize("client", CLIENTS)
def test_however_it_is_split(client: str) -> None:
    blocks, _ = CLIENTS[client]
    whole = b"".join(blocks)
    expected = Refusal(TEXT).receive(whole)
    for size in range(1, len(whole)):
        refusal = Refusal(TEXT)
        answers = b""
        for begin in range(0, len(whole), size):
            assert not refusal.done
            answers += refusal.receive(whole[begin : begin + size])
        assert refusal.done
        assert answers == expected


def test_a_client_that_has_been_told_is_not_listened_to() -> None:
    refusal = Refusal(TEXT)
    assert refusal.receive(b"".join(PYUNO) + b"noise" * 100)
    assert refusal.receive(b"noise") == b""
    assert refusal.done


def test_whatever_it_asks_first_is_refused() -> None:
    """In any form of a request: with a long number, with more flags, or as short as it gets."""
    opening = PYUNO[2][8:]
    for request in (b"\x05", b"\x43\1", b"\xc4\1\1", b"\xc1\xc0\7", b"\xc5\xc0\1\1", b"\xc0\7", b"\x41\2"):
        refusal = Refusal(TEXT)
        refusal.receive(PYUNO[0] + PYUNO[1])
        released = block(b"\xf8\2" + opening[2:-6])
        assert refusal.receive(released) == b""
        assert refusal.receive(block(request + b"any values")) == refusal_to(CLIENT_TID)
        assert refusal.done


def test_messages_may_share_a_block() -> None:
    refusal = Refusal(TEXT)
    whole = b"".join(each[8:] for each in PYUNO)
    assert refusal.receive(block(whole, 3)).endswith(refusal_to(CLIENT_TID))
    assert refusal.done


def test_releases_are_no_matter() -> None:
    refusal = Refusal(TEXT)
    refusal.receive(PYUNO[0] + PYUNO[1])
    assert refusal.receive(block(b"\xf0\2\x16\0\0\4some\xff\xff") + block(b"\2") + block(b"\x40\2")) == b""
    assert not refusal.done
    with pytest.raises(ProtocolError, match="with 1 messages, after 64 others"):
        refusal.receive(block(b"\2") * 1000)


def test_the_text_may_be_long_and_have_what_utf_8_has_not() -> None:
    answer = Refusal("x" * 300 + "\ud800").receive(OLD[0])
    assert b"RuntimeException\xff\0\0\x01\x2d" + b"x" * 300 + b"?\0\xff\xff" in answer


@pytest.mark.parametrize(
    ("sent", "complaint"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "a block of"),
        (b"\0\0\0\0\0\0\0\1", "a block of 0 bytes"),
        (b"\0\1\0\1\0\0\0\1", "a block of 65537 bytes"),
        (b"\0\0\0\1\0\0\0\x41", "with 65 messages"),
        (block(b"\x88\1t\xff\xff"), "never asked"),
        (block(b"\x05"), "doesn't name its thread"),
        (block(b"\xc8\5\1t\xff\xff"), "doesn't name its object"),
        (block(b"\xd8\5\1o\xff\xff\1t\xff\xff"), "doesn't name its object"),
        (block(b"\xf8\5\x96\xff\xff\1i\0\xff\xff\1t\xff\xff"), "doesn't name its object"),
        (block(b"\xf8\5\x96\xff\xff\1i\1o\xff\xff\0\xff\xff"), "doesn't name its thread"),
        (block(b"\xf8\5\x93\xff\xff\1i\1o\xff\xff\1t\xff\xff"), "a type of class 19, not 22"),
        (PYUNO[0][:8] + PYUNO[0][8:-4].ljust(101, b"!")[:97] + b"abcd" + block(b"\4\0"), "ends within a message"),
        (PYUNO[0] + block(b"\x06\0"), "unknown"),
        (PYUNO[0] + block(b"\5\1\1x\0"), "unknown"),
        (PYUNO[0] + COMMIT[:-1] + b"\1", "a value where there is none"),
        (PYUNO[0] + block(b"\5\1\x0eCurrentContext\0!"), "1 bytes after the last message"),
    ],
    ids=itertools.count(),
)
def test_what_no_client_says(sent: bytes, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        Refusal(TEXT).receive(sent)
