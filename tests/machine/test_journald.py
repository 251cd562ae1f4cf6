# SPDX-License-Identifier: LGPL-2.1-or-later
"""A journald that hangs: the broker serves on, and its lines come later."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from machine import Machine
from ooodd import messages
from places import PYTHON
from service import PATIENCE, Service

WATCHDOG = 2.0

# Sends until journald's socket takes no more, from anybody.
FILL = """
import socket
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
    sender.connect("/run/systemd/journal/socket")
    try:
        while True:
            sender.send(b"MESSAGE=fill\\nPRIORITY=7\\n")
    except BlockingIOError:
        pass
"""


@contextmanager
def hung_journald(machine: Machine) -> Iterator[None]:
    """Stop journald, and fill its socket."""
    pid = machine.run("systemctl", "show", "-P", "MainPID", "systemd-journald.service", check=True).stdout.strip()
    machine.run("kill", "-STOP", pid, check=True)
    try:
        # Each sender may have only so much under way, so several fill it for sure.
        for _ in range(3):
            machine.run(PYTHON, "-c", FILL, check=True)
        yield
    finally:
        machine.run("kill", "-CONT", pid, check=True)


def test_a_broker_serves_on_while_journald_hangs(fresh_service: Service) -> None:
    service = fresh_service
    short = f"[Service]\nWatchdogSec={WATCHDOG:g}s\nTimeoutAbortSec=1s\n"
    service.machine.put("/etc/systemd/system/ooodd.service.d/watchdog.conf", short)
    service.machine.run("systemctl", "daemon-reload", check=True)
    service.configure("[pool]\nworkers = 1\nmax_uses = 1000\n")
    service.serves()
    service.wait_idle()
    broker, moment, sessions = service.main_pid(), service.machine.journal_moment(), 0
    with hung_journald(service.machine):
        end = time.monotonic() + 3 * WATCHDOG
        while time.monotonic() < end:
            service.serves()
            sessions += 1
        assert service.main_pid() == broker, "the watchdog has ended it"
    end_lines = f"MESSAGE_ID={messages.SESSION_END.id}"
    last = service.machine.wait_journal(
        "ooodd.service", end_lines, f"OOODD_SESSION={sessions + 1}", after=moment, timeout=PATIENCE
    )
    assert last["SYSLOG_IDENTIFIER"] == "ooodd"
    lines = service.lines(messages.SESSION_END, moment)
    print(f"{sessions} sessions while journald hung")
    assert [int(line["OOODD_SESSION"]) for line in lines] == list(range(2, sessions + 2))
