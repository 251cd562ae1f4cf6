# SPDX-License-Identifier: LGPL-2.1-or-later
"""What code in an office can reach: nothing. Each attack succeeds on a bare office in the same machine."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fixtures import boot_bare
from machine import read_line
from places import DOCUMENTS_INSIDE, PYTHON
from scene import BARE, POOL, PRIVATE, SECRETS, Scene, allowed, bare_office, plant
from service import PATIENCE

PEERS = [
    *("/run/dbus/system_bus_socket", "/run/ooodd/control", "/run/systemd/journal/dev-log", "/run/systemd/notify"),
    *("/run/systemd/journal/socket", "/run/systemd/private", "/run/systemd/userdb/io.systemd.DynamicUser"),
]
# What an office of the pool sees of these directories, by default.
VISIBLE = (
    *("/etc/alternatives/", "/etc/firebird/", "/etc/fonts/", "/etc/hsqldb.properties"),
    *("/etc/ld.so.cache", "/etc/libreoffice/", "/etc/localtime", "/etc/ooodd/registry.d/", "/etc/ooodd-profiles/"),
    *("/etc/papersize", "/etc/timezone", "/usr/local/share/fonts/", "/var/cache/fontconfig/"),
    *("/var/spool/libreoffice/", "/run/ooodd-worker/", f"{DOCUMENTS_INSIDE}/"),
    "/etc/java-",
    # What systemd 257 puts there, of what is in /usr anyway.
    "/run/host/.os-release-stage/os-release",
)
ROOTS = ["/boot", "/etc", "/home", "/media", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp", "/usr/local", "/var"]
# Attacks of which nothing is allowed.
ATTACKS = ["devices", "ipc", "kernel", "keyring", "mounts", "namespaces", "networks", "privileges"]


@contextmanager
def a_scene(deb: Path, shared: dict[Path, str], *, as_user: bool) -> Iterator[Scene]:
    """The pool and a bare office, on a machine with things worth an attack."""
    with boot_bare(shared) as machine:
        machine.install(deb)
        plant(machine)
        it = Scene(machine, as_user=as_user)
        if as_user:
            it.service.run_offices_as("app")
        it.service.configure("[pool]\nworkers = 2\nmin_workers = 2\nmax_uses = 1\n")
        it.service.start()
        with bare_office(machine):
            yield it


@pytest.fixture(scope="module")
def scene(deb: Path, shared: dict[Path, str]) -> Iterator[Scene]:
    """The pool by default."""
    with a_scene(deb, shared, as_user=False) as it:
        yield it


@pytest.fixture(scope="module")
def shared_user(deb: Path, shared: dict[Path, str]) -> Iterator[Scene]:
    """The pool, with offices that run as the application's user."""
    with a_scene(deb, shared, as_user=True) as it:
        yield it


@pytest.fixture(params=["default", "application's user"])
def either(request: pytest.FixtureRequest) -> Scene:
    """Either of them."""
    chosen: Scene = request.getfixturevalue("scene" if request.param == "default" else "shared_user")
    return chosen


@pytest.mark.parametrize("name", ATTACKS)
def test_the_kernel_and_the_network_are_out_of_reach(either: Scene, name: str) -> None:
    control = either.attack(BARE, name, 77)
    assert allowed(control) == set(control), "what a bare office can't do shows nothing"
    found = either.attack(POOL, name, 77)
    assert allowed(found) == set()
    assert set(found) >= set(control) or name == "devices"


def test_no_server_is_reached(either: Scene) -> None:
    addresses = [["127.0.0.1", POOL], ["127.0.0.1", BARE]]
    assert len(allowed(either.attack(BARE, "tcp", addresses))) == 2
    assert allowed(either.attack(POOL, "tcp", addresses)) == set()


def test_no_socket_of_another_service_is_reached(either: Scene) -> None:
    moment = either.machine.journal_moment()
    assert allowed(either.attack(POOL, "peers", PEERS)) == set()
    assert either.attack(POOL, "all_sockets") == {}
    assert "MESSAGE=attack" not in str(either.machine.journal(None, after=moment))
    assert allowed(either.attack(BARE, "peers", PEERS)) == set(PEERS)
    assert set(either.attack(BARE, "all_sockets")) >= set(PEERS)


def test_no_other_process_is_touched(either: Scene) -> None:
    service = either.service
    neighbour, other = (worker["pid"] for worker in service.wait_idle())
    sleep = ("sh", "-c", "echo $$; exec sleep infinity")
    with either.machine.popen(*sleep, stdin=subprocess.DEVNULL) as sleeper:
        theirs = int(read_line(sleeper, PATIENCE))
        pids = [1, service.main_pid(), theirs, neighbour, other]
        found = either.attack(POOL, "processes", pids)
        control = either.attack(BARE, "processes", pids)
        sleeper.kill()
    # One of the two is the attacker's own.
    own = next((str(pid) for pid in (neighbour, other) if f"{pid} seen" in allowed(found)), "")
    reached = {what for what in allowed(found) if what.split()[0] != own}
    assert len(allowed(control)) > 20
    # Offices of one user may send each other signals: docs/security.md.
    signals = {f"{pid} {what}" for pid in (neighbour, other) for what in ("signal", "priority")}
    assert reached <= (signals if either.as_user else set())


def test_no_file_of_the_machine_is_read(scene: Scene) -> None:
    paths = [*SECRETS, PRIVATE]
    assert allowed(scene.attack(BARE, "read", paths)) == set(paths)
    assert allowed(scene.attack(POOL, "read", paths)) == set()
    assert len(scene.attack(BARE, "walk", ["/etc", "/var/lib/dpkg"])) > 1000
    seen = scene.attack(POOL, "walk", ROOTS)
    assert [path for path in seen if not path.startswith(VISIBLE)] == []
    assert seen, "it does see its own"


def test_no_private_file_of_others_is_read_by_the_applications_user(shared_user: Scene) -> None:
    where_applications_have_files = ("/home/", "/media/", "/mnt/", "/opt/", "/srv/", "/tmp/", "/var/")
    expected = {path for path in SECRETS if path.startswith(where_applications_have_files)}
    assert allowed(shared_user.attack(POOL, "read", [*SECRETS, PRIVATE])) == expected
    assert len(expected) < len(SECRETS)


def test_nothing_is_written_but_its_own(scene: Scene) -> None:
    assert {"/", "/etc", "/run", "/usr", "/var/lib"} <= allowed(scene.attack(BARE, "write"))
    found = scene.attack(POOL, "write")
    assert [path for path in found if not path.startswith("/run/ooodd-worker/home")] == []
    assert found, "it can write its own"


def test_the_applications_user_writes_no_more_than_before(shared_user: Scene) -> None:
    found = shared_user.attack(POOL, "write")
    own = ("/home/app", "/run/ooodd-worker/home", "/tmp", "/var/tmp")
    assert [path for path in found if not path.startswith(own)] == []
    assert {"/tmp", "/var/tmp"} <= set(found)


def test_what_others_need_is_not_filled(scene: Scene) -> None:
    shared = ["/run", "/run/lock", "/tmp", "/var/tmp", "/dev/shm", "/run/ooodd-worker", "/etc", "/etc/ooodd-profiles"]
    assert allowed(scene.attack(POOL, "fill", shared)) == set()
    assert allowed(scene.attack(BARE, "fill", shared[:5])) == set(shared[:5])


def test_no_program_of_its_own_runs(scene: Scene) -> None:
    assert allowed(scene.attack(BARE, "execute"))
    assert allowed(scene.attack(POOL, "execute")) == set()


# It is a pipe, or the socket of the acceptor.
CONNECT = """
import socket, sys
kind = socket.SOCK_SEQPACKET if sys.argv[1].endswith("/clients") else socket.SOCK_STREAM
socket.socket(socket.AF_UNIX, kind).connect(sys.argv[1])
"""


def test_nobody_reaches_an_office_past_the_broker(scene: Scene) -> None:
    """Not even a member of the broker's group."""
    machine = scene.machine
    machine.run("useradd", "--groups", "ooodd", "insider", check=True)
    number = scene.service.wait_idle()[0]["id"]
    names = ("-name", "OSL_PIPE_*_uno", "-o", "-name", "clients")
    pipe = machine.run("find", f"/run/ooodd-worker/{number}", *names, check=True).stdout.strip()
    connect = (PYTHON, "-c", CONNECT, pipe)
    assert "PermissionError" in machine.run(*connect, user="insider").stderr
    machine.run("chmod", "750", f"/run/ooodd-worker/{number}", check=True)
    assert machine.run(*connect, user="insider").returncode == 0, "with another mode"
    machine.run("chmod", "700", f"/run/ooodd-worker/{number}", check=True)
