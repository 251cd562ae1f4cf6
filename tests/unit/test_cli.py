# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command: what it prints, where, and with which exit status."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import ooodd
from ooodd import cli, config
from ooodd.cli import main

SOURCE = Path(ooodd.__file__).parents[1]


@pytest.fixture(autouse=True)
def foreground(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be nobody's service."""
    for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "RUNTIME_DIRECTORY", "OOODD_OFFICE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path, for the control socket."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def ooodd_command(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ooodd", *arguments],
        env={**os.environ, "PYTHONPATH": str(SOURCE), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def one_line(text: str) -> str:
    assert text.endswith("\n")
    assert text.count("\n") == 1
    return text[:-1]


# check-config


def test_a_good_file_is_ok(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ooodd.toml"
    path.write_text("[pool]\nworkers = 4\n")
    assert main(["check-config", str(path)]) == 0
    assert capsys.readouterr() == (f"{path}: ok\n", "")


def test_no_file_is_ok_and_said_to_be_absent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "absent.toml")
    assert main(["check-config"]) == 0
    assert capsys.readouterr() == (f"{tmp_path}/absent.toml: absent, so all defaults\n", "")


def test_a_bad_file_is_one_line_on_stderr_and_status_78(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ooodd.toml"
    path.write_text("[pool]\nworkers = 0\n")
    assert main(["check-config", str(path)]) == 78
    assert capsys.readouterr() == ("", f"ooodd: {path}: pool.workers: must be at least 1\n")


def test_a_named_file_that_is_absent_is_status_78(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-config", str(tmp_path / "absent.toml")]) == 78
    assert one_line(capsys.readouterr().err).startswith(f"ooodd: {tmp_path}/absent.toml: No such file or directory")


# status and stop


@pytest.mark.parametrize("command", [["status"], ["status", "--json"], ["stop"]])
def test_asking_when_nothing_runs_says_what_to_do(
    command: list[str], directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--runtime-directory", str(directory)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert one_line(err) == (
        f"ooodd: no ooodd runs ({directory}/control: No such file or directory): "
        "systemctl status ooodd.socket ooodd.service; the first client starts it"
    )


def test_status_prints_json_or_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    totals = {"sessions": 0, "refused": 0}
    answer = {"workers": [], "queue": {"length": 0, "oldest_wait": 0.0}, "totals": totals, "config": {}}
    monkeypatch.setattr("ooodd.admin.ask", lambda *_: answer)
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == answer
    assert main(["status"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["", "0 waiting", "0 sessions, 0 refused"]


def test_stop_tells_what_starts_it_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("ooodd.admin.ask", lambda *_: {"stopping": True})
    assert main(["stop"]) == 0
    assert "systemctl stop ooodd.socket" in one_line(capsys.readouterr().out)


def test_a_reader_that_leaves_is_no_traceback(directory: Path) -> None:
    # Linux gives a pipe 64 KiB; an answer that doesn't fit meets nobody.
    (directory / "sitecustomize.py").write_text(
        "from ooodd import admin\nadmin.ask = lambda *_: {'workers': 'x' * 1_000_000}\n"
    )
    result = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m ooodd status --json | true"],
        env={**os.environ, "PYTHONPATH": f"{directory}:{SOURCE}"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert result.stderr == b""


# run


def test_run_with_a_bad_configuration_is_one_line_and_status_78(directory: Path) -> None:
    path = directory / "ooodd.toml"
    path.write_text("[pool]\nwrokers = 4\n")
    result = ooodd_command("run", "--config", path, "--listen", "127.0.0.1:0", "--runtime-directory", directory)
    assert (result.returncode, result.stdout) == (78, "")
    assert one_line(result.stderr) == f"ooodd: {path}: pool.wrokers: unknown key; did you mean pool.workers?"


def test_run_on_a_taken_port_says_what_to_do(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = ooodd_command("run", "--config", os.devnull, "--listen", address, "--runtime-directory", directory)
    assert (result.returncode, result.stdout) == (1, "")
    assert one_line(result.stderr) == (
        f"ooodd: can't listen on {address}: Address already in use: "
        "end what listens there (ss -ltnp), or give another --listen"
    )


@pytest.mark.parametrize("address", ["2002", "localhost", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:x", ":2002"])
def test_run_on_what_is_no_address_says_what_one_looks_like(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--config", os.devnull, "--listen", address]) == 1
    assert one_line(capsys.readouterr().err) == (
        f'ooodd: "{address}" is no address to listen on: give HOST:PORT, e.g. 127.0.0.1:2002'
    )


def test_run_where_another_runs_is_refused(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{directory}/control")
        other.listen()
        result = ooodd_command(
            "run", "--config", os.devnull, "--listen", "127.0.0.1:0", "--runtime-directory", directory
        )
    assert (result.returncode, result.stdout) == (1, "")
    assert "another ooodd runs here: stop it, or give another" in one_line(result.stderr)


# As a service; what it writes to the journal is lost without one, the exit status is systemd's to act on.


def service(directory: Path, text: str, **environment: str) -> int:
    pytest.importorskip("systemd.journal")
    path = directory / "ooodd.toml"
    path.write_text(text)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # As systemd: the first descriptor is 3, and LISTEN_PID is the service's own.
        script = (
            "import os, sys\n"
            "os.dup2(int(sys.argv[1]), 3) if sys.argv[1] != '3' else os.set_inheritable(3, True)\n"
            "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES=sys.argv[2])\n"
            "os.execv(sys.executable, [sys.executable, '-m', 'ooodd', 'run', '--config', sys.argv[3]])\n"
        )
        name = environment.pop("name", "uno")
        return subprocess.run(
            [sys.executable, "-c", script, str(listener.fileno()), name, str(path)],
            env={**os.environ, "PYTHONPATH": str(SOURCE), **environment},
            pass_fds=[listener.fileno()],
            timeout=60,
            check=False,
        ).returncode


def test_a_service_with_a_bad_configuration_ends_with_78(directory: Path) -> None:
    assert service(directory, "[pool]\nwrokers = 4\n") == 78


def test_a_service_without_a_bus_ends_with_1(directory: Path) -> None:
    assert service(directory, "", DBUS_SYSTEM_BUS_ADDRESS=f"unix:path={directory}/absent") == 1


def test_a_service_whose_socket_has_another_name_ends_with_1(directory: Path) -> None:
    assert service(directory, "", name="metrics") == 1


# The command line itself


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"ooodd {ooodd.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [[], ["start"], ["status", "--xml"], ["run", "extra"], ["check-config", "a", "b"]]
)
def test_wrong_usage_is_status_2_on_stderr(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.split(":")[0]) == ("", "usage")


@pytest.mark.parametrize("command", [[], ["run"], ["status"], ["stop"], ["check-config"]])
def test_every_command_has_help_on_stdout(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    assert (out.split(":")[0], err) == ("usage", "")


# Where the control socket is


def place(*arguments: str) -> Path:
    return cli._runtime_directory(cli._parser().parse_args(arguments))


def test_the_control_socket_is_where_it_is_asked_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/ooodd:/run/ooodd-worker")
    assert place("run", "--runtime-directory", str(tmp_path)) == tmp_path


def test_the_control_socket_of_the_service_is_where_systemd_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/ooodd:/run/ooodd-worker")
    assert place("run") == Path("/run/ooodd")


def test_without_a_service_everybody_has_a_directory_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cli, "_SYSTEM_RUNTIME_DIRECTORY", tmp_path / "absent")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    own = tmp_path / f"ooodd-{os.getuid()}"
    assert {place("run"), place("status"), place("stop")} == {own}


def test_status_asks_the_service_where_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli, "_SYSTEM_RUNTIME_DIRECTORY", tmp_path)
    assert place("status") == place("stop") == tmp_path
    assert place("run") != tmp_path
