# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients whose host vanishes without a word: their packets are lost from some moment on.

The host is a network namespace behind a veth pair. Its packets, and those to it, are lost because the neighbour entries
get an address that no interface has.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from command import Command
from deadline import until
from machine import Machine
from ooodd import messages
from ooodd.messages import Message
from places import CLIENTS, PYTHON
from service import PATIENCE, Service, finish

NEAR, FAR = "192.0.2.1", "192.0.2.2"
NOBODY = "02:00:00:00:00:01"

# ooodd.socket itself has 120 s. All clients still answer keep-alive probes within a second.
SOCKET = f"""[Socket]
ListenStream={NEAR}:2002
KeepAliveTimeSec=1s
KeepAliveIntervalSec=1s
KeepAliveProbes=2
"""

# Does what it is told, and says so when it is done.
CLIENT = f"""
import socket, sys
sys.path.insert(0, sys.argv[1])
from urp_noise import first_block
connection = socket.create_connection(("{NEAR}", 2002))
print("connect", flush=True)
for line in sys.stdin:
    if line == "send\\n":
        connection.sendall(first_block())
    else:
        assert connection.recv(4096)
    print(line, end="", flush=True)
"""


class Host:
    """The host that vanishes, with one client on it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._ip("netns", "add", "far")
        self._ip("link", "add", "near", "type", "veth", "peer", "name", "far", "netns", "far")
        for options, link, address in (((), "near", NEAR), (("-n", "far"), "far", FAR)):
            self._ip(*options, "address", "add", f"{address}/24", "dev", link)
            self._ip(*options, "link", "set", link, "up")

    @contextmanager
    def client(self) -> Iterator[Command]:
        """A client that is connected."""
        enter = ("nsenter", "--net=/run/netns/far", PYTHON, "-c", CLIENT, str(CLIENTS))
        with self.machine.popen(*enter) as client:
            said(client, "connect")
            yield client

    def lose_packets_to(self) -> None:
        self._ip("neighbour", "replace", FAR, "lladdr", NOBODY, "dev", "near", "nud", "permanent")

    def lose_packets_from(self) -> None:
        self._ip("-n", "far", "neighbour", "replace", NEAR, "lladdr", NOBODY, "dev", "far", "nud", "permanent")

    def unacknowledged(self) -> int:
        """How many bytes the machine has sent to the host that were not acknowledged."""
        sockets = self.machine.run("ss", "--tcp", "--numeric", "--no-header", "dst", FAR, check=True).stdout
        return sum(int(line.split()[2]) for line in sockets.splitlines())

    def _ip(self, *arguments: str) -> None:
        self.machine.run("ip", *arguments, check=True)


def said(client: Command, word: str) -> None:
    assert client.stdout is not None
    assert client.stdout.readline() == f"{word}\n", client.communicate()


def order(client: Command, word: str) -> None:
    """Have the client do something."""
    assert client.stdin is not None
    client.stdin.write(f"{word}\n")
    client.stdin.flush()
    said(client, word)


@pytest.fixture
def host(fresh_service: Service) -> Host:
    """The host, with ooodd reachable from it and keep-alive times of a few seconds."""
    machine = fresh_service.machine
    it = Host(machine)
    machine.put("/etc/systemd/system/ooodd.socket.d/test.conf", SOCKET)
    machine.run("systemctl", "daemon-reload", check=True)
    fresh_service.configure("[pool]\nworkers = 1\n")
    return it


def await_end(service: Service, message: Message, after: str) -> None:
    began = time.monotonic()
    entry = service.machine.wait_journal("ooodd.service", f"MESSAGE_ID={message.id}", after=after, timeout=PATIENCE)
    print(f"{time.monotonic() - began:.1f} s after the host vanished: {entry['MESSAGE']}")
    assert entry["OOODD_CLIENT"].startswith(f"{FAR}:")


def test_a_host_that_vanishes_while_its_session_is_idle(host: Host, fresh_service: Service) -> None:
    moment = host.machine.journal_moment()
    with host.client() as client:
        order(client, "send")
        order(client, "receive")
        until(lambda: host.unacknowledged() == 0, PATIENCE, "the connection to be idle")
        host.lose_packets_to()
        host.lose_packets_from()
        await_end(fresh_service, messages.SESSION_END, moment)
    fresh_service.wait_idle()
    assert fresh_service.serves()


def test_a_host_that_vanishes_amid_a_reply(host: Host, fresh_service: Service) -> None:
    moment = host.machine.journal_moment()
    with host.client() as client:
        host.lose_packets_to()
        order(client, "send")
        until(host.unacknowledged, PATIENCE, "the office to have answered")
        host.lose_packets_from()
        await_end(fresh_service, messages.SESSION_END, moment)
    fresh_service.wait_idle()
    assert fresh_service.serves()


def test_a_host_that_vanishes_while_its_client_is_queued(host: Host, fresh_service: Service) -> None:
    holder, _ = fresh_service.holding_client()
    moment = host.machine.journal_moment()
    with host.client() as client:
        order(client, "send")
        fresh_service.wait_queue(1)
        host.lose_packets_to()
        host.lose_packets_from()
        await_end(fresh_service, messages.CLIENT_LEFT, moment)
    fresh_service.wait_queue(0)
    finish(holder)
    assert holder.returncode == 0, "a client that was idle all the time, on a host that is there"
