"""The benchmark of secure aggregation: what a round tells, and how rounds become rows."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace

import pytest

from tacit.audit import bench_secagg, secagg_round
from tacit.audit.bench import bench
from tacit.audit.bench_secagg import Case, cases, secagg
from tacit.audit.secagg_round import RoundSettings, measure
from tacit.core.errors import ConfigError, TacitError, UnknownName

SMALL = RoundSettings(participants=6, values=50, drop=0.3)


def quiet(said: str) -> None:
    del said


@pytest.mark.parametrize("workers", [0, 2])
def test_a_round_tells_every_metric_and_is_exact_within_its_bound(workers: int) -> None:
    found = measure(replace(SMALL, workers=workers))
    for metric in ("server_cpu_s", "unmask_s", "total_s", "peak_rss_mb", "bytes_per_client"):
        assert found[metric] > 0, metric
    assert 0 < found["max_error"] <= found["error_bound"] and found["width"] == 19
    assert found["failure"] == 0 and found["sharing"] == "5 neighbours each, threshold 4"
    json.dumps(found, allow_nan=False)


def test_a_round_over_the_regular_graph_tells_its_failure_probability() -> None:
    found = measure(RoundSettings(participants=120, values=8, drop=0.1, regular=True))
    assert 0 < found["failure"] < 2**-30 and "failure probability 2^-3" in found["sharing"]
    with pytest.raises(ConfigError, match="no regular graph"):
        measure(replace(SMALL, regular=True))


def test_a_wrong_sum_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = secagg_round.aggregate

    def off(*args, **kwargs):
        found = honest(*args, **kwargs)
        return replace(found, mean=found.mean + 1e-3)

    monkeypatch.setattr(secagg_round, "aggregate", off)
    with pytest.raises(TacitError, match="the sum is wrong"):
        measure(SMALL)


def test_the_traffic_of_longer_vectors_differs_by_the_packed_vector_alone() -> None:
    longer = measure(replace(SMALL, values=5000))
    told = bench_secagg._value(
        measure(SMALL), "traffic_ratio", Case(settings=SMALL, traffic_at=5000)
    )
    measured = longer["bytes_per_client"] / (2 * 5000)
    assert told == pytest.approx(measured, abs=16 / (2 * 5000))  # frames are padded to 8 bytes


def test_a_round_runs_without_torch() -> None:
    code = "import sys, tacit.audit.secagg_round; print('torch' in sys.modules)"
    done = bench_secagg.subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def stand_in(server: float, peer: str | None = None) -> dict[str, object]:
    return {
        "server_cpu_s": server, "client_cpu_s": 1.0, "unmask_s": 1.0, "total_s": 1.0, "peak_rss_mb": 1.0,
        "bytes_per_client": 300.0, "vector_bytes": 100, "width": 20, "kernels": "k", "sharing": "s",
        "failure": 0.0, "peer": peer,
    }  # fmt: skip


def test_rows_hold_medians_and_how_many_times_better_than_the_peer(monkeypatch) -> None:
    served = iter([1.0, 5.0, 2.0, 1.0, 5.0, 2.0])
    monkeypatch.setattr(bench_secagg, "_ours", lambda settings, native: stand_in(next(served, 1.0)))
    monkeypatch.setattr(bench_secagg, "_theirs", lambda name, settings: stand_in(40.0, "flwr 1"))
    monkeypatch.setattr(
        bench_secagg, "_peer_python", lambda name: bench_secagg.Path(sys.executable)
    )
    rows = secagg(quick=True, note=quiet, against=["flower"])
    first = next(r for r in rows if r["metric"] == "server_cpu_s")
    assert first["case"] == "n=10 d=1000000 drop=0.3"
    assert (first["tacit"], first["peer_value"], first["ratio"]) == (2.0, 40.0, 20.0)
    assert first["peer"] == "flwr 1" and first["range"] == [1.0, 5.0]
    numpy = [r for r in rows if r["case"].endswith(" numpy")]
    assert numpy and all(r["peer"] is None and r["ratio"] is None for r in numpy)


def test_an_absent_peer_leaves_its_column_empty_and_an_unknown_one_is_an_error(monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(bench_secagg, "_ours", lambda settings, native: stand_in(1.0))
    monkeypatch.setattr(bench_secagg, "_peer_python", lambda name: bench_secagg.Path("/nowhere"))
    rows = secagg(quick=True, note=said.append, against=["flower"])
    assert all(r["peer"] is None and r["peer_value"] is None for r in rows)
    assert "make peers" in said[0]
    with pytest.raises(UnknownName, match="flower"):
        bench("secagg", quick=True, against=["flour"], note=quiet)
    with pytest.raises(ConfigError, match="leave --against out"):
        bench("transport", quick=True, against=["flower"], note=quiet)


def test_a_round_that_fails_says_why() -> None:
    with pytest.raises(TacitError, match="no regular graph"):
        bench_secagg._ours(replace(SMALL, regular=True), native=True)
    found = bench_secagg._ours(SMALL, native=False)
    assert found["kernels"] == "numpy only (TACIT_NATIVE=0)" and found["settings"] == asdict(SMALL)


def test_cases_have_the_names_that_reports_rely_on() -> None:
    names = [case.name for case in cases(quick=False)]
    assert names == list(dict.fromkeys(names))
    assert {
        "n=10 d=1000000 drop=0.3",
        "n=50 d=100000 drop=0.3",
        "n=500 d=100000 drop=0.3",
        "n=1000 d=1000000 drop=0.3 regular corrupted=0.1",
        "n=1024 d=1048576 drop=0",
    } <= set(names)
    assert {case.name for case in cases(quick=True)} <= set(names)
