# SPDX-License-Identifier: LGPL-2.1-or-later
"""Handing off: what the broker makes of what an office says about a session."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from fakes import until
from ooodd.datapath import control, handoff
from ooodd.datapath.handoff import Handoff
from ooodd.datapath.path import Ended, SessionLimits, Side
from ooodd.uno.wire import reply, request

# How it ends when the client leaves in order.
LEFT = Ended(Side.CLIENT, "", office_let_go=True, call_under_way=False, followed=True, to_office=10, to_client=20)


class Scene:
    """A session whose client and office are this test."""

    def __init__(self, limits: SessionLimits) -> None:
        self.client, self.near = socket.socketpair()
        self.client.setblocking(False)  # noqa: FBT003
        self.office, near = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near.setblocking(False)  # noqa: FBT003
        self.office.setblocking(False)  # noqa: FBT003
        self.control = near
        self.path = Handoff(self.near, near, limits)
        self.running = asyncio.create_task(self.path.run())

    async def heard(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.office, 4096)

    def say(self, text: bytes) -> None:
        self.office.send(text)

    def look(self) -> None:
        """Have the broker ask."""
        self.path._spawn(self.path.look())

    async def looked(self, calls: bytes, opening: bytes = b"") -> None:
        """Answer the broker when it looks."""
        assert await self.heard() == b"calls"
        self.say(calls)
        if opening:
            assert await self.heard() == b"opening"
            self.say(b"opening " + opening)


@contextlib.asynccontextmanager
async def session(limits: SessionLimits | None = None) -> AsyncIterator[Scene]:
    it = Scene(limits or SessionLimits())
    await until(lambda: it.path._reads)
    try:
        yield it
    finally:
        it.running.cancel()
        await asyncio.gather(it.running, return_exceptions=True)
        for each in (it.client, it.near, it.office, it.control):
            each.close()


async def test_a_client_s_socket_is_handed_over() -> None:
    async with session() as it:
        it.path.begin()
        text, numbers, _, _ = socket.recv_fds(it.office, 100, 4)
        assert text == b"ooodd 1 session"
        (number,) = numbers
        with socket.socket(fileno=number) as handed:
            it.client.send(b"hello")
            assert handed.recv(10) == b"hello"


async def test_a_session_ends_when_the_office_has_let_go() -> None:
    async with session() as it:
        it.say(b"began")
        it.say(b"closed client 0 10 20")
        await until(lambda: it.path._closed is not None)
        assert not it.running.done()
        it.office.close()
        assert await it.running == LEFT


@pytest.mark.parametrize(
    ("said", "ended"),
    [
        (b"closed client 3 10 20", replace(LEFT, call_under_way=True)),
        (b"closed office 0 10 20", replace(LEFT, by=Side.OFFICE)),
        (b"closed", replace(LEFT, by=Side.OFFICE, call_under_way=True, to_office=0, to_client=0)),
        (b"rubbish", replace(LEFT, by=Side.OFFICE, call_under_way=True, to_office=0, to_client=0)),
    ],
)
async def test_what_the_office_says_is_what_is_known(said: bytes, ended: Ended) -> None:
    async with session() as it:
        it.say(said)
        it.office.close()
        assert await it.running == ended


async def test_an_office_that_does_not_let_go_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handoff, "GONE_LIMIT", 0.01)
    async with session() as it:
        it.say(b"closed client 1 10 20")
        assert await it.running == replace(LEFT, office_let_go=False, call_under_way=True)


async def test_the_last_word_of_an_office_that_leaves_a_question_is_heard() -> None:
    """A unix socket whose peer closes with unread data reports an error before what is still to be read."""
    async with session() as it:
        it.look()
        await asyncio.sleep(0)
        it.say(b"closed client 0 10 20")
        it.office.close()
        assert await it.running == LEFT


async def test_a_hung_office_is_given_up_after_its_client() -> None:
    async with session(SessionLimits(grace=0.01)) as it:
        it.path.client_left()
        ended = await it.running
        assert (ended.by, ended.office_let_go, ended.call_under_way) == (Side.CLIENT, False, True)


async def test_an_office_that_has_died_ends_the_session() -> None:
    async with session() as it:
        it.path.office_lost()
        assert (await it.running).by is Side.OFFICE


async def test_a_session_is_quiet_since_its_last_byte_and_not_amid_a_call() -> None:
    async with session() as it:
        assert it.path.quiet_since is None
        it.look()
        await it.looked(b"calls 1 0 5000 0 0", b"x" * 100)
        await until(lambda: it.path._quiet_since is not None)
        before = it.path.quiet_since
        assert before is not None
        assert asyncio.get_running_loop().time() - before >= 4.9
        it.look()
        await it.looked(b"calls 1 0 5100 0 0")
        await until(lambda: not it.path._tasks)
        assert it.path.quiet_since == before, "the same moment, whatever the clocks' steps are"
        it.look()
        await it.looked(b"calls 2 1 0 0 0")
        await until(lambda: it.path._quiet_since is None)


async def test_it_is_ended_for_another_client_only_if_the_office_says_so() -> None:
    async with session() as it:
        assert not await it.path.end(), "nobody has looked"
        it.look()
        await it.looked(b"calls 4 0 5000 0 0", b"x" * 100)
        await until(lambda: it.path._quiet_since is not None)
        for answer, ended in ((b"busy", False), (b"ended", True)):
            end = asyncio.create_task(it.path.end())
            assert await it.heard() == b"end 4"
            it.say(answer)
            assert await end is ended
        it.say(b"closed office 0 10 20")
        it.office.close()
        assert await it.running == replace(LEFT, by=Side.BROKER, reclaimed=True)


async def test_an_end_that_is_granted_late_is_told_for_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async with session() as it:
        it.look()
        await it.looked(b"calls 4 0 5000 0 0", b"x" * 100)
        await until(lambda: it.path.quiet_since is not None)
        monkeypatch.setattr(handoff, "_ANSWER_LIMIT", 0.01)
        assert not await it.path.end()
        it.say(b"ended")
        it.say(b"closed office 0 10 20")
        it.office.close()
        assert await it.running == replace(LEFT, by=Side.BROKER)


async def test_an_office_that_does_not_answer_keeps_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handoff, "_ANSWER_LIMIT", 0.01)
    async with session() as it:
        it.look()
        await until(lambda: not it.path._tasks)
        assert it.path.quiet_since is None
        assert not await it.path.end()


@pytest.mark.parametrize("limit", ["timeout", "idle_timeout", "first_call_timeout"])
async def test_a_limit_ends_it(limit: str) -> None:
    limits = replace(SessionLimits(), **{limit: 0.01})
    async with session(limits) as it:
        if limit == "first_call_timeout":
            await it.looked(b"calls 0 0 5000 0 0", b"x" * 5)
        elif limit == "idle_timeout":
            await it.looked(b"calls 3 1 5000 0 0")  # a call may take long
            await it.looked(b"calls 3 0 5000 0 0")
        assert await asyncio.get_running_loop().sock_recv(it.client, 10) == b"", "the client hears it at once"
        it.say(b"closed client 0 10 20")
        it.office.close()
        assert await it.running == replace(LEFT, by=Side.BROKER, limit=f"[session] {limit} = 0.01 s")


async def test_a_limit_ends_the_session_of_an_office_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handoff, "GONE_LIMIT", 0.01)
    async with session(SessionLimits(timeout=0.01)) as it:
        ended = await it.running
        assert (ended.by, ended.limit) == (Side.BROKER, "[session] timeout = 0.01 s")
        assert ended.call_under_way
        assert not ended.office_let_go


async def test_of_a_session_that_nobody_tells_of_nothing_is_known() -> None:
    async with session() as it:
        it.look()
        await it.looked(b"calls 1 0 5000 0 0", b"x" * 100)
        await until(lambda: it.path.quiet_since is not None)
        looking = asyncio.create_task(it.path.look())
        assert await it.heard() == b"calls"
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        assert it.path.quiet_since is None


OPENING = request(4, "com.sun.star.bridge.XProtocolProperties", "UrpProtocolProperties", b"tid", b"")
COMMIT_IT = reply(b"tid", b"\0\0\0\1")


@pytest.mark.parametrize(
    ("calls", "opening"),
    [
        (b"calls 1 1 5000 0 0", OPENING),
        (b"calls 1 0 5000 0 0", OPENING + COMMIT_IT),
        (b"", b""),
    ],
    ids=["has to reply", "has to commit", "does not answer ooodd"],
)
async def test_a_client_does_not_owe_what_its_office_owes(
    calls: bytes, opening: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handoff, "_ANSWER_LIMIT", 0.01)
    async with session(SessionLimits(first_call_timeout=3600)) as it:
        for _ in range(2):
            it.path._spawn(it.path._check_first_call(3600))
            if calls:
                await it.looked(calls, opening)
            await until(lambda: not it.path._tasks)
            assert not it.running.done()
        it.path._began -= 11 * 3600
        it.path._spawn(it.path._check_first_call(3600))
        if calls:
            await it.looked(calls, opening)
        await until(lambda: it.path._first is not None)
        it.office.close()
        assert (await it.running).limit == "[session] first_call_timeout = 3600 s"


@pytest.mark.parametrize("calls", [b"calls 1 0 5000 1 0", b"calls 1 1 5000 0 1", b"calls 1 0 5000 0 0"])
async def test_a_client_whose_turn_it_is_owes(calls: bytes) -> None:
    async with session(SessionLimits(first_call_timeout=3600)) as it:
        it.path._spawn(it.path._check_first_call(3600))
        await it.looked(calls, OPENING)
        await until(lambda: it.path._first is not None)
        it.office.close()
        assert (await it.running).by is Side.BROKER


@pytest.mark.parametrize("where", ["timer", "task", "message"])
async def test_an_error_ends_the_session(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))

    async def fail_later() -> None:
        fail()

    async with session() as it:
        match where:
            case "timer":
                it.path._timers.set("test", 0, fail)
            case "task":
                it.path._spawn(fail_later())
            case "message":
                monkeypatch.setattr(control, "parse", fail)
                it.say(b"began")
        with pytest.raises(MemoryError):
            await it.running


def fail(*_: object) -> None:
    raise MemoryError


async def test_nothing_has_to_be_passed_on_to_the_next_broker() -> None:
    async with session() as it:
        assert it.path.freeze().done()
        it.running.cancel()
        await asyncio.gather(it.running, return_exceptions=True)
        it.client.send(b"still there")
        assert it.near.recv(20) == b"still there"


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"closed",
        b"closed client x 1 2",
        b"calls 1",
        b"calls 1 2 3 4 5 6",
        b"calls a b c d e",
        b"other",
        b"closed client 1",
    ],
)
def test_what_makes_no_sense_says_nothing(message: bytes) -> None:
    assert control.parse(message) is None
