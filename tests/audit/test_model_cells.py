"""Columns on the model itself: copies and images of classes, against what; and that they hide no other leak."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tacit.audit import decision
from tacit.audit.cells import Judge, Trial, pooled
from tacit.audit.compare import Row, compare
from tacit.audit.model_cells import ExtractionFrom, InversionFrom, agreeing, compared
from tacit.audit.world import Settings, World, deal, imitation
from tacit.nn.data import load
from tacit.training.plain import Centralised

SIZES = Settings(owners=4, records=25, population=400, hidden=16, seeds=1)
VANTAGES = ("holder", "scores", "labels")


@cache
def world_of(seed: int) -> World:
    return deal(load("digits"), SIZES, seed)


@pytest.fixture(autouse=True)
def _no_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluator takes seconds to train."""
    judge = Judge(model=nn.Sequential(nn.Flatten(), nn.Linear(64, 11)), accuracy=1.0)
    monkeypatch.setattr("tacit.audit.world.train_judge", lambda *_: judge)


def trial(seed: int = 0, model: nn.Module | None = None) -> Trial:
    world = world_of(seed)
    recipe = imitation(world.task, SIZES)
    model = model or recipe(*world.members, torch.Generator().manual_seed(seed + 50))
    run: Any = SimpleNamespace(output=SimpleNamespace(value=model))
    return Trial(
        protection=Centralised(), run=run, task=world.task, members=world.members, nonmembers=world.nonmembers,
        population=world.population, train_fn=recipe, judge=world.judge, seed=seed, shared=world.shared,
    )  # fmt: skip


@pytest.mark.parametrize("vantage", ["scores", "labels"])
def test_a_copy_agrees_more_than_what_is_had_without_asking(vantage: Any) -> None:
    found = [ExtractionFrom(vantage).measure(trial(seed)) for seed in range(3)]
    assert sum(one.value - one.chance for one in found) > 0
    assert all(one.value > 0.8 for one in found)
    assert all(one.queries == len(world_of(0).population[0]) for one in found)
    assert found[0].knowledge["population_records"] == found[0].queries
    together = pooled(found)
    narrow, wide = (one.interval[1] - one.interval[0] for one in (together, found[0]))
    assert narrow < wide  # seeds are independent, and so are records


@pytest.mark.parametrize("vantage", VANTAGES)
def test_the_classes_of_a_trained_model_are_found_and_those_of_an_untrained_one_are_not(
    vantage: Any,
) -> None:
    plan = InversionFrom(vantage)
    found = plan.measure(trial())
    assert plan.name == f"model-inversion@{vantage}" and plan.about == "model"
    assert found.value > 0.7 and found.interval[0] > found.chance == 0.1
    assert (found.queries is None) == (vantage == "holder")
    images = found.figures["images"]
    assert len(images) == 10 and images[3]["caption"] == "class 3"
    assert len(images[3]["original"]) == len(images[3]["reconstruction"]) == 8
    blind = plan.measure(trial(model=world_of(0).task.start))
    assert blind.value < 0.5


def test_a_class_without_training_records_is_not_asked_for() -> None:
    one = trial()
    kept = one.members[1] != 7
    found = InversionFrom("holder").measure(
        replace(one, members=(one.members[0][kept], one.members[1][kept]))
    )
    assert found.n == 9 and found.chance == pytest.approx(1 / 9)


def test_agreement_is_counted_record_by_record() -> None:
    class Says(nn.Module):
        def __init__(self, classes: list[int]) -> None:
            super().__init__()
            self.said = nn.functional.one_hot(torch.tensor(classes), 3).float()

        def forward(self, records: torch.Tensor) -> torch.Tensor:
            return self.said[: len(records)]

    assert agreeing(Says([0, 1, 2]), Says([0, 2, 2]), torch.zeros(3, 1)).tolist() == [True, False, True]  # fmt: skip


def test_in_a_matrix_they_have_verdicts_and_leave_the_worst_leak_alone() -> None:
    rows = (Row(name="centralised", title="", protection=Centralised(epochs=20), unprotected=True),)
    plans = (ExtractionFrom("scores"), InversionFrom("holder"), InversionFrom("labels"))
    report = compare(SIZES, rows, plans)
    (row,) = report["protections"]
    assert [cell["error"] for cell in row["cells"].values()] == [None] * 3
    assert row["cells"]["model-inversion@holder"]["verdict"] == "leaks"
    assert {one["about"] for one in report["attacks"]} == {"model"}
    (choice,) = decision.choices(report)
    assert choice.leak is None and not choice.attacks
    for one in report["attacks"]:
        one["about"] = "records"
    assert decision.choices(report)[0].leak > 0.5


def test_a_rate_is_compared_record_by_record() -> None:
    alike = torch.tensor([True] * 90 + [False] * 10)
    same = compared(alike, alike)
    assert same.value == same.chance == 0.9 and same.interval[0] < 0.9 < same.interval[1]
    better = compared(torch.ones(100, dtype=torch.bool), alike)
    assert better.interval[0] > better.chance == 0.9 and better.interval[1] <= 1
    # Agresti & Min 2005: (b - c) / (n + 2), deviation from the discordant pairs alone.
    apart = compared(torch.arange(200) < 40, (torch.arange(200) >= 30) & (torch.arange(200) < 50))
    middle, spread = (30.5 - 10.5) / 202, (41 - 20**2 / 202) ** 0.5 / 202
    assert apart.interval == pytest.approx((0.1 + middle - 1.96 * spread, 0.1 + middle + 1.96 * spread))  # fmt: skip
