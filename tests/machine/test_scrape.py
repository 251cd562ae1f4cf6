# SPDX-License-Identifier: LGPL-2.1-or-later
"""ooodd-metrics, as it is installed, and its figures beside those of `ooodd status --json`."""

import re

import pytest

from deadline import until
from machine import SOURCE_TREE
from service import PATIENCE, Service

UNITS = ("ooodd-metrics.socket", "ooodd-metrics.service")
# Where the machine counts it.
MEMORY = "ooodd_office_memory_bytes"
SCRAPE = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9942/metrics').read().decode())"


@pytest.fixture(autouse=True)
def needs_the_library(service: Service) -> None:
    if service.machine.run("python3", "-c", "import prometheus_client").returncode != 0:
        pytest.skip("there is no python3-prometheus-client")


def scrape(service: Service) -> dict[str, float]:
    """Each sample by its name and labels."""
    text = service.machine.run("python3", "-c", SCRAPE, check=True).stdout
    lines = [line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_it_is_off_by_default(service: Service) -> None:
    for unit in UNITS:
        assert service.machine.run("systemctl", "is-active", unit).stdout == "inactive\n"
        assert service.machine.run("systemctl", "is-enabled", unit).stdout in ("disabled\n", "static\n")


def test_its_figures_are_those_of_the_status(service: Service) -> None:
    machine = service.machine
    machine.run("systemctl", "start", "ooodd-metrics.socket", check=True)
    try:
        service.stop()
        asleep = scrape(service)
        assert (asleep["ooodd_up"], asleep["ooodd_sleeping"]) == (0, 1)
        assert machine.run("systemctl", "is-active", "ooodd.service").stdout == "inactive\n", "a scrape starts nothing"
        service.configure("[pool]\nworkers = 2\nmin_workers = 1\nmax_uses = 1\n")
        machine.run("systemctl", "start", "ooodd.socket", check=True)
        for _ in range(2):
            assert service.serves()
        until(lambda: service.totals()["recycled"] == 2, PATIENCE, "the last office to go")
        until(lambda: service.states().count("idle") == 1, PATIENCE, "an idle worker")
        status, samples = service.status(), scrape(service)
        assert samples["ooodd_up"] == 1
        assert samples["ooodd_sessions_total"] == status["totals"]["sessions"] == 2
        assert samples["ooodd_wait_seconds_count"] == samples["ooodd_session_seconds_count"] == 2
        assert samples['ooodd_workers{state="idle"}'] >= 1
        assert samples['ooodd_stopped_by_reason_total{reason="used-up"}'] == status["totals"]["recycled"] == 2
        machine.run("ooodd", "pause", check=True)
        assert scrape(service)["ooodd_paused"] == 1
        machine.run("ooodd", "resume", check=True)
    finally:
        machine.run("systemctl", "stop", *UNITS, check=True)


def test_it_is_confined(service: Service) -> None:
    shown = service.machine.run("systemd-analyze", "security", "--no-pager", "ooodd-metrics.service").stdout
    (line,) = (line for line in shown.splitlines() if "Overall exposure level" in line)
    assert float(line.split(":")[1].split()[0]) <= 1.0, line


def test_the_commands_of_the_page_work_as_written(service: Service) -> None:
    """docs/monitoring.md from top to bottom. `ooodd top` gets a terminal, and `ooodd kick` a session that there is."""
    machine = service.machine
    page = (SOURCE_TREE / "docs" / "monitoring.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    assert len(lines) > 10
    service.configure("[pool]\nworkers = 2\n")
    assert service.serves()
    try:
        for line in lines:
            if line.startswith("ooodd top"):
                terminal = "stty rows 24 cols 80; exec ooodd top"
                machine.run("script", "-qefc", terminal, "/dev/null", input="q", env={"TERM": "xterm"}, check=True)
            elif line.startswith("ooodd kick"):
                holder, office = service.holding_client()
                (session,) = (each["session"] for each in service.status()["workers"] if each["pid"] == office["pid"])
                machine.run("sh", "-c", line.replace("17", str(session)), check=True)
                holder.release()
            else:
                machine.run("sh", "-c", line, check=True)
        assert machine.run("systemctl", "is-enabled", UNITS[0]).stdout == "enabled\n"
        assert machine.run("ooodd", "status", user="ooodd-watcher").returncode == 3
        shown = set(scrape(service))
        service.start()
        shown |= set(scrape(service))
        names = {re.sub(r"\{.*", "", name) for name in re.findall(r"`(ooodd_\w+(?:\{\w+\})?)`", page)}
        known = {re.sub(r"(\{.*|_bucket|_count|_sum)$", "", re.sub(r"\{.*", "", name)) for name in shown}
        # Those with labels that nothing has had yet are not shown.
        assert names - known <= {"ooodd_refused_by_reason_total", "ooodd_stopped_by_reason_total", MEMORY}
    finally:
        machine.run("systemctl", "disable", "--now", *UNITS, check=True)
        machine.run("userdel", "ooodd-watcher")
