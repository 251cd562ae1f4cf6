# SPDX-License-Identifier: LGPL-2.1-or-later
"""The time of a call through ooodd, compared with HAProxy, systemd-socket-proxyd and a direct connection.

All paths lead to the same office, and their sessions are open all the time. The paths are measured in turn in many
short rounds, in every order equally often. The result is the ratio of two paths within one round: its median and
quartiles over all rounds. So other load on the machine affects all paths alike, and ratios of different machines are
comparable.

The benchmark does not fail on a slow result, because times on a shared machine depend on its other load.
"""

import argparse
import dataclasses
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import cycle, islice, permutations
from pathlib import Path
from typing import Any, TypeVar

import paths
import report

CALLS = 500
ROUNDS = 96
BLOCKS, BLOCK_SIZE = 32, 1024 * 1024
BLOCK_ROUNDS = 24

T = TypeVar("T")


class Client:
    """A client process with one session, see client.py."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.office_version = self._answer()

    def calls(self) -> list[int]:
        """Return the times of some calls, in nanoseconds."""
        times: list[int] = self._ask(f"calls {CALLS}")
        return times

    def blocks(self) -> tuple[float, float]:
        """Return the speed of big blocks to the office and back, in MB/s."""
        up, down = self._ask(f"blocks {BLOCKS} {BLOCK_SIZE}")
        volume = BLOCKS * BLOCK_SIZE
        return volume * 1e3 / up, volume * 1e3 / down

    def _ask(self, question: str) -> Any:  # noqa: ANN401 - JSON
        assert self._process.stdin is not None
        print(question, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:  # noqa: ANN401 - JSON
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a client ended; see its error above")
        return json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/run", description="Measure the time of a call through ooodd.")
    parser.add_argument("--json", action="store_true", help="write JSON")
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help=f"number of rounds, each of {CALLS} calls on each path (%(default)s)"
    )
    options = parser.parse_args()
    result = measure(options.rounds)
    print(json.dumps(dataclasses.asdict(result), indent=2) if options.json else result.text())


def measure(count: int) -> report.Report:
    """Start the office, the proxies and the clients, measure, and end them."""
    with tempfile.TemporaryDirectory(prefix="ooodd-bench-") as directory, _clients(Path(directory)) as clients:
        machine = report.machine({**paths.versions(), "LibreOffice": clients["direct"].office_version})
        times = _rounds(clients, count, Client.calls)
        speeds = _rounds(clients, BLOCK_ROUNDS, Client.blocks)
    return report.Report(
        machine=machine,
        goal=report.GOAL,
        call=report.calls(times),
        to_office=report.blocks({path: [up for up, _ in rounds] for path, rounds in speeds.items()}),
        to_client=report.blocks({path: [down for _, down in rounds] for path, rounds in speeds.items()}),
    )


def _rounds(clients: Mapping[str, Client], count: int, measurement: Callable[[Client], T]) -> dict[str, list[T]]:
    """Let the clients measure in turn. Each order comes once before the first comes again."""
    results: dict[str, list[T]] = {path: [] for path in clients}
    for order in islice(cycle(permutations(clients)), count):
        for path in order:
            results[path].append(measurement(clients[path]))
    return results


@contextmanager
def _clients(directory: Path) -> Iterator[dict[str, Client]]:
    """Open a session on each path of this machine. The sessions end before the proxies."""
    with ExitStack() as stack:
        broker = stack.enter_context(paths.broker(directory))
        clients = {"ooodd": stack.enter_context(_client(_tcp(broker.port)))}
        pipe = paths.office_pipe(broker)
        clients["HAProxy"] = stack.enter_context(_client(_tcp(stack.enter_context(paths.haproxy(broker, pipe)))))
        if paths.SOCKET_PROXYD.exists():
            port = stack.enter_context(paths.socket_proxyd(broker, pipe))
            clients["socket-proxyd"] = stack.enter_context(_client(_tcp(port)))
        # The name of the pipe's file is OSL_PIPE_<uid>_<name>.
        clients["direct"] = stack.enter_context(_client(f"pipe,name={pipe.name[pipe.name.index('ooodd-') :]}"))
        yield clients


def _tcp(port: int) -> str:
    return f"socket,host=127.0.0.1,port={port}"


@contextmanager
def _client(connection: str) -> Iterator[Client]:
    """Run a client. It ends with its standard input, and is killed if it hangs."""
    command = ["/usr/bin/python3", str(Path(__file__).with_name("client.py")), connection]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Client(process)
        finally:
            _end_input(process)


def _end_input(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    try:
        process.stdin.close()
        process.wait(paths.STOP_TIMEOUT)
    except (BrokenPipeError, subprocess.TimeoutExpired):
        process.kill()


if __name__ == "__main__":
    main()
