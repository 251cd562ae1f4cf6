# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client's phases, and its turn in the queue."""

import asyncio
import itertools
import socket

import pytest

from ooodd.broker.client import TRANSITIONS, Client, IllegalPhase, Left, Phase, Refused, Turn
from ooodd.pool.actions import Lease
from ooodd.systemd.peer import Peer


def a_client(phase: Phase) -> Client:
    return Client(1, socket.socket(), Peer("192.0.2.1:5", "192.0.2.1"), 0.0, phase)


@pytest.mark.parametrize(("before", "after"), itertools.product(Phase, Phase))
def test_a_phase_changes_only_as_the_table_allows(before: Phase, after: Phase) -> None:
    client = a_client(before)
    with client.connection:
        if after in TRANSITIONS[before]:
            client.enter(after)
            assert client.phase is after
        else:
            with pytest.raises(IllegalPhase, match=f"session 1 is {before}: {after} can't follow"):
                client.enter(after)
            assert client.phase is before


def test_every_phase_can_be_reached_and_ends_with_closed() -> None:
    assert TRANSITIONS.keys() == set(Phase)
    assert set().union(*TRANSITIONS.values()) == set(Phase) - {Phase.ACCEPTED}
    assert all(Phase.CLOSED in following for phase, following in TRANSITIONS.items() if phase is not Phase.CLOSED)
    assert not TRANSITIONS[Phase.CLOSED]


async def test_a_turn_is_decided_once_or_cancelled_when_the_client_leaves() -> None:
    turn = Turn()
    waiting = asyncio.create_task(turn.decided())
    await asyncio.sleep(0)
    assert not waiting.done()
    turn.decide(Lease(3, 1))
    turn.decide(Left())
    assert await waiting == Left()
    assert await turn.decided() == Left()


@pytest.mark.parametrize(
    ("phase", "decision", "refused"),
    [
        (Phase.QUEUED, None, False),
        (Phase.QUEUED, Refused("no"), True),
        (Phase.QUEUED, Lease(1, 1), False),
        (Phase.REFUSED, Refused("no"), True),
        (Phase.CLOSED, Refused("no"), False),
    ],
)
def test_a_client_is_refused_from_the_decision_to_its_close(
    phase: Phase,
    decision: Lease | Refused | Left | None,
    refused: bool,  # noqa: FBT001
) -> None:
    client = a_client(phase)
    client.connection.close()
    if decision is not None:
        client.turn.decide(decision)
    assert client.is_refused == refused
