# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the first bytes of a UNO client tell: whose turn it is before its first call, and which process it is. Sans-IO.

Before anything else both sides agree on properties of the protocol. Each asks the other for a change, with a random
number, and answers 1 to the greater number. Whoever has got the 1 commits the change. Only then comes the client's
first call. So between the answers and the commit nobody waits for a reply, and the answer tells whose turn it is
(binaryurp/source/bridge.cxx; com/sun/star/lib/uno/protocols/urp for Java).

A UNO client names the calling thread in its requests. The name has a part that is the same for all threads of a process
and for no other process. C++ and pyuno: four bytes of the thread, and then the 16 bytes of `rtl_getGlobalProcessId`
(cppu/source/threadpool/threadident.cxx). Java: "java:", a key of the process, ":", and a number (ThreadId.java of
com.sun.star.lib.uno.environments.remote). The first requests are about the protocol itself; their thread has no such
name.

Nobody may rely on it: a client can claim to be any process. ooodd only uses it to be patient with a client.
"""

import struct

from ooodd.errors import ProtocolError
from ooodd.uno.wire import Blocks, Reader, Reply

_CPP_THREAD, _CPP_SIZE = 4, 20
_JAVA = b"java:"
# Beyond so many bytes nothing is looked for. A client's first call is within its first kilobyte.
_MOST = 8192
# The value of a reply to requestChange by which the other side commits.
_YOURS = struct.pack(">i", 1)


class OpeningReader:
    """Reads a client's bytes, from the first on, until its first call."""

    def __init__(self) -> None:
        """Know nothing yet."""
        # What is the same for all connections of the process; empty if that is not known.
        self.process = b""
        # Whether the first call has come, or nothing more is to be found.
        self.done = False
        # Whether the client has left it to the office to commit the properties, and has not seen that done.
        self.office_commits = False
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
                if isinstance(message, Reply):
                    self.office_commits = not self.office_commits and block.endswith(_YOURS)
                elif not message.of_protocol:
                    self.process, self.done = process_of_thread(message.tid), True
                    return
        except ProtocolError:
            self.done = True
        self.done = self.done or self._left < 0

    def client_owes(self, *, amid_block: bool, office_waits: bool, client_waits: bool) -> bool:
        """Return whose turn it is before the first call: True for the client's, False for the office's.

        The client has sent a part of a block; the office waits for a reply of the client; the client for one of the
        office. If none of it is so, the client has to go on, unless the office is to commit the properties.
        """
        return amid_block or office_waits or not (client_waits or self.office_commits)


def process_of_thread(tid: bytes) -> bytes:
    """Return the part of a thread's name that all threads of its process share; empty if the name has none."""
    if tid.startswith(_JAVA):
        return tid.rpartition(b":")[0]
    return tid[_CPP_THREAD:] if len(tid) == _CPP_SIZE else b""
