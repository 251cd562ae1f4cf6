# SPDX-License-Identifier: LGPL-2.1-or-later
"""The user at the other end of a connection."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from ooodd.systemd import users
from ooodd.systemd.users import Users

UID = 12345


@contextmanager
def listener(family: socket.AddressFamily, host: str) -> Iterator[socket.socket]:
    with socket.socket(family) as it:
        if family == socket.AF_INET6:
            it.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        it.bind((host, 0))
        it.listen()
        yield it


# Connects, and closes at the end of its standard input.
CLIENT = """
import socket, sys
family, host, port = sys.argv[1:]
with socket.socket(int(family)) as connection:
    connection.connect((host, int(port)))
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("family", "host", "to_family", "to"),
    [
        (socket.AF_INET, "127.0.0.1", socket.AF_INET, "127.0.0.1"),
        (socket.AF_INET6, "::1", socket.AF_INET6, "::1"),
        (socket.AF_INET6, "::", socket.AF_INET, "127.0.0.2"),
        (socket.AF_INET6, "::", socket.AF_INET6, "::ffff:127.0.0.1"),
    ],
)
@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_the_user_of_a_local_client_is_known_until_it_closes(
    family: socket.AddressFamily, host: str, to_family: socket.AddressFamily, to: str
) -> None:
    with listener(family, host) as it, closing(users.open_own()) as known:
        command = ["/usr/bin/python3", "-c", CLIENT, str(int(to_family)), to, str(it.getsockname()[1])]
        with subprocess.Popen(command, user=UID, stdin=subprocess.PIPE) as client:
            connection, _ = it.accept()
            with connection:
                assert known.user(connection) == f"user {UID}"
                client.communicate()
                assert connection.recv(1) == b""
                assert known.user(connection) == ""


def test_the_user_of_a_unix_client_is_known_without_netlink() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert Users().user(one) == f"user {os.getuid()}"


def test_without_netlink_nothing_is_known_of_a_tcp_client() -> None:
    with listener(socket.AF_INET, "127.0.0.1") as it, socket.create_connection(it.getsockname()):
        connection, _ = it.accept()
        with connection:
            assert Users().user(connection) == ""


def test_an_answer_to_an_earlier_broker_is_skipped() -> None:
    with listener(socket.AF_INET, "127.0.0.1") as it, socket.create_connection(it.getsockname()):
        connection, _ = it.accept()
        with connection, closing(users.open_own()) as known:
            assert known._netlink is not None
            body = users._request(connection.getpeername(), connection.getsockname())
            known._netlink.send(users._HEADER.pack(users._HEADER.size + len(body), 20, 1, 4_000_000_000, 0) + body)
            assert known.user(connection) == f"user {os.getuid()}"


def test_only_the_socket_of_that_name_is_taken() -> None:
    one, other = socket.socketpair()
    with other:
        known, rest = users.take({one.detach(): "users", 99: "client-1-1"})
        assert rest == {99: "client-1-1"}
        known.close()
        assert other.recv(1) == b""


@pytest.mark.parametrize("uid", [None, 0, 1000, 2**32 - 2])
def test_the_words_for_a_user_can_be_read_back(uid: int | None) -> None:
    assert users.uid_of(users.words(uid)) == uid
