# SPDX-License-Identifier: LGPL-2.1-or-later
"""Log messages: their ids, the fields that each sender passes, and their entries in the catalog."""

import ast
import io
import re
import shutil
import string
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import ooodd
from ooodd import messages
from ooodd.journal import StreamJournal
from ooodd.messages import LEVELS, Message, Priority

SOURCE = Path(ooodd.__file__).parent
CATALOG = Path(__file__).parents[2] / "systemd" / "ooodd.catalog"
NAMES = {name: value for name, value in vars(messages).items() if isinstance(value, Message)}
# Variables of the catalog, and the fields of messages that ooodd.journal turns into them.
VARIABLES = {"@OOODD_WORKER@": "worker", "@OOODD_CLIENT@": "client", "@OOODD_SESSION@": "session"}
# Sent through a variable: the reasons to stop a worker.
INDIRECT = {f"WORKER_{reason}": {"worker", "detail"} for reason in ("CRASHED", "HUNG", "DIRTY", "RECYCLED")}


def senders() -> Iterator[tuple[str, set[str]]]:
    """Yield each message that the source sends, with the fields that it passes."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Attribute):
                first = node.args[0]
                if node.func.attr == "log" and isinstance(first, ast.Attribute):
                    fields = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
                    # The result of socket_failure().
                    yield first.attr, fields or {"result", "what"}
    yield from INDIRECT.items()


def fields_of(message: Message) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(message.text) if name is not None}


def entries() -> dict[str, tuple[dict[str, str], str]]:
    """Return the catalog: headers and text by id."""
    found = {}
    for entry in re.split(r"^-- ", CATALOG.read_text(), flags=re.MULTILINE)[1:]:
        head, _, text = entry.partition("\n\n")
        identifier, *headers = head.splitlines()
        assert identifier not in found, "two entries for one message"
        found[identifier] = (dict(line.split(": ", 1) for line in headers), text.strip())
    return found


# Messages


def test_each_id_is_unique_and_128_bits_in_hex() -> None:
    identifiers = [message.id for message in NAMES.values()]
    assert len(set(identifiers)) == len(identifiers)
    assert all(re.fullmatch(r"[0-9a-f]{32}", identifier) for identifier in identifiers)
    # sd_id128_randomize(3): a random UUID, version 4 of variant 1.
    assert all(identifier[12] == "4" and identifier[16] in "89ab" for identifier in identifiers)


@pytest.mark.parametrize("name", NAMES)
def test_each_text_is_one_line(name: str) -> None:
    text = NAMES[name].text
    assert text.isprintable()
    assert not text.endswith(".")


def test_each_message_is_sent_and_nothing_else() -> None:
    assert {name for name, _ in senders()} == set(NAMES)


@pytest.mark.parametrize(("name", "given"), senders())
def test_each_sender_passes_the_fields_of_the_text(name: str, given: set[str]) -> None:
    assert fields_of(NAMES[name]) <= given


def test_each_level_has_its_priority() -> None:
    assert LEVELS == {"serious": Priority.WARNING, "info": Priority.INFO, "detail": Priority.DEBUG}


@pytest.mark.parametrize(("level", "lines"), [("serious", 2), ("info", 4), ("detail", 5)])
def test_a_level_logs_messages_of_its_priority_or_higher(level: str, lines: int) -> None:
    stream = io.StringIO()
    journal = StreamJournal(level, stream)
    for priority in Priority:
        journal.log(Message("0" * 32, priority, "{what} of {worker}"), what=priority, worker=1)
    assert stream.getvalue().splitlines() == [f"ooodd: {priority} of 1" for priority in list(Priority)[:lines]]


def test_the_level_of_a_journal_can_be_changed() -> None:
    stream = io.StringIO()
    journal = StreamJournal("serious", stream)
    line = Message("0" * 32, Priority.INFO, "{what}")
    journal.log(line, what="unheard")
    journal.set_level("info")
    journal.log(line, what="heard")
    assert stream.getvalue() == "ooodd: heard\n"


# The catalog


def test_each_message_has_an_entry_and_each_entry_has_a_message() -> None:
    assert set(entries()) == {message.id for message in NAMES.values()}


@pytest.mark.parametrize("name", NAMES)
def test_each_entry_explains_the_message_and_what_to_do(name: str) -> None:
    headers, text = entries()[NAMES[name].id]
    assert set(headers) == {"Subject", "Defined-By", "Documentation"}
    assert headers["Defined-By"] == "ooodd"
    assert headers["Documentation"] == "man:ooodd(8)"
    assert headers["Subject"]
    cause, *remedies = text.split("\n\n")
    assert cause
    assert remedies
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize(("name", "given"), senders())
def test_each_entry_uses_only_fields_that_its_senders_pass(name: str, given: set[str]) -> None:
    headers, text = entries()[NAMES[name].id]
    variables = re.findall(r"@[A-Z_]+@", headers["Subject"] + text)
    assert {VARIABLES[variable] for variable in variables} <= given


def test_systemd_accepts_the_catalog(tmp_path: Path) -> None:
    directory = tmp_path / "usr" / "lib" / "systemd" / "catalog"
    directory.mkdir(parents=True)
    shutil.copy(CATALOG, directory)

    def journalctl(*arguments: str) -> str:
        command = ["journalctl", f"--root={tmp_path}", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert result.stderr == ""
        return result.stdout

    journalctl("--update-catalog")
    listed = dict(line.split(" ", 1) for line in journalctl("--list-catalog").splitlines())
    assert listed == {identifier: f"ooodd: {headers['Subject']}" for identifier, (headers, _) in entries().items()}
    assert messages.WORKER_CRASHED.id in journalctl("--dump-catalog", messages.WORKER_CRASHED.id)
