# SPDX-License-Identifier: LGPL-2.1-or-later
"""The control connection to an office: by it the office gets a client's socket, and tells what becomes of the session.

An office with ooodd's acceptor (src/acceptor) listens at a SOCK_SEQPACKET socket. Each connection to it is for one
session. The broker sends one message with the client's socket. From then on the office answers questions, and says
once that it has closed the session. The end of the connection says that nothing of the office has the session any more.
docs/acceptor.md has all messages.
"""

import socket
from dataclasses import dataclass

# The socket's name in the directory of the worker's pipe.
NAME = "clients"
# That of the socket beside it to which an office says that it listens.
READY = "ready"
# The longest is the answer to OPENING.
MESSAGE_SIZE = 8192

_HAND_OVER = b"ooodd 1 session"
CALLS = b"calls"
OPENING = b"opening"


@dataclass(frozen=True)
class Closed:
    """The office has closed the session."""

    # Whether the client was first.
    by_client: bool
    # How many calls had no reply.
    under_way: int
    to_office: int
    to_client: int


@dataclass(frozen=True)
class Calls:
    """Which calls the client has made."""

    total: int
    under_way: int
    # For how long no byte has moved, in seconds.
    quiet: float
    # Whether the client has sent a part of a block.
    amid_block: bool
    # How many calls of the office have no reply of the client.
    office_waits: int


@dataclass(frozen=True)
class Opening:
    """The client's first bytes, as many as the office has kept."""

    data: bytes


@dataclass(frozen=True)
class Answer:
    """Whether the session has been ended, as asked by `end`."""

    ended: bool


def hand_over(control: socket.socket, client: socket.socket) -> None:
    """Give a client's socket to the office. Raises `OSError`. A second time does nothing: so after a kill of the broker
    the next one may repeat it.
    """  # noqa: D205
    socket.send_fds(control, [_HAND_OVER], [client.fileno()], socket.MSG_NOSIGNAL)


def end(total: int) -> bytes:
    """Return the question that ends the session if the client has made so many calls and waits for no reply."""
    return f"end {total}".encode()


def parse(message: bytes) -> Closed | Calls | Opening | Answer | None:
    """Return what a message of the office says; None if nothing that anybody waits for."""
    word, _, rest = message.partition(b" ")
    try:
        match word:
            case b"closed":
                by, *numbers = rest.split()
                return Closed(by == b"client", *map(int, numbers))
            case b"calls":
                total, under_way, quiet, amid, office_waits = map(int, rest.split())
                return Calls(total, under_way, quiet / 1000, bool(amid), office_waits)
            case b"opening":
                return Opening(rest)
            case b"ended" | b"busy":
                return Answer(word == b"ended")
    except (TypeError, ValueError):  # a client can make its office say anything
        pass
    return None
