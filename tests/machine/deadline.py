# SPDX-License-Identifier: LGPL-2.1-or-later
"""Wait for what the outside offers no event for. Where there is one (the journal, a bus signal, a pipe), use that."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

PERIOD = 0.02
"""Seconds between two looks."""


def until(look: Callable[[], Value], timeout: float, what: str) -> Value:
    """Look until ``look`` returns something true, and return that.

    :param timeout: in seconds; at least two looks are made.
    :param what: completes the error's sentence "waited 5 s for ...".
    :raises TimeoutError: with ``what`` and the last value seen.
    """
    deadline = time.monotonic() + timeout
    while not (value := look()):
        if time.monotonic() >= deadline:
            value = look()
            if value:
                break
            raise TimeoutError(f"waited {timeout:g} s for {what}; last seen: {value!r}")
        time.sleep(PERIOD)
    return value
