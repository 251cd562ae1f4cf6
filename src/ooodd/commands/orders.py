# SPDX-License-Identifier: LGPL-2.1-or-later
"""The commands by which an administrator has the running broker do something."""

import argparse
from collections.abc import Callable

from ooodd.commands.common import Subparsers, add_runtime_directory, runtime_directory
from ooodd.control.client import call
from ooodd.errors import UsageError


def add(commands: Subparsers) -> None:
    """Add the commands."""
    recycle = _add(commands, "recycle", _recycle, "replace offices: idle ones now, others after their session")
    recycle.add_argument("worker", metavar="N|all", help="the worker's number")
    recycle.add_argument("--wait", action="store_true", help="return when all of them have been replaced")

    kick = _add(commands, "kick", _kick, "end a session at once, or send a client away that waits")
    kick.add_argument("session", metavar="SESSION", help="its number, as `ooodd status` shows it")

    _add(commands, "pause", _pause, "give no client a worker from now on; sessions go on")
    _add(commands, "resume", _resume, "end the pause")

    drain = _add(commands, "drain", _drain, "end the broker and its offices when the last session has ended")
    drain.add_argument("--wait", action="store_true", help="return when the broker has ended")

    _add(commands, "stop", _stop, "end the broker with its sessions and offices, at once")
    _add(commands, "reload", _call_only("Reload"), None)  # for ExecReload= of ooodd.service
    _add(commands, "outdate", _call_only("Outdate"), None)  # for dpkg's trigger


def _add(
    commands: Subparsers, name: str, command: Callable[[argparse.Namespace], int], text: str | None
) -> argparse.ArgumentParser:
    """Add a command; without a text it is not listed."""
    parser: argparse.ArgumentParser = commands.add_parser(name, **({} if text is None else {"help": text}))
    add_runtime_directory(parser)
    parser.set_defaults(command=command)
    return parser


def _call_only(method: str) -> Callable[[argparse.Namespace], int]:
    def command(options: argparse.Namespace) -> int:
        call(runtime_directory(options), method)
        return 0

    return command


def _recycle(options: argparse.Namespace) -> int:
    worker = None if options.worker == "all" else _number(options.worker, "worker", 'a number, or "all"')
    asked = {"worker": worker, "wait": options.wait}
    done = call(runtime_directory(options), "Recycle", asked, wait=options.wait)
    numbers = ", ".join(map(str, done["workers"])) or "none, as no office runs"
    print(f"{'recycled' if options.wait else 'recycled now, or after their session'}: {numbers}")
    return 0


def _kick(options: argparse.Namespace) -> int:
    session = _number(options.session, "session", "the number of a session, as `ooodd status` shows it")
    done = call(runtime_directory(options), "Kick", {"session": session})
    print(f"sent away: {done['client']}")
    return 0


def _pause(options: argparse.Namespace) -> int:
    call(runtime_directory(options), "Pause")
    print("paused: sessions go on, new clients wait within the limits of [queue]. To go on: ooodd resume")
    return 0


def _resume(options: argparse.Namespace) -> int:
    call(runtime_directory(options), "Resume")
    print("resumed")
    return 0


def _stop(options: argparse.Namespace) -> int:
    call(runtime_directory(options), "Stop")
    print("ooodd stops. Where ooodd.socket is active, the next client starts it again (systemctl stop ooodd.socket).")
    return 0


def _drain(options: argparse.Namespace) -> int:
    call(runtime_directory(options), "Drain", until_end=options.wait)
    print(
        "ooodd has ended; new clients wait in the socket."
        if options.wait
        else "ooodd ends when the last session has, or after [session] drain_timeout; new clients wait in the socket."
    )
    return 0


def _number(text: str, what: str, wanted: str) -> int:
    if not text.isdecimal():
        raise UsageError(f'"{text}" is no {what}', f"give {wanted}")
    return int(text)
