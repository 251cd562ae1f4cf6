# SPDX-License-Identifier: LGPL-2.1-or-later
"""The keeper: starts, probes and stops the office of each worker when the pool decides so, and reports the outcome.

It does one thing at a time for each worker. A probe is a sans-IO conversation of `uno.conversation`, here over
a socket (`exchange`).

An office that can't be reached has ended, or is about to: it closes its pipe first, and its process may need another
second. Only the supervisor knows when it has ended, and whether that was a crash, so its report (`lost`) decides.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from ooodd.errors import (
    NoDescriptorError,
    OooddError,
    ProtocolError,
    StartError,
    WorkerHungError,
    WorkerLostError,
    describe,
)
from ooodd.office.exchange import converse
from ooodd.office.office import Office
from ooodd.office.packages import Packages
from ooodd.office.supervisor import Supervisor
from ooodd.pool.actions import Reason
from ooodd.uno.conversation import Conversation, Findings, new_preload, new_probe

# An office with the acceptor tells when it is ready. For others there is no event: so try to connect. The pause between
# two tries grows from the first to the last, in seconds.
_FIRST_PAUSE = 0.005
_LAST_PAUSE = 0.1
# How long to wait for the report that an unreachable office has ended, in seconds. It comes within 0.1 s as a rule, and
# has taken 1 s. An office of which none comes hangs.
END_TIMEOUT = 5.0
# How long an office that is at rest may take to tell what is open in it, in seconds. It takes some milliseconds.
_AT_ONCE = 0.5
_Result = TypeVar("_Result")

# The pause between two looks at dpkg, in seconds. It grows from the first to the last.
_FIRST_LOOK = 0.1
_LAST_LOOK = 1.0


@dataclass(frozen=True)
class Verdict:
    """The result of an inspection: why the office can't be used again, or None, and its memory in bytes."""

    fault: Reason | None = None
    detail: str = ""
    memory: int = 0


class Events(Protocol):
    """The owner of the keeper, which gets its reports."""

    def worker_ready(self, number: int, office: Office) -> None:
        """The worker has started, and its office can be leased."""

    def worker_not_started(self, number: int, detail: str) -> None:
        """The worker could not be started."""

    def worker_held_up(self, number: int, package: str) -> None:
        """The worker is not started before dpkg has installed the package."""

    def worker_probed(self, number: int, verdict: Verdict) -> None:
        """The probe of an idle worker has ended."""

    def worker_lost(self, number: int, reason: Reason, detail: str) -> None:
        """The office of a worker has ended by itself."""

    def worker_stopped(self, number: int) -> None:
        """The worker is stopped, and nothing of its office is left."""

    def worker_not_preloaded(self, number: int, detail: str) -> None:
        """The worker could not be preloaded, or not with all that was asked for. No other one will be."""

    def worker_not_stopped(self, number: int, detail: str) -> None:
        """The worker could not be stopped. `worker_stopped` follows, since the next start ends what is left."""


@dataclass(eq=False)
class _Running:
    """The office of a worker, from the return of its start to its stop."""

    office: Office
    # Set when the supervisor has reported its end, or when it is stopped.
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Keeper:
    """Carries out the pool's Start, Stop and Probe, one at a time for each worker, and reports the outcome."""

    def __init__(self, supervisor: Supervisor, events: Events, start_timeout: float, probe_timeout: float) -> None:
        """Set the supervisor's `lost`. The caller closes the supervisor. Times in seconds."""
        self._supervisor = supervisor
        self._events = events
        self.start_timeout = start_timeout
        self.probe_timeout = probe_timeout
        # The kinds of documents that an office is preloaded for, see `uno.conversation`.
        self.preload: Sequence[str] = ()
        # Whether a client waits, so that an office that starts had better be ready at once.
        self.is_awaited: Callable[[], bool] = lambda: False
        self.packages = Packages()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        # The supervisor's part of starts, which a stop does not cancel.
        self._starts: set[asyncio.Task[Office]] = set()
        self._running: dict[int, _Running] = {}
        # Workers whose start was refused: nothing runs that would have to be stopped.
        self._refused: set[int] = set()
        # Offices whose end was reported before the start that made them has returned, with the detail.
        self._ended_early: dict[int, tuple[Office, str]] = {}
        supervisor.lost = self._lost

    def office(self, number: int) -> Office:
        """Return the office of the worker; `WorkerLostError` if it has none."""
        return self._of(number).office

    async def inspect(self, number: int, within: float) -> Verdict:
        """Find out whether the worker's office is fit for the next client, by a probe of at most `within` seconds.

        If the office can't be reached, wait for the supervisor's report of its end, `END_TIMEOUT` seconds at most. The
        verdict is CRASHED if the end was reported meanwhile, by `Events.worker_lost`, which knows more. Without a
        report it is HUNG. Raises `WorkerLostError` if the worker has no office, and `NoDescriptorError`.
        """
        running = self._of(number)
        verdict = await inspect(running.office, within)
        if verdict.fault is Reason.CRASHED and not await _is_set(running.ended, END_TIMEOUT):
            return Verdict(Reason.HUNG, f"{verdict.detail}, and its end was not reported within {END_TIMEOUT:g} s")
        return verdict

    async def is_clean(self, number: int) -> bool:
        """Return whether nothing is open in the worker's office, which has a client that is quiet.

        Raises `WorkerHungError` if there is no answer at once, `WorkerLostError`, `ProtocolError` and
        `NoDescriptorError`. What that says of the office is for the inspection after the session to find out.
        """
        return (await probe(self.office(number), _AT_ONCE)).clean

    def running(self, number: int) -> Office | None:
        """Return the office that the worker runs or is starting, if any."""
        running = self._running.get(number)
        return running.office if running else None

    def unit(self, number: int) -> str:
        """Return the name under which the supervisor knows the worker."""
        return self._supervisor.unit(number)

    def journal(self, number: int) -> str:
        """Return the command that shows the journal of the worker's office; empty if there is none of its own."""
        return self._supervisor.journal(number)

    def start(self, number: int) -> None:
        """Begin to start the worker."""
        self._refused.discard(number)
        self._run(number, self._start(number))

    def adopt(self, number: int, office: Office) -> None:
        """Use a running office that an earlier broker has started."""
        self._running[number] = _Running(office)

    def probe(self, number: int) -> None:
        """Begin to inspect an idle worker."""
        self._run(number, self._probe(number))

    def stop(self, number: int) -> None:
        """Begin to stop the worker. A start or probe under way is cancelled."""
        if (running := self._running.pop(number, None)) is not None:
            running.ended.set()
        self._run(number, self._stop(number, self._tasks.get(number)))

    def ignore_losses(self) -> None:
        """Report no lost office any more. The next broker finds out by itself which offices run."""
        self._supervisor.lost = lambda *_: None

    async def close(self) -> None:
        """Cancel what is under way, starts too. Offices are left as they are."""
        tasks = [*self._tasks.values(), *self._starts]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _of(self, number: int) -> _Running:
        try:
            return self._running[number]
        except KeyError:
            raise WorkerLostError(f"worker {number} runs no office") from None

    def _run(self, number: int, work: Coroutine[None, None, None]) -> None:
        task = self._tasks[number] = asyncio.create_task(work, name=f"worker {number}")
        task.add_done_callback(lambda done: self._tasks.pop(number) if self._tasks.get(number) is done else None)

    async def _start(self, number: int) -> None:
        try:
            self._ended_early.pop(number, None)
            await self._until_installed(number)
            office = await self._uncancelled(self._supervisor.start(number))
            self._running[number] = _Running(office)
            if (early := self._ended_early.pop(number, None)) is not None and early[0] is office:
                raise StartError(early[1])  # noqa: TRY301
            await wait_ready(office, self.start_timeout)
            self._supervisor.ready(number)
            if self.preload and not self.is_awaited():
                await self._preload(number, office)
        except Exception as error:  # noqa: BLE001 - bugs too: the worker is started again, later
            if isinstance(error, StartError) and number not in self._running:
                self._refused.add(number)
            self._events.worker_not_started(number, describe(error))
        else:
            if self.running(number) is office:  # else it is being stopped
                self._events.worker_ready(number, office)

    async def _preload(self, number: int, office: Office) -> None:
        """Have the office load what documents need. What fails once is not tried again, for it would fail again."""
        try:
            missing = await _ask(office, new_preload(self.preload), self.start_timeout)
            if not (await probe(office, self.probe_timeout)).clean:
                raise StartError("it left a document open")
        except NoDescriptorError:
            return
        except OooddError as error:
            self._stop_preloading(number, describe(error))
            raise StartError(f"preloading failed: {error}") from error
        if missing:
            self._stop_preloading(number, f"this office has no {', '.join(missing)}")

    def _stop_preloading(self, number: int, detail: str) -> None:
        if self.preload:  # else another office that started at the same time has said it
            self.preload = ()
            self._events.worker_not_preloaded(number, detail)

    async def _until_installed(self, number: int) -> None:
        """Wait while dpkg replaces LibreOffice, but no longer than a start may take; `StartError` after that."""
        if not (package := self.packages.unpacking()):
            return
        self._events.worker_held_up(number, package)
        pause = _FIRST_LOOK
        try:
            async with asyncio.timeout(self.start_timeout):
                while self.packages.unpacking():
                    await asyncio.sleep(pause)
                    pause = min(pause * 1.5, _LAST_LOOK)
        except TimeoutError as error:
            raise StartError(f"dpkg is installing {package}", "offices start again when it has ended") from error

    async def _uncancelled(self, work: Coroutine[None, None, Office]) -> Office:
        """Finish a start even if the caller is cancelled meanwhile: nobody knows what an unfinished one has left."""
        task = asyncio.create_task(work)
        self._starts.add(task)
        task.add_done_callback(self._starts.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # nobody needs it, but asyncio logs an exception that is never retrieved
            raise

    async def _probe(self, number: int) -> None:
        running = self._running.get(number)
        try:
            verdict = await self.inspect(number, self.probe_timeout)
        except NoDescriptorError:  # which is no fault of the office
            verdict = Verdict()
        except Exception as error:  # noqa: BLE001 - a bug: the worker is replaced rather than trusted
            verdict = Verdict(Reason.CUT_OFF, describe(error))
        if self._running.get(number) is running:  # else it is being stopped
            self._events.worker_probed(number, verdict)

    async def _stop(self, number: int, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            before.cancel()
            await asyncio.gather(before, return_exceptions=True)
        try:
            if number not in self._refused:
                await self._supervisor.stop(number)
        except Exception as error:  # noqa: BLE001 - bugs too: the next start ends what is left
            self._events.worker_not_stopped(number, describe(error))
        self._events.worker_stopped(number)

    def _lost(self, number: int, office: Office, reason: Reason, detail: str) -> None:
        running = self._running.get(number)
        if running is not None and running.office is office:
            running.ended.set()
            self._events.worker_lost(number, reason, detail)
        else:
            self._ended_early[number] = office, detail


async def _is_set(event: asyncio.Event, within: float) -> bool:
    """Wait until the event is set, and return whether it was `within` seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within):
            await event.wait()
    return event.is_set()


async def probe(office: Office, within: float) -> Findings:
    """Ask the office which documents and frames are open in it. It answers only while its SolarMutex is free.

    Returns when the office has closed the connection too, so that the next client is alone in it. Raises
    `WorkerLostError` if the office can't be reached, `WorkerHungError` if this takes longer than `within` seconds,
    `ProtocolError` if the answer is no URP, and `NoDescriptorError`.
    """
    return await _ask(office, new_probe(), within)


async def _ask(office: Office, conversation: Conversation[_Result], within: float) -> _Result:
    """Have a conversation, and return its result when the office has closed the connection. Raises as `probe` does."""
    with contextlib.closing(office.connect()) as connection:
        try:
            async with asyncio.timeout(within):
                return await converse(connection, conversation)
        except TimeoutError as error:
            raise WorkerHungError(f"no answer within {within:g} s") from error
        except EOFError as error:
            raise WorkerLostError(f"{office.unit} closed its pipe") from error
        except OSError as error:
            raise WorkerLostError(f"{office.unit}: {error.strerror}") from error


async def inspect(office: Office, within: float) -> Verdict:
    """Find out whether the office is fit for the next client. Raises `NoDescriptorError`.

    The verdict CRASHED says only that it can't be reached; its supervisor reports whether and how it has ended.
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
    if left := office.left_processes():
        return Verdict(Reason.DIRTY, f"left running: {left} processes")
    return Verdict(memory=office.memory())


async def wait_ready(office: Office, within: float) -> None:
    """Wait until the office answers a probe; `StartError` if it does not `within` seconds."""
    pause = _FIRST_PAUSE
    try:
        async with asyncio.timeout(within):
            with office.announcements() as announcements:
                while True:
                    with contextlib.suppress(WorkerLostError):
                        await probe(office, within)
                        return
                    await _receive(announcements, pause)
                    pause = min(pause * 1.5, _LAST_PAUSE)
    except TimeoutError as error:
        raise StartError(f"not ready within {within:g} s", "raise [pool] start_timeout if it is only slow") from error


def _left_open(findings: Findings) -> str:
    """Describe what a client has left open."""
    left = [
        f"{count} {what}" for count, what in ((findings.components, "documents"), (findings.frames, "frames")) if count
    ]
    return f"left open: {' and '.join(left) or 'a document'}"


async def _receive(announcements: socket.socket | None, within: float) -> None:
    """Wait for the next announcement of an office, but no longer than so many seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within):
            if announcements is None:
                await asyncio.sleep(within)
            else:
                await asyncio.get_running_loop().sock_recv(announcements, 64)
