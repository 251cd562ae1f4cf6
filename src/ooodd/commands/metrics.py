# SPDX-License-Identifier: LGPL-2.1-or-later
"""The service ooodd-metrics: answers Prometheus by what the broker says of itself at that moment.

It is a process of its own, so that the broker stays small. systemd opens its port and starts it for the first scrape.
It never starts the broker. Where none runs, ooodd_up is 0.
"""

import argparse
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from ooodd.commands.common import Subparsers, add_runtime_directory, runtime_directory
from ooodd.control.client import call
from ooodd.errors import ListenError, NoBrokerError, OooddError, UsageError
from ooodd.pool.pool import State

# FileDescriptorName= in ooodd-metrics.socket.
_SOCKET_NAME = "metrics"
# Without a scrape for so long, in seconds, the service ends. The socket stays.
_UNUSED_AFTER = 600.0
# How long a client may take to ask, in seconds.
_REQUEST_LIMIT = 10.0

_TOTALS = {
    "sessions": "Sessions that have begun",
    "refused": "Clients that got no office",
    "recycled": "Offices replaced in the normal course",
    "crashed": "Offices that crashed",
    "hung": "Offices that did not answer",
    "dirty": "Offices that their client left dirty",
    "reclaimed": "Sessions ended for a client that waited",
}


def add(commands: Subparsers) -> None:
    """Add the command, without help: it is for ooodd-metrics.service."""
    parser = commands.add_parser("metrics")
    add_runtime_directory(parser)
    parser.set_defaults(command=_metrics)


def _metrics(options: argparse.Namespace) -> int:
    try:
        from prometheus_client import CollectorRegistry, make_wsgi_app  # noqa: PLC0415 - only this command needs it
    except ImportError as error:
        raise UsageError(f"{error}", "apt-get install python3-prometheus-client") from error

    registry = CollectorRegistry()
    registry.register(cast("Any", Collector(runtime_directory(options))))  # it wants a subclass, and needs none
    with _Server(_listener()) as server:
        server.set_app(make_wsgi_app(registry))
        server.serve_until_unused()
    return 0


class Collector:
    """What Prometheus gets at a scrape, see prometheus_client."""

    def __init__(self, directory: Path) -> None:
        """Take the directory of the control socket."""
        self._directory = directory

    def describe(self) -> list[Any]:
        """Return nothing: so the registry does not ask the broker when the collector is registered."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield the metrics. A broker that does not answer is down."""
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415 - see above

        try:
            status = call(self._directory, "Status")
        except OooddError as error:
            not_running = isinstance(error, NoBrokerError)
            yield GaugeMetricFamily("ooodd_up", "Whether a broker runs and answers", 0)
            yield GaugeMetricFamily("ooodd_sleeping", "Whether no broker runs: the next client starts it", not_running)
            return
        yield GaugeMetricFamily("ooodd_up", "Whether a broker runs and answers", 1)
        yield GaugeMetricFamily("ooodd_sleeping", "Whether no broker runs: the next client starts it", 0)
        yield from families(status)


def families(status: dict[str, Any]) -> Iterator[Any]:
    """Yield the metrics of a status."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415 - see above

    states = [worker["state"] for worker in status["workers"]]
    workers = GaugeMetricFamily("ooodd_workers", "Workers by state", labels=["state"])
    memory = GaugeMetricFamily("ooodd_office_memory_bytes", "Memory of an office", labels=["worker"])
    for state in State:
        workers.add_metric([state], states.count(state))
    for worker in status["workers"]:
        if worker["memory"] is not None:
            memory.add_metric([str(worker["id"])], worker["memory"])
    yield workers
    yield memory
    statistics, queue = status["statistics"], status["queue"]
    for name, text, value in (
        ("paused", "Whether an administrator has paused the pool", status["paused"]),
        ("draining", "Whether the broker ends when the last session has", status["draining"]),
        ("cannot_start", "Whether no office can be started", bool(status["start_error"])),
        ("queue_length", "Clients that wait for a worker", queue["length"]),
        ("queue_oldest_wait_seconds", "For how long the first of them waits", queue["oldest_wait"]),
        ("queue_longest", "The most clients that have waited at a time", statistics["longest_queue"]),
    ):
        yield GaugeMetricFamily(f"ooodd_{name}", text, value)
    for name, text in _TOTALS.items():
        yield CounterMetricFamily(f"ooodd_{name}", text, status["totals"][name])
    yield CounterMetricFamily("ooodd_full", "How often all workers came to have a client", statistics["times_full"])
    for name, text in (("refused", "Clients that got no office"), ("stopped", "Offices that were stopped")):
        family = CounterMetricFamily(f"ooodd_{name}_by_reason", f"{text}, by reason", labels=["reason"])
        for reason, count in statistics[name].items():
            family.add_metric([reason], count)
        yield family
    yield _histogram("ooodd_wait_seconds", "How long clients have waited for their worker", statistics["waits"])
    yield _histogram("ooodd_session_seconds", "How long sessions have lasted", statistics["durations"])


def _histogram(name: str, text: str, counted: dict[str, Any]) -> Any:  # noqa: ANN401 - prometheus_client has no types
    from prometheus_client.core import HistogramMetricFamily  # noqa: PLC0415 - see above

    buckets, total = [], 0
    for bound, count in zip([*map(str, counted["bounds"]), "+Inf"], counted["counts"], strict=True):
        total += count
        buckets.append((bound, total))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=counted["sum"])


class _Server(WSGIServer):
    """An HTTP server on a socket that is there already."""

    # Of the socket that the base class makes, which is not used. The unit lets it make no other.
    address_family = socket.AF_UNIX

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = "ooodd", 0
        self.setup_environ()
        self.timeout = _UNUSED_AFTER
        self._unused = False

    def handle_timeout(self) -> None:
        """Note that nobody has asked for long."""
        self._unused = True

    def serve_until_unused(self) -> None:
        """Answer one after the other."""
        while not self._unused:
            self.handle_request()


class _Handler(WSGIRequestHandler):
    """A request. It is not logged: one comes every few seconds."""

    timeout = _REQUEST_LIMIT

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def _listener() -> socket.socket:
    """Return the socket that systemd has passed; the caller closes it."""
    from systemd.daemon import listen_fds_with_names  # noqa: PLC0415 - absent in foreground use

    passed = [fd for fd, name in listen_fds_with_names().items() if name == _SOCKET_NAME]
    if not passed:
        raise ListenError("systemd passed no socket for the metrics", "systemctl start ooodd-metrics.socket")
    return socket.socket(fileno=passed[0])
