# SPDX-License-Identifier: LGPL-2.1-or-later
"""A broker that is killed at any line, and the broker that follows it."""

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

from succession import HELLO, ONE, TWO, Machine, SystemdKeep, all_of, echoes, machine, turns

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


class Killed(BaseException):
    """The broker is dead."""


class KilledEagerly(Exception):  # noqa: N818 - the same, where the selector would pass on no other
    """The broker is dead."""


VISITS = 4
TRACED = {
    module.__file__
    for module in (adoption, broker_module, client_module, driver, fdstore, forward, kept, marks, record, session)
}


class Death:
    """Kills the broker at the n-th line that it comes to, and counts them; a line of a long loop counts a few times."""

    def __init__(self, it: Machine, line: int | None) -> None:
        self.it = it
        self.line = line
        self.lines = 0
        self.where = ""
        self.names = [""]
        self.happened = asyncio.Event()
        self._visits: Counter[str] = Counter()

    def trace(self, frame: FrameType, _: str, __: object) -> Any:  # noqa: ANN401 - as sys.settrace wants it
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
                self.it.seize(each for at in _stack(frame) for each in at.f_locals.values())
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


class Story:
    """Two clients, one after the other on one office, each with something to say, and what they hear."""

    def __init__(self, it: Machine) -> None:
        self.said = [OPENING + (OPENING[:10] + b"client%d" % number) * 200 for number in range(2)]
        self.heard: list[bytes] = []
        self._it = it
        self._tasks: list[asyncio.Task[bytes]] = []

    async def tell(self) -> None:
        """Tell it, whatever becomes of the broker."""
        self._tasks = [asyncio.create_task(self._one(said)) for said in self.said]
        self.heard = await asyncio.gather(*self._tasks)

    async def _one(self, said: bytes) -> bytes:
        async with self._it.client() as client:
            heard = b""
            with contextlib.suppress(OSError):
                for at in range(0, len(said), 1000):
                    await client.send(said[at : at + 1000])
                    await turns(2)
                heard = await client.receive(len(GREETING + said))
                client.socket.shutdown(socket.SHUT_WR)
            return heard + await all_of(client)


async def live_and_die(line: int | None) -> Death:
    """Let a broker die at a line of that story, and see that the next one makes the best of it."""
    async with machine(ONE, keep=SystemdKeep()) as it:
        it.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 10)  # as ooodd.socket does
        await settled(it.broker.pool, State.IDLE)
        offices = set(it.fake.offices.values())
        story = Story(it)
        with Death(it, line) as death:
            telling = asyncio.create_task(story.tell())
            dying = asyncio.create_task(death.happened.wait())
            await asyncio.wait([telling, dying], return_when=asyncio.FIRST_COMPLETED)
            dying.cancel()
            if line is None:
                await settled(it.broker.pool, State.IDLE)
        lost: set[object] = set()
        stored: set[str] = set()
        if death.happened.is_set():
            await it.bury()
            stored = set(it.left)
            await it.begin()
            lost = {fields["session"] for message, fields in it.journal.lines if message is messages.SESSION_LOST}
        await telling
        await settled(it.broker.pool, State.IDLE)
        offices |= set(it.fake.offices.values())
        whole = [GREETING + said for said in story.said]
        cut = [number for number, heard in enumerate(story.heard) if heard != whole[number]]
        assert all(whole[number].startswith(story.heard[number]) for number in cut), death.where
        # A client is cut off only if it wasn't in the store, or if bytes of it may be lost.
        spared = {name.split("-")[1] for name in stored} - {str(session) for session in lost}
        assert len(cut) <= 2 - len(spared), death.where
        # And the journal tells of it, unless the kill came just before the mark that it was accepted.
        told = it.journal.count(messages.SESSION_LOST) + it.journal.count(messages.CLIENT_LOST)
        assert len(cut) <= told or death.names[0] in ("_accept", "accepted", "last_session"), death.where
        sessions = [session for office in offices for session in office.sessions]
        assert all(any(said.startswith(session) for said in story.said) for session in sessions), death.where
        assert all(sessions.count(story.said[number]) == 1 for number in {0, 1} - set(cut)), death.where
        assert all(office.most_clients <= 1 for office in offices), death.where
        between = "mark" in death.names  # counted, but not marked yet
        assert 2 - len(cut) <= it.broker.pool.totals.sessions <= 2 + between, death.where
        async with it.client() as client:
            assert await client.open() == HELLO, death.where
        assert it.broker.pool.totals.crashed == it.broker.pool.totals.hung == 0, death.where
        return death


async def test_a_broker_may_be_killed_at_any_line() -> None:
    lines = (await live_and_die(None)).lines
    assert lines > 500
    places = {(await live_and_die(line)).where for line in range(1, lines + 50, 6)}
    assert len(places) > 80


async def test_a_broker_may_be_killed_at_any_line_of_its_taking_over() -> None:
    for line in count(1, 5):
        async with machine(TWO, keep=SystemdKeep()) as it, contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(it.client()) for _ in range(4)]
            for client in clients:
                await client.send(OPENING)
            await it.journal.wait_for(messages.SESSION_BEGIN, 2)
            await until(lambda: len(it.broker.pool.queue) == 2)
            it.kill()
            await it.bury()
            death = Death(it, line)
            with contextlib.suppress(Killed):
                await it.begin(watch=death)
            if death.happened.is_set():
                await it.bury()
                await it.begin()
            # One is given up if the kill came while bytes of it were, or may have been, in the broker.
            lost = {fields["session"] for message, fields in it.journal.lines if message is messages.SESSION_LOST}
            for session, client in enumerate(clients[:2], 1):
                if session in lost:
                    assert await client.ended(), death.where
                else:
                    assert await client.receive(len(HELLO)) == HELLO, death.where
                    assert await echoes(client), death.where
                client.socket.close()
            for client in clients[2:]:
                assert await client.receive(len(HELLO)) == HELLO, death.where
            if not death.happened.is_set():
                assert line > 100
                break
