"""Differentially private SGD: what the ledger says is what was drawn, whatever model and optimiser; nothing is forgotten."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tacit.core.coins import Coins
from tacit.core.cost import CostMeter
from tacit.core.errors import (
    ConfigError,
    DataError,
    Diverged,
    TacitWarning,
    UnsupportedLayer,
)
from tacit.dp.accounting import Accountant
from tacit.dp.noise import GaussianKind
from tacit.nn.networks import initialise, projected_mlp
from tacit.nn.persample import Clipping
from tacit.parties.checkpoints import FileCheckpoint
from tacit.parties.roles import SERVER, Role
from tacit.parties.views import FULL
from tacit.training import dp_sgd
from tacit.training.dp_sgd import DPSGD

from ..conftest import small_task  # noqa: TID252 - tests are no package

QUICK = DPSGD(epochs=3, lot_size=8, noise_multiplier=0.5, learning_rate=0.25, delta=1e-3)


def coins(name: str = "dp-sgd") -> Coins:
    return Coins.from_seed(name.encode())


def data(count: int = 80, classes: int = 3, size: int = 6) -> tuple[Tensor, Tensor]:
    """Classes that lie apart."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(count) % classes
    centres = 3 * torch.eye(classes, size)
    return centres[labels] + 0.3 * torch.randn(count, size, generator=generator), labels


def linear(size: int = 6, classes: int = 3) -> nn.Module:
    return initialise(nn.Sequential(nn.Linear(size, classes)), torch.Generator().manual_seed(1))


def right(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


# --- the algorithm


@pytest.mark.parametrize("clipping", Clipping, ids=lambda c: c.value)
@pytest.mark.parametrize("noise", GaussianKind, ids=lambda k: k.value)
def test_it_learns_with_noise(noise: GaussianKind, clipping: Clipping) -> None:
    x, y = data(400)
    model = linear()
    scheme = replace(QUICK, epochs=10, lot_size=40, noise=noise, clipping=clipping)
    fit = scheme.fit(model, x, y, coins=coins())
    assert right(model, x, y) > 0.95
    assert fit.ledger.spent == 100 and len(fit.losses) == 100
    assert all(p.grad is None for p in model.parameters())


def test_without_noise_and_bound_it_is_sgd_on_poisson_lots_over_the_expected_size() -> None:
    x, y = data(60)
    model, twin = linear(), linear()
    scheme = replace(QUICK, noise_multiplier=0.0, clip=1e6)
    lots: list[np.ndarray] = []
    draw = dp_sgd.Ledger.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dp_sgd.Ledger, "draw", lambda self, n: lots.append(draw(self, n)) or lots[-1])
        fit = scheme.fit(model, x, y, coins=coins())
    assert {len(lot) for lot in lots} != {8} and math.isinf(fit.ledger.loss(Accountant.PLD).epsilon)
    for lot in lots:
        losses = nn.functional.cross_entropy(twin(x[lot]), y[lot], reduction="sum")
        gradients = torch.autograd.grad(losses, list(twin.parameters()))
        with torch.no_grad():
            for parameter, g in zip(twin.parameters(), gradients, strict=True):
                parameter.sub_(scheme.learning_rate * g / 8)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_noise_has_the_deviation_that_is_accounted() -> None:
    """Gradients of nothing: all that moves the weights is noise, one step of it."""
    x, y = torch.zeros(50, 400), torch.zeros(50, dtype=torch.int64)
    model = nn.Sequential(nn.Linear(400, 100, bias=False))
    nn.init.zeros_(model[0].weight)
    scheme = replace(
        QUICK, epochs=1, lot_size=50, noise_multiplier=3.0, clip=0.5, learning_rate=1.0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TacitWarning)  # the records are all the same
        fit = scheme.fit(model, x, y, coins=coins())
    assert fit.ledger.spent == 1
    moved = model[0].weight.detach().numpy() * 50
    assert abs(moved.std() / (3.0 * 0.5) - 1) < 0.02 and abs(moved.mean()) < 0.03
    accounted = fit.plan.lots.noise_multiplier
    assert 3.0 * 0.999 < accounted < 3.0


@pytest.mark.parametrize("accountant", Accountant, ids=lambda a: a.value)
def test_epsilon_is_met_and_hardly_undershot(accountant: Accountant) -> None:
    x, y = data(300)
    scheme = replace(QUICK, epochs=2, lot_size=10, epsilon=2.0, delta=1e-4, accountant=accountant)
    fit = scheme.fit(linear(), x, y, coins=coins())
    assert 1.99 < fit.ledger.loss(accountant).epsilon <= 2.0
    assert fit.plan.release.noise_multiplier != QUICK.noise_multiplier


def test_an_epsilon_that_cannot_be_met_is_refused_with_the_least_that_can() -> None:
    x, y = data(60)
    scheme = replace(QUICK, epsilon=0.05, accountant=Accountant.MOMENTS)
    with pytest.raises(ConfigError, match="out of reach: the least"):
        scheme.fit(linear(), x, y, coins=coins())


def test_of_fewer_records_than_a_lot_all_are_in_each_step() -> None:
    x, y = data(60)
    fit = replace(QUICK, lot_size=100).fit(linear(), x, y, coins=coins())
    assert fit.ledger.spent == 3 and fit.ledger.divisor == 60
    assert "on all records" in fit.ledger.loss(Accountant.PLD).composed


def test_any_optimiser_takes_the_step_and_the_rate_falls() -> None:
    x, y = data(200)
    model, rates = linear(), []

    class Watched(torch.optim.Adam):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    scheme = replace(QUICK, epochs=5, lot_size=20, learning_rate=0.1, final_rate=0.02)
    scheme.fit(model, x, y, coins=coins(), optimiser=Watched)
    assert right(model, x, y) > 0.9
    assert rates[0] == pytest.approx(0.1) and rates[-1] == pytest.approx(0.02)
    assert np.allclose(np.diff(rates), np.diff(rates)[0])


def test_micro_batches_change_nothing_but_rounding() -> None:
    x, y = data(100)
    one, other = linear(), linear()
    QUICK.fit(one, x, y, coins=coins())
    replace(QUICK, micro=3).fit(other, x, y, coins=coins())
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_frozen_parameters_stay_and_batch_normalisation_is_refused() -> None:
    x, y = data()
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    QUICK.fit(model, x, y, coins=coins())
    assert torch.equal(before, model[0].weight) and not model[0].weight.requires_grad
    with pytest.raises(UnsupportedLayer, match="GroupNorm"):
        QUICK.fit(nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)), x, y, coins=coins())


# --- bad records


def test_gradients_that_are_not_finite_add_nothing_and_are_counted() -> None:
    x, y = data(60)
    x[7] = float("nan")
    model = linear()
    with pytest.warns(TacitWarning, match="were not finite and added nothing"):
        fit = replace(QUICK, lot_size=30).fit(model, x, y, coins=coins())
    assert fit.nonfinite > 0
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_a_large_delta_and_records_that_occur_twice_are_told() -> None:
    x, y = data(40)
    x[1] = x[0]
    with pytest.warns(TacitWarning, match="1 of 40 records repeat another one"):
        QUICK.fit(linear(), x, y, coins=coins())
    with pytest.warns(TacitWarning, match="delta = 0.1 is not below 1 / 40"):
        replace(QUICK, delta=0.1).fit(linear(), *data(40), coins=coins())


def test_a_model_that_runs_away_stops_with_its_step() -> None:
    x, y = data(60)
    scheme = replace(QUICK, learning_rate=9e37, clip=1e3)
    with pytest.raises(Diverged, match="after step"):
        scheme.fit(linear(), x, y, coins=coins())


def test_somebody_else_s_step_is_noticed() -> None:
    x, y = data()
    model = linear()

    def meddle(done: int, total: int) -> None:
        if done == 4:
            with torch.no_grad():
                model[0].bias[1] += 1e-7

    with pytest.raises(ConfigError, match=r"'0.bias' changed since the last private step"):
        QUICK.fit(model, x, y, coins=coins(), progress=meddle)


# --- going on after a kill


class Killed(Exception):
    """No error of tacit."""


def killed_at(step: int):
    def progress(done: int, total: int) -> None:
        if done == step:
            raise Killed

    return progress


@pytest.mark.parametrize("optimiser", [None, torch.optim.Adam], ids=["sgd", "adam"])
def test_a_killed_run_goes_on_where_it_was_with_what_it_had_spent(
    optimiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dp_sgd, "SAVED_EVERY", 5)
    x, y = data()
    scheme = replace(QUICK, momentum=0.5)
    whole = linear()
    scheme.fit(whole, x, y, coins=coins(), optimiser=optimiser)
    model, file = linear(), FileCheckpoint(tmp_path / "kept", b"this run")
    with pytest.raises(Killed):
        scheme.fit(
            model, x, y, coins=coins(), optimiser=optimiser, progress=killed_at(17), checkpoint=file
        )
    told: list[int] = []
    model = linear()
    fit = scheme.fit(
        model, x, y, coins=coins(), optimiser=optimiser, checkpoint=file,
        progress=lambda done, total: told.append(done),
    )  # fmt: skip
    assert told == list(range(16, 31)) and fit.ledger.spent == 30
    # The same coins give the same lots and noise: nothing of the state was lost.
    for a, b in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_other_terms_or_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dp_sgd, "SAVED_EVERY", 5)
    x, y = data()
    file = FileCheckpoint(tmp_path / "kept", b"this run")
    with pytest.raises(Killed):
        QUICK.fit(linear(), x, y, coins=coins(), progress=killed_at(7), checkpoint=file)
    for scheme, records, error in (
        (replace(QUICK, noise_multiplier=0.4), (x, y), ConfigError),
        (replace(QUICK, lot_size=9), (x, y), ConfigError),
        (QUICK, (x[:-1], y[:-1]), DataError),
        (QUICK, (x + 1, y), DataError),
    ):
        with pytest.raises(error):
            scheme.fit(linear(), *records, coins=coins(), checkpoint=file)
    assert file.load(CostMeter()) is not None


# --- components


def test_the_first_layer_becomes_the_components_and_their_share_is_accounted() -> None:
    x, y = data(400, size=30)
    model = projected_mlp((30,), 4, 16, 3, generator=torch.Generator().manual_seed(2))
    scheme = replace(QUICK, components=4, component_noise=4.0, lot_size=40, epochs=6)
    fit = scheme.fit(model, x, y, coins=coins())
    front = model[1].weight.detach()
    assert (
        torch.allclose(front @ front.T, torch.eye(4), atol=1e-4) and model[1].weight.requires_grad
    )
    assert right(model, x, y) > 0.9
    with_them = fit.ledger.loss(Accountant.PLD)
    assert "on all records" in with_them.composed
    alone = replace(scheme, components=0).planned(400, 100)
    assert with_them.epsilon > Accountant.PLD.epsilon([alone.lots.releases(60)], 1e-3)
    assert (
        fit.plan.release.coordinates == sum(p.numel() for p in model.parameters()) - front.numel()
    )


def test_a_model_without_such_a_layer_is_refused() -> None:
    x, y = data()
    for model in (linear(), nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 3))):
        with pytest.raises(UnsupportedLayer, match="bias=False"):
            replace(QUICK, components=2).fit(model, x, y, coins=coins())


# --- as a scheme


def test_the_server_sees_records_and_owners_the_model_alone() -> None:
    task = small_task(records=8)
    run = QUICK.train(task, coins=coins(), recording=FULL)
    at_server = QUICK.observe(run.views[SERVER], SERVER)
    at_owner = QUICK.observe(run.views[Role("owner", 1)], Role("owner", 1))
    assert len(at_server.intermediates) == 3 and not at_owner.intermediates
    assert len(at_owner.outputs) == 1
    private, hidden = run.claims
    assert "epsilon = " in str(private.value) and hidden.hides == ("owner",)
    assert run.settings["noise"] == "discrete"
    assert not math.isinf(private.value.epsilon)


def test_the_sabotaged_twin_claims_nothing() -> None:
    run = QUICK.sabotaged().train(small_task(records=8), coins=coins())
    assert math.isinf(run.claims[0].value.epsilon)
    assert "Nothing here is differentially private" in run.claims[0].statement


def test_a_killed_star_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dp_sgd, "SAVED_EVERY", 4)
    task, file = small_task(records=8), FileCheckpoint(tmp_path / "kept", b"run")
    whole = QUICK.train(task, coins=coins())
    with pytest.raises(Killed):
        QUICK.train(task, coins=coins(), keep=lambda _: file, progress=killed_at(6))
    told: list[int] = []
    run = QUICK.train(
        task, coins=coins(), keep=lambda _: file, progress=lambda d, t: told.append(d)
    )
    assert told[0] == 5
    for a, b in zip(whole.output.value.parameters(), run.output.value.parameters(), strict=True):
        assert torch.equal(a, b)
    assert str(run.claims[0].value) == str(whole.claims[0].value)


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0}, {"lot_size": 0}, {"clip": 0.0}, {"noise_multiplier": -1.0}, {"epsilon": 0.0}, {"delta": 1.0},
        {"learning_rate": math.inf}, {"final_rate": 0.5}, {"momentum": 1.0}, {"components": -1}, {"micro": 0},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(changes: dict) -> None:
    with pytest.raises(ConfigError):
        replace(QUICK, **changes)
