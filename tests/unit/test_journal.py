# SPDX-License-Identifier: LGPL-2.1-or-later
"""Log entries for journald: their fields, and a journald that is stuck."""

import io
import itertools
import socket
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import until
from ooodd import datagrams, messages
from ooodd.journal import StreamJournal, SystemdJournal
from ooodd.messages import Message, Priority

LINE = Message("0123456789abcdef0123456789abcdef", Priority.NOTICE, "worker {worker}: {detail}")


class Journald:
    """A journald that reads only when a test asks it to."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(str(path))
        self.journal = SystemdJournal("info", str(path))

    def read(self) -> dict[str, str]:
        """Return the fields of the next entry."""
        return parse(self.socket.recv(1 << 20))

    def read_all(self) -> list[str]:
        """Return the messages of all received entries."""
        lines = []
        try:
            while True:
                lines.append(self.read()["MESSAGE"])
        except BlockingIOError:
            return lines

    def close(self) -> None:
        self.journal.close()
        self.socket.close()


def parse(entry: bytes) -> dict[str, str]:
    """Parse the native protocol, without any code of ooodd."""
    fields = {}
    while entry:
        line, _, entry = entry.partition(b"\n")
        name, assigned, value = line.partition(b"=")
        if not assigned:
            (size,) = struct.unpack_from("<Q", entry)
            value, end, entry = entry[8 : 8 + size], entry[8 + size : 9 + size], entry[9 + size :]
            assert end == b"\n"
        fields[name.decode()] = value.decode()
    return fields


@pytest.fixture
def journald() -> Iterator[Journald]:
    with tempfile.TemporaryDirectory() as directory:
        it = Journald(Path(directory) / "socket")
        yield it
        it.close()


def test_an_entry_has_the_message_its_id_and_the_fields_of_ooodd(journald: Journald) -> None:
    journald.journal.log(LINE, worker=3, detail="gone", client="192.0.2.1:5", session=7, other="no field")
    assert journald.read() == {
        "MESSAGE": "worker 3: gone",
        "MESSAGE_ID": "0123456789abcdef0123456789abcdef",
        "PRIORITY": "5",
        "SYSLOG_IDENTIFIER": "ooodd",
        "OOODD_WORKER": "3",
        "OOODD_CLIENT": "192.0.2.1:5",
        "OOODD_SESSION": "7",
    }


@pytest.mark.parametrize(
    "detail",
    ["two\nlines", "\n", "=", "", "\0", "\u00e4\u20ac", "MESSAGE=x\nPRIORITY=0", "x" * 50_000],
    ids=itertools.count(),
)
def test_any_text_arrives_unchanged(detail: str, journald: Journald) -> None:
    journald.journal.log(LINE, worker=detail, detail=detail)
    entry = journald.read()
    assert entry["MESSAGE"] == f"worker {detail}: {detail}"
    assert entry["OOODD_WORKER"] == detail
    assert entry["PRIORITY"] == "5"


def test_text_that_is_not_utf_8_is_escaped(journald: Journald) -> None:
    journald.journal.log(LINE, worker=1, detail="file \udcff")
    assert journald.read()["MESSAGE"] == "worker 1: file \\udcff"


def test_the_level_selects_the_entries_that_are_sent(journald: Journald) -> None:
    debug = Message("0" * 32, Priority.DEBUG, "debug")
    journald.journal.log(debug)
    journald.journal.set_level("detail")
    journald.journal.log(debug)
    journald.journal.set_level("serious")
    journald.journal.log(LINE, worker=1, detail="gone")
    assert journald.read_all() == ["debug"]


def fill(journald: Journald) -> int:
    """Log until an entry is queued, and return how many were logged."""
    count = 0
    while not journald.journal._datagrams.waiting:
        journald.journal.log(LINE, worker=1, detail=count)
        count += 1
    return count


async def test_a_stuck_journald_does_not_block_and_gets_the_entries_later(journald: Journald) -> None:
    count = fill(journald)
    for number in range(count, count + 100):
        journald.journal.log(LINE, worker=1, detail=number)
    lines: list[str] = []
    while waiting := journald.journal._datagrams.waiting:
        lines += journald.read_all()
        await until(lambda: journald.journal._datagrams.waiting < waiting)
    lines += journald.read_all()
    assert lines == [f"worker 1: {number}" for number in range(count + 100)]


async def test_lost_entries_are_counted_and_reported_when_journald_works_again(
    journald: Journald, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagrams, "_MAX_WAITING", 5)
    count = fill(journald)
    for number in range(count, count + 100):
        journald.journal.log(LINE, worker=1, detail=number)
    lines = journald.read_all()
    await until(lambda: not journald.journal._datagrams.waiting)
    journald.journal.log(LINE, worker=1, detail="again")
    lines += journald.read_all()
    expected = [f"worker 1: {number}" for number in range(count + 4)]
    assert lines == [*expected, "96 lines lost while journald did not accept any", "worker 1: again"]


def test_lost_entries_are_reported_as_a_warning(journald: Journald, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "_MAX_WAITING", 1)
    journald.journal.set_level("serious")
    warning = Message("0" * 32, Priority.WARNING, "warning")
    while journald.journal._datagrams._dropped < 1:
        journald.journal.log(warning)
    journald.read_all()
    journald.journal.log(warning)
    journald.read()  # the one that waited
    lost = journald.read()
    assert (lost["MESSAGE_ID"], lost["PRIORITY"]) == (messages.JOURNAL_LOST.id, "4")


def test_without_journald_nothing_fails(tmp_path: Path) -> None:
    journal = SystemdJournal("info", str(tmp_path / "absent"))
    journal.log(LINE, worker=1, detail="gone")
    journal.close()
    journal.log(LINE, worker=1, detail="after close")


class FullStream(io.StringIO):
    """A stream that cannot be written to."""

    def write(self, _: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_line_that_cannot_be_written_raises_nothing() -> None:
    StreamJournal("info", FullStream()).log(messages.BUS_BACK)
