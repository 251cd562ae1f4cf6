# SPDX-License-Identifier: LGPL-2.1-or-later
"""The conversations that ooodd has with offices, as a client: a probe, and a preload. Sans-IO.

A probe tells whether an office still works, and what its last client has left in it. A hung office still greets, agrees
on the protocol and creates a Desktop. `XDesktop.getCurrentComponent()` takes the SolarMutex, as nearly everything in an
office does: its reply shows that the office works. The caller decides how long to wait for it. The documents and frames
that are counted then are the ones that a client has left open.

A preload has an office load what documents of a kind need, before its client comes. It makes an empty document of each
kind, hidden, and closes it. What the office has loaded for that stays in it: the libraries and the settings of Writer,
for example. It has no document and no frame then, as before.

An office knows an object only by the interfaces under which it has returned it, and closes the connection if it is
called by another one (bridge.cxx, findStub). So queryInterface is needed, and the turns that it takes. Requests that
do not depend on each other's replies go out in one turn. The first object is asked for by its name, as XInterface
(reader.cxx).

The references that the office returns are not released one by one. It drops all of them at the end of the connection
(Bridge::terminate), which comes next anyway.
"""

import secrets
import struct
from collections.abc import Callable, Generator, Sequence
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

# Documents are not counted beyond this: one is enough for the office to be dirty.
_MOST_COMPONENTS = 8

_INTERFACE = "com.sun.star.uno.XInterface"
_CONTEXT = "com.sun.star.uno.XComponentContext"
_DESKTOP = "com.sun.star.frame.XDesktop"
_LOADER = "com.sun.star.frame.XComponentLoader"
_CLOSEABLE = "com.sun.star.util.XCloseable"
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
_LOAD_COMPONENT_FROM_URL = 3
_CLOSE = 5

_LONG = struct.Struct(">i")
_TRUE = b"\1"
# com.sun.star.uno.TypeClass
_BOOLEAN_CLASS = 2
# A sequence of one com.sun.star.beans.PropertyValue: name, handle, value (an any), state (DIRECT_VALUE).
_HIDDEN = bytes([1]) + text("Hidden") + _LONG.pack(-1) + bytes([_BOOLEAN_CLASS]) + _TRUE + _LONG.pack(0)


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
        """Whether nothing has been left open."""
        return self == Findings(0, 0, current=False)


class _Call(Generic[_Value]):
    """A request and, once its reply has come, its result."""

    result: _Value

    def __init__(
        self, oid: str, type_name: str, function: int, read: Callable[[Reader], _Value], values: bytes = b""
    ) -> None:
        """Call a function of an object's interface with these values; `read` reads the result."""
        self._target = (function, type_name, oid)
        self._read = read
        self._values = values

    def request(self, tid: bytes) -> bytes:
        """Return the request, as a block, for the thread with this id."""
        return request(*self._target, tid, self._values)

    def read_result(self, reader: Reader) -> None:
        """Read the result."""
        self.result = self._read(reader)


# The calls of one turn are sent together. The next turn begins when all of them have been answered.
_Turn = tuple[_Call[Any], ...]
Turns = Generator[_Turn, None, _Value]


class Conversation(Generic[_Value]):
    """The client's side of a conversation with an office, which speaks first. Sans-IO."""

    def __init__(self, turns: "Turns[_Value]") -> None:
        """Make a random id for the calling thread: the office queues calls by it, across connections."""
        # Set at the end of the conversation, to what `turns` returns.
        self.result: _Value | None = None
        self._tid = secrets.token_bytes(16)
        self._blocks = Blocks()
        self._reader = Reader()
        self._turns = turns
        self._agreed = False
        self._unanswered: list[_Call[Any]] = []

    def receive(self, data: bytes) -> bytes:
        """Take bytes from the office, in pieces of any size; return the bytes to send to it, which may be none.

        Raises `ProtocolError` for anything but the expected replies, also for an exception as a reply. The connection
        is then good only for closing.
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
        """Answer a request of the office: it wants to agree on the protocol, and ooodd leaves the choice to it."""
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
        self._unanswered.pop(0).read_result(self._reader)

    def _next_turn(self) -> bytes:
        try:
            self._unanswered = list(next(self._turns))
        except StopIteration as end:
            self.result = end.value
            return b""
        return b"".join(call.request(self._tid) for call in self._unanswered)


def new_probe() -> Conversation[Findings]:
    """Return a probe, at its beginning."""
    return Conversation(look())


def look() -> Turns[Findings]:
    """Ask for everything that `Findings` has."""
    desktop = yield from _the_desktop()
    yield _query(desktop, _DESKTOP), _query(desktop, _FRAMES_SUPPLIER)
    current = _Call(desktop, _DESKTOP, _GET_CURRENT_COMPONENT, Reader.oid)
    components = _Call(desktop, _DESKTOP, _GET_COMPONENTS, _an_object)
    frames = _Call(desktop, _FRAMES_SUPPLIER, _GET_FRAMES, _an_object)
    yield current, components, frames
    frame_count = _Call(frames.result, _FRAMES, _GET_COUNT, _count)
    has_components = _Call(components.result, _ENUMERATION_ACCESS, _HAS_ELEMENTS, Reader.boolean)
    yield frame_count, has_components
    component_count = (yield from _count_elements(components.result)) if has_components.result else 0
    return Findings(component_count, frame_count.result, bool(current.result))


def _count_elements(container: str) -> Turns[int]:
    """Count the elements of a container, up to _MOST_COMPONENTS."""
    enumeration = yield from _ask(_Call(container, _ENUMERATION_ACCESS, _CREATE_ENUMERATION, _an_object))
    more = _Call(enumeration, _ENUMERATION, _HAS_MORE_ELEMENTS, Reader.boolean)
    element = _Call(enumeration, _ENUMERATION, _NEXT_ELEMENT, Reader.any_oid)
    yield (more,)
    count = 0
    while more.result and count < _MOST_COMPONENTS:
        count += 1
        yield element, more
    return count


def new_preload(kinds: Sequence[str]) -> Conversation[list[str]]:
    """Return a preload of some of `config.PRELOADABLE`, at its beginning. Its result are those that there are not."""
    return Conversation(_load(kinds))


def _load(kinds: Sequence[str]) -> Turns[list[str]]:
    desktop = yield from _the_desktop()
    yield from _ask(_query(desktop, _LOADER))
    missing = []
    for kind in kinds:
        values = text(f"private:factory/s{kind}") + text("_blank") + _LONG.pack(0) + _HIDDEN
        document = yield from _ask(_Call(desktop, _LOADER, _LOAD_COMPONENT_FROM_URL, Reader.oid, values))
        if document:
            yield from _ask(_query(document, _CLOSEABLE))
            yield from _ask(_Call(document, _CLOSEABLE, _CLOSE, _nothing, _TRUE))
        else:
            missing.append(kind)
    return missing


def _the_desktop() -> Turns[str]:
    """Return the desktop, as XInterface."""
    context = yield from _ask(_query("StarOffice.ComponentContext", _INTERFACE))
    context = yield from _ask(_query(context, _CONTEXT))
    name = text("/singletons/com.sun.star.frame.theDesktop")
    return (yield from _ask(_Call(context, _CONTEXT, _GET_VALUE_BY_NAME, _any_object, name)))


def _ask(call: _Call[_Value]) -> Turns[_Value]:
    """Make one call in a turn of its own, and return its result."""
    yield (call,)
    return call.result


def _query(oid: str, type_name: str) -> _Call[str]:
    """Ask an object for an interface, by which it can be called then."""
    return _Call(oid, _INTERFACE, QUERY_INTERFACE, _any_object, interface_type(type_name))


def _an_object(reader: Reader) -> str:
    return _not_null(reader.oid())


def _any_object(reader: Reader) -> str:
    return _not_null(reader.any_oid())


def _not_null(oid: str) -> str:
    if not oid:
        raise ProtocolError("the office has no object where it always has one")
    return oid


def _count(reader: Reader) -> int:
    return reader.number(4)


def _nothing(_: Reader) -> None:
    """Read the result of a method that has none."""
