# SPDX-License-Identifier: LGPL-2.1-or-later
"""Soak: run thousands of sessions of real clients on a throwaway machine, inject faults, and audit the journal.

    tests/soak/run [--sessions N] [--seed N] [--defaults]

`make soak` calls it. Each session is served, is refused, or ends by a fault. The sum must be right, and the journal
must explain what each client saw. At the end the pool must be complete, no descriptor may be left over, and after a
stop no office. If anything is unexplained, the exit status is 1 and a list says what. The records are in build/soak.

Each office serves ten sessions or so, and no session is reclaimed. With --defaults, both are as the package has them.
OOODD_TESTS_MODE names the data path.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import plan
from audit import Audit, Report
from machine import SOURCE_TREE, Machine, missing
from places import DOCUMENTS_INSIDE, PYTHON
from service import Service, handed_off, show_to_offices

HERE = Path(__file__).resolve().parent
RECORDS = SOURCE_TREE / "build" / "soak"
INSIDE = "/tmp/soak"
OTHER_CONFIGURATION = "/etc/ooodd/other.toml"
# The limits are low, so that they are reached within the run.
MIN_WORKERS = 2
CONFIGURATION = """\
[pool]
workers = {workers}
min_workers = {least}
spare_workers = 1
{uses}
start_timeout = "5s"
probe_interval = "3s"
probe_timeout = "3s"

[queue]
max_clients = 30

[session]
grace = "2s"
{reclaim}

[log]
level = "detail"
"""
REUSE = {"uses": "max_uses = 10\nmax_uses_jitter = 3", "reclaim": 'reclaim_after = "infinity"'}
DEFAULTS = {"uses": "", "reclaim": ""}
# The longest time for each session, and for everything else, in seconds.
SESSION_LIMIT = 0.5
REST_LIMIT = 300.0
FIELDS = "MESSAGE,MESSAGE_ID,OOODD_CLIENT,OOODD_SESSION,OOODD_WORKER,SYSLOG_IDENTIFIER,_SOURCE_REALTIME_TIMESTAMP"


def write(text: str = "") -> None:
    print(text, flush=True)


class Soak:
    """One run on one machine."""

    def __init__(self, machine: Machine, sessions: int, seed: int, settings: dict[str, str]) -> None:
        self.machine = machine
        self.settings = settings
        self.service = Service(machine)
        self.sessions = sessions
        self.seed = seed
        self.complaints: list[str] = []

    def prepare(self) -> None:
        # By default journald drops what exceeds 10,000 lines of a service in 30 s, or a tenth of the size of /run.
        limits = "[Journal]\nRateLimitBurst=0\nRuntimeMaxUse=4G\nRuntimeMaxFileSize=1G\n"
        self.machine.put("/etc/systemd/journald.conf.d/soak.conf", limits)
        self.machine.run("systemctl", "restart", "systemd-journald.service", check=True)
        other = CONFIGURATION.format(workers=3, least=MIN_WORKERS, **self.settings)
        self.machine.put(OTHER_CONFIGURATION, handed_off(other))
        self.service.configure(CONFIGURATION.format(workers=4, least=MIN_WORKERS, **self.settings))
        self.service.start()
        self.service.wait_idle()

    def run(self) -> bool:
        self.prepare()
        before = self.descriptors()
        memory = self.broker_memory()
        begun = time.monotonic()
        self.drive()
        seconds = time.monotonic() - begun
        try:
            self.service.wait_idle()
        except TimeoutError as error:
            self.complaints.append(str(error))
        status = self.service.status()
        after = self.descriptors()
        faults = self.records("faults.jsonl")
        report = self.audit(status["totals"], faults)
        self.check_end(before, after, status)
        self.write_report(report, faults, seconds)
        write(f"\ntotals of ooodd status: {status['totals']}")
        write(f"the broker's memory: {memory} KiB before, {self.broker_memory()} KiB after")
        write(f"descriptors of the broker and in systemd's store: {before} before, {after} after")
        self.stop()
        self.complaints += report.complaints
        return not self.complaints

    def drive(self) -> None:
        limit = self.sessions * SESSION_LIMIT + REST_LIMIT
        words = (PYTHON, str(HERE / "drive.py"), str(self.sessions), str(self.seed), INSIDE)
        drive = self.machine.popen(*words, cwd="/tmp", stdin=subprocess.DEVNULL, stdout=None, stderr=None)
        with drive:
            if drive.wait(limit):
                raise RuntimeError(f"drive.py ended with status {drive.returncode}")

    def records(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.machine.read(f"{INSIDE}/{name}").splitlines()]

    def journal(self) -> list[dict[str, Any]]:
        self.machine.run("journalctl", "--sync", check=True)
        words = ("journalctl", "--quiet", "--all", "--output=json", f"--output-fields={FIELDS}")
        which = ("SYSLOG_IDENTIFIER=ooodd", "+", "UNIT=ooodd.service")
        lines = self.machine.run(*words, *which, check=True, timeout=300).stdout.splitlines()
        return [json.loads(line) for line in lines]

    def audit(self, totals: dict[str, int], faults: list[dict[str, Any]]) -> Report:
        sessions, entries = self.records("sessions.jsonl"), self.journal()
        save("sessions.jsonl", sessions)
        save("faults.jsonl", faults)
        save("journal.jsonl", entries)
        save("totals.jsonl", [totals])
        report = Audit(sessions, faults, entries).run(totals)
        if sum(report.outcomes.values()) != self.sessions:
            report.complaints.append(f"{self.sessions} sessions began, but {dict(report.outcomes)} ended")
        return report

    def descriptors(self) -> tuple[int, int]:
        """Return the number of descriptors of the broker, and of those that systemd keeps for it."""
        pid = self.show("MainPID")
        own = self.machine.run("ls", f"/proc/{pid}/fd", check=True).stdout.split()
        return len(own), int(self.show("NFileDescriptorStore"))

    def broker_memory(self) -> int:
        status = self.machine.read(f"/proc/{self.show('MainPID')}/status")
        return int(status.split("VmRSS:")[1].split()[0])

    def show(self, name: str) -> str:
        shown: str = self.machine.run("systemctl", "show", "-P", name, "ooodd.service", check=True).stdout
        return shown.strip()

    def check_end(self, before: tuple[int, int], after: tuple[int, int], status: dict[str, Any]) -> None:
        if before != after:
            text = f"descriptors of the broker, and in systemd's store: {before} before, {after} after"
            self.complaints.append(text)
        states = Counter(worker["state"] for worker in status["workers"])
        if set(states) - {"idle", "stopped"} or status["queue"]["length"]:
            self.complaints.append(f"the pool is not complete: {dict(states)}, queue {status['queue']}")
        running = {int(pid) for pid in self.machine.run("pgrep", "-x", "soffice.bin").stdout.split()}
        known = {worker["pid"] for worker in status["workers"] if worker["state"] == "idle"}
        if running != known or len(known) < MIN_WORKERS:
            self.complaints.append(f"offices {sorted(running)} run, but ooodd status shows {sorted(known)}")

    def stop(self) -> None:
        self.service.stop()
        if left := self.machine.run("pgrep", "-l", "soffice").stdout:
            self.complaints.append(f"offices left after the stop: {left}")
        if left := self.machine.run("systemctl", "list-units", "--plain", "--no-legend", "ooodd*").stdout:
            active = [unit for unit in left.splitlines() if " active " in unit and ".slice" not in unit]
            self.complaints += [f"active after the stop: {unit}" for unit in active]

    def write_report(self, report: Report, faults: list[dict[str, Any]], seconds: float) -> None:
        outcomes = report.outcomes
        total = sum(outcomes.values())
        parts = " + ".join(f"{outcomes[name]} {text}" for name, text in OUTCOMES.items())
        write(f"\n{total} sessions = {parts}, in {seconds:.0f} s")
        write("\nfaults:")
        bursts = sum(session.burst for session in plan.make(self.sessions, self.seed)[0])
        show(Counter({f"burst of {plan.BURST} clients": round(bursts / plan.BURST)}))
        show(Counter(fault["kind"] for fault in faults))
        write("\ncauses of the sessions that ended by a fault, from the journal:")
        show(report.causes)
        write("\nlines of the journal:")
        show(report.lines)


OUTCOMES = {"served": "served", "refused": "refused", "fault": "ended by a fault"}


def show(counts: Counter[str]) -> None:
    for name, count in counts.most_common():
        write(f"  {count:7} {name}")


def save(name: str, lines: list[dict[str, Any]]) -> None:
    RECORDS.mkdir(parents=True, exist_ok=True)
    (RECORDS / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def describe_host(machine: Machine) -> str:
    versions = machine.run("sh", "-c", "systemctl --version | head -n 1; soffice --version; python3 --version").stdout
    package = machine.run("dpkg-query", "-W", "-f", "${Package} ${Version}", "ooodd").stdout
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    host = f"{os.cpu_count()} CPUs, {memory:.0f} GiB, Linux {platform.release()}"
    return "; ".join([host, *versions.splitlines(), package])


def main() -> int:
    """Run a soak and write its result."""
    parser = argparse.ArgumentParser(description="Thousands of sessions with faults, and an audit.")
    parser.add_argument("--sessions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--defaults", action="store_true")
    arguments = parser.parse_args()
    settings = DEFAULTS if arguments.defaults else REUSE
    if reason := missing():
        write(f"soak: can't boot a throwaway machine here: {reason}")
        return 1
    debs = sorted((SOURCE_TREE / "dist").glob("ooodd_*.deb"))
    with tempfile.TemporaryDirectory(prefix="ooodd-soak-") as directory:
        make = (PYTHON, str(SOURCE_TREE / "tests/documents/make.py"), directory)
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        Path(directory).chmod(0o755)  # each office runs as a user of its own
        with Machine.boot(share={Path(directory): DOCUMENTS_INSIDE}) as machine:
            machine.install(*debs)
            show_to_offices(machine, DOCUMENTS_INSIDE)
            write(f"{arguments.sessions} sessions, seed {arguments.seed}, on {describe_host(machine)}")
            soak = Soak(machine, arguments.sessions, arguments.seed, settings)
            explained = soak.run()
    for complaint in soak.complaints:
        write(f"\nUNEXPLAINED: {complaint}")
    write(
        "\nnothing is unexplained"
        if explained
        else f"\n{len(soak.complaints)} things are unexplained; records in {RECORDS}"
    )
    return 0 if explained else 1


if __name__ == "__main__":
    sys.exit(main())
