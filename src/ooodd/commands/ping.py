# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ooodd ping`: a real session through the port, as a health check. It asks its office what the broker's probe asks."""

import argparse
import socket
import time
from dataclasses import dataclass, field

from ooodd.commands.common import Subparsers, default_address, parse_address, parse_time
from ooodd.errors import OooddError, PingError
from ooodd.uno.caller import OPENING, Caller
from ooodd.uno.conversation import Findings, look

_CHUNK = 65536


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser("ping", help="have a session, and say how long each step took")
    parser.add_argument("address", nargs="?", default=default_address(), metavar="HOST:PORT", help="where ooodd "
                        "listens (%(default)s; OOODD_ADDRESS)")  # fmt: skip
    parser.add_argument("--timeout", default="10s", metavar="TIME", help="how long all of it may take (%(default)s)")
    parser.set_defaults(command=_ping)


def _ping(options: argparse.Namespace) -> int:
    address = parse_address(options.address)
    _Ping(options.address, parse_time("--timeout", options.timeout)).run(address)
    return 0


@dataclass
class _Ping:
    """One session. Each step is printed when it is done."""

    name: str
    # In seconds.
    timeout: float
    step: str = "connect"
    begun: float = field(default_factory=time.monotonic)
    _step_begun: float = field(default_factory=time.monotonic)

    def run(self, address: tuple[str, int]) -> None:
        """Have the session. Raises `PingError`, which says in which step it failed."""
        try:
            with socket.create_connection(address, self.timeout) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._done(f"connected to {self.name}", "get an office")
                self._talk(connection)
        except TimeoutError as error:
            raise self._failed(f"nothing within {self.timeout:g} s", "ooodd status; raise --timeout") from error
        except EOFError as error:
            raise self._failed("the connection was closed", "journalctl -u ooodd") from error
        except OSError as error:
            raise self._failed(error.strerror or str(error), "systemctl status ooodd.socket") from error
        except PingError:
            raise
        except OooddError as error:
            raise self._failed(str(error), "is it ooodd that listens there?") from error

    def _talk(self, connection: socket.socket) -> None:
        conversation: Caller[Findings] = Caller(look())
        self._send(connection, OPENING)
        while not conversation.done:
            answer = conversation.receive(self._receive(connection))
            if conversation.office_greeted and self.step == "get an office":
                self._done("an office has greeted", "probe it")
            self._send(connection, answer)
        if conversation.refused:
            raise PingError(f"{self.name}: refused: {conversation.refused.partition(': ')[2]}")
        self._done("it has answered a probe", "end the session")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(_CHUNK):
            self._limit(connection)
        self._done("it has let go", "")

    def _receive(self, connection: socket.socket) -> bytes:
        self._limit(connection)
        if not (data := connection.recv(_CHUNK)):
            raise EOFError
        return data

    def _send(self, connection: socket.socket, data: bytes) -> None:
        self._limit(connection)
        connection.sendall(data)

    def _limit(self, connection: socket.socket) -> None:
        """Let the next operation take what is left of the time."""
        left = self.begun + self.timeout - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)

    def _done(self, what: str, following: str) -> None:
        now = time.monotonic()
        print(f"{what} after {(now - self._step_begun) * 1000:.1f} ms", flush=True)
        self._step_begun, self.step = now, following

    def _failed(self, why: str, hint: str) -> PingError:
        return PingError(f"{self.name}: can't {self.step}: {why}", hint)
