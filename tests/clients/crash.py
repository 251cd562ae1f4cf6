#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Crash or hang the office behind a port. The argument is the name of the fault.

    crash.py [--host H] [--port P] FAULT

- abort: the office runs a shell command that ends it with signal 6. This works on any build and with any settings.
- about: dispatches .uno:About. Debian's 7.4 without a GUI (-nogui) crashes, the full build does not.
- calc-visible: loads a spreadsheet, SOURCE or an empty one, without Hidden. Again, only the -nogui build crashes.
- basic-loop: runs an endless Basic loop of a document that allows its macros. The office hangs and does not recover
  when the client has gone. It answers a handshake, but no call that takes the SolarMutex. Security level 3 and
  DisableMacrosExecution do not stop it, because the client runs the macro.
- calc-loop: hangs the office in the same way, without macros, by formulas that take many minutes.
- stream: loads from a stream of the client that never answers, and writes "silent" when the office reads it. The office
  is healthy and serves other clients meanwhile.
- half-close: makes the office compute for many minutes, as calc-loop does, and closes the sending side of its
  connection meanwhile ("half-closed").

It writes "connected", then "faulting" just before the call that causes the fault. Then follows "error" with status 1 if
the connection broke, "survived" with status 0 if the office went on, or nothing while the office hangs.
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
    """Make the office write a shell script that kills it, and run the script. No setting prevents this.

    The service takes only one word as a parameter, hence the file. The shell runs in the background, hence the pid.
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
    """Call the office until a call fails because the process has gone."""
    while True:
        create(context, "com.sun.star.frame.Desktop")


def about(context: Any, step: Steps, _source: Path | None) -> None:
    """Dispatch .uno:About on a hidden document's frame."""
    frame = new_document(context, "swriter").getCurrentController().getFrame()
    dispatcher = create(context, "com.sun.star.frame.DispatchHelper")
    step("faulting")
    dispatcher.executeDispatch(frame, ".uno:About", "", 0, ())


def calc_visible(context: Any, step: Steps, source: Path | None) -> None:
    """Load a spreadsheet in a window, without a display."""
    desktop = create(context, "com.sun.star.frame.Desktop")
    url = source.resolve().as_uri() if source else "private:factory/scalc"
    step("faulting")
    document = desktop.loadComponentFromURL(url, "_blank", 0, ())
    if document is None:
        step("none")


def basic_loop(context: Any, step: Steps, _source: Path | None) -> None:
    """Run an endless loop in the document's Basic. It goes on when the client has gone."""
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
    """Compute formulas over whole columns. The office holds the SolarMutex meanwhile."""
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
    """A stream that never returns its first bytes, and writes a step when it is read."""

    def __init__(self, path: Path, step: Steps) -> None:
        super().__init__(path)
        self.step = step

    def readBytes(self, _data: object, _count: int) -> tuple[int, Any]:
        """Wait for a signal, which is never sent."""
        self.step("silent")
        signal.pause()
        return 0, None


def stream(context: Any, step: Steps, source: Path | None) -> None:
    """Load from a stream that never answers. The load ends with the client."""
    desktop = create(context, "com.sun.star.frame.Desktop")
    options = properties(Hidden=True, InputStream=SilentInput(source or Path("/dev/null"), step))
    step("faulting")
    desktop.loadComponentFromURL("private:stream", "_blank", 0, options)


def half_close(context: Any, step: Steps, source: Path | None) -> None:
    """Close the sending side during a call, from another thread."""

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
        # The office may crash just after the call has returned.
        create(context, "com.sun.star.frame.Desktop").getCurrentComponent()
    except Exception as error:  # noqa: BLE001 - a UNO exception has no base class of Python's but Exception
        print(error_line(error), flush=True)
        return 1
    step("survived")
    return 0


if __name__ == "__main__":
    leave(main())
