"""`tacit audit --url`: what the holder of a key finds out, within what the key allows, and nothing asked twice."""

from __future__ import annotations

import json
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tacit
from tacit.audit.endpoint import MEMORY, open_endpoint
from tacit.cli.main import run
from tacit.core.errors import BudgetExhausted, EndpointRefused, TacitWarning
from tacit.nn.data import load
from tacit.nn.networks import mlp
from tacit.nn.stacked import Recipe, Trainer
from tacit.prediction.plain import Limits

ACCESS: dict[str, dict[str, Any]] = {
    "plain": {},
    "labels": {"labels_only": True},
    "rounded": {"digits": 2},
    "owner": {"download": True},
    "poor": {"budget": 150},
}


def parts() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Members, non-members and a population, a third of the labels wrong."""
    data = load("digits")
    generator = torch.Generator().manual_seed(0)
    inputs, labels = data.inputs_train.flatten(1), data.labels_train
    wrong = torch.rand(len(labels), generator=generator) < 1 / 3
    labels = torch.where(wrong, torch.randint(10, labels.shape, generator=generator), labels)
    order = torch.randperm(len(inputs), generator=generator)
    return [(inputs[at], labels[at]) for at in order[:500].split([150, 150, 200])]


def model() -> torch.nn.Module:
    network = mlp((64,), (24,), 10, generator=torch.Generator().manual_seed(0))
    recipe = Recipe(epochs=40, batch_size=32, learning_rate=0.01)
    return Trainer(network=network, recipe=recipe)(*parts()[0], torch.Generator().manual_seed(1))


@pytest.fixture
def running(serve: Any) -> Any:
    return serve(model(), ACCESS, shape=(64,))


def audited(target: Any, **more: Any) -> dict[str, Any]:
    members, nonmembers, population = parts()
    return tacit.audit(target, members=members, nonmembers=nonmembers, population=population, **more)  # fmt: skip


def reached(running: Any, name: str, *, memory: Path | None = None, **more: Any) -> dict[str, Any]:
    """An audit of what the holder of a key meets."""
    with closing(open_endpoint(running.url, key=running.keys[name], memory=memory)) as target:
        return audited(target, **more)


def entries(report: dict[str, Any], part: str = "attacks") -> dict[str, Any]:
    return {one["name"]: one for one in report[part]}


def test_over_http_an_audit_finds_what_it_finds_in_process(running: Any) -> None:
    here, there = audited(model()), reached(running, "plain")
    assert there["target"]["kind"] == "endpoint" and there["target"]["gives"] == "probabilities"
    assert here["verdict"] == there["verdict"] == "leaks"
    for name, one in entries(here).items():
        again = entries(there)[name]["metrics"]["auc"]["value"]
        assert again == pytest.approx(one["metrics"]["auc"]["value"], abs=2e-3)
    assert running.ledger.account("plain").spent == there["budget"]["queries_spent"]
    for name in ("extraction-copy", "extraction-equations"):
        assert entries(there, "model_attacks")[name]["value"] > 0.5
    assert entries(there, "model_attacks")["model-inversion"]["access"] == "scores"  # of a copy
    assert entries(here, "model_attacks")["model-inversion"]["access"] == "weights"


def test_what_was_answered_is_not_asked_again(running: Any, tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        before = running.ledger.account("plain").spent
        names = ["loss", "label-robustness", "extraction-equations"]
        report = reached(running, "plain", memory=tmp_path / "answers", attacks=names)
        found.append((running.ledger.account("plain").spent - before, report["attacks"]))
    assert 5_600 < found[0][0] <= 150 + 150 + 200 + 300 * 17 + 65  # some that are drawn are alike
    assert found[1][0] == 0
    areas = [[one["metrics"]["auc"] for one in attacks] for _, attacks in found]
    assert areas[0] == areas[1]


def test_a_key_is_asked_for_no_more_than_its_budget_and_goes_on_from_what_it_has(
    running: Any, tmp_path: Path
) -> None:
    for _ in range(2):  # the second time nothing is left, and all of it is remembered
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TacitWarning)
            report = reached(running, "poor", memory=tmp_path / "answers")
        assert "75 of 150 members and 75 of 150" in report["warnings"][0]
        assert report["budget"] == {"seconds": None, "queries": 150, "queries_spent": 150}
        assert running.ledger.account("poor").spent == 150
        left = {one["name"]: one["why"] for one in report["left_out"]}
        assert "0 of 150 left" in left["label-robustness"]
    with closing(open_endpoint(running.url, key=running.keys["poor"])) as alone:
        assert alone.queries is not None and alone.queries(parts()[0][0]) == 0
        with pytest.raises(BudgetExhausted):
            alone.model(parts()[0][0][:1])


def test_what_is_remembered_of_other_records_is_no_budget_for_these(
    serve: Any, tmp_path: Path
) -> None:
    running = serve(model(), {"poor": {"budget": 200}}, shape=(64,))
    memory, (members, nonmembers, _) = tmp_path / "answers", parts()
    halves = [[(x[at], y[at]) for x, y in (members, nonmembers)] for at in (slice(75), slice(75, 150))]  # fmt: skip
    spent = []
    for inside, outside in halves:
        with (
            closing(open_endpoint(running.url, key=running.keys["poor"], memory=memory)) as target,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", TacitWarning)
            tacit.audit(target, members=inside, nonmembers=outside, attacks=["loss"])
        spent.append(running.ledger.account("poor").spent)
    assert spent == [150, 200]  # the second time 25 of each


def test_disturbed_records_stay_in_the_endpoint_s_range(serve: Any) -> None:
    running = serve(model(), ACCESS, shape=(64,), limits=Limits(low=0.0, high=1.0))
    report = reached(running, "labels", attacks=["label-robustness", "label-gap"])
    assert set(entries(report)) == {"label-robustness", "label-gap"}


def test_a_model_in_float64_is_copied_and_inverted_by_itself_or_through_the_copy(
    serve: Any,
) -> None:
    running = serve(model().double(), ACCESS, shape=(64,))
    for key, access in (("owner", "weights"), ("plain", "scores")):
        report = reached(running, key, attacks=["extraction-copy"])
        assert entries(report, "model_attacks")["extraction-copy"]["value"] > 0.5
        found = entries(reached(running, key, attacks=["model-inversion"]), "model_attacks")
        assert found["model-inversion"]["access"] == access
        assert found["model-inversion"]["queries"] == (0 if key == "owner" else 200)


def test_a_policy_that_hides_what_an_attack_needs_leaves_it_out(running: Any) -> None:
    report = reached(running, "labels")
    assert set(entries(report)) == {"label-gap", "label-robustness"}
    left = {one["name"]: one["why"] for one in report["left_out"]}
    assert "labels alone" in left["loss"] and "labels alone" in left["extraction-equations"]
    copy = entries(report, "model_attacks")["extraction-copy"]
    assert copy["access"] == "labels" and copy["value"] > copy["chance"]
    rounded = reached(running, "rounded")
    assert rounded["verdict"] == "leaks" and "digits2" in rounded["target"]["name"]


def test_who_may_download_the_model_looks_into_it(running: Any) -> None:
    recipe = Recipe(epochs=40, batch_size=32, learning_rate=0.01)
    names = ["lira-online", "model-inversion"]
    report = reached(running, "owner", train_fn=recipe, shadows=4, attacks=names)
    assert report["target"]["parameters"] == 64 * 24 + 24 + 24 * 10 + 10
    assert set(entries(report)) == {"lira-online"}
    assert entries(report, "model_attacks")["model-inversion"]["access"] == "weights"


def test_an_unknown_key_is_refused(running: Any) -> None:
    with pytest.raises(EndpointRefused, match="401"):
        open_endpoint(running.url, key="0" * 43)


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        run(["audit", *map(str, arguments)])
    return int(stop.value.code or 0)


def test_the_command_audits_an_endpoint_and_says_what_is_wrong(
    running: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = []
    for name, (inputs, labels) in zip(("members", "nonmembers", "population"), parts(), strict=True):  # fmt: skip
        np.savez(tmp_path / f"{name}.npz", inputs=inputs.numpy(), labels=labels.numpy())
        files += [f"--{name}", tmp_path / f"{name}.npz"]
    key = tmp_path / "key.txt"
    key.write_text(running.keys["plain"] + "\n")
    asked = ["--url", running.url, "--key-file", key, *files, "--out", tmp_path / "audit"]
    run(["audit", *map(str, asked), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["target"]["kind"] == "endpoint" and len(report["model_attacks"]) == 3
    assert (tmp_path / "audit" / MEMORY).stat().st_mode & 0o077 == 0
    page = (tmp_path / "audit" / "report.html").read_text()
    assert "The model itself" in page and "an HTTP endpoint" in page
    spent = running.ledger.account("plain").spent
    for wrong, said in (
        (asked, "holds a report already"),
        (["model.onnx", *asked], "leave out TARGET"),
        (files, "--url of an endpoint"),
        (["model.onnx", *files, "--key-file", key], "--url of an endpoint expected with"),
        (["--url", "http://127.0.0.1:9", *files, "--out", tmp_path / "b"], "EndpointUnreachable"),
        (["--url", running.url, *files, "--out", tmp_path / "c"], "401"),
    ):
        assert command(*wrong) == 2
        assert said in capsys.readouterr().err
    assert running.ledger.account("plain").spent == spent
    monkeypatch.setenv("TACIT_KEY", running.keys["labels"])
    run(["audit", "--url", running.url, *map(str, files), "--out", str(tmp_path / "d"), "--json"])
    assert json.loads(capsys.readouterr().out)["target"]["gives"] == "labels"
