# SPDX-License-Identifier: LGPL-2.1-or-later
"""Forwarding: a client that has an office and makes no call."""

import struct

import pytest

from datapath.sessions import REPLY, receive, send, session
from ooodd.datapath.path import SessionLimits, Side
from ooodd.uno.wire import reply, request

_PROPERTIES = "com.sun.star.bridge.XProtocolProperties", "UrpProtocolProperties", b".UrpProtocolPropertiesTid"
OPENING = request(4, *_PROPERTIES, b"")
COMMIT = request(5, *_PROPERTIES, b"")
# The office's number is greater, or the client's.
YOURS, MINE = (reply(_PROPERTIES[2], struct.pack(">i", value)) for value in (1, 0))
COMMITTED = reply(_PROPERTIES[2], b"")
FIRST_CALL = request(0, "com.sun.star.uno.XInterface", "StarOffice.ComponentContext", b"thread", b"")
LIMIT = "[session] first_call_timeout = 3600 s"
CLIENT, OFFICE = "the client", "the office"


@pytest.mark.parametrize(
    "said", [OPENING[:9], OPENING, OPENING + FIRST_CALL[:-1]], ids=["nine bytes", "asked", "amid a call"]
)
async def test_a_client_that_does_not_come_to_its_first_call_is_ended(said: bytes) -> None:
    async with session(SessionLimits(first_call_timeout=3600), said) as it:
        await receive(it.office, len(said))
        if said == OPENING:  # the client has asked for something
            it.expire("first_call")
            assert not it.forwarding._done.done(), "it is the office's turn"
            await send(it.office, REPLY)
            await receive(it.client, len(REPLY))
        it.expire("first_call")
        ended = await it.result()
        assert (ended.by, ended.limit) == (Side.BROKER, LIMIT)


@pytest.mark.parametrize(
    ("talk", "owes"),
    [
        ([(CLIENT, OPENING), (OFFICE, OPENING + MINE)], CLIENT),
        ([(CLIENT, OPENING), (OFFICE, OPENING), (CLIENT, YOURS)], OFFICE),
        ([(CLIENT, OPENING), (OFFICE, OPENING), (CLIENT, YOURS), (OFFICE, MINE)], OFFICE),
        ([(CLIENT, OPENING), (OFFICE, OPENING), (CLIENT, YOURS), (OFFICE, MINE + COMMIT)], CLIENT),
        ([(CLIENT, OPENING), (OFFICE, OPENING), (CLIENT, YOURS), (OFFICE, MINE + COMMIT), (CLIENT, COMMITTED)], CLIENT),
        ([(CLIENT, OPENING), (OFFICE, OPENING + YOURS), (CLIENT, MINE)], CLIENT),
        ([(CLIENT, OPENING), (OFFICE, OPENING + YOURS), (CLIENT, MINE + COMMIT)], OFFICE),
        ([(CLIENT, OPENING), (OFFICE, OPENING + YOURS), (CLIENT, MINE + COMMIT), (OFFICE, COMMITTED)], CLIENT),
    ],
)
async def test_whose_turn_it_is(talk: list[tuple[str, bytes]], owes: str) -> None:
    """Amid the agreement on the protocol nobody may wait for a reply, and yet it is somebody's turn."""
    async with session(SessionLimits(first_call_timeout=3600)) as it:
        for who, said in talk:
            source, sink = (it.client, it.office) if who == CLIENT else (it.office, it.client)
            await send(source, said)
            assert await receive(sink, len(said)) == said
        it.expire("first_call")
        assert it.forwarding._done.done() is (owes == CLIENT)


async def test_an_answer_that_never_comes_does_not_keep_it() -> None:
    async with session(SessionLimits(first_call_timeout=3600), OPENING) as it:
        await receive(it.office, len(OPENING))
        it.expire("first_call")
        it.forwarding._began -= 11 * 3600
        it.expire("first_call")
        assert (await it.result()).limit == LIMIT


async def test_after_its_first_call_a_client_may_be_silent() -> None:
    async with session(SessionLimits(first_call_timeout=0.01), OPENING + FIRST_CALL) as it:
        await receive(it.office, len(OPENING + FIRST_CALL))
        assert "first_call" not in it.forwarding._timers
        await it.cancel()


async def test_before_its_first_call_no_session_is_quiet() -> None:
    async with session(SessionLimits(first_call_timeout=3600), OPENING) as it:
        await receive(it.office, len(OPENING))
        await send(it.office, REPLY)
        await receive(it.client, len(REPLY))
        assert it.forwarding.quiet_since is None
        await send(it.client, FIRST_CALL)
        await receive(it.office, len(FIRST_CALL))
        assert it.forwarding.quiet_since is None, "a call is under way"
        await send(it.office, REPLY)
        await receive(it.client, len(REPLY))
        assert it.forwarding.quiet_since is not None
