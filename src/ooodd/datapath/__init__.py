# SPDX-License-Identifier: LGPL-2.1-or-later
"""Data paths: how the bytes of a session get from the client to its office and back."""
