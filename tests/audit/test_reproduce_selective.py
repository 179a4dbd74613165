"""The reproduction of selective SGD on a small stand-in for MNIST: names, resuming, bytes, intervals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tacit.audit import reproduce_selective as module
from tacit.audit.figures import Effort
from tacit.audit.reproduce import REPRODUCTIONS, reproduce
from tacit.audit.reproduce_selective import Case, cases, reproduce_selective, run_case, task_of
from tacit.core.errors import ConfigError, OutputError
from tacit.nn.data import DataSet

NAMES = {
    "mnist/alone/accuracy",
    "mnist/alone-longer/accuracy",
    "mnist/n30/theta0.1/gain_over_alone-longer",
    "mnist/centralised/accuracy",
    "mnist/n30/theta1/accuracy",
    "mnist/n30/theta0.1/accuracy",
    "mnist/n30/theta0.01/accuracy",
    "mnist/n30/theta0.1/gain_over_alone",
    "mnist/n30/theta0.1/upload_bytes",
    "mnist/n30/svt/epsilon_over_c10/accuracy",
    "mnist/n30/svt/epsilon_over_c10/composed_epsilon",
}


def small() -> DataSet:
    """Images of the size of MNIST's, of ten classes that differ in the place of a bright square."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 10
    inputs = 0.1 * torch.rand(80, 1, 28, 28, generator=generator)
    for row, label in enumerate(labels.tolist()):
        inputs[
            row,
            :,
            5 * (label // 5) + 8 : 5 * (label // 5) + 12,
            5 * (label % 5) : 5 * (label % 5) + 4,
        ] = 1
    return DataSet(
        name="mnist",
        inputs_train=inputs[:60],
        labels_train=labels[:60],
        inputs_test=inputs[60:],
        labels_test=labels[60:],
        classes=10,
        class_names=tuple("0123456789"),
        citation="made for this test",
    )


def tiny(case: Case) -> Case:
    """The same case with two owners, few records and two turns."""
    return replace(
        case,
        participants=min(2, case.participants),
        records=case.records and 20,
        protection=replace(case.protection, epochs=2),
    )


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run the cases small, in this process; the list tells which were run."""
    ran: list[str] = []

    def in_process(todo):
        for case in todo:
            ran.append(case.name)
            yield case, run_case(tiny(case), small())

    monkeypatch.setattr(module, "_mnist", small)
    monkeypatch.setattr(module, "_side_by_side", in_process)
    return ran


def test_every_figure_that_is_promised_has_its_name_an_interval_and_its_settings(stand_in) -> None:
    result = reproduce("3", Effort(quick=True))
    figures = {f["name"]: f for f in result["figures"]}
    assert figures.keys() >= NAMES and len(figures) == len(result["figures"])
    assert not any("n150" in name for name in figures)
    for figure in figures.values():
        low, high = figure["interval"]
        assert low <= figure["here"] <= high and figure["settings"]
    assert figures["mnist/alone/accuracy"]["recalled"] is True
    assert result["paper"] == 3 and result["seeded"] is True
    json.dumps(result, allow_nan=False)


def test_an_upload_takes_four_bytes_and_its_packed_index_a_value(stand_in) -> None:
    figures = {f["name"]: f for f in reproduce_selective(Effort(quick=True))["figures"]}
    for theta in ("theta1", "theta0.1", "theta0.01"):
        said = figures[f"mnist/n30/{theta}/upload_bytes"]["settings"]
        assert said["ratio_to_4_plus_index"] == pytest.approx(1, abs=0.1)
    tenth, hundredth = (
        figures[f"mnist/n30/{theta}/upload_bytes"]["here"] for theta in ("theta0.1", "theta0.01")
    )
    assert 8 < tenth / hundredth < 10  # a rarer index takes more bits


def test_the_default_has_three_seeds_and_only_full_has_150_participants() -> None:
    names = [(case.name, case.seed) for case in cases(Effort(seed=5))]
    assert {seed for name, seed in names if name == "n30/theta0.1"} == {5, 6, 7}
    assert not any(name.startswith("n150") for name, _ in names)
    full = [(case.name, case.seed) for case in cases(Effort(seed=5, full=True))]
    assert set(full) - set(names) == {("n150/theta0.1", 5)}


def test_finished_trainings_are_kept_and_not_run_again(
    stand_in, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = reproduce_selective(Effort(quick=True, folder=tmp_path / "a"))
    count = len(stand_in)

    def stops(todo):
        for done, case in enumerate(todo):
            if done == 3:
                raise KeyboardInterrupt
            yield case, run_case(tiny(case), small())

    with monkeypatch.context() as patch:
        patch.setattr(module, "_side_by_side", stops)
        with pytest.raises(KeyboardInterrupt):
            reproduce_selective(Effort(quick=True, folder=tmp_path / "b"))
    stand_in.clear()
    said: list[str] = []
    resumed = reproduce_selective(Effort(quick=True, folder=tmp_path / "b", progress=said.append))
    assert len(stand_in) == count - 3 and said[0].startswith("3 of ")

    def values(result):
        return [(f["name"], f["here"]) for f in result["figures"]]

    assert values(resumed) == values(whole)


def test_what_another_version_left_or_a_damaged_file_is_run_again(stand_in, tmp_path: Path) -> None:
    reproduce_selective(Effort(quick=True, folder=tmp_path))
    count = len(stand_in)
    file = tmp_path / "3.json"
    saved = json.loads(file.read_text())
    hollow = {**saved, "cases": {key: {} for key in saved["cases"]}}
    for text in ("{", "[]", json.dumps({**saved, "sources": "another"}), json.dumps(hollow)):
        stand_in.clear()
        file.write_text(text)
        reproduce_selective(Effort(quick=True, folder=tmp_path))
        assert len(stand_in) == count


def test_two_runs_in_one_folder_keep_both_their_trainings(tmp_path: Path) -> None:
    one, other = (module._Kept.opened(tmp_path) for _ in range(2))
    found = {"accuracy": 0.5, "tested": 10, "upload_bytes": 1, "seconds": 1.0, "epsilon": None}
    first, second, *_ = cases(Effort())
    one.keep(first, found)
    other.keep(second, found)
    assert module._Kept.opened(tmp_path).found.keys() == {first.key, second.key}


def test_a_folder_that_cannot_be_written_is_found_out_before_the_first_training(
    stand_in: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="give another"):
        reproduce_selective(Effort(quick=True, folder=tmp_path / "file"))
    assert not stand_in


def test_cases_with_other_settings_have_other_keys() -> None:
    case = cases(Effort())[0]
    changed = replace(case, protection=replace(case.protection, decay=0.5))
    assert len({case.key, changed.key, replace(case, seed=9).key}) == 3


def test_participants_draw_independently_so_that_their_records_overlap() -> None:
    case = replace(cases(Effort())[1], participants=3, records=40)
    task = task_of(case, small())
    rows = [{record.numpy().tobytes() for record in inputs} for inputs, _ in task.shards]
    assert all(len(own) == 40 for own in rows) and rows[0] & rows[1] and rows[0] != rows[1]


def test_bad_requests_are_typed_errors(tmp_path: Path, stand_in) -> None:
    with pytest.raises(ConfigError, match="--quick does less"):
        reproduce("3", Effort(quick=True, full=True))
    with pytest.raises(ConfigError, match="no --full"):
        reproduce("leakage", Effort(full=True))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="give another"):
        reproduce_selective(Effort(quick=True, folder=tmp_path / "file"))
    assert {"3", "leakage"} <= REPRODUCTIONS.keys()
