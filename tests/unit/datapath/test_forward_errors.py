# SPDX-License-Identifier: LGPL-2.1-or-later
"""An error within a session ends that session, and nothing is forwarded after bytes that may be lost."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from datapath.sessions import TO_CLIENT, TO_OFFICE, Session, receive, send, session
from fakes import until
from ooodd.datapath import eager
from ooodd.datapath.path import SessionLimits

WAYS = [TO_OFFICE, TO_CLIENT]
LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [eager.new_event_loop, asyncio.SelectorEventLoop]


def fail(*_: object, **__: object) -> None:
    raise MemoryError


class FailingLoop:
    """A loop of which one method fails once."""

    def __init__(self, method: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._method = method

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name == self._method:
            self._method = ""
            return fail
        return getattr(self._loop, name)


def run(test: Awaitable[None], loop: Callable[[], asyncio.AbstractEventLoop]) -> list[BaseException]:
    """Run a test on a loop of that kind; return what its exception handler has been told."""
    told: list[BaseException] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
        await test

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
    return told


async def see_it_end(it: Session, other: Session, way: str) -> None:
    """The session raises, holds, and forwards nothing more, though both sides have more to say; the other goes on."""
    with pytest.raises(MemoryError):
        await it.result()
    for end in (it.client, it.office):
        with contextlib.suppress(BlockingIOError):  # it is full
            end.send(b"more")
    for source, sink in (other.ends(TO_OFFICE), other.ends(TO_CLIENT)):
        await send(source, b"and on")
        assert await receive(sink, 6) == b"and on"
    assert it.holds[WAYS.index(way)] == 1
    assert not asyncio.get_running_loop().remove_reader(it.near_client)
    assert not asyncio.get_running_loop().remove_reader(it.near_office)
    assert not asyncio.get_running_loop().remove_writer(it.near_client)
    assert not asyncio.get_running_loop().remove_writer(it.near_office)
    assert not it.forwarding._timers._set


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("way", WAYS)
def test_an_error_after_a_chunk_was_sent(way: str, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def test() -> None:
        async with session(SessionLimits(timeout=3600)) as it, session() as other:
            source, sink = it.ends(way)
            it.direction(way).count_calls = fail
            source.send(b"one")
            await see_it_end(it, other, way)
            assert sink.recv(100) == b"one"
            with pytest.raises(BlockingIOError):
                sink.recv(100)

    told = run(test(), loop)
    assert [type(error) for error in told] == [MemoryError]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("way", WAYS)
def test_an_error_amid_a_chunk(way: str, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """What the sink has not taken can't be sent later: nothing else may be sent instead."""

    async def test() -> None:
        async with session() as it, session() as other:
            source, sink = it.ends(way)
            direction = it.direction(way)
            direction._loop = FailingLoop("add_writer")  # type: ignore[assignment]
            while not it.task.done():
                with contextlib.suppress(BlockingIOError):
                    source.send(bytes(65536))
                await asyncio.sleep(0)
            total = direction.total
            await see_it_end(it, other, way)
            received = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    received += len(sink.recv(1 << 20))
            assert received <= direction.total == total

    told = run(test(), loop)
    assert [type(error) for error in told] == [MemoryError]


@pytest.mark.parametrize("way", WAYS)
def test_an_error_with_bytes_pending(way: str) -> None:
    async def test() -> None:
        async with session() as it, session() as other:
            _, sink = it.ends(way)
            await it.stall(way)
            it.direction(way)._loop = FailingLoop("remove_writer")  # type: ignore[assignment]
            frozen = it.forwarding.freeze()
            while not it.task.done():
                with contextlib.suppress(BlockingIOError):
                    sink.recv(1 << 20)
                await asyncio.sleep(0)
            await see_it_end(it, other, way)
            assert frozen.done()

    told = run(test(), eager.new_event_loop)
    assert [type(error) for error in told] == [MemoryError]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reset", [True, False])
def test_an_error_at_the_end_of_a_side(way: str, reset: bool) -> None:  # noqa: FBT001
    async def test() -> None:
        async with session() as it:
            it.forwarding._timers.set = it.forwarding._finish = fail  # type: ignore[method-assign]
            if way == TO_CLIENT:
                it.office.close()
            elif reset:
                it.reset()
            else:
                it.client.close()
            with pytest.raises(MemoryError):
                await it.result()

    told = run(test(), eager.new_event_loop)
    assert [type(error) for error in told] == [MemoryError]


@pytest.mark.parametrize("timer", ["timeout", "idle_timeout"])
def test_an_error_of_a_timer(timer: str) -> None:
    """Without its timer, a session might never end."""

    async def test() -> None:
        async with session(SessionLimits(timeout=3600, idle_timeout=3600)) as it:
            it.forwarding._give_up = fail  # type: ignore[method-assign]
            it.age(3601)
            with pytest.raises(MemoryError):
                it.expire(timer)
            with pytest.raises(MemoryError):
                await it.result()

    assert run(test(), eager.new_event_loop) == []


def test_an_error_that_is_no_exception_ends_it_too() -> None:
    """A test may kill its broker so; asyncio only reports such an error of an ordinary callback, and goes on."""

    class Killed(BaseException):
        pass

    def kill(*_: Any) -> None:  # noqa: ANN401
        raise Killed

    async def test() -> None:
        async with session() as it:
            it.direction(TO_OFFICE).count_calls = kill
            it.client.send(b"one")
            await until(it.task.done)
            assert isinstance(it.task.exception(), Killed)
            assert it.holds == (1, 0)

    told = run(test(), asyncio.SelectorEventLoop)
    assert [type(error) for error in told] == [Killed]
