# SPDX-License-Identifier: LGPL-2.1-or-later
"""The copy of a directory that others read meanwhile."""

import os
import random
from pathlib import Path

import pytest

from ooodd.office.mirror import mirror


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    (directory / "fonts" / "conf.d").mkdir(parents=True)
    (directory / "fonts" / "fonts.conf").write_text("one")
    (directory / "fonts" / "conf.d" / "10.conf").symlink_to("../fonts.conf")
    (directory / "empty").mkdir()
    (directory / "timezone").write_text("UTC\n")
    return directory


def tree(directory: Path) -> dict[str, str]:
    """What is in a directory: files with their text, mode and time, links with their destination."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_dir():
            found[name] = "directory"
        else:
            status = path.stat()
            found[name] = f"{path.read_text()} {status.st_mode:o} {status.st_mtime_ns}"
    return found


def test_a_copy_is_like_its_source_and_follows_it(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    mirror(source, target)
    assert tree(target) == tree(source)
    (source / "fonts" / "fonts.conf").write_text("another")
    (source / "fonts" / "conf.d" / "10.conf").unlink()
    (source / "fonts" / "conf.d" / "20.conf").write_text("new")
    (source / "timezone").unlink()
    (source / "timezone").symlink_to("fonts/fonts.conf")
    mirror(source, target)
    assert tree(target) == tree(source)


def test_what_has_not_changed_is_not_touched(source: Path, tmp_path: Path) -> None:
    """The name of a profile depends on inodes."""
    target = tmp_path / "target"
    mirror(source, target)
    before = {path: path.lstat() for path in target.rglob("*")}
    mirror(source, target)
    assert {path: path.lstat() for path in target.rglob("*")} == before


def test_a_file_is_exchanged_whole(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    mirror(source, target)
    with (target / "timezone").open() as opened:
        (source / "timezone").write_text("Europe/Berlin\n")
        mirror(source, target)
        assert opened.read() == "UTC\n"
    assert (target / "timezone").read_text() == "Europe/Berlin\n"


def test_what_is_to_be_kept_and_places_of_mounts_stay(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "profiles" / "key").mkdir(parents=True)
    (target / "passwd").symlink_to("/run/passwd")
    (target / "place").mkdir()
    (target / "place-of-a-file").touch()
    (target / "left").write_text("of an older version")
    (target / ".ooodd-new-left").touch()
    mirror(source, target, ["profiles", "passwd"])
    names = {path.name for path in target.iterdir()}
    assert names == {"fonts", "empty", "timezone", "profiles", "passwd", "place", "place-of-a-file"}
    assert (target / "profiles" / "key").is_dir()


def test_nothing_at_all_is_an_empty_copy(tmp_path: Path) -> None:
    mirror(tmp_path / "missing", tmp_path / "target")
    assert not list((tmp_path / "target").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_what_others_may_not_read_is_left_out(source: Path, tmp_path: Path) -> None:
    (source / "secret").write_text("secret")
    (source / "secret").chmod(0o600)
    (source / "private").mkdir(mode=0o700)
    (source / "private" / "key").write_text("secret")
    target = tmp_path / "target"
    target.mkdir()
    os.chown(target, 65534, 65534)
    for path in [tmp_path, *tmp_path.parents[:2]]:
        path.chmod(0o755)
    child = os.fork()
    if not child:
        try:
            os.setresuid(65534, 65534, 65534)
            mirror(source, target)
        except BaseException:  # noqa: BLE001
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert {path.name for path in target.iterdir()} == {"fonts", "empty", "timezone", "private"}
    assert not list((target / "private").iterdir())


@pytest.mark.parametrize("seed", range(50))
def test_any_tree_becomes_any_other(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)

    def grow(directory: Path, depth: int) -> None:
        directory.mkdir()
        for name in "abc":
            kind = rng.choice(["file", "link", "directory", "nothing"] if depth else ["file", "nothing"])
            path = directory / name
            if kind == "file":
                path.write_text(rng.choice("xyz") * rng.randint(1, 3))
            elif kind == "link":
                path.symlink_to(rng.choice(["a", "/nowhere", "."]))
            elif kind == "directory":
                grow(path, depth - 1)

    target = tmp_path / "target"
    for step in range(4):
        source = tmp_path / f"source-{step}"
        grow(source, 3)
        mirror(source, target)
        ours, theirs = tree(target), tree(source)
        assert {name: text for name, text in ours.items() if text != "directory"} == {
            name: text for name, text in theirs.items() if text != "directory"
        }
