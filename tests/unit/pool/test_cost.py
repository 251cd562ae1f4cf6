# SPDX-License-Identifier: LGPL-2.1-or-later
"""An event costs the same however many workers there are. The measure is executed lines of Python, not time."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from ooodd.pool.actions import Reason
from ooodd.pool.pool import Pool
from pool.pools import pool

FEW, MANY = 100, 1000
# A loop may take one turn more here and there. An event that looks at every worker would make the ratio 10.
MOST = 1.5


def lines(steps: Callable[[], None]) -> int:
    """Return how many lines the steps execute."""
    executed = 0

    def trace(_frame: FrameType, event: str, _argument: Any) -> Any:  # noqa: ANN401 - as sys.settrace has it
        nonlocal executed
        executed += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        steps()
    finally:
        sys.settrace(before)
    return executed


def crowd(workers: int, clients: int, **others: object) -> Pool:
    it = pool(workers, **{"max_uses": 10**6, "max_clients": workers, **others})
    it.open(0.0)
    for number in range(1, workers + 1):
        it.ready(number, 1.0)
    for client in range(1, clients + 1):
        it.join(client, 2.0, "host")
    it.tick(10.0)  # here each worker that has become too old is noticed, once
    return it


def cost_of_each_event(it: Pool) -> int:
    """Return the cost of one of each event, with the deadline asked for after each, as a broker does."""
    new, last = len(it.workers) * 3, len(it.workers)
    (client, number), *_ = sorted((worker.client, worker.id) for worker in it.workers.values() if worker.client)
    now = 10.0
    events: list[Callable[[], object]] = [
        lambda: it.join(new, now, "host"),
        lambda: it.inspect(number, client, now),
        lambda: it.release(number, client, now),
        lambda: it.tick(now),
        lambda: it.lost(last, now, Reason.CRASHED, ""),
        lambda: it.stopped(last, now),
        lambda: it.not_started(last, now, ""),
        lambda: it.stopped(last, now),
        lambda: it.tick(now + 1.0),
        lambda: it.ready(last, now + 1.0),
        lambda: it.leave(new, now + 1.0),
        lambda: (it.drained, it.closed, it.unused),
    ]

    def steps() -> None:
        for event in events:
            event()
            assert it.deadline != 0.0

    return lines(steps)


OLD = {"idle_timeout": 5.0, "max_age": 5.0, "probe_interval": 1000.0}


@pytest.mark.parametrize(
    ("clients_per_worker", "others"),
    [
        pytest.param(0.1, {}, id="most are idle"),
        pytest.param(2.0, {}, id="all are busy and as many clients wait"),
        pytest.param(0.1, OLD, id="most are idle and too old, but go one at a time"),
    ],
)
def test_an_event_does_not_look_at_every_worker(clients_per_worker: float, others: dict[str, object]) -> None:
    few, many = (
        cost_of_each_event(crowd(workers, int(clients_per_worker * workers), **others)) for workers in (FEW, MANY)
    )
    assert many <= MOST * few
