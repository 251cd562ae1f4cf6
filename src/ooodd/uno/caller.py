# SPDX-License-Identifier: LGPL-2.1-or-later
"""A conversation of a client that comes through ooodd's port: it speaks first, and it may be refused. Sans-IO.

It begins as pyuno and the C++ library do, with a request for protocol properties.
"""

import struct
from typing import TypeVar

from ooodd.uno import conversation, urp, wire

_Value = TypeVar("_Value")

_TID = b".UrpProtocolPropertiesTid"
_TYPE, _OID = "com.sun.star.bridge.XProtocolProperties", "UrpProtocolProperties"
# The lowest number, so that the office's properties win. A refusal has no properties and lets the client choose.
_LEAST = struct.pack(">i", -(2**31))
_REQUEST_CHANGE, _COMMIT_CHANGE = 4, 5


def _protocol_request(function: int, values: bytes) -> bytes:
    """Return a block with a request for protocol properties. Such requests have no current context."""
    tid = bytes([len(_TID)]) + _TID + b"\xff\xff"
    head = bytes([urp.FIRST_REQUEST, function])
    message = head + wire.interface_type(_TYPE) + wire.reference(_OID) + tid + values
    return urp.HEADER.pack(len(message), 1) + message


OPENING = _protocol_request(_REQUEST_CHANGE, _LEAST)
_COMMIT = _protocol_request(_COMMIT_CHANGE, b"\1" + wire.text("CurrentContext") + b"\0")


class Caller(conversation.Conversation[_Value]):
    """A conversation, to be begun by sending OPENING."""

    def __init__(self, turns: "conversation.Turns[_Value]") -> None:
        """Take the calls to make."""
        super().__init__(turns)
        # The text of ooodd's refusal, or of another exception; empty if there was none.
        self.refused = ""
        # Whether an office has answered. Only an office sends a request for protocol properties, a refusal does not.
        self.office_greeted = False
        self._protocol_replies = 0

    @property
    def greeted(self) -> bool:
        """Whether the other side has replied to the opening."""
        return self._protocol_replies > 0

    @property
    def done(self) -> bool:
        """Whether the conversation has ended."""
        return bool(self.refused) or self.result is not None

    def _take(self) -> bytes:
        message = self._reader.message()
        if isinstance(message, wire.Request):
            self.office_greeted = True
            return self._take_request(message)
        if message.tid == _TID:
            return self._take_protocol_reply()
        if message.is_exception:
            # The rest of the exception is not needed, and nothing follows it.
            self.refused = self._reader.exception()
            self._reader.begin(b"")
            return b""
        self._take_reply(message)
        return b"" if self._unanswered else self._next_turn()

    def _take_protocol_reply(self) -> bytes:
        self._protocol_replies += 1
        if self._protocol_replies > 1:
            return self._next_turn()
        return _COMMIT if self._reader.number(4) == 1 else b""
