"""The benchmark of a private step: what it times, its rows, and that its networks are its peers'."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tacit.audit import bench_dp_sgd as module
from tacit.audit import dp_sgd_step
from tacit.audit.bench_dp_sgd import CASES, Case, dp_sgd
from tacit.audit.dp_sgd_step import network, records, steps
from tacit.core.errors import UnknownName
from tacit.dp.noise import GaussianKind

PEER = Path(__file__).resolve().parents[2] / "benchmarks" / "peers" / "opacus_dp_sgd.py"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.network)
def test_private_and_plain_steps_take_turns(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dp_sgd_step, "LOTS", 5)
    private, plain = steps(case.network, 4, GaussianKind.DISCRETE, 3)
    assert len(private) == len(plain) == 2  # an epoch of as many lots, but for the first
    assert min(private) > 0 and min(plain) > 0
    inputs, labels = records(case.network, 5)
    assert network(case.network)(inputs).shape == (5, 10) and labels.shape == (5,)


def test_rows_without_a_peer_name_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CASES", (Case("mlp", 6, 2),))
    rows = dp_sgd(quick=True, note=lambda said: None)
    assert [row["metric"] for row in rows] == [
        "step_s noise=discrete", "step_vs_plain noise=discrete", "step_s noise=float", "step_vs_plain noise=float",
    ]  # fmt: skip
    assert all(
        row["case"] == "mlp lot=6" and row["peer"] is None and row["tacit"] > 0 for row in rows
    )
    assert json.dumps(rows)


def test_a_peer_is_compared_by_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stand:
        name = "opacus 1.6.0 ghost"

        def measure(self, request):
            assert request == {"case": "mlp", "batch": 6, "steps": 2}
            return {"cpu_seconds": {"plain": [1.0, 2.0, 3.0], "ghost": [6.0, 5.0, 4.0]}}

    rows = module._of_case(Case("mlp", 6, 2), Stand(), 1, memory=False)  # type: ignore[arg-type]
    by = {row["metric"]: row for row in rows}
    assert by["step_s noise=float"]["peer_value"] == 5.0
    assert by["step_vs_plain noise=float"]["peer_value"] == 2.5
    assert by["step_s noise=float"]["ratio"] == 5.0 / by["step_s noise=float"]["tacit"]


def test_memory_is_that_of_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "tacit.audit.dp_sgd_step", "mlp", "6", "float"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["peak_bytes"] > 50e6


def test_an_unknown_peer_is_refused() -> None:
    with pytest.raises(UnknownName, match="peer"):
        dp_sgd(quick=True, note=lambda said: None, against=["opacos"])


def test_the_peer_s_networks_are_the_same() -> None:
    """Its script runs where tacit is not installed, so that it says them again: word for word."""
    own = ast.parse(Path(sys.modules["tacit.audit.dp_sgd_step"].__file__ or "").read_text())
    theirs = ast.parse(PEER.read_text())

    def layers(tree: ast.Module) -> list[str]:
        wanted = ("Linear", "Conv2d", "MaxPool2d", "LayerNorm", "Embedding")
        text = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        return sorted(
            one.replace("torch.nn.", "nn.").replace("WORDS", "words").replace("CLASSES", "10")
            for one in text
            if one.startswith(tuple(f"nn.{name}(" for name in wanted))
        )

    assert layers(own) == layers(theirs) and len(layers(own)) > 12
    assert torch.get_num_threads() == 1
