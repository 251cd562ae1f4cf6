# SPDX-License-Identifier: LGPL-2.1-or-later
"""Documents that people have made, of all kinds: through ooodd they become what they become on a plain office."""

import json
from pathlib import Path
from typing import Any

import pytest

from fixtures import made
from machine import SOURCE_TREE
from places import CLIENTS, PYTHON
from plain import APPLICATION, PLAIN_PORT, plain_office
from service import Service, show_to_offices

pytestmark = pytest.mark.long

AT_ONCE = 4
# How long a plain office may take for a document, in seconds; through ooodd, with four at once, it may take longer.
LIMIT = 60


@pytest.fixture(scope="module")
def corpus() -> list[Path]:
    """The documents, under the same paths in a machine."""
    source = SOURCE_TREE / "packaging" / "test-corpus"
    directory = made("corpus", str(source), sources=[source])
    if (directory / "why-not").exists():
        pytest.skip((directory / "why-not").read_text())
    return sorted(directory.iterdir())


def converted(service: Service, port: int, way: str, documents: list[Path], *, at_once: int) -> dict[str, Any]:
    """What becomes of each document, by its name."""
    limit = LIMIT if at_once == 1 else LIMIT * at_once
    options = (f"--port={port}", f"--at-once={at_once}", f"--limit={limit}", way)
    command = ("timeout", "3000", PYTHON, f"{CLIENTS}/corpus.py", *options)
    names = "".join(f"{document}\n" for document in documents)
    done = service.machine.run(*command, input=names, cwd="/tmp", check=True, timeout=3000)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {each.pop("document"): each for each in found}


@pytest.mark.parametrize("way", ["path", "office", "client"])
def test_a_document_becomes_what_it_becomes_on_a_plain_office(
    fresh_service: Service, corpus: list[Path], way: str
) -> None:
    """Pages, text and pictures, or the error. Four at once, with default settings."""
    service = fresh_service
    show_to_offices(service.machine, str(corpus[0].parent))
    service.machine.run("useradd", APPLICATION, check=True)
    with plain_office(service.machine):
        expected = converted(service, PLAIN_PORT, way, corpus, at_once=1)
    finished = [path for path in corpus if expected[path.name].get("error") != "limit"]
    found = converted(service, 2002, way, finished, at_once=AT_ONCE)
    differ = {name: (expected[name], found[name]) for name in found if found[name] != expected[name]}
    good = [name for name in found if "pages" in found[name]]
    kinds = {name.rpartition(".")[2] for name in good}
    print(
        f"{way}: {len(good)} of {len(corpus)} documents, of {len(kinds)} kinds; {len(corpus) - len(finished)} too slow"
    )
    print(json.dumps({name: each["error"] for name, each in found.items() if "error" in each}, indent=1))
    assert differ == {}
    # LibreOffice 25.2 aborts on most streams that the client implements, a plain one too: docs/clients.md.
    if way != "client":
        assert len(good) >= 45
        assert len(kinds) >= 12
    service.wait_idle()
