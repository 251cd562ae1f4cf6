#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that connect in the ways of the libraries which LibreOffice ships for it, without a resolver of their own.

    officehelper_client.py [--host H] [--port P] {officehelper,scriptforge}

- officehelper (package python3-uno): its ``bootstrap`` always starts an office with a pipe of its own and takes no
  address. Its users on a server keep its second half: up to 20 tries to resolve, half a second between; only
  NoConnectException is tried again, a refusal of any other kind ends the client.
- scriptforge (package libreoffice-common) takes host and port: ``ScriptForge(hostname=, port=)``. Its services are
  LibreOffice's own Basic library, run in the office (DisableMacrosExecution does not stop that). Two "used" lines:
  ConvertToUrl of its service Basic, which is a Python macro of the office's, and BuildPath of FileSystem.

Tells "connected" and then "used", with something that the office said.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import uno
from client import Steps, add_address, connect, create, error_line, leave

LIBREOFFICE_PROGRAM = "/usr/lib/libreoffice/program"
"""Where scriptforge.py is; python3-uno puts only uno.py into Python's own path."""
TRIES = 20
BETWEEN_TRIES = 0.5


def officehelper(host: str, port: int) -> Any:
    """Resolve as officehelper.bootstrap does, once it has started its office."""
    for left in reversed(range(TRIES)):
        try:
            return connect(host, port)
        except uno.getClass("com.sun.star.connection.NoConnectException"):
            if not left:
                raise
            time.sleep(BETWEEN_TRIES)  # the client under test sleeps, the test does not
    return None


def use_officehelper(host: str, port: int, step: Steps) -> None:
    """Connect, and ask for the list of frames."""
    context = officehelper(host, port)
    step("connected")
    step("used", said=create(context, "com.sun.star.frame.Desktop").ImplementationName)


def use_scriptforge(host: str, port: int, step: Steps) -> None:
    """Connect; call a Python service of ScriptForge's and one that is Basic in the office."""
    sys.path.append(LIBREOFFICE_PROGRAM)
    from scriptforge import CreateScriptService, ScriptForge

    ScriptForge(hostname=host, port=port)
    step("connected")
    basic = CreateScriptService("Basic")
    step("used", said=basic.ConvertToUrl("/tmp/x"), service="Basic")
    files = CreateScriptService("FileSystem")
    step("used", said=files.BuildPath("/tmp", "x"), service="FileSystem")


def main() -> int:
    """Run the client named."""
    parser = argparse.ArgumentParser(description="Connect as officehelper's or ScriptForge's users do.")
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
