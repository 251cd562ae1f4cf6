# SPDX-License-Identifier: LGPL-2.1-or-later
"""Commands for ooodd's own units, without help: make-profile for start-office and ooodd-profile.service, and more."""

import argparse
import asyncio
import contextlib
import sys
from pathlib import Path

from ooodd import messages
from ooodd.commands.common import Subparsers
from ooodd.journal import SystemdJournal
from ooodd.office.profile import make_profile
from ooodd.systemd.socketfailure import socket_failure


def add(commands: Subparsers) -> None:
    """Add the commands."""
    make = commands.add_parser("make-profile")
    make.add_argument("target", type=Path)
    make.add_argument("program", type=Path)
    make.set_defaults(command=_make_profile)
    # For ooodd-socket-failed.service.
    commands.add_parser("explain-socket-failure").set_defaults(command=_explain_socket_failure)


def _make_profile(options: argparse.Namespace) -> int:
    if report := make_profile(options.target, options.program):
        print(f"<5>{report}", file=sys.stderr)
    return 0


def _explain_socket_failure(_: argparse.Namespace) -> int:
    with contextlib.closing(SystemdJournal("info")) as journal:
        journal.log(messages.SOCKET_FAILED, **asyncio.run(socket_failure()))
    return 0
