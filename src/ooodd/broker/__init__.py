# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker: the life of the service, and the life of each client."""
