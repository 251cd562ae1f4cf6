# SPDX-License-Identifier: LGPL-2.1-or-later
"""The other end of a connection: its address and host, and of a unix socket the credentials."""

import asyncio
import socket
import struct
from ipaddress import AddressValueError, IPv6Address
from typing import NamedTuple

# How much is read at once, in bytes: some microseconds of the loop.
_CHUNK = 65536
# struct ucred
_UCRED = struct.Struct("3i")


class Peer(NamedTuple):
    """Who is at the other end: the address for humans, and the host, from which many clients may come."""

    name: str
    host: str


class Credentials(NamedTuple):
    """The credentials of the process that called connect(2), or listen(2) if the peer is the listening side."""

    pid: int
    uid: int
    gid: int


def peer(connection: socket.socket) -> Peer:
    """Return who is at the other end of an accepted connection."""
    try:
        return peer_at(connection.getpeername())
    except OSError:  # it has disconnected
        return Peer("a client that has gone", "")


def peer_at(address: object) -> Peer:
    """Return who has this address, as accept(2) and getsockname(2) give it.

    A listener for both IPv4 and IPv6 sees IPv4 clients at ::ffff:192.0.2.1; that is the host 192.0.2.1. A link-local
    address names a host only together with its scope id, the number of the network interface.
    """
    if not isinstance(address, tuple):
        return Peer(str(address) or "a local process", "this host")
    host, port, *rest = address
    if rest:
        host = _unmapped(host)
        scope = rest[-1]
        host = f"{host}%{scope}" if scope and "%" not in host else host
    return Peer(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", host)


def _unmapped(host: str) -> str:
    try:
        return str(IPv6Address(host).ipv4_mapped or host)
    except AddressValueError:  # a scope id or a name
        return host


def credentials(connection: socket.socket) -> Credentials:
    """Return the credentials of a connected unix socket's peer (SO_PEERCRED, unix(7))."""
    return Credentials(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


async def read_to_end(connection: socket.socket) -> None:
    """Read and drop all that comes, until the end of file. The caller limits the time.

    `sock_recv` waits only if nothing is there. So a peer that sends without a pause would have the loop for itself.
    """
    loop = asyncio.get_running_loop()
    while await loop.sock_recv(connection, _CHUNK):  # noqa: ASYNC110 - it waits for nothing, and lets others run
        await asyncio.sleep(0)
