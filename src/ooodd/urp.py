# SPDX-License-Identifier: LGPL-2.1-or-later
"""The UNO Remote Protocol, as far as a broker has to know it: what a client's first bytes look like.

A block is its size and its number of messages, two big-endian 32-bit numbers, and then the messages. The first message
of a connection is a request with a long header that names its type, object and thread in full, for there is nothing yet
that a cache could abbreviate. All five bits of its flags are therefore set, whoever the client is. Source: "UNO Remote
Protocol" specification; binaryurp/source/marshal.cxx, com/sun/star/lib/uno/protocols/urp.
"""

import struct

# Block header and the flags of the first message.
OPENING_SIZE = 9
# A first block is some hundred bytes; anything that names more than this is no client, whatever it is.
_MOST_BYTES = 64 * 1024
_MOST_MESSAGES = 64
# LONGHEADER | REQUEST | NEWTYPE | NEWOID | NEWTID
_FIRST_FLAGS = 0xF8


def is_opening(data: bytes) -> bool | None:
    """Return whether a connection that begins with `data` can be URP; None if it takes more bytes to tell."""
    if len(data) < OPENING_SIZE:
        # The size is below 2^24, so the very first byte tells most of what isn't URP.
        return False if data[:1].strip(b"\0") else None
    size, messages, flags = struct.unpack_from(">IIB", data)
    return bool(0 < size <= _MOST_BYTES and 0 < messages <= _MOST_MESSAGES and flags & _FIRST_FLAGS == _FIRST_FLAGS)
