# SPDX-License-Identifier: LGPL-2.1-or-later
"""Refusal: a UNO exception that tells a client why it gets no office.

A client whose connection is only closed can tell its user nothing more than that. So ooodd sends what an office could
have sent: a `com.sun.star.uno.RuntimeException`, which every method may raise, as the reply to the client's first
request, the one for the office's component context. The client's library raises it as an exception with our text.

Before that, the library wants to agree on properties of the protocol, and sends nothing else until that is done. ooodd
leaves the choice to it and proposes nothing: binaryurp (pyuno, C++) and Java don't wait for a proposal (bridge.cxx,
urp.java).
"""

from ooodd.errors import ProtocolError
from ooodd.uno.urp import RELEASE
from ooodd.uno.wire import Blocks, Reader, Reply, accept_property, exception_reply

_EXCEPTION = "com.sun.star.uno.RuntimeException"


class Refusal:
    """The office's side of one conversation with a client that gets no office. Sans-IO."""

    def __init__(self, message: str) -> None:
        """Prepare to refuse the client with this text."""
        # Whether the exception is among what `receive` has returned: send that, and close.
        self.done = False
        self._message = message
        self._blocks = Blocks()
        self._reader = Reader()

    def receive(self, data: bytes) -> bytes:
        """Take bytes from the client, in pieces of any size; return the bytes to send to it, which may be none.

        Raises `ProtocolError` for bytes that are not URP, and for more than a client sends before its first request.
        The connection is then good only for closing. Once the refusal is done, all bytes are ignored.
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
        """Read a message and return the reply to it. The values of the refused request need not be read."""
        message = self._reader.message()
        if isinstance(message, Reply):
            raise ProtocolError("a reply to what was never asked")
        if message.of_protocol:
            return accept_property(message, self._reader)
        if message.function == RELEASE:
            return b""
        self.done = True
        return exception_reply(message.tid, _EXCEPTION, self._message)
