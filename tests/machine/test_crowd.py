# SPDX-License-Identifier: LGPL-2.1-or-later
"""Five thousand clients at once: which of them wait, which are refused, and what that costs."""

import json
import os
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
# All of them are of one user, who may take half of the queue.
REFUSAL = "clients of user 0 take half of the queue ([queue] max_clients)"
# How much memory of the broker a client may take, in KiB. A waiting one takes 3.4, one that is being refused 7.
MOST_MEMORY = 12
# How much CPU time PID 1 may take to store the clients' sockets, in seconds. 0.5 s has been measured, and
# this only finds a store that costs a multiple of that.
MOST_OF_MANAGER = 30.0


class Broker:
    """What the broker uses, seen from outside."""

    def __init__(self, service: Service) -> None:
        self._machine = service.machine
        self._pid = self._show("MainPID")

    def _show(self, name: str) -> str:
        return self._machine.run("systemctl", "show", "-P", name, "ooodd.service", check=True).stdout.strip()

    def memory(self) -> int:
        """In KiB."""
        return int(self._machine.read(f"/proc/{self._pid}/status").split("VmRSS:")[1].split()[0])

    def descriptors(self) -> tuple[int, int]:
        """How many it has, and how many are in systemd's store for it."""
        own = self._machine.run("ls", f"/proc/{self._pid}/fd", check=True).stdout.split()
        return len(own), int(self._show("NFileDescriptorStore"))

    def manager_seconds(self) -> float:
        """The CPU time of PID 1 so far."""
        fields = self._machine.read("/proc/1/stat").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Crowd:
    """The clients (crowd.py)."""

    def __init__(self, process: Command) -> None:
        self._process = process

    def read_step(self, step: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        found: dict[str, Any] = json.loads(self._process.stdout.readline() or '{"step": "ended"}')
        assert found["step"] == step, (found, self._process.communicate())
        return found

    def go_on(self, step: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.read_step(step)


def sessions(machine: Machine, message: messages.Message, after: str) -> list[tuple[int, str]]:
    """The number and the client of each session for which this message is in the journal, in order."""
    entries = machine.journal(None, f"MESSAGE_ID={message.id}", after=after)
    return [(int(entry["OOODD_SESSION"]), entry["OOODD_CLIENT"]) for entry in entries]


@pytest.fixture
def full_service(service: Service) -> Service:
    """The service with two offices that are not recycled, and a queue for a thousand clients."""
    service.configure(
        f"[pool]\nworkers = {WORKERS}\nmax_uses = 100\nmax_uses_jitter = 0\n[queue]\nmax_clients = {2 * WAITING}\n"
    )
    service.start()
    service.wait_idle()
    return service


@contextmanager
def crowd_before(machine: Machine, *options: str, clients: int = CLIENTS) -> Iterator[Crowd]:
    """A crowd that has not connected yet. The clients that hold all workers have."""
    arguments = map(str, (WORKERS, clients, clients - WAITING))
    with machine.popen(PYTHON, str(CROWD), *options, *arguments, cwd="/tmp") as process:
        crowd = Crowd(process)
        crowd.read_step("holding")
        yield crowd


def the_others_are_refused(waiting: dict[str, Any]) -> None:
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
        until(lambda: broker.descriptors()[1] == 1 + 2 * WORKERS + WAITING, PATIENCE, "systemd to store them all")
        grown, spent = (broker.memory() - memory) / CLIENTS, broker.manager_seconds() - manager
        print(f"{grown:.1f} KiB for each client of the crowd, {spent:.2f} s of PID 1 until the waiting ones are stored")
        served = crowd.go_on("served")
    the_others_are_refused(waiting)
    assert length == WAITING
    assert served["wrong"] == []

    # A client that has sent its first bytes is accepted and admitted at once, so sessions are numbered in that order.
    begun = sessions(machine, messages.SESSION_BEGIN, moment)
    numbers = [number for number, _ in begun]
    assert len(numbers) == WAITING
    assert numbers == sorted(numbers), "not served in order"
    assert max(numbers) < min(number for number, _ in sessions(machine, messages.CLIENT_REFUSED, moment))
    # The clients saw about the same order. While one office is busy for long, the other one serves the next clients.
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
        until(lambda: broker.descriptors()[1] == 1 + 2 * WORKERS + WAITING, PATIENCE, "systemd to store them all")
        grown = (broker.memory() - memory) / WAITING
        print(f"{grown:.1f} KiB for each waiting client")
        served = crowd.go_on("served")
    assert served["wrong"] == []
    assert len(served["served"]) == WAITING
    assert grown <= MOST_MEMORY


@pytest.mark.long
def test_a_crowd_that_connects_before_it_speaks_is_served(full_service: Service) -> None:
    """The kernel defers only so many connections until they send; it passes the others on at once."""
    with crowd_before(full_service.machine, "--connect-first") as crowd:
        waiting = crowd.go_on("waiting")
        served = crowd.go_on("served")
    the_others_are_refused(waiting)
    assert served["wrong"] == []
    assert len(served["served"]) == WAITING
