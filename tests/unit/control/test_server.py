# SPDX-License-Identifier: LGPL-2.1-or-later
"""The control socket: what status tells, what may be asked and by whom, and requests that are none."""

import asyncio
import contextlib
import dataclasses
import json
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fakes import OPENING, settled, until
from ooodd import config, messages
from ooodd.broker import broker
from ooodd.config import Config
from ooodd.control import server as admin
from ooodd.control.server import ControlSocket
from ooodd.control.table import table
from ooodd.errors import AdminError, ConfigError
from ooodd.pool.pool import State
from ooodd.systemd.peer import Credentials
from world import World, world

# The names that DESIGN fixes, and "detail", which says why a worker failed.
WORKER = {"id", "unit", "state", "uses", "pid", "uid", "memory", "since", "client", "detail"}


@contextlib.asynccontextmanager
async def controlled(
    settings: str = "[pool]\nworkers=1", plan: list[str] | None = None, load: Callable[[], Config] = Config
) -> AsyncIterator[tuple[World, Path]]:
    """A broker and its control socket; yields them with the socket's directory."""
    with tempfile.TemporaryDirectory() as directory:
        async with world(settings, plan) as it:
            control = ControlSocket(it.broker, Path(directory), load)
            await control.open()
            try:
                yield it, Path(directory)
            finally:
                await control.close()
        assert not list(os.scandir(directory)), "the socket is left"


async def ask(directory: Path, command: str = "status") -> dict[str, Any]:
    return await asyncio.to_thread(admin.ask, directory, command)


async def say(directory: Path, *lines: bytes) -> bytes:
    """Send bytes and return all that is answered."""
    reader, writer = await asyncio.open_unix_connection(directory / "control")
    with contextlib.closing(writer), contextlib.suppress(ConnectionError):
        writer.writelines(lines)
        return await reader.read()
    return b""


# Status


async def test_status_has_exactly_the_fixed_keys() -> None:
    async with controlled() as (it, directory):
        await settled(it.broker.pool, State.IDLE)
        status = await ask(directory)
        assert set(status) == {"workers", "queue", "totals", "config"}
        assert [set(worker) for worker in status["workers"]] == [WORKER]
        assert set(status["queue"]) == {"length", "oldest_wait"}
        assert set(status["totals"]) == {"sessions", "refused", "recycled", "crashed", "hung", "dirty"}
        assert status["config"] == it.broker.config.as_dict()
        assert set(status["config"]) == set(Config().as_dict())


async def test_status_tells_of_an_idle_worker() -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    async with controlled() as (it, directory):
        await settled(it.broker.pool, State.IDLE)
        status = await ask(directory)
        (worker,) = status["workers"]
        assert (worker["id"], worker["unit"], worker["state"], worker["uses"]) == (1, "fake-1", "idle", 0)
        assert (worker["pid"], worker["uid"], worker["client"]) == (os.getpid(), os.getuid(), None)
        assert worker["memory"] > 0
        assert before <= datetime.fromisoformat(worker["since"]) <= datetime.now(UTC)
        assert status["queue"] == {"length": 0, "oldest_wait": 0}
        assert set(status["totals"].values()) == {0}


async def test_status_tells_of_a_session_and_of_who_waits() -> None:
    async with controlled() as (it, directory), it.client() as busy, it.client() as waiting:
        await busy.open()
        await waiting.send(OPENING)
        await until(lambda: it.broker.pool.queue)
        place = it.broker.pool.queue[2]
        it.broker.pool.queue._places[2] = place._replace(joined=place.joined - 5.0)
        status = await ask(directory)
        (worker,) = status["workers"]
        host, port = busy.socket.getsockname()
        assert (worker["state"], worker["uses"], worker["client"]) == ("busy", 1, f"{host}:{port}")
        assert status["queue"]["length"] == 1
        assert 5.0 <= status["queue"]["oldest_wait"] < 5.0 + 60.0
        assert status["totals"]["sessions"] == 1


async def test_status_tells_why_a_worker_failed() -> None:
    async with controlled(plan=["refuse"]) as (it, directory):
        await settled(it.broker.pool, State.FAILED)
        (worker,) = (await ask(directory))["workers"]
        assert (worker["state"], worker["detail"]) == ("failed", "refused by plan: none; details: fake-1")
        assert (worker["pid"], worker["uid"], worker["memory"]) == (None, None, None)


async def test_status_counts_what_went_wrong() -> None:
    async with controlled("[pool]\nworkers=1\n[queue]\nmax_clients=0") as (it, directory):
        await settled(it.broker.pool, State.IDLE)
        async with it.client() as busy, it.client() as other:
            await busy.open()
            await other.send(OPENING)
            assert await other.ended()
            await it.supervisor.kill(1)
        await settled(it.broker.pool, State.IDLE)
        totals = (await ask(directory))["totals"]
        assert (totals["sessions"], totals["refused"], totals["crashed"]) == (1, 1, 1)


async def test_an_office_that_is_gone_has_no_memory() -> None:
    async with controlled() as (it, directory):
        await settled(it.broker.pool, State.IDLE)
        gone = dataclasses.replace(it.broker.keeper.office(1), pid=2**22 + 1)  # PID_MAX_LIMIT
        it.broker.keeper.adopt(1, gone)
        (worker,) = (await ask(directory))["workers"]
        assert (worker["pid"], worker["memory"]) == (2**22 + 1, None)


async def test_status_of_a_thousand_workers_is_one_answer() -> None:
    async with controlled("[pool]\nworkers=1000", ["refuse"] * 3000) as (_, directory):
        status = await ask(directory)
        assert [worker["id"] for worker in status["workers"]] == list(range(1, 1001))


async def test_many_may_ask_at_once() -> None:
    async with controlled() as (_, directory):
        answers = await asyncio.gather(*(say(directory, b'{"command": "status"}\n') for _ in range(50)))
        assert all("workers" in json.loads(answer) for answer in answers)


async def test_the_table_shows_what_status_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = broker._limits
    # Both start at once, and what has failed stays so.
    monkeypatch.setattr(broker, "_limits", lambda it: dataclasses.replace(limits(it), starts=2, back_off_first=30.0))
    async with (
        controlled("[pool]\nworkers=2\nmin_workers=2", ["refuse", ""]) as (it, directory),
        it.client() as busy,
        it.client() as late,
    ):
        await busy.open()
        await late.send(OPENING)
        await until(lambda: it.broker.pool.queue)
        await settled(it.broker.pool, State.FAILED, State.BUSY)
        lines = table(await ask(directory)).splitlines()
        assert lines[0].split() == ["WORKER", "STATE", "SINCE", "USES", "PID", "MEMORY", "CLIENT"]
        assert lines[1].split()[:2] == ["1", "failed"]
        assert lines[2].split()[:2] == ["2", "busy"]
        assert lines[2].split()[-1] == "{}:{}".format(*busy.socket.getsockname())
        assert lines[4].startswith("1 waiting, the first for ")
        assert lines[5] == "1 sessions, 0 refused, 0 recycled, 0 crashed, 0 hung, 0 dirty"
        assert lines[6:] == ["worker 1 failed: refused by plan: none; details: fake-1"]


# Other requests


async def test_stop_ends_the_broker() -> None:
    async with controlled() as (it, directory):
        await settled(it.broker.pool, State.IDLE)
        assert await ask(directory, "stop") == {"done": True}
        await it.running
        assert not it.supervisor.offices


async def test_stop_does_not_wait_for_sessions() -> None:
    async with controlled() as (it, directory), it.client() as busy:
        await busy.open()
        await ask(directory, "stop")
        assert await busy.ended()
        await it.running
        assert it.journal.count(messages.SESSION_END) == 1


async def test_drain_waits_for_sessions_and_lets_nobody_in() -> None:
    async with controlled() as (it, directory):
        async with it.client() as busy, it.client() as late:
            await busy.open()
            assert await ask(directory, "drain") == {"done": True}
            stopping = await it.journal.wait_for(messages.BROKER_STOPPING)
            assert (stopping["sessions"], stopping["seconds"]) == (1, 30.0)
            await late.send(OPENING)
            await busy.send(b"on and on")
            assert await busy.receive(9) == b"on and on"
            assert len((await ask(directory))["workers"]) == 1  # it still answers
            assert not it.running.done()
        await it.running
        assert it.broker.pool.totals.sessions == 1
        assert not it.supervisor.offices


async def test_drain_ends_by_itself_when_its_time_is_over() -> None:
    settings = '[pool]\nworkers=1\n[session]\ndrain_timeout="50ms"'
    async with controlled(settings) as (it, directory), it.client() as busy:
        await busy.open()
        await ask(directory, "drain")
        assert await busy.ended()
        await it.running


async def test_stop_cuts_a_drain_short() -> None:
    async with controlled() as (it, directory), it.client() as busy:
        await busy.open()
        await ask(directory, "drain")
        await it.journal.wait_for(messages.BROKER_STOPPING)
        await ask(directory, "stop")
        assert await busy.ended()
        await it.running


async def test_reload_puts_another_configuration_in_force_and_touches_no_session() -> None:
    def load() -> Config:
        return config.parse('[pool]\nworkers = 3\nprobe_timeout = "7s"\n[log]\nlevel = "detail"\n', "test")

    async with controlled(load=load) as (it, directory), it.client() as busy:
        await busy.open()
        assert await ask(directory, "reload") == {"done": True}
        status = await ask(directory)
        assert [worker["id"] for worker in status["workers"]] == [1, 2, 3]
        assert status["config"] == load().as_dict()
        assert it.broker.keeper.probe_timeout == 7
        assert it.journal.level == "detail"
        assert (await it.journal.wait_for(messages.BROKER_RELOADED))["workers"] == 3
        await busy.send(b"as before")
        assert await busy.receive(9) == b"as before"


async def test_a_reload_that_finds_a_bad_configuration_leaves_the_old_one_in_force() -> None:
    def load() -> Config:
        raise ConfigError("/etc/ooodd/ooodd.toml: pool.wrokers", "unknown key; did you mean pool.workers?")

    async with controlled(load=load) as (it, directory):
        await settled(it.broker.pool, State.IDLE)
        before = await ask(directory)
        with pytest.raises(AdminError) as refused:
            await ask(directory, "reload")
        assert str(refused.value) == (
            "/etc/ooodd/ooodd.toml: pool.wrokers: unknown key; did you mean pool.workers?; "
            "the configuration before stays in force"
        )
        after = await ask(directory)
        assert after["config"] == before["config"]
        assert after["workers"][0]["state"] == "idle"
        assert it.journal.count(messages.BROKER_RELOADED) == 0


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"status\n",
        b"{}\n",
        b"[]\n",
        b"5\n",
        b"null\n",
        b'{"command": "halt"}\n',
        b'{"command": ["status"]}\n',
        b'{"command": "status", "more": 1}\n',
        b'{"self": "status"}\n',
        b"\xff\xfe\n",
        b"\0" * 100 + b"\n",
        b"[" * 4000 + b"\n",
        b'{"command": "stop"',
    ],
)
async def test_what_is_no_request_is_answered_with_an_error_of_one_line(request_: bytes) -> None:
    async with controlled() as (it, directory):
        reader, writer = await asyncio.open_unix_connection(directory / "control")
        with contextlib.closing(writer):
            writer.write(request_)
            writer.write_eof()
            answer = json.loads(await reader.read())
        assert set(answer) == {"error"}
        assert answer["error"].startswith("no request of this version: ")
        assert "\n" not in answer["error"]
        assert not it.running.done()
        assert "workers" in await ask(directory)


async def test_a_line_without_end_is_cut_off() -> None:
    async with controlled() as (_, directory):
        assert await say(directory, b"x" * 1_000_000) == b""
        assert "workers" in await ask(directory)


async def test_who_says_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "_TIMEOUT", 0.02)
    async with controlled() as (_, directory):
        assert await say(directory, b'{"comm') == b""


async def test_who_says_nothing_does_not_outlive_the_socket() -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with controlled() as (_, directory):
            reader, writer = await asyncio.open_unix_connection(directory / "control")
            stack.enter_context(contextlib.closing(writer))
            await ask(directory)
        assert await reader.read() == b""


async def test_who_does_not_read_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "_TIMEOUT", 0.05)
    monkeypatch.setattr(admin, "status", lambda _: {"more than": "a socket holds" * 1_000_000})
    async with controlled() as (_, directory):
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.connect(str(directory / "control"))
            deaf.sendall(b'{"command": "status"}\n')
            await until(answering)
            await until(lambda: not answering())
            deaf.setblocking(False)  # noqa: FBT003
            heard = b"..."
            with contextlib.suppress(ConnectionError):
                while more := await asyncio.get_running_loop().sock_recv(deaf, 1 << 20):
                    heard = more
            assert not heard.endswith(b"\n")


def answering() -> list[str]:
    return [name for task in asyncio.all_tasks() if "ControlSocket._serve" in (name := str(task.get_coro()))]


async def test_a_stranger_may_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    async with controlled() as (it, directory):
        monkeypatch.setattr(admin, "credentials", lambda _: Credentials(pid=1, uid=65534, gid=65534))
        for command in ("status", "stop", "drain", "reload"):
            with pytest.raises(AdminError, match=r"^only root and ooodd's own user may ask$"):
                await ask(directory, command)
        assert not it.running.done()


# The socket


async def test_only_its_owner_may_connect() -> None:
    async with controlled() as (_, directory):
        mode = (directory / "control").stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600


async def test_a_directory_that_it_makes_is_its_owners_alone_and_usable() -> None:
    before = os.umask(0o022)
    try:
        with tempfile.TemporaryDirectory() as directory:
            async with world() as it:
                control = ControlSocket(it.broker, Path(directory) / "own", Config)
                await control.open()
                assert stat.S_IMODE((Path(directory) / "own").stat().st_mode) == 0o700
                await control.close()
        assert os.umask(0o022) == 0o022, "the process's umask is not what it was"
    finally:
        os.umask(before)


async def test_a_second_broker_in_the_same_directory_is_refused() -> None:
    async with controlled() as (it, directory):
        second = ControlSocket(it.broker, directory, Config)
        with pytest.raises(AdminError, match=r"another ooodd runs here: stop it, or give another --runtime-directory"):
            await second.open()
        await second.close()
        assert "workers" in await ask(directory)


async def test_the_socket_of_a_broker_that_was_killed_is_replaced() -> None:
    with tempfile.TemporaryDirectory() as directory:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(f"{directory}/control")
        async with world() as it:
            control = ControlSocket(it.broker, Path(directory), Config)
            await control.open()
            assert "workers" in await ask(Path(directory))
            await control.close()


async def test_a_directory_that_cannot_be_had_is_told() -> None:
    with tempfile.NamedTemporaryFile() as file:
        async with world() as it:
            control = ControlSocket(it.broker, Path(file.name), Config)
            with pytest.raises(AdminError, match="give a --runtime-directory that is yours"):
                await control.open()
            await control.close()


# Asking


def test_asking_nobody_says_so(tmp_path: Path) -> None:
    with pytest.raises(AdminError, match=r"^no ooodd runs \(.*control: No such file or directory\): systemctl status"):
        admin.ask(tmp_path, "status")


@pytest.mark.parametrize("answer", [b"", b"nonsense\n", b'{"workers": '])
async def test_an_answer_that_is_none_is_told(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()

    with tempfile.TemporaryDirectory() as directory:
        server = await asyncio.start_unix_server(serve, f"{directory}/control")
        with pytest.raises(AdminError, match="ooodd does not answer"):
            await ask(Path(directory))
        server.close()


async def test_a_broker_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "_TIMEOUT", 0.05)
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as hung:
        hung.bind(f"{directory}/control")
        hung.listen()
        with pytest.raises(AdminError, match=r"ooodd does not answer \(timed out\): systemctl status ooodd"):
            await ask(Path(directory))


def test_who_may_not_ask_is_told_whom_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def deny(*_: object) -> None:  # root is let in everywhere
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", deny)
    with pytest.raises(AdminError, match="Permission denied: ask as root, or as the user that runs ooodd"):
        admin.ask(tmp_path, "status")
