# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ooodd ping`: each step, and each way in which it can fail."""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable

import pytest

from ooodd.__main__ import main
from ooodd.uno.refusal import Refusal
from ooodd.uno.wire import reply
from urp_office import OfficeSide

_TID = b".UrpProtocolPropertiesTid"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def ping(serve: Serve, *arguments: str) -> int:
    """Ping a server that serves so, and return the exit status."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        return await asyncio.to_thread(main, ["ping", f"127.0.0.1:{port}", *arguments])


class _Office(OfficeSide):
    """An office as it is behind ooodd: it also answers the client's request for protocol properties, which loses."""

    def __init__(self) -> None:
        super().__init__()
        self._opened = False

    def receive(self, data: bytes) -> bytes:
        if self._opened:
            return super().receive(data)
        self._opened = True
        size = int.from_bytes(data[:4], "big") + 8
        return reply(_TID, b"\xff\xff\xff\xff") + (super().receive(data[size:]) if data[size:] else b"")


async def an_office(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    office = _Office()
    writer.write(office.greeting())
    while data := await reader.read(65536):
        writer.write(office.receive(data))
    writer.close()


async def test_each_step_is_told_with_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert await ping(an_office) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(
        r"connected to 127\.0\.0\.1:\d+ after [\d.]+ ms\n"
        r"an office has greeted after [\d.]+ ms\n"
        r"it has answered a probe after [\d.]+ ms\n"
        r"it has let go after [\d.]+ ms\n",
        out,
    )
    assert err == ""


async def test_a_refusal_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        refusal = Refusal("ooodd: the service is paused")
        while not refusal.done:
            writer.write(refusal.receive(await reader.read(65536)))
        writer.close()

    assert await ping(refuse) == 1
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert err.endswith(": refused: ooodd: the service is paused\n")


async def test_who_does_not_answer_is_given_up(capsys: pytest.CaptureFixture[str]) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    assert await ping(hang, "--timeout", "100ms") == 1
    assert "can't get an office: nothing within 0.1 s: " in capsys.readouterr().err


async def test_who_closes_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    assert await ping(close) == 1
    assert "can't get an office: " in capsys.readouterr().err


async def test_who_is_no_office_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"SSH-2.0-OpenSSH\r\n")
        await reader.read()
        writer.close()

    assert await ping(talk) == 1
    assert capsys.readouterr().err.endswith("is it ooodd that listens there?\n")


def test_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        assert main(["ping", address]) == 1
    assert capsys.readouterr().err == (
        f"ooodd: {address}: can't connect: Connection refused: systemctl status ooodd.socket\n"
    )


@pytest.mark.parametrize("arguments", [["2002"], ["localhost"], ["127.0.0.1:0"], ["--timeout", "soon"]])
def test_what_makes_no_sense_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ping", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
