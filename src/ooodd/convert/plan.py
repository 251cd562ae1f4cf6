# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is converted to what: the arguments of `ooodd convert`, checked before anything is done."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ooodd.errors import UsageError

# Standard input as a source, standard output as a target.
STANDARD = "-"


@dataclass(frozen=True)
class Format:
    """What to make: the extension of the file and, if it is not the usual one, LibreOffice's name of the filter."""

    extension: str
    filter: str = ""


@dataclass(frozen=True)
class Job:
    """One document: where it is, or "-", and where the result goes, or "-"."""

    source: str
    target: str


def parse_format(text: str) -> Format:
    """Return the format of "pdf" or "docx:MS Word 2007 XML"; `UsageError` if it is neither."""
    extension, _, name = text.partition(":")
    extension = extension.lower().lstrip(".")
    if not extension.isalnum():
        raise UsageError(f'"{text}" is no format', "give an extension such as pdf, or EXTENSION:FILTER")
    return Format(extension, name)


def plan(sources: Sequence[str], output: str | None, wanted: Format) -> list[Job]:
    """Return a job for each source, in their order. `UsageError` if two have the same target, or one is its own."""
    if output is None or output == STANDARD:
        jobs = [Job(source, _beside(source, wanted) if output is None else STANDARD) for source in sources]
    elif len(sources) > 1 or output.endswith("/") or Path(output).is_dir():
        jobs = [Job(source, str(_into(Path(output), source, wanted))) for source in sources]
    else:
        jobs = [Job(sources[0], output)]
    _check(jobs)
    return jobs


def _beside(source: str, wanted: Format) -> str:
    return STANDARD if source == STANDARD else str(Path(source).with_suffix(f".{wanted.extension}"))


def _into(directory: Path, source: str, wanted: Format) -> Path:
    stem = "document" if source == STANDARD else Path(source).stem
    return directory / f"{stem}.{wanted.extension}"


def _check(jobs: Sequence[Job]) -> None:
    if sum(job.source == STANDARD for job in jobs) > 1:
        raise UsageError('"-" can be given only once', "standard input is one document")
    if len(jobs) > 1 and any(job.target == STANDARD for job in jobs):
        raise UsageError("several documents do not go to standard output", "give -o DIRECTORY")
    for target, count in Counter(job.target for job in jobs).items():
        if count > 1:
            raise UsageError(f"{count} documents would become {target}", "convert them apart, each with its own -o")
    for job in jobs:
        if job.source != STANDARD and Path(job.source).absolute() == Path(job.target).absolute():
            raise UsageError(f"{job.source} would be replaced by its conversion", "give another -o")
