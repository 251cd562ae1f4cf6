# SPDX-License-Identifier: LGPL-2.1-or-later
"""The events of the pool, by example."""

from random import Random

import pytest

from ooodd.pool.actions import Action, Break, Lease, Probe, Reason, Reclaim, Refuse, Start, Stop
from ooodd.pool.pool import IllegalTransition, Pool, State, Totals, Worker
from ooodd.pool.workers import Place
from pool.pools import elastic_pool, end_session, limits, looks, pool, ready_pool, recycle

# Clients and their workers


def test_the_worker_that_was_used_last_is_leased_first() -> None:
    it = ready_pool(2)
    assert it.join(1, 2.0) == [Lease(1, 1)]
    assert end_session(it, 1, 1, 3.0) == []
    assert it.join(2, 4.0) == [Lease(1, 2)]


def test_a_client_that_leaves_the_queue_costs_no_worker() -> None:
    it = pool(1)
    it.open(0.0)
    it.join(1, 1.0)
    it.join(2, 1.0)
    assert it.leave(1, 2.0) == []
    assert it.ready(1, 3.0) == [Lease(1, 2)]
    assert it.workers[1].uses == 1


def test_a_worker_whose_client_leaves_without_a_release_is_recycled() -> None:
    it = ready_pool(1)
    it.join(1, 1.0)
    assert it.leave(1, 2.0) == [Break(1, 1), Stop(1, Reason.CUT_OFF)]
    assert it.leave(1, 2.0) == []
    assert it.totals.recycled == 1


def test_a_worker_that_was_not_touched_can_be_given_back() -> None:
    it = ready_pool(1)
    it.join(1, 2.0)
    it.join(2, 2.0)
    assert it.give_back(1, 1, 3.0) == [Lease(1, 2)]
    assert (it.workers[1].uses, it.totals.sessions) == (1, 1)
    assert it.give_back(1, 1, 3.0) == []


def test_a_client_that_could_not_reach_its_office_keeps_its_place_and_the_worker_is_probed() -> None:
    it = ready_pool(1)
    it.join(1, 1.0)
    it.join(2, 2.0)
    assert it.give_back(1, 1, 3.0, reached=False) == [Probe(1)]
    assert it.rejoin(1, Place(1.0, ""), 3.0) == []
    assert (it.totals.sessions, it.workers[1].uses) == (0, 0)
    assert it.probed(1, 4.0) == [Lease(1, 1)]


def test_a_dirty_office_is_recycled_and_counted_as_dirty() -> None:
    it = ready_pool(1)
    it.join(1, 2.0)
    assert end_session(it, 1, 1, 3.0, Reason.DIRTY) == [Stop(1, Reason.DIRTY)]
    assert (it.totals.dirty, it.totals.recycled) == (1, 0)


def test_a_client_can_be_refused_for_a_reason_of_the_caller() -> None:
    it = ready_pool(1)
    assert it.turn_away(1, Reason.NO_DESCRIPTOR) == [Refuse(1, Reason.NO_DESCRIPTOR)]
    assert it.totals.refused == 1


# Lost workers and late events


def test_a_busy_worker_that_is_lost_breaks_its_session_and_is_started_again() -> None:
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


def test_a_probe_that_ends_late_changes_nothing() -> None:
    it = ready_pool(1, probe_interval=10.0)
    it.tick(11.0)
    it.lost(1, 11.1, Reason.CRASHED, "")
    assert it.probed(1, 11.2) == []
    recycle(it, 1, 11.4)
    it.join(1, 11.5)
    it.inspect(1, 1, 11.6)
    assert it.probed(1, 11.7, Reason.HUNG) == [], "the inspection is that of the client's session"


def test_an_event_of_a_worker_that_a_reload_has_removed_changes_nothing() -> None:
    it = ready_pool(2)
    it.reconfigure(limits(1), 2.0)
    it.stopped(2, 2.0)
    before = repr(dict(it.workers)), repr(it.totals), it.deadline
    for number in (2, 7):
        assert it.ready(number, 3.0) == []
        assert it.not_started(number, 3.0, "why") == []
        assert it.probed(number, 3.0, Reason.HUNG) == []
        assert it.lost(number, 3.0, Reason.CRASHED, "why") == []
        assert it.stopped(number, 3.0) == []
        assert it.give_back(number, 1, 3.0) == []
        assert it.release(number, 1, 3.0) == []
        assert not it.inspect(number, 1, 3.0)
    assert (repr(dict(it.workers)), repr(it.totals), it.deadline) == before


def test_an_event_that_can_not_happen_raises_and_changes_nothing() -> None:
    it = ready_pool(1)
    before = repr(dict(it.workers)), repr(it.totals)
    with pytest.raises(IllegalTransition, match="worker 1 is idle: no ready"):
        it.ready(1, 9.0)
    with pytest.raises(IllegalTransition, match="worker 1 is idle: no stopped"):
        it.stopped(1, 9.0)
    assert (repr(dict(it.workers)), repr(it.totals)) == before


# The end


def test_closing_refuses_breaks_and_stops_everything() -> None:
    it = ready_pool(2)
    for client in (1, 2, 3):
        it.join(client, 2.0)
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
    assert it.deadline is None


def test_draining_lets_sessions_end_and_nobody_in() -> None:
    it = ready_pool(2)
    for client in (1, 2, 3):
        it.join(client, 2.0)
    assert it.drain(3.0) == [Refuse(3, Reason.CLOSING)]
    assert it.join(4, 3.0) == [Refuse(4, Reason.CLOSING)]
    assert it.rejoin(5, Place(1.0, ""), 3.0) == [Refuse(5, Reason.CLOSING)]
    assert end_session(it, 1, 1, 4.0) == []
    assert not it.drained
    it.lost(2, 4.0, Reason.CRASHED, "")
    assert it.rejoin(2, Place(2.0, ""), 4.0) == [Refuse(2, Reason.CLOSING)]
    assert it.drained


# A broker that takes over


def test_the_workers_and_clients_of_an_earlier_broker_are_taken_over() -> None:
    it = pool(3, min_workers=0)
    before = Worker(0, uses=9, max_uses=10, started=-20.0)
    assert it.adopt(1, 0.0, before, (7, Place(0.0, "a"))) == []
    assert it.adopt(2, 0.0, before) == [Probe(2)]
    assert it.adopt(5, 0.0, before, (8, Place(0.0, "a"))) == []
    assert list(it.workers) == [1, 2, 3, 5]
    it.rejoin(9, Place(0.0, "a"), 0.0)
    it.rejoin(10, Place(0.0, "b"), 0.0)
    assert it.open(0.0) == [], "with 5, which is one too many, there are as many as may be"
    assert it.probed(2, 0.1) == [Lease(2, 10)], "host a has two workers"
    assert end_session(it, 1, 7, 1.0, Reason.ADOPTED) == [Stop(1, Reason.ADOPTED), Start(3)]
    assert end_session(it, 2, 10, 2.0) == [Stop(2, Reason.USED_UP)]
    assert end_session(it, 5, 8, 2.0) == [Stop(5, Reason.NOT_NEEDED)]
    assert it.ready(3, 3.0) == [Lease(3, 9)]


def test_clients_that_waited_over_a_restart_are_in_the_order_in_which_they_joined() -> None:
    it = pool(1)
    it.open(0.0)
    it.join(20, 5.0)
    for client, joined in ((7, 3.0), (4, 4.0), (9, 1.0), (8, 3.0)):
        it.rejoin(client, Place(joined, ""), 6.0)
    assert list(it.queue) == [9, 7, 8, 4, 20]
    assert it.queue.oldest == 1.0
    assert it.ready(1, 7.0) == [Lease(1, 9)]


def test_a_lower_max_uses_applies_to_adopted_offices() -> None:
    before = Worker(0, uses=3, max_uses=12)
    it = pool(2, max_uses=1)
    it.adopt(1, 0.0, before)
    it.adopt(2, 0.0, before, (7, Place(0.0, "a")))
    it.open(0.0)
    assert it.probed(1, 0.1) == [Stop(1, Reason.USED_UP)]
    assert end_session(it, 2, 7, 0.2) == [Stop(2, Reason.USED_UP)]


def test_an_adopted_office_keeps_the_max_uses_that_was_drawn_for_it() -> None:
    it = pool(3, max_uses=10, max_uses_jitter=3)
    for number, drawn in ((1, 7), (2, 13), (3, 14)):
        it.adopt(number, 0.0, Worker(0, uses=1, max_uses=drawn))
    assert [it.workers[number].max_uses for number in (1, 2)] == [7, 13]
    assert it.workers[3].max_uses <= 13


def test_the_totals_go_on_and_can_be_corrected() -> None:
    it = Pool(limits(1), Random(1), Totals(sessions=5, crashed=1))
    it.totals.count_lost()
    it.totals.uncount_session()
    assert (it.totals.sessions, it.totals.crashed) == (4, 2)


def test_workers_are_counted_by_state() -> None:
    it = ready_pool(3)
    it.join(1, 2.0)
    assert (it.count(State.BUSY), it.count(State.IDLE), it.count(State.FAILED)) == (1, 2, 0)


# Time


@pytest.mark.parametrize("zero", [-(2.0**20), -64.0, 2.0**20])
def test_nothing_depends_on_the_zero_of_the_clock(zero: float) -> None:
    """As just after boot, or after a year."""
    assert day(zero) == day(0.0)


def day(zero: float) -> list[list[Action] | float | None]:
    """Run one pool from the first start to the last stop, adopted worker and failed start included."""
    it = elastic_pool(3, probe_interval=20.0, max_age=400.0, spare_workers=1, min_workers=1)
    told: list[list[Action] | float | None] = []

    def then(actions: list[Action]) -> None:
        told.append(actions)
        told.append(None if it.deadline is None else round(it.deadline - zero, 6))

    then(it.adopt(1, zero, Worker(0, uses=3, max_uses=10, started=zero - 300.0), (1, Place(zero, "a"))))
    then(it.rejoin(2, Place(zero - 20.0, "a"), zero))
    then(it.open(zero))
    then(it.not_started(2, zero + 1.0, "why"))
    then(it.stopped(2, zero + 1.0))
    then(it.ready(3, zero + 2.0))
    then(it.tick(zero + 3.0))
    then(it.join(3, zero + 3.0, "a"))
    for seconds in range(4, 400, 8):
        then(it.tick(zero + seconds, looks({1: zero + 3.0, 2: zero + 3.0})))
        for worker in [*it.workers.values()]:
            if worker.state is State.STARTING:
                then(it.ready(worker.id, zero + seconds))
            elif worker.state is State.STOPPING:
                then(it.stopped(worker.id, zero + seconds))
            elif worker.state is State.INSPECTING:
                then(it.probed(worker.id, zero + seconds))
    then(it.close(zero + 400.0))
    return told


def test_another_libreoffice_replaces_every_office_busy_ones_after_their_session() -> None:
    it = ready_pool(3, max_uses=10)
    it.join(1, 2.0)
    assert it.recycle(it.workers, 3.0, Reason.OUTDATED) == [Stop(2, Reason.OUTDATED), Stop(3, Reason.OUTDATED)]
    it.stopped(2, 3.1)
    assert it.recycle(it.workers, 3.2, Reason.OUTDATED) == [Stop(2, Reason.OUTDATED)], (
        "it may have started from half an installation"
    )
    assert end_session(it, 1, 1, 4.0) == [Stop(1, Reason.OUTDATED)]
    it.drain(5.0)
    assert it.recycle(it.workers, 5.0, Reason.OUTDATED) == []


# An administrator's orders


def test_only_the_workers_that_are_asked_for_are_recycled() -> None:
    it = ready_pool(3, max_uses=10)
    it.join(1, 2.0)
    assert it.recycle([1, 3, 99], 3.0, Reason.ASKED) == [Stop(3, Reason.ASKED)]
    assert end_session(it, 1, 1, 4.0) == [Stop(1, Reason.ASKED)]
    assert it.workers[2].state is State.IDLE
    assert it.totals.recycled == 2


def test_a_worker_that_is_being_probed_is_recycled_after_that() -> None:
    it = ready_pool(1, max_uses=10, probe_interval=1.0)
    assert it.tick(5.0) == [Probe(1)]
    assert it.recycle([1], 5.1, Reason.ASKED) == []
    assert it.probed(1, 5.2) == [Stop(1, Reason.ASKED)]


def test_a_worker_is_recycled_though_its_client_gives_it_back_untouched() -> None:
    it = ready_pool(1, max_uses=10)
    it.join(1, 2.0)
    it.recycle([1], 3.0, Reason.ASKED)
    it.reconfigure(limits(1, max_uses=5), 3.5)
    assert it.give_back(1, 1, 4.0) == [Stop(1, Reason.ASKED)]
    recycle(it, 1, 5.0)
    assert it.join(2, 6.0) == [Lease(1, 2)]
    assert end_session(it, 1, 2, 7.0) == [], "its new office is not to be replaced"


def test_while_paused_clients_wait_and_sessions_go_on() -> None:
    it = ready_pool(2, max_uses=10)
    assert it.join(1, 2.0) == [Lease(1, 1)]
    assert it.pause(3.0, paused=True) == []
    assert it.join(2, 4.0) == []
    assert end_session(it, 1, 1, 5.0) == []
    assert list(it.queue) == [2]
    assert it.pause(6.0, paused=False) == [Lease(1, 2)]


def test_while_paused_the_queue_has_its_limits_and_nobody_is_thought_to_wait_for_itself() -> None:
    it = ready_pool(1, max_clients=2, queue_timeout=100.0)
    it.pause(2.0, paused=True)
    assert it.join(1, 2.0, "a") == []
    assert it.join(2, 2.0, "b") == []
    assert it.join(3, 2.0, "c") == [Refuse(3, Reason.QUEUE_FULL)]
    assert it.tick(101.0) == []
    assert it.tick(102.0) == [Refuse(1, Reason.WAITED_TOO_LONG), Refuse(2, Reason.WAITED_TOO_LONG)]


def test_while_paused_no_session_is_ended_for_a_client_that_waits() -> None:
    it = ready_pool(1, reclaim_after=1.0)
    it.join(1, 2.0, "a")
    it.pause(3.0, paused=True)
    it.join(2, 4.0, "a")
    assert it.tick(50.0, looks({1: 5.0})) == []
    it.pause(51.0, paused=False)
    assert it.tick(60.0, looks({1: 5.0})) == [Reclaim(1, 1)]


def test_a_paused_pool_is_never_unused() -> None:
    it = pool(1, min_workers=0, idle_timeout=10.0)
    it.open(0.0)
    it.pause(1.0, paused=True)
    it.tick(100.0)
    assert not it.unused
    it.pause(101.0, paused=False)
    assert it.unused


def test_a_session_that_is_ended_by_order_says_so() -> None:
    it = ready_pool(1)
    it.join(1, 2.0)
    assert it.leave(1, 3.0, Reason.KICKED) == [Break(1, 1), Stop(1, Reason.KICKED)]
