# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a call costs through ooodd: next to HAProxy, next to systemd-socket-proxyd, and next to nothing in between.

All paths lead to one office, and their sessions are open all the time. They take turns in many short rounds, in every
order equally often; what is told is the ratio of two paths within one round, its median and quartiles over all rounds.
So whatever else the machine does meets all paths alike, and the ratios of different machines can be compared.

Nothing here passes or fails: on a shared machine a limit on a time is a test of the neighbours.
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
    """A client process, see client.py, and its one session."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.office_version = self._answer()

    def calls(self) -> list[int]:
        """Return how long each of some calls took, in nanoseconds."""
        times: list[int] = self._ask(f"calls {CALLS}")
        return times

    def blocks(self) -> tuple[float, float]:
        """Return how fast big blocks go to the office and back, in MB/s."""
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
            raise SystemExit("a client ended; why, is told above")
        return json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/run", description="Measure what a call costs through ooodd.")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of {CALLS} calls on each path (%(default)s)")
    options = parser.parse_args()
    result = measure(options.rounds)
    print(json.dumps(dataclasses.asdict(result), indent=2) if options.json else result.text())


def measure(count: int) -> report.Report:
    """Start all that is needed, measure, and end all of it."""
    with tempfile.TemporaryDirectory(prefix="ooodd-bench-") as directory, _clients(Path(directory)) as clients:
        machine = report.machine({**paths.versions(), "LibreOffice": clients["direct"].office_version})
        times = _rounds(clients, count, Client.calls)
        speeds = _rounds(clients, BLOCK_ROUNDS, Client.blocks)
    return report.Report(
        machine=machine,
        goal=report.GOAL,
        call=report.calls(times),
        to_office=report.blocks({path: [up for up, _ in its] for path, its in speeds.items()}),
        to_client=report.blocks({path: [down for _, down in its] for path, its in speeds.items()}),
    )


def _rounds(clients: Mapping[str, Client], count: int, what: Callable[[Client], T]) -> dict[str, list[T]]:
    """Have the clients measure in turn, in each order before one comes again."""
    results: dict[str, list[T]] = {path: [] for path in clients}
    for order in islice(cycle(permutations(clients)), count):
        for path in order:
            results[path].append(what(clients[path]))
    return results


@contextmanager
def _clients(directory: Path) -> Iterator[dict[str, Client]]:
    """Open a session on each path that there is on this machine. The sessions end before what they lead through."""
    with ExitStack() as stack:
        broker = stack.enter_context(paths.broker(directory))
        clients = {"ooodd": stack.enter_context(_client(_tcp(broker.port)))}
        pipe = paths.office_pipe(broker)
        clients["HAProxy"] = stack.enter_context(_client(_tcp(stack.enter_context(paths.haproxy(broker, pipe)))))
        if paths.SOCKET_PROXYD.exists():
            port = stack.enter_context(paths.socket_proxyd(broker, pipe))
            clients["socket-proxyd"] = stack.enter_context(_client(_tcp(port)))
        # The file's name is OSL_PIPE_<uid>_<name>.
        clients["direct"] = stack.enter_context(_client(f"pipe,name={pipe.name[pipe.name.index('ooodd-') :]}"))
        yield clients


def _tcp(port: int) -> str:
    return f"socket,host=127.0.0.1,port={port}"


@contextmanager
def _client(connection: str) -> Iterator[Client]:
    """Run a client; it ends with its input, or is killed if it hangs."""
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
