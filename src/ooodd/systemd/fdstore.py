# SPDX-License-Identifier: LGPL-2.1-or-later
"""What outlives the broker: its connections, in systemd's fd store, and the marks, in shared memory there.

systemd keeps descriptors for a service (FileDescriptorStoreMax=) and passes them to its next process after a kill, a
crash or a restart, but not after a stop or an orderly end. Some of what it does is not in its manuals:

- Several descriptors can be sent by one message, under one name. They come back in any order.
- A descriptor that is in the store already is not stored again, and keeps its name.
- Each new descriptor is compared with all that are there: 1 us each, so 0.5 ms of PID 1 with 500, 2 ms with 2,000.
- A stored socket is open: its peer sees no end when the broker closes its own descriptor. Shut it down.
- By default systemd drops a socket whose peer has hung up, with all that has not been read: hence FDPOLL=0.
"""

import mmap
import os
import socket
import stat
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

from ooodd.systemd.marks import MAGIC, MAGIC_2, SIZE, SIZE_2, Marks, upgrade
from ooodd.systemd.notify import Notifier

_MARKS = "marks"


class FdStore(Protocol):
    """Keeps sockets under names for the next broker."""

    marks: Marks

    def keep(self, name: str, *sockets: socket.socket) -> None:
        """Keep the sockets under a name of letters, digits and "-". They stay the caller's, who keeps each only once.

        Never waits, never raises. A socket for which there is no room is not kept.
        """

    def drop(self, name: str) -> None:
        """Keep the sockets of that name no more. Does nothing if there are none."""


class NoFdStore:
    """Keeps nothing: no broker follows one in the foreground."""

    def __init__(self) -> None:
        """Make marks in plain memory."""
        self.marks = Marks()

    def keep(self, name: str, *sockets: socket.socket) -> None:
        """Do nothing."""

    def drop(self, name: str) -> None:
        """Do nothing."""


class SystemdFdStore:
    """systemd's fd store, used by way of a notifier."""

    def __init__(self, notifier: Notifier, marks: Marks) -> None:
        """Keep nothing but the marks; `take_over` also finds what there is."""
        self.marks = marks
        self._notifier = notifier

    def keep(self, name: str, *sockets: socket.socket) -> None:
        """Have systemd keep the sockets, by one message."""
        self._notifier.notify(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", [each.fileno() for each in sockets])

    def drop(self, name: str) -> None:
        """Have systemd close the sockets of that name, by one message."""
        self._notifier.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def close(self) -> None:
        """Release the memory of the marks. What is kept stays kept."""
        self.marks.close()


def take_over(notifier: Notifier, passed: Mapping[int, str]) -> tuple[SystemdFdStore, dict[str, list[socket.socket]]]:
    """Return the store, and by name the sockets that an earlier broker left in it.

    `passed` are the descriptors from systemd by number, with their names, without the listeners. They are the
    function's to close. The sockets are the caller's to close; they stay in the store until they are dropped by name.
    What is neither a socket nor marks is closed and dropped.
    """
    left: dict[str, list[socket.socket]] = {}
    marks = _take_over_marks(notifier, [fd for fd, name in passed.items() if name == _MARKS])
    store = SystemdFdStore(notifier, marks)
    for fd, name in passed.items():
        if name == _MARKS:
            continue
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            connection = socket.socket(fileno=fd)
            connection.setblocking(False)  # noqa: FBT003
            left.setdefault(name, []).append(connection)
        else:
            os.close(fd)
            store.drop(name)
    return store, left


def _take_over_marks(notifier: Notifier, passed: list[int]) -> Marks:
    """Return the marks that an earlier broker left, or new ones, which are kept from now on. Closes the descriptors."""
    try:
        kinds = [(os.fstat(fd).st_size, os.pread(fd, len(MAGIC), 0)) for fd in passed]
        if kinds == [(SIZE, MAGIC)]:
            return Marks(mmap.mmap(passed[0], SIZE))
        old = os.pread(passed[0], SIZE_2, 0) if kinds == [(SIZE_2, MAGIC_2)] else None
    except OSError:
        old = None
    finally:
        for fd in passed:
            os.close(fd)
    if passed:
        notifier.notify(f"FDSTOREREMOVE=1\nFDNAME={_MARKS}")
    return _new_marks(notifier, old)


def _new_marks(notifier: Notifier, old: bytes | None) -> Marks:
    fd = os.memfd_create("ooodd-marks")
    try:
        os.ftruncate(fd, SIZE)
        marks = Marks(mmap.mmap(fd, SIZE))
        if old is not None:
            upgrade(old, marks)
        notifier.notify(f"FDSTORE=1\nFDPOLL=0\nFDNAME={_MARKS}", [fd])
        return marks
    finally:
        os.close(fd)


def shut_down(connection: socket.socket) -> None:
    """End a connection for its peer too, though the store may have another descriptor of it. The caller closes it."""
    with suppress(OSError):  # it has ended already
        connection.shutdown(socket.SHUT_RDWR)
