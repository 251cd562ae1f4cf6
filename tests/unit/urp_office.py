# SPDX-License-Identifier: LGPL-2.1-or-later
"""The office side of a probe: the bytes that LibreOffice sends, and when it closes the connection.

It shares no code with ooodd, so that it does not repeat errors of ooodd. It knows only the requests that a probe makes.
It is as strict as LibreOffice: it refuses an object or an interface that it has not given to the client. It encodes its
messages as LibreOffice does: types and ids that it sent before are numbers, and unchanged fields are left out.
"""

import struct
from collections.abc import Callable

PROPERTIES_TID = b".UrpProtocolPropertiesTid"
PROPERTIES_OID = "UrpProtocolProperties"
NULL = b"\0\xff\xff"

BRIDGE_PROPERTIES = "com.sun.star.bridge.XProtocolProperties"
XINTERFACE = "com.sun.star.uno.XInterface"
CONTEXT = "com.sun.star.uno.XComponentContext"
DESKTOP = "com.sun.star.frame.XDesktop"
SUPPLIER = "com.sun.star.frame.XFramesSupplier"
FRAMES = "com.sun.star.frame.XFrames"
ACCESS = "com.sun.star.container.XEnumerationAccess"
ENUMERATION = "com.sun.star.container.XEnumeration"
COMPONENT = "com.sun.star.lang.XComponent"
LOADER = "com.sun.star.frame.XComponentLoader"
CLOSEABLE = "com.sun.star.util.XCloseable"
THE_DESKTOP = "/singletons/com.sun.star.frame.theDesktop"

# The interfaces of each object, for queryInterface.
INTERFACES = {
    "context": {XINTERFACE, CONTEXT},
    "desktop": {XINTERFACE, DESKTOP, SUPPLIER, LOADER},
    "new": {XINTERFACE, COMPONENT, CLOSEABLE},
}
# What loadComponentFromURL gets to load an empty, hidden document: _blank, 0, and one PropertyValue.
HIDDEN = b"\6_blank\0\0\0\0\1\6Hidden\xff\xff\xff\xff\2\1\0\0\0\0"
INITIAL = "StarOffice.ComponentContext"
INTERFACE_CLASS = 22
EXCEPTION_CLASS = 19


class BrokeOff(Exception):  # noqa: N818 - it names the event
    """A real office would have closed the connection here, without an answer."""


class OfficeSide:
    """One connection to an office with a number of open documents and frames. It sends `greeting` first."""

    def __init__(self, components: int = 0, frames: int = 0, current: bool = False) -> None:  # noqa: FBT001, FBT002
        self.components = components
        self.frames = frames
        self.current = current
        # If set, calls to the Desktop get no answer, as in an office whose SolarMutex is never released.
        self.hung = False
        # The kinds of documents of which there are none, and by which URLs documents were made. `closed` counts those.
        self.missing: set[str] = set()
        self.made: list[str] = []
        self.closed = 0
        # Every request as (interface, function), for the assertions of tests.
        self.asked: list[tuple[str, int]] = []
        self._received = b""
        # The request that the client has to answer. None when the protocol properties are agreed.
        self._expected: str | None = "requestChange"
        self._out = _Out()
        self._known: dict[str, set[str]] = {}
        self._last = ("", "", b"")
        self._enumerated = 0

    def greeting(self) -> bytes:
        """Return the data that the office sends when a client has connected."""
        return self._out.block(
            b"\xf8\x04",
            self._out.type(INTERFACE_CLASS, BRIDGE_PROPERTIES),
            self._out.oid(PROPERTIES_OID),
            self._out.new_tid(PROPERTIES_TID),
            struct.pack(">i", 0x1234567),
        )

    def receive(self, data: bytes) -> bytes:
        """Take data from the client and return the answers. Raises `BrokeOff`."""
        self._received += data
        answers = b""
        while len(self._received) >= 8:
            size, count = struct.unpack_from(">II", self._received)
            if not count or size > 1 << 20:
                raise BrokeOff(f"{count} messages in {size} bytes")
            if len(self._received) < 8 + size:
                break
            message = _In(self._received[8 : 8 + size])
            self._received = self._received[8 + size :]
            for _ in range(count):
                answers += self._answer(message)
            message.end()
        return answers

    def _answer(self, message: "_In") -> bytes:
        flags = message.number(1)
        if flags & 0xC0 == 0x80:
            return self._reply(message, flags)
        if flags & 0xC5 != 0xC0:
            raise BrokeOff(f"flags {flags:x} of a request that no probe sends")
        function = message.number(1)
        last_type, last_oid, last_tid = self._last
        type_ = message.interface() if flags & 0x20 else last_type
        oid = message.oid() if flags & 0x10 else last_oid
        tid = message.tid() if flags & 0x08 else last_tid
        self._last = (type_, oid, tid)
        if not (type_ and oid and tid):
            raise BrokeOff("a request to nobody")
        if self._expected:
            raise BrokeOff(f"a request before the reply to {self._expected}")
        if function == 2:
            return b""
        if message.oid():
            raise BrokeOff("a current context")
        self.asked.append((type_, function))
        if self.hung and type_ in (DESKTOP, SUPPLIER):
            return b""
        head = self._out.head_of_reply(tid)
        try:
            return self._out.block(head, self._call(type_, oid, function, message))
        except StopIteration:
            return self._out.block(bytes([head[0] | 0x20]), head[1:], self._no_such_element())

    def _reply(self, message: "_In", flags: int) -> bytes:
        if flags != 0x88 or message.tid() != PROPERTIES_TID:
            raise BrokeOff("a reply to what was never asked")
        if self._expected == "requestChange":
            if message.number(4) != 1:
                raise BrokeOff("the probe doesn't give way")
            self._expected = "commitChange"
            return self._out.block(b"\x05\x01", _text("CurrentContext"), b"\0")
        if self._expected != "commitChange":
            raise BrokeOff("a reply to nothing")
        self._expected = None
        return b""

    def _call(self, type_: str, oid: str, function: int, message: "_In") -> bytes:
        if function == 0:
            return self._query(type_, oid, message.interface())
        if type_ not in self._known.get(oid, ()):
            raise BrokeOff(f"{oid} was never handed out as {type_}")
        calls: dict[tuple[str, int], Callable[[], bytes]] = {
            (DESKTOP, 6): lambda: self._hand_out("components", ACCESS),
            (DESKTOP, 7): lambda: self._hand_out("document", COMPONENT) if self.current else NULL,
            (SUPPLIER, 23): lambda: self._hand_out("frames", FRAMES),
            (FRAMES, 5): lambda: struct.pack(">i", self.frames),
            (ACCESS, 4): lambda: bytes([self.components > 0]),
            (ACCESS, 5): lambda: self._hand_out("enumeration", ENUMERATION),
            (ENUMERATION, 3): lambda: bytes([self._enumerated < self.components]),
            (ENUMERATION, 4): self._next,
            (CONTEXT, 3): lambda: self._value(message.text()),
            (LOADER, 3): lambda: self._load(message.text(), message.take(len(HIDDEN))),
            (CLOSEABLE, 5): lambda: self._close(message.number(1)),
        }
        try:
            return calls[type_, function]()
        except KeyError:
            raise BrokeOff(f"function {function} of {type_}, which no probe calls") from None

    def _query(self, type_: str, oid: str, wanted: str) -> bytes:
        if oid == INITIAL:
            if (type_, wanted) != (XINTERFACE, XINTERFACE):
                raise BrokeOff(f"{oid} is known as XInterface only")
            return self._hand_out_any("context", XINTERFACE)
        if oid not in self._known:
            raise BrokeOff(f"{oid} was never handed out")
        name = oid.partition(";")[0]
        return self._hand_out_any(name, wanted) if wanted in INTERFACES.get(name, ()) else b"\0"

    def _value(self, name: str) -> bytes:
        return self._hand_out_any("desktop", XINTERFACE) if name == THE_DESKTOP else b"\0"

    def _load(self, url: str, rest: bytes) -> bytes:
        if rest != HIDDEN:
            raise BrokeOff(f"to load {url} with {rest!r}")
        if url in self.missing:
            return NULL
        self.made.append(url)
        return self._hand_out("new", COMPONENT)

    def _close(self, owner: int) -> bytes:
        if owner != 1:
            raise BrokeOff("nobody would own the document")
        self.closed += 1
        return b""

    def _next(self) -> bytes:
        if self._enumerated >= self.components:
            raise StopIteration
        self._enumerated += 1
        return self._hand_out_any(f"document{self._enumerated}", COMPONENT)

    def _no_such_element(self) -> bytes:
        where = "at ./framework/source/helper/ocomponentenumeration.cxx:83"
        type_ = self._out.type(EXCEPTION_CLASS, "com.sun.star.container.NoSuchElementException")
        return type_ + _text(where) + NULL

    def _hand_out(self, name: str, type_: str) -> bytes:
        oid = f"{name};gcc3[0];555a3af86a010c3d58b4784a654cc819"
        self._known.setdefault(oid, set()).add(type_)
        return self._out.oid(oid)

    def _hand_out_any(self, name: str, type_: str) -> bytes:
        return self._out.type(INTERFACE_CLASS, type_) + self._hand_out(name, type_)


class _In:
    """Reads the content of a block that a probe has sent."""

    def __init__(self, content: bytes) -> None:
        self._rest = content

    def end(self) -> None:
        if self._rest:
            raise BrokeOff(f"more than was asked for: {self._rest!r}")

    def take(self, count: int) -> bytes:
        if count > len(self._rest):
            raise BrokeOff("a message that has no end")
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def sized(self) -> bytes:
        size = self.number(1)
        return self.take(self.number(4) if size == 0xFF else size)

    def text(self) -> str:
        return self.sized().decode()

    def not_cached(self) -> None:
        if self.number(2) != 0xFFFF:
            raise BrokeOff("a probe needs no cache")

    def oid(self) -> str:
        oid = self.text()
        self.not_cached()
        return oid

    def tid(self) -> bytes:
        tid = self.sized()
        self.not_cached()
        return tid

    def interface(self) -> str:
        if self.number(1) != 0x80 | INTERFACE_CLASS:
            raise BrokeOff("not the type of an interface")
        self.not_cached()
        return self.text()


class _Out:
    """Writes the messages of an office, with the caches of what it has sent."""

    def __init__(self) -> None:
        self._types: dict[str, int] = {}
        self._oids: dict[str, int] = {}
        self._tids: dict[bytes, int] = {}
        self._last_tid = b""

    def type(self, type_class: int, name: str) -> bytes:
        if name in self._types:
            return struct.pack(">BH", type_class, self._types[name])
        index = self._types.setdefault(name, len(self._types))
        return struct.pack(">BH", type_class | 0x80, index) + _text(name)

    def oid(self, oid: str) -> bytes:
        if oid in self._oids:
            return b"\0" + struct.pack(">H", self._oids[oid])
        return _text(oid) + struct.pack(">H", self._oids.setdefault(oid, len(self._oids)))

    def new_tid(self, tid: bytes) -> bytes:
        self._last_tid = tid
        if tid in self._tids:
            return b"\0" + struct.pack(">H", self._tids[tid])
        return _sized(tid) + struct.pack(">H", self._tids.setdefault(tid, len(self._tids)))

    def head_of_reply(self, tid: bytes) -> bytes:
        return b"\x80" if tid == self._last_tid else b"\x88" + self.new_tid(tid)

    def block(self, *parts: bytes) -> bytes:
        message = b"".join(parts)
        return struct.pack(">II", len(message), 1) + message


def _text(value: str) -> bytes:
    return _sized(value.encode())


def _sized(value: bytes) -> bytes:
    size = len(value)
    return (bytes([size]) if size < 0xFF else struct.pack(">BI", 0xFF, size)) + value
