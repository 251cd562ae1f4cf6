# SPDX-License-Identifier: LGPL-2.1-or-later
"""The heads of the UNO Remote Protocol's blocks and messages, and what a broker can tell from them alone.

`is_opening` tells whether a connection begins as a UNO client's does. `Calls` follows which calls are under way. Both
read bytes of a session that are only forwarded. `wire` has the rest of the format; `conversation` and `refusal` are
what ooodd says itself. The whole package is sans-IO: bytes in, bytes out.

A block is its size and its number of messages, two big-endian 32-bit numbers, and then the messages. A message begins
with its flags. The first message of a connection is a request with a long header. It names its type, object and thread
in full, for no cache can have them yet. So all five bits of FIRST_REQUEST are set, whatever the client is. Sources:
"UNO Remote Protocol" specification; binaryurp/source/marshal.cxx, com/sun/star/lib/uno/protocols/urp.
"""

import struct

# A UNO client's first block is some hundred bytes long, and so are an office's answers to ooodd. Whatever announces
# more than this is neither.
MOST_BYTES = 64 * 1024
MOST_MESSAGES = 64

# A block's header: its size, without these 8 bytes, and its number of messages.
HEADER = struct.Struct(">II")

# Flags of a message. If LONG is clear, the message is a request, and the other bits are the function's number.
LONG = 0x80
REQUEST = 0x40
NEW_TYPE = 0x20  # of a request
EXCEPTION = 0x20  # of a reply
NEW_OID = 0x10
NEW_TID = 0x08
FUNCTION_16 = 0x04
MORE_FLAGS = 0x01
FIRST_REQUEST = LONG | REQUEST | NEW_TYPE | NEW_OID | NEW_TID

# Functions that every interface has; its own begin at 3.
QUERY_INTERFACE = 0
RELEASE = 2

# How many bytes `is_opening` needs: the header of the first block and the flags of its first message.
OPENING_SIZE = 9


def is_opening(data: bytes) -> bool | None:
    """Return whether a connection that begins with `data` can be URP; None if more bytes are needed to tell."""
    if len(data) < OPENING_SIZE:
        # The size is below 2^24, so the first byte rules out most other protocols.
        return False if data[:1].strip(b"\0") else None
    size, messages, flags = struct.unpack_from(">IIB", data)
    return bool(0 < size <= MOST_BYTES and 0 < messages <= MOST_MESSAGES and flags & FIRST_REQUEST == FIRST_REQUEST)


# A block's header, and the flags of its first message. The second byte of a message is the function's number in nearly
# all requests with a long header; a message may also be a single byte.
_HEAD = struct.Struct(">IIB")
_SECOND = _HEAD.size
_ANY_BYTE = 256


def _calls(flags: int) -> bytes:
    """Return for each second byte of a message with these flags whether it is a call that wants a reply.

    Two kinds of requests that nobody sends count as calls: a release with a 16-bit number, and one with more flags,
    which may ask for a reply.
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
    """Return for each second byte of a message with these flags whether it is a reply."""
    return bytes([flags & (LONG | REQUEST) == LONG]) * _ANY_BYTE


_CALLS = b"".join(map(_calls, range(_ANY_BYTE)))
_REPLIES = b"".join(map(_replies, range(_ANY_BYTE)))


class _Heads:
    """Finds the heads of the blocks in the bytes of one direction, and skips the rest unread.

    Its state, in `memory` from `at` on: how many bytes of the current block are still to come, whether the direction
    can't be followed any more, and the first bytes of a head that is not complete.
    """

    _STATE = struct.Struct("=Q?B9s5x")
    SIZE = _STATE.size

    __slots__ = ("_at", "_counted", "_kept", "_memory", "_rest", "lost")

    def __init__(self, counted: bytes, memory: "memoryview | bytearray", at: int) -> None:
        """Count messages whose first two bytes, taken as an index, are marked in `counted`."""
        self._counted = counted
        self._memory = memory
        self._at = at
        self._rest, self.lost, size, kept = self._STATE.unpack_from(memory, at)
        self._kept: bytes = kept[:size]

    def detach(self) -> None:
        self._memory, self._at = bytearray(self.SIZE), 0

    @property
    def amid_block(self) -> bool:
        """Whether more bytes of a block have to come."""
        return bool(self._rest or self._kept)

    def lose(self) -> None:
        """Give up: this direction can't be followed any more."""
        self.lost = True
        self._save()

    def count(self, view: memoryview) -> int:
        """Return how many counted messages begin in these bytes."""
        length = len(view)
        if length >= _HEAD.size and not self._rest and not self._kept:
            # A chunk is nearly always one whole block. Then this is the whole cost.
            flags: int
            size, messages, flags = _HEAD.unpack_from(view)
            if size + HEADER.size == length and messages == 1:
                return self._counted[flags << 8 | (view[_SECOND] if size > 1 else 0)]
        return self._count(view)

    def _count(self, view: memoryview) -> int:
        count = 0
        position, length = self._rest, len(view)
        while position < length and not self.lost:
            begin = position - len(self._kept)
            head = self._kept + view[position : begin + _SECOND + 1]
            # As long as the header isn't complete, two bytes are expected after it: no head needs more.
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
        self._save()
        return count

    def _save(self) -> None:
        self._STATE.pack_into(self._memory, self._at, self._rest, self.lost, len(self._kept), self._kept)


_COUNT = struct.Struct("=q")
_pack_count = _COUNT.pack_into


class Calls:
    """Counts the calls of a session's client that are under way, from the bytes that are forwarded.

    If a client ends without a call under way, a probe sees all that it has left behind. If it ends amid a call, the
    office may go on working for it and, for example, show the document that it loads later.

    The count is the client's requests, other than releases, less the office's replies. The heads of the blocks are
    enough for that, because binaryurp and Java put one message into a block (writer.cxx, urp.java). Calls from the
    office to the client do not matter.

    An error is always on one side: a call seems to be under way. A block of several messages can't be followed, because
    only a method's signature tells where a message ends; nor can anything that is not URP. A oneway call without a
    reply, which only a Java client can be told to make ("ForceSynchronous=0"), stays under way.

    The state is kept in memory of `SIZE` bytes, so that it can outlive the process: another `Calls` on the same memory
    goes on where this one was. Memory of zeros is a session of which no byte has passed. The methods return with the
    state up to date; within them it is not consistent.
    """

    SIZE = _COUNT.size + 2 * _Heads.SIZE

    def __init__(self, memory: "memoryview | bytearray | None" = None, at: int = 0) -> None:
        """Go on from the state in `memory` from `at` on, and keep it there; None for memory of its own."""
        self._memory = bytearray(at + self.SIZE) if memory is None else memory
        self._at = at
        self._count: int = _COUNT.unpack_from(self._memory, at)[0]
        self._requests = _Heads(_CALLS, self._memory, at + _COUNT.size)
        self._replies = _Heads(_REPLIES, self._memory, at + _COUNT.size + _Heads.SIZE)

    @property
    def followed(self) -> bool:
        """Whether all bytes so far could be followed. Once False, it stays so."""
        return not (self._requests.lost or self._replies.lost)

    @property
    def under_way(self) -> bool:
        """Whether a request of the client may still wait for its reply: always, if the bytes could not be followed."""
        return self._count != 0 or not self.followed

    @property
    def amid_block(self) -> bool:
        """Whether the client has sent the beginning of a block and not its end."""
        return self._requests.amid_block

    def to_office(self, view: memoryview) -> None:
        """Take note of bytes from the client, in their order."""
        if count := self._requests.count(view):
            self._count += count
            _pack_count(self._memory, self._at, self._count)

    def to_client(self, view: memoryview) -> None:
        """Take note of bytes from the office, in their order, and after the client's bytes that they answer."""
        if count := self._replies.count(view):
            self._count -= count
            _pack_count(self._memory, self._at, self._count)
            if self._count < 0:
                self._replies.lose()

    def lose(self) -> None:
        """Take note that bytes have passed that were not seen: from now on a call may always be under way."""
        self._requests.lose()

    def detach(self) -> None:
        """Leave the memory to somebody else, and go on in memory of its own."""
        self._memory, self._at = bytearray(_COUNT.size), 0
        self._requests.detach()
        self._replies.detach()
