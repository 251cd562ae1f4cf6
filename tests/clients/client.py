# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the pyuno clients here share: the connection, streams of the client, and steps that a test can wait for.

The clients know nothing about ooodd. They do what programs that use LibreOffice have done for twenty years. They need
Debian's /usr/bin/python3, which has python3-uno.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import unohelper
from com.sun.star.beans import PropertyValue
from com.sun.star.io import XInputStream, XOutputStream, XSeekable

import uno

HOST = "127.0.0.1"
PORT = 2002


def add_address(parser: argparse.ArgumentParser) -> None:
    """Add the options for the address of the office."""
    parser.add_argument("--host", default=HOST)
    parser.add_argument("--port", type=int, default=PORT)


def connect(host: str, port: int) -> Any:
    """Open a new connection and return the office's component context. Only the end of the process closes it."""
    local = uno.getComponentContext()
    resolver = local.ServiceManager.createInstanceWithContext("com.sun.star.bridge.UnoUrlResolver", local)
    return resolver.resolve(f"uno:socket,host={host},port={port};urp;StarOffice.ComponentContext")


def dial(host: str, port: int) -> tuple[Any, int]:
    """Open a new connection without sending anything. Return it with its local port."""
    local = uno.getComponentContext()
    connector = local.ServiceManager.createInstanceWithContext("com.sun.star.connection.Connector", local)
    connection = connector.connect(f"socket,host={host},port={port}")
    return connection, own_port(port)


def own_port(port: int) -> int:
    """Return the local port of the connection to that port. UNO's connection reports the remote port for both sides."""
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(descriptor.name))) as found:
            if found.family == socket.AF_INET and found.getpeername()[1] == port:
                return int(found.getsockname()[1])
    raise RuntimeError(f"nothing is connected to port {port}")


def begin(connection: Any) -> Any:
    """Send the first bytes on a connection, and return the office's component context, as `connect` does."""
    local = uno.getComponentContext()
    factory = local.ServiceManager.createInstanceWithContext("com.sun.star.bridge.BridgeFactory", local)
    return factory.createBridge("", "urp", connection, None).getInstance("StarOffice.ComponentContext")


def create(context: Any, service: str) -> Any:
    """Create a service in the office."""
    return context.ServiceManager.createInstanceWithContext(service, context)


def properties(**values: object) -> tuple[Any, ...]:
    """Return UNO property values for loading and storing."""
    return tuple(PropertyValue(name, 0, value, 0) for name, value in values.items())


class Steps:
    """Writes each step of a client as a line of JSON to standard output. A test waits for these lines.

    At step `hold` the client waits for a line or the end of standard input. At step `die` it kills itself.
    """

    def __init__(self, hold: str | None, die: str | None) -> None:
        self.hold = hold
        self.die = die

    def __call__(self, step: str, **facts: object) -> None:
        print(json.dumps({"step": step, **facts}), flush=True)
        if step == self.die:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == self.hold:
            sys.stdin.readline()


def error_line(error: BaseException) -> str:
    """Return the JSON line of an error: the name of the UNO exception and its text."""
    name = getattr(error, "typeName", None) or type(error).__name__
    return json.dumps({"step": "error", "type": name, "message": str(getattr(error, "Message", error))})


def leave(status: int) -> None:
    """Exit without the cleanup of pyuno, which sometimes ends in a segmentation fault. The kernel closes the socket."""
    sys.stdout.flush()
    os._exit(status)


def product_version(context: Any) -> str:
    """The office's version, "7.4.7.2"."""
    provider = create(context, "com.sun.star.configuration.ConfigurationProvider")
    arguments = properties(nodepath="/org.openoffice.Setup/Product")
    access = provider.createInstanceWithArguments("com.sun.star.configuration.ConfigurationAccess", arguments)
    return str(access.getByName("ooSetupVersionAboutBox"))


def input_stream(context: Any, path: Path) -> Any:
    """A stream by which the office reads a file of the client.

    The client implements it. LibreOffice 25.2 aborts when it reads such a stream (docs/files.md); there the office
    implements it, and gets the bytes at once.
    """
    if int(product_version(context).split(".")[0]) < 25:
        return FileInput(path)
    service, data = "com.sun.star.io.SequenceInputStream", uno.ByteSequence(path.read_bytes())
    return context.ServiceManager.createInstanceWithArgumentsAndContext(service, (data,), context)


class FileInput(unohelper.Base, XInputStream, XSeekable):  # type: ignore[misc]
    """A file of the client that the office reads over the connection. Each read is a call."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb")
        self.length = path.stat().st_size

    def readBytes(self, _data: object, count: int) -> tuple[int, Any]:
        """Read this number of bytes, or fewer at the end of the file."""
        data = self.file.read(count)
        return len(data), uno.ByteSequence(data)

    def readSomeBytes(self, data: object, count: int) -> tuple[int, Any]:
        """Read some bytes."""
        return self.readBytes(data, count)

    def skipBytes(self, count: int) -> None:
        """Skip bytes."""
        self.file.seek(count, os.SEEK_CUR)

    def available(self) -> int:
        """Return how many bytes are left."""
        return self.length - self.file.tell()

    def closeInput(self) -> None:
        """Close the file: the office reads no more."""
        self.file.close()

    def seek(self, position: int) -> None:
        """Go to a position."""
        self.file.seek(position)

    def getPosition(self) -> int:
        """Return where the next read begins."""
        return self.file.tell()

    def getLength(self) -> int:
        """Return the file's size in bytes."""
        return self.length


class FileOutput(unohelper.Base, XOutputStream):  # type: ignore[misc]
    """A file of the client that the office writes over the connection. Each write is a call."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")

    def writeBytes(self, data: Any) -> None:
        """Write bytes."""
        self.file.write(data.value)

    def flush(self) -> None:
        """Write what is buffered."""
        self.file.flush()

    def closeOutput(self) -> None:
        """Close the file: the office writes no more."""
        self.file.close()
