# SPDX-License-Identifier: LGPL-2.1-or-later
"""The control socket, by which `ooodd status`, `stop`, `drain` and `reload` talk to the running broker.

A unix socket "control" in the broker's runtime directory; one JSON object a line each way: {"command": "status"}. Only
root and the broker's own user are heard. The offices share the broker's group and run what their clients please, so the
group has no access.
"""

import asyncio
import errno
import json
import os
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from ooodd.broker.broker import Broker, End
from ooodd.config import Config
from ooodd.errors import AdminError, ConfigError
from ooodd.pool.pool import Worker
from ooodd.systemd.peer import credentials

_SOCKET = "control"
# A request is one short line; an answer of 1000 workers is some 300 KiB.
_MOST_REQUEST = 4096
_MOST_ANSWER = 16 * 1024 * 1024
# How long either side waits for the other, in seconds.
_TIMEOUT = 10.0


class Request(BaseModel, extra="forbid"):
    """What may be asked."""

    command: Literal["status", "stop", "drain", "reload"]


def status(broker: Broker) -> dict[str, Any]:
    """Return what `ooodd status --json` prints; its keys are a fixed interface."""
    now = time.monotonic()
    pool = broker.pool
    return {
        "workers": [_worker(broker, worker, now) for worker in pool.workers.values()],
        "queue": {
            "length": len(pool.queue),
            "oldest_wait": round(now - (pool.queue.oldest or now), 3),
        },
        "totals": dict(vars(pool.totals)),
        "config": broker.config.as_dict(),
    }


def _worker(broker: Broker, worker: Worker, now: float) -> dict[str, Any]:
    office = broker.keeper.running(worker.id)
    client = broker.clients.get(worker.client or 0)
    since = datetime.fromtimestamp(time.time() - (now - worker.since), UTC)
    return {
        "id": worker.id,
        "unit": broker.keeper.unit(worker.id),
        "state": str(worker.state),
        "uses": worker.uses,
        "pid": office.pid if office else None,
        "uid": office.uid if office else None,
        "memory": (office.memory() or None) if office else None,
        "since": since.isoformat(timespec="milliseconds"),
        "client": client.peer.name if client else None,
        "detail": worker.detail,
    }


class ControlSocket:
    """The broker's end. Its owner calls `close`."""

    def __init__(self, broker: Broker, directory: Path, load: Callable[[], Config]) -> None:
        """Prepare the socket in `directory`; `load` reads the configuration anew, or raises `ConfigError`."""
        self._broker = broker
        self._load = load
        self._path = directory / _SOCKET
        self._server: asyncio.Server | None = None
        self._answering: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Begin to listen; `AdminError` if that can't be done, or another broker does."""
        if _is_served(self._path):
            raise AdminError(f"{self._path}: another ooodd runs here", "stop it, or give another --runtime-directory")
        before = os.umask(0o077)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self._path.parent.stat().st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "the directory belongs to another user")
            os.umask(0o177)  # a directory needs what a socket must not have
            self._path.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(self._serve, self._path, limit=_MOST_REQUEST)
        except OSError as error:
            raise AdminError(f"{self._path}: {error.strerror}", "give a --runtime-directory that is yours") from error
        finally:
            os.umask(before)

    async def close(self) -> None:
        """Stop to listen, and remove the socket."""
        if self._server is not None:
            self._server.close()
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
            async with asyncio.timeout(_TIMEOUT):
                answer = self._answer(await reader.readline(), writer.get_extra_info("socket"))
                writer.write(json.dumps(answer).encode() + b"\n")
                writer.close()
                await writer.wait_closed()
        except (OSError, ValueError):  # gone, or too slow, or a line without end
            pass
        finally:
            writer.transport.abort()  # does nothing where all has been sent

    def _answer(self, line: bytes, connection: socket.socket) -> dict[str, Any]:
        if credentials(connection).uid not in (0, os.geteuid()):
            return {"error": "only root and ooodd's own user may ask"}
        try:
            request = Request(**json.loads(line))
        except (ValidationError, ValueError, TypeError, RecursionError) as error:
            return {"error": f"no request of this version: {str(error).splitlines()[0]}"}
        match request.command:
            case "stop":
                self._broker.end(End.STOP)
            case "drain":
                self._broker.end(End.DRAIN)
            case "reload":
                try:
                    self._broker.reload(self._load())
                except ConfigError as error:
                    return {"error": f"{error}; the configuration before stays in force"}
            case "status":
                return status(self._broker)
        return {"done": True}


def ask(directory: Path, command: str) -> dict[str, Any]:
    """Send the running broker a command and return its answer; `AdminError` if there is none, or it refuses."""
    path = directory / _SOCKET
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_TIMEOUT)
            connection.connect(str(path))
            connection.sendall(json.dumps({"command": command}).encode() + b"\n")
            with connection.makefile("rb") as answers:
                answer: dict[str, Any] = json.loads(answers.readline(_MOST_ANSWER))
    except (FileNotFoundError, ConnectionRefusedError) as error:
        hint = "systemctl status ooodd.socket ooodd.service; the first client starts it"
        raise AdminError(f"no ooodd runs ({path}: {error.strerror})", hint) from error
    except PermissionError as error:
        raise AdminError(f"{path}: {error.strerror}", "ask as root, or as the user that runs ooodd") from error
    except (OSError, ValueError) as error:
        raise AdminError(f"{path}: ooodd does not answer ({error})", "systemctl status ooodd.service") from error
    if "error" in answer:
        raise AdminError(answer["error"])
    return answer


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_TIMEOUT)
        try:
            connection.connect(str(path))
        except TimeoutError:  # its queue is full: there is a broker, and it hangs
            return True
        except OSError:
            return False
    return True
