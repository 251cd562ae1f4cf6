# SPDX-License-Identifier: LGPL-2.1-or-later
"""Attacks by sheer amount: each hurts the attacker's own office, and the pool is whole afterwards."""

import re
import statistics
import subprocess
import time

import pytest

from journal import Entry
from machine import Machine
from ooodd import messages
from places import DOCUMENTS_INSIDE, PYTHON
from scene import ATTACK, BARE, POOL, Scene, allowed, bare_office
from service import PATIENCE

PING = "busctl call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.DBus.Peer Ping"
TOO_MUCH = 6000


@pytest.fixture
def scene(limited_machine: Machine) -> Scene:
    """The pool, where the limits hold."""
    it = Scene(limited_machine)
    it.service.configure("[pool]\nworkers = 2\nmin_workers = 2\nmax_uses = 1\n")
    it.service.start()
    it.service.wait_idle()
    return it


def crash(scene: Scene, moment: str) -> Entry:
    """The line about the office that was killed."""
    return scene.machine.wait_journal(None, f"MESSAGE_ID={messages.WORKER_CRASHED.id}", after=moment)


def test_memory_without_end(scene: Scene) -> None:
    """An office of 6 GiB is killed, and told and counted for what it is. Without MemoryMax= it is not."""
    moment = scene.machine.journal_moment()
    neighbour, _ = scene.service.holding_client()
    command = (PYTHON, ATTACK, "memory", str(TOO_MUCH))
    done = scene.machine.run(*command, cwd="/tmp", timeout=4 * PATIENCE)
    assert "Disposed" in done.stdout, done.stdout
    # systemd learns of the kernel's out-of-memory killer by cgroup version 2 only.
    assert re.search("out of memory|killed by signal 9", crash(scene, moment)["MESSAGE"])
    assert scene.service.totals()["crashed"] == 1
    assert neighbour.poll() is None
    neighbour.release()
    scene.service.wait_idle()
    with scene.service.drop_in("ooodd-worker@.service", "[Service]\nMemoryMax=infinity\n"):
        scene.service.configure("[pool]\nworkers = 1\n")
        assert allowed(scene.attack(POOL, "memory", TOO_MUCH)) == {"memory"}
    scene.service.stop()


@pytest.mark.parametrize("user", ["", "app"])
def test_processes_without_end(scene: Scene, user: str) -> None:
    if user:
        scene.service.run_offices_as(user)
        scene.service.configure("[pool]\nworkers = 2\n")
    found = scene.attack(POOL, "processes_without_end", 1000)
    assert int(found["processes"].split(",")[0]) < 512, found
    assert "EAGAIN" in found["processes"]
    assert scene.service.serves()
    with bare_office(scene.machine):
        assert allowed(scene.attack(BARE, "processes_without_end", 1000)) == {"processes"}


def test_all_offices_together_have_a_bound(scene: Scene) -> None:
    """ooodd.slice holds where each office alone would be allowed more: for memory, and for processes."""
    machine, service = scene.machine, scene.service
    bounds = "[Slice]\nMemoryMax=1G\nTasksMax=150\n"
    loose = "[Service]\nMemoryMax=infinity\nTasksMax=infinity\nLimitNPROC=infinity\n"
    with service.drop_in("ooodd-worker@.service", loose), service.drop_in("ooodd.slice", bounds):
        service.configure("[pool]\nworkers = 1\n")
        moment = machine.journal_moment()
        done = machine.run(PYTHON, ATTACK, "memory", "2000", cwd="/tmp", timeout=4 * PATIENCE)
        assert "Disposed" in done.stdout, done.stdout
        assert re.search("out of memory|killed by signal 9", crash(scene, moment)["MESSAGE"])
        found = scene.attack(POOL, "processes_without_end", 1000)
        assert int(found["processes"].split(",")[0]) < 150, found
        assert "EAGAIN" in found["processes"]
        assert service.serves()
    with service.drop_in("ooodd-worker@.service", loose):
        service.configure("[pool]\nworkers = 1\n")
        assert allowed(scene.attack(POOL, "memory", 2000)) == {"memory"}
        assert allowed(scene.attack(POOL, "processes_without_end", 1000)) == {"processes"}
    service.stop()


def test_computing_without_end(scene: Scene) -> None:
    """Sixteen processes that compute. Another client's office has the same share of the CPUs as all of these."""

    def conversions() -> float:
        began = time.monotonic()
        for _ in range(10):
            command = ("ooodd", "convert", f"{DOCUMENTS_INSIDE}/letter.docx", "-o", "/tmp/letter.pdf")
            scene.machine.run(*command, check=True, timeout=4 * PATIENCE)
        return time.monotonic() - began

    alone = conversions()
    attacker = scene.holding("spin", 16)
    assert attacker.stdout is not None
    assert "spin" in attacker.stdout.readline()
    beside = conversions()
    attacker.release()
    print(f"ten conversions: {alone:.2f} s alone, {beside:.2f} s beside the attack, {alone / beside:.2f} of the speed")
    scene.service.wait_idle()


def journal_bytes(scene: Scene, after: str) -> int:
    """How much the offices have written into the journal."""
    scene.machine.run("journalctl", "--sync", check=True)
    count = f"journalctl -q -o cat -u 'ooodd-worker@*' --since={after} | wc -c"
    return int(scene.machine.run("sh", "-c", count, check=True, timeout=120).stdout)


def test_a_flood_of_the_journal(scene: Scene) -> None:
    """64 MiB by stderr. Of a service's lines journald takes 200 in 30 s."""
    pings = ping(scene)
    moment = scene.machine.journal_moment()
    with scene.machine.popen(PYTHON, ATTACK, "stderr", "64", cwd="/tmp", stdin=subprocess.DEVNULL) as flood:
        meanwhile = ping(scene)
        assert flood.wait(4 * PATIENCE) == 0
    written = journal_bytes(scene, moment)
    print(
        f"{written / 2**20:.2f} MiB in the journal; PID 1 answers within {pings:.1f} ms, {meanwhile:.1f} ms meanwhile"
    )
    assert written < 2 << 20
    assert scene.service.serves()
    limit = "[Service]\nLogRateLimitIntervalSec=0\nLogRateLimitBurst=0\n"
    with scene.service.drop_in("ooodd-worker@.service", limit):
        scene.service.configure("[pool]\nworkers = 1\n")
        moment = scene.machine.journal_moment()
        scene.attack(POOL, "stderr", 8)
        assert journal_bytes(scene, moment) > 7 << 20
    scene.service.stop()


def ping(scene: Scene) -> float:
    """How long PID 1 takes for an answer, in milliseconds: the 95th percentile of 40."""
    timed = (
        "import subprocess, time\n"
        "for _ in range(40):\n"
        " began = time.monotonic()\n"
        f" subprocess.run({PING.split()!r}, check=True, stdout=subprocess.DEVNULL)\n"
        " print(time.monotonic() - began)\n"
    )
    done = scene.machine.run(PYTHON, "-c", timed, check=True, timeout=4 * PATIENCE)
    return 1000 * statistics.quantiles(map(float, done.stdout.split()), n=20)[-1]


@pytest.mark.parametrize("what", ["daemon", "thread"])
def test_what_a_client_leaves_running(scene: Scene, what: str) -> None:
    """By default it ends with its office. Where offices are used again, one with a process beside it is replaced."""
    scene.attack(POOL, "stay", what)
    scene.service.wait_idle()
    assert scene.machine.run("pgrep", "-f", "[s]office.bin.*accept", check=True).stdout.count("\n") == 2
    scene.service.configure("[pool]\nworkers = 1\nmax_uses = 10\nmax_uses_jitter = 0\n")
    moment = scene.machine.journal_moment()
    first = scene.service.serves()
    scene.attack(POOL, "stay", what)
    second = scene.service.serves()
    if what == "daemon":
        assert first != second
        assert "left running: 1 processes" in scene.service.line(messages.WORKER_DIRTY, moment)["MESSAGE"]
    else:
        assert first == second, "a thread is not seen: docs/security.md"
