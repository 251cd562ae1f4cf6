# SPDX-License-Identifier: LGPL-2.1-or-later
"""The control socket and what is shown of a running broker."""
