# SPDX-License-Identifier: LGPL-2.1-or-later
"""What dpkg's database says of LibreOffice, with a database and locks of the test's own."""

from pathlib import Path

import pytest

from dpkgdatabase import Database
from ooodd.office.packages import Packages


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path)


@pytest.mark.parametrize("state", ["half-installed", "unpacked", "half-configured"])
@pytest.mark.parametrize("lock", ["lock", "lock-frontend"])
def test_a_package_that_dpkg_is_at_work_on_is_named(database: Database, state: str, lock: str) -> None:
    assert database.packages.unpacking() == ""
    with database.locked(lock):
        assert database.packages.unpacking() == ""
        database.update(0, state)
        assert database.packages.unpacking() == "libreoffice-core"
        database.update(1, "installed")
        assert database.packages.unpacking() == ""


@pytest.mark.parametrize(
    "state", ["installed", "config-files", "not-installed", "triggers-pending", "triggers-awaited"]
)
def test_other_states_are_no_reason_to_wait(database: Database, state: str) -> None:
    with database.locked():
        database.update(0, state)
        assert database.packages.unpacking() == ""


def test_what_dpkg_has_left_broken_is_no_reason_to_wait(database: Database) -> None:
    database.status("half-configured")
    assert database.packages.unpacking() == ""
    with database.locked():
        assert database.packages.unpacking() == "libreoffice-core"


@pytest.mark.parametrize("package", ["libobasis25.2-core", "uno-libs-private", "ure", "python3-uno", "libuno-sal3"])
def test_all_that_belongs_to_an_office_counts(database: Database, package: str) -> None:
    with database.locked():
        database.status("unpacked", package)
        assert database.packages.unpacking() == package


def test_the_database_is_read_only_when_it_has_changed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    assert database.packages.unpacking() == ""
    monkeypatch.setattr(Path, "read_bytes", None)
    assert database.packages.unpacking() == ""


def test_a_machine_without_dpkg_never_waits(tmp_path: Path) -> None:
    assert Packages(tmp_path / "none").unpacking() == ""


def test_a_database_that_cannot_be_read_is_no_reason_to_wait(database: Database) -> None:
    database.status("unpacked")
    with database.locked():
        (database.directory / "updates" / "0000").mkdir()
        assert database.packages.unpacking() == ""
