# SPDX-License-Identifier: LGPL-2.1-or-later
"""Support for coroutine tests, and a check that a test leaves no task, descriptor or child process."""

import asyncio
import inspect
import os
from collections.abc import Awaitable, Iterator
from pathlib import Path

import pytest

from ooodd.datapath import eager
from ooodd.office import office

# This only ends tests that hang: no test here takes long.
HANG_LIMIT = 60.0


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test on its own event loop, of the type that the broker uses, and check that no task is left."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    with asyncio.Runner(loop_factory=eager.new_event_loop) as runner:
        runner.run(_run(pyfuncitem.obj(**arguments)))
    return True


async def _run(test: Awaitable[None]) -> None:
    await asyncio.wait_for(test, HANG_LIMIT)
    await asyncio.sleep(0)  # for the callbacks of tasks that are done
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks left: {left}"


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves a descriptor or a child process."""
    before, children = _descriptors(), _children()
    yield
    assert _descriptors() == before, "descriptors left"
    assert _children() == children, "children left"


@pytest.fixture(autouse=True)
def pipe_directories(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test make directories in /run."""
    monkeypatch.setattr("ooodd.office.pipedirectory.PARENT", tmp_path_factory.mktemp("pipes"))


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def _descriptors() -> dict[str, str]:
    """Return what is open, but for what is kept in reserve for all offices."""
    links = {}
    for link in Path("/proc/self/fd").iterdir():
        if int(link.name) in office._reserve._held:
            continue
        try:
            links[link.name] = str(link.readlink())
        except FileNotFoundError:  # the descriptor that listed the directory
            continue
    return links
