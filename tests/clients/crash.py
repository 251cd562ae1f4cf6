#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Crash or hang the office behind a port, for real, by the fault's name.

    crash.py [--host H] [--port P] FAULT

- abort: the office runs a shell command that kills it (SystemShellExecute); signal 6, any version.
- about: dispatches .uno:About, whose dialog a headless 7.4 cannot make.
- calc-visible: loads a spreadsheet without Hidden, SOURCE is its path.
- basic-loop: runs an endless Basic loop, in a document that allows its macros.
- calc-loop: computes formulas for minutes; needs no macros.
- stream: loads from a stream of the client's that never answers.

Tells "connected", then "faulting" just before the call that hurts. What comes then is the fault: an "error" with status 1
when the connection broke, "survived" with status 0 if the office went on, and nothing at all as long as it hangs.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from client import FileInput, Steps, add_address, connect, create, error_line, leave, properties

LOOP = "Sub Hang\nDo While True\nLoop\nEnd Sub\n"
ALWAYS_EXECUTE_NO_WARN = 4
"""com.sun.star.document.MacroExecMode"""
ROWS = 1_048_576
FORMULAS = 2000


def new_document(context: Any, kind: str, hidden: bool = True, **more: object) -> Any:
    """Open an empty document ("swriter", "scalc")."""
    desktop = create(context, "com.sun.star.frame.Desktop")
    return desktop.loadComponentFromURL(f"private:factory/{kind}", "_blank", 0, properties(Hidden=hidden, **more))


def abort(context: Any, step: Steps, _source: Path | None) -> None:
    """The office is its child's parent: sh -c 'kill -6 $PPID'. Any client may do that, no setting stops it."""
    shell = create(context, "com.sun.star.system.SystemShellExecute")
    step("faulting")
    shell.execute("/bin/sh", "-c 'kill -6 $PPID'", 0)


def about(context: Any, step: Steps, _source: Path | None) -> None:
    """Dispatch .uno:About on a hidden document's frame."""
    frame = new_document(context, "swriter").getCurrentController().getFrame()
    dispatcher = create(context, "com.sun.star.frame.DispatchHelper")
    step("faulting")
    dispatcher.executeDispatch(frame, ".uno:About", "", 0, ())


def calc_visible(context: Any, step: Steps, source: Path | None) -> None:
    """Load a spreadsheet in a window that there is no display for."""
    desktop = create(context, "com.sun.star.frame.Desktop")
    url = source.resolve().as_uri() if source else "private:factory/scalc"
    step("faulting")
    document = desktop.loadComponentFromURL(url, "_blank", 0, ())
    if document is None:
        step("none")


def basic_loop(context: Any, step: Steps, _source: Path | None) -> None:
    """Run an endless loop of the document's own Basic. It goes on after the client's end."""
    document = new_document(context, "swriter", MacroExecutionMode=ALWAYS_EXECUTE_NO_WARN)
    libraries = document.BasicLibraries
    if not libraries.hasByName("Standard"):
        libraries.createLibrary("Standard")
    libraries.getByName("Standard").insertByName("Module1", LOOP)
    url = "vnd.sun.star.script:Standard.Module1.Hang?language=Basic&location=document"
    script = document.getScriptProvider().getScript(url)
    step("faulting")
    script.invoke((), (), ())


def calc_loop(context: Any, step: Steps, _source: Path | None) -> None:
    """Compute formulas over whole columns, one after the other, with the SolarMutex held."""
    document = new_document(context, "scalc")
    sheet = document.Sheets.getByIndex(0)
    document.enableAutomaticCalculation(False)
    column = f"ROW($A$1:$A${ROWS})"
    sheet.getCellRangeByName(f"B1:B{FORMULAS}").setFormulaArray(
        tuple((f"=SUMPRODUCT(SQRT({column})*SIN({column}+{number}))",) for number in range(FORMULAS))
    )
    step("faulting")
    document.calculateAll()


class SilentInput(FileInput):
    """A stream that takes for ever over its first bytes."""

    def readBytes(self, _data: object, _count: int) -> tuple[int, Any]:
        """Wait for a signal that nobody sends."""
        signal.pause()
        return 0, None


def stream(context: Any, step: Steps, source: Path | None) -> None:
    """Load from a stream that never answers; ends with the client."""
    desktop = create(context, "com.sun.star.frame.Desktop")
    options = properties(Hidden=True, InputStream=SilentInput(source or Path("/dev/null")))
    step("faulting")
    desktop.loadComponentFromURL("private:stream", "_blank", 0, options)


FAULTS: dict[str, Callable[[Any, Steps, Path | None], None]] = {
    "abort": abort,
    "about": about,
    "basic-loop": basic_loop,
    "calc-loop": calc_loop,
    "calc-visible": calc_visible,
    "stream": stream,
}


def main() -> int:
    """Connect and cause the fault."""
    parser = argparse.ArgumentParser(description="Crash or hang an office.")
    add_address(parser)
    parser.add_argument("fault", choices=FAULTS)
    parser.add_argument("source", nargs="?", type=Path)
    arguments = parser.parse_args()
    step = Steps(None, None)
    try:
        context = connect(arguments.host, arguments.port)
        step("connected")
        FAULTS[arguments.fault](context, step, arguments.source)
        # A crash may come a moment after the call's return.
        create(context, "com.sun.star.frame.Desktop").getCurrentComponent()
    except Exception as error:  # noqa: BLE001 - a UNO exception has no base class of Python's but Exception
        print(error_line(error), flush=True)
        return 1
    step("survived")
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    leave(main())
