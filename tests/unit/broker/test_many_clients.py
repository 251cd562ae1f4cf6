# SPDX-License-Identifier: LGPL-2.1-or-later
"""Many clients at once with one fake office: which wait, which are refused, and how much memory a waiting one needs.

tests/machine/test_crowd.py does the same with systemd, real offices and ten times as many clients.
"""

import asyncio
import gc
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

import world as world_module
from fakes import GREETING, OPENING, FakeClient, first_request, settled, until
from ooodd import messages
from ooodd.pool.pool import State
from ooodd.systemd.fdstore import SystemdFdStore
from ooodd.systemd.marks import Marks
from ooodd.systemd.notify import NoNotifier
from world import World, world

CLIENTS, WAITING = 500, 100
# All of them are of one host, which may take half of the queue.
REFUSAL = "clients of 127.0.0.1 take half of the queue ([queue] max_clients)"
# The limit of the broker's memory for each waiting client, in bytes. The measured value is about 4,500.
MOST_MEMORY = 8 * 1024
MEASURED = 500


async def run_client(it: World, served: list[str]) -> str:
    """Run one client. Return the text of its refusal, or "" if it got an office."""
    async with it.client() as client:
        # ooodd can refuse this request. A fake office sends its greeting, but does not echo a session that begins so.
        await client.send(first_request())
        first = await client.receive(len(GREETING))
        if first != GREETING:
            return (first + await client.receive(1 << 20)).decode(errors="replace")
        served.append(address_of(client))
        return ""


def address_of(client: FakeClient) -> str:
    host, port = client.socket.getsockname()
    return f"{host}:{port}"


async def test_many_clients_wait_in_order_and_the_rest_are_refused() -> None:
    served: list[str] = []
    async with world(f"[pool]\nworkers=1\n[queue]\nmax_clients={2 * WAITING}") as it:
        async with it.client() as holder:
            await holder.open()
            clients = [asyncio.create_task(run_client(it, served)) for _ in range(CLIENTS)]
            await until(lambda: sum(task.done() for task in clients) == CLIENTS - WAITING)
            assert it.queued(WAITING)
            assert served == []
        answers = await asyncio.gather(*clients)
        await until(lambda: not it.broker.driver.clients)
        await settled(it.broker.pool, State.IDLE)
    refusals = [answer for answer in answers if answer]
    assert len(refusals) == CLIENTS - WAITING
    assert all(REFUSAL in answer for answer in refusals)
    begun = [fields for message, fields in it.journal.lines if message is messages.SESSION_BEGIN][1:]
    numbers = [fields["session"] for fields in begun]
    assert len(numbers) == WAITING
    assert numbers == sorted(numbers, key=lambda number: int(str(number)))
    assert served == [fields["client"] for fields in begun]


async def test_a_waiting_client_needs_little_memory(
    monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    monkeypatch.setattr(world_module, "NoFdStore", lambda: SystemdFdStore(NoNotifier(), Marks()))
    async with world("[pool]\nworkers=1\n[queue]\nmax_clients=10000") as it, it.client() as holder:
        await holder.open()
        with ExitStack() as stack:
            # Connect the clients before the measurement, so that it does not include their own memory.
            for _ in range(MEASURED):
                client = stack.enter_context(socket.create_connection(it.listener.getsockname()))
                client.sendall(OPENING)
            with traced():
                before, _ = tracemalloc.get_traced_memory()
                await until(lambda: it.queued(MEASURED))
                gc.collect()
                after, _ = tracemalloc.get_traced_memory()
                most = tracemalloc.take_snapshot().statistics("lineno")[:12]
        await until(lambda: len(it.broker.driver.clients) == 1)
    each = (after - before) / MEASURED
    record_property("bytes_per_waiting_client", round(each))
    print(f"{each:.0f} bytes for each waiting client", *most, sep="\n")
    assert each <= MOST_MEMORY


@contextmanager
def traced() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
