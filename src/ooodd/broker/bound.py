# SPDX-License-Identifier: LGPL-2.1-or-later
"""A bound on the clients that cost a descriptor and nothing else: those that are silent, and those that are refused."""

from collections.abc import Callable

from ooodd.broker.client import Client
from ooodd.uno.urp import is_opening


class Bound:
    """Clients in the order in which they came. One more than `limit`, and the oldest is hung up on."""

    def __init__(self, limit: int, report: Callable[[Client], None]) -> None:
        """Take the limit, and what is called with each client that is hung up on."""
        self._limit = limit
        self._report = report
        self._clients: dict[int, Client] = {}

    def __contains__(self, client: Client) -> bool:
        return client.session in self._clients

    def __len__(self) -> int:
        return len(self._clients)

    def add(self, client: Client) -> None:
        """Count a client. The caller calls `remove` when it has gone on."""
        self._clients[client.session] = client
        if len(self._clients) > self._limit:
            oldest = self._clients.pop(next(iter(self._clients)))
            self._report(oldest)
            oldest.hang_up()

    def remove(self, client: Client) -> None:
        """Count a client no more. Does nothing if it has been hung up on, or was never counted."""
        self._clients.pop(client.session, None)

    def hang_up(self) -> None:
        """Hang up on all of them but those whose first bytes have come, and count only these any more."""
        for client in list(self._clients.values()):
            if not is_opening(client.opening()):
                self.remove(client)
                client.hang_up()
