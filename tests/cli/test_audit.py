"""`tacit audit` as a user meets it: models and scores of one's own, limits for CI, errors without tracebacks."""

from __future__ import annotations

import csv
import json
import stat
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

from tacit.audit.membership_audit import SHADOWS
from tacit.cli import audit as command
from tacit.cli.audit import read_budget, read_recipe
from tacit.cli.main import run
from tacit.core.errors import ConfigError, UnknownName
from tacit.nn.stacked import Recipe, Trainer

FEATURES, CLASSES = 20, 3
NETS = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3))

def predicted(records):
    return (records[:, 0] > 0).astype(int)

def fit(inputs, labels, generator):
    model = make()
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(40):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimiser.step()
    return model
"""
RECIPE = ["--recipe", "epochs=25", "--recipe", "batch_size=50", "--recipe", "learning_rate=0.01"]


def tacit(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = 0
    try:
        run(["audit", *map(str, arguments)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def write_onnx(model: nn.Sequential, path: Path) -> None:
    """The network as a file of another world."""
    arrays = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    nodes = [
        helper.make_node("Gemm", ["x", "0.weight", "0.bias"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "2.weight", "2.bias"], ["y"], transB=1),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", wide])
        for name, wide in (("x", FEATURES), ("y", CLASSES))
    ]
    held = [numpy_helper.from_array(value, name) for name, value in arrays.items()]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], held)
    sets = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=9), str(path))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learnt its members by heart, as files."""
    folder = tmp_path_factory.mktemp("own")
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(520, FEATURES, generator=generator)
    labels = torch.randint(0, CLASSES, (520,), generator=generator)  # nothing but members tell
    recipe = Recipe(epochs=60, batch_size=50, learning_rate=0.01)
    model = Trainer(network=network(), recipe=recipe)(inputs[:200], labels[:200], generator)
    assert isinstance(model, nn.Sequential)
    (folder / "cli_nets.py").write_text(NETS)
    save_file(model.state_dict(), folder / "model.safetensors")
    write_onnx(model, folder / "model.onnx")
    for name, part in (
        ("members", slice(0, 200)), ("nonmembers", slice(200, 420)), ("population", slice(420, 520)),
    ):  # fmt: skip
        np.savez(folder / f"{name}.npz", inputs=inputs[part].numpy(), labels=labels[part].numpy())
    with torch.no_grad():
        losses = nn.functional.cross_entropy(model(inputs), labels, reduction="none")
    with (folder / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["member", "score"])
        writer.writerows((int(i < 200), -float(loss)) for i, loss in enumerate(losses[:420]))
    return folder


@pytest.fixture
def own(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Arguments for the records; the working directory is another each time, the files are found all the same."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(made))
    return [
        "--weights", str(made / "model.safetensors"), "--members", str(made / "members.npz"),
        "--nonmembers", str(made / "nonmembers.npz"),
    ]  # fmt: skip


# --- targets


def test_a_module_with_its_recipe(
    capsys: pytest.CaptureFixture[str], own: list[str], made: Path
) -> None:
    code, out, err = tacit(
        capsys, "cli_nets:make", *own, *RECIPE, "--shadows", 4, "--population", made / "population.npz"
    )  # fmt: skip
    assert code == 0, err
    assert "▲ leaks  The model gives away who was in its training data" in out
    assert "LiRA" in out and "no guarantee" in out and "epsilon is at least" in out
    assert "training reference models" in err and "asking the target" in err
    assert "tacit-audit/report.html" in err and "Traceback" not in err
    for name in ("report.html", "report.json"):
        assert stat.S_IMODE(Path("tacit-audit", name).stat().st_mode) == 0o600
    report = json.loads(Path("tacit-audit/report.json").read_text())
    assert report["settings"]["recipe"]["epochs"] == 25 and report["shadows"]["models"] == 4
    assert report["data"]["population"] == 100
    assert "Most exposed records" in Path("tacit-audit/report.html").read_text()


def test_a_module_with_a_function_that_trains_it(
    capsys: pytest.CaptureFixture[str], own: list[str], tmp_path: Path
) -> None:
    code, out, err = tacit(
        capsys, "cli_nets:make", *own, "--train", "cli_nets:fit", "--shadows", 4, "--attacks", "loss, lira-online",
        "--class-names", "red,green,blue", "--seed", 3, "--out", tmp_path / "new", "--json",
    )  # fmt: skip
    result = json.loads(out)  # exactly one object
    assert code == 0, err
    assert result["command"] == "audit" and result["settings"]["seed"] == 3
    assert {one["name"] for one in result["attacks"]} == {"loss", "lira-online"}
    assert result["shadows"]["models"] == 4
    assert set(result["classes"]) == {"red", "green", "blue"}
    assert json.loads((tmp_path / "new" / "report.json").read_text()) == result


def test_a_model_of_another_framework(
    capsys: pytest.CaptureFixture[str], own: list[str], made: Path
) -> None:
    code, out, err = tacit(
        capsys, made / "model.onnx", *own[2:], "--gives", "logits", "--attacks", "loss", "--json"
    )
    result = json.loads(out)
    assert code == 0, err
    assert result["target"]["kind"] == "onnx" and result["verdict"] == "leaks"


def test_a_model_that_gives_labels_alone(
    capsys: pytest.CaptureFixture[str], own: list[str]
) -> None:
    code, out, err = tacit(
        capsys, "cli_nets:predicted", *own[2:], "--gives", "labels", "--attacks", "label-gap,loss", "--json"
    )  # fmt: skip
    result = json.loads(out)
    assert code == 0, err
    assert result["data"]["classes"] == CLASSES  # as the records say: of these it predicts two
    assert [one["name"] for one in result["attacks"]] == ["label-gap"]


def test_saved_scores_need_no_model(
    capsys: pytest.CaptureFixture[str], own: list[str], made: Path
) -> None:
    code, out, err = tacit(capsys, made / "scores.csv")
    assert code == 0, err
    assert "▲ leaks" in out and "Saved scores" in out


# --- limits and budgets


def test_a_limit_that_is_exceeded_is_exit_code_1(
    capsys: pytest.CaptureFixture[str], own: list[str], made: Path
) -> None:
    scores = made / "scores.csv"
    code, out, _ = tacit(capsys, scores, "--fail-above", "auc=0.55", "--fail-above", "auc=1")
    assert code == 1 and "▲ exceeded  auc: at most 0.550 allowed" in out and "○ kept" in out
    code, out, _ = tacit(capsys, scores, "--fail-above", "auc=0.55", "--json", "--overwrite")
    assert code == 1 and json.loads(out)["limits"][0]["exceeded"] is True
    code, out, _ = tacit(capsys, scores, "--fail-above", "auc=1", "--overwrite")
    assert code == 0 and "○ kept" in out


def test_a_limit_that_cannot_be_judged_is_no_pass(
    capsys: pytest.CaptureFixture[str], own: list[str], made: Path
) -> None:
    code, out, err = tacit(capsys, made / "scores.csv", "--fail-above", "tpr@0.001fpr=0.01")
    assert code == 2 and out == "" and "needs" in err and "10000" in err


@pytest.mark.filterwarnings("always::tacit.core.errors.TacitWarning")
def test_a_budget_of_queries_audits_fewer_records(
    capsys: pytest.CaptureFixture[str], own: list[str]
) -> None:
    code, out, err = tacit(
        capsys, "cli_nets:make", *own, "--attacks", "loss", "--budget", "210q", "--budget", "10m", "--json"
    )  # fmt: skip
    result = json.loads(out)
    assert code == 0 and result["budget"]["queries"] == 210 and result["budget"]["seconds"] == 600
    assert result["data"]["members"] == 100 and "210 queries do for 100 of 200 members" in err


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], (None, None)),
        (["600s"], (600.0, None)),
        (["10m", "5000q"], (600.0, 5000)),
        (["7q", "1.5h"], (5400.0, 7)),
    ],
)
def test_a_budget_is_read(given: list[str], expected: tuple[float | None, int | None]) -> None:
    assert read_budget(given) == expected


@pytest.mark.parametrize("given", [["10"], ["q"], ["1.5q"], ["-3s"], ["1s", "1m"], ["1q", "2q"]])
def test_a_budget_that_says_nothing_or_too_much_is_refused(given: list[str]) -> None:
    with pytest.raises(ConfigError, match=given[-1]):
        read_budget(given)


def test_a_recipe_is_read() -> None:
    given = ["epochs=3", "batch_size=8", "learning_rate=1e-2", "optimiser=sgd", "momentum=0.9"]
    assert read_recipe(given) == Recipe(
        epochs=3, batch_size=8, learning_rate=0.01, optimiser="sgd", momentum=0.9
    )
    with pytest.raises(UnknownName, match="did you mean epochs"):
        read_recipe(["epoch=3"])
    with pytest.raises(ConfigError, match="epochs=many: int expected"):
        read_recipe(["epochs=many"])
    with pytest.raises(ConfigError, match=r"--recipe learning_rate=VALUE expected too"):
        read_recipe(given[:2])


# --- words


def test_names_of_classes_may_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("a cat, asleep\n\n dog \n")
    assert command._class_names(f"@{path}") == ["a cat, asleep", "dog"]
    assert command._class_names("cat, dog") == ["cat", "dog"] and command._class_names(None) is None
    with pytest.raises(ConfigError, match="cannot be read"):
        command._class_names(f"@{tmp_path / 'nowhere'}")


def test_a_log_gets_a_line_for_each_stage_and_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    tell = command._logged()
    for done in range(100):
        tell("training", done, 100)
    tell("Loss", 0, 0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[:2] == ["0/100 training", "10/100 training"] and lines[-1] == "0/0 Loss"


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = tacit(capsys, "--help")
    said = " ".join(out.split())
    for words in (
        "tacit audit nets:make --weights model.safetensors", "tacit audit model.onnx", "tacit audit scores.csv",
        "Exit codes: 0 done, 1 a limit", "--fail-above", "TARGET is the model",
    ):  # fmt: skip
        assert words in said, words
    assert f"[default: {SHADOWS}]" in out


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cli_nets:make"], "--members FILE expected"),
        (["cli_nets:make", "--members", "MADE/members.npz"], "--nonmembers FILE expected"),
        (["cli_nets:other", "RECORDS"], "cli_nets:other"),
        (["nowhere.onnx", "RECORDS"], "there is no file nowhere.onnx"),
        (["cli_nets", "RECORDS"], "module:attribute, a .onnx or a .safetensors file expected"),
        (["cli_nets:make", "RECORDS", "--weights", "MADE/members.npz"], "cannot be read as"),
        (["cli_nets:make", "RECORDS", "--gives", "scores"], "no kind of answer is called 'scores'"),
        (["cli_nets:make", "RECORDS", "--train", "cli_nets:fitt"], "cli_nets:fitt"),
        (["cli_nets:make", "RECORDS", "--train", "cli_nets:fit", *RECIPE], "both came"),
        (["cli_nets:make", "RECORDS", "--recipe", "epochs"], "int expected"),
        (["cli_nets:make", "RECORDS", "--attacks", "lira-onlin"], "did you mean lira-online"),
        (["cli_nets:make", "RECORDS", "--budget", "soon"], "600s, 10m, 2h or 5000q expected"),
        (["cli_nets:make", "RECORDS", "--shadows", "5"], "even number"),
        (["cli_nets:make", "RECORDS", "--fail-above", "auc"], "METRIC=VALUE"),
        (["cli_nets:make", "RECORDS", "--fail-above", "acc=1"], "no metric is called 'acc'"),
        (["MADE/model.onnx", "RECORDS", *RECIPE, "--gives", "logits"], "a recipe is not enough"),
        (["MADE/scores.csv", "RECORDS"], "leave out --members, --nonmembers"),
        (["MADE/scores.csv", *RECIPE], "leave out --recipe"),
        (["MADE/scores.csv", "--gives", "score"], "no kind of answer is called 'score'"),
        (["nowhere.csv"], "nowhere.csv"),
    ],
)  # fmt: skip
def test_bad_input_is_one_typed_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], own: list[str], made: Path, arguments: list[str], message: str
) -> None:  # fmt: skip
    given = [
        text.replace("MADE", str(made))
        for argument in arguments
        for text in (own[2:] if argument == "RECORDS" else [argument])
    ]
    code, out, err = tacit(capsys, *given)
    assert code == 2 and out == "", (given, err)
    assert message in err.replace("\n", " ") and "Traceback" not in err
    assert not list(Path.cwd().rglob("report.*"))


def test_a_report_is_not_replaced_unasked(
    capsys: pytest.CaptureFixture[str], own: list[str], made: Path
) -> None:
    assert tacit(capsys, made / "scores.csv")[0] == 0
    code, _, err = tacit(capsys, made / "scores.csv")
    assert code == 2 and "holds a report" in err
    assert tacit(capsys, made / "scores.csv", "--overwrite")[0] == 0
