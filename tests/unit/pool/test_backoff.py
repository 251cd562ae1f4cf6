# SPDX-License-Identifier: LGPL-2.1-or-later
"""Failed starts: the delays, and what clients are told."""

from fakes import states
from ooodd.pool.actions import Action, Lease, Reason, Refuse, Start, Stop
from ooodd.pool.backoff import START_ERROR_AFTER
from ooodd.pool.pool import State
from pool.pools import elastic_pool, pool, ready_pool


def test_failed_starts_wait_ever_longer_and_a_success_ends_that() -> None:
    it = pool(1)
    it.open(0.0)
    waits = []
    now = 0.0
    for _ in range(12):
        assert it.not_started(1, now, "no office") == [Stop(1, Reason.NOT_STARTED, "no office")]
        assert it.stopped(1, now) == []
        assert it.workers[1].state is State.FAILED
        began = now
        while (actions := it.tick(now)) == []:
            assert it.deadline is not None
            assert it.deadline > now
            now = it.deadline
        assert actions == [Start(1)]
        waits.append(now - began)
    assert 0.075 <= waits[0] <= 0.125
    assert 22.5 <= waits[-1] <= 37.5
    it.ready(1, now)
    it.lost(1, now, Reason.CRASHED, "")
    assert it.stopped(1, now) == [Start(1)]


def test_a_worker_that_fails_does_not_delay_the_others() -> None:
    it = ready_pool(3)
    it.lost(1, 2.0, Reason.CRASHED, "")
    assert it.stopped(1, 2.0) == [Start(1)]
    assert it.not_started(1, 2.0, "no") == [Stop(1, Reason.NOT_STARTED, "no")]
    it.stopped(1, 2.0)
    it.lost(2, 2.01, Reason.CRASHED, "")
    assert it.stopped(2, 2.01) == [Start(2)]
    assert it.join(1, 2.02) == [Lease(3, 1)]


def test_clients_are_told_when_no_office_could_be_started_for_long() -> None:
    it = pool(1, max_clients=10)
    it.open(0.0)
    it.join(1, 0.0)
    now = 0.0
    refused: list[Action] = []
    while not refused:
        actions = it.not_started(1, now, "no office")
        refused, told = [action for action in actions if isinstance(action, Refuse)], now
        it.stopped(1, now)
        while it.workers[1].state is not State.STARTING:
            assert it.deadline is not None
            now = it.deadline
            it.tick(now)
    assert refused == [Refuse(1, Reason.NO_OFFICE)]
    assert START_ERROR_AFTER <= told < 3 * START_ERROR_AFTER
    assert it.start_error == "no office"
    assert it.join(2, now) == [Refuse(2, Reason.NO_OFFICE)]
    it.ready(1, now)
    assert it.start_error == ""
    assert it.join(3, now) == [Lease(1, 3)]


def test_clients_are_told_even_if_the_failure_has_no_detail() -> None:
    it = elastic_pool(1)
    it.open(0.0)
    it.join(1, 0.0)
    assert Refuse(1, Reason.NO_OFFICE) in it.lost(1, 60.0, Reason.CRASHED, "")
    assert it.start_error == Reason.NOT_STARTED
    assert it.join(2, 60.0) == [Refuse(2, Reason.NO_OFFICE)]


def test_a_failed_worker_that_is_no_longer_needed_counts_as_stopped() -> None:
    it = elastic_pool(2, min_workers=1)
    it.open(0.0)
    it.ready(1, 0.1)
    it.join(1, 1.0)
    it.join(2, 1.0)
    assert it.not_started(2, 1.1, "no bus") == [Stop(2, Reason.NOT_STARTED, "no bus")]
    it.stopped(2, 1.1)
    it.leave(2, 1.15)
    assert states(it) == [State.BUSY, State.FAILED]
    assert it.tick(2.0) == []
    assert states(it) == [State.BUSY, State.STOPPED]


def test_a_start_that_fails_after_a_long_time_is_told_at_once() -> None:
    it = elastic_pool(2)
    it.open(0.0)
    assert it.join(1, 0.0) == [Start(1)]
    assert Refuse(1, Reason.NO_OFFICE) in it.not_started(1, 60.0, "not ready within 60 s")
    it.stopped(1, 60.0)
    it.tick(it.deadline or 0)
    assert State.STARTING in states(it), "nobody waits, but the pool has to find out when starting works again"
