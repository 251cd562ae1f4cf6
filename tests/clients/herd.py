#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Many clients at the same time, as load for tests. Each session is a process of its own.

    herd.py [--host H] [--port P] [--clients 6] [--sessions N] [--rounds 1] DIRECTORY

Every client has one session after the other: N sessions, or until the end of standard input. A session does --rounds
times what exclusive.py does: it checks whether it has its office to itself. Its process is a fork of this one, which
has loaded UNO but has not used it, so it starts within milliseconds.

Each line on standard output is JSON with the session's number and the time (CLOCK_MONOTONIC). "begin": before it
connects. "connected": it has an office. "office": the office's pid. "end": the error, or empty for none; for a session
that a signal ended, the error is the name of the signal. "connected" and "end" also have the session's port (0 for
none). "connected" also has the time at which it had connected and had not sent anything.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
import time
from itertools import count
from pathlib import Path

from client import add_address, begin, dial, leave
from convert import office_pid
from exclusive import session


def tell(number: int, event: str, **facts: object) -> None:
    """Write a line with one write, so that lines of several processes are not mixed."""
    line = json.dumps({"session": number, "event": event, "time": time.monotonic(), **facts})
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


def work(number: int, arguments: argparse.Namespace) -> None:
    """Have one session in this process, and exit."""
    tell(number, "begin")
    port = 0
    try:
        connection, port = dial(arguments.host, arguments.port)
        dialled = time.monotonic()
        context = begin(connection)
        tell(number, "connected", port=port, dialled=dialled)
        pid = office_pid(context)
        tell(number, "office", pid=pid)
        lock = arguments.directory / f"office-{pid}"
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL))  # FileExistsError: two clients in one office
        try:
            for _ in range(arguments.rounds):
                session(context, number, f"client {number}")
        finally:
            lock.unlink()
    except Exception as error:  # noqa: BLE001 - a UNO exception has no base class of Python's but Exception
        name = getattr(error, "typeName", None) or type(error).__name__
        tell(number, "end", port=port, error=f"{name}: {getattr(error, 'Message', error)}")
    else:
        tell(number, "end", port=port, error="")
    leave(0)


def client(first: int, arguments: argparse.Namespace, stop: int) -> None:
    """Have one session after the other."""
    for number in count(first, arguments.clients):
        readable, _, _ = select.select([stop], [], [], 0)
        if readable or (arguments.sessions and number >= arguments.clients * arguments.sessions):
            return
        child = os.fork()
        if not child:
            work(number, arguments)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            tell(number, "end", error=signal.Signals(os.WTERMSIG(status)).name)


def main() -> int:
    """Start the clients and wait for them."""
    parser = argparse.ArgumentParser(description="Have many sessions, several at a time.")
    add_address(parser)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument(
        "--sessions", type=int, default=0, help="of each client; by default until the end of standard input"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    stop, stopper = os.pipe()
    children = []
    for first in range(arguments.clients):
        child = os.fork()
        if not child:
            os.close(stopper)
            client(first, arguments, stop)
            leave(0)
        children.append(child)
    if not arguments.sessions:
        sys.stdin.read()
        os.close(stopper)
    for child in children:
        os.waitpid(child, 0)
    return 0


if __name__ == "__main__":
    leave(main())
