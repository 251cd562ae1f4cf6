# SPDX-License-Identifier: LGPL-2.1-or-later
"""Failed starts: when to try again, and when to tell the clients that no office can be started."""

from dataclasses import dataclass
from math import inf
from random import Random

from ooodd.pool.limits import Limits

# Clients are told when starting has failed for so many seconds, about five quick tries, and no worker is in service.
START_ERROR_AFTER = 3.0


@dataclass
class BackOff:
    """Counts the starts that failed in a row, of all workers together."""

    limits: Limits
    random: Random
    failures: int = 0
    # When the first of them began, and until when no worker is started while none is in service.
    failing_since: float = -inf
    hold_until: float = -inf

    def start_failed(self, began: float, now: float) -> None:
        """Count one more failure, of a start that began at `began`."""
        if not self.failures:
            self.failing_since = began
        self.failures += 1
        self.hold_until = now + self.delay(self.failures)

    def start_succeeded(self) -> None:
        """Forget the failures."""
        self.failures = 0

    def lasts_too_long(self, now: float) -> bool:
        """Whether clients should be told that no office can be started."""
        return now - self.failing_since >= START_ERROR_AFTER

    def delay(self, failures: int) -> float:
        """Return how long to wait after so many failures: twice as long after each one.

        The delay is random within 25 %, so that workers that failed together are not all tried again together.
        """
        longest = self.limits.back_off_first * 2.0 ** min(failures - 1, 20)
        return min(longest, self.limits.back_off_most) * self.random.uniform(0.75, 1.25)
