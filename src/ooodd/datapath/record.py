# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is known of a session's bytes, in memory that can outlive the process.

A broker that is killed leaves its sessions to the next one. That one can go on with a session only if no byte of it was
in the memory of the dead process alone. And it has to know which calls are under way, for it has not seen the bytes
that tell. So both are kept in shared memory: a hold for each direction, and the state of `Calls`.

The law: whenever no hold is set, the state of the calls is that of all bytes that have been passed on. So a direction
sets its hold before it receives, and clears it after it has sent the bytes and counted their calls. A kill may come at
any time in between.

Layout: a byte for the hold of each direction, 6 bytes unused, and then `Calls.SIZE` bytes. Numbers are in native order,
for the memory never leaves the machine. Memory of zeros is a session of which no byte has passed.
"""

from ooodd.uno.urp import Calls

_CALLS_AT = 8


class Record:
    """One session's record. It keeps nothing outside its memory, so there may be several on the same memory."""

    SIZE = _CALLS_AT + Calls.SIZE
    # The places of the holds in the memory. Each byte is 0 or 1.
    TO_OFFICE = 0
    TO_CLIENT = 1

    def __init__(self, memory: "memoryview | bytearray | None" = None) -> None:
        """Use `SIZE` bytes of memory, with what they say of the session so far; None for new memory of its own."""
        self.memory = bytearray(self.SIZE) if memory is None else memory
        if len(self.memory) != self.SIZE:
            raise ValueError(f"a record has {self.SIZE} bytes, not {len(self.memory)}")

    @property
    def holding(self) -> bool:
        """Whether the process holds, or a dead one may have held, bytes of the session that nobody else has."""
        return bool(self.memory[self.TO_OFFICE] or self.memory[self.TO_CLIENT])

    def calls(self) -> Calls:
        """Return the session's calls, as the memory has them; they keep their state there from now on."""
        return Calls(self.memory, _CALLS_AT)

    def forget_calls(self) -> None:
        """Take note that bytes have passed that nobody has followed. A `Forwarding` that exists already is not told."""
        self.calls().lose()
