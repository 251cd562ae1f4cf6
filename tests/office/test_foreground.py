# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ooodd run` without systemd: real offices as child processes, real clients, and all the ways in which it ends."""

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
    with Foreground(ONE) as broker, broker.client() as client:
        client.wait_made()
        assert client.finish() == MADE


def test_clients_never_see_documents_of_other_clients() -> None:
    with Foreground(TWO) as broker:
        broker.wait_ready(2)
        for _ in range(3):
            with broker.client() as first, broker.client() as second:
                first.wait_made()
                second.wait_made()
                with broker.client() as waiting:
                    assert first.finish() == MADE
                    waiting.wait_made()
                    assert (second.finish(), waiting.finish()) == (MADE, MADE)


def test_a_killed_idle_office_is_replaced() -> None:
    with Foreground(ONE) as broker:
        (office,) = broker.wait_ready()
        os.kill(office, signal.SIGKILL)
        broker.wait_for("worker 1 crashed and is restarted: killed by signal 9")
        (other,) = broker.wait_ready()
        assert other != office
        with broker.client() as client:
            client.wait_made()
            assert client.finish() == MADE


def test_a_killed_busy_office_ends_its_session_and_the_next_client_is_served() -> None:
    with Foreground(ONE) as broker:
        (office,) = broker.wait_ready()
        with broker.client() as client:
            client.wait_made()
            os.kill(office, signal.SIGKILL)
            assert client.finish_failing()
        with broker.client() as client:
            client.wait_made()
            assert client.finish() == MADE
        assert json.loads(broker.command("status", "--json"))["totals"]["crashed"] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_and_leaves_nothing(number: signal.Signals) -> None:
    with Foreground(TWO) as broker, broker.client() as client:
        broker.wait_ready(2)
        client.wait_made()
        offices = broker.offices()
        assert [office.name() for office in offices] == ["soffice.bin", "soffice.bin"]
        assert len(broker.pipes) >= 2
        assert broker.end(number) == 0
        assert all_gone(offices)
        assert not [pipe for pipe in broker.pipes if pipe.exists()]
        assert list(broker.temporary.iterdir()) == []
        assert list(broker.runtime.iterdir()) == []
        assert client.finish_failing()


def test_without_a_tmpdir_nothing_is_left_either() -> None:
    with Foreground(ONE, default_tmp=True) as broker, broker.client() as client:
        broker.wait_ready()
        client.wait_made()
        assert client.finish() == MADE
        assert list(Path("/tmp").glob(f"ooodd-{broker.process.pid}-*"))
        assert broker.end() == 0
        assert not [line for line in broker.lines if "can't be stopped" in line]
        assert list(Path("/tmp").glob(f"*ooodd-*{broker.process.pid}-*")) == []


def test_the_stop_command_ends_everything_and_leaves_nothing() -> None:
    with Foreground(ONE) as broker:
        broker.wait_ready()
        offices = broker.offices()
        assert broker.command("stop").startswith("ooodd stops.")
        assert broker.process.wait() == 0
        assert all_gone(offices)
        assert list(broker.temporary.iterdir()) == []


def test_a_signal_while_profiles_are_made_leaves_nothing() -> None:
    for _ in range(10):
        with Foreground(TWO) as broker:
            assert broker.end() == 0
            assert list(broker.temporary.iterdir()) == []


def test_no_office_outlives_a_killed_broker() -> None:
    with Foreground(TWO) as broker:
        broker.wait_ready(2)
        offices = broker.offices()
        assert len(offices) == 2
        assert broker.end(signal.SIGKILL) == -signal.SIGKILL
        assert all_gone(offices)


def test_the_next_broker_runs_in_the_directory_of_a_killed_one() -> None:
    with Foreground(ONE) as broker:
        broker.wait_ready()
        broker.end(signal.SIGKILL)
        assert (broker.runtime / "control").exists()
        (left,) = Path("/tmp").glob(f"OSL_PIPE_*_ooodd-{broker.process.pid}-1-*")
        with Foreground(ONE, runtime=broker.runtime) as other:
            other.wait_ready()
            assert "idle" in other.command("status")
            assert not left.exists(), "the pipe of the killed broker's office is left"


def test_an_absent_office_is_reported_and_tried_again_with_back_off(tmp_path: Path) -> None:
    with Foreground(ONE, office=tmp_path) as broker:
        line = (
            f"worker 1 can't be started: there is no office at {tmp_path}: install libreoffice-writer, or give --office"
        )
        broker.wait_for(line)
        began = time.monotonic()
        for _ in range(4):
            broker.wait_for(line)
        # The pool first waits 0.1 s, and doubles that each time. Each pause is up to a quarter shorter, at random.
        assert time.monotonic() - began >= 0.75 * (0.1 + 0.2 + 0.4 + 0.8)
        (worker,) = json.loads(broker.command("status", "--json", status=2))["workers"]
        assert worker["uses"] == 0
        assert "no office at" in worker["detail"]
        assert broker.end() == 0
        assert list(broker.temporary.iterdir()) == []


def test_an_office_that_is_installed_later_is_started(tmp_path: Path) -> None:
    with Foreground(ONE, office=tmp_path / "program") as broker:
        broker.wait_for("can't be started")
        fake_office(tmp_path / "program", f'exec {OFFICE}/soffice.bin "$@"')
        broker.wait_ready()


def test_an_office_that_exits_with_81_is_started_again(tmp_path: Path) -> None:
    once = f'if mkdir "{tmp_path}/once"; then exit 81; fi\nexec {OFFICE}/soffice.bin "$@"'
    with Foreground(ONE, office=fake_office(tmp_path / "program", once)) as broker:
        broker.wait_ready()
        with broker.client() as client:
            client.wait_made()
            assert client.finish() == MADE
        assert (tmp_path / "once").exists()


def test_an_office_that_never_gets_ready_is_stopped_after_start_timeout(tmp_path: Path) -> None:
    config = ONE.replace("[log]", 'start_timeout = "1s"\n[log]')
    with Foreground(
        config, office=fake_office(tmp_path / "program", f"echo $$ >{tmp_path}/pid\nexec sleep 1d")
    ) as broker:
        broker.wait_for(r"worker 1 can't be started: not ready within 1 s: raise \[pool\] start_timeout")
        broker.wait_for("can't be started")
        (first_pid, running) = (int(tmp_path.joinpath("pid").read_text()), broker.offices())
        assert broker.end() == 0
        assert all_gone(running)
        assert not psutil.pid_exists(first_pid)
        assert list(broker.temporary.iterdir()) == []


def test_an_office_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    ignores_sigterm = "trap '' TERM\nsleep 1d &\nsleep 1d"
    config = ONE.replace("[log]", 'start_timeout = "1s"\n[log]')
    with Foreground(config, office=fake_office(tmp_path / "program", ignores_sigterm)) as broker:
        broker.wait_for("not ready within")
        processes = broker.offices()
        assert broker.end() == 0
        assert all_gone(processes)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run it as another user")
def test_it_runs_without_root() -> None:
    with Foreground(ONE, user=65534) as broker:
        broker.wait_ready()
        assert {office.uids().real for office in broker.offices()} == {65534}
        with broker.client() as client:
            client.wait_made()
            assert client.finish() == MADE
        assert "1 sessions, 0 refused" in broker.command("status")
        assert broker.end() == 0
        assert list(broker.temporary.iterdir()) == []
