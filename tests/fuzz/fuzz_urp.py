# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fuzz what reads URP, guided by the code's coverage: `Conversation`, `Refusal` and `Calls` of ooodd.uno.

    fuzz_urp.py --seeds DIRECTORY      writes recorded conversations there, to begin with, and ends
    fuzz_urp.py [libFuzzer's options] [CORPUS ...]

It needs atheris, which is not in Debian: `pip install atheris` in an environment of its own. An input is a script: a
byte that picks the reader, one for the size of the pieces in which it gets the bytes, then chunks, each with a byte of
flags, two for its length, and its bytes. Nothing but `ProtocolError` may be raised, no more than a block may be kept,
and it may make no difference how the bytes are split, nor whether `Calls` goes on from its memory in another object.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / place) for place in ("src", "tests/unit")]

import atheris  # type: ignore[import-untyped]  # noqa: E402

from urp_recorded import HIDDEN_AND_VISIBLE, JAVA, NOTHING_OPEN, OLD, PYUNO, TID  # type: ignore[import-not-found]  # noqa: E402

with atheris.instrument_imports(include=["ooodd"]):
    from ooodd.errors import ProtocolError
    from ooodd.uno.conversation import Conversation, Findings, new_probe
    from ooodd.uno.refusal import Refusal
    from ooodd.uno.urp import MOST_BYTES, Calls, is_opening

# Flags of a chunk. A framed one is given a block's header: to find one that fits is not what the fuzzer is for.
TO_CLIENT = 1
FRAMED = 2
COUNT_SHIFT = 4
HEAD = struct.Struct(">BH")


def chunks(script: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the flags and the bytes of each chunk."""
    while len(script) > HEAD.size:
        flags, length = HEAD.unpack_from(script)
        chunk, script = script[HEAD.size : HEAD.size + length], script[HEAD.size + length :]
        if flags & FRAMED:
            chunk = struct.pack(">II", len(chunk), flags >> COUNT_SHIFT) + chunk
        yield flags, chunk


def pieces(whole: bytes, size: int) -> list[bytes]:
    """Cut bytes into pieces of one size."""
    return [whole[begin : begin + size] for begin in range(0, len(whole), size)]


Party = Conversation[Findings] | Refusal


def probe() -> Conversation[Findings]:
    """Return a probe whose thread id the fuzzer can know."""
    made = new_probe()
    made._tid = TID
    return made


def converse(party: Party, parts: list[bytes]) -> tuple[bytes, bool]:
    """Return all that it answers, and whether it bore all of it."""
    answers, complaint = b"", ""
    for part in parts:
        try:
            answers += party.receive(part)
        except ProtocolError as error:
            complaint = str(error)
            break
        assert len(party._blocks._kept) <= MOST_BYTES + 8
        assert len(answers) < MOST_BYTES
    assert complaint.isprintable()
    return answers, not complaint


def check_conversation(whole: bytes, size: int, one: Party, other: Party) -> None:
    """Let two of a kind hear the same, split and whole. One that is broken off may have answered before."""
    answers, bore = converse(one, pieces(whole, size))
    others, other_bore = converse(other, [whole])
    assert bore == other_bore
    assert not bore or answers == others


def check_calls(parts: list[tuple[int, bytes]], size: int) -> None:
    """Follow both directions as they come, also from the memory; and one after the other, split and whole."""
    calls, split, whole = Calls(), Calls(), Calls()
    memory = bytearray(Calls.SIZE)
    for flags, part in parts:
        (calls.to_client if flags & TO_CLIENT else calls.to_office)(memoryview(part))
        restored = Calls(memory)
        (restored.to_client if flags & TO_CLIENT else restored.to_office)(memoryview(part))
        assert (restored.under_way, restored.followed) == (calls.under_way, calls.followed)
        assert max(len(calls._requests._kept), len(calls._replies._kept)) < 10
    to_office = b"".join(part for flags, part in parts if not flags & TO_CLIENT)
    to_client = b"".join(part for flags, part in parts if flags & TO_CLIENT)
    for piece in pieces(to_office, size):
        split.to_office(memoryview(piece))
    for piece in pieces(to_client, size):
        split.to_client(memoryview(piece))
    whole.to_office(memoryview(to_office))
    whole.to_client(memoryview(to_client))
    assert split.under_way == whole.under_way
    # Only in the order as they came it is to be seen that a reply was before its request.
    assert calls.under_way or not whole.under_way


def check_one_input(data: bytes) -> None:
    """Run one script."""
    who, size = data[:1], 1 + (data[1] if len(data) > 1 else 0)
    parts = list(chunks(data[2:]))
    whole = b"".join(part for _, part in parts)
    match who:
        case b"p":
            check_conversation(whole, size, probe(), probe())
        case b"r":
            check_conversation(whole, size, Refusal("no"), Refusal("no"))
        case b"c":
            check_calls(parts, size)
        case _:
            is_opening(whole)


def seeds() -> Iterator[bytes]:
    """Yield scripts of recorded conversations: as they were, framed here, in one piece, and from both sides."""
    conversations = (
        (b"p\5", NOTHING_OPEN),
        (b"p\xff", HIDDEN_AND_VISIBLE),
        (b"r\x08", PYUNO),
        (b"r\0", JAVA),
        (b"r\7", OLD),
    )
    for who, blocks in conversations:
        whole = b"".join(blocks)
        yield who + b"".join(HEAD.pack(0, len(block)) + block for block in blocks)
        yield who + b"".join(HEAD.pack(FRAMED | 1 << COUNT_SHIFT, len(block) - 8) + block[8:] for block in blocks)
        yield who + HEAD.pack(0, len(whole)) + whole
        direction = TO_CLIENT if who.startswith(b"p") else 0
        yield b"c\2" + b"".join(HEAD.pack(direction, len(block)) + block for block in blocks)
    requests, replies = [b"\xf8\4", b"\5\1", b"\3\0\xff\xff", b"\xf0\2\x16"], [b"\x88\4", b"\x80", b"\x80\0"]
    both = [(0, each) for each in requests] + [(TO_CLIENT, each) for each in replies]
    yield b"c\2" + b"".join(HEAD.pack(FRAMED | 1 << COUNT_SHIFT | way, len(each)) + each for way, each in both)
    yield b"o\0" + HEAD.pack(0, len(PYUNO[0])) + PYUNO[0]


def main() -> None:
    """Write the seeds, or fuzz."""
    if sys.argv[1:2] == ["--seeds"]:
        directory = Path(sys.argv[2])
        directory.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds()):
            (directory / f"seed-{number:02}").write_bytes(seed)
        return
    atheris.Setup(sys.argv, check_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
