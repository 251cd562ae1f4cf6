# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ooodd asks of systemd: the message bus, sockets, notifications, the fd store."""
