# SPDX-License-Identifier: LGPL-2.1-or-later
"""The UNO Remote Protocol, as far as a broker has to know it. All of it is sans-IO: bytes in, bytes out.

Here is what is read from the bytes of a session in passing: whether they begin as a client's do, and whether a call is
under way in the end. `Probe` and `Refusal` take part in a conversation, see there; `wire` has the format.

A block is its size and its number of messages, two big-endian 32-bit numbers, and then the messages. The first message
of a connection is a request with a long header that names its type, object and thread in full, for there is nothing yet
that a cache could abbreviate. All five bits of its flags are therefore set, whoever the client is. Source: "UNO Remote
Protocol" specification; binaryurp/source/marshal.cxx, com/sun/star/lib/uno/protocols/urp.
"""

import struct

from ooodd.uno.wire import (
    FIRST_REQUEST,
    FUNCTION_16,
    HEADER,
    LONG,
    MORE_FLAGS,
    MOST_BYTES,
    MOST_MESSAGES,
    RELEASE,
    REQUEST,
)

# Block header and the flags of the first message.
OPENING_SIZE = 9


def is_opening(data: bytes) -> bool | None:
    """Return whether a connection that begins with `data` can be URP; None if it takes more bytes to tell."""
    if len(data) < OPENING_SIZE:
        # The size is below 2^24, so the very first byte tells most of what isn't URP.
        return False if data[:1].strip(b"\0") else None
    size, messages, flags = struct.unpack_from(">IIB", data)
    return bool(0 < size <= MOST_BYTES and 0 < messages <= MOST_MESSAGES and flags & FIRST_REQUEST == FIRST_REQUEST)


# A block's header, and the flags that its message begins with. The second byte of a message is, in nearly all requests
# with a long header, the function's number; some messages have no second byte.
_HEAD = struct.Struct(">IIB")
_SECOND = _HEAD.size
_ANY_BYTE = 256


def _calls(flags: int) -> bytes:
    """Return for each second byte of a message whether it is a call, which wants a reply.

    What nobody sends counts as one: a release with a long number, or with more flags, which may want a reply.
    """
    none, every = bytes(_ANY_BYTE), b"\1" * _ANY_BYTE
    if not flags & LONG:
        return none if flags == RELEASE else every
    if not flags & REQUEST:
        return none
    if flags & (FUNCTION_16 | MORE_FLAGS):
        return every
    return every[:RELEASE] + none[:1] + every[RELEASE + 1 :]


def _replies(flags: int) -> bytes:
    """Return for each second byte of a message whether it is a reply."""
    return bytes([flags & (LONG | REQUEST) == LONG]) * _ANY_BYTE


_CALLS = b"".join(map(_calls, range(_ANY_BYTE)))
_REPLIES = b"".join(map(_replies, range(_ANY_BYTE)))


class Calls:
    """Counts the calls of a session's client that are under way, from the bytes that pass by.

    A client that ends without such a call has left behind what a `Probe` can see. One that ends with it may have left
    an office that still works for it and, say, shows the document that it loads later. The heads of the blocks tell:
    the client's requests, but for releases, less the office's replies, because binaryurp and Java put one message into
    a block (writer.cxx, urp.java). What the office calls the client for meanwhile doesn't matter.

    It errs on one side. A block of several messages can't be followed, for where a message ends only its method's
    signature tells; nor can what is no URP. A oneway call without an answer, as only a Java client can be told to make
    ("ForceSynchronous=0"), stays under way.
    """

    def __init__(self) -> None:
        self._count = 0
        self._requests = _Heads(_CALLS)
        self._replies = _Heads(_REPLIES)

    @property
    def under_way(self) -> bool:
        """Whether a request of the client may still wait for its reply; for good, if that could not be followed."""
        return self._count != 0 or self._requests.lost or self._replies.lost

    def to_office(self, view: memoryview) -> None:
        """See bytes that the client sent, in their order."""
        self._count += self._requests.see(view)

    def to_client(self, view: memoryview) -> None:
        """See bytes that the office sent, in their order, after those of the client that they answer."""
        self._count -= self._replies.see(view)
        if self._count < 0:
            self._replies.lost = True


class _Heads:
    """Finds the heads of the blocks in the bytes of one direction, and skips the rest unread.

    It keeps a head that is not complete, and how much of a block is still to come.
    """

    __slots__ = ("_counted", "_kept", "_rest", "lost")

    def __init__(self, counted: bytes) -> None:
        """Count messages whose first two bytes, taken as an index, are marked in `counted`."""
        self.lost = False
        self._counted = counted
        self._kept = b""
        self._rest = 0

    def see(self, view: memoryview) -> int:
        """Return how many counted messages begin in these bytes."""
        length = len(view)
        if length >= _HEAD.size and not self._rest and not self._kept:
            # A chunk is nearly always a block. Then this is all that it costs.
            flags: int
            size, messages, flags = _HEAD.unpack_from(view)
            if size + HEADER.size == length and messages == 1:
                return self._counted[flags << 8 | (view[_SECOND] if size > 1 else 0)]
        return self._see(view)

    def _see(self, view: memoryview) -> int:
        count = 0
        position, length = self._rest, len(view)
        while position < length and not self.lost:
            begin = position - len(self._kept)
            head = self._kept + view[position : begin + _SECOND + 1]
            # As long as the header isn't complete, the most that may follow it is assumed.
            size, messages = HEADER.unpack_from(head) if len(head) >= HEADER.size else (2, 1)
            if len(head) < min(HEADER.size + size, _SECOND + 1):
                self._kept, position = head, length
                break
            self._kept, position = b"", begin + HEADER.size + size
            if messages != 1 or size == 0:
                self.lost = True
            else:
                count += self._counted[head[HEADER.size] << 8 | (head[_SECOND] if size > 1 else 0)]
        self._rest = max(0, position - length)
        return count
