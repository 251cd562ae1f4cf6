# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that hold offices, or the queue, and do nothing."""

import time
from pathlib import Path

import pytest

from deadline import until
from machine import read_line
from ooodd import messages
from places import PYTHON
from service import PATIENCE, Service

SILENT = str(Path(__file__).with_name("silent.py"))


@pytest.mark.parametrize("count", [4, pytest.param(1000, marks=pytest.mark.long), 2500])
def test_others_are_served_all_the_same(fresh_service: Service, count: int) -> None:
    """Of 2,500 with 1,000 places in the queue, some 2,000 are refused, and do not close either."""
    service, machine = fresh_service, fresh_service.machine
    machine.run("useradd", "mallory", check=True)
    service.configure('[pool]\nworkers = 4\n[session]\nreclaim_after = "infinity"\n')
    service.start()
    moment = machine.journal_moment()
    with machine.popen(PYTHON, SILENT, str(count), user="mallory") as silent:
        assert read_line(silent, PATIENCE) == "connected\n"
        began = time.monotonic()
        for _ in range(3):
            assert service.serves()
        print(f"{count} silent clients: three others served within {time.monotonic() - began:.1f} s")
        limit = "[session] first_call_timeout = 5 s"
        until(
            lambda: any(limit in line["MESSAGE"] for line in service.lines(messages.SESSION_END, moment)),
            PATIENCE,
            "the end of a silent client",
        )
        refused = service.totals()["refused"]
        assert refused >= count - 4 - 500 - 40 if count > 504 else not refused
        silent.kill()
    service.wait_idle()
    assert service.serves()


def test_without_the_limit_four_of_them_hold_all_offices(fresh_service: Service) -> None:
    service, machine = fresh_service, fresh_service.machine
    service.configure('[pool]\nworkers = 4\n[session]\nreclaim_after = "infinity"\nfirst_call_timeout = "infinity"\n')
    service.start()
    with machine.popen(PYTHON, SILENT, "4") as silent:
        assert read_line(silent, PATIENCE) == "connected\n"
        until(lambda: service.states() == ["busy"] * 4, PATIENCE, "all offices to be held")
        waiting = service.waiting_client()
        silent.kill()
        assert waiting.wait(PATIENCE) == 0
        waiting.release()
