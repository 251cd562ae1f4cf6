# SPDX-License-Identifier: LGPL-2.1-or-later
"""Documents of a hostile sender: no request leaves, no macro runs, and nothing of the machine is in the result."""

import itertools
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deadline import until
from fixtures import boot_bare
from machine import Machine
from places import PYTHON
from scene import BARE, POOL, Scene, bare_office
from service import PATIENCE

HOSTILE = str(Path(__file__).with_name("hostile.py"))
SERVER = "127.0.0.1:8099"
NUMBERS = itertools.count()
SECRETS = ["/etc/app/report.txt", "/srv/app/report.txt"]
TEXT = "a secret of the machine"
# Width and height of the picture beside it.
SIZE = ["20", "20"]
LOG = "/tmp/requests"
PICTURE = """import struct, sys, zlib
def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
rows = b"".join(b"\\0" + bytes(range(60)) for _ in range(20))
header = struct.pack(">IIBBBBB", 20, 20, 8, 2, 0, 0, 0)
chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
sys.stdout.buffer.write(b"\\x89PNG\\r\\n\\x1a\\n" + b"".join(chunks))
"""


@pytest.fixture(scope="module", params=["default", "application's user"])
def scene(request: pytest.FixtureRequest, deb: Path, shared: dict[Path, str]) -> Iterator[Scene]:
    """The pool and a bare office, a server of the attacker, and files that every user of the machine may read."""
    with boot_bare(shared) as machine:
        machine.install(deb)
        for secret in SECRETS:
            machine.put(secret, f"{TEXT}\n")
            picture = str(Path(secret).with_suffix(".png"))
            machine.run("sh", "-c", f'{PYTHON} -c "$0" >{picture}', PICTURE, check=True)
        it = Scene(machine, as_user=request.param != "default")
        if it.as_user:
            it.service.run_offices_as("app")
        it.service.configure("[pool]\nworkers = 1\nmax_uses = 1\n")
        with bare_office(machine), server(machine):
            yield it


@contextmanager
def server(machine: Machine) -> Iterator[None]:
    """Run an HTTP server that notes each request."""
    host, port = SERVER.split(":")
    serve = f"exec {PYTHON} -u -m http.server --directory /usr/share/doc --bind {host} {port} >{LOG} 2>&1"
    with machine.popen("sh", "-c", serve, cwd="/tmp", stdin=subprocess.DEVNULL) as process:
        until(lambda: machine.run("bash", "-c", f"</dev/tcp/{host}/{port}").returncode == 0, PATIENCE, "the server")
        yield
        process.kill()


def converted(scene: Scene, port: int, way: str, secret: str) -> tuple[dict[str, dict[str, Any]], str]:
    """What becomes of each document, and the requests that the server has got meanwhile."""
    scene.machine.run("sh", "-c", f": >{LOG}", check=True)
    # An office asks only once for an address that it has not found.
    fresh = f"{SERVER}/{next(NUMBERS)}"
    command = (PYTHON, HOSTILE, f"--port={port}", f"--way={way}", fresh, secret)
    done = scene.machine.run(*command, cwd="/tmp", check=True, timeout=120)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {each["document"]: each for each in found}, scene.machine.read(LOG)


def version(scene: Scene) -> int:
    """LibreOffice's, 7 or 25."""
    shown = scene.machine.run("dpkg-query", "-W", "-f", "${Version}", "libreoffice-core", check=True).stdout
    return int(shown.partition(":")[2].partition(".")[0])


@pytest.mark.parametrize("way", ["office", "path"])
@pytest.mark.parametrize("secret", SECRETS)
def test_nothing_leaves_and_nothing_comes_in(scene: Scene, way: str, secret: str) -> None:
    if (way == "path") != scene.as_user and secret != SECRETS[0]:
        pytest.skip("the application's user sees this file: docs/security.md" if scene.as_user else "it sees no file")
    bare, requests = converted(scene, BARE, way, secret)
    wanted = {"picture.png", "section.txt", "object.odt", *(["range.csv", "service"] if way == "office" else [])}
    assert {path for path in wanted if path in requests} == wanted, "on a bare office each of them asks the server"
    assert TEXT in bare["section of the machine"]["text"]
    if way == "office" and version(scene) < 25:  # else nobody has said that it may
        assert TEXT in bare["range of the machine"]["text"]
    assert SIZE in bare["picture of the machine"]["pictures"]

    found, requests = converted(scene, POOL, way, secret)
    assert requests == ""
    assert set(found) == set(bare)
    # What LibreOffice does not count among untrusted links, in an office that sees the file: docs/security.md.
    known = {"section of the machine"} if scene.as_user and secret == SECRETS[1] else set()
    for name, each in found.items():
        assert name in known or TEXT not in each.get("text", ""), name
        assert "the macro has run" not in each.get("text", ""), name
        assert SIZE not in each.get("pictures", []), name
