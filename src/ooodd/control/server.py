# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker's end of the control socket, which speaks Varlink (`varlink`).

It is a unix socket "control" in the runtime directory. To look and to act are two rights. Root and the broker's own
user have both. Members of the group ooodd-monitor may look; the socket is theirs, so nobody else can connect. The
offices are in the broker's group and run what their clients want, so that group has no access.
"""

import asyncio
import contextlib
import errno
import grp
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ooodd.control import varlink
from ooodd.control.varlink import Method, VarlinkError
from ooodd.errors import AdminError, OooddError, describe
from ooodd.systemd.peer import credentials

SOCKET_NAME = "control"
# Who is in this group may look.
MONITOR_GROUP = "ooodd-monitor"
# How long a client may take to read a reply, and how long `control.client` waits for one, in seconds.
TIMEOUT = 10.0
# A call is short.
_MAX_CALL = 4096
# How many connections there may be of those that may act, and of those that may look. One more, and the oldest ends.
_MOST_CONNECTIONS = 32

_HINTS = {
    errno.ENOSPC: "make room there, or give another --runtime-directory",
    errno.EDQUOT: "make room there, or give another --runtime-directory",
    errno.EMFILE: "raise LimitNOFILE= of ooodd.service",
    errno.ENFILE: "raise the sysctl fs.file-max",
}


class ControlServer:
    """Answers calls by the method that they name. Its owner calls `close`.

    A method returns the reply's parameters, or raises an `OooddError`, whose text becomes the error io.ooodd.Failed.
    """

    def __init__(self, directory: Path, methods: Mapping[str, Method]) -> None:
        """Prepare a socket in `directory`. `methods` are those of io.ooodd, by their names."""
        self._path = directory / SOCKET_NAME
        self._methods = methods
        self._listener: socket.socket | None = None
        self._server: asyncio.Server | None = None
        # By right, the connections that there are, the oldest first.
        self._connections: dict[bool, dict[asyncio.Task[None], None]] = {True: {}, False: {}}

    def open(self) -> None:
        """Listen. Calls wait until `serve`. `AdminError` if it can't listen, or if another broker listens there."""
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
        """Answer calls from now on."""
        self._server = await asyncio.start_unix_server(self._accept, sock=self._listener, limit=_MAX_CALL)

    async def close(self) -> None:
        """Stop listening, remove the socket and drop the calls under way. Does nothing if it is not open."""
        if self._listener is None:
            return
        if self._server is not None:
            self._server.close()
        self._listener.close()
        self._listener = self._server = None
        self._path.unlink(missing_ok=True)
        tasks = [*self._connections[True], *self._connections[False]]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        uid = credentials(writer.get_extra_info("socket")).uid
        others = self._connections[_may_act(uid)]
        others[task] = None
        task.add_done_callback(lambda _: others.pop(task))
        if len(others) > _MOST_CONNECTIONS:
            next(iter(others)).cancel()
        try:
            await self._serve(reader, writer, uid)
        except (OSError, EOFError, asyncio.LimitOverrunError):  # it has closed, reads too slowly, or calls without end
            pass
        finally:
            writer.transport.abort()  # does nothing if all has been sent

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, uid: int) -> None:
        """Answer the calls of a connection, one after the other."""
        while True:
            message = await reader.readuntil(varlink.END)
            oneway, reply = await self._answer(message[:-1], uid)
            if not oneway:
                writer.write(varlink.encode(reply))
                async with asyncio.timeout(TIMEOUT):
                    await writer.drain()

    async def _answer(self, message: bytes, uid: int) -> tuple[bool, dict[str, Any]]:
        """Return whether no reply is wanted, and the reply."""
        oneway = False
        try:
            call = varlink.parse(message)
            oneway = call.oneway
            return oneway, {"parameters": await self._call(call, uid)}
        except VarlinkError as error:
            return oneway, {"error": error.name, "parameters": error.parameters}
        except OooddError as error:
            return oneway, _failed(str(error))
        except Exception as error:  # noqa: BLE001 - a bug of the method; whoever called is told
            context = {"message": f"the call {message[:100]!r} failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
            return oneway, _failed(describe(error))

    async def _call(self, call: varlink.Call, uid: int) -> dict[str, Any]:
        method = varlink.find(self._methods, call.method)
        if method.acts and not _may_act(uid):
            raise varlink.denied()
        try:
            parameters = method.parameters(**call.parameters)
        except (ValidationError, TypeError) as error:
            raise varlink.invalid(error) from error
        answer = method.answer(parameters, uid)
        return answer if isinstance(answer, dict) else await answer


def _may_act(uid: int) -> bool:
    return uid in (0, os.geteuid())


def _failed(message: str) -> dict[str, Any]:
    return {"error": f"{varlink.INTERFACE}.Failed", "parameters": {"message": message}}


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
    """Make the socket, to which only this user has access, and the group that may look if there is one; and listen."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
        with contextlib.suppress(KeyError, OSError):  # there is no such group, or this user is not in it
            os.chown(path, -1, grp.getgrnam(MONITOR_GROUP).gr_gid)
            path.chmod(0o660)
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
