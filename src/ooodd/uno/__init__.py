# SPDX-License-Identifier: LGPL-2.1-or-later
"""The UNO Remote Protocol, sans-IO: bytes in, bytes out."""
