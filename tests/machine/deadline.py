# SPDX-License-Identifier: LGPL-2.1-or-later
"""Wait for a condition for which there is no event. Where there is one (journal, bus signal, pipe), use it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

PERIOD = 0.02
"""Seconds between two looks."""


def until(look: Callable[[], Value], timeout: float, what: str) -> Value:
    """Call ``look`` until it returns something true, and return that.

    :param timeout: in seconds; ``look`` is called at least twice.
    :param what: completes the error's text "waited 5 s for ...".
    :raises TimeoutError: with ``what`` and the last value.
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
