# SPDX-License-Identifier: LGPL-2.1-or-later
"""The other end of the control socket: how `ooodd status` and other commands ask the running broker."""

import json
import socket
from pathlib import Path
from typing import Any

from ooodd.control.server import SOCKET_NAME, TIMEOUT
from ooodd.errors import AdminError

# The status of 1000 workers has some 300 KiB.
_MAX_ANSWER = 16 * 1024 * 1024


def ask(directory: Path, command: str) -> dict[str, Any]:
    """Send the running broker a command and return its answer.

    Waits for up to `TIMEOUT` seconds. `AdminError` if no broker runs or answers, or if it answers with an error.
    """
    path = directory / SOCKET_NAME
    try:
        answer = json.loads(_exchange(path, json.dumps({"command": command}).encode() + b"\n"))
    except (FileNotFoundError, ConnectionRefusedError) as error:
        hint = "systemctl status ooodd.socket ooodd.service; the first client starts it"
        raise AdminError(f"no ooodd runs ({path}: {error.strerror})", hint) from error
    except PermissionError as error:
        raise AdminError(f"{path}: {error.strerror}", "ask as root, or as the user that runs ooodd") from error
    except (OSError, ValueError) as error:
        raise AdminError(f"{path}: ooodd does not answer ({error})", "systemctl status ooodd.service") from error
    if not isinstance(answer, dict):
        raise AdminError(f"{path}: ooodd answers {answer!r}", "is the ooodd command of the same version?")
    if "error" in answer:
        raise AdminError(str(answer["error"]))
    return answer


def _exchange(path: Path, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect(str(path))
        connection.sendall(request)
        with connection.makefile("rb") as answers:
            return answers.readline(_MAX_ANSWER)
