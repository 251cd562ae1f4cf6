# SPDX-License-Identifier: LGPL-2.1-or-later
"""Machines as people have them: extensions, settings of the site, locales, variables for all services, many mounts."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import extension
from deadline import until
from ooodd import messages
from places import CLIENTS, DOCUMENTS_INSIDE, PYTHON, SHARED_INSIDE
from repack import repack
from service import PATIENCE, Service, finish

LETTER = f"{DOCUMENTS_INSIDE}/letter.odt"
SECURITY = "/org.openoffice.Office.Common/Security/Scripting"
ITEMS = """<?xml version="1.0" encoding="UTF-8"?>
<oor:items xmlns:oor="http://openoffice.org/2001/registry" xmlns:xs="http://www.w3.org/2001/XMLSchema">
{items}
</oor:items>
"""
ITEM = '<item oor:path="{path}"><prop oor:name="{name}" oor:op="fuse"><value>{value}</value></prop></item>'
# The module of a document with a macro, which writes into the document.
MACRO = """Sub Main
  ThisComponent.Text.String = "the macro has run"
End Sub
"""


def ask(service: Service, *arguments: str) -> Any:  # noqa: ANN401 - whatever the client answers
    """Ask an office one thing (ask.py); fail on an error."""
    done = service.machine.run(PYTHON, f"{CLIENTS}/ask.py", *arguments, cwd="/tmp", timeout=3 * PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)["answer"]


@contextmanager
def manager_environment(service: Service, **variables: str) -> Iterator[None]:
    """Set variables for all services."""
    service.stop()
    service.machine.run("systemctl", "set-environment", *(f"{k}={v}" for k, v in variables.items()), check=True)
    try:
        service.configure("[pool]\nworkers = 2\nmax_uses = 1\n")
        yield
    finally:
        service.machine.run("systemctl", "unset-environment", *variables, check=True)
        service.stop()


def shared_text(service: Service, name: str, text: str) -> str:
    """Make a text file that offices can read."""
    service.machine.run("mkdir", "-p", SHARED_INSIDE, check=True)
    service.machine.put(f"{SHARED_INSIDE}/{name}", text)
    return f"{SHARED_INSIDE}/{name}"


# Extensions


@pytest.fixture
def with_extension(fresh_service: Service, tmp_path: Path) -> Service:
    """A machine with an extension for all users."""
    machine = fresh_service.machine
    machine.copy_in(extension.make(tmp_path / "hello.oxt"), "/tmp/hello.oxt")
    machine.run("unopkg", "add", "--shared", "/tmp/hello.oxt", check=True, timeout=2 * PATIENCE)
    return fresh_service


def test_an_extension_for_all_users_is_served(with_extension: Service) -> None:
    service = with_extension
    service.configure("[pool]\nworkers = 2\nmax_uses = 1\n")
    for _ in range(4):
        assert ask(service, "service", extension.SERVICE)
    made = service.machine.journal("ooodd-profile.service", after=None)
    assert any("register the extensions hello.oxt" in line["MESSAGE"] for line in made)
    offices = [line["MESSAGE"] for line in service.machine.journal("ooodd-worker@1.service")]
    assert not any("register" in message for message in offices), "each office has a copy"
    assert service.totals()["crashed"] == 0


def test_without_a_prepared_profile_an_office_starts_twice_and_says_why(with_extension: Service) -> None:
    service = with_extension
    service.machine.run("systemctl", "start", "ooodd-profile.service", check=True)
    service.machine.run("systemctl", "mask", "--runtime", "ooodd-profile.service", check=True)
    service.machine.run("sh", "-c", "rm -r /var/cache/private/ooodd-profile/ooodd-profiles/*", check=True)
    service.configure("[pool]\nworkers = 1\nmax_uses = 1\n")
    moment = service.machine.journal_moment()
    for _ in range(2):
        assert ask(service, "service", extension.SERVICE)
    offices = [line["MESSAGE"] for line in service.machine.journal("ooodd-worker@1.service", after=moment)]
    found = [
        line for line in offices if line.startswith("the office was started once more to register the extensions ")
    ]
    assert found
    assert all("hello.oxt" in line for line in found)


def test_a_machine_on_which_nothing_could_be_prepared_is_told_what_to_do(fresh_service: Service) -> None:
    service, machine = fresh_service, fresh_service.machine
    machine.run("systemctl", "mask", "--runtime", "ooodd-profile.service", check=True)
    service.configure("[pool]\nworkers = 1\n")
    refused = machine.run(PYTHON, f"{CLIENTS}/ask.py", "locale", cwd="/tmp", timeout=3 * PATIENCE)
    assert "systemctl start ooodd-profile, journalctl -u ooodd-profile" in refused.stdout + refused.stderr
    machine.run("systemctl", "unmask", "--runtime", "ooodd-profile.service", check=True)
    machine.run("systemctl", "start", "ooodd-profile.service", check=True)
    machine.run("systemctl", "restart", "ooodd.service", check=True)
    assert ask(service, "locale")


def test_what_changes_in_etc_is_in_the_next_office(fresh_service: Service) -> None:
    service, machine = fresh_service, fresh_service.machine
    service.configure("[pool]\nworkers = 1\nmax_uses = 1\n")
    copy = Path("/var/cache/private/ooodd-profile")
    for change, shown in [
        ("ln -sf /usr/share/zoneinfo/Asia/Tokyo /etc/localtime", f"grep -q JST {copy}/localtime"),
        ("echo Asia/Tokyo >/etc/new && mv /etc/new /etc/timezone", f"grep -q Tokyo {copy}/timezone"),
        ("ldconfig", f"cmp /etc/ld.so.cache {copy}/ld.so.cache"),
        ("echo letter >/etc/papersize", f"grep -q letter {copy}/papersize"),
        ("rm /etc/papersize", f"test ! -e {copy}/papersize"),
    ]:
        assert ask(service, "locale")
        machine.run("sh", "-c", change, check=True)
        assert ask(service, "locale")  # this office may be older
        assert ask(service, "locale")
        machine.run("sh", "-c", shown, check=True)


def test_an_extension_that_is_added_while_ooodd_runs_works_for_later_clients(
    fresh_service: Service, tmp_path: Path
) -> None:
    service, machine = fresh_service, fresh_service.machine
    service.configure("[pool]\nworkers = 1\nmax_uses = 1\n")
    assert not ask(service, "service", extension.SERVICE)
    machine.copy_in(extension.make(tmp_path / "hello.oxt"), "/tmp/hello.oxt")
    moment = machine.journal_moment()
    machine.run("unopkg", "add", "--shared", "/tmp/hello.oxt", check=True, timeout=2 * PATIENCE)
    machine.wait_journal("ooodd-profile.service", after=moment, timeout=PATIENCE)  # the watch has seen it
    machine.run("systemctl", "start", "ooodd-profile.service", check=True)
    ask(service, "service", extension.SERVICE)  # this office may be older than the extension
    assert ask(service, "service", extension.SERVICE)


# Settings


def site_setting(service: Service, name: str, value: str, *others: str) -> None:
    """Set it for macros, beside other items."""
    service.machine.run("mkdir", "-p", "/etc/ooodd/registry.d", check=True)
    items = [*others, ITEM.format(path=SECURITY, name=name, value=value)]
    service.machine.put("/etc/ooodd/registry.d/50-test.xcu", ITEMS.format(items="".join(items)))


def test_a_setting_of_the_site_for_ooodd_is_in_every_profile(fresh_service: Service) -> None:
    service = fresh_service
    site_setting(service, "MacroSecurityLevel", "3")
    assert service.machine.run("ooodd", "check-config").returncode == 0
    service.configure("[pool]\nworkers = 1\nmax_uses = 1\n")
    assert ask(service, "setting", SECURITY, "MacroSecurityLevel") == 3
    site_setting(service, "MacroSecurityLevel", "1")
    service.machine.run("systemctl", "start", "ooodd-profile.service", check=True)
    ask(service, "setting", SECURITY, "MacroSecurityLevel")  # this office may be older
    assert ask(service, "setting", SECURITY, "MacroSecurityLevel") == 1


def test_a_setting_that_cannot_be_read_is_named_and_left_out(fresh_service: Service) -> None:
    service = fresh_service
    site_setting(service, "MacroSecurityLevel", "3")
    service.machine.put("/etc/ooodd/registry.d/40-broken.xcu", "<oor:items>\n")
    done = service.machine.run("ooodd", "check-config")
    assert done.returncode == 78
    assert done.stderr.startswith("ooodd: /etc/ooodd/registry.d/40-broken.xcu: not well-formed XML: ")
    service.configure("[pool]\nworkers = 1\nmax_uses = 1\n")
    assert ask(service, "setting", SECURITY, "MacroSecurityLevel") == 3


def registry_file(service: Service) -> str:
    """Where the site adds to LibreOffice's own registry."""
    registry = service.machine.run("readlink", "-f", "/usr/lib/libreoffice/share/registry").stdout.strip()
    return f"{registry}/zz-site.xcd"


def registry_setting(service: Service, package: str, nodes: list[str], setting: str) -> None:
    """Add a setting to LibreOffice's own registry. A node with a + is a new member of a set."""
    new = ' oor:op="replace"'
    opening = [f'<node oor:name="{node.lstrip("+")}"{new if node[0] == "+" else ""}>' for node in nodes]
    data = (
        '<?xml version="1.0"?><oor:data xmlns:oor="http://openoffice.org/2001/registry" '
        'xmlns:xs="http://www.w3.org/2001/XMLSchema"><dependency file="main"/>'
        f'<oor:component-data oor:package="org.openoffice.Office" oor:name="{package}">'
        f"{''.join(opening)}{setting}{'</node>' * len(nodes)}"
        "</oor:component-data></oor:data>"
    )
    service.machine.put(registry_file(service), data)


def test_a_setting_of_the_site_in_libreoffices_registry_wins_over_ours(fresh_service: Service) -> None:
    service = fresh_service
    registry_setting(service, "Common", ["Misc"], '<prop oor:name="UseLocking"><value>true</value></prop>')
    service.configure("[pool]\nworkers = 1\nmax_uses = 1\n")
    assert ask(service, "setting", "/org.openoffice.Office.Common/Misc", "UseLocking") is True


@pytest.mark.parametrize("finalized", ["false", "true"])
def test_a_client_changes_its_own_office_and_nothing_that_the_site_has_finalized(
    fresh_service: Service, finalized: str
) -> None:
    service = fresh_service
    setting = f'<prop oor:name="MacroSecurityLevel" oor:finalized="{finalized}"><value>3</value></prop>'
    registry_setting(service, "Common", ["Security", "Scripting"], setting)
    service.configure("[pool]\nworkers = 1\nmax_uses = 1\n")
    assert ask(service, "change", SECURITY, "MacroSecurityLevel", "0") == (3 if finalized == "true" else 0)
    assert ask(service, "setting", SECURITY, "MacroSecurityLevel") == 3, "the change has ended with its office"


def test_an_office_that_does_not_know_a_setting_starts(fresh_service: Service) -> None:
    service = fresh_service
    unknown = [
        ITEM.format(path=SECURITY, name="NotInvented", value="true"),
        ITEM.format(path="/org.openoffice.Office.Common/NotInvented", name="Yet", value="true"),
        ITEM.format(path="/org.openoffice.NotInvented/Yet", name="Yet", value="true"),
    ]
    site_setting(service, "MacroSecurityLevel", "3", *unknown)
    assert service.machine.run("ooodd", "check-config").returncode == 0
    service.configure("[pool]\nworkers = 1\nmax_uses = 1\n")
    assert ask(service, "setting", SECURITY, "MacroSecurityLevel") == 3


def test_no_office_looks_for_updates(fresh_service: Service) -> None:
    service = fresh_service
    enabled = '<prop oor:name="AutoCheckEnabled" oor:type="xs:boolean" oor:op="replace"><value>true</value></prop>'
    nodes = ["Jobs", "+UpdateCheck", "Arguments"]
    # Debian's office has no update check. This is what an office that has it brings with it, in its package.
    service.machine.put("/var/lib/dpkg/info/onlineupdate.list", f"{registry_file(service)}\n")
    registry_setting(service, "Jobs", nodes, enabled)
    service.configure("[pool]\nworkers = 1\nmax_uses = 1\n")
    path = "/org.openoffice.Office.Jobs/Jobs/org.openoffice.Office.Jobs:Job['UpdateCheck']/Arguments"
    assert ask(service, "setting", path, "AutoCheckEnabled") is False


# Locale and environment


@pytest.mark.parametrize(
    ("variables", "locale", "number"),
    [
        ({"LANG": "C"}, "en-US", "1,234.50"),
        ({"LANG": "de_DE.UTF-8"}, "de-DE", "1.234,50"),  # has not been generated on the machine
        ({"LANG": "de_DE"}, "de-DE", "1.234,50"),
        ({"LC_ALL": "POSIX"}, "en-US", "1,234.50"),
    ],
)
def test_file_names_are_utf_8_and_formats_the_machines(
    service: Service, variables: dict[str, str], locale: str, number: str
) -> None:
    path = shared_text(service, "Prüfung für Łódź.txt", "found")
    with manager_environment(service, **variables):
        assert ask(service, "load", path) == "found"
        assert ask(service, "locale") == {"locale": locale, "number": number}


def test_variables_for_all_services_disturb_nothing(service: Service) -> None:
    nowhere = "/nonexistent"
    hostile = {
        **dict.fromkeys(("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LD_PRELOAD", "JAVA_HOME", "TMPDIR"), nowhere),
        **dict.fromkeys(("HOME", "UNO_PATH", "UNO_SERVICES", "URE_BOOTSTRAP", "XDG_CONFIG_HOME", "DISPLAY"), nowhere),
        "PYTHONINSPECT": "1",
        "SAL_USE_VCLPLUGIN": "gtk3",
        "SAL_LOG": "+INFO",
        "JAVA_TOOL_OPTIONS": "-Xbogus",
    }
    with manager_environment(service, **hostile):
        assert ask(service, "load", shared_text(service, "any.txt", "found")) == "found"


# Another office


@pytest.mark.parametrize("place", ["/opt/office", "/home/alice/office"])
def test_an_office_in_another_place_serves_with_the_extensions(with_extension: Service, place: str) -> None:
    """As the documentation says: one drop-in for the offices and one for the profile."""
    service, machine = with_extension, with_extension.machine
    # Links in it lead to files beside it, and some of the SDK's to nowhere.
    machine.run("mkdir", "-p", "-m", "755", str(Path(place).parent), check=True)
    machine.run("sh", "-c", f"cp -rL --preserve=mode,timestamps /usr/lib/libreoffice {place}", timeout=300)
    machine.run("sh", "-c", f"sed -i s,file:///usr/lib/libreoffice,file://{place}, {place}/program/*rc", check=True)
    drop_in = f"[Service]\nEnvironment=OOODD_OFFICE={place}/program\nBindReadOnlyPaths={place}\n"
    for unit in ("ooodd-worker@", "ooodd-profile"):
        directory = f"/etc/systemd/system/{unit}.service.d"
        machine.run("mkdir", "-p", directory, check=True)
        machine.put(f"{directory}/office.conf", drop_in)
    machine.run("systemctl", "daemon-reload", check=True)
    service.configure("[pool]\nworkers = 2\nmax_uses = 1\n")
    for _ in range(3):
        assert ask(service, "service", extension.SERVICE)
    worker = service.wait_idle()[0]
    assert machine.run("readlink", f"/proc/{worker['pid']}/exe").stdout == f"{place}/program/soffice.bin\n"
    result = machine.run("ooodd", "convert", LETTER, "-o", "/tmp/opt.pdf", timeout=PATIENCE)
    assert (result.returncode, result.stderr) == (0, "")
    assert service.pages("/tmp/opt.pdf") > 0


# The application's user

BY_PATH = """import os, sys
sys.path.insert(0, sys.argv[1])
from client import connect, create, properties
desktop = create(connect("127.0.0.1", 2002), "com.sun.star.frame.Desktop")
document = desktop.loadComponentFromURL(f"file://{sys.argv[2]}", "_blank", 0, properties(Hidden=True))
document.storeToURL(f"file://{sys.argv[3]}", properties(FilterName="writer_pdf_Export"))
document.close(True)
os._exit(0)
"""


def test_offices_that_run_as_the_applications_user_see_what_it_sees(fresh_service: Service) -> None:
    """By the drop-in that the package has: a private file in /tmp, and results that are the user's own."""
    service, machine = fresh_service, fresh_service.machine
    service.run_offices_as("app")
    service.configure("[pool]\nworkers = 2\nmax_uses = 1\n")
    machine.run("install", "-o", "app", "-m", "600", LETTER, "/tmp/private.odt", check=True)
    for number in range(4):
        command = ("setpriv", "--reuid=app", "--regid=app", "--clear-groups", PYTHON, "-c", BY_PATH, str(CLIENTS))
        machine.run(*command, "/tmp/private.odt", f"/tmp/result{number}.pdf", cwd="/tmp", check=True, timeout=PATIENCE)
        assert machine.run("stat", "-c", "%U %a", f"/tmp/result{number}.pdf").stdout.split() == ["app", "644"]
        assert service.pages(f"/tmp/result{number}.pdf") > 0
    assert ask(service, "setting", SECURITY, "BlockUntrustedRefererLinks") is True
    worker = service.wait_idle()[0]
    links = machine.run("nsenter", f"--target={worker['pid']}", "--net", "--", "ip", "-json", "link").stdout
    assert [link["ifname"] for link in json.loads(links)] == ["lo"]
    offered = ask(
        service, "call", "create(context, 'com.sun.star.ucb.SimpleFileAccess').isReadOnly('file:///usr/bin/env')"
    )
    assert offered is True


# What an office does


DIGEST = """class Digest {
    public static void main(String[] arguments) throws Exception {
        System.out.println(java.security.MessageDigest.getInstance("SHA-256").getAlgorithm());
    }
}
"""


def test_java_has_its_configuration(service: Service) -> None:
    """It is below /etc, and without it Java can't even make a digest."""
    service.configure("[pool]\nworkers = 1\n")
    program = shared_text(service, "Digest.java", DIGEST)
    service.start()
    worker = service.wait_idle()[0]
    command = ("nsenter", f"--target={worker['pid']}", "--mount", "--", "/usr/bin/java", program)
    assert service.machine.run(*command, check=True, timeout=PATIENCE).stdout == "SHA-256\n"


def test_a_client_that_fills_its_file_system_disturbs_nobody(service: Service) -> None:
    service.configure("[pool]\nworkers = 2\nmax_uses = 1\n")
    before = service.machine.run("df", "--output=iused", "/run").stdout.split()[-1]
    filled = ask(service, "fill")
    assert 400 << 20 < filled["size"] < 512 << 20
    assert 10_000 < filled["files"] < 16_384
    after = service.machine.run("df", "--output=iused", "/run").stdout.split()[-1]
    assert abs(int(after) - int(before)) < 100
    assert ask(service, "fill")["size"] == filled["size"], "the next office has all of its own"
    assert service.serves()


def test_a_pdf_can_be_read(service: Service) -> None:
    service.configure("[pool]\nworkers = 2\nmax_uses = 1\n")
    service.machine.run("mkdir", "-p", SHARED_INSIDE, check=True)
    service.run_client("convert.py", LETTER, f"{SHARED_INSIDE}/letter.pdf")
    assert "The quick brown fox" in ask(service, "load", f"{SHARED_INSIDE}/letter.pdf")


def macro_document(service: Service, tmp_path: Path) -> str:
    """Make a flat ODT whose macro runs at load, and which can be dispatched."""
    module = MACRO.replace("&", "&amp;").replace("<", "&lt;")
    text = f"""<?xml version="1.0" encoding="UTF-8"?>
<office:document xmlns:office="urn:oasis:names:tc:opendocument:xmlns:office:1.0"
 xmlns:text="urn:oasis:names:tc:opendocument:xmlns:text:1.0"
 xmlns:script="urn:oasis:names:tc:opendocument:xmlns:script:1.0"
 xmlns:ooo="http://openoffice.org/2004/office" xmlns:xlink="http://www.w3.org/1999/xlink" office:version="1.2"
 office:mimetype="application/vnd.oasis.opendocument.text">
 <office:scripts><office:script script:language="ooo:Basic">
  <ooo:libraries><ooo:library-embedded ooo:name="Standard">
   <ooo:module ooo:name="Module1"><ooo:source-code>{module}</ooo:source-code></ooo:module>
  </ooo:library-embedded></ooo:libraries>
 </office:script>
 <office:event-listeners><script:event-listener script:language="ooo:script" script:event-name="dom:load"
  xlink:href="vnd.sun.star.script:Standard.Module1.Main?language=Basic&amp;location=document" xlink:type="simple"/>
 </office:event-listeners></office:scripts>
 <office:body><office:text><text:p>untouched</text:p></office:text></office:body>
</office:document>
"""
    (tmp_path / "macro.fodt").write_text(text)
    service.machine.run("mkdir", "-p", SHARED_INSIDE, check=True)
    service.machine.copy_in(tmp_path / "macro.fodt", f"{SHARED_INSIDE}/macro.fodt")
    return f"{SHARED_INSIDE}/macro.fodt"


def test_a_macro_runs_only_if_the_client_asks_for_it_and_never_hangs(service: Service, tmp_path: Path) -> None:
    path = macro_document(service, tmp_path)
    service.configure("[pool]\nworkers = 2\nmax_uses = 1\n")
    assert ask(service, "load", path) == "untouched"
    assert ask(service, "load", path, "0") == "untouched"
    assert ask(service, "macro", path) == "the macro has run"


def test_a_linked_picture_is_in_the_result(service: Service, tmp_path: Path) -> None:
    picture = bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108020000009077"
        "53de0000000c49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
    )
    (tmp_path / "dot.png").write_bytes(picture)
    (tmp_path / "linked.html").write_text('<html><body><p>text</p><img src="dot.png" width=90 height=90></body></html>')
    service.machine.run("mkdir", "-p", SHARED_INSIDE, check=True)
    for name in ("dot.png", "linked.html"):
        service.machine.copy_in(tmp_path / name, f"{SHARED_INSIDE}/{name}")
    service.configure("[pool]\nworkers = 2\nmax_uses = 1\n")
    expression = (
        f"[d.storeToURL('private:stream', properties(FilterName='writer_web_pdf_Export', OutputStream=o)) or "
        f"len(o.getWrittenBytes().value) for d, o in [(create(context, 'com.sun.star.frame.Desktop')."
        f"loadComponentFromURL('file://{SHARED_INSIDE}/linked.html', '_blank', 0, properties(Hidden=True)), "
        "create(context, 'com.sun.star.io.SequenceOutputStream'))]][0]"
    )
    assert ask(service, "call", expression) > 0
    listed = ask(
        service,
        "call",
        expression.replace("len(o.getWrittenBytes().value)", "b'/Image' in bytes(o.getWrittenBytes().value)"),
    )
    assert listed is True


def test_a_session_has_two_lines_in_all_journals_together(service: Service) -> None:
    service.configure("[pool]\nworkers = 2\nmax_uses = 1\n", reclaims=True)
    service.serves()
    service.wait_idle()
    moment = service.machine.journal_moment()
    for _ in range(10):
        service.serves()
    service.wait_idle()
    lines = [line for line in service.machine.journal(after=moment) if int(line.get("PRIORITY", 6)) <= 6]
    assert len([line for line in lines if "ooodd" in str(line)]) == 20, [line["MESSAGE"] for line in lines]


# Upgrades of LibreOffice


def test_an_office_of_a_program_that_has_been_replaced_serves_nobody(service: Service) -> None:
    service.configure("[pool]\nworkers = 1\nmax_uses = 10\n")
    service.start()
    (old,) = service.wait_idle()
    moment = service.machine.journal_moment()
    program = "/usr/lib/libreoffice/program/soffice.bin"
    changed = f"until touch {program}; [ $(($(date +%s) - $(stat -c %Y /proc/$0))) -gt 3 ]; do :; done"
    service.machine.run("sh", "-c", changed, str(old["pid"]), check=True, timeout=PATIENCE)
    assert service.serves() != old["pid"]
    assert len(service.lines(messages.WORKER_OUTDATED, moment)) == 1


def test_an_upgrade_replaces_idle_offices_at_once_and_busy_ones_after_their_session(service: Service) -> None:
    service.configure("[pool]\nworkers = 2\nmin_workers = 2\nmax_uses = 10\n")
    holder, office = service.holding_client()
    idle = until(lambda: [w["pid"] for w in service.workers() if w["state"] == "idle"], PATIENCE, "an idle office")
    moment = service.machine.journal_moment()
    trigger = "dpkg-trigger --by-package=ooodd --no-await /usr/lib/libreoffice/program && dpkg --triggers-only ooodd"
    service.machine.run("sh", "-c", trigger, check=True, timeout=2 * PATIENCE)
    until(lambda: service.status()["totals"]["recycled"] == 1, PATIENCE, "the idle office to be replaced")
    line = service.line(messages.OFFICE_CHANGED, moment)
    assert "1 offices are replaced now, 1 after their session" in line["MESSAGE"]
    assert finish(holder)[0]["pid"] == office["pid"]
    after = service.wait_whole(2, without=[office["pid"], *idle])
    assert after["totals"]["crashed"] == 0


def test_clients_wait_while_libreoffice_is_unpacked(fresh_service: Service) -> None:
    service, machine = fresh_service, fresh_service.machine
    gate = "touch /run/at-{0}; until [ -e /run/go-{0} ]; do sleep 0.1; done"
    core = repack(machine, "libreoffice-core", gate.format("preinst"), gate.format("postinst"))
    math = repack(machine, "libreoffice-math")
    service.configure("[pool]\nworkers = 3\nmin_workers = 3\nmax_uses = 1\n")
    service.start()
    service.wait_idle()
    moment = machine.journal_moment()
    with service.herd(4) as herd:
        until(lambda: sum(s.ended is not None for s in herd.sessions()) >= 8, PATIENCE, "sessions")
        with machine.popen("dpkg", "--install", core, math, env={"DEBIAN_FRONTEND": "noninteractive"}) as dpkg:
            for step in ("preinst", "postinst"):
                machine.run("sh", "-c", f"until [ -e /run/at-{step} ]; do sleep 0.1; done", check=True)
                until(lambda: set(service.states()) <= {"starting", "stopped"}, PATIENCE, "offices to end")
                # One may have been starting when dpkg began. It ends before it serves.
                until(lambda: machine.run("pgrep", "-x", "soffice.bin").returncode == 1, PATIENCE, "the last office")
                machine.run("touch", f"/run/go-{step}", check=True)
            assert dpkg.wait(4 * PATIENCE) == 0, dpkg.communicate()
        served = sum(session.ended is not None for session in herd.sessions())
        until(lambda: sum(s.ended is not None for s in herd.sessions()) >= served + 8, PATIENCE, "sessions after it")
        sessions = herd.stop()
    assert not [session.error for session in sessions if session.error]
    totals = service.totals()
    assert (totals["refused"], totals["crashed"]) == (0, 0)
    assert len(service.lines(messages.OFFICE_UNPACKED, moment)) == 1
    assert not service.lines(messages.WORKER_NOT_STARTED, moment)


def test_a_libreoffice_that_dpkg_has_left_half_configured_is_used(fresh_service: Service) -> None:
    service, machine = fresh_service, fresh_service.machine
    package = repack(machine, "libreoffice-math", postinst="exit 1")
    assert machine.run("dpkg", "--install", package).returncode == 1
    service.configure("[pool]\nworkers = 1\nmax_uses = 1\n")
    assert service.serves()
