"""The reproduction of SecureML on a small stand-in for MNIST: names, resuming, and the plain run beside each training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tacit.audit import reproduce_two_server as module
from tacit.audit.figures import Effort
from tacit.audit.reproduce import REPRODUCTIONS
from tacit.audit.reproduce_two_server import Case, cases, reproduce_two_server, run_case
from tacit.core.errors import PeerDropped
from tacit.nn.data import DataSet
from tacit.parties.links.link import Shape
from tacit.training.two_server import Preprocessing

TRAINED = (
    "nn/squared-error", "nn/squared-error/f16", "nn/relu-sum", "nn/relu-sum/f16", "logistic-0", "linear-0",
)  # fmt: skip
OF_A_TRAINING = (
    "accuracy", "plain_accuracy", "accuracy_less_plain", "online_s", "offline_s", "online_bytes", "online_rounds",
    "offline_bytes", "plain_s", "expected_failures",
)  # fmt: skip
NAMES = {
    *(f"mnist/{case}/{name}" for case in TRAINED for name in OF_A_TRAINING),
    *(f"mnist/nn/squared-error/{name}/online_s_extrapolated" for name in ("lan", "wan")),
    *(
        f"mnist/nn/squared-error/transfers/{name}_{of}"
        for name in ("offline_s", "offline_bytes", "online_s")
        for of in ("a_step", "an_epoch_extrapolated")
    ),
}


def small() -> DataSet:
    """Images of ten classes that differ in the place of a bright square."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(480) % 10
    inputs = 0.1 * torch.rand(480, 1, 8, 8, generator=generator)
    for row, label in enumerate(labels.tolist()):
        top, left = 4 * (label // 5), label % 5
        inputs[row, :, top : top + 4, left : left + 2] = 1
    return DataSet(
        name="mnist", inputs_train=inputs[:320], labels_train=labels[:320], inputs_test=inputs[320:],
        labels_test=labels[320:], classes=10, class_names=tuple("0123456789"), citation="made for this test",
    )  # fmt: skip


def tiny(case: Case) -> Case:
    """The same case with few records."""
    return replace(
        case, protection=replace(case.protection, batch_size=32), records=min(case.records, 320)
    )


@pytest.mark.parametrize("number", range(6))
def test_a_training_between_processes_is_as_right_as_the_plain_one(number: int) -> None:
    case = tiny(cases(Effort(quick=True))[number])
    case = replace(case, protection=replace(case.protection, epochs=6))
    found = run_case(case, Effort(), small())
    assert found["steps"] == 60
    assert abs(found["accuracy"] - found["plain_accuracy"]) <= 0.05
    assert found["accuracy"] > 0.85
    assert 0 < found["expected_failures"] < 1e-3
    assert found["online_bytes"] > 10_000 and found["offline_bytes"] > 10_000
    assert found["online_s"] > 0 and found["offline_s"] > 0


def test_a_network_that_delays_is_waited_for() -> None:
    case = tiny(next(case for case in cases(Effort(quick=True)) if case.name.endswith("/wan")))
    case = replace(
        case, shape=Shape(delay=0.01), protection=replace(case.protection, epochs=1), records=64
    )
    found = run_case(case, Effort(), small())
    assert "plain_accuracy" not in found
    assert found["online_s"] > 0.01 * found["online_rounds"]


def test_what_transfers_cost_is_told_apart() -> None:
    case = next(case for case in cases(Effort(quick=True)) if case.name.endswith("/transfers"))
    assert case.protection.preprocessing is Preprocessing.TRANSFERS
    found = run_case(replace(tiny(case), records=8), Effort(), small())
    assert found["steps"] == 1
    assert found["offline_bytes"] > 20 * found["online_bytes"]
    assert found["offline_s"] > found["online_s"]


def stand_in(case: Case, effort: Effort, data: DataSet | None = None) -> dict[str, float]:
    found = dict.fromkeys(
        ("online_s", "offline_s", "online_bytes", "offline_bytes", "online_rounds", "plain_s", "expected_failures"), 2.0
    )  # fmt: skip
    steps = (
        10 if case.shape else 3 if case.protection.preprocessing is Preprocessing.TRANSFERS else 45
    )
    return {"accuracy": 0.9, "plain_accuracy": 0.875, "tested": 160, "steps": steps, **found}


def test_figures_have_the_names_that_were_promised_and_finished_cases_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert REPRODUCTIONS["5"] is reproduce_two_server
    ran: list[str] = []

    def failing(case: Case, effort: Effort, data: DataSet | None = None) -> dict[str, float]:
        if case.name == "logistic-0" and "logistic-0" not in ran:
            ran.append(case.name)
            raise PeerDropped("a process was killed")
        ran.append(case.name)
        return stand_in(case, effort, data)

    monkeypatch.setattr(module, "_mnist", small)
    monkeypatch.setattr(module, "run_case", failing)
    effort = Effort(quick=True, folder=tmp_path)
    with pytest.raises(PeerDropped):
        reproduce_two_server(effort)
    result = reproduce_two_server(effort)
    assert ran.count("nn/squared-error") == 1 and ran.count("logistic-0") == 2
    figures = {figure["name"]: figure for figure in result["figures"]}  # type: ignore[union-attr]
    assert figures.keys() == NAMES
    assert json.dumps(result)
    epoch = figures["mnist/nn/squared-error/transfers/offline_s_an_epoch_extrapolated"]
    assert epoch["here"] == pytest.approx(2.0 / 3 * 15) and epoch["settings"]["sample_steps"] == 3
    assert figures["mnist/nn/squared-error/wan/online_s_extrapolated"]["here"] == pytest.approx(9.0)
    assert figures["mnist/nn/squared-error/accuracy_less_plain"]["here"] == pytest.approx(0.025)


def test_the_seed_is_in_every_case_and_full_size_is_that_of_the_paper() -> None:
    whole = {case.name: case for case in cases(Effort(seed=3))}
    assert {case.seed for case in whole.values()} == {3}
    for name in TRAINED[:4]:
        protection = whole[name].protection
        assert whole[name].records == 60_000
        assert (protection.epochs, protection.batch_size) == (15, 128)
        assert protection.fraction == (16 if name.endswith("f16") else 13)
