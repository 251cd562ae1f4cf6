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

import psutil

from ooodd.actions import Reason
from ooodd.errors import NoDescriptorError, ProtocolError, StartError, WorkerHungError, WorkerLostError, describe
from ooodd.peer import credentials
from ooodd.urp import Findings, Probe

_Result = TypeVar("_Result")

# What --accept=pipe,name=... is given.
PIPE_NAME = "uno"

# The pipe appears when the office is ready; nothing else tells it, so try to connect, ever less often, in seconds.
_FIRST_TRY = 0.005
_LAST_TRY = 0.1

# Exit statuses of an office that are no fault: a client terminated it, SIGTERM, "start me again".
ORDERLY_STATUSES = {0, 255, 81}
# new-profile's exit status for "there is no office", sysexits.h.
EX_OSFILE = 72


@dataclass(frozen=True)
class Verdict:
    """What an inspection says: the fault for which the office can't go on, if any, and the bytes that it has taken."""

    fault: Reason | None = None
    detail: str = ""
    memory: int = 0


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

    async def probe(self, within: float) -> Findings:
        """Ask the office something that only one whose SolarMutex is free answers, and what is open in it.

        Returns when the office has closed its end too: a client that comes next is alone. Raises `WorkerLostError` if
        it can't be reached, `WorkerHungError` if all that takes longer than `within` seconds, `ProtocolError` if what
        answers speaks no URP, `NoDescriptorError`.
        """
        with contextlib.closing(self.connect()) as connection:
            try:
                async with asyncio.timeout(within):
                    return await self._converse(connection)
            except TimeoutError as error:
                raise WorkerHungError(f"no answer within {within:g} s") from error
            except OSError as error:
                raise WorkerLostError(f"{self.unit}: {error.strerror}") from error

    async def _converse(self, connection: socket.socket) -> Findings:
        loop = asyncio.get_running_loop()
        probe = Probe()
        while probe.findings is None:
            data = await loop.sock_recv(connection, 65536)
            if not data:
                raise WorkerLostError(f"{self.unit} closed its pipe")
            await loop.sock_sendall(connection, probe.receive(data))
        connection.shutdown(socket.SHUT_WR)
        while await loop.sock_recv(connection, 65536):
            pass
        return probe.findings

    async def inspect(self, within: float) -> Verdict:
        """Find out whether the office is fit for the next client; `NoDescriptorError` if that can't be found out.

        A verdict of `CRASHED` means that it can't be reached: how it ended, its supervisor will tell.
        """
        try:
            findings = await self.probe(within)
        except WorkerHungError as error:
            return Verdict(Reason.HUNG, error.message)
        except WorkerLostError as error:
            return Verdict(Reason.CRASHED, error.message)
        except ProtocolError as error:
            return Verdict(Reason.DIRTY, f"what answers is no office any more: {error.message}")
        if not findings.clean:
            return Verdict(Reason.DIRTY, _left_open(findings))
        return Verdict(memory=self.memory())

    async def wait_ready(self, within: float) -> None:
        """Wait until the office answers a probe; `StartError` if it doesn't `within` seconds."""
        delay = _FIRST_TRY
        try:
            async with asyncio.timeout(within):
                while True:
                    with contextlib.suppress(WorkerLostError):
                        await self.probe(within)
                        return
                    await asyncio.sleep(delay)
                    delay = min(delay * 1.5, _LAST_TRY)
        except TimeoutError as error:
            raise StartError(
                f"not ready within {within:g} s", "raise [pool] start_timeout if it is only slow"
            ) from error


def _left_open(findings: Findings) -> str:
    """Say what a client has left behind."""
    left = [
        f"{count} {what}" for count, what in ((findings.components, "documents"), (findings.frames, "frames")) if count
    ]
    return f"left open: {' and '.join(left) or 'a document'}"


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

    async def running(self) -> dict[int, Office]:
        """Return the offices that an earlier broker started and that still run; from now on `lost` tells of them."""

    async def close(self) -> None:
        """Let go of all that the supervisor itself holds. Every office has been stopped before, or is left running."""


class Events(Protocol):
    """Who is told what became of the pool's actions."""

    def worker_ready(self, number: int, office: Office) -> None:
        """Tell that the office of a worker can be leased."""

    def worker_not_started(self, number: int, detail: str) -> None:
        """Tell that the worker could not be started."""

    def worker_probed(self, number: int, verdict: Verdict) -> None:
        """Tell what became of a probe."""

    def worker_lost(self, number: int, reason: Reason, detail: str) -> None:
        """Tell that a started worker ended by itself."""

    def worker_stopped(self, number: int) -> None:
        """Tell that nothing of the worker is left."""

    def worker_not_stopped(self, number: int, detail: str) -> None:
        """Tell that the worker could not be stopped; `worker_stopped` follows: a start ends what is left first."""


class Keeper:
    """Carries out the pool's Start, Stop and Probe, one at a time for each worker, and reports what came of it."""

    def __init__(self, supervisor: Supervisor, events: Events, start_timeout: float, probe_timeout: float) -> None:
        """Take over the supervisor's `lost`; closing the supervisor stays the caller's. Times in seconds."""
        self._supervisor = supervisor
        self._events = events
        self.start_timeout = start_timeout
        self.probe_timeout = probe_timeout
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._offices: dict[int, Office] = {}
        # Workers whose start was refused, so that there is nothing to stop.
        self._absent: set[int] = set()
        # Offices that ended before the start that made them has returned, and how.
        self._ended_early: dict[int, tuple[Office, str]] = {}
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

    def adopt(self, number: int, office: Office) -> None:
        """Take over a running office."""
        self._offices[number] = office

    def probe(self, number: int) -> None:
        """Begin to inspect a worker that has no client."""
        self._run(number, self._probe(number))

    def stop(self, number: int) -> None:
        """Begin to stop the worker, whatever is under way for it."""
        self._offices.pop(number, None)
        self._run(number, self._stop(number, self._tasks.get(number)))

    def ignore_losses(self) -> None:
        """Tell of no lost office any more: nobody is there to act on it. The next broker finds out by itself."""
        self._supervisor.lost = lambda *_: None

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
            self._ended_early.pop(number, None)
            office = self._offices[number] = await _to_its_end(self._supervisor.start(number))
            if (early := self._ended_early.pop(number, None)) is not None and early[0] is office:
                raise StartError(early[1])  # noqa: TRY301
            await office.wait_ready(self.start_timeout)
        except Exception as error:  # noqa: BLE001 - of ours too: the worker is tried again, later
            if isinstance(error, StartError) and number not in self._offices:
                self._absent.add(number)
            self._events.worker_not_started(number, describe(error))
        else:
            self._events.worker_ready(number, office)

    async def _probe(self, number: int) -> None:
        try:
            verdict = await self.office(number).inspect(self.probe_timeout)
        except NoDescriptorError:  # that says nothing of the office
            verdict = Verdict()
        except Exception as error:  # noqa: BLE001 - of ours: the worker is replaced rather than trusted
            verdict = Verdict(Reason.CUT_OFF, describe(error))
        self._events.worker_probed(number, verdict)

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
        else:
            self._ended_early[number] = office, detail


async def _to_its_end(work: Coroutine[None, None, _Result]) -> _Result:
    """Do the work even if cancelled meanwhile: a start that is broken off leaves nobody knows what."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # nobody wants to know, and asyncio complains of one that was never asked for
        raise


def new_profile_command(profile: Path, program: Path) -> list[str]:
    """Return the command that makes a new profile for the office in `program`."""
    return [str(Path(__file__).with_name("data") / "new-profile"), os.fspath(profile), os.fspath(program)]
