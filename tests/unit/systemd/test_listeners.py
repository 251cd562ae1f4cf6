# SPDX-License-Identifier: LGPL-2.1-or-later
"""The listening sockets: what systemd may pass, what can be opened, whom accepting yields."""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ooodd.errors import ListenError
from ooodd.systemd import listeners
from ooodd.systemd.listeners import Peer, accept, listen, name, peer, refuse_waiting

# In the foreground


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:0", "[::1]:0", "::1:0"])
def test_an_address_is_listened_on(address: str) -> None:
    with listen(address) as listener:
        assert not listener.getblocking()
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        host, _, port = name(listener).rpartition(":")
        assert host in ("127.0.0.1", "[::1]")
        assert int(port)


@pytest.mark.parametrize(
    "address", ["", ":", "2002", "localhost", ":2002", "localhost:", "localhost:x", "localhost:-1"]
)
def test_what_is_no_address_says_what_one_looks_like(address: str) -> None:
    with pytest.raises(ListenError, match=r"is no address to listen on: give HOST:PORT, e\.g\. 127\.0\.0\.1:2002"):
        listen(address)


@pytest.mark.parametrize("address", ["localhost:65536", "localhost:99999999999999999999", "localhost:²"])
def test_a_port_that_cannot_be_is_no_address(address: str) -> None:
    with pytest.raises(ListenError, match="is no address to listen on"):
        listen(address)


@pytest.mark.parametrize("host", ["192.0.2.1", "host.invalid", "not..a.name", "ä" * 70, "fe80:::"])
def test_a_host_that_is_not_here_is_an_error_and_leaks_nothing(host: str) -> None:
    with pytest.raises(ListenError, match="can't listen on"):
        listen(f"{host}:0")


def test_a_taken_address_says_what_to_do() -> None:
    with listen("127.0.0.1:0") as taken, pytest.raises(ListenError) as refused:
        listen(name(taken))
    assert refused.value.hint == "end what listens there (ss -ltnp), or give another --listen"


def test_a_port_that_was_just_in_use_can_be_had_again() -> None:
    with listen("127.0.0.1:0") as first:
        address = first.getsockname()
        with socket.create_connection(address):
            for connection, _ in accept(first):
                connection.close()  # ours first, so that TIME_WAIT is ours
    listen("{}:{}".format(*address)).close()


# From systemd


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """What systemd passes, as descriptor -> name, which a test fills in."""
    daemon = pytest.importorskip("systemd.daemon")
    descriptors: dict[int, str] = {}
    monkeypatch.setattr(daemon, "listen_fds_with_names", lambda **_: descriptors)
    return descriptors


def test_every_socket_of_our_name_is_taken_and_the_rest_is_named(passed: dict[int, str]) -> None:
    with contextlib.ExitStack() as stack:
        names = ["uno", "session-7-1", "uno", "marks", "session-7-1"]
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
        passed.update((os.dup(it.fileno()), of) for it, of in zip(sockets, names, strict=True))
        found, rest = listeners.from_systemd()
        assert [it.getsockname() for it in found] == [sockets[0].getsockname(), sockets[2].getsockname()]
        assert not any(it.getblocking() for it in found)
        assert rest == {descriptor: of for descriptor, of in passed.items() if of != "uno"}
        assert list(rest.values()) == ["session-7-1", "marks", "session-7-1"]
        for it in found:
            it.close()
        for descriptor in rest:
            os.close(descriptor)  # still open, whatever became of the listeners


def test_a_unix_listener_will_do_too(passed: dict[int, str], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "uno"))
        listener.listen()
        passed[os.dup(listener.fileno())] = "uno"
        (found,), rest = listeners.from_systemd()
        assert rest == {}
        assert name(found) == str(tmp_path / "uno")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "uno"))
            ((connection, who),) = accept(found)
            assert who == peer(connection) == Peer("a local process", "this host")
            connection.close()
        found.close()


@pytest.mark.parametrize(("names", "told"), [([], "none at all"), (["metrics", "agent", "agent"], "agent, metrics")])
def test_no_socket_of_our_name_says_what_was_passed(names: list[str], told: str, passed: dict[int, str]) -> None:
    passed.update(enumerate(names, 1000))
    with pytest.raises(ListenError) as refused:
        listeners.from_systemd()
    assert refused.value.message == f'systemd passed no socket named "uno" (passed: {told})'
    assert "systemctl start ooodd.socket" in refused.value.hint


@contextlib.contextmanager
def descriptor_of(kind: str) -> Iterator[int]:
    match kind:
        case "file":
            with Path("/dev/null").open() as file:
                yield file.fileno()
        case "datagram":
            with socket.socket(type=socket.SOCK_DGRAM) as datagram:
                yield datagram.fileno()
        case "connection":  # Accept=yes
            one, other = socket.socketpair()
            with one, other:
                yield one.fileno()
        case "sequential":
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sequential:
                sequential.bind("")
                sequential.listen()
                yield sequential.fileno()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("file", "is no socket"),
        ("datagram", "is no listening stream socket"),
        ("connection", "is no listening stream socket"),
        ("sequential", "is no listening stream socket"),
    ],
)
def test_what_is_no_listener_is_refused(kind: str, reason: str, passed: dict[int, str]) -> None:
    with descriptor_of(kind) as descriptor, socket.create_server(("127.0.0.1", 0)) as good:
        passed[os.dup(good.fileno())] = "uno"
        passed[os.dup(descriptor)] = "uno"
        with pytest.raises(ListenError, match=reason):
            listeners.from_systemd()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(min(passed))  # the good one: what has been taken is not left open
        for left in passed:
            with contextlib.suppress(OSError):
                os.close(left)


# Accepting


def test_accepting_yields_who_waits_and_their_addresses() -> None:
    with listen("127.0.0.1:0") as listener, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(3)]
        accepted = list(accept(listener))
        addresses = [client.getsockname() for client in clients]
        assert [who for _, who in accepted] == [Peer(f"{host}:{port}", host) for host, port in addresses]
        for connection, who in accepted:
            assert peer(connection) == who
            assert not connection.getblocking()
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            connection.close()
        assert list(accept(listener)) == []


def test_a_client_of_ipv6_has_its_address_in_brackets_and_its_host_without() -> None:
    with listen("[::1]:0") as listener, socket.create_connection(listener.getsockname()[:2]) as client:
        ((connection, who),) = accept(listener)
        assert who == peer(connection) == Peer(f"[::1]:{client.getsockname()[1]}", "::1")
        connection.close()


def test_who_has_gone_is_nobody_and_of_no_host() -> None:
    with listen("127.0.0.1:0") as listener:
        with socket.create_connection(listener.getsockname()) as client:
            ((connection, _),) = accept(listener)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        with connection:
            assert peer(connection) == Peer("a client that has gone", "")


def test_a_batch_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "_BATCH", 2)
    with listen("127.0.0.1:0") as listener, contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection(listener.getsockname()))
        for expected in (2, 1, 0):
            batch = list(accept(listener))
            assert len(batch) == expected
            for connection, _ in batch:
                connection.close()


class Failing:
    """A listener whose accept(2) fails as a real one does only when the machine is in trouble."""

    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)

    def accept(self) -> None:
        number = self.errors.pop(0) if self.errors else errno.EAGAIN
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_trouble_here_is_raised(number: int) -> None:
    with pytest.raises(OSError, match=os.strerror(number)):
        list(accept(Failing(number)))  # type: ignore[arg-type]


def test_trouble_of_a_client_is_its_own() -> None:
    its_own = [errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.EHOSTUNREACH, errno.EPERM, errno.EINTR]
    failing = Failing(*its_own)
    assert list(accept(failing)) == []  # type: ignore[arg-type]
    assert failing.errors == []


def test_a_client_that_has_gone_before_it_was_accepted_disturbs_nobody() -> None:
    with listen("127.0.0.1:0") as listener:
        with socket.create_connection(listener.getsockname()) as gone:
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        with socket.create_connection(listener.getsockname()) as client:
            accepted = {who.name: connection for connection, who in accept(listener)}
            assert "{}:{}".format(*client.getsockname()) in accepted
            for connection in accepted.values():
                connection.close()


def test_refusing_closes_who_waits() -> None:
    with listen("127.0.0.1:0") as listener, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(3)]
        refuse_waiting([listener])
        assert [client.recv(1) for client in clients] == [b""] * 3
