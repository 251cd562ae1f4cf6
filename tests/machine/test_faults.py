# SPDX-License-Identifier: LGPL-2.1-or-later
"""A fault ends one session at the most."""

import json
import os
import platform
import time
from datetime import datetime
from random import Random
from typing import Any

import pytest

from command import Command
from deadline import until
from ooodd import messages
from places import CLIENTS
from service import PATIENCE, Service, Session, await_step, client_error, finish

# How many offices are killed at random: in the inner ring of tests, and in the outer one.
KILLS = [12, pytest.param(int(os.environ.get("OOODD_TESTS_KILLS", "100")), marks=pytest.mark.long)]
OFFICE = "/opt/strange"
# A program instead of an office. It sleeps, or it listens only, or it greets as an office does and then does nothing.
STRANGE_OFFICE = r"""#!/usr/bin/python3
import signal, socket, sys
directory = next(word.split("=", 1)[1] for word in sys.argv if word.startswith("-env:OSL_SOCKET_PATH="))
mode = open("/opt/strange/mode").read()
if mode != "sleeps":
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{directory}/OSL_PIPE_uno")
    listener.listen()
    kept = []
    while True:
        connection, _ = listener.accept()
        kept.append(connection)
        if mode == "greets":
            connection.sendall(
                b"\0\0\0e\0\0\0\1\xf8\4\x96\0\0'com.sun.star.bridge.XProtocolProperties\x15UrpProtocolProperties\0\0"
                b"\x19.UrpProtocolPropertiesTid\0\0\x8a\xe0\xca\xd0"
            )
signal.pause()
"""

# Measures how long a client waits for the end of its connection: opens a session by hand, kills the office, reads on.
BREAK = r"""
import json, os, signal, socket, sys, time
sys.path.insert(0, sys.argv[1])
from urp_noise import first_block
connection = socket.create_connection(("127.0.0.1", 2002))
connection.sendall(first_block())
connection.settimeout(60)
assert connection.recv(4096)
worker = int(os.popen("ooodd status --json | python3 -c 'import json,sys;"
    "print([w[\"pid\"] for w in json.load(sys.stdin)[\"workers\"] if w[\"client\"]][0])'").read())
began = time.monotonic()
os.kill(worker, signal.SIGKILL)
try:
    while connection.recv(4096):
        pass
except ConnectionResetError:
    pass
print(json.dumps({"milliseconds": 1000 * (time.monotonic() - began)}))
"""


# With this drop-in, the wall clock of a unit differs from the real one by what the file says.
FAKE_CLOCK = "/etc/fake-clock"
WITH_FAKE_CLOCK = f"""[Service]
UnsetEnvironment=
Environment=LD_PRELOAD=/usr/lib/{platform.machine()}-linux-gnu/faketime/libfaketime.so.1
Environment=FAKETIME_TIMESTAMP_FILE={FAKE_CLOCK} FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1
"""


def restarted(service: Service, old: int, crashed: int = 1) -> dict[str, Any]:
    """Wait until the office `old` has been replaced, all workers are idle and `crashed` crashes have been counted."""

    def look() -> dict[str, Any]:
        status = service.status()
        workers = [worker for worker in status["workers"] if worker["state"] == "idle" and worker["pid"] != old]
        whole = len(workers) == len(status["workers"]) and status["totals"]["crashed"] == crashed
        return status if whole else {}

    return until(look, PATIENCE, "the pool to be whole again")


def test_a_killed_idle_worker_is_replaced_and_no_client_notices(service: Service) -> None:
    service.configure("[pool]\nworkers = 2\n")
    client, _ = service.holding_client()
    until(lambda: "idle" in service.states(), PATIENCE, "an idle worker")
    (idle,) = (worker for worker in service.workers() if worker["state"] == "idle")
    service.kill(idle["pid"])
    until(
        lambda: [w for w in service.workers() if w["state"] == "idle" and w["pid"] != idle["pid"]],
        PATIENCE,
        "the worker to be back",
    )
    assert service.status()["totals"]["crashed"] == 1
    finish(client)
    assert client.returncode == 0


def test_a_killed_busy_worker_ends_its_session_only(service: Service) -> None:
    service.configure("[pool]\nworkers = 2\n")
    victim, office = service.holding_client()
    other, _ = service.holding_client()
    moment = service.machine.journal_moment()
    service.kill(office["pid"])
    entry = service.machine.wait_journal("ooodd.service", "PRIORITY=4", after=moment)
    assert "crashed and is restarted: killed by signal 9" in entry["MESSAGE"]
    finish(other)
    assert other.returncode == 0
    restarted(service, office["pid"])
    victim.release()


def test_the_client_of_a_killed_worker_sees_its_bridge_break(service: Service) -> None:
    service.configure("[pool]\nworkers = 1\n")
    service.start()
    service.wait_idle()
    clients = str(CLIENTS)
    done = service.machine.run("/usr/bin/python3", "-c", BREAK, clients, check=True)
    took = json.loads(done.stdout)["milliseconds"]
    print(f"the bridge broke {took:.1f} ms after the kill")
    assert took < 1000 * PATIENCE  # on an idle machine about 3 ms


def test_an_office_that_aborts_is_replaced(service: Service) -> None:
    service.configure("[pool]\nworkers = 1\n")
    office = service.serves()
    service.wait_idle()
    service.kill(office, signal="ABRT")
    status = restarted(service, office)
    assert status["totals"]["sessions"] == 1
    assert service.serves() != office


def test_a_worker_killed_again_and_again_is_always_back(service: Service) -> None:
    service.configure("[pool]\nworkers = 1\n")
    service.start()
    for kills in range(1, 11):
        (worker,) = service.wait_idle()
        service.kill(worker["pid"])
        restarted(service, worker["pid"], kills)
    assert service.serves()


def test_terminating_the_office_is_no_crash(service: Service) -> None:
    service.configure("[pool]\nworkers = 1\n")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from client import connect, create; "
        "create(connect('127.0.0.1', 2002), 'com.sun.star.frame.Desktop').terminate()"
    )
    clients = str(CLIENTS)
    service.machine.run("/usr/bin/python3", "-c", script, clients)
    until(lambda: service.status()["totals"]["recycled"] == 1, PATIENCE, "the recycling")
    assert service.status()["totals"]["crashed"] == 0
    assert service.serves()


def test_a_worker_that_an_administrator_stops_is_back_and_no_crash(service: Service) -> None:
    service.configure("[pool]\nworkers = 1\n")
    office = service.serves()
    service.wait_idle()
    service.machine.run("systemctl", "stop", "ooodd-worker@1.service", check=True)
    until(lambda: service.status()["totals"]["recycled"] == 1, PATIENCE, "the worker to be replaced")
    assert service.serves() != office
    assert service.status()["totals"]["crashed"] == 0


@pytest.mark.parametrize(
    "behaviour",
    ["garbage", "one-byte", "connect", "reset", "flood", "urp-flood", "lie", "half-close", "half-block", "never-reads"],
)
def test_noise_disturbs_no_other_client(service: Service, behaviour: str) -> None:
    service.configure("[pool]\nworkers = 2\n")
    other, _ = service.holding_client()
    noisy = service.client("urp_noise.py", "--seconds", "4", behaviour)
    assert service.serves()
    noisy.wait(PATIENCE)
    noisy.release()
    finish(other)
    assert other.returncode == 0
    assert broker_memory(service) < 128 * 1024, "KiB at the peak, though the noise is up to 1 GiB"
    service.wait_idle()
    assert service.serves()


def broker_memory(service: Service) -> int:
    """The broker's peak resident memory in KiB."""
    pid = service.machine.run("systemctl", "show", "-P", "MainPID", "ooodd.service").stdout.strip()
    status = service.machine.read(f"/proc/{pid}/status")
    return int(status.split("VmHWM:")[1].split()[0])


def test_a_worker_that_does_not_answer_after_its_session_is_replaced(service: Service) -> None:
    service.configure('[pool]\nworkers = 1\nprobe_timeout = "1s"\n[session]\ngrace = "1s"\n')
    service.start()
    (worker,) = service.wait_idle()
    service.kill(worker["pid"], signal="STOP")
    with service.client("urp_noise.py", "reset") as client:
        client.wait(PATIENCE)
    until(lambda: service.status()["totals"]["hung"] == 1, PATIENCE, "the hung worker to be found")
    assert service.serves() != worker["pid"]


def test_an_office_that_ignores_sigterm_is_killed(service: Service) -> None:
    service.configure("[pool]\nworkers = 1\n")
    service.start()
    (worker,) = service.wait_idle()
    service.kill(worker["pid"], signal="STOP")
    service.stop()
    assert service.machine.run("pgrep", "-x", "soffice.bin").stdout == ""
    service.configure()


def test_a_broker_that_hangs_is_ended_by_the_watchdog_and_restarted(fresh_service: Service) -> None:
    service = fresh_service
    short = "[Service]\nWatchdogSec=1s\nTimeoutAbortSec=1s\n"
    service.machine.put("/etc/systemd/system/ooodd.service.d/watchdog.conf", short)
    service.machine.run("systemctl", "daemon-reload", check=True)
    assert service.serves()
    moment = service.machine.journal_moment()
    service.machine.run("systemctl", "kill", "-s", "STOP", "--kill-who=main", "ooodd.service", check=True)
    until(
        lambda: [
            e for e in service.machine.journal("ooodd.service", after=moment) if "Watchdog timeout" in e["MESSAGE"]
        ],
        PATIENCE,
        "the watchdog",
    )
    assert service.serves()
    running = len(service.wait_idle())
    assert service.machine.run("pgrep", "-c", "-x", "soffice.bin").stdout.strip() == str(running)


def test_a_lost_bus_ends_no_session(fresh_service: Service) -> None:
    """There are two sessions and a waiting client. An office that crashes without a bus is found when it is back."""
    service = fresh_service
    service.configure("[pool]\nworkers = 2\n")
    holders = [service.holding_client()[0] for _ in range(2)]
    waiting = service.waiting_client()
    broker, moment = service.main_pid(), service.machine.journal_moment()
    service.machine.run("systemctl", "restart", "dbus.service")
    lost = service.machine.wait_journal("ooodd.service", f"MESSAGE_ID={messages.BUS_LOST.id}", after=moment)
    assert "the system message bus is lost (" in lost["MESSAGE"]
    service.machine.wait_journal("ooodd.service", f"MESSAGE_ID={messages.BUS_BACK.id}", after=moment)
    assert [client_error(client) for client in (*holders, waiting)] == ["", "", ""]
    service.machine.run("systemctl", "stop", "dbus.socket", "dbus.service")
    victim, other = service.wait_idle()
    service.kill(victim["pid"])
    assert service.status_if_running()["workers"], "the broker has ended"
    service.machine.run("systemctl", "start", "dbus.socket", check=True)
    began = time.monotonic()
    service.wait_total("crashed", 1)
    print(f"found {time.monotonic() - began:.2f} s after the bus was back")
    assert service.serves() == other["pid"]
    assert service.main_pid() == broker
    assert service.totals() == {
        "sessions": 4,
        "refused": 0,
        "recycled": 0,
        "crashed": 1,
        "hung": 0,
        "dirty": 0,
        "reclaimed": 0,
    }


@pytest.mark.parametrize("fault", ["abort", "about", "calc-visible"])
def test_a_client_that_crashes_its_office_disturbs_no_other_client(service: Service, fault: str) -> None:
    """Which of these crash depends on the build of LibreOffice. The next client has an office in any case."""
    service.configure("[pool]\nworkers = 2\n")
    other, _ = service.holding_client()
    client = service.client("crash.py", fault)
    said, _ = client.communicate(timeout=PATIENCE)
    client.release()
    print(f"{fault}: {said.splitlines()[-1]}")
    finish(other)
    assert other.returncode == 0
    service.wait_idle()
    assert service.serves()


def end_by_kill(client: Command) -> None:
    """Kill a client during a call, and wait for its end."""
    client.kill()
    client.wait(PATIENCE)
    client.release()


def kill_offices(service: Service, random: Random, count: int) -> list[int]:
    """Kill some offices that are in service, all at the same time, and return their pids."""
    workers = service.wait_whole(len(service.workers()))["workers"]
    pids = [worker["pid"] for worker in random.sample(workers, count)]
    service.kill(*pids)
    return pids


def unexplained(sessions: list[Session], kills: dict[int, float]) -> list[Session]:
    """The sessions that failed though their office was not killed."""

    def explained(session: Session) -> bool:
        if session.pid is not None:
            return session.pid in kills
        # It ended before it knew its office. The time of a kill was noted when kill(1) had returned, so a bit late.
        return any(session.begun <= moment <= (session.ended or 0.0) + 0.3 for moment in kills.values())

    return [session for session in sessions if session.error and not explained(session)]


@pytest.mark.parametrize("count", KILLS)
def test_offices_killed_at_random_under_load_end_their_own_sessions_only(service: Service, count: int) -> None:
    workers, random = 4, Random(2004)
    service.configure(f"[pool]\nworkers = {workers}\nmin_workers = {workers}\nmax_uses = 1000000\n")
    service.start()
    service.wait_whole(workers)
    moment = service.machine.journal_moment()
    kills: dict[int, float] = {}
    took = []
    with service.herd(6) as herd:
        until(lambda: len([s for s in herd.sessions() if s.pid]) > 6, PATIENCE, "work to be under way")
        while len(kills) < count:
            began = time.monotonic()
            pids = kill_offices(service, random, min(random.choice((1, 2, 3, 3)), count - len(kills)))
            kills.update(dict.fromkeys(pids, time.monotonic()))
            until(lambda: service.totals()["crashed"] >= len(kills), PATIENCE, "the crashes to be counted")
            service.wait_whole(workers, without=kills)
            took.append(time.monotonic() - began)
        sessions = herd.stop()
    failed = [session for session in sessions if session.error]
    print(
        f"{len(kills)} kills: {len(sessions) - len(failed)} sessions went well, {len(failed)} failed; from a kill to "
        f"the whole pool {sorted(took)[len(took) // 2]:.2f} s in the middle, {max(took):.2f} s at the most"
    )
    assert unexplained(sessions, kills) == []
    known = [session.pid for session in failed if session.pid is not None]
    assert len(known) == len(set(known)), "an office took two sessions with it"
    assert len(failed) <= len(kills)
    totals = service.totals()
    assert (totals["crashed"], totals["hung"], totals["refused"]) == (len(kills), 0, 0)
    assert len(service.lines(messages.WORKER_CRASHED, moment)) == len(kills)


def test_a_hung_office_is_replaced_idle_or_busy(service: Service) -> None:
    """The offices hang by SIGSTOP. The idle one is found before a client gets it."""
    service.configure('[pool]\nworkers = 1\nprobe_interval = "1s"\nprobe_timeout = "1s"\n[session]\ngrace = "1s"\n')
    service.start()
    (idle,) = service.wait_idle()
    moment = service.machine.journal_moment()
    began = time.monotonic()
    service.kill(idle["pid"], signal="STOP")
    service.wait_whole(1, without=[idle["pid"]])
    print(f"idle: replaced {time.monotonic() - began:.2f} s after it hung")
    service.wait_total("hung", 1)
    assert "no answer within 1 s" in service.line(messages.WORKER_HUNG, moment)["MESSAGE"]
    client, office = service.holding_client()
    waiting = service.waiting_client()
    service.kill(office["pid"], signal="STOP")
    began = time.monotonic()
    end_by_kill(client)
    assert client_error(waiting) == ""
    print(f"busy: the next client was served {time.monotonic() - began:.2f} s after the end of the hung one's")
    service.wait_total("hung", 2)
    assert len(service.lines(messages.WORKER_HUNG, moment)) == 2
    assert service.totals() == {
        "sessions": 2,
        "refused": 0,
        "recycled": 0,
        "crashed": 0,
        "hung": 2,
        "dirty": 0,
        "reclaimed": 0,
    }


def wait_until_it_works(service: Service, pid: int) -> None:
    """Wait until the office has used half a second of CPU: by then it executes its client's call."""

    def ticks() -> int:
        return sum(map(int, service.machine.read(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()[11:13]))

    before = ticks()
    until(lambda: ticks() > before + os.sysconf("SC_CLK_TCK") // 2, PATIENCE, "the office to work")


@pytest.mark.parametrize(
    ("fault", "total", "message"),
    [
        ("basic-loop", "hung", messages.WORKER_HUNG),
        ("calc-loop", "hung", messages.WORKER_HUNG),
        # The office is healthy, and its call fails when the client ends. But from outside it looks like an office that
        # goes on and opens a document later.
        ("stream", "dirty", messages.WORKER_DIRTY),
    ],
)
def test_the_office_of_a_client_killed_during_an_endless_call_is_replaced(
    service: Service, fault: str, total: str, message: messages.Message
) -> None:
    service.configure('[pool]\nworkers = 2\n[session]\ngrace = "1s"\n')
    other, others = service.holding_client()
    moment = service.machine.journal_moment()
    client = service.client("crash.py", fault)
    await_step(client, "silent" if fault == "stream" else "faulting")
    (busy,) = (worker for worker in service.workers() if worker["client"] and worker["pid"] != others["pid"])
    if fault != "stream":
        wait_until_it_works(service, busy["pid"])
    began = time.monotonic()
    end_by_kill(client)
    assert service.serves() != busy["pid"]
    service.wait_total(total, 1)
    service.wait_whole(2, without=[busy["pid"]])
    print(f"{fault}: whole {time.monotonic() - began:.2f} s after its client's end")
    print(service.line(message, moment)["MESSAGE"])
    assert client_error(other) == ""
    totals = service.totals()
    assert {name: totals[name] for name in ("recycled", "crashed", "hung", "dirty")} == {
        "recycled": 0,
        "crashed": 0,
        "hung": 0,
        "dirty": 0,
        total: 1,
    }


@pytest.mark.parametrize("mode", ["sleeps", "listens", "greets"])
def test_an_office_that_never_serves_is_reported_to_waiting_clients(service: Service, mode: str) -> None:
    machine = service.machine
    service.configure('[pool]\nworkers = 1\nstart_timeout = "1s"\n')
    machine.put(f"{OFFICE}/soffice.bin", STRANGE_OFFICE, mode=0o755)
    machine.put(f"{OFFICE}/versionrc", machine.read("/usr/lib/libreoffice/program/versionrc"))
    machine.put(f"{OFFICE}/mode", mode)
    moment = machine.journal_moment()
    with service.drop_in(
        "ooodd-worker@.service", f"[Service]\nBindReadOnlyPaths={OFFICE}\nEnvironment=OOODD_OFFICE={OFFICE}\n"
    ):
        began = time.monotonic()
        error = client_error(service.client("convert.py", "--office"))
        print(f"refused after {time.monotonic() - began:.1f} s: {error}")
        assert error.startswith("ooodd: no office can be started: not ready within 1 s")
        assert service.totals()["refused"] == 1
        line = service.lines(messages.WORKER_NOT_STARTED, moment)[0]
        assert "journalctl -u ooodd-worker@1.service" in line["MESSAGE"]
        refused = service.line(messages.CLIENT_REFUSED, moment)
        assert error in refused["MESSAGE"]
    service.wait_whole(1)
    assert service.serves()
    totals = service.totals()
    assert (totals["crashed"], totals["hung"], totals["recycled"]) == (0, 0, 0)


def test_polkit_that_is_gone_is_reported_and_its_return_is_found(service: Service) -> None:
    machine = service.machine
    service.configure("[pool]\nworkers = 2\nmin_workers = 2\n")
    other, mine = service.holding_client()
    status = service.wait_whole(2)
    (victim,) = (worker for worker in status["workers"] if worker["pid"] != mine["pid"])
    moment = machine.journal_moment()
    machine.run("systemctl", "mask", "--runtime", "polkit.service", check=True)
    machine.run("systemctl", "stop", "polkit.service", check=True)
    try:
        service.kill(victim["pid"])
        line = machine.wait_journal("ooodd.service", "PRIORITY=3", after=moment)
        assert "Unit polkit.service is masked" in line["MESSAGE"]
        waiting = service.waiting_client()
    finally:
        machine.run("systemctl", "unmask", "--runtime", "polkit.service", check=True)
        machine.run("systemctl", "start", "polkit.service", check=True)
    began = time.monotonic()
    assert client_error(waiting) == ""
    service.wait_whole(2, without=[victim["pid"]])
    print(f"whole {time.monotonic() - began:.2f} s after polkit was back")
    assert client_error(other) == ""
    assert service.totals()["crashed"] == 1


def test_a_full_run_directory_is_reported_and_ends_no_session(fresh_service: Service) -> None:
    service, machine = fresh_service, fresh_service.machine
    service.configure('[pool]\nworkers = 2\nstart_timeout = "2s"\n')
    other, _ = service.holding_client()
    service.wait_whole(2)
    (victim,) = (worker for worker in service.workers() if worker["state"] == "idle")
    moment = machine.journal_moment()
    machine.run("mount", "-o", "remount,size=16M", "/run", check=True)
    # The end of an office frees space in /run, so it is filled again all the time.
    with machine.popen("sh", "-c", "while :; do cat /dev/zero >> /run/full 2> /dev/null; done"):
        machine.run("sh", "-c", "until ! echo > /run/more; do :; done", check=True)
        service.kill(victim["pid"])
        until(lambda: "failed" in service.states(), PATIENCE, "the start to fail")
    machine.run("rm", "/run/full", "/run/more", check=True)
    began = time.monotonic()
    service.wait_whole(2, without=[victim["pid"]])
    print(f"whole {time.monotonic() - began:.2f} s after there was space again")
    for line in service.lines(messages.WORKER_NOT_STARTED, moment)[:1]:
        print(line["MESSAGE"])
    assert client_error(other) == ""
    assert service.serves()
    assert service.totals()["crashed"] == 1


def test_a_clock_that_jumps_disturbs_no_client(service: Service) -> None:
    """Libfaketime changes the clock of broker and office only. The machine's own clock is the host's."""
    hour = 3600
    service.machine.put(FAKE_CLOCK, "+0\n")
    with service.drop_in("ooodd.service", WITH_FAKE_CLOCK), service.drop_in("ooodd-worker@.service", WITH_FAKE_CLOCK):
        limits = 'timeout = "1h"\n[session]\ntimeout = "1h"\nidle_timeout = "1h"\n'
        service.configure(f'[pool]\nworkers = 1\nmax_age = "1h"\nprobe_interval = "1h"\n[queue]\n{limits}')
        holder, office = service.holding_client()
        assert "libfaketime" in service.machine.read(f"/proc/{office['pid']}/maps")
        waiting = [service.waiting_client() for _ in range(2)]
        for jump in (0, 100 * hour, -100 * hour):
            service.machine.put(FAKE_CLOCK, f"{jump:+}\n")
            status = service.status()
            since = datetime.fromisoformat(status["workers"][0]["since"]).timestamp()
            assert abs(since - jump - time.time()) < hour, "the broker's clock has not jumped"
            assert status["queue"]["length"] == 2
            assert status["queue"]["oldest_wait"] < hour
        assert finish(holder)[0]["pid"] == office["pid"]
        assert [client_error(client) for client in waiting] == ["", ""]
        assert service.serves() == office["pid"]
        totals = service.totals()
        assert totals == dict.fromkeys(totals, 0) | {"sessions": 4}
        service.stop()


def test_an_office_that_runs_out_of_memory_is_reported_as_such(service: Service) -> None:
    """The mark that systemd-oomd leaves is set by hand, for there is no memory controller everywhere."""
    service.configure("[pool]\nworkers = 1\n")
    victim, office = service.holding_client()
    moment = service.machine.journal_moment()
    group = service.machine.run("systemctl", "show", "-P", "ControlGroup", "ooodd-worker@1.service").stdout.strip()
    os.setxattr(service.machine.cgroup / group.lstrip("/"), "user.oomd_ooms", b"1")
    service.kill(office["pid"])
    service.wait_total("crashed", 1)
    assert "out of memory" in service.line(messages.WORKER_CRASHED, moment)["MESSAGE"]
    assert client_error(victim)
    assert service.serves() != office["pid"]
