# SPDX-License-Identifier: LGPL-2.1-or-later
"""The listening sockets: which ones systemd may pass, which can be opened, and accepting from them."""

import asyncio
import contextlib
import errno
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import ListJournal
from ooodd import messages
from ooodd.errors import ListenError
from ooodd.systemd import listeners
from ooodd.systemd.listeners import Acceptor, accept, listen, name, refuse_waiting, set_options
from ooodd.systemd.peer import Peer, peer, peer_at

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
            set_options(connection)
            assert not connection.getblocking()
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            connection.close()
        assert list(accept(listener)) == []


def test_a_client_of_ipv6_has_its_address_in_brackets_and_its_host_without() -> None:
    with listen("[::1]:0") as listener, socket.create_connection(listener.getsockname()[:2]) as client:
        ((connection, who),) = accept(listener)
        assert who == peer(connection) == Peer(f"[::1]:{client.getsockname()[1]}", "::1")
        connection.close()


def test_an_ipv4_client_of_a_dual_stack_listener_has_the_same_host_as_one_of_an_ipv4_listener() -> None:
    with contextlib.ExitStack() as stack:
        dual = stack.enter_context(socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True))
        dual.setblocking(False)  # noqa: FBT003
        single = stack.enter_context(listen("127.0.0.1:0"))
        for listener in (dual, single):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", listener.getsockname()[1])))
            ((connection, who),) = accept(listener)
            stack.enter_context(connection)
            host, port = client.getsockname()
            assert who == peer(connection) == Peer(f"{host}:{port}", "127.0.0.1")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (("192.0.2.1", 5), Peer("192.0.2.1:5", "192.0.2.1")),
        (("::ffff:192.0.2.1", 5, 0, 0), Peer("192.0.2.1:5", "192.0.2.1")),
        (("::192.0.2.1", 5, 0, 0), Peer("[::192.0.2.1]:5", "::192.0.2.1")),
        (("2001:db8::1", 5, 0, 0), Peer("[2001:db8::1]:5", "2001:db8::1")),
        (("fe80::1", 5, 0, 2), Peer("[fe80::1%2]:5", "fe80::1%2")),
        (("fe80::1%eth0", 5, 0, 2), Peer("[fe80::1%eth0]:5", "fe80::1%eth0")),
        ("/run/x", Peer("/run/x", "this host")),
        ("", Peer("a local process", "this host")),
    ],
)
def test_an_address_names_its_host(address: object, expected: Peer) -> None:
    assert peer_at(address) == expected


def test_a_connection_is_given_up_when_its_keep_alive_would_be() -> None:
    with listen("127.0.0.1:0") as listener, socket.create_connection(listener.getsockname()):
        ((connection, _),) = accept(listener)
        set_options(connection)
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 120_000
        connection.close()


@pytest.mark.parametrize(
    ("idle", "interval", "count", "milliseconds"), [(5, 2, 3, 11_000), (1, 1, 1, 2_000), (32767, 32767, 127, 2**31 - 1)]
)
def test_the_listener_s_own_keep_alive_times_rule(idle: int, interval: int, count: int, milliseconds: int) -> None:
    with listen("127.0.0.1:0") as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)
        with socket.create_connection(listener.getsockname()):
            ((connection, _),) = accept(listener)
            set_options(connection)
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == milliseconds
            connection.close()


def test_without_keep_alive_a_connection_may_stay_for_ever() -> None:
    with listen("127.0.0.1:0") as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
        with socket.create_connection(listener.getsockname()):
            ((connection, _),) = accept(listener)
            set_options(connection)
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
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
    """A listener whose accept(2) fails in the given ways, and then has no client."""

    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)

    def accept(self) -> None:
        number = self.errors.pop(0) if self.errors else errno.EAGAIN
        raise OSError(number, os.strerror(number))


# accept(2): errors that the new connection has already.
OF_THE_CONNECTION = [
    *(errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET),
    *(errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.EPERM, errno.EINTR),
]


@pytest.mark.parametrize("number", sorted(set(errno.errorcode) - {*OF_THE_CONNECTION, errno.EAGAIN}))
def test_any_error_that_is_not_the_connection_s_is_raised(number: int) -> None:
    failing = Failing(number)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        list(accept(failing))  # type: ignore[arg-type]
    assert failing.errors == []


def test_errors_of_a_connection_do_not_keep_others_from_being_accepted() -> None:
    failing = Failing(*OF_THE_CONNECTION)
    assert list(accept(failing)) == []  # type: ignore[arg-type]
    assert failing.errors == []


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EIO, errno.EINVAL, errno.EFAULT])
async def test_the_acceptor_pauses_on_an_error_that_would_come_again(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listener stays readable, so without the pause the loop would do nothing else."""
    real, calls = listeners.accept, []

    def fail_once(listener: socket.socket) -> Iterator[tuple[socket.socket, Peer]]:
        calls.append(listener)
        return real(Failing(number) if len(calls) == 1 else listener)  # type: ignore[arg-type]

    monkeypatch.setattr(listeners, "accept", fail_once)
    monkeypatch.setattr(listeners, "_PAUSE", 0.01)
    journal, accepted = ListJournal(), asyncio.Queue[socket.socket]()
    acceptor = Acceptor(journal, lambda connection, _: accepted.put_nowait(connection))
    with listen("127.0.0.1:0") as listener, socket.create_connection(listener.getsockname()):
        acceptor.accept_from([listener])
        paused = await journal.wait_for(messages.ACCEPT_PAUSED)
        assert paused == {"error": os.strerror(number), "seconds": 0.01}
        assert accepted.empty()
        (await accepted.get()).close()
        assert journal.count(messages.ACCEPT_PAUSED) == 1
        acceptor.accept_from([])


async def test_a_pause_ends_with_the_acceptor(monkeypatch: pytest.MonkeyPatch) -> None:
    journal = ListJournal()
    monkeypatch.setattr(listeners, "accept", lambda _: Failing(errno.EMFILE).accept())
    acceptor = Acceptor(journal, lambda *_: None)
    with listen("127.0.0.1:0") as listener, socket.create_connection(listener.getsockname()):
        acceptor.accept_from([listener])
        await journal.wait_for(messages.ACCEPT_PAUSED)
        assert acceptor._retry is not None
        acceptor.accept_from([])
        assert acceptor._retry is None


def test_a_client_that_has_gone_before_it_was_accepted_disturbs_nobody() -> None:
    with listen("127.0.0.1:0") as listener:
        with socket.create_connection(listener.getsockname()) as gone:
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        with socket.create_connection(listener.getsockname()) as client:
            accepted = {who.name: connection for connection, who in accept(listener)}
            assert "{}:{}".format(*client.getsockname()) in accepted
            for connection in accepted.values():
                connection.close()


def test_refusing_closes_all_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "_BATCH", 2)
    with listen("127.0.0.1:0") as listener, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(5)]
        refuse_waiting([listener])
        assert [client.recv(1) for client in clients] == [b""] * 5


def test_refusing_without_a_descriptor_raises_nothing() -> None:
    refuse_waiting([Failing(errno.EMFILE)])  # type: ignore[list-item]
