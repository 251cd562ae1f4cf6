# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ooodd run` without systemd: real offices as its children, a real client, and every way that it can end."""

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from foreground import OFFICE, Foreground, all_gone, fake_office

ONE = '[pool]\nworkers = 1\n[log]\nlevel = "detail"\n'
TWO = "[pool]\nworkers = 2\nmin_workers = 2\n[log]\nlevel = 'detail'\n"
MADE = "made through ooodd None"


def test_a_client_makes_a_document() -> None:
    with Foreground(ONE) as it, it.client() as client:
        client.made()
        assert client.finish() == MADE


def test_clients_in_turn_and_at_once_never_see_each_other() -> None:
    with Foreground(TWO) as it:
        it.wait_ready(2)
        for _ in range(3):
            with it.client() as first, it.client() as second:
                first.made()
                second.made()
                with it.client() as waiting:
                    assert first.finish() == MADE
                    waiting.made()
                    assert (second.finish(), waiting.finish()) == (MADE, MADE)


def test_a_killed_idle_office_is_replaced() -> None:
    with Foreground(ONE) as it:
        (office,) = it.wait_ready()
        os.kill(office, signal.SIGKILL)
        it.wait_for("worker 1 crashed and is restarted: killed by signal 9")
        (other,) = it.wait_ready()
        assert other != office
        with it.client() as client:
            client.made()
            assert client.finish() == MADE


def test_a_killed_busy_office_ends_its_session_and_the_next_client_is_served() -> None:
    with Foreground(ONE) as it:
        (office,) = it.wait_ready()
        with it.client() as client:
            client.made()
            os.kill(office, signal.SIGKILL)
            assert client.fails()
        with it.client() as client:
            client.made()
            assert client.finish() == MADE
        assert json.loads(it.command("status", "--json"))["totals"]["crashed"] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_and_leaves_nothing(number: signal.Signals) -> None:
    with Foreground(TWO) as it, it.client() as client:
        it.wait_ready(2)
        client.made()
        offices = it.offices()
        assert [office.name() for office in offices] == ["soffice.bin", "soffice.bin"]
        assert len(it.pipes) >= 2
        assert it.end(number) == 0
        assert all_gone(offices)
        assert not [pipe for pipe in it.pipes if pipe.exists()]
        assert list(it.temporary.iterdir()) == []
        assert list(it.runtime.iterdir()) == []
        assert client.fails()


def test_stop_does_as_a_signal_does() -> None:
    with Foreground(ONE) as it:
        it.wait_ready()
        offices = it.offices()
        assert it.command("stop").startswith("ooodd stops.")
        assert it.process.wait() == 0
        assert all_gone(offices)
        assert list(it.temporary.iterdir()) == []


def test_a_signal_while_profiles_are_made_leaves_nothing() -> None:
    for _ in range(10):
        with Foreground(TWO) as it:
            assert it.end() == 0
            assert list(it.temporary.iterdir()) == []


def test_no_office_outlives_a_killed_broker() -> None:
    with Foreground(TWO) as it:
        it.wait_ready(2)
        offices = it.offices()
        assert len(offices) == 2
        assert it.end(signal.SIGKILL) == -signal.SIGKILL
        assert all_gone(offices)


def test_after_a_killed_broker_the_next_one_runs_in_the_same_place() -> None:
    with Foreground(ONE) as it:
        it.wait_ready()
        it.end(signal.SIGKILL)
        assert (it.runtime / "control").exists()
        (left,) = Path("/tmp").glob(f"OSL_PIPE_*_ooodd-{it.process.pid}-1-*")
        with Foreground(ONE, runtime=it.runtime) as other:
            other.wait_ready()
            assert "idle" in other.command("status")
            assert not left.exists(), "the killed one's pipe is left"


def test_without_an_office_it_says_so_and_tries_ever_more_seldom(tmp_path: Path) -> None:
    with Foreground(ONE, office=tmp_path) as it:
        line = (
            f"worker 1 can't be started: there is no office at {tmp_path}: install libreoffice-writer, or give --office"
        )
        it.wait_for(line)
        began = time.monotonic()
        for _ in range(4):
            it.wait_for(line)
        # The pool waits 0.1 s first and doubles that each time, less a quarter at the most.
        assert time.monotonic() - began >= 0.75 * (0.1 + 0.2 + 0.4 + 0.8)
        (worker,) = json.loads(it.command("status", "--json"))["workers"]
        assert worker["uses"] == 0
        assert "no office at" in worker["detail"]
        assert it.end() == 0
        assert list(it.temporary.iterdir()) == []


def test_an_office_that_comes_later_is_taken(tmp_path: Path) -> None:
    with Foreground(ONE, office=tmp_path / "program") as it:
        it.wait_for("can't be started")
        fake_office(tmp_path / "program", f'exec {OFFICE}/soffice.bin "$@"')
        it.wait_ready()


def test_an_office_that_asks_to_be_started_again_is(tmp_path: Path) -> None:
    once = f'if mkdir "{tmp_path}/once"; then exit 81; fi\nexec {OFFICE}/soffice.bin "$@"'
    with Foreground(ONE, office=fake_office(tmp_path / "program", once)) as it:
        it.wait_ready()
        with it.client() as client:
            client.made()
            assert client.finish() == MADE
        assert (tmp_path / "once").exists()


def test_an_office_that_never_gets_ready_is_ended_in_time(tmp_path: Path) -> None:
    config = ONE.replace("[log]", 'start_timeout = "1s"\n[log]')
    with Foreground(config, office=fake_office(tmp_path / "program", f"echo $$ >{tmp_path}/pid\nexec sleep 1d")) as it:
        it.wait_for(r"worker 1 can't be started: not ready within 1 s: raise \[pool\] start_timeout")
        it.wait_for("can't be started")
        (ended, running) = (int(tmp_path.joinpath("pid").read_text()), it.offices())
        assert it.end() == 0
        assert all_gone(running)
        assert not psutil.pid_exists(ended)
        assert list(it.temporary.iterdir()) == []


def test_an_office_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    stubborn = "trap '' TERM\nsleep 1d &\nsleep 1d"
    config = ONE.replace("[log]", 'start_timeout = "1s"\n[log]')
    with Foreground(config, office=fake_office(tmp_path / "program", stubborn)) as it:
        it.wait_for("not ready within")
        family = it.offices()
        assert it.end() == 0
        assert all_gone(family)


@pytest.mark.skipif(os.getuid() != 0, reason="takes root to become somebody else")
def test_it_needs_no_root() -> None:
    with Foreground(ONE, user=65534) as it:
        it.wait_ready()
        assert {office.uids().real for office in it.offices()} == {65534}
        with it.client() as client:
            client.made()
            assert client.finish() == MADE
        assert "idle" in it.command("status")
        assert it.end() == 0
        assert list(it.temporary.iterdir()) == []
