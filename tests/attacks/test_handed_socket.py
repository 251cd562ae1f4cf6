# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client's socket that an office has been handed is one of the machine's network: it leads nowhere else."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fixtures import boot_bare
from machine import Machine
from places import PYTHON
from scene import ATTACK, BARE, POOL, Findings, Scene, allowed, bare_office
from service import Service

SERVER_PORT = 2961
# Tells of each connection. What it brings can be nothing: the office shuts its client's socket down when that ends.
SERVER = f"""
import socket
with socket.create_server(("127.0.0.1", {SERVER_PORT})) as listener:
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
    print("listening", flush=True)
    text = ""
    while text != "end":
        connection, _ = listener.accept()
        print("connected", flush=True)
        with connection:
            text = connection.recv(100, socket.MSG_WAITALL).decode()
"""
END = f"import socket; socket.create_connection(('127.0.0.1', {SERVER_PORT})).sendall(b'end')"


@pytest.fixture(scope="module")
def scene(deb: Path, shared: dict[Path, str]) -> Iterator[Scene]:
    """The pool that hands sockets over, and a bare office."""
    with boot_bare(shared) as machine:
        machine.install(deb)
        it = Scene(machine)
        it.service.configure('[pool]\nworkers = 1\nmax_uses = 1\n[data_path]\nmode = "handoff"\n')
        it.service.start()
        with bare_office(machine):
            yield it


@contextmanager
def a_server(machine: Machine) -> Iterator[list[str]]:
    """Run a server that no office is to reach. Afterwards the list has what it was told."""
    heard: list[str] = []
    with machine.popen(PYTHON, "-c", SERVER) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "listening\n"
        yield heard
        machine.run(PYTHON, "-c", END, check=True)
        heard += server.stdout.read().split("\n")[:-2]


def attack(machine: Machine, port: int, path: str = "") -> None:
    """Make the attack. It ends its own connection, so the client fails."""
    parameter = json.dumps(["127.0.0.1", SERVER_PORT, path])
    done = machine.run("timeout", "60", PYTHON, ATTACK, f"--port={port}", "handed", parameter, cwd="/tmp", timeout=90)
    assert done.returncode == 1, (done.stdout, done.stderr)


def attack_the_pool(service: Service) -> tuple[Findings, list[str]]:
    """Return what was found, and what the server heard."""
    machine, moment = service.machine, service.machine.journal_moment()
    assert service.wait_idle()[0]["mode"] == "handoff"
    with a_server(machine) as heard:
        attack(machine, POOL)
        service.wait_idle()
        written = machine.journal("ooodd-worker@1.service", after=moment)
    (line,) = (entry["MESSAGE"] for entry in written if entry["MESSAGE"].startswith("handed "))
    found: Findings = json.loads(line.partition(" ")[2])
    return found, heard


def test_it_leads_to_no_server(scene: Scene) -> None:
    found, heard = attack_the_pool(scene.service)
    assert heard == []
    assert allowed(found) == set()
    assert found["closed"] == "True", "the attack has waited for the end of the connection"


def test_without_the_wall_it_does(scene: Scene) -> None:
    """What holds is the filter of system calls: here only connect is allowed, and then also io_uring."""
    service = scene.service
    for names, more in (("connect", set()), ("connect io_uring_setup", {"io_uring"})):
        with service.drop_in("ooodd-worker@.service", f"[Service]\nSystemCallFilter={names}\n"):
            service.stop()
            service.start()
            found, heard = attack_the_pool(service)
        assert heard == ["connected"] * 2
        assert allowed(found) == {"connect", "disconnect", "listen", "MSG_FASTOPEN"} | more
    service.stop()
    service.start()


def test_a_bare_office_of_root_may_do_all_of_it(scene: Scene) -> None:
    machine = scene.machine
    with a_server(machine) as heard:
        attack(machine, BARE, "/root/handed")
    found: Findings = json.loads(machine.read("/root/handed").partition(" ")[2])
    assert allowed(found) == set(found)
    assert heard == ["connected"] * 2
