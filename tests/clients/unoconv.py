#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Debian's unoconv with a port, without an office of its own.

    unoconv.py [--host H] [--port P] SOURCE TARGET.pdf

It needs ``--no-launch`` (-n). Without that option, unoconv 0.7 starts its own soffice with the same --accept when it
cannot connect. With it, the exit status is then 113. Its default address is 127.0.0.1:2002, so plain ``unoconv -n -f
pdf x.odt`` connects to that port.

- It connects once with ``socket,host=H,port=P,tcpNoDelay=1;urp;StarOffice.ComponentContext``, without a time limit.
- It loads by path (file://), so SOURCE must be the same path for the office. It stores by path too, or with --stdout
  over the connection; TARGET "-" does that here. Its --stdin fails with a TypeError in Python 3.
- It closes the document and never disposes the connection.
- If the office returns None for a document, the exit status is 5 and standard error has the text.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

PYTHON = "/usr/bin/python3"
UNOCONV = "/usr/bin/unoconv"
"""Run with a named interpreter: its first line takes the first python3 in PATH, which may not have uno."""

NOT_CONNECTED = 113
"""unoconv's exit status if it can't connect and may not start an office."""


def command(host: str, port: int, source: Path, target: Path) -> list[str]:
    """Return the command that converts SOURCE to TARGET. TARGET "-" is standard output."""
    output = "--stdout" if str(target) == "-" else f"--output={target}"
    options = ["--no-launch", f"--server={host}", f"--port={port}", "--format=pdf", output]
    return [PYTHON, UNOCONV, *options, str(source)]


def main() -> int:
    """Run unoconv and return its exit status."""
    parser = argparse.ArgumentParser(description="Run unoconv with a port.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=2002)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    convert = command(arguments.host, arguments.port, arguments.source, arguments.target)
    return subprocess.run(convert, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
