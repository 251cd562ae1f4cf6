# SPDX-License-Identifier: LGPL-2.1-or-later
"""[access]: users and groups of local clients, hosts, and a port that other hosts can reach."""

import subprocess

import pytest

from ooodd import messages
from places import CLIENTS, PYTHON
from service import CONFIGURATION, Service

OPEN_PORT = "[Socket]\nListenStream=\nListenStream=2002\n"


@pytest.fixture
def users(fresh_service: Service) -> Service:
    """Two users; one is in a group."""
    for command in ("groupadd clients", "useradd -G clients alice", "useradd mallory"):
        fresh_service.machine.run(*command.split(), check=True)
    return fresh_service


def served(service: Service, user: str, host: str = "127.0.0.1") -> subprocess.CompletedProcess[str]:
    command = (PYTHON, f"{CLIENTS}/convert.py", f"--host={host}", "--office")
    return service.machine.run(*command, user=user, cwd="/tmp")


@pytest.mark.parametrize("rule", ['allowed_users = ["alice"]', 'allowed_groups = ["clients"]'])
def test_of_local_users_those_who_are_named(users: Service, rule: str) -> None:
    users.configure(f"[pool]\nworkers = 2\n[access]\n{rule}\n")
    moment = users.machine.journal_moment()
    assert served(users, "alice").returncode == 0
    refused = served(users, "mallory")
    text = f"ooodd: 127.0.0.1 (user mallory) may not connect ([access] {rule.split(maxsplit=1)[0]})"
    assert refused.returncode == 1
    assert text in refused.stdout
    assert text in users.line(messages.CLIENT_REFUSED, moment)["MESSAGE"]
    assert users.totals()["sessions"] == 1


def test_of_hosts_those_who_are_named(users: Service) -> None:
    """By IPv4 on a socket for both protocols. The port is warned of as long as everybody may connect."""
    machine = users.machine
    machine.run("ip", "address", "add", "192.0.2.1/32", "dev", "lo", check=True)
    users.stop()
    with users.drop_in("ooodd.socket", OPEN_PORT):
        users.configure("[pool]\nworkers = 2\n")
        moment = machine.journal_moment()
        assert served(users, "alice").returncode == 0
        warning = "other hosts can reach [::]:2002, and everybody may use an office there: set [access] allowed_hosts"
        assert users.line(messages.LISTENER_EXPOSED, moment)["MESSAGE"] == warning
        assert users.status()["warnings"] == [warning]
        shown = machine.run("ooodd", "status")
        assert shown.returncode == 1, "it serves, but not as it should"
        assert f"warning: {warning}" in shown.stdout
        machine.put(CONFIGURATION, '[pool]\nworkers = 2\n[access]\nallowed_hosts = ["192.0.2.0/24"]\n')
        machine.run("systemctl", "reload", "ooodd.service", check=True)
        assert users.status()["warnings"] == []
        assert served(users, "alice", "192.0.2.1").returncode == 0
        refused = served(users, "alice")
        assert refused.returncode == 1
        assert "may not connect ([access] allowed_hosts)" in refused.stdout
        users.stop()
