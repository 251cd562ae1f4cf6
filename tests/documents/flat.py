# SPDX-License-Identifier: LGPL-2.1-or-later
"""Flat OpenDocument sources as text. LibreOffice stores them in the formats that the tests need.

Every page begins with a page break, so page counts do not depend on fonts or the paper size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

NAMESPACES = " ".join(
    f'xmlns:{prefix}="{uri}"'
    for prefix, uri in {
        "dc": "http://purl.org/dc/elements/1.1/",
        "draw": "urn:oasis:names:tc:opendocument:xmlns:drawing:1.0",
        "fo": "urn:oasis:names:tc:opendocument:xmlns:xsl-fo-compatible:1.0",
        "office": "urn:oasis:names:tc:opendocument:xmlns:office:1.0",
        "presentation": "urn:oasis:names:tc:opendocument:xmlns:presentation:1.0",
        "style": "urn:oasis:names:tc:opendocument:xmlns:style:1.0",
        "svg": "urn:oasis:names:tc:opendocument:xmlns:svg-compatible:1.0",
        "table": "urn:oasis:names:tc:opendocument:xmlns:table:1.0",
        "text": "urn:oasis:names:tc:opendocument:xmlns:text:1.0",
    }.items()
)
MIMETYPE = "application/vnd.oasis.opendocument."
FILLER = "The quick brown fox jumps over the lazy dog while the office lays out this paragraph. " * 4
ROWS_A_PAGE = 30


def word(document: str, page: int) -> str:
    """Return a word that only this page of this document has."""
    return "w" + hashlib.sha256(f"{document}/{page}".encode()).hexdigest()[:12]


def flat(kind: str, styles: str, body: str) -> str:
    """Return a complete flat OpenDocument file."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<office:document {NAMESPACES} office:version="1.3" office:mimetype="{MIMETYPE}{kind}">'
        f"<office:automatic-styles>{styles}</office:automatic-styles>"
        f"<office:body>{body}</office:body></office:document>\n"
    )


def text(name: str, pages: int, paragraphs: int = 2, comment: str = "") -> str:
    """Return a text document. Each page has its word and some paragraphs.

    :param comment: the text of a comment on the first paragraph of every page.
    """
    style = (
        '<style:style style:name="Break" style:family="paragraph">'
        '<style:paragraph-properties fo:break-before="page"/></style:style>'
    )
    note = (
        f"<office:annotation><dc:creator>A. Reader</dc:creator><text:p>{comment}</text:p></office:annotation>"
        if comment
        else ""
    )
    content = ""
    for page in range(1, pages + 1):
        attribute = ' text:style-name="Break"' if page > 1 else ""
        content += f"<text:p{attribute}>{note}Page {page} of {name}: {word(name, page)}</text:p>"
        content += f"<text:p>{FILLER}</text:p>" * paragraphs
    return flat("text", style, f"<office:text>{content}</office:text>")


def sheet(name: str, pages: int, columns: int = 5) -> str:
    """Return a spreadsheet. Each page has its word and rows of numbers, and each row has a formula."""
    style = (
        '<style:style style:name="Break" style:family="table-row">'
        '<style:table-row-properties fo:break-before="page"/></style:style>'
        '<style:style style:name="Wide" style:family="table-column">'
        '<style:table-column-properties style:column-width="4cm"/></style:style>'
    )
    column = '<table:table-column table:style-name="Wide"/>'
    rows = "".join(row(name, number, columns) for number in range(pages * ROWS_A_PAGE))
    return flat(
        "spreadsheet",
        style,
        f'<office:spreadsheet><table:table table:name="Sheet">{column}{rows}</table:table></office:spreadsheet>',
    )


def row(name: str, number: int, columns: int) -> str:
    """Return one row of a sheet."""
    page, line = divmod(number, ROWS_A_PAGE)
    attribute = ' table:style-name="Break"' if page and not line else ""
    title = word(name, page + 1) if not line else f"row {number + 1}"
    values = "".join(cell(f'office:value="{number * column}"') for column in range(1, columns - 1))
    formula = cell(f'table:formula="of:=SUM([.B{number + 1}:.{chr(ord("A") + columns - 2)}{number + 1}])"')
    return (
        f'<table:table-row{attribute}><table:table-cell office:value-type="string"><text:p>{title}</text:p>'
        f"</table:table-cell>{values}{formula}</table:table-row>"
    )


def cell(attribute: str) -> str:
    """Return one numeric cell."""
    return f'<table:table-cell office:value-type="float" {attribute}/>'


def slides(name: str, pages: int) -> str:
    """Return a presentation. Each slide has its word."""
    frame = 'svg:x="2cm" svg:y="2cm" svg:width="20cm" svg:height="3cm"'
    content: Iterable[str] = (
        f'<draw:page draw:name="slide{page}"><draw:frame {frame}><draw:text-box>'
        f"<text:p>Slide {page} of {name}: {word(name, page)}</text:p></draw:text-box></draw:frame></draw:page>"
        for page in range(1, pages + 1)
    )
    return flat("presentation", "", f"<office:presentation>{''.join(content)}</office:presentation>")
