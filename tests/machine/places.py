# SPDX-License-Identifier: LGPL-2.1-or-later
"""Paths in a machine of what it shares with the host."""

from machine import SOURCE_TREE

CLIENTS = SOURCE_TREE / "tests" / "clients"
"""The clients, under the same path in a machine: ``machine.run(PYTHON, f"{CLIENTS}/convert.py", ...)``."""

PYTHON = "/usr/bin/python3"
"""Debian's Python, for which python3-uno is installed."""

DOCUMENTS_INSIDE = "/srv/documents"
CLIENTS_INSIDE = "/srv/clients"
SHARED_INSIDE = "/srv/shared"
"""An empty directory that offices see. Tests put files there."""
