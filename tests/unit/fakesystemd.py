# SPDX-License-Identifier: LGPL-2.1-or-later
"""A fake of systemd's fd store, which handles descriptors as the real one was measured to do."""

import os
import random
from collections.abc import Sequence


class FakeSystemd:
    """A notifier with an fd store. A test calls `pass_on` when a broker ends."""

    def __init__(self) -> None:
        self.stored: list[tuple[str, int]] = []
        self.messages: list[tuple[str, int]] = []
        self.limit = 1000

    def notify(self, state: str, fds: Sequence[int] = ()) -> None:
        assignments = dict(line.split("=", 1) for line in state.split("\n"))
        name = assignments["FDNAME"]
        assert name.isascii()
        assert ":" not in name
        assert len(name) <= 255
        self.messages.append((name, len(fds)))
        if "FDSTORE" in assignments:
            assert assignments["FDPOLL"] == "0"
            for fd in random.sample(fds, len(fds)):
                self._add(name, fd)
        else:
            for entry in [entry for entry in self.stored if entry[0] == name]:
                self.stored.remove(entry)
                os.close(entry[1])

    def _add(self, name: str, fd: int) -> None:
        known = any(os.path.sameopenfile(fd, there) for _, there in self.stored)
        if not known and len(self.stored) < self.limit:
            self.stored.insert(0, (name, os.dup(fd)))

    def pass_on(self) -> dict[int, str]:
        """Give the next process its descriptors, in an arbitrary order."""
        return {os.dup(fd): name for name, fd in random.sample(self.stored, len(self.stored))}

    def names(self) -> set[str]:
        return {name.split("/")[0] for name, _ in self.stored}

    def close(self) -> None:
        for _, fd in self.stored:
            os.close(fd)
