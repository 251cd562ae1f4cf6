# SPDX-License-Identifier: LGPL-2.1-or-later
"""The directory of an office's pipe, /run/ooodd-worker/N.

It is the only place of the machine that an office could fill. So it belongs to the broker, and the office may write to
it, by its group, only until the pipe stands. Only then comes the first client. From then on nobody but the broker gets
to the pipe: not the members of the group either.
"""

import shutil
import time
from contextlib import suppress
from pathlib import Path

from ooodd.errors import StartError

# RuntimeDirectory= of ooodd.service.
PARENT = Path("/run/ooodd-worker")
_WRITABLE, _GUARDED = 0o770, 0o700


def of(number: int) -> Path:
    """Return the directory of a worker."""
    return PARENT / str(number)


def make(number: int) -> None:
    """Make the directory, empty and writable for the office, or raise `StartError`.

    What can't be removed, such as that of an office of version 0.2, is put aside. It goes with the parent.
    """
    path = of(number)
    try:
        remove(number)
        with suppress(FileNotFoundError):
            path.rename(path.with_name(f"left-{path.name}-{time.monotonic_ns()}"))
        path.mkdir()
        path.chmod(_WRITABLE)
    except OSError as error:
        hint = f"look at {PARENT}; systemctl restart ooodd.service makes it anew"
        raise StartError(f"no directory for the pipe ({error.strerror})", hint) from error


def guard(number: int) -> None:
    """Let nobody else in, now that the pipe stands."""
    with suppress(OSError):  # of an office of version 0.2, it belongs to that office
        of(number).chmod(_GUARDED)


def remove(number: int) -> None:
    """Remove the directory, as far as it can be."""
    shutil.rmtree(of(number), ignore_errors=True)
