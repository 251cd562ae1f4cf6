# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where messages go: the journal under systemd, stderr in the foreground."""

import contextlib
import sys
from typing import Protocol, TextIO

from ooodd.messages import LEVELS, Message

# Which of a message's fields become fields of the journal.
_FIELDS = ("worker", "client", "session")


class Journal(Protocol):
    """A place for messages. Logging never raises and never waits for long."""

    def log(self, message: Message, **fields: object) -> None:
        """Write the message, its text filled with the fields, if the level lets it through."""

    def set_level(self, level: str) -> None:
        """Go by another of the configuration's levels."""


class SystemdJournal:
    """systemd-journald, by its native protocol."""

    def __init__(self, level: str) -> None:
        """Take one of the configuration's levels."""
        from systemd.journal import send  # noqa: PLC0415 - absent in foreground use

        self._send = send
        self._most = LEVELS[level]

    def set_level(self, level: str) -> None:
        """Go by another level."""
        self._most = LEVELS[level]

    def log(self, message: Message, **fields: object) -> None:
        """Send the message with MESSAGE_ID and the OOODD_ fields."""
        if message.priority > self._most:
            return
        extra = {f"OOODD_{name.upper()}": str(fields[name]) for name in _FIELDS if name in fields}
        with contextlib.suppress(OSError):  # a line less is better than a worker that nobody looks after any more
            self._send(
                message.text.format_map(fields),
                MESSAGE_ID=message.id,
                PRIORITY=str(int(message.priority)),
                SYSLOG_IDENTIFIER="ooodd",
                **extra,
            )


class StreamJournal:
    """A text stream, a line a message."""

    def __init__(self, level: str, stream: TextIO = sys.stderr) -> None:
        """Take one of the configuration's levels; the stream stays the caller's."""
        self._most = LEVELS[level]
        self._stream = stream

    def set_level(self, level: str) -> None:
        """Go by another level."""
        self._most = LEVELS[level]

    def log(self, message: Message, **fields: object) -> None:
        """Write the message as one line."""
        if message.priority <= self._most:
            with contextlib.suppress(OSError):
                self._stream.write(f"ooodd: {message.text.format_map(fields)}\n")
                self._stream.flush()
