#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that misbehave on the wire. They use a plain socket.

    urp_noise.py [--host H] [--port P] [--seconds S] [--bytes N] BEHAVIOUR

- garbage: sends 4 KiB of noise that is not URP, and reads to the end.
- one-byte: sends one byte and closes. connect: closes at once, as a port check does.
- silent: connects and sends nothing. reset: sends a valid first block, and resets the connection.
- flood: sends noise without end. urp-flood: sends a valid first block, and then noise without end.
- lie: sends a URP header that announces N bytes (by default 2 GiB), and one message after it.
- half-close: sends a valid first block, closes its sending side and reads to the end.
- half-block: sends half of a valid first block, and nothing more.
- never-reads: does a valid handshake, sends valid requests without end, and does not read the answers.

It ends after --seconds at the latest (default 10), or when it has sent --bytes (default 1 GiB). Then it writes a line
of JSON: bytes sent, bytes received, the end ("eof", "reset", "timeout", "done", "refused"), seconds. If the other side
has received nothing for a second, it first writes the line {"step": "stalled"}.
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
"""After this time without progress, the client is stalled. In seconds."""
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
"""What pyuno and the C++ library send first, as recorded. A random number of 4 bytes follows."""

NOT_CACHED = b"\xff\xff"
NO_CONTEXT = b"\x00" + NOT_CACHED
OFFICE_TID = b"\x88\x19.UrpProtocolPropertiesTid" + NOT_CACHED
"""The beginning of a reply to the first request of the office."""

LOWEST_NUMBER = -(1 << 31)
"""With this number in the first block, the protocol properties of the other side win."""


def block(message: bytes) -> bytes:
    """Return a block of one message."""
    return struct.pack(">II", len(message), 1) + message


def first_block() -> bytes:
    """Return the 109 bytes that begin a conversation. Their random number decides whose protocol properties win."""
    return block(FIRST_MESSAGE + os.urandom(4))


def text(value: bytes) -> bytes:
    """Return a short string that is not cached."""
    return bytes([len(value)]) + value + NOT_CACHED


def interface(name: bytes) -> bytes:
    """Return an interface type that is not cached."""
    return b"\x96" + NOT_CACHED + bytes([len(name)]) + name


def query_interface() -> bytes:
    """Return the request for the office's component context that a resolver sends first. Its type is XInterface."""
    type_ = interface(b"com.sun.star.uno.XInterface")
    return block(b"\xf8\x00" + type_ + text(b"StarOffice.ComponentContext") + text(b"tid") + NO_CONTEXT + type_)


@dataclass
class Outcome:
    """What one client sent and received, and how it ended."""

    behaviour: str
    sent: int = 0
    received: int = 0
    end: str = "done"
    seconds: float = 0.0


class Client:
    """A connected socket that counts its bytes. One deadline applies to all of its calls."""

    def __init__(self, connection: socket.socket, outcome: Outcome, seconds: float, limit: int, promise: int) -> None:
        self.connection = connection
        self.outcome = outcome
        self.deadline = time.monotonic() + seconds
        self.limit = limit
        self.promise = promise
        self.stalled = False

    def send(self, data: bytes) -> None:
        """Send some bytes. Raise TimeoutError at the deadline."""
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
        """Write once that the other side receives nothing."""
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
        """Read one block and drop it."""
        size, _ = struct.unpack(">II", self.read_exactly(8))
        self.read_exactly(size)

    def read_exactly(self, count: int) -> bytes:
        """Read this number of bytes."""
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
        """Send a chunk repeatedly, up to the limit."""
        while self.outcome.sent < self.limit:
            self.send(chunk)


def garbage(client: Client) -> None:
    """Send noise. Its first byte would be that of a block of nearly 4 GiB."""
    client.send(b"\xff" + os.urandom(4095))
    client.read_to_end()


def connect(_client: Client) -> None:
    """Do nothing: the socket is closed at once."""


def one_byte(client: Client) -> None:
    """Send one byte."""
    client.send(b"\x00")


def silent(client: Client) -> None:
    """Wait until the other side closes."""
    client.read_to_end()


def reset(client: Client) -> None:
    """Send a valid first block and end with a TCP reset."""
    client.send(first_block())
    client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def flood(client: Client) -> None:
    """Send noise from the first byte."""
    client.flood(b"\xff" + os.urandom(CHUNK - 1))


def urp_flood(client: Client) -> None:
    """Send a valid block, and noise after it."""
    client.send(first_block())
    client.flood(os.urandom(CHUNK))


def lie(client: Client) -> None:
    """Announce a huge block and send only its beginning."""
    client.send(first_block() + struct.pack(">II", client.promise, 1) + FIRST_MESSAGE)
    client.read_to_end()


def half_close(client: Client) -> None:
    """Send a block, close the sending side and read."""
    client.send(first_block())
    client.connection.shutdown(socket.SHUT_WR)
    client.read_to_end()


def half_block(client: Client) -> None:
    """Send half a block and nothing more."""
    client.send(first_block()[:50])
    client.read_to_end()


def never_reads(client: Client) -> None:
    """Do the handshake, then send requests and do not read the answers."""
    client.send(block(FIRST_MESSAGE + struct.pack(">i", LOWEST_NUMBER)))
    client.read_block()  # its requestChange
    client.send(block(OFFICE_TID + struct.pack(">i", 1)))
    client.read_block()  # its reply to our request, and its commitChange
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
    """Run one behaviour to its end and return the outcome."""
    outcome = Outcome(name)
    begun = time.monotonic()
    try:
        with socket.create_connection((host, port), seconds) as connection:
            # With a small window, the other side stalls after a few kilobytes.
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
    """Run the behaviour that the argument names."""
    parser = argparse.ArgumentParser(description="Misbehave at a UNO port.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=2002)
    parser.add_argument("--seconds", type=float, default=10.0, help="end after this time")
    parser.add_argument("--bytes", type=int, default=1 << 30, help="floods end after this number of bytes")
    parser.add_argument("--promise", type=int, default=(1 << 31), help="the size that lie announces")
    parser.add_argument("behaviour", choices=BEHAVIOURS)
    arguments = parser.parse_args()
    where = (arguments.host, arguments.port)
    outcome = misbehave(arguments.behaviour, *where, arguments.seconds, arguments.bytes, arguments.promise)
    print(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main()
