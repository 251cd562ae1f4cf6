# SPDX-License-Identifier: LGPL-2.1-or-later
"""The next client never sees a document that another client has left open."""

import json
import os
from typing import Any

import pytest

from ooodd import messages
from places import CLIENTS, DOCUMENTS_INSIDE, PYTHON, SHARED_INSIDE
from service import PATIENCE, Service

# How many clients are killed while they load: in the inner ring of tests, and in the outer one.
ABANDONED = [8, pytest.param(int(os.environ.get("OOODD_TESTS_ABANDONED", "40")), marks=pytest.mark.long)]
SHEET = f"{SHARED_INSIDE}/huge.fods"
# How many rows of 20 cells: an office needs some seconds to load them.
ROWS = 20_000
HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<office:document xmlns:office="urn:oasis:names:tc:opendocument:xmlns:office:1.0"
 xmlns:table="urn:oasis:names:tc:opendocument:xmlns:table:1.0"
 xmlns:text="urn:oasis:names:tc:opendocument:xmlns:text:1.0"
 office:version="1.2" office:mimetype="application/vnd.oasis.opendocument.spreadsheet">
<office:body><office:spreadsheet><table:table table:name="huge">
"""
TAIL = "</table:table></office:spreadsheet></office:body></office:document>\n"


def sheet() -> str:
    """A spreadsheet that takes seconds to load."""
    cells = (
        '<table:table-cell office:value-type="float" office:value="{0}"/>'
        '<table:table-cell office:value-type="string"><text:p>text of {0}</text:p></table:table-cell>'
    )
    rows = ("<table:table-row>" + cells.format(row) * 10 + "</table:table-row>\n" for row in range(ROWS))
    return HEAD + "".join(rows) + TAIL


def abandon(service: Service, count: int) -> list[dict[str, Any]]:
    """Have so many clients killed while they load (abandon.py), and return what came of each."""
    command = (PYTHON, f"{CLIENTS}/abandon.py", f"--tries={count}", SHEET)
    done = service.machine.run(*command, check=True, timeout=10 * count + PATIENCE)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("count", ABANDONED)
def test_the_document_of_a_client_killed_while_it_loads_is_not_seen_by_the_next(service: Service, count: int) -> None:
    """By path and by stream, visible and hidden. The client is killed at any moment, before or after the load."""
    service.configure("[pool]\nworkers = 1\nmax_uses = 1000\nmax_uses_jitter = 0\n")
    service.machine.put(SHEET, sheet())
    moment = service.machine.journal_moment()
    found = abandon(service, count)
    service.wait_idle()
    totals = service.totals()
    crashes = [line["MESSAGE"] for line in service.lines(messages.WORKER_CRASHED, moment)]
    same = [each for each in found if each["first"] == each["second"]]
    loaded = sum(each["loaded"] for each in found)
    print(f"{count} tries, {loaded} killed when the document was loaded; {len(same)} offices kept; {totals}")
    assert [each for each in found if each["found"] or each["later"] or "step" in each] == []
    assert totals["sessions"] == 2 * count
    # LibreOffice 7.4 sometimes aborts by itself when its client vanishes during a load.
    assert all("killed by signal 6" in line for line in crashes), crashes
    assert totals["crashed"] == len(crashes)
    assert totals["refused"] == totals["recycled"] == 0
    assert totals["dirty"] + totals["hung"] + totals["crashed"] == count - len(same)


@pytest.mark.parametrize("ways", [(), ("--visible",), ("--stream",), ("--stream", "--visible")], ids="-".join)
def test_a_document_left_open_is_not_seen_by_the_next_client(service: Service, ways: tuple[str, ...]) -> None:
    service.configure("[pool]\nworkers = 1\nmax_uses = 1000\n")
    moment = service.machine.journal_moment()
    for number in range(1, 4):
        steps = service.run_client(
            "convert.py", "--leave-open", *ways, f"{DOCUMENTS_INSIDE}/letter.odt", "/tmp/left.pdf"
        )
        assert steps[-1]["step"] == "stored"
        (office,) = (step for step in service.run_client("convert.py", "--office") if step["step"] == "office")
        assert office["documents"] == []
        service.wait_total("dirty", number)
    lines = [line["MESSAGE"] for line in service.lines(messages.WORKER_DIRTY, moment)]
    assert len(lines) == 3
    assert all("left open: 1 documents" in line for line in lines), lines
    totals = service.totals()
    assert totals == dict.fromkeys(totals, 0) | {"sessions": 6, "dirty": 3}
