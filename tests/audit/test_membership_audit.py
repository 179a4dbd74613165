"""`tacit.audit` on models it has never seen: a right report, or a typed error, and no leak where there is none."""

from __future__ import annotations

import json
import time
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

import tacit
from tacit.audit.audited_data import SavedScores
from tacit.audit.membership_audit import ATTACKS
from tacit.core.errors import (
    BudgetExhausted,
    ConfigError,
    DataError,
    NotEnoughEvidence,
    OutputError,
    TacitWarning,
    UnknownName,
)
from tacit.nn.data import DataSet, load
from tacit.nn.networks import mlp
from tacit.nn.stacked import Recipe, Trainer, logits_of

RECIPE = Recipe(epochs=40, batch_size=32, learning_rate=0.01)
NETWORK = mlp((64,), (32,), 10, generator=torch.Generator().manual_seed(0))


@cache
def _digits() -> DataSet:
    return load("digits")


def digits(*parts: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Disjoint random parts of the digits, as rows, with a third of the labels wrong: nobody learns those but by heart."""
    data = _digits()
    inputs = torch.cat([data.inputs_train, data.inputs_test]).flatten(1)
    labels = torch.cat([data.labels_train, data.labels_test])
    drawn = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(labels), generator=drawn) < 1 / 3
    labels = torch.where(wrong, torch.randint(10, labels.shape, generator=drawn), labels)
    order = torch.randperm(len(inputs), generator=drawn)
    return [(inputs[at], labels[at]) for at in order[: sum(parts)].split(list(parts))]


def trained(records: tuple[torch.Tensor, torch.Tensor], seed: int = 1) -> torch.nn.Module:
    return Trainer(network=NETWORK, recipe=RECIPE)(*records, torch.Generator().manual_seed(seed))


def breast_cancer(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    data = load_breast_cancer()
    inputs = StandardScaler().fit_transform(data.data)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed)).numpy()
    return inputs[order].astype(np.float32), data.target[order].astype(np.int64)


def by_name(report: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one for one in report["attacks"]}


# --- right reports


@pytest.fixture(scope="module")
def leaking() -> tuple[dict[str, Any], Any]:
    members, nonmembers, population = digits(300, 300, 200)
    report = tacit.audit(
        trained(members),
        members=members,
        nonmembers=nonmembers,
        population=population,
        train_fn=RECIPE,
        shadows=8,
    )
    return report, (members, nonmembers)


def test_a_model_that_learned_by_heart_leaks_and_reference_models_see_it_best(leaking: Any) -> None:
    report, _ = leaking
    assert report["verdict"] == "leaks"
    attacks = by_name(report)
    assert set(attacks) == {attack.name for attack in ATTACKS} - {"saved-scores"}
    assert report["left_out"] == []
    area = {name: one["metrics"]["auc"]["value"] for name, one in attacks.items()}
    assert area["loss"] > 0.65
    assert max(area["lira-online"], area["student-lira-online"]) > area["loss"]
    assert area["label-gap"] > 0.6
    assert report["strongest"] in {
        "lira-online",
        "student-lira-online",
        "rmia-online",
        "rmia-offline",
        "reference",
    }
    assert report["shadows"]["models"] == 8
    assert report["shadows"]["inside_each"] == 300
    assert report["shadows"]["control"]["p_value"] <= 0.05
    json.dumps(report, allow_nan=False)


def test_accuracies_queries_and_figures_are_those_of_the_model(leaking: Any) -> None:
    report, (members, nonmembers) = leaking
    model = trained(members)
    for name, (inputs, labels) in (("members", members), ("nonmembers", nonmembers)):
        right = (model(inputs).argmax(1) == labels).double().mean().item()
        assert report["target"]["accuracy"][name]["value"] == pytest.approx(right)
    loss = -torch.nn.functional.cross_entropy(
        model(torch.cat([members[0], nonmembers[0]])),
        torch.cat([members[1], nonmembers[1]]),
        reduction="none",
    )
    inside, outside = loss[:300], loss[300:]
    area = (inside[:, None] > outside).double().mean() + (
        inside[:, None] == outside
    ).double().mean() / 2
    assert by_name(report)["loss"]["metrics"]["auc"]["value"] == pytest.approx(
        area.item(), abs=1e-4
    )
    # Each of 600 once for the answers; 17 times for flips or noise; 200 of the population; 64 features and one.
    assert by_name(report)["loss"]["queries"] == 600
    assert report["budget"]["queries_spent"] == 600 + 200 + 600 * 17 + 65
    tails = by_name(report)["loss"]["metrics"]
    assert tails["tpr@0.1fpr"]["p_value"] < 0.01
    assert tails["tpr@0.01fpr"] == {
        "value": None,
        "interval": None,
        "needs": 1000,
        "why": "needs 1000 non-members, 300 came",
    }


def test_the_report_tells_classes_and_whom_to_look_at(leaking: Any) -> None:
    report, (members, _) = leaking
    assert set(report["classes"]) == {f"class {k}" for k in range(10)}
    first = report["exposed"][0]
    assert len(report["exposed"]) == 20
    assert first["label"] == int(members[1][first["record"]])
    assert first["at_most"] >= first["false_positive_rate"]
    assert report["epsilon"]["value"] > 0
    assert len(report["paragraphs"]) == 4


def test_a_model_trained_without_either_set_shows_nothing() -> None:
    own, members, nonmembers = digits(300, 300, 300, seed=3)
    report = tacit.audit(
        trained(own), members=members, nonmembers=nonmembers, train_fn=RECIPE, shadows=8
    )
    assert report["verdict"] == "nothing-found"
    for one in report["attacks"]:
        low, high = one["metrics"]["auc"]["interval"]
        assert low <= 0.5 <= high
    assert "better than guessing" in report["paragraphs"][1]
    assert report["epsilon"]["value"] < 0.2


def test_a_classifier_of_another_library_is_audited_by_its_predict_proba() -> None:
    inputs, labels = breast_cancer()
    labels = np.where(np.arange(569) % 5 == 0, 1 - labels, labels)

    def fitted(x: Any, y: Any, seed: int) -> MLPClassifier:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return MLPClassifier(
                (64,), max_iter=150, learning_rate_init=0.01, random_state=seed
            ).fit(x, y)

    def train_fn(x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> Any:
        return fitted(x.numpy(), y.numpy(), generator.initial_seed() % 2**31).predict_proba

    members, nonmembers, own = (
        (inputs[at], labels[at]) for at in np.split(np.arange(569), [190, 380])
    )
    report = tacit.audit(
        fitted(*members, 0).predict_proba,
        members=members,
        nonmembers=nonmembers,
        train_fn=train_fn,
        shadows=4,
    )
    assert (report["target"]["kind"], report["target"]["gives"]) == ("callable", "probabilities")
    assert report["verdict"] == "leaks"
    assert report["data"]["classes"] == 2
    without = tacit.audit(fitted(*own, 0).predict_proba, members=members, nonmembers=nonmembers)
    assert without["verdict"] == "nothing-found"
    left = {one["name"]: one["why"] for one in without["left_out"]}
    assert "train_fn" in left["lira-online"] and "population" in left["population"]
    assert "saved-scores" not in left


def test_saved_answers_and_saved_scores_give_the_same_figures_as_asking(leaking: Any) -> None:
    report, (members, nonmembers) = leaking
    model = trained(members)
    answers = [
        torch.softmax(model(x).detach().double(), 1).numpy() for x, _ in (members, nonmembers)
    ]
    saved = SavedScores(
        members=answers[0],
        nonmembers=answers[1],
        member_labels=members[1].numpy(),
        nonmember_labels=nonmembers[1].numpy(),
    )
    again = tacit.audit(saved)
    assert again["target"]["kind"] == "answers"
    for name in ("loss", "entropy", "label-gap", "modified-entropy"):
        here, there = (by_name(one)[name]["metrics"]["auc"]["value"] for one in (again, report))
        assert here == pytest.approx(there, abs=1e-4)
    assert (
        "asked again" in {one["name"]: one["why"] for one in again["left_out"]}["label-robustness"]
    )
    scores = [
        np.log(own[np.arange(300), of[1].numpy()])
        for own, of in zip(answers, (members, nonmembers), strict=True)
    ]
    alone = tacit.audit(SavedScores(members=scores[0], nonmembers=scores[1]))
    assert [one["name"] for one in alone["attacks"]] == ["saved-scores"]
    loss = by_name(report)["loss"]["metrics"]["auc"]
    assert alone["attacks"][0]["metrics"]["auc"]["value"] == pytest.approx(loss["value"], abs=1e-4)
    assert alone["verdict"] == "leaks"


def test_a_function_may_be_compared_with_modules_and_a_module_with_functions() -> None:
    members, nonmembers = digits(100, 100, seed=13)
    model, made = trained(members), Trainer(network=NETWORK, recipe=RECIPE)

    def function(model: torch.nn.Module) -> Any:
        return lambda x: torch.softmax(model(torch.from_numpy(x)), 1).detach().numpy()

    def give_function(x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> Any:
        return function(made(x, y, generator))

    areas = [
        by_name(
            tacit.audit(target, members=members, nonmembers=nonmembers, train_fn=train_fn, shadows=4)
        )["lira-online"]["metrics"]["auc"]["value"]
        for target, train_fn in (
            (model, made), (function(model), made.__call__), (function(model), give_function),
        )
    ]  # fmt: skip
    assert areas[1:] == pytest.approx(areas[:1] * 2, abs=5e-3)


def test_saved_answers_of_reference_models_are_used(leaking: Any) -> None:
    del leaking
    members, nonmembers = digits(200, 200, seed=4)
    pool, labels = (torch.cat(pair) for pair in zip(members, nonmembers, strict=True))
    trainer = Trainer(network=NETWORK, recipe=RECIPE)
    generators = [torch.Generator().manual_seed(k) for k in range(4)]
    rows = [torch.randperm(400, generator=torch.Generator().manual_seed(k))[:200] for k in range(4)]
    stack = trainer.together(pool, labels, rows, generators)
    inside = np.zeros((4, 400), np.bool_)
    for k, row in enumerate(rows):
        inside[k, row.numpy()] = True
    saved = SavedScores(
        members=trained(members)(members[0]).detach().numpy(),
        nonmembers=trained(members)(nonmembers[0]).detach().numpy(),
        member_labels=members[1].numpy(),
        nonmember_labels=nonmembers[1].numpy(),
        gives="logits",
        references=logits_of(stack, pool, 4).detach().numpy(),
        inside=inside,
    )
    report = tacit.audit(saved)
    assert {"lira-online", "rmia-online", "shadow-models"} <= set(by_name(report))
    assert report["shadows"]["models"] == 4
    assert report["verdict"] == "leaks"


def test_labels_alone_leave_the_attacks_on_labels() -> None:
    members, nonmembers = digits(200, 200, seed=5)
    model = trained(members)
    report = tacit.audit(
        lambda x: model(torch.from_numpy(x)).argmax(1).numpy(),
        members=members,
        nonmembers=nonmembers,
        gives="labels",
    )
    assert set(by_name(report)) == {"label-gap", "label-robustness"}
    assert {one["why"] for one in report["left_out"] if one["name"] == "loss"} == {
        "needs scores: the target gives labels alone"
    }
    assert report["verdict"] == "leaks"


def test_the_null_control_covers_chance_in_200_audits() -> None:
    """Models that saw neither set: each attack's interval, and the strongest one's above all, covers chance."""
    size, count = 40, 200
    pools = [digits(size, size, size, seed=seed) for seed in range(100, 100 + count)]
    inputs = torch.cat([pool[0][0] for pool in pools])
    labels = torch.cat([pool[0][1] for pool in pools])
    rows = [torch.arange(k * size, (k + 1) * size) for k in range(count)]
    generators = [torch.Generator().manual_seed(k) for k in range(count)]
    network = mlp((64,), (16,), 10, generator=torch.Generator().manual_seed(0))
    recipe = Recipe(epochs=20, batch_size=20, learning_rate=0.02)
    stack = Trainer(network=network, recipe=recipe).together(inputs, labels, rows, generators)
    asked = torch.stack([torch.cat([pool[1][0], pool[2][0]]) for pool in pools])
    covered = called = 0
    for k, (_, members, nonmembers) in enumerate(pools):
        answers = logits_of(stack, asked[k], count)[k].detach().numpy()
        saved = SavedScores(
            members=answers[:size],
            nonmembers=answers[size:],
            member_labels=members[1].numpy(),
            nonmember_labels=nonmembers[1].numpy(),
            gives="logits",
        )
        report = tacit.audit(saved)
        called += report["verdict"] == "leaks"
        best = max(report["attacks"], key=lambda one: one["metrics"]["auc"]["value"])
        low, high = best["metrics"]["auc"]["interval"]
        covered += low <= 0.5 <= high
    assert covered >= 0.9 * count
    assert called <= 0.1 * count


# --- budgets, folders, limits


def test_queries_too_few_for_all_audit_some_and_say_so() -> None:
    members, nonmembers = digits(200, 100, seed=6)
    with pytest.warns(TacitWarning, match="60 of 200 members and 30 of 100 non-members"):
        report = tacit.audit(trained(members), members=members, nonmembers=nonmembers, queries=90)
    assert (report["data"]["members"], report["data"]["nonmembers"]) == (60, 30)
    assert report["budget"]["queries_spent"] == 90
    left = {one["name"]: one["why"] for one in report["left_out"]}
    assert "0 of 90 left" in left["label-robustness"]
    with pytest.raises(BudgetExhausted, match="2 of each are needed"):
        tacit.audit(trained(members), members=members, nonmembers=nonmembers, queries=4)


def test_seconds_stop_the_training_of_reference_models_and_later_attacks() -> None:
    members, nonmembers = digits(100, 100, seed=17)
    calls = 0

    def slow(inputs: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> Any:
        nonlocal calls
        calls += 1
        time.sleep(0.05)
        return Trainer(network=NETWORK, recipe=Recipe(epochs=5, batch_size=50, learning_rate=0.01))(
            inputs, labels, generator
        )

    with pytest.warns(TacitWarning, match=r"of 400 reference models were trained"):
        report = tacit.audit(
            trained(members),
            members=members,
            nonmembers=nonmembers,
            train_fn=slow,
            shadows=400,
            seconds=2.5,
            attacks=["loss", "lira-online"],
        )
    assert calls == report["shadows"]["models"] < 400
    assert calls % 2 == 0
    assert report["seconds"] < 10


def test_a_folder_holds_the_report_and_an_interrupted_audit_goes_on(tmp_path: Any) -> None:
    members, nonmembers = digits(100, 100, seed=8)
    made = Trainer(network=NETWORK, recipe=Recipe(epochs=5, batch_size=50, learning_rate=0.01))
    calls = 0

    def train_fn(inputs: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return made(inputs, labels, generator)

    def run(**more: Any) -> dict[str, Any]:
        return tacit.audit(
            trained(members),
            members=members,
            nonmembers=nonmembers,
            train_fn=train_fn,
            shadows=6,
            out=tmp_path / "a",
            **more,
        )

    with pytest.raises(KeyboardInterrupt):
        run()
    report = run()
    assert calls == 4 + 3  # three were finished, the fourth is trained anew
    assert json.loads((tmp_path / "a" / "report.json").read_text())["verdict"] == report["verdict"]
    assert "<html" in (tmp_path / "a" / "report.html").read_text()
    with pytest.raises(OutputError, match="holds a report already"):
        run()
    again = run(overwrite=True)
    assert calls == 7  # nothing was trained anew
    for old, new in zip(report["attacks"], again["attacks"], strict=True):
        assert old["metrics"] == new["metrics"]


def test_limits_are_judged_and_refused_where_the_records_are_too_few(tmp_path: Path) -> None:
    members, nonmembers = digits(200, 200, seed=9)
    report = tacit.audit(
        trained(members),
        members=members,
        nonmembers=nonmembers,
        fail_above=["auc=0.55", "tpr@0.1fpr=0.99", "tpr@0.05fpr=0.05"],
    )
    assert [one["exceeded"] for one in report["limits"]] == [True, False, True]
    assert "tpr@0.05fpr" in report["attacks"][0]["metrics"]

    with pytest.raises(NotEnoughEvidence, match="no attack gave auc"):
        tacit.audit(
            trained(members), members=members, nonmembers=nonmembers, attacks=["lira-online"], fail_above=["auc=0.55"],
            out=tmp_path,
        )  # fmt: skip
    assert json.loads((tmp_path / "report.json").read_text())["limits"][0]["value"] is None

    def never(x: Any) -> Any:
        raise AssertionError("asked before the limit was looked at")

    with pytest.raises(NotEnoughEvidence, match="1000 non-members, 200 came"):
        tacit.audit(never, members=members, nonmembers=nonmembers, fail_above=["tpr@0.01fpr=0.05"])


# --- bad input


def test_a_train_fn_that_ignores_its_records_is_told() -> None:
    members, nonmembers = digits(150, 150, seed=10)
    made = Trainer(network=NETWORK, recipe=RECIPE)
    fixed = trained(members)
    with pytest.raises(ConfigError, match="must train on the records it is given"):
        tacit.audit(
            fixed, members=members, nonmembers=nonmembers, train_fn=lambda x, y, g: fixed, shadows=4
        )
    with pytest.warns(TacitWarning, match="ignores the records"):
        report = tacit.audit(
            fixed,
            members=members,
            nonmembers=nonmembers,
            train_fn=lambda x, y, g: made(*members, g),
            shadows=6,
        )
    assert report["shadows"]["control"]["p_value"] > 0.05


def test_what_cannot_be_audited_is_refused_with_what_to_do() -> None:
    members, nonmembers = digits(60, 60, seed=11)
    model = trained(members)
    with pytest.raises(ConfigError, match="members and nonmembers expected"):
        tacit.audit(model, members=members)
    with pytest.raises(UnknownName, match="lira-online"):
        tacit.audit(model, members=members, nonmembers=nonmembers, attacks=["lyra-online"])
    with pytest.raises(ConfigError, match="names of 10 classes expected, 2 came"):
        tacit.audit(model, members=members, nonmembers=nonmembers, class_names=["a", "b"])
    with pytest.raises(ConfigError, match="even number of at least 4"):
        tacit.audit(model, members=members, nonmembers=nonmembers, shadows=5)
    with pytest.raises(ConfigError, match="train_fn as a function expected"):
        tacit.audit(
            lambda x: torch.softmax(model(torch.from_numpy(x)), 1).detach().numpy(),
            members=members,
            nonmembers=nonmembers,
            train_fn=RECIPE,
        )
    for odd in (torch.nn.Linear(64, 1), torch.nn.Sequential(model, torch.nn.Softmax(1))):
        binary = tuple((x, (y > 4).long()) for x, y in (members, nonmembers))
        with pytest.raises(ConfigError, match=r"logits \(n, classes\) expected with a recipe"):
            tacit.audit(
                odd, members=binary[0], nonmembers=binary[1], train_fn=RECIPE,
                gives="probabilities" if isinstance(odd, torch.nn.Sequential) else None,
            )  # fmt: skip
    with pytest.raises(DataError, match="logits"):
        tacit.audit(
            lambda x: model(torch.from_numpy(x)).detach().numpy(),
            members=members,
            nonmembers=nonmembers,
        )
    with pytest.raises(ConfigError, match=r"labels 0 to 9"):
        tacit.audit(model, members=(members[0], members[1] + 5), nonmembers=nonmembers)
    with pytest.raises(NotEnoughEvidence, match="at least 2 members"):
        tacit.audit(model, members=(members[0][:1], members[1][:1]), nonmembers=nonmembers)
    with pytest.raises(ConfigError, match="saved scores alone"):
        tacit.audit(SavedScores(members=np.zeros(5), nonmembers=np.zeros(5)), members=members)


def test_overlap_and_shift_are_warned_of_and_a_shift_is_no_leak() -> None:
    own, members, nonmembers = digits(300, 300, 300, seed=12)
    shifted = (nonmembers[0] * 0.5 + 0.3, nonmembers[1])
    with pytest.warns(TacitWarning, match="without the model"):
        report = tacit.audit(trained(own), members=members, nonmembers=shifted)
    assert report["verdict"] == "inconclusive"
    doubled = (
        torch.cat([nonmembers[0], members[0][:7]]),
        torch.cat([nonmembers[1], members[1][:7]]),
    )
    with pytest.warns(TacitWarning, match="7"):
        report = tacit.audit(trained(own), members=members, nonmembers=doubled)
    assert any("7" in text for text in report["warnings"])
