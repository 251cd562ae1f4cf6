#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that misbehave on the wire, by name, with nothing but a socket.

    urp_noise.py [--host H] [--port P] [--seconds S] [--bytes N] BEHAVIOUR

- garbage: 4 KiB of noise that is no URP, then waits for the end.
- one-byte: one byte, then closes. connect: closes at once, as a port check does.
- silent: connects and says nothing. reset: sends a good first block, and resets the connection.
- flood: noise without end. urp-flood: the same after a first block that any UNO client could have sent.
- lie: a URP header that promises N bytes (by default 2 GiB), and no more than that.
- half-close: a good first block, then closes its sending side and reads to the end.
- half-block: half of a good first block, then silence.
- never-reads: a good handshake, then good requests without end, whose answers it leaves in the socket.

Ends by itself after --seconds at the latest (default 10), or --bytes sent (default 1 GiB). A line of JSON tells at the
end what it saw: bytes sent, bytes received, how it ended ("eof", "reset", "timeout", "done", "refused"), seconds. A
line before it, {"step": "stalled"}, tells if the other side took nothing for a second.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

CHUNK = 1 << 16
STALL = 1.0
"""For how long the other side may take nothing before that is told, in seconds."""
PROTOCOL_TYPE = b"com.sun.star.bridge.XProtocolProperties"
PROTOCOL_OID = b"UrpProtocolProperties"
FIRST_MESSAGE = b"".join(
    (
        b"\xf8\x04",  # a request with new type, oid and thread id; requestChange
        b"\x96\x00\x00\x27" + PROTOCOL_TYPE,
        b"\x15" + PROTOCOL_OID + b"\x00\x00",
        b"\x19.UrpProtocolPropertiesTid\x00\x00",
    )
)
"""What pyuno and the C++ library send first, as recorded, but for a random number of 4 bytes at its end."""


NOT_CACHED = b"\xff\xff"
NO_CONTEXT = b"\x00" + NOT_CACHED
OFFICE_TID = b"\x88\x19.UrpProtocolPropertiesTid" + NOT_CACHED
"""How a reply begins to what the office asks first."""

LOSING_NUMBER = -(1 << 31)
"""As the number of the first block: the other side's wishes win."""


def block(message: bytes) -> bytes:
    """A block of one message."""
    return struct.pack(">II", len(message), 1) + message


def first_block() -> bytes:
    """The 109 bytes that begin a conversation. The number decides which side's wishes for the protocol win."""
    return block(FIRST_MESSAGE + os.urandom(4))


def text(value: bytes) -> bytes:
    """A short string that is not to be cached."""
    return bytes([len(value)]) + value + NOT_CACHED


def interface(name: bytes) -> bytes:
    """An interface type that is not to be cached."""
    return b"\x96" + NOT_CACHED + bytes([len(name)]) + name


def query_interface() -> bytes:
    """A request for the office's component context, as a resolver sends it first. The type has to be XInterface."""
    type_ = interface(b"com.sun.star.uno.XInterface")
    return block(b"\xf8\x00" + type_ + text(b"StarOffice.ComponentContext") + text(b"tid") + NO_CONTEXT + type_)


@dataclass
class Outcome:
    """What one client saw."""

    behaviour: str
    sent: int = 0
    received: int = 0
    end: str = "done"
    seconds: float = 0.0


class Client:
    """A connected socket that counts, with one deadline for all it does."""

    def __init__(self, connection: socket.socket, outcome: Outcome, seconds: float, limit: int, promise: int) -> None:
        self.connection = connection
        self.outcome = outcome
        self.deadline = time.monotonic() + seconds
        self.limit = limit
        self.promise = promise
        self.stalled = False

    def send(self, data: bytes) -> None:
        """Send some bytes, or as many of them as the other side takes before the deadline."""
        view = memoryview(data)
        while view:
            left = max(0.001, self.deadline - time.monotonic())
            self.connection.settimeout(min(left, STALL))
            try:
                count = self.connection.send(view)
            except TimeoutError:
                if left <= STALL:
                    raise
                self.tell_stalled()
                continue
            self.outcome.sent += count
            view = view[count:]

    def tell_stalled(self) -> None:
        """Say once that the other side takes nothing."""
        if not self.stalled:
            self.stalled = True
            print(json.dumps({"step": "stalled", "sent": self.outcome.sent}), flush=True)

    def read_to_end(self) -> None:
        """Read until the other side closes."""
        while True:
            self.connection.settimeout(max(0.001, self.deadline - time.monotonic()))
            data = self.connection.recv(CHUNK)
            if not data:
                self.outcome.end = "eof"
                return
            self.outcome.received += len(data)

    def read_block(self) -> None:
        """Read one block and forget it."""
        size, _ = struct.unpack(">II", self.read_exactly(8))
        self.read_exactly(size)

    def read_exactly(self, count: int) -> bytes:
        """Read so many bytes."""
        data = b""
        while len(data) < count:
            self.connection.settimeout(max(0.001, self.deadline - time.monotonic()))
            more = self.connection.recv(count - len(data))
            if not more:
                raise ConnectionResetError
            data += more
        self.outcome.received += count
        return data

    def flood(self, chunk: bytes) -> None:
        """Send a chunk again and again, up to the limit."""
        while self.outcome.sent < self.limit:
            self.send(chunk)


def garbage(client: Client) -> None:
    """Noise whose first byte can't be a block's size of less than 4 GiB."""
    client.send(b"\xff" + os.urandom(4095))
    client.read_to_end()


def connect(_client: Client) -> None:
    """Nothing: the socket is closed at once."""


def one_byte(client: Client) -> None:
    """One byte and the end."""
    client.send(b"\x00")


def silent(client: Client) -> None:
    """Wait for the other side to lose patience."""
    client.read_to_end()


def reset(client: Client) -> None:
    """Begin well and end with a TCP reset."""
    client.send(first_block())
    client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def flood(client: Client) -> None:
    """Noise from the first byte."""
    client.flood(b"\xff" + os.urandom(CHUNK - 1))


def urp_flood(client: Client) -> None:
    """Noise from the second block on."""
    client.send(first_block())
    client.flood(os.urandom(CHUNK))


def lie(client: Client) -> None:
    """Promise a huge block."""
    client.send(first_block() + struct.pack(">II", client.promise, 1) + FIRST_MESSAGE)
    client.read_to_end()


def half_close(client: Client) -> None:
    """Say all one has to say, and listen."""
    client.send(first_block())
    client.connection.shutdown(socket.SHUT_WR)
    client.read_to_end()


def half_block(client: Client) -> None:
    """Begin well and go to lunch."""
    client.send(first_block()[:50])
    client.read_to_end()


def never_reads(client: Client) -> None:
    """Agree on the protocol, then send requests that are all answered, and leave the answers in the socket."""
    client.send(block(FIRST_MESSAGE + struct.pack(">i", LOSING_NUMBER)))
    client.read_block()  # what the office wants
    client.send(block(OFFICE_TID + struct.pack(">i", 1)))
    client.read_block()  # its answer to ours, and its commitment
    client.read_block()
    client.send(block(OFFICE_TID))
    client.flood(query_interface() * 256)


BEHAVIOURS: dict[str, Callable[[Client], None]] = {
    "connect": connect,
    "flood": flood,
    "garbage": garbage,
    "half-block": half_block,
    "half-close": half_close,
    "lie": lie,
    "never-reads": never_reads,
    "one-byte": one_byte,
    "reset": reset,
    "silent": silent,
    "urp-flood": urp_flood,
}


def misbehave(name: str, host: str, port: int, seconds: float, limit: int, promise: int) -> Outcome:
    """Run one behaviour to its end."""
    outcome = Outcome(name)
    begun = time.monotonic()
    try:
        with socket.create_connection((host, port), seconds) as connection:
            # A small window makes a client that does not read felt after kilobytes.
            if name == "never-reads":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            BEHAVIOURS[name](Client(connection, outcome, seconds, limit, promise))
    except TimeoutError:
        outcome.end = "timeout"
    except ConnectionRefusedError:
        outcome.end = "refused"
    except (ConnectionResetError, BrokenPipeError):
        outcome.end = "reset"
    outcome.seconds = round(time.monotonic() - begun, 3)
    return outcome


def main() -> None:
    """Misbehave as told."""
    parser = argparse.ArgumentParser(description="Misbehave at a UNO port.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=2002)
    parser.add_argument("--seconds", type=float, default=10.0, help="end after this time")
    parser.add_argument("--bytes", type=int, default=1 << 30, help="floods end after this much")
    parser.add_argument("--promise", type=int, default=(1 << 31), help="the size that lie tells")
    parser.add_argument("behaviour", choices=BEHAVIOURS)
    arguments = parser.parse_args()
    where = (arguments.host, arguments.port)
    outcome = misbehave(arguments.behaviour, *where, arguments.seconds, arguments.bytes, arguments.promise)
    print(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main()
