"""The matrix: verdicts follow the rule, sabotage shows, runs resume, and bad input stops before anything is written."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from tacit import catalogue
from tacit.attacks.curious import GradientLeakage
from tacit.attacks.membership import LossThreshold
from tacit.audit import statistics
from tacit.audit.cells import ExposureAt, LeakageAt, Measurement, Trial, pooled
from tacit.audit.compare import Row, compare, judge_cells
from tacit.audit.membership_cells import MembershipFrom
from tacit.audit.world import Settings, train_judge
from tacit.core.errors import ConfigError, DataError, Diverged, OutputError
from tacit.nn.data import available, load
from tacit.parties.views import Observation
from tacit.training.local_dp import LocalDP
from tacit.training.plain import Centralised, FederatedSGD

SMALL = Settings(owners=4, records=10, population=150, hidden=16, seeds=1)
CENTRAL = Row(name="centralised", title="", protection=Centralised(epochs=3), unprotected=True)
SGD = Row(name="federated-sgd", title="", protection=FederatedSGD(rounds=20), unprotected=True)
NOISY = Row(name="local-dp", title="", protection=LocalDP(rounds=20, noise_multiplier=1.0))
TWIN = Row(name="sabotaged", title="", protection=LocalDP(rounds=20).sabotaged(), control=True)
PLANS = (
    ExposureAt("server"),
    ExposureAt("participant"),
    LeakageAt("server", GradientLeakage(victims=16)),
    MembershipFrom(LossThreshold(), "by loss", "scores"),
)


def verdicts(result: dict[str, Any], plan: str) -> dict[str, str]:
    return {p["name"]: p["cells"][plan]["verdict"] for p in result["protections"]}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("report")
    return compare(SMALL, (CENTRAL, SGD, NOISY, TWIN), PLANS, out=out)


def test_federated_sgd_leaks_noise_contains_and_the_sabotaged_twin_leaks(
    result: dict[str, Any],
) -> None:
    assert verdicts(result, "gradient-leakage@server") == {
        "centralised": "inconclusive",  # records arrive, no update does
        "federated-sgd": "leaks",
        "local-dp": "contained",
        "sabotaged": "leaks",
    }
    cell = result["protections"][1]["cells"]["gradient-leakage@server"]
    assert cell["value"] >= 0.95 and cell["n"] == 16


def test_records_stand_in_the_clear_at_the_central_server_alone(result: dict[str, Any]) -> None:
    assert verdicts(result, "plaintext-exposure@server") == {
        "centralised": "leaks",
        "federated-sgd": "contained",
        "local-dp": "contained",
        "sabotaged": "contained",
    }
    # No unprotected row leaks at a participant, so silence there shows nothing.
    assert set(verdicts(result, "plaintext-exposure@participant").values()) == {"inconclusive"}


def test_every_verdict_follows_the_rule_from_the_figures_in_the_report(
    result: dict[str, Any],
) -> None:
    for plan in (p.name for p in PLANS):
        cells = {p["name"]: p["cells"][plan] for p in result["protections"]}
        unprotected = [p["name"] for p in result["protections"] if p["unprotected"]]
        for name, cell in cells.items():
            if cell["value"] is None:
                assert cell["verdict"] in ("inconclusive", "no-access")
                continue
            low, high = cell["interval"]
            leaks = low > cell["chance"]
            able = any(
                cells[u]["interval"][0] > cells[u]["chance"] for u in unprotected if u != name
            )
            expected = (
                "leaks"
                if leaks
                else "contained"
                if able and high >= cell["chance"]
                else "inconclusive"
            )
            assert cell["verdict"] == expected, (plan, name)


def test_the_report_follows_the_contract(result: dict[str, Any]) -> None:
    json.dumps(result, allow_nan=False)
    for key in (
        "command",
        "version",
        "commit",
        "machine",
        "settings",
        "seconds",
        "seeded",
        "dataset",
    ):
        assert key in result
    assert result["seeded"] is True and result["complete"] is True
    for row in result["protections"]:
        assert 0 <= row["accuracy"] <= 1 and row["cost"]["bytes"] > 0 and row["cost"]["rounds"] > 0
        for cell in row["cells"].values():
            assert {
                "metric",
                "value",
                "chance",
                "interval",
                "verdict",
                "knowledge",
                "why",
            } <= cell.keys()


def test_evaluators_stand_beside_controls(result: dict[str, Any]) -> None:
    details = result["protections"][1]["cells"]["gradient-leakage@server"]["details"]
    judged = details["evaluator"]
    assert set(judged["controls"]) == {"noise", "mean image", "another victim"}
    assert judged["recognised"] > max(judged["controls"].values())
    assert details["psnr_db"] > 50 and details["labels_inferred"] == 1.0


def test_the_judge_calls_noise_junk() -> None:
    data = load("digits")
    judge = train_judge(
        data.inputs_train[:600], data.labels_train[:600], 10, torch.Generator().manual_seed(0)
    )
    assert judge.accuracy > 0.8
    noise = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    assert max(judge.recognises(noise, torch.full((200,), c)) for c in range(10)) < 0.1


# --- resuming, folders, failures


class Interrupted:
    """A plan that is interrupted the first time that it runs on a certain row."""

    name = "interrupted@server"
    title = explains = chance_means = ""
    metric, about = "exposed", "records"

    def __init__(self) -> None:
        self.calls = 0

    def measure(self, trial: Trial) -> Measurement:
        self.calls += 1
        if self.calls == 2:
            raise KeyboardInterrupt
        return Measurement(
            metric="exposed", value=0.5, n=10, counts=((5, 10),), interval=(0.2, 0.8)
        )


def test_an_interrupted_run_keeps_its_cells_and_a_rerun_goes_on(tmp_path: Path) -> None:
    plan = Interrupted()
    plans = (ExposureAt("server"), plan)
    with pytest.raises(KeyboardInterrupt):
        compare(SMALL, (CENTRAL, SGD), plans, out=tmp_path)
    partial = json.loads((tmp_path / "report.json").read_text())
    assert partial["complete"] is False and (tmp_path / "progress.json").exists()
    assert partial["protections"][0]["cells"]["interrupted@server"]["value"] == 0.5
    assert partial["protections"][1]["cells"]["interrupted@server"]["verdict"] is None
    whole = compare(SMALL, (CENTRAL, SGD), plans, out=tmp_path)
    assert plan.calls == 3, "the first row's finished cell was not measured again"
    assert whole["complete"] is True and not (tmp_path / "progress.json").exists()
    straight = compare(SMALL, (CENTRAL, SGD), plans)
    for a, b in zip(whole["protections"], straight["protections"], strict=True):
        assert a["accuracy"] == b["accuracy"]
        assert (
            a["cells"]["plaintext-exposure@server"]["value"]
            == b["cells"]["plaintext-exposure@server"]["value"]
        )


def test_a_finished_report_is_given_back_and_another_runs_report_is_not_overwritten(
    tmp_path: Path,
) -> None:
    first = compare(SMALL, (CENTRAL,), (ExposureAt("server"),), out=tmp_path)
    again = compare(SMALL, (CENTRAL,), (ExposureAt("server"),), out=tmp_path)
    assert again["seconds"] == first["seconds"]
    with pytest.raises(ConfigError, match=r"another run.*--out"):
        compare(replace(SMALL, seed=1), (CENTRAL,), (ExposureAt("server"),), out=tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["settings"]["seed"] == 0
    replaced = compare(
        replace(SMALL, seed=1), (CENTRAL,), (ExposureAt("server"),), out=tmp_path, overwrite=True
    )
    assert replaced["settings"]["seed"] == 1


def test_reports_of_older_versions_and_damaged_progress_are_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps({"command": "compare", "schema": 0}))
    with pytest.raises(DataError, match="schema"):
        compare(SMALL, (CENTRAL,), (ExposureAt("server"),), out=tmp_path)
    (tmp_path / "report.json").unlink()
    (tmp_path / "progress.json").write_text("{half")
    with pytest.raises(DataError, match="damaged"):
        compare(SMALL, (CENTRAL,), (ExposureAt("server"),), out=tmp_path)


def test_a_folder_that_cannot_be_made_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--out"):
        compare(SMALL, (CENTRAL,), (ExposureAt("server"),), out=tmp_path / "file" / "report")


@dataclass(frozen=True)
class Failing:
    """A plan that fails."""

    name: ClassVar[str] = "failing@server"
    title: ClassVar[str] = ""
    metric: ClassVar[str] = "auc"
    explains: ClassVar[str] = ""
    about: ClassVar[str] = "records"
    chance_means: ClassVar[str] = ""

    def measure(self, trial: Trial) -> Measurement:
        raise ZeroDivisionError("on purpose")


def test_a_failing_cell_is_reported_in_its_place(tmp_path: Path) -> None:
    result = compare(SMALL, (CENTRAL,), (Failing(), ExposureAt("server")), out=tmp_path)
    cells = result["protections"][0]["cells"]
    assert cells["failing@server"]["error"] == "ZeroDivisionError: on purpose"
    assert cells["failing@server"]["verdict"] is None
    assert cells["plaintext-exposure@server"]["verdict"] == "leaks"
    assert "on purpose" in (tmp_path / "report.html").read_text()


def test_diverging_training_stops_with_row_owner_and_epoch_and_writes_no_report(
    tmp_path: Path,
) -> None:
    wild = replace(SGD, protection=FederatedSGD(rounds=300, learning_rate=1e30))
    with pytest.raises(Diverged, match=r"federated-sgd: owner \d+.*epoch"):
        compare(SMALL, (wild,), (ExposureAt("server"),), out=tmp_path / "report")
    assert not list(tmp_path.iterdir())


def test_more_owners_than_rows_is_refused_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="need 40150 rows; digits has 1797"):
        compare(replace(SMALL, owners=2000), (CENTRAL,), PLANS, out=tmp_path / "x")
    with pytest.raises(ConfigError, match="seeds"):
        replace(SMALL, seeds=0)


@dataclass(frozen=True)
class Blind:
    """Federated SGD whose frames give a server nothing at all."""

    inner: FederatedSGD = FederatedSGD(rounds=2)  # noqa: RUF009

    def train(self, *args: Any, **settings: Any) -> Any:
        return self.inner.train(*args, **settings)

    def observe(self, view: object, role: object) -> Observation:
        return Observation()


def test_no_access_is_printed_where_the_observation_is_empty_and_only_there(
    result: dict[str, Any],
) -> None:
    blind = Row(name="blind", title="", protection=Blind())
    cells = compare(SMALL, (SGD, blind), PLANS[:3])["protections"][1]["cells"]
    assert {c["verdict"] for c in cells.values()} == {"no-access"}
    assert all("no-access" not in verdicts(result, p.name).values() for p in PLANS)


# --- pooling


def test_pooled_rates_add_up_hits_and_pooled_areas_are_averaged() -> None:
    rates = [
        Measurement(metric="r", value=h / 10, counts=((h, 10),), n=10, chance=0.1, interval=(0, 1))
        for h in (2, 8)
    ]
    assert pooled(rates).value == 0.5 and pooled(rates).n == 20
    areas = [
        Measurement(metric="auc", value=v, n=100, chance=0.5, interval=(v - 0.1, v + 0.1))
        for v in (0.6, 0.8)
    ]
    joined = pooled(areas)
    assert joined.value == pytest.approx(0.7)
    assert joined.interval == pytest.approx((0.7 - 0.1 / 2**0.5, 0.7 + 0.1 / 2**0.5))


def test_a_cell_contained_nowhere_proven_is_inconclusive() -> None:
    def cell(value: float, low: float, high: float) -> dict[str, Any]:
        return {
            "value": value,
            "interval": [low, high],
            "chance": 0.5,
            "verdict": None,
            "error": None,
            "why": "",
        }

    cells = {"federated-sgd": {"a": cell(0.5, 0.4, 0.6)}, "local-dp": {"a": cell(0.5, 0.4, 0.6)}}
    judge_cells((SGD, NOISY), cells)
    assert {c["a"]["verdict"] for c in cells.values()} == {"inconclusive"}
    cells = {"federated-sgd": {"a": cell(0.9, 0.8, 1.0)}, "local-dp": {"a": cell(0.5, 0.4, 0.6)}}
    judge_cells((SGD, NOISY), cells)
    assert cells["federated-sgd"]["a"]["verdict"] == "leaks"
    assert cells["local-dp"]["a"]["verdict"] == "contained"


def test_the_catalogues_names_are_lower_case_paths_and_unique() -> None:
    names = [r.name for r in (*catalogue.rows(), *catalogue.sabotaged_rows())] + [
        p.name for p in catalogue.plans()
    ]
    assert len(names) == len(set(names)) and all(n == n.lower() and " " not in n for n in names)


# --- what a user may do to a folder


def test_overwrite_keeps_the_old_report_until_a_new_one_is_there(tmp_path: Path) -> None:
    compare(SMALL, (CENTRAL,), (ExposureAt("server"),), out=tmp_path)
    before = (tmp_path / "report.json").read_text()
    wild = replace(SGD, protection=FederatedSGD(rounds=300, learning_rate=1e30))
    with pytest.raises(Diverged):
        compare(SMALL, (wild,), (ExposureAt("server"),), out=tmp_path, overwrite=True)
    assert (tmp_path / "report.json").read_text() == before


def test_an_interrupted_run_goes_on_under_overwrite_too(tmp_path: Path) -> None:
    plan = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        compare(SMALL, (CENTRAL, SGD), (plan,), out=tmp_path, overwrite=True)
    compare(SMALL, (CENTRAL, SGD), (plan,), out=tmp_path, overwrite=True)
    assert plan.calls == 3


def test_a_later_row_that_diverges_leaves_the_finished_ones_in_an_unfinished_report(
    tmp_path: Path,
) -> None:
    wild = replace(SGD, protection=FederatedSGD(rounds=300, learning_rate=1e30))
    with pytest.raises(Diverged):
        compare(SMALL, (CENTRAL, wild), (ExposureAt("server"),), out=tmp_path)
    partial = json.loads((tmp_path / "report.json").read_text())
    assert partial["complete"] is False
    assert partial["protections"][0]["cells"]["plaintext-exposure@server"]["verdict"] == "leaks"


@pytest.mark.parametrize(
    "rows",
    [{"0/centralised": {}}, {"0/centralised": {"cells": []}}, [],
     {"0/centralised": {"cells": {"plaintext-exposure@server": {"measurement": {}, "seconds": 1}}}}],
)  # fmt: skip
def test_damaged_progress_is_one_typed_error(tmp_path: Path, rows: object) -> None:
    plans = (ExposureAt("server"), Interrupted())
    with pytest.raises(KeyboardInterrupt):
        compare(SMALL, (CENTRAL, SGD), plans, out=tmp_path)
    saved = json.loads((tmp_path / "progress.json").read_text())
    (tmp_path / "progress.json").write_text(json.dumps({**saved, "rows": rows}))
    with pytest.raises(DataError, match="damaged"):
        compare(SMALL, (CENTRAL, SGD), plans, out=tmp_path)


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    class Second:
        name, title, metric, explains, chance_means = "second@server", "", "auc", "", ""
        about = "records"

        def measure(self, trial: Trial) -> Measurement:
            with pytest.raises(ConfigError, match="another run is using"):
                compare(SMALL, (CENTRAL,), (ExposureAt("server"),), out=tmp_path)
            return Measurement(metric="auc", value=0.5, n=1, chance=0.5)

    result = compare(SMALL, (CENTRAL,), (Second(),), out=tmp_path)
    assert result["protections"][0]["cells"]["second@server"]["error"] is None
    assert not (tmp_path / ".lock").exists()


def test_a_folder_without_rights_is_one_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: Path, *args: object, **settings: object) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", denied)
    with pytest.raises(OutputError, match=r"Permission denied.*--out"):
        compare(SMALL, (CENTRAL,), (ExposureAt("server"),), out=tmp_path / "r", data=load("digits"))


def test_any_seed_below_2_to_the_31_works_and_larger_ones_are_refused() -> None:
    late = replace(SMALL, seed=(1 << 31) - 1)
    assert compare(late, (SGD,), (ExposureAt("server"),))["settings"]["seed"] == (1 << 31) - 1
    for wrong in ({"seed": 1 << 31}, {"seeds": 1001}):
        with pytest.raises(ConfigError, match=r"2\^31"):
            replace(SMALL, **wrong)


def test_a_changed_setting_reaches_the_sabotaged_twin() -> None:
    result = catalogue.compare(
        "digits", protections=["local-dp-low", "local-dp-sabotaged"], attacks=["plaintext-exposure@server"],
        changes=["local-dp-low.rounds=3", "local-dp-low.clip=0.5"], quick=True,
    )  # fmt: skip
    low, twin = (row["settings"] for row in result["protections"])
    assert (twin["rounds"], twin["clip"], twin["noise_multiplier"]) == (3, 0.5, 0.0)
    assert low["noise_multiplier"] > 0
    assert (
        "Nothing here is differentially private"
        in result["protections"][1]["claims"][0]["statement"]
    )


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("name", [item.name for item in available()])
def test_the_default_sizes_fit_every_data_set(name: str, quick: bool) -> None:
    (found,) = (item for item in available() if item.name == name)
    sizes = catalogue.settings(name, quick=quick)
    rows = found.rows_train + found.rows_test
    assert 2 * sizes.owners * sizes.records + sizes.population <= rows
    assert sizes.pool == 1 or len(found.input_shape) == 3


def rate(hits: int, n: int, *, chance: float = 0.0, sums: Measurement | None = None) -> Measurement:
    counts = ((hits, n),)
    return Measurement(
        metric="reidentified", value=hits / n, n=n, counts=counts, chance=chance,
        interval=statistics.clopper_pearson(hits, n), why="told", sums=sums,
    )  # fmt: skip


def test_of_single_updates_and_sums_the_stronger_over_all_seeds_is_reported() -> None:
    """Chosen once: seeds in which the weaker one was lucky do not mix with the others."""
    sums = rate(30, 100, chance=0.1)
    lucky = [rate(14, 20, chance=0.1, sums=sums), rate(0, 20, chance=0.1, sums=sums)]
    found = pooled([Measurement.from_json(m.as_json()) for m in lucky])
    assert (found.value, found.n) == (60 / 200, 200) and found.sums is None
    assert "on single owners' updates the attack reached 0.35 (chance 0.1)" in found.why
    strong = [rate(18, 20, sums=rate(30, 100)), rate(20, 20, sums=rate(40, 100))]
    found = pooled(strong)
    assert (found.value, found.n) == (38 / 40, 40)
    assert "on sums of several owners' updates the attack reached 0.35" in found.why
    assert pooled(strong[:1]).n == 20
