# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which data path a session has: the kind of connection to the office tells."""

import socket

from ooodd.datapath.forward import Forwarding
from ooodd.datapath.handoff import Handoff
from ooodd.datapath.path import DataPath, SessionLimits
from ooodd.datapath.record import Record


def new_path(
    client: socket.socket,
    office: socket.socket,
    limits: SessionLimits,
    record: "memoryview | bytearray",
    began: float,
) -> DataPath:
    """Return the data path of a session. `office` is a control connection, or one that takes the client's bytes.

    `record` is memory of `Record.SIZE` bytes, with what is known of the session; see `Forwarding` for the rest.
    """
    if office.type == socket.SOCK_SEQPACKET:
        return Handoff(client, office, limits, began)
    return Forwarding(client, office, limits, Record(record), began)
