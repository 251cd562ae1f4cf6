# SPDX-License-Identifier: LGPL-2.1-or-later
"""Five thousand clients at once: who waits, who is told that there is no room, and what that takes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from command import Command
from deadline import until
from machine import SOURCE_TREE, Machine
from ooodd import messages
from places import PYTHON
from service import PATIENCE, Service

CROWD = SOURCE_TREE / "tests" / "soak" / "crowd.py"
WORKERS, CLIENTS, WAITING = 2, 5000, 1000
REFUSAL = f"{WAITING} clients wait already ([queue] max_clients)"
# What a client may take of the broker's memory, in KiB. One that waits takes 3.4, one that is being refused 7.
MOST_MEMORY = 8
# What the manager may take to keep the clients' sockets, in seconds of the CPU; 0.5 s has been measured.
MOST_OF_MANAGER = 5.0


class Broker:
    """What the broker has taken, from outside."""

    def __init__(self, service: Service) -> None:
        self._machine = service.machine
        self._pid = self._show("MainPID")

    def _show(self, name: str) -> str:
        return self._machine.run("systemctl", "show", "-P", name, "ooodd.service", check=True).stdout.strip()

    def memory(self) -> int:
        """In KiB."""
        return int(self._machine.read(f"/proc/{self._pid}/status").split("VmRSS:")[1].split()[0])

    def descriptors(self) -> tuple[int, int]:
        """Its own, and those that systemd keeps for it."""
        own = self._machine.run("ls", f"/proc/{self._pid}/fd", check=True).stdout.split()
        return len(own), int(self._show("NFileDescriptorStore"))

    def manager_seconds(self) -> float:
        """How long PID 1 has been on a CPU."""
        fields = self._machine.read("/proc/1/stat").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / 100


class Crowd:
    """The clients, see crowd.py."""

    def __init__(self, process: Command) -> None:
        self._process = process

    def told(self, step: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        told: dict[str, Any] = json.loads(self._process.stdout.readline() or '{"step": "ended"}')
        assert told["step"] == step, (told, self._process.communicate())
        return told

    def go_on(self, step: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.told(step)


def sessions(machine: Machine, message: messages.Message, after: str) -> list[tuple[int, str]]:
    """Number and client of each session that the journal has this message of, in the order of the lines."""
    entries = machine.journal(None, f"MESSAGE_ID={message.id}", after=after)
    return [(int(entry["OOODD_SESSION"]), entry["OOODD_CLIENT"]) for entry in entries]


@pytest.fixture
def full_service(service: Service) -> Service:
    """The service with two offices that last, and room for a thousand."""
    service.configure(
        f"[pool]\nworkers = {WORKERS}\nmax_uses = 100\nmax_uses_jitter = 0\n[queue]\nmax_clients = {WAITING}\n"
    )
    service.start()
    service.wait_idle()
    return service


@contextmanager
def crowd_before(machine: Machine, *options: str, clients: int = CLIENTS) -> Iterator[Crowd]:
    """A crowd that is still to come; those that keep it waiting are there."""
    arguments = map(str, (WORKERS, clients, clients - WAITING))
    with machine.popen(PYTHON, str(CROWD), *options, *arguments, cwd="/tmp") as process:
        crowd = Crowd(process)
        crowd.told("holding")
        yield crowd


def all_the_others_are_told(waiting: dict[str, Any]) -> None:
    assert waiting["wrong"] == []
    assert sum(waiting["refusals"].values()) == CLIENTS - WAITING
    assert all(REFUSAL in text for text in waiting["refusals"]), waiting["refusals"]


def test_of_five_thousand_clients_at_once_a_thousand_wait_in_order(full_service: Service) -> None:
    service, machine = full_service, full_service.machine
    broker = Broker(service)
    idle = broker.descriptors()
    with crowd_before(machine) as crowd:
        moment = machine.journal_moment()
        memory, manager = broker.memory(), broker.manager_seconds()
        waiting = crowd.go_on("waiting")
        length = service.status()["queue"]["length"]
        until(lambda: broker.descriptors()[1] == 1 + 2 * WORKERS + WAITING, PATIENCE, "systemd to keep them all")
        grown, spent = (broker.memory() - memory) / CLIENTS, broker.manager_seconds() - manager
        print(f"{grown:.1f} KiB for each client of the crowd, {spent:.2f} s of PID 1 until those that wait are kept")
        served = crowd.go_on("served")
    all_the_others_are_told(waiting)
    assert length == WAITING
    assert served["wrong"] == []

    # A client that has spoken is accepted and admitted in one go: sessions are numbered in the order of admission.
    begun = sessions(machine, messages.SESSION_BEGIN, moment)
    numbers = [number for number, _ in begun]
    assert len(numbers) == WAITING
    assert numbers == sorted(numbers), "not served in order"
    assert max(numbers) < min(number for number, _ in sessions(machine, messages.CLIENT_REFUSED, moment))
    # The clients saw the same. While one office takes its time for its client, the other one serves the next ones.
    places = {client: place for place, (_, client) in enumerate(begun)}
    assert all(abs(places[client] - place) <= WAITING / 10 for place, client in enumerate(served["served"]))

    service.wait_idle()
    until(lambda: broker.descriptors() == idle, PATIENCE, f"all descriptors to be closed, down to {idle}")
    assert spent < MOST_OF_MANAGER
    assert grown <= MOST_MEMORY


@pytest.mark.long
def test_a_waiting_client_takes_little_memory(full_service: Service) -> None:
    broker = Broker(full_service)
    with crowd_before(full_service.machine, clients=WAITING) as crowd:
        memory = broker.memory()
        crowd.go_on("waiting")
        until(lambda: broker.descriptors()[1] == 1 + 2 * WORKERS + WAITING, PATIENCE, "systemd to keep them all")
        grown = (broker.memory() - memory) / WAITING
        print(f"{grown:.1f} KiB for each waiting client")
        served = crowd.go_on("served")
    assert served["wrong"] == []
    assert len(served["served"]) == WAITING
    assert grown <= MOST_MEMORY


@pytest.mark.long
def test_a_crowd_that_connects_before_it_speaks_is_heard(full_service: Service) -> None:
    """More connections than the kernel keeps until they speak: it passes the others on before."""
    with crowd_before(full_service.machine, "--connect-first") as crowd:
        waiting = crowd.go_on("waiting")
        served = crowd.go_on("served")
    all_the_others_are_told(waiting)
    assert served["wrong"] == []
    assert len(served["served"]) == WAITING
