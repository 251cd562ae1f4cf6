# SPDX-License-Identifier: LGPL-2.1-or-later
"""Third-party programs that work with an office behind a port: each does what it does on a plain office."""

import json
from pathlib import Path

import pytest

from fixtures import ROOT, made
from machine import SOURCE_TREE
from places import CLIENTS, DOCUMENTS_INSIDE, PYTHON
from plain import APPLICATION, AS_APPLICATION, HOME, PLAIN_PORT, plain_office
from service import PATIENCE, Service

pytestmark = pytest.mark.long

# What hands over bytes, and so works with the offices of the default unit, which see no files of others.
BY_STREAM = {"appy-stream"}


@pytest.fixture(scope="module")
def programs() -> Path:
    """The directory with the programs, under the same path in a machine."""
    sources = [SOURCE_TREE / "packaging" / "test-programs", CLIENTS / "programs.txt"]
    return made("programs", str(sources[0]), sources=sources)


def results(service: Service, programs: Path, port: int) -> dict[str, object]:
    """What each program's job results in, or the error that it tells."""
    names = service.machine.run(PYTHON, f"{CLIENTS}/programs.py", "--list", check=True).stdout.split()
    found: dict[str, object] = {}
    for name in names:
        command = (PYTHON, f"{CLIENTS}/programs.py", f"--port={port}", f"--programs={programs}", name)
        arguments = (f"{DOCUMENTS_INSIDE}/letter.odt", HOME)
        done = service.machine.run(*AS_APPLICATION, *command, *arguments, cwd=HOME, timeout=4 * PATIENCE)
        lines = done.stdout.splitlines()
        facts = json.loads(lines[-1]) if lines else {"error": f"status {done.returncode}: {done.stderr[-200:]}"}
        found[name] = facts.get("result", facts.get("error"))
    return found


def available(programs: Path) -> None:
    """Skip, and say what is missing, if a program could not be installed here."""
    missing = [path.parent.name for path in programs.glob("*/why-not")]
    if missing:
        pytest.skip(f"these can't be installed here: {', '.join(missing)}")


def test_each_program_does_what_it_does_on_a_plain_office(fresh_service: Service, programs: Path) -> None:
    """With the offices as the application's user, unchanged. By default, those that hand over bytes."""
    available(programs)
    service = fresh_service
    service.run_offices_as(APPLICATION)
    with plain_office(service.machine):
        expected = results(service, programs, PLAIN_PORT)
    print(json.dumps(expected, indent=1))
    if Path("/") != ROOT:  # another Debian's Python can't load what was compiled for this one's
        expected = {name: result for name, result in expected.items() if "ModuleNotFoundError" not in str(result)}
    errors = {name: result for name, result in expected.items() if isinstance(result, str)}
    assert errors == {}, "these fail on a plain office"
    service.configure(reclaims=True)
    found = results(service, programs, 2002)
    assert {name: found[name] for name in expected} == expected
    totals = service.totals()
    assert totals["crashed"] == totals["hung"] == totals["refused"] == 0

    service.machine.run("rm", f"/etc/systemd/system/ooodd-worker@.service.d/{APPLICATION}.conf", check=True)
    service.machine.run("systemctl", "daemon-reload", check=True)
    service.configure(reclaims=True)
    isolated = results(service, programs, 2002)
    print(json.dumps(isolated, indent=1))
    for name in BY_STREAM & expected.keys():
        assert isolated[name] == expected[name]
    totals = service.totals()
    assert totals["crashed"] == totals["hung"] == totals["refused"] == 0
