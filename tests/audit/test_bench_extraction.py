"""The benchmark of extraction: its rows, and the peer beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tacit.audit import bench_extraction as module
from tacit.audit.bench import BENCHES
from tacit.audit.bench_extraction import CASES, extraction
from tacit.audit.extraction_targets import Data
from tacit.core.errors import TacitError, UnknownName


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of 3 by 3 pixels of three classes in place of MNIST, and made-up findings of the other cases."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(700, 1, 3, 3, generator=generator, dtype=torch.float64)
    labels = (inputs.flatten(1) @ torch.randn(9, 3, generator=generator, dtype=torch.float64)).argmax(1)  # fmt: skip
    data = Data((inputs[:600], labels[:600]), (inputs[600:], labels[600:]), 3, 0.0)
    monkeypatch.setattr(module, "data_of", lambda name: data)
    monkeypatch.setattr(module, "QUERIES", 200)
    monkeypatch.setattr(
        module, "run_case",
        lambda case: {
            "attack_seconds": 2.0, "queries": 65, "agreement_test": 1.0, "agreement_uniform": 0.9, "residual": 0.0,
            "total_variation": 1e-9,
        },
    )  # fmt: skip


def test_rows_have_seconds_and_queries_of_every_kind_of_attack(small: None) -> None:
    rows = extraction(quick=False, note=lambda said: None)
    assert BENCHES["extraction"] is extraction and json.dumps(rows)
    by_case: dict[str, dict[str, float]] = {}
    for row in rows:
        assert row["peer"] is row["peer_value"] is row["ratio"] is None
        by_case.setdefault(row["case"], {})[row["metric"]] = row["tacit"]
    assert by_case.keys() == {case.name for case in CASES} | {"mnist/knockoff-labels q=200"}
    assert by_case["digits/softmax"] == {
        "seconds": 2.0, "queries": 65, "agreement_test": 1.0, "agreement_uniform": 0.9, "total_variation": 1e-9,
    }  # fmt: skip
    knockoff = by_case["mnist/knockoff-labels q=200"]
    assert knockoff["seconds"] > 0 and knockoff["agreement_test"] > 0.6
    assert len(extraction(quick=True, note=lambda said: None)) < len(rows)


def test_a_peer_stands_beside_the_knockoff(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([(8.0, 0.8), (10.0, 0.9), (12.0, 0.7)])

    def art(data: Data, target: object, seed: int) -> tuple[str, dict[str, float]]:
        seconds, agreement = next(answers)
        return "art 1.20.1 KnockoffNets", {"cpu_s": seconds, "agreement": agreement}

    class Here:
        python = Path(__file__)

    monkeypatch.setattr(module, "_by_art", art)
    monkeypatch.setattr(module, "_ART", Here)
    monkeypatch.setattr(module, "_knockoff", lambda data, target, seed: (2.0, 0.9))
    rows = extraction(quick=False, note=lambda said: None, against=["art"])[-2:]
    assert [row["peer"] for row in rows] == ["art 1.20.1 KnockoffNets"] * 2
    assert [row["peer_value"] for row in rows] == pytest.approx([10.0, 0.8])
    assert [row["ratio"] for row in rows] == pytest.approx([5.0, 2.0])


def test_a_peer_that_is_not_there_leaves_its_rows_empty_and_an_unknown_one_is_refused(
    small: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Nowhere:
        python = tmp_path / "python"

    notes: list[str] = []
    monkeypatch.setattr(module, "_ART", Nowhere)
    rows = extraction(quick=True, note=notes.append, against=["art"])
    assert rows[-1]["peer"] is rows[-1]["ratio"] is None and any("make peers" in note for note in notes)  # fmt: skip
    with pytest.raises(UnknownName, match="peer"):
        extraction(quick=True, note=notes.append, against=["arts"])


def test_a_peer_that_breaks_is_an_error(
    small: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    script.chmod(0o755)

    class Broken:
        python, extra = script, {"PATH": "/bin:/usr/bin"}

        @staticmethod
        def command() -> list[Any]:
            return [str(script)]

    monkeypatch.setattr(module, "_ART", Broken)
    with pytest.raises(TacitError, match="art gave no answer: broken"):
        extraction(quick=True, note=lambda said: None, against=["art"])
