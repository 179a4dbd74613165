"""The benchmark of the endpoint: its rows, and that a lost count would be seen."""

from __future__ import annotations

import json

import pytest

from tacit.audit import bench_serve as module
from tacit.core.errors import ConfigError


def test_rows_and_that_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUICK", 40)
    monkeypatch.setattr(module, "KILLS", 1)
    rows = module.serve(quick=True, note=lambda said: None)
    found = {(row["case"], row["metric"]): row for row in rows}
    assert len(found) == len(rows) == 14 and json.dumps(rows)
    one = "mnist mlp 784-128-10 batch=1"
    half, bare = found[one, "p50_ms"]["tacit"], found[one, "p50_ms"]["peer_value"]
    assert found[one, "p50_ms"]["peer"] == "bare torch call" and 0 < bare < half
    assert found[one, "overhead_ms"]["tacit"] == pytest.approx(half - bare)
    assert found[one, "p50_ms"]["ratio"] == pytest.approx(bare / half)
    assert found[one, "p99_ms"]["tacit"] >= half
    assert found[f"{one} clients=4", "requests_per_s"]["tacit"] > 0
    killed = {metric: row["tacit"] for (case, metric), row in found.items() if "SIGKILL" in case}
    assert killed["lost_records"] == 0
    assert 0 < killed["answered_records"] <= killed["spent_records"] <= killed["sent_records"]


def test_a_lost_count_would_be_seen() -> None:
    assert module.lost(5, 5, 5) == module.lost(5, 6, 7) == 0
    assert module.lost(5, 3, 7) == 2 and module.lost(5, 9, 7) == 2


def test_it_has_no_peers() -> None:
    with pytest.raises(ConfigError, match="leave --against out"):
        module.serve(quick=True, note=print, against=["x"])
