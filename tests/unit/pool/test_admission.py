# SPDX-License-Identifier: LGPL-2.1-or-later
"""The queue: its order, who may join it, and who is refused."""

from ooodd.pool.actions import Lease, Reason, Refuse, Start
from ooodd.pool.admission import WAITS_FOR_ITSELF_AFTER, Queue
from ooodd.pool.workers import Place
from pool.pools import elastic_pool, end_session, looks, pool, ready_pool


def test_the_queue_is_in_the_order_of_joining_and_then_of_client_numbers() -> None:
    queue = Queue()
    for client, joined in ((3, 5.0), (9, -2.0), (2, 5.0), (1, 7.0)):
        queue.add(client, Place(joined, "a"))
    assert list(queue) == [9, 2, 3, 1]
    assert (queue.next(()), queue.oldest, len(queue)) == (9, -2.0, 4)
    assert queue.remove(2) == Place(5.0, "a")
    assert 2 not in queue
    assert 3 in queue
    assert list(queue) == [9, 3, 1]
    assert (queue.of_host("a"), queue.of_host("b")) == (3, 0)
    assert Queue().oldest is None


def test_those_whose_owner_has_no_worker_come_first() -> None:
    queue = Queue()
    for client, host in ((1, "a"), (2, "a"), (3, "b"), (4, "c"), (5, "b")):
        queue.add(client, Place(float(client), host))
    assert queue.next({"a"}) == 3
    assert queue.next({"a", "b"}) == 4
    assert queue.next({"a", "b", "c"}) == queue.next(set()) == 1
    queue.remove(3)
    assert queue.next({"a", "c"}) == 5
    queue.remove(5)
    assert (queue.of_owner("a"), queue.of_owner("b")) == (2, 0)


def test_a_user_with_many_clients_does_not_keep_another_one_waiting() -> None:
    it = ready_pool(2, max_clients=20)
    for client in range(1, 9):
        it.join(client, 2.0, "a", "user 1")
    it.join(9, 3.0, "a", "user 2")
    worker = it.workers.of_client(2)
    assert worker is not None
    assert end_session(it, worker.id, 2, 4.0) == [Lease(worker.id, 9)]
    assert end_session(it, worker.id, 9, 5.0) == [Lease(worker.id, 3)]


def test_nobody_takes_more_than_half_of_the_queue() -> None:
    it = ready_pool(1, max_clients=6)
    it.join(1, 2.0, "a", "user 1")
    for client in (2, 3, 4):
        assert it.join(client, 2.0, "a", "user 1") == []
    assert it.join(5, 2.0, "a", "user 1") == [Refuse(5, Reason.SHARE_FULL)]
    assert it.join(6, 2.0, "a", "user 2") == []
    assert it.join(7, 2.0, "b") == []


def test_one_user_gets_a_share_of_the_queue_and_no_more() -> None:
    it = ready_pool(1, max_clients=20, max_per_user=2)
    for client in (1, 2, 3):
        assert it.join(client, 2.0, "a", "user 1") in ([], [Lease(1, 1)])
    assert it.join(4, 2.0, "a", "user 1") == [Refuse(4, Reason.USER_FULL)]
    assert it.join(5, 2.0, "a", "user 2") == []
    assert it.join(6, 2.0, "b") == it.join(7, 2.0, "b") == it.join(8, 2.0, "b") == [], "no user, no such limit"


def test_clients_of_one_owner_are_served_in_the_order_in_which_they_joined() -> None:
    it = ready_pool(1)
    assert it.join(7, 2.0) == [Lease(1, 7)]
    assert it.join(9, 3.0) == []
    assert it.join(8, 3.1) == []
    assert end_session(it, 1, 7, 4.0) == [Lease(1, 9)]
    assert end_session(it, 1, 9, 5.0) == [Lease(1, 8)]


# Who may join


def test_a_full_queue_refuses_but_an_idle_worker_never_does() -> None:
    it = ready_pool(1, max_clients=1)
    assert it.join(1, 2.0) == [Lease(1, 1)]
    assert it.join(2, 2.0) == []
    assert it.join(3, 2.0) == [Refuse(3, Reason.QUEUE_FULL)]
    nobody_may_wait = ready_pool(1, max_clients=0)
    assert nobody_may_wait.join(1, 2.0) == [Lease(1, 1)]
    assert nobody_may_wait.join(2, 2.0) == [Refuse(2, Reason.QUEUE_FULL)]


def test_a_client_for_which_a_worker_starts_does_not_count_as_waiting() -> None:
    it = elastic_pool(2, max_clients=1)
    it.open(0.0)
    assert it.join(1, 0.0) == [Start(1)]
    assert it.join(2, 0.0) == [Start(2)]
    assert it.join(3, 0.0) == []
    assert it.join(4, 0.0) == [Refuse(4, Reason.QUEUE_FULL)]


def test_one_host_gets_its_share_of_the_queue_and_no_more() -> None:
    it = ready_pool(1, max_clients=10, max_per_host=2)
    it.join(1, 2.0, "a")
    assert it.join(2, 2.0, "a") == it.join(3, 2.0, "a") == []
    assert it.join(4, 2.0, "a") == [Refuse(4, Reason.HOST_FULL)]
    assert it.join(5, 2.0, "b") == []
    it.leave(2, 3.0)
    assert it.join(6, 3.0, "a") == []
    assert end_session(it, 1, 1, 4.0) == [Lease(1, 3)]
    assert it.join(7, 5.0, "a") == []


# Who is refused later


def test_a_client_that_waited_too_long_is_refused_and_the_others_wait_on() -> None:
    it = pool(1)
    it.open(0.0)
    it.join(1, 10.0)
    it.join(2, 20.0)
    assert it.tick(109.9) == []
    assert it.deadline == 110.0
    assert it.tick(110.0) == [Refuse(1, Reason.WAITED_TOO_LONG)]
    assert it.ready(1, 115.0) == [Lease(1, 2)]
    assert it.totals.refused == 1


def test_a_client_that_waits_for_itself_is_told_so() -> None:
    it = ready_pool(2)
    it.join(1, 2.0, "a")
    it.join(2, 2.0, "a")
    it.join(3, 3.0, "a")
    it.join(4, 4.0, "b")
    it.join(5, 5.0, "a")
    assert it.tick(32.9, looks({1: 2.0, 2: 2.0})) == [], "it may only think for a while"
    assert it.tick(40.0, looks({1: 2.0})) == [], "a call is under way on 2"
    assert it.tick(45.0, looks({1: 2.0, 2: 20.0})) == [], "a byte has moved on 2"
    assert it.tick(50.0, looks({1: 2.0, 2: 20.0})) == [Refuse(3, Reason.WAITS_FOR_ITSELF)]
    assert it.tick(54.9, looks({1: 2.0, 2: 20.0})) == [], "5 may have waited for 3"
    assert it.tick(55.0, looks({1: 2.0, 2: 20.0})) == [Refuse(5, Reason.WAITS_FOR_ITSELF)]
    assert it.tick(60.0, looks({1: 2.0, 2: 20.0})) == [], "4 waits for another host"


def test_the_deadline_is_when_a_client_can_be_told_first_that_it_waits_for_itself() -> None:
    it = ready_pool(1)
    it.join(1, 2.0, "a")
    it.join(2, 3.0, "a")
    assert it.deadline == 3.0 + WAITS_FOR_ITSELF_AFTER
    assert it.tick(33.0, looks({1: 4.0})) == []
    assert it.deadline == 38.0
    assert it.tick(38.0, looks({1: 4.0})) == [Refuse(2, Reason.WAITS_FOR_ITSELF)]
    assert it.deadline is None


def test_with_a_short_timeout_a_client_is_told_at_the_end_that_it_waited_for_itself() -> None:
    it = ready_pool(1, queue_timeout=10.0)
    it.join(1, 2.0, "a")
    it.join(2, 3.0, "a")
    it.join(3, 3.0, "b")
    it.join(4, 4.0, "a")
    assert it.tick(12.9, looks({1: 2.0})) == [], "it may still get its turn"
    assert it.tick(13.0, looks({1: 3.1})) == [Refuse(2, Reason.WAITS_FOR_ITSELF), Refuse(3, Reason.WAITED_TOO_LONG)]
    assert it.tick(14.0, looks({1: 13.0})) == [Refuse(4, Reason.WAITED_TOO_LONG)]


def test_no_client_waits_for_itself_while_another_host_has_a_worker_or_a_worker_is_free() -> None:
    it = ready_pool(2)
    it.join(1, 2.0, "a")
    it.join(2, 2.0, "b")
    it.join(3, 3.0, "a")
    assert it.tick(50.0, looks({1: 2.0, 2: 2.0})) == []
    it.lost(2, 51.0, Reason.CRASHED, "")
    assert it.tick(60.0, looks({1: 2.0})) == []
