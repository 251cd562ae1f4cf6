# SPDX-License-Identifier: LGPL-2.1-or-later
"""Documents and short jobs: how many a second, against as many offices by hand, and against as many unoservers.

A document goes to its office and back as `ooodd convert` does it: in one piece each way, in a process of its own.
"""

import contextlib
import hashlib
import itertools
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil

import offices
from figure import Figure, in_turn
from memory import pss
from ooodd.convert.document import Task
from starts import converse

CORPUS = Path(__file__).resolve().parent.parent / "build" / "corpus"
UNOSERVER = Path(__file__).resolve().parent.parent / "build" / "bench-venv" / "bin"
DOCUMENTS, ROUNDS = 24, 3
# A document that takes longer than this on an office by hand is left out, in seconds.
MOST_SECONDS = 3.0
PLAIN, UNO = "soffice by hand", "unoserver"
WARM, FRESH = "one of many", "the only one, with the start"
ONCE, TEN = "ooodd, max_uses = 1", "ooodd, max_uses = 10"
ONCE_HANDOFF, TEN_HANDOFF = f"{ONCE}, handoff", f"{TEN}, handoff"
POOL = """\
[pool]
workers = {workers}
min_workers = {workers}
max_uses = {uses}
max_uses_jitter = 0
preload = [{preload}]
[queue]
max_clients = 10000
[data_path]
mode = "{mode}"
"""
Job = Callable[[int], None]


def measure() -> Iterator[Figure]:
    """Yield the figures."""
    documents = _documents()
    cpu = _cpu(documents)
    yield cpu
    # With busy cores there can't be more than that of the rate of offices that stay.
    most = sum(cpu.rounds[WARM]) / sum(cpu.rounds[FRESH])
    for lanes, workers, goal in ((1, 1, None), (1, 2, 0.80), (2, 2, 0.95 * most), (4, 4, 0.95 * most)):
        yield _conversions(documents, lanes, workers, goal)
    for length in (0.01, 0.1, 0.3, 1.0):
        yield _short_jobs(length)
    yield _memory(documents)


def _documents() -> list[Path]:
    """Return documents of all kinds that an office by hand converts in time."""
    with offices.plain(1, 20) as (office,):

        def is_fit(path: Path) -> bool:
            begun = time.perf_counter()
            return convert(office.port, path, MOST_SECONDS) and time.perf_counter() - begun < MOST_SECONDS

        everything = sorted(CORPUS.iterdir(), key=lambda path: hashlib.sha256(path.name.encode()).digest())
        return list(itertools.islice(filter(is_fit, everything), DOCUMENTS))


def convert(port: int, path: Path, limit: float = 120.0) -> bool:
    """Convert a document to PDF in a process of its own. Return whether that was done."""
    task = Task(f"socket,host=127.0.0.1,port={port},tcpNoDelay=1", str(path), f"/tmp/bench-{os.getpid()}.pdf", "pdf")
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            [sys.executable, "-m", "ooodd.convert.document"],
            input=task.as_json().encode(),
            capture_output=True,
            timeout=limit,
            check=False,
        )
        return done.returncode == 0
    return False


def rate(jobs: int, lanes: int, job: Callable[[int, int], Any]) -> float:
    """Do jobs at once, as many as there are lanes; `job` gets its number and its lane. Return how many a second."""
    context = multiprocessing.get_context("fork")
    following = context.Value("i", 0)

    def work(lane: int) -> None:
        while True:
            with following.get_lock():
                number = following.value
                following.value += 1
            if number >= jobs:
                return
            job(number, lane)

    begun = time.perf_counter()
    processes = [context.Process(target=work, args=(lane,)) for lane in range(lanes)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return jobs / (time.perf_counter() - begun)


@contextmanager
def unoservers(count: int) -> Iterator[list[int]]:
    """Run unoservers, each with its own office; yield their ports."""
    with ExitStack() as stack:
        ports = []
        for number in range(count):
            port = 2500 + 2 * number
            command = [str(UNOSERVER / "unoserver"), "--port", str(port), "--uno-port", str(port + 1)]
            process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(_end_tree, process)
            ports.append(port)
        for port in ports:
            while not offices.answers(port) or not offices.answers(port + 1):
                time.sleep(0.05)
        yield ports


def _end_tree(process: psutil.Popen) -> None:
    for each in [*process.children(recursive=True), process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


def _by_unoserver(port: int, path: Path) -> None:
    """Convert by unoserver's own client, in a process of its own."""
    command = [str(UNOSERVER / "unoconvert"), "--port", str(port), "--convert-to", "pdf"]
    subprocess.run([*command, str(path), f"/tmp/bench-{os.getpid()}.pdf"], capture_output=True, check=False)


def _conversions(documents: Sequence[Path], lanes: int, workers: int, goal: float | None) -> Figure:
    pool = offices.Pool()
    with offices.plain(workers, 20) as plain, unoservers(workers) as servers:

        def of_pool(uses: int, mode: str) -> float:
            pool.configure(POOL.format(workers=workers, uses=uses, preload="", mode=mode))
            return rate(len(documents), lanes, lambda number, _: convert(offices.POOL_PORT, documents[number]))

        paths: dict[str, Callable[[], float]] = {
            PLAIN: lambda: rate(
                len(documents), lanes, lambda number, lane: convert(plain[lane].port, documents[number])
            ),
            UNO: lambda: rate(
                len(documents), lanes, lambda number, lane: _by_unoserver(servers[lane], documents[number])
            ),
            TEN: partial(of_pool, 10, "forward"),
            TEN_HANDOFF: partial(of_pool, 10, "handoff"),
            ONCE: partial(of_pool, 1, "forward"),
            ONCE_HANDOFF: partial(of_pool, 1, "handoff"),
        }
        fresh_goal = round(goal, 2) if goal else None
        goals = {TEN: 0.93, TEN_HANDOFF: 0.93, ONCE: fresh_goal, ONCE_HANDOFF: fresh_goal}
        return Figure(
            f"conversions-{lanes}-{workers}",
            f"{len(documents)} documents to PDF: clients at once: {lanes}, offices: {workers}",
            "1/s",
            in_turn(paths, ROUNDS),
            reference=PLAIN,
            goals={path: least for path, least in goals.items() if least},
            more_is_better=True,
        )


def _cpu(documents: Sequence[Path]) -> Figure:
    """What a document costs an office, and what a start and a first document cost more."""
    warm, fresh = [], []
    with offices.plain(1, 20) as (office,):
        for path in documents:
            before = _seconds(office.process)
            convert(office.port, path)
            warm.append(_seconds(office.process) - before)
    for path in documents:
        with offices.plain(1, 20) as (office,):
            converse(office.port)
            convert(office.port, path)
            fresh.append(_seconds(office.process))
    return Figure(
        "cpu",
        "CPU of an office for a document",
        "s",
        {WARM: warm, FRESH: fresh},
        reference=WARM,
        note=f"In the mean {sum(warm) / len(warm):.3f} s and {sum(fresh) / len(fresh):.3f} s: with busy cores, "
        f"max_uses = 1 reaches at most {sum(warm) / sum(fresh):.2f} of the rate.",
    )


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _short_jobs(length: float) -> Figure:
    """Sessions in which a core is busy for so long. The client does the work of the office, so that it is the same."""
    pool, lanes, sessions = offices.Pool(), 2, max(8, int(6 / (length + 0.1)))

    def of_pool(uses: int) -> float:
        pool.configure(POOL.format(workers=4, uses=uses, preload="", mode="forward"))
        return rate(sessions, lanes, lambda _, __: converse(offices.POOL_PORT, partial(_spin, length)))

    return Figure(
        f"sessions-{length:g}",
        f"Sessions of {length:g} s of work, two clients at once",
        "1/s",
        in_turn({TEN: partial(of_pool, 10), ONCE: partial(of_pool, 1)}, ROUNDS),
        reference=TEN,
        more_is_better=True,
    )


def _spin(seconds: float) -> None:
    """Use a core for so long."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def _memory(documents: Sequence[Path]) -> Figure:
    """PSS of an office after a hundred documents."""
    rounds: dict[str, list[float]] = {"a worker": [], "a stock soffice": []}
    pool = offices.Pool()
    pool.configure(POOL.format(workers=1, uses=1000000, preload="", mode="forward"))
    with offices.plain(1, 20, stock=True) as (office,):
        for number in range(100):
            convert(offices.POOL_PORT, documents[number % len(documents)])
            convert(office.port, documents[number % len(documents)])
        rounds["a stock soffice"].append(max(pss(each.pid) for each in office.process.children(recursive=True)))
    rounds["a worker"].append(pss(pool.status()["workers"][0]["pid"]))
    return Figure("memory", "PSS of an office after 100 documents", "MiB", rounds, reference="a stock soffice")
