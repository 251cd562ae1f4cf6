# SPDX-License-Identifier: LGPL-2.1-or-later
"""ooodd: a systemd-native pool of LibreOffice workers behind one UNO port."""

__version__ = "0.3.0"
