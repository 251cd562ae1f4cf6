# SPDX-License-Identifier: LGPL-2.1-or-later
"""A connection to the system message bus.

It uses jeepney's sans-IO core (messages, authentication, parser). jeepney's own `DBusRouter` drops signals that nobody
has fetched yet, has no time limit for calls, and leaves them waiting when the bus is lost. Here every signal reaches
the handler in order, every call has a time limit, and if the bus is lost all calls fail and `lost` is set.
"""

import asyncio
import contextlib
from collections.abc import Callable
from itertools import count
from typing import Any

from jeepney import DBusAddress, HeaderFields, MatchRule, Message, MessageType, Parser, message_bus, new_method_call
from jeepney.auth import BEGIN, Authenticator
from jeepney.bus import get_bus

from ooodd.errors import BusError

# The default of sd_bus_call(3), in seconds.
_CALL_TIMEOUT = 25.0
# Messages of systemd have some KiB.
_READ_SIZE = 64 * 1024

_HINT = "is dbus running? systemctl status dbus"


class BusRefusalError(BusError):
    """The called service has answered with an error, whose D-Bus name is `name`."""

    def __init__(self, name: str, text: str) -> None:
        """Take the name of the D-Bus error, and its text."""
        super().__init__(text or name)
        self.name = name


class Bus:
    """One connection. Its owner calls `close`. When the bus is lost, `lost` gets the reason, and all calls fail."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take an authenticated connection. Use `connect` instead."""
        self._reader = reader
        self._writer = writer
        self._parser = Parser()
        self._why = "closed by the bus"
        self._serials = count(1)
        self._calls: dict[int, asyncio.Future[Message]] = {}
        self._on_signal: Callable[[str, str, tuple[Any, ...]], None] = lambda *_: None
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._receiver = asyncio.create_task(self._receive(), name="bus")

    @classmethod
    async def connect(cls) -> "Bus":
        """Connect to the system bus; `BusError` if that fails."""
        try:
            async with asyncio.timeout(_CALL_TIMEOUT):
                reader, writer = await asyncio.open_unix_connection(get_bus("SYSTEM"))
                await _authenticate(reader, writer)
        # ValueError and RuntimeError: of jeepney, for DBUS_SYSTEM_BUS_ADDRESS, and AuthenticationError.
        except (OSError, EOFError, ValueError, RuntimeError) as error:
            raise BusError(f"can't reach the system message bus ({error})", _HINT) from error
        bus = cls(reader, writer)
        try:
            await bus.call(message_bus.Hello())
        except BaseException:
            await bus.close()
            raise
        return bus

    async def call(self, message: Message, within: float = _CALL_TIMEOUT) -> tuple[Any, ...]:
        """Call a method and return the reply's body.

        Raises `BusRefusalError` for an error reply, `BusError` if no reply came `within` seconds or the bus is lost.
        """
        if self.lost.done():
            raise self.lost_error()
        serial = next(self._serials)
        reply = self._calls[serial] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(message.serialise(serial))
            async with asyncio.timeout(within):
                answer = await reply
        except TimeoutError as error:
            member = message.header.fields.get(HeaderFields.member)
            raise BusError(f"no answer to {member} within {within:g} s from the message bus", _HINT) from error
        finally:
            del self._calls[serial]
        if answer.header.message_type is MessageType.error:
            text = answer.body[0] if answer.body and isinstance(answer.body[0], str) else ""
            raise BusRefusalError(answer.header.fields[HeaderFields.error_name], text)
        return tuple(answer.body)

    async def subscribe(self, *rules: MatchRule) -> None:
        """Subscribe to the signals that match."""
        for rule in rules:
            await self.call(message_bus.AddMatch(rule))

    def on_signal(self, handler: Callable[[str, str, tuple[Any, ...]], None]) -> None:
        """Call `handler` with each signal, as (object path, member, body), in the order of arrival."""
        self._on_signal = handler

    def lost_error(self) -> BusError:
        """Return the error of calls on a lost bus."""
        return BusError(f"the connection to the system message bus is lost ({self._why})", _HINT)

    async def close(self) -> None:
        """Close the connection. Calls under way fail. It may be called twice, and never waits for the other side."""
        if not self.lost.done():
            self._why = "closed"
        self._receiver.cancel()
        self._writer.transport.abort()  # unlike close() it does not wait until all is written
        await asyncio.wait([self._receiver])
        with contextlib.suppress(OSError):
            # A wait_closed() that is cancelled would cancel all others.
            await asyncio.shield(self._writer.wait_closed())

    async def _receive(self) -> None:
        try:
            while data := await self._reader.read(_READ_SIZE):
                self._parser.add_data(data)
                while (message := self._parser.get_next_message()) is not None:
                    self._dispatch(message)
        except OSError as error:
            self._why = error.strerror or str(error)
        except Exception as error:  # noqa: BLE001 - jeepney's parser may raise anything
            self._why = f"not D-Bus: {error!r}"
        finally:
            self._lose()

    def _dispatch(self, message: Message) -> None:
        fields = message.header.fields
        if message.header.message_type is MessageType.signal:
            self._on_signal(fields[HeaderFields.path], fields[HeaderFields.member], tuple(message.body))
        elif (call := self._calls.get(fields.get(HeaderFields.reply_serial, 0))) is not None and not call.done():
            call.set_result(message)

    def _lose(self) -> None:
        for call in self._calls.values():
            if not call.done():
                call.set_exception(self.lost_error())
        if not self.lost.done():
            self.lost.set_result(self._why)


async def _authenticate(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    authenticator = Authenticator()
    try:
        for request in authenticator:
            writer.write(request)
            data = await reader.read(_READ_SIZE)
            if not data:
                raise EOFError("closed before authentication")  # noqa: TRY301
            authenticator.feed(data)
    except BaseException:
        writer.close()
        raise
    writer.write(BEGIN)


def method_call(address: DBusAddress, method: str, signature: str = "", *body: object) -> Message:
    """Return a method call. jeepney wants None in place of an empty signature."""
    return new_method_call(address, method, signature or None, body)
