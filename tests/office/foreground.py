# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ooodd run` in a process, and a pyuno client in another, for the tests in this directory."""

import contextlib
import os
import queue
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

import ooodd

# The Python of the distribution, which has pyuno.
PYTHON = "/usr/bin/python3"
SOURCE = Path(ooodd.__file__).parents[1]
OFFICE = Path(os.environ.get("OOODD_OFFICE", "/usr/lib/libreoffice/program"))
# A wait that takes longer hangs. In seconds.
HANG_LIMIT = 120.0

# Makes a document, waits for a line of standard input, and reads the document again.
_CLIENT = """
import os, sys, uno
from com.sun.star.beans import PropertyValue
local = uno.getComponentContext()
resolver = local.ServiceManager.createInstanceWithContext("com.sun.star.bridge.UnoUrlResolver", local)
context = resolver.resolve(f"uno:socket,host=127.0.0.1,port={sys.argv[1]};urp;StarOffice.ComponentContext")
desktop = context.ServiceManager.createInstanceWithContext("com.sun.star.frame.Desktop", context)
before = desktop.getCurrentComponent()
document = desktop.loadComponentFromURL("private:factory/swriter", "_blank", 0, (PropertyValue("Hidden", 0, True, 0),))
document.Text.String = "made through ooodd"
print("made", flush=True)
sys.stdin.readline()
print(document.Text.String, before, flush=True)
document.close(True)
os._exit(0)
"""


class Foreground:
    """A running `ooodd run` with its log. It has a TMPDIR of its own, so a test can check what is left there.

    With `default_tmp` it has none, as most people's.
    """

    def __init__(
        self,
        config: str,
        office: Path = OFFICE,
        user: int | None = None,
        runtime: Path | None = None,
        *,
        default_tmp: bool = False,
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="of-"))
        self.temporary = self.directory / "tmp"
        self.temporary.mkdir()
        # A copy, because `user` may not be able to read the checkout.
        shutil.copytree(SOURCE / "ooodd", self.directory / "source" / "ooodd")
        self.runtime = runtime or self.directory / "run"
        (self.directory / "ooodd.toml").write_text(config)
        if user is not None:
            for path in (self.directory, self.temporary):
                os.chown(path, user, user)
        self.lines: list[str] = []
        self.port = 0
        # The pipes of all offices that became ready.
        self.pipes: set[Path] = set()
        self._new_lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.process = subprocess.Popen(
            [
                *(PYTHON, "-m", "ooodd", "run", "--config", self.directory / "ooodd.toml", "--listen", "127.0.0.1:0"),
                *("--office", office, "--runtime-directory", self.runtime),
            ],
            env={**self._environment(), "HOME": str(self.directory)}
            | ({} if default_tmp else {"TMPDIR": str(self.temporary)}),
            cwd=self.directory,
            stderr=subprocess.PIPE,
            text=True,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        found = self.wait_for(r"serves 127\.0\.0\.1:(\d+) with")
        self.port = int(found[1])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        shutil.rmtree(self.directory, ignore_errors=True)
        for pipe in self.pipes:
            pipe.unlink(missing_ok=True)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the match of the next line that matches. All lines also go to `lines`."""
        deadline = time.monotonic() + HANG_LIMIT
        while True:
            line = self._new_lines.get(timeout=max(0.0, deadline - time.monotonic()))
            assert line is not None, f"ended without {pattern}: {self.lines}"
            if found := re.search(pattern, line):
                return found

    def wait_ready(self, count: int = 1) -> list[int]:
        """Wait until this many workers have become ready. Return the pids of their offices."""
        offices = [int(self.wait_for(r"worker \d+ is ready after .* s, pid (\d+)")[1]) for _ in range(count)]
        for office in offices:
            self.pipes |= pipes_of(office)
        return offices

    def offices(self) -> list[psutil.Process]:
        """Return all descendants of the process of `ooodd run`."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(HANG_LIMIT)

    def command(self, *arguments: str, status: int = 0) -> str:
        """Run another command of ooodd with the same control socket, check its exit status, and return its output."""
        done = subprocess.run(
            [PYTHON, "-m", "ooodd", *arguments, "--runtime-directory", self.runtime],
            env=self._environment(),
            stdout=subprocess.PIPE,
            text=True,
            timeout=HANG_LIMIT,
            check=False,
        )
        assert done.returncode == status
        return done.stdout

    @contextlib.contextmanager
    def client(self) -> Iterator["Client"]:
        """Run a pyuno client."""
        with Client(self.port) as client:
            yield client

    def _environment(self) -> dict[str, str]:
        left_out = ("LISTEN_FDS", "NOTIFY_SOCKET", "RUNTIME_DIRECTORY", "TMPDIR")
        return {
            **{name: value for name, value in os.environ.items() if name not in left_out},
            "PYTHONPATH": str(self.directory / "source"),
        }

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            self._new_lines.put(line)
        self._new_lines.put(None)


class Client:
    """A pyuno client. It has an office, or waits for one."""

    def __init__(self, port: int) -> None:
        self.process = subprocess.Popen(
            [PYTHON, "-c", _CLIENT, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._limit = threading.Timer(HANG_LIMIT, self.process.kill)
        self._limit.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._limit.cancel()
        self.process.kill()
        self.process.communicate()

    def wait_made(self) -> None:
        """Wait until the client has made its document."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        if self.process.stdout.readline() != "made\n":
            raise AssertionError(self.process.stderr.read())

    def finish(self) -> str:
        """Let the client read its document again and end. Return what it read."""
        output, errors = self.process.communicate("\n", timeout=HANG_LIMIT)
        assert self.process.returncode == 0, errors
        return output.strip()

    def finish_failing(self) -> str:
        """Let the client go on, check that it fails, and return its standard error."""
        _, errors = self.process.communicate("\n", timeout=HANG_LIMIT)
        assert self.process.returncode != 0
        return errors


def pipes_of(office: int) -> set[Path]:
    """Return the pipes of an office, which are unix sockets in the file system."""
    process = psutil.Process(office)
    connections = getattr(process, "net_connections", None) or process.connections  # psutil 6 renamed it
    return {Path(str(it.laddr)) for it in connections(kind="unix") if "OSL_PIPE" in str(it.laddr)}


def all_gone(processes: list[psutil.Process]) -> bool:
    """Wait until all processes have ended, which need not be children of this one."""
    _, alive = psutil.wait_procs(processes, timeout=HANG_LIMIT)
    return not alive


def fake_office(directory: Path, script: str) -> Path:
    """Make a program directory of an office with a shell script as soffice.bin."""
    directory.mkdir()
    directory.chmod(0o755)
    (directory / "versionrc").symlink_to(OFFICE / "versionrc")
    (directory / "soffice.bin").write_text(f"#!/bin/sh\n{script}\n")
    (directory / "soffice.bin").chmod(0o755)
    return directory
