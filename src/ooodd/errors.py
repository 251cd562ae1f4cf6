# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one exception family of ooodd.

Each has a stable `code` for programs, a message that names the place, and a hint that names the remedy.
Foreign exceptions (OSError, D-Bus errors, pydantic's) are mapped to these where the call is made, once.
"""

from typing import ClassVar


class OooddError(Exception):
    """Base of all; `str()` is the one line that an administrator reads."""

    code: ClassVar[str] = "error"
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
    """The configuration can't be used. Starting again would not help, so systemd doesn't (EX_CONFIG, sysexits.h)."""

    code = "config"
    exit_status = 78


class ListenError(OooddError):
    """The listening socket is missing, of the wrong kind, or can't be had."""

    code = "listen"


class BusError(OooddError):
    """The message bus can't be reached, was lost, or gave no answer in time."""

    code = "bus"


class StartError(OooddError):
    """A worker could not be started. The pool backs off and tries again."""

    code = "start"


class WorkerLostError(OooddError):
    """A worker can't be reached, or what answers at its pipe isn't the worker."""

    code = "worker-lost"


class WorkerHungError(WorkerLostError):
    """A worker is there, but doesn't answer."""

    code = "worker-hung"


class ProtocolError(OooddError):
    """What came over a connection is no URP, or not what a UNO client or an office says at that place."""

    code = "protocol"


class NoDescriptorError(OooddError):
    """The process has no file descriptor left, or the machine none."""

    code = "no-descriptor"


class AdminError(OooddError):
    """The running broker can't be reached, or refuses the request."""

    code = "admin"


def describe(error: Exception) -> str:
    """Return what to tell of an error: our own speak for themselves, any other one is a bug and shows its type."""
    return str(error) if isinstance(error, OooddError) else f"internal error: {error!r}"
