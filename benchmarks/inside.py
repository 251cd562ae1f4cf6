# SPDX-License-Identifier: LGPL-2.1-or-later
"""Measures, on a machine with the package. Each figure is a line of JSON.

    inside.py DOCUMENTS PART...

The parts are modules here: calls, starts, conversions, preload, broker.
"""

import json
import sys
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests" / "soak")]


def main() -> None:
    """Measure."""
    for part in sys.argv[1:]:
        for figure in import_module(part).measure():
            print(json.dumps(figure.as_json()), flush=True)


if __name__ == "__main__":
    main()
