# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line: output, output stream and exit status."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import ooodd
from fakes import GREETING, OPENING, FakeClient, FakeSupervisor, ListJournal, ListNotifier, MemoryFdStore
from ooodd import config, messages
from ooodd.__main__ import _parser, main
from ooodd.broker.broker import End
from ooodd.commands import common, run
from ooodd.control.client import call
from ooodd.errors import AdminError, OooddError
from ooodd.office.office import Office
from ooodd.systemd import listeners
from ooodd.systemd.notify import Notifier

SOURCE = Path(ooodd.__file__).parents[1]


@pytest.fixture(autouse=True)
def foreground(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the environment variables that systemd sets for a service."""
    for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "RUNTIME_DIRECTORY", "OOODD_OFFICE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path, for the control socket."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def ooodd_command(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ooodd", *arguments],
        env={**os.environ, "PYTHONPATH": str(SOURCE), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def one_line(text: str) -> str:
    assert text.endswith("\n")
    assert text.count("\n") == 1
    return text[:-1]


# check-config


def test_a_valid_file_is_ok(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ooodd.toml"
    path.write_text("[pool]\nworkers = 4\n")
    assert main(["check-config", str(path)]) == 0
    assert capsys.readouterr() == (f"{path}: ok\n", "")


def test_users_and_groups_that_do_not_exist_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ooodd.toml"
    path.write_text('[access]\nallowed_users = ["rot", "root", "4711"]\nallowed_groups = ["wheal", "root", "4711"]\n')
    assert main(["check-config", str(path)]) == 0
    out, error = capsys.readouterr()
    assert out == f"{path}: ok\n"
    assert error.splitlines() == [
        f'ooodd: {path}: access.allowed_users: this machine knows no user "rot"',
        f'ooodd: {path}: access.allowed_groups: this machine knows no group "wheal"',
    ]


def test_a_missing_default_file_is_ok_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "absent.toml")
    assert main(["check-config"]) == 0
    assert capsys.readouterr() == (f"{tmp_path}/absent.toml: absent, so all defaults\n", "")


def test_an_invalid_file_gives_one_line_on_stderr_and_status_78(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ooodd.toml"
    path.write_text("[pool]\nworkers = 0\n")
    assert main(["check-config", str(path)]) == 78
    assert capsys.readouterr() == ("", f"ooodd: {path}: pool.workers: must be at least 1\n")


def test_a_missing_named_file_gives_status_78(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-config", str(tmp_path / "absent.toml")]) == 78
    assert one_line(capsys.readouterr().err).startswith(f"ooodd: {tmp_path}/absent.toml: No such file or directory")


# status, stop, drain and reload


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["status", "--json"],
        ["recycle", "1"],
        ["kick", "1"],
        ["pause"],
        ["resume"],
        ["stop"],
        ["drain"],
        ["drain", "--wait"],
        ["reload"],
    ],
)
def test_a_command_without_a_broker_says_what_to_do(
    command: list[str], directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--runtime-directory", str(directory)]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert one_line(err) == (
        f"ooodd: no ooodd runs ({directory}/control: No such file or directory): "
        "systemctl status ooodd.socket ooodd.service; the first client starts it"
    )


def a_status(*states: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    """An answer of Status with workers in these states."""
    worker: dict[str, Any] = {
        "uses": 0,
        "pid": None,
        "memory": None,
        "mode": None,
        "client": None,
        "session": None,
        "user": None,
    }
    worker |= {"since": "2026-11-26T12:00:00.000+00:00", "detail": "broken", "journal": ""}
    return {
        "workers": [{"id": number, "state": state, **worker} for number, state in enumerate(states, 1)],
        "queue": {"length": 0, "oldest_wait": 0.0},
        "waiting": [],
        "totals": {"sessions": 0, "refused": 0},
        "paused": False,
        "draining": False,
        "start_error": "",
        "warnings": [],
        "config": {},
        **fields,
    }


def test_status_prints_json_or_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answer = a_status()
    monkeypatch.setattr("ooodd.commands.status.call", lambda *_: answer)
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == answer
    assert main(["status"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["", "0 waiting", "0 sessions, 0 refused"]


@pytest.mark.parametrize(
    ("answer", "exit_status"),
    [
        (a_status("idle", "busy", "stopped"), 0),
        (a_status("idle", "failed"), 1),
        (a_status("idle", warnings=["other hosts can reach it"]), 1),
        (a_status("failed", start_error="no office is installed"), 2),
        (a_status("idle", paused=True), 2),
        (a_status("busy", draining=True), 2),
    ],
)
def test_the_exit_status_of_status_is_for_monitoring(
    answer: dict[str, Any], exit_status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ooodd.commands.status.call", lambda *_: answer)
    assert main(["status"]) == main(["status", "--json"]) == exit_status


def test_an_order_is_one_call_with_its_parameters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = answers(monkeypatch, answer={"workers": [1, 2], "client": "192.0.2.1:5"})
    for command in (["recycle", "all"], ["recycle", "2", "--wait"], ["kick", "7"], ["pause"], ["resume"]):
        assert main(command) == 0
    assert calls == [
        ("Recycle", {"worker": None, "wait": False}),
        ("Recycle", {"worker": 2, "wait": True}),
        ("Kick", {"session": 7}),
        ("Pause", {}),
        ("Resume", {}),
    ]
    assert capsys.readouterr().out.splitlines() == [
        "recycled now, or after their session: 1, 2",
        "recycled: 1, 2",
        "sent away: 192.0.2.1:5",
        "paused: sessions go on, new clients wait within the limits of [queue]. To go on: ooodd resume",
        "resumed",
    ]


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["recycle", "one"], '"one" is no worker: give a number, or "all"'),
        (["recycle", "-1"], ""),
        (["kick", "x"], '"x" is no session: give the number of a session, as `ooodd status` shows it'),
    ],
)
def test_what_is_no_number_is_told(command: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: object = main(command)
    except SystemExit as end:  # argparse
        status = end.code
    assert status == 2
    assert complaint in capsys.readouterr().err


def test_stop_says_what_starts_the_service_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = answers(monkeypatch)
    assert main(["stop"]) == 0
    assert commands == [("Stop", {})]
    assert "systemctl stop ooodd.socket" in one_line(capsys.readouterr().out)


def test_drain_says_how_long_it_takes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    commands = answers(monkeypatch)
    assert main(["drain"]) == 0
    assert commands == [("Drain", {})]
    assert "[session] drain_timeout" in one_line(capsys.readouterr().out)


def test_reload_prints_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    commands = answers(monkeypatch)
    assert main(["reload"]) == 0
    assert commands == [("Reload", {})]
    assert capsys.readouterr() == ("", "")


def test_a_refused_reload_gives_one_line_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(monkeypatch, AdminError("f: pool.wrokers: unknown key; the configuration before stays in force"))
    assert main(["reload"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert one_line(err) == "ooodd: f: pool.wrokers: unknown key; the configuration before stays in force"


def answers(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None = None, answer: dict[str, Any] | None = None
) -> list[tuple[str, dict[str, Any]]]:
    """Answer every call, and return the list that records the calls."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def record(_: Path, method: str, parameters: dict[str, Any] | None = None, **__: bool) -> dict[str, Any]:
        calls.append((method, parameters or {}))
        if error is not None:
            raise error
        return answer or {}

    monkeypatch.setattr("ooodd.commands.orders.call", record)
    return calls


def test_a_closed_output_pipe_gives_no_traceback(directory: Path) -> None:
    # A pipe on Linux holds 64 KiB. The rest of this answer is written after the reader has closed the pipe.
    (directory / "sitecustomize.py").write_text(
        "from ooodd.control import client\nclient.call = lambda *_: {'workers': 'x' * 1_000_000}\n"
    )
    result = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m ooodd status --json | true"],
        env={**os.environ, "PYTHONPATH": f"{directory}:{SOURCE}"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert result.stderr == b""


# run


def test_run_with_an_invalid_configuration_gives_one_line_and_status_78(directory: Path) -> None:
    path = directory / "ooodd.toml"
    path.write_text("[pool]\nwrokers = 4\n")
    result = ooodd_command("run", "--config", path, "--listen", "127.0.0.1:0", "--runtime-directory", directory)
    assert (result.returncode, result.stdout) == (78, "")
    assert one_line(result.stderr) == f"ooodd: {path}: pool.wrokers: unknown key; did you mean pool.workers?"


def test_run_on_a_taken_port_says_what_to_do(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = ooodd_command("run", "--config", os.devnull, "--listen", address, "--runtime-directory", directory)
    assert (result.returncode, result.stdout) == (1, "")
    assert one_line(result.stderr) == (
        f"ooodd: can't listen on {address}: Address already in use: "
        "end what listens there (ss -ltnp), or give another --listen"
    )


@pytest.mark.parametrize("address", ["2002", "localhost", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:x", ":2002"])
def test_run_with_an_invalid_address_shows_the_format(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--config", os.devnull, "--listen", address]) == 1
    assert one_line(capsys.readouterr().err) == (
        f'ooodd: "{address}" is no address to listen on: give HOST:PORT, e.g. 127.0.0.1:2002'
    )


def test_run_is_refused_while_another_broker_runs(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{directory}/control")
        other.listen()
        result = ooodd_command(
            "run", "--config", os.devnull, "--listen", "127.0.0.1:0", "--runtime-directory", directory
        )
    assert (result.returncode, result.stdout) == (1, "")
    assert "another ooodd runs here: stop it, or give another" in one_line(result.stderr)


# As a service. Its log is lost if there is no journal; the exit status is what systemd acts on.


def service(directory: Path, text: str, **environment: str) -> int:
    pytest.importorskip("systemd.journal")
    path = directory / "ooodd.toml"
    path.write_text(text)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # As systemd: the first descriptor is 3, and LISTEN_PID is the service's own.
        script = (
            "import os, sys\n"
            "os.dup2(int(sys.argv[1]), 3) if sys.argv[1] != '3' else os.set_inheritable(3, True)\n"
            "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES=sys.argv[2])\n"
            "os.execv(sys.executable, [sys.executable, '-m', 'ooodd', 'run', '--config', sys.argv[3]])\n"
        )
        name = environment.pop("name", "uno")
        return subprocess.run(
            [sys.executable, "-c", script, str(listener.fileno()), name, str(path)],
            env={**os.environ, "PYTHONPATH": str(SOURCE), **environment},
            pass_fds=[listener.fileno()],
            timeout=60,
            check=False,
        ).returncode


def test_a_service_with_an_invalid_configuration_ends_with_78(directory: Path) -> None:
    assert service(directory, "[pool]\nwrokers = 4\n") == 78


def test_a_service_without_a_bus_ends_with_1(directory: Path) -> None:
    assert service(directory, "", DBUS_SYSTEM_BUS_ADDRESS=f"unix:path={directory}/absent") == 1


def test_a_service_whose_socket_has_another_name_ends_with_1(directory: Path) -> None:
    assert service(directory, "", name="metrics") == 1


# As a service, in this process, with a fake systemd.


class FakeUnits(FakeSupervisor):
    """Fake offices that are units: they go on when their supervisor is closed, and the service can have a job."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.job: str | None = None
        self.others_stopped = False
        self.closed = 0

    async def own_job(self) -> str | None:
        return self.job

    async def stop_others(self, numbers: Collection[int]) -> None:
        self.others_stopped = set(numbers) == set(self.offices)

    async def close(self) -> None:
        self.closed += 1

    async def end(self) -> None:
        """Stop all running offices, as ooodd-cleanup.service does."""
        for number in list(self.offices):
            await self.stop(number)


class ClosableNotifier(ListNotifier):
    def close(self) -> None:
        pass


class Service:
    """ooodd.service, with the listener, the fd store and the offices, which outlive it."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.configuration = directory / "ooodd.toml"
        self.configuration.write_text("[pool]\nworkers = 2\n")
        self.port = listeners.listen("127.0.0.1:0")
        self.units = FakeUnits(directory)
        self.journal = ListJournal()
        self.store = MemoryFdStore()
        monkeypatch.setenv("NOTIFY_SOCKET", "/absent")
        monkeypatch.setattr(run, "SystemdJournal", lambda _: self.journal)
        monkeypatch.setattr(run, "SystemdNotifier", ClosableNotifier)
        monkeypatch.setattr("ooodd.systemd.listeners.from_systemd", lambda: ([self.port.dup()], {}))
        monkeypatch.setattr("ooodd.systemd.fdstore.take_over", self._take_over)
        monkeypatch.setattr("ooodd.commands.run.UnitSupervisor.connect", self._connect)

    def _take_over(self, _: Notifier, __: Mapping[int, str]) -> tuple[MemoryFdStore, dict[str, list[socket.socket]]]:
        self.store, left = self.store.take_over()
        return self.store, left

    async def _connect(self) -> FakeUnits:
        return self.units

    def start(self) -> "asyncio.Task[int]":
        options = _parser().parse_args(
            ["run", "--config", str(self.configuration), "--runtime-directory", str(self.directory)]
        )
        self.port.setblocking(False)  # noqa: FBT003 - dup() returns a blocking socket
        return asyncio.create_task(run._run_as_service(options))

    async def restart(self, running: "asyncio.Task[int]") -> None:
        """Have systemd end the service for a restart. The caller starts it again."""
        self.units.job = "restart"
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running == 0

    def client(self) -> FakeClient:
        return FakeClient(self.port.getsockname())

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:  # noqa: ANN401
        return await asyncio.to_thread(call, self.directory, method, parameters)


@contextlib.asynccontextmanager
async def service_here(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    with tempfile.TemporaryDirectory() as name:
        it = Service(Path(name), monkeypatch)
        try:
            yield it
        finally:
            await it.units.end()
            it.store.discard()
            it.port.close()


HELLO = GREETING + OPENING


async def echoes(client: FakeClient) -> bool:
    await client.send(b"on and on")
    return await client.receive(9) == b"on and on"


async def test_a_stopped_service_waits_for_its_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    async with service_here(monkeypatch) as it:
        running = it.start()
        async with it.client() as client:
            assert await client.open() == HELLO
            it.units.job = "stop"
            os.kill(os.getpid(), signal.SIGTERM)
            stopping = await it.journal.wait_for(messages.BROKER_STOPPING)
            assert (stopping["sessions"], stopping["seconds"]) == (1, 30.0)
            await client.send(b"on and on")
            assert await client.receive(9) == b"on and on"
        assert await running == 0
        assert not it.units.offices
        assert it.units.closed == 1
        assert not it.store.kept


@pytest.mark.parametrize("job", [None, "stop", "start", "reload"])
async def test_a_service_that_ends_without_a_restart_drains(job: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    async with service_here(monkeypatch) as it:
        running = it.start()
        await it.journal.wait_for(messages.BROKER_READY)
        it.units.job = job
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running == 0
        assert it.journal.count(messages.BROKER_STOPPING) == 1
        assert it.journal.count(messages.BROKER_HANDS_OVER) == 0


async def test_a_restarted_service_keeps_sessions_and_waiting_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with service_here(monkeypatch) as it:
        it.configuration.write_text("[pool]\nworkers = 1\n")
        running = it.start()
        async with it.client() as busy, it.client() as waiting:
            assert await busy.open() == HELLO
            await waiting.send(OPENING)
            while len({name.split("-")[1] for name in it.store.kept}) < 2:  # noqa: ASYNC110 - the store has no event
                await asyncio.sleep(0)
            await it.restart(running)
            assert it.journal.count(messages.BROKER_HANDS_OVER) == 1
            assert list(it.units.offices) == [1]

            it.units.job = None
            await busy.send(b"meanwhile")
            running = it.start()
            taken = await it.journal.wait_for(messages.BROKER_TAKES_OVER)
            assert (taken["workers"], taken["sessions"], taken["queued"]) == (1, 1, 1)
            assert it.units.others_stopped
            assert await busy.receive(9) == b"meanwhile"
            busy.socket.shutdown(socket.SHUT_WR)
            assert await busy.ended()
            assert await waiting.receive(len(HELLO)) == HELLO
        await it.call("Drain")
        assert await running == 0
        assert not it.store.kept


async def test_a_restart_with_an_invalid_configuration_loses_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    async with service_here(monkeypatch) as it:
        it.units.job = "restart"
        running = it.start()
        async with it.client() as client:
            assert await client.open() == HELLO
            while not it.store.kept:  # noqa: ASYNC110 - the store has no event
                await asyncio.sleep(0)
            it.configuration.write_text("[pool]\nwrokers = 1\n")
            os.kill(os.getpid(), signal.SIGTERM)
            assert await running == 0
            running = it.start()
            refused = await it.journal.wait_for(messages.CONFIG_REFUSED)
            assert refused["clients"] == 1
            assert "pool.wrokers: unknown key" in str(refused["error"])
            await client.send(b"on and on")
            assert await client.receive(9) == b"on and on"
            os.kill(os.getpid(), signal.SIGTERM)
            assert await running == 0
        running = it.start()
        assert (await it.journal.wait_for(messages.BROKER_READY, 3))["workers"] == 2
        await it.call("Drain")
        assert await running == 0
        it.store.close()
        assert await it.start() == 78
        assert it.journal.count(messages.BROKER_FAILED) == 1


async def test_a_broker_that_cannot_start_leaves_the_sessions_to_the_next_broker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with service_here(monkeypatch) as it:
        it.configuration.write_text("[pool]\nworkers = 1\n")
        running = it.start()
        async with it.client() as client, it.client() as waiting:
            assert await client.open() == HELLO
            await waiting.send(OPENING)
            while len({name.split("-")[1] for name in it.store.kept}) < 2:  # noqa: ASYNC110 - the store has no event
                await asyncio.sleep(0)
            await it.restart(running)
            with socket.socket(socket.AF_UNIX) as other:
                other.bind(str(it.directory / "control"))
                other.listen()
                assert await it.start() == 1
            assert it.journal.count(messages.BROKER_FAILED) == 1
            it.units.job = None
            running = it.start()
            assert await echoes(client)
            client.socket.close()
            assert await waiting.receive(len(HELLO)) == HELLO
        await it.call("Drain")
        assert await running == 0


async def test_a_broker_that_fails_leaves_the_sessions_to_the_next_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    async with service_here(monkeypatch) as it:
        running = it.start()
        async with it.client() as client:
            assert await client.open() == HELLO
            await it.restart(running)
            with monkeypatch.context() as patch:
                patch.setattr("ooodd.broker.broker.Reporter.ready", lambda _: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    await it.start()
            it.units.job = None
            running = it.start()
            assert await echoes(client)
        await it.call("Drain")
        assert await running == 0


async def test_a_second_sigterm_is_ignored_and_sigint_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with service_here(monkeypatch) as it:
        running = it.start()
        async with it.client() as client:
            assert await client.open() == HELLO
            os.kill(os.getpid(), signal.SIGTERM)
            await it.journal.wait_for(messages.BROKER_STOPPING)
            it.units.job = "restart"
            os.kill(os.getpid(), signal.SIGTERM)
            await client.send(b"still")
            assert await client.receive(5) == b"still"
            assert not running.done()
            os.kill(os.getpid(), signal.SIGINT)
            assert await client.ended()
        assert await running == 0
        assert it.journal.count(messages.BROKER_HANDS_OVER) == 0


async def test_a_service_reloads_its_own_file(monkeypatch: pytest.MonkeyPatch) -> None:
    async with service_here(monkeypatch) as it:
        running = it.start()
        await it.journal.wait_for(messages.BROKER_READY)
        it.configuration.write_text("[pool]\nwrokers = 4\n")
        with pytest.raises(AdminError, match=r"wrokers: unknown key.*; the configuration before stays in force$"):
            await it.call("Reload")
        it.configuration.write_text('[pool]\nworkers = 4\n[log]\nlevel = "serious"\n')
        await it.call("Reload")
        assert (await it.journal.wait_for(messages.BROKER_RELOADED))["workers"] == 4
        assert it.journal.level == "serious"
        await it.call("Stop")
        assert await running == 0


async def test_an_unused_service_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    async with service_here(monkeypatch) as it:
        it.configuration.write_text('[pool]\nmin_workers = 0\nidle_timeout = "1s"\n')
        running = it.start()
        assert await running == 0
        assert it.journal.count(messages.BROKER_UNUSED) == 1
        assert not it.units.offices


async def test_a_service_that_fails_logs_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail() -> FakeUnits:
        raise OooddError("no bus", "start it")

    async with service_here(monkeypatch) as it:
        monkeypatch.setattr("ooodd.commands.run.UnitSupervisor.connect", fail)
        assert await it.start() == 1
        assert str((await it.journal.wait_for(messages.BROKER_FAILED))["error"]) == "no bus: start it"


async def test_a_lost_and_restored_bus_connection_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    async with service_here(monkeypatch) as it:
        running = it.start()
        await it.journal.wait_for(messages.BROKER_READY)
        it.units.on_bus("connection to the system message bus lost")  # type: ignore[attr-defined]
        it.units.on_bus(None)  # type: ignore[attr-defined]
        assert it.journal.count(messages.BUS_LOST) == it.journal.count(messages.BUS_BACK) == 1
        await it.call("Stop")
        assert await running == 0


# In the foreground, without a service manager


async def test_in_the_foreground_sigterm_drains() -> None:
    class Ended:
        how: End

        def end(self, how: End) -> None:
            self.how = how

    broker = Ended()
    await run._terminate(broker, None)  # type: ignore[arg-type]
    assert broker.how is End.DRAIN


# The command line itself


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"ooodd {ooodd.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [[], ["start"], ["status", "--xml"], ["run", "extra"], ["check-config", "a", "b"]]
)
def test_wrong_usage_gives_status_2_and_a_message_on_stderr(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.split(":")[0]) == ("", "usage")


@pytest.mark.parametrize(
    "command",
    [
        [],
        *(
            [name]
            for name in [
                "run",
                "status",
                "top",
                "ping",
                "convert",
                "recycle",
                "kick",
                "pause",
                "resume",
                "drain",
                "stop",
                "check-config",
            ]
        ),
    ],
)
def test_every_command_has_help_on_stdout(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    assert (out.split(":")[0], err) == ("usage", "")


def test_help_lists_the_commands_for_users_and_not_those_for_units(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = set(re.findall(r"^    (\S+)", capsys.readouterr().out, re.MULTILINE))
    names = "run status top ping convert recycle kick pause resume drain stop check-config"
    assert listed == set(names.split())


# The location of the control socket


def runtime_directory(*arguments: str) -> Path:
    return common.runtime_directory(_parser().parse_args(arguments), in_foreground=arguments[0] == "run")


def test_the_runtime_directory_option_sets_the_control_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/ooodd:/run/ooodd-worker")
    assert runtime_directory("run", "--runtime-directory", str(tmp_path)) == tmp_path


def test_a_service_uses_the_runtime_directory_of_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/ooodd:/run/ooodd-worker")
    assert runtime_directory("run") == Path("/run/ooodd")


def test_without_a_service_each_user_has_a_runtime_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(common, "_SYSTEM_RUNTIME_DIRECTORY", tmp_path / "absent")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    own = tmp_path / f"ooodd-{os.getuid()}"
    assert {runtime_directory("run"), runtime_directory("status"), runtime_directory("stop")} == {own}


def test_status_asks_the_service_if_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(common, "_SYSTEM_RUNTIME_DIRECTORY", tmp_path)
    assert runtime_directory("status") == runtime_directory("stop") == tmp_path
    assert runtime_directory("run") != tmp_path


def test_offices_with_impossible_worker_numbers_are_not_adopted() -> None:
    office = Office("unit", 1, 1, Path("/nowhere"))
    assert run._ours({0: office, 1: office, 1000: office, 1001: office}) == {1: office, 1000: office}


def test_a_password_that_is_no_text_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("letter.odt", "password"):
        (tmp_path / name).write_bytes(b"\xff")
    assert main(["convert", "--password-file", str(tmp_path / "password"), str(tmp_path / "letter.odt")]) == 2
    complaint = "invalid start byte: write the password in UTF-8"
    assert capsys.readouterr().err == f"ooodd: {tmp_path}/password: {complaint}\n"
