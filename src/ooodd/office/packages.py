# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether dpkg is replacing LibreOffice now. An office of mixed files fails, or serves a client and fails later.

dpkg notes the state of each package before it touches the package's files: in `status`, and first in a file of its own
below `updates`. So an office is started only if each package of LibreOffice is installed. A package can stay as it is
when dpkg has failed; so only while somebody holds one of dpkg's locks, as apt does from the first package to the last.

All of that can be read by every user. As long as nothing has changed, a look costs a stat(2) and an empty directory.
"""

import os
import re
import sys
from pathlib import Path

# Debian's packages, and those of the Document Foundation.
_PACKAGE = re.compile(
    rb"^Package: ((?:libreoffice|libobasis|libuno-|python3-uno|uno-libs|ure$)\S*)\n(?:(?:Essential|Protected):.*\n)*"
    rb"Status: \S+ \S+ (\S+)$",
    re.MULTILINE,
)
_TOUCHED = {b"half-installed", b"unpacked", b"half-configured"}
_LOCKS = ("lock-frontend", "lock")
# The inode of a lock that is held, as proc_locks(5) has it; a line with "->" is one that is waited for.
_LOCKED = re.compile(r"^\d+: (?!->).* [0-9a-f]+:[0-9a-f]+:(\d+) \S+ \S+$", re.MULTILINE)
# How often to read again if a file is replaced amid the reading.
_TRIES = 5

# The time and the inode of `status`, and the names in `updates`.
_Signature = tuple[int, int, tuple[str, ...]]


class Packages:
    """LibreOffice's packages, as dpkg knows them."""

    def __init__(self, dpkg: Path = Path("/var/lib/dpkg"), locks: Path = Path("/proc/locks")) -> None:
        """Take the directory of dpkg's database, and the kernel's list of locks."""
        self._dpkg = dpkg
        # As text: each client is looked at, and to make paths takes longer than to look.
        self._status, self._updates = str(dpkg / "status"), str(dpkg / "updates")
        self._locks = locks
        self._read: _Signature | None = None
        self._touched = ""

    def unpacking(self) -> str:
        """Return the name of a package of LibreOffice that is being installed or removed, or an empty text."""
        for _ in range(_TRIES):
            try:
                signature = self._signature()
                if signature != self._read:
                    self._touched = self._look(signature[2])
                    if self._signature() != signature:
                        continue
                    self._read = signature
                return self._touched if self._touched and self._is_locked() else ""
            except FileNotFoundError:
                continue
            except OSError:
                return ""
        return ""  # there is no dpkg

    def _signature(self) -> _Signature:
        status = os.stat(self._status)  # noqa: PTH116
        updates = sorted(name for name in os.listdir(self._updates) if name.isdecimal())  # noqa: PTH208
        return status.st_mtime_ns, status.st_ino, tuple(updates)

    def _look(self, updates: tuple[str, ...]) -> str:
        states: dict[bytes, bytes] = {}
        for path in (self._dpkg / "status", *(self._dpkg / "updates" / name for name in updates)):
            states.update(_PACKAGE.findall(path.read_bytes()))
        return next((name.decode() for name, state in sorted(states.items()) if state in _TOUCHED), "")

    def _is_locked(self) -> bool:
        """Whether a process holds one of dpkg's locks, proc_locks(5).

        The device is not compared: for a file of overlayfs the kernel lists another one.
        """
        inodes = {str((self._dpkg / name).stat().st_ino) for name in _LOCKS if (self._dpkg / name).exists()}
        return not inodes.isdisjoint(_LOCKED.findall(self._locks.read_text()))


if __name__ == "__main__":
    sys.exit(1 if Packages().unpacking() else 0)
