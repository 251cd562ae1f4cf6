# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a call costs on each path, and a connection."""

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import offices
from figure import Figure, in_turn
from talk import OPENING, Talk

CALLS, ROUNDS = 500, 96
BLOCKS, BLOCK_SIZE, BLOCK_ROUNDS = 16, 1024 * 1024, 24
OPENINGS, OPENING_ROUNDS = 10, 24
# After so many seconds everybody is at rest again.
REST = 0.03
CROWD_CALLS, CROWD_ROUNDS, CROWDS = 1000, 12, (1, 2, 8)
DIRECT, AGAIN, HANDOFF, FORWARD = "direct", "direct, another office", "ooodd handoff", "ooodd forward"
HAPROXY, PROXYD = "HAProxy", "systemd-socket-proxyd"
POOL = """\
[pool]
workers = {workers}
min_workers = {workers}
max_uses = 1000000
max_uses_jitter = 0
[session]
reclaim_after = "infinity"
[data_path]
mode = "forward"
"""


class Client:
    """A client process with one session, see client.py."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.version = self.answer()

    def ask(self, question: str) -> Any:  # noqa: ANN401 - JSON
        self.begin(question)
        return self.answer()

    def begin(self, question: str) -> None:
        assert self._process.stdin is not None
        print(question, file=self._process.stdin, flush=True)

    def answer(self) -> Any:  # noqa: ANN401 - JSON
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise SystemExit("a client ended; see its error above")
        return json.loads(line)


@contextmanager
def client(port: int) -> Iterator[Client]:
    """Run a client. It ends with its standard input."""
    address = f"socket,host=127.0.0.1,port={port},tcpNoDelay=1"
    command = ["/usr/bin/python3", str(Path(__file__).with_name("client.py")), address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Client(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


def measure() -> Iterator[Figure]:
    """Yield the figures."""
    with ExitStack() as stack:
        first, second = stack.enter_context(offices.plain(2))
        pool = offices.Pool()
        pool.configure(POOL.format(workers=8))
        (through,) = stack.enter_context(offices.haproxy([first]))
        ports = {
            DIRECT: first.port,
            AGAIN: second.port,
            HAPROXY: through,
            PROXYD: stack.enter_context(offices.socket_proxyd(first)),
            FORWARD: offices.POOL_PORT,
        }
        clients = {path: stack.enter_context(client(port)) for path, port in ports.items()}
        pool.change('"forward"', '"handoff"')
        clients[HANDOFF] = stack.enter_context(client(offices.POOL_PORT))
        modes = [worker["mode"] for worker in pool.status()["workers"] if worker["state"] == "busy"]
        assert sorted(modes) == ["forward", "handoff"], modes
        yield from _calls(clients)
        yield from _openings(pool, ports)
    for count in CROWDS:
        yield _crowd(count)


def _calls(clients: dict[str, Client]) -> Iterator[Figure]:
    question = f"calls {CALLS}"
    yield Figure(
        "call",
        f"A call, mean of {CALLS}",
        "µs",
        in_turn({path: lambda it=it: it.ask(question) / 1e3 for path, it in clients.items()}, ROUNDS),  # type: ignore[misc]
        reference=DIRECT,
        goals={HANDOFF: 1.02},
        note="The second direct office is the control: how far two equal paths are apart.",
    )
    proxies = {path: it for path, it in clients.items() if path in (FORWARD, HAPROXY, PROXYD)}
    yield Figure(
        "proxies",
        f"A call through proxies, mean of {CALLS}",
        "µs",
        in_turn({path: lambda it=it: it.ask(question) / 1e3 for path, it in proxies.items()}, ROUNDS // 2),  # type: ignore[misc]
        reference=HAPROXY,
        goals={FORWARD: 1.05},
    )
    speeds: dict[str, list[tuple[float, float]]] = {path: [] for path in clients}

    def blocks(path: str) -> float:
        volume = BLOCKS * BLOCK_SIZE * 1e3
        up, down = clients[path].ask(f"blocks {BLOCKS} {BLOCK_SIZE}")
        speeds[path].append((volume / up, volume / down))
        return 0.0

    in_turn({path: partial(blocks, path) for path in clients}, BLOCK_ROUNDS)
    for index, way in enumerate(("to the office", "to the client")):
        yield Figure(
            f"blocks-{index}",
            f"Blocks of 1 MiB {way}",
            "MB/s",
            {path: [each[index] for each in values] for path, values in speeds.items()},
            reference=DIRECT,
            goals={HANDOFF: 0.97},
            more_is_better=True,
        )


def _opening(port: int) -> float:
    """Connect, agree on the protocol as far as the first reply, and disconnect. Return the milliseconds."""
    talk, begun = Talk(1), time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(OPENING)
        while not talk.greeted:
            if not (data := connection.recv(65536)):
                raise SystemExit(f"port {port} hung up")
            talk.receive(data)
    return (time.perf_counter() - begun) * 1e3


def _openings(pool: offices.Pool, ports: dict[str, int]) -> Iterator[Figure]:
    """The mode of the pool is another in every other round, so that both are measured with the others."""

    def several(port: int, rest: float) -> float:
        total = 0.0
        for _ in range(OPENINGS):
            time.sleep(rest)
            total += _opening(port)
        return total / OPENINGS

    def of_pool(before: str, after: str, rest: float) -> float:
        pool.change(f'"{before}"', f'"{after}"')
        pool.wait(lambda: pool.states().count("idle") >= 6)  # two are held
        return several(offices.POOL_PORT, rest)

    for name, how, rest, goal in (
        ("opening", "one at a time", REST, {HANDOFF: 1.5}),
        ("openings", "in a row", 0.0, {}),
    ):
        paths: dict[str, Callable[[], float]] = {path: partial(several, port, rest) for path, port in ports.items()}
        paths[FORWARD] = partial(of_pool, "handoff", "forward", rest)
        paths[HANDOFF] = partial(of_pool, "forward", "handoff", rest)
        yield Figure(
            name,
            f"Connect, first reply and disconnect, {how}",
            "ms",
            in_turn(paths, OPENING_ROUNDS),
            reference=DIRECT,
            goals=goal,
        )


def _crowd(count: int) -> Figure:
    """So many clients at once, each with an office of its own."""
    with ExitStack() as stack:
        own = stack.enter_context(offices.plain(count))
        pool = offices.Pool()
        pool.configure(POOL.format(workers=2 * count))
        crowds = {
            DIRECT: [stack.enter_context(client(office.port)) for office in own],
            HAPROXY: [stack.enter_context(client(port)) for port in stack.enter_context(offices.haproxy(own))],
            FORWARD: [stack.enter_context(client(offices.POOL_PORT)) for _ in own],
        }
        pool.change('"forward"', '"handoff"')
        crowds[HANDOFF] = [stack.enter_context(client(offices.POOL_PORT)) for _ in own]

        def rate(clients: list[Client]) -> float:
            for each in clients:
                each.begin(f"run {CROWD_CALLS}")
            begun, ended = zip(*(each.answer() for each in clients), strict=True)
            return float(count * CROWD_CALLS * 1e9 / (max(ended) - min(begun)))

        rounds = in_turn({path: partial(rate, clients) for path, clients in crowds.items()}, CROWD_ROUNDS)
    return Figure(
        f"rate-{count}", f"Calls of {count} clients at once", "1/s", rounds, reference=DIRECT, more_is_better=True
    )
