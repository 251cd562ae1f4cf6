#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""One session that finds out, from the office's side, whether it is alone there.

    exclusive.py [--host H] [--port P] NUMBER DIRECTORY

It has the office tell its pid, and holds a lock of that name in DIRECTORY for as long as it talks to the office: a
second client of the same office finds the lock taken. It opens a spreadsheet named after NUMBER and has the office list
its documents again and again: another's would be among them. It has the office calculate something that depends on
NUMBER. Prints one line, "NUMBER PID ok", and appends it to DIRECTORY/sessions; anything else is an error, status 1.
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
    """The documents that are open in the office."""
    found = []
    components = desktop.getComponents().createEnumeration()
    while components.hasMoreElements():
        found.append(str(components.nextElement().Title))
    return found


def session(context: Any, number: int, mine: str) -> None:
    """Open, calculate, look round, close; RuntimeError if anything is not as it has to be."""
    desktop = create(context, "com.sun.star.frame.Desktop")
    if before := titles(desktop):
        raise RuntimeError(f"{mine} found {before}")
    document = desktop.loadComponentFromURL("private:factory/scalc", "_blank", 0, properties(Hidden=True))
    document.setTitle(mine)
    sheet = document.Sheets.getByIndex(0)
    for row in range(ROUNDS):
        sheet.getCellByPosition(0, row).setValue(number + row)
        sheet.getCellByPosition(1, row).setFormula(f"=A{row + 1}*A{row + 1}")
        if sheet.getCellByPosition(1, row).getValue() != (number + row) ** 2:
            raise RuntimeError(f"{mine} got a wrong answer")
        if titles(desktop) != [mine]:
            raise RuntimeError(f"{mine} is not alone: {titles(desktop)}")
    document.close(True)


def main() -> int:
    """Run one session."""
    parser = argparse.ArgumentParser(description="See whether a session is alone in its office.")
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
