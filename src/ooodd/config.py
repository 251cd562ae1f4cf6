# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration file, ooodd.toml(5).

An absent file means all defaults. Any error in the file, even one unknown key, is a `ConfigError`. Its text is one line
with the file, the key and the reason. A broker that ignored a part of its configuration would be worse than one that
does not start. TOML is typed, so `workers = "4"` is an error and not 4.

pydantic checks structure and ranges. This module uses only what its versions 1.10 and 2 have in common.
"""

import difflib
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import tomli
from pydantic import BaseModel, Field, ValidationError

from ooodd.errors import ConfigError
from ooodd.hosts import network

DEFAULT_PATH = Path("/etc/ooodd/ooodd.toml")

# Seconds for each unit of systemd.time(7).
_TIMES = {
    **dict.fromkeys(("us", "usec", "µs"), 1e-6),
    **dict.fromkeys(("ms", "msec"), 1e-3),
    **dict.fromkeys(("", "s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
    **dict.fromkeys(("w", "week", "weeks"), 604800.0),
}
_SPAN = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zµ]*)")

# Bytes for each unit that systemd.resource-control(5) has for MemoryMax=.
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)\s*")

# The kinds of documents in [pool] preload. LibreOffice makes one by the URL private:factory/s and its name.
PRELOADABLE = ("writer", "calc", "impress", "draw", "math")


def parse_duration(text: str) -> float:
    """Return the seconds of a time span in systemd's notation ("90s", "1h 30min"), or raise `ValueError`."""
    total, position = 0.0, 0
    while match := _SPAN.match(text, position):
        number, unit = match.groups()
        if unit not in _TIMES:
            raise ValueError(f'unknown unit "{unit}" in "{text}"')
        total, position = total + float(number) * _TIMES[unit], match.end()
    if not position or text[position:].strip():
        raise ValueError(f'"{text}" is not a duration such as "90s" or "5min"')
    return total


def parse_size(text: str) -> int:
    """Return the bytes of a size in systemd's notation ("512M", "1.5G"), or raise `ValueError`."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f'"{text}" is not a size such as "512M" or "1G"')
    number, unit = match.groups()
    return int(min(float(number) * _SIZES[unit], 2.0**63))  # a much greater number is infinite as a float


@dataclass(frozen=True)
class Quantity:
    """How a duration or size is written in the file. The annotation of its field has it; the field has a number."""

    parse: Callable[[str], float]
    description: str
    numbers: tuple[type, ...]  # types of TOML that are accepted without quotes
    units: dict[str, int]  # largest first, used to show a bound
    unlimited: bool = False  # "infinity" is accepted and means None

    def read(self, value: object) -> float | None:
        """Return the number that a value of TOML means, or None for no limit, or raise `ValueError`."""
        if value == "infinity" and self.unlimited:
            return None
        if isinstance(value, str) and value != "infinity":
            return self.parse(value)
        if isinstance(value, int | float) and type(value) in self.numbers and 0 <= value < math.inf:
            return min(value, 1 << 63)  # a greater int can't be converted to a float
        raise ValueError(f"must be {self.description}, not {_toml(value)}")

    def show(self, bound: float) -> str:
        """Return a bound of seconds or bytes with its largest unit that gives a whole number."""
        unit = next((unit for unit, size in self.units.items() if bound % size == 0), "s")
        return f"{bound / self.units.get(unit, 1):.15g}{unit}"


_TIME = Quantity(parse_duration, 'a duration such as "90s"', (int, float), {"d": 86400, "h": 3600, "min": 60, "s": 1})
_MEMORY = Quantity(parse_size, 'a size such as "1G"', (int,), dict(reversed(_SIZES.items())))

# The types of keys for durations and sizes. Those with None accept "infinity".
Seconds = Annotated[float, _TIME]
SecondsOrNone = Annotated[
    float | None, replace(_TIME, description=f'{_TIME.description} or "infinity"', unlimited=True)
]
BytesOrNone = Annotated[
    int | None, replace(_MEMORY, description=f'{_MEMORY.description} or "infinity"', unlimited=True)
]

# What a list may hold, for errors.
_EXAMPLES = {
    "allowed_hosts": "192.0.2.0/24",
    "allowed_users": "www-data",
    "allowed_groups": "office-clients",
    "preload": "writer",
}
# The jitter of a `max_uses` that is great enough.
_DEFAULT_JITTER = 3
_YEAR = 365 * 86400.0
# A busy office takes about as much.
_MEMORY_PER_WORKER = 256 << 20
# The limits of a container, in cgroup version 2 and 1.
_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def _default_workers() -> int:
    """Return a generous number, as far as the memory goes.

    An idle office takes 22 MiB, and some programs hold three connections at once.
    """
    return min(max(4, 2 * (os.cpu_count() or 1)), max(2, _memory() // _MEMORY_PER_WORKER))


def _memory() -> int:
    """Return the bytes of memory that the machine, or the container, has."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in _MEMORY_LIMITS:
        with suppress(OSError, ValueError):  # "max"
            found.append(int(path.read_text()))
    return min(found)


class PoolSection(BaseModel, extra="forbid"):
    """`[pool]`: how many offices there are, how long each lives, and how it is probed."""

    workers: int = Field(default_factory=_default_workers, ge=1, le=1000)
    min_workers: int = Field(default=1, ge=0, le=1000)
    spare_workers: int = Field(default=1, ge=0, le=1000)
    max_uses: int = Field(default=1, ge=1, le=1_000_000)
    max_uses_jitter: int = Field(default=0, ge=0, le=1_000_000)
    max_age: SecondsOrNone = Field(default=None, ge=1.0, le=_YEAR)
    max_memory: BytesOrNone = Field(default=1 << 30, ge=64 << 20, le=1 << 50)
    start_timeout: Seconds = Field(default=60.0, ge=1.0, le=3600.0)
    idle_timeout: SecondsOrNone = Field(default=600.0, ge=1.0, le=_YEAR)
    probe_interval: SecondsOrNone = Field(default=60.0, ge=1.0, le=86400.0)
    probe_timeout: Seconds = Field(default=5.0, ge=0.1, le=600.0)
    preload: list[str] = Field(default_factory=list)


class QueueSection(BaseModel, extra="forbid"):
    """`[queue]`: how many clients may wait for an office, and how long. For `max_per_host`, None means no limit."""

    max_clients: int = Field(default=1000, ge=0, le=100_000)
    max_per_host: int | None = Field(default=None, ge=1, le=100_000)
    max_per_user: int | None = Field(default=None, ge=1, le=100_000)
    timeout: Seconds = Field(default=600.0, ge=1.0, le=86400.0)


class SessionSection(BaseModel, extra="forbid"):
    """`[session]`: how long a client may keep its office, and how long an office may go on without its client."""

    timeout: SecondsOrNone = Field(default=None, ge=1.0, le=_YEAR)
    idle_timeout: SecondsOrNone = Field(default=None, ge=1.0, le=_YEAR)
    reclaim_after: SecondsOrNone = Field(default=1.0, ge=0.1, le=_YEAR)
    first_call_timeout: SecondsOrNone = Field(default=5.0, ge=0.1, le=_YEAR)
    grace: Seconds = Field(default=10.0, ge=0.0, le=3600.0)
    drain_timeout: Seconds = Field(default=30.0, ge=0.0, le=86400.0)


class DataPathSection(BaseModel, extra="forbid"):
    """`[data_path]`: how the bytes get from the client to the office and back."""

    mode: Literal["forward", "handoff", "auto"] = "forward"


class AccessSection(BaseModel, extra="forbid"):
    """`[access]`: who may connect. None means everybody."""

    allowed_hosts: list[str] | None = None
    allowed_users: list[str] | None = None
    allowed_groups: list[str] | None = None


class LogSection(BaseModel, extra="forbid"):
    """`[log]`: which messages go to the journal."""

    level: Literal["serious", "info", "detail"] = "info"


class Config(BaseModel, extra="forbid"):
    """The whole file."""

    pool: PoolSection = Field(default_factory=PoolSection)
    queue: QueueSection = Field(default_factory=QueueSection)
    session: SessionSection = Field(default_factory=SessionSection)
    data_path: DataPathSection = Field(default_factory=DataPathSection)
    access: AccessSection = Field(default_factory=AccessSection)
    log: LogSection = Field(default_factory=LogSection)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Return the values in force by section, for `ooodd status --json`. None means no limit."""
        return {section: dict(getattr(self, section)) for section in Config.__annotations__}

    def as_json(self) -> str:
        """Return the values in force as text that `from_json` reads."""
        return json.dumps(self.as_dict())


def from_json(text: str) -> Config | None:
    """Return the configuration that `as_json` has written. Returns None for other text, or that of another version."""
    try:
        return Config(**json.loads(text))
    except (ValueError, TypeError):  # pydantic's ValidationError is a ValueError
        return None


def load(path: Path | None = None) -> Config:
    """Read the configuration from `path`, which must exist, or else from the default place, which may be absent.

    Raises `ConfigError`. Its text is one line with the file, the key and the reason.
    """
    source = path or DEFAULT_PATH
    try:
        text = source.read_text("utf-8")
    except FileNotFoundError as error:
        if path is None:
            return Config()
        raise ConfigError(
            f"{source}", f"{error.strerror}; name an existing file; without one, all defaults apply"
        ) from error
    except OSError as error:
        raise ConfigError(f"{source}", f"{error.strerror}; it must be readable by the user that runs ooodd") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}", f"not UTF-8 at byte {error.start}") from error
    return parse(text, str(source))


def parse(text: str, source: str) -> Config:
    """Return the `Config` of a configuration file's text. `source` is the file's name, for errors."""
    try:
        document = tomli.loads(text)
    # TOMLDecodeError is a ValueError, and int() raises one for 5000 digits.
    except (ValueError, RecursionError) as error:
        raise ConfigError(source, f"not valid TOML: {_one_line(str(error))}") from error
    problems = list(_prepare(document))
    _fit_jitter(document)
    if not problems:
        try:
            config = Config(**document)
        except ValidationError as error:
            problems = [_describe(entry["loc"], entry["msg"], entry.get("ctx")) for entry in error.errors()]
        else:
            problems = list(_contradictions(config))
    if problems:
        raise ConfigError(source, _one_line("; ".join(problems)))
    return config


def _prepare(document: dict[str, Any]) -> Iterator[str]:
    """Replace durations and sizes by numbers. Yield a problem for each unknown or wrongly typed key."""
    sections = Config.__annotations__
    for section, values in document.items():
        if section not in sections:
            yield _unknown("", section, list(sections), "section")
        elif not isinstance(values, dict):
            yield f"{section}: must be a section, [{section}]"
        else:
            keys = sections[section].__annotations__
            for key, value in values.items():
                yield from _prepare_key(section, key, value, keys, values)


def _prepare_key(section: str, key: str, value: object, keys: dict[str, type], values: dict[str, Any]) -> Iterator[str]:
    place = f"{section}.{key}"
    if key not in keys:
        yield _unknown(f"{section}.", key, list(keys), "key")
    elif quantity := _quantity(keys[key]):
        try:
            values[key] = quantity.read(value)
        except ValueError as error:
            yield f"{place}: {error}"
    elif int in (keys[key], *get_args(keys[key])) and type(value) is not int:
        yield f"{place}: must be a whole number without quotes, not {_toml(value)}"
    elif list[str] in (keys[key], *get_args(keys[key])) and not (
        isinstance(value, list) and all(isinstance(each, str) for each in value)
    ):
        yield f'{place}: must be a list of texts, such as ["{_EXAMPLES.get(key, "")}"], not {_toml(value)}'
    elif get_origin(keys[key]) is Literal and value not in (choices := get_args(keys[key])):
        yield f"{place}: must be one of {', '.join(map(_toml, choices))}, not {_toml(value)}"


def _quantity(annotation: object) -> Quantity | None:
    return next((part for part in get_args(annotation) if isinstance(part, Quantity)), None)


def _fit_jitter(document: dict[str, Any]) -> None:
    """Give a `max_uses` of the file a jitter that fits, so that this key alone is enough."""
    pool = document.get("pool")
    if isinstance(pool, dict) and isinstance(pool.get("max_uses"), int):
        pool.setdefault("max_uses_jitter", max(0, min(_DEFAULT_JITTER, pool["max_uses"] - 1)))


def _contradictions(config: Config) -> Iterator[str]:
    pool = config.pool
    if pool.max_uses_jitter >= pool.max_uses:
        yield (
            f"pool.max_uses_jitter: must be below pool.max_uses ({pool.max_uses}), not {pool.max_uses_jitter}; "
            "lower it or raise max_uses"
        )
    for key in ("min_workers", "spare_workers"):
        if (count := getattr(pool, key)) > pool.workers:
            yield f"pool.{key}: must be at most pool.workers ({pool.workers}), not {count}; lower it or raise workers"
    for kind in pool.preload:
        if kind not in PRELOADABLE:
            yield f'pool.preload: "{kind}" is none of {", ".join(PRELOADABLE)}'
    for host in config.access.allowed_hosts or ():
        try:
            network(host)
        except ValueError:
            yield f'access.allowed_hosts: "{host}" is no address and no network, such as "192.0.2.0/24"'


def _toml(value: object) -> str:
    """Show a value approximately as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _one_line(text: str) -> str:
    """Escape unprintable characters, which a quoted key or string may have, so that the text stays one line."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _unknown(prefix: str, name: str, known: list[str], what: str) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"{prefix}{name}: unknown {what}" + (f"; did you mean {prefix}{close[0]}?" if close else "")


def _describe(location: tuple[int | str, ...], message: str, context: dict[str, Any] | None) -> str:
    """Return one text for an error of pydantic. Its two versions have different texts for the same error."""
    limits = context or {}
    place = ".".join(map(str, location))
    for limit, words in (("ge", "at least"), ("le", "at most"), ("limit_value", "within")):
        if limit in limits:
            bound = limits[limit]
            if limit == "limit_value":  # pydantic 1 has the direction only in its message
                words = "at least" if "greater" in message else "at most"  # noqa: PLW2901
            return f"{place}: must be {words} {_show(place, bound)}"
    return f"{place}: {message}"


def _show(place: str, bound: float) -> str:
    section, _, key = place.partition(".")
    quantity = _quantity(Config.__annotations__[section].__annotations__.get(key))
    return quantity.show(bound) if quantity else f"{bound:.15g}"
