# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a client is told that gets no office: each reason has a text, which says what is wrong and what to do."""

import re
from typing import Any

import pytest

from ooodd.broker import refusals
from ooodd.broker.refusals import REFUSALS
from ooodd.pool.actions import Reason

FIELDS: dict[str, Any] = {
    "workers": 7,
    "queued": 3,
    "host": "192.0.2.1",
    "owner": "user 1000",
    "max_per_host": 9,
    "max_per_user": 8,
    "objection": "192.0.2.1 (user bob) may not connect ([access] allowed_users)",
    "timeout": 90.0,
    "start_error": "no office in {nowhere}: install one",
}


def test_each_reason_to_refuse_a_client_has_a_text() -> None:
    reasons = list(Reason)
    assert set(REFUSALS) == set(reasons[reasons.index(Reason.KICKED) :]), "those before KICKED are a worker's"


@pytest.mark.parametrize("reason", REFUSALS)
def test_each_text_names_ooodd_the_problem_and_the_remedy(reason: Reason) -> None:
    text = refusals.text(reason, **FIELDS)
    assert text.startswith("ooodd: ")
    assert text.isprintable()
    assert re.search(r"try again|\[(access|queue|pool)\]|LimitNOFILE=|install", text), "what is to be done?"


@pytest.mark.parametrize(
    ("reason", "part"),
    [
        (Reason.QUEUE_FULL, "all 7 workers are busy and 3 clients wait already"),
        (Reason.HOST_FULL, "9 clients of 192.0.2.1 wait already"),
        (Reason.USER_FULL, "8 clients of user 1000 wait already"),
        (Reason.SHARE_FULL, "clients of user 1000 take half of the queue"),
        (Reason.NOT_ALLOWED, "ooodd: 192.0.2.1 (user bob) may not connect ([access] allowed_users)"),
        (Reason.WAITED_TOO_LONG, "none of the 7 workers became free within 90 s"),
        (Reason.WAITS_FOR_ITSELF, "sessions of user 1000 hold all 7 workers"),
        (Reason.NO_OFFICE, ": no office in {nowhere}: install one"),
    ],
)
def test_a_text_contains_the_current_values(reason: Reason, part: str) -> None:
    assert part in refusals.text(reason, **FIELDS)


@pytest.mark.parametrize("reason", REFUSALS)
def test_while_paused_nobody_is_told_that_workers_are_busy(reason: Reason) -> None:
    text = refusals.text(reason, paused=True, **FIELDS)
    assert text.startswith("ooodd: ")
    assert "workers are busy" not in text
    assert ("paused" in text) == (reason in refusals.WHILE_PAUSED)
