# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fixtures are in a module of their own, since tests/attacks has them too."""

from fixtures import *  # noqa: F403 - pytest finds fixtures and hooks by their names here
