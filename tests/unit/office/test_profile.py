# SPDX-License-Identifier: LGPL-2.1-or-later
"""Profiles: their settings, and what an office does with its extensions."""

import os
from pathlib import Path

import pytest

from ooodd.errors import ConfigError, StartError
from ooodd.office import profile
from ooodd.office.profile import Installation, check_site_settings, make_profile, settings

HEAD = '<oor:items xmlns:oor="http://openoffice.org/2001/registry" xmlns:xs="http://www.w3.org/2001/XMLSchema">'
LOCKING = "/org.openoffice.Office.Common/Misc"
# Starts as the first word of $STARTS says, and drops it.
OFFICE = """#!/bin/sh
echo "$@" >>"$0.log"
read -r first rest <"$0.starts"
echo "$rest" >"$0.starts"
exit "$first"
"""


def item(path: str = LOCKING, name: str = "UseLocking", value: str = "true") -> str:
    return f'<item oor:path="{path}"><prop oor:name="{name}" oor:op="fuse"><value>{value}</value></prop></item>'


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """An installed office without extensions."""
    directory = tmp_path / "office" / "program"
    directory.mkdir(parents=True)
    (directory / "versionrc").write_text("[Version]\nbuildid=abc\r\nother=1\n")
    office = directory / "soffice.bin"
    office.write_text(OFFICE)
    office.chmod(0o755)
    (directory.parent / "share" / "extensions").mkdir(parents=True)
    return directory


@pytest.fixture
def site(tmp_path: Path) -> Path:
    directory = tmp_path / "registry.d"
    directory.mkdir()
    return directory


def starts(program: Path, *statuses: int) -> None:
    (program / "soffice.bin.starts").write_text(" ".join(map(str, statuses)) + "\n")


def log(program: Path) -> list[str]:
    path = program / "soffice.bin.log"
    return path.read_text().splitlines() if path.exists() else []


def extend(program: Path) -> None:
    (program.parent / "share" / "extensions" / "solver").mkdir()


# A profile


def test_without_extensions_no_office_is_started(program: Path, tmp_path: Path) -> None:
    assert make_profile(tmp_path / "made", program) == ""
    assert (tmp_path / "made" / "user" / "extensions" / "buildid").read_text() == "abc"
    assert "UseLocking" in (tmp_path / "made" / "user" / "registrymodifications.xcu").read_text()
    assert log(program) == []


@pytest.mark.parametrize(("statuses", "end"), [((81, 0), "done"), ((0,), "done"), ((81, 7), "exit status 7")])
def test_extensions_are_registered_by_starts_without_clients(
    program: Path, tmp_path: Path, statuses: tuple[int, ...], end: str
) -> None:
    extend(program)
    starts(program, *statuses)
    report = make_profile(tmp_path / "made", program)
    assert report == f"the office was started once more to register the extensions solver: {end}"
    assert len(log(program)) == len(statuses)
    assert all("--cat" in line and "--accept" not in line for line in log(program))
    assert (tmp_path / "made" / "user" / "registrymodifications.xcu").exists()


def test_an_office_that_never_starts_is_not_waited_for(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extend(program)
    monkeypatch.setattr(profile, "_START_LIMIT", 0.2)
    (program / "soffice.bin").write_text("#!/bin/sh\nexec sleep 60\n")
    assert make_profile(tmp_path / "made", program).endswith("solver: no end within 0.2 s")


def test_one_that_wants_to_be_started_for_ever_is_given_up(program: Path, tmp_path: Path) -> None:
    extend(program)
    starts(program, *[81] * 20)
    assert make_profile(tmp_path / "made", program).endswith("exit status 81")
    assert len(log(program)) == profile._MOST_STARTS


def test_where_there_is_no_room_there_is_no_profile(program: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match="no profile at"):
        make_profile(tmp_path / "file" / "made", program)


def test_extensions_of_unopkg_and_bundled_ones_are_found(program: Path) -> None:
    extend(program)
    cache = program.parent / "share" / "uno_packages" / "cache" / "uno_packages"
    (cache / "lu1.tmp_" / "hello.oxt").mkdir(parents=True)
    (cache / "lu1.tmp_" / "hello.oxtproperties").touch()
    (cache / "lu1.tmp").touch()
    assert Installation(program).extensions() == ["hello.oxt", "solver"]


# Settings


def test_a_setting_of_the_site_comes_last_and_wins(program: Path, site: Path) -> None:
    (site / "10.xcu").write_text(HEAD + item(value="first") + "</oor:items>")
    (site / "20.xcu").write_text(HEAD + item(value="second") + "</oor:items>")
    text = settings(Installation(program), site).decode()
    assert text.index("<value>false</value>") < text.index("first") < text.index("second")


def test_a_file_that_cannot_be_used_is_left_out(program: Path, site: Path) -> None:
    (site / "10.xcu").write_text("<oor:items>")
    (site / "20.xcu").write_text(HEAD + item(value="second") + "</oor:items>")
    assert "second" in settings(Installation(program), site).decode()


@pytest.mark.parametrize("package", ["libreoffice-common", "libobasis25.2-core", "openoffice-core02"])
def test_what_the_site_has_in_the_registry_is_not_ours_to_set(
    program: Path, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    registry = program.parent / "share" / "registry"
    registry.mkdir()
    data = (
        '<oor:data xmlns:oor="http://openoffice.org/2001/registry"><oor:component-data oor:package='
        '"org.openoffice.Office" oor:name="Common"><node oor:name="Misc"><prop oor:name="UseLocking"/></node>'
        '</oor:component-data><oor:component-data oor:package="org.openoffice.Office" oor:name="Jobs">'
        '<node oor:name="Jobs"><node oor:name="UpdateCheck"><node oor:name="Arguments">'
        '<prop oor:name="AutoCheckEnabled"/></node></node></node></oor:component-data></oor:data>'
    )
    lists = tmp_path / "info"
    lists.mkdir()
    monkeypatch.setattr(profile, "_DPKG_LISTS", lists)
    (lists / f"{package}.list").write_text(f"{registry}/main.xcd\n")
    (registry / "main.xcd").write_text(data)
    assert '"UseLocking"' in settings(Installation(program), site).decode(), "the package's own"
    (registry / "site.xcd").write_text(data)
    text = settings(Installation(program), site).decode()
    assert 'xmlns:xs="http://www.w3.org/2001/XMLSchema"' in text, "for the types of values"
    assert '"UseLocking"' not in text
    assert '"AutoCheckEnabled"' not in text
    assert '"UseDocumentOOoLockFile"' in text


def test_what_a_package_has_copied_into_the_registry_is_not_the_site_s(
    program: Path, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's packages copy theirs from share/.registry to /etc, and dpkg knows the copies of no package."""
    registry, shipped = program.parent / "share" / "registry", program.parent / "share" / ".registry"
    data = (
        '<oor:data xmlns:oor="http://openoffice.org/2001/registry"><oor:component-data oor:package='
        '"org.openoffice.Office" oor:name="Common"><node oor:name="Misc"><prop oor:name="UseLocking"/></node>'
        "</oor:component-data></oor:data>"
    )
    for directory in (registry, shipped):
        directory.mkdir()
        (directory / "main.xcd").write_text(data)
    lists = tmp_path / "info"
    lists.mkdir()
    monkeypatch.setattr(profile, "_DPKG_LISTS", lists)
    (lists / "libreoffice-common.list").write_text(f"{registry}/other.xcd\n")
    assert '"UseLocking"' in settings(Installation(program), site).decode()
    (registry / "main.xcd").write_text(f"{data}\n<!-- changed by the site -->")
    assert '"UseLocking"' not in settings(Installation(program), site).decode()


@pytest.mark.parametrize(
    ("wanted", "found", "language"),
    [
        ("de_DE.UTF-8", "C.UTF-8", "de-DE"),
        ("de_AT@euro", "C.UTF-8", "de-AT"),
        ("eo", "C.UTF-8", "eo"),
        ("de_DE.UTF-8", "de_DE.UTF-8", None),
        ("C", "C.UTF-8", None),
        ("C.UTF-8", "C.UTF-8", None),
        ("POSIX", "C.UTF-8", None),
        ("", "", None),
    ],
)
def test_the_language_is_told_where_its_locale_is_missing(
    monkeypatch: pytest.MonkeyPatch, program: Path, site: Path, wanted: str, found: str, language: str | None
) -> None:
    monkeypatch.setitem(os.environ, "OOODD_LOCALE", wanted)
    monkeypatch.setitem(os.environ, "LC_CTYPE", found)
    text = settings(Installation(program), site).decode()
    assert ("ooSetupSystemLocale" in text) == (language is not None)
    assert language is None or f"<value>{language}</value>" in text


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.xcu", "<a", "not well-formed XML: "),
        ("a.xcu", "<a/>", "the root element must be oor:items"),
        ("a.xcu", HEAD + "<prop/></oor:items>", 'item 1: must be an "item", not "prop"'),
        ("a.xcu", HEAD + "<item/></oor:items>", "item 1: needs oor:path="),
        ("a.xcu", HEAD + item() + '<item oor:path="/a"/></oor:items>', "item 2: needs a prop or a node"),
        ("a.xcu", HEAD + '<item oor:path="/a"><prop/></item></oor:items>', "item 1: a prop needs oor:name"),
        ("a.xml", HEAD + "</oor:items>", "only files whose names end in .xcu are read"),
    ],
)
def test_a_bad_file_is_named_with_the_place_and_the_reason(site: Path, name: str, text: str, problem: str) -> None:
    (site / "0.xcu").write_text(HEAD + item() + "</oor:items>")
    (site / name).write_text(text)
    with pytest.raises(ConfigError) as refused:
        check_site_settings(site)
    assert str(refused.value).startswith(f"{site / name}: {problem}")
    assert str(refused.value).isprintable()


def test_good_files_and_none_at_all_are_fine(site: Path) -> None:
    assert check_site_settings(site) == []
    assert check_site_settings(site / "absent") == []
    (site / "0.xcu").write_text(HEAD + item() + "</oor:items>")
    assert check_site_settings(site) == [site / "0.xcu"]
