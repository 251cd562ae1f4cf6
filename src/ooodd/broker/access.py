# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may connect: `[access]` of the configuration.

Hosts are checked for clients that come over TCP. Users and groups are those of a local client's process. Of a client of
another host nothing is known; so it is refused where users or groups are asked for. All that is given has to fit: a
host and, of users and groups, one.
"""

import grp
import os
import pwd
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address

from ooodd.config import Config
from ooodd.hosts import Network, network
from ooodd.systemd import listeners


@dataclass(frozen=True)
class Access:
    """Those who may connect, each as the configuration names them; None for everybody."""

    hosts: tuple[Network, ...] | None = None
    users: frozenset[str] | None = None
    groups: frozenset[str] | None = None

    @classmethod
    def of(cls, hosts: Iterable[str] | None, users: Iterable[str] | None, groups: Iterable[str] | None) -> "Access":
        """Return those who are named."""
        return cls(
            None if hosts is None else tuple(map(network, hosts)),
            None if users is None else frozenset(users),
            None if groups is None else frozenset(groups),
        )

    @classmethod
    def configured(cls, config: Config) -> "Access":
        """Return those whom the configuration allows."""
        return cls.of(config.access.allowed_hosts, config.access.allowed_users, config.access.allowed_groups)

    def objection(self, host: str, uid: int | None) -> str:
        """Return the key that keeps a client out; empty if it may connect.

        `host` is an address, or anything else for a client of a unix socket. A `uid` of None is not known.
        """
        if self.hosts is not None and not self._is_allowed_host(host):
            return "[access] allowed_hosts"
        if self.users is None and self.groups is None:
            return ""
        if uid is not None and (self._is_allowed_user(uid) or self._is_in_allowed_group(uid)):
            return ""
        return f"[access] allowed_{'groups' if self.users is None else 'users'}"

    def unknown(self) -> list[str]:
        """Return a line for each user and group that this machine does not know, maybe because a name is misspelt."""
        asked: list[tuple[str, frozenset[str] | None, Callable[[str], object]]] = [
            ("user", self.users, pwd.getpwnam),
            ("group", self.groups, grp.getgrnam),
        ]
        return [
            f'access.allowed_{kind}s: this machine knows no {kind} "{name}"'
            for kind, names, look_up in asked
            for name in sorted(names or ())
            if not (name.isdecimal() or _is_known(look_up, name))
        ]

    def _is_allowed_host(self, host: str) -> bool:
        try:
            address = ip_address(host.partition("%")[0])
        except ValueError:
            return True
        return any(address in allowed for allowed in self.hosts or ())

    def _is_allowed_user(self, uid: int) -> bool:
        return not {str(uid), user_name(uid)}.isdisjoint(self.users or ())

    def _is_in_allowed_group(self, uid: int) -> bool:
        if not self.groups:
            return False
        with suppress(KeyError):
            user = pwd.getpwuid(uid)
            numbers = os.getgrouplist(user.pw_name, user.pw_gid)
            return any(not {str(gid), _group_name(gid)}.isdisjoint(self.groups) for gid in numbers)
        return False


def who(host: str, uid: int | None, pid: int | None) -> str:
    """Return what is known of a client, for people."""
    known = [] if uid is None else [f"user {user_name(uid)}"]
    known += [] if pid is None else [f"process {pid}"]
    return f"{host} ({', '.join(known)})" if known else host


def exposed(sockets: Iterable[socket.socket], config: Config) -> list[str]:
    """Return the names of the listeners that other hosts can reach, if everybody may connect."""
    if config.access.allowed_hosts is not None:
        return []
    return [listeners.name(each) for each in sockets if not _is_local(each)]


def _is_local(listener: socket.socket) -> bool:
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return True
    return ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def user_name(uid: int) -> str:
    """Return a user's name, or the number if there is none."""
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


def _is_known(look_up: Callable[[str], object], name: str) -> bool:
    with suppress(KeyError):
        return bool(look_up(name))
    return False


def _group_name(gid: int) -> str:
    with suppress(KeyError):
        return grp.getgrgid(gid).gr_name
    return str(gid)
