# SPDX-License-Identifier: LGPL-2.1-or-later
"""The installed service on a machine, as an administrator handles it: configuration, systemctl, ooodd status."""

import json
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command import Command
from deadline import until
from journal import Entry
from machine import Machine
from ooodd.messages import Message
from places import CLIENTS, PYTHON

CONFIGURATION = "/etc/ooodd/ooodd.toml"
# Generous: a start takes 0.3 s on an idle machine.
PATIENCE = 30.0
IN_SERVICE = ("idle", "busy", "inspecting")


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
        """What `ooodd status --json` prints, asked for likewise but without a process: OSError if no broker runs.

        The socket is reached through the machine's root directory, as /proc shows it.
        """
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(f"/proc/{self.machine.pid}/root/run/ooodd/control")
            connection.sendall(b'{"command": "status"}\n')
            with connection.makefile("rb") as answers:
                answer: dict[str, Any] = json.loads(answers.readline() or b"{}")
        if "workers" not in answer:
            raise ConnectionResetError(f"the broker said {answer}")
        return answer

    def glance(self) -> dict[str, Any]:
        """The status; empty while no broker runs."""
        try:
            return self.status()
        except OSError:
            return {}

    def totals(self) -> dict[str, int]:
        totals: dict[str, int] = self.status()["totals"]
        return totals

    def main_pid(self) -> int:
        """The broker's pid, 0 if there is none."""
        return int(self.machine.run("systemctl", "show", "-P", "MainPID", "ooodd.service", check=True).stdout)

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

    def wait_queue(self, length: int) -> None:
        until(lambda: self.status()["queue"]["length"] == length, PATIENCE, f"{length} clients to wait")

    def wait_total(self, name: str, count: int) -> None:
        """Wait until `count` are counted, and not one more."""
        until(lambda: self.totals()[name] >= count, PATIENCE, f"{count} {name}")
        assert self.totals()[name] == count

    def wait_whole(self, count: int, without: Iterable[int] = ()) -> dict[str, Any]:
        """Wait until so many workers are in service, none of them with one of those offices; return the status."""
        gone = set(without)

        def look() -> dict[str, Any]:
            status = self.glance()
            serving = [w for w in status.get("workers", ()) if w["state"] in IN_SERVICE and w["pid"] not in gone]
            return status if len(serving) == count else {}

        return until(look, PATIENCE, f"{count} workers to be in service")

    def kill(self, *pids: int, signal: str = "KILL") -> None:
        self.machine.run("kill", f"-{signal}", *map(str, pids), check=True)

    @contextmanager
    def drop_in(self, unit: str, text: str) -> Iterator[None]:
        """Change a unit for a while."""
        path = f"/etc/systemd/system/{unit}.d/test.conf"
        self.machine.put(path, text)
        self.machine.run("systemctl", "daemon-reload", check=True)
        try:
            yield
        finally:
            self.machine.run("rm", path, check=True)
            self.machine.run("systemctl", "daemon-reload", check=True)

    def lines(self, message: Message, after: str) -> list[Entry]:
        """The lines of one kind that the broker has written."""
        return self.machine.journal(None, f"MESSAGE_ID={message.id}", after=after)

    def line(self, message: Message, after: str) -> Entry:
        """The only line of that kind."""
        (line,) = self.lines(message, after)
        return line

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

    def waiting_client(self, *arguments: str) -> Command:
        """Start a client that has to wait, and return it when it does."""
        length = self.status()["queue"]["length"]
        client = self.client("convert.py", "--office", *arguments)
        self.wait_queue(length + 1)
        return client

    @contextmanager
    def herd(self, clients: int, *arguments: str) -> Iterator["Herd"]:
        """Have many clients work all the time."""
        with tempfile.TemporaryFile("w+") as told:
            command = [PYTHON, f"{CLIENTS}/herd.py", f"--clients={clients}", *arguments, "/tmp/herd"]
            self.machine.run("rm", "-rf", "/tmp/herd", check=True)
            with self.machine.popen(*command, cwd="/tmp", stdout=told) as process:
                yield Herd(process, Path(f"/proc/self/fd/{told.fileno()}"))

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


@dataclass
class Session:
    """What one session of a herd has told; times of time.monotonic, the same in any machine."""

    number: int
    begun: float
    connected: float | None = None
    pid: int | None = None
    ended: float | None = None
    error: str = ""


class Herd:
    """Many clients at work."""

    def __init__(self, process: Command, told: Path) -> None:
        self.process = process
        self._told = told

    def sessions(self) -> list[Session]:
        """All sessions so far, in the order in which they began."""
        found: dict[int, Session] = {}
        for line in map(json.loads, self._told.read_text().splitlines()):
            number, event, when = line["session"], line["event"], line["time"]
            if event == "begin":
                found[number] = Session(number, when)
            elif event == "connected":
                found[number].connected = when
            elif event == "office":
                found[number].pid = line["pid"]
            else:
                found[number].ended, found[number].error = when, line["error"]
        return sorted(found.values(), key=lambda session: session.begun)

    def stop(self) -> list[Session]:
        """Have each client end after its session; return all sessions."""
        _, errors = self.process.communicate(timeout=4 * PATIENCE)
        assert self.process.returncode == 0, errors
        sessions = self.sessions()
        assert all(session.ended is not None for session in sessions), sessions
        return sessions


def release(client: Command) -> list[dict[str, Any]]:
    """Let a client that holds go on to its end; return the steps that it has told since."""
    out, _ = client.communicate("go\n", PATIENCE)
    client.release()
    return [json.loads(line) for line in out.splitlines()]


def told_error(client: Command) -> str:
    """Let a client go on to its end, and return the error's text; empty if all went well.

    One that held its office calls it again.
    """
    (last, *_) = reversed(release(client))
    if last["step"] == "error":
        return str(last["message"])
    assert client.returncode == 0, last
    return ""


def out_of_order(sessions: Iterable[Session], tolerance: float = 0.1) -> list[tuple[Session, Session]]:
    """Pairs of sessions of which the one that came clearly earlier was served clearly later."""
    served = [session for session in sessions if session.connected is not None]
    return [
        (early, late)
        for early in served
        for late in served
        if early.begun + tolerance < late.begun and (early.connected or 0.0) > (late.connected or 0.0) + tolerance
    ]
