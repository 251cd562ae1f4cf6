# SPDX-License-Identifier: LGPL-2.1-or-later
"""An office's handle: connecting to the very process, and its memory."""

import contextlib
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from offices import an_office, listen, no_descriptor_left, other_process
from ooodd.errors import NoDescriptorError, WorkerLostError
from ooodd.office import cgroup


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: a unix socket's has 108 bytes at the most."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


# Connecting


@pytest.mark.parametrize("number", [0, 1], ids=["with-user", "without-user"])
def test_the_pipe_is_found_under_either_name(directory: Path, number: int) -> None:
    office = an_office(directory)
    with listen(list(office.pipes())[number]), office.connect() as connection:
        assert not connection.getblocking()
        assert connection.getpeername()


def test_no_pipe_means_lost(directory: Path) -> None:
    with pytest.raises(WorkerLostError, match="no pipe of worker-1"):
        an_office(directory).connect()


def test_a_pipe_that_nobody_listens_at_means_lost(directory: Path) -> None:
    office = an_office(directory)
    listen(next(office.pipes())).close()
    with pytest.raises(WorkerLostError, match="Connection refused"):
        office.connect()


def test_another_process_at_the_pipe_is_not_the_office(directory: Path) -> None:
    office = an_office(directory)
    with other_process(next(office.pipes())) as pid, pytest.raises(WorkerLostError, match=f"belongs to process {pid},"):
        office.connect()


def test_the_office_is_known_by_its_process_alone(directory: Path) -> None:
    path = directory / f"OSL_PIPE_{os.getuid()}_uno"
    with other_process(path) as pid, an_office(directory, pid).connect():
        pass


def test_a_symlink_to_a_strangers_socket_is_not_the_office(directory: Path) -> None:
    office = an_office(directory)
    with other_process(directory / "elsewhere"):
        next(office.pipes()).symlink_to(directory / "elsewhere")
        with pytest.raises(WorkerLostError, match="belongs to process"):
            office.connect()


def test_a_dangling_symlink_means_lost(directory: Path) -> None:
    office = an_office(directory)
    next(office.pipes()).symlink_to(directory / "nowhere")
    with pytest.raises(WorkerLostError):
        office.connect()


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, Path.touch, Path.mkdir, lambda path: path.symlink_to(path)],
    ids=["fifo", "file", "directory", "symlink-to-itself"],
)
def test_what_is_no_socket_means_lost(directory: Path, make: Callable[[Path], None]) -> None:
    office = an_office(directory)
    make(next(office.pipes()))
    with pytest.raises(WorkerLostError):
        office.connect()


def test_a_datagram_socket_means_lost(directory: Path) -> None:
    office = an_office(directory)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.bind(str(next(office.pipes())))
        with pytest.raises(WorkerLostError):
            office.connect()


def test_a_full_backlog_means_lost_and_leaks_nothing(directory: Path) -> None:
    office = an_office(directory)
    with listen(next(office.pipes()), backlog=1), contextlib.ExitStack() as pending:
        for _ in range(2):  # listen(2): one more than the backlog
            pending.enter_context(office.connect())
        with pytest.raises(WorkerLostError, match="temporarily unavailable"):
            office.connect()


def test_a_too_long_path_means_lost(directory: Path) -> None:
    with pytest.raises(WorkerLostError):
        an_office(directory / ("x" * 200)).connect()


def test_without_a_descriptor_nothing_is_said_of_the_office(directory: Path) -> None:
    office = an_office(directory)
    with listen(next(office.pipes())):
        with no_descriptor_left(), pytest.raises(NoDescriptorError, match="worker-1: Too many open files"):
            office.connect()
        office.connect().close()


def test_one_descriptor_is_enough_to_connect_by_the_acceptor(directory: Path) -> None:
    office = an_office(directory)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(directory / "clients"))
        listener.listen()
        for _ in range(3):
            office.connect().close()
            last = socket.socket()
            with no_descriptor_left():
                with pytest.raises(NoDescriptorError, match="worker-1: Too many open files"):
                    office.connect()
                last.close()
                connection = office.connect()
                with pytest.raises(OSError, match="Too many open files"):
                    socket.socket()
            connection.close()


# Memory


def test_the_memory_of_an_office_is_what_it_shares_with_no_file(directory: Path) -> None:
    before = an_office(directory).memory()
    ballast = bytearray(os.urandom(1)) * (64 << 20)
    assert an_office(directory).memory() - before > len(ballast) * 0.9


def test_an_office_that_is_gone_has_no_memory(directory: Path) -> None:
    assert an_office(directory, 2**22 + 1).memory() == 0  # PID_MAX_LIMIT


def test_of_a_program_that_the_broker_may_not_see_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError

    office = replace(an_office(tmp_path), program=tmp_path / "soffice.bin", started=1.0)
    assert office.outdated(), "it is gone"
    monkeypatch.setattr(Path, "stat", refuse)
    assert not office.outdated()


def test_an_office_is_outdated_when_its_program_is_newer_or_gone(tmp_path: Path) -> None:
    program = tmp_path / "soffice.bin"
    program.touch()
    written = program.stat().st_ctime
    older, younger = (replace(an_office(tmp_path), program=program, started=written + s) for s in (-3600, 3600))
    assert older.outdated()
    assert not younger.outdated()
    program.unlink()
    assert younger.outdated()
    assert not an_office(tmp_path).outdated(), "nothing is known of its program"


@pytest.mark.parametrize("tree", [0, 1, 2])
def test_a_client_may_have_left_processes_beside_the_office(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: int
) -> None:
    trees = [tmp_path / str(number) for number in range(3)]
    monkeypatch.setattr(cgroup, "_PROCESS_TREES", [str(each) for each in trees])
    office = replace(an_office(tmp_path), control_group="/ooodd.slice")
    assert office.left_processes() == 0, "it has ended"
    (trees[tree] / "ooodd.slice").mkdir(parents=True)
    (trees[tree] / "ooodd.slice" / "cgroup.procs").write_text("17\n")
    assert office.left_processes() == 0
    (trees[tree] / "ooodd.slice" / "cgroup.procs").write_text("17\n18\n19\n")
    assert office.left_processes() == 2
    assert an_office(tmp_path).left_processes() == 0, "not a unit"


@pytest.mark.parametrize(
    ("place", "counters"),
    [
        ("v2/ooodd.slice", "anon 1000\nfile 7\nshmem 200\n"),
        ("v1/ooodd.slice", "cache 9\nrss 8\ntotal_cache 99\ntotal_rss 1000\ntotal_shmem 200\n"),
    ],
)
def test_the_memory_of_a_unit_is_that_of_its_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, counters: str
) -> None:
    trees = tuple((str(tmp_path / tree), names) for tree, (_, names) in zip(("v2", "v1"), cgroup._TREES, strict=True))
    monkeypatch.setattr(cgroup, "_TREES", trees)
    office = replace(an_office(tmp_path), control_group="/ooodd.slice")
    assert office.memory() == 0, "where nothing counts"
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "memory.stat").write_text(counters)
    assert office.memory() == 1200
