# SPDX-License-Identifier: LGPL-2.1-or-later
"""An office: one running soffice.bin, and how to connect to it.

It listens at a "pipe", as UNO calls a unix socket; or, with ooodd's acceptor, at a socket for control connections, by
which it gets its clients' sockets (`datapath.control`). A client of an office can put another socket in the place, or a
link to one. So a connection is used only if its other end is the process that the supervisor has started (SO_PEERCRED).
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from ooodd.datapath import control
from ooodd.errors import NoDescriptorError, WorkerLostError
from ooodd.office import cgroup
from ooodd.systemd.peer import credentials

# The name in --accept=pipe,name=...
PIPE_NAME = "uno"

# Exit statuses of an office that are no crash: a client has terminated it, SIGTERM, "start me again".
ORDERLY_STATUSES = {0, 255, 81}
# The exit statuses (sysexits.h) of data/start-office if there is no office, and if its /etc has not been made.
EX_OSFILE = 72
EX_CONFIG = 78
# The clock of files lags behind, and an upgrade takes longer than this anyway. In seconds.
_CLOCK_ERROR = 2.0


class _Reserve:
    """Descriptors that are kept for connecting by the acceptor: that takes three for a moment, and leaves one.

    So a worker can be probed and leased where no more than one descriptor is left.
    """

    _SIZE = 2

    def __init__(self) -> None:
        self._held: list[int] = []

    def fill(self) -> None:
        """Keep as many as there should be, if they can be had."""
        with contextlib.suppress(OSError):
            while len(self._held) < self._SIZE:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Have them free for others. Nothing may be awaited within."""
        while self._held:
            os.close(self._held.pop())
        try:
            yield
        finally:
            self.fill()


_reserve = _Reserve()


@dataclass(frozen=True)
class Office:
    """A running office."""

    unit: str
    pid: int
    uid: int
    pipe_directory: Path
    pipe_name: str = PIPE_NAME
    # The file that it runs, and when it started: seconds since 1970, or 0 if that is not known.
    program: Path = field(default=Path(), compare=False)
    started: float = field(default=0.0, compare=False)
    # Its control group as systemd names it ("/ooodd.slice/..."), or an empty text: then it is a process of this user.
    control_group: str = field(default="", compare=False)

    def connect(self) -> socket.socket:
        """Return a non-blocking connection to the office, which the caller closes.

        Raises `WorkerLostError` if nobody or another process listens, and `NoDescriptorError`.
        """
        if (handed := self._connect_by_control()) is not None:
            return handed
        for path in self.pipes():
            if (connection := self._connect(path, socket.SOCK_STREAM)) is not None:
                return connection
        raise WorkerLostError(f"no pipe of {self.unit} in {self.pipe_directory}")

    @property
    def takes_sockets(self) -> bool:
        """Whether it seems to have the acceptor. Only `control` finds out."""
        return (self.pipe_directory / control.NAME).is_socket()

    def control(self) -> socket.socket | None:
        """Return a control connection to the office, non-blocking, which the caller closes; None if it has no acceptor.

        Raises as `connect` does.
        """
        return self._connect(self.pipe_directory / control.NAME, socket.SOCK_SEQPACKET)

    @contextlib.contextmanager
    def announcements(self) -> Iterator[socket.socket | None]:
        """Yield a non-blocking socket that gets a datagram when the acceptor of the office listens, or None.

        It is gone when the context ends. Only an office of systemd has a directory of its own where it can be.
        """
        path = self.pipe_directory / control.READY
        with contextlib.ExitStack() as stack:
            listener = None
            with contextlib.suppress(OSError):  # then it is found out by trying
                if self.control_group:
                    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
                    unbound = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
                    _bind_for_all(unbound, path)
                    stack.callback(path.unlink, missing_ok=True)
                    listener = unbound
            yield listener

    def _connect_by_control(self) -> socket.socket | None:
        """Hand the office one end of a pair of sockets, and return the other; None if it has no acceptor."""
        _reserve.fill()
        try:
            return self._hand_over_one_end()
        except NoDescriptorError:
            with _reserve.lent():
                return self._hand_over_one_end()

    def _hand_over_one_end(self) -> socket.socket | None:
        if (connection := self.control()) is None:
            return None
        with connection:
            try:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            except OSError as error:
                raise NoDescriptorError(f"can't connect to {self.unit}: {error.strerror}") from error
            with theirs:
                try:
                    control.hand_over(connection, theirs)
                except OSError as error:
                    ours.close()
                    raise WorkerLostError(f"{self.unit} takes no client: {error.strerror}") from error
            return ours

    def _connect(self, path: Path, kind: int) -> socket.socket | None:
        """Return a connection to a socket of the office; None if it is not there."""
        try:
            connection = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
        except OSError as error:
            raise NoDescriptorError(f"can't connect to {self.unit}: {error.strerror}") from error
        try:
            connection.connect(str(path))
            self._verify(connection)
        except FileNotFoundError:
            connection.close()
            return None
        except BaseException as error:
            connection.close()
            if isinstance(error, OSError):  # among them EAGAIN: listen(5), and nobody accepts
                raise WorkerLostError(f"{path}: {error.strerror}") from error
            raise
        return connection

    def pipes(self) -> Iterator[Path]:
        """Yield the paths that sal may choose: with the user id, without if it can't look the user up, or by a link.

        For the link see data/start-office.
        """
        yield self.pipe_directory / f"OSL_PIPE_{self.uid}_{self.pipe_name}"
        yield self.pipe_directory / f"OSL_PIPE_{self.pipe_name}"
        yield self.pipe_directory / self.pipe_name

    def _verify(self, connection: socket.socket) -> None:
        pid = credentials(connection).pid
        if pid != self.pid:
            raise WorkerLostError(f"the pipe of {self.unit} belongs to process {pid}, not to its office, {self.pid}")

    def outdated(self) -> bool:
        """Whether the file of its program has been replaced or removed since it started."""
        if not self.started:
            return False
        try:
            return self.program.stat().st_ctime > self.started + _CLOCK_ERROR
        except PermissionError:  # the broker does not see below /home: nothing is known of it
            return False
        except OSError:
            return True

    def left_processes(self) -> int:
        """Return how many processes its client has left beside it; 0 if only systemd could tell."""
        return max(0, cgroup.processes(self.control_group) - 1) if self.control_group else 0

    def memory(self) -> int:
        """Return the bytes of memory that the end of the office would free, without mapped files.

        0 if it has ended, or if the machine does not count the memory of control groups.
        """
        if self.control_group:
            return cgroup.memory(self.control_group)
        try:
            memory = psutil.Process(self.pid).memory_info()
        except (psutil.Error, OSError):
            return 0
        return int(memory.rss - memory.shared)


def _bind_for_all(unbound: socket.socket, path: Path) -> None:
    """Bind a socket that the office, another user, can write to. A chmod(2) later could hit what it has put there."""
    umask = os.umask(0)
    try:
        unbound.bind(str(path))
    finally:
        os.umask(umask)
