#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A crowd of clients at once, from one process, and the outcome of each.

    crowd.py [--connect-first] HOLDERS CLIENTS REFUSED

It has three steps. Each line of standard input starts the next one, and each step ends with a line of JSON on standard
output:

1. "holding": HOLDERS clients have an office each, and keep it. They come from 127.0.0.2. If they came from the crowd's
   host, the crowd would be refused because it waits for itself.
2. "waiting": CLIENTS more have connected at once, and REFUSED of them have ended. The line has the texts of the
   refusals with their number, and the clients that ended in another way. Each client sends its first bytes as soon as
   it is connected. With --connect-first, all connect before the first one sends: more connections than DeferAcceptSec=
   holds back.
3. "served": the holders have left, and each client of the crowd that got an office has had a conversation with it and
   left. The line has the names of these clients in the order in which their offices answered, and the clients that
   ended in another way.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
from collections import Counter
from contextlib import AsyncExitStack

from ooodd.errors import ProtocolError
from talk import OPENING, Connection, Talk, receive_until_answer

HOLDERS_HOST = "127.0.0.2"


class Crowd:
    """All clients except the holders."""

    def __init__(self, refused: int, *, connect_first: bool) -> None:
        self.refusals: Counter[str] = Counter()
        self.served: list[str] = []
        self.failed: list[str] = []
        self._refused = refused
        self._connect_first = connect_first
        self.all_refused = asyncio.Event()
        if not refused:
            self.all_refused.set()

    async def run_client(self) -> None:
        """Run one client to its end."""
        async with Connection(first_bytes=b"" if self._connect_first else OPENING) as connection:
            try:
                if self._connect_first:
                    await connection.send(OPENING)
                await self._talk(connection)
            except (OSError, EOFError, ProtocolError) as error:
                self.failed.append(f"{connection.name} after {connection.received} bytes: {error!r}")
        if self.refusals.total() + len(self.failed) >= self._refused:
            self.all_refused.set()

    async def _talk(self, connection: Connection) -> None:
        talk = Talk(1)
        first = await receive_until_answer(connection, talk)
        if talk.office_greeted:
            self.served.append(connection.name)
        answer = first
        while answer:
            await connection.send(answer)
            answer = await receive_until_answer(connection, talk)
        if talk.refused:
            self.refusals[talk.refused] += 1
        elif not (talk.result and talk.result.clean):
            self.failed.append(f"{connection.name}: {talk.result}")


async def converse(connection: Connection) -> None:
    """Have one conversation. Raise RuntimeError if it is refused."""
    talk = Talk(1)
    answer = OPENING
    while answer:
        await connection.send(answer)
        answer = await receive_until_answer(connection, talk)
    if not talk.result:
        raise RuntimeError(talk.refused)


def write_step(step: str, **facts: object) -> None:
    print(json.dumps({"step": step, **facts}), flush=True)


async def wait_for_line() -> None:
    """Wait for a line of standard input."""
    await asyncio.to_thread(sys.stdin.readline)


async def main(holders: int, clients: int, refused: int, *, connect_first: bool) -> None:
    """Run the three steps."""
    async with AsyncExitStack() as stack:
        holding = [await stack.enter_async_context(Connection(HOLDERS_HOST)) for _ in range(holders)]
        for connection in holding:
            await converse(connection)
        write_step("holding")
        await wait_for_line()
        crowd = Crowd(refused, connect_first=connect_first)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(clients):
                tasks.create_task(crowd.run_client())
            await asyncio.sleep(0)  # now each has begun
            await crowd.all_refused.wait()
            write_step("waiting", refusals=crowd.refusals, wrong=crowd.failed)
            await wait_for_line()
            await stack.aclose()
        write_step("served", served=crowd.served, wrong=crowd.failed, refused=crowd.refusals.total())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run a crowd of clients.")
    parser.add_argument("--connect-first", action="store_true")
    for name in ("holders", "clients", "refused"):
        parser.add_argument(name, type=int)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(main(**vars(parser.parse_args())))
