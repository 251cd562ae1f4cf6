# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ooodd convert`, with the installed package and real offices."""

import json
import signal
from contextlib import ExitStack

import pytest

from deadline import until
from machine import read_line
from ooodd import messages
from places import DOCUMENTS_INSIDE
from service import PATIENCE, Service

POOL = "[pool]\nworkers = 4\nmax_uses = 1\n"


@pytest.fixture
def at_work(service: Service) -> Service:
    service.configure(POOL, reclaims=True)
    service.start()
    service.machine.run("sh", "-c", "rm -rf /tmp/convert && mkdir /tmp/convert", check=True)
    return service


def convert(service: Service, *arguments: str, script: str = "") -> tuple[int, str, str]:
    """Run it in a directory of its own; return status, output and errors."""
    command = ("sh", "-c", script) if script else ("ooodd", "convert", *arguments)
    done = service.machine.run(*command, cwd="/tmp/convert", timeout=10 * PATIENCE)
    return done.returncode, done.stdout, done.stderr


def test_every_kind_of_document_becomes_a_pdf(at_work: Service, expected_pages: dict[str, int]) -> None:
    for name, pages in expected_pages.items():
        result = f"/tmp/convert/{name}.pdf"
        assert convert(at_work, f"{DOCUMENTS_INSIDE}/{name}", "-o", result) == (0, "", ""), name
        assert at_work.pages(result) == pages, name


def test_an_office_is_preloaded_while_no_client_waits(at_work: Service) -> None:
    at_work.configure('[pool]\nworkers = 1\nmax_uses = 1\npreload = ["calc"]\n')
    at_work.start()
    machine, before = at_work.machine, at_work.machine.journal_moment()
    for _ in range(2):  # also one that starts after a session
        (worker,) = at_work.wait_idle()
        loaded = machine.run("grep", "-o", "libs[cdw]lo.so", f"/proc/{worker['pid']}/maps").stdout
        assert set(loaded.split()) == {"libsclo.so"}
        assert convert(at_work, f"{DOCUMENTS_INSIDE}/letter.odt", "-o", "/tmp/convert/letter.pdf") == (0, "", "")
    assert at_work.lines(messages.OFFICE_NOT_PRELOADED, before) == []


def test_one_fails_and_the_others_do_not(at_work: Service) -> None:
    at_work.machine.put("/tmp/convert/sheet.csv", "a;b\n1;2\n")
    at_work.machine.put("/tmp/convert/junk.docx", "PK\3\4 this is no document at all")
    sources = [f"{DOCUMENTS_INSIDE}/{name}" for name in ("letter.odt", "password.odt", "slides.pptx")]
    status, out, errors = convert(at_work, *sources, "sheet.csv", "junk.docx", "absent.odt", "-o", "new/")
    lines = sorted(errors.splitlines())
    assert (status, out) == (1, "")
    assert lines == [
        f"ooodd convert: {DOCUMENTS_INSIDE}/password.odt: it has a password; give it with --password-file",
        "ooodd convert: absent.odt: /tmp/convert/absent.odt: No such file or directory",
        "ooodd convert: junk.docx: LibreOffice can't read it: it is damaged, or of a type that no filter reads",
    ]
    made = at_work.machine.run("ls", "-A", "/tmp/convert/new").stdout.split()
    assert made == ["letter.pdf", "sheet.pdf", "slides.pdf"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("letter.odt", "-f", "xlsx"), 1, "a TextDocument can't be stored as xlsx"),
        (("letter.odt", "-f", "pdf:no such filter"), 1, 'there is no filter "no such filter"'),
        (("letter.odt", "--address", "127.0.0.1:9"), 1, "nobody listens there; is ooodd.socket active?"),
        (("letter.odt", "--address", "nowhere"), 2, '"nowhere" is no address: give HOST:PORT'),
        (("letter.odt", "letter.odt"), 2, "2 documents would become letter.pdf"),
        (("letter.odt", "-f", "odt"), 2, "letter.odt would be replaced by its conversion"),
        (("letter.odt", "--timeout", "soon"), 2, "--timeout: "),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    at_work: Service, arguments: tuple[str, ...], status: int, message: str
) -> None:
    at_work.machine.run("cp", f"{DOCUMENTS_INSIDE}/letter.odt", "/tmp/convert", check=True)
    code, out, errors = convert(at_work, *arguments)
    assert (code, out) == (status, "")
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert at_work.machine.run("ls", "-A", "/tmp/convert").stdout.split() == ["letter.odt"]


def test_standard_input_and_output(at_work: Service) -> None:
    script = f"ooodd convert - -f txt <{DOCUMENTS_INSIDE}/letter.docx | head -c 200"
    status, out, errors = convert(at_work, script=script)
    assert (status, errors) == (0, "")
    assert "letter.docx" in out


def test_a_table_is_read_as_one(at_work: Service) -> None:
    at_work.machine.put("/tmp/convert/sheet.csv", "a,b\n1,2\n")
    assert convert(at_work, "sheet.csv", "-f", "ods") == (0, "", "")
    assert convert(at_work, "sheet.ods", "-f", "csv", "-o", "again.csv") == (0, "", "")
    assert at_work.machine.read("/tmp/convert/again.csv").split() == ["a,b", "1,2"]


def test_with_the_password_it_is_read(at_work: Service) -> None:
    words = json.loads(at_work.machine.read(f"{DOCUMENTS_INSIDE}/words.json"))
    assert words
    at_work.machine.put("/tmp/convert/wrong", "wrong\n")
    status, _, errors = convert(at_work, f"{DOCUMENTS_INSIDE}/password.odt", "--password-file", "wrong", "-o", "x.pdf")
    assert status == 1
    assert errors.endswith("the password is wrong\n")


def test_without_pyuno_it_says_what_to_install(at_work: Service) -> None:
    script = "mount --bind /dev/null /usr/lib/python3/dist-packages/uno.py && ooodd convert a.odt"
    done = at_work.machine.run("unshare", "--mount", "sh", "-c", script, cwd="/tmp/convert")
    assert done.returncode in (1, 2)


def test_what_ooodd_refuses_is_told(at_work: Service) -> None:
    with at_work.drop_in("ooodd-worker@.service", "[Service]\nEnvironment=OOODD_OFFICE=/opt/nowhere\n"):
        at_work.configure(POOL)
        status, _, errors = convert(at_work, f"{DOCUMENTS_INSIDE}/letter.odt", "-o", "x.pdf")
        assert status == 1
        assert "no office can be started: there is no office: install libreoffice-writer" in errors
        at_work.stop()


@pytest.mark.parametrize("count", [24, pytest.param(200, marks=pytest.mark.long)])
def test_many_documents_use_all_workers_and_leave_nothing_open(at_work: Service, count: int) -> None:
    names = [f"{number:03}.odt" for number in range(count)]
    copy = f"for name in {' '.join(names)}; do cp {DOCUMENTS_INSIDE}/letter.odt $name; done"
    at_work.machine.put("/tmp/convert/junk", "PK\3\4junk")
    copy += "; mv junk 013.odt"
    at_work.machine.run("sh", "-c", copy, cwd="/tmp/convert", check=True)
    with at_work.machine.popen("sh", "-c", "exec ooodd convert *.odt -o new/ 2>errors", cwd="/tmp/convert") as running:
        until(lambda: at_work.states().count("busy") >= 2, PATIENCE, "several workers to be busy")
        assert running.wait(20 * PATIENCE) == 1
    errors = at_work.machine.read("/tmp/convert/errors")
    assert errors.count("\n") == 1
    assert errors.startswith("ooodd convert: 013.odt: LibreOffice can't read it")
    made = at_work.machine.run("ls", "-A", "/tmp/convert/new").stdout.split()
    assert made == [name.replace(".odt", ".pdf") for name in names if name != "013.odt"]
    totals = at_work.totals()
    assert (totals["sessions"], totals["refused"], totals["dirty"], totals["reclaimed"]) == (count, 0, 0, 0)


def test_a_terminal_has_a_bar(at_work: Service) -> None:
    for name in ("a.odt", "b.odt"):
        at_work.machine.run("cp", f"{DOCUMENTS_INSIDE}/letter.odt", f"/tmp/convert/{name}", check=True)
    status, out, _ = convert(at_work, script="script -qec 'ooodd convert a.odt b.odt' /dev/null")
    assert status == 0
    assert "2/2" in out


def test_an_interrupt_ends_it_and_leaves_no_half_file(at_work: Service) -> None:
    for number in range(6):
        source, target = f"{DOCUMENTS_INSIDE}/big.xlsx", f"/tmp/convert/{number}.xlsx"
        at_work.machine.run("cp", source, target, check=True)
    command = ("sh", "-c", "exec ooodd convert *.xlsx")
    with at_work.machine.popen(*command, cwd="/tmp/convert") as running:
        until(lambda: "busy" in at_work.states(), PATIENCE, "a session")
        running.send_signal(2)
        running.wait(PATIENCE)
    assert running.returncode == 130
    left = at_work.machine.run("ls", "-A", "/tmp/convert").stdout.split()
    assert [name for name in left if not name.endswith((".xlsx", ".pdf"))] == []
    until(lambda: "busy" not in at_work.states(), PATIENCE, "the sessions to end")


@pytest.mark.parametrize(
    ("number", "amid"),
    [
        (signal.SIGTERM, "a conversion"),
        (signal.SIGKILL, "the queue"),
        pytest.param(signal.SIGTERM, "the queue", marks=pytest.mark.long),
        pytest.param(signal.SIGHUP, "a conversion", marks=pytest.mark.long),
        pytest.param(signal.SIGKILL, "a conversion", marks=pytest.mark.long),
    ],
)
def test_a_signal_ends_all_that_it_has_begun(at_work: Service, number: signal.Signals, amid: str) -> None:
    at_work.configure("[pool]\nworkers = 1\nmax_uses = 1\n")
    at_work.start()
    big = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); echo $i,word,another; done >a.csv; cp a.csv b.csv"
    at_work.machine.run("sh", "-c", big, cwd="/tmp/convert", check=True)
    with ExitStack() as stack:
        if amid == "the queue":
            holder, _ = at_work.holding_client()
            stack.callback(holder.release)
        command = "ooodd convert --jobs 2 a.csv b.csv -o new/ 2>errors & echo $!; wait $!; echo $?"
        running = stack.enter_context(at_work.machine.popen("sh", "-c", command, cwd="/tmp/convert"))
        waiting = 2 if amid == "the queue" else 1
        at_work.wait_queue(waiting)
        pid = int(read_line(running, PATIENCE))
        at_work.kill(pid, signal=number.name)
        assert int(read_line(running, PATIENCE)) == 128 + number
        gone = ("pgrep", "--full", "ooodd.convert.document")
        until(lambda: at_work.machine.run(*gone).stdout == "", PATIENCE, "its processes to end")
        at_work.wait_queue(0)
    at_work.wait_idle()
    assert at_work.machine.run("ls", "-A", "/tmp/convert/new").stdout == ""
    if number != signal.SIGKILL:
        said = at_work.machine.read("/tmp/convert/errors")
        assert said == "ooodd convert: interrupted; 0 of 2 documents are done\n"
    assert at_work.serves()
