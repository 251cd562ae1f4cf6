# SPDX-License-Identifier: LGPL-2.1-or-later
"""The files of /etc of which offices have copies, and when they last changed.

`ooodd-profile.service` makes the copies. A path unit could start it for each change, but systemd does not watch while
the service runs, so a change at the wrong time would go unnoticed. Instead they are looked at before each start of an
office, which takes a millisecond.
"""

import os
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

# The unit that copies them.
UNIT = "ooodd-profile.service"
# As in that unit. Of a directory, what is in it counts too, but not what is deeper.
COPIED = tuple(
    Path("/etc") / name
    for name in (
        *("alternatives", "firebird", "hsqldb.properties", "ld.so.cache", "localtime", "papersize", "timezone"),
        *(f"java-{version}-openjdk" for version in (8, 11, 17, 21, 25)),
    )
)


def changed(paths: Collection[Path] = COPIED, now: float | None = None) -> float:
    """Return when one of these was last changed, in seconds since 1970.

    That one of them is gone shows in the directory that had it. A time in the future, as of a clock that was wrong,
    counts for nothing.
    """
    latest = time.time() if now is None else now
    return max((moment for moment in _changes(paths) if moment <= latest), default=0.0)


def _changes(paths: Collection[Path]) -> Iterator[float]:
    for path in paths:
        with suppress(OSError):
            yield path.lstat().st_ctime
            with os.scandir(path) as entries:
                for entry in entries:
                    yield entry.stat(follow_symlinks=False).st_ctime
    for directory in {path.parent for path in paths}:
        with suppress(OSError):
            yield directory.stat().st_ctime
