#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Real clients by the hundred: a process that has loaded pyuno, and forks itself for each session.

So a client costs a fork and not the 0.15 s of Python's and pyuno's start, and yet is a process of its own, to be
killed by itself. (One process for all does not do: pyuno never quite lets go of a connection's first object, and the
next connection gets it again, dead.)

Each line of standard input, {"session": N, "kind": "convert", "document": PATH}, is one client. It tells its steps as
lines of JSON on standard output: "connected" with its pid and its name, "served" when it has an office, "faulting"
as it begins what may not end, "holding" when it waits to be killed, "error" or "done". In the end comes "exit", from
the parent, with the status.
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

NOT_CLEAN = "a document of somebody else's is open"
HURTING = {"abort": abort, "basic-loop": basic_loop}


class Teller:
    """Tells steps; a line is one write, and so whole."""

    def __init__(self, session: int) -> None:
        self.session = session

    def __call__(self, step: str, **facts: object) -> None:
        line = json.dumps({"session": self.session, "step": step, **facts}) + "\n"
        os.write(1, line.encode())


def connect(step: Teller) -> Any:  # noqa: ANN401 - UNO's objects have no types
    """Connect, tell by which name, and return the office's context."""
    local = uno.getComponentContext()
    connection = create(local, "com.sun.star.connection.Connector").connect("socket,host=127.0.0.1,port=2002")
    step("connected", pid=os.getpid(), client=name_of_socket())
    bridge = create(local, "com.sun.star.bridge.BridgeFactory").createBridge("", "urp", connection, None)
    context = bridge.getInstance("StarOffice.ComponentContext")
    if context is None:
        raise RuntimeError("no context")
    step("served")
    return context


def name_of_socket() -> str:
    """The name of this process's only TCP connection. UNO's own idea of the local port is the remote one."""
    for entry in Path("/proc/self/fd").iterdir():
        try:
            copy = socket.socket(fileno=os.dup(int(entry.name)))
        except OSError:  # no socket, or the directory itself
            continue
        with copy:
            if copy.family == socket.AF_INET:
                host, port = copy.getsockname()
                return f"{host}:{port}"
    raise RuntimeError("no connection")


def load(desktop: Any, document: str) -> Any:  # noqa: ANN401
    """Load a document, into an office that has none."""
    if desktop.getComponents().hasElements():
        raise RuntimeError(NOT_CLEAN)
    loaded = desktop.loadComponentFromURL(uno.systemPathToFileUrl(document), "_blank", 0, properties(Hidden=True))
    if loaded is None:
        raise RuntimeError("no document")
    return loaded


def store(document: Any, target: Path) -> None:  # noqa: ANN401
    """Have the office write the PDF over the connection."""
    name = next((name for kind, name in PDF_FILTERS.items() if document.supportsService(kind)), "writer_pdf_Export")
    document.storeToURL("private:stream", properties(FilterName=name, OutputStream=FileOutput(target)))
    if not target.read_bytes().startswith(b"%PDF"):
        raise RuntimeError("no PDF")
    target.unlink()


def work(order: Order, step: Teller) -> None:
    """Be one client."""
    kind = order["kind"]
    context = connect(step)
    if kind in HURTING:
        HURTING[kind](context, step, None)  # type: ignore[arg-type] # it only tells "faulting"
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


def be_client(order: Order) -> NoReturn:
    """Be one client, and end as a process, without pyuno's own end."""
    step = Teller(order["session"])
    try:
        work(order, step)
    except Exception as error:  # noqa: BLE001 - a UNO exception has no base class of Python's but Exception
        told = json.loads(error_line(error))
        step("error", type=told["type"], message=told["message"])
        os._exit(1)
    step("done")
    os._exit(0)


def reap(sessions: dict[int, int]) -> None:
    """Tell of all clients that have ended."""
    while sessions:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        Teller(sessions.pop(pid))("exit", status=os.waitstatus_to_exitcode(status))


def main() -> None:
    """Fork a client for each line, until the end of standard input; reap them as they end."""
    sessions: dict[int, int] = {}
    uno.getComponentContext()
    woken, wake = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    orders = b""
    open_ = True
    while open_ or sessions:
        ready, _, _ = select.select([woken, *([0] if open_ else [])], [], [])
        if woken in ready:
            os.read(woken, 512)
            reap(sessions)
        if 0 in ready:
            data = os.read(0, 65536)
            open_ = bool(data)
            *lines, orders = (orders + data).split(b"\n")
            for line in lines:
                order = json.loads(line)
                pid = os.fork()
                if not pid:
                    os.close(0)
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    be_client(order)
                sessions[pid] = order["session"]


if __name__ == "__main__":
    main()
