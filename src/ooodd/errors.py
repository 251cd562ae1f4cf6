# SPDX-License-Identifier: LGPL-2.1-or-later
"""The exceptions of ooodd.

Each has a message that names the place, and a hint that names the remedy. Foreign exceptions (OSError, D-Bus errors,
pydantic's) are mapped to these once, where the call is made.
"""

from typing import ClassVar


class OooddError(Exception):
    """Base of all. `str()` gives the one line that an administrator reads."""

    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        """Take what went wrong and where (`message`), and what to do about it (`hint`)."""
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Return message and hint on one line."""
        return f"{self.message}: {self.hint}" if self.hint else self.message


class ConfigError(OooddError):
    """The configuration can't be used. Status 78 (EX_CONFIG, sysexits.h) keeps systemd from starting ooodd again."""

    exit_status = 78


class ListenError(OooddError):
    """The listening socket is missing, is of the wrong kind, or can't be opened."""


class BusError(OooddError):
    """The message bus can't be reached, was lost, or did not answer in time."""


class StartError(OooddError):
    """A worker could not be started. The pool backs off and tries again."""


class WorkerLostError(OooddError):
    """The office of a worker can't be reached, or another process answers at its pipe."""


class WorkerHungError(WorkerLostError):
    """The office of a worker is connected, but doesn't answer."""


class ProtocolError(OooddError):
    """The peer sent something that is not URP, or that URP does not allow at that point."""


class NoDescriptorError(OooddError):
    """The process or the machine has no file descriptor left."""


class AdminError(OooddError):
    """The control socket can't be opened or reached, or the broker refuses the request."""


class NoBrokerError(AdminError):
    """No broker runs. The status is that of systemctl(1) and of init scripts for a service that does not run."""

    exit_status = 3


class PingError(OooddError):
    """A session through the port did not go as it should."""


class UsageError(OooddError):
    """What a command was asked for makes no sense, or needs something that is not there."""

    exit_status = 2


def describe(error: Exception) -> str:
    """Return the text of an OooddError. Any other exception is a bug, so its type is shown too."""
    return str(error) if isinstance(error, OooddError) else f"internal error: {error!r}"
