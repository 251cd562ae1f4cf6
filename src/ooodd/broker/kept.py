# SPDX-License-Identifier: LGPL-2.1-or-later
"""The names of clients in the fd store, and what the next broker reads from them.

    client-17-8640000000     the connection of session 17, which was queued 8,640 s after boot
    office-17-3-8641000000   the connection to the office of worker 3, which session 17 has had since a second later;
                             of a client that never waited its own connection is under this name too

So a client that is served at once takes two messages to systemd, and one that waited four. Two sockets of one name are
told apart by the kernel: the broker's end of a connection to an office is an AF_UNIX socket without an address of its
own, and an accepted connection always has one, that of the listener.

Times are in microseconds of `time.monotonic()`. Version 0.2 called them "waiting" and "session", had milliseconds, and
put "/" and inode numbers behind.
"""

import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_NAMES = (
    (re.compile(r"client-(?P<session>\d+)-(?P<since>-?\d+)"), 1e6),
    (re.compile(r"office-(?P<session>\d+)-(?P<worker>\d+)-(?P<since>-?\d+)"), 1e6),
    (re.compile(r"waiting-(?P<session>\d+)-(?P<since>-?\d+)/.*"), 1e3),
    (re.compile(r"session-(?P<session>\d+)-(?P<worker>\d+)-(?P<since>-?\d+)/.*"), 1e3),
)


def client_name(session: int, queued: float) -> str:
    """Return the name of a queued client's connection. `queued` is when it joined, in monotonic seconds."""
    return f"client-{session}-{queued * 1e6:.0f}"


def office_name(session: int, worker: int, began: float) -> str:
    """Return the name of a session's connection to its office. `began` is in monotonic seconds."""
    return f"office-{session}-{worker}-{began * 1e6:.0f}"


@dataclass
class Kept:
    """What is kept of one client: its connection, and that to its office if it has one."""

    session: int
    names: list[str] = field(default_factory=list)
    # When it was queued, or when it got its office, in monotonic seconds.
    since: float = 0.0
    # 0 for none.
    worker: int = 0
    clients: list[socket.socket] = field(default_factory=list)
    offices: list[socket.socket] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether it is of use: a client's connection, and with a worker that to its office."""
        return len(self.clients) == 1 and len(self.offices) == bool(self.worker)

    @property
    def sockets(self) -> list[socket.socket]:
        """All that is kept of the client."""
        return self.clients + self.offices

    def add(self, name: str, sockets: Sequence[socket.socket]) -> None:
        """Take what is under one name."""
        self.names.append(name)
        for each in sockets:
            (self.offices if _is_office_end(each) else self.clients).append(each)


def read(left: Mapping[str, Sequence[socket.socket]]) -> tuple[list[Kept], list[str]]:
    """Return what is kept of each client, in the order of their sessions, and the names that mean nothing here."""
    found: dict[int, Kept] = {}
    unknown = []
    for name, sockets in left.items():
        if (parsed := _parse(name)) is None:
            unknown.append(name)
            continue
        session, worker, since = parsed
        kept = found.setdefault(session, Kept(session))
        kept.add(name, sockets)
        if worker or not kept.worker:
            kept.since, kept.worker = since, worker
    for kept in found.values():
        kept.names.sort(
            key=lambda name: name.startswith(("office-", "session-"))
        )  # the office's goes first, see `forget`
    return [found[session] for session in sorted(found)], unknown


def _parse(name: str) -> tuple[int, int, float] | None:
    """Return session, worker (0 for none) and time in seconds; None if the name means nothing here."""
    for pattern, units in _NAMES:
        if match := pattern.fullmatch(name):
            values = match.groupdict("0")
            return int(values["session"]), int(values.get("worker", "0")), int(values["since"]) / units
    return None


def _is_office_end(connection: socket.socket) -> bool:
    return connection.family == socket.AF_UNIX and not connection.getsockname()
