# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration file: its values, and one line with file, key and reason for every error.

All texts of errors come from ooodd.config, so they are the same with every version of pydantic.
"""

import json
import re
from datetime import date
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ooodd import config
from ooodd.config import Config, from_json, load, parse, parse_duration, parse_size
from ooodd.errors import ConfigError

# The time of an example depends on the machine, so it is not limited.
without_deadline = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def refusal(text: str) -> str:
    """Check that the text is refused in one line, and return that line without the file's name."""
    with pytest.raises(ConfigError) as refused:
        parse(text, "ooodd.toml")
    line = str(refused.value)
    assert line.isprintable(), "more than one line"
    assert line.startswith("ooodd.toml: ")
    return line.removeprefix("ooodd.toml: ")


def outcome(text: str) -> Config | str:
    """Return the configuration, or the text of the error."""
    try:
        return parse(text, "ooodd.toml")
    except ConfigError as error:
        return str(error)


def test_an_empty_file_gives_all_defaults() -> None:
    parsed = parse("", "ooodd.toml")
    assert parsed == Config()
    assert parsed.pool.workers >= 2
    assert parsed.as_dict() == {
        "pool": {
            "workers": parsed.pool.workers,
            "min_workers": 1,
            "spare_workers": 1,
            "max_uses": 1,
            "max_uses_jitter": 0,
            "max_age": None,
            "max_memory": 1024**3,
            "start_timeout": 60.0,
            "idle_timeout": 600.0,
            "probe_interval": 60.0,
            "probe_timeout": 5.0,
            "preload": [],
        },
        "queue": {"max_clients": 1000, "max_per_host": None, "max_per_user": None, "timeout": 600.0},
        "session": {
            "timeout": None,
            "idle_timeout": None,
            "reclaim_after": 1.0,
            "first_call_timeout": 5.0,
            "grace": 10.0,
            "drain_timeout": 30.0,
        },
        "data_path": {"mode": "forward"},
        "access": {"allowed_hosts": None, "allowed_users": None, "allowed_groups": None},
        "log": {"level": "info"},
    }


ALL_KEYS = """
    [pool]
    workers = 3
    min_workers = 0
    spare_workers = 3
    max_uses = 5
    max_uses_jitter = 4
    max_age = "1d 12h"
    max_memory = "512M"
    start_timeout = "1min 30s"
    idle_timeout = 1
    probe_interval = "24h"
    probe_timeout = "100ms"
    preload = ["writer", "math"]
    [queue]
    max_clients = 0
    max_per_host = 2
    max_per_user = 3
    timeout = 7.5
    [session]
    timeout = "1h"
    idle_timeout = "2h"
    reclaim_after = "500ms"
    first_call_timeout = "infinity"
    grace = 0
    drain_timeout = "0s"
    [data_path]
    mode = "forward"
    [access]
    allowed_hosts = ["::1", "10.0.0.0/8"]
    allowed_users = ["www-data"]
    allowed_groups = []
    [log]
    level = "detail"
"""


def test_all_keys_can_be_set_and_are_shown() -> None:
    assert parse(ALL_KEYS, "ooodd.toml").as_dict() == {
        "pool": {
            "workers": 3,
            "min_workers": 0,
            "spare_workers": 3,
            "max_uses": 5,
            "max_uses_jitter": 4,
            "max_age": 129600.0,
            "max_memory": 512 * 1024**2,
            "start_timeout": 90.0,
            "idle_timeout": 1.0,
            "probe_interval": 86400.0,
            "probe_timeout": 0.1,
            "preload": ["writer", "math"],
        },
        "queue": {"max_clients": 0, "max_per_host": 2, "max_per_user": 3, "timeout": 7.5},
        "session": {
            "timeout": 3600.0,
            "idle_timeout": 7200.0,
            "reclaim_after": 0.5,
            "first_call_timeout": None,
            "grace": 0.0,
            "drain_timeout": 0.0,
        },
        "data_path": {"mode": "forward"},
        "access": {"allowed_hosts": ["::1", "10.0.0.0/8"], "allowed_users": ["www-data"], "allowed_groups": []},
        "log": {"level": "detail"},
    }


@pytest.mark.parametrize("text", ["", ALL_KEYS])
def test_each_key_is_shown_with_one_json_type(text: str) -> None:
    shown = parse(text, "ooodd.toml").as_dict()
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    for section in shown.values():
        for key, value in section.items():
            texts = list if key.startswith(("allowed_", "preload")) else str if key in ("mode", "level") else int
            expected = float if key in DURATIONS else texts
            assert value is None or type(value) is expected, key


DURATIONS = (
    *("reclaim_after", "first_call_timeout"),
    *("max_age", "start_timeout", "idle_timeout", "probe_interval", "probe_timeout"),
    *("timeout", "grace", "drain_timeout"),
)
UNLIMITED = (
    *("pool.max_age", "pool.max_memory", "pool.idle_timeout", "pool.probe_interval"),
    *("session.timeout", "session.idle_timeout", "session.reclaim_after", "session.first_call_timeout"),
)
LIMITED = (
    *("pool.start_timeout", "pool.probe_timeout", "queue.timeout", "session.grace", "session.drain_timeout"),
    *("pool.workers", "pool.min_workers", "pool.spare_workers", "pool.max_uses", "queue.max_per_host"),
)


@pytest.mark.parametrize("place", UNLIMITED)
def test_infinity_is_none(place: str) -> None:
    section, key = place.split(".")
    assert getattr(getattr(parse(f'{place} = "infinity"', "ooodd.toml"), section), key) is None


@pytest.mark.parametrize("place", LIMITED)
def test_infinity_is_refused_for_keys_that_need_a_limit(place: str) -> None:
    reason = refusal(f'{place} = "infinity"')
    assert reason.startswith(f"{place}: must be a ")
    assert reason.endswith(', not "infinity"')


@pytest.mark.parametrize("workers", [1, 2, 1000])
def test_any_number_of_workers_is_valid_without_other_keys(workers: int) -> None:
    pool = parse(f"[pool]\nworkers = {workers}", "ooodd.toml").pool
    assert (pool.workers, pool.min_workers, pool.spare_workers) == (workers, 1, 1)


@pytest.mark.parametrize(
    "text", ['session = {timeout = "1min", idle_timeout = "1h"}', "queue = {max_clients = 1, max_per_host = 2}"]
)
def test_a_limit_that_never_takes_effect_is_accepted(text: str) -> None:
    assert isinstance(outcome(text), Config)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        # Unknown.
        ("[pool]\nwrokers = 1", "pool.wrokers: unknown key; did you mean pool.workers?"),
        ("[queue]\nxyzzy = 1", "queue.xyzzy: unknown key"),
        ("[log]\nlevle = 1", "log.levle: unknown key; did you mean log.level?"),
        ("[session]\ntimout = 1", "session.timout: unknown key; did you mean session.timeout?"),
        ("[pol]\nworkers = 1", "pol: unknown section; did you mean pool?"),
        ("workers = 1", "workers: unknown section"),
        ('"pool.workers" = 1', "pool.workers: unknown section"),
        # Of the wrong type.
        ("pool = 4", "pool: must be a section, [pool]"),
        ("[[pool]]\nworkers = 4", "pool: must be a section, [pool]"),
        ("access = 1", "access: must be a section, [access]"),
        ('[pool]\nworkers = "4"', 'pool.workers: must be a whole number without quotes, not "4"'),
        ("[pool]\nworkers = 4.0", "pool.workers: must be a whole number without quotes, not 4.0"),
        ("[pool]\nworkers = true", "pool.workers: must be a whole number without quotes, not true"),
        ("[pool]\nworkers = [4]", "pool.workers: must be a whole number without quotes, not [4]"),
        ("[pool]\nworkers = {}", "pool.workers: must be a whole number without quotes, not a table"),
        ("[pool]\nmin_workers = true", "pool.min_workers: must be a whole number without quotes, not true"),
        ("[pool]\nspare_workers = nan", "pool.spare_workers: must be a whole number without quotes, not nan"),
        ("[queue]\nmax_per_host = 1.0", "queue.max_per_host: must be a whole number without quotes, not 1.0"),
        ("[queue]\nmax_per_host = false", "queue.max_per_host: must be a whole number without quotes, not false"),
        ("[pool]\nmax_uses = false", "pool.max_uses: must be a whole number without quotes, not false"),
        ("[pool]\nstart_timeout = true", 'pool.start_timeout: must be a duration such as "90s", not true'),
        ("[pool]\nstart_timeout = 2026-01-02", 'pool.start_timeout: must be a duration such as "90s", not 2026-01-02'),
        ("[queue]\ntimeout = [1]", 'queue.timeout: must be a duration such as "90s", not [1]'),
        # Not a duration.
        ("[queue]\ntimeout = nan", 'queue.timeout: must be a duration such as "90s", not nan'),
        ("[queue]\ntimeout = inf", 'queue.timeout: must be a duration such as "90s", not inf'),
        ("[queue]\ntimeout = -1", 'queue.timeout: must be a duration such as "90s", not -1'),
        ('[queue]\ntimeout = ""', 'queue.timeout: "" is not a duration such as "90s" or "5min"'),
        ('[queue]\ntimeout = "-5s"', 'queue.timeout: "-5s" is not a duration such as "90s" or "5min"'),
        ('[queue]\ntimeout = "5 parsecs"', 'queue.timeout: unknown unit "parsecs" in "5 parsecs"'),
        ('[queue]\ntimeout = "infinity"', 'queue.timeout: must be a duration such as "90s", not "infinity"'),
        ('[session]\ntimeout = "never"', 'session.timeout: "never" is not a duration such as "90s" or "5min"'),
        ('[session]\ntimeout = "Infinity"', 'session.timeout: "Infinity" is not a duration such as "90s" or "5min"'),
        ("[session]\ntimeout = inf", 'session.timeout: must be a duration such as "90s" or "infinity", not inf'),
        ("[session]\ntimeout = nan", 'session.timeout: must be a duration such as "90s" or "infinity", not nan'),
        ("[session]\ngrace = -0.1", 'session.grace: must be a duration such as "90s", not -0.1'),
        ("[session]\ngrace = false", 'session.grace: must be a duration such as "90s", not false'),
        # Not a size.
        ('[pool]\nmax_memory = "1GB"', 'pool.max_memory: "1GB" is not a size such as "512M" or "1G"'),
        ('[pool]\nmax_memory = "50%"', 'pool.max_memory: "50%" is not a size such as "512M" or "1G"'),
        ("[pool]\nmax_memory = 1e9", 'pool.max_memory: must be a size such as "1G" or "infinity", not 1000000000.0'),
        ("[pool]\nmax_memory = -1", 'pool.max_memory: must be a size such as "1G" or "infinity", not -1'),
        ("[pool]\nmax_memory = true", 'pool.max_memory: must be a size such as "1G" or "infinity", not true'),
        ("[pool]\nmax_memory = inf", 'pool.max_memory: must be a size such as "1G" or "infinity", not inf'),
        ("[pool]\nmax_memory = {}", 'pool.max_memory: must be a size such as "1G" or "infinity", not a table'),
        # Out of range, at both ends.
        ("[pool]\nworkers = 0", "pool.workers: must be at least 1"),
        ("[pool]\nworkers = 1001", "pool.workers: must be at most 1000"),
        ("[pool]\nmax_uses = 0", "pool.max_uses: must be at least 1"),
        ("[pool]\nmax_uses = 1000001", "pool.max_uses: must be at most 1000000"),
        ("[pool]\nmax_uses_jitter = -1", "pool.max_uses_jitter: must be at least 0"),
        ("[pool]\nmax_uses_jitter = 1000001", "pool.max_uses_jitter: must be at most 1000000"),
        ('[pool]\nstart_timeout = "999ms"', "pool.start_timeout: must be at least 1s"),
        ('[pool]\nstart_timeout = "61min"', "pool.start_timeout: must be at most 1h"),
        ("[pool]\nmin_workers = -1", "pool.min_workers: must be at least 0"),
        ("[pool]\nmin_workers = 1001", "pool.min_workers: must be at most 1000"),
        ("[pool]\nspare_workers = -1", "pool.spare_workers: must be at least 0"),
        ("[pool]\nspare_workers = 1001", "pool.spare_workers: must be at most 1000"),
        ("[pool]\nmax_age = 0", "pool.max_age: must be at least 1s"),
        ('[pool]\nmax_age = "366d"', "pool.max_age: must be at most 365d"),
        ('[pool]\nmax_memory = "63.9M"', "pool.max_memory: must be at least 64M"),
        ("[pool]\nmax_memory = 1", "pool.max_memory: must be at least 64M"),
        ('[pool]\nmax_memory = "1025T"', "pool.max_memory: must be at most 1024T"),
        (f'[pool]\nmax_memory = "{"9" * 400}T"', "pool.max_memory: must be at most 1024T"),
        ('[pool]\nidle_timeout = "0.9s"', "pool.idle_timeout: must be at least 1s"),
        ('[pool]\nidle_timeout = "53w"', "pool.idle_timeout: must be at most 365d"),
        ("[pool]\nprobe_interval = 0.5", "pool.probe_interval: must be at least 1s"),
        ('[pool]\nprobe_interval = "25h"', "pool.probe_interval: must be at most 1d"),
        ('[pool]\nprobe_timeout = "99ms"', "pool.probe_timeout: must be at least 0.1s"),
        ('[pool]\nprobe_timeout = "11min"', "pool.probe_timeout: must be at most 10min"),
        ("[queue]\nmax_clients = -1", "queue.max_clients: must be at least 0"),
        ("[queue]\nmax_clients = 100001", "queue.max_clients: must be at most 100000"),
        ("[queue]\ntimeout = 0", "queue.timeout: must be at least 1s"),
        ("[queue]\ntimeout = 1e300", "queue.timeout: must be at most 1d"),
        (f"[queue]\ntimeout = 1{'0' * 400}", "queue.timeout: must be at most 1d"),
        ('[queue]\ntimeout = "2d"', "queue.timeout: must be at most 1d"),
        ("[queue]\nmax_per_host = 0", "queue.max_per_host: must be at least 1"),
        ("[queue]\nmax_per_host = 100001", "queue.max_per_host: must be at most 100000"),
        ("[session]\ntimeout = 0", "session.timeout: must be at least 1s"),
        ('[session]\ntimeout = "366d"', "session.timeout: must be at most 365d"),
        ("[session]\nidle_timeout = 0", "session.idle_timeout: must be at least 1s"),
        ('[session]\nidle_timeout = "366d"', "session.idle_timeout: must be at most 365d"),
        ('[session]\ngrace = "61min"', "session.grace: must be at most 1h"),
        ('[session]\ndrain_timeout = "25h"', "session.drain_timeout: must be at most 1d"),
        # Not among the choices.
        ('[log]\nlevel = "debug"', 'log.level: must be one of "serious", "info", "detail", not "debug"'),
        ("[log]\nlevel = 3", 'log.level: must be one of "serious", "info", "detail", not 3'),
        ('[data_path]\nmode = "direct"', 'data_path.mode: must be one of "forward", "handoff", "auto", not "direct"'),
        ("[data_path]\nmode = {}", 'data_path.mode: must be one of "forward", "handoff", "auto", not a table'),
        # Contradictions.
        (
            "[pool]\nmax_uses = 3\nmax_uses_jitter = 3",
            "pool.max_uses_jitter: must be below pool.max_uses (3), not 3; lower it or raise max_uses",
        ),
        (
            "[pool]\nmax_uses_jitter = 10",
            "pool.max_uses_jitter: must be below pool.max_uses (1), not 10; lower it or raise max_uses",
        ),
        (
            "[pool]\nworkers = 4\nmin_workers = 5",
            "pool.min_workers: must be at most pool.workers (4), not 5; lower it or raise workers",
        ),
        (
            "[pool]\nworkers = 1\nspare_workers = 2",
            "pool.spare_workers: must be at most pool.workers (1), not 2; lower it or raise workers",
        ),
        # Several at once: all are reported.
        ("[pool]\nworkers = 0\nmax_uses = 0", "pool.workers: must be at least 1; pool.max_uses: must be at least 1"),
        # Line breaks in keys and values.
        ('[pool]\n"a\\nb" = 1', "pool.a\\nb: unknown key"),
        ('[queue]\ntimeout = "s\\n\\u0085!"', 'queue.timeout: "s\\n\\x85!" is not a duration such as "90s" or "5min"'),
    ],
)  # fmt: skip
def test_an_error_is_one_line_of_key_and_reason(text: str, reason: str) -> None:
    assert refusal(text) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('hosts = "10.0.0.0/8"', 'must be a list of texts, such as ["192.0.2.0/24"], not "10.0.0.0/8"'),
        ("users = [1000]", 'must be a list of texts, such as ["www-data"], not [1000]'),
        ("groups = true", 'must be a list of texts, such as ["office-clients"], not true'),
        ('hosts = ["10.0.0/8"]', '"10.0.0/8" is no address and no network, such as "192.0.2.0/24"'),
        ('hosts = ["::1", "localhost"]', '"localhost" is no address and no network, such as "192.0.2.0/24"'),
    ],
)
def test_who_may_connect_has_to_be_named(text: str, reason: str) -> None:
    assert refusal(f"[access]\nallowed_{text}") == f"access.allowed_{text.split(maxsplit=1)[0]}: {reason}"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("true", 'must be a list of texts, such as ["writer"], not true'),
        ('"writer"', 'must be a list of texts, such as ["writer"], not "writer"'),
        ('["base"]', '"base" is none of writer, calc, impress, draw, math'),
    ],
)
def test_what_is_preloaded_has_to_be_known(value: str, reason: str) -> None:
    assert refusal(f"[pool]\npreload = {value}") == f"pool.preload: {reason}"
    assert parse('[pool]\npreload = ["writer", "math"]', "").pool.preload == ["writer", "math"]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[pool]\nworkers = \n", "line 2, column 11"),
        ("[pool]\nworkers = 1\n[queue", "end of document"),
        ("[pool]\nworkers = 1\nworkers = 2\n", "line 3"),
        ("[pool]\n\n[pool]\n", "line 3"),
        ('[pool]\nworkers = "\n', "line 2"),
        ("[pool]\nworkers = 4s\n", "line 2"),
        ("workers: 4\n", "line 1"),
        ("[pool]\nworkers = " + "1" * 5000, "5000 digits"),
        ("x = " + "[" * 100_000, ""),
        ("\0", "line 1"),
    ],
    ids=["no-value", "no-bracket", "twice", "section-twice", "no-quote", "bare", "yaml", "digits", "deep", "nul"],
)
def test_invalid_toml_is_reported_with_its_line(text: str, where: str) -> None:
    reason = refusal(text)
    assert reason.startswith("not valid TOML: ")
    assert where in reason


@pytest.mark.parametrize(
    ("cpus", "memory", "workers"),
    [(1, 64 << 30, 4), (8, 64 << 30, 16), (8, 2 << 30, 8), (2, 1 << 29, 2), (64, 1 << 28, 2), (None, 1 << 30, 4)],
)
def test_the_default_number_of_workers_minds_cpus_and_memory(
    monkeypatch: pytest.MonkeyPatch, cpus: int | None, memory: int, workers: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cpus)
    monkeypatch.setattr("ooodd.config._memory", lambda: memory)
    assert Config().pool.workers == workers


def test_the_memory_is_that_of_the_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "v2").write_text("max\n")
    (tmp_path / "v1").write_text("536870912\n")
    monkeypatch.setattr("ooodd.config._MEMORY_LIMITS", (tmp_path / "v2", tmp_path / "v1", tmp_path / "none"))
    assert config._memory() == 1 << 29


@pytest.mark.parametrize("uses", [1, 2, 3, 4, 10])
def test_a_small_max_uses_is_valid_without_other_keys(uses: int) -> None:
    pool = parse(f"[pool]\nmax_uses = {uses}", "ooodd.toml").pool
    assert (pool.max_uses, pool.max_uses_jitter) == (uses, min(3, uses - 1))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0),
        ("90s", 90.0),
        ("1.5 s", 1.5),
        ("5min", 300.0),
        ("1h 30min", 5400.0),
        ("1h30m", 5400.0),
        (" 2 hours 5 sec ", 7205.0),
        ("1d", 86400.0),
        ("1 week", 604800.0),
        ("250ms", 0.25),
        ("3us", 3e-6),
        ("3 µs", 3e-6),
        ("1d 1", 86401.0),
    ],
)
def test_durations_are_as_in_systemd(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", " ", "s", "-1", "1e3", "1,5s", "5M", "1 fortnight", "1s!", "٣s", "infinity", "1."]
)
def test_other_text_than_a_duration_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"unknown unit|not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("67108864", 64 * 1024**2),
        ("1K", 1024),
        ("512M", 512 * 1024**2),
        ("1G", 1024**3),
        (" 1.5 G ", 3 * 512 * 1024**2),
        ("2T", 2 * 1024**4),
    ],
)
def test_sizes_are_as_in_systemd(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", " ", "G", "-1", "1e3", "1,5G", "1g", "1GB", "1GiB", "1G!", "٣G", "infinity", "1."]
)
def test_other_text_than_a_size_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


@without_deadline
@given(st.text() | st.text("0123456789. KMGTB\n"))
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    try:
        size = parse_size(text)
    except ValueError:
        return
    assert type(size) is int
    assert size >= 0


@without_deadline
@given(st.text() | st.text("0123456789. smhdwinuµec\n"))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert seconds >= 0.0


def toml(document: dict[str, object]) -> str:
    return "\n".join(f"{json.dumps(key)} = {_inline(value)}" for key, value in document.items())


def _inline(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, bool | str):
        return json.dumps(value)
    return str(value)


# json.dumps writes characters above 16 bits as two surrogates, which TOML forbids. It does not escape DEL.
_TEXT = st.text(st.characters(max_codepoint=0xD7FF, blacklist_characters="\x7f"), max_size=12)
_VALUES = st.recursive(
    st.sampled_from(["infinity", "1G", "90s"])
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.dates(min_value=date(1000, 1, 1))
    | _TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_TEXT, inner, max_size=2),
    max_leaves=3,
)
_KEYS = st.sampled_from([key for section in Config().as_dict().values() for key in section])
_SECTIONS = st.sampled_from(["pool", "queue", "data_path", "log", "session", "access"])
_DOCUMENTS = st.dictionaries(
    _SECTIONS | _TEXT, _VALUES | st.dictionaries(_KEYS | _TEXT, _VALUES, max_size=4), max_size=3
)


@without_deadline
@given(_DOCUMENTS)
@example({"pool": {"workers": 10**400}, "queue": {"timeout": 10**400}})
@example({"data_path": {"mode": ["handoff"]}})
@example({"pool": {"max_uses": True}})
def test_any_document_gives_a_configuration_or_one_line(document: dict[str, object]) -> None:
    result = outcome(toml(document))
    if isinstance(result, str):
        assert result.isprintable()
        assert "not valid TOML" not in result
    else:
        assert result.pool.max_uses_jitter < result.pool.max_uses
        assert max(result.pool.min_workers, result.pool.spare_workers) <= result.pool.workers


@without_deadline
@given(st.text())
def test_any_text_gives_a_configuration_or_one_line(text: str) -> None:
    result = outcome(text)
    assert isinstance(result, Config) or result.isprintable()


def refusal_of_file(path: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert refused.value.exit_status == 78
    assert str(refused.value).isprintable()
    return str(refused.value)


ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "ooodd.toml"


ENTRIES = [(section, key) for section, keys in Config().as_dict().items() for key in keys]


def test_the_manual_has_an_entry_for_each_key_and_no_other() -> None:
    manual = (ROOT / "docs" / "ooodd.toml.5.md").read_text()
    sections = re.findall(r"^# \[(\w+)\] SECTION OPTIONS$(.*?)(?=^# )", manual, re.MULTILINE | re.DOTALL)
    entries = [
        (name.lower(), key) for name, body in sections for key in re.findall(r"^\*(\w+)\*\n:   ", body, re.MULTILINE)
    ]
    assert entries == ENTRIES


def test_the_example_has_an_entry_for_each_key_and_no_other() -> None:
    sections = re.findall(r"^\[(\w+)\]$(.*?)(?=^\[|\Z)", EXAMPLE.read_text(), re.MULTILINE | re.DOTALL)
    assert [
        (name, key) for name, body in sections for key in re.findall(r"^# ?(\w+) = ", body, re.MULTILINE)
    ] == ENTRIES


def test_the_example_shows_the_defaults(tmp_path: Path) -> None:
    assert load(EXAMPLE) == Config()
    live = "\n".join(
        line.removeprefix("#") if line.startswith("#") and " = " in line and not line.startswith("# ") else line
        for line in EXAMPLE.read_text().splitlines()
    )
    uncommented = tmp_path / "ooodd.toml"
    uncommented.write_text(live)
    defaults = Config().as_dict()
    shown = load(uncommented).as_dict()
    assert {**shown, "pool": {**shown["pool"], "workers": defaults["pool"]["workers"]}} == defaults


def test_an_absent_default_file_gives_all_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "absent.toml")
    assert load() == Config()


def test_the_default_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ooodd.toml"
    path.write_text("[pool]\nworkers = 7\n")
    monkeypatch.setattr(config, "DEFAULT_PATH", path)
    assert load().pool.workers == 7


def test_an_absent_named_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "absent.toml"
    assert refusal_of_file(path) == (
        f"{path}: No such file or directory; name an existing file; without one, all defaults apply"
    )


def test_a_directory_is_an_error(tmp_path: Path) -> None:
    assert refusal_of_file(tmp_path).startswith(f"{tmp_path}: Is a directory; ")


def test_a_file_below_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Not a directory" in refusal_of_file(tmp_path / "file" / "ooodd.toml")


def test_an_unreadable_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ooodd.toml"
    path.touch()

    def deny(*_: object) -> str:  # root reads everything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", deny)
    assert refusal_of_file(path) == f"{path}: Permission denied; it must be readable by the user that runs ooodd"


def test_a_file_that_is_not_utf_8_is_reported_with_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "ooodd.toml"
    path.write_bytes(b"# gr\xfcn\n")
    assert refusal_of_file(path) == f"{path}: not UTF-8 at byte 4"


def test_the_line_begins_with_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "ooodd.toml"
    path.write_text("[pool]\nworkers = 0\n")
    assert refusal_of_file(path) == f"{path}: pool.workers: must be at least 1"


@pytest.mark.parametrize("text", ["", '[pool]\nmax_age = "1h"\nmax_memory = "1G"\n[log]\nlevel = "detail"\n'])
def test_a_configuration_can_be_written_and_read(text: str) -> None:
    config = parse(text, "test")
    assert from_json(config.as_json()) == config


@pytest.mark.parametrize("text", ["", "[]", "7", "{", '{"pool": 7}', '{"pool": {"wrokers": 7}}', '{"later": {}}'])
def test_other_text_than_a_configuration_is_none(text: str) -> None:
    assert from_json(text) is None
