# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pool: every decision about workers and the queue. Pure: no socket, no bus, no clock.

- `pool`: the events, and what each does.
- `workers`: the states of a worker, every transition, and the workers in the orders that the pool asks for.
- `lifecycle`: what each transition does to a worker, to the totals, and which action follows.
- `sizing`: how many workers are needed; which one is started, leased, probed, recycled or stopped.
- `admission`: the queue; who may wait, and who is refused.
- `backoff`: when a failed start is tried again, and when clients are told.
- `actions`: what the pool asks the broker to do, and why. `limits`: what the configuration says.
"""
