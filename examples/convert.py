#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Convert a document to PDF through port 2002: a client to copy from. Needs Debian's python3-uno.

    convert.py report.docx report.pdf

The document and the PDF travel over the connection, so the office needs no access to your files. Text documents,
spreadsheets and presentations each have a filter of their own for PDF.
"""

import sys
from pathlib import Path

import uno  # isort: skip - this makes the next import possible
from com.sun.star.beans import PropertyValue

OFFICE = "uno:socket,host=localhost,port=2002;urp;StarOffice.ComponentContext"
FILTERS = {
    "com.sun.star.sheet.SpreadsheetDocument": "calc_pdf_Export",
    "com.sun.star.presentation.PresentationDocument": "impress_pdf_Export",
}


def connect():
    """Wait for an office, and return its component context."""
    local = uno.getComponentContext()
    resolver = local.ServiceManager.createInstanceWithContext("com.sun.star.bridge.UnoUrlResolver", local)
    return resolver.resolve(OFFICE)


def convert(office, source, target):
    """Convert one document."""
    create = office.ServiceManager
    # Both streams are the office's own: all bytes go in one call, where a stream of ours would get thousands.
    stream = create.createInstanceWithArgumentsAndContext(
        "com.sun.star.io.SequenceInputStream", (uno.ByteSequence(source.read_bytes()),), office
    )
    desktop = create.createInstanceWithContext("com.sun.star.frame.Desktop", office)
    hidden = (PropertyValue("Hidden", 0, True, 0), PropertyValue("InputStream", 0, stream, 0))
    document = desktop.loadComponentFromURL("private:stream", "_blank", 0, hidden)
    if document is None:
        sys.exit("convert.py: LibreOffice cannot load this document")
    kind = next((FILTERS[service] for service in FILTERS if document.supportsService(service)), "writer_pdf_Export")
    result = create.createInstanceWithContext("com.sun.star.io.SequenceOutputStream", office)
    to_result = (PropertyValue("FilterName", 0, kind, 0), PropertyValue("OutputStream", 0, result, 0))
    document.storeToURL("private:stream", to_result)
    target.write_bytes(result.getWrittenBytes().value)
    document.close(True)


def disconnect():
    """End the session. Without this, about one pyuno process in a hundred crashes at its end, on busy processors."""
    local = uno.getComponentContext()
    bridges = local.ServiceManager.createInstanceWithContext("com.sun.star.bridge.BridgeFactory", local)
    for bridge in bridges.getExistingBridges():
        bridge.dispose()


if __name__ == "__main__":
    try:
        convert(connect(), *map(Path, sys.argv[1:]))
    finally:
        disconnect()
