# SPDX-License-Identifier: LGPL-2.1-or-later
"""What one client costs, and what becomes of one that leaves or fails at a bad moment."""

from pathlib import Path

import pytest

from dpkgdatabase import Database
from fakes import OPENING, FakeClient, forward_only, settled, until
from fakesystemd import FakeSystemd
from ooodd import messages
from ooodd.broker.client import Phase, Turn
from ooodd.pool.actions import Lease
from ooodd.pool.pool import State
from succession import HELLO, ONE, TWO, SystemdStorage, machine
from world import QUERY, asks, world


def since(systemd: FakeSystemd, count: int) -> list[tuple[str, int]]:
    """Return the kinds of names, and numbers of descriptors, of the messages to systemd after the first `count`."""
    return [(name.split("-")[0], fds) for name, fds in systemd.messages[count:]]


async def test_a_client_that_is_served_at_once_needs_two_messages_to_systemd() -> None:
    storage = SystemdStorage()
    async with machine(ONE, storage=storage) as it:
        await settled(it.broker.pool, State.IDLE)
        before = len(storage.systemd.messages)
        async with it.client() as client:
            assert await client.open() == HELLO
        await settled(it.broker.pool, State.IDLE)
        await until(lambda: not it.broker.driver.clients)
        assert since(storage.systemd, before) == [("office", 2), ("office", 0)]


async def test_a_client_that_was_queued_needs_four_messages_to_systemd() -> None:
    storage = SystemdStorage()
    async with machine(ONE, storage=storage) as it, it.client() as waiting:
        await settled(it.broker.pool, State.IDLE)
        async with it.client() as busy:
            assert await busy.open() == HELLO
            before = len(storage.systemd.messages)
            await waiting.send(OPENING)
            await until(lambda: it.broker.pool.queue)
        assert await waiting.receive(len(HELLO)) == HELLO
        waiting.socket.close()
        await settled(it.broker.pool, State.IDLE)
        await until(lambda: not it.broker.driver.clients)
        mine = [entry for entry in since(storage.systemd, before) if entry != ("office", 0)]
        assert mine == [("client", 1), ("office", 1), ("client", 0)]


async def test_a_client_that_leaves_as_it_gets_a_worker_does_not_use_the_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world() as it, it.client() as busy:
        await settled(it.broker.pool, State.IDLE)
        assert await busy.open() == HELLO
        waiting = FakeClient(it.listener.getsockname())
        await waiting.__aenter__()
        await waiting.send(OPENING)
        await until(lambda: it.broker.pool.queue)
        decide = Turn.decide

        def decide_and_leave(turn: Turn, decision: Lease) -> None:
            decide(turn, decision)
            monkeypatch.setattr(Turn, "decide", decide)
            waiting.socket.close()
            it.broker._hangups._poll()

        monkeypatch.setattr(Turn, "decide", decide_and_leave)
        busy.socket.close()
        await settled(it.broker.pool, State.IDLE)
        await until(lambda: not it.broker.driver.clients)
        assert it.journal.count(messages.CLIENT_LEFT) == 1
        assert (it.supervisor.started, it.broker.pool.totals.sessions, it.broker.pool.workers[1].uses) == ([1], 1, 1)
        assert it.journal.count(messages.SESSION_BEGIN) == it.journal.count(messages.SESSION_END) == 1


async def test_too_many_refused_clients_that_stay_close_the_oldest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ooodd.broker.broker._MOST_REFUSED", 2)
    async with world("[pool]\nworkers=1\n[queue]\nmax_clients=0") as it, it.client() as busy:
        assert await busy.open() == HELLO
        async with it.client() as first, it.client() as second, it.client() as third:
            for client in (first, second):
                assert b"0 clients wait already" in await asks(client)
            await third.send(QUERY)
            line = await it.journal.wait_for(messages.CLIENT_GAVE_NO_END)
            assert line["client"] == "{}:{}".format(*first.socket.getsockname())
            await until(lambda: len(it.broker.driver.clients) == 3)
            assert {client.phase for client in it.broker.driver.clients.values()} == {Phase.FORWARDING, Phase.REFUSED}


async def test_a_queue_that_exceeds_the_fd_store_is_warned_of() -> None:
    async with world("[pool]\nworkers=1\n[queue]\nmax_clients=1501") as it:
        warning = await it.journal.wait_for(messages.QUEUE_BEYOND_STORE)
        assert warning == {"max_clients": 1501, "kept": 1500}
    async with world("[pool]\nworkers=1\n[queue]\nmax_clients=1500") as it:
        await it.journal.wait_for(messages.BROKER_READY)
        assert it.journal.count(messages.QUEUE_BEYOND_STORE) == 0


@forward_only
async def test_an_error_in_the_data_path_ends_only_its_session_and_office() -> None:
    async with machine(TWO) as it, it.client() as client, it.client() as other:
        await settled(it.broker.pool, State.IDLE, State.IDLE)
        assert await client.open() == HELLO
        assert await other.open() == HELLO
        it.forwarding(1)._fail(ZeroDivisionError())
        assert await client.ended()
        assert it.journal.count(messages.INTERNAL_ERROR) == 1
        await other.send(OPENING)
        assert await other.receive(len(OPENING)) == OPENING
        await until(lambda: it.broker.pool.totals.recycled == 1)


async def test_an_office_that_is_installed_no_more_is_replaced_before_its_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world("[pool]\nworkers=1") as it, it.client() as client:
        await settled(it.broker.pool, State.IDLE)
        with monkeypatch.context() as patch:
            patch.setattr("ooodd.office.office.Office.outdated", lambda office: office.pipe_name == "p1")
            assert await client.open() == HELLO
        assert it.supervisor.started == [1, 1]
        assert it.journal.count(messages.WORKER_OUTDATED) == 1
        totals = it.broker.pool.totals
        assert (totals.sessions, totals.recycled, totals.crashed) == (1, 1, 0)


async def test_a_client_that_comes_while_libreoffice_is_unpacked_gets_an_office_after_that(tmp_path: Path) -> None:
    database = Database(tmp_path)
    async with world("[pool]\nworkers=2\nmin_workers=2") as it, it.client() as client:
        await settled(it.broker.pool, State.IDLE, State.IDLE)
        it.broker.driver.keeper.packages = database.packages
        with database.locked():
            database.update(0, "half-installed")
            await client.send(OPENING)
            await settled(it.broker.pool, State.STARTING, State.STARTING)
            await it.journal.wait_for(messages.OFFICE_UNPACKED)
            assert it.supervisor.started == [1, 2]
            database.update(1, "installed")
            assert await client.receive(len(HELLO)) == HELLO
        assert it.journal.count(messages.OFFICE_UNPACKED) == 1
        assert it.journal.count(messages.WORKER_OUTDATED) == 0
        totals = it.broker.pool.totals
        assert (totals.sessions, totals.refused, totals.crashed) == (1, 0, 0)


async def test_another_libreoffice_is_told_in_one_line() -> None:
    async with world("[pool]\nworkers=2\nmin_workers=2") as it, it.client() as client:
        await settled(it.broker.pool, State.IDLE, State.IDLE)
        assert await client.open() == HELLO
        it.broker.outdate()
        changed = await it.journal.wait_for(messages.OFFICE_CHANGED)
        assert (changed["idle"], changed["busy"]) == (1, 1)
        await until(lambda: len(it.supervisor.started) == 3)
        client.socket.close()
        await until(lambda: len(it.supervisor.started) == 4)


@pytest.mark.parametrize(("detail", "told"), [("killed by signal 6", True), ("killed by signal 9", False)])
async def test_an_office_that_aborts_is_told_with_a_known_cause(detail: str, told: bool) -> None:  # noqa: FBT001
    async with world("[pool]\nworkers=1") as it, it.client() as client:
        assert await client.open() == HELLO
        await it.supervisor.kill(1, detail)
        crashed = await it.journal.wait_for(messages.WORKER_CRASHED)
        assert ("clients.md" in str(crashed["detail"])) == told
