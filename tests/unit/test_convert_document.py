# SPDX-License-Identifier: LGPL-2.1-or-later
"""The process that converts one document: its end, and its file."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ooodd.convert.document import in_words, whole_file

PATIENCE = 30.0
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new.pdf"
    with whole_file(target) as file:
        file.write(b"12")
        assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["new.pdf"]
    assert target.read_bytes() == b"12"


def test_a_file_that_is_not_whole_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), whole_file(tmp_path / "new.pdf"):
        raise OSError("full")
    assert not list(tmp_path.iterdir())


def test_sigterm_amid_writing_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys; from ooodd.convert.document import whole_file\n"
        "with whole_file(pathlib.Path(sys.argv[1])) as file:\n"
        "    print('open', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "new.pdf")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.terminate()
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_a_process_whose_parent_ends_before_it_has_a_task_ends() -> None:
    command = [sys.executable, "-m", "ooodd.convert.document"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False, env=ENVIRONMENT
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


def test_the_umask_is_left_as_it_was(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with whole_file(tmp_path / "new.pdf") as file:
            file.write(b"1")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert (tmp_path / "new.pdf").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("kind", "message", "words"),
    [
        ("DisposedException", "", "the office ended amid the conversion; journalctl -u ooodd tells why"),
        ("RuntimeException", "Binary URP bridge disposed during call", "the office ended amid the conversion; journal"),
        ("RuntimeException", "illegal object given! at cppu/...", "the office ended amid the conversion; journal"),
        ("NoConnectException", "Connector : couldn't connect", "nobody listens there; is ooodd.socket active?"),
        ("RuntimeException", "ooodd: the pool is being\nstopped", "the pool is being stopped"),
        ("IOException", "no such filter", "IOException: no such filter"),
        ("IOException", "", "IOException"),
    ],
)
def test_what_a_uno_exception_says_is_told_in_plain_words(kind: str, message: str, words: str) -> None:
    error = Exception(message)
    vars(error).update(typeName=f"com.sun.star.x.{kind}", Message=message)
    assert in_words(error).startswith(words)
