# SPDX-License-Identifier: LGPL-2.1-or-later
"""Queued clients across kills and restarts of the broker."""

import asyncio
import socket

import pytest

from fakes import (
    GREETING,
    OPENING,
    forward_only,
    settled,
    until,
)
from ooodd import messages
from ooodd.broker.session import Session
from ooodd.pool.pool import State
from ooodd.systemd.marks import Marks
from succession import HELLO, ONE, Machine, echoes, machine, turns


async def test_waiting_clients_keep_their_places_and_their_unread_data() -> None:
    served: list[int] = []
    async with machine() as it:
        await settled(it.broker.pool, State.IDLE)

        async def one(number: int) -> None:
            async with it.client() as client:
                words = OPENING + b"of %d" % number
                await client.send(words)
                assert await client.receive(len(GREETING + words)) == GREETING + words
                served.append(number)

        async with it.client() as busy:
            await busy.open()
            tasks = []
            for number in range(10):
                tasks.append(asyncio.create_task(one(number)))
                while len(it.broker.pool.queue) <= number:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            for number in range(3):
                await it.replace()
                await turns(1 + number)
                assert list(it.broker.pool.queue) == list(range(2, 12))
            assert it.journal.lines[0][1] == {"workers": 1, "sessions": 1, "queued": 10}
            assert await echoes(busy)
        await asyncio.gather(*tasks)
        assert served == list(range(10))
        assert it.broker.pool.totals.sessions == 11
        assert it.broker.pool.totals.refused == 0


async def test_a_client_that_left_the_queue_while_no_broker_ran_is_dropped() -> None:
    async with machine() as it, it.client() as busy:
        await busy.open()
        async with it.client() as waiting:
            await waiting.send(OPENING)
            await until(lambda: it.broker.pool.queue)
            it.kill()
            await it.clean_up_after_kill()
        await it.begin()
        await it.journal.wait_for(messages.CLIENT_LEFT)
        assert not it.broker.pool.queue
        assert await echoes(busy)


async def test_a_client_that_was_just_accepted_is_kept_or_reported_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async with machine(ONE) as it, it.client() as client:
        with monkeypatch.context() as patch:
            patch.setattr(Session, "_join", lambda *_: it.kill())
            await client.send(OPENING)
            await until(lambda: it._dying)
        await it.clean_up_after_kill()
        await it.begin()
        assert await client.ended()
        name = "{}:{}".format(*client.socket.getsockname())
        assert await it.journal.wait_for(messages.CLIENT_LOST) == {"session": 1, "client": name}
        it.kill()
        await it.clean_up_after_kill()
        await it.begin()
        assert it.journal.count(messages.CLIENT_LOST) == 0


async def test_silent_clients_are_closed() -> None:
    async with machine() as it, it.client() as silent, it.client() as half:
        await half.send(OPENING[:5])
        await until(lambda: len(it.broker.driver.clients) == 2)
        it.kill()
        await it.clean_up_after_kill()
        assert await silent.ended()
        assert await half.ended()
        assert it.left == {}
        await it.begin()


async def test_a_client_that_connects_while_no_broker_runs_is_served() -> None:
    async with machine() as it:
        await settled(it.broker.pool, State.IDLE)
        it.kill()
        await it.clean_up_after_kill()
        async with it.client() as client:
            await client.send(OPENING)
            await it.begin()
            assert await client.receive(len(HELLO)) == HELLO


async def test_a_client_that_waits_for_itself_is_told_so_by_the_next_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    config = '[pool]\nworkers=1\n[queue]\ntimeout=1\n[session]\nreclaim_after="infinity"'
    config += '\nfirst_call_timeout="infinity"'
    async with machine(config) as it, it.client() as first, it.client() as second:
        await first.open()
        await second.send(OPENING)
        await until(lambda: it.broker.pool.queue)
        monkeypatch.setattr("ooodd.pool.admission.WAITS_FOR_ITSELF_AFTER", 0.05)
        monkeypatch.setattr("ooodd.pool.admission.CHECK_INTERVAL", 0.05)
        await it.replace()
        refused = await it.journal.wait_for(messages.CLIENT_REFUSED)
        assert "waits for itself" in str(refused["text"])


def make_an_hour_older(it: Machine, session: int) -> None:
    """Make a client in the fd store one hour older."""
    for name in [name for name in it.left if name.split("-")[1] == str(session)]:
        start, since = name.rsplit("-", 1)
        it.left[f"{start}-{int(since) - 3_600_000_000}"] = it.left.pop(name)


async def test_the_queue_timeout_does_not_restart() -> None:
    async with machine(f'{ONE}\n[queue]\ntimeout="1h"') as it, it.client() as busy, it.client() as waiting:
        await busy.open()
        await waiting.send(OPENING)
        await until(lambda: len(it.broker.pool.queue) == 1)
        it.kill()
        await it.clean_up_after_kill()
        make_an_hour_older(it, 2)
        await it.begin()
        refused = await it.journal.wait_for(messages.CLIENT_REFUSED)
        assert "[queue] timeout" in str(refused["text"])
        assert float(str(refused["wait"])) >= 3600
        assert await echoes(busy)


async def test_the_session_timeout_does_not_restart() -> None:
    async with machine(f'{ONE}\n[session]\ntimeout="1h"') as it, it.client() as client:
        await client.open()
        it.kill()
        await it.clean_up_after_kill()
        make_an_hour_older(it, 1)
        await it.begin()
        assert await client.ended()
        end = await it.journal.wait_for(messages.SESSION_END)
        assert "[session] timeout" in str(end["by"])
        assert float(str(end["duration"])) >= 3600


async def test_the_session_of_a_client_that_was_queued_is_adopted_once() -> None:
    async with machine() as it:
        async with it.client() as busy:
            await busy.open()
            waiting = await it.client().__aenter__()
            await waiting.send(OPENING)
            await until(lambda: it.broker.pool.queue)
        assert await waiting.receive(len(HELLO)) == HELLO
        it.kill()
        await it.clean_up_after_kill()
        assert sorted(name.split("-")[0] for name in it.left) == ["client", "office"]
        await it.begin()
        assert not it.broker.pool.queue
        assert await echoes(waiting)
        assert it.broker.driver.clients.keys() == {2}
        waiting.socket.close()


async def test_a_stored_socket_that_is_no_client_is_closed_and_dropped() -> None:
    async with machine() as it, it.client() as client:
        await client.open()
        it.kill()
        await it.clean_up_after_kill()
        ours, theirs = socket.socketpair()
        it.left["unknown-9"] = [ours]
        it.left["office-9-1-0"] = [ours.dup(), ours.dup()]
        it.left["client-10-0"] = [ours.dup()]  # a socket like a connection to an office
        await it.begin()
        assert theirs.recv(1) == b""
        theirs.close()
        assert await echoes(client)


async def test_the_queue_is_in_the_order_of_joining_and_not_of_session_numbers() -> None:
    async with machine() as it, it.client() as busy, it.client() as late, it.client() as early:
        await settled(it.broker.pool, State.IDLE)
        await busy.open()
        await until(lambda: len(it.broker.driver.clients) == 3)
        for client, count in ((early, 1), (late, 2)):
            await client.send(OPENING)
            await until(lambda: len(it.broker.pool.queue) == count)  # noqa: B023 - awaited here
        order = list(it.broker.pool.queue)
        assert len(order) == 2
        await it.replace()
        assert list(it.broker.pool.queue) == order


# State that another version left


def rename_as_version_0_2(it: Machine) -> None:
    """Rename the stored sockets as version 0.2 named them."""
    kinds = {"client": "waiting", "office": "session"}
    left, it.left = it.left, {}
    for name, sockets in left.items():
        kind, *numbers, since = name.split("-")
        it.left["-".join([kinds[kind], *numbers, f"{int(since) // 1000}/17/18"])] = sockets


@forward_only
async def test_sessions_and_queued_clients_of_version_0_2_continue() -> None:
    async with machine() as it, it.client() as busy, it.client() as waiting:
        await busy.open()
        await waiting.send(OPENING)
        await until(lambda: it.broker.pool.queue)
        it.kill()
        await it.clean_up_after_kill()
        rename_as_version_0_2(it)
        slot = it.storage.store.marks.slot(1)
        slot.begun, slot.begun_by_2 = False, True
        await it.begin()
        assert await echoes(busy)
        busy.socket.close()
        dirty = await it.journal.wait_for(messages.WORKER_DIRTY)
        assert "could not be followed" in str(dirty["detail"])
        assert await waiting.receive(len(HELLO)) == HELLO


async def test_a_session_with_data_held_by_version_0_2_is_ended() -> None:
    async with machine() as it, it.client() as client:
        await client.open()
        it.kill()
        await it.clean_up_after_kill()
        rename_as_version_0_2(it)
        it.storage.store.marks.slot(1).held_by_2 = True
        await it.begin()
        assert (await it.journal.wait_for(messages.SESSION_LOST))["why"] == "bytes of it may be lost"
        assert await client.ended()


async def test_marks_of_another_version_end_sessions_and_keep_queued_clients() -> None:
    async with machine() as it, it.client() as busy, it.client() as waiting:
        await busy.open()
        await waiting.send(OPENING)
        await until(lambda: it.broker.pool.queue)
        it.kill()
        await it.clean_up_after_kill()
        it.storage.store.marks = Marks()
        await it.begin()
        lost = await it.journal.wait_for(messages.SESSION_LOST)
        assert (lost["session"], lost["why"]) == (1, "the ooodd before was of another version")
        assert await busy.ended()
        assert await waiting.receive(len(HELLO)) == HELLO
        async with it.client() as third:
            await third.send(OPENING)
            await until(lambda: it.broker.pool.queue)
            assert list(it.broker.pool.queue) == [3]


async def test_a_session_for_which_the_fd_store_had_no_room_is_reported_lost() -> None:
    async with machine() as it, it.client() as client:
        await client.open()
        it.kill()
        await it.clean_up_after_kill()
        for name in [name for name in it.left if name.startswith("office-")]:
            for each in it.left.pop(name):
                each.close()
        assert len(it.left) == 1
        await it.begin()
        lost = await it.journal.wait_for(messages.SESSION_LOST)
        assert (lost["session"], lost["why"]) == (1, "it was just ending")
        assert await client.ended()
        assert not it.broker.pool.queue


async def test_a_worker_that_becomes_ready_during_a_hand_over_is_leased_by_the_next_broker() -> None:
    async with machine() as it, it.client() as busy, it.client() as waiting:
        await busy.open()
        await waiting.send(OPENING)
        await until(lambda: it.broker.pool.queue)
        task = it.broker._tasks[2]
        task.add_done_callback(lambda _: it.broker.driver.do(it.broker.pool.leave(1, 0.0)))
        await it.hand_over()
        assert it.journal.count(messages.INTERNAL_ERROR) == 0
        await it.begin()
        busy.socket.close()
        assert await waiting.receive(len(HELLO)) == HELLO
