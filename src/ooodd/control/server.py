# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker's end of the control socket, by which `ooodd status`, `stop`, `drain` and `reload` reach it.

It is a unix socket "control" in the runtime directory. A client sends one line, a JSON object such as
{"command": "status"}, and gets one line back, a JSON object too: the answer, or {"error": "..."}. Only root and the
broker's own user may ask. The offices are in the broker's group and run what their clients want, so the group has no
access.
"""

import asyncio
import errno
import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ooodd.errors import AdminError, OooddError, describe
from ooodd.systemd.peer import credentials

SOCKET_NAME = "control"
# How long either side waits for the other, in seconds.
TIMEOUT = 10.0
# A request is one short line.
_MAX_REQUEST = 4096

_HINTS = {
    errno.ENOSPC: "make room there, or give another --runtime-directory",
    errno.EDQUOT: "make room there, or give another --runtime-directory",
    errno.EMFILE: "raise LimitNOFILE= of ooodd.service",
    errno.ENFILE: "raise the sysctl fs.file-max",
}

Commands = Mapping[str, Callable[[], dict[str, Any]]]


class Request(BaseModel, extra="forbid"):
    """One request."""

    command: str


class ControlServer:
    """Answers requests by calling the command that they name. Its owner calls `close`.

    A command returns the answer, or raises an `OooddError`, whose text becomes the answer's "error".
    """

    def __init__(self, directory: Path, commands: Commands) -> None:
        """Prepare a socket in `directory`. `commands` may change at any time."""
        self._path = directory / SOCKET_NAME
        self._commands = commands
        self._listener: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._answering: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Listen. Requests wait until `serve`. `AdminError` if it can't listen, or if another broker listens there."""
        try:
            if _is_served(self._path):
                raise AdminError(
                    f"{self._path}: another ooodd runs here", "stop it, or give another --runtime-directory"
                )
            _make_directory(self._path.parent)
            self._path.unlink(missing_ok=True)
            self._listener = _listen(self._path)
        except OSError as error:
            hint = _HINTS.get(error.errno or 0, "give a --runtime-directory that is yours")
            raise AdminError(f"{self._path}: {error.strerror or error}", hint) from error

    async def serve(self) -> None:
        """Answer requests from now on."""
        self._server = await asyncio.start_unix_server(self._serve, sock=self._listener, limit=_MAX_REQUEST)

    async def close(self) -> None:
        """Stop listening, remove the socket and drop the requests under way. Does nothing if it is not open."""
        if self._listener is None:
            return
        if self._server is not None:
            self._server.close()
        self._listener.close()
        self._listener = self._server = None
        self._path.unlink(missing_ok=True)
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
        try:
            async with asyncio.timeout(TIMEOUT):
                answer = self._answer(await reader.readline(), writer.get_extra_info("socket"))
                writer.write(json.dumps(answer).encode() + b"\n")
                writer.close()
                await writer.wait_closed()
        except (OSError, ValueError):  # it has disconnected, is too slow (TimeoutError), or sent a line without end
            pass
        finally:
            writer.transport.abort()  # does nothing if all has been sent

    def _answer(self, line: bytes, connection: socket.socket) -> dict[str, Any]:
        try:
            if credentials(connection).uid not in (0, os.geteuid()):
                raise AdminError("only root and ooodd's own user may ask")  # noqa: TRY301
            return self._command(line)()
        except OooddError as error:
            return {"error": str(error)}
        except Exception as error:  # noqa: BLE001 - a bug of the command; whoever asked is told
            context = {"message": f"the control request {line[:100]!r} failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
            return {"error": describe(error)}

    def _command(self, line: bytes) -> Callable[[], dict[str, Any]]:
        """Return the command that the request names."""
        try:
            name = Request(**json.loads(line)).command
        except (ValidationError, ValueError, TypeError, RecursionError) as error:
            raise AdminError(f"not a request: {str(error).splitlines()[0]}") from error
        if name not in self._commands:
            raise AdminError(f"unknown command {name!r}", f"this ooodd knows {', '.join(sorted(self._commands))}")
        return self._commands[name]


def _make_directory(directory: Path) -> None:
    """Make the directory if there is none. `PermissionError` if it belongs to another user."""
    before = os.umask(0o077)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    finally:
        os.umask(before)
    if directory.stat().st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "the directory belongs to another user")


def _listen(path: Path) -> socket.socket:
    """Make the socket, to which only this user has access, and listen."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
        listener.listen()
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def _is_served(path: Path) -> bool:
    """Return whether a process listens at the socket; one that hangs counts."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
        try:
            connection.connect(str(path))
        except BlockingIOError:  # its backlog is full
            return True
        except OSError:
            return False
    return True
