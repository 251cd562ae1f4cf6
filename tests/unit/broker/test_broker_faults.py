# SPDX-License-Identifier: LGPL-2.1-or-later
"""Faults of a client and of its worker, at every step of a session: each combination, and random ones.

A fault must not affect other clients. It is counted exactly once, and the pool is complete again afterwards.
"""

import asyncio
import contextlib
import random
import socket
import string
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import pytest

from fakes import MODE, OPENING, FakeClient, ListJournal, settled, states, until
from ooodd import messages
from ooodd.broker import session as session_module
from ooodd.broker.client import Client, Phase
from ooodd.datapath.forward import Forwarding
from ooodd.datapath.handoff import Handoff
from ooodd.errors import NoDescriptorError
from ooodd.office.office import Office
from ooodd.pool.actions import Action, Reason
from ooodd.pool.pool import State, Worker
from ooodd.pool.workers import Place
from world import CALL, HELLO, QUERY, World, asks, world

CONFIG = """
[pool]
workers = 3
min_workers = 3
max_uses = 1000
max_uses_jitter = 0
probe_interval = 3600
probe_timeout = 0.1
start_timeout = 1
idle_timeout = "infinity"
[queue]
max_clients = {max_clients}
[session]
grace = 0.02
"""


@pytest.fixture(autouse=True)
def _short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_DIAGNOSIS_LIMIT", "_REFUSAL_LIMIT"):
        monkeypatch.setattr(session_module, name, 0.02)
    monkeypatch.setattr("ooodd.office.keeper.END_TIMEOUT", 0.02)
    monkeypatch.setattr("ooodd.datapath.forward.LINGER_LIMIT", 0.02)


def path_of(client: Client) -> Forwarding | Handoff:
    """Return a client's data path."""
    assert client.tenure is not None
    assert isinstance(client.tenure.path, Forwarding | Handoff)
    return client.tenure.path


class Scene:
    """A broker with three workers. Two of them serve the bystanders: clients that no fault may affect."""

    def __init__(self, it: World, bystanders: list[FakeClient]) -> None:
        self.it = it
        self.bystanders = bystanders
        self.cancelled = 0
        self._numbers = 0

    @property
    def third_worker(self) -> int:
        """The number of the worker that serves no bystander."""
        held = {
            client.tenure and client.tenure.worker
            for client in self.it.broker.driver.clients.values()
            if client.session <= len(self.bystanders)
        }
        (number,) = self.it.broker.pool.workers.keys() - held
        return number

    def task_of(self, session: int) -> "asyncio.Task[None] | None":
        return self.it.broker._tasks.get(session)

    def cancel(self, session: int) -> None:
        """Cancel the task of a client. The broker itself does this only when it ends."""
        task = self.task_of(session)
        if task is not None:
            client = self.it.broker.driver.clients[session]
            if client.phase is Phase.FORWARDING:
                path = path_of(client)
                self.cancelled += isinstance(path, Handoff) or not path._done.done()
            task.cancel()

    async def apply_event(self, number: int, event: str) -> None:
        """Make an event happen to a worker, if the worker exists."""
        supervisor = self.it.supervisor
        office = supervisor.offices.get(number)
        if office is None or event == "nothing":
            return
        if event == "killed":
            await supervisor.kill(number)
        elif event == "ended":
            supervisor.offices.pop(number)
            await office.close()
            supervisor.lost(number, supervisor._handles[number], Reason.ENDED, "exit status 0")
        elif event == "reported-first":
            supervisor.offices.pop(number)
            supervisor.lost(number, supervisor._handles[number], Reason.CRASHED, "killed by signal 9")
            await office.close()
        elif event == "vanished":
            await office.close()
        elif event == "probed":
            await self.probe_all()
        else:
            office.fault = event

    async def probe_all(self) -> None:
        """Make the broker probe every idle worker now."""
        driver = self.it.broker.driver
        workers = self.it.broker.pool.workers
        for worker in workers.first(State.IDLE, len(workers)):
            workers.probes.discard(worker.id)
            workers.probes.add(worker.id, float("-inf"))
        driver._tick()
        await until(lambda: driver._looking is None)

    async def recover(self) -> None:
        """Wait until nothing changes any more, and check that no bystander and no worker is missing."""
        it, alive = self.it, len(self.bystanders)
        pool, keeper = it.broker.pool, it.broker.driver.keeper
        for office in it.supervisor.offices.values():
            office.fault = ""
        await until(lambda: len(it.broker.driver.clients) == alive and not pool.queue)
        for _ in range(2):
            await until(lambda: sorted(states(it.broker.pool)) == [State.BUSY] * alive + [State.IDLE] * (3 - alive))
            await until(lambda: not keeper._tasks)
            await self.probe_all()  # finds the faults that the broker has not noticed yet
        await until(lambda: sorted(states(it.broker.pool)) == [State.BUSY] * alive + [State.IDLE] * (3 - alive))
        await until(lambda: not keeper._tasks)
        for number, client in enumerate(self.bystanders):
            words = b"%d is still connected" % number
            await client.send(words)
            assert await client.receive(len(words)) == words
        assert len(it.broker._tasks) == alive
        assert not len(it.broker._silent)
        assert len(it.broker._hangups._callbacks) == (len(self.bystanders) if MODE else 0)
        assert it.supervisor.offices.keys() == {1, 2, 3}
        self.check_counts()

    def check_counts(self) -> None:
        """Check that each event was counted once and logged once."""
        journal, totals = self.it.journal, self.it.broker.pool.totals
        ends = totals.recycled + totals.crashed + totals.hung + totals.dirty
        failures = journal.count(messages.WORKER_NOT_STARTED)
        assert len(self.it.supervisor.stopped) == ends + failures
        assert len(self.it.supervisor.started) == 3 + ends + failures
        assert journal.count(messages.WORKER_CRASHED) == totals.crashed
        assert journal.count(messages.WORKER_HUNG) == totals.hung
        assert journal.count(messages.WORKER_DIRTY) == totals.dirty
        assert journal.count(messages.WORKER_RECYCLED) == totals.recycled
        assert journal.count(messages.CLIENT_REFUSED) == totals.refused
        begun, ended = journal.count(messages.SESSION_BEGIN), journal.count(messages.SESSION_END)
        assert begun == ended + self.cancelled + len(self.bystanders)
        assert journal.count(messages.INTERNAL_ERROR) == 0
        assert self.it.notifier.states.count("STOPPING=1") == 0
        check_lines(journal)


def check_lines(journal: ListJournal) -> None:
    """Check that each line has all its fields, and that no field is empty."""
    for message, fields in journal.lines:
        names = {name for _, name, _, _ in string.Formatter().parse(message.text) if name}
        assert names <= fields.keys()
        assert all(fields[name] not in (None, "") for name in names), (message.text, fields)
        assert "{" not in message.text.format_map(fields)
        assert "\n" not in message.text.format_map(fields)


@contextlib.asynccontextmanager
async def scene(max_clients: int = 1000, plan: list[str] | None = None) -> AsyncIterator[Scene]:
    async with world(CONFIG.format(max_clients=max_clients), plan) as it, it.client() as first, it.client() as second:
        await settled(it.broker.pool, *[State.IDLE] * 3)
        for client in (first, second):
            assert await client.open() == HELLO
        yield Scene(it, [first, second])


# The steps of a session. Each function takes the victim to that step and returns the number of the worker concerned.


async def connected(at: Scene, victim: FakeClient, _: FakeClient) -> int:
    await until(lambda: session_of(at, victim) in at.it.broker._silent._clients)
    return at.third_worker


async def half_an_opening(at: Scene, victim: FakeClient, other: FakeClient) -> int:
    await victim.send(OPENING[:5])
    return await connected(at, victim, other)


async def opening_unread(at: Scene, victim: FakeClient, other: FakeClient) -> int:
    number = await connected(at, victim, other)
    await victim.send(OPENING)  # the broker has not read it yet
    return number


async def leased(at: Scene, victim: FakeClient, _: FakeClient) -> int:
    number = at.third_worker
    await victim.send(OPENING)
    await until(lambda: at.it.broker.pool.workers[number].client is not None)
    return number


async def forwarding(at: Scene, victim: FakeClient, _: FakeClient) -> int:
    number = at.third_worker
    assert await victim.open() == HELLO
    return number


async def during_a_call(at: Scene, victim: FakeClient, other: FakeClient) -> int:
    number = await forwarding(at, victim, other)
    await victim.send(CALL)
    await victim.receive(len(CALL))
    return number


async def half_closed(at: Scene, victim: FakeClient, other: FakeClient) -> int:
    number = await forwarding(at, victim, other)
    at.it.supervisor.offices[number].fault = "never-let-go"
    victim.socket.shutdown(socket.SHUT_WR)
    session = at.it.broker.driver.clients[session_of(at, victim)]
    await until(lambda: "grace" in path_of(session)._timers)
    return number


async def inspected(at: Scene, victim: FakeClient, other: FakeClient) -> int:
    number = await forwarding(at, victim, other)
    at.it.supervisor.offices[number].fault = "hang-after-session"
    victim.socket.shutdown(socket.SHUT_WR)
    await until(lambda: at.it.broker.pool.workers[number].state is State.INSPECTING)
    return number


async def waiting(at: Scene, victim: FakeClient, other: FakeClient) -> int:
    number = at.third_worker
    await other.open()
    await victim.send(OPENING)
    await until(lambda: at.it.broker.pool.queue)
    return number


async def waiting_for_a_probe(at: Scene, victim: FakeClient, _: FakeClient) -> int:
    number = at.third_worker
    at.it.supervisor.offices[number].fault = "deaf"
    await at.probe_all()
    await victim.send(OPENING)
    await until(lambda: at.it.broker.pool.queue)
    return number


async def waiting_for_a_start(at: Scene, victim: FakeClient, _: FakeClient) -> int:
    number = at.third_worker
    await at.it.supervisor.kill(number)
    await victim.send(OPENING)  # may arrive after the worker has restarted
    await until(lambda: at.it.broker.pool.queue or at.it.broker.pool.workers[number].client)
    return number


async def refused(at: Scene, victim: FakeClient, other: FakeClient) -> int:
    number = at.third_worker
    await other.open()
    count = at.it.journal.count(messages.CLIENT_REFUSED)
    await victim.send(QUERY[:20])
    await at.it.journal.wait_for(messages.CLIENT_REFUSED, count + 1)
    return number


Step = Callable[[Scene, FakeClient, FakeClient], Awaitable[int]]
STEPS: list[Step] = [
    connected,
    half_an_opening,
    opening_unread,
    leased,
    forwarding,
    during_a_call,
    half_closed,
    inspected,
    waiting,
    waiting_for_a_probe,
    waiting_for_a_start,
    refused,
]
EVENTS = [
    "nothing",
    "killed",
    "ended",
    "reported-first",
    "vanished",
    "probed",
    "hang",
    "deaf",
    "close-early",
    "crash-mid-reply",
    "never-let-go",
    "leaves-document",
    "rubbish",
]
CLIENT_EVENTS = ["stay", "close", "reset", "half-close", "send", "cancel"]


def session_of(at: Scene, client: FakeClient) -> int:
    """Return the session number that the broker gave a client, or 0 if the broker does not know the client."""
    name = "{}:{}".format(*client.socket.getsockname())
    return next((session for session, known in at.it.broker.driver.clients.items() if known.peer.name == name), 0)


async def apply_client_event(at: Scene, victim: FakeClient, session: int, event: str) -> None:
    """Make an event happen to a client."""
    if event == "close":
        victim.socket.close()
    elif event == "reset":
        victim.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        victim.socket.close()
    elif event == "half-close":
        with contextlib.suppress(OSError):
            victim.socket.shutdown(socket.SHUT_WR)
    elif event == "send":
        with contextlib.suppress(OSError):
            victim.socket.send(OPENING)
    elif event == "cancel":
        at.cancel(session)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("step", STEPS)
async def test_a_fault_at_any_step_affects_no_other_client(step: Step, event: str) -> None:
    async with scene(0 if step is refused else 1000) as at:
        for order, client_event in enumerate(CLIENT_EVENTS, EVENTS.index(event)):
            worker_first = order % 2
            async with at.it.client() as victim, at.it.client() as other:
                number = await step(at, victim, other)
                session = session_of(at, victim)
                if worker_first:
                    await at.apply_event(number, event)
                await apply_client_event(at, victim, session, client_event)
                if not worker_first:
                    await at.apply_event(number, event)
            await at.recover()


# Random faults


class Crowd:
    """Clients that connect, send and leave at random, and random events of the worker that serves no bystander."""

    def __init__(self, at: Scene, chance: random.Random) -> None:
        self.at = at
        self.chance = chance
        self.joined: list[int] = []
        self.rejoined: set[int] = set()
        pool = at.it.broker.pool
        self._join, self._rejoin = pool.join, pool.rejoin
        pool.join = self._note_join  # type: ignore[method-assign]
        pool.rejoin = self._note_rejoin  # type: ignore[method-assign]

    def _note_join(self, client: int, now: float, host: str = "", user: str = "") -> list[Action]:
        self.joined.append(client)
        return self._join(client, now, host, user)

    def _note_rejoin(self, client: int, place: Place, now: float) -> list[Action]:
        self.rejoined.add(client)
        return self._rejoin(client, place, now)

    async def run_client(self) -> None:
        """Run one client from its connection to its end."""
        chance = self.chance
        async with self.at.it.client() as client:
            with contextlib.suppress(OSError):
                await self._pause()
                await client.send(OPENING[: chance.choice([0, 5, 9, 17, 17, 17, 17])])
                await self._pause()
                if chance.random() < 0.5:
                    with contextlib.suppress(BlockingIOError):
                        client.socket.recv(chance.randrange(1, 200))
                for _ in range(chance.randrange(4)):
                    client.socket.send(chance.choice([OPENING, CALL, b"rubbish", bytes(100_000)]))
                    await self._pause()
                event = chance.choice(CLIENT_EVENTS)
                await apply_client_event(self.at, client, session_of(self.at, client), event)
                await self._pause()

    async def run_worker_events(self) -> None:
        """Make a few random events happen to the worker that serves no bystander."""
        for _ in range(self.chance.randrange(4)):
            await self._pause()
            await self.at.apply_event(self.at.third_worker, self.chance.choice(EVENTS))

    async def _pause(self) -> None:
        for _ in range(self.chance.choice([0, 0, 1, 2, 5, 20])):
            await asyncio.sleep(0)

    def check_order(self) -> None:
        """Check that clients got workers in the order in which they joined, except those that had to join again."""
        begun = [fields["session"] for message, fields in self.at.it.journal.lines if message is messages.SESSION_BEGIN]
        begun = [session for session in begun if session in self.joined and session not in self.rejoined]
        assert begun == [session for session in self.joined if session in set(begun)]


@pytest.mark.parametrize("seed", range(10))
async def test_random_faults_affect_no_bystander(seed: int) -> None:
    chance = random.Random(seed)
    async with scene(chance.choice([0, 2, 1000])) as at:
        crowd = Crowd(at, chance)
        for _ in range(35):
            await asyncio.gather(
                crowd.run_worker_events(), *(crowd.run_client() for _ in range(chance.randrange(1, 6)))
            )
            await at.recover()
        crowd.check_order()
        assert at.it.journal.count(messages.SESSION_BEGIN) > 10


# Without a file descriptor


class NoDescriptors:
    """Makes the next connections to offices fail as if no file descriptor were left.

    With `only_for`, this applies only to connections for a client of that worker.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int, only_for: Worker | None = None) -> None:
        self.left = times
        self._only_for = only_for
        self._connect = Office.connect
        self._control = Office.control
        monkeypatch.setattr(Office, "connect", lambda office: self.connect(office))  # noqa: PLW0108 - for `self`
        if MODE:  # every connection begins with one of these
            monkeypatch.setattr(Office, "connect", self._connect)
            monkeypatch.setattr(Office, "control", lambda office: self.control(office))  # noqa: PLW0108 - for `self`

    def connect(self, office: Office) -> socket.socket:
        self._fail(office)
        return self._connect(office)

    def control(self, office: Office) -> socket.socket | None:
        self._fail(office)
        return self._control(office)

    def _fail(self, office: Office) -> None:
        if not self.left or (self._only_for is not None and self._only_for.state is not State.BUSY):
            return
        self.left -= 1
        raise NoDescriptorError(f"can't connect to {office.unit}: Too many open files")


async def test_a_client_without_a_descriptor_is_refused_and_the_next_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world() as it, it.client() as client, it.client() as following:
        await settled(it.broker.pool, State.IDLE)
        NoDescriptors(monkeypatch, 1)
        assert b"ooodd: no file descriptor is left" in await asks(client)
        assert await client.ended()
        assert await following.open() == HELLO
        assert it.broker.pool.workers[1].uses == 1
        assert it.supervisor.started == [1]
        totals = it.broker.pool.totals
        assert (totals.sessions, totals.refused, totals.recycled, totals.crashed) == (1, 1, 0, 0)
        check_lines(it.journal)


async def test_waiting_clients_without_a_descriptor_are_refused_and_the_rest_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world() as it, contextlib.AsyncExitStack() as stack:
        busy = await stack.enter_async_context(it.client())
        await busy.open()
        waiting = []
        for number in range(5):
            waiting.append(await stack.enter_async_context(it.client()))
            await waiting[-1].send(QUERY if number < 3 else OPENING)
            await until(partial(it.queued, number + 1))
        NoDescriptors(monkeypatch, 3, it.broker.pool.workers[1])  # the inspection still gets a descriptor
        busy.socket.close()
        for client in waiting[:3]:
            assert b"no file descriptor is left" in await client.receive(1 << 20)
        for client in waiting[3:]:
            assert await client.receive(len(HELLO)) == HELLO
            client.socket.close()
        await settled(it.broker.pool, State.IDLE)
        assert it.supervisor.started == [1]
        totals = it.broker.pool.totals
        assert (totals.sessions, totals.refused, totals.recycled) == (3, 3, 0)


async def test_a_probe_without_a_descriptor_ends_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene() as at:
        shortage = NoDescriptors(monkeypatch, 1)
        await at.probe_all()
        assert State.INSPECTING in states(at.it.broker.pool)
        await until(lambda: State.IDLE in states(at.it.broker.pool))
        assert shortage.left == 0
        await at.recover()
        assert at.it.supervisor.stopped == []


async def test_a_client_that_needs_a_second_lease_counts_as_one_session() -> None:
    async with world() as it:
        await settled(it.broker.pool, State.IDLE)
        await it.supervisor.offices[1].close()  # the broker has no report of this
        async with it.client() as client:
            assert await client.open() == HELLO
        await settled(it.broker.pool, State.IDLE)
        assert it.broker.pool.totals.sessions == it.journal.count(messages.SESSION_BEGIN) == 1
