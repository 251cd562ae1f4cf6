# SPDX-License-Identifier: LGPL-2.1-or-later
"""Offices: how one is started, probed and stopped."""
