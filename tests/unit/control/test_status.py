# SPDX-License-Identifier: LGPL-2.1-or-later
"""The snapshot of a running broker that `ooodd status --json` prints, and the table that is made of it."""

import json
import os
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fakes import FakeSupervisor, ListNotifier
from ooodd.config import Config, parse
from ooodd.control.status import snapshot
from ooodd.control.table import table
from ooodd.office.keeper import Keeper
from ooodd.office.office import Office
from ooodd.pool.pool import Place, Pool, State, Totals, Worker
from ooodd.systemd.peer import Peer

# The names that DESIGN fixes, and those of later versions.
WORKER = {"id", "unit", "state", "uses", "pid", "uid", "memory", "mode", "since", "client", "detail"}
WORKER |= {"session", "user", "journal"}
# PID_MAX_LIMIT is 2**22.
NO_PROCESS = 2**22 + 1


class FakeQueue:
    """As much of the pool's queue as the snapshot asks for."""

    def __init__(self, *joined: float) -> None:
        self._joined = joined

    paused = False

    def __len__(self) -> int:
        return len(self._joined)

    def items(self) -> list[tuple[int, Place]]:
        return [(100 + index, Place(joined)) for index, joined in enumerate(self._joined)]

    @property
    def oldest(self) -> float | None:
        return min(self._joined, default=None)


def a_pool(*workers: Worker, queue: FakeQueue | None = None, totals: Totals | None = None) -> Pool:
    fields = {"workers": {worker.id: worker for worker in workers}, "queue": queue or FakeQueue()}
    return cast(Pool, SimpleNamespace(**fields, totals=totals or Totals(), cannot_start="none works", draining=False))


def a_worker(number: int = 1, state: State = State.IDLE, *, age: float = 0.0, **fields: Any) -> Worker:  # noqa: ANN401
    return Worker(number, state, since=time.monotonic() - age, **fields)


def a_keeper(**pids: int) -> Keeper:
    """A keeper whose workers' offices have these pids: w1=123."""
    keeper = Keeper(FakeSupervisor(Path("/nowhere")), cast(Any, ListNotifier()), 60, 60)
    for name, pid in pids.items():
        keeper.adopt(int(name[1:]), Office("fake", pid, os.getuid(), Path("/nowhere")))
    return keeper


def a_client(name: str, mode: str = "") -> SimpleNamespace:
    path = SimpleNamespace(mode=mode) if mode else None
    return SimpleNamespace(peer=Peer(name, name.rpartition(":")[0]), path=path, user="user 0")


def test_the_keys_are_the_fixed_ones_and_the_snapshot_is_json() -> None:
    config = parse("[pool]\nworkers = 1\n", "test")
    status = snapshot(a_pool(a_worker()), a_keeper(), {}, config)
    assert set(status) == {
        "workers", "queue", "waiting", "totals", "statistics", "paused", "draining", "start_error", "warnings", "config"
    }  # fmt: skip
    assert status["start_error"] == "none works"
    assert [set(worker) for worker in status["workers"]] == [WORKER]
    assert set(status["queue"]) == {"length", "oldest_wait"}
    assert set(status["totals"]) == {"sessions", "refused", "recycled", "crashed", "hung", "dirty", "reclaimed"}
    assert status["config"] == config.as_dict()
    assert json.loads(json.dumps(status)) == status


def test_an_idle_worker_with_its_office() -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    (worker,) = snapshot(a_pool(a_worker()), a_keeper(w1=os.getpid()), {}, Config())["workers"]
    assert (worker["id"], worker["unit"], worker["state"], worker["uses"]) == (1, "fake-1", "idle", 0)
    assert (worker["pid"], worker["uid"], worker["client"]) == (os.getpid(), os.getuid(), None)
    assert worker["memory"] > 0
    assert before <= datetime.fromisoformat(worker["since"]) <= datetime.now(UTC)


def test_since_is_when_the_state_began() -> None:
    (worker,) = snapshot(a_pool(a_worker(age=3600.0)), a_keeper(), {}, Config())["workers"]
    age = datetime.now(UTC) - datetime.fromisoformat(worker["since"])
    assert timedelta(seconds=3600) <= age < timedelta(seconds=3660)


def test_a_busy_worker_names_its_client_and_another_s_client_is_not_named() -> None:
    pool = a_pool(a_worker(1, State.BUSY, client=7, uses=3), a_worker(2, State.INSPECTING, client=8))
    clients = {7: a_client("192.0.2.1:5"), 9: a_client("192.0.2.1:6")}
    first, second = snapshot(pool, a_keeper(), clients, Config())["workers"]
    assert (first["state"], first["uses"], first["client"]) == ("busy", 3, "192.0.2.1:5")
    assert (first["session"], first["user"]) == (7, 0)
    assert (second["state"], second["client"], second["session"], second["user"]) == ("inspecting", None, None, None)


@pytest.mark.parametrize(
    ("wanted", "acceptor", "session", "mode"),
    [
        ("forward", True, "", "forward"),
        ("auto", True, "", "handoff"),
        ("handoff", True, "", "handoff"),
        ("auto", False, "", "forward"),
        ("handoff", False, "", "forward"),
        ("forward", True, "handoff", "handoff"),
        ("handoff", True, "forward", "forward"),
    ],
)
def test_a_worker_has_the_mode_of_its_session_or_of_its_next(
    wanted: str,
    acceptor: bool,  # noqa: FBT001
    session: str,
    mode: str,
    tmp_path: Path,
) -> None:
    keeper = Keeper(FakeSupervisor(tmp_path), cast(Any, ListNotifier()), 60, 60)
    keeper.adopt(1, Office("fake", os.getpid(), os.getuid(), tmp_path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        if acceptor:
            listener.bind(str(tmp_path / "clients"))
        pool, clients = a_pool(a_worker(state=State.BUSY, client=7)), {7: a_client("192.0.2.1:5", session)}
        config = parse(f'[data_path]\nmode = "{wanted}"', "test")
        (worker,) = snapshot(pool, keeper, clients, config)["workers"]
    assert worker["mode"] == mode


def test_a_worker_that_failed_says_why_and_has_no_office() -> None:
    pool = a_pool(a_worker(state=State.FAILED, detail="refused by plan"))
    (worker,) = snapshot(pool, a_keeper(), {}, Config())["workers"]
    assert (worker["state"], worker["detail"]) == ("failed", "refused by plan")
    assert (worker["pid"], worker["uid"], worker["memory"]) == (None, None, None)


def test_an_office_that_is_gone_has_no_memory() -> None:
    (worker,) = snapshot(a_pool(a_worker()), a_keeper(w1=NO_PROCESS), {}, Config())["workers"]
    assert (worker["pid"], worker["memory"]) == (NO_PROCESS, None)


def test_the_queue_tells_how_many_wait_and_the_oldest_wait() -> None:
    now = time.monotonic()
    clients = {100: a_client("192.0.2.1:5"), 101: a_client("192.0.2.1:6")}
    status = snapshot(a_pool(queue=FakeQueue(now - 5.0, now - 9.0)), a_keeper(), clients, Config())
    assert status["queue"]["length"] == 2
    assert 9.0 <= status["queue"]["oldest_wait"] < 69.0
    first, second = status["waiting"]
    assert (first["session"], first["client"], first["user"]) == (100, "192.0.2.1:5", 0)
    assert datetime.fromisoformat(second["since"]) < datetime.fromisoformat(first["since"])
    assert snapshot(a_pool(), a_keeper(), {}, Config())["queue"] == {"length": 0, "oldest_wait": 0}


def test_a_client_that_has_waited_since_boot_is_the_oldest_too() -> None:
    queue = snapshot(a_pool(queue=FakeQueue(0.0)), a_keeper(), {100: a_client("a:1")}, Config())["queue"]
    assert queue["oldest_wait"] > 0


def test_totals_are_passed_on() -> None:
    totals = Totals(sessions=1, refused=2, recycled=3, crashed=4, hung=5, dirty=6, reclaimed=7)
    assert snapshot(a_pool(totals=totals), a_keeper(), {}, Config())["totals"] == {
        "sessions": 1, "refused": 2, "recycled": 3, "crashed": 4, "hung": 5, "dirty": 6, "reclaimed": 7,
    }  # fmt: skip


def test_a_thousand_workers_are_one_snapshot() -> None:
    status = snapshot(a_pool(*(a_worker(number) for number in range(1, 1001))), a_keeper(), {}, Config())
    assert [worker["id"] for worker in status["workers"]] == list(range(1, 1001))


# The table


def test_the_table_shows_the_snapshot() -> None:
    pool = a_pool(
        a_worker(1, State.FAILED, detail="refused by plan", age=90.0),
        a_worker(2, State.BUSY, client=7, uses=12, age=3.0),
        queue=FakeQueue(time.monotonic() - 5.0),
        totals=Totals(sessions=1),
    )
    clients = {7: a_client("192.0.2.1:5"), 100: a_client("192.0.2.1:6")}
    status = snapshot(pool, a_keeper(w2=NO_PROCESS), clients, Config())
    lines = table(status).splitlines()
    assert lines[0].split() == [
        *["WORKER", "STATE", "SINCE", "USES", "PID", "MEMORY", "MODE", "SESSION", "CLIENT", "USER"]
    ]
    assert lines[1].split() == ["1", "failed", "2min", "0", "-", "-", "-", "-", "-", "-"]
    busy = ["2", "busy", "3s", "12", str(NO_PROCESS), "-", "forward", "7", "192.0.2.1:5", "root"]
    assert lines[2].split() == busy
    assert lines[3] == ""
    assert lines[4].split() == ["SESSION", "WAITING", "CLIENT", "USER"]
    assert lines[5].split() == ["100", "5s", "192.0.2.1:6", "root"]
    assert lines[6] == ""
    assert lines[7].startswith("1 waiting, the first for ")
    assert lines[8] == "1 sessions, 0 refused, 0 recycled, 0 crashed, 0 hung, 0 dirty, 0 reclaimed"
    assert lines[9:] == ["worker 1 failed: refused by plan", "no office can be started: none works"]
    assert table({**status, "paused": True, "draining": True}).splitlines()[9:11] == [
        "paused: no client gets a worker until `ooodd resume`",
        "draining: ooodd ends when the last session has",
    ]
    coloured = table(status, colour=True).splitlines()
    assert coloured[1] == f"\033[31m{lines[1]}\033[0m"
    assert [*coloured[:1], *coloured[3:]] == [*lines[:1], *lines[3:]]


def test_of_many_that_wait_the_table_shows_the_first() -> None:
    now = time.monotonic()
    clients = {100 + number: a_client(f"192.0.2.1:{number}") for number in range(50)}
    status = snapshot(a_pool(queue=FakeQueue(*[now] * 50)), a_keeper(), clients, Config())
    assert "and 30 more" in table(status).splitlines()


def test_memory_is_shown_in_mebibytes() -> None:
    status = snapshot(a_pool(a_worker()), a_keeper(w1=os.getpid()), {}, Config())
    status["workers"][0]["memory"] = 117 * 2**20
    assert "117M" in table(status)
