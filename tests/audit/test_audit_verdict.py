"""The rule by which an audit concludes, its limits, and what it says in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tacit.audit.audit_verdict import Limit, bonferroni, jointly, judged, paragraphs
from tacit.audit.statistics import auc_interval
from tacit.core.errors import ConfigError, NotEnoughEvidence, UnknownName


def attack(name: str, low: float, value: float, high: float, **tails: Any) -> dict[str, Any]:
    metrics = {"auc": {"value": value, "interval": [low, high], "n": 400}, **tails}
    return {"name": name, "title": name.title(), "metrics": metrics}


def data(members: int = 200, nonmembers: int = 200, blind: Any = None) -> dict[str, Any]:
    check = {"name": "same-inputs", "value": 0.5, "interval": [0.45, 0.55], "warning": None}
    return {"members": members, "nonmembers": nonmembers, "checks": [check if blind is None else blind]}  # fmt: skip


def tail(value: float, p_value: float) -> dict[str, Any]:
    return {"value": value, "interval": [0, 1], "n": 200, "p_value": p_value}


def test_intervals_of_all_attacks_together_hold_at_95_percent() -> None:
    assert bonferroni(1) == 0.95
    assert bonferroni(10) == pytest.approx(0.995)
    drawn = torch.Generator().manual_seed(0)
    members = np.arange(300) < 150
    one = torch.randn(1, 300, generator=drawn, dtype=torch.float64)
    others = torch.randn(9, 300, generator=drawn, dtype=torch.float64)
    same, apart = torch.cat([one] * 10).numpy(), torch.cat([one, others]).numpy()
    # Ten times the same attack errs as one; ten independent ones nearly as often as Bonferroni fears.
    assert jointly(same, members, drawn) == pytest.approx(0.95, abs=0.008)
    assert 0.99 < jointly(apart, members, drawn) <= bonferroni(10)
    assert jointly(np.zeros((3, 300)), members, drawn) == 0.95


def test_joint_confidence_is_that_at_which_intervals_of_attacks_alike_hold_together() -> None:
    drawn, missed = torch.Generator().manual_seed(1), 0
    members = np.arange(200) < 100
    for _ in range(100):
        common = torch.randn(200, generator=drawn, dtype=torch.float64)
        noise = torch.randn(6, 200, generator=drawn, dtype=torch.float64)
        scores = (common + 0.5 * noise).numpy()
        each = jointly(scores, members, drawn)
        ends = [auc_interval(one[members], one[~members], each) for one in scores]
        missed += not all(low <= 0.5 <= high for low, high in ends)
    assert missed <= 13  # 5 expected; more than 13 once in a thousand runs


def test_it_leaks_where_an_interval_lies_above_chance_and_names_that_attack() -> None:
    found = judged([attack("loss", 0.48, 0.53, 0.58), attack("lira", 0.51, 0.6, 0.7)], data())
    assert (found.verdict, found.strongest) == ("leaks", "lira")
    assert "0.600" in found.why and "0.510 to 0.700" in found.why


def test_it_leaks_at_a_low_rate_alone_if_chance_hardly_brings_that() -> None:
    quiet = attack("loss", 0.45, 0.5, 0.55, **{"tpr@0.01fpr": tail(0.02, 0.2)})
    loud = attack("lira", 0.44, 0.52, 0.6, **{"tpr@0.01fpr": tail(0.2, 1e-6)})
    found = judged([quiet, loud], data())
    assert (found.verdict, found.strongest) == ("leaks", "lira")
    assert "20.0 %" in found.why and "1 %" in found.why


def test_a_tail_is_held_against_all_the_tails_that_were_looked_at() -> None:
    # 0.01 of one figure is rare; the least of four is not.
    tails = {f"tpr@{rate}fpr": tail(0.2, 0.01) for rate in (0.1, 0.01, 0.001, 0.0001)}
    assert judged([attack("lira", 0.45, 0.5, 0.55, **tails)], data()).verdict == "nothing-found"
    alone = {"tpr@0.01fpr": tail(0.2, 0.01)}
    assert judged([attack("lira", 0.45, 0.5, 0.55, **alone)], data()).verdict == "leaks"


def test_nothing_found_says_what_is_ruled_out() -> None:
    found = judged([attack("loss", 0.45, 0.5, 0.55), attack("lira", 0.44, 0.52, 0.61)], data())
    assert found.verdict == "nothing-found"
    assert "above 0.610 is ruled out" in found.why


def test_what_differs_without_the_model_counts_only_beyond_that() -> None:
    blind = {"name": "same-inputs", "value": 0.8, "interval": [0.75, 0.85], "warning": "apart"}
    weak, strong = attack("loss", 0.7, 0.75, 0.8), attack("loss", 0.9, 0.95, 0.99)
    assert judged([weak], data(blind=blind)).verdict == "inconclusive"
    assert judged([strong], data(blind=blind)).verdict == "leaks"


def test_few_records_no_attack_and_exchanged_sets_are_inconclusive() -> None:
    assert judged([attack("loss", 0.9, 0.95, 1.0)], data(members=19)).verdict == "inconclusive"
    assert judged([], data()).verdict == "inconclusive"
    assert "exchanged" in judged([attack("loss", 0.1, 0.2, 0.3)], data()).why


def test_a_limit_is_read_and_judged_by_the_largest_value() -> None:
    limit = Limit.parsed("tpr@0.010fpr=0.05")
    assert (limit.metric, limit.limit, limit.rate) == ("tpr@0.01fpr", 0.05, 0.01)
    attacks = [
        attack("loss", 0.5, 0.6, 0.7, **{"tpr@0.01fpr": tail(0.04, 0.1)}),
        attack("lira", 0.5, 0.6, 0.7, **{"tpr@0.01fpr": tail(0.06, 0.1)}),
    ]
    held = limit.held(attacks, None)
    assert (held["value"], held["attack"], held["exceeded"]) == (0.06, "lira", True)
    assert Limit.parsed("auc=0.6").held(attacks, None)["exceeded"] is False
    epsilon = {"value": 1.5, "attack": "lira"}
    assert Limit.parsed("epsilon=1").held(attacks, epsilon)["exceeded"] is True


def test_a_limit_that_was_not_measured_does_not_hold() -> None:
    limit = Limit.parsed("tpr@0.001fpr=0.05")
    with pytest.raises(NotEnoughEvidence, match="10000 non-members, 9999 came"):
        limit.check(9_999)
    limit.check(10_000)
    missing = attack("loss", 0.5, 0.6, 0.7, **{"tpr@0.001fpr": {"value": None, "why": "needs"}})
    assert limit.held([missing], None)["exceeded"] is None
    assert Limit.parsed("epsilon=1").held([missing], None)["value"] is None


@pytest.mark.parametrize(
    "text", ["auc", "=0.5", "auc=much", "tpr@2fpr=0.1", "tpr@e-fpr=0.1", "auc=-1", "auc=nan"]
)
def test_a_limit_written_otherwise_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"tpr@0\.01fpr=0\.05"):
        Limit.parsed(text)


def test_an_unknown_metric_names_those_that_there_are() -> None:
    with pytest.raises(UnknownName, match="auc"):
        Limit.parsed("aux=0.6")


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (attack("lira", 0.7, 0.8, 0.9, **{"tpr@0.01fpr": tail(0.3, 1e-9)}), ["80.0 %", "30.0 %", " 1 % of", "tells who"]),
        (attack("lira", 0.45, 0.5, 0.55), ["better than guessing", "45.0 and 55.0 %", "overlooked"]),
    ],
)  # fmt: skip
def test_paragraphs_give_the_figures_and_no_guarantee(found: Any, says: list[str]) -> None:
    verdict = judged([found], data())
    result = {
        "target": {"kind": "module"}, "data": data(), "attacks": [found], "shadows": None,
        "left_out": [{"name": "x", "why": "y"}], "verdict": verdict.verdict, "why": verdict.why, "strongest": "lira",
    }  # fmt: skip
    tried, means, not_proved = paragraphs(result)
    assert "200 records" in tried and "1 attack " in tried and "1 more could not" in tried
    assert all(text in means for text in says), means
    assert "no guarantee" in not_proved
    assert ("differential privacy" in not_proved) == (verdict.verdict != "leaks")
