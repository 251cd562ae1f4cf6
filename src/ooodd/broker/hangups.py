# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hang-ups of queued clients.

A queued client has sent its first bytes, and these stay in its socket, so that nothing of it is in the broker's memory.
The loop looks for readable sockets and would find this one readable for ever. So an epoll(7) instance of its own waits
for nothing but the end of the client's stream (EPOLLRDHUP). The loop watches the instance's descriptor.
"""

import asyncio
import select
import socket
from collections.abc import Callable


class Hangups:
    """Watches any number of sockets for the end of the other side's stream. Its owner calls `open` and `close`."""

    def __init__(self) -> None:
        """Watch nothing yet, on the running loop."""
        self._epoll: select.epoll | None = None
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._loop = asyncio.get_running_loop()

    def open(self) -> None:
        """Begin to watch. Does nothing if it has begun."""
        if self._epoll is None:
            self._epoll = select.epoll()
            self._loop.add_reader(self._epoll, self._poll)

    def watch(self, connection: socket.socket, hung_up: Callable[[], None]) -> None:
        """Call `hung_up` once when the other side has closed or is lost. Call `unwatch` before the socket is closed."""
        assert self._epoll is not None
        self._callbacks[connection.fileno()] = hung_up
        self._epoll.register(connection, select.EPOLLRDHUP)

    def unwatch(self, connection: socket.socket) -> bool:
        """Watch the socket no more. Return whether it was watched."""
        if self._callbacks.pop(connection.fileno(), None) is None:
            return False
        assert self._epoll is not None
        self._epoll.unregister(connection)
        return True

    def close(self) -> None:
        """Watch nothing any more."""
        self._callbacks.clear()
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll)
            self._epoll.close()
            self._epoll = None

    def _poll(self) -> None:
        assert self._epoll is not None
        for descriptor, _ in self._epoll.poll(0):
            hung_up = self._callbacks.pop(descriptor, None)  # an earlier callback may have unwatched it
            if hung_up is not None:
                self._epoll.unregister(descriptor)
                hung_up()
