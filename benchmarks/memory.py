# SPDX-License-Identifier: LGPL-2.1-or-later
"""The memory of a process, in MiB."""

from pathlib import Path


def pss(pid: int) -> float:
    """Return its share of the memory: what it has alone, and its part of what several have."""
    return _sum(pid, "Pss:")


def uss(pid: int) -> float:
    """Return what it has alone. A difference of that does not depend on which other processes run."""
    return _sum(pid, "Private_Clean:", "Private_Dirty:")


def _sum(pid: int, *names: str) -> float:
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
    return sum(int(words[1]) for words in lines if words[0] in names) / 1024
