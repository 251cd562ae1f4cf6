# SPDX-License-Identifier: LGPL-2.1-or-later
"""[data_path] mode = "handoff": the office has the client's own socket. One test for each feature that it touches.

`make test-handoff` runs all other tests in this mode.
"""

import re
import time

import pytest

from command import Command
from deadline import until
from machine import Machine
from ooodd import messages
from places import DOCUMENTS_INSIDE
from service import CONFIGURATION, PATIENCE, Service, client_error, finish, for_tests

# What no end of a session may take, in seconds. It takes some ten milliseconds.
AT_ONCE = 2.0
LIBRARY = "$(find /usr/lib -name libooodd-acceptor.so)"


def configuration(mode: str) -> str:
    return f'[pool]\nworkers = 2\nmin_workers = 2\n[data_path]\nmode = "{mode}"\n'


@pytest.fixture
def handing(service: Service) -> Service:
    """The service that hands its clients over to two offices."""
    service.configure(configuration("handoff"))
    service.start()
    assert [worker["mode"] for worker in service.wait_idle()] == ["handoff"] * 2
    return service


def tcp_sockets(machine: Machine, pid: int) -> set[str]:
    """The sockets of a process that are connections to port 2002, by their inodes."""
    listed = machine.run("ss", "-tnpeO", "state", "established", "sport", "=", ":2002", check=True).stdout
    return {line.split("ino:")[1].split()[0] for line in listed.splitlines() if f"pid={pid}," in line}


def wait_for_error(client: Command, begun: float) -> str:
    """Return the error of a client that is amid a call or makes one, and check that it came at once."""
    error = client_error(client)
    assert time.monotonic() - begun < AT_ONCE
    return error


def test_an_office_has_its_client_s_own_socket(handing: Service) -> None:
    machine, moment = handing.machine, handing.machine.journal_moment()
    client, office = handing.holding_client()
    (own,) = tcp_sockets(machine, office["pid"])
    assert tcp_sockets(machine, handing.main_pid()) == {own}, "the broker keeps a duplicate"
    (busy,) = (worker for worker in handing.workers() if worker["state"] == "busy")
    assert (busy["mode"], busy["pid"]) == ("handoff", office["pid"])
    assert "handoff" in machine.run("ooodd", "status", check=True).stdout
    handing.machine.run("ls", f"/run/ooodd-worker/{busy['id']}/clients", check=True)
    assert finish(client)[-1]["step"] == "still"
    end = machine.wait_journal(None, f"MESSAGE_ID={messages.SESSION_END.id}", after=moment)
    counted = r"session 1: ended by the client after [0-9.]+ s, [1-9]\d+ bytes to the office, [1-9]\d+ back"
    assert re.fullmatch(counted, end["MESSAGE"])


def test_documents_are_converted(handing: Service) -> None:
    for way in ((), ("--stream",)):
        steps = handing.run_client("convert.py", *way, f"{DOCUMENTS_INSIDE}/letter.odt", "/tmp/letter.pdf")
        assert "stored" in {step["step"] for step in steps}
        assert handing.pages("/tmp/letter.pdf") >= 1
    assert handing.totals()["dirty"] == 0


def test_a_document_left_open_makes_the_office_dirty(handing: Service) -> None:
    handing.run_client("convert.py", "--leave-open", f"{DOCUMENTS_INSIDE}/letter.odt", "/tmp/left.pdf")
    handing.wait_total("dirty", 1)


@pytest.mark.parametrize("how", ["killed", "restarted"])
def test_a_session_outlives_the_broker(handing: Service, how: str) -> None:
    machine, moment = handing.machine, handing.machine.journal_moment()
    client, office = handing.holding_client()
    for _ in range(3):
        before = handing.main_pid()
        if how == "killed":
            handing.kill(before)
        else:
            machine.run("systemctl", "restart", "ooodd.service", check=True)
        until(lambda: handing.status_if_running() and handing.main_pid() != before, PATIENCE, "the next broker")  # noqa: B023
    (busy,) = (worker for worker in handing.workers() if worker["state"] == "busy")
    assert (busy["mode"], busy["pid"]) == ("handoff", office["pid"])
    assert finish(client)[-1]["pid"] == office["pid"]
    handing.wait_idle()
    assert handing.lines(messages.SESSION_LOST, moment) == []
    assert len(handing.lines(messages.SESSION_END, moment)) == 1


def test_an_office_that_dies_ends_its_client_s_session_at_once(handing: Service) -> None:
    client, office = handing.holding_client()
    other, _ = handing.holding_client()
    begun = time.monotonic()
    handing.kill(office["pid"])
    assert wait_for_error(client, begun)
    handing.wait_total("crashed", 1)
    assert client_error(other) == ""


def test_an_office_that_dies_while_no_broker_runs_ends_its_client_s_session_at_the_next_start(
    handing: Service,
) -> None:
    machine, moment = handing.machine, handing.machine.journal_moment()
    client, office = handing.holding_client()
    before = handing.main_pid()
    with handing.drop_in("ooodd.service", "[Service]\nRestartSec=1h\n"):
        handing.kill(before)
        until(
            lambda: machine.run("systemctl", "is-active", "ooodd.service").stdout.strip() == "activating",
            PATIENCE,
            "no broker",
        )
        handing.kill(office["pid"])
    begun = time.monotonic()
    machine.run("systemctl", "start", "ooodd.service", check=True)
    assert wait_for_error(client, begun)
    line = handing.line(messages.SESSION_LOST, moment)
    assert "its office ended meanwhile" in line["MESSAGE"]
    assert handing.serves()


def test_an_office_without_the_acceptor_is_served_by_forwarding_and_that_is_said_once(service: Service) -> None:
    machine, moment = service.machine, service.machine.journal_moment()
    machine.run("sh", "-c", f"cp {LIBRARY} /root/kept && echo broken >{LIBRARY}", check=True)
    try:
        service.configure(configuration("handoff"))
        machine.run("systemctl", "restart", "ooodd-profile.service", check=True)
        service.start()
        assert [worker["mode"] for worker in service.wait_idle()] == ["forward"] * 2
        for _ in range(3):
            assert service.serves()
        service.line(messages.OFFICE_TAKES_NO_SOCKET, moment)
        told = machine.journal("ooodd-profile.service", after=moment)
        assert any("can't load ooodd's acceptor" in entry["MESSAGE"] for entry in told)
        service.configure(configuration("auto"))
        assert service.serves()
        assert len(service.lines(messages.OFFICE_TAKES_NO_SOCKET, moment)) == 1, "auto says nothing"
    finally:
        machine.run("sh", "-c", f"cp /root/kept {LIBRARY}", check=True)
        machine.run("systemctl", "restart", "ooodd-profile.service", check=True)
    service.configure(configuration("auto"))
    service.start()
    assert [worker["mode"] for worker in service.wait_idle()] == ["handoff"] * 2


def test_a_reload_changes_the_mode_of_the_next_sessions(handing: Service) -> None:
    machine = handing.machine

    def modes() -> dict[int, str]:
        return {worker["pid"]: worker["mode"] for worker in handing.workers()}

    one, first = handing.holding_client()
    machine.put(CONFIGURATION, for_tests(configuration("forward")))
    machine.run("systemctl", "reload", "ooodd.service", check=True)
    other, second = handing.holding_client()
    assert modes() == {first["pid"]: "handoff", second["pid"]: "forward"}
    machine.run("systemctl", "restart", "ooodd.service", check=True)
    assert modes() == {first["pid"]: "handoff", second["pid"]: "forward"}
    assert [client_error(client) for client in (one, other)] == ["", ""]
