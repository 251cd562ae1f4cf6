# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pool: every decision about workers and the queue. Pure: no socket, no bus, no clock."""
