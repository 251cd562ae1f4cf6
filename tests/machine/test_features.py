# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an office does beside converting: an office of the default unit does what a plain one does."""

import json

from places import CLIENTS, PYTHON
from plain import APPLICATION, PLAIN_PORT, plain_office
from service import PATIENCE, Service


def features(service: Service, port: int) -> dict[str, dict[str, object]]:
    """What comes of each."""
    command = (PYTHON, f"{CLIENTS}/features.py", f"--port={port}")
    done = service.machine.run(*command, cwd="/tmp", check=True, timeout=6 * PATIENCE)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {each.pop("name"): each for each in found}


def test_the_sandbox_takes_no_feature_away(fresh_service: Service) -> None:
    """Spelling, fonts, templates, printing, scripts, Java, databases, filters, signatures, programs of the client's."""
    service = fresh_service
    service.machine.run("useradd", APPLICATION, check=True)
    with plain_office(service.machine):
        expected = features(service, PLAIN_PORT)
    found = features(service, 2002)
    lacking = {name: each["error"] for name, each in expected.items() if "error" in each}
    print(f"{len(found) - len(lacking)} features; this LibreOffice lacks {json.dumps(lacking, indent=1)}")
    assert {name for name in found if found[name].keys() != expected[name].keys()} == set()
    assert {name: each for name, each in found.items() if "result" in each and each != expected[name]} == {}
    assert len(lacking) < len(expected) / 3
