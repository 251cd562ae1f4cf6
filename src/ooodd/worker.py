# SPDX-License-Identifier: LGPL-2.1-or-later
"""Workers: running offices, and the thin layer that carries out what the pool decides on them.

An office is reached by a pipe, in UNO's words: a unix socket. An office that was taken over by a client can replace
that socket by anything, so nothing but the very process that the supervisor started is accepted at its other end.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from ooodd.errors import StartError, WorkerHungError, WorkerLostError, describe
from ooodd.peer import credentials
from ooodd.pool import Reason

_Result = TypeVar("_Result")

# What --accept=pipe,name=... is given.
PIPE_NAME = "uno"

# The pipe appears when the office is ready; nothing else tells it, so try to connect, ever less often, in seconds.
_FIRST_TRY = 0.005
_LAST_TRY = 0.1
# An office that lives greets within a millisecond; one that loads a big sheet was seen to take up to 1.5 s.
GREETING_LIMIT = 5.0

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

        Raises `WorkerLostError` if there is no office at the pipe, or if it isn't this one.
        """
        for path in self.pipes():
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
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

    async def greet(self, within: float) -> None:
        """Take the office's greeting and part again: URP's acceptor speaks first.

        Returns when the office has closed its end too: a client that comes next is alone. Raises `WorkerLostError`
        if it can't be reached, `WorkerHungError` if it is silent for longer than `within` seconds.
        """
        loop = asyncio.get_running_loop()
        with contextlib.closing(self.connect()) as connection:
            try:
                async with asyncio.timeout(within):
                    if not await loop.sock_recv(connection, 4096):
                        raise WorkerLostError(f"{self.unit} closed its pipe without a greeting")
                    connection.shutdown(socket.SHUT_WR)
                    while await loop.sock_recv(connection, 4096):
                        pass
            except TimeoutError as error:
                raise WorkerHungError(f"{self.unit} did not greet within {within:g} s") from error
            except OSError as error:
                raise WorkerLostError(f"{self.unit}: {error.strerror}") from error

    async def wait_ready(self, within: float) -> None:
        """Wait until the office greets; `StartError` if it doesn't `within` seconds."""
        delay = _FIRST_TRY
        try:
            async with asyncio.timeout(within):
                while True:
                    with contextlib.suppress(WorkerLostError):
                        return await self.greet(GREETING_LIMIT)
                    await asyncio.sleep(delay)
                    delay = min(delay * 1.5, _LAST_TRY)
        except TimeoutError as error:
            raise StartError(
                f"not ready within {within:g} s", "raise [pool] start_timeout if it is only slow"
            ) from error


class Supervisor(Protocol):
    """Who starts and stops offices: systemd, or ooodd itself in the foreground.

    `lost` is called when an office ended by itself, with the worker's number, the office, the reason and a detail.
    """

    lost: Callable[[int, Office, Reason, str], None]

    def unit(self, number: int) -> str:
        """Return the name under which the worker is known."""

    def details(self, number: int) -> str:
        """Return where an administrator finds more of the worker, as the end of a message; empty if nowhere."""

    async def start(self, number: int) -> Office:
        """Start a new office with a new profile; one still running under this number ends first.

        Raises `StartError` if that fails and nothing is left running, any other `OooddError` if something may be.
        """

    async def stop(self, number: int) -> None:
        """End the office, if there is one, and wait until nothing of it is left. `OooddError` if that fails."""

    async def close(self) -> None:
        """Let go of all that the supervisor itself holds; every office has been stopped before."""


class Events(Protocol):
    """Who is told what became of the pool's actions."""

    def worker_ready(self, number: int, office: Office) -> None:
        """Tell that the office of a worker can be leased."""

    def worker_not_started(self, number: int, detail: str) -> None:
        """Tell that the worker could not be started."""

    def worker_lost(self, number: int, reason: Reason, detail: str) -> None:
        """Tell that a started worker ended by itself."""

    def worker_stopped(self, number: int) -> None:
        """Tell that nothing of the worker is left."""

    def worker_not_stopped(self, number: int, detail: str) -> None:
        """Tell that the worker could not be stopped; `worker_stopped` follows: a start ends what is left first."""


class Keeper:
    """Carries out the pool's Start and Stop, one at a time for each worker, and reports what came of it."""

    def __init__(self, supervisor: Supervisor, events: Events, start_timeout: float) -> None:
        """Take over the supervisor's `lost`; closing the supervisor stays the caller's."""
        self._supervisor = supervisor
        self._events = events
        self._start_timeout = start_timeout
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._offices: dict[int, Office] = {}
        # Workers whose start was refused, so that there is nothing to stop.
        self._absent: set[int] = set()
        supervisor.lost = self._lost

    def office(self, number: int) -> Office:
        """Return the office that the worker runs; `WorkerLostError` if it runs none."""
        try:
            return self._offices[number]
        except KeyError:
            raise WorkerLostError(f"worker {number} runs no office") from None

    def running(self, number: int) -> Office | None:
        """Return the office that the worker runs or is starting, if any."""
        return self._offices.get(number)

    def unit(self, number: int) -> str:
        """Return the name under which the supervisor knows the worker."""
        return self._supervisor.unit(number)

    def details(self, number: int) -> str:
        """Return where there is more to read of the worker."""
        return self._supervisor.details(number)

    def start(self, number: int) -> None:
        """Begin to start the worker."""
        self._absent.discard(number)
        self._run(number, self._start(number))

    def stop(self, number: int) -> None:
        """Begin to stop the worker, whatever is under way for it."""
        self._offices.pop(number, None)
        self._run(number, self._stop(number, self._tasks.get(number)))

    async def close(self) -> None:
        """Cancel what is under way, without regard to the offices."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _run(self, number: int, work: Coroutine[None, None, None]) -> None:
        task = self._tasks[number] = asyncio.create_task(work, name=f"worker {number}")
        task.add_done_callback(lambda done: self._tasks.pop(number) if self._tasks.get(number) is done else None)

    async def _start(self, number: int) -> None:
        try:
            office = self._offices[number] = await _to_its_end(self._supervisor.start(number))
            await office.wait_ready(self._start_timeout)
        except Exception as error:  # noqa: BLE001 - of ours too: the worker is tried again, later
            if isinstance(error, StartError) and number not in self._offices:
                self._absent.add(number)
            self._events.worker_not_started(number, describe(error))
        else:
            self._events.worker_ready(number, office)

    async def _stop(self, number: int, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            before.cancel()
            await asyncio.gather(before, return_exceptions=True)
        try:
            if number not in self._absent:
                await self._supervisor.stop(number)
        except Exception as error:  # noqa: BLE001 - see above
            self._events.worker_not_stopped(number, describe(error))
        self._events.worker_stopped(number)

    def _lost(self, number: int, office: Office, reason: Reason, detail: str) -> None:
        if self._offices.get(number) is office:
            self._events.worker_lost(number, reason, detail)


async def _to_its_end(work: Coroutine[None, None, _Result]) -> _Result:
    """Do the work even if cancelled meanwhile: a start that is broken off leaves nobody knows what."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def new_profile_command(profile: Path, program: Path) -> list[str]:
    """Return the command that makes a new profile for the office in `program`."""
    return [str(Path(__file__).with_name("data") / "new-profile"), os.fspath(profile), os.fspath(program)]
