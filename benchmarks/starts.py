# SPDX-License-Identifier: LGPL-2.1-or-later
"""How long a start takes: of a worker against an office by hand, and of everything against a stock office."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from systemd.journal import Reader

import offices
from figure import Figure, in_turn
from talk import OPENING, Talk

STARTS, COLD_STARTS = 24, 12
UNIT, BY_HAND, SERVICE, STOCK = "a worker", "by hand, the same profile", "from the socket alone", "a stock soffice"
NUMBER = 50
POOL = """\
[pool]
workers = 1
min_workers = 1
max_uses = 1
[log]
level = "detail"
[data_path]
mode = "{mode}"
"""


def measure() -> Iterator[Figure]:
    """Yield the figures."""
    pool = offices.Pool()
    for mode in ("forward", "handoff"):
        pool.configure(POOL.format(mode=mode))
        with _told() as told:
            rounds = in_turn({UNIT: partial(_start_of_worker, told), BY_HAND: _start_by_hand}, STARTS)
        yield Figure(
            f"start-{mode}",
            f"A start, until the office has answered a probe ({mode})",
            "s",
            rounds,
            reference=BY_HAND,
            goals={UNIT: 1.15},
        )
    pool.configure(POOL.format(mode="forward"))
    yield Figure(
        "cold",
        "Nothing runs: until the first answer",
        "s",
        in_turn({SERVICE: partial(_cold_start, pool), STOCK: partial(_start_by_hand, stock=True)}, COLD_STARTS),
        reference=STOCK,
    )


def converse(port: int, work: Callable[[], None] = lambda: None) -> None:
    """Connect as soon as somebody listens, have a conversation such as the broker's probe, and do `work`."""
    deadline = time.monotonic() + offices.START_LIMIT
    while True:
        talk = Talk(1)
        try:
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.sendall(OPENING)
                while not talk.done:
                    if not (data := connection.recv(65536)):
                        raise ConnectionResetError
                    if answer := talk.receive(data):
                        connection.sendall(answer)
                work()
        except ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)
        else:
            return


@contextmanager
def _told() -> Iterator[Iterator[float]]:
    """Follow what the broker says of each start from now on. To ask again and again would disturb a start."""
    with Reader() as journal:
        journal.add_match(SYSLOG_IDENTIFIER="ooodd")
        journal.seek_tail()
        journal.get_previous()
        yield (float(line.split()[5]) for line in _lines(journal) if " is ready after " in line)


def _lines(journal: Reader) -> Iterator[str]:
    deadline = time.monotonic() + offices.START_LIMIT
    while time.monotonic() < deadline:
        while entry := journal.get_next():
            yield entry["MESSAGE"]
            deadline = time.monotonic() + offices.START_LIMIT
        journal.wait(1)
    raise SystemExit("the journal has nothing new")


def _start_of_worker(told: Iterator[float]) -> float:
    """Use the worker up, and return how long its next start has taken, from the job to the answered probe."""
    converse(offices.POOL_PORT)
    return next(told)


def _start_by_hand(*, stock: bool = False) -> float:
    directory = offices.prepare(NUMBER, stock=stock)
    begun = time.perf_counter()
    office = offices.start(NUMBER, directory, stock=stock)
    try:
        converse(office.port)
        return time.perf_counter() - begun
    finally:
        offices.end(office)


def _cold_start(pool: offices.Pool) -> float:
    pool.sleep()
    begun = time.perf_counter()
    converse(offices.POOL_PORT)
    took = time.perf_counter() - begun
    pool.wait(lambda: "idle" in pool.states())
    return took
