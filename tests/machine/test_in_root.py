# SPDX-License-Identifier: LGPL-2.1-or-later
"""The root that `make fresh` uses: it has just booted, has nothing of this machine, and leaves nothing behind."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deadline import until
from keeper import cgroup2_mount
from machine import SOURCE_TREE

pytestmark = pytest.mark.long

IN_ROOT = SOURCE_TREE / "packaging" / "in-root"
SUITE = "trixie"
# The root is made from packages that apt fetches, once.
PATIENCE = 300.0
LOOK = r"""
awk '{ print int($1) }' /proc/uptime
echo "locale '${LANG:-}${LC_ALL:-}'"
echo "users $(getent passwd | awk -F: '$3 >= 1000 && $3 < 60000' | wc -l)"
ls -d /work /root/* 2>/dev/null || :
git --version 2>/dev/null || echo no git
"""


@contextmanager
def in_root(tmp_path: Path, script: str) -> Iterator[subprocess.Popen[str]]:
    """A run of a script in a fresh root."""
    path = tmp_path / "script"
    path.write_text(script)
    command = [str(IN_ROOT), SUITE, "tmpfs", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as process:
        try:
            yield process
        finally:
            process.kill()


def sleepers() -> list[str]:
    """The pids of the processes that a run has started."""
    return subprocess.run(["pgrep", "-f", MARK], stdout=subprocess.PIPE, encoding="utf-8", check=False).stdout.split()


def left(pid: int) -> list[str]:
    """What a run has left: control groups, processes, mounts."""
    cgroups = cgroup2_mount()
    assert cgroups is not None
    found = [str(path) for path in cgroups.glob(f"ooodd-root-*-{pid}")]
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if "/build/root " in line]
    return found + sleepers()


# The argument of a sleep that nobody else runs.
MARK = f"sleep {86400 + os.getpid()}"
SLEEPS = f"echo begun\n{MARK} & {MARK}\n"


def test_the_machine_has_just_booted_and_has_nothing_of_this_one(tmp_path: Path) -> None:
    with in_root(tmp_path, LOOK) as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    uptime, *others = output.splitlines()
    assert 5 <= int(uptime) < 60
    assert others == ["locale ''", "users 0", "no git"]
    assert left(process.pid) == []


def test_the_exit_status_is_the_script_s(tmp_path: Path) -> None:
    with in_root(tmp_path, "exit 7") as process:
        assert process.wait(PATIENCE) == 7
    assert left(process.pid) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_run_that_is_interrupted_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with in_root(tmp_path, SLEEPS) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        assert left(process.pid) != []
        process.send_signal(number)
        assert process.wait(PATIENCE) in (130, 143)
        assert left(process.pid) == []


def test_a_run_that_is_killed_leaves_nothing_but_what_the_next_one_removes(tmp_path: Path) -> None:
    with in_root(tmp_path, SLEEPS) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.kill()
        process.wait(PATIENCE)
    until(lambda: not sleepers(), PATIENCE, "all processes to end")
    with in_root(tmp_path, "exit 0") as following:
        assert following.wait(PATIENCE) == 0
    assert left(process.pid) == []
