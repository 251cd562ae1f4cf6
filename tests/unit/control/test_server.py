# SPDX-License-Identifier: LGPL-2.1-or-later
"""The control socket: what may be asked and by whom, lines that are no request, and opening and closing it."""

import asyncio
import contextlib
import errno
import json
import os
import resource
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes import until
from ooodd.control import server
from ooodd.control.client import ask as ask_in_a_thread
from ooodd.control.server import ControlServer
from ooodd.errors import AdminError, ConfigError
from ooodd.systemd.peer import Credentials

Commands = dict[str, Callable[[], dict[str, Any]]]


def refuse() -> dict[str, Any]:
    raise ConfigError("/etc/ooodd/ooodd.toml: pool.wrokers", "unknown key; did you mean pool.workers?")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: a unix socket's has 108 bytes at the most."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@contextlib.asynccontextmanager
async def opened(directory: Path, **commands: Callable[[], dict[str, Any]]) -> AsyncIterator[Commands]:
    """A server with the given commands, and "ping"; yields the commands."""
    known: Commands = {"ping": lambda: {"pong": True}, **commands}
    it = ControlServer(directory, known)
    it.open()
    await it.serve()
    try:
        yield known
    finally:
        await it.close()
    assert not list(os.scandir(directory)), "the socket is left"


async def ask(directory: Path, command: str = "ping") -> dict[str, Any]:
    return await asyncio.to_thread(ask_in_a_thread, directory, command)


async def send(directory: Path, *lines: bytes) -> bytes:
    """Send bytes and return all that is answered."""
    reader, writer = await asyncio.open_unix_connection(directory / "control")
    with contextlib.closing(writer), contextlib.suppress(ConnectionError):
        writer.writelines(lines)
        return await reader.read()
    return b""


# Requests


async def test_a_command_s_answer_is_what_it_returns(directory: Path) -> None:
    async with opened(directory, status=lambda: {"workers": [1, 2], "queue": {"length": 0}}):
        assert await ask(directory, "status") == {"workers": [1, 2], "queue": {"length": 0}}
        assert await ask(directory) == {"pong": True}


async def test_answers_of_any_size_arrive(directory: Path) -> None:
    answer = {"workers": ["w" * 300] * 1000}
    async with opened(directory, status=lambda: answer):
        assert await ask(directory, "status") == answer


async def test_many_may_ask_at_once(directory: Path) -> None:
    async with opened(directory):
        answers = await asyncio.gather(*(send(directory, b'{"command": "ping"}\n') for _ in range(50)))
        assert [json.loads(answer) for answer in answers] == [{"pong": True}] * 50


async def test_a_command_that_fails_answers_with_the_error(directory: Path) -> None:
    async with opened(directory, reload=refuse):
        with pytest.raises(AdminError) as refused:
            await ask(directory, "reload")
        assert str(refused.value) == "/etc/ooodd/ooodd.toml: pool.wrokers: unknown key; did you mean pool.workers?"
        assert await ask(directory) == {"pong": True}


async def test_a_bug_in_a_command_is_answered_and_told_to_the_loop(directory: Path) -> None:
    contexts: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context))
    async with opened(directory, status=lambda: {"ratio": 1 / 0}):
        with pytest.raises(AdminError, match=r"^internal error: ZeroDivisionError"):
            await ask(directory, "status")
        assert await ask(directory) == {"pong": True}
    assert [type(context["exception"]) for context in contexts] == [ZeroDivisionError]


@pytest.mark.parametrize("name", ["halt", "", "Ping", "ping ", "a\nb", "_answer"])
async def test_an_unknown_command_is_named_beside_the_known_ones(name: str, directory: Path) -> None:
    async with opened(directory, status=dict, drain=dict):
        with pytest.raises(AdminError) as refused:
            await ask(directory, name)
        assert str(refused.value) == f"unknown command {name!r}: this ooodd knows drain, ping, status"


async def test_commands_may_be_added_while_the_socket_is_open(directory: Path) -> None:
    async with opened(directory) as commands:
        with pytest.raises(AdminError, match="unknown command 'status'"):
            await ask(directory, "status")
        commands["status"] = lambda: {"workers": []}
        assert await ask(directory, "status") == {"workers": []}


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"ping\n",
        b"{}\n",
        b"[]\n",
        b"5\n",
        b"null\n",
        b'{"command": ["ping"]}\n',
        b'{"command": null}\n',
        b'{"command": "ping", "more": 1}\n',
        b'{"self": "ping"}\n',
        b"\xff\xfe\n",
        b"\0" * 100 + b"\n",
        b"[" * 4000 + b"\n",
        b'{"command": "ping"',
    ],
)
async def test_a_line_that_is_no_request_is_answered_with_an_error_of_one_line(
    request_: bytes, directory: Path
) -> None:
    async with opened(directory):
        reader, writer = await asyncio.open_unix_connection(directory / "control")
        with contextlib.closing(writer):
            writer.write(request_)
            writer.write_eof()
            answer = json.loads(await reader.read())
        assert set(answer) == {"error"}
        assert answer["error"].startswith("not a request: ")
        assert "\n" not in answer["error"]
        assert await ask(directory) == {"pong": True}


async def test_a_line_without_end_is_cut_off(directory: Path) -> None:
    async with opened(directory):
        assert await send(directory, b"x" * 1_000_000) == b""
        assert await ask(directory) == {"pong": True}


async def test_a_client_that_sends_nothing_is_disconnected(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TIMEOUT", 0.02)
    async with opened(directory):
        assert await send(directory, b'{"comm') == b""


async def test_a_client_that_sends_nothing_is_disconnected_when_the_server_closes(directory: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with opened(directory):
            reader, writer = await asyncio.open_unix_connection(directory / "control")
            stack.enter_context(contextlib.closing(writer))
            await ask(directory)
        assert await reader.read() == b""


async def test_a_client_that_does_not_read_is_disconnected(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TIMEOUT", 0.05)
    async with opened(directory, status=lambda: {"more than": "a socket buffers" * 1_000_000}):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(directory / "control"))
            client.sendall(b'{"command": "status"}\n')
            await until(answering)
            await until(lambda: not answering())
            client.setblocking(False)  # noqa: FBT003
            received = b"..."
            with contextlib.suppress(ConnectionError):
                while more := await asyncio.get_running_loop().sock_recv(client, 1 << 20):
                    received = more
            assert not received.endswith(b"\n")


def answering() -> list[str]:
    return [name for task in asyncio.all_tasks() if "ControlServer._serve" in (name := str(task.get_coro()))]


@pytest.mark.parametrize("command", ["ping", "status", "halt"])
async def test_another_user_may_not_ask(command: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "credentials", lambda _: Credentials(pid=1, uid=65534, gid=65534))
    async with opened(directory, ping=refuse):
        with pytest.raises(AdminError, match=r"^only root and ooodd's own user may ask$"):
            await ask(directory, command)


# Opening and closing


async def test_only_its_owner_may_connect(directory: Path) -> None:
    async with opened(directory):
        mode = (directory / "control").stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600


async def test_a_directory_that_it_makes_is_its_owners_alone_and_usable(directory: Path) -> None:
    before = os.umask(0o022)
    try:
        async with opened(directory / "own"):
            assert stat.S_IMODE((directory / "own").stat().st_mode) == 0o700
            assert await ask(directory / "own") == {"pong": True}
        assert os.umask(0o022) == 0o022, "the process's umask is not what it was"
    finally:
        os.umask(before)


async def test_a_second_broker_in_the_same_directory_is_refused(directory: Path) -> None:
    async with opened(directory):
        second = ControlServer(directory, {})
        with pytest.raises(AdminError, match=r"another ooodd runs here: stop it, or give another --runtime-directory"):
            second.open()
        await second.close()
        assert await ask(directory) == {"pong": True}


async def test_a_second_broker_beside_one_that_hangs_is_refused(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as hung, contextlib.ExitStack() as pending:
        hung.bind(f"{directory}/control")
        hung.listen(0)
        pending.enter_context(socket.socket(socket.AF_UNIX)).connect(f"{directory}/control")  # fills the backlog
        with pytest.raises(AdminError, match="another ooodd runs here"):
            ControlServer(directory, {}).open()


async def test_who_asks_before_it_serves_is_answered_when_it_does(directory: Path) -> None:
    it = ControlServer(directory, {"ping": lambda: {"pong": True}})
    it.open()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as early:
        early.connect(f"{directory}/control")
        early.send(b'{"command": "ping"}\n')
        await asyncio.sleep(0)
        with pytest.raises(BlockingIOError):
            early.recv(1)
        await it.serve()
        assert json.loads(await asyncio.get_running_loop().sock_recv(early, 100)) == {"pong": True}
    await it.close()


async def test_the_socket_of_a_broker_that_was_killed_is_replaced(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{directory}/control")
    async with opened(directory):
        assert await ask(directory) == {"pong": True}


async def test_closing_what_is_not_open_does_nothing(directory: Path) -> None:
    it = ControlServer(directory, {})
    await it.close()
    it.open()
    await it.close()
    await it.close()


async def test_a_file_in_the_directory_s_place_is_one_clear_error() -> None:
    with tempfile.NamedTemporaryFile() as file:
        it = ControlServer(Path(file.name), {})
        with pytest.raises(AdminError, match=r"/control: File exists: give a --runtime-directory that is yours$"):
            it.open()
        await it.close()


async def test_a_too_long_path_is_one_clear_error(directory: Path) -> None:
    with pytest.raises(AdminError, match="AF_UNIX path too long: give a --runtime-directory"):
        ControlServer(directory / ("x" * 200), {}).open()


async def test_a_directory_of_another_user_is_one_clear_error(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(AdminError) as refused:
        ControlServer(directory, {}).open()
    assert str(refused.value) == (
        f"{directory}/control: the directory belongs to another user: give a --runtime-directory that is yours"
    )
    assert not list(os.scandir(directory))


@pytest.mark.parametrize("where", ["mkdir", "bind"])
async def test_a_full_file_system_is_one_clear_error(
    where: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path if where == "mkdir" else socket.socket, where, full)
    before = os.umask(0o022)
    try:
        with pytest.raises(AdminError) as refused:
            ControlServer(directory, {}).open()
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert str(refused.value) == (
        f"{directory}/control: No space left on device: make room there, or give another --runtime-directory"
    )
    assert not list(os.scandir(directory))


async def test_no_descriptor_left_is_one_clear_error(directory: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        with pytest.raises(AdminError, match=r"Too many open files: raise LimitNOFILE= of ooodd\.service$"):
            ControlServer(directory, {}).open()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
