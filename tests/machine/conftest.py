# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures for tests on a booted machine: the package that is in dist/, the documents, the clients, and machines.

``OOODD_TESTS_ROOT`` names another root directory for the machines, such as a Debian 13 from debootstrap with what the
package and the clients need installed in it.

``OOODD_TESTS_SUBSET`` set to anything but "machine" leaves this directory's tests out. Without it they run, and where
no machine can be booted the whole run fails and says why: a test that did not run is not a test that passed.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from machine import SOURCE_TREE, Machine, missing
from places import CLIENTS, CLIENTS_INSIDE, DOCUMENTS_INSIDE, PYTHON
from service import Service

TESTS = SOURCE_TREE / "tests"
ROOT = Path(os.environ.get("OOODD_TESTS_ROOT", "/"))

if os.environ.get("OOODD_TESTS_SUBSET", "machine") != "machine":
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_finish(session: pytest.Session) -> None:
    """End the run before its first test if tests want a machine and there can be none."""
    here = Path(__file__).parent
    if not session.config.option.collectonly and any(here in item.path.parents for item in session.items):
        reason = missing(ROOT)
        if reason is not None:
            pytest.exit(f"no test machine can be booted here: {reason}", returncode=1)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Add to a failed test's report what the journal of its machine got since the test began."""
    outcome: Any = yield
    report = outcome.get_result()
    machine, moment = item.stash.get(JOURNAL_SINCE, (None, ""))
    if report.failed and machine is not None:
        try:
            report.sections.append(("the machine's journal", machine.journal_tail(200, after=moment)))
        except (OSError, RuntimeError) as error:
            report.sections.append(("the machine's journal", f"can't be read: {error}"))


JOURNAL_SINCE = pytest.StashKey[tuple[Machine, str]]()


@pytest.fixture(autouse=True)
def journal_in_report(request: pytest.FixtureRequest) -> None:
    """Note where the machine's journal is when a test begins."""
    for name in ("machine", "fresh_machine", "bare_machine"):
        if name in request.fixturenames:
            machine: Machine = request.getfixturevalue(name)
            request.node.stash[JOURNAL_SINCE] = (machine, machine.journal_moment())


@pytest.fixture(scope="session")
def deb() -> Path:
    """The package under test: the one that ``make deb`` left."""
    found = sorted((SOURCE_TREE / "dist").glob("ooodd_*.deb"))
    if len(found) != 1:
        pytest.fail(f"dist/ has to hold one ooodd_*.deb, it has {[path.name for path in found]}: run make deb")
    return found[0]


def made(name: str, *command: str, sources: list[Path]) -> Path:
    """The directory that a command fills, below build/; made again when one of its sources, or Debian, has changed.

    It gets its name when it is complete: an interrupted run, or another one at the same time, does no harm.

    :param command: gets the directory as its last argument.
    """
    release = Path("/etc/debian_version")
    key = hashlib.sha256(b"".join(source.read_bytes() for source in (release, *sources))).hexdigest()[:16]
    directory = SOURCE_TREE / "build" / "tests" / f"{name}-{key}"
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=directory.parent))
        new.chmod(0o755)
        done = subprocess.run([*command, str(new)], capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0:
            pytest.fail(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        with suppress(OSError):  # another run has just made it
            new.rename(directory)
    return directory


@pytest.fixture(scope="session")
def documents() -> Path:
    """The test documents on the host; every machine has them in DOCUMENTS_INSIDE, read-only."""
    make = TESTS / "documents" / "make.py"
    return made("documents", PYTHON, str(make), sources=sorted(make.parent.glob("*.py")))


@pytest.fixture(scope="session")
def expected_pages(documents: Path) -> dict[str, int]:
    """How many pages the PDF of each document has, by the document's file name."""
    pages: dict[str, int] = json.loads((documents / "expected.json").read_text())
    return pages


@pytest.fixture(scope="session")
def built_clients() -> Path:
    """The Java and C++ clients, built; every machine has them in CLIENTS_INSIDE (see tests/clients/build.py)."""
    build = CLIENTS / "build.py"
    sources = [build, CLIENTS / "java" / "Convert.java", CLIENTS / "cpp" / "convert.cpp"]
    return made("clients", PYTHON, str(build), sources=sources)


@pytest.fixture(scope="session")
def shared(documents: Path, built_clients: Path) -> dict[Path, str]:
    """What every machine sees of the host beside the source tree."""
    return {documents: DOCUMENTS_INSIDE, built_clients: CLIENTS_INSIDE}


@pytest.fixture(scope="session")
def machine(deb: Path, shared: dict[Path, str]) -> Iterator[Machine]:
    """One machine for the whole run, with the package installed. A test leaves it as it found it."""
    with Machine.boot(ROOT, share=shared) as booted:
        booted.install(deb)
        yield booted


@pytest.fixture
def fresh_machine(bare_machine: Machine, deb: Path) -> Machine:
    """A machine of the test's own with the package installed, to break at will. Takes some seconds."""
    bare_machine.install(deb)
    return bare_machine


@pytest.fixture
def bare_machine(shared: dict[Path, str]) -> Iterator[Machine]:
    """A machine of the test's own without the package."""
    with Machine.boot(ROOT, share=shared) as booted:
        yield booted


@pytest.fixture
def service(machine: Machine) -> Iterator[Service]:
    """The service on the shared machine, with all defaults and nothing running but its socket; stopped afterwards."""
    it = Service(machine)
    it.configure()
    yield it
    it.stop()
    assert machine.run("pgrep", "-x", "soffice.bin").stdout == "", "offices left"


@pytest.fixture
def fresh_service(fresh_machine: Machine) -> Service:
    """The service on a machine of the test's own, as the package's installation left it."""
    return Service(fresh_machine)
