# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `[pool] preload` brings the first document of an office, and what it costs: one client at a time."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import offices
from conversions import CORPUS, MOST_SECONDS, POOL, convert
from figure import Figure, in_turn

KINDS = {"writer": "docx", "calc": "xlsx", "impress": "pptx"}
EVERYTHING = ", ".join(f'"{kind}"' for kind in KINDS)
DOCUMENTS, ROUNDS = 3, 5


def measure() -> Iterator[Figure]:
    """Yield the figures."""
    for kind, suffix in KINDS.items():
        yield from _of_kind(kind, _documents(suffix))


def _documents(suffix: str) -> list[Path]:
    """Return some documents that an office converts in time; the small ones, of which most time is for the code."""
    found: list[Path] = []
    with offices.plain(1, 20) as (office,):
        for path in sorted(CORPUS.glob(f"*.{suffix}"), key=lambda path: path.stat().st_size):
            if len(found) < DOCUMENTS and convert(office.port, path, MOST_SECONDS):
                found.append(path)
    return found


def _of_kind(kind: str, documents: Sequence[Path]) -> Iterator[Figure]:
    pool, starts = offices.Pool(), {"none": "", "its own kind": f'"{kind}"', "all three": EVERYTHING}
    cpu: dict[str, list[float]] = {name: [] for name in starts}

    def of_pool(name: str) -> float:
        pool.configure(POOL.format(workers=1, uses=1, preload=starts[name], mode="forward"))
        seconds = started = 0.0
        for document in documents:
            pool.wait(lambda: "idle" in pool.states())
            started += offices.cpu_of_worker()
            begun = time.perf_counter()
            convert(offices.POOL_PORT, document)
            seconds += time.perf_counter() - begun
        cpu[name].append(started / len(documents))
        return seconds / len(documents)

    rounds = in_turn({name: partial(of_pool, name) for name in starts}, ROUNDS)
    title = f"preload for a {kind} document"
    yield Figure(f"preload-{kind}", f"{title}: its conversion, with the client", "s", rounds, reference="none")
    yield Figure(f"preload-{kind}-cpu", f"{title}: CPU of the office until then", "s", cpu, reference="none")
