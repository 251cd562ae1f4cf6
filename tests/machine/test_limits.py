# SPDX-License-Identifier: LGPL-2.1-or-later
"""Limits: how clients beyond them are refused, how the pool shrinks, and when offices are recycled."""

import time
from dataclasses import dataclass

import pytest

from command import Command
from deadline import until
from machine import Machine
from ooodd import messages
from places import CLIENTS_INSIDE, DOCUMENTS_INSIDE
from service import PATIENCE, Service, await_step, client_error

LETTER = f"{DOCUMENTS_INSIDE}/letter.odt"
BIG = f"{DOCUMENTS_INSIDE}/big.xlsx"
KINDS = ("pyuno", "java", "cpp")
NO_OFFICE = "ooodd: no office can be started: there is no office: install libreoffice-writer"


def converts(service: Service, kind: str) -> Command:
    """Start a client that uses one of the UNO libraries."""
    if kind == "pyuno":
        return service.client("convert.py", LETTER, "/tmp/refused.pdf")
    return service.machine.popen(f"{CLIENTS_INSIDE}/{kind}-client", "127.0.0.1", "2002", LETTER, "/tmp/refused.pdf")


def refusal_output(client: Command) -> str:
    """The output of a client that is refused."""
    out, errors = client.communicate(timeout=PATIENCE)
    client.release()
    assert client.returncode == 1, out + errors
    return out + errors


@dataclass(frozen=True)
class Refused:
    """A reason to be refused: the configuration, how many clients wait already, and the text."""

    queue: str
    waiting: int
    text: str


REFUSALS = {
    "queue full": Refused(
        "max_clients = 0", 0, "ooodd: all 1 workers are busy and 0 clients wait already ([queue] max_clients)"
    ),
    "host full": Refused(
        "max_per_host = 1",
        1,
        "ooodd: all 1 workers are busy and 1 clients of 127.0.0.1 wait already ([queue] max_per_host)",
    ),
    "waited too long": Refused(
        'timeout = "2s"',
        0,
        "ooodd: none of the 1 workers became free within 2 s ([queue] timeout); try again later",
    ),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_a_refused_client_of_any_library_gets_the_reason(service: Service, why: str) -> None:
    """The client that has the only office has a call under way, so no client waits for itself."""
    refused = REFUSALS[why]
    service.configure(f"[pool]\nworkers = 1\n[queue]\n{refused.queue}\n")
    holder = service.client("crash.py", "stream")
    await_step(holder, "silent")
    waiting = [service.waiting_client() for _ in range(refused.waiting)]
    moment = service.machine.journal_moment()
    clients = [converts(service, kind) for kind in KINDS]
    for kind, client in zip(KINDS, clients, strict=True):
        assert refused.text in refusal_output(client), kind
    lines = [line["MESSAGE"] for line in service.lines(messages.CLIENT_REFUSED, moment)]
    assert [line.split(": ", 1)[1] for line in lines] == [refused.text] * 3
    assert service.totals()["refused"] == 3
    assert holder.poll() is None
    holder.release()
    assert [client_error(client) for client in waiting] == [""] * refused.waiting


def test_without_an_office_clients_of_any_library_get_the_reason(service: Service) -> None:
    service.configure("[pool]\nworkers = 1\n")
    with service.drop_in("ooodd-worker@.service", "[Service]\nEnvironment=OOODD_OFFICE=/opt/nowhere\n"):
        moment = service.machine.journal_moment()
        began = time.monotonic()
        clients = [converts(service, kind) for kind in KINDS]
        for kind, client in zip(KINDS, clients, strict=True):
            assert NO_OFFICE in refusal_output(client), kind
        print(f"refused after {time.monotonic() - began:.1f} s")
        assert service.states() == ["failed"]
        began = time.monotonic()
        refusal_output(converts(service, "pyuno"))
        print(f"the next one after {time.monotonic() - began:.1f} s")
        lines = service.lines(messages.WORKER_NOT_STARTED, moment)
        assert len(lines) < 20, "a busy loop"
        assert "there is no office: install libreoffice-writer" in lines[0]["MESSAGE"]
        assert "journalctl -u ooodd-worker@1.service" in lines[0]["MESSAGE"]
    began = time.monotonic()
    service.wait_whole(1)
    print(f"an office {time.monotonic() - began:.1f} s after there was one")
    assert service.serves()


def test_a_client_that_waits_for_itself_is_refused(service: Service) -> None:
    service.configure('[pool]\nworkers = 2\n[queue]\ntimeout = "4s"\n')  # with a longer timeout it takes 30 s
    began = time.monotonic()
    client = service.client("three_connections.py", LETTER, "/tmp")
    out, _ = client.communicate(timeout=PATIENCE)
    client.release()
    took = time.monotonic() - began
    print(f"refused after {took:.1f} s")
    assert (
        "ooodd: this client waits for itself: sessions of user 0 hold all 2 workers, and nothing moves on them; "
        "end one of them first, or raise [pool] workers above 2"
    ) in out
    service.wait_idle()
    assert service.totals()["refused"] == 1
    assert service.serves()


def test_a_client_that_waits_while_others_work_does_not_wait_for_itself(service: Service) -> None:
    service.configure('[pool]\nworkers = 2\n[queue]\ntimeout = "30s"\n')
    with service.herd(5, "--sessions=8") as herd:
        sessions = herd.stop()
    assert [session.error for session in sessions] == [""] * 40
    assert service.totals()["refused"] == 0


def descriptors(machine: Machine, pid: int) -> int:
    return len(machine.run("ls", f"/proc/{pid}/fd", check=True).stdout.split())


def limit_descriptors(machine: Machine, pid: int, count: int) -> None:
    """Set the soft limit only, as the broker's own user: root in the machine may not do more."""
    machine.run("prlimit", f"--pid={pid}", f"--nofile={count}:", user="ooodd", check=True)


def test_without_descriptors_sessions_go_on_and_new_clients_wait_or_are_refused(service: Service) -> None:
    service.configure("[pool]\nworkers = 2\nmin_workers = 2\n")
    machine = service.machine
    holders = [service.holding_client()[0] for _ in range(2)]
    pids = {worker["pid"] for worker in service.wait_whole(2)["workers"]}
    broker, moment = service.main_pid(), machine.journal_moment()
    limit_descriptors(machine, broker, descriptors(machine, broker) + 2)
    clients = [service.client("convert.py", "--office") for _ in range(6)]
    machine.wait_journal("ooodd.service", f"MESSAGE_ID={messages.ACCEPT_PAUSED.id}", after=moment)
    assert [client_error(holder) for holder in holders] == ["", ""]
    # The first ones are served with the descriptors that the ended sessions have freed.
    errors = [client_error(client) for client in clients]
    print(f"{errors.count('')} of 6 served: {sorted(set(errors))}")
    assert all("no file descriptor is left" in error for error in errors if error), errors
    limit_descriptors(machine, broker, 1024)
    assert service.serves() in pids, "an office was recycled though it was healthy"
    assert service.main_pid() == broker
    totals = service.totals()
    assert {name: totals[name] for name in ("recycled", "crashed", "hung", "dirty")} == dict.fromkeys(
        ("recycled", "crashed", "hung", "dirty"), 0
    )


def active(service: Service) -> bool:
    state = service.machine.run("systemctl", "is-active", "ooodd.service").stdout.strip()
    return state != "inactive"


def test_without_clients_everything_stops_and_the_next_client_starts_it(service: Service) -> None:
    service.configure('[pool]\nmin_workers = 0\nspare_workers = 0\nidle_timeout = "1s"\n')
    moment = service.machine.journal_moment()
    for _ in range(2):
        assert service.serves()
        service.machine.wait_journal("ooodd.service", f"MESSAGE_ID={messages.BROKER_UNUSED.id}", after=moment)
        until(lambda: not active(service), PATIENCE, "the broker to end")
        assert service.machine.run("pgrep", "-x", "soffice.bin").stdout == ""
        moment = service.machine.journal_moment()
    assert service.machine.run("systemctl", "is-active", "ooodd.socket").stdout.strip() == "active"


def test_an_office_that_has_grown_is_replaced_after_its_client(limited_machine: Machine) -> None:
    service = Service(limited_machine)
    service.configure('[pool]\nworkers = 1\nmax_memory = "64M"\n[log]\nlevel = "detail"\n')
    office = service.serves()
    assert service.serves() == office, "an office that has not grown was replaced"
    moment = service.machine.journal_moment()
    service.run_client("convert.py", BIG, "/tmp/big.pdf")
    service.wait_total("recycled", 1)
    assert "bigger than [pool] max_memory" in service.line(messages.WORKER_RECYCLED, moment)["MESSAGE"]
    assert service.serves() != office
    assert all(worker["memory"] > 1 << 20 for worker in service.wait_idle())


def test_an_old_office_is_replaced_but_not_during_a_session(service: Service) -> None:
    service.configure('[pool]\nworkers = 1\nmax_age = "2s"\n[log]\nlevel = "detail"\n')
    client, office = service.holding_client()
    moment = service.machine.journal_moment()
    began = time.monotonic()
    until(lambda: time.monotonic() > began + 2.5, PATIENCE, "the office to be old")
    assert service.totals()["recycled"] == 0
    assert client_error(client) == ""
    service.wait_whole(1, without=[office["pid"]])
    (idle,) = service.wait_idle()
    service.wait_whole(1, without=[office["pid"], idle["pid"]])
    lines = [line["MESSAGE"] for line in service.lines(messages.WORKER_RECYCLED, moment)]
    assert all("older than [pool] max_age" in line for line in lines)
    assert service.totals()["recycled"] == len(lines)


@pytest.mark.parametrize("limit", ["timeout", "idle_timeout"])
def test_a_session_over_its_limit_is_cut_off_alone(service: Service, limit: str) -> None:
    service.configure(f'[pool]\nworkers = 2\n[session]\n{limit} = "2s"\n[log]\nlevel = "detail"\n')
    moment = service.machine.journal_moment()
    client, office = service.holding_client()
    began = time.monotonic()
    line = service.machine.wait_journal("ooodd.service", f"MESSAGE_ID={messages.SESSION_END.id}", after=moment)
    print(f"cut off after {time.monotonic() - began:.1f} s")
    assert f"ended by ooodd: [session] {limit} = 2 s" in line["MESSAGE"]
    assert client_error(client)
    service.wait_total("recycled", 1)
    assert service.serves() != office["pid"], "it knows the objects of a client that may come back"
    totals = service.totals()
    assert (totals["recycled"], totals["crashed"], totals["hung"], totals["dirty"]) == (1, 0, 0, 0)


def test_an_office_that_computes_for_a_client_that_has_closed_is_replaced(service: Service) -> None:
    """The office closes the connection at once but goes on computing. So no other client may get it."""
    service.configure('[pool]\nworkers = 2\n[session]\ngrace = "20s"\n')
    client = service.client("crash.py", "half-close")
    await_step(client, "half-closed")
    began = time.monotonic()
    busy = [worker["pid"] for worker in service.workers() if worker["client"]]
    out, _ = client.communicate(timeout=PATIENCE)
    client.release()
    print(f"the client read the end after {time.monotonic() - began:.1f} s: {out.splitlines()[-1:]}")
    assert service.serves() not in busy
    until(lambda: sum(service.totals()[name] for name in ("hung", "dirty")) == 1, PATIENCE, "the office to be replaced")
    print(service.totals())
