# SPDX-License-Identifier: LGPL-2.1-or-later
"""Listening sockets, from systemd by name (sd_listen_fds_with_names(3)) or opened here, and who connects to them."""

import asyncio
import errno
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ooodd import messages
from ooodd.errors import ListenError
from ooodd.journal import Journal

# FileDescriptorName= in ooodd.socket.
SOCKET_NAME = "uno"
# SOMAXCONN caps it; ooodd.socket asks for the same.
_BACKLOG = 4096
# Clients that never dispose and vanish: seen after 60 s + 6 x 10 s, as ooodd.socket says too.
_KEEP_ALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 6}
# Clients accepted in one go before the loop gets to everything else.
_BATCH = 64
# While no descriptor is left, the time to the next try to accept, in seconds.
_PAUSE = 1.0


def from_systemd() -> tuple[list[socket.socket], dict[int, str]]:
    """Return the listeners that systemd passed, all verified, and the names of all other descriptors that it passed.

    The caller closes both. Raises `ListenError`, and then has closed the listeners.
    """
    from systemd.daemon import listen_fds_with_names  # noqa: PLC0415 - absent in foreground use

    passed = dict(listen_fds_with_names(unset_environment=True))
    listeners: list[socket.socket] = []
    try:
        listeners.extend(_verified(fd) for fd, name in passed.items() if name == SOCKET_NAME)
    except ListenError:
        for listener in listeners:
            listener.close()
        raise
    if not listeners:
        names = ", ".join(sorted(set(passed.values()))) or "none at all"
        raise ListenError(
            f'systemd passed no socket named "{SOCKET_NAME}" (passed: {names})',
            f"ooodd.socket must be active and have FileDescriptorName={SOCKET_NAME}; systemctl start ooodd.socket",
        )
    return listeners, {fd: name for fd, name in passed.items() if name != SOCKET_NAME}


def _verified(fd: int) -> socket.socket:
    try:
        listener = socket.socket(fileno=fd)
    except OSError as error:
        raise ListenError(f"fd {fd} from systemd is no socket ({error.strerror})", "check ooodd.socket") from error
    if listener.type is not socket.SOCK_STREAM or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.close()
        raise ListenError(
            f"fd {fd} from systemd is no listening stream socket", "ooodd.socket needs ListenStream= and Accept=no"
        )
    listener.setblocking(False)  # noqa: FBT003
    return listener


def listen(address: str) -> socket.socket:
    """Open a listener on HOST:PORT, for foreground use; the caller closes it. `ListenError` names the remedy."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 <= int(port) <= 65535:  # noqa: PLR2004 - 16 bits
        raise ListenError(f'"{address}" is no address to listen on', "give HOST:PORT, e.g. 127.0.0.1:2002")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE.items():
            listener.setsockopt(socket.IPPROTO_TCP, option, value)
        listener.bind((host.strip("[]"), int(port)))
        listener.listen(_BACKLOG)
    except (OSError, TypeError) as error:  # TypeError: IDNA finds the host's name impossible
        listener.close()
        number, why = (error.errno, error.strerror) if isinstance(error, OSError) else (None, error)
        hint = "end what listens there (ss -ltnp), or give another --listen" if number == errno.EADDRINUSE else ""
        raise ListenError(f"can't listen on {address}: {why}", hint) from error
    return listener


class Peer(NamedTuple):
    """Who is at the other end: its address for humans, and its host, of which there may be many clients."""

    name: str
    host: str


def accept(listener: socket.socket) -> Iterator[tuple[socket.socket, Peer]]:
    """Yield the clients that wait, a batch at the most; the caller closes them.

    Raises the OSError of accept(2) that means trouble here (EMFILE, ENFILE, ENOBUFS, ENOMEM); a client that has gone
    again before it was accepted is none.
    """
    for _ in range(_BATCH):
        try:
            client, address = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            continue  # accept(2): network errors of the new connection; treat them like EAGAIN
        client.setblocking(False)  # noqa: FBT003
        if client.family in (socket.AF_INET, socket.AF_INET6):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield client, _peer(address)


class Acceptor:
    """Accepts clients as they come. While no descriptor is left they wait in the listeners, and it tries again."""

    def __init__(self, journal: Journal, accepted: Callable[[socket.socket, Peer], None]) -> None:
        """Take who gets the clients, and has to close them."""
        self._journal = journal
        self._accepted = accepted
        self._loop = asyncio.get_running_loop()
        self._listeners: list[socket.socket] = []
        self._again: asyncio.TimerHandle | None = None

    def accept_from(self, listeners: Sequence[socket.socket]) -> None:
        """Accept from these listeners from now on, and from no others; they stay the caller's to close."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        for listener in self._listeners:
            self._loop.remove_reader(listener)
        self._listeners = list(listeners)
        for listener in self._listeners:
            self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            for connection, peer in accept(listener):
                self._accepted(connection, peer)
        except OSError as error:  # no descriptor or no memory left
            self._journal.log(messages.ACCEPT_PAUSED, error=error.strerror, seconds=_PAUSE)
            listeners = self._listeners
            self.accept_from([])
            self._again = self._loop.call_later(_PAUSE, self.accept_from, listeners)


def peer(connection: socket.socket) -> Peer:
    """Return who is at the other end of an accepted connection."""
    try:
        return _peer(connection.getpeername())
    except OSError:  # it has gone
        return Peer("a client that has gone", "")


def refuse_waiting(listeners: list[socket.socket]) -> None:
    """Close whoever waits in the listeners: for a broker that can't start, lest it is started again at once.

    A socket unit starts its service as long as a connection waits; the next client will be the next try.
    """
    for listener in listeners:
        for client, _ in accept(listener):
            client.close()


def name(listener: socket.socket) -> str:
    """Return the listener's address for humans."""
    return _peer(listener.getsockname()).name


def _peer(address: object) -> Peer:
    if isinstance(address, tuple):
        host, port = address[:2]
        return Peer(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", host)
    return Peer(str(address) or "a local process", "this host")
