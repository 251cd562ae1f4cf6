#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Crash or hang the office behind a port, for real, by the fault's name.

    crash.py [--host H] [--port P] FAULT

- abort: the office runs a shell command that ends it with signal 6, on any build; takes no settings into account.
- about: dispatches .uno:About. Debian's 7.4 without a GUI (-nogui) crashes, the full build lives.
- calc-visible: loads a spreadsheet, SOURCE or an empty one, without Hidden. Again, only the -nogui build crashes.
- basic-loop: runs an endless Basic loop of a document that allows its macros. The office hangs for good, even when
  the client has gone: it still answers a handshake, and no call that takes the SolarMutex. Security level 3 and
  DisableMacrosExecution do not stop it, for it is the client that runs the macro.
- calc-loop: hangs the office in the same way but without macros, in formulas that take many minutes.
- stream: loads from a stream of the client's that never answers, and tells "silent" when it is asked. The office is
  well and serves others meanwhile.
- half-close: has the office compute for many minutes, as calc-loop does, and closes the sending side of its connection
  meanwhile ("half-closed").

Tells "connected", then "faulting" just before the call that hurts. What comes then is the fault: an "error" with status
1 when the connection broke, "survived" with status 0 if the office went on, and nothing at all as long as it hangs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uno
from client import FileInput, Steps, add_address, connect, create, error_line, leave, properties
from convert import office_pid

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
    """Have the office write a shell script that kills it, and run that. Any client may do so, no setting stops it.

    The service takes one word for a parameter, and starts the shell in the background: hence a file, and the pid.
    """
    directory = create(context, "com.sun.star.util.PathSubstitution").getSubstituteVariableValue("$(temp)")
    url = f"{directory}/abort"
    script = create(context, "com.sun.star.ucb.SimpleFileAccess").openFileWrite(url)
    script.writeBytes(uno.ByteSequence(f"kill -ABRT {office_pid(context)}".encode()))
    script.closeOutput()
    step("faulting")
    create(context, "com.sun.star.system.SystemShellExecute").execute("/bin/sh", uno.fileUrlToSystemPath(url), 0)
    wait_broken(context)


def wait_broken(context: Any) -> None:
    """Call the office until that fails, as it does when the process has gone; a call waits for the office's answer."""
    while True:
        create(context, "com.sun.star.frame.Desktop")


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
    """A stream that takes for ever over its first bytes, and says so."""

    def __init__(self, path: Path, step: Steps) -> None:
        super().__init__(path)
        self.step = step

    def readBytes(self, _data: object, _count: int) -> tuple[int, Any]:
        """Wait for a signal that nobody sends."""
        self.step("silent")
        signal.pause()
        return 0, None


def stream(context: Any, step: Steps, source: Path | None) -> None:
    """Load from a stream that never answers; ends with the client."""
    desktop = create(context, "com.sun.star.frame.Desktop")
    options = properties(Hidden=True, InputStream=SilentInput(source or Path("/dev/null"), step))
    step("faulting")
    desktop.loadComponentFromURL("private:stream", "_blank", 0, options)


def half_close(context: Any, step: Steps, source: Path | None) -> None:
    """Close the sending side amid a call, from another thread."""

    def close() -> None:
        for descriptor in list(Path("/proc/self/fd").iterdir()):
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(descriptor.name))) as connection:
                if connection.family == socket.AF_INET:
                    connection.shutdown(socket.SHUT_WR)
        step("half-closed")

    threading.Timer(2.0, close).start()
    calc_loop(context, step, source)


FAULTS: dict[str, Callable[[Any, Steps, Path | None], None]] = {
    "abort": abort,
    "about": about,
    "basic-loop": basic_loop,
    "calc-loop": calc_loop,
    "calc-visible": calc_visible,
    "half-close": half_close,
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
    leave(main())
