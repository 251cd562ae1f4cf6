# SPDX-License-Identifier: LGPL-2.1-or-later
"""The other end of the control socket: how `ooodd status` and other commands call the running broker."""

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ooodd.control import varlink
from ooodd.control.server import MONITOR_GROUP, SOCKET_NAME, TIMEOUT
from ooodd.errors import AdminError, NoBrokerError

# The status of 1000 workers has some 500 KiB.
_MOST_BYTES = 16 * 1024 * 1024
_CHUNK = 65536

_NOT_ALLOWED = f"ask as root, or as the user that runs ooodd; to look only, be in the group {MONITOR_GROUP}"


def call(
    directory: Path,
    method: str,
    parameters: Mapping[str, Any] | None = None,
    *,
    wait: bool = False,
    until_end: bool = False,
) -> dict[str, Any]:
    """Call a method of io.ooodd of the running broker, and return the reply's parameters.

    Waits for the reply for `control.server.TIMEOUT` seconds, or for ever with `wait`; and with `until_end` then for the
    end of the broker. `NoBrokerError` if none runs. `AdminError` if it does not answer, or answers with an error.
    """
    path = directory / SOCKET_NAME
    request = varlink.encode({"method": f"{varlink.INTERFACE}.{method}", "parameters": parameters or {}})
    try:
        answer = json.loads(_exchange(path, request, wait=wait, until_end=until_end))
    except (FileNotFoundError, ConnectionRefusedError) as error:
        hint = "systemctl status ooodd.socket ooodd.service; the first client starts it"
        raise NoBrokerError(f"no ooodd runs ({path}: {error.strerror})", hint) from error
    except PermissionError as error:
        raise AdminError(f"{path}: {error.strerror}", _NOT_ALLOWED) from error
    except (OSError, EOFError, ValueError) as error:
        raise AdminError(f"{path}: ooodd does not answer ({error})", "systemctl status ooodd.service") from error
    return _parameters(path, answer)


def _parameters(path: Path, answer: object) -> dict[str, Any]:
    """Return the parameters of a reply, or raise its error."""
    reply = answer if isinstance(answer, dict) else {}
    parameters = reply.get("parameters")
    if "error" in reply:
        name, details = str(reply["error"]), parameters if isinstance(parameters, dict) else {}
        if name == f"{varlink.INTERFACE}.Failed":
            raise AdminError(str(details.get("message", "")))
        if name == "org.varlink.service.PermissionDenied":
            raise AdminError("you may look, but not act", _NOT_ALLOWED)
        raise AdminError(f"{path}: {name} {details}", "is the ooodd command of the same version?")
    if not isinstance(parameters, dict):
        raise AdminError(f"{path}: ooodd answers {answer!r}", "is the ooodd command of the same version?")
    return parameters


def _exchange(path: Path, request: bytes, *, wait: bool, until_end: bool) -> bytes:
    """Send a call, and return the reply without its NUL byte."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect(str(path))
        connection.sendall(request)
        if wait:
            connection.settimeout(None)
        reply = bytearray()
        while not reply.endswith(varlink.END) and len(reply) <= _MOST_BYTES:
            if not (data := connection.recv(_CHUNK)):
                raise EOFError("it has closed the connection")
            reply += data
        connection.settimeout(None)
        while until_end and connection.recv(_CHUNK):
            pass
        return bytes(reply[:-1])
