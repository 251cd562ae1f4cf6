# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs the conversions, as many at once as the pool serves, and tells how they went."""

import asyncio
import contextlib
import importlib.util
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from ooodd.convert.document import Task
from ooodd.convert.plan import STANDARD, Job
from ooodd.errors import UsageError

_BAR = 30
# Signals that end the command, beside Ctrl-C.
_ENDING = (signal.SIGTERM, signal.SIGHUP)
# How long a document's process may take to end after SIGTERM, in seconds. It takes milliseconds.
_END_TIMEOUT = 2.0


@dataclass(frozen=True)
class Settings:
    """What is the same for all documents."""

    address: str
    extension: str
    filter: str = ""
    filter_options: str = ""
    password: str = ""
    # How many at once, and for how long each may take in seconds; None for ever.
    lanes: int = 1
    timeout: float | None = None


@dataclass
class Progress:
    """A bar on a terminal, and a line for each failure."""

    count: int
    stream: TextIO
    done: int = 0
    failed: list[str] = field(default_factory=list)

    def show(self) -> None:
        """Draw the bar, if there is a terminal."""
        if self.stream.isatty() and self.count > 1:
            filled = _BAR * self.done // self.count
            failures = f", {len(self.failed)} failed" if self.failed else ""
            bar = "#" * filled + "." * (_BAR - filled)
            self.stream.write(f"\r[{bar}] {self.done}/{self.count}{failures} ")
            self.stream.flush()

    def end(self, job: Job, why: str) -> None:
        """Count a document; `why` it failed, or nothing."""
        self.done += 1
        if why:
            self.failed.append(job.source)
            self.clear()
            self.stream.write(f"ooodd convert: {job.source}: {why}\n")
        self.show()

    def clear(self) -> None:
        """Remove the bar."""
        if self.stream.isatty() and self.count > 1:
            self.stream.write("\r\033[K")
        self.stream.flush()


def convert(jobs: Sequence[Job], settings: Settings) -> int:
    """Convert all, and return the exit status: 0, or 1 if any failed. `UsageError` if python3-uno is missing.

    SIGTERM and SIGHUP end what is under way, and then this process as they do by default.
    """
    if importlib.util.find_spec("uno") is None:
        raise UsageError("this needs python3-uno", "apt-get install python3-uno")
    for directory in {Path(job.target).parent for job in jobs if job.target != STANDARD}:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{directory}: {error.strerror}", "give another -o") from error
    progress = Progress(len(jobs), sys.stderr)
    received: list[signal.Signals] = []
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(_until_signal(_convert_all(jobs, settings, progress), received))
    progress.clear()
    if received or progress.done < len(jobs):
        sys.stderr.write(f"ooodd convert: interrupted; {progress.done} of {len(jobs)} documents are done\n")
        sys.stderr.flush()
        for number in received[:1]:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return 130
    return 1 if progress.failed else 0


async def _until_signal(work: Coroutine[None, None, None], received: list[signal.Signals]) -> None:
    """Do the work. A signal that would end this process cancels it, and is put into `received`."""
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(work)

    def end(number: signal.Signals) -> None:
        received.append(number)
        if len(received) == 1:  # a second one must not break off what the first has begun
            task.cancel()

    for number in _ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup(1) has it
            loop.add_signal_handler(number, end, number)
    await task


async def _convert_all(jobs: Sequence[Job], settings: Settings, progress: Progress) -> None:
    waiting = list(reversed(jobs))
    progress.show()

    async def lane() -> None:
        while waiting:
            job = waiting.pop()
            progress.end(job, await _convert_one(job, settings))

    async with asyncio.TaskGroup() as lanes:
        for _ in range(min(settings.lanes, len(jobs))):
            lanes.create_task(lane())


async def _convert_one(job: Job, settings: Settings) -> str:
    """Convert a document in a process of its own. Return why that failed, or nothing."""
    with contextlib.ExitStack() as stack:
        passed: list[int] = []
        task = Task(
            address=settings.address,
            source=_path(job.source, sys.stdin, passed),
            target=_path(job.target, sys.stdout, passed),
            extension=settings.extension,
            filter=settings.filter,
            filter_options=settings.filter_options,
            password=settings.password,
        )
        for descriptor in passed:
            stack.callback(os.close, descriptor)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ooodd.convert.document"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=passed,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(settings.timeout):
                out, errors = await process.communicate(f"{task.as_json()}\n".encode())
        except TimeoutError:
            return f"it took longer than {settings.timeout:g} s"
        finally:
            await _end(process)
    if process.returncode == 0:
        return ""
    lines = (out or errors).decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"its process ended with status {process.returncode}"


async def _end(process: Process) -> None:
    """End a process with all of its group, unless it has ended. SIGTERM lets it remove a file that it is writing."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END_TIMEOUT):
                    await process.wait()


def _path(name: str, standard: TextIO, passed: list[int]) -> str:
    """Return the absolute path of a file. For "-" pass on the standard stream, and return the path of that."""
    if name != STANDARD:
        return str(Path(name).absolute())
    passed.append(os.dup(standard.fileno()))
    return f"/dev/fd/{passed[-1]}"
