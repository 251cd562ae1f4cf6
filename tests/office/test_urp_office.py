# SPDX-License-Identifier: LGPL-2.1-or-later
"""Probe, Refusal and Calls with a real office and real clients: pyuno, C++ and Java."""

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from foreground import HANG_LIMIT, OFFICE, PYTHON, pipes_of
from ooodd.config import PRELOADABLE
from ooodd.office.profile import make_profile
from ooodd.uno.conversation import Conversation, Findings, new_preload, new_probe
from ooodd.uno.refusal import Refusal
from ooodd.uno.urp import Calls

CLIENTS = Path(__file__).resolve().parents[1] / "clients"
Result = TypeVar("Result")
CLEAN = Findings(0, 0, current=False)
# An office that does not answer for this time is hung. A healthy one answers in a millisecond. In seconds.
HUNG_AFTER = 2.0
TEXT = "All 4 workers are busy for 30 s: später, please ✓"
PRELUDE = """
import os, signal, sys
from pathlib import Path
from client import FileInput, connect, create, properties
context = connect("127.0.0.1", int(sys.argv[1]))
desktop = create(context, "com.sun.star.frame.Desktop")
def new(kind, hidden):
    return desktop.loadComponentFromURL(f"private:factory/{kind}", "_blank", 0, properties(Hidden=hidden))
"""


class RunningOffice:
    """An office with a new profile, and a relay in front of it that sees every byte as the broker does."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="uo-"))
        self.name = self.directory.name
        profile = self.directory / "profile"
        make_profile(profile, OFFICE)
        self.process = subprocess.Popen(
            [
                *(OFFICE / "soffice.bin", "--headless", "--norestore", "--nologo", "--nodefault"),
                *(f"-env:UserInstallation=file://{profile}", f"--accept=pipe,name={self.name};urp"),
            ],
            env={**os.environ, "TMPDIR": str(self.directory)},
            stdout=subprocess.DEVNULL,
        )
        self.pipes: set[Path] = set()
        self.wait_ready()
        self.relay = Relay(self.connect)

    def connect(self) -> socket.socket:
        self.pipes |= pipes_of(self.process.pid)
        (pipe,) = [pipe for pipe in self.pipes if pipe.name.endswith(self.name)]
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(pipe))
        except OSError:
            connection.close()
            raise
        return connection

    def wait_ready(self) -> None:
        deadline = time.monotonic() + HANG_LIMIT
        while True:
            try:
                return self.connect().close()
            except (ValueError, OSError):
                assert self.process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def probe(self, within: float = HANG_LIMIT) -> Findings:
        """Probe the office. Raise TimeoutError if a part of the answer takes longer than `within`."""
        return self._ask(new_probe(), within)

    def has_loaded(self, library: str) -> bool:
        return library in Path(f"/proc/{self.process.pid}/maps").read_text()

    def preload(self, *kinds: str) -> list[str]:
        """Have the office preload these kinds, and return those that it has not."""
        return self._ask(new_preload(kinds), HANG_LIMIT)

    def _ask(self, conversation: Conversation[Result], within: float) -> Result:
        with self.connect() as connection:
            connection.settimeout(within)
            while conversation.result is None:
                data = connection.recv(1 << 16)
                assert data, "the office closed the connection"
                connection.sendall(conversation.receive(data))
        return conversation.result

    def probe_until_timeout(self, within: float) -> None:
        """Probe the office until it takes longer than `within`."""
        while True:
            self.probe(within)

    def run(self, script: str) -> Calls:
        """Run a pyuno client through the relay to its end, and return the count of its calls."""
        with self.client(script) as process:
            output, _ = process.communicate(timeout=HANG_LIMIT)
            assert process.returncode == 0, output
        return self.relay.last_calls()

    @contextlib.contextmanager
    def client(self, script: str) -> Iterator["subprocess.Popen[str]"]:
        """Run a pyuno client, and kill it at the end of the with statement."""
        process = subprocess.Popen(
            [PYTHON, "-c", PRELUDE + script, str(self.relay.port)],
            env={**os.environ, "PYTHONPATH": str(CLIENTS)},
            stdout=subprocess.PIPE,
            text=True,
        )
        limit = threading.Timer(HANG_LIMIT, process.kill)
        limit.start()
        try:
            yield process
        finally:
            limit.cancel()
            process.kill()
            process.communicate()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.relay.close()
        for pipe in self.pipes:
            pipe.unlink(missing_ok=True)
        shutil.rmtree(self.directory, ignore_errors=True)


class Relay:
    """A port that forwards to the office, one client after the other, and counts their calls."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.calls = Calls()
        self.bytes_to_client = 0
        self._ended = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def last_calls(self) -> Calls:
        """Wait until a client's session has ended, and return the count of its calls."""
        assert self._ended.acquire(timeout=HANG_LIMIT)
        return self.calls

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.calls = Calls()
            with client, self._connect() as office, contextlib.suppress(OSError):
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._forward(client, office)
            self._ended.release()

    def _forward(self, client: socket.socket, office: socket.socket) -> None:
        while True:
            readable, _, _ = select.select([client, office], [], [])
            if office in readable:
                data = office.recv(1 << 18)
                self.calls.to_client(memoryview(data))
                client.sendall(data)
            else:
                data = client.recv(1 << 18)
                self.calls.to_office(memoryview(data))
                office.sendall(data)
            if not data:
                return


@pytest.fixture
def office() -> Iterator[RunningOffice]:
    running = RunningOffice()
    try:
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("compiled")
    subprocess.run([PYTHON, CLIENTS / "build.py", directory], check=True)
    return directory


def test_an_office_that_was_never_used_is_clean(office: RunningOffice) -> None:
    assert office.probe() == CLEAN


def test_preloading_loads_the_libraries_and_leaves_nothing_open(office: RunningOffice) -> None:
    for kind, library in (("writer", "libswlo.so"), ("calc", "libsclo.so"), ("impress", "libsdlo.so")):
        assert not office.has_loaded(library)
        assert office.preload(kind) == []
        assert office.has_loaded(library)
        assert office.probe().clean
    assert office.preload(*PRELOADABLE) == []
    assert office.probe().clean


def test_a_probe_leaves_nothing_in_the_office(office: RunningOffice) -> None:
    office.probe()
    process = psutil.Process(office.process.pid)
    before = process.num_fds()
    for _ in range(200):
        assert office.probe() == CLEAN
    deadline = time.monotonic() + HANG_LIMIT
    while process.num_fds() > before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("end", ["", "os._exit(0)"])
def test_a_client_that_opens_no_document_leaves_nothing(office: RunningOffice, end: str) -> None:
    assert not office.run(f"desktop.getCurrentComponent(); desktop.getFrames().getCount()\n{end}").under_way
    assert office.probe() == CLEAN


@pytest.mark.parametrize("kind", ["swriter", "scalc", "simpress"])
def test_open_documents_are_found_until_they_are_closed(office: RunningOffice, kind: str) -> None:
    for count in (1, 2):
        office.run(f"new({kind!r}, True); os._exit(0)")
        assert office.probe() == Findings(count, count, current=False)
    office.run(f"new({kind!r}, False); os._exit(0)")
    assert office.probe() == Findings(3, 3, current=True)
    close = "for frame in list(desktop.getFrames()): frame.close(True)\nos._exit(0)"
    assert not office.run(close).under_way
    assert office.probe() == CLEAN


def test_the_count_of_documents_stops_at_eight(office: RunningOffice) -> None:
    office.run('for _ in range(10): new("swriter", True)\nos._exit(0)')
    assert office.probe() == Findings(8, 10, current=False)


def test_a_frame_without_a_document_is_found(office: RunningOffice) -> None:
    office.run('desktop.getFrames().append(create(context, "com.sun.star.frame.Frame")); os._exit(0)')
    assert office.probe() == Findings(0, 1, current=False)


def test_a_hung_office_answers_no_probe(office: RunningOffice) -> None:
    command: list[str | Path] = [PYTHON, CLIENTS / "crash.py", "--port", str(office.relay.port), "basic-loop"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert [json.loads(client.stdout.readline())["step"] for _ in range(2)] == ["connected", "faulting"]
        # The office may get the call a moment after the step.
        with pytest.raises(TimeoutError):
            office.probe_until_timeout(HUNG_AFTER)
        client.kill()
    assert office.relay.last_calls().under_way


def run_conversion(command: list[str | Path], office: RunningOffice, target: Path) -> Calls:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=HANG_LIMIT)
    assert target.read_bytes().startswith(b"%PDF")
    return office.relay.last_calls()


def test_calls_are_counted_in_a_conversion_by_stream(office: RunningOffice, tmp_path: Path) -> None:
    """The client calls the office, and the office calls the client for every part of both streams."""
    source, target = tmp_path / "source.txt", tmp_path / "target.pdf"
    source.write_text("A line of the text.\n")
    command: list[str | Path] = [
        PYTHON,
        CLIENTS / "convert.py",
        "--port",
        str(office.relay.port),
        "--stream",
        source,
        target,
    ]
    assert not run_conversion(command, office, target).under_way
    assert office.probe() == CLEAN


@pytest.mark.parametrize("kind", ["cpp", "java"])
def test_calls_of_other_libraries_are_counted(office: RunningOffice, compiled: Path, kind: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source.txt", tmp_path / "target.pdf"
    source.write_text("A line of the text.\n")
    command: list[str | Path] = [compiled / f"{kind}-client", "127.0.0.1", str(office.relay.port), source, target]
    assert not run_conversion(command, office, target).under_way
    assert office.probe() == CLEAN


def test_a_client_killed_while_it_loads_leaves_a_call_under_way(office: RunningOffice) -> None:
    script = """
class NeverReturns(FileInput):
    def readBytes(self, data, count):
        print("reading", flush=True)
        signal.pause()
desktop.loadComponentFromURL("private:stream", "_blank", 0, properties(InputStream=NeverReturns(Path("/dev/null"))))
"""
    with office.client(script) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "reading\n"
        assert office.relay.calls.under_way
        client.kill()
        assert office.relay.last_calls().under_way


def test_a_client_killed_between_calls_leaves_no_call_under_way(office: RunningOffice) -> None:
    script = 'new("swriter", True); print("loaded", flush=True); signal.pause()'
    with office.client(script) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "loaded\n"
        client.kill()
        assert not office.relay.last_calls().under_way
    assert office.probe() == Findings(1, 1, current=False)


def refuse(listener: socket.socket) -> None:
    """Refuse one client."""
    connection, _ = listener.accept()
    refusal = Refusal(TEXT)
    with connection:
        connection.settimeout(HANG_LIMIT)
        while not refusal.done:
            data = connection.recv(1 << 16)
            assert data, "the client closed the connection"
            connection.sendall(refusal.receive(data))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):  # the client may not have read the refusal yet, and a close would reset that
            pass


@pytest.mark.parametrize("kind", ["pyuno", "cpp", "java"])
def test_a_refused_client_gets_the_reason(compiled: Path, kind: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        arguments = [CLIENTS / "convert.py", tmp_path / "target.pdf"]
        command: list[str | Path] = [compiled / f"{kind}-client", "127.0.0.1", port, *arguments]
        if kind == "pyuno":
            command = [PYTHON, CLIENTS / "convert.py", "--port", port, *arguments]
        thread = threading.Thread(target=refuse, args=(listener,))
        thread.start()
        client = subprocess.run(command, capture_output=True, text=True, timeout=HANG_LIMIT, check=False)
        thread.join()
    assert client.returncode == 1
    if kind == "pyuno":
        error = json.loads(client.stdout)
        assert (error["type"], error["message"]) == ("com.sun.star.uno.RuntimeException", TEXT)
    else:
        assert TEXT in client.stderr
        assert ("com.sun.star.uno.RuntimeException" in client.stderr) is (kind == "java")
