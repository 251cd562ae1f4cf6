# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs that run for long and never end a session, and what they cost others: sessions are reclaimed."""

import json
from typing import Any

import pytest

from ooodd import messages
from places import CLIENTS, CLIENTS_INSIDE, DOCUMENTS_INSIDE, PYTHON
from service import PATIENCE, Service, await_step, client_error, finish

FOUR = "[pool]\nworkers = 4\nmax_uses = 1\n"
TWO = "[pool]\nworkers = 2\nmax_uses = 1\n"
ONE = "[pool]\nworkers = 1\nmax_uses = 1\n"
LETTER = f"{DOCUMENTS_INSIDE}/letter.odt"
# reclaim_after is 1 s. A start takes 0.3 s on an idle machine, and several at once take longer.
LONGEST_WAIT = 15.0
OTHER_USER = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def check_jobs(service: Service, moment: str, jobs: list[dict[str, Any]], count: int) -> None:
    """Each job was served, soon, and each session that was ended has one line of its own."""
    assert [job["step"] for job in jobs] == ["job"] * count
    assert max(job["waited"] for job in jobs) < LONGEST_WAIT
    totals = service.totals()
    assert totals["refused"] == totals["crashed"] == totals["hung"] == totals["dirty"] == 0
    assert totals["reclaimed"] >= count - 4
    assert len(service.lines(messages.SESSION_RECLAIMED, moment)) == totals["reclaimed"]


@pytest.mark.parametrize("count", [12, pytest.param(200, marks=pytest.mark.long)])
@pytest.mark.parametrize("language", ["python", "java"])
def test_a_program_that_never_ends_a_session_is_served_for_ever(service: Service, language: str, count: int) -> None:
    """With another client beside it, which ends its sessions."""
    service.configure(FOUR, reclaims=True)
    moment = service.machine.journal_moment()
    python = (PYTHON, f"{CLIENTS}/jobs.py", f"--jobs={count}")
    java = (f"{CLIENTS_INSIDE}/java-jobs", "127.0.0.1", "2002", str(count))
    with service.machine.popen(*(python if language == "python" else java), cwd="/tmp") as program:
        for _ in range(3):
            assert service.run_client("convert.py", "--office")[-1]["step"] == "office"
        out, errors = program.communicate(timeout=20 * PATIENCE)
    assert program.returncode == 0, errors
    check_jobs(service, moment, [json.loads(line) for line in out.splitlines()], count)


@pytest.mark.parametrize("language", ["python", "java"])
def test_threads_that_connect_each_for_itself_are_all_served(service: Service, language: str) -> None:
    service.configure(FOUR, reclaims=True)
    moment = service.machine.journal_moment()
    python = (PYTHON, f"{CLIENTS}/jobs.py", "--jobs=3", "--threads=6")
    java = (f"{CLIENTS_INSIDE}/java-jobs", "127.0.0.1", "2002", "3", "6")
    done = service.machine.run(*(python if language == "python" else java), cwd="/tmp", check=True, timeout=300)
    jobs = [json.loads(line) for line in done.stdout.splitlines()]
    check_jobs(service, moment, jobs, len(jobs))
    assert len(jobs) >= 18


def test_a_session_with_a_document_open_is_never_ended(service: Service) -> None:
    service.configure(TWO, reclaims=True)
    paths = (LETTER, "/tmp/held.pdf")
    with service.client("convert.py", "--hold", "loaded", *paths) as busy:
        await_step(busy, "loaded")
        idle, _ = service.holding_client()
        assert service.run_client("convert.py", "--office")[-1]["step"] == "office"
        assert finish(busy)[-1]["step"] == "closed"
        assert client_error(idle) != ""
    assert service.totals()["reclaimed"] == 1


def test_the_own_users_session_is_ended_first(service: Service) -> None:
    """The user comes from the kernel, by a socket that systemd passes to the broker."""
    service.configure(TWO, reclaims=True)
    held = (PYTHON, f"{CLIENTS}/convert.py", "--office", "--hold=office")
    with service.machine.popen(*OTHER_USER, *held, cwd="/tmp") as other:
        await_step(other, "office")
        own, _ = service.holding_client()
        assert service.run_client("convert.py", "--office")[-1]["step"] == "office"
        assert finish(other)[-1]["step"] == "still"
    assert client_error(own) != ""


def test_a_new_broker_knows_the_users_too(service: Service) -> None:
    service.configure(TWO, reclaims=True)
    held = (PYTHON, f"{CLIENTS}/convert.py", "--office", "--hold=office")
    with service.machine.popen(*OTHER_USER, *held, cwd="/tmp") as other:
        await_step(other, "office")
        own, _ = service.holding_client()
        service.machine.run("systemctl", "restart", "ooodd.service", check=True)
        assert service.run_client("convert.py", "--office")[-1]["step"] == "office"
        assert finish(other)[-1]["step"] == "still"
    assert client_error(own) != ""


def test_clients_that_come_back_at_once_cause_few_starts(service: Service) -> None:
    """Six clients that need their session for long have four workers: each loses it now and then, but less and less."""
    service.configure(FOUR, reclaims=True)
    moment = service.machine.journal_moment()
    command = (PYTHON, f"{CLIENTS}/jobs.py", "--jobs=8", "--pause=2.5")
    clients = [service.machine.popen(*command, cwd="/tmp") for _ in range(6)]
    for client in clients:
        out, errors = client.communicate(timeout=10 * PATIENCE)
        assert client.returncode == 0, out + errors
        client.release()
    ended = len(service.lines(messages.SESSION_RECLAIMED, moment))
    assert 2 <= ended <= 6 * 4, "each client at most for 1, 2, 4 and 8 s"


def test_a_client_whose_session_was_ended_gets_an_error_at_its_next_call(service: Service) -> None:
    service.configure(ONE, reclaims=True)
    holder, _ = service.holding_client()
    assert service.run_client("convert.py", "--office")[-1]["step"] == "office"
    assert client_error(holder) != ""


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.long)])
def test_no_call_that_reached_the_office_is_cut(fresh_service: Service, count: int) -> None:
    """Each call is made within milliseconds of the end of its session. It is answered, or has done nothing."""
    service = fresh_service
    service.run_offices_as("app")
    service.configure(FOUR + '[session]\nreclaim_after = "100ms"\n', reclaims=True)
    service.machine.run("install", "-d", "-o", "app", "/srv/shots", check=True)
    command = (PYTHON, f"{CLIENTS}/shots.py", f"--shots={count}", "--quiet=0.1", "/srv/shots")
    done = service.machine.run(*command, cwd="/tmp", check=True, timeout=count)
    shots = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(shot["shot"] for shot in shots) == list(range(count)), done.stderr
    service.stop()  # no office does anything any more
    made = {int(name) for name in service.machine.run("ls", "/srv/shots", check=True).stdout.split()}
    assert made == {shot["shot"] for shot in shots if shot["answered"]}
    print(f"{len(made)} of {count} calls were answered")
    assert count / 10 < len(made) < count * 9 / 10, "they were not close to the end"
