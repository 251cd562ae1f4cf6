#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""One program with several connections at once, which it uses in turn, as report engines and conversion daemons do.

    three_connections.py [--host H] [--port P] [--connections 3] SOURCE DIRECTORY

Step "connected" has the pid of each connection's office. Then it loads the document through each connection, then
stores it through each ("stored", one line for each), then closes it. --hold and --die are as in convert.py.

If there are fewer offices than connections, such a program waits for itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from client import Steps, add_address, connect, create, error_line, leave, properties
from convert import facts, office_pid, store


def run(arguments: argparse.Namespace, step: Steps) -> None:
    """Open all connections, load all documents, store all, close all."""
    contexts = []
    for number in range(arguments.connections):
        contexts.append(connect(arguments.host, arguments.port))
        step("connection", number=number)
    step("connected", pids=[office_pid(context) for context in contexts])
    documents = []
    for context in contexts:
        desktop = create(context, "com.sun.star.frame.Desktop")
        url = arguments.source.resolve().as_uri()
        documents.append(desktop.loadComponentFromURL(url, "_blank", 0, properties(Hidden=True)))
    step("loaded")
    for number, document in enumerate(documents):
        target = arguments.directory / f"{arguments.source.stem}-{number}.pdf"
        store(document, target, by_path=False)
        step("stored", **facts(target))
    for document in documents:
        document.close(True)
    step("closed")


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(description="Convert one document through several connections at once.")
    add_address(parser)
    parser.add_argument("--connections", type=int, default=3)
    parser.add_argument("--hold", metavar="STEP", help="wait at this step for a line on standard input")
    parser.add_argument("--die", metavar="STEP", help="kill the program at this step")
    parser.add_argument("source", type=Path)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    try:
        run(arguments, Steps(arguments.hold, arguments.die))
    except Exception as error:  # noqa: BLE001 - a UNO exception has no base class of Python's but Exception
        print(error_line(error), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    leave(main())
