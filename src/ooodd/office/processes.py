# SPDX-License-Identifier: LGPL-2.1-or-later
"""Offices as child processes, for `ooodd run` without systemd.

Each office leads a session of its own, so that Ctrl-C is sent to the broker only. It is killed when the broker ends,
even if the broker was killed itself (setpriv(1), --pdeathsig). Its profile is a new temporary directory. Its pipe is in
/tmp, where sal puts it.
"""

import asyncio
import contextlib
import errno
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from ooodd.errors import StartError
from ooodd.office.office import ORDERLY_STATUSES, Office
from ooodd.pool.actions import Reason

# The time from SIGTERM to SIGKILL, in seconds, as TimeoutStopSec= of a unit. Offices take 4-30 ms.
_STOP_TIMEOUT = 5.0
# sal's PIPEDEFAULTPATH.
_PIPE_DIRECTORY = Path("/tmp")  # noqa: S108 - sal's choice; Office.connect verifies who listens
_PROFILE_PREFIX = "ooodd-profile-"
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "131072"}


@dataclass(frozen=True)
class _Child:
    office: Office
    process: Process
    directory: Path
    watch: "asyncio.Task[None]"


class ProcessSupervisor:
    """Starts and stops offices as child processes. Implements `Supervisor`."""

    def __init__(self, program: Path) -> None:
        """Take the directory of soffice.bin."""
        self._program = program
        # The profile of which each office gets a copy.
        self._profile = Path(tempfile.gettempdir()) / f"{_PROFILE_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        self._children: dict[int, _Child] = {}
        self.lost: Callable[[int, Office, Reason, str], None] = lambda *_: None

    def unit(self, number: int) -> str:
        """Return the name for messages."""
        return f"worker-{number}"

    def journal(self, number: int) -> str:  # noqa: ARG002
        """Return an empty text: offices write to the same stderr as the broker."""
        return ""

    async def start(self, number: int) -> Office:
        """Make a profile and start an office on it."""
        await self.stop(number)
        name = f"ooodd-{os.getpid()}-{number}-{secrets.token_hex(4)}"
        directory = Path(tempfile.gettempdir()) / name
        try:
            directory.mkdir(mode=0o700)
        except OSError as error:
            raise StartError(f"no temporary directory ({error.strerror})", "make room, or set TMPDIR") from error
        try:
            await self._copy_profile(directory / "profile")
            process = await self._spawn(directory, name)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        program = self._program / "soffice.bin"
        office = Office(self.unit(number), process.pid, os.getuid(), _PIPE_DIRECTORY, name, program, time.time())
        watch = asyncio.create_task(self._watch(number, office, process), name=f"watch worker {number}")
        self._children[number] = _Child(office, process, directory, watch)
        return office

    def ready(self, number: int) -> None:
        """Do nothing: the pipe's directory is /tmp."""

    async def stop(self, number: int) -> None:
        """End the office and all of its process group, and remove its profile and pipe."""
        child = self._children.pop(number, None)
        if child is None:
            return
        child.watch.cancel()
        # Without a TMPDIR, one of the names that a pipe may have is that of the office's directory.
        pipes = {*child.office.pipes(), *_other_pipes(child.process.pid)} - {child.directory}
        _kill(child.process.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_TIMEOUT):
                await child.process.wait()
        except TimeoutError:
            pass
        finally:
            _kill(child.process.pid, signal.SIGKILL)
            await child.process.wait()
            for pipe in pipes:
                pipe.unlink(missing_ok=True)
            shutil.rmtree(child.directory, ignore_errors=True)

    def remove_leftovers(self) -> None:
        """Remove the profiles and pipes that a killed broker has left. A pipe at which somebody listens is in use."""
        prefix = f"OSL_PIPE_{os.getuid()}_"
        for pipe in _PIPE_DIRECTORY.glob(f"{prefix}ooodd-*"):
            if pipe.lstat().st_uid == os.getuid() and _is_dead(pipe):
                shutil.rmtree(Path(tempfile.gettempdir()) / pipe.name.removeprefix(prefix), ignore_errors=True)
                pipe.unlink(missing_ok=True)
        for profile in Path(tempfile.gettempdir()).glob(f"{_PROFILE_PREFIX}*"):
            pid = int("0" + profile.name.removeprefix(_PROFILE_PREFIX).partition("-")[0])
            if profile.lstat().st_uid == os.getuid() and not psutil.pid_exists(pid):
                shutil.rmtree(profile, ignore_errors=True)

    async def running(self) -> dict[int, Office]:
        """Return none: offices are killed when their broker ends."""
        return {}

    async def close(self) -> None:
        """Stop all offices."""
        for number in list(self._children):
            await self.stop(number)
        shutil.rmtree(self._profile, ignore_errors=True)

    async def _copy_profile(self, target: Path) -> None:
        """Copy the profile, which is made for the first office."""
        if not self._profile.exists():
            made = self._profile.with_name(f"{self._profile.name}-{secrets.token_hex(4)}")
            await self._make_profile(made)
            with contextlib.suppress(OSError):  # another office was faster
                made.rename(self._profile)
            shutil.rmtree(made, ignore_errors=True)
        try:
            await asyncio.to_thread(shutil.copytree, self._profile, target)
        except (OSError, shutil.Error) as error:
            raise StartError(f"no profile at {target}: {error}", "make room, or set TMPDIR") from error

    async def _make_profile(self, profile: Path) -> None:
        command = [sys.executable, "-m", "ooodd", "make-profile", str(profile), str(self._program)]
        if not os.access(self._program / "soffice.bin", os.X_OK):
            raise StartError(
                f"there is no office at {self._program}", "install libreoffice-writer, or give --office DIR"
            )
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, start_new_session=True
            )
        except OSError as error:
            raise StartError(f"{command[0]}: {error.strerror}") from error
        try:
            _, complaint = await process.communicate()
        except asyncio.CancelledError:
            # Let it end, which takes milliseconds. If it still ran, it would write into the directory being removed.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _STOP_TIMEOUT)
            _kill(process.pid, signal.SIGKILL)
            raise
        if process.returncode:
            lines = complaint.decode(errors="replace").strip().splitlines() or [f"exit status {process.returncode}"]
            raise StartError(f"no profile could be made: {lines[-1].removeprefix('ooodd: ')}")

    async def _spawn(self, directory: Path, pipe_name: str) -> Process:
        command = [
            *("setpriv", "--pdeathsig", "KILL", "--", str(self._program / "soffice.bin")),
            *("--headless", "--norestore", "--nologo", "--nodefault"),
            f"-env:UserInstallation=file://{directory}/profile",
            f"-env:OSL_SOCKET_PATH={directory}",
            f"--accept=pipe,name={pipe_name};urp",
        ]
        environment = {**os.environ, **_ENVIRONMENT, "TMPDIR": str(directory)}
        for display in ("DISPLAY", "WAYLAND_DISPLAY"):
            environment.pop(display, None)
        try:
            return await asyncio.create_subprocess_exec(
                *command, stdin=DEVNULL, stdout=DEVNULL, env=environment, start_new_session=True
            )
        except OSError as error:
            raise StartError(f"{command[0]}: {error.strerror}", "install util-linux") from error

    async def _watch(self, number: int, office: Office, process: Process) -> None:
        status = await process.wait()
        reason = Reason.ENDED if status in ORDERLY_STATUSES else Reason.CRASHED
        self.lost(number, office, reason, f"exit status {status}" if status >= 0 else f"killed by signal {-status}")


def _other_pipes(pid: int) -> list[Path]:
    """Return all pipes of an office. Beside the one for UNO, it has one for calls of a second soffice."""
    try:
        process = psutil.Process(pid)
        # psutil 6 has renamed it.
        connections = getattr(process, "net_connections", None) or process.connections
        return [
            path
            for c in connections(kind="unix")
            if (path := Path(str(c.laddr))).match(f"{_PIPE_DIRECTORY}/OSL_PIPE_*")
        ]
    except psutil.Error:
        return []


def _is_dead(pipe: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
        return connection.connect_ex(str(pipe)) == errno.ECONNREFUSED


def _kill(pid: int, number: signal.Signals) -> None:
    """Send a signal to the process group that the child leads."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)
