# SPDX-License-Identifier: LGPL-2.1-or-later
"""Refusal: how a client that gets no office is told so in its own language.

A client that finds its connection closed can tell its user no more than that. So it gets what an office could have
answered: a `com.sun.star.uno.RuntimeException`, which every method may raise, as the reply to its first request, the
one for the office's component context. Its own library makes an exception with our text of it.

Before that, the client's library wants to agree on properties of the protocol, and sends nothing else until it has.
ooodd gives way, and has no wish of its own: binaryurp (pyuno, C++) and Java don't wait for one (bridge.cxx, urp.java).
"""

from ooodd.errors import ProtocolError
from ooodd.uno.urp import RELEASE
from ooodd.uno.wire import Blocks, Reader, Reply, accept_property, exception_reply

_EXCEPTION = "com.sun.star.uno.RuntimeException"


class Refusal:
    """The office's side of one conversation with a client, in which there is no office. Sans-IO."""

    def __init__(self, message: str) -> None:
        """Prepare to answer with this text."""
        # The exception has been handed out: send what `receive` returned, and close.
        self.done = False
        self._message = message
        self._blocks = Blocks()
        self._reader = Reader()

    def receive(self, data: bytes) -> bytes:
        """Take what the client sent, in pieces of any size; return what is to be sent to it, which may be nothing.

        Raises `ProtocolError` for what is no URP, or more of it than a client sends before its first request; then
        the connection is good for nothing but closing. What comes once it is done is not looked at.
        """
        if self.done:
            return b""
        answer = b""
        for messages, block in self._blocks.feed(data):
            self._reader.begin(block)
            for _ in range(messages):
                answer += self._answer()
                if self.done:
                    return answer
            self._reader.end()
        return answer

    def _answer(self) -> bytes:
        """Read a message and return the answer to it. The values of the one that is refused need not be read."""
        message = self._reader.message()
        if isinstance(message, Reply):
            raise ProtocolError("a reply to what was never asked")
        if message.of_protocol:
            return accept_property(message, self._reader)
        if message.function == RELEASE:
            return b""
        self.done = True
        return exception_reply(message.tid, _EXCEPTION, self._message)
