#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A program that runs for long and does one job after the other, as web applications and job queues do.

    jobs.py [--jobs N] [--threads N] [--pause SECONDS]

Each job makes a connection, opens a document, writes into it and closes it. Nothing is disposed: pyuno keeps each
connection for the rest of the process. Each job writes a line: for how long it waited for its office, and the office's
process. With --pause the program keeps its first connection instead, calls it again after each pause, and makes a new
one whenever it has been ended.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from typing import Any

from client import add_address, connect, create, error_line, leave, properties

_printing = threading.Lock()


def report(**facts: object) -> None:
    """Write a line."""
    with _printing:
        print(json.dumps(facts), flush=True)


def work(context: Any) -> None:
    """Open a document, write into it and close it."""
    desktop = create(context, "com.sun.star.frame.Desktop")
    document = desktop.loadComponentFromURL("private:factory/swriter", "_blank", 0, properties(Hidden=True))
    document.Text.String = "a job"
    document.close(True)


def jobs(arguments: argparse.Namespace) -> None:
    """Do the jobs of one thread."""
    kept = []
    for number in range(arguments.jobs):
        begun = time.monotonic()
        context = connect(arguments.host, arguments.port)
        waited = time.monotonic() - begun
        work(context)
        kept.append(context)
        report(step="job", number=number, waited=waited)


def stay(arguments: argparse.Namespace) -> None:
    """Use one connection again and again, and make a new one whenever it has been ended."""
    context = connect(arguments.host, arguments.port)
    for number in range(arguments.jobs):
        try:
            work(context)
        except Exception as error:  # noqa: BLE001 - pyuno's exceptions have no common class
            report(step="ended", number=number, error=type(error).__name__)
            context = connect(arguments.host, arguments.port)
            work(context)
        report(step="job", number=number)
        time.sleep(arguments.pause)


def main() -> None:
    """Do all jobs, and end without the cleanup of pyuno."""
    parser = argparse.ArgumentParser()
    add_address(parser)
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pause", type=float)
    arguments = parser.parse_args()
    failed = []

    def run() -> None:
        try:
            (jobs if arguments.pause is None else stay)(arguments)
        except Exception as error:  # noqa: BLE001
            failed.append(error)
            print(error_line(error), flush=True)

    if arguments.threads > 1:  # pyuno learns types at their first use, and not safely in several threads
        jobs(argparse.Namespace(**{**vars(arguments), "jobs": 1}))
    threads = [threading.Thread(target=run) for _ in range(arguments.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    leave(1 if failed else 0)


if __name__ == "__main__":
    main()
