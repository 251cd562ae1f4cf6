# SPDX-License-Identifier: LGPL-2.1-or-later
"""The networks that a text names."""

from ipaddress import ip_network

import pytest

from ooodd.hosts import network


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("192.0.2.7", "192.0.2.7/32"),
        ("192.0.2.7/24", "192.0.2.0/24"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("::1", "::1/128"),
        ("::ffff:192.0.2.7", "192.0.2.7/32"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("::/0", "::/0"),
    ],
)
def test_addresses_and_networks(text: str, named: str) -> None:
    assert network(text) == ip_network(named)


@pytest.mark.parametrize("text", ["", "localhost", "192.0.2", "192.0.2.0/33", "192.0.2.0-192.0.2.9", "::g"])
def test_no_network(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        network(text)
