# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ooodd convert`: a client like any other, for people and scripts."""
