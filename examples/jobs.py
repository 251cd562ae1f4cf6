#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A program that runs for long and converts documents, several at once: a client to copy from.

    jobs.py report.docx other.odt ...

Each document has a session of its own, which is ended on purpose: pyuno alone would keep each connection for the rest
of the process. If an office is lost meanwhile, another one does it. Needs Debian's python3-uno.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uno  # isort: skip - this makes the next import possible
from com.sun.star.beans import PropertyValue
from com.sun.star.uno import RuntimeException

ADDRESS = "socket,host=localhost,port=2002"
AT_ONCE = 4


class Session:
    """A session: a connection of its own, and so an office of its own. Its value is the component context.

    This is a class because exceptions of pyuno can't pass through a generator with `contextlib.contextmanager`.
    """

    def __enter__(self):
        local = uno.getComponentContext()
        create = local.ServiceManager.createInstanceWithContext
        connection = create("com.sun.star.connection.Connector", local).connect(ADDRESS)
        # The empty name makes a new bridge. UnoUrlResolver would look for one that is there.
        self.bridge = create("com.sun.star.bridge.BridgeFactory", local).createBridge("", "urp", connection, None)
        return self.bridge.getInstance("StarOffice.ComponentContext")

    def __exit__(self, *_):
        self.bridge.dispose()


def to_pdf(office, data):
    """Convert a text document, given as bytes."""
    create = office.ServiceManager
    stream = create.createInstanceWithArgumentsAndContext(
        "com.sun.star.io.SequenceInputStream", (uno.ByteSequence(data),), office
    )
    desktop = create.createInstanceWithContext("com.sun.star.frame.Desktop", office)
    hidden = (PropertyValue("Hidden", 0, True, 0), PropertyValue("InputStream", 0, stream, 0))
    document = desktop.loadComponentFromURL("private:stream", "_blank", 0, hidden)
    if document is None:
        raise ValueError("LibreOffice cannot load this document")
    result = create.createInstanceWithContext("com.sun.star.io.SequenceOutputStream", office)
    to_result = (PropertyValue("FilterName", 0, "writer_pdf_Export", 0), PropertyValue("OutputStream", 0, result, 0))
    document.storeToURL("private:stream", to_result)
    pdf = result.getWrittenBytes().value
    document.close(True)
    return pdf


def job(name):
    """Convert one document, to a file beside it."""
    source = Path(name)
    data = source.read_bytes()
    try:
        with Session() as office:
            pdf = to_pdf(office, data)
    except RuntimeException:  # DisposedException, or what pyuno makes of it amid a call
        with Session() as office:
            pdf = to_pdf(office, data)
    source.with_suffix(".pdf").write_bytes(pdf)
    return name


if __name__ == "__main__":
    first, *others = sys.argv[1:]
    print(job(first))  # pyuno learns types at their first use, and not safely in several threads
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for done in threads.map(job, others):
            print(done)
