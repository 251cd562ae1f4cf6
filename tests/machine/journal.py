# SPDX-License-Identifier: LGPL-2.1-or-later
"""A machine's journal entries, from ``journalctl --output=json``."""

from __future__ import annotations

import json

Entry = dict[str, str]
"""One journal entry, its fields by name."""


def command(unit: str | None, matches: tuple[str, ...], after: str | None) -> list[str]:
    """The journalctl command that prints entries as JSON, one a line. Without --all, long fields would be null."""
    options = ["--quiet", "--all", "--output=json"]
    if unit is not None:
        options.append(f"--unit={unit}")
    if after is not None:
        options.append(f"--since={after}")
    return ["journalctl", *options, *matches]


def parse(line: str) -> Entry:
    """Parse one line.

    journalctl prints a field that is not UTF-8 as a list of byte values, and a field that occurs twice as a list of
    texts. The texts are joined by newlines here.
    """
    return {name: text(value) for name, value in json.loads(line).items()}


def text(value: str | list[int] | list[str] | None) -> str:
    """The text of one field."""
    if isinstance(value, list):
        if all(isinstance(item, int) for item in value):
            return bytes(int(item) for item in value).decode(errors="replace")
        return "\n".join(map(str, value))
    return value or ""
