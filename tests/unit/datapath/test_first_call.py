# SPDX-License-Identifier: LGPL-2.1-or-later
"""Forwarding: a client that has an office and makes no call."""

import pytest

from datapath.sessions import REPLY, receive, send, session
from ooodd.datapath.path import SessionLimits, Side
from ooodd.uno.wire import request

OPENING = request(
    4, "com.sun.star.bridge.XProtocolProperties", "UrpProtocolProperties", b".UrpProtocolPropertiesTid", b""
)
FIRST_CALL = request(0, "com.sun.star.uno.XInterface", "StarOffice.ComponentContext", b"thread", b"")


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
        assert (ended.by, ended.limit) == (Side.BROKER, "[session] first_call_timeout = 3600 s")


async def test_an_answer_that_never_comes_does_not_keep_it() -> None:
    async with session(SessionLimits(first_call_timeout=3600), OPENING) as it:
        await receive(it.office, len(OPENING))
        it.expire("first_call")
        it.forwarding._began -= 11 * 3600
        it.expire("first_call")
        assert (await it.result()).limit == "[session] first_call_timeout = 3600 s"


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
