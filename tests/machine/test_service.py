# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an administrator does and sees: start, stop, status, configuration, and errors that name their remedy."""

import json
import re

import pytest

from command import Command
from deadline import until
from machine import SOURCE_TREE, Machine
from service import CONFIGURATION, PATIENCE, Service

UNITS = ["ooodd.socket", "ooodd.service", "ooodd-worker@1.service", "ooodd.slice", "ooodd-socket-failed.service"]
OFFICE_DROP_IN = "/etc/systemd/system/ooodd-worker@.service.d/office.conf"
POLKIT_RULE = "/usr/share/polkit-1/rules.d/ooodd.rules"


def left_in_run(machine: Machine) -> list[str]:
    return machine.run("find", "/run", "-name", "*ooodd*", "-not", "-path", "/run/systemd/*").stdout.split()


def test_stopping_leaves_nothing(service: Service) -> None:
    service.configure('[session]\ndrain_timeout = "1s"\n')
    holder, _ = service.holding_client()
    service.stop()
    holder.release()
    assert service.machine.run("pgrep", "-x", "soffice.bin").stdout == ""
    assert left_in_run(service.machine) == []
    active = service.machine.run("systemctl", "list-units", "--no-legend", "--plain", "ooodd*").stdout
    assert "ooodd-worker@" not in active, active


def test_stopping_during_start_up_leaves_nothing(service: Service) -> None:
    for _ in range(5):
        service.start()
        service.stop()
        assert service.machine.run("pgrep", "-x", "soffice.bin").stdout == ""
    failed = service.machine.run("systemctl", "--failed", "--no-legend", "--plain").stdout
    assert failed == ""


def test_status_reads_well(service: Service) -> None:
    service.configure("[pool]\nworkers = 2\n")
    holder, office = service.holding_client()
    until(lambda: "idle" in service.states(), PATIENCE, "the other worker to be idle")

    def shown() -> str:
        return service.machine.run("systemctl", "status", "ooodd").stdout

    until(lambda: '"1 of 2 busy, 0 queued, 0 failed"' in shown(), PATIENCE, "the status line")
    assert "active (running)" in shown()
    table = service.machine.run("ooodd", "status", check=True).stdout
    row = rf"^\d+ +busy .* {office['pid']} .* \d+ +127\.0\.0\.1:\d+ +root$"
    assert re.search(row, table, re.MULTILINE), table
    status = service.status()
    names = {"workers", "queue", "waiting", "totals", "paused", "draining", "start_error", "warnings", "config"}
    assert set(status) == names | {"statistics"}
    (busy,) = (worker for worker in status["workers"] if worker["state"] == "busy")
    assert (busy["pid"], busy["uses"]) == (office["pid"], 1)
    counted = service.machine.has_controller("memory")
    assert (busy["memory"] > 1 << 20) if counted else busy["memory"] is None
    assert busy["unit"] == f"ooodd-worker@{busy['id']}.service"
    assert status["queue"] == {"length": 0, "oldest_wait": 0}
    assert set(status["totals"]) == {"sessions", "refused", "recycled", "crashed", "hung", "dirty", "reclaimed"}
    assert status["config"]["pool"]["workers"] == 2
    holder.communicate("go\n", PATIENCE)
    holder.release()


def test_the_journal_has_a_session_in_two_lines_with_fields(service: Service) -> None:
    moment = service.machine.journal_moment()
    service.serves()
    service.machine.wait_journal("ooodd.service", "OOODD_SESSION=1", after=moment)
    until(lambda: len(service.machine.journal("ooodd.service", "OOODD_SESSION=1", after=moment)) == 2, PATIENCE, "both")
    lines = service.machine.journal("ooodd.service", "OOODD_SESSION=1", after=moment)
    for line in lines:
        assert line["OOODD_CLIENT"].startswith("127.0.0.1:")
        assert line["OOODD_WORKER"].isdigit()
        explained = service.machine.run("journalctl", "-x", f"MESSAGE_ID={line['MESSAGE_ID']}", "-n1").stdout
        assert "░░ Subject:" in explained


def test_ooodd_stop_ends_the_broker_and_the_next_client_starts_it(service: Service) -> None:
    service.serves()
    service.machine.run("ooodd", "stop", check=True)
    states = ["systemctl", "is-active", "ooodd.service"]
    until(lambda: service.machine.run(*states).stdout.strip() == "inactive", PATIENCE, "the broker's end")
    assert service.machine.run("pgrep", "-x", "soffice.bin").stdout == ""
    assert service.serves()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[pool]\nwrokers = 3\n", "pool.wrokers: unknown key; did you mean pool.workers?"),
        ('[pool]\nworkers = "3"\n', "pool.workers: must be a whole number"),
        ("[pool]\nworkers = 0\n", "pool.workers: must be at least 1"),
        ("[pool\n", "(at line 1, column 6)"),
        ("[pool]\npreload = true\n", "pool.preload: must be a list of texts"),
    ],
)
def test_a_bad_configuration_is_one_line_and_one_start(service: Service, text: str, reason: str) -> None:
    service.configure(text)
    moment = service.machine.journal_moment()
    assert service.client_fails()
    until(
        lambda: service.machine.run("systemctl", "is-failed", "ooodd.service").returncode == 0, PATIENCE, "the failure"
    )
    lines = [entry["MESSAGE"] for entry in service.machine.journal(None, "SYSLOG_IDENTIFIER=ooodd", after=moment)]
    assert len(lines) == 1
    assert lines[0].startswith(f"{CONFIGURATION}: ")
    assert reason in lines[0]
    shown = service.machine.run("systemctl", "show", "-P", "ExecMainStatus", "ooodd.service").stdout.strip()
    assert shown == "78"
    assert service.machine.run("systemctl", "is-active", "ooodd.socket").stdout.strip() == "active"
    checked = service.machine.run("ooodd", "check-config")
    assert checked.returncode == 78
    assert reason in checked.stderr
    service.machine.put(CONFIGURATION, "")
    assert service.serves(), "the next client is not served"


def test_an_unreadable_configuration_says_who_must_read_it(service: Service) -> None:
    service.configure("")
    service.machine.run("chmod", "600", CONFIGURATION, check=True)
    moment = service.machine.journal_moment()
    try:
        assert service.client_fails()
        entry = service.machine.wait_journal(None, "SYSLOG_IDENTIFIER=ooodd", after=moment)
        assert "Permission denied; it must be readable by the user that runs ooodd" in entry["MESSAGE"]
    finally:
        service.machine.run("chmod", "644", CONFIGURATION, check=True)
    assert service.serves()


def test_a_taken_port_is_reported_with_its_holder_and_the_remedy(service: Service) -> None:
    service.stop()
    moment = service.machine.journal_moment()
    listen = (
        "import socket, time; s = socket.create_server(('127.0.0.1', 2002)); print('up', flush=True); time.sleep(600)"
    )
    holder = service.machine.popen("/usr/bin/python3", "-c", listen)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "up\n"
    assert service.machine.run("systemctl", "start", "ooodd.socket").returncode != 0
    entry = service.machine.wait_journal(None, "SYSLOG_IDENTIFIER=ooodd", after=moment)
    assert "127.0.0.1:2002 is taken by python3 (pid" in entry["MESSAGE"]
    assert "systemctl edit ooodd.socket" in entry["MESSAGE"]
    holder.release()
    service.machine.run("systemctl", "start", "ooodd.socket", check=True)
    assert service.serves()


def status_text(service: Service) -> str:
    return service.machine.run("systemctl", "show", "-P", "StatusText", "ooodd.service").stdout


def test_a_missing_office_is_reported_and_its_return_is_found(service: Service) -> None:
    service.configure("[pool]\nworkers = 1\n")
    service.machine.put(OFFICE_DROP_IN, "[Service]\nEnvironment=OOODD_OFFICE=/opt/nowhere\n")
    service.machine.run("systemctl", "daemon-reload", check=True)
    moment = service.machine.journal_moment()
    try:
        waiting = client_of_a_missing_office(service, moment)
    finally:
        service.machine.run("rm", OFFICE_DROP_IN, check=True)
        service.machine.run("systemctl", "daemon-reload", check=True)
    out, _ = waiting.communicate(timeout=2 * PATIENCE)
    waiting.release()
    assert '"office"' in out
    starts = service.machine.journal("ooodd.service", "PRIORITY=3", after=moment)
    assert len(starts) < 20, "a busy loop of starts"


def client_of_a_missing_office(service: Service, moment: str) -> Command:
    """Look at what is said, and return a client that waits."""
    service.start()
    entry = service.machine.wait_journal("ooodd.service", "PRIORITY=3", after=moment)
    assert "worker 1 can't be started: there is no office: install libreoffice-writer" in entry["MESSAGE"]
    assert "journalctl -u ooodd-worker@1.service" in entry["MESSAGE"]
    until(lambda: service.states() == ["failed"], PATIENCE, "the worker to show as failed")
    assert service.status()["start_error"].startswith("there is no office: install libreoffice-writer")
    until(lambda: status_text(service).startswith("no office can be started: there is no"), PATIENCE, "the status line")
    waiting = service.client("convert.py", "--office")
    until(lambda: service.status()["queue"]["length"] == 1, PATIENCE, "a client to wait")
    return waiting


def test_another_office_is_a_drop_in(service: Service) -> None:
    """As with LibreOffice in /opt. Here it is Debian's, by another path."""
    service.configure("[pool]\nworkers = 1\n")
    service.machine.run("ln", "-sfn", "/usr/lib/libreoffice", "/opt/another-office", check=True)
    service.machine.put(
        OFFICE_DROP_IN, "[Service]\nBindReadOnlyPaths=/opt\nEnvironment=OOODD_OFFICE=/opt/another-office/program\n"
    )
    service.machine.run("systemctl", "daemon-reload", check=True)
    try:
        pid = service.serves()
        command = service.machine.read(f"/proc/{pid}/cmdline")
        assert command.startswith("/opt/another-office/program/soffice.bin\0-env:UserInstallation=")
    finally:
        service.machine.run("rm", OFFICE_DROP_IN, check=True)
        service.machine.run("systemctl", "daemon-reload", check=True)


def test_an_office_that_asks_to_be_started_again_is_started_again(service: Service) -> None:
    """The office exits with status 81 until a file exists."""
    machine = service.machine
    service.configure("[pool]\nworkers = 1\n")
    script = '#!/bin/sh\n[ -e /opt/again/go ] || exit 81\nexec /usr/lib/libreoffice/program/soffice.bin "$@"\n'
    machine.put("/opt/again/soffice.bin", script, mode=0o755)
    machine.put("/opt/again/versionrc", machine.read("/usr/lib/libreoffice/program/versionrc"))
    machine.put(OFFICE_DROP_IN, "[Service]\nBindReadOnlyPaths=/opt/again\nEnvironment=OOODD_OFFICE=/opt/again\n")
    machine.run("systemctl", "daemon-reload", check=True)
    try:
        moment = machine.journal_moment()
        service.start()
        entry = machine.wait_journal("ooodd.service", "PRIORITY=3", after=moment)
        assert re.search(r"worker 1 can't be started: (exit status 81|ended at once)", entry["MESSAGE"])
        machine.put("/opt/again/go", "")
        service.wait_idle()
        assert service.serves()
    finally:
        machine.run("rm", OFFICE_DROP_IN, check=True)
        machine.run("systemctl", "daemon-reload", check=True)


def test_a_missing_polkit_rule_is_reported_and_its_return_is_found(service: Service) -> None:
    machine = service.machine
    service.configure("[pool]\nworkers = 1\n")
    rule = machine.read(POLKIT_RULE)
    moment = machine.journal_moment()
    machine.run("rm", POLKIT_RULE, check=True)
    machine.run("systemctl", "restart", "polkit.service", check=True)
    try:
        service.start()
        entry = machine.wait_journal("ooodd.service", "PRIORITY=3", after=moment)
        assert "the polkit rule of ooodd is missing" in entry["MESSAGE"]
        assert POLKIT_RULE in entry["MESSAGE"]
    finally:
        machine.put(POLKIT_RULE, rule)
    machine.run("systemctl", "restart", "polkit.service", check=True)
    service.wait_idle()
    assert service.serves()


def test_a_missing_bus_is_reported(fresh_service: Service) -> None:
    machine = fresh_service.machine
    moment = machine.journal_moment()
    machine.run("systemctl", "stop", "dbus.socket", "dbus.service")
    machine.run("systemctl", "mask", "--runtime", "dbus.socket", "dbus.service")
    machine.run("systemctl", "start", "--no-block", "ooodd.service")
    entry = machine.wait_journal(None, "SYSLOG_IDENTIFIER=ooodd", "PRIORITY=3", after=moment)
    assert "can't reach the system message bus" in entry["MESSAGE"]
    assert "systemctl status dbus" in entry["MESSAGE"]
    machine.run("systemctl", "unmask", "--runtime", "dbus.socket", "dbus.service")
    machine.run("systemctl", "start", "dbus.socket")
    until(lambda: machine.run("ooodd", "status").returncode == 0, PATIENCE, "the broker to be up")
    assert fresh_service.serves()


def test_the_units_are_verified_and_tight(service: Service) -> None:
    machine = service.machine
    verified = machine.run(
        "systemd-analyze", "verify", "--man=no", *(f"/usr/lib/systemd/system/{unit}" for unit in UNITS[1:3])
    )
    assert verified.returncode == 0, verified.stderr
    assert "ooodd" not in verified.stderr, verified.stderr
    for unit, most in (("ooodd.service", 0.5), ("ooodd-worker@1.service", 0.5), ("ooodd-socket-failed.service", 3.0)):
        shown = machine.run("systemd-analyze", "security", "--no-pager", unit).stdout
        exposure = float(shown.split("Overall exposure level for")[1].split(":")[1].split()[0])
        assert exposure <= most, shown


def test_the_broker_may_do_nothing_but_its_work(service: Service) -> None:
    service.machine.run("install", "-d", "-o", "ooodd", "-g", "ooodd", "-m", "770", "/run/ooodd-worker/1", check=True)
    for unit, verb, allowed in (
        ("ooodd-worker@1.service", "stop", True),
        ("ooodd-worker@1.service", "start", True),
        *((f"ooodd-worker@{number}.service", "start", False) for number in ("x", "0", "007", "1001", "999999", "1-1")),
        ("ooodd-profile.service", "start", True),
        ("ooodd-profile.service", "stop", False),
        ("ooodd-worker@1.service.d", "start", False),
        ("dbus.service", "stop", False),
        ("ooodd.socket", "stop", False),
    ):
        done = service.machine.run("systemctl", "--no-ask-password", verb, unit, user="ooodd")
        assert (done.returncode == 0) == allowed, (unit, verb, done.stderr)
    other = service.machine.run("systemctl", "--no-ask-password", "start", "ooodd-worker@1.service", user="nobody")
    assert other.returncode != 0
    service.machine.run("systemctl", "stop", "ooodd-worker@1.service", check=True)


def test_an_office_sees_no_neighbour_and_no_network(service: Service) -> None:
    service.configure("[pool]\nworkers = 2\nmin_workers = 2\n")
    service.start()
    first, second = service.wait_idle()
    enter = ["nsenter", f"--target={first['pid']}", "--mount", "--net", "--"]
    assert service.machine.run(*enter, "ls", "/run/ooodd-worker").stdout.split() == ["1", "home"]
    assert service.machine.run("stat", "-c", "%a %U", "/run/ooodd-worker/1").stdout.split() == ["700", "ooodd"]
    assert service.machine.run(*enter, "ls", "/sys/class/net").returncode in (0, 2)
    links = service.machine.run(*enter, "ip", "-json", "link")
    if links.returncode == 0:
        assert [link["ifname"] for link in json.loads(links.stdout)] == ["lo"]
    assert first["uid"] != second["uid"]


def test_each_file_that_the_manuals_and_units_name_is_in_the_package(machine: Machine) -> None:
    sources = [*SOURCE_TREE.glob("docs/*.md"), *SOURCE_TREE.glob("systemd/*"), *SOURCE_TREE.glob("src/ooodd/data/*")]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    named = set(re.findall(r"/usr/(?:share/doc|lib|lib/python3/dist-packages)/ooodd/[\w./-]*\w", text))
    assert len(named) > 5
    assert [path for path in sorted(named) if machine.run("test", "-e", path).returncode != 0] == []
