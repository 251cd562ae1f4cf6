# SPDX-License-Identifier: LGPL-2.1-or-later
"""What Prometheus gets is what the status says."""

import argparse
import asyncio
from pathlib import Path
from typing import Any

import pytest

from fakes import OPENING, until
from ooodd.__main__ import main
from ooodd.broker.statistics import Histogram
from ooodd.commands import run
from ooodd.commands.metrics import Collector, families
from ooodd.control.server import ControlServer
from world import HELLO, World, asks, world

prometheus = pytest.importorskip("prometheus_client")


def exposed(status: dict[str, Any]) -> dict[str, float]:
    """Return each sample of a status by its name and labels, as Prometheus reads it."""
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415

    class Once:
        def collect(self) -> Any:  # noqa: ANN401
            return families(status)

        def describe(self) -> list[Any]:
            return []

    registry = prometheus.CollectorRegistry()
    registry.register(Once())
    text = prometheus.generate_latest(registry).decode()
    found = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    samples = [sample for family in found for sample in family.samples]
    return {f"{each.name}{sorted(each.labels.items()) or ''}": each.value for each in samples}


def status_of(it: World) -> dict[str, Any]:
    method = run._Methods(it.broker, argparse.Namespace(config=None)).table()["Status"]
    status: Any = method.answer(method.parameters(), 0)
    return dict(status)


async def test_all_counts_of_the_status_are_exposed() -> None:
    async with world("[pool]\nworkers=1\nmax_uses=1\n[queue]\nmax_clients=1") as it:
        async with it.client() as first, it.client() as second, it.client() as third:
            assert await first.open() == HELLO
            await second.send(OPENING)
            await until(lambda: it.queued(1))
            assert b"max_clients" in await asks(third)
            first.socket.close()
            assert await second.receive(len(HELLO)) == HELLO
        await until(lambda: not it.broker.driver.clients)
        status = status_of(it)
        samples = exposed(status)
    totals = status["totals"]
    assert (totals["sessions"], totals["refused"]) == (2, 1)
    for name, value in totals.items():
        assert samples[f"ooodd_{name}_total"] == value
    assert sum(value for name, value in samples.items() if name.startswith("ooodd_workers[")) == 1
    assert samples["ooodd_refused_by_reason_total[('reason', 'queue-full')]"] == 1
    stopped = sum(value for name, value in samples.items() if name.startswith("ooodd_stopped_by_reason_total"))
    assert stopped == sum(status["statistics"]["stopped"].values()) >= 1
    assert samples["ooodd_queue_longest"] == 1
    assert samples["ooodd_full_total"] == 2
    for name, counted in (("wait", "waits"), ("session", "durations")):
        assert samples[f"ooodd_{name}_seconds_count"] == 2
        assert samples[f"ooodd_{name}_seconds_sum"] == status["statistics"][counted]["sum"]
        assert samples[f"ooodd_{name}_seconds_bucket[('le', '+Inf')]"] == 2


def test_a_bound_belongs_to_its_bucket() -> None:
    it = Histogram([1.0, 2.0])
    for value in (0.5, 1.0, 1.5, 2.0, 2.5, 1e9):
        it.observe(value)
    assert it.as_dict()["counts"] == [2, 2, 2]


def names(directory: Path) -> dict[str, float]:
    return {family.name: family.samples[0].value for family in Collector(directory).collect()}


async def test_without_a_broker_the_service_sleeps(tmp_path: Path) -> None:
    assert names(tmp_path) == {"ooodd_up": 0, "ooodd_sleeping": 1}


async def test_a_broker_that_does_not_answer_is_down(tmp_path: Path) -> None:
    control = ControlServer(tmp_path, {})
    control.open()
    await control.serve()
    assert await asyncio.to_thread(names, tmp_path) == {"ooodd_up": 0, "ooodd_sleeping": 0}
    await control.close()


def test_without_a_socket_of_systemd_it_says_what_to_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LISTEN_FDS", raising=False)
    assert main(["metrics"]) == 1
    assert capsys.readouterr().err.endswith("systemctl start ooodd-metrics.socket\n")
