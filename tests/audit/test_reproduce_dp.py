"""The reproduction of differentially private SGD on a small stand-in for MNIST: recipes, names, resuming."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tacit.audit import reproduce_dp as module
from tacit.audit.figures import Effort
from tacit.audit.reproduce import REPRODUCTIONS
from tacit.audit.reproduce_dp import Case, cases, reproduce_dp, run_case
from tacit.nn.data import DataSet

RECIPES = ("mnist/cnn", "mnist/scattering", "mnist/eps8", "mnist/eps2", "mnist/eps0.5")
NAMES = {
    f"{name}/{of}"
    for name in RECIPES
    for of in ("accuracy", "epsilon/moments", "epsilon/rdp", "epsilon/pld")
}


def small() -> DataSet:
    """Images of ten classes that differ in the place of a bright square."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(900) % 10
    inputs = 0.1 * torch.rand(900, 1, 28, 28, generator=generator)
    for row, label in enumerate(labels.tolist()):
        top, left = 14 * (label // 5), 5 * (label % 5)
        inputs[row, :, top : top + 12, left : left + 6] = 1
    return DataSet(
        name="mnist", inputs_train=inputs[:800], labels_train=labels[:800], inputs_test=inputs[800:],
        labels_test=labels[800:], classes=10, class_names=tuple("0123456789"), citation="made for this test",
    )  # fmt: skip


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    data = small()
    module._features.cache_clear()
    monkeypatch.setattr(module, "_data", lambda name: data)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_within_its_epsilon(name: str, stand_in: None) -> None:
    case = next(case for case in cases(Effort(quick=True)) if case.name == name)
    protection = replace(case.protection, epochs=3, lot_size=100)
    found = run_case(replace(case, protection=protection))
    assert found["steps"] == 24 and 0 <= found["accuracy"] <= 1
    of = case.protection.accountant.value
    assert 0.98 * (case.protection.epsilon or 0) < found[of] <= (case.protection.epsilon or 0)
    assert found["pld"] <= found["rdp"] + 1e-4 <= found["moments"] + 2e-4


def test_with_little_noise_a_recipe_learns(stand_in: None) -> None:
    case = next(case for case in cases(Effort()) if case.name == "mnist/eps8")
    protection = replace(
        case.protection, epochs=8, lot_size=100, epsilon=None, noise_multiplier=0.05
    )
    assert run_case(replace(case, protection=protection))["accuracy"] > 0.9


def test_figures_have_the_names_that_were_promised_and_finished_cases_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_in: None
) -> None:
    ran: list[str] = []

    def some(todo):
        for case in todo:
            if len(ran) == 4:
                raise KeyboardInterrupt
            ran.append(case.key)
            numbers = dict.fromkeys(module._Kept.numbers, 1.0)
            yield case, {**numbers, "accuracy": 0.9 + case.seed / 100, "tested": 100}

    monkeypatch.setattr(module, "_side_by_side", some)
    effort = Effort(folder=tmp_path)
    assert REPRODUCTIONS["4"] is reproduce_dp
    with pytest.raises(KeyboardInterrupt):
        reproduce_dp(effort)
    monkeypatch.setattr(module, "_side_by_side", lambda todo: some_left(todo, ran))
    result = reproduce_dp(effort)
    assert len(ran) == len(set(ran)) == 15
    figures = {figure["name"]: figure for figure in result["figures"]}  # type: ignore[union-attr]
    assert figures.keys() == NAMES and json.dumps(result)
    accuracy = figures["mnist/eps2/accuracy"]
    assert accuracy["here"] == pytest.approx(statistics.mean((0.9, 0.91, 0.92)))
    assert accuracy["interval"][0] < 0.91 < accuracy["interval"][1] and accuracy["paper"] == 0.95


def some_left(todo, ran: list[str]):
    for case in todo:
        ran.append(case.key)
        numbers = dict.fromkeys(module._Kept.numbers, 1.0)
        yield case, {**numbers, "accuracy": 0.9 + case.seed / 100, "tested": 100}


def test_a_quick_run_has_one_seed_and_the_same_names() -> None:
    quick, whole = cases(Effort(quick=True, seed=5)), cases(Effort(seed=5))
    assert [case.name for case in quick] == list(RECIPES) and {case.seed for case in quick} == {5}
    assert {case.seed for case in whole} == {5, 6, 7}
    assert isinstance(whole[0], Case)
