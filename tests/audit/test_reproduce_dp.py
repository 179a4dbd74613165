"""The reproduction of differentially private SGD on small stand-ins for its data: recipes, audits, names, resuming."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tacit.audit import reproduce_dp as module
from tacit.audit.dp_checks import MUTANTS, InOrder, TooQuiet
from tacit.audit.figures import Effort
from tacit.audit.reproduce import REPRODUCTIONS
from tacit.audit.reproduce_dp import Audits, Noise, Training, cases, reproduce_dp, run_case
from tacit.nn.data import DataSet
from tacit.training.dp_sgd import DPSGD

RECIPES = (
    "cifar10/paper-network/eps8", "mnist/cnn", "mnist/scattering", "cifar10/scattering", "mnist/eps8", "mnist/eps2",
    "mnist/eps0.5",
)  # fmt: skip
OTHERS = {
    "audit/honest_below_claim", "audit/caught/noise-over-ten", "audit/caught/no-clipping", "audit/caught/lots-in-order",
    "noise/chi_square_p", "noise/draws_a_second", "noise/discrete/advantage", "noise/float/advantage",
}  # fmt: skip
NAMES = OTHERS | {
    f"{name}/{of}"
    for name in RECIPES
    for of in ("accuracy", "epsilon/moments", "epsilon/rdp", "epsilon/pld")
}


def small(name: str) -> DataSet:
    """Images of ten classes that differ in the place of a bright square."""
    channels, side = (1, 28) if name == "mnist" else (3, 32)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(500) % 10
    inputs = 0.1 * torch.rand(500, channels, side, side, generator=generator)
    for row, label in enumerate(labels.tolist()):
        top, left = 14 * (label // 5), 5 * (label % 5)
        inputs[row, :, top : top + 12, left : left + 6] = 1
    return DataSet(
        name=name, inputs_train=inputs[:400], labels_train=labels[:400], inputs_test=inputs[400:],
        labels_test=labels[400:], classes=10, class_names=tuple("0123456789"), citation="made for this test",
    )  # fmt: skip


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    data = {name: small(name) for name in ("mnist", "cifar10")}
    monkeypatch.setattr(module, "_data", data.__getitem__)
    module._features.cache_clear()
    yield
    module._features.cache_clear()


def training(name: str, **settings: object) -> Training:
    """A recipe with other settings."""
    case = next(case for case in cases(Effort(quick=True)) if case.name == name)
    assert isinstance(case, Training)
    return replace(case, protection=replace(case.protection, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_learns_and_its_epsilon_is_stated_thrice(name: str, stand_ins: None) -> None:
    # the same lots and noise for all, so that most of the accounting is done once
    found = run_case(training(name, epochs=2, lot_size=100, epsilon=None, noise_multiplier=1.0))
    assert found["steps"] == 8 and found["records"] == 400 and found["noise_multiplier"] == 1
    assert found["accuracy"] > 0.9
    assert 4 < found["pld"] <= found["rdp"] <= found["moments"] < 9


@pytest.mark.parametrize(("name", "claims"), [("mnist/scattering", 3), ("mnist/eps8", 8)])
def test_a_recipe_adds_the_noise_that_its_epsilon_asks_for(
    name: str, claims: float, stand_ins: None
) -> None:
    case = training(name, epochs=1, lot_size=100)
    assert 0.98 < run_case(case)[case.protection.accountant.value] / claims <= 1


def test_the_papers_network_gets_the_middle_of_each_image(stand_ins: None) -> None:
    data = small("cifar10")
    inputs, tests, _ = module._prepared(training("cifar10/paper-network/eps8"), data)
    assert inputs.shape[1:] == tests.shape[1:] == (3, 24, 24)
    middle = data.inputs_train[:, :, 4:28, 4:28]
    torch.testing.assert_close(inputs, torch.nn.functional.layer_norm(middle, (3, 24, 24)))


# --- audits, and the noise


def test_audits_are_counted_as_they_came_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake that is not caught, and an honest training that is accused, take from their figures."""
    monkeypatch.setattr(module, "MUTANTS", MUTANTS | {"none": DPSGD, "honest": TooQuiet})
    missed, accused = Audits(name="none", runs=2, seed=0), Audits(name="honest", runs=2, seed=0)
    caught = Audits(name="lots-in-order", runs=2, seed=0)
    (missed_found, accused_found, caught_found) = map(run_case, (missed, accused, caught))
    assert [one["exceeded"] for one in (missed_found, accused_found, caught_found)] == [0, 2, 2]
    assert module._of_audits(missed, missed_found)["here"] == 0
    figure = module._of_audits(caught, caught_found)
    assert figure["here"] == 1 and figure["name"] == "audit/caught/lots-in-order"
    assert figure["settings"]["mistake"] == " ".join((InOrder.__doc__ or "").split())  # type: ignore[index]
    monkeypatch.setattr(module, "MUTANTS", MUTANTS)
    figure = module._of_audits(accused, accused_found)
    assert figure["here"] == 0 and figure["name"] == "audit/honest_below_claim"
    assert module._of_audits(accused, run_case(accused))["here"] == 1


def test_the_noise_has_its_law_and_the_test_can_tell() -> None:
    case = Noise(draws=3 * 10**6, releases=100, seed=0, counted=17.3)
    found = run_case(case)
    assert found["p"] > 1e-3 > found["p_off"] and found["outside"] == 0
    assert found["draws_a_second"] > 10**5
    p, speed, *told = module._of_noise(case, found)
    assert p["here"] == found["p"] and p["n"] == speed["n"] == case.draws
    by_name = {one["name"]: one for one in told}
    assert by_name["noise/float/advantage"]["interval"][0] > 0.5
    discrete = by_name["noise/discrete/advantage"]
    assert discrete["interval"][0] < discrete["settings"]["most_by_normal_noise"] < 0.05  # type: ignore[index]


# --- the whole


def made_up(case: module.Case) -> dict[str, object]:
    match case:
        case Training():
            terms = ("tested", "records", "steps", "noise_multiplier", "moments", "rdp", "pld")
            found = {**dict.fromkeys(terms, 100.0), "accuracy": 0.9 + case.seed / 100}
        case Audits():
            exceeded = case.runs if case.name in MUTANTS else 1
            found = {"claim": 0.7, "exceeded": exceeded, "bounds": [0.1] * case.runs}
        case _:
            told = {"value": 0.0, "interval": (-0.1, 0.1), "allowed": 0.05, "trials": 100}
            found = {
                "p": 0.5,
                "p_off": 0.0,
                "outside": 0,
                "draws_a_second": 1e8,
                "told": dict.fromkeys(("discrete", "float"), told),
            }
    return {**found, "seconds": 1.0}


def test_figures_have_the_names_that_were_promised_and_finished_cases_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_ins: None
) -> None:
    ran: list[str] = []

    def some(todo, most=1000):
        for case in todo:
            if len(ran) == most:
                raise KeyboardInterrupt
            ran.append(case.key)
            yield case, made_up(case)

    effort = Effort(folder=tmp_path)
    assert REPRODUCTIONS["4"] is reproduce_dp
    monkeypatch.setattr(module, "_side_by_side", lambda todo: some(todo, 4))
    with pytest.raises(KeyboardInterrupt):
        reproduce_dp(effort)
    monkeypatch.setattr(module, "_side_by_side", some)
    result = reproduce_dp(effort)
    assert len(ran) == len(set(ran)) == 5 * 3 + 2 + 4 + 1
    figures = {figure["name"]: figure for figure in result["figures"]}  # type: ignore[union-attr]
    assert figures.keys() == NAMES and json.dumps(result)
    accuracy = figures["mnist/eps2/accuracy"]
    assert accuracy["here"] == pytest.approx(statistics.mean((0.9, 0.91, 0.92)))
    assert accuracy["interval"][0] < 0.91 < accuracy["interval"][1] and accuracy["paper"] == 0.95
    honest = figures["audit/honest_below_claim"]
    assert honest["here"] == 0.95 and honest["n"] == 20 and honest["settings"]["count"] == 19


def test_a_quick_run_has_one_seed_and_the_same_names() -> None:
    quick, whole = cases(Effort(quick=True, seed=5)), cases(Effort(seed=5))
    assert [case.name for case in quick] == list(dict.fromkeys(case.name for case in whole))
    assert {case.seed for case in quick} == {5} and {case.seed for case in whole} == {5, 6, 7}
