# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker with fake offices: what clients do, and one test for each fault of an office."""

import asyncio
import contextlib
import socket
import struct
from functools import partial

import pytest

from fakes import (
    GREETING,
    OPENING,
    FakeOffice,
    settled,
    states,
    until,
)
from ooodd import messages
from ooodd.broker import broker as broker_module
from ooodd.broker.broker import End
from ooodd.config import parse
from ooodd.office.keeper import Keeper
from ooodd.pool.pool import State
from ooodd.uno.urp import OPENING_SIZE
from world import CALL, HELLO, QUERY, World, asks, world


async def test_a_client_has_an_office_to_itself() -> None:
    async with world() as it, it.client() as client:
        assert await client.open() == HELLO
        await client.send(b"more")
        assert await client.receive(4) == b"more"
        assert states(it.broker.pool) == [State.BUSY]
        client.socket.shutdown(socket.SHUT_WR)
        assert await client.ended()
        await settled(it.broker.pool, State.IDLE)
        assert it.supervisor.offices[1].sessions == [OPENING + b"more"]


async def test_queued_clients_are_served_in_order_one_at_a_time() -> None:
    served: list[int] = []
    async with world() as it:
        await settled(it.broker.pool, State.IDLE)

        async def one(number: int) -> None:
            async with it.client() as client:
                assert await client.open() == HELLO
                served.append(number)

        async with it.client() as first:
            await first.open()
            tasks = []
            for number in range(20):
                tasks.append(asyncio.create_task(one(number)))
                await until(partial(it.queued, number + 1))
        await asyncio.gather(*tasks)
        assert served == list(range(20))
        await it.journal.wait_for(messages.SESSION_END, 21)


async def test_no_office_ever_has_two_clients() -> None:
    offices: set[FakeOffice] = set()
    async with world("[pool]\nworkers=2\nmax_uses=3\nmax_uses_jitter=1") as it:

        async def one(number: int) -> None:
            async with it.client() as client:
                assert await client.open() == HELLO
                mine = f"client {number}".encode()
                await client.send(mine)
                assert await client.receive(len(mine)) == mine
                offices.update(it.supervisor.offices.values())

        for batch in range(10):
            await asyncio.gather(*(one(8 * batch + number) for number in range(8)))
        await it.journal.wait_for(messages.SESSION_END, 80)
    assert sum(len(office.sessions) for office in offices) == 80
    assert all(office.most_clients == 1 for office in offices)
    assert len(offices) > 10


async def test_max_uses_without_jitter_is_exact() -> None:
    async with world("[pool]\nworkers=1\nmax_uses=3\nmax_uses_jitter=0") as it:
        for number in range(9):
            async with it.client() as client:
                await client.open()
                assert len(it.supervisor.started) == number // 3 + 1
        await it.journal.wait_for(messages.WORKER_RECYCLED, 3)
        assert it.broker.pool.totals.recycled == 3


async def test_silent_and_dropped_connections_use_no_worker() -> None:
    async with world() as it:
        await settled(it.broker.pool, State.IDLE)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(20):
                await stack.enter_async_context(it.client())
            for _ in range(200):
                async with it.client():
                    pass
            async with it.client() as real:
                assert await real.open() == HELLO
        await it.journal.wait_for(messages.SESSION_END)
        assert it.broker.pool.totals.sessions == 1
        assert it.broker.pool.workers[1].uses == 1


async def test_too_many_silent_clients_close_the_oldest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "_MOST_SILENT", 2)
    async with world() as it, it.client() as first, it.client() as second:
        await until(lambda: len(it.broker.driver.clients) == 2)
        async with it.client():
            assert await first.ended()
            assert await second.open() == HELLO


async def test_a_silent_client_that_sends_while_it_is_dropped_uses_no_worker() -> None:
    async with world() as it, it.client() as client:
        await settled(it.broker.pool, State.IDLE)
        await until(lambda: it.broker.driver.clients)
        await client.send(OPENING)
        it.broker._silent._limit = -1
        it.broker._silent.add(next(iter(it.broker.driver.clients.values())))
        assert await client.ended()
        await until(lambda: not it.broker.driver.clients)
        assert it.broker.pool.totals.sessions == 0
        assert it.journal.count(messages.INTERNAL_ERROR) == 0


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(100),
        b"\xff" * 100,
        struct.pack(">IIB", 101, 1, 0x78),
        OPENING[:8] + b"\0",
    ],
    ids=["http", "zeros", "ones", "short-header", "no-flags"],
)
async def test_a_client_that_does_not_speak_urp_gets_no_office(data: bytes) -> None:
    async with world() as it, it.client() as client:
        await settled(it.broker.pool, State.IDLE)
        with contextlib.suppress(ConnectionError):
            await client.send(data)
            assert await client.ended()
        assert it.supervisor.offices[1].sessions == []
        assert it.broker.pool.totals.sessions == 0


async def test_an_opening_sent_byte_by_byte_is_accepted() -> None:
    async with world() as it, it.client() as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in OPENING:
            await client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert await client.receive(len(HELLO)) == HELLO


async def test_a_client_that_leaves_the_queue_is_dropped_at_once() -> None:
    async with world() as it, it.client() as busy:
        await busy.open()
        async with it.client() as waiting:
            await waiting.send(OPENING)
            await until(lambda: it.broker.pool.queue)
        await it.journal.wait_for(messages.CLIENT_LEFT)
        assert not it.broker.pool.queue
        assert it.broker.pool.totals.sessions == 1


async def test_data_of_a_waiting_client_stays_in_its_socket() -> None:
    async with world() as it, it.client() as busy:
        await busy.open()
        async with it.client() as flood:
            await flood.send(OPENING)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(flood.send(bytes(64 * 1024 * 1024)), 1)
            assert len(it.broker.pool.queue) == 1


async def test_a_full_queue_refuses_clients() -> None:
    async with world("[pool]\nworkers=1\n[queue]\nmax_clients=0") as it:
        await settled(it.broker.pool, State.IDLE)
        async with it.client() as busy, it.client() as other:
            await busy.open()
            await other.send(OPENING)
            assert await other.ended()
            assert it.broker.pool.totals.refused == 1
            await busy.send(b"still there")
            assert await busy.receive(11) == b"still there"


async def test_a_killed_idle_worker_is_restarted() -> None:
    async with world() as it:
        await settled(it.broker.pool, State.IDLE)
        await it.supervisor.kill(1)
        await settled(it.broker.pool, State.IDLE)
        assert it.supervisor.started == [1, 1]
        assert it.broker.pool.totals.crashed == 1


async def test_a_killed_busy_worker_ends_only_its_own_session() -> None:
    async with world("[pool]\nworkers=2\nmin_workers=2") as it, it.client() as first, it.client() as second:
        await settled(it.broker.pool, State.IDLE, State.IDLE)
        await first.open()
        await second.open()
        (number,) = (worker.id for worker in it.broker.pool.workers.values() if worker.client == 1)
        await it.supervisor.kill(number)
        assert await first.ended()
        await second.send(b"on and on")
        assert await second.receive(9) == b"on and on"
        assert it.broker.pool.totals.crashed == 1


@pytest.mark.parametrize("fault", ["refuse", "bug", "no-pipe", "hang", "deaf", "close-early"])
async def test_an_office_that_fails_to_start_is_replaced_after_a_delay(fault: str) -> None:
    async with world("[pool]\nworkers=1\nstart_timeout=1", [fault]) as it, it.client() as client:
        assert await client.open() == HELLO
        assert it.journal.count(messages.WORKER_NOT_STARTED) == 1
        assert it.broker.pool.totals.crashed == 0


async def test_an_office_that_hangs_after_a_session_is_replaced() -> None:
    async with world("[pool]\nworkers=1\nprobe_timeout=0.1", ["hang-after-session"]) as it:
        async with it.client() as client:
            await client.open()
        await it.journal.wait_for(messages.WORKER_HUNG)
        async with it.client() as client:
            assert await client.open() == HELLO
        assert it.broker.pool.totals.hung == 1


async def test_an_office_that_never_closes_its_connection_is_replaced() -> None:
    async with world("[pool]\nworkers=1\n[session]\ngrace=0", ["never-let-go"]) as it:
        async with it.client() as client:
            await client.open()
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await it.journal.wait_for(messages.WORKER_DIRTY)
        await settled(it.broker.pool, State.IDLE)


@pytest.mark.parametrize("fault", ["leaves-document", "leaves-frame", "rubbish"])
async def test_a_dirty_office_gets_no_further_client(fault: str) -> None:
    async with world(plan=[fault]) as it:
        async with it.client() as client:
            await client.open()
        await it.journal.wait_for(messages.WORKER_DIRTY)
        async with it.client() as client:
            assert await client.open() == HELLO
        assert it.broker.pool.totals.dirty == 1
        assert it.supervisor.started == [1, 1]


async def test_an_office_whose_client_left_during_a_call_gets_no_further_client() -> None:
    async with world() as it:
        async with it.client() as client:
            await client.send(CALL)
            await client.receive(len(GREETING + CALL))
        assert (await it.journal.wait_for(messages.WORKER_DIRTY))["detail"] == "its session ended amid a call"
        assert it.broker.pool.totals.dirty == 1


async def test_a_hung_idle_office_is_replaced_before_a_client_gets_it() -> None:
    async with world("[pool]\nworkers=1\nprobe_interval=1\nprobe_timeout=0.1") as it:
        await settled(it.broker.pool, State.IDLE)
        office = it.supervisor.offices[1]
        await until(lambda: office.probes == 2)
        office.fault = "hang"
        await it.journal.wait_for(messages.WORKER_HUNG)
        async with it.client() as client:
            assert await client.open() == HELLO
        assert it.broker.pool.totals.sessions == it.broker.pool.totals.hung == 1


async def test_a_busy_office_is_not_probed() -> None:
    async with world("[pool]\nworkers=1\nprobe_interval=1") as it, it.client() as client:
        await client.open()
        (office,) = it.supervisor.offices.values()
        probes = office.probes
        await client.send(b"a second passes")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.ended(), 1.5)
        assert office.probes == probes


@pytest.mark.parametrize("key", ["timeout", "idle_timeout"])
async def test_a_session_limit_ends_the_session_and_its_office(key: str) -> None:
    async with world(f"[pool]\nworkers=1\n[session]\n{key}=1") as it, it.client() as client:
        await client.open()
        assert await client.ended()
        ended = await it.journal.wait_for(messages.SESSION_END)
        assert ended["by"] == f"ooodd: [session] {key} = 1 s"
        await until(lambda: it.supervisor.started == [1, 1])
        await settled(it.broker.pool, State.IDLE)


def started(it: World, count: int) -> bool:
    return len(it.supervisor.started) == count


async def test_with_one_use_nobody_gets_an_office_that_somebody_had_and_none_is_inspected() -> None:
    async with world("[pool]\nworkers=1\nmax_uses=1") as it:
        for number in range(1, 4):
            await settled(it.broker.pool, State.IDLE)
            office = it.supervisor.offices[1]
            assert office.probes == 1, "before its first client"
            async with it.client() as client:
                await client.open()
            await until(partial(started, it, number + 1))
            assert office.probes == 1
        totals = it.broker.pool.totals
        assert (totals.sessions, totals.recycled) == (3, 3)


async def test_a_hung_office_after_its_last_use_is_simply_replaced() -> None:
    async with world("[pool]\nworkers=1\nmax_uses=1", ["hang-after-session"]) as it:
        async with it.client() as client:
            await client.open()
        await until(lambda: it.supervisor.started == [1, 1])
        assert it.journal.count(messages.WORKER_HUNG) == 0


async def test_an_office_that_hung_with_its_last_client_is_counted_as_hung() -> None:
    async with world("[pool]\nworkers=1\nmax_uses=1", ["hang-after-session"]) as it:
        async with it.client() as client:
            await client.send(CALL)
            await client.receive(len(GREETING + CALL))
        hung = await it.journal.wait_for(messages.WORKER_HUNG)
        assert str(hung["detail"]).startswith("its session ended amid a call, no answer within")
        assert it.broker.pool.totals.hung == 1


async def test_an_office_that_was_left_by_its_last_client_amid_a_call_is_simply_replaced() -> None:
    async with world("[pool]\nworkers=1\nmax_uses=1") as it:
        async with it.client() as client:
            await client.send(CALL)
            await client.receive(len(GREETING + CALL))
        await until(lambda: it.supervisor.started == [1, 1])
        totals = it.broker.pool.totals
        assert (totals.dirty, totals.hung, totals.recycled) == (0, 0, 1)


async def test_an_office_that_crashes_in_its_last_use_is_counted_as_crashed() -> None:
    async with world("[pool]\nworkers=1\nmax_uses=1") as it, it.client() as client:
        await client.open()
        await it.supervisor.kill(1)
        await until(lambda: it.supervisor.started == [1, 1])
        assert it.broker.pool.totals.crashed == 1


async def test_the_status_says_at_once_that_no_office_can_be_started() -> None:
    async with world("[pool]\nworkers=1", ["refuse"] * 3) as it:
        await it.journal.wait_for(messages.WORKER_NOT_STARTED)
        assert it.broker.status_line().startswith("no office can be started: refused by plan")
        await settled(it.broker.pool, State.IDLE)
        assert it.broker.status_line() == "0 of 1 busy, 0 queued, 0 failed"


# Refusals


async def test_a_refused_client_gets_the_reason_as_a_uno_exception() -> None:
    async with world("[pool]\nworkers=1\n[queue]\nmax_clients=0") as it, it.client() as busy, it.client() as other:
        await busy.open()
        answer = await asks(other)
        assert b"com.sun.star.uno.RuntimeException" in answer
        assert b"ooodd: all 1 workers are busy and 0 clients wait already ([queue] max_clients)" in answer
        assert await other.ended()
        assert it.broker.pool.totals.refused == 1


async def test_the_broker_does_not_wait_long_for_a_silent_refused_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ooodd.broker.session._REFUSAL_LIMIT", 0.05)
    async with world("[pool]\nworkers=1\n[queue]\nmax_clients=0") as it, it.client() as busy, it.client() as other:
        await busy.open()
        await other.send(QUERY[:OPENING_SIZE])
        assert await other.ended()


async def test_a_client_that_waits_for_itself_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ooodd.pool.admission.WAITS_FOR_ITSELF_AFTER", 0.05)
    monkeypatch.setattr("ooodd.pool.admission.CHECK_INTERVAL", 0.05)
    config = '[pool]\nworkers=1\n[session]\nreclaim_after="infinity"'
    async with world(config) as it, it.client() as first, it.client() as second:
        await first.open()
        answer = await asks(second)
        assert b"this client waits for itself: sessions of 127.0.0.1 hold all 1 workers" in answer
        await first.send(b"and this one goes on")
        assert await first.receive(20) == b"and this one goes on"


async def test_a_client_does_not_wait_for_itself_during_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ooodd.pool.admission.WAITS_FOR_ITSELF_AFTER", 0.05)
    monkeypatch.setattr("ooodd.pool.admission.CHECK_INTERVAL", 0.05)
    async with world("[pool]\nworkers=1\n[queue]\ntimeout=1") as it, it.client() as first, it.client() as second:
        await first.send(CALL)
        await first.receive(len(GREETING + CALL))
        assert b"none of the 1 workers became free within 1 s" in await asks(second)


async def test_waiting_clients_are_told_if_no_office_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ooodd.pool.backoff.START_ERROR_AFTER", 0.2)
    async with world(plan=["refuse"] * 6) as it, it.client() as client:
        answer = await asks(client)
        assert b"ooodd: no office can be started: refused by plan: none; details: fake-1" in answer
        async with it.client() as late:
            assert b"no office can be started" in await asks(late)
        await settled(it.broker.pool, State.IDLE)
        async with it.client() as client_after:
            assert await client_after.open() == HELLO


async def test_max_per_host_limits_the_waiting_clients_of_a_host() -> None:
    config = "[pool]\nworkers=1\n[queue]\nmax_per_host=1"
    async with world(config) as it, it.client() as busy, it.client() as waiting, it.client() as one_too_many:
        await busy.open()
        await waiting.send(OPENING)
        await until(lambda: it.queued(1))
        assert b"1 clients of 127.0.0.1 wait already ([queue] max_per_host)" in await asks(one_too_many)


# The number of offices


async def test_without_load_all_offices_and_the_broker_stop() -> None:
    async with world("[pool]\nworkers=2\nmin_workers=0\nidle_timeout=1", ends_unused=True) as it:
        async with it.client() as client:
            assert await client.open() == HELLO
        await it.running
        await it.journal.wait_for(messages.BROKER_UNUSED)
        assert not it.supervisor.offices


async def test_a_silent_connection_keeps_the_broker_running() -> None:
    async with world("[pool]\nworkers=1\nmin_workers=0\nidle_timeout=1", ends_unused=True) as it, it.client() as slow:
        await until(lambda: it.broker.driver.clients)
        await until(lambda: it.broker.pool.unused)
        assert await slow.open() == HELLO


# Stop, reload, hand-over


async def test_draining_lets_sessions_finish_and_refuses_waiting_clients() -> None:
    async with world() as it, it.client() as busy, it.client() as waiting:
        await busy.open()
        answer = asyncio.create_task(asks(waiting))
        await until(lambda: it.queued(1))
        it.broker.end(End.DRAIN)
        assert b"ooodd: the service is stopping" in await answer
        await busy.send(b"still at it")
        assert await busy.receive(11) == b"still at it"
        busy.socket.shutdown(socket.SHUT_WR)
        assert await busy.ended()
        await it.running
        assert not it.supervisor.offices


@pytest.mark.parametrize("how", ["timeout", "stop"])
async def test_draining_ends_at_its_timeout_or_at_a_stop(how: str) -> None:
    limit = 0.05 if how == "timeout" else 3600
    async with world(f"[pool]\nworkers=1\n[session]\ndrain_timeout={limit}") as it, it.client() as busy:
        await busy.open()
        it.broker.end(End.DRAIN)
        await it.journal.wait_for(messages.BROKER_STOPPING)
        if how == "stop":
            it.broker.end(End.STOP)
        assert await busy.ended()
        await it.running


async def test_a_reload_does_not_disturb_sessions() -> None:
    async with world() as it, it.client() as busy, it.client() as waiting:
        await busy.open()
        await waiting.send(OPENING)
        await until(lambda: it.queued(1))
        it.broker.reload(parse("[pool]\nworkers=2\n[log]\nlevel='detail'", "test"))
        assert await waiting.receive(len(HELLO)) == HELLO
        assert it.journal.level == "detail"
        it.broker.reload(parse("[pool]\nworkers=1", "test"))
        await busy.send(b"still there")
        assert await busy.receive(11) == b"still there"


async def test_a_running_office_that_closes_a_session_early_is_recycled() -> None:
    async with world(plan=["crash-mid-reply"]) as it:
        async with it.client() as client:
            await client.send(OPENING)
            assert await client.ended()
        await it.journal.wait_for(messages.WORKER_RECYCLED)
        async with it.client() as client:
            assert await client.open() == HELLO


async def test_a_client_is_served_though_its_first_worker_is_gone() -> None:
    async with world() as it:
        await settled(it.broker.pool, State.IDLE)
        await it.supervisor.offices[1].close()
        async with it.client() as client:
            assert await client.open() == HELLO
        assert it.broker.pool.totals.hung == 1  # no report said that it had ended


async def test_without_file_descriptors_clients_wait_in_the_backlog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ooodd.systemd.listeners._PAUSE", 0.01)

    def no_descriptor(_: socket.socket) -> None:
        raise OSError(24, "Too many open files")

    async with world() as it:
        await settled(it.broker.pool, State.IDLE)
        with monkeypatch.context() as patch:
            patch.setattr("ooodd.systemd.listeners.accept", no_descriptor)
            async with it.client() as client:
                await client.send(OPENING)
                await it.journal.wait_for(messages.ACCEPT_PAUSED)
                patch.undo()
                assert await client.receive(len(HELLO)) == HELLO


async def test_an_internal_error_ends_only_one_session(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world("[pool]\nworkers=2\nmin_workers=2") as it, it.client() as other:
        await settled(it.broker.pool, State.IDLE, State.IDLE)
        await other.open()
        with monkeypatch.context() as patch:
            patch.setattr("ooodd.broker.session.new_path", None)
            async with it.client() as client:
                await client.send(OPENING)
                assert await client.ended()
        await it.journal.wait_for(messages.INTERNAL_ERROR)
        await other.send(b"fine")
        assert await other.receive(4) == b"fine"
        async with it.client() as client:
            assert await client.open() == HELLO


async def test_an_internal_error_in_one_action_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = Keeper.start

    def fail_one(keeper: Keeper, number: int) -> None:
        if number == 1:
            raise RuntimeError
        start(keeper, number)

    monkeypatch.setattr(Keeper, "start", fail_one)
    async with world("[pool]\nworkers=2\nmin_workers=2") as it, it.client() as client:
        await settled(it.broker.pool, State.STARTING, State.IDLE)
        assert it.journal.count(messages.INTERNAL_ERROR) == 1
        assert "in fail_one" in caplog.text
        assert await client.open() == HELLO


async def test_a_stop_ends_sessions_and_refuses_waiting_clients() -> None:
    async with world() as it, it.client() as busy, it.client() as waiting, it.client() as silent:
        await busy.open()
        await waiting.send(OPENING)
        await until(lambda: it.broker.pool.queue and len(it.broker.driver.clients) == 3)
        it.broker.end(End.STOP)
        assert await busy.ended()
        assert await waiting.ended()
        assert await silent.ended()
        await it.running
        assert not it.supervisor.offices


async def test_the_status_line_names_the_command_for_details() -> None:
    async with world("[pool]\nworkers=2\nmin_workers=2", ["refuse", ""]) as it:
        await settled(it.broker.pool, State.FAILED, State.IDLE)
        assert it.broker.status_line() == "0 of 2 busy, 0 queued, 1 failed: journalctl -u ooodd"
        assert it.notifier.states[0].startswith("READY=1\nSTATUS=0 of 2 busy")


async def test_a_hand_over_during_an_inspection() -> None:
    async with world("[pool]\nworkers=1\nprobe_timeout=60", ["hang-after-session"]) as it:
        async with it.client() as client:
            await client.open()
        await settled(it.broker.pool, State.INSPECTING)
        it.broker.end(End.HAND_OVER)
        await it.running
        await it.supervisor.close()
