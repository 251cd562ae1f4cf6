# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ooodd status`: what the running broker does. The exit status is for monitoring."""

import argparse
import json
import os
import sys
from typing import Any

from ooodd.commands.common import Subparsers, add_runtime_directory, runtime_directory
from ooodd.control.client import call
from ooodd.control.table import table

_WELL, _IMPAIRED, _DOES_NOT_SERVE = 0, 1, 2


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser("status", help="show workers, queue and totals")
    parser.add_argument("--json", action="store_true", help="for programs")
    add_runtime_directory(parser)
    parser.set_defaults(command=_status)


def _status(options: argparse.Namespace) -> int:
    answer = call(runtime_directory(options), "Status")
    if options.json:
        print(json.dumps(answer, indent=2))
    else:
        print(table(answer, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    return health(answer)


def health(status: dict[str, Any]) -> int:
    """Return 0 if all is well, 1 if clients are served but something is wrong, 2 if no client gets an office."""
    if status["paused"] or status["draining"] or status["start_error"]:
        return _DOES_NOT_SERVE
    failed = any(worker["state"] == "failed" for worker in status["workers"])
    return _IMPAIRED if failed or status["warnings"] else _WELL
