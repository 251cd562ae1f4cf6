# SPDX-License-Identifier: LGPL-2.1-or-later
"""A database of dpkg's that a test changes, with its locks."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ooodd.office.packages import Packages

OTHERS = """Package: bash
Essential: yes
Status: install ok half-installed
Version: 1

Package: python3-unoconv-like
Status: install ok installed

Package: urelated
Status: install ok unpacked
"""


def paragraph(package: str, state: str) -> str:
    return f"Package: {package}\nStatus: install ok {state}\nPriority: optional\nDescription: Package: x\n\n"


class Database:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "updates").mkdir()
        (directory / "lock").touch()
        (directory / "lock-frontend").touch()
        self.status("installed")
        self.packages = Packages(directory)

    def status(self, state: str, package: str = "libreoffice-core") -> None:
        new = self.directory / "status-new"
        new.write_text(f"{OTHERS}\n{paragraph('libreoffice-common', 'installed')}{paragraph(package, state)}")
        new.replace(self.directory / "status")

    def update(self, number: int, state: str, package: str = "libreoffice-core") -> None:
        (self.directory / "updates" / "tmp.i").write_text(paragraph(package, state))
        (self.directory / "updates" / "tmp.i").rename(self.directory / "updates" / f"{number:04}")

    @contextmanager
    def locked(self, name: str = "lock") -> Iterator[None]:
        with (self.directory / name).open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            yield
