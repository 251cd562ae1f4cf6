#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that are killed while they load a document, and what the next client of the same office finds.

    abandon.py [--host H] [--port P] [--tries 30] [--within 1.5] [--stay 3] [--every 10] SOURCE

Each try has two clients. The first begins to load SOURCE, and a timer kills it after a random time of at most --within
seconds. The tries alternate between hidden and visible, and between path and stream. The second client connects at
once and lists the open documents of its office. In some tries it lists them again after --stay seconds.

Each try writes one line of JSON to standard output: the pids of the two clients' offices, how the first client loaded,
how long it lived after that, whether it had "loaded" by then, and the documents found at once and later.

A seed makes the times the same in each run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import sys
from pathlib import Path
from typing import Any

from client import add_address, connect, create, error_line, input_stream, leave, properties
from convert import office_pid
from exclusive import titles


def fork(output: int, arguments: argparse.Namespace, role: Any, *more: object) -> int:
    """Fork a client that connects and then calls `role`. Return its pid."""
    child = os.fork()
    if child:
        return child
    try:
        role(connect(arguments.host, arguments.port), output, *more)
    except Exception as error:  # noqa: BLE001 - a UNO exception has no base class of Python's but Exception
        os.write(output, error_line(error).encode() + b"\n")
    leave(0)
    return 0


def load_and_die(context: Any, output: int, source: Path, hidden: bool, stream: bool, seconds: float) -> None:
    """Begin to load, and be killed after the given time."""
    os.write(output, json.dumps({"first": office_pid(context)}).encode() + b"\n")
    desktop = create(context, "com.sun.star.frame.Desktop")
    options: dict[str, object] = {"Hidden": hidden}
    if stream:
        options["InputStream"] = input_stream(context, source)
    url = "private:stream" if stream else source.resolve().as_uri()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    desktop.loadComponentFromURL(url, "_blank", 0, properties(**options))
    os.write(output, b'{"loaded": true}\n')
    signal.pause()


def list_documents(context: Any, output: int, stay: float) -> None:
    """List the open documents, at once and later."""
    desktop = create(context, "com.sun.star.frame.Desktop")
    facts: dict[str, object] = {"second": office_pid(context), "found": titles(desktop), "later": []}
    if stay:
        select.select([], [], [], stay)  # no event tells when a document appears
        facts["later"] = titles(desktop)
    os.write(output, json.dumps(facts).encode() + b"\n")


def attempt(number: int, seconds: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Make one try and return its result."""
    hidden, stream = number % 2 == 0, number % 4 in (1, 2)
    stay = arguments.stay if number % arguments.every == 0 else 0.0
    facts: dict[str, Any] = {"try": number, "hidden": hidden, "stream": stream, "lived": round(seconds, 3)}
    facts |= {"stayed": stay, "loaded": False}
    for role, more in ((load_and_die, (arguments.source, hidden, stream, seconds)), (list_documents, (stay,))):
        reading, writing = os.pipe()
        child = fork(writing, arguments, role, *more)
        os.close(writing)
        os.waitpid(child, 0)
        with os.fdopen(reading) as lines:
            for line in lines:
                facts |= json.loads(line)
    return facts


def main() -> int:
    """Make all tries."""
    parser = argparse.ArgumentParser(description="Kill clients while they load, and list what they left open.")
    add_address(parser)
    parser.add_argument("--tries", type=int, default=30)
    parser.add_argument(
        "--within", type=float, default=1.5, help="the longest time that a first client lives, in seconds"
    )
    parser.add_argument("--stay", type=float, default=3.0, help="how long some second clients stay, in seconds")
    parser.add_argument("--every", type=int, default=10, help="one of this many second clients stays")
    parser.add_argument("--seed", type=int, default=2004)
    parser.add_argument("source", type=Path)
    arguments = parser.parse_args()
    times = random.Random(arguments.seed)
    for number in range(1, arguments.tries + 1):
        print(json.dumps(attempt(number, times.uniform(0.001, arguments.within), arguments)), flush=True)
    return 0


if __name__ == "__main__":
    sys.stdin.close()
    leave(main())
