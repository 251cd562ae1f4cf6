# SPDX-License-Identifier: LGPL-2.1-or-later
"""The shutdown of a machine on which ooodd serves."""

from pathlib import Path

from deadline import until
from ooodd import messages
from service import PATIENCE, Service, finish


def test_a_session_may_end_before_the_machine_does(fresh_service: Service) -> None:
    service, machine = fresh_service, fresh_service.machine
    service.configure("[pool]\nworkers = 2\n")
    holder, office = service.holding_client()
    service.wait_whole(2)
    broker, offices = (machine.cgroup / path for path in ("system.slice/ooodd.service", "ooodd.slice"))
    assert broker.exists()
    assert len([*offices.glob("*/ooodd-worker@*"), *offices.glob("ooodd-worker@*")]) == 2
    moment = machine.journal_moment()
    machine.run("systemctl", "poweroff", "--no-block", check=True)
    stopping = ("ooodd.service", f"MESSAGE_ID={messages.BROKER_STOPPING.id}")
    told = machine.wait_journal(*stopping, after=moment, timeout=PATIENCE)
    assert "1 sessions have 30 s to end" in told["MESSAGE"]
    assert finish(holder) == [{"step": "still", "pid": office["pid"]}]
    assert holder.returncode == 0
    until(lambda: not broker.exists(), PATIENCE, "the broker to stop")
    assert not [path for path in offices.rglob("cgroup.procs") if path.read_text()], "it has stopped its offices"
    # PID 1 is that program when all units have stopped. It then syncs the disks of the host, which we don't wait for.
    comm = Path(f"/proc/{machine.pid}/comm")
    until(lambda: not comm.exists() or comm.read_text() == "systemd-shutdow\n", PATIENCE, "all units to stop")
