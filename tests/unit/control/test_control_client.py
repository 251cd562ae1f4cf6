# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asking the broker: what is said when nobody, or nobody sensible, answers."""

import asyncio
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ooodd.control import client
from ooodd.errors import AdminError


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: a unix socket's has 108 bytes at the most."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_without_a_broker_the_error_says_so(directory: Path) -> None:
    with pytest.raises(AdminError, match=r"^no ooodd runs \(.*control: No such file or directory\): systemctl status"):
        client.ask(directory, "status")


def test_a_socket_that_a_killed_broker_left_is_no_broker(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{directory}/control")
    with pytest.raises(AdminError, match=r"^no ooodd runs \(.*control: Connection refused\)"):
        client.ask(directory, "status")


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"", "ooodd does not answer"),
        (b"nonsense\n", "ooodd does not answer"),
        (b'{"workers": ', "ooodd does not answer"),
        (b"\xff\n", "ooodd does not answer"),
        (b"5\n", "ooodd answers 5: is the ooodd command of the same version"),
        (b'["error"]\n', r"ooodd answers \['error'\]"),
        (b'{"error": "no"}\n', "^no$"),
        (b'{"error": 5}\n', "^5$"),
    ],
)
async def test_an_answer_that_is_none_or_an_error_is_raised(answer: bytes, complaint: str, directory: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b'{"command": "status"}\n'
        writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(serve, f"{directory}/control")
    with pytest.raises(AdminError, match=complaint):
        await asyncio.to_thread(client.ask, directory, "status")
    server.close()


def test_a_broker_that_hangs_is_given_up(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 0.05)
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(f"{directory}/control")
        hung.listen()
        with pytest.raises(AdminError, match=r"ooodd does not answer \(timed out\): systemctl status ooodd"):
            client.ask(directory, "status")


def test_without_permission_the_error_says_which_user_may_ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def deny(*_: object) -> None:  # root is let in everywhere
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", deny)
    with pytest.raises(AdminError, match="Permission denied: ask as root, or as the user that runs ooodd"):
        client.ask(tmp_path, "status")
