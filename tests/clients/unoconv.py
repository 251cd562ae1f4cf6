#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Debian's unoconv against a port, and never with an office of its own.

    unoconv.py [--host H] [--port P] SOURCE TARGET.pdf

What it takes is ``--no-launch`` (-n): without it unoconv 0.7 starts its own soffice whenever it cannot connect, with
the very same --accept. With it, "cannot connect" is exit status 113. Its default address is 127.0.0.1:2002, so plain
``unoconv -n -f pdf x.odt`` reaches the office there.

- It connects with ``socket,host=H,port=P,tcpNoDelay=1;urp;StarOffice.ComponentContext``, once, and with no time limit.
- It loads by path (file://), so SOURCE is the office's path too. It stores by path as well, or with --stdout over the
  connection, which is what TARGET "-" does here. Its --stdin fails with a TypeError in Python 3.
- It closes the document and never disposes the connection.
- For a document that the office returns None for, the exit status is 5 and the text is on standard error.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

PYTHON = "/usr/bin/python3"
UNOCONV = "/usr/bin/unoconv"
"""Named with its interpreter: its own first line takes whichever python3 is first in PATH, which may be without uno."""

NOT_CONNECTED = 113
"""unoconv's exit status if nothing accepts and it may start nothing."""


def command(host: str, port: int, source: Path, target: Path) -> list[str]:
    """The command that converts SOURCE to TARGET, which may be "-", standard output."""
    output = "--stdout" if str(target) == "-" else f"--output={target}"
    options = ["--no-launch", f"--server={host}", f"--port={port}", "--format=pdf", output]
    return [PYTHON, UNOCONV, *options, str(source)]


def main() -> int:
    """Run unoconv, and pass its exit status on."""
    parser = argparse.ArgumentParser(description="Run unoconv against a port.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=2002)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    convert = command(arguments.host, arguments.port, arguments.source, arguments.target)
    return subprocess.run(convert, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
