# SPDX-License-Identifier: LGPL-2.1-or-later
"""The package is upgraded from 0.2, downgraded to 0.2, removed and purged, while clients have sessions and wait."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from command import Command
from deadline import until
from machine import INSTALL_TIMEOUT, SOURCE_TREE, Machine
from ooodd import messages
from service import CONFIGURATION, PATIENCE, Service, await_step, client_error, finish

WORKERS = 4


@pytest.fixture(scope="session")
def old_deb() -> Path:
    """The package of 0.2, built from its commit; it calls itself 0.1.0."""
    build = str(SOURCE_TREE / "packaging" / "previous-deb")
    done = subprocess.run([build], capture_output=True, encoding="utf-8", timeout=600, check=False)
    if done.returncode != 0:
        pytest.fail(done.stderr)
    return Path(done.stdout.strip())


@pytest.fixture
def old_service(bare_machine: Machine, old_deb: Path) -> Service:
    """0.2 on a machine of the test's own. It knows no reclaim_after: configure it with ``reclaims=True``."""
    bare_machine.install(old_deb)
    assert version(bare_machine) == "ooodd 0.1.0"
    return Service(bare_machine)


def version(machine: Machine) -> str:
    return machine.run("ooodd", "--version", check=True).stdout.strip()


def show(service: Service, name: str) -> str:
    return service.machine.run("systemctl", "show", "-P", name, "ooodd.service", check=True).stdout.strip()


def numbers(service: Service, moment: str) -> list[int]:
    """The numbers of the sessions that have begun since."""
    return [int(line["OOODD_SESSION"]) for line in service.lines(messages.SESSION_BEGIN, moment)]


def nothing_is_wrong(service: Service, moment: str) -> None:
    """No error of ooodd's own is in the journal, and no unit has failed."""
    entries = service.machine.journal(None, "SYSLOG_IDENTIFIER=ooodd", after=moment)
    lines = [entry["MESSAGE"] for entry in entries]
    assert [line for line in lines if "Traceback" in line or re.search(r"\b(Key|Value|Type)Error\b", line)] == []
    assert service.lines(messages.INTERNAL_ERROR, moment) == []
    assert service.machine.run("systemctl", "--failed", "--no-legend", "--plain").stdout == ""


def all_stops(service: Service) -> None:
    """The service can be stopped, which leaves no office and nothing in the store."""
    service.stop()
    assert service.machine.run("pgrep", "-x", "soffice.bin").stdout == ""
    assert int(show(service, "NFileDescriptorStore")) == 0


@contextmanager
def dpkg(machine: Machine, *arguments: str) -> Iterator[Command]:
    """A dpkg at work; it has to succeed in the end."""
    with machine.popen("dpkg", *arguments, env={"DEBIAN_FRONTEND": "noninteractive"}) as process:
        yield process
        output, errors = process.communicate(timeout=INSTALL_TIMEOUT)
        assert process.returncode == 0, output + errors


@contextmanager
def installation(machine: Machine, deb: Path) -> Iterator[Command]:
    """The installation of a package at work."""
    machine.copy_in(deb, f"/tmp/{deb.name}")
    with dpkg(machine, "--install", f"/tmp/{deb.name}") as process:
        yield process


@pytest.mark.long
def test_sessions_and_waiting_clients_of_0_2_outlive_the_upgrade(old_service: Service, deb: Path) -> None:
    service = old_service
    service.configure(f"[pool]\nworkers = {WORKERS}\nmin_workers = {WORKERS}\n", reclaims=True)
    first = service.machine.journal_moment()
    for _ in range(3):
        service.serves()
    holders = [service.holding_client() for _ in range(WORKERS)]
    waiting = [service.waiting_client() for _ in range(3)]
    before, old, moment = service.totals(), service.main_pid(), service.machine.journal_moment()
    given = numbers(service, first)
    service.machine.install(deb)
    until(lambda: service.main_pid() not in (0, old) and service.status_if_running(), PATIENCE, "the new broker")
    assert service.lines(messages.SESSION_LOST, moment) == []
    assert service.lines(messages.CLIENT_LOST, moment) == []
    assert [finish(client)[0].get("pid") for client, _ in holders] == [office["pid"] for _, office in holders]
    assert [client_error(client) for client in waiting] == [""] * 3
    assert service.serves()
    assert min(numbers(service, moment)) > max(given), "session numbers begin anew"
    service.wait_total("sessions", before["sessions"] + 4)
    assert len(service.lines(messages.SESSION_END, first)) == before["sessions"] + 4
    nothing_is_wrong(service, first)
    all_stops(service)


@pytest.mark.long
def test_clients_at_work_do_not_notice_the_upgrade_from_0_2(old_service: Service, deb: Path) -> None:
    """Clients of pyuno amid their calls; the whole queue moves on."""
    service = old_service
    service.configure("[pool]\nworkers = 2\nmin_workers = 2\n", reclaims=True)
    moment = service.machine.journal_moment()
    service.start()
    service.wait_whole(2)
    with service.herd(6) as herd:
        service.wait_queue(4)
        service.machine.install(deb)
        ended = [session.number for session in herd.sessions() if session.ended]
        until(lambda: sum(1 for s in herd.sessions() if s.ended) >= len(ended) + 12, PATIENCE, "sessions after it")
        sessions = herd.stop()
    lost = service.lines(messages.SESSION_LOST, moment) + service.lines(messages.CLIENT_LOST, moment)
    assert [session for session in sessions if session.error] == []
    assert lost == []
    found = numbers(service, moment)
    assert found == sorted(set(found)), "a session's number was given twice, or not in order"
    service.wait_total("sessions", len(sessions))
    nothing_is_wrong(service, moment)
    all_stops(service)


@pytest.mark.long
def test_a_call_under_way_outlives_the_upgrade_from_0_2(old_service: Service, deb: Path) -> None:
    """An office that computes for its client, with no byte on the wire."""
    service = old_service
    service.configure('[pool]\nworkers = 1\n[session]\ngrace = "1s"\n', reclaims=True)
    client = service.client("crash.py", "basic-loop")
    await_step(client, "faulting")
    (worker,) = (worker for worker in service.workers() if worker["client"])
    moment = service.machine.journal_moment()
    service.machine.install(deb)
    until(service.status_if_running, PATIENCE, "the new broker")
    assert [each["pid"] for each in service.workers() if each["client"]] == [worker["pid"]]
    assert client.poll() is None
    client.release()
    assert service.serves() != worker["pid"], "an office that hangs has a second client"
    nothing_is_wrong(service, moment)


@pytest.mark.long
@pytest.mark.parametrize("in_order", [True, False], ids=["in-order", "cut-off"])
def test_a_downgrade_to_0_2_stops_in_order_and_0_2_serves(
    fresh_service: Service,
    old_deb: Path,
    in_order: bool,  # noqa: FBT001
) -> None:
    """The code of 0.2 is fixed. So this version's prerm sees to it that 0.2 finds nothing in the store."""
    service, machine = fresh_service, fresh_service.machine
    text = f'[pool]\nworkers = 2\n[session]\ndrain_timeout = "{"60s" if in_order else "1s"}"\n'
    service.configure(text)
    holders = [service.holding_client() for _ in range(2)]
    waiting = [service.waiting_client() for _ in range(2)]
    moment = machine.journal_moment()
    with installation(machine, old_deb) as process:
        for client in waiting:
            assert client_error(client).startswith("ooodd: the service is stopping")
        machine.put(CONFIGURATION, text)  # without what 0.2 does not know
        if not in_order:
            process.wait(INSTALL_TIMEOUT)
        errors = [client_error(client) for client, _ in holders]
    assert [error == "" for error in errors] == [in_order] * 2, errors
    assert version(machine) == "ooodd 0.1.0"
    assert int(show(service, "NFileDescriptorStore")) == 0
    assert service.serves() not in [office["pid"] for _, office in holders]
    assert service.totals()["sessions"] == 1
    nothing_is_wrong(service, moment)
    all_stops(service)


def test_an_upgrade_does_not_stop_the_service(service: Service) -> None:
    """The script that stops it for a downgrade is called for an upgrade, and for the same version, as well."""
    service.serves()
    old = service.main_pid()
    for newer in ("99", service.machine.run("dpkg-query", "-Wf", "${Version}", "ooodd", check=True).stdout):
        service.machine.run("/var/lib/dpkg/info/ooodd.prerm", "upgrade", newer, check=True)
        assert service.main_pid() == old


def test_a_downgrade_stops_the_service_first(service: Service) -> None:
    """The same script, as dpkg calls it before it unpacks an older version."""
    service.configure('[session]\ndrain_timeout = "60s"\n')
    holder, _ = service.holding_client()
    moment = service.machine.journal_moment()
    with service.machine.popen("/var/lib/dpkg/info/ooodd.prerm", "upgrade", "0.1.0") as process:
        service.machine.wait_journal("ooodd.service", f"MESSAGE_ID={messages.BROKER_STOPPING.id}", after=moment)
        assert client_error(holder) == ""
        assert process.wait(PATIENCE) == 0
    states = service.machine.run("systemctl", "is-active", "ooodd.service", "ooodd.socket").stdout.split()
    assert states == ["inactive", "inactive"]
    assert int(show(service, "NFileDescriptorStore")) == 0


def test_a_purged_package_leaves_nothing(fresh_service: Service) -> None:
    service, machine = fresh_service, fresh_service.machine
    service.configure('[session]\ndrain_timeout = "1s"\n')
    holder, office = service.holding_client()
    with dpkg(machine, "--purge", "ooodd"):
        pass
    assert client_error(holder)
    assert machine.run("test", "-e", f"/proc/{office['pid']}").returncode == 1
    assert machine.run("pgrep", "-x", "soffice.bin").stdout == ""
    # The drop-in of the tests is like an administrator's: it stays.
    apart = ("-not", "-path", "/run/log/*", "-not", "-path", "/etc/systemd/system/*")
    left = machine.run("find", "/etc", "/run", "/usr/lib", "/usr/share", "/var/lib", "-name", "*ooodd*", *apart)
    assert left.stdout == ""
    units = machine.run("systemctl", "list-units", "--all", "--no-legend", "--plain", "ooodd*").stdout
    assert units == ""
    assert machine.run("getent", "passwd", "ooodd").returncode == 2
    assert machine.run("getent", "group", "ooodd").returncode == 2


def test_a_removed_package_can_be_installed_again(fresh_service: Service, deb: Path) -> None:
    """With its configuration, and the sessions may end before."""
    service, machine = fresh_service, fresh_service.machine
    service.configure("[pool]\nworkers = 1\n")
    holder, _ = service.holding_client()
    with dpkg(machine, "--remove", "ooodd"):
        assert client_error(holder) == ""
    machine.install(deb)
    assert service.serves()
    assert service.status()["config"]["pool"]["workers"] == 1
