# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asking the broker: what is said when nobody, or nobody sensible, answers."""

import asyncio
import json
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
        client.call(directory, "Status")


def test_a_socket_that_a_killed_broker_left_is_no_broker(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{directory}/control")
    with pytest.raises(AdminError, match=r"^no ooodd runs \(.*control: Connection refused\)"):
        client.call(directory, "Status")


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"", r"ooodd does not answer \(it has closed the connection\)"),
        (b"nonsense\0", "ooodd does not answer"),
        (b'{"workers": ', "ooodd does not answer"),
        (b"\xff\0", "ooodd does not answer"),
        (b"5\0", "ooodd answers 5: is the ooodd command of the same version"),
        (b'["error"]\0', r"ooodd answers \['error'\]"),
        (b'{"parameters": 5}\0', "ooodd answers {'parameters': 5}"),
        (b'{"error": "io.ooodd.Failed", "parameters": {"message": "no"}}\0', "^no$"),
        (b'{"error": "io.ooodd.Failed"}\0', "^$"),
        (b'{"error": "org.varlink.service.PermissionDenied"}\0', "^you may look, but not act: ask as root"),
        (b'{"error": "x.Y", "parameters": {"a": 1}}\0', "x.Y {'a': 1}: is the ooodd command of the same version"),
    ],
)
async def test_an_answer_that_is_none_or_an_error_is_raised(answer: bytes, complaint: str, directory: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert json.loads((await reader.readuntil(b"\0"))[:-1]) == {"method": "io.ooodd.Status", "parameters": {}}
        writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(serve, f"{directory}/control")
    with pytest.raises(AdminError, match=complaint):
        await asyncio.to_thread(client.call, directory, "Status")
    server.close()


def test_a_broker_that_hangs_is_given_up(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 0.05)
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(f"{directory}/control")
        hung.listen()
        with pytest.raises(AdminError, match=r"ooodd does not answer \(timed out\): systemctl status ooodd"):
            client.call(directory, "Status")


def test_without_permission_the_error_says_which_user_may_ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def deny(*_: object) -> None:  # root is let in everywhere
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", deny)
    with pytest.raises(
        AdminError,
        match="Permission denied: ask as root, or as the user that runs ooodd; to look only, be in the group",
    ):
        client.call(tmp_path, "Status")
