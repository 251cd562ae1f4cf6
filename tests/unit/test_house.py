# SPDX-License-Identifier: LGPL-2.1-or-later
"""The structure of the source: directions of imports, floors, sizes. packaging/house has the rules and the numbers."""

import subprocess
import sys
from pathlib import Path

HOUSE = Path(__file__).parents[2] / "packaging" / "house"


def test_the_house_is_in_order() -> None:
    done = subprocess.run([sys.executable, str(HOUSE)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
