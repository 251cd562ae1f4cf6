# SPDX-License-Identifier: LGPL-2.1-or-later
"""A conversation of a client that comes through ooodd's port: it speaks first, and it may be refused. Sans-IO.

It begins as pyuno and the C++ library do, with a request for protocol properties.
"""

from typing import TypeVar

from ooodd.uno import conversation, wire

_Value = TypeVar("_Value")

# The lowest number, so that the office's properties win. A refusal has no properties and lets the client choose.
OPENING = wire.request_change(-(2**31))


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
        if wire.is_about_properties(message):
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
        return wire.commit_change() if self._reader.number(4) == 1 else b""
