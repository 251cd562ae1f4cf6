# SPDX-License-Identifier: LGPL-2.1-or-later
"""Throwaway machines side by side: each has a control-group tree of its own, and none harms another."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures import ROOT
from keeper import NAME, cgroup2_mount, name_prefix, sweep
from machine import Machine

PROGRAM = ("systemd-run", "--quiet", "--unit=sleeper", "sleep", "infinity")


@pytest.fixture
def pair() -> Iterator[tuple[Machine, Machine]]:
    """Two bare machines that run at the same time."""
    with Machine.boot(ROOT) as first, Machine.boot(ROOT) as second:
        yield first, second


def pids_seen(machine: Machine) -> list[str]:
    """The pids of all processes in the machine's tree, as the machine sees them; but not those of nsenter."""
    tree = ("/sys/fs/cgroup", "-path", "/sys/fs/cgroup/commands", "-prune", "-o")
    files = machine.run("find", *tree, "-name", "cgroup.procs", "-print", check=True).stdout.split()
    return machine.run("cat", *files, check=True).stdout.split()


def test_each_machine_has_a_control_group_tree_of_its_own(pair: tuple[Machine, Machine]) -> None:
    first, second = pair
    assert first.cgroup != second.cgroup
    for machine in pair:
        machine.run(*PROGRAM, check=True)
    for machine in pair:
        assert "0::/init.scope" in machine.read("/proc/1/cgroup").splitlines()
        # The kernel shows a process of another pid namespace as 0. systemd can't end a unit with one, nor pass
        # controllers on from a root with one.
        assert "0" not in pids_seen(machine)


def test_a_unit_killed_in_one_machine_goes_on_in_the_other(pair: tuple[Machine, Machine]) -> None:
    first, second = pair
    for machine in pair:
        machine.run(*PROGRAM, check=True)
    first.run("systemctl", "stop", "sleeper.service", check=True)
    assert first.run("pgrep", "-x", "sleep").stdout == ""
    assert second.run("systemctl", "is-active", "sleeper.service").stdout.strip() == "active"


def test_the_end_of_one_machine_leaves_the_other_whole(pair: tuple[Machine, Machine]) -> None:
    first, second = pair
    cgroup = first.cgroup
    first.close()
    assert not cgroup.exists()
    second.check_health()


def ended_pid() -> int:
    """A pid that no process has any more."""
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


@pytest.mark.parametrize(("own", "left"), [(True, False), (False, True)], ids=["own", "other-namespace"])
def test_only_leftovers_of_the_own_pid_namespace_are_swept(tmp_path: Path, own: bool, left: bool) -> None:  # noqa: FBT001
    """A keeper in a container must not kill the machines of the host, whose pids mean nothing to it."""
    cgroups = cgroup2_mount()
    assert cgroups is not None
    directory = cgroups / f"{name_prefix() if own else f'{NAME}1-'}{ended_pid()}"
    directory.mkdir()
    try:
        sweep(cgroups, tmp_path)
        assert directory.exists() == left
    finally:
        if directory.exists():
            directory.rmdir()
