#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""An attacker: connects as any UNO client does, has the office run inside.py, and tells what was allowed.

    attack.py [--host H] [--port P] [--hold] NAME PARAMETER...

For each attack it takes a name and a parameter in JSON, and writes a line of JSON. With --hold it keeps its office,
after the last one, until its standard input ends.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "clients"))

import uno
from client import Steps, add_address, connect, create, error_line, leave


def plant(context: Any) -> Any:
    """Write inside.py where the office can write, and have it run it. Return the object that it makes."""
    temporary = create(context, "com.sun.star.util.PathSubstitution").getSubstituteVariableValue("$(temp)")
    url = f"{temporary}/inside{abs(hash(uno.generateUuid().value))}.py"
    stream = create(context, "com.sun.star.io.SequenceInputStream")
    stream.initialize((uno.ByteSequence(Path(__file__).with_name("inside.py").read_bytes()),))
    create(context, "com.sun.star.ucb.SimpleFileAccess").writeFile(url, stream)
    return create(context, "com.sun.star.loader.Python").activate("attack", "", url, None)


def main() -> None:
    """Run the attacks."""
    parser = argparse.ArgumentParser()
    add_address(parser)
    parser.add_argument("--hold", action="store_true")
    parser.add_argument("attacks", nargs="*")
    arguments = parser.parse_args()
    step = Steps("done" if arguments.hold else None, None)
    try:
        inside = plant(connect(arguments.host, arguments.port))
        for name, parameter in zip(arguments.attacks[::2], arguments.attacks[1::2], strict=True):
            order = uno.createUnoStruct(
                "com.sun.star.beans.NamedValue", "attack", json.dumps([name, json.loads(parameter)])
            )
            step(name, found=json.loads(inside.execute((order,))))
        step("done")
    except Exception as error:  # noqa: BLE001 - pyuno's exceptions have no common class
        print(error_line(error), flush=True)
        leave(1)
    leave(0)


if __name__ == "__main__":
    main()
