# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the configuration says about the pool and the queue."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sections [pool] and [queue], and one key of [session]. Times are in seconds, memory in bytes; None: no limit."""

    workers: int
    min_workers: int
    spare_workers: int
    max_uses: int
    max_uses_jitter: int
    max_age: float | None = None
    max_memory: int | None = None
    idle_timeout: float | None = None
    probe_interval: float | None = None
    max_clients: int
    max_per_host: int | None = None
    max_per_user: int | None = None
    queue_timeout: float
    # For how long a session has to be quiet before a client of the same owner may get its place; None for ever.
    reclaim_after: float | None = None
    # How many offices may be starting at the same time: as many as there are CPUs.
    starts: int
    # The shortest back-off is systemd's own RestartSec=100ms; the longest is what one waits at most after a repair.
    back_off_first: float = 0.1
    back_off_most: float = 30.0
