# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the broker itself costs: memory, CPU, wake-ups."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil

import offices
from calls import POOL, client
from figure import Figure
from memory import pss, uss
from starts import converse
from talk import OPENING

CALLS, SESSIONS, IDLE_SECONDS = 20000, 64, 60
WAITING = (10, 100, 1000, 5000)
WORKERS = (2, 8, 32, 64)


def measure() -> Iterator[Figure]:
    """Yield the figures."""
    pool = offices.Pool()
    pool.configure(POOL.format(workers=4))
    converse(offices.POOL_PORT)
    pool.wait(lambda: pool.states().count("idle") == 4)
    broker = pool.broker()
    idle = pss(broker.pid)
    yield Figure("broker-pss", "PSS of the broker, four idle workers", "MiB", {"ooodd": [idle]})
    before, begun = _wakeups(broker.pid), time.monotonic()
    time.sleep(IDLE_SECONDS)
    rate = (_wakeups(broker.pid) - before) / (time.monotonic() - begun)
    yield Figure(
        "broker-wakeups",
        f"Wake-ups of the broker in {IDLE_SECONDS} s without clients",
        "1/s",
        {"ooodd": [rate]},
        note="Four idle offices are probed, each every `[pool] probe_interval`, and a probe takes several wake-ups.",
    )
    yield _cpu_of_calls(pool)
    yield _sessions(pool)
    yield from _waiting(pool)
    yield _cpu_of_sessions(pool)


def _wakeups(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("voluntary_ctxt_switches")))


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _cpu_of_calls(pool: offices.Pool) -> Figure:
    rounds = {}
    with ExitStack() as stack:
        for mode, other in (("forward", "handoff"), ("handoff", "forward")):
            session, broker = stack.enter_context(client(offices.POOL_PORT)), pool.broker()
            before = _cpu(broker)
            session.ask(f"run {CALLS}")
            rounds[f"ooodd {mode}"] = [(_cpu(broker) - before) * 1e6 / CALLS]
            pool.change(f'"{mode}"', f'"{other}"')
    return Figure("broker-cpu", "CPU of the broker for 1,000 calls", "ms", rounds)


def _sessions(pool: offices.Pool) -> Figure:
    rounds = {}
    for mode in ("forward", "handoff"):
        pool.configure(POOL.format(workers=20).replace('"forward"', f'"{mode}"'))
        broker = pool.broker()
        with ExitStack() as stack:
            for _ in range(4):  # what the first ones need is there for all
                stack.enter_context(client(offices.POOL_PORT))
            before = uss(broker.pid)
            for _ in range(16):
                stack.enter_context(client(offices.POOL_PORT))
            rounds[f"ooodd {mode}"] = [(uss(broker.pid) - before) * 1024 / 16]
    return Figure("broker-session", "Memory of the broker for a session", "KiB", rounds)


def _waiting(pool: offices.Pool) -> Iterator[Figure]:
    """Clients that wait, all of one user; half of the queue is theirs. The CPU is of coming, waiting and leaving."""
    memory, seconds = {}, {}
    for count in WAITING:
        text = POOL.format(workers=1).replace("[session]", "[queue]\nmax_clients = 20000\n[session]")
        pool.configure(text)
        broker = pool.broker()
        with client(offices.POOL_PORT), ExitStack() as stack:
            before, cpu = uss(broker.pid), _cpu(broker)
            for number in range(count):
                source = f"127.0.0.{1 + number % 200}", 0  # a port of its own for each
                address = "127.0.0.1", offices.POOL_PORT
                stack.enter_context(socket.create_connection(address, source_address=source)).sendall(OPENING)
            pool.wait(lambda: pool.status()["queue"]["length"] == count)  # noqa: B023 - called at once
            memory[f"{count} clients"] = [(uss(broker.pid) - before) * 1024 / count]
            stack.close()
            pool.wait(lambda: pool.status()["queue"]["length"] == 0)
            seconds[f"{count} clients"] = [(_cpu(broker) - cpu) * 1e3 / count]
    yield Figure("broker-waiting", "Memory of the broker for a client that waits", "KiB", memory)
    yield Figure("broker-waiting-cpu", "CPU of the broker for a client that waits and leaves", "ms", seconds)


def _cpu_of_sessions(pool: offices.Pool) -> Figure:
    rounds = {}
    for workers in WORKERS:
        pool.configure(POOL.format(workers=workers))
        broker = pool.broker()
        before = _cpu(broker)
        for _ in range(SESSIONS):
            converse(offices.POOL_PORT)
        rounds[f"{workers} workers"] = [(_cpu(broker) - before) * 1e3 / SESSIONS]
    return Figure("broker-cpu-session", "CPU of the broker for a session, with its inspection", "ms", rounds)
