"""The reproduction of secure aggregation on a small stand-in for MNIST: names, resuming, exactness, losses."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tacit.audit import reproduce_secure as module
from tacit.audit.figures import Effort
from tacit.audit.reproduce import REPRODUCTIONS, reproduce
from tacit.audit.reproduce_secure import (
    Case,
    Leakage,
    Mistakes,
    Sight,
    Training,
    cases,
    losses_of,
    reproduce_secure,
    run_case,
    task_of,
)
from tacit.audit.secure_mutants import MUTANTS
from tacit.core.errors import ConfigError, TacitWarning
from tacit.crypto.packing import packed_bytes
from tacit.nn.data import DataSet
from tacit.parties.roles import owners

FEW = MUTANTS[:3]
"""All are caught in `test_secure_view`."""
OF_A_TRAINING = {
    "accuracy",
    "unprotected/accuracy",
    "accuracy_minus_unprotected",
    "mean_error_over_bound",
    "clipped",
    "traffic_bytes",
}
NAMES = {
    *(f"mnist/n100/drop{d}/{name}" for d in ("0", "0.1", "0.3") for name in OF_A_TRAINING),
    *(
        f"mnist/leakage/{kind}{row}/reidentified"
        for kind in ("", "four-records/", "one-record/")
        for row in ("unprotected", "secure", "masked", "sabotaged")
    ),
    "view/limbs",
    "view/uniformity/p_value",
    "view/two_inputs/p_value",
    "view/unmasked/p_value",
    "view/checks_passed",
    *(f"mutants/{mutant.name}/caught" for mutant in FEW),
    "mutants/caught",
}


def small() -> DataSet:
    """Images of ten classes that differ in the place of a bright square."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(320) % 10
    inputs = 0.1 * torch.rand(320, 1, 12, 12, generator=generator)
    for row, label in enumerate(labels.tolist()):
        top, left = 6 * (label // 5), 2 * (label % 5)
        inputs[row, :, top : top + 4, left : left + 2] = 1
    return DataSet(
        name="mnist",
        inputs_train=inputs[:260],
        labels_train=labels[:260],
        inputs_test=inputs[260:],
        labels_test=labels[260:],
        classes=10,
        class_names=tuple("0123456789"),
        citation="made for this test",
    )


def tiny(case: Case) -> Case:
    """The same case with few members, records and rounds."""
    match case:
        case Training():
            protection = replace(case.protection, rounds=3, batch_size=5)
            return replace(case, participants=10, records=20, protection=protection)
        case Leakage():
            settings = replace(case.settings, owners=5, records=10, population=100, seeds=1)
            return replace(
                case, settings=settings, batch_size=min(2, case.batch_size), iterations=5
            )
        case Sight() | Mistakes():
            return replace(case, dimension=1_000)


@pytest.fixture(scope="module")
def results() -> dict[str, dict]:
    """What each part gives at that size, computed once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MUTANTS", FEW)
        return {case.key: run_case(tiny(case), small()) for case in cases(Effort(quick=True))}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, results: dict[str, dict]) -> list[str]:
    """Cases that are finished at once; the list tells which were run."""
    ran: list[str] = []

    def in_process(todo):
        for case in todo:
            ran.append(case.name)
            yield case, results[case.key]

    monkeypatch.setattr(module, "MUTANTS", FEW)
    monkeypatch.setattr(module, "_mnist", small)
    monkeypatch.setattr(module, "_side_by_side", in_process)
    return ran


def test_every_figure_that_is_promised_has_its_name_an_interval_and_its_settings(stand_in) -> None:
    result = reproduce("6", Effort(quick=True))
    figures = {f["name"]: f for f in result["figures"]}
    assert figures.keys() == NAMES and len(figures) == len(result["figures"])
    for figure in figures.values():
        low, high = figure["interval"]
        assert low <= figure["here"] <= high and figure["settings"] and figure["n"] > 0
        assert figure["paper"] is None
    assert result["paper"] == 6 and result["seeded"] is True and result["quick"] is True
    json.dumps(result, allow_nan=False)


def test_sums_are_as_exact_as_is_stated_and_cost_no_accuracy(stand_in) -> None:
    figures = {f["name"]: f for f in reproduce_secure(Effort(quick=True))["figures"]}
    for dropped in ("0", "0.1", "0.3"):
        path = f"mnist/n100/drop{dropped}"
        assert 0 < figures[f"{path}/mean_error_over_bound"]["here"] <= 1
        assert figures[f"{path}/clipped"]["here"] == 0
        low, high = figures[f"{path}/accuracy_minus_unprotected"]["interval"]
        assert low <= 0 <= high
        assert figures[f"{path}/accuracy"]["here"] > 0.5


def test_the_attack_wins_without_masks_and_finds_nothing_in_masked_updates(stand_in) -> None:
    figures = {f["name"]: f for f in reproduce_secure(Effort(quick=True))["figures"]}
    path = "mnist/leakage/one-record"
    for row in ("unprotected", "sabotaged"):
        found = figures[f"{path}/{row}/reidentified"]
        assert found["here"] > 0.8 and found["settings"]["verdict"] == "leaks"
    masked = figures[f"{path}/masked/reidentified"]
    assert masked["here"] < 0.3 and masked["settings"]["error"] is None
    assert "means of several owners' updates" not in masked["settings"]["saw"]


def test_the_view_passes_and_every_mistake_is_caught(stand_in) -> None:
    figures = {f["name"]: f for f in reproduce_secure(Effort(quick=True))["figures"]}
    assert figures["view/checks_passed"]["here"] == figures["view/checks_passed"]["n"]
    assert figures["view/uniformity/p_value"]["here"] > 1e-6
    assert figures["view/unmasked/p_value"]["here"] < 1e-6
    assert figures["mutants/caught"]["here"] == len(FEW)
    assert all(figures[f"mutants/{m.name}/caught"]["here"] == 1 for m in FEW)


def test_a_client_sends_its_packed_vector_and_little_more(results) -> None:
    case = next(case for case in cases(Effort(quick=True)) if isinstance(case, Training))
    found = results[case.key]
    vector = packed_bytes(found["parameters"] + 2, 20)  # 10 clients, 16 bits
    assert vector < found["traffic"]["sent"] < vector + 10 * 120 + 400
    assert found["unprotected_traffic"]["sent"] > 4 * found["parameters"]


def test_the_default_trains_longer_on_the_same_names() -> None:
    quick, default = cases(Effort(quick=True, seed=5)), cases(Effort(seed=5))
    assert [case.name for case in quick] == [case.name for case in default]
    assert all(case.seed == 5 for case in default)
    assert len({case.key for case in (*quick, *default)}) == 2 * len(quick) - 1  # mutants
    sight = next(case for case in default if isinstance(case, Sight))
    assert 6 * 3 * sight.dimension >= 1e6


def test_who_is_cut_off_changes_from_round_to_round_and_is_the_stated_share() -> None:
    case = next(c for c in cases(Effort()) if isinstance(c, Training) and c.dropped == 0.3)
    losses = losses_of(case)
    assert len(losses) == case.protection.rounds
    assert all(len(set(one)) == 30 and set(one) <= set(owners(100)) for one in losses)
    assert losses[0] != losses[1] and losses == losses_of(case)
    assert losses != losses_of(replace(case, seed=1))


def test_clients_hold_disjoint_parts_and_too_many_are_refused() -> None:
    case = tiny(next(c for c in cases(Effort()) if isinstance(c, Training)))
    task = task_of(case, small())
    rows = [{record.numpy().tobytes() for record in inputs} for inputs, _ in task.shards]
    assert len(set.union(*rows)) == 200 and all(len(own) == 20 for own in rows)
    with pytest.raises(ConfigError, match="records each need more"):
        task_of(replace(case, records=100), small())


def test_a_wrong_mean_and_limited_values_show(monkeypatch: pytest.MonkeyPatch) -> None:
    case = tiny(next(c for c in cases(Effort()) if isinstance(c, Training)))
    narrow = replace(case, protection=replace(case.protection, clip=0.01))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TacitWarning)
        found = run_case(narrow, small())
    assert found["clipped"] > 0.01 and found["mean_error_over_bound"] <= 1
    honest = module._error_over_bound

    def off_by_two_steps(found, work, agreement, lost):
        step = 2 * agreement.quantiser.step
        return honest(replace(found, mean=found.mean + np.float64(step)), work, agreement, lost)

    monkeypatch.setattr(module, "_error_over_bound", off_by_two_steps)
    assert run_case(case, small())["mean_error_over_bound"] > 1


def test_finished_parts_are_kept_and_not_run_again(
    stand_in, results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = reproduce_secure(Effort(quick=True, folder=tmp_path / "a"))
    count = len(stand_in)

    def stops(todo):
        for done, case in enumerate(todo):
            if done == 3:
                raise KeyboardInterrupt
            yield case, results[case.key]

    with monkeypatch.context() as patch:
        patch.setattr(module, "_side_by_side", stops)
        with pytest.raises(KeyboardInterrupt):
            reproduce_secure(Effort(quick=True, folder=tmp_path / "b"))
    stand_in.clear()
    said: list[str] = []
    resumed = reproduce_secure(Effort(quick=True, folder=tmp_path / "b", progress=said.append))
    assert len(stand_in) == count - 3 and said[0].startswith("3 of ")
    assert resumed["figures"] == whole["figures"]


def test_bad_requests_are_typed_errors() -> None:
    assert "6" in REPRODUCTIONS
    with pytest.raises(ConfigError, match="no --full"):
        reproduce("6", Effort(full=True))
    case = tiny(next(c for c in cases(Effort()) if isinstance(c, Training)))
    with pytest.raises(ConfigError, match="raise session_rounds"):
        run_case(replace(case, protection=replace(case.protection, session_rounds=1)), small())
