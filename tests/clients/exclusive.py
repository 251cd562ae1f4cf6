#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""One session that checks whether it has its office to itself.

    exclusive.py [--host H] [--port P] NUMBER DIRECTORY

It asks the office for its pid, and holds a lock file with this pid in DIRECTORY during the session. A second client of
the same office finds the lock file. It opens a spreadsheet with NUMBER in its title and lists the documents of the
office several times: a document of another client would be among them. It lets the office calculate a result that
depends on NUMBER. It appends one line, "NUMBER PID ok", to DIRECTORY/sessions. Any deviation is an error, status 1.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from client import add_address, connect, create, leave, properties
from convert import office_pid

ROUNDS = 10


def titles(desktop: Any) -> list[str]:
    """Return the titles of the documents that are open in the office."""
    found = []
    components = desktop.getComponents().createEnumeration()
    while components.hasMoreElements():
        found.append(str(components.nextElement().Title))
    return found


def session(context: Any, number: int, title: str) -> None:
    """Open, calculate, list the documents, close. Raise RuntimeError for any deviation."""
    desktop = create(context, "com.sun.star.frame.Desktop")
    if before := titles(desktop):
        raise RuntimeError(f"{title} found {before}")
    document = desktop.loadComponentFromURL("private:factory/scalc", "_blank", 0, properties(Hidden=True))
    document.setTitle(title)
    sheet = document.Sheets.getByIndex(0)
    for row in range(ROUNDS):
        sheet.getCellByPosition(0, row).setValue(number + row)
        sheet.getCellByPosition(1, row).setFormula(f"=A{row + 1}*A{row + 1}")
        if sheet.getCellByPosition(1, row).getValue() != (number + row) ** 2:
            raise RuntimeError(f"{title} got a wrong answer")
        if titles(desktop) != [title]:
            raise RuntimeError(f"{title} is not alone: {titles(desktop)}")
    document.close(True)


def main() -> int:
    """Run one session."""
    parser = argparse.ArgumentParser(description="Check whether a session has its office to itself.")
    add_address(parser)
    parser.add_argument("number", type=int)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    context = connect(arguments.host, arguments.port)
    pid = office_pid(context)
    lock = arguments.directory / f"office-{pid}"
    os.close(os.open(lock, os.O_CREAT | os.O_EXCL))  # FileExistsError: two clients in one office
    session(context, arguments.number, f"client {arguments.number}")
    lock.unlink()
    with (arguments.directory / "sessions").open("a") as sessions:
        sessions.write(f"{arguments.number} {pid} ok\n")
    return 0


if __name__ == "__main__":
    leave(main())
