#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Carry out a plan inside the machine: run the sessions, several at a time, and inject the faults.

    drive.py SESSIONS SEED DIRECTORY

It writes to DIRECTORY what each client saw (sessions.jsonl) and which faults happened (faults.jsonl).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import plan
from ooodd.errors import ProtocolError
from talk import OPENING, Connection, Talk, receive_until_answer

CONCURRENT_SESSIONS = 10
# How long a client waits without receiving anything, in seconds. Only a hung office takes longer.
URP_TIMEOUT = 15.0
UNO_TIMEOUT = 40.0
# How long a client that has hung its office lives before it is killed, in seconds.
HANG_TIME = 1.0
# After so many timeouts in a row, the service is considered dead and the run ends.
MOST_TIMEOUTS = 3 * CONCURRENT_SESSIONS
DOCUMENTS = "/srv/documents"
CONFIGURATIONS = ("/etc/ooodd/ooodd.toml", "/etc/ooodd/other.toml")


@dataclass
class Seen:
    """What one client saw."""

    number: int
    kind: str
    client: str = ""
    # In seconds of the epoch.
    begun: float = field(default_factory=time.time)
    ended: float = 0.0
    # "served", "refused" or "fault". For a fault, `whose` is "own" (in the plan of the client), "other" or "timeout".
    outcome: str = "fault"
    whose: str = "other"
    said: str = ""
    # The number of bytes from the office. A client with pyuno has 1 once it has an office.
    received: int = 0

    def end(self, outcome: str, whose: str = "", said: str = "") -> None:
        self.outcome, self.whose, self.said = outcome, whose, said


# Clients of raw URP


async def run_urp_client(session: plan.Session, seen: Seen) -> None:
    """Run one client to its end."""
    async with Connection() as connection:
        seen.client = connection.name
        try:
            async with asyncio.timeout(URP_TIMEOUT):
                await talk_with_office(session, seen, connection)
        except TimeoutError:
            seen.end("fault", "timeout", f"nothing for {URP_TIMEOUT:g} s")
        except (EOFError, OSError) as error:
            seen.end("fault", "other", str(error))
        except ProtocolError as error:
            seen.end("fault", "other", f"PROTOCOL: {error.message}")
        finally:
            seen.received = connection.received


async def talk_with_office(session: plan.Session, seen: Seen, connection: Connection) -> None:
    talk = Talk(session.rounds)
    await connection.send(OPENING)
    count = 0
    if session.kind == "leave":
        await asyncio.sleep(session.pause)
        seen.end("fault", "own", "left")
        return
    while answer := await receive_until_answer(connection, talk):
        count += 1
        if count == session.pause_before:
            await asyncio.sleep(session.pause)
            if session.kind in ("gone", "gone-during-call", "reset"):
                await disconnect(session, seen, connection, answer)
                return
        await connection.send(answer)
    await finish(session, seen, connection, talk)


async def disconnect(session: plan.Session, seen: Seen, connection: Connection, answer: bytes) -> None:
    if session.kind == "gone-during-call":
        await connection.send(answer)
    if session.kind == "reset":
        connection.reset_at_close()
    seen.end("fault", "own", session.kind)


async def finish(session: plan.Session, seen: Seen, connection: Connection, talk: Talk) -> None:
    if talk.refused:
        seen.end("refused", "", talk.refused)
    elif not (talk.result and talk.result.clean):
        seen.end("fault", "other", f"NOT CLEAN: {talk.result}")
    elif session.kind in ("gone", "gone-during-call", "reset"):
        await disconnect(session, seen, connection, b"")
    else:
        if session.kind == "half-close":
            connection.socket.shutdown(1)
            await connection.until_end()
        seen.end("served")


# Clients with pyuno


class UnoClients:
    """The process that forks the clients with pyuno, see uno_sessions.py."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._steps: dict[int, asyncio.Queue[dict[str, Any]]] = {}
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls) -> UnoClients:
        script = str(Path(__file__).with_name("uno_sessions.py"))
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec("/usr/bin/python3", script, stdin=pipe, stdout=pipe))

    async def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            step = json.loads(line)
            if (steps := self._steps.get(step["session"])) is not None:  # after a timeout, nothing waits for the steps
                steps.put_nowait(step)

    async def run(self, session: plan.Session, seen: Seen) -> None:
        """Run one client to its end."""
        assert self._process.stdin is not None
        steps = self._steps[session.number] = asyncio.Queue()
        order = {"session": session.number, "kind": session.kind, "document": f"{DOCUMENTS}/{session.document}"}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        pid = 0
        seen.end("fault", "own", session.kind)
        try:
            async with asyncio.timeout(UNO_TIMEOUT):
                while (step := await steps.get())["step"] != "exit":
                    if step["step"] == "connected":
                        pid, seen.client = step["pid"], step["client"]
                    await follow(session, seen, step, pid)
                if step["status"] < 0 and seen.whose != "own":
                    seen.said += f" (client ended by signal {-step['status']})"
        except TimeoutError:
            seen.end("fault", "timeout", f"nothing for {UNO_TIMEOUT:g} s")
            if pid:
                kill(pid)
        del self._steps[session.number]


async def follow(session: plan.Session, seen: Seen, step: dict[str, Any], pid: int) -> None:
    """Record a step of a client with pyuno, and kill the client where the plan says so."""
    match step["step"], session.kind:
        case "served", _:
            seen.received = 1
        case "done", _:
            seen.end("served")
        case "error", "abort" if "ooodd:" not in step["message"]:
            pass
        case "error", _:
            refused = "ooodd:" in step["message"]
            seen.end("refused" if refused else "fault", "other", f"{step['type']}: {step['message']}")
        case ("faulting", "convert-killed") | ("holding", _):
            await asyncio.sleep(session.pause)
            kill(pid)
        case "faulting", "basic-loop":
            await asyncio.sleep(HANG_TIME)
            kill(pid)


def kill(pid: int) -> None:
    """Kill a client, which may have ended already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


# Faults


async def command(*words: str) -> str:
    """Run a command to its end. Return its output, and its status if it failed."""
    pipe, join = asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT
    process = await asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=join)
    output, _ = await process.communicate()
    return output.decode().strip() + (f" (status {process.returncode})" if process.returncode else "")


def offices() -> list[tuple[int, str]]:
    """Return pid and unit of each running office."""
    found = []
    for directory in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if directory.name.isdecimal() and (directory / "comm").read_text() == "soffice.bin\n":
                unit = re.search(r"ooodd-worker@(\d+)\.service", (directory / "cgroup").read_text())
                found.append((int(directory.name), unit[0] if unit else "?"))
    return sorted(found)


def signal_office(number: signal.Signals) -> Callable[[plan.Fault], Any]:
    async def send(fault: plan.Fault) -> str:
        running = offices()
        if not running:
            return "no office ran"
        pid, unit = running[int(fault.choice * len(running))]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return f"{pid} {unit}"

    return send


async def main_pid() -> int:
    return int(await command("systemctl", "show", "-P", "MainPID", "ooodd.service"))


async def kill_broker(_: plan.Fault) -> str:
    """Kill the broker, and return when there is another. systemd has no event for that."""
    if not (pid := await main_pid()):
        return "no broker ran"
    os.kill(pid, signal.SIGKILL)
    while await main_pid() in (0, pid):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    return str(pid)


async def reload(_: plan.Fault) -> str:
    """Change between two configurations."""
    path, other = map(Path, CONFIGURATIONS)
    old, new = path.read_text(), other.read_text()
    path.write_text(new)
    other.write_text(old)
    return await command("systemctl", "reload", "ooodd.service")


def systemctl(*words: str) -> Callable[[plan.Fault], Any]:
    async def run(_: plan.Fault) -> str:
        return await command("systemctl", *words)

    return run


FAULTS: dict[str, Callable[[plan.Fault], Any]] = {
    "worker-kill": signal_office(signal.SIGKILL),
    "worker-abort": signal_office(signal.SIGABRT),
    "worker-stop": signal_office(signal.SIGSTOP),
    "broker-kill": kill_broker,
    "broker-restart": systemctl("restart", "ooodd.service"),
    "reload": reload,
    "bus-restart": systemctl("restart", "dbus.service"),
    "polkit-stop": systemctl("stop", "polkit.service"),
}


class Drive:
    """One run of a plan."""

    def __init__(self, sessions: list[plan.Session], faults: list[plan.Fault], directory: Path) -> None:
        self._sessions = sessions
        self._faults = {fault.before: fault for fault in faults}
        self._directory = directory
        self._slots = asyncio.Semaphore(CONCURRENT_SESSIONS)
        # Faults happen one at a time, in the order of the plan.
        self._fault_lock = asyncio.Lock()
        self._fault_records: list[dict[str, Any]] = []
        self._seen: list[Seen] = []
        self._timeouts_in_a_row = 0

    async def run(self) -> None:
        uno_clients = await UnoClients.start()
        async with asyncio.TaskGroup() as tasks:
            for session in self._sessions:
                if not session.burst:
                    await self._slots.acquire()
                if self._timeouts_in_a_row >= MOST_TIMEOUTS:
                    print("no client is served any more", file=sys.stderr)
                    break
                if (fault := self._faults.get(session.number)) is not None:
                    tasks.create_task(self._inject(fault))
                tasks.create_task(self._run_session(session, uno_clients))
        await uno_clients.close()
        self._write("sessions.jsonl", [asdict(seen) for seen in self._seen])
        self._write("faults.jsonl", self._fault_records)

    async def _inject(self, fault: plan.Fault) -> None:
        async with self._fault_lock:
            begun = time.time()
            said = await FAULTS[fault.kind](fault)
            self._fault_records.append({**asdict(fault), "begun": begun, "ended": time.time(), "said": said})

    async def _run_session(self, session: plan.Session, uno_clients: UnoClients) -> None:
        seen = Seen(session.number, session.kind)
        self._seen.append(seen)
        if len(self._seen) % 500 == 0:
            print(f"{len(self._seen)} sessions have begun", file=sys.stderr, flush=True)
        try:
            await (uno_clients.run(session, seen) if session.kind in plan.UNO_KINDS else run_urp_client(session, seen))
        finally:
            seen.ended = time.time()
            self._timeouts_in_a_row = self._timeouts_in_a_row + 1 if seen.whose == "timeout" else 0
            if not session.burst:
                self._slots.release()

    def _write(self, name: str, lines: list[dict[str, Any]]) -> None:
        (self._directory / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def main() -> None:
    """Run the plan."""
    parser = argparse.ArgumentParser(description="Carry out a soak's plan.")
    parser.add_argument("sessions", type=int)
    parser.add_argument("seed", type=int)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    asyncio.run(Drive(*plan.make(arguments.sessions, arguments.seed), arguments.directory).run())


if __name__ == "__main__":
    main()
