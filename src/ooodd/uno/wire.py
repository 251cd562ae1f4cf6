# SPDX-License-Identifier: LGPL-2.1-or-later
"""The wire format of the UNO Remote Protocol: blocks, messages, and the few kinds of values that ooodd exchanges.

A stream is a sequence of blocks, see `urp`. A message is a request or a reply. It ends with its last value, and only
the method's signature tells where that is. So a reader has to read each message to its end, with the methods of
`Reader`, or give up. A type, an object's id or a thread's id is written in full, or as the cache index under which the
same direction of the same connection has written it before: hence one `Reader` for each direction. A request can leave
out what it has in common with the one before.

What is written here uses no cache and leaves nothing out: ooodd's conversations are too short to gain by it. Sources:
"UNO Remote Protocol" specification; LibreOffice's binaryurp/source/unmarshal.cxx, reader.cxx, cache.hxx;
com/sun/star/lib/uno/protocols/urp for Java.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from ooodd.errors import ProtocolError
from ooodd.uno.urp import (
    EXCEPTION,
    FIRST_REQUEST,
    FUNCTION_16,
    HEADER,
    LONG,
    MORE_FLAGS,
    MOST_BYTES,
    MOST_MESSAGES,
    NEW_OID,
    NEW_TID,
    NEW_TYPE,
    REQUEST,
)

_Id = TypeVar("_Id", str, bytes)

# The only second byte of flags there is: a reply is wanted, even from a oneway method.
_MUST_REPLY = 0xC0
# In a short header: another 8 bits of the function's number follow.
_FUNCTION_14 = 0x40

# com.sun.star.uno.TypeClass, as far as it is needed here, and the bit of a type whose name follows.
_VOID = 0
_EXCEPTION_CLASS = 19
_INTERFACE_CLASS = 22
_IN_FULL = 0x80

# The caches of binaryurp and of Java have this many entries; an index of all ones means "not cached".
_CACHE_SIZE = 256
_NO_INDEX = 0xFFFF
_NOT_CACHED = b"\xff\xff"
# A length below this takes one byte; this byte means that four bytes with the length follow.
_LONG_LENGTH = 0xFF

# How many characters of the other side's text go into a message.
_MOST_SHOWN = 300

# The object by which both sides agree on properties of the protocol. There is one property: whether a request carries
# the caller's current context. binaryurp, Java and ooodd all want it, and ooodd's context is always null.
_PROPERTIES_OID = "UrpProtocolProperties"
_PROPERTIES_TYPE = "com.sun.star.bridge.XProtocolProperties"
_PROPERTIES_TID = b".UrpProtocolPropertiesTid"
_REQUEST_CHANGE = 4
_COMMIT_CHANGE = 5
_CURRENT_CONTEXT = "CurrentContext"


class Blocks:
    """Cuts a stream into blocks. It keeps the beginning of an incomplete block, at most MOST_BYTES and a header."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._messages = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield each block that `data` completes: its number of messages, and its content.

        Raises `ProtocolError` as soon as a header is complete that announces no byte, no message, or more than one of
        ooodd's conversations has: more bytes in the block, or more messages in all blocks so far.
        """
        self._kept += data
        while len(self._kept) >= HEADER.size:
            size, messages = HEADER.unpack_from(self._kept)
            if not (0 < size <= MOST_BYTES and 0 < messages <= MOST_MESSAGES - self._messages):
                raise ProtocolError(f"a block of {size} bytes with {messages} messages, after {self._messages} others")
            end = HEADER.size + size
            if len(self._kept) < end:
                return
            block = bytes(self._kept[HEADER.size : end])
            del self._kept[:end]
            self._messages += messages
            yield messages, block


@dataclass(frozen=True)
class Request:
    """The head of a request. Its values follow, after the current context if that is agreed on."""

    function: int
    type: str
    oid: str
    tid: bytes

    @property
    def of_protocol(self) -> bool:
        """Whether it is about properties of the protocol. Such a request never carries a current context."""
        return self.oid == _PROPERTIES_OID and self.type == _PROPERTIES_TYPE


@dataclass(frozen=True)
class Reply:
    """The head of a reply. Its values follow: an exception, or what the method returns."""

    tid: bytes
    is_exception: bool


class Reader:
    """Reads the messages of one direction of a connection. Each method raises `ProtocolError` for invalid bytes."""

    def __init__(self) -> None:
        self._block = b""
        self._position = 0
        self._types: dict[int, str] = {}
        self._oids: dict[int, str] = {}
        self._tids: dict[int, bytes] = {}
        # From the last message that had them; a message may leave them out.
        self._type = ""
        self._oid = ""
        self._tid = b""

    def begin(self, block: bytes) -> None:
        """Go on with the content of the next block."""
        self._block = block
        self._position = 0

    def end(self) -> None:
        """Check that the block has been read to its end."""
        if self._position != len(self._block):
            raise ProtocolError(f"{len(self._block) - self._position} bytes after the last message of a block")

    def message(self) -> Request | Reply:
        """Read the head of the next message."""
        flags = self.number(1)
        if not flags & LONG:
            low = self.number(1) if flags & _FUNCTION_14 else None
            return self._request(0, flags if low is None else (flags & ~_FUNCTION_14) << 8 | low)
        if not flags & REQUEST:
            self._read_tid(flags)
            return Reply(self._tid, bool(flags & EXCEPTION))
        if flags & MORE_FLAGS and self.number(1) != _MUST_REPLY:
            raise ProtocolError("a request with unknown flags")
        return self._request(flags, self.number(2 if flags & FUNCTION_16 else 1))

    def _request(self, flags: int, function: int) -> Request:
        if flags & NEW_TYPE:
            self._type = self._type_of(_INTERFACE_CLASS)
        if flags & NEW_OID:
            self._oid = self.oid()
        self._read_tid(flags)
        if not (self._type and self._oid):
            raise ProtocolError("a request that doesn't name its object")
        return Request(function, self._type, self._oid, self._tid)

    def _read_tid(self, flags: int) -> None:
        if flags & NEW_TID:
            tid = self._bytes(self._length())
            self._tid = self._known(self._tids, self._index(), tid)
        if not self._tid:
            raise ProtocolError("a message that doesn't name its thread")

    def number(self, size: int) -> int:
        """Read an unsigned number of `size` bytes."""
        return int.from_bytes(self._bytes(size), "big")

    def boolean(self) -> bool:
        """Read a boolean."""
        value = self.number(1)
        if value > 1:
            raise ProtocolError(f"a boolean of {value}")
        return value == 1

    def text(self) -> str:
        """Read a string."""
        try:
            return self._bytes(self._length()).decode()
        except UnicodeDecodeError as error:
            raise ProtocolError(f"a string that is no UTF-8: {error.reason}") from error

    def oid(self) -> str:
        """Read a reference to an object: its id, empty for a null reference."""
        oid = self.text()
        return self._known(self._oids, self._index(), oid)

    def any_oid(self) -> str:
        """Read an any that is void or a reference to an object: its id, empty for a void or null one."""
        if self._peek() == _VOID:
            return self._void()
        self._type_of(_INTERFACE_CLASS)
        return self.oid()

    def exception(self) -> str:
        """Read an exception up to its message, for what follows depends on its type; return type and message."""
        name = self._type_of(_EXCEPTION_CLASS)
        return shown(f"{name}: {self.text()}")

    def properties(self) -> list[str]:
        """Read the names of properties of the protocol. No known property has a value."""
        names = []
        for _ in range(self._length()):
            names.append(self.text())
            self._void()
        return names

    def _void(self) -> str:
        if self.number(1) != _VOID:
            raise ProtocolError("a value where there is none")
        return ""

    def _type_of(self, wanted: int) -> str:
        """Read a type of the class `wanted`, whose types have names; return its name."""
        flags = self.number(1)
        if flags & ~_IN_FULL != wanted:
            raise ProtocolError(f"a type of class {flags & ~_IN_FULL}, not {wanted}")
        index = self._index()
        name = self._known(self._types, index, self.text() if flags & _IN_FULL else "")
        if not name:
            raise ProtocolError("a type without a name")
        return name

    def _known(self, cache: dict[int, _Id], index: int, given: _Id) -> _Id:
        """Return what is given, and put it into the cache; if nothing is given, return what is in the cache."""
        if index == _NO_INDEX:
            return given
        if given:
            cache[index] = given
        if index not in cache:
            raise ProtocolError(f"number {index} stands for nothing")
        return cache[index]

    def _index(self) -> int:
        index = self.number(2)
        if index >= _CACHE_SIZE and index != _NO_INDEX:
            raise ProtocolError(f"number {index} is out of range")
        return index

    def _length(self) -> int:
        length = self.number(1)
        return self.number(4) if length == _LONG_LENGTH else length

    def _peek(self) -> int:
        value = self.number(1)
        self._position -= 1
        return value

    def _bytes(self, count: int) -> bytes:
        begin, self._position = self._position, self._position + count
        if self._position > len(self._block):
            raise ProtocolError("a block that ends within a message")
        return self._block[begin : self._position]


def shown(text: str) -> str:
    """Return text of the other side as it can be shown: it may be long, or be made to look like another message."""
    return "".join(char if char.isprintable() else "?" for char in text[:_MOST_SHOWN])


def accept_property(request: Request, reader: Reader) -> bytes:
    """Read the values of a request that is about properties of the protocol, and return the reply, as a block.

    ooodd leaves the choice to the other side: it replies 1 to requestChange, and void to commitChange, which has the
    choice. `commits` tells which of the two the request is. Raises `ProtocolError` for an unknown choice.
    """
    if request.function == _REQUEST_CHANGE:
        reader.number(4)
        return reply(request.tid, struct.pack(">i", 1))
    if not commits(request) or reader.properties() != [_CURRENT_CONTEXT]:
        raise ProtocolError("properties of the protocol that are unknown")
    return reply(request.tid, b"")


def commits(request: Request) -> bool:
    """Whether a request about properties commits a change, which applies to all that is sent after the reply."""
    return request.function == _COMMIT_CHANGE


def request_change(number: int) -> bytes:
    """Return a block with the request to agree on properties of the protocol. Of two numbers the greater one wins."""
    return _property_request(_REQUEST_CHANGE, struct.pack(">i", number))


def commit_change() -> bytes:
    """Return a block with the request that commits CurrentContext."""
    return _property_request(_COMMIT_CHANGE, b"\1" + text(_CURRENT_CONTEXT) + bytes([_VOID]))


def is_about_properties(message: Reply) -> bool:
    """Whether a reply is one to `request_change` or `commit_change`."""
    return message.tid == _PROPERTIES_TID


def _property_request(function: int, values: bytes) -> bytes:
    """Return a block with a request about properties. Such a request never carries a current context."""
    head = bytes([FIRST_REQUEST, function])
    tid = _sized(_PROPERTIES_TID)
    return _block(head, interface_type(_PROPERTIES_TYPE), reference(_PROPERTIES_OID), tid, _NOT_CACHED, values)


def request(function: int, type_name: str, oid: str, tid: bytes, values: bytes) -> bytes:
    """Return a block with a request, which carries a null current context."""
    head = bytes([FIRST_REQUEST, function])
    return _block(head, interface_type(type_name), reference(oid), _sized(tid), _NOT_CACHED, reference(""), values)


def reply(tid: bytes, values: bytes) -> bytes:
    """Return a block with a reply."""
    return _block(bytes([LONG | NEW_TID]), _sized(tid), _NOT_CACHED, values)


def exception_reply(tid: bytes, type_name: str, message: str) -> bytes:
    """Return a block with an exception that has a message, a null context and no members of its own."""
    values = _named_type(_EXCEPTION_CLASS, type_name) + text(message) + reference("")
    return _block(bytes([LONG | EXCEPTION | NEW_TID]), _sized(tid), _NOT_CACHED, values)


def text(value: str) -> bytes:
    """Return a string; what can't be encoded in UTF-8 is replaced."""
    return _sized(value.encode(errors="replace"))


def reference(oid: str) -> bytes:
    """Return a reference to an object, a null one for an empty id."""
    return text(oid) + _NOT_CACHED


def interface_type(name: str) -> bytes:
    """Return the type of an interface."""
    return _named_type(_INTERFACE_CLASS, name)


def _named_type(type_class: int, name: str) -> bytes:
    return bytes([type_class | _IN_FULL]) + _NOT_CACHED + text(name)


def _sized(value: bytes) -> bytes:
    size = len(value)
    return (bytes([size]) if size < _LONG_LENGTH else struct.pack(">BI", _LONG_LENGTH, size)) + value


def _block(*parts: bytes) -> bytes:
    message = b"".join(parts)
    return HEADER.pack(len(message), 1) + message
