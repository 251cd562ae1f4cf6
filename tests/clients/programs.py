#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Third-party programs and libraries that work with an office behind a port, each with a job of its kind.

    programs.py [--host H] [--port P] NAME DOCUMENT DIRECTORY

DOCUMENT is a text document (.odt). Results go to DIRECTORY. The programs are below --programs, each in a directory of
its own, as packaging/test-programs leaves them. Writes what has come out as a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOST, PORT = "localhost", 2002
_JOBS: dict[str, tuple[str, Callable[[Path, Path], object]]] = {}


def job(name: str, project: str) -> Callable[[Callable[[Path, Path], object]], Callable[[Path, Path], object]]:
    """Note a job under a name. It takes a document and a directory, and returns a file or a value."""

    def note(function: Callable[[Path, Path], object]) -> Callable[[Path, Path], object]:
        _JOBS[name] = (project, function)
        return function

    return note


@job("pyodconverter", "PyODConverter")
def pyodconverter(document: Path, directory: Path) -> object:
    from PyODConverter import DocumentConverter

    DocumentConverter((HOST, PORT)).convert(str(document), str(directory / "out.pdf"))
    return directory / "out.pdf"


@job("oodocument", "oodocument")
def oodocument_(document: Path, directory: Path) -> object:
    from oodocument.oodocument import oodocument

    opened = oodocument(str(document), host=HOST, port=str(PORT))
    opened.replace_with({"the": "THE"}, str(directory / "out.pdf"), "pdf")
    opened.dispose()
    return directory / "out.pdf"


@job("pyoo", "pyoo")
def pyoo(_: Path, directory: Path) -> object:
    import pyoo

    desktop = pyoo.Desktop(HOST, PORT)
    made = desktop.create_spreadsheet()
    sheet = made.sheets[0]
    sheet[0, 0].value, sheet[1, 0].value = 20, 22
    sheet[2, 0].formula = "=SUM(A1:A2)"
    made.save(str(directory / "out.ods"))
    made.close()
    again = desktop.open_spreadsheet(str(directory / "out.ods"))
    value = again.sheets[0][2, 0].value
    again.close()
    return value


@job("ooodev", "ooo-dev-tools")
def ooodev(document: Path, directory: Path) -> object:
    from ooodev.loader import Lo
    from ooodev.write import WriteDoc

    Lo.load_office(Lo.ConnectSocket(host=HOST, port=PORT, start_office=False), opt=Lo.Options(verbose=False))
    opened = WriteDoc.open_doc(str(document))
    opened.get_cursor().append_para("appended")
    opened.save_doc(str(directory / "out.pdf"))
    opened.close_doc()
    return directory / "out.pdf"


@job("unotools", "unotools")
def unotools(document: Path, directory: Path) -> object:
    from unotools import Socket, connect
    from unotools.component.writer import Writer
    from unotools.unohelper import convert_path_to_url

    writer = Writer(connect(Socket(HOST, PORT)), convert_path_to_url(str(document)))
    writer.store_to_url(convert_path_to_url(str(directory / "out.pdf")), "FilterName", "writer_pdf_Export")
    writer.close(True)
    return directory / "out.pdf"


@job("py3o", "py3o.renderers.pyuno")
def py3o(document: Path, directory: Path) -> object:
    from py3o.renderers.pyuno.office import OfficeClientSpawned

    client = OfficeClientSpawned(HOST, PORT)
    client.connect()
    client.convert(str(document), str(directory / "out.pdf"), "writer_pdf_Export")
    return directory / "out.pdf"


@job("appy-converter", "appy")
def appy_converter(document: Path, directory: Path) -> object:
    from appy.pod.converter import Converter

    copy = directory / "in.odt"
    copy.write_bytes(document.read_bytes())
    Converter(str(copy), "pdf", HOST, PORT).run()
    return directory / "in.pdf"


@job("appy-stream", "appy")
def appy_stream(document: Path, directory: Path) -> object:
    """With streams of its own."""
    from appy.pod.converter import Converter

    copy = directory / "in.odt"
    copy.write_bytes(document.read_bytes())
    Converter(str(copy), "pdf", HOST, PORT, stream=True).run()
    return directory / "in.pdf"


@job("appy-renderer", "appy")
def appy_renderer(document: Path, directory: Path) -> object:
    from appy.pod.renderer import Renderer

    Renderer(str(document), {}, str(directory / "out.pdf"), ooPort=PORT, ooServer=HOST).run()
    return directory / "out.pdf"


@job("unoserver", "unoserver")
def unoserver(document: Path, directory: Path) -> object:
    from unoserver.converter import UnoConverter

    office = UnoConverter(HOST, str(PORT))
    office.convert(inpath=str(document), outpath=str(directory / "out.pdf"))
    return directory / "out.pdf"


@job("unoserver-data", "unoserver")
def unoserver_data(document: Path, directory: Path) -> object:
    """Its server takes the bytes by XML-RPC, and leaves them in a temporary file for the office."""
    from unoserver.converter import UnoConverter

    data = UnoConverter(HOST, str(PORT)).convert(indata=document.read_bytes(), convert_to="pdf")
    (directory / "out.pdf").write_bytes(data)
    return directory / "out.pdf"


@job("unoserver-compare", "unoserver")
def unoserver_compare(document: Path, directory: Path) -> object:
    from unoserver.comparer import UnoComparer

    UnoComparer(HOST, str(PORT)).compare(
        oldpath=str(document), newpath=str(document), outpath=str(directory / "out.pdf"), filetype="pdf"
    )
    return directory / "out.pdf"


@job("unoconv", "unoconv")
def unoconv(document: Path, directory: Path) -> object:
    program = Path(next(path for path in sys.path if path.endswith("/unoconv")), "bin", "unoconv")
    result = directory / "out.pdf"
    sys.argv = [str(program), "-n", "-s", HOST, "--port", str(PORT), "-f", "pdf", "-o", str(result), str(document)]
    try:
        runpy.run_path(str(program), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    return result


@job("scriptforge", "")
def scriptforge(_: Path, directory: Path) -> object:
    sys.path.append("/usr/lib/libreoffice/program")  # Debian 12 has it there
    from scriptforge import CreateScriptService, ScriptForge

    ScriptForge(hostname=HOST, port=PORT)
    sheet = CreateScriptService("UI").CreateDocument("Calc", hidden=True)
    sheet.SetValue("Sheet1.A1", 20)
    sheet.SetFormula("Sheet1.A2", "=A1+22")
    value = sheet.GetValue("Sheet1.A2")
    sheet.SaveAs(str(directory / "out.ods"), overwrite=True)
    sheet.CloseDocument(saveask=False)
    return value


@job("mail-merge", "")
def mail_merge(document: Path, directory: Path) -> object:
    """LibreOffice's own, with a data source of text files: registered in the office, merged to a file."""
    import uno
    from client import connect, create

    data = directory / "data"
    data.mkdir()
    (data / "people.csv").write_text("Name,City\nAda,London\nLinus,Helsinki\n")
    context = connect(HOST, PORT)
    databases = create(context, "com.sun.star.sdb.DatabaseContext")
    source = databases.createInstance()
    source.URL = f"sdbc:flat:{data}"
    settings = (("Extension", "csv"), ("HeaderLine", True), ("FieldDelimiter", ","), ("StringDelimiter", '"'))
    source.Info = tuple(uno.createUnoStruct("com.sun.star.beans.PropertyValue", n, 0, v, 0) for n, v in settings)
    source.DatabaseDocument.storeAsURL(f"file://{directory}/people.odb", ())
    databases.registerObject("people", source)
    merge = create(context, "com.sun.star.text.MailMerge")
    merge.DocumentURL = f"file://{document}"
    merge.DataSourceName = "people"
    merge.CommandType, merge.Command = 0, "people"
    merge.OutputType = 2  # FILE
    merge.OutputURL = f"file://{directory}"
    merge.FileNamePrefix = "merged"
    merge.SaveAsSingleFile = True
    merge.execute(())
    return next(path for path in directory.iterdir() if path.name.startswith("merged"))


def shown(result: object) -> object:
    """Return what a test compares: the kind and about the size of a file, or the value."""
    if not isinstance(result, Path):
        return result
    content = result.read_bytes()
    return {"begins": content[:4].decode(errors="replace"), "kilobytes": round(len(content) / 4096) * 4}


def main() -> int:
    """Do one job."""
    global HOST, PORT
    parser = argparse.ArgumentParser(description="Have a third-party program do a job.")
    parser.add_argument("--host", default=HOST)
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--programs", type=Path, default=Path("/nowhere"))
    parser.add_argument("--list", action="store_true")
    parser.add_argument("name", nargs="?")
    parser.add_argument("document", nargs="?", type=Path)
    parser.add_argument("directory", nargs="?", type=Path)
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(_JOBS))
        return 0
    HOST, PORT = arguments.host, arguments.port
    project, work = _JOBS[arguments.name]
    if project:
        sys.path.insert(0, str(arguments.programs / project))
    directory = Path(tempfile.mkdtemp(dir=arguments.directory))
    facts: dict[str, Any] = {"name": arguments.name}
    try:
        facts["result"] = shown(work(arguments.document, directory))
    except BaseException as error:  # noqa: BLE001 - a program may also exit
        facts["error"] = f"{type(error).__name__}: {getattr(error, 'Message', error)}"
    sys.stderr.flush()
    print(json.dumps(facts), flush=True)
    os._exit(0)  # pyuno sometimes crashes when it is taken down


if __name__ == "__main__":
    sys.exit(main())
