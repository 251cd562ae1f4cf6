#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Carry out a plan, inside the machine: run the sessions, some at a time, and have the faults happen between them.

    drive.py SESSIONS SEED DIRECTORY

Leaves in DIRECTORY what each client saw (sessions.jsonl) and what befell the machine (faults.jsonl).
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
from talk import OPENING, Connection, Talk, listen_to

AT_A_TIME = 10
# How long, in seconds, a client bears to hear nothing: more than any wait here but for an office that hangs.
PATIENCE = 15.0
REAL_PATIENCE = 40.0
# How long a client is left with an office that it has had hang, before it is killed.
LOOPING = 1.0
# After so many in a row that have heard nothing there is no service any more.
HOPELESS = 3 * AT_A_TIME
DOCUMENTS = "/srv/documents"
CONFIGURATIONS = ("/etc/ooodd/ooodd.toml", "/etc/ooodd/other.toml")


@dataclass
class Seen:
    """What a client saw."""

    number: int
    kind: str
    client: str = ""
    # In seconds of the epoch.
    begun: float = field(default_factory=time.time)
    ended: float = 0.0
    # "served", "refused" or "fault", and, of the last, whose: "own" or "other", or "patience".
    outcome: str = "fault"
    whose: str = "other"
    said: str = ""
    # Whether an office said anything, and how much.
    received: int = 0

    def end(self, outcome: str, whose: str = "", said: str = "") -> None:
        self.outcome, self.whose, self.said = outcome, whose, said


# Clients of raw URP


async def converse(session: plan.Session, seen: Seen) -> None:
    """Be one client."""
    async with Connection() as connection:
        seen.client = connection.name
        try:
            async with asyncio.timeout(PATIENCE):
                await talk_with_office(session, seen, connection)
        except TimeoutError:
            seen.end("fault", "patience", f"nothing for {PATIENCE:g} s")
        except (EOFError, OSError) as error:
            seen.end("fault", "other", str(error))
        except ProtocolError as error:
            seen.end("fault", "other", f"PROTOCOL: {error.message}")
        finally:
            seen.received = connection.received


async def talk_with_office(session: plan.Session, seen: Seen, connection: Connection) -> None:
    talk = Talk(session.rounds)
    await connection.send(OPENING)
    turn = 0
    if session.kind == "leave":
        await asyncio.sleep(session.pause)
        seen.end("fault", "own", "left")
        return
    while answer := await listen_to(connection, talk):
        turn += 1
        if turn == session.turn:
            await asyncio.sleep(session.pause)
            if session.kind in ("gone", "gone-amid-call", "reset"):
                await end_badly(session, seen, connection, answer)
                return
        await connection.send(answer)
    await end_well(session, seen, connection, talk)


async def end_badly(session: plan.Session, seen: Seen, connection: Connection, answer: bytes) -> None:
    if session.kind == "gone-amid-call":
        await connection.send(answer)
    if session.kind == "reset":
        connection.reset_at_close()
    seen.end("fault", "own", session.kind)


async def end_well(session: plan.Session, seen: Seen, connection: Connection, talk: Talk) -> None:
    if talk.refused:
        seen.end("refused", "", talk.refused)
    elif not (talk.findings and talk.findings.clean):
        seen.end("fault", "other", f"NOT CLEAN: {talk.findings}")
    elif session.kind in ("gone", "gone-amid-call", "reset"):
        await end_badly(session, seen, connection, b"")
    else:
        if session.kind == "half-close":
            connection.socket.shutdown(1)
            await connection.until_end()
        seen.end("served")


# Real clients


class RealClients:
    """The process that makes them, see uno_sessions.py."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._steps: dict[int, asyncio.Queue[dict[str, Any]]] = {}
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls) -> RealClients:
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
            told = json.loads(line)
            if (steps := self._steps.get(told["session"])) is not None:  # who was waited for too long has still an end
                steps.put_nowait(told)

    async def be(self, session: plan.Session, seen: Seen) -> None:
        """Have one client, to its end."""
        assert self._process.stdin is not None
        steps = self._steps[session.number] = asyncio.Queue()
        order = {"session": session.number, "kind": session.kind, "document": f"{DOCUMENTS}/{session.document}"}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        pid = 0
        seen.end("fault", "own", session.kind)
        try:
            async with asyncio.timeout(REAL_PATIENCE):
                while (told := await steps.get())["step"] != "exit":
                    if told["step"] == "connected":
                        pid, seen.client = told["pid"], told["client"]
                    await follow(session, seen, told, pid)
                if told["status"] < 0 and seen.whose != "own":
                    seen.said += f" (client ended by signal {-told['status']})"
        except TimeoutError:
            seen.end("fault", "patience", f"nothing for {REAL_PATIENCE:g} s")
            if pid:
                kill(pid)
        del self._steps[session.number]


async def follow(session: plan.Session, seen: Seen, told: dict[str, Any], pid: int) -> None:
    """See a step of a real client, and kill it where the plan says so."""
    match told["step"], session.kind:
        case "served", _:
            seen.received = 1
        case "done", _:
            seen.end("served")
        case "error", "abort" if "ooodd:" not in told["message"]:
            pass
        case "error", _:
            refused = "ooodd:" in told["message"]
            seen.end("refused" if refused else "fault", "other", f"{told['type']}: {told['message']}")
        case ("faulting", "convert-killed") | ("holding", _):
            await asyncio.sleep(session.pause)
            kill(pid)
        case "faulting", "basic-loop":
            await asyncio.sleep(LOOPING)
            kill(pid)


def kill(pid: int) -> None:
    """Kill a client, which may have ended already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


# Faults


async def command(*words: str) -> str:
    """Run a command to its end; its failure is part of what is told."""
    pipe, join = asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT
    process = await asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=join)
    output, _ = await process.communicate()
    return output.decode().strip() + (f" (status {process.returncode})" if process.returncode else "")


def offices() -> list[tuple[int, str]]:
    """Return pid and unit of each office that runs."""
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
    """Kill it, and return when there is another: systemd gives no event but that."""
    if not (pid := await main_pid()):
        return "no broker ran"
    os.kill(pid, signal.SIGKILL)
    while await main_pid() in (0, pid):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    return str(pid)


async def reload(_: plan.Fault) -> str:
    """Change between two configurations."""
    path, other = map(Path, CONFIGURATIONS)
    was, will = path.read_text(), other.read_text()
    path.write_text(will)
    other.write_text(was)
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
        self._places = asyncio.Semaphore(AT_A_TIME)
        # One fault at a time, in the plan's order.
        self._fault = asyncio.Lock()
        self._told: list[dict[str, Any]] = []
        self._seen: list[Seen] = []
        self._in_vain = 0

    async def run(self) -> None:
        real = await RealClients.start()
        async with asyncio.TaskGroup() as tasks:
            for session in self._sessions:
                if not session.burst:
                    await self._places.acquire()
                if self._in_vain >= HOPELESS:
                    print("nobody is served any more", file=sys.stderr)
                    break
                if (fault := self._faults.get(session.number)) is not None:
                    tasks.create_task(self._befall(fault))
                tasks.create_task(self._be(session, real))
        await real.close()
        self._write("sessions.jsonl", [asdict(seen) for seen in self._seen])
        self._write("faults.jsonl", self._told)

    async def _befall(self, fault: plan.Fault) -> None:
        async with self._fault:
            begun = time.time()
            said = await FAULTS[fault.kind](fault)
            self._told.append({**asdict(fault), "begun": begun, "ended": time.time(), "said": said})

    async def _be(self, session: plan.Session, real: RealClients) -> None:
        seen = Seen(session.number, session.kind)
        self._seen.append(seen)
        if len(self._seen) % 500 == 0:
            print(f"{len(self._seen)} sessions have begun", file=sys.stderr, flush=True)
        try:
            await (real.be(session, seen) if session.kind in plan.REAL else converse(session, seen))
        finally:
            seen.ended = time.time()
            self._in_vain = self._in_vain + 1 if seen.whose == "patience" else 0
            if not session.burst:
                self._places.release()

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
