# SPDX-License-Identifier: LGPL-2.1-or-later
"""The description of io.ooodd is what the broker does, and whatever is sent is a call or an error that names what is
wrong.
"""  # noqa: D205

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import FakeSupervisor, ListJournal, ListNotifier, settings
from ooodd.broker.broker import Broker
from ooodd.commands import run
from ooodd.control import varlink
from ooodd.control.varlink import Method, VarlinkError
from ooodd.pool.pool import Place
from ooodd.systemd.fdstore import NoFdStore
from ooodd.systemd.peer import Peer

VALUES: dict[str, Any] = {"int": int, "string": str, "bool": bool, "float": (int, float), "object": dict}


class Description:
    """An interface's types and methods, as its text has them."""

    def __init__(self, text: str) -> None:
        plain = re.sub(r"#.*", "", text)
        self.types = {
            name: fields(body) for name, body in re.findall(r"^type (\w+) \((.*?)^\)", plain, re.MULTILINE | re.DOTALL)
        }
        found = re.findall(r"^method (\w+)\((.*?)\) -> \((.*?)\)\s*$", plain, re.MULTILINE | re.DOTALL)
        self.methods = {name: (fields(before), fields(after)) for name, before, after in found}

    def check(self, value: Any, kind: str, where: str) -> None:  # noqa: ANN401
        """Check that a value is of a kind."""
        if kind.startswith("?"):
            if value is not None:
                self.check(value, kind[1:], where)
        elif kind.startswith("[]"):
            assert isinstance(value, list), where
            for each in value:
                self.check(each, kind[2:], where)
        elif kind.startswith("[string]"):
            for each in value.values():
                self.check(each, kind.removeprefix("[string]"), where)
        elif kind.startswith("("):
            assert value in re.findall(r"\w+", kind), where
        elif kind in self.types:
            self.check_fields(value, self.types[kind], where)
        else:
            assert isinstance(value, VALUES[kind]), f"{where} is {value!r}, no {kind}"

    def check_fields(self, value: dict[str, Any], kinds: dict[str, str], where: str) -> None:
        assert set(value) == set(kinds), where
        for name, kind in kinds.items():
            self.check(value[name], kind, f"{where}.{name}")


def fields(body: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+):\s*((?:\?|\[\w*\])*(?:\([^)]*\)|\w+))", body))


@pytest.fixture
def description() -> Description:
    return Description(varlink.description(varlink.INTERFACE))


def a_broker(tmp_path: Path) -> Broker:
    config = settings("[pool]\nworkers = 2")
    return Broker(config, FakeSupervisor(tmp_path), ListJournal(), ListNotifier(), NoFdStore())


def methods(broker: Broker) -> dict[str, Method]:
    return run._Methods(broker, argparse.Namespace(config=None)).table()


async def test_each_method_is_described_and_each_description_is_a_method(
    description: Description, tmp_path: Path
) -> None:
    known = methods(a_broker(tmp_path))
    assert set(description.methods) == set(known)
    for name, method in known.items():
        assert set(description.methods[name][0]) == set(method.parameters.__annotations__), name


async def test_a_status_is_as_it_is_described(description: Description, tmp_path: Path) -> None:
    broker = a_broker(tmp_path)
    broker.pool.queue.add(7, Place(0.0, "192.0.2.1"))
    client: Any = type("", (), {"peer": Peer("192.0.2.1:5", "192.0.2.1"), "user": "", "path": None})()
    broker.driver.clients[7] = client
    method = methods(broker)["Status"]
    status = method.answer(method.parameters(), 0)
    description.check_fields(json.loads(json.dumps(status)), description.methods["Status"][1], "Status")


async def test_only_status_may_be_called_by_those_who_may_look(tmp_path: Path) -> None:
    assert [name for name, method in methods(a_broker(tmp_path)).items() if not method.acts] == ["Status"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
)
MEMBERS = st.sampled_from(["method", "parameters", "oneway", "more", "upgrade"]) | st.text()


@given(st.binary() | st.dictionaries(MEMBERS, JSON).map(lambda value: json.dumps(value).encode()))
def test_whatever_is_sent_is_a_call_or_one_error(message: bytes) -> None:
    names = ["InvalidParameter", "MethodNotFound", "InterfaceNotFound"]
    known = {"Status": Method(lambda _, __: {})}
    error = ""
    try:
        varlink.find(known, varlink.parse(message).method)
    except VarlinkError as raised:
        error = raised.name
        json.loads(varlink.encode({"error": raised.name, "parameters": raised.parameters})[:-1])
    assert error in ("", *(f"org.varlink.service.{name}" for name in names))
