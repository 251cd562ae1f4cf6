#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that connect with the libraries that LibreOffice has for this, without a resolver of their own.

    officehelper_client.py [--host H] [--port P] {officehelper,scriptforge}

- officehelper (package python3-uno): its ``bootstrap`` always starts an office with a pipe of its own and takes no
  address. Programs on a server copy its second half: up to 20 tries to resolve, with half a second between them. It
  tries again after NoConnectException only; any other error ends the client.
- scriptforge (package libreoffice-common) takes host and port: ``ScriptForge(hostname=, port=)``. Its services are
  LibreOffice's own Basic library, which runs in the office (DisableMacrosExecution does not prevent that). It writes
  two "used" lines: ConvertToUrl of the service Basic, which is a Python macro in the office, and BuildPath of
  FileSystem.

It writes "connected", and then "used" with an answer of the office.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import uno
from client import Steps, add_address, connect, create, error_line, leave

LIBREOFFICE_PROGRAM = "/usr/lib/libreoffice/program"
"""The directory of scriptforge.py. python3-uno puts only uno.py into Python's path."""
TRIES = 20
BETWEEN_TRIES = 0.5


def officehelper(host: str, port: int) -> Any:
    """Resolve as officehelper.bootstrap does after it has started its office."""
    for left in reversed(range(TRIES)):
        try:
            return connect(host, port)
        except uno.getClass("com.sun.star.connection.NoConnectException"):
            if not left:
                raise
            time.sleep(BETWEEN_TRIES)  # the client under test sleeps, the test does not
    return None


def use_officehelper(host: str, port: int, step: Steps) -> None:
    """Connect, and create the Desktop."""
    context = officehelper(host, port)
    step("connected")
    step("used", said=create(context, "com.sun.star.frame.Desktop").ImplementationName)


def use_scriptforge(host: str, port: int, step: Steps) -> None:
    """Connect. Call a Python service of ScriptForge, and one in the office's Basic."""
    sys.path.append(LIBREOFFICE_PROGRAM)
    from scriptforge import CreateScriptService, ScriptForge

    ScriptForge(hostname=host, port=port)
    step("connected")
    basic = CreateScriptService("Basic")
    step("used", said=basic.ConvertToUrl("/tmp/x"), service="Basic")
    files = CreateScriptService("FileSystem")
    step("used", said=files.BuildPath("/tmp", "x"), service="FileSystem")


def main() -> int:
    """Run the client that the argument names."""
    parser = argparse.ArgumentParser(description="Connect as users of officehelper or ScriptForge do.")
    add_address(parser)
    clients = {"officehelper": use_officehelper, "scriptforge": use_scriptforge}
    parser.add_argument("client", choices=clients)
    arguments = parser.parse_args()
    try:
        clients[arguments.client](arguments.host, arguments.port, Steps(None, None))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - UNO's exceptions, and scriptforge exits when refused
        print(error_line(error), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    leave(main())
