# SPDX-License-Identifier: LGPL-2.1-or-later
"""The control socket, and what it shows of a running broker."""
