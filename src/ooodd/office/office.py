# SPDX-License-Identifier: LGPL-2.1-or-later
"""An office: one running soffice.bin, and how it is reached.

It is reached by a pipe, in UNO's words: a unix socket. A client can replace the socket of the office that it has by
anything. So only the very process that the supervisor started is accepted at the other end (SO_PEERCRED).
"""

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from ooodd.errors import NoDescriptorError, WorkerLostError
from ooodd.systemd.peer import credentials

# What --accept=pipe,name=... is given.
PIPE_NAME = "uno"

# Exit statuses of an office that are no fault: a client terminated it, SIGTERM, "start me again".
ORDERLY_STATUSES = {0, 255, 81}
# new-profile's exit status for "there is no office", sysexits.h.
EX_OSFILE = 72


@dataclass(frozen=True)
class Office:
    """A running office, as its supervisor started it."""

    unit: str
    pid: int
    uid: int
    pipe_directory: Path
    pipe_name: str = PIPE_NAME

    def connect(self) -> socket.socket:
        """Connect to the office; the caller closes the socket, which doesn't block.

        Raises `WorkerLostError` if there is no office at the pipe, or if it isn't this one, and `NoDescriptorError`.
        """
        for path in self.pipes():
            try:
                connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            except OSError as error:
                raise NoDescriptorError(f"can't connect to {self.unit}: {error.strerror}") from error
            try:
                connection.connect(str(path))
                self._verify(connection)
            except FileNotFoundError:
                connection.close()
            except BaseException as error:
                connection.close()
                if isinstance(error, OSError):  # among them EAGAIN: listen(5), and nobody accepts
                    raise WorkerLostError(f"{path}: {error.strerror}") from error
                raise
            else:
                return connection
        raise WorkerLostError(f"no pipe of {self.unit} in {self.pipe_directory}")

    def pipes(self) -> Iterator[Path]:
        """Yield the places where sal may have put the pipe: with the user's id or, if it finds out no user, without."""
        yield self.pipe_directory / f"OSL_PIPE_{self.uid}_{self.pipe_name}"
        yield self.pipe_directory / f"OSL_PIPE_{self.pipe_name}"

    def _verify(self, connection: socket.socket) -> None:
        pid = credentials(connection).pid
        if pid != self.pid:
            raise WorkerLostError(f"the pipe of {self.unit} belongs to process {pid}, not to its office, {self.pid}")

    def memory(self) -> int:
        """Return the bytes that the office shares with no file, and which go when it goes; 0 if it is gone."""
        try:
            memory = psutil.Process(self.pid).memory_info()
        except (psutil.Error, OSError):
            return 0
        return int(memory.rss - memory.shared)


def new_profile_command(profile: Path, program: Path) -> list[str]:
    """Return the command that makes a new profile for the office in `program`."""
    return [str(Path(__file__).parents[1] / "data" / "new-profile"), os.fspath(profile), os.fspath(program)]
