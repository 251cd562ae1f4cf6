# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a client is told that gets no office.

It is the text of a com.sun.star.uno.RuntimeException, so the client's program shows it. The journal gets the same text.
"""

from ooodd.pool.actions import Reason

REFUSALS = {
    Reason.KICKED: "ooodd: an administrator has sent this client away; try again later",
    Reason.CLOSING: "ooodd: the service is stopping or restarting; try again in a moment",
    Reason.QUEUE_FULL: "ooodd: all {workers} workers are busy and {queued} clients wait already ([queue] max_clients)",
    Reason.HOST_FULL: "ooodd: all {workers} workers are busy and {max_per_host} clients of {host} wait already "
    "([queue] max_per_host)",
    Reason.USER_FULL: "ooodd: all {workers} workers are busy and {max_per_user} clients of {owner} wait already "
    "([queue] max_per_user)",
    Reason.SHARE_FULL: "ooodd: all {workers} workers are busy and clients of {owner} take half of the queue "
    "([queue] max_clients)",
    Reason.NOT_ALLOWED: "ooodd: {objection}",
    Reason.WAITED_TOO_LONG: "ooodd: none of the {workers} workers became free within {timeout:g} s ([queue] timeout); "
    "try again later",
    Reason.WAITS_FOR_ITSELF: "ooodd: this client waits for itself: sessions of {owner} hold all {workers} workers, and "
    "nothing moves on them; end one of them first, or raise [pool] workers above {workers}",
    Reason.NO_OFFICE: "ooodd: no office can be started: {start_error}",
    Reason.NO_DESCRIPTOR: "ooodd: no file descriptor is left; try again later, or raise LimitNOFILE= of ooodd.service",
}


# Of those the pause is the cause.
WHILE_PAUSED = {
    Reason.QUEUE_FULL: "ooodd: the service is paused, and {queued} clients wait already ([queue] max_clients)",
    Reason.HOST_FULL: "ooodd: the service is paused, and {max_per_host} clients of {host} wait already "
    "([queue] max_per_host)",
    Reason.USER_FULL: "ooodd: the service is paused, and {max_per_user} clients of {owner} wait already "
    "([queue] max_per_user)",
    Reason.SHARE_FULL: "ooodd: the service is paused, and clients of {owner} take half of the queue "
    "([queue] max_clients)",
    Reason.WAITED_TOO_LONG: "ooodd: the service is paused, and this client has waited for {timeout:g} s "
    "([queue] timeout); try again later",
}


def text(reason: Reason, *, paused: bool = False, **fields: object) -> str:
    """Return the text for the reason, with its fields filled in. Fields that it does not name are ignored."""
    template = WHILE_PAUSED.get(reason, REFUSALS[reason]) if paused else REFUSALS[reason]
    return template.format_map(fields)
