#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A crowd of clients at once, from one process, and what became of each.

    crowd.py [--connect-first] HOLDERS CLIENTS REFUSED

It goes on with each line of standard input, and tells with a line of JSON on standard output how that ended:

1. HOLDERS clients have an office each, and keep it: "holding". They come from 127.0.0.2, lest the crowd be told that it
   waits for itself.
2. CLIENTS more come, all at once. Each speaks as soon as it is connected; with --connect-first all connect before the
   first speaks, which is more than the kernel keeps from ooodd until they speak. "waiting" when REFUSED of them have
   ended, with what they were told, how often, and who ended otherwise.
3. The holders leave, and each of the crowd that has an office's first word talks with it and leaves: "served", with the
   names of these clients in the order in which they heard it, and who ended otherwise.
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
from talk import OPENING, Connection, Talk, listen_to

HOLDERS_HOST = "127.0.0.2"


class Crowd:
    """All clients but the holders."""

    def __init__(self, refused: int, *, connect_first: bool) -> None:
        self.refusals: Counter[str] = Counter()
        self.served: list[str] = []
        self.wrong: list[str] = []
        self._refused = refused
        self._connect_first = connect_first
        self.all_refused = asyncio.Event()
        if not refused:
            self.all_refused.set()

    async def be_one(self) -> None:
        """Be one client, to its end."""
        async with Connection(first_words=b"" if self._connect_first else OPENING) as connection:
            try:
                if self._connect_first:
                    await connection.send(OPENING)
                await self._talk(connection)
            except (OSError, EOFError, ProtocolError) as error:
                self.wrong.append(f"{connection.name} after {connection.received} bytes: {error!r}")
        if self.refusals.total() + len(self.wrong) >= self._refused:
            self.all_refused.set()

    async def _talk(self, connection: Connection) -> None:
        talk = Talk(1)
        first = await listen_to(connection, talk)
        if talk.office_greeted:
            self.served.append(connection.name)
        answer = first
        while answer:
            await connection.send(answer)
            answer = await listen_to(connection, talk)
        if talk.refused:
            self.refusals[talk.refused] += 1
        elif not (talk.findings and talk.findings.clean):
            self.wrong.append(f"{connection.name}: {talk.findings}")


async def converse(connection: Connection) -> None:
    """Have one conversation that is not refused."""
    talk = Talk(1)
    answer = OPENING
    while answer:
        await connection.send(answer)
        answer = await listen_to(connection, talk)
    if not talk.findings:
        raise RuntimeError(talk.refused)


def tell(step: str, **facts: object) -> None:
    print(json.dumps({"step": step, **facts}), flush=True)


async def order() -> None:
    """Wait for a line."""
    await asyncio.to_thread(sys.stdin.readline)


async def main(holders: int, clients: int, refused: int, *, connect_first: bool) -> None:
    """Be the crowd."""
    async with AsyncExitStack() as stack:
        holding = [await stack.enter_async_context(Connection(HOLDERS_HOST)) for _ in range(holders)]
        for connection in holding:
            await converse(connection)
        tell("holding")
        await order()
        crowd = Crowd(refused, connect_first=connect_first)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(clients):
                tasks.create_task(crowd.be_one())
            await asyncio.sleep(0)  # each has begun
            await crowd.all_refused.wait()
            tell("waiting", refusals=crowd.refusals, wrong=crowd.wrong)
            await order()
            await stack.aclose()
        tell("served", served=crowd.served, wrong=crowd.wrong, refused=crowd.refusals.total())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Be a crowd of clients.")
    parser.add_argument("--connect-first", action="store_true")
    for name in ("holders", "clients", "refused"):
        parser.add_argument(name, type=int)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(main(**vars(parser.parse_args())))
