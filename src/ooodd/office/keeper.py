# SPDX-License-Identifier: LGPL-2.1-or-later
"""The keeper: starts, probes and stops the office of each worker, as the pool decides, and reports what came of it.

One thing at a time for each worker. A probe is the sans-IO conversation of `uno.probe`, held here over a socket.
"""

import asyncio
import contextlib
import socket
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ooodd.errors import NoDescriptorError, ProtocolError, StartError, WorkerHungError, WorkerLostError, describe
from ooodd.office.office import Office
from ooodd.office.supervisor import Supervisor
from ooodd.pool.actions import Reason
from ooodd.uno.probe import Findings, Probe

_Result = TypeVar("_Result")

# The pipe appears when the office is ready; nothing else tells it, so try to connect, ever less often, in seconds.
_FIRST_TRY = 0.005
_LAST_TRY = 0.1


@dataclass(frozen=True)
class Verdict:
    """What an inspection says: the fault for which the office can't go on, if any, and the bytes that it has taken."""

    fault: Reason | None = None
    detail: str = ""
    memory: int = 0


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

    async def inspect(self, number: int, within: float) -> Verdict:
        """Find out whether the worker's office is fit for the next client, see `inspect`.

        Raises `WorkerLostError` if the worker runs no office, and `NoDescriptorError`.
        """
        return await inspect(self.office(number), within)

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
            await wait_ready(office, self.start_timeout)
        except Exception as error:  # noqa: BLE001 - of ours too: the worker is tried again, later
            if isinstance(error, StartError) and number not in self._offices:
                self._absent.add(number)
            self._events.worker_not_started(number, describe(error))
        else:
            self._events.worker_ready(number, office)

    async def _probe(self, number: int) -> None:
        try:
            verdict = await self.inspect(number, self.probe_timeout)
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


async def probe(office: Office, within: float) -> Findings:
    """Ask the office something that only one whose SolarMutex is free answers, and what is open in it.

    Returns when the office has closed its end too: a client that comes next is alone. Raises `WorkerLostError` if
    it can't be reached, `WorkerHungError` if all that takes longer than `within` seconds, `ProtocolError` if what
    answers speaks no URP, `NoDescriptorError`.
    """
    with contextlib.closing(office.connect()) as connection:
        try:
            async with asyncio.timeout(within):
                return await _converse(office, connection)
        except TimeoutError as error:
            raise WorkerHungError(f"no answer within {within:g} s") from error
        except OSError as error:
            raise WorkerLostError(f"{office.unit}: {error.strerror}") from error


async def _converse(office: Office, connection: socket.socket) -> Findings:
    loop = asyncio.get_running_loop()
    probe = Probe()
    while probe.findings is None:
        data = await loop.sock_recv(connection, 65536)
        if not data:
            raise WorkerLostError(f"{office.unit} closed its pipe")
        await loop.sock_sendall(connection, probe.receive(data))
    connection.shutdown(socket.SHUT_WR)
    while await loop.sock_recv(connection, 65536):
        pass
    return probe.findings


async def inspect(office: Office, within: float) -> Verdict:
    """Find out whether the office is fit for the next client; `NoDescriptorError` if that can't be found out.

    A verdict of `CRASHED` means that it can't be reached: how it ended, its supervisor will tell.
    """
    try:
        findings = await probe(office, within)
    except WorkerHungError as error:
        return Verdict(Reason.HUNG, error.message)
    except WorkerLostError as error:
        return Verdict(Reason.CRASHED, error.message)
    except ProtocolError as error:
        return Verdict(Reason.DIRTY, f"what answers is no office any more: {error.message}")
    if not findings.clean:
        return Verdict(Reason.DIRTY, _left_open(findings))
    return Verdict(memory=office.memory())


async def wait_ready(office: Office, within: float) -> None:
    """Wait until the office answers a probe; `StartError` if it doesn't `within` seconds."""
    delay = _FIRST_TRY
    try:
        async with asyncio.timeout(within):
            while True:
                with contextlib.suppress(WorkerLostError):
                    await probe(office, within)
                    return
                await asyncio.sleep(delay)
                delay = min(delay * 1.5, _LAST_TRY)
    except TimeoutError as error:
        raise StartError(f"not ready within {within:g} s", "raise [pool] start_timeout if it is only slow") from error


def _left_open(findings: Findings) -> str:
    """Say what a client has left behind."""
    left = [
        f"{count} {what}" for count, what in ((findings.components, "documents"), (findings.frames, "frames")) if count
    ]
    return f"left open: {' and '.join(left) or 'a document'}"
