#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Convert documents to PDF through an office's UNO port, as thousands of scripts do.

    convert.py [--host H] [--port P] [options] [SOURCE TARGET.pdf ...]

Each step is a line of JSON on standard output: "connected" (before it, nothing has been asked of the office but its
context), "office" (with --office; after a hold there "still", with the pid), and for each document "loading", "loaded",
"stored", "closed"; an "error" ends the client with status 1. "stored" tells the PDF's page count (by pdfinfo, null
without it), size and SHA-256.

--hold STEP stops there until a line, or the end, comes on standard input; --die STEP kills the client there. Without a
SOURCE the client connects, shows and ends.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
from pathlib import Path
from typing import Any

from client import (
    FileOutput,
    Steps,
    add_address,
    connect,
    create,
    error_line,
    input_stream,
    leave,
    product_version,
    properties,
)

PDF_FILTERS = {
    "com.sun.star.sheet.SpreadsheetDocument": "calc_pdf_Export",
    "com.sun.star.presentation.PresentationDocument": "impress_pdf_Export",
    "com.sun.star.drawing.DrawingDocument": "draw_pdf_Export",
}


def load(context: Any, source: Path, arguments: argparse.Namespace) -> Any:
    """Load a document, by a stream over the connection or by its path, which then is the office's path too."""
    desktop = create(context, "com.sun.star.frame.Desktop")
    options: dict[str, object] = {"Hidden": not arguments.visible}
    # Never ReadOnly=False: in a read-only directory that makes the office fail, with "type detection failed".
    if arguments.read_only:
        options["ReadOnly"] = True
    if arguments.stream:
        options["InputStream"] = input_stream(context, source)
    url = "private:stream" if arguments.stream else source.resolve().as_uri()
    document = desktop.loadComponentFromURL(url, "_blank", 0, properties(**options))
    if document is None:
        raise RuntimeError(f"the office returned no document for {source}")
    return document


def store(document: Any, target: Path, by_path: bool) -> None:
    """Store a document as PDF, to a stream of the client's or by path."""
    name = next((name for kind, name in PDF_FILTERS.items() if document.supportsService(kind)), "writer_pdf_Export")
    if by_path:
        document.storeToURL(target.resolve().as_uri(), properties(FilterName=name))
    else:
        document.storeToURL("private:stream", properties(FilterName=name, OutputStream=FileOutput(target)))


def facts(pdf: Path) -> dict[str, object]:
    """What a test wants to know of a PDF."""
    data = pdf.read_bytes()
    return {"target": str(pdf), "pages": pages(pdf), "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def pages(pdf: Path) -> int | None:
    """A PDF's page count, if poppler's pdfinfo is here."""
    try:
        output = subprocess.run(["pdfinfo", str(pdf)], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        return None
    return int(output.split("Pages:")[1].split()[0])


def office_view(context: Any) -> dict[str, object]:
    """What the office knows of itself: its process, its profile, the documents that are open in it, its version."""
    components = create(context, "com.sun.star.frame.Desktop").getComponents().createEnumeration()
    titles = []
    while components.hasMoreElements():
        component = components.nextElement()
        titles.append(getattr(component, "Title", None) or component.ImplementationName)
    variables = create(context, "com.sun.star.util.PathSubstitution")
    return {
        "pid": office_pid(context),
        "profile": variables.getSubstituteVariableValue("$(user)"),
        "documents": titles,
        "version": product_version(context),
    }


def office_pid(context: Any) -> int:
    """The pid of the very process that serves this connection, in its own pid namespace.

    The office opens /proc/self/stat and so tells of itself, whoever is between.
    """
    stream = create(context, "com.sun.star.ucb.SimpleFileAccess").openFileRead("file:///proc/self/stat")
    _, data = stream.readBytes(None, 4096)
    stream.closeInput()
    return int(bytes(data.value).split()[0])


def convert(context: Any, source: Path, target: Path, step: Steps, arguments: argparse.Namespace) -> None:
    """Convert one document."""
    step("loading", source=str(source))
    document = load(context, source, arguments)
    step("loaded", source=str(source))
    store(document, target, arguments.store_by_path)
    step("stored", **facts(target))
    if not arguments.leave_open:
        document.close(True)
        step("closed")


def main() -> int:
    """Connect and do what the arguments say."""
    parser = argparse.ArgumentParser(description="Convert documents to PDF through a UNO port.")
    add_address(parser)
    parser.add_argument("--stream", action="store_true", help="let the office read the document over the connection")
    parser.add_argument("--store-by-path", action="store_true", help="let the office write the PDF itself")
    parser.add_argument("--visible", action="store_true", help="load without Hidden")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--leave-open", action="store_true", help="do not close the documents")
    parser.add_argument("--office", action="store_true", help="show the office's process, profile and open documents")
    parser.add_argument("--hold", metavar="STEP", help="wait for a line on standard input there")
    parser.add_argument("--die", metavar="STEP", help="kill itself there")
    parser.add_argument("paths", nargs="*", type=Path, metavar="SOURCE TARGET")
    arguments = parser.parse_args()
    if len(arguments.paths) % 2:
        parser.error("every SOURCE takes a TARGET")
    step = Steps(arguments.hold, arguments.die)
    try:
        context = connect(arguments.host, arguments.port)
        step("connected")
        if arguments.office:
            step("office", **office_view(context))
            if arguments.hold == "office":
                step("still", pid=office_pid(context))
        for source, target in zip(arguments.paths[::2], arguments.paths[1::2], strict=True):
            convert(context, source, target, step, arguments)
    except Exception as error:  # noqa: BLE001 - a UNO exception has no base class of Python's but Exception
        print(error_line(error), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    leave(main())
