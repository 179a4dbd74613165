"""The reproduction of model extraction on small stand-ins for its data: cases, figures, resuming."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tacit.attacks.extraction import EquationSolving
from tacit.attacks.extraction_labels import Retraining
from tacit.audit import reproduce_extraction as module
from tacit.audit.extraction_targets import Data, _generated, own, target_of, theirs
from tacit.audit.figures import Effort
from tacit.audit.reproduce import REPRODUCTIONS
from tacit.audit.reproduce_extraction import (
    LINEAR,
    Case,
    attack_of,
    cases,
    reproduce_extraction,
    run_case,
)
from tacit.core.errors import ConfigError, UnknownName

SCORES = {"agreement_test", "agreement_uniform", "total_variation", "largest_difference", "queries", "seconds"}  # fmt: skip
NAMED = {"agreement_test", "agreement_uniform", "queries", "seconds"}
EXACT = {f"{data}/logistic" for data in LINEAR[:4]}
EXACT |= {"digits/softmax", "digits/softmax-float32", "adult-race/softmax", "digits/relu32"}
EXACT |= {f"{data}/one-vs-rest" for data in ("digits", "adult-race")}
EXACT |= {f"digits/softmax/decimals{digits}" for digits in (5, 3, 2)}
EXACT |= {"adult-race/mlp20/2225", "adult-race/mlp20/4450"}
LABELS = {f"{data}/linear-labels/{budget}" for data in LINEAR for budget in ("827", "413")}
LABELS |= {"labels/linear/827", "labels/linear/413"}
LABELS |= {f"digits/softmax-labels/{queries}" for queries in (65_000, 32_500)}
LABELS |= {f"adult-race/mlp20-labels/{queries}" for queries in (108_200, 54_100)}
KNOCKOFFS = {f"mnist/{one}/2000" for one in ("knockoff", "knockoff-adaptive", "knockoff-labels")}
NAMES = {f"{stem}/{of}" for stem in EXACT for of in SCORES}
NAMES |= {f"{stem}/{of}" for stem in LABELS for of in NAMED}
NAMES |= {f"{stem}/{of}" for stem in KNOCKOFFS for of in (NAMED - {"agreement_uniform"}) | {"accuracy"}}  # fmt: skip
NAMES |= {f"digits/kernel{n}/{of}" for n in (10, 20) for of in SCORES | {"recovered", "psnr"}}
QUICK = {"65000": "10833", "32500": "5416", "108200": "18033", "54100": "9016"}
HTTP = {f"http/digits/softmax/{of}" for of in SCORES | {"same_as_in_process"}}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Data:
    """Four features, three classes, half of the records for testing."""
    generator = torch.Generator().manual_seed(0)
    inputs = 2 * torch.rand(600, 4, generator=generator, dtype=torch.float64) - 1
    labels = (inputs @ torch.randn(4, 3, generator=generator, dtype=torch.float64)).argmax(1)
    data = Data((inputs[:300], labels[:300]), (inputs[300:], labels[300:]), 3, -1.0)
    monkeypatch.setattr(module, "data_of", lambda name: data)
    return data


def case(**settings: Any) -> Case:
    return Case(**{"name": "digits/softmax", "seed": 0, "data": "digits", "target": "softmax", **settings})  # fmt: skip


def test_a_case_gives_how_near_the_copy_comes_and_from_how_many_queries(small: Data) -> None:
    found = run_case(case())
    assert found["queries"] == 5 and found["agreement_test"] == found["agreement_uniform"] == 1
    assert found["total_variation"] < 1e-12 and found["largest_difference"] < 1e-12
    assert found["accuracy"] == found["target_accuracy"] > 0.8 and found["tests"] == 300
    assert found["attack_seconds"] > 0 and json.dumps(found)
    assert 1 / 3 <= found["agreement_of_a_constant"] < 1 and found["agreement_elsewhere"] == 1


def test_labels_tell_less_than_rounded_probabilities_and_those_less_than_all(small: Data) -> None:
    exact, rounded, labels = (
        run_case(case(**settings))
        for settings in ({}, {"digits": 2, "queries": 60}, {"method": "labels", "queries": 60})
    )
    assert labels["agreement_uniform"] < 1 and labels["agreement_test"] > 0.9
    assert exact["total_variation"] < rounded["total_variation"] < labels["total_variation"]
    assert "residual" in rounded and "residual" not in labels


def test_a_float32_target_is_asked_in_float32(small: Data) -> None:
    found = run_case(case(single=True))
    assert 1e-12 < found["total_variation"] < 1e-5


@pytest.mark.parametrize("method", ["knockoff", "knockoff-adaptive", "knockoff-labels"])
def test_knockoffs_ask_the_adversarys_half_alone(small: Data, method: Any) -> None:
    mine, others = own(small), theirs(small)
    assert len(mine[0]) == len(others[0]) == 150
    assert not {tuple(one) for one in mine[0].tolist()} & {tuple(one) for one in others[0].tolist()}
    found = run_case(case(method=method, target="mlp128", queries=100))
    assert found["queries"] == 100 and found["agreement_test"] > 0.7


def test_representers_that_come_out_are_counted(small: Data, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(module, "GAMMA", 0.05)
    monkeypatch.setitem(module.__dict__, "target_of", lambda kind, data, seed: _kernel(data, seed))
    found = run_case(case(method="kernel", target="kernel3", queries=200))
    assert found["recovered"] == 1 and found["representers"] == 3 and found["psnr"] > 60
    assert found["distance"] < found["distance_of_another"] / 100


def _kernel(data: Data, seed: int) -> torch.nn.Module:
    from tacit.audit.extraction_targets import kernel_regression

    return kernel_regression(data, 3, torch.Generator().manual_seed(seed)).requires_grad_(False)


def test_over_http_the_weights_are_the_same_to_the_last_bit(small: Data) -> None:
    pytest.importorskip("uvicorn")
    found = run_case(case(http=True))
    assert found["same_as_in_process"] == 1 and found["queries"] == found["charged"] == 5


def test_attacks_have_the_settings_of_their_cases(small: Data) -> None:
    solving = attack_of(case(target="one-vs-rest"), small)
    assert isinstance(solving, EquationSolving) and solving.link == "one-vs-rest"
    assert solving.box.low == -1 and solving.box.dtype == torch.float64
    retraining = attack_of(case(method="labels", queries=77), small)
    assert isinstance(retraining, Retraining) and retraining.queries == 77
    with pytest.raises(ConfigError, match="a number of queries expected"):
        attack_of(case(method="labels"), small)


@pytest.mark.parametrize("kind", ["softmax", "one-vs-rest", "mlp20", "relu32", "mlp128"])
def test_targets_learn_and_follow_from_their_seed(small: Data, kind: str) -> None:
    target, again = (target_of(kind, small, 1) for _ in range(2))
    inputs, labels = small.test
    assert (target(inputs).argmax(1) == labels).double().mean() > 0.5
    assert torch.equal(target(inputs), again(inputs))
    assert not torch.allclose(target(inputs), target_of(kind, small, 2)(inputs), rtol=0, atol=1e-3)
    assert not any(weights.requires_grad for weights in target.parameters())


def test_generated_sets_lie_in_their_box_and_a_target_of_no_kind_is_refused(small: Data) -> None:
    for name, least in (("moons", 0.8), ("blobs", 0.95)):
        data = _generated(name)
        assert float(data.train[0].min()) >= -1 and float(data.test[0].max()) <= 1
        inputs, labels = data.test
        right = (target_of("softmax", data, 0)(inputs).argmax(1) == labels).double().mean()
        assert least < right < 1
    with pytest.raises(UnknownName, match="target"):
        target_of("tree", small, 0)


# --- the whole


def made_up(one: Case) -> dict[str, Any]:
    share = 0.99 + 0.001 * one.seed
    found = {
        "agreement_test": share, "agreement_uniform": share, "total_variation": 1e-3, "largest_difference": 1e-2,
        "accuracy": 0.9, "target_accuracy": 0.91, "tests": 1000, "queries": one.queries or 65, "attack_seconds": 2.0,
        "seconds": 3.0, "residual": 1e-4, "total_variation_uniform": 1e-3, "recovered": 1.0, "representers": 20,
        "psnr": 200.0, "same_as_in_process": 1.0, "agreement_of_a_constant": 0.98, "agreement_elsewhere": 0.97,
    }  # fmt: skip
    return found


def test_figures_have_the_names_that_were_promised_and_finished_cases_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def some(todo: list[Case], most: int = 1000) -> Any:
        for one in todo:
            if len(ran) == most:
                raise KeyboardInterrupt
            ran.append(one.key)
            yield one, made_up(one)

    class Stand:
        width = 41

    assert REPRODUCTIONS["15"] is reproduce_extraction
    opened: list[str] = []
    monkeypatch.setattr(module, "data_of", lambda name: opened.append(name) or Stand)
    monkeypatch.setattr(module, "_side_by_side", lambda todo: some(todo, 3))
    with pytest.raises(KeyboardInterrupt):
        reproduce_extraction(Effort(folder=tmp_path))
    assert set(opened) == {"digits", "mnist", "adult-race", *LINEAR}
    monkeypatch.setattr(module, "_side_by_side", some)
    result = reproduce_extraction(Effort(folder=tmp_path))
    assert len(ran) == len(set(ran)) == len(cases(Effort()))
    figures = {figure["name"]: figure for figure in result["figures"]}  # type: ignore[attr-defined]
    wanted = NAMES | HTTP if module.can_serve() else NAMES
    assert figures.keys() == wanted and json.dumps(result, allow_nan=False)

    network = figures["adult-race/mlp20/2225/agreement_test"]
    assert network["here"] == pytest.approx(0.991) and network["n"] == 3
    assert network["paper"] == 0.9868 and not network["recalled"] and network["better"] == "higher"
    assert network["interval"][0] < 0.991 < network["interval"][1] <= 1
    single = figures["digits/softmax-labels/32500/agreement_uniform"]
    assert single["interval"][0] < 0.99 < single["interval"][1] and single["paper"] is None
    average = figures["labels/linear/827/queries"]
    assert average["here"] == 19 * 42 <= 827 and average["better"] == "lower"
    assert figures["labels/linear/413/queries"]["here"] <= 413
    assert network["settings"]["agreement_of_a_constant"] == [0.98] * 3
    assert network["settings"]["agreement_elsewhere"] == [0.97] * 3
    for name, of in (
        ("digits/softmax/seconds", "processor"),
        ("http/digits/softmax/seconds", "clock"),
    ):
        assert name not in figures or of in figures[name]["settings"]["seconds"]


def test_without_the_extra_nothing_is_served_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    class Stand:
        width = 9

    notes: list[str] = []
    monkeypatch.setattr(module, "can_serve", lambda: False)
    monkeypatch.setattr(module, "data_of", lambda name: Stand)
    monkeypatch.setattr(module, "_side_by_side", lambda todo: ((one, made_up(one)) for one in todo))
    result = reproduce_extraction(Effort(quick=True, progress=notes.append))
    assert "tacit[web]" in notes[0]
    wanted = {"/".join(QUICK.get(part, part) for part in name.split("/")) for name in NAMES}
    figures = {figure["name"]: figure for figure in result["figures"]}  # type: ignore[attr-defined]
    assert figures.keys() == wanted
    asked = figures["adult-race/mlp20-labels/18033/queries"]
    assert asked["here"] == 18_033 and asked["paper"] is None


def test_a_quick_run_has_as_many_names_and_less_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stand:
        width = 9

    monkeypatch.setattr(module, "data_of", lambda name: Stand)
    quick, usual, full = (cases(Effort(quick=q, full=f, seed=5)) for q, f in ((1, 0), (0, 0), (0, 1)))  # fmt: skip
    assert {one.name for one in usual} == {one.name for one in full}
    less = {one.name for one in quick} - {one.name for one in usual}
    assert len({one.name for one in quick}) == len({one.name for one in usual}) and len(less) == 4
    for one in quick:
        named = one.name.rpartition("/")[2]
        assert one.name not in less or named == str(one.queries)
    assert len(quick) < len(usual) < len(full) and len({one.key for one in full}) == len(full)
    assert sum(one.queries or 0 for one in quick) < sum(one.queries or 0 for one in usual) / 3
    assert math.isclose(usual[0].queries or 0, 108_200)
