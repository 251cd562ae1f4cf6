# SPDX-License-Identifier: LGPL-2.1-or-later
"""bash completes what the command knows, no more and no less."""

import argparse
import subprocess
from pathlib import Path

import pytest

from ooodd.__main__ import _parser

COMPLETION = Path(__file__).resolve().parents[2] / "packaging" / "bash-completion" / "ooodd"
# Commands for units, which have no help.
HIDDEN = {"make-profile", "metrics", "explain-socket-failure", "outdate", "reload"}


def commands() -> dict[str, argparse.ArgumentParser]:
    (found,) = (each for each in _parser()._actions if isinstance(each, argparse._SubParsersAction))
    return {name: parser for name, parser in found.choices.items() if name not in HIDDEN}


def completed(*words: str) -> set[str]:
    script = (
        f'source "{COMPLETION}"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _ooodd; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", script, "bash", *words], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_commands_are_completed() -> None:
    assert completed("ooodd", "") == {*commands(), "--help", "--version"}
    assert completed("ooodd", "re") == {"recycle", "resume"}


@pytest.mark.parametrize("command", sorted(commands()))
def test_options_are_completed(command: str) -> None:
    actions = [each for each in commands()[command]._actions if each.help != argparse.SUPPRESS]
    known = {text for each in actions for text in each.option_strings if text.startswith("--")}
    assert completed("ooodd", command, "--") == known


def test_values_are_completed(tmp_path: Path) -> None:
    (tmp_path / "letter.odt").touch()
    assert completed("ooodd", "recycle", "") == {"all"}
    assert completed("ooodd", "convert", f"{tmp_path}/l") == {f"{tmp_path}/letter.odt"}
    assert completed("ooodd", "run", "--config", f"{tmp_path}/l") == {f"{tmp_path}/letter.odt"}
    assert completed("ooodd", "check-config", f"{tmp_path}/l") == {f"{tmp_path}/letter.odt"}
