# SPDX-License-Identifier: LGPL-2.1-or-later
"""A pyuno client that measures when it is told to: one process for each path to the office.

A process for each, because UNO knows an object by its identity and not by its connection: a second connection to the
same office, out of the same process, would be handed the first one's proxies and measure nothing but the first path.

It first tells the office's version. Then on standard input comes a line for each measurement, and on standard output
goes its answer, all in JSON, times in nanoseconds:

    calls COUNT          a list, one for each call of a cell's getValue(), the smallest thing to ask of a document
    blocks COUNT SIZE    [up, down], for COUNT blocks of SIZE bytes to the office and back, each a call of its own
"""

import argparse
import gc
import json
import os
import sys
from itertools import pairwise
from time import perf_counter_ns

import uno

# Calls before each measurement that don't count: they bring code and data back into the caches.
WARM_UP = 50


class Session:
    """A connection to the office, with what the measurements need there."""

    def __init__(self, connection: str) -> None:
        local = uno.getComponentContext()
        resolver = local.ServiceManager.createInstanceWithContext("com.sun.star.bridge.UnoUrlResolver", local)
        self.context = resolver.resolve(f"uno:{connection};urp;StarOffice.ComponentContext")
        desktop = self.create("com.sun.star.frame.Desktop")
        hidden = uno.createUnoStruct("com.sun.star.beans.PropertyValue", "Hidden", 0, True, 0)  # noqa: FBT003
        self.document = desktop.loadComponentFromURL("private:factory/scalc", "_blank", 0, (hidden,))
        self.cell = self.document.Sheets.getByIndex(0).getCellByPosition(0, 0)
        self.cell.setValue(42)
        # In the office's memory: what is written can be read.
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

    def calls(self, count: int) -> list[int]:
        call = self.cell.getValue
        for _ in range(WARM_UP):
            call()
        times = [perf_counter_ns()]
        for _ in range(count):
            call()
            times.append(perf_counter_ns())
        return [after - before for before, after in pairwise(times)]

    def blocks(self, count: int, size: int) -> list[int]:
        block = uno.ByteSequence(os.urandom(size))
        up = down = 0
        for _ in range(count):
            began = perf_counter_ns()
            self.pipe.writeBytes(block)
            written = perf_counter_ns()
            got, _data = self.pipe.readBytes(None, size)
            down += perf_counter_ns() - written
            up += written - began
            assert got == size
        return [up, down]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("connection", help='as in a UNO URL: "socket,host=127.0.0.1,port=2002" or "pipe,name=uno"')
    session = Session(parser.parse_args().connection)
    gc.disable()
    print(json.dumps(session.version()), flush=True)
    for line in sys.stdin:
        name, *numbers = line.split()
        measure = session.calls if name == "calls" else session.blocks
        print(json.dumps(measure(*map(int, numbers))), flush=True)
    session.close()
    # Without pyuno's own end, which sometimes is a segmentation fault.
    os._exit(0)


if __name__ == "__main__":
    main()
