# SPDX-License-Identifier: LGPL-2.1-or-later
"""Probe: one conversation with an office that tells whether it still works, and what its last client has left in it.

A hung office still greets, agrees on the protocol and creates a Desktop. `XDesktop.getCurrentComponent()` takes the
SolarMutex, as nearly all that an office does: its answer shows that the office lives. How long to wait for it is the
caller's affair. The documents and frames that are counted then are the ones that a client has left open.

An office knows an object only as the interfaces under which it has handed it out, and breaks off when it is called by
another one (bridge.cxx, findStub): hence the queryInterface, and the turns that can't be saved. What needs no answer of
another request goes out with it. The first object is asked for by its name, and that as XInterface (reader.cxx).

The references that the office hands out are not given back one by one: it drops all of them at the end of the
connection (Bridge::terminate), which has to come anyway.
"""

import secrets
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ooodd.errors import ProtocolError
from ooodd.uno.urp import QUERY_INTERFACE, RELEASE
from ooodd.uno.wire import (
    Blocks,
    Reader,
    Reply,
    Request,
    accept_property,
    commits,
    interface_type,
    request,
    shown,
    text,
)

_Value = TypeVar("_Value")

# More documents than this are as bad as this many.
_MOST_COMPONENTS = 8

_INTERFACE = "com.sun.star.uno.XInterface"
_CONTEXT = "com.sun.star.uno.XComponentContext"
_DESKTOP = "com.sun.star.frame.XDesktop"
_FRAMES_SUPPLIER = "com.sun.star.frame.XFramesSupplier"
_FRAMES = "com.sun.star.frame.XFrames"
_ENUMERATION_ACCESS = "com.sun.star.container.XEnumerationAccess"
_ENUMERATION = "com.sun.star.container.XEnumeration"

# A method's number is its place in the interface, base interfaces first, and the first is 3.
_GET_VALUE_BY_NAME = 3
_GET_COMPONENTS = 6
_GET_CURRENT_COMPONENT = 7
_GET_FRAMES = 23
_GET_COUNT = 5
_HAS_ELEMENTS = 4
_CREATE_ENUMERATION = 5
_HAS_MORE_ELEMENTS = 3
_NEXT_ELEMENT = 4


@dataclass(frozen=True)
class Findings:
    """What a probe saw in an office."""

    # Open documents, counted up to a small bound.
    components: int
    frames: int
    # Whether one of them is the current one.
    current: bool

    @property
    def clean(self) -> bool:
        """Whether there is nothing of these."""
        return self == Findings(0, 0, current=False)


class _Call(Generic[_Value]):
    """A request and, once it has been answered, its result."""

    result: _Value

    def __init__(
        self, oid: str, type_name: str, function: int, read: Callable[[Reader], _Value], values: bytes = b""
    ) -> None:
        """Call a function of an object, known by an interface, with these values; `read` reads what it returns."""
        self._target = (function, type_name, oid)
        self._read = read
        self._values = values

    def request(self, tid: bytes) -> bytes:
        """Return the request, of the thread with this id."""
        return request(*self._target, tid, self._values)

    def take(self, reader: Reader) -> None:
        """Read the result."""
        self.result = self._read(reader)


# What is asked in one turn: each call is handed out at once, and goes on when all of them have been answered.
_Turn = tuple[_Call[Any], ...]
_Turns = Generator[_Turn, None, _Value]


class Probe:
    """The client's side of one conversation with an office, which speaks first. Sans-IO."""

    def __init__(self) -> None:
        """Make an id for the calling thread: the office queues calls by it, across connections."""
        # Set at the end of the conversation.
        self.findings: Findings | None = None
        self._tid = secrets.token_bytes(16)
        self._blocks = Blocks()
        self._reader = Reader()
        self._turns = _conversation()
        self._agreed = False
        self._unanswered: list[_Call[Any]] = []

    def receive(self, data: bytes) -> bytes:
        """Take what the office sent, in pieces of any size; return what is to be sent to it, which may be nothing.

        Raises `ProtocolError` for what an office doesn't answer, an exception among it, and for more than it answers;
        then the connection is good for nothing but closing.
        """
        answer = b""
        for messages, block in self._blocks.feed(data):
            self._reader.begin(block)
            for _ in range(messages):
                answer += self._take()
            self._reader.end()
        return answer

    def _take(self) -> bytes:
        message = self._reader.message()
        if isinstance(message, Request):
            return self._take_request(message)
        self._take_reply(message)
        return b"" if self._unanswered else self._next_turn()

    def _take_request(self, message: Request) -> bytes:
        """Answer what the office asks: it wants to agree on the protocol, and is told that ooodd gives way."""
        if message.function == RELEASE:
            return b""
        if not message.of_protocol or self._agreed:
            raise ProtocolError(f"the office calls function {message.function} of {shown(message.type)}")
        answer = accept_property(message, self._reader)
        self._agreed = commits(message)
        return answer + self._next_turn() if self._agreed else answer

    def _take_reply(self, message: Reply) -> None:
        if message.tid != self._tid or not self._unanswered:
            raise ProtocolError("a reply to what was never asked")
        if message.is_exception:
            raise ProtocolError(f"the office raised {self._reader.exception()}")
        self._unanswered.pop(0).take(self._reader)

    def _next_turn(self) -> bytes:
        try:
            self._unanswered = list(next(self._turns))
        except StopIteration as end:
            self.findings = end.value
            return b""
        return b"".join(call.request(self._tid) for call in self._unanswered)


def _conversation() -> _Turns[Findings]:
    """Ask for all that is to be found."""
    context = yield from _ask(_query("StarOffice.ComponentContext", _INTERFACE))
    context = yield from _ask(_query(context, _CONTEXT))
    name = text("/singletons/com.sun.star.frame.theDesktop")
    desktop = yield from _ask(_Call(context, _CONTEXT, _GET_VALUE_BY_NAME, _any_object, name))
    yield _query(desktop, _DESKTOP), _query(desktop, _FRAMES_SUPPLIER)
    current = _Call(desktop, _DESKTOP, _GET_CURRENT_COMPONENT, Reader.oid)
    components = _Call(desktop, _DESKTOP, _GET_COMPONENTS, _object)
    frames = _Call(desktop, _FRAMES_SUPPLIER, _GET_FRAMES, _object)
    yield current, components, frames
    frame_count = _Call(frames.result, _FRAMES, _GET_COUNT, _count)
    has_components = _Call(components.result, _ENUMERATION_ACCESS, _HAS_ELEMENTS, Reader.boolean)
    yield frame_count, has_components
    component_count = (yield from _count_elements(components.result)) if has_components.result else 0
    return Findings(component_count, frame_count.result, bool(current.result))


def _count_elements(container: str) -> _Turns[int]:
    """Count the elements of a container, up to the bound."""
    enumeration = yield from _ask(_Call(container, _ENUMERATION_ACCESS, _CREATE_ENUMERATION, _object))
    more = _Call(enumeration, _ENUMERATION, _HAS_MORE_ELEMENTS, Reader.boolean)
    element = _Call(enumeration, _ENUMERATION, _NEXT_ELEMENT, Reader.any_oid)
    yield (more,)
    count = 0
    while more.result and count < _MOST_COMPONENTS:
        count += 1
        yield element, more
    return count


def _ask(call: _Call[_Value]) -> _Turns[_Value]:
    """Make one call alone, and return its result."""
    yield (call,)
    return call.result


def _query(oid: str, type_name: str) -> _Call[str]:
    """Ask an object for an interface, by which the office then knows it."""
    return _Call(oid, _INTERFACE, QUERY_INTERFACE, _any_object, interface_type(type_name))


def _object(reader: Reader) -> str:
    return _not_null(reader.oid())


def _any_object(reader: Reader) -> str:
    return _not_null(reader.any_oid())


def _not_null(oid: str) -> str:
    if not oid:
        raise ProtocolError("the office has no object where it always has one")
    return oid


def _count(reader: Reader) -> int:
    return reader.number(4)
