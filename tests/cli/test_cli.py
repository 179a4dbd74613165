"""The command line as a user meets it: output, exit codes, errors without tracebacks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tacit.catalogue import PAPERS
from tacit.cli.main import run

SMALL = ["--seeds", "1", "--owners", "3", "--records", "8", "--quick"]


def tacit(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = 0
    try:
        run(list(arguments))
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_compare_prints_the_matrix_and_writes_the_report(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = tacit(
        capsys, "compare", *SMALL, "--protections", "federated-sgd,local-dp-high",
        "--attacks", "gradient-leakage@server", "--out", str(tmp_path),
    )  # fmt: skip
    assert code == 0, err
    assert "federated-sgd" in out and "leaks" in out
    assert "report.html" in err
    assert (tmp_path / "report.html").exists() and (tmp_path / "report.json").exists()


def test_json_output_is_exactly_one_object(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = tacit(
        capsys, "compare", *SMALL, "--protections", "centralised", "--attacks", "plaintext-exposure@server",
        "--json", "--out", str(tmp_path),
    )  # fmt: skip
    result = json.loads(out)
    assert code == 0 and result["command"] == "compare"
    assert result["protections"][0]["cells"]["plaintext-exposure@server"]["verdict"] == "leaks"
    assert result["settings"]["records"] == 8


def test_a_setting_can_be_changed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = tacit(
        capsys, "compare", *SMALL, "--protections", "local-dp-low", "--attacks", "membership-loss@scores",
        "--set", "local-dp-low.noise=laplace", "--set", "local-dp-low.rounds=3", "--json", "--out", str(tmp_path),
    )  # fmt: skip
    row = json.loads(out)["protections"][0]
    assert code == 0 and row["settings"]["noise"] == "laplace" and row["settings"]["rounds"] == 3
    assert "3 laplace releases" in row["claims"][0]["value"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--dataset", "digitz"], "did you mean digits"),
        (["compare", "--protections", "federated-sdg"], "did you mean federated-sgd"),
        (
            ["compare", "--attacks", "gradient-leakage@sever"],
            "did you mean gradient-leakage@server",
        ),
        (["compare", "--set", "local-dp-low.clip"], "PROTECTION.SETTING=VALUE"),
        (["compare", "--set", "local-dp-low.clib=1"], "did you mean clip"),
        (["compare", "--set", "local-dp-low.rounds=many"], "int expected"),
        (["compare", "--set", "local-dp-low.noise=uniform"], "gaussian, laplace expected"),
        (["compare", "--set", "local-dp-low.clip=-1"], "clip must be positive"),
        (["compare", "--owners", "5000"], "use fewer owners or records"),
        (["compare", "--records", "0"], "of at least 1"),
        (["compare", "--seed", "-1"], "seed of 0 or more"),
        (["papers", "16"], "no paper"),
        (["reproduce", "leekage"], "did you mean leakage"),
        (["bench", "transprot"], "did you mean transport"),
    ],
)
def test_bad_input_is_one_typed_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, out, err = tacit(capsys, *arguments)
    assert code == 2 and out == ""
    assert message in err and "Traceback" not in err
    assert not list(tmp_path.rglob("*.json")) and not list(tmp_path.rglob("*.html"))


def test_missing_data_folder_says_what_to_set(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TACIT_DATA", raising=False)
    code, _, err = tacit(capsys, "compare", "--dataset", "mnist", "--out", str(tmp_path / "r"))
    assert code == 2 and "TACIT_DATA" in err and "mnist.npz" in err
    assert not (tmp_path / "r").exists()


def test_a_corrupt_data_file_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mnist.npz").write_bytes(b"not an archive")
    monkeypatch.setenv("TACIT_DATA", str(tmp_path))
    code, _, err = tacit(capsys, "compare", "--dataset", "mnist", "--out", str(tmp_path / "r"))
    assert code == 2 and "DataError" in err and "mnist.npz" in err


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(Exception, match="digitz"):
        run(["--debug", "compare", "--dataset", "digitz"])


def test_papers_lists_the_fifteen_and_shows_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = tacit(capsys, "papers", "--json")
    listed = json.loads(out)["papers"]
    assert code == 0 and [p["number"] for p in listed] == list(range(1, 16)) and len(PAPERS) == 15
    _, out, _ = tacit(capsys, "papers", "11")
    assert "improves [3]" in out


def test_data_list_says_what_is_at_hand(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TACIT_DATA", raising=False)
    code, out, _ = tacit(capsys, "data", "list", "--json")
    present = {d["name"]: d["present"] for d in json.loads(out)["datasets"]}
    assert code == 0 and present["digits"] is True and present["mnist"] is False


def test_bench_transport_follows_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = tacit(capsys, "bench", "transport", "--quick", "--json")
    result = json.loads(out)
    assert code == 0 and result["bench"] == "transport"
    assert {(r["case"], r["metric"]) for r in result["rows"]} >= {
        ("hub n=1000 payload=1000", "wave_s"),
        ("hub n=10", "overhead_s"),
    }
    assert all(r["tacit"] > 0 for r in result["rows"])
    beside = {(r["case"], r["metric"]) for r in result["rows"] if r["peer"] == "bare TLS socket"}
    assert beside == {
        ("tls channel payload=16000000", "bytes_per_s"),
        ("tls channel payload=1000", "round_trip_s"),
        ("tls hub n=64 payload=100000", "wave_s"),
    }
    assert all((r["ratio"] is None) is (r["peer"] is None) for r in result["rows"])


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = tacit(capsys, "--help")
    for command in ("compare", "papers", "reproduce", "bench", "data", "keys", "join"):
        assert command in out


def test_ctrl_c_keeps_finished_cells_and_the_same_command_goes_on(tmp_path: Path) -> None:
    command = [
        sys.executable, "-c", "import sys; from tacit.cli.main import run; run(sys.argv[1:])",
        "compare", "--quick", "--owners", "3", "--records", "8", "--protections", "centralised,local-dp-high",
        "--attacks", "plaintext-exposure@server,gradient-leakage@server",
        "--set", "local-dp-high.rounds=20000", "--out", str(tmp_path),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "progress.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 130, err.decode()
    kept = json.loads((tmp_path / "report.json").read_text())
    assert kept["complete"] is False
    assert kept["protections"][0]["cells"]["plaintext-exposure@server"]["verdict"] == "leaks"
    assert b"goes on" in err and b"Traceback" not in err
