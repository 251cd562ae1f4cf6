# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pool, by examples and by random sequences of events."""

from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ooodd.pool import (
    ALIVE,
    TRANSITIONS,
    Action,
    Break,
    Event,
    IllegalTransition,
    Lease,
    Limits,
    Pool,
    Reason,
    Refuse,
    Start,
    State,
    Stop,
)

FAULTS = [None, Reason.HUNG, Reason.CUT_OFF, Reason.CRASHED]


def pool(workers: int = 2, max_uses: int = 10, jitter: int = 0, max_clients: int = 3) -> Pool:
    return Pool(Limits(workers, max_uses, jitter, max_clients, queue_timeout=100.0), Random(1))


def ready_pool(workers: int = 2, **limits: int) -> Pool:
    it = pool(workers, **limits)
    assert it.open(0.0) == [Start(number) for number in range(1, workers + 1)]
    for number in range(1, workers + 1):
        it.ready(number, 1.0)
    return it


def serve(it: Pool, number: int, client: int, now: float, fault: Reason | None = None) -> list[Action]:
    assert it.inspect(number, client, now)
    return it.release(number, client, now, fault)


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


def test_use_is_spread_over_the_workers() -> None:
    it = ready_pool(2)
    assert it.join(1, 2.0) == [Lease(1, 1)]
    assert serve(it, 1, 1, 3.0) == []
    assert it.join(2, 4.0) == [Lease(2, 2)]


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
    it = ready_pool(200, max_uses=10, jitter=3)
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
        assert it.deadline is not None
        waits.append(it.deadline - now)
        assert it.tick(it.deadline - 0.001) == []
        now = it.deadline
        assert it.tick(now) == [Start(1)]
    assert 0.075 <= waits[0] <= 0.125
    assert 22.5 <= waits[-1] <= 37.5
    it.ready(1, now)
    it.lost(1, now, Reason.CRASHED, "")
    assert it.stopped(1, now) == [Start(1)]


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
    assert it.deadline == 110.0
    assert it.tick(110.0) == [Refuse(1, Reason.WAITED_TOO_LONG)]
    assert it.deadline == 120.0
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
    assert it.rejoin(1, 1.0, 3.0) == []
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


def test_an_illegal_transition_raises_and_changes_nothing() -> None:
    it = ready_pool(1)
    before = repr(it.workers), it.totals
    with pytest.raises(IllegalTransition, match="worker 1 is idle: no ready"):
        it.ready(1, 9.0)
    with pytest.raises(IllegalTransition):
        it.stopped(1, 9.0)
    assert (repr(it.workers), it.totals) == before


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order, the promises of the module's first lines hold."""

    def __init__(self) -> None:
        super().__init__()
        self.it = pool(workers=3, max_uses=4, jitter=2, max_clients=4)
        self.now = 0.0
        self.client = 0
        # What the actions say, kept apart from the pool's own book-keeping.
        self.holds: dict[int, int] = {}
        self.waiting: list[int] = []
        self.running: set[int] = set()
        self.stopping: set[int] = set()
        self.dirty: set[int] = set()
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
                    self.stopping.add(number)
                    self.holds = {client: held for client, held in self.holds.items() if held != number}
                case Lease(number, client):
                    assert number in self.running
                    assert number not in self.holds.values(), "two clients on one worker"
                    assert number not in self.dirty, "leased after a fault"
                    assert self.waiting[0] == client, "out of turn"
                    self.waiting.pop(0)
                    self.holds[client] = number
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
        self.obey(self.it.join(self.client, self.tick()))

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
    @rule(data=st.data(), fault=st.sampled_from(FAULTS))
    def session_ends(self, data: st.DataObject, fault: Reason | None) -> None:
        client = data.draw(st.sampled_from(sorted(self.holds)))
        number = self.holds[client]
        if self.it.workers[number].state is State.BUSY:
            assert self.it.inspect(number, client, self.tick())
        if fault:
            self.dirty.add(number)
        else:
            del self.holds[client]
        self.obey(self.it.release(number, client, self.tick(), fault))

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def inspection_begins(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(sorted(self.holds)))
        self.it.inspect(self.holds[client], client, self.tick())

    @rule(number=st.integers(1, 3), reason=st.sampled_from([Reason.CRASHED, Reason.ENDED]))
    def lost(self, number: int, reason: Reason) -> None:
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
        if client not in self.holds:
            before = repr(self.it.workers)
            assert not self.it.inspect(number, client, self.tick())
            assert self.it.release(number, client, self.now) == []
            assert repr(self.it.workers) == before

    @rule(seconds=st.sampled_from([0.0, 5.0, 200.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds
        self.obey(self.it.tick(self.now))

    @precondition(lambda self: self.client > 20)
    @rule()
    def close(self) -> None:
        self.obey(self.it.close(self.tick()))
        assert not self.running
        assert not self.holds

    @invariant()
    def nobody_waits_while_a_worker_is_idle(self) -> None:
        assert not (self.it.queue and self.numbers(State.IDLE))

    @invariant()
    def the_books_agree(self) -> None:
        assert list(self.it.queue) == self.waiting
        assert {worker.id for worker in self.it.workers.values() if worker.state in ALIVE} == self.running
        assert {worker.client: worker.id for worker in self.it.workers.values() if worker.client} == self.holds
        assert all(worker.uses <= worker.max_uses for worker in self.it.workers.values() if worker.state is State.BUSY)

    @invariant()
    def what_failed_is_tried_again(self) -> None:
        for number in self.numbers(State.FAILED):
            assert self.it.closing or self.it.workers[number].retry_at is not None


AnyOrder.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
TestAnyOrder = AnyOrder.TestCase
