# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ooodd check-config`: whether the configuration can be used."""

import argparse
import sys
from pathlib import Path

from ooodd import config
from ooodd.broker.access import Access
from ooodd.commands.common import Subparsers
from ooodd.office.profile import check_site_settings


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser("check-config", help="say whether the configuration can be used")
    parser.add_argument("file", type=Path, nargs="?", help=f"instead of {config.DEFAULT_PATH}")
    parser.set_defaults(command=_check_config)


def _check_config(options: argparse.Namespace) -> int:
    path = options.file
    access = Access.configured(config.load(path))
    if path is None:
        check_site_settings()
    for line in access.unknown():
        print(f"ooodd: {path or config.DEFAULT_PATH}: {line}", file=sys.stderr)
    absent = path is None and not config.DEFAULT_PATH.exists()
    print(f"{path or config.DEFAULT_PATH}: {'absent, so all defaults' if absent else 'ok'}")
    return 0
