# SPDX-License-Identifier: LGPL-2.1-or-later
"""A pyuno client that measures one path to the office. Each path has a process of its own.

UNO identifies an object by its object id and not by its connection. A second connection to the same office from the
same process would get the proxies of the first one, and so measure the first path.

It first writes the office's version. Then each line of standard input is a measurement, and each line of standard
output its result. All output is JSON, and times are in nanoseconds:

    calls COUNT          the mean time of a call of a cell's getValue(), a minimal call
    run COUNT            when so many of these calls began, and when they ended, of CLOCK_MONOTONIC
    blocks COUNT SIZE    [up, down], for COUNT blocks of SIZE bytes to the office and back; each block is one call
"""

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable
from time import perf_counter_ns

import uno

# The number of calls before each measurement that are not measured. They bring code and data into the caches.
WARM_UP = 50


class Session:
    """A connection to the office, with the objects for the measurements."""

    def __init__(self, connection: str) -> None:
        local = uno.getComponentContext()
        resolver = local.ServiceManager.createInstanceWithContext("com.sun.star.bridge.UnoUrlResolver", local)
        self.context = resolver.resolve(f"uno:{connection};urp;StarOffice.ComponentContext")
        desktop = self.create("com.sun.star.frame.Desktop")
        hidden = uno.createUnoStruct("com.sun.star.beans.PropertyValue", "Hidden", 0, True, 0)  # noqa: FBT003
        self.document = desktop.loadComponentFromURL("private:factory/scalc", "_blank", 0, (hidden,))
        self.cell = self.document.Sheets.getByIndex(0).getCellByPosition(0, 0)
        self.cell.setValue(42)
        # A pipe in the office's memory: the client writes bytes and reads them again.
        self.pipe = self.create("com.sun.star.io.Pipe")

    def create(self, service: str) -> "uno.pyuno":
        return self.context.ServiceManager.createInstanceWithContext(service, self.context)

    def version(self) -> str:
        provider = self.create("com.sun.star.configuration.ConfigurationProvider")
        path = uno.createUnoStruct("com.sun.star.beans.NamedValue", "nodepath", "/org.openoffice.Setup/Product")
        product = provider.createInstanceWithArguments("com.sun.star.configuration.ConfigurationAccess", (path,))
        return str(product.ooSetupVersionAboutBox)

    def close(self) -> None:
        self.document.close(False)  # noqa: FBT003

    def calls(self, count: int) -> float:
        begun, ended = self.run(count)
        return (ended - begun) / count

    def run(self, count: int) -> tuple[int, int]:
        call = self.cell.getValue
        for _ in range(WARM_UP):
            call()
        begun = perf_counter_ns()
        for _ in range(count):
            call()
        return begun, perf_counter_ns()

    def blocks(self, count: int, size: int) -> list[int]:
        block = uno.ByteSequence(os.urandom(size))
        up = down = 0
        for _ in range(count):
            start = perf_counter_ns()
            self.pipe.writeBytes(block)
            written = perf_counter_ns()
            count_read, _data = self.pipe.readBytes(None, size)
            down += perf_counter_ns() - written
            up += written - start
            assert count_read == size
        return [up, down]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("connection", help='as in a UNO URL: "socket,host=127.0.0.1,port=2002" or "pipe,name=uno"')
    session = Session(parser.parse_args().connection)
    gc.disable()
    print(json.dumps(session.version()), flush=True)
    for line in sys.stdin:
        name, *numbers = line.split()
        measure: Callable[..., object] = getattr(session, name)
        print(json.dumps(measure(*map(int, numbers))), flush=True)
    session.close()
    # Skip the cleanup of pyuno, which sometimes ends in a segmentation fault.
    os._exit(0)


if __name__ == "__main__":
    main()
