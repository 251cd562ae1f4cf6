# SPDX-License-Identifier: LGPL-2.1-or-later
"""The commands of ooodd(8), a module each. `add` gives a command's arguments, and what is called for it."""
