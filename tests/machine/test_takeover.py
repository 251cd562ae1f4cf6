# SPDX-License-Identifier: LGPL-2.1-or-later
"""A broker that is killed, restarted, upgraded, reloaded or stopped, and what clients see of it."""

import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from command import Command
from deadline import until
from ooodd import messages
from service import (
    CONFIGURATION,
    HANDED_OVER,
    PATIENCE,
    Herd,
    Service,
    Session,
    await_step,
    client_error,
    finish,
    for_tests,
    out_of_order,
)

# How many brokers are killed under load, and restarted: in the inner ring of tests, and in the outer one.
KILLS = [6, pytest.param(int(os.environ.get("OOODD_TESTS_BROKER_KILLS", "30")), marks=pytest.mark.long)]
RESTARTS = [3, pytest.param(20, marks=pytest.mark.long)]
# The port 2002 in a TCP table of /proc.
PORT = ":07D2"
LISTENS = "0A"


# What keeps a broker from opening its control socket: the commands that make the obstacle, and remove it.
OBSTACLES = {
    "directory": ("rm /run/ooodd/control && mkdir /run/ooodd/control", "rmdir /run/ooodd/control"),
    "read-only": ("mount --bind /run/ooodd /run/ooodd && mount -o remount,bind,ro /run/ooodd", "umount /run/ooodd"),
}


@dataclass(frozen=True)
class Visit:
    """A session of a herd, with its client's address, by which the journal names it."""

    session: Session
    client: str
    dialled: float


def visits(herd: Herd) -> list[Visit]:
    """All sessions of a herd."""
    facts: dict[int, dict[str, Any]] = {}
    for event in herd.events():
        facts.setdefault(event["session"], {}).update(event)
    return [
        Visit(
            session,
            f"127.0.0.1:{facts[session.number].get('port')}",
            facts[session.number].get("dialled", session.begun),
        )
        for session in herd.sessions()
    ]


def dialled_order(found: list[Visit]) -> list[Session]:
    """The same sessions, with the time at which they had connected as their beginning."""
    return [Session(v.session.number, v.dialled, v.session.connected) for v in found]


def wait_for_an_end(herd: Herd) -> None:
    """Wait until one more session ends."""

    def ended() -> int:
        return sum(session.ended is not None for session in herd.sessions())

    before = ended()
    until(lambda: ended() > before, PATIENCE, "a session to end")


def broker(service: Service) -> int:
    """The broker's pid on the host, or 0 if none answers."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(f"/proc/{service.machine.pid}/root/run/ooodd/control")
            pid: int = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        except OSError:
            return 0
    return pid if service.status_if_running() else 0


def next_broker(service: Service, old: int) -> int:
    """Wait for another broker that answers, and return its pid on the host."""
    return until(lambda: (new := broker(service)) != old and new, PATIENCE, "the next broker")


def stored_descriptors(service: Service) -> int:
    """How many descriptors are in systemd's store for the broker."""
    show = ("systemctl", "show", "-P", "NFileDescriptorStore", "ooodd.service")
    return int(service.machine.run(*show, check=True).stdout)


def descriptors(service: Service) -> tuple[int, int]:
    """How many descriptors the broker has, and how many are in systemd's store for it."""
    own = service.machine.run("ls", f"/proc/{service.main_pid()}/fd", check=True).stdout.split()
    return len(own), stored_descriptors(service)


def in_backlog(service: Service) -> int:
    """How many connections wait in the listening socket's backlog."""
    for line in Path(f"/proc/{service.machine.pid}/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, queues, *_ = line.split()
        if local.endswith(PORT) and state == LISTENS:
            return int(queues.split(":")[1], 16)
    return 0


def journal_order(service: Service, moment: str) -> list[int]:
    """The numbers of the sessions, in the order in which they began. Clients are numbered as they come."""
    return [int(line["OOODD_SESSION"]) for line in service.lines(messages.SESSION_BEGIN, moment)]


def assert_totals(service: Service, **others: int) -> None:
    """Check all totals; those that are not named must be 0."""
    totals = service.totals()
    assert totals == dict.fromkeys(totals, 0) | others


@contextmanager
def stopping(service: Service, *command: str) -> Iterator[Command]:
    """Run a command that stops or drains the service; at the end wait for it and check its exit status."""
    with service.machine.popen(*command) as process:
        yield process
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors


def office_has_ended(service: Service, office: int) -> bool:
    return service.machine.run("test", "-e", f"/proc/{office}").returncode == 1


def reload(service: Service, text: str) -> tuple[int, str]:
    """Change the configuration and reload; return the exit status and what systemctl said."""
    service.machine.put(CONFIGURATION, for_tests(text))
    done = service.machine.run("systemctl", "reload", "ooodd.service")
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("count", KILLS)
def test_brokers_killed_under_load_cost_only_the_sessions_that_the_journal_names(service: Service, count: int) -> None:
    """Eight sessions, three of which do nothing, and twenty waiting clients."""
    workers, holding, waiting = 8, 3, 20
    service.configure(
        f'[pool]\nworkers = {workers}\nmin_workers = {workers}\nmax_uses = 1000000\n[log]\nlevel = "detail"\n'
    )
    service.start()
    service.wait_whole(workers)
    idle = descriptors(service)
    moment = service.machine.journal_moment()
    holders = [service.holding_client() for _ in range(holding)]
    took, kills = [], []
    with service.herd(workers - holding + waiting) as herd:
        service.wait_queue(waiting)
        pid = broker(service)
        for number in range(count):
            if number % 3 == 2:  # the others are killed as soon as they answer
                wait_for_an_end(herd)
            began = time.monotonic()
            kills.append(began)
            os.kill(pid, signal.SIGKILL)
            pid = next_broker(service, pid)
            took.append(time.monotonic() - began)
        assert service.status()["queue"]["length"] > 0
        herd.stop()
        found = visits(herd)
    pids = [finish(client)[0].get("pid") for client, _ in holders]
    if HANDED_OVER:  # then a broker has no byte of them
        assert service.lines(messages.SESSION_LOST, moment) == []
    never_begun = service.lines(messages.CLIENT_LOST, moment)
    lost = {line["OOODD_CLIENT"] for line in (*service.lines(messages.SESSION_LOST, moment), *never_begun)}
    failed = [visit for visit in found if visit.session.error]
    order = journal_order(service, moment)
    print(
        f"{count} kills: {len(found)} sessions, {len(lost)} named as lost, {len(failed)} failed; from a kill to the "
        f"next broker {sorted(took)[len(took) // 2]:.2f} s in the middle, {max(took):.2f} s at the most"
    )
    assert pids == [office["pid"] for _, office in holders]
    assert [visit for visit in failed if visit.client not in lost] == [], f"failed without a line; killed at {kills}"
    assert order == sorted(order), "not served in the order of coming"
    assert out_of_order(dialled_order(found), 0.3) == []
    service.wait_whole(workers)
    until(lambda: descriptors(service) == idle, PATIENCE, f"all descriptors to be closed, down to {idle}")
    totals = service.totals()
    assert totals["sessions"] == len(found) + holding - len(never_begun)
    assert (totals["refused"], totals["crashed"], totals["hung"]) == (0, 0, 0)
    assert service.serves()


@pytest.mark.parametrize("count", RESTARTS)
def test_no_client_notices_restarts_under_load(service: Service, count: int) -> None:
    workers = 4
    service.configure(f"[pool]\nworkers = {workers}\nmin_workers = {workers}\nmax_uses = 1000000\n")
    moment = service.machine.journal_moment()
    holders = [service.holding_client() for _ in range(2)]
    took = []
    with service.herd(8) as herd:
        service.wait_queue(6)
        for _ in range(count):
            began = time.monotonic()
            service.machine.run("systemctl", "restart", "ooodd.service", check=True)
            took.append(time.monotonic() - began)
            wait_for_an_end(herd)
        herd.stop()
        found = visits(herd)
    print(f"{count} restarts: {len(found)} sessions; a restart took {max(took):.2f} s at the most")
    assert [finish(client)[0].get("pid") for client, _ in holders] == [office["pid"] for _, office in holders]
    assert [visit for visit in found if visit.session.error] == []
    assert service.lines(messages.SESSION_LOST, moment) == []
    assert len(service.lines(messages.BROKER_HANDS_OVER, moment)) == count
    order = journal_order(service, moment)
    assert order == sorted(order)
    assert out_of_order(dialled_order(found), 0.3) == []
    totals = service.totals()
    assert totals == dict.fromkeys(totals, 0) | {
        "sessions": len(found) + len(holders),
        "recycled": totals["recycled"],
    }


def test_brokers_are_followed_whatever_else_of_systemd_is_renewed(service: Service) -> None:
    """After daemon-reexec, systemd passes its stored descriptors in the opposite order."""
    service.configure("[pool]\nworkers = 2\nmin_workers = 2\n")
    holders = [service.holding_client() for _ in range(2)]
    waiting = [service.waiting_client() for _ in range(3)]
    for _ in range(2):
        service.machine.run("systemctl", "daemon-reexec", check=True)
        old = broker(service)
        os.kill(old, signal.SIGKILL)
        next_broker(service, old)
    service.machine.run("systemctl", "restart", "systemd-journald.service", check=True)
    service.machine.run("systemctl", "restart", "ooodd.service", check=True)
    assert [finish(client)[0].get("pid") for client, _ in holders] == [office["pid"] for _, office in holders]
    assert [client_error(client) for client in waiting] == [""] * 3
    assert service.serves()
    service.wait_total("sessions", 6)
    assert_totals(service, sessions=6, recycled=service.totals()["recycled"])


def test_a_session_that_goes_on_may_be_silent(service: Service) -> None:
    """For longer than a client may take to its first call: it made that under the broker before."""
    service.configure('[pool]\nworkers = 2\nmax_uses = 1\n[session]\nfirst_call_timeout = "100ms"\n')
    silent, _ = service.holding_client()
    service.machine.run("systemctl", "restart", "ooodd.service", check=True)
    for _ in range(3):
        assert service.serves()
    assert finish(silent)[-1]["step"] == "still"
    silent.release()


def test_an_office_that_is_killed_with_its_broker_is_counted_once(service: Service) -> None:
    service.configure("[pool]\nworkers = 2\nmin_workers = 2\n")
    other, office = service.holding_client()
    tries = 6
    for number in range(1, tries + 1):
        moment = service.machine.journal_moment()
        victim, dead = service.holding_client()
        waiting = service.waiting_client()
        old = broker(service)
        pids = [service.main_pid(), dead["pid"]]
        service.kill(*(pids if number % 2 else reversed(pids)))
        next_broker(service, old)
        assert client_error(victim)
        assert client_error(waiting) == ""
        service.wait_whole(2, without=[dead["pid"]])
        assert len(service.lines(messages.WORKER_CRASHED, moment)) == 1
        assert service.totals()["crashed"] == number
        named = {line["OOODD_SESSION"] for line in service.lines(messages.SESSION_LOST, moment)}
        ended = {line["OOODD_SESSION"] for line in service.lines(messages.SESSION_END, moment)}
        assert len(named | ended) == 2, (named, ended)
    assert finish(other)[0]["pid"] == office["pid"]
    assert service.totals()["sessions"] == 2 * tries + 1


@pytest.mark.parametrize("command", ["systemctl stop ooodd.service", "ooodd drain"])
def test_a_stop_lets_a_session_finish_and_new_clients_wait_in_the_socket(service: Service, command: str) -> None:
    service.configure('[pool]\nworkers = 1\n[session]\ndrain_timeout = "60s"\n')
    holder, office = service.holding_client()
    waiting = service.waiting_client()
    old, moment = service.main_pid(), service.machine.journal_moment()
    with stopping(service, *command.split()):
        assert client_error(waiting).startswith("ooodd: the service is stopping")
        newcomer = service.client("convert.py", "--office")
        until(lambda: in_backlog(service) == 1, PATIENCE, "the new client to wait in the socket")
        assert service.main_pid() == old
        began = time.monotonic()
        assert client_error(holder) == ""
    (served,) = (step for step in finish(newcomer) if step["step"] == "office")
    print(f"the new client was served {time.monotonic() - began:.2f} s after the last session")
    assert served["pid"] != office["pid"]
    assert office_has_ended(service, office["pid"])
    assert service.main_pid() not in (0, old)
    service.wait_idle()
    offices = service.machine.run("pgrep", "-x", "soffice.bin").stdout.split()
    assert offices == [str(served["pid"])]
    assert len(service.lines(messages.BROKER_STOPPING, moment)) == 1
    assert_totals(service, sessions=1)


@pytest.mark.parametrize("command", ["systemctl stop ooodd.service", "ooodd drain"])
def test_a_stop_cuts_off_a_session_that_does_not_finish(service: Service, command: str) -> None:
    service.configure('[pool]\nworkers = 1\n[session]\ndrain_timeout = "1s"\n')
    holder, office = service.holding_client()
    began = time.monotonic()
    with stopping(service, *command.split()):
        until(lambda: service.main_pid() == 0, PATIENCE, "the broker to end")
        took = time.monotonic() - began
    print(f"ended after {took:.2f} s")
    assert took >= 1.0
    assert client_error(holder)
    until(lambda: office_has_ended(service, office["pid"]), PATIENCE, "the office to end")
    state = service.machine.run("systemctl", "show", "-P", "Result", "ooodd.service").stdout.strip()
    assert state == "success"
    assert stored_descriptors(service) == 0


def test_a_bad_configuration_is_not_loaded(service: Service) -> None:
    good = "[pool]\nworkers = 1\n"
    service.configure(good)
    holder, _ = service.holding_client()
    before, moment = service.status()["config"], service.machine.journal_moment()
    status, said = reload(service, "[pool]\nwrokers = 2\n")
    assert status != 0
    assert "journalctl" in said
    lines = [line["MESSAGE"] for line in service.machine.journal("ooodd.service", after=moment)]
    (why,) = (line for line in lines if "wrokers" in line)
    assert "pool.wrokers: unknown key; did you mean pool.workers?" in why
    assert "the configuration before stays in force" in why
    assert service.status()["config"] == before
    assert service.machine.run("systemctl", "is-active", "ooodd.service").stdout.strip() == "active"
    assert client_error(holder) == ""
    assert reload(service, good) == (0, "")
    assert_totals(service, sessions=1)


def test_more_workers_after_a_reload_serve_waiting_clients_at_once(service: Service) -> None:
    service.configure("[pool]\nworkers = 1\n")
    holder, office = service.holding_client()
    waiting = service.waiting_client("--hold", "office")
    began = time.monotonic()
    assert reload(service, "[pool]\nworkers = 2\n") == (0, "")
    assert await_step(waiting, "office")["pid"] != office["pid"]
    print(f"served {time.monotonic() - began:.2f} s after the reload began")
    assert service.status()["config"]["pool"]["workers"] == 2
    assert [client_error(client) for client in (holder, waiting)] == ["", ""]
    assert_totals(service, sessions=2)


def test_an_upgrade_goes_on_with_the_session_and_the_queue(service: Service, deb: Path) -> None:
    service.configure("[pool]\nworkers = 1\n")
    holder, office = service.holding_client()
    waiting = service.waiting_client()
    old, moment = service.main_pid(), service.machine.journal_moment()
    service.machine.install(deb)
    assert service.main_pid() not in (0, old)
    assert finish(holder)[0] == {"step": "still", "pid": office["pid"]}
    assert client_error(waiting) == ""
    assert service.lines(messages.SESSION_LOST, moment) == []
    service.wait_idle()
    assert_totals(service, sessions=2)


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_a_broker_that_cannot_start_ends_no_session(service: Service, obstacle: str) -> None:
    """The control socket can't be opened: something else is in its place, or the file system takes no file."""
    service.configure("[pool]\nworkers = 1\n")
    holder, office = service.holding_client()
    waiting = service.waiting_client()
    old, moment = broker(service), service.machine.journal_moment()
    make, remove = OBSTACLES[obstacle]
    service.machine.run("sh", "-c", make, check=True)
    try:
        os.kill(old, signal.SIGKILL)
        failed = f"MESSAGE_ID={messages.BROKER_FAILED.id}"
        line = service.machine.wait_journal("ooodd.service", failed, after=moment, timeout=PATIENCE)
    finally:
        service.machine.run("sh", "-c", remove, check=True)
    assert "/run/ooodd/control" in line["MESSAGE"]
    next_broker(service, old)
    assert finish(holder)[0] == {"step": "still", "pid": office["pid"]}
    assert client_error(waiting) == ""
    assert service.lines(messages.SESSION_LOST, moment) == []
    service.wait_idle()
    assert_totals(service, sessions=2)


def test_a_restart_with_a_bad_configuration_loses_no_client(service: Service) -> None:
    service.configure("[pool]\nworkers = 1\n")
    holder, office = service.holding_client()
    waiting = service.waiting_client()
    before, moment = service.status()["config"], service.machine.journal_moment()
    service.machine.put(CONFIGURATION, "[pool]\nwrokers = 2\n")
    service.machine.run("systemctl", "restart", "ooodd.service", check=True)
    refused = service.line(messages.CONFIG_REFUSED, moment)["MESSAGE"]
    assert "pool.wrokers: unknown key; did you mean pool.workers?" in refused
    assert "2 clients are connected, so the previous configuration stays in force" in refused
    assert service.status()["config"] == before
    assert finish(holder)[0]["pid"] == office["pid"]
    assert client_error(waiting) == ""
    (worker,) = service.wait_idle()
    assert service.machine.run("systemctl", "restart", "ooodd.service").returncode != 0
    show = ("systemctl", "show", "-P", "ExecMainStatus", "ooodd.service")
    assert service.machine.run(*show, check=True).stdout.strip() == "78"
    until(lambda: office_has_ended(service, worker["pid"]), PATIENCE, "the office to end")


@pytest.mark.skipif(HANDED_OVER, reason="then no byte of a session is in the broker's memory")
def test_a_restart_does_not_wait_for_a_session_that_stalls(service: Service) -> None:
    """A client sends more than its office takes. The bytes in the broker's memory are lost, and so is the session."""
    service.configure("[pool]\nworkers = 2\nmin_workers = 2\n")
    holder, office = service.holding_client()
    service.wait_whole(2)
    moment = service.machine.journal_moment()
    (pid,) = (worker["pid"] for worker in service.workers() if worker["pid"] != office["pid"])
    service.kill(pid, signal="STOP")
    with service.client("urp_noise.py", "--seconds=60", "urp-flood") as flood:
        await_step(flood, "stalled")
        began = time.monotonic()
        service.machine.run("systemctl", "restart", "ooodd.service", check=True)
        print(f"restarted within {time.monotonic() - began:.2f} s")
        assert service.serves() != pid
    assert "bytes of it may be lost" in service.line(messages.SESSION_LOST, moment)["MESSAGE"]
    assert finish(holder)[0]["pid"] == office["pid"]
    assert_totals(service, sessions=3, recycled=service.totals()["recycled"])
