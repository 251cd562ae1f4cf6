# SPDX-License-Identifier: LGPL-2.1-or-later
"""Offices: starting, probing and stopping them."""
