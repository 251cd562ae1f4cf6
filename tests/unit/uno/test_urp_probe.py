# SPDX-License-Identifier: LGPL-2.1-or-later
"""Probing: against a recorded office, a strict one, and whatever else may answer."""

import itertools
import struct

import pytest

from ooodd.errors import ProtocolError
from ooodd.uno.conversation import Conversation, Findings, new_probe
from urp_office import ACCESS, DESKTOP, ENUMERATION, SUPPLIER, BrokeOff, OfficeSide
from urp_recorded import COMMIT, GREETING, HIDDEN_AND_VISIBLE, NOTHING_OPEN, TID


def recorded_probe(monkeypatch: pytest.MonkeyPatch) -> Conversation[Findings]:
    monkeypatch.setattr("secrets.token_bytes", lambda _size: TID)
    return new_probe()


def converse(office: OfficeSide, size: int = 1 << 20) -> Conversation[Findings]:
    """Carry bytes between a probe and an office, so many at once, until both wait."""
    probe = new_probe()
    to_probe, to_office = office.greeting(), b""
    while to_probe or to_office:
        part, to_probe = to_probe[:size], to_probe[size:]
        to_office += probe.receive(part)
        part, to_office = to_office[:size], to_office[size:]
        to_probe += office.receive(part)
    return probe


@pytest.mark.parametrize(
    ("blocks", "findings"),
    [(NOTHING_OPEN, Findings(0, 0, current=False)), (HIDDEN_AND_VISIBLE, Findings(2, 2, current=True))],
)
def test_a_recorded_office_is_understood_however_it_is_split(
    blocks: list[bytes], findings: Findings, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = b"".join(blocks)
    for size in (1, 2, 7, 8, 9, len(whole)):
        probe = recorded_probe(monkeypatch)
        for begin in range(0, len(whole), size):
            assert probe.result is None
            probe.receive(whole[begin : begin + size])
        assert probe.result == findings


def test_the_fake_office_sends_what_a_real_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for its ids, which are addresses, and its random number."""
    probe, office = recorded_probe(monkeypatch), OfficeSide()
    said = office.greeting()
    answers = said
    while said:
        said = office.receive(probe.receive(said))
        answers += said
    assert shape(answers) == shape(b"".join(NOTHING_OPEN))


def shape(data: bytes) -> bytes:
    """Blocks without their sizes, numbers that are random, and objects' ids."""
    result = b""
    while data:
        (size,) = struct.unpack_from(">I", data)
        message, data = data[8 : 8 + size], data[8 + size :]
        if b";gcc3" in message:
            end = message.index(b";gcc3")
            begin = max(message.rfind(mark, 0, end) for mark in (b"\x80", b"XInterface", b"\x16\0\1"))
            message = message[:begin] + b"<id>" + message[-2:]
        result += message.split(b"PropertiesTid\0\0")[0] + b"\n"
    return result


@pytest.mark.parametrize("size", [1, 5, 1 << 20])
@pytest.mark.parametrize(
    ("components", "frames", "current"), [(0, 0, False), (1, 1, True), (0, 1, False), (3, 4, False)]
)
def test_all_that_is_open_is_found(components: int, frames: int, current: bool, size: int) -> None:  # noqa: FBT001
    probe = converse(OfficeSide(components, frames, current), size)
    assert probe.result == Findings(components, frames, current)
    assert probe.result.clean is (not (components or frames or current))


@pytest.mark.parametrize(
    "findings", [Findings(1, 0, current=False), Findings(0, 1, current=False), Findings(0, 0, current=True)]
)
def test_anything_at_all_is_dirty(findings: Findings) -> None:
    assert not findings.clean


def test_counting_has_a_bound() -> None:
    office = OfficeSide(10_000, 10_000, current=True)
    assert converse(office).result == Findings(8, 10_000, current=True)
    assert office.asked.count((ENUMERATION, 4)) == 8


def test_a_clean_office_is_asked_for_no_more_than_that() -> None:
    office = OfficeSide()
    converse(office)
    assert office.asked[-5:-2] == [(DESKTOP, 7), (DESKTOP, 6), (SUPPLIER, 23)]
    assert (ACCESS, 5) not in office.asked
    assert len(office.asked) == 10


def test_a_hung_office_leaves_it_without_findings() -> None:
    office = OfficeSide()
    office.hung = True
    assert converse(office).result is None
    assert office.asked[-3:] == [(DESKTOP, 7), (DESKTOP, 6), (SUPPLIER, 23)]


def test_each_has_a_thread_id_of_its_own() -> None:
    offices = OfficeSide(), OfficeSide()
    requests = [new_probe().receive(GREETING + COMMIT) for _ in offices]
    assert requests[0] != requests[1]


def block(message: bytes, count: int = 1) -> bytes:
    return struct.pack(">II", len(message), count) + message


PROPERTIES_TID = b"\x88\x19.UrpProtocolPropertiesTid\xff\xff"
ASKED = b"\x88\x10" + TID + b"\xff\xff"
VOID_ANY = b"\0"
XINTERFACE = b"\x96\xff\xff\x1bcom.sun.star.uno.XInterface"
NO_SUCH_ELEMENT = (
    b"\xa0\x93\0\5-com.sun.star.container.NoSuchElementException9"
    b"at ./framework/source/helper/ocomponentenumeration.cxx:83\0\xff\xff"
)
GOOD = block(ASKED + XINTERFACE + b"\2id\xff\xff")


@pytest.mark.parametrize(
    ("answers", "complaint"),
    [
        (b"\0\0\0\0\0\0\0\1", "a block of 0 bytes"),
        (b"\0\0\0\1\0\0\0\0", "with 0 messages"),
        (b"\0\1\0\1\0\0\0\1", "a block of 65537 bytes"),
        (b"\xff\xff\xff\xff\0\0\0\1", "a block of 4294967295 bytes"),
        (b"\0\0\0\1\0\0\0\x41", "with 65 messages"),
        (b"HTTP/1.1 400 Bad Request", "a block of"),
        (block(PROPERTIES_TID + b"\0\0\0\1"), "a reply to what was never asked"),
        (block(b"\x80\0"), "doesn't name its thread"),
        (block(b"\3"), "doesn't name its thread"),
        (GREETING + block(b"\x09\0"), "unknown"),
        (GREETING + block(b"\5\1\x0eCurrentContext\1"), "a value where there is none"),
        (GREETING + block(b"\5\1\7Another\0"), "unknown"),
        (GREETING + block(b"\5\0"), "unknown"),
        (GREETING + block(b"\5\2\x0eCurrentContext\0\7Another\0"), "unknown"),
        (GREETING + block(b"\5\xff\xff\xff\xff\xff\0\0"), "ends within a message"),
        (GREETING + COMMIT + COMMIT, "calls function 5"),
        (GREETING + COMMIT + GREETING, "calls function 4"),
        (GREETING + COMMIT + block(b"\x43\1"), "calls function 769"),
        (GREETING + COMMIT + block(b"\xc4\3\1"), "calls function 769"),
        (GREETING + COMMIT + block(b"\xc1\xc0\x09"), "calls function 9"),
        (GREETING + COMMIT + block(b"\xc1\x80\x09"), "unknown flags"),
        (GREETING + COMMIT + block(b"\xe0\3\x0c"), "a type of class 12"),
        (GREETING + COMMIT + block(PROPERTIES_TID + VOID_ANY), "never asked"),
        (GREETING + COMMIT + block(ASKED + VOID_ANY), "no object"),
        (GREETING + COMMIT + block(ASKED + XINTERFACE + b"\0\xff\xff"), "no object"),
        (GREETING + COMMIT + block(ASKED + XINTERFACE + b"\0\1\0"), "number 256 is out of range"),
        (GREETING + COMMIT + block(ASKED + XINTERFACE + b"\0\0\7"), "number 7 stands for nothing"),
        (GREETING + COMMIT + block(ASKED + b"\x16\0\7"), "number 7 stands for nothing"),
        (GREETING + COMMIT + block(ASKED + b"\x96\xff\xff\0"), "a type without a name"),
        (GREETING + COMMIT + block(ASKED + b"\x16\xff\xff"), "a type without a name"),
        (GREETING + COMMIT + block(ASKED + XINTERFACE + b"\2\xff\xff\xff\xff"), "no UTF-8"),
        (GREETING + COMMIT + block(ASKED + XINTERFACE + b"\xff\xff\xff\xff\xff"), "ends within a message"),
        (GREETING + COMMIT + block(ASKED + XINTERFACE + b"\2id\xff\xff!"), "1 bytes after the last message"),
        (GREETING + COMMIT + block(b"\x88\0\0\7" + VOID_ANY), "number 7 stands for nothing"),
        (GREETING + COMMIT + GOOD[:8] + b"\xa8" + GOOD[9:], "a type of class 22, not 19"),
        (b"".join(NOTHING_OPEN[:-1]) + block(b"\x80\2"), "a boolean of 2"),
        (b"".join(HIDDEN_AND_VISIBLE[:-3]) + block(NO_SUCH_ELEMENT), "raised com.sun.star.container.NoSuchElementEx"),
        (b"".join(NOTHING_OPEN) + block(b"\x80\0"), "never asked"),
    ],
    ids=itertools.count(),
)
def test_what_an_office_does_not_answer(answers: bytes, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        recorded_probe(monkeypatch).receive(answers)


def test_an_exception_is_told_with_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProtocolError, match=r"NoSuchElementException: at \./framework/"):
        recorded_probe(monkeypatch).receive(b"".join(HIDDEN_AND_VISIBLE[:-3]) + block(NO_SUCH_ELEMENT))


def test_the_offices_releases_are_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = recorded_probe(monkeypatch)
    probe.receive(GREETING + COMMIT)
    assert probe.receive(block(b"\2") + block(b"\xd0\2\4some\xff\xff")) == b""
    probe.receive(GOOD)
    assert probe.result is None


def test_endless_talk_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = recorded_probe(monkeypatch)
    probe.receive(GREETING + COMMIT)
    with pytest.raises(ProtocolError, match="with 1 messages, after 64 others"):
        probe.receive(block(b"\2") * 1000)


def test_messages_may_share_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """LibreOffice puts each into one of its own, but reads others."""
    probe = recorded_probe(monkeypatch)
    whole = b"".join(message[8:] for message in NOTHING_OPEN)
    probe.receive(block(whole, len(NOTHING_OPEN)))
    assert probe.result == Findings(0, 0, current=False)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xf8\0",
        PROPERTIES_TID + b"\0\0\0\0",
        b"\x88\x09not asked\xff\xff",
    ],
)
def test_the_fake_office_is_strict(message: bytes) -> None:
    office = OfficeSide()
    office.greeting()
    with pytest.raises(BrokeOff):
        office.receive(block(message, 1))
