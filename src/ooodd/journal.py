# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where messages go: to systemd-journald under systemd, to stderr in the foreground."""

import contextlib
import struct
import sys
from typing import Protocol, TextIO

from ooodd import messages
from ooodd.datagrams import Datagrams
from ooodd.messages import LEVELS, Message

JOURNALD = "/run/systemd/journal/socket"

# The fields of a message that become fields of the journal: OOODD_WORKER= and so on, see ooodd(8). Times in seconds.
_FIELDS = ("worker", "client", "session", "user", "wait", "duration", "to_office", "to_client", "reason", "by")


class Journal(Protocol):
    """A place for messages. Logging never raises and never waits."""

    def log(self, message: Message, **fields: object) -> None:
        """Write the message, its text filled with the fields, if its priority is within the level."""

    def set_level(self, level: str) -> None:
        """Change the level, one of [log] level."""


class SystemdJournal:
    """Logs to systemd-journald by its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL). Its owner calls `close`.

    While journald does not read, some thousand lines wait. If more come they are lost, and a line says how many.
    """

    def __init__(self, level: str, address: str = JOURNALD) -> None:
        """Connect to journald's socket; `level` is one of [log] level."""
        self._max_priority = LEVELS[level]
        self._datagrams = Datagrams(address, self._tell_lost)

    def set_level(self, level: str) -> None:
        """Change the level."""
        self._max_priority = LEVELS[level]

    def log(self, message: Message, **fields: object) -> None:
        """Send the message with MESSAGE_ID and the OOODD_ fields."""
        if message.priority > self._max_priority:
            return
        entry = {
            "MESSAGE": message.text.format_map(fields),
            "MESSAGE_ID": message.id,
            "PRIORITY": str(int(message.priority)),
            "SYSLOG_IDENTIFIER": "ooodd",
            **{f"OOODD_{name.upper()}": str(fields[name]) for name in _FIELDS if fields.get(name) is not None},
        }
        self._datagrams.send(b"".join(_encode(name, value) for name, value in entry.items()))

    def close(self) -> None:
        """Send what waits, for two seconds at the most, and close the socket."""
        self._datagrams.close()

    def _tell_lost(self, lines: int) -> None:
        self.log(messages.JOURNAL_LOST, lines=lines)


def _encode(name: str, value: str) -> bytes:
    """Return a field as journald reads it: NAME=value, or with the length (64 bits) if there are newlines in it."""
    data = value.encode(errors="backslashreplace")
    if b"\n" not in data:
        return b"%s=%s\n" % (name.encode(), data)
    return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(data)), data)


class StreamJournal:
    """Logs to a text stream, a line a message."""

    def __init__(self, level: str, stream: TextIO = sys.stderr) -> None:
        """Take one of [log] level; the caller closes the stream."""
        self._max_priority = LEVELS[level]
        self._stream = stream

    def set_level(self, level: str) -> None:
        """Change the level."""
        self._max_priority = LEVELS[level]

    def log(self, message: Message, **fields: object) -> None:
        """Write the message as one line."""
        if message.priority <= self._max_priority:
            with contextlib.suppress(OSError):
                self._stream.write(f"ooodd: {message.text.format_map(fields)}\n")
                self._stream.flush()
