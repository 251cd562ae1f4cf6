# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker's event loop: asyncio's, with readers that are called without a turn of the loop for each event.

In each turn, asyncio's loop looks at timers, at a queue of callbacks, and runs each callback in a context. To forward
bytes needs none of that, and the cost can be measured: with asyncio's own selector a UNO call took 1.06 times as long
as through HAProxy, with this one 1.00 times (see benchmarks/). So the selector itself calls an eager reader as soon as
its socket is readable, and goes on waiting. To asyncio it looks as if nothing had happened.

Nothing starves: if anything else is ready, the selector returns to asyncio at once, and it returns when the next timer
is due. Only public interfaces of asyncio are used. On any other loop an eager reader is an ordinary one.
"""

import asyncio
import os
import select
import selectors
import time
from collections.abc import Callable
from socket import socket
from typing import TYPE_CHECKING, TypeVarTuple

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

_Args = TypeVarTuple("_Args")

# Called when a socket is readable. Returns whether the selector may go on waiting: False if the callback has given the
# loop something to do, or may have.
EagerReader = Callable[[], bool]


class EagerSelector(selectors.EpollSelector):
    """Calls the eager readers, and returns all other events to the loop."""

    def __init__(self, on_error: Callable[[int, Exception], None]) -> None:
        """Report an eager reader that raises to `on_error`, with its descriptor; the others go on."""
        super().__init__()
        # By descriptor. Each descriptor is registered with the selector as well.
        self.readers: dict[int, EagerReader] = {}
        self._on_error = on_error
        # A second object for the same epoll(7) instance, because the base class makes only its descriptor public.
        self._epoll = select.epoll.fromfd(os.dup(self.fileno()))

    def close(self) -> None:
        """Close both descriptors."""
        self._epoll.close()
        super().close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready for the loop; nothing after `timeout` seconds, or if the loop has other things to do."""
        if not self.readers:
            return super().select(timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        poll, handle = self._epoll.poll, self._handle
        while events := poll(timeout):
            if not handle(events):
                return super().select(0)  # events stay ready until they are handled
            if deadline is not None and (timeout := deadline - time.monotonic()) <= 0:
                break
        return []

    def _handle(self, events: list[tuple[int, int]]) -> bool:
        """Call the eager readers; return whether that was all. Errors, ends and writable sockets are the loop's."""
        wait_on = True
        for descriptor, event in events:
            reader = self.readers.get(descriptor)
            if reader is None or event != select.EPOLLIN:
                wait_on = False
                continue
            try:
                wait_on = reader() and wait_on
            except Exception as error:  # noqa: BLE001 - it is reported, and must not end the loop
                self._on_error(descriptor, error)
                wait_on = False
        return wait_on


class EagerLoop(asyncio.SelectorEventLoop):
    """An event loop with eager readers."""

    def __init__(self) -> None:
        """Begin without any."""
        self._eager_selector = EagerSelector(self._report)
        super().__init__(self._eager_selector)

    def add_eager_reader(self, source: socket, reader: EagerReader) -> None:
        """Call `reader` whenever `source` is readable, has an error or an end of file, until `remove_reader`.

        A reader that raises is removed, and its error goes to the loop's exception handler.
        """
        descriptor = source.fileno()
        self.add_reader(descriptor, self._call, descriptor, reader)
        self._eager_selector.readers[descriptor] = reader

    def add_reader(self, fd: "FileDescriptorLike", callback: Callable[[*_Args], object], *args: *_Args) -> None:
        """Do what asyncio's loop does. The reader replaces an eager one of the same descriptor, and is not eager."""
        self._eager_selector.readers.pop(_descriptor(fd), None)
        super().add_reader(fd, callback, *args)

    def remove_reader(self, fd: "FileDescriptorLike") -> bool:
        """Do what asyncio's loop does, for eager readers as well."""
        self._eager_selector.readers.pop(_descriptor(fd), None)
        return super().remove_reader(fd)

    def _call(self, descriptor: int, reader: EagerReader) -> None:
        """Call an eager reader for an event that is not the selector's."""
        try:
            reader()
        except Exception as error:  # noqa: BLE001 - it is reported
            self._report(descriptor, error)

    def _report(self, descriptor: int, error: Exception) -> None:
        self.remove_reader(descriptor)
        self.call_exception_handler({"message": "Exception in an eager reader", "exception": error})


def _descriptor(fd: "FileDescriptorLike") -> int:
    return fd if isinstance(fd, int) else fd.fileno()


def add_reader(loop: asyncio.AbstractEventLoop, source: socket, reader: EagerReader) -> None:
    """Add an eager reader, or an ordinary one if the loop has no eager ones."""
    if isinstance(loop, EagerLoop):
        loop.add_eager_reader(source, reader)
    else:
        loop.add_reader(source, reader)


def new_event_loop() -> EagerLoop:
    """Return a loop with eager readers, for `asyncio.Runner`."""
    return EagerLoop()
