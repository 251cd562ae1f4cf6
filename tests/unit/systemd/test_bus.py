# SPDX-License-Identifier: LGPL-2.1-or-later
"""The connection to the bus, with a bus that fails in every way: nothing hangs, and each failure is a `BusError`."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from jeepney import DBusAddress, MatchRule, Message, new_signal

from fakebus import GARBAGE, FakeBus, echo, fake_bus, reply
from fakes import until
from ooodd.errors import BusError
from ooodd.systemd import bus as bus_module
from ooodd.systemd.bus import Bus, BusRefusalError, method_call

THING = DBusAddress("/thing", "org.example.Thing", "org.example.Thing")


def say(*words: str) -> Message:
    return method_call(THING, "Say", "s" * len(words), *words)


def signal(number: int) -> Message:
    return new_signal(THING, "Happened", "u", (number,))


@contextlib.asynccontextmanager
async def connected(fake: FakeBus) -> AsyncIterator[Bus]:
    """Connect, and see that closing never fails, whatever has happened."""
    assert not fake.calls
    bus = await Bus.connect()
    try:
        yield bus
    finally:
        await bus.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for hundredths of a second where half a minute is usual."""
    monkeypatch.setattr(bus_module, "_CALL_TIMEOUT", 0.05)
    monkeypatch.setattr(Bus.call, "__defaults__", (0.05,))


# Connecting


async def test_it_says_hello_first() -> None:
    async with fake_bus() as fake, connected(fake) as bus:
        assert fake.calls == ["Hello"]
        assert not bus.lost.done()


async def test_no_bus_is_a_bus_error_that_says_where_to_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/absent")
    with pytest.raises(BusError, match=r"can't reach the system message bus .*: is dbus running"):
        await Bus.connect()


@pytest.mark.parametrize("address", ["tcp:host=localhost,port=1", "nonsense", "unix:nonsense", "unix:runtime=yes"])
async def test_an_address_that_cannot_be_used_is_a_bus_error(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    with pytest.raises(BusError):
        await Bus.connect()


@pytest.mark.parametrize("welcome", [b"REJECTED EXTERNAL", b"", b"\xff\0garbage", b"x" * 10_000])
async def test_a_bus_that_does_not_let_us_in_is_a_bus_error(welcome: bytes) -> None:
    async with fake_bus() as fake:
        fake.welcome = welcome
        with pytest.raises(BusError):
            await Bus.connect()


@pytest.mark.usefixtures("impatient")
async def test_a_bus_that_is_silent_from_the_start_is_a_bus_error() -> None:
    async with fake_bus() as fake:
        fake.welcome = None
        with pytest.raises(BusError):
            await Bus.connect()


async def test_a_bus_that_hangs_up_at_once_is_a_bus_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/bus"
        server = await asyncio.start_unix_server(lambda _, writer: writer.close(), path)
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={path}")
        with pytest.raises(BusError):
            await Bus.connect()
        server.close()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", ["no-answer", "close", "half-answer", "garbage", "org.freedesktop.DBus.Error.Failed"])
async def test_a_hello_that_fails_is_a_bus_error(fault: str) -> None:
    async with fake_bus() as fake:
        fake.faults["Hello"] = fault
        with pytest.raises(BusError):
            await Bus.connect()


# Calling


async def test_a_call_returns_the_replys_body() -> None:
    async with fake_bus() as fake, connected(fake) as bus:
        assert await bus.call(say("a", "b")) == ("a", "b")
        assert await bus.call(say()) == ()


async def test_answers_find_their_calls_in_whatever_order() -> None:
    calls: list[Message] = []

    def hold(call: Message) -> list[Message]:
        calls.append(call)
        return [reply(call, "s", *call.body) for call in reversed(calls)] if len(calls) == 100 else []

    async with fake_bus(hold) as fake, connected(fake) as bus:
        answers = await asyncio.gather(*(bus.call(say(str(number))) for number in range(100)))
        assert answers == [(str(number),) for number in range(100)]


async def test_a_big_reply_comes_whole() -> None:
    async with fake_bus() as fake, connected(fake) as bus:
        assert await bus.call(say("x" * 1_000_000)) == ("x" * 1_000_000,)


async def test_an_error_reply_is_a_refusal_with_its_name() -> None:
    async with fake_bus() as fake, connected(fake) as bus:
        fake.faults["Say"] = "org.example.Error.No"
        with pytest.raises(BusRefusalError) as refused:
            await bus.call(say("a"))
        assert (refused.value.name, str(refused.value)) == ("org.example.Error.No", "as the test wants it")
        fake.faults.clear()
        assert await bus.call(say("b")) == ("b",)


async def test_no_answer_is_a_bus_error_in_time_and_the_next_call_works() -> None:
    async with fake_bus() as fake, connected(fake) as bus:
        fake.faults["Say"] = "no-answer"
        with pytest.raises(BusError, match=r"no answer to Say within 0\.05 s"):
            await bus.call(say("a"), within=0.05)
        fake.faults.clear()
        assert await bus.call(say("b")) == ("b",)
        assert not bus.lost.done()


async def test_an_answer_that_comes_too_late_disturbs_nobody() -> None:
    held: list[Message] = []

    def hold_the_first(call: Message) -> Any:  # noqa: ANN401 - jeepney has no types
        held.append(call)
        return echo(call) if len(held) > 1 else []

    async with fake_bus(hold_the_first) as fake, connected(fake) as bus:
        with pytest.raises(BusError):
            await bus.call(say("late"), within=0.01)
        fake.send(reply(held[0], "s", "late"))
        assert await bus.call(say("b")) == ("b",)


@pytest.mark.parametrize("fault", ["close", "half-answer", "garbage"])
async def test_a_bus_lost_in_the_middle_of_calls_fails_them_all(fault: str) -> None:
    async with fake_bus(lambda _: []) as fake, connected(fake) as bus:
        waiting = [asyncio.create_task(bus.call(say(str(number)))) for number in range(3)]
        await until(lambda: len(fake.calls) == 4)
        fake.faults["Say"] = fault
        waiting.append(asyncio.create_task(bus.call(say("the last"))))
        for error in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(error, BusError)
            assert not isinstance(error, BusRefusalError)
        await bus.lost
        with pytest.raises(BusError, match="is lost"):
            await bus.call(say("another"))


async def test_a_bus_lost_while_nothing_goes_on_is_noticed() -> None:
    async with fake_bus() as fake, connected(fake) as bus:
        fake.hang_up()
        await bus.lost


async def test_garbage_out_of_the_blue_is_a_lost_bus() -> None:
    async with fake_bus() as fake, connected(fake) as bus:
        fake.send_raw(GARBAGE)
        await bus.lost


async def test_a_cancelled_call_leaves_the_bus_usable() -> None:
    async with fake_bus() as fake, connected(fake) as bus:
        fake.faults["Say"] = "no-answer"
        call = asyncio.create_task(bus.call(say("a")))
        await until(lambda: "Say" in fake.calls)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        fake.faults.clear()
        assert await bus.call(say("b")) == ("b",)


async def test_closing_fails_the_calls_under_way() -> None:
    async with fake_bus() as fake:
        fake.faults["Say"] = "no-answer"
        bus = await Bus.connect()
        call = asyncio.create_task(bus.call(say("a")))
        await until(lambda: "Say" in fake.calls)
        await bus.close()
        with pytest.raises(BusError):
            await call
        assert bus.lost.done()


# Signals


async def test_every_signal_is_handled_in_order_though_nobody_waits() -> None:
    heard: list[tuple[Any, ...]] = []
    async with fake_bus() as fake, connected(fake) as bus:
        bus.on_signal(lambda path, member, body: heard.append((path, member, *body)))
        fake.send(*(signal(number) for number in range(1000)))
        await bus.call(say("a"))
        assert heard == [("/thing", "Happened", number) for number in range(1000)]


async def test_a_signal_that_is_written_in_pieces_comes_whole() -> None:
    heard: list[tuple[Any, ...]] = []
    async with fake_bus() as fake, connected(fake) as bus:
        bus.on_signal(lambda _, __, body: heard.append(body))
        for byte in signal(7).serialise(99):
            fake.send_raw(bytes([byte]))
            await asyncio.sleep(0)
        await bus.call(say("a"))
        assert heard == [(7,)]


async def test_subscribing_adds_each_match() -> None:
    async with fake_bus() as fake, connected(fake) as bus:
        await bus.subscribe(MatchRule(type="signal", path="/a"), MatchRule(type="signal", path="/b"))
        assert fake.calls == ["Hello", "AddMatch", "AddMatch"]


async def test_a_refused_subscription_is_told() -> None:
    async with fake_bus() as fake, connected(fake) as bus:
        fake.faults["AddMatch"] = "org.freedesktop.DBus.Error.MatchRuleInvalid"
        with pytest.raises(BusRefusalError):
            await bus.subscribe(MatchRule(type="signal"))
