# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every client has an office to itself, in the order in which clients come; offices are recycled."""

from collections import Counter

import pytest

from command import Command
from deadline import until
from places import CLIENTS, PYTHON
from service import PATIENCE, Service, await_step

DRIVER = r"""
mkdir -p "$1"; cd "$1"; rm -f *
seq "$2" | xargs -P 8 -I N sh -c '/usr/bin/python3 "$0" N . || echo N >> failed' "$3"
cat failed 2>/dev/null && exit 1
cat sessions
"""


def exclusive_sessions(service: Service, count: int) -> list[tuple[int, int]]:
    """Run `count` sessions of exclusive.py, eight at a time; return the number and the office's pid of each."""
    script = f"{CLIENTS}/exclusive.py"
    done = service.machine.run("sh", "-c", DRIVER, "sh", "/tmp/exclusive", str(count), script, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return [(int(number), int(pid)) for number, pid, _ in map(str.split, done.stdout.splitlines())]


@pytest.mark.parametrize("count", [48, pytest.param(200, marks=pytest.mark.long)])
def test_eight_clients_on_two_workers_are_each_alone(service: Service, count: int) -> None:
    service.configure("[pool]\nworkers = 2\nmax_uses = 10\nmax_uses_jitter = 3\n")
    sessions = exclusive_sessions(service, count)
    assert sorted(number for number, _ in sessions) == list(range(1, count + 1))
    uses = Counter(pid for _, pid in sessions)
    assert max(uses.values()) <= 13
    assert len(uses) >= count / 13
    totals = service.status()["totals"]
    assert (totals["sessions"], totals["refused"], totals["crashed"], totals["hung"]) == (count, 0, 0, 0)


def test_clients_are_served_in_the_order_in_which_they_came(service: Service) -> None:
    service.configure("[pool]\nworkers = 1\n")
    first, _ = service.holding_client()
    served = f'{PYTHON} {CLIENTS}/convert.py --office > /dev/null && echo "$0" >> /tmp/order'
    waiting: list[Command] = []
    service.machine.run("rm", "-f", "/tmp/order")
    for number in range(1, 7):
        waiting.append(service.machine.popen("sh", "-c", served, str(number)))
        until(lambda: service.status()["queue"]["length"] == len(waiting), PATIENCE, "the client to wait")
    first.communicate("go\n")
    for client in waiting:
        assert client.wait(PATIENCE) == 0
        client.release()
    first.release()
    assert service.machine.read("/tmp/order").split() == ["1", "2", "3", "4", "5", "6"]


def test_a_worker_is_new_after_exactly_three_uses(service: Service) -> None:
    service.configure("[pool]\nworkers = 1\nmax_uses = 3\nmax_uses_jitter = 0\n")
    seen = []
    for _ in range(9):
        pid = service.serves()
        seen.append(pid)
        if len(seen) % 3:
            service.wait_idle()
        else:
            until(lambda: service.status()["totals"]["recycled"] == len(seen) // 3, PATIENCE, "the recycling")
    assert seen[0] == seen[1] == seen[2] != seen[3] == seen[4] == seen[5] != seen[6] == seen[7] == seen[8]


def test_what_a_client_changed_in_the_profile_is_gone_with_the_worker(service: Service) -> None:
    service.configure("[pool]\nworkers = 1\nmax_uses = 1\n")
    service.serves()
    until(lambda: service.status()["totals"]["recycled"] == 1, PATIENCE, "the recycling")
    (before,) = service.wait_idle()
    mark = "root/run/ooodd-worker/home/profile-1/mark"
    service.machine.run("touch", f"/proc/{before['pid']}/{mark}", check=True)
    service.serves()
    until(lambda: service.status()["totals"]["recycled"] == 2, PATIENCE, "the recycling")
    (after,) = service.wait_idle()
    assert (
        service.machine.run("test", "-e", f"/proc/{after['pid']}/root/run/ooodd-worker/home/profile-1").returncode == 0
    )
    assert service.machine.run("test", "-e", f"/proc/{after['pid']}/{mark}").returncode == 1


def test_a_client_killed_during_its_session_frees_its_worker(service: Service) -> None:
    service.configure("[pool]\nworkers = 1\n")
    client, office = service.holding_client()
    assert service.states() == ["busy"]
    client.kill()
    client.wait(PATIENCE)
    client.release()
    (worker,) = service.wait_idle()
    assert worker["pid"] == office["pid"]
    assert service.serves() == office["pid"]


def test_port_checks_and_silent_connections_cost_no_worker(service: Service) -> None:
    service.configure("[pool]\nworkers = 2\n")
    service.start()
    service.wait_idle()
    silent = [service.client("urp_noise.py", "--seconds", "60", "silent") for _ in range(20)]
    checks = (
        f"for n in $(seq 200); do {PYTHON} -c 'import socket; socket.create_connection((\"127.0.0.1\", 2002))'; done"
    )
    service.machine.run("sh", "-c", checks, check=True, timeout=120)
    assert service.serves()
    status = service.status()
    assert status["totals"]["sessions"] == 1
    assert sum(worker["uses"] for worker in status["workers"]) == 1
    for client in silent:
        assert client.poll() is None, "a silent client has ended"
        client.release()


def test_a_waiting_client_that_leaves_costs_no_worker(service: Service) -> None:
    service.configure("[pool]\nworkers = 1\n")
    holder, _ = service.holding_client()
    waiting = service.client("convert.py")
    until(lambda: service.status()["queue"]["length"] == 1, PATIENCE, "the client to wait")
    waiting.release()
    until(lambda: service.status()["queue"]["length"] == 0, PATIENCE, "the client to leave the queue")
    holder.communicate("go\n")
    holder.release()
    service.wait_idle()
    assert service.status()["totals"]["sessions"] == 1


def test_every_client_of_many_at_once_is_served(service: Service) -> None:
    service.configure("[pool]\nworkers = 2\n")
    clients = [service.client("convert.py", "--office", "--hold", "connected") for _ in range(2)]
    for client in clients:
        await_step(client, "connected")
    assert service.states() == ["busy", "busy"]
    for client in clients:
        out, _ = client.communicate("go\n", PATIENCE)
        assert '"office"' in out
        client.release()
