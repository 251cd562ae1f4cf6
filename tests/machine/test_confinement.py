# SPDX-License-Identifier: LGPL-2.1-or-later
"""A machine on which systemd may not mount another /proc, as in an unprivileged LXC container."""

import re
import subprocess
from pathlib import Path

import pytest

from deadline import until
from machine import SOURCE_TREE
from places import CLIENTS, PYTHON
from service import PATIENCE, Service

# From this version on, systemd goes on with the machine's /proc if it may not mount another.
TOLERANT = 257


def the_commands() -> str:
    """Those of docs/confinement.md, which install the drop-in."""
    text = (SOURCE_TREE / "docs/confinement.md").read_text()
    match = re.search(r"^( +)for unit.*?(?=\n\n)", text, re.DOTALL | re.MULTILINE)
    assert match is not None
    return match[0]


@pytest.fixture
def refused(fresh_service: Service, tmp_path: Path) -> Service:
    """Refuse systemd each mount of a /proc. For all units but the worker, the drop-in is there."""
    service, machine = fresh_service, fresh_service.machine
    source, library = Path(__file__).with_name("refuse_mounts.c"), tmp_path / "refuse_mounts.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-Wall", "-o", library, source], check=True)
    service.stop()
    machine.copy_in(library, "/usr/lib/refuse_mounts.so")
    machine.put("/etc/ld.so.preload", "/usr/lib/refuse_mounts.so\n")
    machine.run("sh", "-e", "-c", the_commands(), check=True)
    machine.run("rm", "/etc/systemd/system/ooodd-worker@.service.d/container.conf", check=True)
    machine.run("systemctl", "daemon-reexec", check=True)
    return service


def test_a_container_that_may_not_mount_proc_serves_with_the_drop_in(refused: Service) -> None:
    service, machine = refused, refused.machine
    service.configure("[pool]\nworkers = 1\nmax_uses = 1\n")
    if int(machine.run("systemctl", "--version").stdout.split()[1]) < TOLERANT:
        told = machine.run(PYTHON, f"{CLIENTS}/convert.py", "--office", timeout=2 * PATIENCE).stdout
        assert "status 226/NAMESPACE): in a container, install the drop-in /usr/lib/ooodd/container.conf" in told
        assert "container.conf" in service.status()["start_error"]
    machine.run("sh", "-e", "-c", the_commands(), check=True)
    machine.run("systemctl", "restart", "ooodd.service", check=True)
    until(lambda: service.status_if_running().get("start_error") == "", PATIENCE, "an office")
    assert service.serves()
    failed = machine.run("systemctl", "--failed", "--plain", "--no-legend").stdout
    assert failed == ""
    service.stop()
    machine.run("sh", "-c", "until ! pgrep -x soffice.bin; do sleep 0.1; done", check=True)
