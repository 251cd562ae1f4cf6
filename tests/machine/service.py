# SPDX-License-Identifier: LGPL-2.1-or-later
"""The installed service on a machine, as an administrator handles it: configuration, systemctl, ooodd status."""

import json
from typing import Any

from command import Command
from deadline import until
from machine import Machine
from places import CLIENTS, PYTHON

CONFIGURATION = "/etc/ooodd/ooodd.toml"
# Generous: a start takes 0.3 s on an idle machine.
PATIENCE = 30.0


class Service:
    """ooodd on one machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def configure(self, text: str = "") -> None:
        """Write the configuration and begin anew: nothing runs but the socket."""
        self.stop()
        self.machine.put(CONFIGURATION, text)
        self.machine.run("systemctl", "start", "ooodd.socket", check=True)

    def stop(self) -> None:
        self.machine.run("systemctl", "stop", "ooodd.service", "ooodd.socket", check=True)

    def start(self) -> None:
        self.machine.run("systemctl", "start", "ooodd.service", check=True)

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.machine.run("ooodd", "status", "--json", check=True).stdout)
        return answer

    def workers(self) -> list[dict[str, Any]]:
        workers: list[dict[str, Any]] = self.status()["workers"]
        return workers

    def states(self) -> list[str]:
        return [worker["state"] for worker in self.workers()]

    def wait_idle(self) -> list[dict[str, Any]]:
        """Wait until every worker is idle, but for those that nobody needs, and return the idle ones."""

        def idle() -> list[dict[str, Any]]:
            workers = [worker for worker in self.workers() if worker["state"] != "stopped"]
            return workers if all(worker["state"] == "idle" for worker in workers) else []

        return until(idle, PATIENCE, "all workers to be idle")

    def kill(self, pid: int, signal: str = "KILL") -> None:
        self.machine.run("kill", f"-{signal}", str(pid), check=True)

    # Clients

    def client(self, name: str, *arguments: str) -> Command:
        """Start one of tests/clients; the caller ends it."""
        return self.machine.popen(PYTHON, f"{CLIENTS}/{name}", *arguments, cwd="/tmp")

    def run_client(self, name: str, *arguments: str) -> list[dict[str, Any]]:
        """Run one of tests/clients to its end and return its steps."""
        done = self.machine.run(PYTHON, f"{CLIENTS}/{name}", *arguments, cwd="/tmp", check=True, timeout=120)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def holding_client(self, step: str = "office") -> tuple[Command, dict[str, Any]]:
        """Start a client that has an office and holds it; return it with what it knows of the office."""
        client = self.client("convert.py", "--office", "--hold", step)
        return client, await_step(client, "office")

    def serves(self) -> int:
        """Have a client served; return the pid of its office."""
        office = self.run_client("convert.py", "--office")[-1]
        assert office["step"] == "office", office
        return int(office["pid"])

    def client_fails(self) -> bool:
        """Have a client try; True if it was turned away."""
        return self.machine.run(PYTHON, f"{CLIENTS}/convert.py", "--office").returncode == 1

    def pages(self, pdf: str) -> int:
        """The page count of a PDF on the machine; an error if it does not open."""
        info = self.machine.run("pdfinfo", pdf, check=True).stdout
        return int(info.split("Pages:")[1].split()[0])


def await_step(client: Command, step: str) -> dict[str, Any]:
    """Read what a client tells until it tells that step."""
    assert client.stdout is not None
    for line in client.stdout:
        told: dict[str, Any] = json.loads(line)
        assert told["step"] != "error", told
        if told["step"] == step:
            return told
    raise AssertionError(f"the client ended before {step}: {client.communicate()}")
