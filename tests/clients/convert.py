#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Convert documents to PDF through an office's UNO port, as many scripts do.

    convert.py [--host H] [--port P] [options] [SOURCE TARGET.pdf ...]

Each step writes a line of JSON to standard output. "connected": the client has the context of the office and has made
no other call. "office", with --office: what the office says of itself. "still": the pid again, after a hold at
"office". For each document: "loading", "loaded", "stored", "closed". "error": the client exits with status 1. "stored"
has the PDF's page count (from pdfinfo, or null without it), its size and its SHA-256.

--hold STEP waits at this step for a line or the end of standard input. --die STEP kills the client at this step.
Without a SOURCE the client connects, writes these steps and exits.
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
    """Load a document from a stream of the client, or by its path, which must be the same for the office."""
    desktop = create(context, "com.sun.star.frame.Desktop")
    options: dict[str, object] = {"Hidden": not arguments.visible}
    # Never ReadOnly=False: in a read-only directory, loading then fails with "type detection failed".
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
    """Store a document as PDF, to a stream of the client or by path."""
    name = next((name for kind, name in PDF_FILTERS.items() if document.supportsService(kind)), "writer_pdf_Export")
    if by_path:
        document.storeToURL(target.resolve().as_uri(), properties(FilterName=name))
    else:
        document.storeToURL("private:stream", properties(FilterName=name, OutputStream=FileOutput(target)))


def facts(pdf: Path) -> dict[str, object]:
    """Return what a test needs to know about a PDF."""
    data = pdf.read_bytes()
    return {"target": str(pdf), "pages": pages(pdf), "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def pages(pdf: Path) -> int | None:
    """Return a PDF's page count, or None if poppler's pdfinfo is not installed."""
    try:
        output = subprocess.run(["pdfinfo", str(pdf)], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        return None
    return int(output.split("Pages:")[1].split()[0])


def office_view(context: Any) -> dict[str, object]:
    """Return what the office says of itself: its pid, its profile, its open documents, its version."""
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
    """Return the pid of the process that serves this connection, in its own pid namespace.

    The office reads its own /proc/self/stat, so the answer does not depend on what is between client and office.
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
    """Connect, and convert the documents that the arguments name."""
    parser = argparse.ArgumentParser(description="Convert documents to PDF through a UNO port.")
    add_address(parser)
    parser.add_argument("--stream", action="store_true", help="the office reads the document over the connection")
    parser.add_argument("--store-by-path", action="store_true", help="the office writes the PDF to its path")
    parser.add_argument("--visible", action="store_true", help="load without Hidden")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--leave-open", action="store_true", help="do not close the documents")
    parser.add_argument("--office", action="store_true", help="write the office's pid, profile and open documents")
    parser.add_argument("--hold", metavar="STEP", help="wait at this step for a line on standard input")
    parser.add_argument("--die", metavar="STEP", help="kill the client at this step")
    parser.add_argument("paths", nargs="*", type=Path, metavar="SOURCE TARGET")
    arguments = parser.parse_args()
    if len(arguments.paths) % 2:
        parser.error("every SOURCE needs a TARGET")
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
