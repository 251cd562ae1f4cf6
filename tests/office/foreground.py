# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ooodd run` as a process of its own, and a pyuno client as another, for the tests beside this file."""

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

# The distribution's: the one that has pyuno.
PYTHON = "/usr/bin/python3"
SOURCE = Path(ooodd.__file__).parents[1]
OFFICE = Path(os.environ.get("OOODD_OFFICE", "/usr/lib/libreoffice/program"))
# Only catches what hangs, in seconds.
HANG_LIMIT = 120.0

# Makes a document, holds it until a line comes, and reads it again.
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
    """A running `ooodd run` with what it says. TMPDIR is a directory of its own, to see what is left there."""

    def __init__(
        self, config: str, office: Path = OFFICE, user: int | None = None, runtime: Path | None = None
    ) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="of-"))
        self.temporary = self.home / "tmp"
        self.temporary.mkdir()
        # A copy, for the user may be one that can't read the checkout.
        shutil.copytree(SOURCE / "ooodd", self.home / "source" / "ooodd")
        self.runtime = runtime or self.home / "run"
        (self.home / "ooodd.toml").write_text(config)
        if user is not None:
            for path in (self.home, self.temporary):
                os.chown(path, user, user)
        self.lines: list[str] = []
        self.port = 0
        # Every pipe that an office of ours was seen to have.
        self.pipes: set[Path] = set()
        self._news: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.process = subprocess.Popen(
            [
                *(PYTHON, "-m", "ooodd", "run", "--config", self.home / "ooodd.toml", "--listen", "127.0.0.1:0"),
                *("--office", office, "--runtime-directory", self.runtime),
            ],
            env={**self._environment(), "TMPDIR": str(self.temporary), "HOME": str(self.home)},
            cwd=self.home,
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
        shutil.rmtree(self.home, ignore_errors=True)
        for pipe in self.pipes:
            pipe.unlink(missing_ok=True)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the match of the next line that matches; whatever else is said goes to `lines` as well."""
        deadline = time.monotonic() + HANG_LIMIT
        while True:
            line = self._news.get(timeout=max(0.0, deadline - time.monotonic()))
            assert line is not None, f"ended without {pattern}: {self.lines}"
            if found := re.search(pattern, line):
                return found

    def wait_ready(self, count: int = 1) -> list[int]:
        """Wait until so many workers have become ready; return their offices' process ids."""
        offices = [int(self.wait_for(r"worker \d+ is ready after .* s, pid (\d+)")[1]) for _ in range(count)]
        for office in offices:
            self.pipes |= pipes_of(office)
        return offices

    def offices(self) -> list[psutil.Process]:
        """Return every process below ours."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(HANG_LIMIT)

    def command(self, *arguments: str) -> str:
        """Run another command of ooodd on this one and return its output."""
        return subprocess.run(
            [PYTHON, "-m", "ooodd", *arguments, "--runtime-directory", self.runtime],
            env=self._environment(),
            stdout=subprocess.PIPE,
            text=True,
            timeout=HANG_LIMIT,
            check=True,
        ).stdout

    @contextlib.contextmanager
    def client(self) -> Iterator["Client"]:
        """Run a pyuno client."""
        with Client(self.port) as client:
            yield client

    def _environment(self) -> dict[str, str]:
        ours = ("LISTEN_FDS", "NOTIFY_SOCKET", "RUNTIME_DIRECTORY")
        return {
            **{name: value for name, value in os.environ.items() if name not in ours},
            "PYTHONPATH": str(self.home / "source"),
        }

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            self._news.put(line)
        self._news.put(None)


class Client:
    """A pyuno client that has connected, or waits for an office."""

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

    def made(self) -> None:
        """Wait until its document is made."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        if self.process.stdout.readline() != "made\n":
            raise AssertionError(self.process.stderr.read())

    def finish(self) -> str:
        """Have it read its document again and end; return what it read."""
        out, complaint = self.process.communicate("\n", timeout=HANG_LIMIT)
        assert self.process.returncode == 0, complaint
        return out.strip()

    def fails(self) -> str:
        """Have it go on; return what it complains of."""
        _, complaint = self.process.communicate("\n", timeout=HANG_LIMIT)
        assert self.process.returncode != 0
        return complaint


def pipes_of(office: int) -> set[Path]:
    """Return the unix sockets in the file system that a process has."""
    process = psutil.Process(office)
    connections = getattr(process, "net_connections", None) or process.connections  # psutil 6 renamed it
    return {Path(str(it.laddr)) for it in connections(kind="unix") if "OSL_PIPE" in str(it.laddr)}


def all_gone(processes: list[psutil.Process]) -> bool:
    """Wait for the end of processes that are nobody's children any more."""
    _, alive = psutil.wait_procs(processes, timeout=HANG_LIMIT)
    return not alive


def fake_office(directory: Path, script: str) -> Path:
    """Make an office's program directory whose soffice.bin is a shell script."""
    directory.mkdir()
    directory.chmod(0o755)
    (directory / "versionrc").symlink_to(OFFICE / "versionrc")
    (directory / "soffice.bin").write_text(f"#!/bin/sh\n{script}\n")
    (directory / "soffice.bin").chmod(0o755)
    return directory
