# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which process a UNO client is, as far as its bytes tell. Sans-IO.

A UNO client names the calling thread in its requests. The name has a part that is the same for all threads of a process
and for no other process. C++ and pyuno: four bytes of the thread, and then the 16 bytes of `rtl_getGlobalProcessId`
(cppu/source/threadpool/threadident.cxx). Java: "java:", a key of the process, ":", and a number (ThreadId.java of
com.sun.star.lib.uno.environments.remote). The first requests are about the protocol itself; their thread has no such
name.

Nobody may rely on it: a client can claim to be any process. ooodd only uses it to be patient with a client.
"""

from ooodd.errors import ProtocolError
from ooodd.uno.wire import Blocks, Reader, Request

_CPP_THREAD, _CPP_SIZE = 4, 20
_JAVA = b"java:"
# Beyond so many bytes nothing is looked for. A client's first call is within its first kilobyte.
_MOST = 8192


class ProcessReader:
    """Reads a client's bytes, from the first on, until they have told its process."""

    def __init__(self) -> None:
        """Know nothing yet."""
        # What is the same for all connections of the process; empty if that is not known.
        self.process = b""
        # Whether there is nothing more to be found.
        self.done = False
        self._left = _MOST
        self._blocks = Blocks()
        self._reader = Reader()

    def feed(self, view: memoryview) -> None:
        """Take the client's next bytes. Never raises: what can't be read tells nothing."""
        self._left -= len(view)
        try:
            for _, block in self._blocks.feed(bytes(view[: _MOST + 1])):
                self._reader.begin(block)
                message = self._reader.message()
                if isinstance(message, Request) and not message.of_protocol:
                    self.process, self.done = process_of_thread(message.tid), True
                    return
        except ProtocolError:
            self.done = True
        self.done = self.done or self._left < 0


def process_of_thread(tid: bytes) -> bytes:
    """Return the part of a thread's name that all threads of its process share; empty if the name has none."""
    if tid.startswith(_JAVA):
        return tid.rpartition(b":")[0]
    return tid[_CPP_THREAD:] if len(tid) == _CPP_SIZE else b""
