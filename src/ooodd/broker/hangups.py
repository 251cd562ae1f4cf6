# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who of the waiting clients leaves.

A client that waits has sent its first bytes, and these stay in its socket: nothing of it is ours to lose. So the loop,
which looks for readable sockets, would find it readable for ever. An epoll(7) instance of its own looks for nothing but
the end of what the client has to say (EPOLLRDHUP), and is itself a descriptor that the loop watches.
"""

import asyncio
import select
import socket
from collections.abc import Callable


class Departures:
    """Watches any number of sockets for the other side's end. Its owner calls `close`."""

    def __init__(self) -> None:
        """Begin to watch, on the running loop."""
        self._epoll = select.epoll()
        self._leaving: dict[int, Callable[[], None]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll, self._look)

    def watch(self, connection: socket.socket, left: Callable[[], None]) -> None:
        """Have `left` called, once, when the other side has closed or is lost. Before closing the socket: `unwatch`."""
        self._leaving[connection.fileno()] = left
        self._epoll.register(connection, select.EPOLLRDHUP)

    def unwatch(self, connection: socket.socket) -> None:
        """Watch the socket no more, if it was watched at all."""
        if self._leaving.pop(connection.fileno(), None) is not None:
            self._epoll.unregister(connection)

    def close(self) -> None:
        """Watch nothing any more."""
        self._loop.remove_reader(self._epoll)
        self._epoll.close()

    def _look(self) -> None:
        for descriptor, _ in self._epoll.poll(0):
            left = self._leaving.pop(descriptor, None)  # one of those before may have had it unwatched
            if left is not None:
                self._epoll.unregister(descriptor)
                left()
