#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Many clients with pyuno: a process that has loaded pyuno, and forks itself for each session.

A fork saves the 0.15 s in which Python and pyuno start. Each client is a process of its own, so it can be killed. One
process for all clients would not work: pyuno keeps the first object of a connection, and the next connection gets the
same object, which is dead.

Each line of standard input, {"session": N, "kind": "convert", "document": PATH}, starts one client. The client writes
its steps as lines of JSON to standard output. "connected": its pid and its address. "served": it has an office.
"faulting": it begins a call that may not end. "holding": it waits to be killed. "error" or "done": its end. At last the
parent writes "exit" with the status.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "clients"))

import uno
from client import FileOutput, create, error_line, properties
from convert import PDF_FILTERS
from crash import abort, basic_loop

Order = dict[str, Any]

NOT_CLEAN = "a document of another client is open"
FAULTS = {"abort": abort, "basic-loop": basic_loop}


class StepWriter:
    """Writes steps. Each line is one write, so lines of several processes are not mixed."""

    def __init__(self, session: int) -> None:
        self.session = session

    def __call__(self, step: str, **facts: object) -> None:
        line = json.dumps({"session": self.session, "step": step, **facts}) + "\n"
        os.write(1, line.encode())


def connect(step: StepWriter) -> Any:  # noqa: ANN401 - UNO's objects have no types
    """Connect, write the local address, and return the office's context."""
    local = uno.getComponentContext()
    connection = create(local, "com.sun.star.connection.Connector").connect("socket,host=127.0.0.1,port=2002")
    step("connected", pid=os.getpid(), client=local_address())
    bridge = create(local, "com.sun.star.bridge.BridgeFactory").createBridge("", "urp", connection, None)
    context = bridge.getInstance("StarOffice.ComponentContext")
    if context is None:
        raise RuntimeError("no context")
    step("served")
    return context


def local_address() -> str:
    """Return the local address of this process's only TCP connection. UNO reports the remote port as the local one."""
    for entry in Path("/proc/self/fd").iterdir():
        try:
            copy = socket.socket(fileno=os.dup(int(entry.name)))
        except OSError:  # not a socket, or the directory itself
            continue
        with copy:
            if copy.family == socket.AF_INET:
                host, port = copy.getsockname()
                return f"{host}:{port}"
    raise RuntimeError("no connection")


def load(desktop: Any, document: str) -> Any:  # noqa: ANN401
    """Load a document. Raise RuntimeError if the office already has one open."""
    if desktop.getComponents().hasElements():
        raise RuntimeError(NOT_CLEAN)
    loaded = desktop.loadComponentFromURL(uno.systemPathToFileUrl(document), "_blank", 0, properties(Hidden=True))
    if loaded is None:
        raise RuntimeError("no document")
    return loaded


def store(document: Any, target: Path) -> None:  # noqa: ANN401
    """Let the office write the PDF over the connection."""
    name = next((name for kind, name in PDF_FILTERS.items() if document.supportsService(kind)), "writer_pdf_Export")
    document.storeToURL("private:stream", properties(FilterName=name, OutputStream=FileOutput(target)))
    if not target.read_bytes().startswith(b"%PDF"):
        raise RuntimeError("no PDF")
    target.unlink()


def work(order: Order, step: StepWriter) -> None:
    """Do what the client's kind says."""
    kind = order["kind"]
    context = connect(step)
    if kind in FAULTS:
        FAULTS[kind](context, step, None)  # type: ignore[arg-type] # it only writes "faulting"
        return
    if kind == "convert-killed":
        step("faulting")
    desktop = create(context, "com.sun.star.frame.Desktop")
    document = load(desktop, order["document"])
    if kind == "held-killed":
        step("holding")
        signal.pause()
    store(document, Path(f"/tmp/soak-{step.session}.pdf"))
    if kind != "left-open":
        document.close(True)  # noqa: FBT003


def run_client(order: Order) -> NoReturn:
    """Run one client in this process, and exit without the cleanup of pyuno."""
    step = StepWriter(order["session"])
    try:
        work(order, step)
    except Exception as error:  # noqa: BLE001 - a UNO exception has no base class of Python's but Exception
        line = json.loads(error_line(error))
        step("error", type=line["type"], message=line["message"])
        os._exit(1)
    step("done")
    os._exit(0)


def reap(sessions: dict[int, int]) -> None:
    """Write "exit" for each client that has ended."""
    while sessions:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        StepWriter(sessions.pop(pid))("exit", status=os.waitstatus_to_exitcode(status))


def main() -> None:
    """Fork a client for each line, until the end of standard input; reap them as they end."""
    sessions: dict[int, int] = {}
    uno.getComponentContext()
    woken, wake = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    orders = b""
    more_orders = True
    while more_orders or sessions:
        ready, _, _ = select.select([woken, *([0] if more_orders else [])], [], [])
        if woken in ready:
            os.read(woken, 512)
            reap(sessions)
        if 0 in ready:
            data = os.read(0, 65536)
            more_orders = bool(data)
            *lines, orders = (orders + data).split(b"\n")
            for line in lines:
                order = json.loads(line)
                pid = os.fork()
                if not pid:
                    os.close(0)
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    run_client(order)
                sessions[pid] = order["session"]


if __name__ == "__main__":
    main()
