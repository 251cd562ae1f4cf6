# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures for tests on a booted machine: the package that is in dist/, the documents, the clients, and machines.

``OOODD_TESTS_ROOT`` names another root directory for the machines, such as the Debian 13 that `make tests-root` makes.

``OOODD_TESTS_SUBSET`` set to anything but "machine" leaves this directory's tests out. Otherwise they run. Where no
machine can be booted, the whole run fails and says why: a test that did not run has not passed.
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

from keeper import V1_TREES, cgroup2_mount
from machine import SOURCE_TREE, Machine, missing
from places import CLIENTS, CLIENTS_INSIDE, DOCUMENTS_INSIDE, PYTHON, SHARED_INSIDE
from service import Service, show_to_offices

TESTS = SOURCE_TREE / "tests"
READABLE = 0o022
"""The umask for files that the machine's users read, whatever the caller's is."""
ROOT = Path(os.environ.get("OOODD_TESTS_ROOT", "/"))

# pytest's name for what a directory leaves out.
if os.environ.get("OOODD_TESTS_SUBSET", "machine") != "machine":
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_finish(session: pytest.Session) -> None:
    """End the run before its first test if a test needs a machine and none can be booted here."""
    here = {TESTS / "machine", TESTS / "attacks"}
    if not session.config.option.collectonly and any(here & {*item.path.parents} for item in session.items):
        reason = missing(ROOT)
        if reason is not None:
            pytest.exit(f"no test machine can be booted here: {reason}", returncode=1)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Add the journal of the machine, since the test began, to the report of a failed test."""
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
    """Note the time at which a test begins, for the journal in its report."""
    for name in ("machine", "fresh_machine", "bare_machine", "limited_machine"):
        if name in request.fixturenames:
            machine: Machine = request.getfixturevalue(name)
            request.node.stash[JOURNAL_SINCE] = (machine, machine.journal_moment())


@pytest.fixture(scope="session")
def deb() -> Path:
    """The package under test, built by ``make deb``."""
    found = sorted((SOURCE_TREE / "dist").glob("ooodd_*.deb"))
    if len(found) != 1:
        pytest.fail(f"dist/ has to hold one ooodd_*.deb, it has {[path.name for path in found]}: run make deb")
    return found[0]


def made(name: str, *command: str, sources: list[Path]) -> Path:
    """A directory below build/ that a command fills. It is made again when one of its sources, or Debian, has changed.

    The directory gets its name when it is complete. So an interrupted run, or one at the same time, does no harm.

    :param command: gets the directory as its last argument.
    """
    release = Path("/etc/debian_version")
    key = hashlib.sha256(b"".join(source.read_bytes() for source in (release, *sources))).hexdigest()[:16]
    directory = SOURCE_TREE / "build" / "tests" / f"{name}-{key}"
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=directory.parent))
        new.chmod(0o755)
        done = subprocess.run(
            [*command, str(new)], capture_output=True, text=True, timeout=300, check=False, umask=READABLE
        )
        if done.returncode != 0:
            pytest.fail(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        with suppress(OSError):  # another run has just made it
            new.rename(directory)
    return directory


@pytest.fixture(scope="session")
def documents() -> Path:
    """The test documents on the host. Every machine has them in DOCUMENTS_INSIDE, read-only."""
    make = TESTS / "documents" / "make.py"
    return made("documents", PYTHON, str(make), sources=sorted(make.parent.glob("*.py")))


@pytest.fixture(scope="session")
def expected_pages(documents: Path) -> dict[str, int]:
    """The page count of each document's PDF, by the document's file name."""
    pages: dict[str, int] = json.loads((documents / "expected.json").read_text())
    return pages


@pytest.fixture(scope="session")
def built_clients() -> Path:
    """The built Java and C++ clients (tests/clients/build.py). Every machine has them in CLIENTS_INSIDE."""
    build = CLIENTS / "build.py"
    code = [path for place in (CLIENTS / "java", CLIENTS / "cpp", SOURCE_TREE / "examples") for path in place.iterdir()]
    sources = [build, *sorted(path for path in code if path.suffix in {".java", ".cpp"})]
    return made("clients", PYTHON, str(build), sources=sources)


@pytest.fixture(scope="session")
def shared(documents: Path, built_clients: Path) -> dict[Path, str]:
    """The directories of the host that every machine sees, beside the source tree."""
    return {documents: DOCUMENTS_INSIDE, built_clients: CLIENTS_INSIDE}


def boot_bare(shared: dict[Path, str], *, hybrid: bool = False) -> Machine:
    """Boot a machine without the package, even if the host has it. In a hybrid one all limits hold."""
    booted = Machine.boot(ROOT, share=shared, hybrid=hybrid)
    booted.run("dpkg", "--purge", "ooodd")
    booted.run("mkdir", "-p", SHARED_INSIDE, check=True)
    show_to_offices(booted, DOCUMENTS_INSIDE, SHARED_INSIDE)
    return booted


@pytest.fixture(scope="session")
def machine(deb: Path, shared: dict[Path, str]) -> Iterator[Machine]:
    """One machine for the whole run, with the package installed. A test must leave it as it found it."""
    with boot_bare(shared) as booted:
        booted.install(deb)
        yield booted


@pytest.fixture
def limited_machine(deb: Path, shared: dict[Path, str]) -> Iterator[Machine]:
    """A machine for one test, with the package installed, where MemoryMax=, TasksMax= and CPUWeight= hold.

    The controllers are in version 1 or in version 2 of control groups. Within a machine, as `make fresh` has one, there
    is only version 2, and it may be without.
    """
    mounted = cgroup2_mount()
    hybrid = mounted is not None and all((mounted.parent / tree).is_dir() for tree in V1_TREES)
    with boot_bare(shared, hybrid=hybrid) as booted:
        absent = [name for name in ("memory", "pids", "cpu") if not booted.has_controller(name)]
        if absent and not hybrid:
            pytest.skip(f"no controllers in this machine: {', '.join(absent)}")
        assert not absent, f"no controllers on this host: {', '.join(absent)}"
        booted.install(deb)
        yield booted


@pytest.fixture
def fresh_machine(bare_machine: Machine, deb: Path) -> Machine:
    """A machine for one test, with the package installed. The test may break it. Takes some seconds."""
    bare_machine.install(deb)
    return bare_machine


@pytest.fixture
def bare_machine(shared: dict[Path, str]) -> Iterator[Machine]:
    """A machine for one test, without the package."""
    with boot_bare(shared) as booted:
        yield booted


@pytest.fixture
def service(machine: Machine) -> Iterator[Service]:
    """The service on the shared machine: all defaults, only the socket runs. It is stopped afterwards."""
    it = Service(machine)
    it.configure()
    yield it
    it.stop()
    assert machine.run("pgrep", "-x", "soffice.bin").stdout == "", "offices left"


@pytest.fixture
def fresh_service(fresh_machine: Machine) -> Service:
    """The service on a machine for one test, as the installation of the package left it."""
    return Service(fresh_machine)
