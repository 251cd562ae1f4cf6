# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where attacks happen: a machine with things worth an attack, the pool, and a bare office that root has started.

Each attack is also made on the bare office, where it must succeed. So none fails here for a wrong reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from command import Command
from deadline import until
from machine import Machine
from places import PYTHON
from plain import PROGRAM
from service import PATIENCE, Service

ATTACK = str(Path(__file__).with_name("attack.py"))
POOL, BARE = 2002, 2960
Findings = dict[str, str]

SECRETS = [
    *("/boot/secret", "/etc/secret", "/home/alice/secret", "/opt/app/secret", "/run/secret", "/srv/app/secret"),
    *("/tmp/secret", "/usr/local/etc/secret", "/var/lib/app/secret", "/var/tmp/secret"),
]
"""Files that everybody may read."""
PRIVATE = "/srv/app/private"
"""A file that only root may read."""


def plant(machine: Machine) -> None:
    """Make the files, and a device."""
    for path in SECRETS:
        machine.put(path, "a secret of the machine\n")
    machine.put(PRIVATE, "a secret of root\n", mode=0o600)
    machine.run("mknod", "--mode=666", "/dev/attack", "c", "1", "5", check=True)


@contextmanager
def bare_office(machine: Machine) -> Iterator[None]:
    """Run an office as root, as people do who have no pool. It is started again when it ends."""
    office = f"{PROGRAM} --headless --norestore --nologo --nodefault '--accept=socket,host=127.0.0.1,port={BARE};urp'"
    listening = ("bash", "-c", f"</dev/tcp/127.0.0.1/{BARE}")
    env = {"HOME": "/root", "LC_ALL": "C.UTF-8"}
    with machine.popen("sh", "-c", f"while :; do {office}; done", env=env) as process:
        until(lambda: machine.run(*listening).returncode == 0, PATIENCE, "the bare office")
        yield
        machine.run("pkill", "-9", "-f", f"port={BARE}")
        process.wait(PATIENCE)


class Scene:
    """A machine, and attacks on it."""

    def __init__(self, machine: Machine, *, as_user: bool = False) -> None:
        self.machine = machine
        self.service = Service(machine)
        # Whether the offices run as the application's user.
        self.as_user = as_user

    def attack(self, port: int, name: str, parameter: object = 0) -> Findings:
        """Make one attack, and return what it has found."""
        command = (PYTHON, ATTACK, f"--port={port}", name, json.dumps(parameter))
        done = self.machine.run("timeout", "120", *command, cwd="/tmp", timeout=150)
        steps = [json.loads(line) for line in done.stdout.splitlines()]
        assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:])
        found: Findings = steps[0]["found"]
        return found

    def holding(self, name: str, parameter: object = 0, port: int = POOL) -> Command:
        """Start an attacker that keeps its office after its attack. The caller ends it."""
        return self.machine.popen(PYTHON, ATTACK, f"--port={port}", "--hold", name, json.dumps(parameter), cwd="/tmp")


def allowed(found: Findings) -> set[str]:
    """What an attack was allowed to do."""
    return {what for what, result in found.items() if result.startswith("allowed")}
