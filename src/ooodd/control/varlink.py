# SPDX-License-Identifier: LGPL-2.1-or-later
"""Varlink, as far as a service needs it (varlink.org): calls, replies, errors, and introspection. Sans-IO.

A message is a JSON object and a NUL byte. A call names its method with its interface, "io.ooodd.Status". A method takes
its parameters by name. pydantic checks them, and what is unknown or of another type is an error that names it.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from pydantic import BaseModel, ValidationError

from ooodd import __version__

END = b"\0"
INTERFACE = "io.ooodd"
_SERVICE = "org.varlink.service"
_URL = "man:ooodd(8)"


class VarlinkError(Exception):
    """An error as a reply: its name with the interface, and its parameters."""

    def __init__(self, name: str, **parameters: object) -> None:
        """Take the name, "org.varlink.service.MethodNotFound" for example."""
        super().__init__(name, parameters)
        self.name = name
        self.parameters = parameters


class Call(BaseModel, extra="forbid"):
    """One call."""

    method: str
    parameters: dict[str, Any] = {}
    oneway: bool = False
    more: bool = False
    upgrade: bool = False


class Nothing(BaseModel, extra="forbid"):
    """The parameters of a method that has none."""


class _Interface(BaseModel, extra="forbid"):
    """The parameters of GetInterfaceDescription."""

    interface: str


@dataclass(frozen=True)
class Method:
    """One method. `answer` is called with its parameters and the caller's user id, and returns the reply's parameters.

    `acts` tells whether it changes anything: then it needs another right.
    """

    answer: Callable[[Any, int], dict[str, Any] | Awaitable[dict[str, Any]]]
    parameters: type[BaseModel] = Nothing
    acts: bool = False


def parse(message: bytes) -> Call:
    """Return the call in a message, which comes without its NUL byte. Raises `VarlinkError`."""
    try:
        value = json.loads(message)
        if isinstance(value, dict) and value.get("parameters") is None:  # sent as null by some
            value.pop("parameters", None)
        call = Call(**value)
        if not isinstance(value.get("parameters", {}), dict):  # pydantic 1 makes one of a list
            raise TypeError("parameters")  # noqa: TRY301
        return call  # noqa: TRY300
    except (ValidationError, ValueError, TypeError, RecursionError) as error:
        raise invalid(error) from error


def invalid(error: Exception) -> VarlinkError:
    """Return the reply to parameters, or to a call, that can't be understood: it names the first that is wrong."""
    first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "no call in JSON"}
    where = ".".join(map(str, first["loc"]))
    return VarlinkError(f"{_SERVICE}.InvalidParameter", parameter=f"{where}: {first['msg']}" if where else first["msg"])


def denied() -> VarlinkError:
    """Return the reply to a call that the caller has no right to make."""
    return VarlinkError(f"{_SERVICE}.PermissionDenied")


def find(methods: Mapping[str, Method], name: str) -> Method:
    """Return the method of that name, with its interface. `methods` are those of INTERFACE. Raises `VarlinkError`."""
    interface, _, method = name.rpartition(".")
    known = {INTERFACE: methods, _SERVICE: _INTROSPECTION}.get(interface)
    if known is None:
        raise VarlinkError(f"{_SERVICE}.InterfaceNotFound", interface=interface)
    if method not in known:
        raise VarlinkError(f"{_SERVICE}.MethodNotFound", method=name)
    return known[method]


def encode(message: Mapping[str, object]) -> bytes:
    """Return a message with its NUL byte."""
    return json.dumps(message).encode() + END


def description(interface: str) -> str:
    """Return the description of an interface. Raises `VarlinkError` for an unknown one."""
    if interface not in (INTERFACE, _SERVICE):
        raise VarlinkError(f"{_SERVICE}.InterfaceNotFound", interface=interface)
    return resources.files("ooodd").joinpath("data", f"{interface}.varlink").read_text()


def _get_info(_: Nothing, __: int) -> dict[str, Any]:
    names = [_SERVICE, INTERFACE]
    return {"vendor": "ooodd", "product": "ooodd", "version": __version__, "url": _URL, "interfaces": names}


def _get_interface_description(asked: _Interface, _: int) -> dict[str, Any]:
    return {"description": description(asked.interface)}


_INTROSPECTION = {
    "GetInfo": Method(_get_info),
    "GetInterfaceDescription": Method(_get_interface_description, _Interface),
}
