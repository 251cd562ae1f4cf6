# SPDX-License-Identifier: LGPL-2.1-or-later
"""Measure what ooodd costs, on a throwaway machine with the package.

    benchmarks/run [--json] [PART...]

The parts are calls, starts, conversions, preload and broker. With all of them, docs/benchmarks.md and what belongs to
it are written anew; otherwise the figures are only printed. Nothing fails because something is slow.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import report
from figure import Figure

TREE = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TREE / "tests" / "machine"), str(TREE / "src")]

from machine import Machine  # noqa: E402 - it is found by the line before

PARTS = ("calls", "starts", "conversions", "preload", "broker")
DOCS = TREE / "docs"
LIMIT = 7200.0


def main() -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(prog="benchmarks/run", description="Measure what ooodd costs.")
    parser.add_argument("--json", action="store_true", help="write JSON")
    parser.add_argument("parts", nargs="*", help=f"some of: {', '.join(PARTS)}")
    options = parser.parse_args()
    parts = options.parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    facts, figures = measure(parts)
    document = {"machine": facts, "figures": [figure.as_json() for figure in figures]}
    if not options.parts:
        (DOCS / "benchmarks.json").write_text(json.dumps(document, indent=1) + "\n")
        (DOCS / "benchmarks.md").write_text(report.page(facts, figures))
        report.plots(figures, DOCS / "benchmarks")
    print(json.dumps(document, indent=1) if options.json else report.page(facts, figures))


def measure(parts: list[str]) -> tuple[dict[str, str], list[Figure]]:
    """Boot a machine, and measure on it."""
    figures = []
    with Machine.boot() as machine:
        machine.run("dpkg", "--purge", "ooodd")
        machine.install(*sorted((TREE / "dist").glob("*.deb")))
        facts = {
            "commit": subprocess.run(
                ["git", "describe", "--always", "--dirty"], cwd=TREE, check=True, capture_output=True, text=True
            ).stdout.strip(),
            "machine": f"{os.cpu_count()} CPUs, Linux {platform.release()}, load before {os.getloadavg()[0]:.2f}",
            **{name: first_line(machine, *command) for name, command in VERSIONS.items()},
            "unoserver": (TREE / "benchmarks" / "requirements.txt").read_text().split("==")[1].strip(),
        }
        command = machine.popen("/usr/bin/python3", str(Path(__file__).with_name("inside.py")), *parts, stderr=None)
        with command as inside:
            assert inside.stdout is not None
            for line in inside.stdout:
                figures.append(Figure(**json.loads(line)))
                print(f"benchmarks: {figures[-1].title}", file=sys.stderr, flush=True)
            if inside.wait(LIMIT):
                raise SystemExit("benchmarks: inside.py failed; see above")
    return facts, figures


VERSIONS = {
    "ooodd": ("ooodd", "--version"),
    "LibreOffice": ("/usr/lib/libreoffice/program/soffice.bin", "--version"),
    "Python": ("/usr/bin/python3", "--version"),
    "systemd": ("systemctl", "--version"),
    "HAProxy": ("/usr/sbin/haproxy", "-v"),
}


def first_line(machine: Machine, *command: str) -> str:
    """Return what a program says of its version."""
    env = {"HOME": "/tmp/version"}
    done: subprocess.CompletedProcess[str] = machine.run(*command, env=env)
    return (done.stdout or done.stderr).strip().splitlines()[0]


if __name__ == "__main__":
    main()
