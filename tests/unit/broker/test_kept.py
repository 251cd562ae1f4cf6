# SPDX-License-Identifier: LGPL-2.1-or-later
"""The names of clients in the fd store, and what is read from them."""

import contextlib
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ooodd.broker.kept import client_name, office_name, read


@contextlib.contextmanager
def connection(listener: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield both ends of a connection to a listener: the accepted one, and the other."""
    near = socket.socket(listener.family)
    near.connect(listener.getsockname())
    far, _ = listener.accept()
    with far, near:
        yield far, near


@contextlib.contextmanager
def listening(family: int) -> Iterator[socket.socket]:
    with tempfile.TemporaryDirectory() as directory, socket.socket(family) as listener:
        listener.bind(str(Path(directory) / "socket") if family == socket.AF_UNIX else ("127.0.0.1", 0))
        listener.listen()
        yield listener


@pytest.fixture(params=[socket.AF_INET, socket.AF_UNIX], ids=["tcp", "unix"])
def client(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """A client's connection, as the broker has accepted it."""
    with listening(request.param) as listener, connection(listener) as (accepted, _):
        yield accepted


@pytest.fixture
def office() -> Iterator[socket.socket]:
    """The broker's end of a connection to an office."""
    with listening(socket.AF_UNIX) as listener, connection(listener) as (_, near):
        yield near


def test_a_queued_client_is_read(client: socket.socket) -> None:
    (kept,), unknown = read({client_name(17, 8640.0): [client]})
    assert (kept.session, kept.worker, kept.since, kept.names) == (17, 0, 8640.0, ["client-17-8640000000"])
    assert kept.whole
    assert (kept.clients, kept.offices, unknown) == ([client], [], [])


@pytest.mark.parametrize("reverse", [False, True])
def test_a_session_that_was_served_at_once_is_read(client: socket.socket, office: socket.socket, reverse: bool) -> None:  # noqa: FBT001
    sockets = [client, office]
    (kept,), unknown = read({office_name(17, 3, 8641.5): sockets[::-1] if reverse else sockets})
    assert (kept.session, kept.worker, kept.since, kept.names) == (17, 3, 8641.5, ["office-17-3-8641500000"])
    assert kept.whole
    assert (kept.clients, kept.offices, unknown) == ([client], [office], [])


@pytest.mark.parametrize("reverse", [False, True])
def test_a_session_that_was_queued_is_read(
    client: socket.socket,
    office: socket.socket,
    reverse: bool,  # noqa: FBT001
) -> None:
    left = {client_name(17, 8640.0): [client], office_name(17, 3, 8641.0): [office]}
    (kept,), _ = read(dict(reversed(left.items())) if reverse else left)
    assert (kept.worker, kept.since, set(kept.names)) == (3, 8641.0, set(left))
    assert kept.whole
    assert (kept.clients, kept.offices) == ([client], [office])


def test_an_office_socket_without_peer_is_not_taken_for_a_client(client: socket.socket) -> None:
    with listening(socket.AF_UNIX) as listener, connection(listener) as (far, near):
        far.close()
        (kept,), _ = read({office_name(17, 3, 0.0): [near, client]})
        assert (kept.clients, kept.offices) == ([client], [near])


def test_the_names_of_version_0_2_are_read(client: socket.socket, office: socket.socket) -> None:
    for left in (
        {"session-17-3-8641000/812/813": [client, office]},
        {"waiting-17-8640000/812": [client], "session-17-3-8641000/812/813": [office]},
    ):
        (kept,), unknown = read(left)
        assert (kept.session, kept.worker, kept.since, kept.whole, unknown) == (17, 3, 8641.0, True, [])
        assert set(kept.names) == set(left)
    (kept,), _ = read({"waiting-17-8640000/812": [client]})
    assert (kept.session, kept.worker, kept.since, kept.whole) == (17, 0, 8640.0, True)


def test_a_time_before_boot_is_read(client: socket.socket) -> None:
    (kept,), unknown = read({client_name(2, -3600.0): [client]})
    assert (kept.since, unknown) == (-3600.0, [])


@pytest.mark.parametrize("name", ["client", "client-x-1", "client-1", "office-1-2", "stored", "client-1-2-3", ""])
def test_other_names_are_ignored(client: socket.socket, name: str) -> None:
    assert read({name: [client]}) == ([], [name])


@pytest.mark.parametrize(
    ("names", "whole"),
    [
        ({"client-1-0": "c"}, True),
        ({"client-1-0": "cc"}, False),
        ({"client-1-0": ""}, False),
        ({"client-1-0": "o"}, False),
        ({"office-1-2-0": "c"}, False),
        ({"office-1-2-0": "o"}, False),
        ({"office-1-2-0": "co"}, True),
        ({"office-1-2-0": "coo"}, False),
        ({"office-1-2-0": "co", "client-1-0": "c"}, False),
    ],
)
def test_only_complete_entries_are_used(
    client: socket.socket,
    office: socket.socket,
    names: dict[str, str],
    whole: bool,  # noqa: FBT001
) -> None:
    sockets = {"c": client, "o": office}
    (kept,), _ = read({name: [sockets[each] for each in kinds] for name, kinds in names.items()})
    assert kept.whole == whole
