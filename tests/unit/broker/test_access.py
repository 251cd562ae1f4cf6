# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may connect."""

import grp
import pwd
import socket
import tempfile

import pytest

from ooodd import messages
from ooodd.broker.access import Access, exposed, who
from ooodd.config import Config, parse
from world import asks, world

NOBODY = pwd.getpwnam("nobody")
GROUP = grp.getgrgid(NOBODY.pw_gid)
HOSTS = ["127.0.0.1", "192.0.2.0/24", "::ffff:198.51.100.0/120", "2001:db8::/32", "fe80::/10"]
NO_SUCH_UID = 4_000_000_000


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", False),
        ("192.0.2.200", True),
        ("198.51.100.3", True),
        ("203.0.113.1", False),
        ("2001:db8::5", True),
        ("::1", False),
        ("fe80::1%2", True),
        ("this host", True),
    ],
)
def test_hosts(host: str, allowed: bool) -> None:  # noqa: FBT001
    assert Access.of(HOSTS, None, None).objection(host, None) == ("" if allowed else "[access] allowed_hosts")
    assert Access().objection(host, None) == ""


@pytest.mark.parametrize(
    ("users", "groups", "uid", "objection"),
    [
        (["nobody"], None, NOBODY.pw_uid, ""),
        ([str(NOBODY.pw_uid)], None, NOBODY.pw_uid, ""),
        (["root", "nobody"], None, 0, ""),
        (["nobody"], None, 0, "[access] allowed_users"),
        (["nobody"], None, None, "[access] allowed_users"),
        ([], None, 0, "[access] allowed_users"),
        (None, [GROUP.gr_name], NOBODY.pw_uid, ""),
        (None, [str(GROUP.gr_gid)], NOBODY.pw_uid, ""),
        (None, [GROUP.gr_name], 0, "[access] allowed_groups"),
        (None, [GROUP.gr_name], None, "[access] allowed_groups"),
        (None, [GROUP.gr_name], NO_SUCH_UID, "[access] allowed_groups"),
        (["root"], [GROUP.gr_name], NOBODY.pw_uid, ""),
        (["root"], [GROUP.gr_name], 0, ""),
        (["root"], [GROUP.gr_name], NO_SUCH_UID, "[access] allowed_users"),
        (None, None, None, ""),
    ],
)
def test_users_and_groups(users: list[str] | None, groups: list[str] | None, uid: int | None, objection: str) -> None:
    assert Access.of(None, users, groups).objection("127.0.0.1", uid) == objection


def test_both_hosts_and_users_have_to_fit() -> None:
    access = Access.of(["192.0.2.0/24"], ["root"], None)
    assert access.objection("192.0.2.1", 0) == ""
    assert access.objection("192.0.2.1", None) == "[access] allowed_users"
    assert access.objection("127.0.0.1", 0) == "[access] allowed_hosts"


def test_a_client_is_named_as_far_as_it_is_known() -> None:
    assert who("192.0.2.1", None, None) == "192.0.2.1"
    assert who("127.0.0.1", 0, None) == "127.0.0.1 (user root)"
    assert who("this host", NO_SUCH_UID, 17) == f"this host (user {NO_SUCH_UID}, process 17)"


async def test_a_client_that_may_not_connect_is_told_so() -> None:
    config = '[pool]\nworkers=1\n[access]\nallowed_hosts=["192.0.2.0/24"]'
    async with world(config) as it, it.client() as client:
        answer = await asks(client)
        assert b"ooodd: 127.0.0.1 may not connect ([access] allowed_hosts)" in answer
        (line,) = [fields for message, fields in it.journal.lines if message is messages.CLIENT_REFUSED]
        assert line["text"] == "ooodd: 127.0.0.1 may not connect ([access] allowed_hosts)"
        assert it.broker.pool.totals.refused == 1
        assert not it.broker.pool.queue


async def test_a_reload_lets_it_in() -> None:
    async with world('[pool]\nworkers=1\n[access]\nallowed_hosts=["192.0.2.0/24"]') as it:
        it.broker.reload(parse("[pool]\nworkers=1", "ooodd.toml"))
        async with it.client() as client:
            await client.open()


async def test_a_port_for_other_hosts_that_everybody_may_use_is_warned_of() -> None:
    with socket.create_server(("0.0.0.0", 0)) as everywhere, socket.create_server(("127.0.0.1", 0)) as here:  # noqa: S104
        assert exposed([everywhere, here], Config()) == [f"0.0.0.0:{everywhere.getsockname()[1]}"]
        assert exposed([here], Config()) == []
        allowed = parse('[access]\nallowed_hosts = ["10.0.0.0/8"]', "ooodd.toml")
        assert exposed([everywhere, here], allowed) == []
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as local:
        local.bind(f"{directory}/socket")
        assert exposed([local], Config()) == []
