"""Parties as processes, started by the commands that a user types."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tacit.cli.main import run

SIZES = ("--owners", "3", "--records", "20", "--json", "--secret-seed", "test")
SCHEMES = {
    "federated-averaging": ("--set", "rounds=4"),
    "selective-sgd": ("--set", "epochs=2", "--set", "theta_u=0.1"),
    "secure-aggregation": ("--set", "rounds=4"),
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def tacit(*arguments: str, timeout: float = 150.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tacit.cli.main", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT, check=False
    )


@pytest.mark.parametrize(
    "scheme",
    [
        "secure-aggregation",
        pytest.param("federated-averaging", marks=pytest.mark.slow),
        pytest.param("selective-sgd", marks=pytest.mark.slow),
    ],
)
def test_three_processes_over_tls_give_the_weights_and_bytes_of_one_process(
    scheme: str, tmp_path: Path
) -> None:
    over = tacit("train", scheme, *SCHEMES[scheme], *SIZES, "--link", "tcp", "--out", str(tmp_path))
    assert over.returncode == 0, over.stderr
    here = tacit("train", scheme, *SCHEMES[scheme], *SIZES)
    one, other = json.loads(over.stdout), json.loads(here.stdout)
    assert one["weights_sha256"] == other["weights_sha256"]
    assert one["accuracy"] == other["accuracy"] and one["rounds"] == other["rounds"]
    assert one["claims"] == other["claims"] and one["seeded"] is other["seeded"] is True
    for role, cost in other["cost"].items():
        for name in ("messages", "bytes_sent", "bytes_received"):
            assert one["cost"][role][name] == cost[name], (role, name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors", "run.json"]
    assert json.loads((tmp_path / "run.json").read_text()) == one


def bad(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        run(list(arguments))
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_wrong_arguments_are_one_typed_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    train = ("train", "federated-averaging")
    assert "tcp" in bad(capsys, *train, "--link", "carrier-pigeon")
    assert "link tcp" in bad(capsys, *train, "--delay", "0.1")
    assert "delay" in bad(capsys, *train, "--link", "tcp", "--delay", "-1")
    assert "there is no" in bad(capsys, "coordinate", str(tmp_path / "none.toml"))
    assert "there is no" in bad(capsys, "join", str(tmp_path / "none.toml"), "--role", "owner 0")
    (tmp_path / "federation.toml").write_text(
        'name = "a"\nscheme = "local-dp"\n[data]\ndataset = "digits"\n[[party]]\nrole = "owner 0"'
    )
    assert "one coordinator" in bad(capsys, "coordinate", str(tmp_path / "federation.toml"))


def federation(folder: Path, port: int = 0, scheme: str = "federated-averaging") -> Path:
    assert (
        tacit(
            "keys", "new", "--federation", "demo", "--owners", "2", "--out", str(folder / "keys")
        ).returncode
        == 0
    )
    path = folder / "federation.toml"
    path.write_text(
        f'name = "demo"\nscheme = "{scheme}"\n[settings]\nrounds = 3\n[data]\ndataset = "digits"\nrecords = 20\n'
        f'[[party]]\nrole = "server 0"\naddress = "127.0.0.1:{port}"\n'
        '[[party]]\nrole = "owner 0"\n[[party]]\nrole = "owner 1"\n'
    )
    return path


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tacit.cli.main", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip


def listening(process: subprocess.Popen[str]) -> str:
    for line in process.stderr or ():
        if line.startswith("listening on "):
            return line.removeprefix("listening on ").strip()
    raise AssertionError("it never listened")


def test_three_terminals(tmp_path: Path) -> None:
    path = federation(tmp_path)
    server = started("coordinate", str(path), "--out", str(tmp_path / "model"), "--json")
    address = listening(server)
    members = [
        started("join", str(path), "--role", f"owner {n}", "--address", address, "--out", str(tmp_path / f"mine-{n}"))
        for n in range(2)
    ]  # fmt: skip
    out, err = server.communicate(timeout=120)
    assert server.returncode == 0, err
    result: dict[str, Any] = json.loads(out)
    assert result["seeded"] is False and result["accuracy"] > 0.2
    for member in members:
        member.communicate(timeout=60)
        assert member.returncode == 0
    models = [
        (tmp_path / name / "model.safetensors").read_bytes()
        for name in ("model", "mine-0", "mine-1")
    ]
    assert models[0] == models[1] == models[2]
    assert not list((tmp_path / "state/server-0").glob("*.checkpoint"))
    again = tacit("join", str(path), "--role", "owner 0", "--address", address)
    assert again.returncode == 2 and "has answered this run to its end" in again.stderr
    path.write_text('run = "second"\n' + path.read_text())
    other = tacit("join", str(path), "--role", "owner 0", "--address", address, "--wait", "1")
    assert "could not be reached" in other.stderr, "another name is another run"


def test_a_port_in_use_and_an_interrupted_coordinator(tmp_path: Path) -> None:
    path = federation(tmp_path)
    first = started("coordinate", str(path))
    address = listening(first)
    same = tacit("coordinate", str(path), "--address", address)
    assert same.returncode == 2 and "another process is at work" in same.stderr
    second = tacit(
        "coordinate", str(path), "--address", address, "--state", str(tmp_path / "other")
    )
    assert second.returncode == 2 and "cannot be listened on" in second.stderr
    assert "Traceback" not in second.stderr
    first.send_signal(signal.SIGINT)
    start = time.monotonic()
    first.communicate(timeout=30)
    assert first.returncode == 130 and time.monotonic() - start < 10


def test_a_member_without_a_coordinator_gives_up_in_time(tmp_path: Path) -> None:
    path = federation(tmp_path, port=9)
    found = tacit("join", str(path), "--role", "owner 0", "--wait", "1", "--patience", "1")
    assert found.returncode == 2 and "could not be reached" in found.stderr
    assert "Traceback" not in found.stderr
