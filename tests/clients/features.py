#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an office can do beside converting: each feature is tried, and a line of JSON tells what has come out.

    features.py [--host H] [--port P] [NAME...]

A feature that this LibreOffice lacks is an error; a test compares the lines with those of a plain office. Files are
made in the office's own temporary directory, and looked at by the office.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import uno
from client import add_address, connect, create, leave, properties


@dataclass(frozen=True)
class Office:
    """What a feature is tried with: the office's context, and the URL of a directory of the office."""

    context: Any
    here: str


_FEATURES: dict[str, Callable[[Office], object]] = {}
DESKTOP = "com.sun.star.frame.Desktop"
ENGLISH = ("en", "US", "")


def feature(function: Callable[[Office], object]) -> Callable[[Office], object]:
    """Note a feature under the name of its function."""
    _FEATURES[function.__name__] = function
    return function


def new(context: Any, kind: str) -> Any:
    """Open a new document: swriter, scalc, sdraw, simpress."""
    return create(context, DESKTOP).loadComponentFromURL(
        f"private:factory/{kind}", "_blank", 0, properties(Hidden=True)
    )


def load(context: Any, url: str, **options: object) -> Any:
    document = create(context, DESKTOP).loadComponentFromURL(url, "_blank", 0, properties(Hidden=True, **options))
    if document is None:
        raise RuntimeError("it loads as None")
    return document


def write(context: Any, url: str, data: bytes) -> str:
    """Make a file in the office."""
    stream = create(context, "com.sun.star.ucb.SimpleFileAccess").openFileWrite(url)
    stream.writeBytes(uno.ByteSequence(data))
    stream.closeOutput()
    return url


def kind_of(context: Any, url: str) -> str:
    """Return the first bytes of a file of the office."""
    stream = create(context, "com.sun.star.ucb.SimpleFileAccess").openFileRead(url)
    _, data = stream.readBytes(uno.ByteSequence(b""), 4)
    stream.closeInput()
    return repr(data.value)


def locale(*parts: str) -> Any:
    return uno.createUnoStruct("com.sun.star.lang.Locale", *parts)


def rectangle(*values: int) -> Any:
    return uno.createUnoStruct("com.sun.star.awt.Rectangle", *values)


@feature
def spelling(office: Office) -> object:
    checker = create(office.context, "com.sun.star.linguistic2.LinguServiceManager").getSpellChecker()
    english = 0x409  # pyuno finds the methods of XSpellChecker1, which number the languages
    return checker.hasLanguage(english), [checker.isValid(word, english, ()) for word in ("house", "hoouse")]


@feature
def hyphenation(office: Office) -> object:
    hyphenator = create(office.context, "com.sun.star.linguistic2.LinguServiceManager").getHyphenator()
    possible = hyphenator.createPossibleHyphens("administration", locale(*ENGLISH), ())
    return possible and possible.getPossibleHyphens()


@feature
def thesaurus(office: Office) -> object:
    found = create(office.context, "com.sun.star.linguistic2.LinguServiceManager").getThesaurus()
    return [meaning.getMeaning() for meaning in found.queryMeanings("house", locale(*ENGLISH), ())][:3]


@feature
def fonts(office: Office) -> object:
    device = create(office.context, "com.sun.star.awt.Toolkit").createScreenCompatibleDevice(10, 10)
    return sorted({descriptor.Name for descriptor in device.getFontDescriptors()})


@feature
def templates(office: Office) -> object:
    content = create(office.context, "com.sun.star.frame.DocumentTemplates").getContent()
    return content.getIdentifier().getContentIdentifier()


@feature
def autotext(office: Office) -> object:
    container = create(office.context, "com.sun.star.text.AutoTextContainer")
    return {name.partition("*")[0]: container.getByName(name).getElementNames() for name in container.getElementNames()}


@feature
def gallery(office: Office) -> object:
    return sorted(create(office.context, "com.sun.star.gallery.GalleryThemeProvider").getElementNames())


@feature
def writer_styles(office: Office) -> object:
    document = new(office.context, "swriter")
    families = document.getStyleFamilies()
    found = families.getByName("ParagraphStyles").getCount()
    page = families.getByName("PageStyles").getByName("Standard")
    size = page.Width, page.Height
    document.close(True)
    return found, size


@feature
def printing(office: Office) -> object:
    """To a file, as PrintFileName or FileName say."""
    document = new(office.context, "swriter")
    document.Text.String = "printed"
    document.print(properties(FileName=f"{office.here}/printed.ps", Wait=True))
    document.close(True)
    return kind_of(office.context, f"{office.here}/printed.ps")


@feature
def printer(office: Office) -> object:
    document = new(office.context, "swriter")
    found = {each.Name: str(each.Value) for each in document.getPrinter()}
    document.close(True)
    return found


def run_script(context: Any, uri: str) -> str:
    """Run a script of LibreOffice's own that writes into the document for which it is run."""
    document = new(context, "swriter")
    document.getScriptProvider().getScript(f"vnd.sun.star.script:{uri}&location=share").invoke((), (), ())
    text = document.Text.String
    document.close(True)
    return str(text)


@feature
def python_script(office: Office) -> object:
    return run_script(office.context, "HelloWorld.py$HelloWorldPython?language=Python")


@feature
def basic_function(office: Office) -> object:
    factory = create(office.context, "com.sun.star.script.provider.MasterScriptProviderFactory")
    script = factory.createScriptProvider("").getScript(
        "vnd.sun.star.script:Tools.Strings.GetFileNameExtension?language=Basic&location=application"
    )
    return script.invoke(("file:///a/b.odt",), (), ())[0]


@feature
def beanshell_script(office: Office) -> object:
    """In Java."""
    return run_script(office.context, "HelloWorld.helloworld.bsh?language=BeanShell")


@feature
def javascript_script(office: Office) -> object:
    """In Java too."""
    return run_script(office.context, "HelloWorld.helloworld.js?language=JavaScript")


@feature
def java(office: Office) -> object:
    machine = create(office.context, "com.sun.star.java.JavaVirtualMachine")
    return machine.isVMEnabled()


def rows(connection: Any, query: str) -> list[list[str]]:
    """Return a query's result."""
    result = connection.createStatement().executeQuery(query)
    found = []
    while result.next():
        found.append([result.getString(number + 1) for number in range(result.getMetaData().getColumnCount())])
    connection.close()
    return found


@feature
def text_database(office: Office) -> object:
    create(office.context, "com.sun.star.ucb.SimpleFileAccess").createFolder(f"{office.here}/csv")
    write(office.context, f"{office.here}/csv/people.csv", b"Name,City\nAda,London\n")
    options = properties(Extension="csv", HeaderLine=True, FieldDelimiter=",", StringDelimiter='"')
    drivers = create(office.context, "com.sun.star.sdbc.DriverManager")
    return rows(drivers.getConnectionWithInfo(f"sdbc:flat:{office.here}/csv", options), 'SELECT * FROM "people"')


@feature
def sheet_database(office: Office) -> object:
    document = new(office.context, "scalc")
    sheet = document.Sheets.getByIndex(0)
    for column, (title, value) in enumerate((("Name", "Ada"), ("City", "London"))):
        sheet.getCellByPosition(column, 0).String = title
        sheet.getCellByPosition(column, 1).String = value
    sheet.Name = "people"
    document.storeToURL(f"{office.here}/people.ods", ())
    document.close(True)
    drivers = create(office.context, "com.sun.star.sdbc.DriverManager")
    return rows(drivers.getConnection(f"sdbc:calc:{office.here}/people.ods"), 'SELECT * FROM "people"')


def embedded(context: Any, here: str, engine: str) -> object:
    """Make a Base document with a database of its own, fill a table, and read it again."""
    source = create(context, "com.sun.star.sdb.DatabaseContext").createInstance()
    source.URL = f"sdbc:embedded:{engine}"
    source.DatabaseDocument.storeAsURL(f"{here}/{engine}.odb", ())
    connection = source.getConnection("", "")
    statement = connection.createStatement()
    statement.execute('CREATE TABLE "people" ("id" INTEGER NOT NULL PRIMARY KEY, "name" VARCHAR(40))')
    statement.executeUpdate("INSERT INTO \"people\" VALUES (1, 'Ada')")
    return rows(connection, 'SELECT * FROM "people"')


@feature
def hsqldb(office: Office) -> object:
    """It needs Java."""
    return embedded(office.context, office.here, "hsqldb")


@feature
def firebird(office: Office) -> object:
    return embedded(office.context, office.here, "firebird")


@feature
def svg_import(office: Office) -> object:
    picture = b'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20"><rect width="40" height="20"/></svg>'
    write(office.context, f"{office.here}/picture.svg", picture)
    graphic = create(office.context, "com.sun.star.graphic.GraphicProvider").queryGraphic(
        properties(URL=f"{office.here}/picture.svg")
    )
    return graphic.MimeType, graphic.Size100thMM.Width


@feature
def picture_export(office: Office) -> object:
    document = new(office.context, "sdraw")
    page = document.DrawPages.getByIndex(0)
    shape = document.createInstance("com.sun.star.drawing.EllipseShape")
    page.add(shape)
    shape.setSize(uno.createUnoStruct("com.sun.star.awt.Size", 4000, 3000))
    found = {}
    for name in ("png", "jpg", "svg", "emf", "webp"):
        document.storeToURL(f"{office.here}/picture.{name}", properties(FilterName=f"draw_{name}_Export"))
        found[name] = kind_of(office.context, f"{office.here}/picture.{name}")
    document.close(True)
    return found


@feature
def pdf_round_trip(office: Office) -> object:
    """The import is by a program of its own, xpdfimport."""
    document = new(office.context, "swriter")
    document.Text.String = "there and back"
    document.storeToURL(f"{office.here}/a.pdf", properties(FilterName="writer_pdf_Export"))
    document.close(True)
    document = load(office.context, f"{office.here}/a.pdf")
    page = document.DrawPages.getByIndex(0)
    text = [page.getByIndex(number).String for number in range(page.Count)]
    document.close(True)
    return text


@feature
def text_exports(office: Office) -> object:
    filters = {
        "html": "HTML (StarWriter)",
        "epub": "EPUB",
        "docx": "MS Word 2007 XML",
        "rtf": "Rich Text Format",
        "doc": "MS Word 97",
        "fodt": "OpenDocument Text Flat XML",
    }
    found: dict[str, str] = {}
    document = new(office.context, "swriter")
    document.Text.String = "exported"
    for extension, name in filters.items():
        try:
            document.storeToURL(f"{office.here}/text.{extension}", properties(FilterName=name))
            found[extension] = kind_of(office.context, f"{office.here}/text.{extension}")
        except Exception as error:  # noqa: BLE001 - a UNO exception has no base class of Python's but Exception
            found[extension] = type(error).__name__
    document.close(True)
    return found


@feature
def password(office: Office) -> object:
    found = []
    for name, options in (("a.odt", {}), ("a.docx", {"FilterName": "MS Word 2007 XML"})):
        document = new(office.context, "swriter")
        document.Text.String = "secret"
        document.storeToURL(f"{office.here}/{name}", properties(Password="word", **options))
        document.close(True)
        document = load(office.context, f"{office.here}/{name}", Password="word")
        found.append(document.Text.String)
        document.close(True)
    return found


@feature
def formula(office: Office) -> object:
    document = new(office.context, "swriter")
    thing = document.createInstance("com.sun.star.text.TextEmbeddedObject")
    thing.CLSID = "078B7ABA-54FC-457F-8551-6147e776a997"
    document.Text.insertTextContent(document.Text.createTextCursor(), thing, False)
    thing.getEmbeddedObject().Formula = "a over b"
    text = thing.getEmbeddedObject().Formula
    document.close(True)
    return text


@feature
def chart(office: Office) -> object:
    document = new(office.context, "scalc")
    sheet = document.Sheets.getByIndex(0)
    for row in range(4):
        sheet.getCellByPosition(0, row).Value = row * row
    area = sheet.getCellRangeByPosition(0, 0, 0, 3).getRangeAddress()
    sheet.getCharts().addNewByName("chart", rectangle(0, 0, 8000, 6000), (area,), False, False)
    kind = sheet.getCharts().getByName("chart").getEmbeddedObject().getDiagram().getDiagramType()
    document.storeToURL(f"{office.here}/chart.pdf", properties(FilterName="calc_pdf_Export"))
    document.close(True)
    return kind, kind_of(office.context, f"{office.here}/chart.pdf")


@feature
def calculation(office: Office) -> object:
    document = new(office.context, "scalc")
    cell = document.Sheets.getByIndex(0).getCellByPosition(0, 0)
    found = []
    for text in ("=SUM(1;2)", '=TEXT(1234.5;"#,##0.00")', "=EASTERSUNDAY(2026)", "=BIN2DEC(101)", '=INFO("system")'):
        cell.Formula = text
        found.append(cell.String)
    document.close(True)
    return found


@feature
def solver(office: Office) -> object:
    return [
        bool(create(office.context, f"com.sun.star.comp.Calc.{name}Solver")) for name in ("Lpsolve", "CoinMP", "Swarm")
    ]


@feature
def signatures(office: Office) -> object:
    """NSS: by its certificate store and a check of a document without signatures."""
    initializer = create(office.context, "com.sun.star.xml.crypto.NSSInitializer")
    digest = initializer.getDigestContext(1, ())  # SHA-1
    digest.updateDigest(uno.ByteSequence(b"abc"))
    return bytes(digest.finalizeDigestAndDispose().value).hex()


@feature
def own_program(office: Office) -> object:
    """A client may run programs in its office."""
    shell = create(office.context, "com.sun.star.system.SystemShellExecute")
    shell.execute("/usr/bin/true", "", 0)
    return True


@feature
def filters(office: Office) -> object:
    return sorted(create(office.context, "com.sun.star.document.FilterFactory").getElementNames())


@feature
def dialogs(office: Office) -> object:
    """A dialog's model, without showing it."""
    model = create(office.context, "com.sun.star.awt.UnoControlDialogModel")
    model.insertByName("field", model.createInstance("com.sun.star.awt.UnoControlEditModel"))
    return model.getElementNames()


def main() -> int:
    """Try the features that are named, or all."""
    parser = argparse.ArgumentParser(description="Try what an office can do.")
    add_address(parser)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    context = connect(arguments.host, arguments.port)
    temporary = create(context, "com.sun.star.util.PathSubstitution").getSubstituteVariableValue("$(temp)")
    temporary = create(context, "com.sun.star.util.PathSettings").Temp or temporary
    files = create(context, "com.sun.star.ucb.SimpleFileAccess")
    for name in arguments.names or _FEATURES:
        here = f"{temporary}/features-{name}"
        facts: dict[str, object] = {"name": name}
        try:
            files.createFolder(here)
            facts["result"] = _FEATURES[name](Office(context, here))
        except Exception as error:  # noqa: BLE001 - a UNO exception has no base class of Python's but Exception
            kind = getattr(error, "typeName", None) or type(error).__name__
            facts["error"] = f"{kind}: {getattr(error, 'Message', error)}"
        print(json.dumps(facts), flush=True)
    leave(0)
    return 0


if __name__ == "__main__":
    main()
