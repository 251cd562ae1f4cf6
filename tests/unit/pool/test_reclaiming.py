# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which sessions the pool asks for when a client waits, and which of them end."""

from collections.abc import Sequence
from math import inf

import pytest

from ooodd.pool.actions import Action, Lease, Reason, Reclaim, Refuse, Start, Stop
from ooodd.pool.pool import Pool
from ooodd.pool.reclaim import ASK_AGAIN_AFTER, MISSED_FOR
from pool.pools import end_session, looks, ready_pool, recycle

OWN, OTHER = "user 1", "user 2"


def full_pool(*users: str, **others: object) -> Pool:
    """A pool whose workers 1, 2 ... have clients 1, 2 ... of these users since 2.0; one more waits."""
    it = ready_pool(len(users), **{"reclaim_after": 1.0, "max_uses": 1, "queue_timeout": 1000.0, **others})
    for client, user in enumerate(users, 1):
        assert it.join(client, 2.0, "here", user) == [Lease(client, client)]
    return it


def reclaim(it: Pool, client: int, now: float) -> None:
    """End a client's session as asked, and bring its worker back."""
    worker = it.workers.of_client(client)
    assert worker is not None
    assert it.reclaiming.grant(client, now)
    end_session(it, worker.id, client, now)
    recycle(it, worker.id, now)


def clients(actions: Sequence[Action]) -> list[int]:
    return [action.client for action in actions if isinstance(action, Reclaim)]


def test_a_quiet_session_is_ended_for_a_client_that_waits_and_its_office_replaced() -> None:
    it = full_pool(OWN)
    it.join(2, 3.0, "here", OWN)
    assert it.tick(3.0, looks({1: 2.5})) == []
    assert it.deadline == 3.5
    assert it.tick(3.5, looks({1: 2.5})) == [Reclaim(1, 1)]
    assert it.reclaiming.grant(1, 3.6)
    assert it.reclaiming.is_ending(1)
    assert end_session(it, 1, 1, 3.6) == [Stop(1, Reason.RECLAIMED)]
    assert it.stopped(1, 3.7) == [Start(1)]
    assert it.ready(1, 3.8) == [Lease(1, 2)]
    assert it.totals.reclaimed == 1
    assert it.totals.recycled == 0


def test_nothing_is_asked_for_while_nobody_waits_or_a_worker_is_coming() -> None:
    it = full_pool(OWN, OWN)
    assert it.tick(50.0, looks({1: 2.0, 2: 2.0})) == []
    end_session(it, 2, 2, 51.0)
    it.join(3, 52.0, "here", OWN)
    assert it.tick(52.0, looks({1: 2.0})) == [], "worker 2 is stopping"
    it.stopped(2, 53.0)
    assert it.tick(53.0, looks({1: 2.0})) == [], "and now it starts"
    it.join(4, 54.0, "here", OWN)
    assert it.tick(54.0, looks({1: 2.0})) == [Reclaim(1, 1)], "but not for two"


@pytest.mark.parametrize(("after", "asked"), [(None, []), (5.0, [Reclaim(1, 1)])])
def test_it_can_be_set_and_switched_off(after: float | None, asked: list[Reclaim]) -> None:
    it = full_pool(OWN, reclaim_after=after)
    it.join(2, 3.0, "here", OWN)
    assert it.tick(6.9, looks({1: 2.0})) == []
    assert it.tick(7.0, looks({1: 2.0})) == asked


def test_a_session_with_a_call_under_way_or_that_is_not_known_is_left_alone() -> None:
    it = full_pool(OWN)
    it.join(2, 3.0, "here", OWN)
    assert it.tick(20.0, {}) == []
    assert it.deadline == 21.0, "it may be quiet from now on"


def test_the_own_users_sessions_come_first_and_then_the_quietest() -> None:
    it = full_pool(OTHER, OWN, OWN, max_clients=9)
    quiet = looks({1: 1.0, 2: 3.0, 3: 2.5})
    for client in (11, 12, 13, 14):
        it.join(client, 20.0, "here", OWN)
    assert clients(it.tick(20.0, quiet)) == [3, 2, 1]


def test_another_users_session_has_to_be_quiet_for_ten_times_as_long() -> None:
    it = full_pool(OTHER)
    it.join(2, 3.0, "here", OWN)
    assert it.tick(11.9, looks({1: 2.0})) == []
    assert it.deadline == 12.0
    assert it.tick(12.0, looks({1: 2.0})) == [Reclaim(1, 1)]


def test_without_a_user_the_host_is_the_owner() -> None:
    it = full_pool("")
    it.join(2, 3.0, "there")
    assert it.tick(3.0, looks({1: 2.0})) == []
    it.join(3, 3.0, "here")
    assert it.tick(3.0, looks({1: 2.0})) == [Reclaim(1, 1)]


def test_a_session_that_was_spared_is_asked_for_again_when_something_has_happened_in_it() -> None:
    it = full_pool(OWN)
    it.join(2, 3.0, "here", OTHER)
    assert it.tick(12.0, looks({1: 2.0})) == [Reclaim(1, 1)]
    assert it.tick(13.0, looks({1: 2.0})) == [], "an answer is awaited"
    it.reclaiming.spare(1, 13.0)
    assert it.tick(13.0, looks({1: 2.0})) == []
    assert it.tick(23.0, looks({1: 13.0})) == [Reclaim(1, 1)]
    it.reclaiming.spare(1, 23.0)
    assert it.tick(22.9 + ASK_AGAIN_AFTER, looks({1: 13.0})) == []
    assert it.tick(24.0 + ASK_AGAIN_AFTER, looks({1: 13.0})) == [Reclaim(1, 1)]


def test_a_client_waits_for_itself_only_if_its_sessions_cannot_be_ended() -> None:
    it = full_pool(OWN)
    it.join(2, 3.0, "here", OWN)
    it.tick(3.0, looks({1: 2.0}))
    assert it.tick(60.0, looks({1: 2.0})) == [], "its answer is awaited"
    it.reclaiming.spare(1, 60.0)
    assert it.tick(65.0, looks({1: 2.0})) == [Refuse(2, Reason.WAITS_FOR_ITSELF)]


def test_one_that_is_spared_makes_room_for_the_next() -> None:
    it = full_pool(OWN, OWN)
    it.join(3, 3.0, "here", OWN)
    quiet = looks({1: 2.0, 2: 2.1})
    assert clients(it.tick(9.0, quiet)) == [1]
    it.reclaiming.spare(1, 9.0)
    assert it.deadline == -inf, "at once"
    assert clients(it.tick(9.0, quiet)) == [2]


def test_nothing_ends_when_the_client_that_waited_has_gone_meanwhile() -> None:
    it = full_pool(OWN)
    it.join(2, 3.0, "here", OWN)
    assert it.tick(4.0, looks({1: 2.0})) == [Reclaim(1, 1)]
    it.leave(2, 4.1)
    assert not it.reclaiming.grant(1, 4.2)
    it.join(3, 5.0, "here", OWN)
    assert it.tick(5.0, looks({1: 2.0})) == [Reclaim(1, 1)], "it was not spared for a reason of its own"


def test_nothing_ends_while_offices_cannot_be_started() -> None:
    it = full_pool(OWN, OWN)
    end_session(it, 2, 2, 3.0)
    it.stopped(2, 3.1)
    it.join(3, 3.2, "here", OWN)
    it.not_started(2, 3.3, "why")
    it.stopped(2, 3.35)
    assert it.tick(3.35, looks({1: 2.0})) == []


def test_a_late_answer_changes_nothing() -> None:
    it = full_pool(OWN)
    it.join(2, 3.0, "here", OWN)
    it.tick(4.0, looks({1: 2.0}))
    it.leave(1, 4.1)
    assert not it.reclaiming.grant(1, 4.2)
    it.reclaiming.spare(1, 4.2)
    assert not it.reclaiming.is_ending(1)


def test_a_queue_that_is_refused_is_not_waited_for() -> None:
    it = full_pool(OWN)
    it.join(2, 3.0, "here", OWN)
    assert it.drain(3.5) == [Refuse(2, Reason.CLOSING)]
    assert it.tick(9.0, looks({1: 2.0})) == []


# Clients that come back


def come_back(it: Pool, before: int, client: int, now: float) -> None:
    """The client of the process "p", whose session was number `before`, is reclaimed and comes back as `client`."""
    reclaim(it, before, now)
    it.join(client, now + 0.1, "here", OWN)


def test_a_client_that_comes_back_has_to_be_patient() -> None:
    it = full_pool(OWN)
    it.join(2, 3.0, "here", OWN)
    assert clients(it.tick(4.0, looks({1: 2.0}, client_1=b"p"))) == [1]
    come_back(it, 1, 3, 4.0)
    assert clients(it.tick(6.9, looks({2: 5.0}, client_2=b"q"))) == [], "twice as long"
    assert it.deadline == 7.0
    assert clients(it.tick(7.0, looks({2: 5.0}, client_2=b"q"))) == [2]
    come_back(it, 2, 4, 7.0)
    assert clients(it.tick(9.9, looks({3: 8.0}, client_3=b"p"))) == []
    assert clients(it.tick(10.0, looks({3: 8.0}, client_3=b"p"))) == [3]
    come_back(it, 3, 5, 10.0)
    assert clients(it.tick(14.9, looks({4: 11.0}, client_4=b"q"))) == [], "and four times, for its second time"
    assert clients(it.tick(15.0, looks({4: 11.0}, client_4=b"q"))) == [4]


def test_a_program_that_does_one_job_after_the_other_never_has_to_be_patient() -> None:
    it = full_pool(OWN)
    now = 3.0
    for client in range(2, 60):
        it.join(client, now, "here", OWN)
        quiet = looks({client - 1: now - 0.5}, **{f"client_{client - 1}": b"p"})
        assert clients(it.tick(now, quiet)) == []
        now += 0.5
        assert clients(it.tick(now, quiet)) == [client - 1]
        reclaim(it, client - 1, now)
        now += 0.5


def test_nor_do_the_threads_of_one_program() -> None:
    it = full_pool(OWN, OWN, max_clients=9)
    it.join(3, 3.0, "here", OWN)
    quiet = looks({1: 2.0, 2: 2.0}, client_1=b"p", client_2=b"p")
    assert clients(it.tick(3.0, quiet)) == [1]
    reclaim(it, 1, 3.0)
    it.join(4, 3.1, "here", OWN)
    assert clients(it.tick(3.1, looks({2: 2.1, 3: 3.0}, client_2=b"p"))) == [2]


def test_a_client_that_comes_late_or_is_another_users_does_not_have_to_be_patient() -> None:
    for user, after in ((OTHER, 0.5), (OWN, MISSED_FOR)):
        it = full_pool(OWN)
        it.join(2, 50.0, "here", user)
        assert clients(it.tick(50.0, looks({1: 2.0}, client_1=b"p"))) == [1]
        reclaim(it, 1, 50.0)
        now = 50.0 + after
        it.join(3, now, "here", user)
        assert clients(it.tick(now, looks({2: now - 1.0}))) == [2]


def test_nobody_has_to_be_patient_for_more_than_a_minute() -> None:
    it = full_pool(OWN)
    now, client = 3.0, 1
    it.join(2, now, "here", OWN)
    for _ in range(20):
        now += 60.0
        names = {f"client_{client}": b"p" if client % 2 else b"q"}
        assert clients(it.tick(now, looks({client: now - 60.0}, **names))) == [client]
        come_back(it, client, client + 2, now)
        client += 1
