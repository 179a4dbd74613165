"""`tacit train`: what it deals, measures and keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tacit
from tacit import catalogue
from tacit.audit.train import Setting, task_of
from tacit.cli.main import run
from tacit.core.errors import ConfigError, DataError, OutputError, TacitWarning, UnknownName
from tacit.nn.data import load
from tacit.nn.local_work import accuracy
from tacit.nn.spec import load_model
from tacit.training.selective_sgd import SelectiveSGD

FEW = ("epochs=2",)


def test_the_model_that_is_kept_is_the_one_that_was_measured(tmp_path: Path) -> None:
    result = tacit.train("selective-sgd", changes=FEW, owners=3, records=40, out=tmp_path)
    data = load("digits")
    model = load_model(tmp_path / "model.safetensors")
    assert accuracy(model, data.inputs_test, data.labels_test) == pytest.approx(result["accuracy"])
    assert json.loads((tmp_path / "run.json").read_text()) == result
    assert result["seeded"] is False and result["claims"] and result["scheme"] == "selective-sgd"
    assert result["cost"].keys() == {"server 0", "owner 0", "owner 1", "owner 2"}


@pytest.mark.parametrize("scheme", catalogue.SCHEMES)
def test_every_scheme_trains(scheme: str) -> None:
    few = "epochs=1" if scheme in ("centralised", "dp-sgd", "selective-sgd") else "rounds=3"
    told: list[tuple[int, int]] = []
    result = tacit.train(
        scheme, changes=[few], owners=2, records=16,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert 0 <= result["accuracy"] <= 1 and told[-1][0] == told[-1][1]


def test_all_training_rows_are_dealt_and_no_test_row() -> None:
    data = load("digits")
    task = task_of(Setting(owners=7), data)
    dealt = torch.cat([inputs for inputs, _ in task.shards])
    assert sorted(map(bytes, dealt.flatten(1).numpy())) == sorted(
        map(bytes, data.inputs_train.flatten(1).numpy())
    )
    skewed = task_of(Setting(owners=10, split="label"), data)
    assert all(len(labels.unique()) <= 2 for _, labels in skewed.shards)


def test_a_warning_is_shown_before_training_ends_and_stays_in_the_result() -> None:
    changes = ["gamma=0.01", "epsilon_over_c=1", "epochs=1"]
    shown: list[str] = []
    with pytest.warns(TacitWarning, match="pure noise") as caught:
        result = tacit.train(
            "selective-sgd", changes=changes, owners=2, records=16,
            progress=lambda done, total: shown.append(str(len(caught))),
        )  # fmt: skip
    assert shown[0] == "1" and len(result["warnings"]) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"scheme": "selectiv"}, UnknownName, "did you mean selective-sgd"),
        ({"model": "transformer"}, UnknownName, "no model"),
        ({"split": "fair"}, UnknownName, "way to split"),
        ({"owners": 0}, ConfigError, "at least one owner"),
        ({"records": 0}, ConfigError, "one record of each"),
        ({"owners": 100, "records": 100}, ConfigError, "10000 rows; digits has 1442"),
        ({"model": "tanh-cnn"}, ConfigError, "at least 17x17 pixels"),
        ({"changes": ["theta_u"]}, ConfigError, "SETTING=VALUE"),
        ({"changes": ["theta=1"]}, UnknownName, "theta_u or theta_d"),
        ({"changes": ["theta_u=x"]}, ConfigError, "float expected"),
        ({"changes": ["gamma=none", "epsilon_over_c=3"]}, ConfigError, "needs gamma"),
        ({"changes": ["schedule=sometimes"]}, ConfigError, "round-robin, random-order, asynchronous"),
    ],
)  # fmt: skip
def test_bad_requests_are_typed_errors(arguments: dict, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        tacit.train(**{"scheme": "selective-sgd", **arguments})


def test_a_model_is_replaced_only_when_asked_and_nothing_is_trained_for_a_bad_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(**overwrite: bool) -> None:
        tacit.train("selective-sgd", changes=FEW, owners=2, records=20, out=tmp_path, **overwrite)

    train()
    before = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "file").write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(SelectiveSGD, "train", None)  # would fail if it came so far
        with pytest.raises(ConfigError, match="--overwrite"):
            train()
        with pytest.raises(OutputError, match="give another"):
            tacit.train("selective-sgd", out=tmp_path / "file" / "x")
    assert (tmp_path / "model.safetensors").read_bytes() == before
    train(overwrite=True)


def test_settings_that_need_each_other_may_come_in_any_order() -> None:
    for order in (1, -1):
        changes = ["epsilon_over_c=500", "gamma=0.05"][::order]
        result = tacit.train("selective-sgd", changes=[*changes, *FEW], owners=2, records=16)
        assert result["protection"]["gamma"] == 0.05


def test_a_folder_in_the_place_of_a_file_is_found_out_before_training(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        tacit.train("selective-sgd", changes=FEW, owners=2, records=20, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_data_set_that_is_not_there_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TACIT_DATA", raising=False)
    with pytest.raises(DataError, match="TACIT_DATA"):
        tacit.train("selective-sgd", dataset="mnist", out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_command_prints_one_object_or_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--owners", "2", "--records", "20", "--set", "epochs=1"]
    run(["train", "selective-sgd", *few, "--json"])
    assert json.loads(capsys.readouterr().out)["command"] == "train"
    run(["train", "selective-sgd", *few, "--set", "gamma=1e-6"])
    came = capsys.readouterr()
    assert "accuracy" in came.out and "tacit: warning: gamma = 1e-06 clips" in came.err


# --- a model of one's own


def test_a_factory_of_one_s_own_is_trained_privately_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets_of_mine.py").write_text(
        "from math import prod\n"
        "from torch import nn\n"
        "def make(input_shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(prod(input_shape), 16), nn.Tanh(), nn.Linear(16, classes))\n"
        "nothing = lambda input_shape, classes: 3\n"
    )
    monkeypatch.chdir(tmp_path)
    changes = ["epsilon=8", "epochs=2", "lot_size=32"]
    result = catalogue.train(
        "dp-sgd",
        model="nets_of_mine:make",
        changes=changes,
        owners=2,
        records=100,
        out=tmp_path / "out",
    )
    assert "epsilon = 8" in result["claims"][0]["value"]
    assert (tmp_path / "out" / "model.safetensors").exists()
    for model, match in (
        ("nets_of_mine:absent", "no attribute"),
        ("no_such_module:make", "No module named"),
        ("nets_of_mine:nothing", "must give a torch.nn.Module"),
    ):
        with pytest.raises(ConfigError, match=match):
            catalogue.train("dp-sgd", model=model, owners=2, records=20)
    with pytest.raises(ConfigError, match="in one process"):
        catalogue.train("dp-sgd", model="nets_of_mine:make", owners=2, records=20, link="tcp")
