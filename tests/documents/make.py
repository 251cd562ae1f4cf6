#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make the test documents in a directory. A stock LibreOffice stores them from flat OpenDocument sources.

    /usr/bin/python3 tests/documents/make.py [--check] DIRECTORY

It also writes ``expected.json``, the page count of each document's PDF by file name (EXPECTED here), and
``words.json``, a list of words for each document: only the n-th page has the n-th word. With --check, the same office
converts each document, and the result is compared with these. Making the documents takes some seconds, so keep the
directory.

Two more documents have no page count: ``broken.docx`` is truncated, and ``password.odt`` needs a password. For both, an
office returns None and no error.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flat
from stock_office import connect, stock_office


@dataclass(frozen=True)
class Document:
    """One document: its flat source, the filter that stores it, and the number of pages of its PDF."""

    source: str
    filter: str
    pages: int


def text(name: str, pages: int, store: str, paragraphs: int = 2, comment: str = "") -> Document:
    """Return a text document."""
    return Document(flat.text(name, pages, paragraphs, comment), store, pages)


def sheet(name: str, pages: int, store: str) -> Document:
    """Return a spreadsheet."""
    return Document(flat.sheet(name, pages), store, pages)


WRITER = "writer8"
WORD = "MS Word 2007 XML"
CALC = "calc8"
EXCEL = "Calc MS Excel 2007 XML"
IMPRESS = "impress8"
POWERPOINT = "Impress MS PowerPoint 2007 XML"

DOCUMENTS = {
    "letter.odt": text("letter.odt", 1, WRITER),
    "letter.docx": text("letter.docx", 1, WORD),
    "letter.rtf": text("letter.rtf", 1, "Rich Text Format"),
    "comments.docx": text("comments.docx", 2, WORD, comment="Is this so?"),
    "pages.odt": text("pages.odt", 5, WRITER),
    "long.odt": text("long.odt", 120, WRITER, paragraphs=5),
    "sheet.ods": sheet("sheet.ods", 1, CALC),
    "sheet.xlsx": sheet("sheet.xlsx", 2, EXCEL),
    "big.xlsx": sheet("big.xlsx", 400, EXCEL),
    "slides.odp": Document(flat.slides("slides.odp", 2), IMPRESS, 2),
    "slides.pptx": Document(flat.slides("slides.pptx", 3), POWERPOINT, 3),
}
EXPECTED = {name: document.pages for name, document in DOCUMENTS.items()}
FLAT_SUFFIX = {WRITER: ".fodt", CALC: ".fods", EXCEL: ".fods", IMPRESS: ".fodp", POWERPOINT: ".fodp"}
PDF_FILTER = {".ods": "calc_pdf_Export", ".xlsx": "calc_pdf_Export", ".odp": "impress_pdf_Export"}
PDF_FILTER[".pptx"] = PDF_FILTER[".odp"]


def properties(**values: object) -> tuple[Any, ...]:
    """Return UNO property values."""
    from com.sun.star.beans import PropertyValue

    return tuple(PropertyValue(name, 0, value, 0) for name, value in values.items())


def convert(desktop: Any, source: Path, target: Path, **store: object) -> None:
    """Load a document and store it in the format of a filter."""
    document = desktop.loadComponentFromURL(source.as_uri(), "_blank", 0, properties(Hidden=True))
    if document is None:
        raise RuntimeError(f"the office does not load {source}")
    try:
        document.storeToURL(target.as_uri(), properties(**store))
    finally:
        document.close(True)


def make(desktop: Any, directory: Path, temporary: Path) -> None:
    """Make every document and the two JSON files."""
    for name, document in DOCUMENTS.items():
        source = temporary / (name + FLAT_SUFFIX.get(document.filter, ".fodt"))
        source.write_text(document.source)
        convert(desktop, source, directory / name, FilterName=document.filter)
    letter = directory / "letter.odt"
    convert(desktop, letter, directory / "password.odt", FilterName=WRITER, Password="secret")
    whole = (directory / "letter.docx").read_bytes()
    (directory / "broken.docx").write_bytes(whole[: len(whole) // 2])
    (directory / "expected.json").write_text(json.dumps(EXPECTED, indent=1))
    words = {name: [flat.word(name, page + 1) for page in range(pages)] for name, pages in EXPECTED.items()}
    (directory / "words.json").write_text(json.dumps(words, indent=1))


def check(desktop: Any, directory: Path, temporary: Path) -> list[str]:
    """Convert every document to PDF. Return a line for each that has not the expected pages or words."""
    faults = []
    for name, pages in EXPECTED.items():
        pdf = temporary / (name + ".pdf")
        export = PDF_FILTER.get(Path(name).suffix, "writer_pdf_Export")
        convert(desktop, directory / name, pdf, FilterName=export)
        output = subprocess.run(["pdftotext", str(pdf), "-"], capture_output=True, text=True, check=True).stdout
        found = output.split("\f")[:-1]
        if len(found) != pages:
            faults.append(f"{name}: {len(found)} pages, {pages} expected")
        without_word = [page for page, content in enumerate(found, 1) if flat.word(name, page) not in content]
        if without_word:
            faults.append(f"{name}: page {without_word[0]} and {len(without_word) - 1} others do not have their word")
    return faults


def main() -> int:
    """Make the documents, and check them with --check."""
    parser = argparse.ArgumentParser(description="Make the test documents.")
    parser.add_argument("--check", action="store_true", help="convert each to PDF and compare")
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    directory = arguments.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    accept = f"pipe,name=make-documents-{os.getpid()}"
    with tempfile.TemporaryDirectory() as temporary, stock_office(accept) as office:
        context = connect(accept, office)
        desktop = context.ServiceManager.createInstanceWithContext("com.sun.star.frame.Desktop", context)
        make(desktop, directory, Path(temporary))
        faults = check(desktop, directory, Path(temporary)) if arguments.check else []
    print("\n".join(faults), end="\n" if faults else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
