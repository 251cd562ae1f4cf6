# SPDX-License-Identifier: LGPL-2.1-or-later
"""The transitions, and the collection of workers with its orders."""

from dataclasses import astuple
from math import inf

import pytest

from ooodd.pool.workers import TRANSITIONS, Event, IllegalTransition, Schedule, State, Workers


def test_every_state_is_reached_and_left() -> None:
    assert {state for state, _ in TRANSITIONS} == set(State) == set(TRANSITIONS.values())
    assert {event for _, event in TRANSITIONS} == set(Event)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_an_event_that_the_table_does_not_have_changes_nothing(state: State, event: Event) -> None:
    workers = Workers(1, None)
    workers[1].state = state
    workers.set_max_age(None) if state is State.STOPPED else None
    if (state, event) in TRANSITIONS:
        return
    before = astuple(workers[1])
    with (
        pytest.raises(IllegalTransition, match=f"worker 1 is {state}: no {event}"),
        workers.move(workers[1], event, 1.0),
    ):
        pass
    assert astuple(workers[1]) == before


def lease(workers: Workers, number: int, client: int) -> None:
    with workers.move(workers[number], Event.LEASE, 2.0):
        workers[number].client = client


def make_idle(workers: Workers, *numbers: int, used: float = 1.0) -> None:
    for number in numbers:
        with workers.move(workers[number], Event.START, 0.0):
            pass
        with workers.move(workers[number], Event.READY, 1.0):
            workers[number].used = workers[number].started = used


def test_a_move_changes_state_counts_and_orders() -> None:
    workers = Workers(3, None)
    make_idle(workers, 1, 2, 3)
    lease(workers, 2, client=7)
    assert workers.count(State.IDLE) == 2
    assert workers.count(State.IDLE, State.BUSY) == 3
    assert workers.of_client(7) is workers[2]
    assert (workers.leased, workers.leased_up_to(1), workers.leased_up_to(2)) == (1, 0, 1)
    with workers.move(workers[2], Event.STOP, 3.0):
        workers[2].client = None
    assert workers.of_client(7) is None
    assert workers.leased == 0
    assert [worker.id for worker in workers.first(State.IDLE, 1)] == [1]


def test_the_worker_used_last_is_leased_next_and_an_old_one_last() -> None:
    workers = Workers(4, 10.0)
    make_idle(workers, 1, used=1.0)
    make_idle(workers, 2, 3, used=5.0)
    make_idle(workers, 4, used=4.0)
    assert workers.next_idle() is workers[2], "the lowest number of two"
    workers.sort_out_old(11.0)
    for number in (2, 3, 4, 1):
        assert workers.next_idle() is workers[number]
        lease(workers, number, client=number)
    assert workers.next_idle() is None


def test_another_max_age_makes_old_workers_fresh_again() -> None:
    workers = Workers(1, 10.0)
    make_idle(workers, 1)
    workers.sort_out_old(11.0)
    assert (len(workers.fresh), len(workers.old)) == (0, 1)
    workers.set_max_age(20.0)
    workers.sort_out_old(11.0)
    assert (len(workers.fresh), len(workers.old)) == (1, 0)


def test_numbers_are_in_ascending_order_and_those_at_rest_can_be_removed() -> None:
    workers = Workers(2, None)
    for number in (5, 3, 4):
        workers.add(number)
    assert list(workers) == [1, 2, 3, 4, 5]
    make_idle(workers, 1, 4)
    workers.remove_above(1)
    assert list(workers) == [1, 4]
    assert [worker.id for worker in workers.above(1, State.IDLE)] == [4]


def test_a_schedule_says_what_is_due_and_when_the_next_is() -> None:
    schedule = Schedule()
    for number, time in ((1, 5.0), (2, -3.0), (3, 5.0), (4, 9.0)):
        schedule.add(number, time)
    assert schedule.due(4.0) == [2]
    assert schedule.due(5.0) == [2, 1, 3]
    assert schedule.due(5.0, most=2) == [2, 1]
    assert schedule.due(5.0, delay=1.0) == [2]
    assert schedule.next_after(5.0) == 9.0
    assert schedule.next_after(5.0, delay=1.0) == 6.0
    assert schedule.next_after(9.0) == inf
    assert schedule.latest() == 4
    schedule.discard(4)
    schedule.discard(4)
    assert schedule.latest() == 1, "the lowest number of two"
    assert len(schedule) == 3
