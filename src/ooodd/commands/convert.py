# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ooodd convert`: convert documents through the port, as any client."""

import argparse
from pathlib import Path

from ooodd import config
from ooodd.commands.common import Subparsers, default_address, parse_address, parse_time, runtime_directory
from ooodd.control.client import call
from ooodd.convert.plan import parse_format, plan
from ooodd.convert.run import Settings, convert
from ooodd.errors import OooddError, UsageError


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser("convert", help="convert documents through the port")
    parser.add_argument("files", nargs="+", metavar="FILE", help='a document, or "-" for standard input')
    parser.add_argument("-f", "--format", default="pdf", metavar="FORMAT", help="the extension of the new files, or "
                        "EXTENSION:FILTER (%(default)s)")  # fmt: skip
    parser.add_argument("-o", "--output", metavar="PATH", help='a directory, the file for a single document, or "-" '
                        "for standard output; by default beside each document")  # fmt: skip
    parser.add_argument("--filter-options", default="", metavar="TEXT", help="FilterOptions of the export filter")
    parser.add_argument("--password-file", type=Path, metavar="FILE", help="the documents' password is its first line")
    parser.add_argument("-j", "--jobs", type=int, metavar="N", help="how many at once (as many as there are workers)")
    parser.add_argument("--timeout", metavar="TIME", help='how long each may take, e.g. "5min" (no limit)')
    parser.add_argument("--address", default=default_address(), metavar="HOST:PORT",
                        help="where ooodd listens (%(default)s; OOODD_ADDRESS)")  # fmt: skip
    parser.add_argument("--runtime-directory", type=Path, default=None, help=argparse.SUPPRESS)
    parser.set_defaults(command=_convert)


def _convert(options: argparse.Namespace) -> int:
    wanted = parse_format(options.format)
    jobs = plan(options.files, options.output, wanted)
    host, port = parse_address(options.address)
    try:
        password = options.password_file.read_text().partition("\n")[0] if options.password_file else ""
    except OSError as error:
        raise UsageError(f"{options.password_file}: {error.strerror}", "name a readable file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{options.password_file}: {error.reason}", "write the password in UTF-8") from error
    return convert(
        jobs,
        Settings(
            address=f"socket,host={host},port={port},tcpNoDelay=1",
            extension=wanted.extension,
            filter=wanted.filter,
            filter_options=options.filter_options,
            password=password,
            lanes=options.jobs or _workers(options),
            timeout=parse_time("--timeout", options.timeout) if options.timeout else None,
        ),
    )


def _workers(options: argparse.Namespace) -> int:
    """Return how many workers the pool has. Who may not ask it assumes the default."""
    try:
        return int(call(runtime_directory(options), "Status")["config"]["pool"]["workers"])
    except OooddError:
        return config.Config().pool.workers
