# SPDX-License-Identifier: LGPL-2.1-or-later
"""A copy of a directory, kept up to date while others read it: each file is exchanged whole.

Offices have such a copy of what they need of /etc: with one mount for each file and directory of it, a start would
take longer, and much longer on a machine with hundreds of mounts (docs/design.md). `ooodd-profile.service` runs this:
`python3 -m ooodd.office.mirror SOURCE TARGET [KEPT...]`.
"""

import os
import shutil
import stat
import sys
from collections.abc import Collection
from pathlib import Path

# In the names of files that are being written. What an earlier run has left is removed.
_PREFIX = ".ooodd-new-"


def mirror(source: Path, target: Path, kept: Collection[str] = ()) -> None:
    """Make the directory `target` like `source`. What is named in `kept`, at its top level, stays as it is.

    Files that can't be read are left out: an office could not read them either. An empty file or directory that the
    source doesn't have stays: the system manager makes such a place for what a drop-in binds there. Raises `OSError` if
    the target can't be written; then some files are new and the others as before.
    """
    target.mkdir(exist_ok=True)
    found = set(kept)
    for entry in _entries(source):
        mine = target / entry.name
        if entry.is_dir(follow_symlinks=False):
            if mine.is_symlink() or not mine.is_dir():
                mine.unlink(missing_ok=True)
            mirror(Path(entry.path), mine)
        elif entry.is_symlink():
            _link(Path(entry.path).readlink(), mine)
        elif not entry.is_file() or not _copy(entry, mine):
            continue
        found.add(entry.name)
    for entry in _entries(target):
        if entry.name not in found:
            _remove(entry)


def _entries(directory: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except (FileNotFoundError, PermissionError):
        return []


def _link(destination: Path, mine: Path) -> None:
    if not mine.is_symlink() or mine.readlink() != destination:
        new = mine.with_name(f"{_PREFIX}{mine.name}")
        new.unlink(missing_ok=True)
        new.symlink_to(destination)
        _exchange(new, mine)


def _copy(entry: "os.DirEntry[str]", mine: Path) -> bool:
    """Copy a file, unless the copy has its size, time and mode. Return whether it can be read."""
    try:
        theirs = entry.stat()
        if mine.exists() and _looks(theirs) == _looks(mine.lstat()):
            return True
        content = Path(entry.path).read_bytes()
    except (FileNotFoundError, PermissionError):
        return False
    new = mine.with_name(f"{_PREFIX}{mine.name}")
    new.write_bytes(content)
    new.chmod(stat.S_IMODE(theirs.st_mode))
    os.utime(new, ns=(theirs.st_atime_ns, theirs.st_mtime_ns))
    _exchange(new, mine)
    return True


def _looks(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_mode


def _exchange(new: Path, mine: Path) -> None:
    if mine.is_dir() and not mine.is_symlink():
        shutil.rmtree(mine)
    new.replace(mine)


def _remove(entry: "os.DirEntry[str]") -> None:
    if entry.is_dir(follow_symlinks=False):
        if _entries(Path(entry.path)):
            shutil.rmtree(entry.path)
    elif entry.is_symlink() or entry.stat().st_size or entry.name.startswith(_PREFIX):
        Path(entry.path).unlink()


if __name__ == "__main__":
    mirror(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
