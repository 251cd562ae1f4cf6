# SPDX-License-Identifier: LGPL-2.1-or-later
"""A broker that is killed at any line of its code, and the broker that follows it."""

import asyncio
import contextlib
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, Self

from fakes import (
    GREETING,
    OPENING,
    settled,
    until,
)
from ooodd import messages
from ooodd.broker import adoption, driver, kept, session
from ooodd.broker import broker as broker_module
from ooodd.broker import client as client_module
from ooodd.datapath import forward, record
from ooodd.pool.pool import State
from ooodd.systemd import fdstore, marks
from succession import HELLO, ONE, TWO, Machine, SystemdStorage, all_of, echoes, machine, turns


class Killed(BaseException):
    """The broker is dead."""


class KilledEagerly(Exception):  # noqa: N818 - as Killed, for code that the selector calls
    """The broker is dead."""


VISITS = 4
TRACED = {
    module.__file__
    for module in (adoption, broker_module, client_module, driver, fdstore, forward, kept, marks, record, session)
}


class Killer:
    """Kills the broker at its n-th executed line, and counts the lines. Each line counts at most VISITS times."""

    def __init__(self, it: Machine, line: int | None) -> None:
        self.it = it
        self.line = line
        self.lines = 0
        self.where = ""
        self.names = [""]
        self.happened = asyncio.Event()
        self._visits: Counter[str] = Counter()

    def trace(self, frame: FrameType, _: str, __: object) -> Any:  # noqa: ANN401 - the type of sys.settrace
        return self.step if frame.f_code.co_filename in TRACED else None

    def step(self, frame: FrameType, event: str, _: object) -> Any:  # noqa: ANN401
        if event == "line":
            place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
            self._visits[place] += 1
            if self._visits[place] > VISITS:
                return self.step
            self.lines += 1
            if self.lines == self.line:
                self.where = place
                self.it.kill()
                self.happened.set()
                self.names = [each.f_code.co_name for each in _stack(frame)]
                self.it.note_sockets(each for at in _stack(frame) for each in at.f_locals.values())
                raise KilledEagerly if "_handle" in self.names else Killed
        return self.step

    def __enter__(self) -> Self:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


class TwoClients:
    """Two clients that use one office one after the other, the data that they send, and the data that they receive."""

    def __init__(self, it: Machine) -> None:
        self.sent = [OPENING + (OPENING[:10] + b"client%d" % number) * 200 for number in range(2)]
        self.received: list[bytes] = []
        self._it = it
        self._tasks: list[asyncio.Task[bytes]] = []

    async def run(self) -> None:
        """Run both clients, even if the broker is killed meanwhile."""
        self._tasks = [asyncio.create_task(self._one(sent)) for sent in self.sent]
        self.received = await asyncio.gather(*self._tasks)

    async def _one(self, sent: bytes) -> bytes:
        async with self._it.client() as client:
            received = b""
            with contextlib.suppress(OSError):
                for at in range(0, len(sent), 1000):
                    await client.send(sent[at : at + 1000])
                    await turns(2)
                received = await client.receive(len(GREETING + sent))
                client.socket.shutdown(socket.SHUT_WR)
            return received + await all_of(client)


async def kill_at(line: int | None) -> Killer:
    """Kill the broker at a line while two clients run, and check that the next broker loses no more than it must."""
    async with machine(ONE, storage=SystemdStorage()) as it:
        it.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 10)  # as ooodd.socket does
        await settled(it.broker.pool, State.IDLE)
        offices = set(it.fake.offices.values())
        clients = TwoClients(it)
        with Killer(it, line) as killer:
            running = asyncio.create_task(clients.run())
            killed = asyncio.create_task(killer.happened.wait())
            await asyncio.wait([running, killed], return_when=asyncio.FIRST_COMPLETED)
            killed.cancel()
            if line is None:
                await settled(it.broker.pool, State.IDLE)
        lost: set[object] = set()
        stored: set[str] = set()
        if killer.happened.is_set():
            await it.clean_up_after_kill()
            stored = set(it.left)
            await it.begin()
            lost = {fields["session"] for message, fields in it.journal.lines if message is messages.SESSION_LOST}
        await running
        await settled(it.broker.pool, State.IDLE)
        offices |= set(it.fake.offices.values())
        complete = [GREETING + sent for sent in clients.sent]
        cut = [number for number, received in enumerate(clients.received) if received != complete[number]]
        assert all(complete[number].startswith(clients.received[number]) for number in cut), killer.where
        # A client is cut off only if it was not in the store, or if some of its data may be lost.
        kept_sessions = {name.split("-")[1] for name in stored} - {str(session) for session in lost}
        assert len(cut) <= 2 - len(kept_sessions), killer.where
        # The journal reports this, unless the kill came just before the client was marked as accepted.
        reported = it.journal.count(messages.SESSION_LOST) + it.journal.count(messages.CLIENT_LOST)
        assert len(cut) <= reported or killer.names[0] in ("_accept", "accepted", "last_session"), killer.where
        sessions = [session for office in offices for session in office.sessions]
        assert all(any(sent.startswith(session) for sent in clients.sent) for session in sessions), killer.where
        assert all(sessions.count(clients.sent[number]) == 1 for number in {0, 1} - set(cut)), killer.where
        assert all(office.most_clients <= 1 for office in offices), killer.where
        between = "mark" in killer.names  # counted, but not marked yet
        assert 2 - len(cut) <= it.broker.pool.totals.sessions <= 2 + between, killer.where
        async with it.client() as client:
            assert await client.open() == HELLO, killer.where
        assert it.broker.pool.totals.crashed == it.broker.pool.totals.hung == 0, killer.where
        return killer


async def test_a_broker_can_be_killed_at_any_line() -> None:
    lines = (await kill_at(None)).lines
    assert lines > 500
    places = {(await kill_at(line)).where for line in range(1, lines + 50, 6)}
    assert len(places) > 80


async def test_a_broker_can_be_killed_at_any_line_of_its_adoption() -> None:
    for line in count(1, 5):
        async with machine(TWO, storage=SystemdStorage()) as it, contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(it.client()) for _ in range(4)]
            for client in clients:
                await client.send(OPENING)
            await it.journal.wait_for(messages.SESSION_BEGIN, 2)
            await until(lambda: len(it.broker.pool.queue) == 2)
            it.kill()
            await it.clean_up_after_kill()
            killer = Killer(it, line)
            with contextlib.suppress(Killed):
                await it.begin(watch=killer)
            if killer.happened.is_set():
                await it.clean_up_after_kill()
                await it.begin()
            # A session is lost if the killed broker may have held some of its data.
            lost = {fields["session"] for message, fields in it.journal.lines if message is messages.SESSION_LOST}
            for session, client in enumerate(clients[:2], 1):
                if session in lost:
                    assert await client.ended(), killer.where
                else:
                    assert await client.receive(len(HELLO)) == HELLO, killer.where
                    assert await echoes(client), killer.where
                client.socket.close()
            for client in clients[2:]:
                assert await client.receive(len(HELLO)) == HELLO, killer.where
            if not killer.happened.is_set():
                assert line > 100
                break
