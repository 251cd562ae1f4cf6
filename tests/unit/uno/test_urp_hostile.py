# SPDX-License-Identifier: LGPL-2.1-or-later
"""Conversations with who is no office and no client: any bytes end in `ProtocolError` or in silence, and nothing else.

tests/fuzz does the same for hours, led by what the code does with its input.
"""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from ooodd.errors import ProtocolError
from ooodd.uno.conversation import Conversation, Findings, new_probe
from ooodd.uno.refusal import Refusal
from ooodd.uno.urp import MOST_BYTES, Calls
from urp_recorded import HIDDEN_AND_VISIBLE, JAVA, NOTHING_OPEN, OLD, PYUNO, TID

CONVERSATIONS = [NOTHING_OPEN, HIDDEN_AND_VISIBLE, PYUNO, JAVA, OLD]
# What the few bytes of a header can be to make a difference.
BYTES = st.sampled_from([0, 1, 2, 3, 5, 0x13, 0x16, 0x40, 0x7F, 0x80, 0x93, 0x96, 0xA8, 0xC0, 0xF8, 0xFF])


def talk(party: Conversation[Findings] | Refusal, data: bytes, size: int) -> bool:
    """Let it hear the bytes, so many at once; return whether it was still at ease at the end."""
    answers = 0
    complaint = ""
    try:
        for begin in range(0, len(data), size):
            answers += len(party.receive(data[begin : begin + size]))
    except ProtocolError as error:
        complaint = str(error)
        return False
    finally:
        assert len(complaint) < 400
        assert complaint.isprintable()
        assert len(party._blocks._kept) <= MOST_BYTES + 8
        assert answers < MOST_BYTES
    return True


def parties() -> tuple[Conversation[Findings], Refusal]:
    probe = new_probe()
    probe._tid = TID
    return probe, Refusal("no")


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """A real conversation with bytes replaced, removed, doubled, whole blocks out of order, or made one block."""
    blocks = list(draw(st.sampled_from(CONVERSATIONS)))
    if draw(st.booleans()):
        blocks = draw(st.permutations(blocks))
    if draw(st.booleans()):
        content = b"".join(each[8:] for each in blocks)
        blocks = [struct.pack(">II", len(content), draw(st.integers(0, 20))) + content]
    data = bytearray(b"".join(blocks))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(data) - 1))
        match draw(st.integers(0, 3)):
            case 0:
                data[place] = draw(BYTES)
            case 1:
                data[place] ^= 1 << draw(st.integers(0, 7))
            case 2:
                del data[place : place + draw(st.integers(1, 8))]
                data = data or bytearray(b"\0")
            case _:
                data[place:place] = data[place : place + draw(st.integers(1, 64))]
    return bytes(data)


def content_of(message: bytes) -> bytes:
    return struct.pack(">II", len(message), 1) + message


_ANY = (
    st.binary(max_size=300)
    | mutations()
    | st.lists(st.builds(bytes, st.lists(BYTES, min_size=1, max_size=30)).map(content_of), max_size=5).map(b"".join)
)


@settings(deadline=None, max_examples=500)
@given(_ANY, st.integers(1, 400))
def test_any_bytes_are_survived(data: bytes, size: int) -> None:
    for party in parties():
        talk(party, data, size)


@settings(deadline=None, max_examples=200)
@given(_ANY, st.integers(1, 400))
def test_the_split_makes_no_difference(data: bytes, size: int) -> None:
    (probe, refusal), (split_probe, split_refusal) = parties(), parties()
    assert talk(probe, data, len(data) + 1) == talk(split_probe, data, size)
    assert talk(refusal, data, len(data) + 1) == talk(split_refusal, data, size)
    assert probe.result == split_probe.result
    assert refusal.done == split_refusal.done


def test_a_conversation_cut_off_anywhere_only_waits() -> None:
    for blocks in CONVERSATIONS:
        whole = b"".join(blocks)
        for length in range(len(whole)):
            probe, refusal = parties()
            party: Conversation[Findings] | Refusal = refusal if blocks in (PYUNO, JAVA, OLD) else probe
            assert talk(party, whole[:length], 1 << 20)
            assert probe.result is None
            assert not refusal.done


def test_every_single_byte_may_be_any_other() -> None:
    """In the shorter conversations; only what no one looks at, as a random number, makes no difference."""
    for blocks in (NOTHING_OPEN, PYUNO, JAVA, OLD):
        whole = b"".join(blocks)
        for place in range(len(whole)):
            for byte in {0, 1, 0x7F, 0x80, 0xFF, whole[place] ^ 1, whole[place] ^ 0x80}:
                for party in parties():
                    talk(party, whole[:place] + bytes([byte]) + whole[place + 1 :], 1 << 20)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=40) | mutations())))
def test_calls_survive_any_bytes_and_keep_but_a_few(chunks: list[tuple[bool, bytes]]) -> None:
    calls = Calls()
    for to_office, chunk in chunks:
        (calls.to_office if to_office else calls.to_client)(memoryview(chunk))
        assert max(len(calls._requests._kept), len(calls._replies._kept)) < 10
    assert calls.under_way in {True, False}


def test_findings_of_a_lying_office_are_only_numbers() -> None:
    data = b"".join([*NOTHING_OPEN[:-2], b"\0\0\0\5\0\0\0\1\x80\xff\xff\xff\xff", NOTHING_OPEN[-1]])
    probe, _ = parties()
    assert talk(probe, data, 7)
    assert probe.result == Findings(0, 0xFFFFFFFF, current=False)
