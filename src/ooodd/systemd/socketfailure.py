# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why ooodd.socket has failed, for ooodd-socket-failed.service.

systemd only says "Address already in use". An administrator needs to know which process uses it, and what to do.
"""

from collections.abc import Iterator

import psutil
from jeepney import DBusAddress, Message

from ooodd.systemd.bus import Bus, method_call

_SYSTEMD = "org.freedesktop.systemd1"
_SOCKET = DBusAddress("/org/freedesktop/systemd1/unit/ooodd_2esocket", _SYSTEMD, "org.freedesktop.DBus.Properties")
_MOVE = "give ooodd another address (ListenStream= in systemctl edit ooodd.socket)"


async def socket_failure() -> dict[str, str]:
    """Return the socket unit's Result as `result`, and which process holds the address and what to do as `what`."""
    bus = await Bus.connect()
    try:
        ((_, result),) = await bus.call(_get("Result"))
        ((_, listen),) = await bus.call(_get("Listen"))
    finally:
        await bus.close()
    holders = [line for _, address in listen for line in _holders(address)]
    if holders:
        return {
            "result": result,
            "what": f"{'; '.join(holders)}. End it, or {_MOVE}; then systemctl start ooodd.socket",
        }
    return {"result": result, "what": f"see systemctl status ooodd.socket; if the address is at fault, {_MOVE}"}


def _holders(address: str) -> Iterator[str]:
    """Yield which processes, other than systemd, listen at the address."""
    port = address.rpartition(":")[2]
    for connection in psutil.net_connections("tcp"):
        local = tuple(connection.laddr)  # host, port
        if connection.status == psutil.CONN_LISTEN and str(local[-1]) == port and connection.pid != 1:
            yield f"{address} is taken by {_name(connection.pid)}"


def _name(pid: int | None) -> str:
    if pid is None:
        return "another process"
    try:
        return f"{psutil.Process(pid).name()} (pid {pid})"
    except psutil.Error:
        return f"pid {pid}"


def _get(name: str) -> Message:
    return method_call(_SOCKET, "Get", "ss", f"{_SYSTEMD}.Socket", name)
