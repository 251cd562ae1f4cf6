# SPDX-License-Identifier: LGPL-2.1-or-later
"""Converts one document, in a process of its own: `python3 -m ooodd.convert.document`, a `Task` on standard input.

A process for each document, because pyuno keeps a connection until its process ends. The document goes to the office in
one piece, to a stream that the office itself has, and the result comes back in one piece. A stream of the client's own
would be read a few bytes a call: a document that takes 21 s so takes 1.8 s this way. And LibreOffice 25.2 aborts on it.

This is the only module that needs pyuno.
"""

import contextlib
import ctypes
import importlib
import io
import json
import os
import signal
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn
from urllib.parse import quote

# Standard input and output are passed under other numbers: these descriptors are the way to the parent.
_PASSED = "/dev/fd/"
# com.sun.star.document.MacroExecMode, UpdateDocMode
_NEVER_EXECUTE = 0
_NO_UPDATE = 0
_EXPORT = 2
# Of prctl(2).
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Task:
    """What to convert, and how."""

    address: str
    source: str
    target: str
    extension: str
    filter: str = ""
    filter_options: str = ""
    filter_data: dict[str, Any] = field(default_factory=dict)
    password: str = ""

    def as_json(self) -> str:
        """Return text that `main` reads."""
        return json.dumps(asdict(self))


class Failure(Exception):  # noqa: N818 - it is the answer
    """Why the document can't be converted, in words."""


def main() -> int:
    """Convert. Print the reason if that fails, as one line."""
    _end_with_parent()
    line = sys.stdin.readline()
    if not line:  # the parent has ended before this was said
        return 1
    task = Task(**json.loads(line))
    try:
        data = _read(task.source)
        _write(task.target, _convert(task, data))
    except Failure as failure:
        sys.stdout.write(f"{failure}\n")
        return 1
    except OSError as error:
        sys.stdout.write(f"{error.filename or task.target}: {error.strerror}\n")
        return 1
    return 0


def _read(source: str) -> bytes:
    return Path(source).read_bytes()


def _end_with_parent() -> None:
    """Have the kernel send SIGTERM when the parent ends, also if it is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _write(target: str, data: bytes) -> None:
    """Write the result."""
    if target.startswith(_PASSED):
        Path(target).write_bytes(data)
        return
    with whole_file(Path(target)) as file:
        file.write(data)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears when it is whole. SIGTERM ends this process, and leaves nothing of the file."""
    umask = os.umask(0)
    os.umask(umask)
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
            Path(name).chmod(0o666 & ~umask)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


def _convert(task: Task, data: bytes) -> bytes:
    """Return the document in the other format."""
    uno = importlib.import_module("uno")  # which makes the other import possible
    from com.sun.star.uno import Exception as UnoException  # noqa: PLC0415

    try:
        office = _Office(uno, task.address)
    except UnoException as error:
        raise Failure(in_words(error)) from error
    try:
        return office.convert(task, data)
    except UnoException as error:
        raise Failure(in_words(error)) from error


class _Office:
    """A session with an office. The end of the process ends it."""

    def __init__(self, uno: Any, address: str) -> None:  # noqa: ANN401 - pyuno has no types
        self._uno = uno
        local = uno.getComponentContext()
        resolver = local.ServiceManager.createInstanceWithContext("com.sun.star.bridge.UnoUrlResolver", local)
        self._context = resolver.resolve(f"uno:{address};urp;StarOffice.ComponentContext")

    def convert(self, task: Task, data: bytes) -> bytes:
        """Load the document, store it in the other format, and close it."""
        document = self._load(task, data)
        try:
            result = self._create("com.sun.star.io.SequenceOutputStream")
            options: dict[str, object] = {"FilterName": self._filter(document, task), "OutputStream": result}
            if task.filter_options:
                options["FilterOptions"] = task.filter_options
            if task.filter_data:
                values = self._uno.Any("[]com.sun.star.beans.PropertyValue", self._properties(**task.filter_data))
                options["FilterData"] = values
            document.storeToURL("private:stream", self._properties(**options))
            return bytes(result.getWrittenBytes().value)
        finally:
            document.close(True)  # noqa: FBT003 - UNO has no keywords

    def _load(self, task: Task, data: bytes) -> Any:  # noqa: ANN401
        content = self._uno.ByteSequence(data)
        manager = self._context.ServiceManager
        stream = manager.createInstanceWithArgumentsAndContext(
            "com.sun.star.io.SequenceInputStream", (content,), self._context
        )
        options: dict[str, object] = {
            "InputStream": stream,
            "Hidden": True,
            "ReadOnly": True,
            "MacroExecutionMode": _NEVER_EXECUTE,
            "UpdateDocMode": _NO_UPDATE,
        }
        if task.password:
            options["Password"] = task.password
        options |= self._detected(task.source, stream)
        desktop = self._create("com.sun.star.frame.Desktop")
        document = desktop.loadComponentFromURL("private:stream", "_blank", 0, self._properties(**options))
        if document is None:
            raise Failure(self._why_not_loaded(task, data))
        return document

    def _detected(self, source: str, stream: Any) -> dict[str, object]:  # noqa: ANN401
        """Return type and filter of the document, by its content, and by its name where the content does not tell."""
        name = "document" if source.startswith(_PASSED) else Path(source).name
        descriptor = self._properties(URL=f"file:///{quote(name)}", InputStream=stream)
        kind, found = self._create("com.sun.star.document.TypeDetection").queryTypeByDescriptor(descriptor, True)  # noqa: FBT003
        stream.seek(0)
        names = {value.Name: value.Value for value in found if value.Name == "FilterName" and value.Value}
        return {"TypeName": kind, **names} if kind else {}

    def _why_not_loaded(self, task: Task, data: bytes) -> str:
        if not data:
            return "it is empty"
        if _is_encrypted(data):
            return "the password is wrong" if task.password else "it has a password; give it with --password-file"
        return "LibreOffice can't read it: it is damaged, or of a type that no filter reads"

    def _filter(self, document: Any, task: Task) -> str:  # noqa: ANN401
        """Return the export filter for the document and the format."""
        factory = self._create("com.sun.star.document.FilterFactory")
        types = self._create("com.sun.star.document.TypeDetection")
        modules = self._create("com.sun.star.frame.ModuleManager")
        module = str(modules.identify(document))
        if task.filter:
            if not factory.hasByName(task.filter):
                raise Failure(f'there is no filter "{task.filter}"')
            return task.filter
        query = f"getSortedFilterList():module={module}:iflags={_EXPORT}"
        filters = factory.createSubSetEnumerationByQuery(query)
        usual: list[str] = []
        others: list[str] = []
        while filters.hasMoreElements():
            found = {value.Name: value.Value for value in filters.nextElement()}
            kind = {value.Name: value.Value for value in types.getByName(found["Type"])}
            if task.extension in (kind.get("Extensions") or ()):
                (usual if kind.get("PreferredFilter") == found["Name"] else others).append(str(found["Name"]))
        for name in usual + others:
            return name
        raise Failure(f"a {module.rpartition('.')[2]} can't be stored as {task.extension}")

    def _create(self, service: str) -> Any:  # noqa: ANN401
        return self._context.ServiceManager.createInstanceWithContext(service, self._context)

    def _properties(self, **values: object) -> tuple[Any, ...]:
        from com.sun.star.beans import PropertyValue  # noqa: PLC0415

        return tuple(PropertyValue(name, 0, value, 0) for name, value in values.items())


def _is_encrypted(data: bytes) -> bool:
    """Whether a document that could not be loaded seems to have a password: ODF, OOXML in its OLE container, or PDF."""
    with contextlib.suppress(zipfile.BadZipFile, KeyError, zlib.error):
        return b"encryption-data" in zipfile.ZipFile(io.BytesIO(data)).read("META-INF/manifest.xml")
    return b"E\0n\0c\0r\0y\0p\0t\0e\0d\0P\0a\0c\0k\0a\0g\0e" in data or (data[:4] == b"%PDF" and b"/Encrypt" in data)


def in_words(error: BaseException) -> str:
    """Return what a UNO exception says, as one line."""
    text = " ".join(str(getattr(error, "Message", "") or error).split())
    name = (getattr(error, "typeName", "") or type(error).__name__).rpartition(".")[2]
    if name == "NoConnectException":
        return "nobody listens there; is ooodd.socket active? (systemctl start ooodd.socket)"
    if text.startswith("ooodd: "):
        return text.removeprefix("ooodd: ")
    # pyuno says the last of an office that is gone when it first needs a type of it.
    if name == "DisposedException" or "URP bridge" in text or "illegal object given" in text:
        return "the office ended amid the conversion; journalctl -u ooodd tells why"
    return f"{name}: {text}" if text else name


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # pyuno sometimes crashes when it is taken down
