# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fixtures of tests/machine."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "machine"))

from fixtures import *  # noqa: F403 - pytest finds fixtures and hooks by their names here
