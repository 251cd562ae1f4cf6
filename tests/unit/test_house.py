# SPDX-License-Identifier: LGPL-2.1-or-later
"""The structure of the source: import directions and size limits. packaging/house defines the rules."""

import subprocess
import sys
from pathlib import Path

HOUSE = Path(__file__).parents[2] / "packaging" / "house"


def test_the_source_follows_the_rules_of_packaging_house() -> None:
    done = subprocess.run([sys.executable, str(HOUSE)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
