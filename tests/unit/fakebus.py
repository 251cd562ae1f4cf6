# SPDX-License-Identifier: LGPL-2.1-or-later
"""A fake system message bus on a unix socket, for faults that the real bus and systemd do not show on request.

It authenticates as dbus-daemon does and answers the calls to the bus itself. A function of the test answers all others.
A fault applies to the calls of one method. These are the faults:

    "no-answer", "close", "half-answer" (and then close), "garbage", or the D-Bus name of an error
"""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from jeepney import HeaderFields, Message, Parser, new_error, new_method_return

# A handler returns the messages to send for a call, in order. The reply is one of them.
Answer = Callable[[Message], Iterable[Message]]
# A message begins with its byte order, "l" or "B".
GARBAGE = b"\xff" * 64


class FakeBus:
    """A bus, a record of the calls, and the faults to show."""

    def __init__(self, answer: Answer, path: Path) -> None:
        self.calls: list[str] = []
        self.faults: dict[str, str] = {}
        # The answer to the authentication, without the line end. None: no answer.
        self.welcome: bytes | None = b"OK 0123456789abcdef0123456789abcdef"
        self._answer = answer
        self._path = path
        self._server: asyncio.Server | None = None
        self._serials = count(1)
        self._clients: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, *messages: Message) -> None:
        """Send signals to every client."""
        self.send_raw(self._serialise(*messages))

    def send_raw(self, data: bytes) -> None:
        """Send data to every client, in one piece."""
        for client in self._clients:
            client.write(data)

    def hang_up(self) -> None:
        """Close every connection."""
        for client in self._clients:
            client.close()

    async def appear(self) -> None:
        """Listen."""
        self._server = await asyncio.start_unix_server(self.serve, self._path)

    def vanish(self) -> None:
        """Close every connection and stop listening until `appear`."""
        assert self._server is not None
        self._server.close()
        self._path.unlink(missing_ok=True)
        self.hang_up()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it ends."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
            await self._authenticate(reader, writer)
            self._clients.add(writer)
            await self._talk(reader, writer)
        self._clients.discard(writer)
        writer.close()

    async def end(self) -> None:
        """Wait for the end of every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _authenticate(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        user = str(os.geteuid()).encode().hex().encode()
        assert await reader.readuntil(b"\r\n") == b"\0AUTH EXTERNAL " + user + b"\r\n"
        if self.welcome is not None:
            writer.write(self.welcome + b"\r\n")
        assert await reader.readexactly(7) == b"BEGIN\r\n"

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = Parser()
        while data := await reader.read(65536):
            parser.add_data(data)
            while (call := parser.get_next_message()) is not None:
                member = call.header.fields[HeaderFields.member]
                self.calls.append(member)
                fault = self.faults.get(member, "")
                writer.write(self._suffer(call, fault))
                if fault in ("close", "half-answer"):
                    return

    def _suffer(self, call: Message, fault: str) -> bytes:
        """Return the messages that answer a call."""
        if fault in ("no-answer", "close"):
            return b""
        if fault == "garbage":
            return GARBAGE
        if fault and fault != "half-answer":
            return self._serialise(new_error(call, fault, "s", ("as the test wants it",)))
        answer = self._serialise(*self._replies(call))
        return answer[: len(answer) // 2] if fault else answer

    def _serialise(self, *messages: Message) -> bytes:
        return b"".join(message.serialise(next(self._serials)) for message in messages)

    def _replies(self, call: Message) -> Iterable[Message]:
        match call.header.fields[HeaderFields.member]:
            case "Hello":
                return [new_method_return(call, "s", (":1.1",))]
            case "AddMatch":
                return [new_method_return(call)]
        return self._answer(call)


def echo(call: Message) -> Iterable[Message]:
    """Answer a call with its own arguments."""
    return [reply(call, call.header.fields.get(HeaderFields.signature), *call.body)]


def reply(call: Message, signature: str | None = None, *body: Any) -> Message:  # noqa: ANN401 - jeepney has no types
    message: Message = new_method_return(call, signature, body)
    return message


@contextlib.asynccontextmanager
async def fake_bus(answer: Answer = echo) -> AsyncIterator[FakeBus]:
    """Run a bus that takes the place of the system bus."""
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        path = Path(directory) / "bus"
        patch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={path}")
        bus = FakeBus(answer, path)
        await bus.appear()
        try:
            yield bus
        finally:
            bus.vanish()
            await bus.end()
