#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Many clients at work at once, each session a process of its own, as load for tests.

    herd.py [--host H] [--port P] [--clients 6] [--sessions N] [--rounds 1] DIRECTORY

Every client has one session after the other, N of them or until the end of standard input. A session is what
exclusive.py does, --rounds times: it finds out whether it is alone in its office. Its processes are forks of this one,
which has loaded UNO but not used it yet, and so cost milliseconds.

Each line on standard output is JSON with the session's number and the time (CLOCK_MONOTONIC): "begin" before it
connects, "connected" when it has an office, "office" with the office's pid, "end" with the error, empty if all went
well; a session that was ended by a signal has that for an error. "connected" and "end" also tell the session's port,
0 for none, and "connected" when it had dialled, before it had said a word.
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
    """Write a line as a whole, whoever else writes."""
    line = json.dumps({"session": number, "event": event, "time": time.monotonic(), **facts})
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


def work(number: int, arguments: argparse.Namespace) -> None:
    """Have one session, in a process of its own; doesn't return."""
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


def member(first: int, arguments: argparse.Namespace, stop: int) -> None:
    """Have one session after the other."""
    for number in count(first, arguments.clients):
        told, _, _ = select.select([stop], [], [], 0)
        if told or (arguments.sessions and number >= arguments.clients * arguments.sessions):
            return
        child = os.fork()
        if not child:
            work(number, arguments)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            tell(number, "end", error=signal.Signals(os.WTERMSIG(status)).name)


def main() -> int:
    """Let the members work, and wait for them."""
    parser = argparse.ArgumentParser(description="Have many sessions, several at a time.")
    add_address(parser)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--sessions", type=int, default=0, help="of each client; without, until standard input ends")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    stop, stopper = os.pipe()
    members = []
    for first in range(arguments.clients):
        child = os.fork()
        if not child:
            os.close(stopper)
            member(first, arguments, stop)
            leave(0)
        members.append(child)
    if not arguments.sessions:
        sys.stdin.read()
        os.close(stopper)
    for child in members:
        os.waitpid(child, 0)
    return 0


if __name__ == "__main__":
    leave(main())
