"""The benchmark of shadow models: that all ways train the same models, and its rows."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path

import pytest
import torch

from tacit.audit import bench_shadows as module
from tacit.audit.bench_shadows import (
    WAYS,
    Case,
    network,
    one_by_one,
    pool,
    shadows,
    spent,
    together,
)
from tacit.core.errors import UnknownName
from tacit.nn.stacked import logits_of

PEER = Path(__file__).resolve().parents[2] / "benchmarks" / "peers" / "art_shadows.py"
SMALL = Case(3, records=25, epochs=2, batch=10)


@pytest.mark.parametrize("fused", [True, False])
def test_the_loop_trains_the_models_that_are_trained_together(fused: bool) -> None:
    given = pool(SMALL)
    found = logits_of(together(SMALL, given), given.inputs, 3)
    for own, model in zip(found, one_by_one(SMALL, given, fused=fused), strict=True):
        torch.testing.assert_close(own, model(given.inputs).detach(), atol=1e-4, rtol=1e-3)
    assert SMALL.steps == 3 * 2 * 3


def test_rows_compare_with_both_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Case", lambda models, **rest: Case(2, 20, 1, batch=10))
    rows = shadows(quick=True, note=lambda said: None)
    assert [row["peer"] for row in rows] == ["loop with fused Adam", "loop with default Adam"]
    for row in rows:
        assert row["case"] == "mlp 600-128-100 k=2 batch=10" and row["metric"] == "model_step_s"
        assert row["ratio"] == row["peer_value"] / row["tacit"] > 0
    assert json.dumps(rows)


def test_the_first_block_warms_up_and_medians_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {way: iter([9.0, 1.0 + k, 2.0 + k, 30.0]) for k, way in enumerate(WAYS)}
    monkeypatch.setattr(module, "spent", lambda way, case, given: next(answers[way]))

    class Stand:
        name = "art 1.20.1 fit"
        said = iter([900.0, 4 * 18.0, 5 * 18.0, 6 * 18.0])

        def measure(self, request):
            assert request == {"models": 3, "records": 25, "epochs": 2, "batch": 10}
            return {"cpu_s": next(self.said)}

    rows = module._of_case(SMALL, 3, lambda said: None, Stand(), asked=True)  # type: ignore[arg-type]
    assert [(row["peer"], row["tacit"], row["peer_value"]) for row in rows] == [
        ("loop with fused Adam", 2.0, 3.0), ("loop with default Adam", 2.0, 4.0), ("art 1.20.1 fit", 2.0, 5.0),
    ]  # fmt: skip


def test_seconds_are_of_a_step_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 136.0])
    monkeypatch.setattr(module.time, "process_time", lambda: next(clock))
    monkeypatch.setitem(WAYS, "together", lambda case, given: None)
    assert spent("together", SMALL, pool(SMALL)) == 2.0


def test_a_peer_that_is_not_there_leaves_its_row_empty_and_an_unknown_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "Case", lambda models, **rest: Case(1, 10, 1, batch=10))
    monkeypatch.setattr("tacit.audit.peers._ROOT", tmp_path)
    notes: list[str] = []
    rows = shadows(quick=True, note=notes.append, against=["art"])
    assert rows[-1]["peer"] is rows[-1]["ratio"] is None and "make peers" in notes[0]
    with pytest.raises(UnknownName, match="peer"):
        shadows(quick=True, note=lambda said: None, against=["arts"])


def test_the_peer_s_network_is_the_same() -> None:
    """Its script runs where tacit is not installed, so that it says it again."""
    tree = ast.parse(PEER.read_text())
    (theirs,) = [node for node in tree.body if getattr(node, "name", "") == "network"]
    own = inspect.getsource(network)
    for name, value in (("_INPUTS", 600), ("_HIDDEN", 128), ("_CLASSES", 100)):
        assert getattr(module, name) == value
        own = own.replace(name, str(value))
    said = ast.parse(own).body[0]
    assert ast.unparse(said.body[-1]) == ast.unparse(theirs.body[-1])  # type: ignore[attr-defined]
