#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ask an office for one thing, and write the answer as a line of JSON.

ask.py service NAME        whether the office has the service
ask.py load PATH [MODE]    load a document by its path, with this MacroExecutionMode: its text, or null
ask.py macro PATH          load a document, and dispatch its macro Standard.Module1.Main
ask.py fill                write into the office's temporary directory until that fails: how much, how many files
ask.py setting PATH NAME   a value of the office's configuration
ask.py change PATH NAME VALUE   try to change a value of the configuration: what it is then
ask.py locale              the office's language, and how it formats 1234.5 and a date
ask.py call EXPRESSION     the value of a Python expression with `context`, `create` and `properties`
"""

from __future__ import annotations

import argparse
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from client import add_address, connect, create, error_line, leave, properties


def service(context: Any, name: str) -> object:
    """Whether the office has the service."""
    return create(context, name) is not None


def load(context: Any, path: str, mode: str = "") -> object:
    """Load a document and return its text."""
    options: dict[str, object] = {"Hidden": True}
    if mode:
        options["MacroExecutionMode"] = int(mode)
    desktop = create(context, "com.sun.star.frame.Desktop")
    document = desktop.loadComponentFromURL(Path(path).absolute().as_uri(), "_blank", 0, properties(**options))
    if document is None:
        return None
    text = text_of(document)
    document.close(True)
    return text


def text_of(document: Any) -> str:
    """Return all text of a text document or a drawing."""
    if hasattr(document, "Text"):
        return str(document.Text.String)
    if hasattr(document, "DrawPages"):
        pages = [document.DrawPages.getByIndex(number) for number in range(document.DrawPages.Count)]
        shapes = [page.getByIndex(number) for page in pages for number in range(page.Count)]
        return "\n".join(shape.String for shape in shapes if hasattr(shape, "String"))
    return type(document).__name__


def macro(context: Any, path: str) -> object:
    """Dispatch a macro of a document, which writes "run" into it. Return the document's text."""
    desktop = create(context, "com.sun.star.frame.Desktop")
    options = properties(Hidden=True, MacroExecutionMode=4)
    document = desktop.loadComponentFromURL(Path(path).absolute().as_uri(), "_blank", 0, options)
    dispatcher = create(context, "com.sun.star.frame.DispatchHelper")
    url = "vnd.sun.star.script:Standard.Module1.Main?language=Basic&location=document"
    dispatcher.executeDispatch(document.CurrentController.Frame, url, "", 0, ())
    text = text_of(document)
    document.close(True)
    return text


def fill(context: Any) -> object:
    """Write one big file, and then many small ones, until each fails."""
    settings = create(context, "com.sun.star.util.PathSettings")
    access = create(context, "com.sun.star.ucb.SimpleFileAccess")
    temporary = settings.Temp
    block, size, count = bytes(8 << 20), 0, 0
    stream = access.openFileWrite(f"{temporary}/big")
    try:
        while size < 4 << 30:
            stream.writeBytes(uno_bytes(block))
            size += len(block)
    except Exception as error:  # noqa: BLE001
        first = type(error).__name__
    try:
        while count < 100_000:
            access.openFileWrite(f"{temporary}/small{count}").closeOutput()
            count += 1
    except Exception as error:  # noqa: BLE001
        return {"size": size, "error": first, "files": count, "second": type(error).__name__}
    return {"size": size, "files": count}


def uno_bytes(data: bytes) -> Any:
    """Return bytes as UNO's sequence."""
    import uno

    return uno.ByteSequence(data)


def setting(context: Any, path: str, name: str) -> object:
    """Return a value of the configuration."""
    return configuration(context, "ConfigurationAccess", path).getByName(name)


def change(context: Any, path: str, name: str, value: str) -> object:
    """Change a number or a truth value of the configuration, if the office allows it; return what it is then."""
    access = configuration(context, "ConfigurationUpdateAccess", path)
    with suppress(Exception):
        access.replaceByName(name, json.loads(value))
        access.commitChanges()
    return setting(context, path, name)


def configuration(context: Any, service: str, path: str) -> Any:
    """A node of the configuration, by one of its services."""
    provider = create(context, "com.sun.star.configuration.ConfigurationProvider")
    return provider.createInstanceWithArguments(f"com.sun.star.configuration.{service}", properties(nodepath=path))


def locale(context: Any) -> object:
    """Return the language, and a number as a new spreadsheet shows it."""
    desktop = create(context, "com.sun.star.frame.Desktop")
    document = desktop.loadComponentFromURL("private:factory/scalc", "_blank", 0, properties(Hidden=True))
    cell = document.Sheets.getByIndex(0).getCellByPosition(0, 0)
    cell.Formula = '=TEXT(1234.5;"#,##0.00")'
    cell.setFormula("=FIXED(1234.5;2)")
    shown = cell.String
    found = document.CharLocale
    document.close(True)
    return {"locale": f"{found.Language}-{found.Country}", "number": shown}


def call(context: Any, expression: str) -> object:
    """Evaluate an expression."""
    return eval(expression, {"context": context, "create": create, "properties": properties})  # noqa: S307


def main() -> int:
    """Ask, and answer."""
    parser = argparse.ArgumentParser()
    add_address(parser)
    parser.add_argument("what", choices=["service", "load", "macro", "fill", "setting", "change", "locale", "call"])
    parser.add_argument("arguments", nargs="*")
    options = parser.parse_args()
    try:
        answer = globals()[options.what](connect(options.host, options.port), *options.arguments)
    except Exception as error:  # noqa: BLE001 - a UNO exception has no base class of Python's but Exception
        print(error_line(error), flush=True)
        return 1
    print(json.dumps({"step": options.what, "answer": answer}, default=str), flush=True)
    return 0


if __name__ == "__main__":
    leave(main())
