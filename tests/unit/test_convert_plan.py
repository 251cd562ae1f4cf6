# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is converted to what."""

from pathlib import Path

import pytest

from ooodd.convert.plan import Format, Job, parse_format, plan
from ooodd.errors import UsageError

PDF = Format("pdf")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("pdf", Format("pdf")),
        (".PDF", Format("pdf")),
        ("docx:MS Word 2007 XML", Format("docx", "MS Word 2007 XML")),
    ],
)
def test_a_format_is_an_extension_and_perhaps_a_filter(text: str, wanted: Format) -> None:
    assert parse_format(text) == wanted


@pytest.mark.parametrize("text", ["", ":", "a/b", ".:x"])
def test_what_is_no_format(text: str) -> None:
    with pytest.raises(UsageError, match="is no format"):
        parse_format(text)


@pytest.mark.parametrize(
    ("sources", "output", "jobs"),
    [
        (["d/a.odt", "b.docx"], None, [Job("d/a.odt", "d/a.pdf"), Job("b.docx", "b.pdf")]),
        (["a.odt"], "x.pdf", [Job("a.odt", "x.pdf")]),
        (["a.odt"], "new/", [Job("a.odt", "new/a.pdf")]),
        (["d/a.odt", "b.odt"], "new", [Job("d/a.odt", "new/a.pdf"), Job("b.odt", "new/b.pdf")]),
        (["-"], None, [Job("-", "-")]),
        (["-"], "x.pdf", [Job("-", "x.pdf")]),
        (["a.odt"], "-", [Job("a.odt", "-")]),
        (["-"], "new/", [Job("-", "new/document.pdf")]),
        (["archive.tar.odt", "none"], "o", [Job("archive.tar.odt", "o/archive.tar.pdf"), Job("none", "o/none.pdf")]),
    ],
)
def test_where_each_result_goes(sources: list[str], output: str | None, jobs: list[Job]) -> None:
    assert plan(sources, output, PDF) == jobs


def test_an_existing_directory_takes_a_single_document_too(tmp_path: Path) -> None:
    assert plan(["a.odt"], str(tmp_path), PDF) == [Job("a.odt", f"{tmp_path}/a.pdf")]


@pytest.mark.parametrize(
    ("sources", "output", "problem"),
    [
        (["-", "-"], "new/", '"-" can be given only once'),
        (["a.odt", "b.odt"], "-", "several documents do not go to standard output"),
        (["a.odt", "a.docx"], None, "2 documents would become a.pdf"),
        (["x/a.odt", "y/a.odt"], "new", "2 documents would become new/a.pdf"),
        (["a.pdf"], None, "a.pdf would be replaced by its conversion"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_done(
    sources: list[str], output: str | None, problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        plan(sources, output, PDF)
