# SPDX-License-Identifier: LGPL-2.1-or-later
"""How many workers there are, which are probed, and which are recycled."""

import pytest

from fakes import states
from ooodd.pool.actions import Lease, Probe, Reason, Start, Stop
from ooodd.pool.pool import State
from pool.pools import elastic_pool, end_session, limits, pool, ready_pool, recycle

# How many workers there are


def test_workers_come_with_their_clients_and_go_after_them() -> None:
    it = elastic_pool(4)
    assert it.open(0.0) == []
    assert it.join(1, 1.0) == [Start(1)]
    assert it.join(2, 1.0) == [Start(2)]
    assert it.ready(1, 2.0) == [Lease(1, 1)]
    assert it.ready(2, 2.0) == [Lease(2, 2)]
    assert end_session(it, 1, 1, 3.0) == end_session(it, 2, 2, 10.0) == []
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


def test_spare_workers_are_kept_as_long_as_clients_come() -> None:
    it = elastic_pool(4, spare_workers=1)
    assert it.open(0.0) == [Start(1)]
    it.ready(1, 0.1)
    assert it.join(1, 1.0) == [Lease(1, 1), Start(2)]
    it.ready(2, 1.1)
    assert end_session(it, 1, 1, 40.0) == []
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


def test_no_more_workers_start_at_a_time_than_the_cpus_can_carry() -> None:
    it = pool(5, starts=2)
    assert it.open(0.0) == [Start(1), Start(2)]
    assert it.ready(1, 1.0) == [Start(3)]
    assert it.lost(2, 1.0, Reason.CRASHED, "") == [Stop(2, Reason.NOT_STARTED, ""), Start(4)]


def test_each_client_can_have_a_new_office_and_a_spare_hides_the_restart() -> None:
    it = elastic_pool(3, max_uses=1, spare_workers=1)
    it.open(0.0)
    it.ready(1, 0.1)
    assert it.join(1, 1.0) == [Lease(1, 1), Start(2)]
    it.ready(2, 1.1)
    assert end_session(it, 1, 1, 2.0) == [Stop(1, Reason.USED_UP)]
    assert it.join(2, 2.0) == [Lease(2, 2), Start(3)]


# max_uses


def test_a_worker_is_recycled_after_exactly_max_uses() -> None:
    it = ready_pool(1, max_uses=3)
    for client in (1, 2):
        assert it.join(client, 2.0) == [Lease(1, client)]
        assert end_session(it, 1, client, 3.0) == []
    it.join(3, 4.0)
    assert end_session(it, 1, 3, 5.0) == [Stop(1, Reason.USED_UP)]
    assert it.stopped(1, 6.0) == [Start(1)]
    assert it.totals.recycled == 1


def test_the_jitter_of_max_uses_is_drawn_for_each_office_within_its_bounds() -> None:
    it = ready_pool(200, max_uses=10, max_uses_jitter=3)
    assert {worker.max_uses for worker in it.workers.values()} == set(range(7, 14))


def test_a_reload_recycles_idle_offices_that_have_had_their_uses() -> None:
    it = ready_pool(2)
    for client in (1, 2, 3):
        assert it.join(client, 2.0) == [Lease(1, client)]
        end_session(it, 1, client, 3.0)
    assert it.reconfigure(limits(2, max_uses=4), 4.0) == []
    assert it.reconfigure(limits(2, max_uses=3), 4.0) == [Stop(1, Reason.USED_UP)]
    assert it.join(4, 5.0) == [Lease(2, 4)]


def test_a_reload_recycles_a_busy_office_that_has_had_its_uses_after_its_session() -> None:
    it = ready_pool(1)
    for client in (1, 2):
        it.join(client, 2.0)
        end_session(it, 1, client, 3.0)
    it.join(3, 4.0)
    it.join(4, 4.0)
    assert it.reconfigure(limits(1, max_uses=1), 4.0) == []
    assert end_session(it, 1, 3, 5.0) == [Stop(1, Reason.USED_UP)], "4 gets the next office"


def test_a_reload_recycles_an_office_that_has_had_its_uses_after_a_probe() -> None:
    it = ready_pool(1, probe_interval=10.0)
    it.join(1, 2.0)
    end_session(it, 1, 1, 3.0)
    assert it.tick(13.0) == [Probe(1)]
    assert it.reconfigure(limits(1, max_uses=1), 13.0) == []
    assert it.probed(1, 14.0) == [Stop(1, Reason.USED_UP)]


def test_a_reload_recycles_an_office_that_has_had_its_uses_and_is_given_back() -> None:
    it = ready_pool(1)
    it.join(1, 2.0)
    end_session(it, 1, 1, 3.0)
    it.join(2, 4.0)
    it.join(3, 4.0)
    assert it.reconfigure(limits(1, max_uses=1), 5.0) == []
    assert it.give_back(1, 2, 5.0) == [Stop(1, Reason.USED_UP)], "3 gets the next office"


def test_a_reload_that_does_not_change_max_uses_keeps_what_was_drawn() -> None:
    it = ready_pool(50, max_uses=10, max_uses_jitter=3)
    drawn = [worker.max_uses for worker in it.workers.values()]
    it.reconfigure(limits(50, max_uses=10, max_uses_jitter=3), 2.0)
    assert [worker.max_uses for worker in it.workers.values()] == drawn
    it.reconfigure(limits(50, max_uses=100, max_uses_jitter=3), 2.0)
    assert {worker.max_uses for worker in it.workers.values()} == set(range(97, 104))


# Memory and age


def test_an_office_that_has_grown_too_big_is_recycled_after_its_session_or_a_probe() -> None:
    it = ready_pool(1, max_memory=100, probe_interval=10.0)
    it.join(1, 2.0)
    assert end_session(it, 1, 1, 3.0, memory=100) == []
    it.join(2, 4.0)
    assert end_session(it, 1, 2, 5.0, memory=101) == [Stop(1, Reason.TOO_BIG)]
    recycle(it, 1, 7.0)
    assert it.tick(17.0) == [Probe(1)]
    assert it.probed(1, 17.1, memory=101) == [Stop(1, Reason.TOO_BIG)]
    assert it.totals.recycled == 2


def test_while_clients_wait_big_offices_are_recycled_one_at_a_time() -> None:
    it = ready_pool(2, max_memory=100)
    for client in (1, 2, 3, 4):
        it.join(client, 2.0)
    assert end_session(it, 1, 1, 3.0, memory=200) == [Stop(1, Reason.TOO_BIG)]
    assert end_session(it, 2, 2, 3.0, memory=200) == [Lease(2, 3)], "worker 1 is still on its way"
    recycle(it, 1, 5.0)
    assert end_session(it, 2, 3, 6.0, memory=200) == [Stop(2, Reason.TOO_BIG)]


def test_an_old_idle_office_goes_when_its_replacement_is_ready() -> None:
    it = elastic_pool(2, min_workers=1, max_age=100.0, idle_timeout=None)
    it.open(0.0)
    it.ready(1, 1.0)
    assert it.tick(90.0) == []
    assert it.tick(101.1) == [Start(2)], "first the new one,"
    assert it.ready(2, 101.3) == [Stop(1, Reason.TOO_OLD)], "then the old one goes"
    assert it.stopped(1, 101.4) == []
    assert it.totals.recycled == 1


def test_old_idle_offices_go_one_by_one_if_no_number_is_free() -> None:
    it = ready_pool(2, max_age=100.0)
    assert it.tick(102.0) == [Stop(1, Reason.TOO_OLD)]
    assert it.stopped(1, 102.0) == [Start(1)]
    assert it.ready(1, 102.5) == [Stop(2, Reason.TOO_OLD)]


def test_old_idle_offices_go_only_while_no_other_is_on_its_way() -> None:
    it = ready_pool(3, max_age=100.0)
    assert it.tick(102.0) == [Stop(1, Reason.TOO_OLD)]
    assert it.tick(103.0) == []


def test_an_old_idle_office_that_nobody_needs_is_not_replaced_but_stopped_in_the_end() -> None:
    it = elastic_pool(2, max_age=20.0)
    it.open(0.0)
    it.join(1, 0.0)
    it.ready(1, 1.0)
    end_session(it, 1, 1, 3.0)
    assert it.tick(30.0) == []
    assert it.deadline == 53.0
    assert it.tick(53.0) == [Stop(1, Reason.NOT_NEEDED)]


def test_an_old_office_is_leased_if_there_is_no_other() -> None:
    it = ready_pool(2, max_age=100.0)
    assert it.tick(102.0) == [Stop(1, Reason.TOO_OLD)]
    assert it.join(1, 102.1) == [Lease(2, 1)]


def test_an_old_busy_office_is_recycled_after_its_session() -> None:
    it = ready_pool(1, max_age=100.0)
    it.join(1, 2.0)
    assert end_session(it, 1, 1, 120.0) == [Stop(1, Reason.TOO_OLD)]


# Probes


def test_idle_workers_are_probed_at_an_interval_and_busy_ones_never() -> None:
    it = ready_pool(2, probe_interval=10.0)
    it.join(1, 2.0)
    assert it.deadline == 11.0
    assert it.tick(11.0) == [Probe(2)]
    assert states(it) == [State.BUSY, State.INSPECTING]
    assert it.probed(2, 11.5) == []
    assert it.deadline == 21.5
    assert end_session(it, 1, 1, 12.0) == []
    assert it.deadline == 21.5


def test_a_client_that_comes_during_a_probe_gets_another_worker() -> None:
    it = elastic_pool(2, probe_interval=10.0)
    it.open(0.0)
    it.join(1, 0.0)
    it.ready(1, 1.0)
    end_session(it, 1, 1, 2.0)
    assert it.tick(12.0) == [Probe(1)]
    assert it.join(2, 12.0) == [Start(2)]
    assert it.probed(1, 17.0, Reason.HUNG, "no answer") == [Stop(1, Reason.HUNG, "no answer")]
    assert it.totals.hung == 1
    assert it.ready(2, 18.0) == [Lease(2, 2)]


# Another number of workers


def test_idle_workers_that_are_too_many_go_at_once() -> None:
    it = ready_pool(3)
    assert it.reconfigure(limits(1), 5.0) == [Stop(2, Reason.NOT_NEEDED), Stop(3, Reason.NOT_NEEDED)]


def test_busy_workers_that_are_too_many_go_after_their_sessions() -> None:
    it = ready_pool(2)
    for client in (1, 2, 3):
        it.join(client, 2.0)
    assert it.reconfigure(limits(3), 3.0) == [Start(3)]
    assert it.ready(3, 4.0) == [Lease(3, 3)]
    assert it.reconfigure(limits(1), 5.0) == []
    assert end_session(it, 3, 3, 6.0) == [Stop(3, Reason.NOT_NEEDED)]
    it.stopped(3, 7.0)
    assert list(it.workers) == [1, 2]
    assert end_session(it, 1, 1, 8.0) == []
    assert end_session(it, 2, 2, 8.0) == [Stop(2, Reason.NOT_NEEDED)]
    it.stopped(2, 9.0)
    assert it.join(4, 9.0) == [Lease(1, 4)]


@pytest.mark.parametrize("idle_timeout", [None, 1.0])
def test_too_many_and_unneeded_workers_are_each_stopped_once(idle_timeout: float | None) -> None:
    it = ready_pool(4, idle_timeout=idle_timeout)
    stops = it.reconfigure(limits(3, min_workers=1, idle_timeout=idle_timeout), 5.0)
    expected = [4] if idle_timeout is None else [4, 1, 2]
    assert stops == [Stop(number, Reason.NOT_NEEDED) for number in expected]
