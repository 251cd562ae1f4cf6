#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Calls at the moment at which ooodd ends a session for a client that waits.

    shots.py [--host H] [--port P] [--clients 8] [--shots 1000] [--quiet 0.1] DIRECTORY

More clients than ooodd has workers have one session after the other. In each, a client is quiet for about --quiet
seconds (`[session] reclaim_after`), and then makes one call, which has the office make the directory DIRECTORY/N. When
the session was ended before, the next call comes sooner, else later. So all are close to the end.

A line of JSON for each: the shot's number, for how long the session was quiet, and whether the call was answered.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import struct
import sys
import time
from pathlib import Path

from client import add_address, connect, create, leave

# By how much the next call is sooner or later, and how far each is scattered, in seconds.
STEP = 0.001
SCATTER = 0.005
# How often a session is begun for a shot.
TRIES = 20


class Aim:
    """For how long the next session is quiet before its call. All clients share it."""

    def __init__(self, quiet: float) -> None:
        self._memory = mmap.mmap(-1, 8)
        self._set(quiet)

    def _get(self) -> float:
        return float(struct.unpack("d", self._memory[:])[0])

    def _set(self, quiet: float) -> None:
        self._memory[:] = struct.pack("d", quiet)

    def take(self) -> float:
        """Return a time close to it."""
        return self._get() + random.uniform(-SCATTER, SCATTER)

    def learn(self, *, answered: bool) -> None:
        """Move it towards the end of a session: to later calls as long as they are answered."""
        self._set(self._get() + (STEP if answered else -STEP))


def shoot(number: int, aim: Aim, arguments: argparse.Namespace) -> None:
    """Have one session with one call, and exit."""
    files = create(connect(arguments.host, arguments.port), "com.sun.star.ucb.SimpleFileAccess")
    here = f"file://{arguments.directory}"
    if not files.isFolder(here):
        raise FileNotFoundError(here)
    began = time.monotonic()
    quiet = aim.take()
    time.sleep(max(0.0, began + quiet - time.monotonic()))  # the shot's own time, not a wait for something
    after = time.monotonic() - began
    try:
        files.createFolder(f"{here}/{number}")
        answered = True
    except Exception:  # noqa: BLE001 - a UNO exception has no base class of Python's but Exception
        answered = False
    aim.learn(answered=answered)
    line = json.dumps({"shot": number, "quiet": after, "answered": answered})
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


def client(numbers: range, aim: Aim, arguments: argparse.Namespace) -> None:
    """Have one session after the other, each in a process of its own.

    On a busy machine a session may end before its shot. Then the shot is made in another one.
    """
    for number in numbers:
        for _ in range(TRIES):
            child = os.fork()
            if not child:
                random.seed(number)
                shoot(number, aim, arguments)
                leave(0)
            if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
                break


def main() -> int:
    """Start the clients and wait for them."""
    parser = argparse.ArgumentParser(description="Call at the moment at which sessions are ended.")
    add_address(parser)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--shots", type=int, default=1000)
    parser.add_argument("--quiet", type=float, default=0.1)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    aim = Aim(arguments.quiet)
    children = []
    for first in range(arguments.clients):
        child = os.fork()
        if not child:
            client(range(first, arguments.shots, arguments.clients), aim, arguments)
            leave(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
