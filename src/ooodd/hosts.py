# SPDX-License-Identifier: LGPL-2.1-or-later
"""IP networks, as the configuration names them."""

from ipaddress import IPv4Network, IPv6Network, ip_network

Network = IPv4Network | IPv6Network
# IPv4 addresses as IPv6 ones, RFC 4291.
_MAPPED = IPv6Network("::ffff:0:0/96")


def network(text: str) -> Network:
    """Return the addresses that a text names, "192.0.2.7" or "2001:db8::/32"; `ValueError` if it names none.

    IPv4 addresses that are written as IPv6 ones are IPv4 addresses.
    """
    named = ip_network(text, strict=False)
    if isinstance(named, IPv6Network) and named.subnet_of(_MAPPED):
        return IPv4Network((named.network_address.packed[-4:], named.prefixlen - _MAPPED.prefixlen))
    return named
