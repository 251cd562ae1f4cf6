# SPDX-License-Identifier: LGPL-2.1-or-later
"""Random sequences of events: whatever happens in whatever order, the promises of `ooodd.pool.pool` hold."""

from bisect import insort
from dataclasses import replace
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ooodd.pool.actions import Action, Break, Lease, Probe, Reason, Reclaim, Refuse, Start, Stop
from ooodd.pool.limits import Limits
from ooodd.pool.pool import Place, Pool, State, Worker
from ooodd.pool.workers import ALIVE
from pool.pools import limits, looks

FAULTS = [None, Reason.HUNG, Reason.CUT_OFF, Reason.CRASHED, Reason.DIRTY]
MOST_WORKERS = 4
NUMBERS = st.integers(1, MOST_WORKERS + 1)


class AnyOrder(RuleBasedStateMachine):
    """Carries out what the pool asks for, as a broker does, and keeps books of its own to compare with."""

    def start_limits(self) -> Limits:
        return limits(3, max_uses=4, max_uses_jitter=2, max_clients=4)

    def __init__(self) -> None:
        super().__init__()
        self.it = Pool(self.start_limits(), Random(1))
        self.now = 0.0
        self.client = 0
        # Which worker each client has, and who waits since when, in the order of the queue.
        self.holds: dict[int, int] = {}
        self.waiting: list[tuple[float, int]] = []
        # Workers by what was asked for; `faulty` ones must be started again before they are leased.
        self.starting: set[int] = set()
        self.running: set[int] = set()
        self.stopping: set[int] = set()
        self.probing: set[int] = set()
        self.inspecting: set[int] = set()
        # Sessions that were asked for, and those that are being ended, by client.
        self.asked: set[int] = set()
        self.ending: set[int] = set()
        self.faulty: set[int] = set()
        self.uses: dict[int, int] = {}
        self.joined: dict[int, float] = {}
        self.owner: dict[int, str] = {}

    @initialize(
        zero=st.sampled_from([-1000.0, 0.0, 1e7]),
        offices=st.dictionaries(NUMBERS, st.tuples(st.booleans(), st.integers(1, 6), st.integers(1, 9))),
        waited=st.lists(st.integers(0, 20), max_size=3),
    )
    def adopt_and_open(self, zero: float, offices: dict[int, tuple[bool, int, int]], waited: list[int]) -> None:
        """Take over what an earlier broker may have left, at any time of any clock, with any earlier max_uses."""
        self.now = zero
        for number, (busy, uses, max_uses) in offices.items():
            before = Worker(number, uses=uses, max_uses=max_uses, started=zero - 20.0)
            self.running.add(number)
            self.uses[number] = uses
            holder = None
            if busy:
                holder = self.new_client(), Place(zero, "host 1")
                self.owner[holder[0]] = "host 1"
                self.holds[holder[0]] = number
            self.obey(self.it.adopt(number, zero, before, holder))
        for seconds in waited:
            client = self.new_client()
            self.wait(client, zero - seconds)
            self.obey(self.it.rejoin(client, self.place(client), zero))
        self.obey(self.it.open(zero))

    def obey(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Start(number):
                    assert number not in self.running | self.stopping
                    self.running.add(number)
                    self.starting.add(number)
                    self.faulty.discard(number)
                    self.uses[number] = 0
                case Stop(number, _, _):
                    assert number in self.running
                    assert number not in self.holds.values(), "stopped before its session was broken"
                    for numbers in (self.running, self.starting, self.probing, self.inspecting):
                        numbers.discard(number)
                    self.stopping.add(number)
                case Lease(number, client):
                    self.check_lease(number, client)
                    self.waiting.remove((self.joined[client], client))
                    self.holds[client] = number
                    self.uses[number] += 1
                case Probe(number):
                    assert number in self.running - self.starting
                    assert number not in self.holds.values()
                    self.probing.add(number)
                case Break(number, client):
                    assert self.holds.pop(client) == number
                case Reclaim(number, client):
                    assert self.holds[client] == number
                    assert number not in self.inspecting, "its session has ended already"
                    self.asked.add(client)
                    assert len(self.asked & self.holds.keys()) <= self.without_a_worker()
                case Refuse(client, _):
                    self.waiting.remove((self.joined[client], client))

    def without_a_worker(self) -> int:
        """How many clients wait, less the workers that are free, or will be without the end of a session."""
        free = len(self.starting) + len(self.stopping) + len(self.numbers(State.IDLE))
        return len(self.waiting) - free

    def check_lease(self, number: int, client: int) -> None:
        assert number in self.running - self.starting
        assert number not in self.holds.values(), "two clients on one worker"
        assert number not in self.faulty, "leased after a fault"
        assert number not in self.probing, "leased while probed"
        assert not self.it.queue.paused, "leased while paused"
        assert self.uses[number] < self.most_uses(), "leased after its uses"
        holders = {self.owner[holder] for holder in self.holds}
        without = [entry for entry in self.waiting if self.owner[entry[1]] not in holders]
        assert (without or self.waiting)[0] == (self.joined[client], client), "out of turn"

    def most_uses(self) -> int:
        return self.it.limits.max_uses + self.it.limits.max_uses_jitter

    def tick(self) -> float:
        self.now += 0.5
        return self.now

    def new_client(self) -> int:
        self.client += 1
        return self.client

    def wait(self, client: int, joined: float) -> None:
        self.joined[client] = joined
        self.owner[client] = f"host {client % 2}"
        insort(self.waiting, (joined, client))

    def place(self, client: int) -> Place:
        return Place(self.joined[client], f"host {client % 2}")

    def numbers(self, state: State) -> list[int]:
        return [worker.id for worker in self.it.workers.values() if worker.state is state]

    def a_holder(self, data: st.DataObject) -> tuple[int, int]:
        return data.draw(st.sampled_from(sorted(self.holds.items())))

    def snapshot(self) -> tuple[object, ...]:
        return repr(dict(self.it.workers)), repr(self.it.totals), list(self.it.queue), self.it.start_error

    # Clients

    @rule()
    def join(self) -> None:
        client, now = self.new_client(), self.tick()
        self.wait(client, now)
        self.obey(self.it.join(client, now, f"host {client % 2}"))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(entry)
        self.obey(self.it.leave(entry[1], self.tick()))

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def leave_with_a_worker(self, data: st.DataObject) -> None:
        client, number = self.a_holder(data)
        self.faulty.add(number)
        self.obey(self.it.leave(client, self.tick()))
        assert client not in self.holds

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), fault=st.sampled_from(FAULTS), memory=st.sampled_from([0, 200]))
    def session_ends(self, data: st.DataObject, fault: Reason | None, memory: int) -> None:
        client, number = self.a_holder(data)
        if number not in self.inspecting:
            assert self.it.inspect(number, client, self.tick())
        if fault:
            self.faulty.add(number)
        del self.holds[client]
        self.inspecting.discard(number)
        self.obey(self.it.release(number, client, self.tick(), fault, memory=memory))

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def inspection_begins(self, data: st.DataObject) -> None:
        client, number = self.a_holder(data)
        assert self.it.inspect(number, client, self.tick()) == (number not in self.inspecting)
        self.inspecting.add(number)

    @precondition(lambda self: set(self.holds.values()) - self.inspecting)
    @rule(data=st.data())
    def given_back(self, data: st.DataObject) -> None:
        untouched = [entry for entry in sorted(self.holds.items()) if entry[1] not in self.inspecting]
        client, number = data.draw(st.sampled_from(untouched))
        del self.holds[client]
        self.uses[number] -= 1
        self.obey(self.it.give_back(number, client, self.tick()))

    @precondition(lambda self: set(self.holds.values()) - self.inspecting)
    @rule(data=st.data())
    def not_reached(self, data: st.DataObject) -> None:
        untouched = [entry for entry in sorted(self.holds.items()) if entry[1] not in self.inspecting]
        client, number = data.draw(st.sampled_from(untouched))
        del self.holds[client]
        self.uses[number] -= 1
        self.obey(self.it.give_back(number, client, self.tick(), reached=False))
        self.wait(client, self.joined.get(client, self.now))
        self.obey(self.it.rejoin(client, self.place(client), self.now))

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), left=st.booleans())
    def asked_for(self, data: st.DataObject, left: bool) -> None:  # noqa: FBT001
        client = data.draw(st.sampled_from(sorted(self.asked)))
        self.asked.discard(client)
        if not left:
            self.it.reclaiming.spare(client, self.tick())
        elif self.it.reclaiming.grant(client, self.tick()):
            self.ending = self.ending & self.holds.keys() | {client}
            assert len(self.ending) <= self.without_a_worker()

    @precondition(lambda self: self.ending & self.holds.keys())
    @rule(data=st.data())
    def ended(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(sorted(self.ending & self.holds.keys())))
        self.ending.discard(client)
        number = self.holds.pop(client)
        if number not in self.inspecting:
            assert self.it.inspect(number, client, self.tick())
        self.inspecting.discard(number)
        self.faulty.add(number)
        self.obey(self.it.release(number, client, self.tick()))

    # Workers

    def started(self, number: int) -> None:
        self.starting.discard(number)
        self.obey(self.it.ready(number, self.tick()))

    def stopped(self, number: int) -> None:
        self.stopping.remove(number)
        self.obey(self.it.stopped(number, self.tick()))

    def probed(self, number: int, fault: Reason | None = None, memory: int = 0) -> None:
        self.probing.discard(number)
        if fault:
            self.faulty.add(number)
        self.obey(self.it.probed(number, self.tick(), fault, memory=memory))

    @rule()
    def all_goes_well(self) -> None:
        """So that there are idle workers in most sequences."""
        for number in sorted(self.stopping):
            self.stopped(number)
        for number in sorted(self.starting):
            self.started(number)
        for number in sorted(self.probing):
            self.probed(number)

    @precondition(lambda self: self.starting)
    @rule(data=st.data(), works=st.booleans())
    def start_ends(self, data: st.DataObject, works: bool) -> None:  # noqa: FBT001
        number = data.draw(st.sampled_from(sorted(self.starting)))
        if works:
            self.started(number)
        else:
            self.obey(self.it.not_started(number, self.tick(), "why"))

    @precondition(lambda self: self.probing)
    @rule(data=st.data(), fault=st.sampled_from([None, Reason.HUNG]), memory=st.sampled_from([0, 200]))
    def probe_ends(self, data: st.DataObject, fault: Reason | None, memory: int) -> None:
        self.probed(data.draw(st.sampled_from(sorted(self.probing))), fault, memory)

    @precondition(lambda self: self.stopping)
    @rule(data=st.data())
    def stop_ends(self, data: st.DataObject) -> None:
        self.stopped(data.draw(st.sampled_from(sorted(self.stopping))))

    @rule(number=NUMBERS, reason=st.sampled_from([Reason.CRASHED, Reason.ENDED]))
    def lost(self, number: int, reason: Reason) -> None:
        self.faulty.add(number)
        self.obey(self.it.lost(number, self.tick(), reason, "why"))

    @rule(number=NUMBERS, client=st.integers(1, 50), memory=st.sampled_from([0, 200]))
    def late_events_change_nothing(self, number: int, client: int, memory: int) -> None:
        """Events of a client that no longer has the worker, of a start or a probe that is over."""
        before, now = self.snapshot(), self.tick()
        if self.holds.get(client) != number:
            assert not self.it.inspect(number, client, now)
            assert self.it.release(number, client, now, memory=memory) == []
            assert self.it.give_back(number, client, now) == []
        if number not in self.probing:
            assert self.it.probed(number, now, Reason.HUNG, memory=memory) == []
        if number not in self.starting:
            assert self.it.not_started(number, now, "why") == []
        if number not in self.it.workers:
            assert self.it.ready(number, now) == []
            assert self.it.stopped(number, now) == []
            assert self.it.lost(number, now, Reason.CRASHED, "why") == []
        assert self.snapshot() == before

    # The pool

    @rule(seconds=st.sampled_from([0.0, 5.0, 200.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds
        self.obey(self.it.tick(self.now, looks(dict.fromkeys(self.holds, self.now - 60.0))))

    @rule(workers=st.integers(1, MOST_WORKERS), max_uses=st.integers(1, 5), data=st.data())
    def reconfigure(self, workers: int, max_uses: int, data: st.DataObject) -> None:
        changed = replace(
            self.it.limits,
            workers=workers,
            min_workers=data.draw(st.integers(0, workers)),
            max_uses=max_uses,
            max_uses_jitter=data.draw(st.integers(0, max_uses - 1)),
        )
        self.obey(self.it.reconfigure(changed, self.tick()))

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:  # noqa: FBT001
        self.obey(self.it.pause(self.tick(), paused=paused))

    @rule(numbers=st.sets(NUMBERS))
    def recycle(self, numbers: set[int]) -> None:
        now = self.tick()
        self.faulty |= numbers & (self.running - self.starting)
        self.obey(self.it.recycle(sorted(numbers), now, Reason.ASKED))

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

    # What always holds

    @invariant()
    def nobody_waits_while_a_worker_is_idle(self) -> None:
        assert not (self.it.queue and self.numbers(State.IDLE)) or self.it.draining or self.it.queue.paused

    @invariant()
    def a_client_that_waits_has_an_office_coming(self) -> None:
        """Unless every worker has a client, or waits for its next try."""
        coming = {State.STARTING, State.STOPPING, State.FAILED, State.BUSY, State.INSPECTING}
        if self.it.queue.paused:  # idle ones may wait for it
            return
        if self.it.queue and self.it._back_off.hold_until <= self.it._settled_at:
            missing = [worker for worker in self.it.workers.values() if worker.state not in coming]
            starting = len(self.numbers(State.STARTING))
            full = len(self.running) >= self.it.limits.workers
            assert not missing or full or starting >= min(self.it.limits.starts, len(self.it.queue))

    @invariant()
    def no_idle_office_has_had_its_uses(self) -> None:
        for number in self.numbers(State.IDLE):
            assert self.uses[number] < self.most_uses()

    @invariant()
    def the_books_agree(self) -> None:
        workers = self.it.workers.values()
        assert [(place.joined, client) for client, place in self.it.queue.items()] == self.waiting
        assert sum(self.it.queue.of_host(f"host {number}") for number in (0, 1)) == len(self.waiting)
        assert {worker.id for worker in workers if worker.state in ALIVE} == self.running
        assert {worker.client: worker.id for worker in workers if worker.client is not None} == self.holds
        assert set(self.numbers(State.STOPPING)) == self.stopping
        assert self.it.drained == (not self.holds)
        assert {worker.id: worker.uses for worker in workers if worker.state in ALIVE - {State.STARTING}} == {
            number: uses for number, uses in self.uses.items() if number in self.running - self.starting
        }

    @invariant()
    def the_orders_of_the_workers_agree_with_the_workers(self) -> None:
        workers = self.it.workers
        assert list(workers) == sorted(workers)
        assert all(workers.count(state) == len(self.numbers(state)) for state in State)
        assert all(workers.of_client(client) is workers[number] for client, number in self.holds.items())
        assert workers.leased == len(self.holds)
        assert len(workers.fresh) + len(workers.old) == len(workers.probes) == workers.count(State.IDLE)
        assert len(workers.retries) == workers.count(State.FAILED)

    @invariant()
    def what_is_due_is_done(self) -> None:
        """So the deadline is never in the past, and the broker's timer never spins."""
        deadline = self.it.deadline
        assert deadline is None or deadline > self.it._settled_at or self.it.queue

    @invariant()
    def a_failed_worker_is_tried_again_if_it_is_needed(self) -> None:
        for number in self.numbers(State.FAILED):
            assert self.it.draining or self.it.deadline is not None or self.it.workers[number].retry_at <= self.now


class AnyOrderElastic(AnyOrder):
    """The same with a pool that grows, shrinks, probes and ages."""

    def start_limits(self) -> Limits:
        return replace(
            super().start_limits(),
            min_workers=1,
            spare_workers=1,
            idle_timeout=7.0,
            probe_interval=3.0,
            max_age=40.0,
            max_memory=100,
            max_per_host=3,
            starts=2,
        )


class AnyOrderReclaiming(AnyOrder):
    """The same with sessions that are reclaimed; every session is quiet for long, but some have something open."""

    def start_limits(self) -> Limits:
        return replace(super().start_limits(), reclaim_after=1.0, min_workers=1, max_uses=1, max_uses_jitter=0)


AnyOrderReclaiming.TestCase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
AnyOrder.TestCase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
AnyOrderElastic.TestCase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
TestAnyOrder = AnyOrder.TestCase
TestAnyOrderElastic = AnyOrderElastic.TestCase
TestAnyOrderReclaiming = AnyOrderReclaiming.TestCase
