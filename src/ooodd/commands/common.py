# SPDX-License-Identifier: LGPL-2.1-or-later
"""What several commands have in common: where the running broker is reached, and where it listens."""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from ooodd import config
from ooodd.errors import UsageError

_SYSTEM_RUNTIME_DIRECTORY = Path("/run/ooodd")

# The type of argparse for it has no public name.
Subparsers = Any


def add_runtime_directory(parser: argparse.ArgumentParser) -> None:
    """Add the option for the directory of the control socket."""
    parser.add_argument("--runtime-directory", type=Path, metavar="DIR", default=None, help="where the control socket "
                        "is (/run/ooodd, or one of your own in the foreground)")  # fmt: skip


def runtime_directory(options: argparse.Namespace, *, in_foreground: bool = False) -> Path:
    """Return where the control socket is: as asked, as systemd says, or in the user's own runtime directory."""
    if options.runtime_directory is not None:
        return Path(options.runtime_directory)
    if "RUNTIME_DIRECTORY" in os.environ:  # RuntimeDirectory= of ooodd.service; its first is ours
        return Path(os.environ["RUNTIME_DIRECTORY"].split(":")[0])
    own = Path(os.environ.get("XDG_RUNTIME_DIR", tempfile.gettempdir())) / f"ooodd-{os.getuid()}"
    return own if in_foreground or not _SYSTEM_RUNTIME_DIRECTORY.exists() else _SYSTEM_RUNTIME_DIRECTORY


def default_address() -> str:
    """Return where clients find ooodd, unless they are told otherwise."""
    return os.environ.get("OOODD_ADDRESS", "127.0.0.1:2002")


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port. Raises `UsageError`."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) <= 65535:  # noqa: PLR2004 - 16 bits
        raise UsageError(f'"{text}" is no address', "give HOST:PORT, e.g. 127.0.0.1:2002")
    return host.strip("[]"), int(port)


def parse_time(option: str, text: str) -> float:
    """Return the seconds that an option gives, "5min" for example. Raises `UsageError`."""
    try:
        return config.parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error
