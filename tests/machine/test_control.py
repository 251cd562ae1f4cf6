# SPDX-License-Identifier: LGPL-2.1-or-later
"""Looking and acting: who may do what, and what each order does on a real machine."""

import json
import re
from collections.abc import Iterator

import pytest

from deadline import until
from ooodd import messages
from service import PATIENCE, Service

SOCKET = "/run/ooodd/control"
# Each command that acts, and its method with parameters.
ORDERS = [
    (["recycle", "all"], "Recycle", {}),
    (["kick", "1"], "Kick", {"session": 1}),
    (["pause"], "Pause", {}),
    (["resume"], "Resume", {}),
    (["drain"], "Drain", {}),
    (["stop"], "Stop", {}),
    (["reload"], "Reload", {}),
    (["outdate"], "Outdate", {}),
]


@pytest.fixture
def monitor(service: Service) -> Iterator[str]:
    """A user who may look."""
    service.machine.run("useradd", "--groups", "ooodd-monitor", "watcher", check=True)
    yield "watcher"
    service.machine.run("userdel", "watcher", check=True)


def states(service: Service) -> dict[int, str]:
    return {worker["id"]: worker["state"] for worker in service.status()["workers"]}


def pids(service: Service) -> dict[int, int]:
    return {worker["id"]: worker["pid"] for worker in service.status()["workers"] if worker["pid"]}


def test_the_monitoring_user_may_look_and_not_act(service: Service, monitor: str) -> None:
    service.configure("[pool]\nworkers = 2\nmin_workers = 2\n")
    service.start()
    until(lambda: list(states(service).values()) == ["idle", "idle"], PATIENCE, "two idle workers")
    machine, before = service.machine, pids(service)
    assert json.loads(machine.run("ooodd", "status", "--json", user=monitor, check=True).stdout)["workers"]
    for command, _, _ in ORDERS:
        denied = machine.run("ooodd", *command, user=monitor)
        assert denied.returncode == 1, command
        assert denied.stderr.startswith("ooodd: you may look, but not act: ask as root"), command
    assert pids(service) == before
    assert not service.status()["paused"]


def test_who_is_in_no_group_may_not_even_look(service: Service) -> None:
    service.start()
    asked = service.machine.run("ooodd", "status", user="nobody")
    assert asked.returncode == 1
    assert "ask as root, or as the user that runs ooodd; to look only, be in the group ooodd-monitor" in asked.stderr
    assert service.machine.run("stat", "-c", "%A %U:%G", SOCKET).stdout == "srw-rw---- ooodd:ooodd-monitor\n"


def test_recycle_waits_until_all_offices_are_new_ones(service: Service) -> None:
    service.configure("[pool]\nworkers = 2\nmin_workers = 2\nmax_uses = 5\n")
    service.start()
    until(lambda: list(states(service).values()) == ["idle", "idle"], PATIENCE, "two idle workers")
    before = pids(service)
    holder, office = service.holding_client()
    moment = service.machine.journal_moment()
    recycle = service.machine.popen("ooodd", "recycle", "all", "--wait")
    until(lambda: set(pids(service).values()) & set(before.values()) == {office["pid"]}, PATIENCE, "the idle one to go")
    holder.communicate("go\n", PATIENCE)
    holder.release()
    said, _ = recycle.communicate(timeout=PATIENCE)
    assert (recycle.returncode, said) == (0, "recycled: 1, 2\n")
    recycle.release()
    assert not set(pids(service).values()) & set(before.values())
    (line,) = service.machine.journal("ooodd.service", f"MESSAGE_ID={messages.RECYCLE_ASKED.id}", after=moment)
    assert line["MESSAGE"] == "user root has all workers recycled: idle ones now, others after their session"


def test_kick_ends_one_session_and_no_other(service: Service) -> None:
    service.configure("[pool]\nworkers = 2\n")
    first, office = service.holding_client()
    second, _ = service.holding_client()
    (session,) = (each["session"] for each in service.status()["workers"] if each["pid"] == office["pid"])
    said = service.machine.run("ooodd", "kick", str(session), check=True).stdout
    assert re.fullmatch(r"sent away: 127\.0\.0\.1:\d+\n", said)
    until(lambda: office["pid"] not in pids(service).values(), PATIENCE, "its office to go")
    second.communicate("go\n", PATIENCE)
    assert second.returncode == 0
    second.release()
    first.kill()
    first.release()
    again = service.machine.run("ooodd", "kick", str(session))
    assert (again.returncode, again.stderr.startswith(f"ooodd: there is no session {session}: ")) == (1, True)


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_a_pause_outlives_the_broker(service: Service, how: str) -> None:
    service.configure("[pool]\nworkers = 2\n")
    service.start()
    machine = service.machine
    machine.run("ooodd", "pause", check=True)
    assert machine.run("ooodd", "status").returncode == 2
    old = service.main_pid()
    if how == "restart":
        machine.run("systemctl", "restart", "ooodd.service", check=True)
    else:
        machine.run("systemctl", "kill", "-s", "KILL", "--kill-whom=main", "ooodd.service", check=True)
    until(lambda: service.main_pid() not in (0, old) and service.status_if_running(), PATIENCE, "the next broker")
    assert service.status()["paused"]
    waiting = machine.popen("ooodd", "ping", "--timeout", "1min")
    until(lambda: service.status()["queue"]["length"] == 1, PATIENCE, "the client to wait")
    machine.run("ooodd", "resume", check=True)
    said, _ = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 0
    waiting.release()
    assert [line.partition(" after ")[0] for line in said.splitlines()] == [
        "connected to 127.0.0.1:2002",
        "an office has greeted",
        "it has answered a probe",
        "it has let go",
    ]
    assert machine.run("ooodd", "status").returncode == 0


def test_drain_waits_until_the_broker_has_ended(service: Service) -> None:
    service.configure("[pool]\nworkers = 2\n")
    holder, _ = service.holding_client()
    drain = service.machine.popen("ooodd", "drain", "--wait")
    until(lambda: service.status()["draining"], PATIENCE, "the drain")
    assert drain.poll() is None
    holder.communicate("go\n", PATIENCE)
    holder.release()
    said, _ = drain.communicate(timeout=PATIENCE)
    assert (drain.returncode, said) == (0, "ooodd has ended; new clients wait in the socket.\n")
    drain.release()
    gone = service.machine.run("ooodd", "status")
    assert (gone.returncode, gone.stderr.startswith("ooodd: no ooodd runs")) == (3, True)


def test_top_shows_the_pool_in_a_terminal(service: Service) -> None:
    """script(1) is the terminal."""
    service.configure("[pool]\nworkers = 2\nmin_workers = 1\n")
    service.start()
    until(lambda: "idle" in states(service).values(), PATIENCE, "an idle worker")
    top = service.machine.popen(
        "script", "-qefc", "stty rows 24 cols 80; exec ooodd top", "/dev/null", env={"TERM": "xterm"}
    )
    assert top.stdin is not None
    top.stdin.write("p")
    top.stdin.flush()
    until(lambda: service.status()["paused"], PATIENCE, "the key to act")
    said, _ = top.communicate("q", PATIENCE)
    assert top.returncode == 0
    top.release()
    for words in ("2 workers:", "WORKER STATE", "memory of all offices", "pause: done", "q quit"):
        assert words in said, said
    service.machine.run("ooodd", "resume", check=True)


def test_varlinkctl_understands_the_interface(service: Service) -> None:
    machine = service.machine
    if machine.run("which", "varlinkctl").returncode != 0:
        pytest.skip("systemd before 255 has no varlinkctl")
    service.start()
    shown = machine.run("varlinkctl", "introspect", SOCKET, "io.ooodd", check=True).stdout
    assert "method Recycle(" in shown
    info = machine.run("varlinkctl", "info", SOCKET, check=True).stdout
    assert "io.ooodd" in info
    called = machine.run("varlinkctl", "call", "--json=short", SOCKET, "io.ooodd.Status", "{}", check=True).stdout
    assert json.loads(called)["workers"][0]["id"] == 1
    wrong = machine.run("varlinkctl", "call", SOCKET, "io.ooodd.Kick", '{"session": 99}')
    assert wrong.returncode != 0
    assert "io.ooodd.Failed" in wrong.stdout + wrong.stderr


def test_a_method_is_denied_to_the_monitoring_user_also_without_the_command(service: Service, monitor: str) -> None:
    service.start()
    script = (
        "import json, socket, sys\n"
        "with socket.socket(socket.AF_UNIX) as c:\n"
        f"    c.connect({SOCKET!r})\n"
        "    for call in json.loads(sys.argv[1]):\n"
        "        c.sendall(json.dumps(call).encode() + b'\\0')\n"
        "        data = b''\n"
        "        while not data.endswith(b'\\0'): data += c.recv(65536)\n"
        "        print(json.loads(data[:-1]).get('error'))\n"
    )
    calls = [{"method": f"io.ooodd.{method}", "parameters": parameters} for _, method, parameters in ORDERS]
    calls.append({"method": "io.ooodd.Status"})
    said = service.machine.run("python3", "-c", script, json.dumps(calls), user=monitor, check=True).stdout
    assert said.splitlines() == ["org.varlink.service.PermissionDenied"] * len(ORDERS) + ["None"]


def test_nobody_is_let_in_by_the_group_of_the_offices(service: Service) -> None:
    """An office is in group ooodd. It does not even see the socket; this is the wall behind that."""
    service.start()
    script = f"import socket; socket.socket(socket.AF_UNIX).connect({SOCKET!r})"
    denied = service.machine.run(
        "setpriv", "--reuid=nobody", "--regid=ooodd", "--clear-groups", "python3", "-c", script
    )
    assert denied.returncode != 0
    assert "PermissionError" in denied.stderr
