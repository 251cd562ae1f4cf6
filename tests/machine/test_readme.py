# SPDX-License-Identifier: LGPL-2.1-or-later
"""README's first steps work as they are written, in a copy of the source tree."""

import re

from machine import SOURCE_TREE, Machine
from places import DOCUMENTS_INSIDE
from service import Service

COPY = 'mkdir "$1" && tar -C "$0" --exclude ./build --exclude ./dist --exclude ./.git -c . | tar -C "$1" -x'
# Only root can read /root, as with a clone of an administrator. The source tree itself may be in there as well.
TREE = "/root/first-steps"


def first_steps() -> str:
    """The commands."""
    section = (SOURCE_TREE / "README.md").read_text(encoding="utf-8").split("## First steps")[1]
    match = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert match is not None
    return match.group(1)


def test_the_first_steps_work_as_written(bare_machine: Machine, expected_pages: dict[str, int]) -> None:
    machine = bare_machine
    machine.run("sh", "-c", COPY, str(SOURCE_TREE), TREE, check=True)
    source = next(name for name in expected_pages if name.endswith(".docx"))
    machine.run("cp", f"{DOCUMENTS_INSIDE}/{source}", f"{TREE}/report.docx", check=True)
    # Only its owner may read it: nothing in README says that others must.
    machine.run("chmod", "600", f"{TREE}/report.docx", check=True)
    machine.put("/etc/apt/apt.conf.d/yes", 'APT::Get::Assume-Yes "true";\n')
    machine.run("bash", "-euxo", "pipefail", "-c", first_steps(), cwd=TREE, timeout=300, check=True)
    assert Service(machine).pages(f"{TREE}/report.pdf") == expected_pages[source]


def test_the_autopkgtest_passes(service: Service) -> None:
    """As autopkgtest runs it, which is not installed here: as root, with a directory of its own."""
    machine = service.machine
    machine.run("systemctl", "start", "ooodd.socket", check=True)
    machine.run("mkdir", "-p", "/tmp/autopkgtest", check=True)
    script = str(SOURCE_TREE / "packaging" / "debian" / "tests" / "smoke")
    machine.run(script, env={"AUTOPKGTEST_TMP": "/tmp/autopkgtest"}, check=True)
