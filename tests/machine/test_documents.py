# SPDX-License-Identifier: LGPL-2.1-or-later
"""Real documents through port 2002, by real clients, with nothing running at first but ooodd.socket."""

from pathlib import Path

import pytest

from deadline import until
from machine import SOURCE_TREE
from places import CLIENTS_INSIDE, DOCUMENTS_INSIDE, PYTHON
from service import PATIENCE, Service

EXAMPLES = SOURCE_TREE / "examples"
# The examples that take a document and the file for its PDF, and those that go on when they lose their office.
CONVERT = {
    "python": (PYTHON, f"{EXAMPLES}/convert.py"),
    "java": (f"{CLIENTS_INSIDE}/java-example",),
    "c++": (f"{CLIENTS_INSIDE}/cpp-example",),
}
RESILIENT = {"java": CONVERT["java"], "c++": CONVERT["c++"], "jobs": (PYTHON, f"{EXAMPLES}/jobs.py")}
UNOCONV = "/usr/bin/unoconv"


def sources(expected_pages: dict[str, int]) -> list[str]:
    return [name for name in expected_pages if Path(name).suffix in (".odt", ".docx", ".xlsx", ".pptx", ".rtf")]


def test_the_first_client_starts_everything(service: Service) -> None:
    active = service.machine.run("systemctl", "is-active", "ooodd.socket", "ooodd.service").stdout.split()
    assert active == ["active", "inactive"]
    assert service.machine.run("pgrep", "-x", "soffice.bin").stdout == ""
    assert service.serves()
    assert service.machine.run("systemctl", "is-active", "ooodd.service").stdout.strip() == "active"


def pages_of_all(service: Service, expected_pages: dict[str, int], *options: str) -> None:
    """Convert every kind of document with one pyuno client, and count the pages."""
    paths: list[str] = []
    for name in sources(expected_pages):
        paths += [f"{DOCUMENTS_INSIDE}/{name}", f"/tmp/{name}.pdf"]
    steps = service.run_client("convert.py", *options, *paths)
    stored = [step["pages"] for step in steps if step["step"] == "stored"]
    assert stored == [expected_pages[name] for name in sources(expected_pages)]


def test_pyuno_converts_every_kind_by_path(service: Service, expected_pages: dict[str, int]) -> None:
    pages_of_all(service, expected_pages)


def test_pyuno_converts_every_kind_by_stream(service: Service, expected_pages: dict[str, int]) -> None:
    pages_of_all(service, expected_pages, "--stream")


@pytest.mark.parametrize("language", CONVERT)
def test_an_example_converts_every_kind(service: Service, expected_pages: dict[str, int], language: str) -> None:
    """It sends the bytes to a stream of the office's."""
    for name in sources(expected_pages):
        target = f"/tmp/example-{language}-{name}.pdf"
        command = (*CONVERT[language], f"{DOCUMENTS_INSIDE}/{name}", target)
        service.machine.run(*command, cwd="/tmp", check=True, timeout=120)
        assert service.pages(target) == expected_pages[name]


def test_the_example_that_lives_long_converts_several_at_once(service: Service, expected_pages: dict[str, int]) -> None:
    """More documents than workers, in one process: each session is ended on purpose."""
    service.configure("[pool]\nworkers = 2\nmax_uses = 1\n")
    names = [f"jobs-{number}.odt" for number in range(8)]
    for name in names:
        service.machine.run("cp", f"{DOCUMENTS_INSIDE}/letter.odt", f"/tmp/{name}", check=True)
    service.machine.run(*RESILIENT["jobs"], *names, cwd="/tmp", check=True, timeout=120)
    for name in names:
        assert service.pages(f"/tmp/{Path(name).stem}.pdf") == expected_pages["letter.odt"]
    service.wait_total("sessions", 8)


@pytest.mark.parametrize("example", RESILIENT)
def test_an_example_goes_on_with_another_office(service: Service, expected_pages: dict[str, int], example: str) -> None:
    """Its office is killed amid the work."""
    service.configure("[pool]\nworkers = 2\nmax_uses = 1\n")
    service.start()
    source = f"/tmp/lost-{example}.odt"
    service.machine.run("cp", f"{DOCUMENTS_INSIDE}/long.odt", source, check=True)
    target = Path(source).with_suffix(".pdf")
    arguments = [source] if example == "jobs" else [source, str(target)]
    with service.machine.popen(*RESILIENT[example], *arguments, cwd="/tmp") as client:
        until(lambda: "busy" in service.states(), PATIENCE, "a session")
        busy = next(worker for worker in service.workers() if worker["state"] == "busy")
        service.machine.run("kill", "-9", str(busy["pid"]), check=True)
        out, errors = client.communicate(timeout=4 * PATIENCE)
        assert client.returncode == 0, out + errors
    assert service.pages(str(target)) == expected_pages["long.odt"]
    service.wait_total("crashed", 1)


def test_unoconv_converts_every_kind(service: Service, expected_pages: dict[str, int]) -> None:
    if service.machine.run("test", "-e", UNOCONV).returncode != 0:
        pytest.skip("this Debian has no unoconv")
    for name in sources(expected_pages):
        target = f"/tmp/unoconv-{name}.pdf"
        unoconv = f"{PYTHON} {UNOCONV} -n -f pdf --stdout {DOCUMENTS_INSIDE}/{name} > {target}"
        service.machine.run("sh", "-c", unoconv, check=True, timeout=120)
        assert service.pages(target) == expected_pages[name]


@pytest.mark.parametrize("client", ["java-client", "cpp-client"])
def test_compiled_clients_get_the_pdf_by_a_stream_of_theirs(
    service: Service, expected_pages: dict[str, int], client: str
) -> None:
    for name in sources(expected_pages):
        target = f"/tmp/{client}-{name}.pdf"
        command = [f"{CLIENTS_INSIDE}/{client}", "127.0.0.1", "2002", f"{DOCUMENTS_INSIDE}/{name}", target]
        service.machine.run(*command, check=True, timeout=120)
        assert service.pages(target) == expected_pages[name]


@pytest.mark.parametrize("way", ["officehelper", "scriptforge"])
def test_libreoffice_s_own_client_libraries_are_served(service: Service, way: str) -> None:
    steps = [step["step"] for step in service.run_client("officehelper_client.py", way)]
    assert steps[:2] == ["connected", "used"]


def test_one_client_with_three_connections(service: Service, expected_pages: dict[str, int]) -> None:
    source = next(name for name in sources(expected_pages) if name.endswith(".odt"))
    steps = service.run_client("three_connections.py", f"{DOCUMENTS_INSIDE}/{source}", "/tmp")
    (connected,) = (step for step in steps if step["step"] == "connected")
    assert len(set(connected["pids"])) == 3
    assert [step["pages"] for step in steps if step["step"] == "stored"] == [expected_pages[source]] * 3


def test_a_shared_directory_lets_clients_exchange_files_by_path(
    service: Service, expected_pages: dict[str, int]
) -> None:
    """As docs/files.md describes it for scripts that name files."""
    machine = service.machine
    machine.run("groupadd", "--system", "exchange", check=True)
    machine.run("install", "-d", "-m", "2770", "-g", "exchange", "/srv/exchange", check=True)
    drop_in = "/etc/systemd/system/ooodd-worker@.service.d/exchange.conf"
    machine.put(drop_in, "[Service]\nBindPaths=/srv/exchange\nSupplementaryGroups=exchange\n")
    try:
        machine.run("systemctl", "daemon-reload", check=True)
        source = next(name for name in sources(expected_pages) if name.endswith(".docx"))
        machine.run("install", "-m", "0640", "-g", "exchange", f"{DOCUMENTS_INSIDE}/{source}", "/srv/exchange/in.docx")
        service.run_client("convert.py", "--store-by-path", "/srv/exchange/in.docx", "/srv/exchange/in.pdf")
        assert service.pages("/srv/exchange/in.pdf") == expected_pages[source]
    finally:
        machine.run("rm", "-r", drop_in, "/srv/exchange", check=True)
        machine.run("systemctl", "daemon-reload", check=True)
        machine.run("groupdel", "exchange", check=True)


@pytest.mark.parametrize("place", ["/srv/shown", "/home/alice/shown", "/root/shown"])
def test_one_line_of_a_drop_in_shows_a_directory(service: Service, place: str) -> None:
    service.machine.put(f"{place}/letter.txt", "text\n")
    with service.drop_in("ooodd-worker@.service", f"[Service]\nBindReadOnlyPaths={place}\n"):
        (step,) = service.run_client("ask.py", "load", f"{place}/letter.txt")
    assert step["answer"] == "text"
