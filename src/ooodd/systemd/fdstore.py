# SPDX-License-Identifier: LGPL-2.1-or-later
"""What outlives the broker: its connections, in systemd's fd store, and a few marks in memory.

systemd keeps descriptors for a service (FileDescriptorStoreMax=) and passes them to its next process: after a kill, a
crash, a restart, but not after a stop or an orderly end. What it does with them is not quite what its manuals say:

- Descriptors of one message come back in any order, and all in the opposite order after a daemon-reexec. So a name in
  the store tells the sockets by their inode numbers: "session-7-2/81423/81460" is first the one, then the other.
- A socket that is in the store already is not stored again, and keeps its name. So a name may speak of a socket that is
  there under another: "waiting-7/81423" can hold the first one of the session above.
- Each new descriptor is compared with all that are there: 1 µs each, thus 0.5 ms of PID 1 with 500, 2 ms with 2,000.
- A stored socket is open: its peer sees no end when the broker closes its own descriptor. Shut it down.
- Left to itself, systemd drops a socket whose peer has hung up, with all that has not been read: FDPOLL=0.
"""

import mmap
import os
import socket
import stat
import struct
from collections import Counter
from collections.abc import Mapping
from typing import Protocol, Self

from ooodd.systemd.notify import Notifier

_MARKS = "marks"
MOST_WORKERS = 1000

# The layout of the marks; whoever changes it changes the magic. Native sizes: it never leaves the machine.
_MAGIC = b"ooodd\0\0\2"
_HEADER_SIZE = 128
_TOTALS = 6
_TOTALS_AT = 16
_LAST_SESSION_AT = _TOTALS_AT + _TOTALS * 8
# The longest name is that of an IPv6 client, 47 characters.
_ACCEPTED = struct.Struct("Q48s")
_ACCEPTED_AT = _LAST_SESSION_AT + 8
_SLOT_SIZE = 32
_CONFIG_AT = _HEADER_SIZE + MOST_WORKERS * _SLOT_SIZE
_CONFIG_SIZE = 4096
_SIZE = _CONFIG_AT + _CONFIG_SIZE
_TO_OFFICE, _TO_CLIENT, _DOOMED, _USES, _MAX_USES, _PID, _SINCE, _CLIENT = 0, 1, 2, 4, 8, 12, 16, 24
_U32, _U64, _F64 = struct.Struct("I"), struct.Struct("Q"), struct.Struct("d")


class Slot:
    """The marks of one worker."""

    def __init__(self, memory: memoryview, at: int) -> None:
        """Take the memory and the slot's place in it."""
        self.memory = memory
        self._at = at
        # memory[index] = 1 while the broker holds bytes of that direction which nobody else has any more.
        self.to_office_index = at + _TO_OFFICE
        self.to_client_index = at + _TO_CLIENT

    @property
    def holding_to_office(self) -> bool:
        """Whether the broker holds bytes for the office."""
        return bool(self.memory[self.to_office_index])

    @holding_to_office.setter
    def holding_to_office(self, value: bool) -> None:
        self.memory[self.to_office_index] = value

    @property
    def holding_to_client(self) -> bool:
        """Whether the broker holds bytes for the client."""
        return bool(self.memory[self.to_client_index])

    @holding_to_client.setter
    def holding_to_client(self, value: bool) -> None:
        self.memory[self.to_client_index] = value

    @property
    def doomed(self) -> bool:
        """Whether the worker is about to be stopped; why has been told and counted."""
        return bool(self.memory[self._at + _DOOMED])

    @doomed.setter
    def doomed(self, value: bool) -> None:
        self.memory[self._at + _DOOMED] = value

    @property
    def uses(self) -> int:
        """How many clients it has had."""
        return self._get(_U32, _USES)

    @uses.setter
    def uses(self, value: int) -> None:
        _U32.pack_into(self.memory, self._at + _USES, value)

    @property
    def max_uses(self) -> int:
        """How many it may have."""
        return self._get(_U32, _MAX_USES)

    @max_uses.setter
    def max_uses(self, value: int) -> None:
        _U32.pack_into(self.memory, self._at + _MAX_USES, value)

    @property
    def pid(self) -> int:
        """The office's main process, by which the next broker knows whether it is the same office; 0 for none."""
        return self._get(_U32, _PID)

    @pid.setter
    def pid(self, value: int) -> None:
        _U32.pack_into(self.memory, self._at + _PID, value)

    @property
    def since(self) -> float:
        """When it was started, as `time.monotonic()` tells it to any process."""
        since: float = _F64.unpack_from(self.memory, self._at + _SINCE)[0]
        return since

    @since.setter
    def since(self, value: float) -> None:
        _F64.pack_into(self.memory, self._at + _SINCE, value)

    @property
    def client(self) -> int:
        """The session that has the worker, or has had it and the worker is not inspected yet; 0 for none."""
        return self._get(_U64, _CLIENT)

    @client.setter
    def client(self, value: int) -> None:
        _U64.pack_into(self.memory, self._at + _CLIENT, value)

    def clear(self) -> None:
        """Forget the worker."""
        self.memory[self._at : self._at + _SLOT_SIZE] = bytes(_SLOT_SIZE)

    def _get(self, kind: struct.Struct, offset: int) -> int:
        value: int = kind.unpack_from(self.memory, self._at + offset)[0]
        return value


class Marks:
    """What is known of workers and sessions, in memory of a fixed layout that a `kill -9` does not touch."""

    def __init__(self, buffer: "mmap.mmap | bytearray | None" = None) -> None:
        """Take the memory, or plain memory that is gone with the process. What is there stays, if it is of our kind."""
        self._buffer = bytearray(_SIZE) if buffer is None else buffer
        self.memory = memoryview(self._buffer)
        if bytes(self.memory[: len(_MAGIC)]) != _MAGIC:
            self.memory[:] = bytes(_SIZE)
            self.memory[: len(_MAGIC)] = _MAGIC
        self._totals = self.memory[_TOTALS_AT:_LAST_SESSION_AT].cast("Q")

    def slot(self, number: int) -> Slot:
        """Return the marks of a worker, 1 to 1000."""
        if not 1 <= number <= MOST_WORKERS:
            raise ValueError(f"there is no worker {number}")
        return Slot(self.memory, _HEADER_SIZE + (number - 1) * _SLOT_SIZE)

    @property
    def totals(self) -> tuple[int, ...]:
        """Sessions, refused, recycled, crashed, hung, dirty, since the service was started first."""
        return tuple(self._totals)

    @totals.setter
    def totals(self, values: tuple[int, ...]) -> None:
        for index, value in enumerate(values):  # each by one write: a kill leaves the old one or the new one
            self._totals[index] = value

    @property
    def last_session(self) -> int:
        """The number of the last session."""
        number: int = _U64.unpack_from(self.memory, _LAST_SESSION_AT)[0]
        return number

    @last_session.setter
    def last_session(self, number: int) -> None:
        _U64.pack_into(self.memory, _LAST_SESSION_AT, number)

    @property
    def accepted(self) -> tuple[int, str]:
        """The client, by session and name, that was accepted and is not taken care of yet; 0 if there is none."""
        session, name = _ACCEPTED.unpack_from(self.memory, _ACCEPTED_AT)
        return session, name.rstrip(b"\0").decode("ascii", "replace")

    @accepted.setter
    def accepted(self, client: tuple[int, str]) -> None:
        session, name = client
        _ACCEPTED.pack_into(self.memory, _ACCEPTED_AT, session, name.encode("ascii", "replace"))

    @property
    def config(self) -> str:
        """The configuration in force, as the broker writes it; empty if there is none."""
        end = _CONFIG_AT + _U32.size + self._config_length
        return bytes(self.memory[_CONFIG_AT + _U32.size : end]).decode("utf-8", "replace")

    @config.setter
    def config(self, text: str) -> None:
        self._config_length = 0  # while it is not whole there is none; nor is there one that is too long
        data = text.encode()
        if len(data) <= _CONFIG_SIZE - _U32.size:
            self.memory[_CONFIG_AT + _U32.size : _CONFIG_AT + _U32.size + len(data)] = data
            self._config_length = len(data)

    @property
    def _config_length(self) -> int:
        length: int = _U32.unpack_from(self.memory, _CONFIG_AT)[0]
        return length

    @_config_length.setter
    def _config_length(self, length: int) -> None:
        _U32.pack_into(self.memory, _CONFIG_AT, length)

    def close(self) -> None:
        """Let the memory go; slots can't be used any more."""
        self._totals.release()
        self.memory.release()
        if isinstance(self._buffer, mmap.mmap):
            self._buffer.close()


class Store(Protocol):
    """Keeps sockets under names for the next broker."""

    marks: Marks

    def keep(self, name: str, *sockets: socket.socket) -> None:
        """Keep the sockets, all or none of them, under a name of letters, digits and "-"; they stay the caller's.

        Sockets that are kept under another name belong to both then; they stay kept until both are dropped.
        """

    def drop(self, name: str) -> None:
        """Keep the sockets of that name no more. Does nothing if there are none."""


class NoStore:
    """Keeps nothing: nobody comes after a broker in the foreground."""

    def __init__(self) -> None:
        """Make marks in plain memory."""
        self.marks = Marks()

    def keep(self, name: str, *sockets: socket.socket) -> None:
        """Do nothing."""

    def drop(self, name: str) -> None:
        """Do nothing."""


class MemoryStore:
    """A fake for tests: keeps duplicates, for a second broker in the same process."""

    def __init__(self, marks: Marks | None = None) -> None:
        """Begin with nothing."""
        self.marks = marks or Marks()
        self.kept: dict[str, list[socket.socket]] = {}

    def keep(self, name: str, *sockets: socket.socket) -> None:
        """Keep duplicates."""
        self.drop(name)
        self.kept[name] = [kept.dup() for kept in sockets]

    def drop(self, name: str) -> None:
        """Close the duplicates."""
        for kept in self.kept.pop(name, []):
            kept.close()

    def take_over(self) -> tuple[Self, dict[str, list[socket.socket]]]:
        """Be a store for the next broker, and return what it finds; the sockets are the caller's to close.

        Like systemd's, a socket that has two names is found under the one that has more sockets.
        """
        claimed: set[int] = set()
        found: dict[str, list[socket.socket]] = {}
        heir = type(self)(self.marks)
        heir.kept = self.kept
        self.kept = {}
        for name, kept in sorted(heir.kept.items(), key=lambda item: -len(item[1])):
            inodes = {_inode(each.fileno()) for each in kept}
            if not inodes & claimed:
                claimed |= inodes
                found[name] = [each.dup() for each in kept]
        return heir, found

    def close(self) -> None:
        """Close the duplicates that are left."""
        for name in list(self.kept):
            self.drop(name)


class SystemdStore:
    """systemd's fd store, told by way of a notifier."""

    def __init__(self, notifier: Notifier, marks: Marks) -> None:
        """Begin with nothing but the marks; `take_over` is for everybody else."""
        self.marks = marks
        self._notifier = notifier
        # The sockets of each name, and for each socket the name that it has in systemd's store, by inode numbers.
        self._kept: dict[str, tuple[int, ...]] = {}
        self._homes: dict[int, str] = {}
        # How many names of ours a socket has.
        self._uses: Counter[int] = Counter()

    @classmethod
    def take_over(
        cls, notifier: Notifier, passed: Mapping[int, str]
    ) -> tuple["SystemdStore", dict[str, list[socket.socket]]]:
        """Return the store, and by name the sockets that an earlier broker left in it, in the order it kept them.

        `passed` are the descriptors from systemd by number, with their names, less the listeners; they are the store's
        from now on. The sockets are the caller's to close; they stay kept. All that is not whole is dropped.
        """
        sockets, marks = _sort(passed)
        store = cls(notifier, _take_over_marks(notifier, marks))
        left: dict[str, list[socket.socket]] = {}
        # Most sockets first: a session that was about to begin has its client from among those that waited.
        for home in sorted({home for home, _ in sockets.values()}, key=lambda home: -home.count("/")):
            name, inodes = _parse(home)
            if inodes and name not in left and all(inode in sockets for inode in inodes):
                store._hold(name, inodes)
                store._homes.update((inode, sockets[inode][0]) for inode in inodes)
                left[name] = [sockets.pop(inode)[1] for inode in inodes]
        for _, connection in sockets.values():
            connection.close()
        for home in set(passed.values()) - {_MARKS} - set(store._homes.values()):
            store._remove(home)
        return store, left

    def keep(self, name: str, *sockets: socket.socket) -> None:
        """Have systemd keep the sockets, by one message. Before a socket is closed, its names are to be dropped."""
        inodes = tuple(_inode(each.fileno()) for each in sockets)
        before = self._kept.get(name, ())
        if inodes == before:
            return
        self._hold(name, inodes)
        if all(inode in self._homes for inode in inodes):  # systemd can't rename: for a moment they are in no store
            for home in {self._homes[inode] for inode in inodes}:
                self._remove(home)
        fresh = [each.fileno() for each, inode in zip(sockets, inodes, strict=True) if inode not in self._homes]
        home = "/".join((name, *map(str, inodes)))
        self._homes.update((inode, home) for inode in inodes if inode not in self._homes)
        self._notifier.notify(f"FDSTORE=1\nFDPOLL=0\nFDNAME={home}", fresh)
        self._release(before)

    def drop(self, name: str) -> None:
        """Have systemd close those of the sockets that have no other name."""
        self._release(self._kept.pop(name, ()))

    def close(self) -> None:
        """Let the memory of the marks go. What is kept stays kept."""
        self.marks.close()

    def _hold(self, name: str, inodes: tuple[int, ...]) -> None:
        self._kept[name] = inodes
        self._uses.update(inodes)

    def _release(self, inodes: tuple[int, ...]) -> None:
        """Forget one name of the sockets, the last one first: what is left of a set is known to `take_over`."""
        for inode in inodes:
            self._uses[inode] -= 1
            if not self._uses[inode]:
                del self._uses[inode]
        for home in dict.fromkeys(self._homes[inode] for inode in reversed(inodes) if inode in self._homes):
            if not any(self._uses[inode] for inode in self._there(home)):
                self._remove(home)

    def _there(self, home: str) -> list[int]:
        """Return which sockets systemd has under that name."""
        return [inode for inode in _parse(home)[1] if self._homes.get(inode) == home]

    def _remove(self, home: str) -> None:
        for inode in self._there(home):
            del self._homes[inode]
        self._notifier.notify(f"FDSTOREREMOVE=1\nFDNAME={home}")


def _parse(home: str) -> tuple[str, tuple[int, ...]]:
    """Split a name in systemd's store; no inode numbers if it is none of ours."""
    name, *numbers = home.split("/")
    if not name or not all(number.isdecimal() for number in numbers):
        return home, ()
    return name, tuple(map(int, numbers))


def _sort(passed: Mapping[int, str]) -> tuple[dict[int, tuple[str, socket.socket]], list[int]]:
    """Return the sockets by inode number, with their names in systemd's store, and the marks; close all else."""
    sockets: dict[int, tuple[str, socket.socket]] = {}
    marks: list[int] = []
    for fd, home in passed.items():
        inode = _inode(fd)
        if home == _MARKS:
            marks.append(fd)
        elif inode in _parse(home)[1] and inode not in sockets and stat.S_ISSOCK(os.fstat(fd).st_mode):
            connection = socket.socket(fileno=fd)
            connection.setblocking(False)  # noqa: FBT003
            sockets[inode] = (home, connection)
        else:
            os.close(fd)
    return sockets, marks


def _inode(fd: int) -> int:
    return os.fstat(fd).st_ino


def _take_over_marks(notifier: Notifier, passed: list[int]) -> Marks:
    """Return the marks that an earlier broker left, or new ones, kept from now on. Closes the descriptors."""
    marks = None
    if len(passed) == 1 and os.fstat(passed[0]).st_size == _SIZE and os.pread(passed[0], len(_MAGIC), 0) == _MAGIC:
        marks = Marks(mmap.mmap(passed[0], _SIZE))
    elif passed:
        notifier.notify(f"FDSTOREREMOVE=1\nFDNAME={_MARKS}")
    for fd in passed:
        os.close(fd)
    return marks or _new_marks(notifier)


def _new_marks(notifier: Notifier) -> Marks:
    fd = os.memfd_create("ooodd-marks")
    try:
        os.ftruncate(fd, _SIZE)
        notifier.notify(f"FDSTORE=1\nFDPOLL=0\nFDNAME={_MARKS}", [fd])
        return Marks(mmap.mmap(fd, _SIZE))
    finally:
        os.close(fd)
