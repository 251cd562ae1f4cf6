# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who is at the other end of a unix socket, as the kernel tells it (SO_PEERCRED in unix(7))."""

import socket
import struct
from typing import NamedTuple

# struct ucred
_UCRED = struct.Struct("3i")


class Credentials(NamedTuple):
    """Of who called connect(2), or, seen from the connecting side, of who called listen(2)."""

    pid: int
    uid: int
    gid: int


def credentials(connection: socket.socket) -> Credentials:
    """Return the credentials of a connected unix socket's peer."""
    return Credentials(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))
