# SPDX-License-Identifier: LGPL-2.1-or-later
"""One snapshot of a running broker. `ooodd status` prints it as JSON or as a table."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Protocol

from ooodd.config import Config
from ooodd.datapath.path import DataPath
from ooodd.office.keeper import Keeper
from ooodd.office.office import Office
from ooodd.pool.pool import Pool, Worker
from ooodd.systemd.peer import Peer
from ooodd.systemd.users import uid_of


class HasPeer(Protocol):
    """A client, as far as the status shows it."""

    @property
    def peer(self) -> Peer:
        """Who is at the other end of its connection."""

    @property
    def user(self) -> str:
        """The user whose process is there, as words; empty if that is not known."""

    @property
    def path(self) -> DataPath | None:
        """The data path of its session, while it has one."""


def snapshot(
    pool: Pool,
    keeper: Keeper,
    clients: Mapping[int, HasPeer],
    config: Config,
    warnings: Sequence[str] = (),
    statistics: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return what `ooodd status --json` prints. Its keys are a fixed interface: add some, but rename none.

    `clients` has the connected clients by the number that the pool knows them by.
    """
    now = time.monotonic()
    oldest = pool.queue.oldest
    return {
        "workers": [_worker(worker, keeper, clients, now, config.data_path.mode) for worker in pool.workers.values()],
        "queue": {
            "length": len(pool.queue),
            "oldest_wait": 0.0 if oldest is None else round(now - oldest, 3),
        },
        "waiting": [_waiting(session, place.joined, clients, now) for session, place in pool.queue.items()],
        "totals": asdict(pool.totals),
        "statistics": dict(statistics),
        "paused": pool.queue.paused,
        "draining": pool.draining,
        # Why no office can be started, empty if one runs.
        "start_error": pool.cannot_start,
        "warnings": list(warnings),
        "config": config.as_dict(),
    }


def _worker(worker: Worker, keeper: Keeper, clients: Mapping[int, HasPeer], now: float, wanted: str) -> dict[str, Any]:
    office = keeper.running(worker.id)
    client = None if worker.client is None else clients.get(worker.client)
    return {
        "id": worker.id,
        "unit": keeper.unit(worker.id),
        "state": str(worker.state),
        "uses": worker.uses,
        "pid": office.pid if office else None,
        "uid": office.uid if office else None,
        "mode": _mode(office, client, wanted),
        "memory": (office.memory() or None) if office else None,
        "since": _timestamp(worker.since, now),
        "client": client.peer.name if client else None,
        "session": worker.client if client else None,
        "user": uid_of(client.user) if client else None,
        "detail": worker.detail,
        "journal": keeper.journal(worker.id),
    }


def _waiting(session: int, joined: float, clients: Mapping[int, HasPeer], now: float) -> dict[str, Any]:
    client = clients[session]
    return {
        "session": session,
        "client": client.peer.name,
        "user": uid_of(client.user),
        "since": _timestamp(joined, now),
    }


def _timestamp(moment: float, now: float) -> str:
    """Return a moment of the monotonic clock as RFC 3339 has it."""
    return datetime.fromtimestamp(time.time() - (now - moment), UTC).isoformat(timespec="milliseconds")


def _mode(office: Office | None, client: HasPeer | None, wanted: str) -> str | None:
    """Return the data path of the worker's session, or else of its next one; None if it has no office."""
    if client is not None and client.path is not None:
        return client.path.mode
    if office is None:
        return None
    return "handoff" if wanted != "forward" and office.takes_sockets else "forward"
