# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pool, by examples and by random sequences of events."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fakes import states
from ooodd.pool.actions import Action, Break, Lease, Probe, Reason, Refuse, Start, Stop
from ooodd.pool.admission import Waiting
from ooodd.pool.backoff import TOLERATED as TROUBLE
from ooodd.pool.workers import ALIVE, TRANSITIONS, Event
from ooodd.pool.pool import IllegalTransition, Limits, Pool, State, Worker

FAULTS = [None, Reason.HUNG, Reason.CUT_OFF, Reason.CRASHED, Reason.DIRTY]


def limits(workers: int = 2, **others: object) -> Limits:
    """Limits under which every worker is started at once and kept, unless told otherwise."""
    defaults: dict[str, Any] = {
        "min_workers": workers,
        "spare_workers": 0,
        "max_uses": 10,
        "max_uses_jitter": 0,
        "max_clients": 3,
        "queue_timeout": 100.0,
        "starts": workers,
    }
    return Limits(workers=workers, **{**defaults, **others})


def pool(workers: int = 2, **others: object) -> Pool:
    return Pool(limits(workers, **others), Random(1))


def ready_pool(workers: int = 2, **others: object) -> Pool:
    it = pool(workers, **others)
    assert it.open(0.0) == [Start(number) for number in range(1, workers + 1)]
    for number in range(1, workers + 1):
        it.ready(number, 1.0)
    return it


def elastic_pool(workers: int, **others: object) -> Pool:
    """A pool that has nothing but what its clients need, and idle_timeout = 50."""
    return pool(workers, **{"min_workers": 0, "idle_timeout": 50.0, **others})


def serve(it: Pool, number: int, client: int, now: float, fault: Reason | None = None, memory: int = 0) -> list[Action]:
    assert it.inspect(number, client, now)
    return it.release(number, client, now, fault, memory=memory)


def test_every_state_is_reached_and_left() -> None:
    assert {state for state, _ in TRANSITIONS} == set(State) == set(TRANSITIONS.values())
    assert {event for _, event in TRANSITIONS} == set(Event)


def test_first_come_first_served() -> None:
    it = ready_pool(1)
    assert it.join(7, 2.0) == [Lease(1, 7)]
    assert it.join(8, 3.0) == []
    assert it.join(9, 3.0) == []
    assert serve(it, 1, 7, 4.0) == [Lease(1, 8)]
    assert serve(it, 1, 8, 5.0) == [Lease(1, 9)]


def test_the_worker_that_was_used_last_is_used_again() -> None:
    it = ready_pool(2)
    assert it.join(1, 2.0) == [Lease(1, 1)]
    assert serve(it, 1, 1, 3.0) == []
    assert it.join(2, 4.0) == [Lease(1, 2)]


def test_recycled_after_exactly_max_uses() -> None:
    it = ready_pool(1, max_uses=3)
    for client in (1, 2):
        assert it.join(client, 2.0) == [Lease(1, client)]
        assert serve(it, 1, client, 3.0) == []
    it.join(3, 4.0)
    assert serve(it, 1, 3, 5.0) == [Stop(1, Reason.USED_UP)]
    assert it.stopped(1, 6.0) == [Start(1)]
    assert it.totals.recycled == 1


def test_jitter_is_drawn_once_a_life_within_its_bounds() -> None:
    it = ready_pool(200, max_uses=10, max_uses_jitter=3)
    drawn = {worker.max_uses for worker in it.workers.values()}
    assert drawn == set(range(7, 14))


def test_a_lost_busy_worker_breaks_its_client_and_comes_back() -> None:
    it = ready_pool(2)
    it.join(5, 2.0)
    assert it.lost(1, 3.0, Reason.CRASHED, "killed by signal 9") == [
        Break(1, 5),
        Stop(1, Reason.CRASHED, "killed by signal 9"),
    ]
    assert not it.inspect(1, 5, 3.0)
    assert it.release(1, 5, 3.0) == []
    assert it.stopped(1, 4.0) == [Start(1)]
    assert it.totals.crashed == 1


def test_a_worker_is_lost_only_once() -> None:
    it = ready_pool(1)
    assert it.lost(1, 3.0, Reason.CRASHED, "") == [Stop(1, Reason.CRASHED, "")]
    assert it.lost(1, 3.0, Reason.CRASHED, "") == []
    assert it.totals.crashed == 1


def test_failed_starts_back_off_ever_longer_and_success_forgets_them() -> None:
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


def test_one_that_fails_does_not_hold_the_others_up() -> None:
    it = ready_pool(3)
    it.lost(1, 2.0, Reason.CRASHED, "")
    assert it.stopped(1, 2.0) == [Start(1)]
    assert it.not_started(1, 2.0, "no") == [Stop(1, Reason.NOT_STARTED, "no")]
    it.stopped(1, 2.0)
    it.lost(2, 2.01, Reason.CRASHED, "")
    assert it.stopped(2, 2.01) == [Start(2)]
    assert it.join(1, 2.02) == [Lease(3, 1)]


def test_waiting_clients_are_told_if_no_office_can_be_started_for_long() -> None:
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
    assert TROUBLE <= told < 3 * TROUBLE
    assert it.start_error == "no office"
    assert it.join(2, now) == [Refuse(2, Reason.NO_OFFICE)]
    it.ready(1, now)
    assert it.join(3, now) == [Lease(1, 3)]


def test_one_that_failed_and_is_not_needed_any_more_comes_to_rest() -> None:
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


def test_a_start_that_fails_after_long_is_told_at_once() -> None:
    it = elastic_pool(2)
    it.open(0.0)
    assert it.join(1, 0.0) == [Start(1)]
    assert Refuse(1, Reason.NO_OFFICE) in it.not_started(1, 60.0, "not ready within 60 s")
    it.stopped(1, 60.0)
    it.tick(it.deadline or 0)
    assert State.STARTING in states(it), "nobody waits, but somebody has to find out when the trouble is over"


def test_a_full_queue_refuses_and_an_idle_worker_never_does() -> None:
    it = ready_pool(1, max_clients=1)
    assert it.join(1, 2.0) == [Lease(1, 1)]
    assert it.join(2, 2.0) == []
    assert it.join(3, 2.0) == [Refuse(3, Reason.QUEUE_FULL)]
    none_may_wait = ready_pool(1, max_clients=0)
    assert none_may_wait.join(1, 2.0) == [Lease(1, 1)]
    assert none_may_wait.join(2, 2.0) == [Refuse(2, Reason.QUEUE_FULL)]


def test_who_waited_too_long_is_refused_the_rest_wait_on() -> None:
    it = pool(1)
    it.open(0.0)
    it.join(1, 10.0)
    it.join(2, 20.0)
    assert it.tick(109.9) == []
    assert it.deadline == 110.0
    assert it.tick(110.0) == [Refuse(1, Reason.WAITED_TOO_LONG)]
    assert it.ready(1, 115.0) == [Lease(1, 2)]


def test_who_leaves_the_queue_costs_no_worker() -> None:
    it = pool(1)
    it.open(0.0)
    it.join(1, 1.0)
    it.join(2, 1.0)
    assert it.leave(1, 2.0) == []
    assert it.ready(1, 3.0) == [Lease(1, 2)]
    assert it.workers[1].uses == 1


def test_who_leaves_with_a_worker_has_it_recycled() -> None:
    it = ready_pool(1)
    it.join(1, 1.0)
    assert it.leave(1, 2.0) == [Break(1, 1), Stop(1, Reason.CUT_OFF)]


def test_rejoin_keeps_the_place() -> None:
    it = ready_pool(1)
    it.join(1, 1.0)
    it.join(2, 2.0)
    it.lost(1, 3.0, Reason.CRASHED, "")
    assert it.rejoin(1, Waiting(1.0, ""), 3.0) == []
    it.stopped(1, 4.0)
    assert it.ready(1, 5.0) == [Lease(1, 1)]


def test_closing_refuses_breaks_and_stops_everything() -> None:
    it = ready_pool(2)
    it.join(1, 2.0)
    it.join(2, 2.0)
    it.join(3, 2.0)
    assert it.close(3.0) == [
        Refuse(3, Reason.CLOSING),
        Break(1, 1),
        Stop(1, Reason.CLOSING),
        Break(2, 2),
        Stop(2, Reason.CLOSING),
    ]
    assert it.join(4, 3.0) == [Refuse(4, Reason.CLOSING)]
    assert not it.closed
    assert it.stopped(1, 4.0) == it.stopped(2, 4.0) == []
    assert it.closed


def test_draining_lets_sessions_end_and_nobody_in() -> None:
    it = ready_pool(2)
    it.join(1, 2.0)
    it.join(2, 2.0)
    it.join(3, 2.0)
    assert it.drain(3.0) == [Refuse(3, Reason.CLOSING)]
    assert it.join(4, 3.0) == [Refuse(4, Reason.CLOSING)]
    assert serve(it, 1, 1, 4.0) == []
    assert not it.drained
    serve(it, 2, 2, 4.0)
    assert it.drained


def test_an_illegal_transition_raises_and_changes_nothing() -> None:
    it = ready_pool(1)
    before = repr(it.workers), it.totals
    with pytest.raises(IllegalTransition, match="worker 1 is idle: no ready"):
        it.ready(1, 9.0)
    with pytest.raises(IllegalTransition):
        it.stopped(1, 9.0)
    assert (repr(it.workers), it.totals) == before


# How many workers there are


def test_workers_come_with_their_clients_and_go_after_them() -> None:
    it = elastic_pool(4)
    assert it.open(0.0) == []
    assert it.join(1, 1.0) == [Start(1)]
    assert it.join(2, 1.0) == [Start(2)]
    assert it.ready(1, 2.0) == [Lease(1, 1)]
    assert it.ready(2, 2.0) == [Lease(2, 2)]
    assert serve(it, 1, 1, 3.0) == serve(it, 2, 2, 10.0) == []
    assert it.deadline == 53.0
    assert it.tick(53.0) == [Stop(1, Reason.NOT_NEEDED)]
    it.stopped(1, 53.0)
    assert not it.unused
    assert it.tick(60.0) == [Stop(2, Reason.NOT_NEEDED)]
    assert not it.unused
    assert it.stopped(2, 60.0) == []
    assert it.unused
    assert it.deadline is None
    assert it.totals.recycled == 0


def test_spares_are_kept_ready_as_long_as_clients_come() -> None:
    it = elastic_pool(4, spare_workers=1)
    assert it.open(0.0) == [Start(1)]
    it.ready(1, 0.1)
    assert it.join(1, 1.0) == [Lease(1, 1), Start(2)]
    it.ready(2, 1.1)
    assert serve(it, 1, 1, 40.0) == []
    assert it.tick(51.1) == [Stop(2, Reason.NOT_NEEDED)], "one spare is enough"
    it.stopped(2, 51.2)
    assert it.tick(89.0) == []
    assert it.tick(90.0) == [Stop(1, Reason.NOT_NEEDED)]


def test_min_workers_stay_for_ever() -> None:
    it = elastic_pool(4, min_workers=2)
    assert it.open(0.0) == [Start(1), Start(2)]
    it.ready(1, 0.1)
    it.ready(2, 0.1)
    assert it.tick(10_000.0) == []
    assert not it.unused


def test_no_more_start_at_a_time_than_the_cpus_carry() -> None:
    it = pool(5, starts=2)
    assert it.open(0.0) == [Start(1), Start(2)]
    assert it.ready(1, 1.0) == [Start(3)]
    assert it.lost(2, 1.0, Reason.CRASHED, "") == [Stop(2, Reason.NOT_STARTED, ""), Start(4)]


def test_a_brand_new_office_for_each_client_and_spares_hide_the_restart() -> None:
    it = elastic_pool(3, max_uses=1, spare_workers=1)
    it.open(0.0)
    it.ready(1, 0.1)
    assert it.join(1, 1.0) == [Lease(1, 1), Start(2)]
    it.ready(2, 1.1)
    assert serve(it, 1, 1, 2.0) == [Stop(1, Reason.USED_UP)]
    assert it.join(2, 2.0) == [Lease(2, 2), Start(3)]


# Wear


def test_an_office_that_has_grown_too_big_is_replaced_on_return_and_when_probed() -> None:
    it = ready_pool(1, max_memory=100, probe_interval=10.0)
    it.join(1, 2.0)
    assert serve(it, 1, 1, 3.0, memory=100) == []
    it.join(2, 4.0)
    assert serve(it, 1, 2, 5.0, memory=101) == [Stop(1, Reason.TOO_BIG)]
    it.stopped(1, 6.0)
    it.ready(1, 7.0)
    assert it.tick(17.0) == [Probe(1)]
    assert it.probed(1, 17.1, memory=101) == [Stop(1, Reason.TOO_BIG)]
    assert it.totals.recycled == 2


def test_while_clients_wait_big_offices_go_one_at_a_time() -> None:
    it = ready_pool(2, max_memory=100)
    for client in (1, 2, 3, 4):
        it.join(client, 2.0)
    assert serve(it, 1, 1, 3.0, memory=200) == [Stop(1, Reason.TOO_BIG)]
    assert serve(it, 2, 2, 3.0, memory=200) == [Lease(2, 3)], "the other one is on its way"
    it.stopped(1, 4.0)
    it.ready(1, 5.0)
    assert serve(it, 2, 3, 6.0, memory=200) == [Stop(2, Reason.TOO_BIG)]


def test_old_offices_go_one_by_one_and_after_their_replacement_has_come() -> None:
    it = elastic_pool(2, min_workers=1, max_age=100.0, idle_timeout=None)
    it.open(0.0)
    it.ready(1, 1.0)
    assert it.tick(90.0) == []
    assert it.tick(101.1) == [Start(2)], "first the new one,"
    assert it.ready(2, 101.3) == [Stop(1, Reason.TOO_OLD)], "then the old one goes"
    assert it.stopped(1, 101.4) == []
    assert it.totals.recycled == 1
    full = ready_pool(2, max_age=100.0)
    assert full.tick(102.0) == [Stop(1, Reason.TOO_OLD)]
    assert full.stopped(1, 102.0) == [Start(1)]
    assert full.ready(1, 102.5) == [Stop(2, Reason.TOO_OLD)]


def test_an_old_office_still_serves_if_there_is_no_other() -> None:
    it = ready_pool(1, max_age=100.0)
    it.join(1, 2.0)
    assert serve(it, 1, 1, 120.0) == [Stop(1, Reason.TOO_OLD)]


# Probes


def test_idle_workers_are_probed_at_an_interval_busy_ones_never() -> None:
    it = ready_pool(2, probe_interval=10.0)
    it.join(1, 2.0)
    assert it.deadline == 11.0
    assert it.tick(11.0) == [Probe(2)]
    assert states(it) == [State.BUSY, State.INSPECTING]
    assert it.probed(2, 11.5) == []
    assert it.deadline == 21.5
    assert serve(it, 1, 1, 12.0) == []
    assert it.deadline == 21.5


def test_a_hung_idle_worker_is_replaced_and_who_comes_meanwhile_gets_another() -> None:
    it = elastic_pool(2, probe_interval=10.0)
    it.open(0.0)
    it.join(1, 0.0)
    it.ready(1, 1.0)
    serve(it, 1, 1, 2.0)
    assert it.tick(12.0) == [Probe(1)]
    assert it.join(2, 12.0) == [Start(2)]
    assert it.probed(1, 17.0, Reason.HUNG, "no answer") == [Stop(1, Reason.HUNG, "no answer")]
    assert it.totals.hung == 1
    assert it.ready(2, 18.0) == [Lease(2, 2)]


def test_a_probe_that_comes_too_late_changes_nothing() -> None:
    it = ready_pool(1, probe_interval=10.0)
    it.tick(11.0)
    it.lost(1, 11.1, Reason.CRASHED, "")
    assert it.probed(1, 11.2) == []
    it.stopped(1, 11.3)
    it.ready(1, 11.4)
    it.join(1, 11.5)
    it.inspect(1, 1, 11.6)
    assert it.probed(1, 11.7, Reason.HUNG) == [], "that inspection is the client's"


def test_a_dirty_office_is_counted_as_such() -> None:
    it = ready_pool(1)
    it.join(1, 2.0)
    assert serve(it, 1, 1, 3.0, Reason.DIRTY) == [Stop(1, Reason.DIRTY)]
    assert (it.totals.dirty, it.totals.recycled) == (1, 0)


def test_what_was_not_touched_can_be_given_back() -> None:
    it = ready_pool(1)
    it.join(1, 2.0)
    it.join(2, 2.0)
    assert it.give_back(1, 1, 3.0) == [Lease(1, 2)]
    assert (it.workers[1].uses, it.totals.sessions) == (1, 1)
    assert it.give_back(1, 1, 3.0) == []


# The queue


def test_a_client_for_whom_an_office_is_coming_does_not_count_as_waiting() -> None:
    it = elastic_pool(2, max_clients=1)
    it.open(0.0)
    assert it.join(1, 0.0) == [Start(1)]
    assert it.join(2, 0.0) == [Start(2)]
    assert it.join(3, 0.0) == []
    assert it.join(4, 0.0) == [Refuse(4, Reason.QUEUE_FULL)]


def test_one_host_has_its_share_of_the_queue_and_no_more() -> None:
    it = ready_pool(1, max_clients=10, max_per_host=2)
    it.join(1, 2.0, "a")
    assert it.join(2, 2.0, "a") == it.join(3, 2.0, "a") == []
    assert it.join(4, 2.0, "a") == [Refuse(4, Reason.HOST_FULL)]
    assert it.join(5, 2.0, "b") == []
    it.leave(2, 3.0)
    assert it.join(6, 3.0, "a") == []
    assert serve(it, 1, 1, 4.0) == [Lease(1, 3)]
    assert it.join(7, 5.0, "a") == []


def test_a_client_that_waits_for_itself_is_told_so() -> None:
    it = ready_pool(2)
    it.join(1, 2.0, "a")
    it.join(2, 2.0, "a")
    it.join(3, 3.0, "a")
    it.join(4, 4.0, "b")
    it.join(5, 5.0, "a")
    assert it.tick(32.9, {1: 2.0, 2: 2.0}) == [], "it may only think for a while"
    assert it.tick(40.0, {1: 2.0}) == [], "a call is under way on 2"
    assert it.tick(45.0, {1: 2.0, 2: 20.0}) == [], "on 2 something has moved"
    assert it.tick(50.0, {1: 2.0, 2: 20.0}) == [Refuse(3, Reason.WAITS_FOR_ITSELF)]
    assert it.tick(54.9, {1: 2.0, 2: 20.0}) == [], "5 may have waited for 3"
    assert it.tick(55.0, {1: 2.0, 2: 20.0}) == [Refuse(5, Reason.WAITS_FOR_ITSELF)]
    assert it.tick(60.0, {1: 2.0, 2: 20.0}) == [], "4 waits for somebody else"


def test_who_may_not_wait_for_long_is_told_in_the_end_that_it_waited_for_itself() -> None:
    it = ready_pool(1, queue_timeout=10.0)
    it.join(1, 2.0, "a")
    it.join(2, 3.0, "a")
    it.join(3, 3.0, "b")
    it.join(4, 4.0, "a")
    assert it.tick(12.9, {1: 2.0}) == [], "it may still get its turn"
    assert it.tick(13.0, {1: 3.1}) == [Refuse(2, Reason.WAITS_FOR_ITSELF), Refuse(3, Reason.WAITED_TOO_LONG)]
    assert it.tick(14.0, {1: 13.0}) == [Refuse(4, Reason.WAITED_TOO_LONG)]


def test_nobody_waits_for_itself_while_somebody_else_has_a_worker() -> None:
    it = ready_pool(2)
    it.join(1, 2.0, "a")
    it.join(2, 2.0, "b")
    it.join(3, 3.0, "a")
    assert it.tick(50.0, {1: 2.0, 2: 2.0}) == []


# Another configuration, another broker


def test_another_configuration_touches_no_session() -> None:
    it = ready_pool(2)
    it.join(1, 2.0)
    it.join(2, 2.0)
    it.join(3, 2.0)
    assert it.reconfigure(limits(3), 3.0) == [Start(3)]
    assert it.ready(3, 4.0) == [Lease(3, 3)]
    assert it.reconfigure(limits(1), 5.0) == []
    assert serve(it, 3, 3, 6.0) == [Stop(3, Reason.NOT_NEEDED)]
    it.stopped(3, 7.0)
    assert list(it.workers) == [1, 2]
    assert serve(it, 1, 1, 8.0) == []
    assert serve(it, 2, 2, 8.0) == [Stop(2, Reason.NOT_NEEDED)]
    it.stopped(2, 9.0)
    assert it.join(4, 9.0) == [Lease(1, 4)]


def test_idle_workers_that_are_too_many_go_at_once() -> None:
    it = ready_pool(3)
    assert it.reconfigure(limits(1), 5.0) == [Stop(2, Reason.NOT_NEEDED), Stop(3, Reason.NOT_NEEDED)]


def test_what_another_broker_left_is_taken_over() -> None:
    it = pool(3, min_workers=0)
    before = Worker(0, uses=9, max_uses=10, started=-20.0)
    assert it.adopt(1, 0.0, before, (7, "a")) == []
    assert it.adopt(2, 0.0, before) == [Probe(2)]
    assert it.adopt(5, 0.0, before, (8, "a")) == []
    it.adopt_client(9, Waiting(0.0, "a"), 0.0)
    it.adopt_client(10, Waiting(0.0, "b"), 0.0)
    assert it.open(0.0) == [], "with 5, which is one too many, there are as many as may be"
    assert it.probed(2, 0.1) == [Lease(2, 9)]
    assert serve(it, 1, 7, 1.0, Reason.ADOPTED) == [Stop(1, Reason.ADOPTED), Start(3)]
    assert serve(it, 2, 9, 2.0) == [Stop(2, Reason.USED_UP)]
    assert serve(it, 5, 8, 2.0) == [Stop(5, Reason.NOT_NEEDED)]
    assert it.ready(3, 3.0) == [Lease(3, 10)]


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order, the promises of the module's first lines hold."""

    elastic = False

    def draw(self) -> dict[str, Any]:
        same = vars(limits(3, max_uses=4, max_uses_jitter=2, max_clients=4))
        if not self.elastic:
            return same
        return same | {
            "min_workers": 1,
            "spare_workers": 1,
            "idle_timeout": 7.0,
            "probe_interval": 3.0,
            "max_age": 40.0,
            "max_memory": 100,
            "max_per_host": 3,
            "starts": 2,
        }

    def __init__(self) -> None:
        super().__init__()
        self.it = Pool(Limits(**self.draw()), Random(1))
        self.now = 0.0
        self.client = 0
        # What the actions say, kept apart from the pool's own book-keeping.
        self.holds: dict[int, int] = {}
        self.waiting: list[int] = []
        self.running: set[int] = set()
        self.stopping: set[int] = set()
        self.dirty: set[int] = set()
        self.probing: set[int] = set()
        self.obey(self.it.open(0.0))

    def obey(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Start(number):
                    assert number not in self.running | self.stopping
                    self.running.add(number)
                    self.dirty.discard(number)
                case Stop(number, _, _):
                    assert number in self.running
                    self.running.discard(number)
                    self.probing.discard(number)
                    self.stopping.add(number)
                    self.holds = {client: held for client, held in self.holds.items() if held != number}
                case Lease(number, client):
                    assert number in self.running
                    assert number not in self.holds.values(), "two clients on one worker"
                    assert number not in self.dirty, "leased after a fault"
                    assert number not in self.probing, "leased while probed"
                    assert self.waiting[0] == client, "out of turn"
                    self.waiting.pop(0)
                    self.holds[client] = number
                case Probe(number):
                    assert number in self.running
                    assert number not in self.holds.values()
                    self.probing.add(number)
                case Break(number, client):
                    assert self.holds.pop(client) == number
                case Refuse(client, _):
                    self.waiting.remove(client)

    def tick(self) -> float:
        self.now += 0.5
        return self.now

    def numbers(self, state: State) -> list[int]:
        return [worker.id for worker in self.it.workers.values() if worker.state is state]

    @rule()
    def join(self) -> None:
        self.client += 1
        self.waiting.append(self.client)
        self.obey(self.it.join(self.client, self.tick(), f"host {self.client % 2}"))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(client)
        self.obey(self.it.leave(client, self.tick()))

    @precondition(lambda self: self.numbers(State.STARTING))
    @rule(data=st.data(), works=st.booleans())
    def start_ends(self, data: st.DataObject, works: bool) -> None:  # noqa: FBT001
        number = data.draw(st.sampled_from(self.numbers(State.STARTING)))
        now = self.tick()
        self.obey(self.it.ready(number, now) if works else self.it.not_started(number, now, "why"))

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), fault=st.sampled_from(FAULTS), memory=st.sampled_from([0, 200]))
    def session_ends(self, data: st.DataObject, fault: Reason | None, memory: int) -> None:
        client = data.draw(st.sampled_from(sorted(self.holds)))
        number = self.holds[client]
        if self.it.workers[number].state is State.BUSY:
            assert self.it.inspect(number, client, self.tick())
        if fault:
            self.dirty.add(number)
        else:
            del self.holds[client]
        self.obey(self.it.release(number, client, self.tick(), fault, memory=memory))

    @precondition(lambda self: self.probing)
    @rule(data=st.data(), fault=st.sampled_from([None, Reason.HUNG]))
    def probe_ends(self, data: st.DataObject, fault: Reason | None) -> None:
        number = data.draw(st.sampled_from(sorted(self.probing)))
        self.probing.discard(number)
        if fault:
            self.dirty.add(number)
        self.obey(self.it.probed(number, self.tick(), fault))

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def given_back(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(sorted(self.holds)))
        number = self.holds[client]
        if self.it.workers[number].state is State.BUSY:
            del self.holds[client]
            self.obey(self.it.give_back(number, client, self.tick()))

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def inspection_begins(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(sorted(self.holds)))
        self.it.inspect(self.holds[client], client, self.tick())

    @rule(data=st.data(), reason=st.sampled_from([Reason.CRASHED, Reason.ENDED]))
    def lost(self, data: st.DataObject, reason: Reason) -> None:
        number = data.draw(st.sampled_from(sorted(self.it.workers)))
        self.dirty.add(number)
        self.obey(self.it.lost(number, self.tick(), reason, "why"))

    @precondition(lambda self: self.stopping)
    @rule(data=st.data())
    def stop_ends(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.stopping)))
        self.stopping.remove(number)
        self.obey(self.it.stopped(number, self.tick()))

    @rule(client=st.integers(1, 50), number=st.integers(1, 3))
    def late_news_change_nothing(self, client: int, number: int) -> None:
        if client not in self.holds and number in self.it.workers:
            before = repr(self.it.workers)
            assert not self.it.inspect(number, client, self.tick())
            assert self.it.release(number, client, self.now) == []
            assert repr(self.it.workers) == before

    @rule(seconds=st.sampled_from([0.0, 5.0, 200.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds
        self.obey(self.it.tick(self.now, dict.fromkeys(self.holds, 0.0)))

    @rule(workers=st.integers(1, 3))
    def reconfigure(self, workers: int) -> None:
        least = min(self.it.limits.min_workers, workers)
        self.obey(self.it.reconfigure(replace(self.it.limits, workers=workers, min_workers=least), self.tick()))

    @precondition(lambda self: self.client > 20)
    @rule()
    def drain(self) -> None:
        self.obey(self.it.drain(self.tick()))

    @precondition(lambda self: self.client > 20)
    @rule()
    def close(self) -> None:
        self.obey(self.it.close(self.tick()))
        assert not self.running
        assert not self.holds

    @invariant()
    def nobody_waits_while_a_worker_is_idle(self) -> None:
        assert not (self.it.queue and self.numbers(State.IDLE)) or self.it.draining

    @invariant()
    def who_waits_has_an_office_coming(self) -> None:
        """Unless every worker is somebody's, or waits for its next try."""
        coming = {State.STARTING, State.STOPPING, State.FAILED, State.BUSY, State.INSPECTING}
        if self.it.queue and self.it._back_off.hold_until <= self.it._settled_at:
            missing = [worker for worker in self.it.workers.values() if worker.state not in coming]
            starting = len(self.numbers(State.STARTING))
            full = len(self.running) >= self.it.limits.workers
            assert not missing or full or starting >= min(self.it.limits.starts, len(self.it.queue))

    @invariant()
    def the_books_agree(self) -> None:
        assert list(self.it.queue) == self.waiting
        assert sum(self.it.queue.of_host(f"host {number}") for number in (0, 1)) == len(self.waiting)
        assert {worker.id for worker in self.it.workers.values() if worker.state in ALIVE} == self.running
        assert {worker.client: worker.id for worker in self.it.workers.values() if worker.client} == self.holds

    @invariant()
    def what_is_due_is_done(self) -> None:
        """So the deadline is never in the past, and the broker's timer never spins."""
        deadline = self.it.deadline
        assert deadline is None or deadline > self.it._settled_at or self.it.queue

    @invariant()
    def what_failed_is_tried_again_if_it_is_needed(self) -> None:
        for number in self.numbers(State.FAILED):
            assert self.it.draining or self.it.deadline is not None or self.it.workers[number].retry_at <= self.now


class AnyOrderElastic(AnyOrder):
    """The same with a pool that grows, shrinks, probes and ages."""

    elastic = True


AnyOrder.TestCase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
AnyOrderElastic.TestCase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
TestAnyOrder = AnyOrder.TestCase
TestAnyOrderElastic = AnyOrderElastic.TestCase
