"""The reproduction of membership inference on small stand-ins for its data: splits, cases, figures, resuming."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tacit.attacks.membership import ShadowModels
from tacit.audit import reproduce_membership as module
from tacit.audit.figures import Effort
from tacit.audit.null_control import NullControl
from tacit.audit.reproduce import REPRODUCTIONS
from tacit.audit.reproduce_membership import (
    POLICIES,
    Ensemble,
    Shokri,
    cases,
    parts,
    reproduce_membership,
    run_case,
    source_of,
)
from tacit.nn.data import DataSet
from tacit.nn.policies import EVERYTHING, Policy
from tacit.nn.stacked import Recipe

SHOKRI = {"accuracy", "precision", "recall", "auc"}
LATER = {
    "lira-online", "lira-offline", "student-lira-online", "rmia-offline", "rmia-online", "reference", "loss",
}  # fmt: skip
MITIGATIONS = {
    "top3", "top1", "labels", "digits3", "digits1", "temperature5", "temperature20", "l2-0.001", "l2-0.005",
}  # fmt: skip
STEMS = {"strict/shokri", "shared/shokri"} | {f"mitigation/{one}" for one in MITIGATIONS}
STEMS |= {f"shadow-data/{one}" for one in ("noisy0.1", "noisy0.2", "marginal", "synthesised")}
NAMES = {f"location30/{stem}/{of}" for stem in STEMS for of in SHOKRI}
NAMES |= {
    f"{name}/{one}/{of}"
    for name in ("location30", "cifar10") for one in LATER for of in ("auc", "tpr@0.1fpr", "tpr@0.01fpr")
}  # fmt: skip
NAMES |= {"location30/target/accuracy", "location30/target/training-accuracy"}
NAMES |= {
    f"null-control/{of}" for of in ("strongest-covers-chance", "all-cover-chance", "called-leaks")
}

QUICKLY = Recipe(epochs=60, batch_size=50, learning_rate=0.005)


@pytest.fixture(scope="module")
def data() -> DataSet:
    """Groups of visitors who each like some places; a third of the labels lies, so that a model learns by heart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (700,), generator=generator)
    likes = torch.rand(4, 60, generator=generator)
    inputs = (torch.rand(700, 60, generator=generator) < likes[labels]).float()
    lies = torch.rand(700, generator=generator) < 0.3
    labels = torch.where(lies, torch.randint(4, (700,), generator=generator), labels)
    return DataSet(
        name="visits", inputs_train=inputs[:500], labels_train=labels[:500], inputs_test=inputs[500:],
        labels_test=labels[500:], classes=4, class_names=tuple("abcd"), citation="made for this test",
    )  # fmt: skip


def small(**settings: object) -> Shokri:
    attack = ShadowModels(shadows=4, steps=150)
    case = Shokri(name="location30/strict", seed=0, recipe=QUICKLY, members=200, attack=attack)
    return replace(case, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("split", "pool"), [("shared", 3410), ("strict", 1810)])
def test_only_a_shared_split_lets_shadow_models_see_what_is_judged(
    split: module.Split, pool: int
) -> None:
    found = parts(5010, 1600, split, torch.Generator().manual_seed(3))
    mine, others, shadow = (set(one.tolist()) for one in found)
    assert (len(mine), len(others), len(shadow)) == (1600, 1600, pool)
    assert not mine & others and not mine & shadow
    assert others <= shadow if split == "shared" else not others & shadow


def test_the_attack_tells_members_and_the_label_alone_tells_less(
    data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught, taught_under = ShadowModels.taught, []

    def watched(self, references, generator, policy):
        taught_under.append(policy.name)
        return taught(self, references, generator, policy)

    monkeypatch.setattr(ShadowModels, "taught", watched)
    found = run_case(small(policies=(EVERYTHING, Policy(labels_only=True))), data)
    assert found["training_accuracy"] > 0.95 > 0.8 > found["accuracy"]
    whole, label = (found["policies"][name] for name in ("none", "labels"))
    assert whole["auc_interval"][0] > 0.6 and whole["accuracy"] > 0.6
    assert label["auc"] < whole["auc"] and taught_under == ["none", "labels"]
    assert found["shadow_records"] == 300 and found["trained_on"] == 200
    assert json.dumps(found)


def test_a_shared_split_has_more_shadow_data(data: DataSet) -> None:
    found = run_case(small(split="shared"), data)
    assert found["shadow_records"] == 500 and found["trained_on"] == 200
    assert found["policies"]["none"]["auc"] > 0.6


@pytest.mark.parametrize("source", ["noisy0.2", "marginal", "synthesised"])
def test_other_shadow_data_take_the_place_of_real_ones(
    source: module.Source, data: DataSet
) -> None:
    found = run_case(small(source=source), data)
    assert found["shadow_records"] == 300
    if source == "noisy0.2":
        assert found["queries_for_shadow_data"] == 0 and found["agrees"] < 0.9
    else:
        least = 300 if source == "marginal" else 301
        assert found["agrees"] == 1 and found["queries_for_shadow_data"] >= least
    assert 0.4 < found["policies"]["none"]["auc"] <= 1


def test_sources_have_the_names_that_figures_have() -> None:
    for name in ("real", "noisy0.1", "noisy0.2", "marginal", "synthesised"):
        assert source_of(name, 1810, 30).name == name  # type: ignore[arg-type]


def test_every_model_of_an_ensemble_is_attacked_by_the_others(data: DataSet) -> None:
    case = Ensemble(name="location30", seed=0, models=10, targets=3, recipe=QUICKLY, pool=600)
    found = run_case(case, data)
    assert found["references"] == 8 and found["attacks"].keys() == LATER
    mean = {name: statistics.mean(of["auc"]) for name, of in found["attacks"].items()}
    assert len(found["attacks"]["loss"]["auc"]) == 3
    assert mean["lira-online"] > mean["loss"] > 0.6
    assert found["attacks"]["loss"]["tpr@0.01fpr"] == [None] * 3  # 300 others do not support it
    assert min(found["training_accuracy"]) > 0.95 > 0.85 > max(found["accuracy"])
    names = {figure["name"] for figure in module._of_ensemble(case, found)}
    assert "location30/loss/tpr@0.1fpr" in names and "location30/loss/tpr@0.01fpr" not in names


def test_an_ensemble_on_images_is_convolutional_and_as_wide_as_is_said() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(
        3, (90,), generator=generator
    )  # of nothing that is in the images: learned by heart or not
    images = DataSet(
        name="snow", inputs_train=torch.rand(60, 2, 8, 8, generator=generator), labels_train=labels[:60],
        inputs_test=torch.rand(30, 2, 8, 8, generator=generator), labels_test=labels[60:], classes=3,
        class_names=tuple("abc"), citation="made for this test",
    )  # fmt: skip
    by_heart = Recipe(epochs=60, batch_size=10, learning_rate=0.01)
    case = Ensemble(
        name="snow", seed=0, models=4, targets=2, network="cnn", width=3, recipe=by_heart, pool=80
    )
    drawn = module._trainer(images, by_heart, case.network, case.width).drawn(generator)
    assert [one.out_channels for one in drawn.modules() if isinstance(one, torch.nn.Conv2d)] == [3, 6]  # fmt: skip
    found = run_case(case, images)
    assert found["references"] == 2 and min(found["attacks"]["loss"]["auc"]) > 0.8
    assert min(found["training_accuracy"]) > 0.9 > 0.6 > max(found["accuracy"])
    (figure,) = (one for one in module._of_ensemble(case, found) if one["name"] == "snow/loss/auc")
    assert figure["settings"]["network"] == "cnn, width 3" and figure["n"] == 2  # type: ignore[index]


# --- the whole


def made_up(case: module.Case) -> dict[str, object]:
    if isinstance(case, Ensemble):
        values = [0.9 + 0.001 * k for k in range(case.targets)]
        rates = {"auc": values, "tpr@0.1fpr": values, "tpr@0.01fpr": values}
        return {
            "attacks": dict.fromkeys(LATER, rates), "references": 32, "seconds": 1.0, "accuracy": values,
            "training_accuracy": values,
        }  # fmt: skip
    if isinstance(case, NullControl):
        counts = {"covered": 49, "everything": 48, "leaks": 1, "intervals": 600, "missed": 7}
        return {"audits": case.audits, **counts, "seconds": 1.0}
    outcome = {
        "members": 1600, "nonmembers": 1600, "found": 1500 + case.seed, "accused": 500, "accuracy": 0.8,
        "accuracy_interval": [0.78, 0.82], "auc": 0.9, "auc_interval": [0.88, 0.92],
    }  # fmt: skip
    terms = ("accuracy", "training_accuracy", "agrees")
    counts = ("shadow_records", "trained_on", "queries_for_shadow_data")
    by_policy = {policy.name: outcome for policy in case.policies}
    return {
        **dict.fromkeys(terms, 0.6), **dict.fromkeys(counts, 1600), "policies": by_policy, "seconds": 1.0,
    }  # fmt: skip


def test_figures_have_the_names_that_were_promised_and_finished_cases_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def some(todo, most=1000):
        for case in todo:
            if len(ran) == most:
                raise KeyboardInterrupt
            ran.append(case.key)
            yield case, made_up(case)

    assert REPRODUCTIONS["14"] is reproduce_membership
    opened: list[str] = []
    monkeypatch.setattr(module, "_data", opened.append)
    monkeypatch.setattr(module, "_side_by_side", lambda todo: some(todo, 3))
    effort = Effort(folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        reproduce_membership(effort)
    assert opened == [
        "cifar10",
        "digits",
        "location30",
    ]  # what is missing shows before anything runs
    monkeypatch.setattr(module, "_side_by_side", some)
    result = reproduce_membership(effort)
    assert len(ran) == len(set(ran)) == 2 + 4 * 2 + 4 + 4 + 2
    figures = {figure["name"]: figure for figure in result["figures"]}  # type: ignore[union-attr]
    assert figures.keys() == NAMES and json.dumps(result)

    shared = figures["location30/shared/shokri/precision"]
    each = [found / (found + 500) for found in (1500, 1501, 1502, 1503)]
    assert shared["here"] == pytest.approx(statistics.mean(each)) and shared["n"] == 4
    assert shared["interval"][0] < each[0] < each[3] < shared["interval"][1]
    assert shared["paper"] == 0.678 and shared["recalled"] and shared["better"] == "higher"
    noisy = figures["location30/shadow-data/noisy0.1/recall"]
    assert noisy["here"] == 1500 / 1600 and noisy["n"] == 3200
    assert noisy["interval"][0] < 1500 / 1600 < noisy["interval"][1]
    assert figures["location30/mitigation/top3/auc"]["better"] == "lower"
    assert figures["location30/mitigation/l2-0.001/auc"]["settings"]["recipe"]["weight_decay"] == 0.002  # fmt: skip
    null = figures["null-control/strongest-covers-chance"]
    assert (null["here"], null["n"]) == (0.98, 200)
    lira = figures["location30/lira-online/auc"]
    assert lira["n"] == 34 and lira["here"] == pytest.approx(0.9165)


def test_an_attack_that_accuses_nobody_has_no_precision() -> None:
    case = small()
    outcome = made_up(case)["policies"]["none"] | {"found": 0, "accused": 0}  # type: ignore[index]
    found = made_up(case) | {"policies": {"none": outcome}}
    figures = {one["name"]: one for one in module._of_attack(case.name, [(case, found)])}
    assert figures["location30/strict/shokri/precision"]["here"] is None
    assert figures["location30/strict/shokri/recall"]["here"] == 0
    assert json.dumps(list(figures.values()), allow_nan=False)


def test_a_quick_run_has_the_same_names_and_less_of_each() -> None:
    quick, usual, full = (cases(Effort(quick=q, full=f, seed=5)) for q, f in ((1, 0), (0, 0), (0, 1)))  # fmt: skip
    assert {case.name for case in quick} == {case.name for case in usual} == {case.name for case in full}  # fmt: skip
    assert len(quick) < len(usual) < len(full)
    strict = next(case for case in usual if case.name == "location30/strict")
    assert isinstance(strict, Shokri) and strict.policies == POLICIES
    assert strict.attack.shadows == 60 and strict.members == 1600
    assert len({case.key for case in full}) == len(full)
