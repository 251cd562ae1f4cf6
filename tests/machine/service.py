# SPDX-License-Identifier: LGPL-2.1-or-later
"""The installed service on a machine: its configuration, its state, and clients that use it."""

import json
import os
import socket
import tempfile
import tomllib
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
# How long a test waits for anything, in seconds. It only ends a hang: a start takes 0.3 s on an idle machine.
PATIENCE = 30.0
# Whether sessions are handed over where a test does not say otherwise (`make test-handoff`).
MODE = os.environ.get("OOODD_TESTS_MODE", "")
HANDED_OVER = MODE == "handoff"
IN_SERVICE = ("idle", "busy", "inspecting")


class Service:
    """ooodd on one machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def configure(self, text: str = "", *, reclaims: bool = False) -> None:
        """Stop everything, write the configuration, and start the socket only.

        :param reclaims: whether sessions are reclaimed as by default. Most tests have clients that hold a session and
            do nothing, and would lose it as soon as another one waits.
        """
        self.stop()
        self.machine.put(CONFIGURATION, for_tests(text, reclaims=reclaims))
        self.machine.run("systemctl", "start", "ooodd.socket", check=True)

    def run_offices_as(self, user: str) -> None:
        """Make the user, and have the offices run as it, by the drop-in that the package has."""
        directory = "/etc/systemd/system/ooodd-worker@.service.d"
        install = f"mkdir -p {directory} && sed s/APPLICATION/{user}/ /usr/lib/ooodd/application-user.conf"
        self.machine.run("useradd", user, check=True)
        self.machine.run("sh", "-c", f"{install} >{directory}/{user}.conf", check=True)
        self.machine.run("systemctl", "daemon-reload", check=True)

    def stop(self) -> None:
        self.machine.run("systemctl", "stop", "ooodd.service", "ooodd.socket", check=True)

    def start(self) -> None:
        self.machine.run("systemctl", "start", "ooodd.service", check=True)

    def status(self) -> dict[str, Any]:
        """What `ooodd status --json` prints; OSError if no broker runs.

        This asks the broker's control socket directly, which needs no process. /proc has the machine's root directory.
        """
        answer = self._control(b'{"method": "io.ooodd.Status"}\0\n').get("parameters")
        if answer is None:  # a version before 0.3, which was sent a line that is no request
            answer = self._control(b'{"command": "status"}\n')
        if "workers" not in answer:
            raise ConnectionResetError(f"the broker said {answer}")
        return answer

    def _control(self, message: bytes) -> dict[str, Any]:
        """Send the control socket a message, and return the answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(f"/proc/{self.machine.pid}/root/run/ooodd/control")
            connection.sendall(message)
            data = b""
            while not data.endswith((b"\0", b"\n")) and (more := connection.recv(1 << 20)):
                data += more
        answer: dict[str, Any] = json.loads(data.rstrip(b"\0") or b"{}")
        return answer

    def status_if_running(self) -> dict[str, Any]:
        """The status, or an empty dictionary while no broker runs."""
        try:
            return self.status()
        except OSError:
            return {}

    def totals(self) -> dict[str, int]:
        totals: dict[str, int] = self.status()["totals"]
        return totals

    def main_pid(self) -> int:
        """The broker's pid in the machine, or 0."""
        return int(self.machine.run("systemctl", "show", "-P", "MainPID", "ooodd.service", check=True).stdout)

    def workers(self) -> list[dict[str, Any]]:
        workers: list[dict[str, Any]] = self.status()["workers"]
        return workers

    def states(self) -> list[str]:
        return [worker["state"] for worker in self.workers()]

    def wait_idle(self) -> list[dict[str, Any]]:
        """Wait until each worker is idle or stopped, and return the idle ones."""

        def idle() -> list[dict[str, Any]]:
            workers = [worker for worker in self.workers() if worker["state"] != "stopped"]
            return workers if all(worker["state"] == "idle" for worker in workers) else []

        return until(idle, PATIENCE, "all workers to be idle")

    def wait_queue(self, length: int) -> None:
        until(lambda: self.status()["queue"]["length"] == length, PATIENCE, f"{length} clients to wait")

    def wait_total(self, name: str, count: int) -> None:
        """Wait until a total reaches `count`; fail if it is higher."""
        until(lambda: self.totals()[name] >= count, PATIENCE, f"{count} {name}")
        assert self.totals()[name] == count

    def wait_whole(self, count: int, without: Iterable[int] = ()) -> dict[str, Any]:
        """Wait until exactly `count` workers are in service, and return the status.

        :param without: pids of old offices; workers that still have one of these do not count.
        """
        gone = set(without)

        def look() -> dict[str, Any]:
            status = self.status_if_running()
            serving = [w for w in status.get("workers", ()) if w["state"] in IN_SERVICE and w["pid"] not in gone]
            return status if len(serving) == count else {}

        return until(look, PATIENCE, f"{count} workers to be in service")

    def kill(self, *pids: int, signal: str = "KILL") -> None:
        self.machine.run("kill", f"-{signal}", *map(str, pids), check=True)

    @contextmanager
    def drop_in(self, unit: str, text: str) -> Iterator[None]:
        """Add a drop-in to a unit, and remove it afterwards."""
        path = f"/etc/systemd/system/{unit}.d/test.conf"
        self.machine.put(path, text)
        self.machine.run("systemctl", "daemon-reload", check=True)
        try:
            yield
        finally:
            self.machine.run("rm", path, check=True)
            self.machine.run("systemctl", "daemon-reload", check=True)

    def lines(self, message: Message, after: str) -> list[Entry]:
        """The journal entries of one kind."""
        return self.machine.journal(None, f"MESSAGE_ID={message.id}", after=after)

    def line(self, message: Message, after: str) -> Entry:
        """The journal entry of one kind; fail if there is not exactly one."""
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
        """Start a client that has a session and keeps it; return the client, and what it says about its office."""
        client = self.client("convert.py", "--office", "--hold", step)
        return client, await_step(client, "office")

    def waiting_client(self, *arguments: str) -> Command:
        """Start a client that has to wait, and return it when it is in the queue."""
        length = self.status()["queue"]["length"]
        client = self.client("convert.py", "--office", *arguments)
        self.wait_queue(length + 1)
        return client

    @contextmanager
    def herd(self, clients: int, *arguments: str) -> Iterator["Herd"]:
        """Run many clients, each of which has one session after the other."""
        with tempfile.TemporaryFile("w+") as events:
            command = [PYTHON, f"{CLIENTS}/herd.py", f"--clients={clients}", *arguments, "/tmp/herd"]
            self.machine.run("rm", "-rf", "/tmp/herd", check=True)
            with self.machine.popen(*command, cwd="/tmp", stdout=events) as process:
                yield Herd(process, Path(f"/proc/self/fd/{events.fileno()}"))

    def serves(self) -> int:
        """Run a client that is served, and return the pid of its office."""
        office = self.run_client("convert.py", "--office")[-1]
        assert office["step"] == "office", office
        return int(office["pid"])

    def client_fails(self) -> bool:
        """Run a client, and return whether it got an error."""
        return self.machine.run(PYTHON, f"{CLIENTS}/convert.py", "--office").returncode == 1

    def pages(self, pdf: str) -> int:
        """The page count of a PDF on the machine; CommandFailed if it is no PDF."""
        info = self.machine.run("pdfinfo", pdf, check=True).stdout
        return int(info.split("Pages:")[1].split()[0])


def show_to_offices(machine: Machine, *paths: str) -> None:
    """Let all offices that start from now on read some files, as docs/files.md says. By default they see none."""
    text = "".join(f"BindReadOnlyPaths={path}\n" for path in paths)
    machine.put("/etc/systemd/system/ooodd-worker@.service.d/documents.conf", f"[Service]\n{text}")
    machine.run("systemctl", "daemon-reload", check=True)


def never_reclaiming(text: str) -> str:
    """The configuration, so that no session is ended for a client that waits."""
    header, key = "[session]\n", 'reclaim_after = "infinity"\n'
    if "reclaim_after" in text:
        return text
    return text.replace(header, header + key) if header in text else f"{text}\n{header}{key}"


def for_tests(text: str, *, reclaims: bool = False) -> str:
    """The configuration with what most tests assume; as it is if it has an error."""
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return text
    return handed_off(several_uses(text if reclaims else never_reclaiming(text)))


def handed_off(text: str) -> str:
    """The configuration, with the data path that OOODD_TESTS_MODE names unless it names one."""
    return f'{text}\n[data_path]\nmode = "{MODE}"\n' if MODE and "data_path" not in text else text


def several_uses(text: str) -> str:
    """The configuration, so that offices serve several clients unless it says otherwise: most tests look at that."""
    header, keys = "[pool]\n", "max_uses = 10\nmax_uses_jitter = 3\n"
    if "max_uses" in text:
        return text
    return text.replace(header, header + keys) if header in text else f"{header}{keys}{text}"


def await_step(client: Command, step: str) -> dict[str, Any]:
    """Read a client's steps up to that one, and return it."""
    assert client.stdout is not None
    for line in client.stdout:
        found: dict[str, Any] = json.loads(line)
        assert found["step"] != "error", found
        if found["step"] == step:
            return found
    raise AssertionError(f"the client ended before {step}: {client.communicate()}")


@dataclass
class Session:
    """One session of a herd. Times are those of time.monotonic(), which all machines share with the host."""

    number: int
    begun: float
    connected: float | None = None
    pid: int | None = None
    ended: float | None = None
    error: str = ""


class Herd:
    """Many clients at work (herd.py)."""

    def __init__(self, process: Command, output: Path) -> None:
        self.process = process
        self._output = output

    def events(self) -> list[dict[str, Any]]:
        """All that the clients have reported so far."""
        return [json.loads(line) for line in self._output.read_text().splitlines()]

    def sessions(self) -> list[Session]:
        """All sessions so far, in the order in which they began."""
        found: dict[int, Session] = {}
        for line in self.events():
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
        """Let each client end after its present session, and return all sessions."""
        _, errors = self.process.communicate(timeout=4 * PATIENCE)
        assert self.process.returncode == 0, errors
        sessions = self.sessions()
        assert all(session.ended is not None for session in sessions), sessions
        return sessions


def finish(client: Command) -> list[dict[str, Any]]:
    """Let a client that holds its session go on to its end; return its further steps."""
    out, _ = client.communicate("go\n", PATIENCE)
    client.release()
    return [json.loads(line) for line in out.splitlines()]


def client_error(client: Command) -> str:
    """Let a client go on to its end, and return the text of its error, or an empty string.

    A client that holds its session calls its office once more before it ends.
    """
    (last, *_) = reversed(finish(client))
    if last["step"] == "error":
        return str(last["message"])
    assert client.returncode == 0, last
    return ""


def out_of_order(sessions: Iterable[Session], tolerance: float = 0.1) -> list[tuple[Session, Session]]:
    """Pairs of sessions in which the client that came first was served last, by more than `tolerance` seconds."""
    served = [session for session in sessions if session.connected is not None]
    return [
        (early, late)
        for early in served
        for late in served
        if early.begun + tolerance < late.begun and (early.connected or 0.0) > (late.connected or 0.0) + tolerance
    ]
