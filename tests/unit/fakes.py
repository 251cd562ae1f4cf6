# SPDX-License-Identifier: LGPL-2.1-or-later
"""A fake office and its supervisor, for timing and faults that real offices do not reproduce.

The office listens on a real unix socket and sends the greeting of a URP acceptor. It answers the broker's probe in
URP. To a client of these tests, which begins with OPENING, it echoes all data. The name of a fault selects it:

- hang: sends nothing at all. hang-after-session: hangs from the end of its first session.
- deaf: sends its greeting and answers nothing. close-early: closes each connection at once.
- crash-mid-reply: closes a session in the middle of a reply. never-let-go: keeps its connection open after a session.
- leaves-document, leaves-frame: has a document or a frame open after a session.
- rubbish: answers a probe with data that is not URP. no-pipe: does not listen.
- no-calc: makes no Calc documents. hates-calc: closes the connection instead. keeps-calc: never closes them.
"""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, cast

import pytest

from fakeacceptor import Counted, FakeAcceptor
from ooodd.config import Config, parse
from ooodd.datapath import control
from ooodd.errors import StartError
from ooodd.messages import Message
from ooodd.office.office import Office
from ooodd.pool.actions import Reason
from ooodd.pool.pool import Pool, State
from ooodd.systemd.marks import Marks
from urp_office import BrokeOff, OfficeSide

# The data path of all tests that do not choose one; fake offices have an acceptor then.
MODE = os.environ.get("OOODD_TESTS_MODE", "")
forward_only = pytest.mark.skipif(bool(MODE), reason="of forwarding alone")
GREETING = OfficeSide().greeting()
# The first block of a UNO client: the block header and a message with all five flags. The message is a release, which
# has no reply.
OPENING = struct.pack(">IIBB", 9, 1, 0xF8, 0x02) + b"opening"


CALC = "private:factory/scalc"


def settings(text: str) -> Config:
    """Return a configuration. Offices serve several clients unless it says otherwise: most tests look at that."""
    header, keys = "[pool]\n", "max_uses = 10\nmax_uses_jitter = 3\n"
    text = text if "max_uses" in text else text.replace(header, header + keys)
    config = parse(text, "test")
    if MODE:
        config.data_path.mode = cast("Any", MODE)  # which `parse` lets nobody choose yet
    return config


def first_request() -> bytes:
    """Return a request for StarOffice.ComponentContext, with nothing cached and no protocol properties negotiated."""
    name, oid, tid = b"com.sun.star.uno.XInterface", b"StarOffice.ComponentContext", b"thread"
    type_ = b"\x96\xff\xff" + bytes([len(name)]) + name
    texts = b"".join(bytes([len(text)]) + text + b"\xff\xff" for text in (oid, tid))
    message = b"\xf8\x00" + type_ + texts + type_
    return struct.pack(">II", len(message), 1) + message


class FakeOffice:
    """One office. It records what it received, and the most clients that it had at once."""

    def __init__(self, path: Path, fault: str = "", *, acceptor: bool = False) -> None:
        """With an acceptor it has no pipe, and `path` tells only the directory."""
        self.fault = fault
        self.sessions: list[bytes] = []
        self.probes = 0
        # By which URLs documents were made in it.
        self.made: list[str] = []
        self.most_clients = 0
        self._clients: set[socket.socket] = set()
        self._path = path
        self._acceptor = FakeAcceptor(path.parent / control.NAME, self._take) if acceptor else None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._tasks: set[asyncio.Task[None]] = set()
        # What tells the broker of the sessions that were handed over.
        self._handed: dict[socket.socket, Counted] = {}

    def open(self) -> None:
        if self._acceptor is not None:
            self._acceptor.open()
            return
        self._listener.bind(str(self._path))
        self._listener.listen(5)  # as sal does
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    async def close(self) -> None:
        """End the office: all its connections are closed."""
        if self._listener.fileno() == -1:
            return
        if self._acceptor is not None:
            await self._acceptor.close()
        asyncio.get_running_loop().remove_reader(self._listener)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in (self._listener, *self._clients):
            connection.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)  # noqa: FBT003
        self._clients.add(connection)
        self.most_clients = max(self.most_clients, len(self._clients))
        task = asyncio.create_task(self._serve(connection), name="fake office")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(self, session: Counted) -> None:
        connection = session.connection
        connection.setblocking(False)  # noqa: FBT003
        self._clients.add(connection)
        self._handed[connection] = session
        self.most_clients = max(self.most_clients, len(self._clients))
        try:
            with contextlib.suppress(OSError, BrokeOff):
                await self._talk(connection)
        finally:
            self._clients.discard(connection)
            del self._handed[connection]

    async def _receive(self, connection: socket.socket) -> bytes:
        try:
            data = await asyncio.get_running_loop().sock_recv(connection, 65536)
        except ConnectionError:
            data = b""
        if (session := self._handed.get(connection)) is not None:
            session.took(data)
        return data

    async def _send(self, connection: socket.socket, data: bytes) -> None:
        if (session := self._handed.get(connection)) is not None:
            session.gave(data)
        await asyncio.get_running_loop().sock_sendall(connection, data)

    async def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, BrokeOff):
            await self._talk(connection)
        connection.close()
        self._clients.discard(connection)

    async def _talk(self, connection: socket.socket) -> None:
        if self.fault == "hang":
            await asyncio.Event().wait()
        if self.fault == "close-early":
            return
        await self._send(connection, GREETING)
        first = await self._receive(connection)
        if self.fault == "deaf":
            await asyncio.Event().wait()
        if first[:8] == OPENING[:8]:  # no block of a probe has that size
            await self._echo(connection, first)
        else:
            await self._be_probed(connection, first)

    async def _be_probed(self, connection: socket.socket, data: bytes) -> None:
        used = bool(self.sessions)
        documents = int(used and self.fault == "leaves-document")
        office = OfficeSide(documents, int(used and self.fault == "leaves-frame"), current=bool(documents))
        if self.fault == "keeps-calc":
            office.components = office.frames = self.made.count(CALC)
        office.missing = {CALC} if self.fault == "no-calc" else set()
        office.made = self.made
        self.probes += bool(data)
        while data:
            if self.fault == "hates-calc" and CALC.encode() in data:
                return
            answer = office.receive(data)
            await self._send(connection, b"rubbish!!" if self.fault == "rubbish" and used else answer)
            data = await self._receive(connection)

    async def _echo(self, connection: socket.socket, data: bytes) -> None:
        received = b""
        self.sessions.append(b"")
        session = len(self.sessions) - 1
        while data:
            received += data
            self.sessions[session] = received
            if self.fault == "crash-mid-reply":
                await self._send(connection, data[: len(data) // 2])
                return
            await self._send(connection, data)
            data = await self._receive(connection)
        if self.fault == "hang-after-session":
            self.fault = "hang"
        if self.fault == "never-let-go":
            await asyncio.Event().wait()


class FakeSupervisor:
    """Starts fake offices. `plan` lists the faults of the next offices: "" for none, "refuse" for a failed start."""

    def __init__(self, directory: Path, plan: list[str] | None = None) -> None:
        self.offices: dict[int, FakeOffice] = {}
        self.started: list[int] = []
        self.stopped: list[int] = []
        self.lost: Callable[[int, Office, Reason, str], None] = lambda *_: None
        self._plan = plan or []
        self._directory = directory
        self._handles: dict[int, Office] = {}

    def unit(self, number: int) -> str:
        return f"fake-{number}"

    def journal(self, number: int) -> str:
        return f"fake-{number}"

    async def start(self, number: int) -> Office:
        fault = self._plan.pop(0) if self._plan else ""
        self.started.append(number)
        if fault == "refuse":
            raise StartError("refused by plan", "none")
        if fault == "bug":
            raise ZeroDivisionError
        name = f"p{len(self.started)}"
        directory = self._directory / name
        directory.mkdir()
        fake = FakeOffice(directory / f"OSL_PIPE_{name}", fault, acceptor=bool(MODE))
        self.offices[number] = fake
        if fault != "no-pipe":
            fake.open()
        office = self._handles[number] = Office(self.unit(number), os.getpid(), os.getuid(), directory, name)
        return office

    def ready(self, number: int) -> None:
        """Nothing has to be done."""

    async def stop(self, number: int) -> None:
        self.stopped.append(number)
        if number in self.offices:
            await self.offices.pop(number).close()

    async def running(self) -> dict[int, Office]:
        """Return the offices that still run, for the next broker."""
        return {number: self._handles[number] for number in self.offices}

    async def kill(self, number: int, detail: str = "killed by signal 9") -> None:
        """End the office and report that it was lost."""
        await self.offices.pop(number).close()
        self.lost(number, self._handles[number], Reason.CRASHED, detail)

    async def close(self) -> None:
        for number in list(self.offices):
            await self.stop(number)


class LastingSupervisor:
    """Starts and stops fake offices by jobs. Like jobs of systemd, they go on when the broker that asked has ended."""

    def __init__(self, fake: FakeSupervisor) -> None:
        self.fake = fake
        self.lost: Callable[[int, Office, Reason, str], None] = lambda *_: None
        self._jobs: set[asyncio.Task[None]] = set()
        fake.lost = self._lost

    def unit(self, number: int) -> str:
        return self.fake.unit(number)

    def journal(self, number: int) -> str:
        return self.fake.journal(number)

    def _lost(self, number: int, office: Office, reason: Reason, detail: str) -> None:
        self.lost(number, office, reason, detail)

    async def start(self, number: int) -> Office:
        return await self.fake.start(number)  # this never waits

    def ready(self, number: int) -> None:
        """Nothing has to be done."""

    async def stop(self, number: int) -> None:
        job = asyncio.create_task(self.fake.stop(number), name=f"stop job {number}")
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        await asyncio.shield(job)

    async def running(self) -> dict[int, Office]:
        return await self.fake.running()

    async def vanish(self, number: int) -> None:
        """End an office without a report."""
        await self.fake.offices.pop(number).close()

    async def close(self) -> None:
        await asyncio.gather(*self._jobs, return_exceptions=True)
        await self.fake.close()


class ListJournal:
    """Keeps all log messages. A test can wait for one."""

    def __init__(self) -> None:
        self.lines: list[tuple[Message, dict[str, object]]] = []
        self._logged = asyncio.Event()

    def log(self, message: Message, **fields: object) -> None:
        message.text.format_map(fields)  # fails if a field is missing
        self.lines.append((message, fields))
        self._logged.set()

    def set_level(self, level: str) -> None:
        self.level = level

    def close(self) -> None:
        pass

    def count(self, message: Message) -> int:
        return sum(logged is message for logged, _ in self.lines)

    async def wait_for(self, message: Message, count: int = 1) -> dict[str, object]:
        while self.count(message) < count:
            self._logged.clear()
            await self._logged.wait()
        return [fields for logged, fields in self.lines if logged is message][count - 1]


class ListNotifier:
    """Keeps all messages to the service manager."""

    def __init__(self) -> None:
        self.states: list[str] = []

    def notify(self, state: str, fds: Sequence[int] = ()) -> None:  # noqa: ARG002
        self.states.append(state)


class FakeClient:
    """A client of the broker."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)  # noqa: FBT003
        self._address = address

    async def __aenter__(self) -> Self:
        await asyncio.get_running_loop().sock_connect(self.socket, self._address)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.socket.close()

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def receive(self, size: int) -> bytes:
        """Return `size` bytes, or fewer if the other side closes the connection."""
        data = b""
        while len(data) < size and (more := await asyncio.get_running_loop().sock_recv(self.socket, size - len(data))):
            data += more
        return data

    async def open(self) -> bytes:
        """Begin a session and return the first data from the office."""
        await self.send(OPENING)
        return await self.receive(len(GREETING) + len(OPENING))

    async def ended(self) -> bool:
        """Wait for the end of the connection. Return True, for use in an assertion."""
        with contextlib.suppress(ConnectionResetError):
            while await asyncio.get_running_loop().sock_recv(self.socket, 65536):
                pass
        return True


class MemoryFdStore:
    """Keeps duplicates of sockets, for the next broker in the same process."""

    def __init__(self, marks: Marks | None = None) -> None:
        self.marks = marks or Marks()
        self.kept: dict[str, list[socket.socket]] = {}

    def keep(self, name: str, *sockets: socket.socket) -> None:
        assert name not in self.kept
        self.kept[name] = [kept.dup() for kept in sockets]

    def drop(self, name: str) -> None:
        for kept in self.kept.pop(name, []):
            kept.close()

    def take_over(self) -> tuple[Self, dict[str, list[socket.socket]]]:
        """Return the store of the next broker and the kept sockets. The caller has to close the sockets."""
        heir = type(self)(Marks(bytearray(self.marks.memory)))
        heir.kept, self.kept = self.kept, {}
        return heir, {name: [each.dup() for each in kept] for name, kept in heir.kept.items()}

    def close(self) -> None:
        """Do nothing: the sockets stay in the store, as in systemd's."""

    def discard(self) -> None:
        for name in list(self.kept):
            self.drop(name)


async def until(condition: Callable[[], object]) -> None:
    """Run the event loop until the condition holds. The hang limit ends a test whose condition never holds."""
    while not condition():  # noqa: ASYNC110 - the condition has no event
        await asyncio.sleep(0)


def states(pool: Pool) -> list[State]:
    """Return the states of the workers, in the order of their numbers."""
    return [worker.state for worker in pool.workers.values()]


async def settled(pool: Pool, *expected: State) -> None:
    """Wait until the workers have these states."""
    await until(lambda: states(pool) == list(expected))
