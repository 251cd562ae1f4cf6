#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Convert documents to PDF, and tell what is in the results.

    corpus.py [--host H] [--port P] [--at-once 1] [--limit 60] WAY < LIST

WAY is how an office gets a document: "path", "office" (a stream that the office holds), "client" (a stream that the
client implements). The result goes to a stream of the office. LIST has a path on each line. Each document is converted
in a process of its own. One that takes longer than --limit seconds is given up.

A line of JSON for each: the document, and either pages, text and pictures of the PDF, or the error.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uno
from client import FileInput, add_address, connect, create, leave, properties

NoConnectException = uno.getClass("com.sun.star.connection.NoConnectException")

EXPORTS = {
    "com.sun.star.sheet.SpreadsheetDocument": "calc_pdf_Export",
    "com.sun.star.presentation.PresentationDocument": "impress_pdf_Export",
    "com.sun.star.drawing.DrawingDocument": "draw_pdf_Export",
    "com.sun.star.text.WebDocument": "writer_web_pdf_Export",
}


def convert(context: Any, way: str, document: Path, result: Path, **more: object) -> None:
    """Convert a document, loaded with some more properties."""
    url = "private:stream"
    options: dict[str, object] = {"Hidden": True, **more}
    if way == "path":
        url = document.as_uri()
    elif way == "client":
        options["InputStream"] = FileInput(document)
    else:
        options["InputStream"] = context.ServiceManager.createInstanceWithArgumentsAndContext(
            "com.sun.star.io.SequenceInputStream", (uno.ByteSequence(document.read_bytes()),), context
        )
    loaded = create(context, "com.sun.star.frame.Desktop").loadComponentFromURL(url, "_blank", 0, properties(**options))
    if loaded is None:
        raise RuntimeError("it loads as None")
    if more.get("UpdateDocMode") and hasattr(loaded, "updateLinks"):
        loaded.updateLinks()
    name = next((EXPORTS[kind] for kind in EXPORTS if loaded.supportsService(kind)), "writer_pdf_Export")
    stream = create(context, "com.sun.star.io.SequenceOutputStream")
    loaded.storeToURL("private:stream", properties(FilterName=name, OutputStream=stream))
    result.write_bytes(stream.getWrittenBytes().value)
    loaded.close(True)


def inspect(pdf: Path) -> dict[str, object]:
    """Return what is in a PDF: the number of pages, a digest of its text, and what its pictures are like."""

    def said(*command: str) -> str:
        return subprocess.run(command, capture_output=True, check=True, encoding="utf-8", errors="replace").stdout

    pages = next(line.split()[1] for line in said("pdfinfo", str(pdf)).splitlines() if line.startswith("Pages:"))
    pictures = [" ".join(line.split()[:10]) for line in said("pdfimages", "-list", str(pdf)).splitlines()[2:]]
    text = said("pdftotext", str(pdf), "-")
    return {"pages": int(pages), "text": hashlib.sha256(text.encode()).hexdigest()[:16], "pictures": pictures}


def patiently(host: str, port: int) -> Any:
    """Connect. A plain office that a document has crashed takes a while until it is there again."""
    for _ in range(50):
        try:
            return connect(host, port)
        except NoConnectException:
            time.sleep(0.2)
    return connect(host, port)


def work(arguments: argparse.Namespace, document: Path) -> None:
    """Convert one document in this process, tell, and exit."""
    facts: dict[str, object] = {"document": document.name}
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory, "result.pdf")
        try:
            convert(patiently(arguments.host, arguments.port), arguments.way, document, result)
            facts |= inspect(result)
        except Exception as error:  # noqa: BLE001 - a UNO exception has no base class of Python's but Exception
            facts["error"] = getattr(error, "typeName", None) or f"{type(error).__name__}: {error}"
    print(json.dumps(facts), flush=True)
    leave(0)


def in_a_process(arguments: argparse.Namespace, document: str) -> str:
    """Have one document converted, and return the line that tells what has come out."""
    command = (__file__, f"--host={arguments.host}", f"--port={arguments.port}", "--one", arguments.way)
    try:
        done = subprocess.run(
            (sys.executable, *command, document), capture_output=True, text=True, timeout=arguments.limit, check=False
        )
    except subprocess.TimeoutExpired:
        return json.dumps({"document": Path(document).name, "error": "limit"})
    return done.stdout or json.dumps({"document": Path(document).name, "error": f"status {done.returncode}"})


def main() -> int:
    """Convert one document, or all that standard input lists."""
    parser = argparse.ArgumentParser(description="Convert documents, and tell what is in the results.")
    add_address(parser)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--limit", type=float, default=60.0)
    parser.add_argument("--one", action="store_true")
    parser.add_argument("way", choices=("path", "office", "client"))
    parser.add_argument("document", nargs="?", type=Path)
    arguments = parser.parse_args()
    if arguments.one:
        work(arguments, arguments.document)
    with concurrent.futures.ThreadPoolExecutor(arguments.at_once) as threads:
        for line in threads.map(lambda document: in_a_process(arguments, document), sys.stdin.read().splitlines()):
            print(line.strip(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
