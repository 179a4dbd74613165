"""The reproduction of the GAN insider on small stand-ins for its data: divisions, cases, figures, resuming."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tacit.audit import reproduce_gan as module
from tacit.audit.figures import Effort
from tacit.audit.gan_metrics import JudgeRecipe
from tacit.audit.reproduce import REPRODUCTIONS
from tacit.audit.reproduce_gan import (
    Case,
    cases,
    divide,
    figures,
    reproduce_gan,
    run_case,
    scaled,
)
from tacit.nn.data import DataSet, load
from tacit.training.selective_sgd import SelectiveSGD

OF = {"hit_rate", "junk_aware_hit_rate", "nn_ratio", "own_ratio"}
KINDS = {
    "two-party",
    "passive",
    "theta0.1",
    "theta_u0.1",
    "averaging",
    "federated-sgd",
    "secure-aggregation",
    "averaging/passive",
    "federated-sgd/passive",
}
KINDS |= {f"svt/epsilon_over_c{budget}" for budget in ("100", "10", "1", "0.1")}
KINDS |= {f"local-dp/noise{noise:g}" for noise in module._LOCAL_NOISE}
KINDS |= {f"user-level/noise{noise:g}" for noise in module._USER_NOISE}
WITH_EPSILON = {kind for kind in KINDS if kind.startswith(("svt", "local", "user"))}
NAMES = {f"mnist/{kind}/{of}" for kind in KINDS for of in OF | {"accuracy"}}
NAMES |= {f"mnist/{kind}/epsilon" for kind in WITH_EPSILON}
NAMES |= {f"mnist/gradient-ascent/{of}" for of in OF}
NAMES |= {
    f"mnist/visibility/{kind}/{of}"
    for kind in ("two-party", "averaging", "federated-sgd")
    for of in ("accuracy_lost", "update_norm_ratio", "fresh_bias_raised_more")
}
FACES = {f"att-faces/{of}" for of in OF | {"training_accuracy"}}


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load("digits")


def small(case: Case) -> Case:
    """A few rounds of small batches, with judges that have hardly learned."""
    scheme = case.scheme
    few = {"epochs": 6} if isinstance(scheme, SelectiveSGD) else {"rounds": 6}
    return replace(
        case, scheme=replace(scheme, **few, batch_size=8), judged=20, width=4,
        attack=replace(
            case.attack, start_round=3, steps=2, batch=8, injected=min(8, case.attack.injected), width=4
        ),
        judges=JudgeRecipe(steps=20, batch_size=32, width=4, generators=2, steps_of_each=4),
    )  # fmt: skip


def by_name(effort: Effort) -> dict[str, Case]:
    return {case.name: case for case in cases(effort)}


# --- who holds what


def test_the_insider_has_no_target_and_judges_have_nobody_s_records(digits: DataSet) -> None:
    found = by_name(Effort(full=True))
    for name in ("mnist/two-party", "mnist/averaging", "mnist/user-level/noise0"):
        case = replace(found[name], target=7)
        divided = divide(case, digits)
        held = [set(labels.tolist()) for _, labels in (s for s in divided.task.shards if s)]
        assert len(held) == case.participants and 7 not in held[-1]
        assert divided.task.classes == 11 and 10 not in set().union(*held)
        if case.alone:
            assert held[0] == {7} and all(7 not in one for one in held[1:])
        else:
            assert set().union(*held[:-1]) == {7, 8, 9, 0, 1} and held[-1] == {2, 3, 4, 5, 6}
        trained = {x.numpy().tobytes() for x, _ in divided.task.here().values() for x in x}
        judged = {x.numpy().tobytes() for x in divided.inside[0]}
        assert len(trained) + len(judged) > 1400 and not trained & judged
        assert len(divided.others) == int((digits.labels_test == 7).sum())


def faces() -> DataSet:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(40).repeat_interleave(10)
    inputs = torch.rand(400, 1, 20, 16, generator=generator)
    first = torch.arange(400) % 10 < 7
    return DataSet(
        name="att-faces", inputs_train=inputs[first], labels_train=labels[first], inputs_test=inputs[~first],
        labels_test=labels[~first], classes=40, class_names=tuple(map(str, range(40))), citation="made",
    )  # fmt: skip


def test_forty_people_and_an_insider_who_knows_one_of_them() -> None:
    case = next(case for case in cases(Effort(full=True)) if case.name == "att-faces")
    divided = divide(replace(case, target=39), faces())
    held = [labels.tolist() for _, labels in (s for s in divided.task.shards if s)]
    assert held == [[0] * 3, *([p] * 6 for p in range(1, 40)), [0] * 3]
    assert divided.task.input_shape == (1, 64, 64) and divided.task.classes == 41
    assert len(divided.inside[0]) == 160 and len(divided.tested[0]) == 240
    assert len(divided.others) == 4
    shared = {x.numpy().tobytes() for x in divided.tested[0]}
    assert len(shared) == 240 and not shared & {x.numpy().tobytes() for x in divided.inside[0]}


def test_images_are_scaled_by_means() -> None:
    flat = scaled(torch.full((1, 1, 112, 92), 0.3))
    assert flat.shape == (1, 1, 64, 64) and torch.allclose(flat, torch.tensor(0.3), atol=1e-6)


# --- cases


def test_full_has_all_digits_and_ten_faces_and_quick_no_faces() -> None:
    full, quick, usual = (cases(e) for e in (Effort(full=True), Effort(quick=True), Effort()))
    for name in ("mnist/two-party", "mnist/passive"):
        assert sorted(c.target for c in full if c.name == name) == list(range(10))
    assert len({c.target for c in full if c.name == "att-faces"}) == 10
    assert {c.name for c in quick} < {c.name for c in usual} - {"att-faces"}
    kinds = {c.name.split("/")[1] for c in usual if c.data == "mnist"}
    assert kinds - {c.name.split("/")[1] for c in quick} == {"theta0.1", "federated-sgd"}
    assert len({c.key for c in full}) == len(full)
    assert all(c.judged == 100 for c in quick)


ONE_OF_A_KIND = {
    c.name.split("/")[1]: c.name for c in reversed(cases(Effort())) if c.data == "mnist"
}


@pytest.mark.parametrize("name", ONE_OF_A_KIND.values(), ids=ONE_OF_A_KIND)
def test_a_case_of_each_kind_runs_and_gives_its_figures(name: str, digits: DataSet) -> None:
    case = small(by_name(Effort())[name])
    found = run_case(case, digits)
    again = json.loads(json.dumps(found, allow_nan=False))
    for of in OF:
        low, high = again[of]["interval"]
        assert low <= again[of]["value"] <= high
    assert again["began"] == 3 and 0 <= again["accuracy"] <= 1 and again["distinct"] <= 20
    if case.shown:
        real, last = again["pictures"][-1][0], again["pictures"][-2][0]
        assert len(real) == len(last) == 8 and 0 <= min(map(min, real)) < max(map(max, real)) <= 255
    assert again["norms"]["insider"] > 0 and again["norms"]["others"] > 0
    raising = again["raises_fresh"]
    assert raising["others"] < 0.1 and (raising["insider"] > 0.5) is (case.attack.injected > 0)
    named = {one["name"] for one in figures([(case, again)])}
    assert {f"{name}/{of}" for of in OF} <= named <= NAMES


def test_the_run_without_the_attack_is_the_passive_one(digits: DataSet) -> None:
    """What it sends is an honest one's, so that accuracy and norms tell what the attack changes."""
    found = by_name(Effort())
    passive, active = (small(replace(found[f"mnist/{n}"], target=3)) for n in ("passive", "two-party"))  # fmt: skip
    honest = passive.scheme.train(divide(passive, digits).task, coins=module.Coins.from_seed(b"x"))
    without, attacked = run_case(passive, digits), run_case(active, digits)
    tested = digits.inputs_test, digits.labels_test
    assert without["accuracy"] == module.accuracy(honest.output.value, *tested)
    made = {f["name"]: f for f in figures([(active, attacked), (passive, without)])}
    lost = made["mnist/visibility/two-party/accuracy_lost"]
    assert lost["here"] == pytest.approx(without["accuracy"] - attacked["accuracy"])
    low, high = lost["interval"]
    assert low < lost["here"] < high
    assert made["mnist/visibility/two-party/fresh_bias_raised_more"]["here"] > 0.5
    assert made["mnist/gradient-ascent/hit_rate"]["settings"]["distinct"] == [
        without["ascent"]["distinct"]
    ]


def test_training_that_diverges_is_an_outcome(digits: DataSet) -> None:
    case = small(by_name(Effort())["mnist/federated-sgd"])
    wild = replace(case, scheme=replace(case.scheme, learning_rate=1e30))
    found = run_case(wild, digits)
    assert "diverged in round" in found["diverged"] and found["accuracy"] == 0.0
    assert json.dumps(found, allow_nan=False)


def test_a_case_on_faces_runs() -> None:
    case = small(next(case for case in cases(Effort()) if case.name == "att-faces"))
    attack = replace(case.attack, start_accuracy=0.0, start_round=0, steps=1)
    scheme = replace(case.scheme, batch_size=1, epochs=1)
    judges = JudgeRecipe(steps=1, batch_size=64, width=2, pool=4, generators=1, steps_of_each=1)
    case = replace(case, scheme=scheme, attack=attack, judges=judges, judged=8)
    found = run_case(case, faces())
    assert found["chance"] == 1 / 40 and found["began"] == 0


# --- the reproduction


def made_up(case: Case, at: int) -> dict[str, Any]:
    def estimate(value: float) -> dict[str, Any]:
        return {"value": value, "interval": [value - 0.1, value + 0.1], "n": 500}

    rates = {of: estimate(0.5 + at / 1000) for of in OF}
    epsilon = [1.0 + at] if case.name.removeprefix("mnist/") in WITH_EPSILON else []
    more: dict[str, Any] = (
        {"ascent": rates | {"distinct": 50, "controls": {}}} if case.ascent else {}
    )
    if case.shown:
        more["pictures"] = [[[[0, 255], [128, 7]]] * 2] * 3
    return rates | more | {
        "distinct": 500, "controls": {}, "judge_accuracy": 0.9, "junk_aware_judge_accuracy": 0.9, "chance": 0.1,
        "accuracy": 0.8, "tested": 100, "norms": {"insider": 2.0, "others": 1.0},
        "raises_fresh": {"insider": 0.9, "others": 0.1}, "began": 3, "ended": None,
        "diverged": None,
        "confidence": 0.9, "epsilon": epsilon, "claims": [], "seconds": 1.0,
    }  # fmt: skip


def test_an_interrupted_reproduction_goes_on_and_gives_every_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def some(todo: list[Case], most: int = 1000) -> Any:
        for case in todo:
            if len(ran) == most:
                raise KeyboardInterrupt
            ran.append(case.key)
            yield case, made_up(case, len(ran))

    assert REPRODUCTIONS["2"] is reproduce_gan
    opened: list[str] = []
    monkeypatch.setattr(module, "load", opened.append)
    monkeypatch.setattr(module, "_side_by_side", lambda todo: some(todo, 3))
    effort = Effort(folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        reproduce_gan(effort)
    assert opened == ["att-faces", "mnist"]  # what is missing shows before anything runs
    monkeypatch.setattr(module, "_side_by_side", some)
    result = reproduce_gan(effort)
    assert len(ran) == len(set(ran)) == len(cases(effort))
    made: dict[str, Any] = {one["name"]: one for one in result["figures"]}  # type: ignore[attr-defined]
    assert made.keys() == NAMES | FACES and json.dumps(result, allow_nan=False)
    sheets = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert sheets.keys() == {"gan-att-faces-0.png", "gan-mnist-passive-1.png", "gan-mnist-two-party-1.png"}  # fmt: skip
    assert all(sheet.startswith(b"\x89PNG") for sheet in sheets.values())
    two = made["mnist/two-party/hit_rate"]
    assert two["n"] == 3 and two["better"] == "higher"
    assert two["settings"]["least"] == min(two["settings"]["by_target"])
    assert made["mnist/passive/junk_aware_hit_rate"]["better"] == "lower"
    assert made["mnist/two-party/nn_ratio"]["better"] == "lower"
    assert made["mnist/theta0.1/hit_rate"]["n"] == 500  # of one target: over its images
