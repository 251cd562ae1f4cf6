# SPDX-License-Identifier: LGPL-2.1-or-later
"""Listening sockets, passed by systemd (sd_listen_fds_with_names(3)) or opened here, and accepting from them."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Iterator, Sequence

from ooodd import messages
from ooodd.errors import ListenError
from ooodd.journal import Journal
from ooodd.systemd.peer import Peer, peer_at

# FileDescriptorName= in ooodd.socket.
SOCKET_NAME = "uno"
# SOMAXCONN caps it; ooodd.socket asks for the same.
_BACKLOG = 4096
# Clients that vanish without closing are noticed after 60 s + 6 x 10 s. ooodd.socket has the same values.
_KEEP_ALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 6}
# How many clients are accepted before the loop runs everything else.
_BATCH = 64
# After accept(2) has failed, the time to the next try, in seconds.
_PAUSE = 1.0
# accept(2): it passes on the errors that the new connection has already; "treat them like EAGAIN by retrying".
_ERRORS_OF_THE_CONNECTION = {
    errno.ECONNABORTED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EINTR,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENONET,
    errno.ENOPROTOOPT,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EPROTO,
}
_MAX_INT = 2**31 - 1


def from_systemd() -> tuple[list[socket.socket], dict[int, str]]:
    """Return the listeners that systemd has passed, and the names of all other descriptors that it has passed.

    The caller closes both. If it raises `ListenError`, the listeners are closed, and the other descriptors are not.
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
    """Listen on HOST:PORT, for the foreground; the caller closes the listener. Raises `ListenError`."""
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
    except (OSError, TypeError) as error:  # TypeError: IDNA refuses the host's name
        listener.close()
        number, why = (error.errno, error.strerror) if isinstance(error, OSError) else (None, error)
        hint = "end what listens there (ss -ltnp), or give another --listen" if number == errno.EADDRINUSE else ""
        raise ListenError(f"can't listen on {address}: {why}", hint) from error
    return listener


def accept(listener: socket.socket) -> Iterator[tuple[socket.socket, Peer]]:
    """Yield the clients that wait, `_BATCH` at most; the caller closes them, and calls `set_options` before using them.

    A connection that failed before it was accepted is skipped. Raises any other OSError of accept(2), EMFILE for
    example: it would come again at once.
    """
    for _ in range(_BATCH):
        try:
            connection, address = listener.accept()
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return
            if error.errno in _ERRORS_OF_THE_CONNECTION:
                continue
            raise
        yield connection, peer_at(address)


def set_options(connection: socket.socket) -> None:
    """Have an accepted connection not block, send small packets at once, and notice that its client has vanished.

    The kernel sends no keep-alive probes as long as sent data is unacknowledged; without TCP_USER_TIMEOUT it repeats
    that data for some 15 minutes. The keep-alive times, which the connection has from its listener, rule both. A host
    that answers, but whose client reads nothing for that long while its window is full, is given up too: UNO clients
    have a thread that reads.
    """
    connection.setblocking(False)  # noqa: FBT003
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with contextlib.suppress(OSError):  # it has disconnected
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
            idle, interval, count = (connection.getsockopt(socket.IPPROTO_TCP, option) for option in _KEEP_ALIVE)
            milliseconds = min(1000 * (idle + interval * count), _MAX_INT)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


class Acceptor:
    """Accepts clients. While accept(2) fails, clients wait in the listeners, and it tries again."""

    def __init__(self, journal: Journal, accepted: Callable[[socket.socket, Peer], None]) -> None:
        """Call `accepted` with each client, as `accept` yields it; it has to close the connection."""
        self._journal = journal
        self._accepted = accepted
        self._loop = asyncio.get_running_loop()
        self._listeners: list[socket.socket] = []
        self._retry: asyncio.TimerHandle | None = None

    def accept_from(self, listeners: Sequence[socket.socket]) -> None:
        """Accept from these listeners from now on, and from no others; the caller closes them."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        for listener in self._listeners:
            self._loop.remove_reader(listener)
        self._listeners = list(listeners)
        for listener in self._listeners:
            self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            for connection, client in accept(listener):
                self._accepted(connection, client)
        except OSError as error:
            self._pause(error)

    def _pause(self, error: OSError) -> None:
        """Let clients wait in the listeners for a moment: the listeners stay readable, and the loop would spin."""
        self._journal.log(messages.ACCEPT_PAUSED, error=error.strerror or error, seconds=_PAUSE)
        listeners = self._listeners
        self.accept_from([])
        self._retry = self._loop.call_later(_PAUSE, self.accept_from, listeners)


def refuse_waiting(listeners: Sequence[socket.socket]) -> None:
    """Close the connections that wait in the listeners, for a broker that can't start.

    A socket unit starts its service as long as a connection waits. So without this the broker would be started again
    at once; with it, the next client is the next try.
    """
    for listener in listeners:
        with contextlib.suppress(OSError):  # then they wait, and cause the next start
            for _ in range(_BACKLOG // _BATCH):  # not for ever: clients may come as fast as they are closed
                if not _close_batch(listener):
                    break


def _close_batch(listener: socket.socket) -> int:
    """Close a batch of waiting connections, and return how many there were."""
    count = 0
    for count, (connection, _) in enumerate(accept(listener), 1):  # noqa: B007 - returned
        connection.close()
    return count


def name(listener: socket.socket) -> str:
    """Return the listener's address for humans."""
    return peer_at(listener.getsockname()).name
