# SPDX-License-Identifier: LGPL-2.1-or-later
"""A plain office beside ooodd, on a port of its own: what a client gets there is the measure."""

from collections.abc import Iterator
from contextlib import contextmanager

from deadline import until
from machine import Machine
from service import PATIENCE

PLAIN_PORT = 2950
PROGRAM = "/usr/lib/libreoffice/program/soffice.bin"
APPLICATION = "app"
HOME = f"/home/{APPLICATION}"
AS_APPLICATION = (
    *("setpriv", f"--reuid={APPLICATION}", f"--regid={APPLICATION}", "--clear-groups"),
    *("env", f"HOME={HOME}"),
)
"""Before a command: it runs as the application's user."""


@contextmanager
def plain_office(machine: Machine) -> Iterator[None]:
    """Run a plain office as the application's user, which has to be there, with the settings of a new user.

    It is started again when it ends: the first start in a profile may only prepare it, and a document may crash it.
    """
    machine.run("install", "-d", "-o", APPLICATION, HOME, check=True)
    accept = f"'--accept=socket,host=127.0.0.1,port={PLAIN_PORT};urp'"
    office = f"{PROGRAM} --headless --norestore --nologo --nodefault {accept}"
    listening = ("bash", "-c", f"</dev/tcp/127.0.0.1/{PLAIN_PORT}")
    with machine.popen(*AS_APPLICATION, "sh", "-c", f"while :; do {office}; done", cwd=HOME) as process:
        until(lambda: machine.run(*listening).returncode == 0, PATIENCE, "the plain office")
        yield
        machine.run("pkill", "-9", "-u", APPLICATION, "-x", "sh")
        machine.run("pkill", "-9", "-u", APPLICATION, "-x", "soffice.bin")
        process.wait(PATIENCE)
