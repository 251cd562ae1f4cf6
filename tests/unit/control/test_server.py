# SPDX-License-Identifier: LGPL-2.1-or-later
"""The control socket: what may be called and by whom, messages that are no call, and opening and closing it."""

import asyncio
import contextlib
import errno
import grp
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
from ooodd.control.client import call
from ooodd.control.server import ControlServer
from ooodd.control.varlink import Method
from ooodd.errors import AdminError, ConfigError
from ooodd.systemd.peer import Credentials

Answer = Callable[[], dict[str, Any]]


def refuse() -> dict[str, Any]:
    raise ConfigError("/etc/ooodd/ooodd.toml: pool.wrokers", "unknown key; did you mean pool.workers?")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: a unix socket's has 108 bytes at the most."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def method(answer: Answer, *, acts: bool = False) -> Method:
    return Method(lambda _, __: answer(), acts=acts)


@contextlib.asynccontextmanager
async def opened(directory: Path, **answers: Answer) -> AsyncIterator[dict[str, Method]]:
    """A server with methods that answer so, with "Ping", and with "Act", which changes something; yields them."""
    methods = {"Ping": method(lambda: {"pong": True}), "Act": method(dict, acts=True)}
    methods |= {name: method(answer) for name, answer in answers.items()}
    it = ControlServer(directory, methods)
    it.open()
    await it.serve()
    try:
        yield methods
    finally:
        await it.close()
    assert not list(os.scandir(directory)), "the socket is left"


async def ask(directory: Path, name: str = "Ping", **parameters: Any) -> dict[str, Any]:  # noqa: ANN401
    return await asyncio.to_thread(call, directory, name, parameters)


PING = b'{"method": "io.ooodd.Ping"}\0'


async def exchange(directory: Path, *messages: bytes, count: int = 1) -> list[dict[str, Any]]:
    """Send messages on one connection, and return so many replies."""
    reader, writer = await asyncio.open_unix_connection(directory / "control", limit=1 << 24)
    with contextlib.closing(writer):
        writer.writelines(messages)
        return [json.loads((await reader.readuntil(b"\0"))[:-1]) for _ in range(count)]


async def send(directory: Path, *data: bytes) -> bytes:
    """Send bytes and return all that is answered, up to the end."""
    reader, writer = await asyncio.open_unix_connection(directory / "control")
    with contextlib.closing(writer), contextlib.suppress(ConnectionError):
        writer.writelines(data)
        return await reader.read()
    return b""


# Calls


async def test_a_command_s_answer_is_what_it_returns(directory: Path) -> None:
    async with opened(directory, Status=lambda: {"workers": [1, 2], "queue": {"length": 0}}):
        assert await ask(directory, "Status") == {"workers": [1, 2], "queue": {"length": 0}}
        assert await ask(directory) == {"pong": True}


async def test_answers_of_any_size_arrive(directory: Path) -> None:
    answer = {"workers": ["w" * 300] * 1000}
    async with opened(directory, Status=lambda: answer):
        assert await ask(directory, "Status") == answer


async def test_many_may_ask_at_once(directory: Path) -> None:
    async with opened(directory):
        answers = await asyncio.gather(*(exchange(directory, PING) for _ in range(server._MOST_CONNECTIONS)))
        assert answers == [[{"parameters": {"pong": True}}]] * server._MOST_CONNECTIONS


async def test_one_connection_may_call_often_also_without_waiting_for_replies(directory: Path) -> None:
    async with opened(directory):
        replies = await exchange(directory, PING, PING[:7], PING[7:] + PING, count=3)
        assert replies == [{"parameters": {"pong": True}}] * 3


async def test_a_call_that_wants_no_reply_gets_none(directory: Path) -> None:
    async with opened(directory):
        oneway = b'{"method": "io.ooodd.Nothing", "oneway": true}\0'
        assert await exchange(directory, oneway, PING) == [{"parameters": {"pong": True}}]


async def test_parameters_may_be_left_out_or_null(directory: Path) -> None:
    async with opened(directory):
        calls = [b'{"method": "io.ooodd.Ping", "parameters": %s}\0' % given for given in (b"null", b"{}")]
        assert await exchange(directory, *calls, count=2) == [{"parameters": {"pong": True}}] * 2


async def test_the_oldest_connection_ends_if_there_are_too_many(directory: Path) -> None:
    async with opened(directory), contextlib.AsyncExitStack() as stack:
        readers = []
        for _ in range(server._MOST_CONNECTIONS + 1):
            reader, writer = await asyncio.open_unix_connection(directory / "control")
            stack.enter_context(contextlib.closing(writer))
            writer.write(PING)
            assert await reader.readuntil(b"\0")
            readers.append(reader)
        assert await readers[0].read() == b""
        assert not any(reader.at_eof() for reader in readers[1:])


async def test_a_command_that_fails_answers_with_the_error(directory: Path) -> None:
    async with opened(directory, Reload=refuse):
        with pytest.raises(AdminError) as refused:
            await ask(directory, "Reload")
        assert str(refused.value) == "/etc/ooodd/ooodd.toml: pool.wrokers: unknown key; did you mean pool.workers?"
        assert await ask(directory) == {"pong": True}


async def test_a_bug_in_a_command_is_answered_and_told_to_the_loop(directory: Path) -> None:
    contexts: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context))
    async with opened(directory, Status=lambda: {"ratio": 1 / 0}):
        with pytest.raises(AdminError, match=r"^internal error: ZeroDivisionError"):
            await ask(directory, "Status")
        assert await ask(directory) == {"pong": True}
    assert [type(context["exception"]) for context in contexts] == [ZeroDivisionError]


@pytest.mark.parametrize("name", ["Halt", "", "ping", "Ping ", "a\nb", "_answer"])
async def test_an_unknown_method_is_named(name: str, directory: Path) -> None:
    async with opened(directory):
        message = json.dumps({"method": f"io.ooodd.{name}"}).encode() + b"\0"
        reply = {"error": "org.varlink.service.MethodNotFound", "parameters": {"method": f"io.ooodd.{name}"}}
        assert await exchange(directory, message) == [reply]


@pytest.mark.parametrize("interface", ["", "io", "io.ooodd.x", "com.example"])
async def test_an_unknown_interface_is_named(interface: str, directory: Path) -> None:
    async with opened(directory):
        message = json.dumps({"method": f"{interface}.Ping"}).encode() + b"\0"
        reply = {"error": "org.varlink.service.InterfaceNotFound", "parameters": {"interface": interface}}
        assert await exchange(directory, message) == [reply]


async def test_methods_may_be_added_while_the_socket_is_open(directory: Path) -> None:
    async with opened(directory) as methods:
        with pytest.raises(AdminError, match="MethodNotFound"):
            await ask(directory, "Status")
        methods["Status"] = method(lambda: {"workers": []})
        assert await ask(directory, "Status") == {"workers": []}


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"ping",
        b"{}",
        b"[]",
        b"5",
        b"null",
        b'{"method": ["io.ooodd.Ping"]}',
        b'{"method": null}',
        b'{"method": "io.ooodd.Ping", "unknown": 1}',
        b'{"method": "io.ooodd.Ping", "parameters": []}',
        b'{"method": "io.ooodd.Ping", "parameters": {"unknown": 1}}',
        b'{"method": "io.ooodd.Ping", "oneway": "perhaps"}',
        b'{"self": "io.ooodd.Ping", "method": "io.ooodd.Ping"}',
        b"\xff\xfe",
        b"[" * 4000,
        b'{"method": "io.ooodd.Ping"',
    ],
)
async def test_a_message_that_is_no_call_is_answered_with_an_error_of_one_line(message: bytes, directory: Path) -> None:
    async with opened(directory):
        reply, after = await exchange(directory, message + b"\0", PING, count=2)
        assert reply["error"] == "org.varlink.service.InvalidParameter"
        assert list(reply["parameters"]) == ["parameter"]
        assert "\n" not in reply["parameters"]["parameter"]
        assert after == {"parameters": {"pong": True}}


async def test_what_is_wrong_is_named(directory: Path) -> None:
    async with opened(directory):
        (reply,) = await exchange(directory, b'{"method": "io.ooodd.Ping", "parameters": {"sesion": 1}}\0')
        assert reply["parameters"]["parameter"].startswith("sesion: ")


async def test_a_message_without_end_is_cut_off(directory: Path) -> None:
    async with opened(directory):
        assert await send(directory, b"x" * 1_000_000) == b""
        assert await ask(directory) == {"pong": True}


async def test_a_client_that_sends_nothing_is_disconnected_when_the_server_closes(directory: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with opened(directory):
            reader, writer = await asyncio.open_unix_connection(directory / "control")
            stack.enter_context(contextlib.closing(writer))
            await ask(directory)
        assert await reader.read() == b""


async def test_a_client_that_does_not_read_is_disconnected(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TIMEOUT", 0.05)
    async with opened(directory, Status=lambda: {"more than": "a socket buffers" * 1_000_000}):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(directory / "control"))
            client.sendall(b'{"method": "io.ooodd.Status"}\0')
            await until(answering)
            await until(lambda: not answering())
            client.setblocking(False)  # noqa: FBT003
            received = b"..."
            with contextlib.suppress(ConnectionError):
                while more := await asyncio.get_running_loop().sock_recv(client, 1 << 20):
                    received = more
            assert not received.endswith(b"\0")


def answering() -> list[str]:
    return [name for task in asyncio.all_tasks() if "ControlServer._accept" in (name := str(task.get_coro()))]


async def test_who_may_look_may_not_act(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "credentials", lambda _: Credentials(pid=1, uid=65534, gid=65534))
    async with opened(directory):
        assert await ask(directory) == {"pong": True}
        with pytest.raises(AdminError, match=r"^you may look, but not act: ask as root, .* group ooodd-monitor$"):
            await ask(directory, "Act")


async def test_root_and_its_own_user_may_act(directory: Path) -> None:
    async with opened(directory):
        assert await ask(directory, "Act") == {}


async def test_who_only_looks_keeps_nobody_from_acting(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(directory), contextlib.AsyncExitStack() as stack:
        reader, writer = await asyncio.open_unix_connection(directory / "control")
        stack.enter_context(contextlib.closing(writer))
        writer.write(PING)
        await reader.readuntil(b"\0")
        with monkeypatch.context() as patch:
            patch.setattr(server, "credentials", lambda _: Credentials(pid=1, uid=65534, gid=65534))
            for _ in range(2 * server._MOST_CONNECTIONS):
                assert await exchange(directory, PING) == [{"parameters": {"pong": True}}]
        writer.write(PING)
        assert await reader.readuntil(b"\0")


# Introspection


async def test_the_service_tells_what_it_is_and_describes_its_interfaces(directory: Path) -> None:
    async with opened(directory):
        (info,) = await exchange(directory, b'{"method": "org.varlink.service.GetInfo"}\0')
        assert info["parameters"]["interfaces"] == ["org.varlink.service", "io.ooodd"]
        for name in info["parameters"]["interfaces"]:
            asked = {"method": "org.varlink.service.GetInterfaceDescription", "parameters": {"interface": name}}
            (described,) = await exchange(directory, json.dumps(asked).encode() + b"\0")
            assert f"\ninterface {name}\n" in described["parameters"]["description"]


async def test_an_interface_that_there_is_not_is_not_described(directory: Path) -> None:
    async with opened(directory):
        asked = {"method": "org.varlink.service.GetInterfaceDescription", "parameters": {"interface": "../io.ooodd"}}
        (reply,) = await exchange(directory, json.dumps(asked).encode() + b"\0")
        assert reply["error"] == "org.varlink.service.InterfaceNotFound"


# Opening and closing


async def test_only_its_owner_may_connect_where_there_is_no_group_of_those_that_may_look(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MONITOR_GROUP", "no-such-group")
    async with opened(directory):
        mode = (directory / "control").stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600


async def test_the_socket_belongs_to_the_group_of_those_that_may_look(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = next(entry for entry in grp.getgrall() if entry.gr_gid not in (0, os.getegid()))
    monkeypatch.setattr(server, "MONITOR_GROUP", group.gr_name)
    async with opened(directory):
        found = (directory / "control").stat()
        if os.geteuid() == 0:
            assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, group.gr_gid)
        else:
            assert stat.S_IMODE(found.st_mode) == 0o600


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
    it = ControlServer(directory, {"Ping": method(lambda: {"pong": True})})
    it.open()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as early:
        early.connect(f"{directory}/control")
        early.send(PING)
        await asyncio.sleep(0)
        with pytest.raises(BlockingIOError):
            early.recv(1)
        await it.serve()
        reply = await asyncio.get_running_loop().sock_recv(early, 100)
        assert json.loads(reply[:-1]) == {"parameters": {"pong": True}}
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
