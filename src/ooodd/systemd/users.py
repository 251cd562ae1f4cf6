# SPDX-License-Identifier: LGPL-2.1-or-later
"""The user whose process is at the other end of a connection.

Of a unix socket the kernel tells it (SO_PEERCRED). Of a local TCP connection it tells the owner of the client's own
socket, over a netlink socket of the kind "inet-diag" (sock_diag(7)). The broker can't open one: it has only AF_UNIX. So
systemd opens it (ooodd-users.socket, ListenNetlink=). It belongs to the host's network, whatever network the broker
has. An answer takes 40 us, with any number of connections.
"""

import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from itertools import count

from ooodd.systemd.peer import credentials

# FileDescriptorName= in ooodd-users.socket.
SOCKET_NAME = "users"

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_HEADER = struct.Struct("=IHHII")
# struct inet_diag_req_v2 up to its id; and struct inet_diag_sockid, whose ports and addresses are in network order.
_REQUEST = struct.Struct("=BBBBI")
_SOCKET_ID = struct.Struct("=2s2s16s16sIII")
# struct inet_diag_msg: family, state, the id, and from the fourth number on uid and inode.
_ANSWER = struct.Struct("=BBBB48xIIIII")
_NO_COOKIE = 0xFFFFFFFF
# The states in which a socket has an owner: established, and closed by the other side.
_OWNED = {1, 8}
_MOST_BYTES = 8192
# What an IPv6 address begins with that stands for an IPv4 one, RFC 4291.
_IPV4_MAPPED = b"\0" * 10 + b"\xff\xff"


class Users:
    """Looks up users. Its owner calls `close`."""

    def __init__(self, netlink: socket.socket | None = None) -> None:
        """Take a netlink socket, if there is one; it is closed by `close`. Without it only unix sockets tell."""
        self._netlink = netlink
        self._numbers = count(1)
        if netlink is not None:
            netlink.setblocking(False)  # noqa: FBT003

    def uid(self, connection: socket.socket) -> int | None:
        """Return the user at the other end of an accepted connection; None if it is not known.

        The client of another host has no user here, nor one that has closed its socket already.
        """
        try:
            if connection.family == socket.AF_UNIX:
                return credentials(connection).uid
            return self._ask(connection) if self._netlink is not None else None
        except (OSError, ValueError):  # it has disconnected; or an address that this can't read
            return None

    def user(self, connection: socket.socket) -> str:
        """Return the user as words; empty if it is not known."""
        return words(self.uid(connection))

    def close(self) -> None:
        """Close the netlink socket."""
        if self._netlink is not None:
            self._netlink.close()

    def _ask(self, connection: socket.socket) -> int | None:
        """Return the uid of the client's socket, which is the same connection from its other side."""
        assert self._netlink is not None
        number = next(self._numbers) & 0xFFFFFFFF
        body = _request(connection.getpeername(), connection.getsockname())
        self._netlink.send(
            _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, number, 0) + body
        )
        while True:  # the kernel has answered already; an answer to an earlier broker may come before
            answer = self._netlink.recv(_MOST_BYTES)
            if len(answer) >= _HEADER.size and _HEADER.unpack_from(answer)[3] == number:
                return _uid(answer)


def take(passed: Mapping[int, str]) -> tuple[Users, dict[int, str]]:
    """Return the users, by the socket that systemd has passed under SOCKET_NAME, and all else that it has passed."""
    netlink = None
    for fd, name in passed.items():
        if name == SOCKET_NAME:
            with suppress(OSError):
                netlink = socket.socket(fileno=fd)
    return Users(netlink), {fd: name for fd, name in passed.items() if name != SOCKET_NAME}


def open_own() -> Users:
    """Return the users by a netlink socket of our own, for the foreground; without one if that is not allowed."""
    try:
        return Users(socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG))
    except OSError:
        return Users()


def words(uid: int | None) -> str:
    """Return a user as words; empty if it is not known."""
    return "" if uid is None else f"user {uid}"


def uid_of(user: str) -> int | None:
    """Return the user id in what `words` has returned; None if that is empty."""
    return int(user.rpartition(" ")[2]) if user else None


def _request(client: tuple[str, int], server: tuple[str, int]) -> bytes:
    """Return the request for the socket with the client's address, which is connected to the server's."""
    (source, interface), (target, _) = _address(client), _address(server)
    family = socket.AF_INET if len(source) == 4 else socket.AF_INET6  # noqa: PLR2004 - bytes of an IPv4 address
    ports = (address[1].to_bytes(2, "big") for address in (client, server))
    found = _SOCKET_ID.pack(*ports, source.ljust(16, b"\0"), target.ljust(16, b"\0"), interface, _NO_COOKIE, _NO_COOKIE)
    return _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + found


def _address(address: tuple[object, ...]) -> tuple[bytes, int]:
    """Return the bytes of an address, IPv4 if it is a mapped one, and its network interface, 0 for any."""
    host = str(address[0]).partition("%")[0]
    packed = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    interface = address[3] if len(address) > 3 else 0  # noqa: PLR2004 - an IPv6 address has flow and scope
    return packed.removeprefix(_IPV4_MAPPED), interface if isinstance(interface, int) else 0


def _uid(answer: bytes) -> int | None:
    """Return the uid in an answer; None if it is an error, or the socket has no owner any more."""
    if _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY or len(answer) < _HEADER.size + _ANSWER.size:
        return None
    _, state, _, _, _, _, _, uid, inode = _ANSWER.unpack_from(answer, _HEADER.size)
    return int(uid) if state in _OWNED and inode else None
