#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that vanish while they load a document, and what the next client of the same office finds of it.

    abandon.py [--host H] [--port P] [--tries 30] [--within 1.5] [--stay 3] [--every 10] SOURCE

Each try is two clients. The first begins to load SOURCE, in turn hidden or not and by path or by a stream, and is
killed by a timer at some moment up to --within seconds later, at random. The second connects at once and lists what is
open in its office, after some tries again as late as --stay seconds. One line of JSON a try on standard output: the
pids of the two clients' offices, how the first one loaded, how long it lived after that, whether it had "loaded" by
then, and the documents, at first and later.

A seed makes the moments the same in each run.
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


def fork(report: int, arguments: argparse.Namespace, role: Any, *more: object) -> int:
    """Run a client in a process of its own, which connects and does `role`, and return its pid."""
    child = os.fork()
    if child:
        return child
    try:
        role(connect(arguments.host, arguments.port), report, *more)
    except Exception as error:  # noqa: BLE001 - a UNO exception has no base class of Python's but Exception
        os.write(report, error_line(error).encode() + b"\n")
    leave(0)
    return 0


def vanish(context: Any, report: int, source: Path, hidden: bool, stream: bool, seconds: float) -> None:
    """Begin to load, and be killed at some moment."""
    os.write(report, json.dumps({"first": office_pid(context)}).encode() + b"\n")
    desktop = create(context, "com.sun.star.frame.Desktop")
    options: dict[str, object] = {"Hidden": hidden}
    if stream:
        options["InputStream"] = input_stream(context, source)
    url = "private:stream" if stream else source.resolve().as_uri()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    desktop.loadComponentFromURL(url, "_blank", 0, properties(**options))
    os.write(report, b'{"loaded": true}\n')
    signal.pause()


def look(context: Any, report: int, stay: float) -> None:
    """Look what is open, at once and later."""
    desktop = create(context, "com.sun.star.frame.Desktop")
    facts: dict[str, object] = {"second": office_pid(context), "found": titles(desktop), "later": []}
    if stay:
        select.select([], [], [], stay)  # nobody tells when a document appears
        facts["later"] = titles(desktop)
    os.write(report, json.dumps(facts).encode() + b"\n")


def attempt(number: int, seconds: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Make one try, and say what came of it."""
    hidden, stream = number % 2 == 0, number % 4 in (1, 2)
    stay = arguments.stay if number % arguments.every == 0 else 0.0
    facts: dict[str, Any] = {"try": number, "hidden": hidden, "stream": stream, "lived": round(seconds, 3)}
    facts |= {"stayed": stay, "loaded": False}
    for role, more in ((vanish, (arguments.source, hidden, stream, seconds)), (look, (stay,))):
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
    parser = argparse.ArgumentParser(description="Vanish while loading, and look what is left.")
    add_address(parser)
    parser.add_argument("--tries", type=int, default=30)
    parser.add_argument("--within", type=float, default=1.5, help="the most that a first client lives, in seconds")
    parser.add_argument("--stay", type=float, default=3.0, help="how long some of the second ones stay, in seconds")
    parser.add_argument("--every", type=int, default=10, help="the part of those")
    parser.add_argument("--seed", type=int, default=2004)
    parser.add_argument("source", type=Path)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    for number in range(1, arguments.tries + 1):
        print(json.dumps(attempt(number, moments.uniform(0.001, arguments.within), arguments)), flush=True)
    return 0


if __name__ == "__main__":
    sys.stdin.close()
    leave(main())
