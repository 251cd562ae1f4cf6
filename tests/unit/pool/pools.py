# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pools to test with, and the steps that many tests share."""

from collections.abc import Mapping
from random import Random
from typing import Any

from ooodd.pool.actions import Action, Reason, Start
from ooodd.pool.limits import Limits
from ooodd.pool.pool import Look, Pool


def limits(workers: int = 2, **others: object) -> Limits:
    """Limits under which every worker is started at once and kept, unless told otherwise."""
    defaults: dict[str, Any] = {
        "min_workers": workers,
        "spare_workers": 0,
        "max_uses": 10,
        "max_uses_jitter": 0,
        "max_clients": 6,
        "queue_timeout": 100.0,
        "starts": workers,
    }
    return Limits(workers=workers, **{**defaults, **others})


def pool(workers: int = 2, **others: object) -> Pool:
    return Pool(limits(workers, **others), Random(1))


def ready_pool(workers: int = 2, **others: object) -> Pool:
    """A pool whose workers have all become ready at the time 1.0."""
    it = pool(workers, **others)
    assert it.open(0.0) == [Start(number) for number in range(1, workers + 1)]
    for number in range(1, workers + 1):
        it.ready(number, 1.0)
    return it


def elastic_pool(workers: int, **others: object) -> Pool:
    """A pool that has only the workers that its clients need, with idle_timeout = 50."""
    return pool(workers, **{"min_workers": 0, "idle_timeout": 50.0, **others})


def looks(quiet_since: Mapping[int, float], **processes: bytes) -> dict[int, Look]:
    """Looks at the sessions of some clients, by when they became quiet; and `client_N`, the process of client N."""
    return {client: Look(since, processes.get(f"client_{client}", b"")) for client, since in quiet_since.items()}


def end_session(
    it: Pool, number: int, client: int, now: float, fault: Reason | None = None, memory: int = 0
) -> list[Action]:
    """Inspect and release a client's worker."""
    assert it.inspect(number, client, now)
    return it.release(number, client, now, fault, memory=memory)


def recycle(it: Pool, number: int, now: float) -> list[Action]:
    """Let a worker that is being stopped stop, start and become ready."""
    return [*it.stopped(number, now), *it.ready(number, now)]
