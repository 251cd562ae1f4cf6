# SPDX-License-Identifier: LGPL-2.1-or-later
"""docs/coming-from.md: who had the port before gives it to ooodd, by the commands as they are written."""

import re

import pytest

from deadline import until
from machine import SOURCE_TREE
from places import DOCUMENTS_INSIDE
from service import PATIENCE, Service

PAGE = (SOURCE_TREE / "docs" / "coming-from.md").read_text(encoding="utf-8")
BEFORE = {
    "soffice": "Environment=HOME=/tmp\n"
    "ExecStart=/usr/bin/soffice --headless --accept=socket,host=127.0.0.1,port=2002;urp",
    "haproxy": 'ExecStart=/usr/bin/python3 -c \'import socket,time; s = socket.create_server(("127.0.0.1", 2002)); '
    "time.sleep(3600)'",
}


def commands(heading: str) -> str:
    """The commands below a heading."""
    match = re.search(rf"^## {heading}\n.*?^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert match is not None
    return match.group(1)


@pytest.mark.parametrize(("heading", "unit"), [(".* in a unit", "soffice"), (".*HAProxy", "haproxy")])
def test_the_port_changes_hands(service: Service, heading: str, unit: str) -> None:
    machine = service.machine
    path = f"/etc/systemd/system/{unit}.service"
    service.stop()
    machine.put(path, f"[Service]\n{BEFORE[unit]}\n[Install]\nWantedBy=multi-user.target\n")
    try:
        machine.run("systemctl", "daemon-reload", check=True)
        machine.run("systemctl", "enable", "--now", f"{unit}.service", check=True)
        listening = ("bash", "-c", "</dev/tcp/127.0.0.1/2002")
        until(lambda: machine.run(*listening).returncode == 0, PATIENCE, "the one before to listen")
        assert machine.run("systemctl", "start", "ooodd.socket").returncode != 0
        said = machine.run("bash", "-euc", commands(heading), check=True).stdout
        assert "it has answered a probe" in said
        assert service.serves()
    finally:
        machine.run("systemctl", "disable", "--now", f"{unit}.service")
        machine.run("rm", "-f", path, check=True)
        machine.run("systemctl", "daemon-reload", check=True)
        machine.run("systemctl", "reset-failed")  # an office that is stopped ends with 255


def test_a_script_only_has_to_convert(service: Service) -> None:
    machine = service.machine
    machine.run("sh", "-c", f"mkdir -p /tmp/script && cp {DOCUMENTS_INSIDE}/*.odt /tmp/script/", check=True)
    machine.run("sh", "-c", "cd /tmp/script && mv $(ls *.odt | head -1) report.odt", check=True)
    machine.run("bash", "-euc", commands(".* in cron or in a script"), cwd="/tmp/script", check=True)
    assert service.pages("/tmp/script/report.pdf") >= 1


def test_each_key_that_the_page_names_is_one(service: Service) -> None:
    known = service.machine.run("cat", "/usr/share/doc/ooodd/examples/ooodd.toml", check=True).stdout
    named = set(re.findall(r"`\[\w+\] (\w+)`|`\[\w+\] \w+` and `(\w+)`|, `(max_clients)`", PAGE))
    for key in {each for found in named for each in found if each}:
        assert re.search(rf"^#? ?{key} = ", known, re.MULTILINE), key
