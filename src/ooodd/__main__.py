# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one command, ooodd(8)."""

import argparse
import os
import sys
from collections.abc import Sequence

from ooodd import __version__
from ooodd.commands import check_config, convert, internal, metrics, orders, ping, run, status, top
from ooodd.errors import OooddError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 1 for what went wrong, 2 for usage, 78 for configuration."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except OooddError as error:
        print(f"ooodd: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:  # of `ooodd status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ooodd", description="A pool of LibreOffice workers behind one UNO port.")
    parser.add_argument("--version", action="version", version=f"ooodd {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (run, status, top, ping, convert, orders, check_config, internal, metrics):
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
