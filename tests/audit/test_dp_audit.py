"""Audits of differentially private SGD: honest runs pass, broken ones are caught, and the adversary of the definition."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tacit.audit import dp_audit
from tacit.audit.dp_audit import (
    GradientCanaries,
    RecordCanaries,
    audit_run,
    logit_margin,
    strong_adversary,
)
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, NotEnoughEvidence
from tacit.dp.accounting import Accountant
from tacit.dp.audit import most_auc
from tacit.dp.sampling import Indices, Ledger
from tacit.nn.networks import mlp
from tacit.nn.persample import Clipping, ClipRule, clipped_sum, cross_entropy
from tacit.training.dp_sgd import DPSGD, Planned

REAL, CANARIES = 500, 2000
# q = 0.01, sigma = 1, one epoch: epsilon 0.72 (PLD) at delta 1e-5.
SCHEME = DPSGD(epochs=1, lot_size=25, noise_multiplier=1.0, learning_rate=0.1)


class TooQuiet(DPSGD):
    """Adds a tenth of the noise that it books."""

    def planned(self, records: int, coordinates: int, dimensions: int = 0) -> Planned:
        plan = DPSGD.planned(self, records, coordinates, dimensions)
        tenth = replace(plan.release, noise_multiplier=plan.release.noise_multiplier / 10)
        return plan._replace(release=tenth)


class Unclipped(DPSGD):
    """Adds noise for gradients that are clipped, and clips none."""

    @property
    def rule(self) -> ClipRule:
        return ClipRule(bound=1e6)


def in_fixed_order(self: Ledger, records: int) -> Indices:
    """Lots one after another instead of Poisson lots, booked as the latter."""
    booked(self, records)
    start = (self.spent - 1) * self.lots.lot
    return np.arange(start, start + self.lots.lot)


booked = Ledger.draw


def of(kind: type[DPSGD], scheme: DPSGD) -> DPSGD:
    return kind(**{name: getattr(scheme, name) for name in DPSGD.__slots__})


def real_records(features: int = CANARIES // 10) -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(REAL, features, generator=generator)
    labels = torch.randint(0, 10, (REAL,), generator=generator)
    return mlp((features,), (), 10, generator=generator), inputs, labels


def audit(scheme: DPSGD, run: int, canaries: GradientCanaries | None = None) -> dict[str, object]:
    canaries = canaries or GradientCanaries(count=CANARIES)
    return audit_run(scheme, *real_records(), canaries, coins=Coins.from_seed(b"%d" % run))


# --- gradients as canaries


def test_an_honest_training_is_not_accused_in_twenty_of_twenty_runs() -> None:
    found = [audit(SCHEME, run) for run in range(20)]
    assert all(one["claim"] == pytest.approx(0.718, abs=0.001) for one in found)
    assert sum(one["lower_bound"] <= one["claim"] and not one["exceeded"] for one in found) == 20


@pytest.mark.parametrize("noise", [0.8, 4.0])
def test_an_honest_training_on_whole_lots_is_not_accused_and_the_audit_sees_a_part(
    noise: float,
) -> None:
    scheme = replace(SCHEME, lot_size=REAL + CANARIES, noise_multiplier=noise, epochs=4)
    found = [audit(scheme, run) for run in range(5)]
    assert all(one["lower_bound"] <= one["claim"] for one in found)
    assert np.median([one["lower_bound"] / one["claim"] for one in found]) > 0.2


@pytest.mark.parametrize("broken", [TooQuiet, Unclipped])
@pytest.mark.parametrize("run", range(3))
def test_a_tenth_of_the_noise_and_missing_clipping_are_caught(
    broken: type[DPSGD], run: int
) -> None:
    found = audit(of(broken, SCHEME), run)
    assert found["claim"] == pytest.approx(0.718, abs=0.001)
    assert found["exceeded"] and found["lower_bound"] > 4  # 400 guesses, all right


@pytest.mark.parametrize("run", range(3))
def test_lots_in_fixed_order_are_caught_by_who_knows_them(
    run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = (REAL + np.arange(CANARIES)) // SCHEME.lot_size
    knows = GradientCanaries(count=CANARIES, known_steps=steps)
    assert not audit(SCHEME, run, knows)[
        "exceeded"
    ]  # to know a step that is not theirs tells nothing
    monkeypatch.setattr(Ledger, "draw", in_fixed_order)
    found = audit(SCHEME, run, knows)
    assert found["claim"] == pytest.approx(0.718, abs=0.001)
    assert found["exceeded"] and found["lower_bound"] > 1


def test_an_epsilon_of_eight_with_a_tenth_of_the_noise_is_caught_by_many_canaries() -> None:
    count = 50_000
    model, inputs, labels = real_records(count // 10)
    scheme = DPSGD(
        epochs=10, lot_size=REAL + count, noise_multiplier=2.1, learning_rate=0.1, accountant=Accountant.RDP
    )  # fmt: skip
    for kind, accused in ((DPSGD, False), (TooQuiet, True)):
        found = audit_run(
            of(kind, scheme), model, inputs, labels, GradientCanaries(count=count), coins=Coins.from_seed(b"8")
        )  # fmt: skip
        assert 7.5 < found["claim"] < 8.5
        assert found["exceeded"] is accused


def scores_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, np.ndarray]]:
    """What the next audits' scores and coins are."""
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    real = dp_audit.audited

    def spy(scores, included, *args, **kwargs):
        seen.append((scores, included))
        return real(scores, included, *args, **kwargs)

    monkeypatch.setattr(dp_audit, "audited", spy)
    return seen


@pytest.mark.parametrize("clipping", list(Clipping))
@pytest.mark.parametrize("length", [1.0, 100.0])
def test_a_canary_moves_its_own_coordinate_by_the_clip_and_the_real_records_do_not(
    clipping: Clipping, length: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = scores_of(monkeypatch)
    scheme = replace(
        SCHEME, lot_size=REAL + CANARIES, noise_multiplier=0.0, clip=0.5, clipping=clipping
    )
    first = GradientCanaries(
        count=CANARIES, length=length, known_steps=np.zeros(CANARIES, np.int64)
    )
    found = audit(scheme, 0, first)
    scores, included = seen[0]
    assert 900 < included.sum() < 1100
    assert np.all(scores <= 1 + 1e-4)
    np.testing.assert_allclose(scores, included, atol=0.025)  # AUTOMATIC shortens by gamma
    assert found["claim"] == np.inf and not found["exceeded"] and found["right"] == found["guesses"]


def test_what_is_found_is_said_and_the_model_is_left_as_it_was() -> None:
    model, inputs, labels = real_records()
    before = copy.deepcopy(model.state_dict())
    found = audit_run(
        SCHEME, model, inputs, labels, GradientCanaries(count=100), coins=Coins.from_seed(b"x"),
        confidence=0.9, tries=[(10, 5)],
    )  # fmt: skip
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (
        found.pop("claim") > 0 and found.pop("lower_bound") >= 0 and 0 <= found.pop("right") <= 15
    )
    assert found == {
        "delta": 1e-5, "accountant": "pld", "confidence": 0.9, "exceeded": False, "view": "noisy-sums",
        "canaries": 100, "guesses": 15, "seeded": True,
    }  # fmt: skip


def test_canaries_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"2011 canaries .* it has 2010"):
        audit(SCHEME, 0, GradientCanaries(count=2011))
    with pytest.raises(ConfigError, match="at least one canary"):
        GradientCanaries(count=0)
    with pytest.raises(ConfigError, match="as long as the clip"):
        GradientCanaries(count=5, length=0.5)
    with pytest.raises(ConfigError, match="one step for each of 5"):
        GradientCanaries(count=5, known_steps=np.zeros(4, np.int64))
    with pytest.raises(ConfigError, match="a label for each"):
        RecordCanaries(inputs=torch.zeros(3, 2), labels=torch.zeros(2, dtype=torch.int64))


# --- the training that is watched is the training


class Notes:
    """Notes what it is given, and adds nothing."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.places: list[Indices] = []
        self.noisy: list[list[np.ndarray]] = []

    def add(self, places: Indices, sums: Sequence[np.ndarray]) -> None:
        self.places.append(places)

    def released(self, noisy: Sequence[np.ndarray]) -> None:
        self.noisy.append([array.copy() for array in noisy])


def test_the_watcher_sees_what_moves_the_model_and_its_canaries_are_drawn_as_records_are() -> None:
    model, inputs, labels = real_records()
    start = [p.detach().clone() for p in model.parameters()]
    notes = Notes(CANARIES)
    fit = SCHEME.fit_watched(model, inputs, labels, notes, coins=Coins.from_seed(b"n"))
    assert len(notes.noisy) == fit.ledger.spent == fit.ledger.lots.steps == 100
    assert fit.ledger.lots.records == REAL + CANARIES
    for was, now, *moves in zip(start, model.parameters(), *notes.noisy, strict=True):
        moved = np.sum(moves, axis=0) * SCHEME.learning_rate / SCHEME.lot_size
        torch.testing.assert_close(now, was - torch.from_numpy(moved), atol=1e-5, rtol=1e-4)
    drawn = np.concatenate(notes.places)
    assert drawn.min() >= 0 and drawn.max() < CANARIES
    assert abs(len(drawn) - 2000) < 6 * 2000**0.5  # 100 lots at rate 0.01


# --- records as canaries


def records(count: int, features: int) -> RecordCanaries:
    generator = torch.Generator().manual_seed(1)
    return RecordCanaries(
        inputs=torch.randn(count, features, generator=generator),
        labels=torch.randint(0, 10, (count,), generator=generator),
    )


def test_record_canaries_are_trained_on_as_records_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step without noise on all: the loss falls as if those that are in had been among the records."""
    seen = scores_of(monkeypatch)
    model, inputs, labels = real_records()
    canaries = records(50, CANARIES // 10)
    scheme = replace(SCHEME, lot_size=REAL + 50, noise_multiplier=0.0, learning_rate=5.0)
    found = audit_run(scheme, model, inputs, labels, canaries, coins=Coins.from_seed(b"r"))
    scores, included = seen[0]
    all_in = torch.cat([inputs, canaries.inputs[included]])
    total = clipped_sum(
        model, cross_entropy, all_in, torch.cat([labels, canaries.labels[included]]), scheme.rule
    )
    before = cross_entropy(model(canaries.inputs), canaries.labels)
    with torch.no_grad():
        for p, g in zip(model.parameters(), total.gradients, strict=True):
            p.sub_(5.0 * g / (REAL + 50))
    after = cross_entropy(model(canaries.inputs), canaries.labels)
    np.testing.assert_allclose(scores, (before - after).detach().numpy(), atol=1e-5)
    assert found["view"] == "model" and np.ptp(scores) > 0.01


@pytest.mark.parametrize(("kind", "accused"), [(DPSGD, False), (TooQuiet, True), (Unclipped, True)])
def test_the_finished_model_accuses_broken_trainings_only(kind: type[DPSGD], accused: bool) -> None:
    scheme = DPSGD(
        epochs=20, lot_size=1000, noise_multiplier=20.0, learning_rate=0.5, accountant=Accountant.RDP
    )  # fmt: skip
    model, inputs, labels = real_records(1000)
    found = audit_run(
        of(kind, scheme), model, inputs[:50], labels[:50], records(1000, 1000), coins=Coins.from_seed(b"b")
    )  # fmt: skip
    assert found["claim"] < 1
    assert found["exceeded"] is accused


# --- who knows every record but one


def flat_model(bias: float) -> nn.Module:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([bias, 0.0]))
    return model


def toy(target: Tensor, shift: float):
    """A training whose model tells a normal variable around ``shift`` if the target is in, around 0 if not."""

    def train(inputs: Tensor, labels: Tensor, coins: Coins) -> nn.Module:
        among = bool((inputs == target).all(1).any())
        drawn = coins.unit(12).sum() - 6
        return flat_model(float(drawn) + shift * among)

    return train


def test_a_training_that_tells_is_seen_and_one_that_does_not_is_not() -> None:
    inputs, labels = torch.eye(3), torch.zeros(3, dtype=torch.int64)
    tells = strong_adversary(
        toy(inputs[1], 9.0), inputs, labels, [1], models=20, coins=Coins.from_seed(b"t")
    )
    assert tells.value > 0.99 and tells.interval[0] > 0.5 and tells.n == 40
    none = strong_adversary(
        toy(inputs[1], 0.0), inputs, labels, [1], models=100, coins=Coins.from_seed(b"t")
    )
    assert none.interval[0] < 0.5 < none.interval[1]


def test_the_models_that_judge_are_not_those_that_taught() -> None:
    """Gaussians fitted to three models tell these very models apart, and no others."""
    inputs, labels = torch.eye(3), torch.zeros(3, dtype=torch.int64)
    areas = [
        strong_adversary(
            toy(inputs[1], 0.0), inputs, labels, [1], models=3, coins=Coins.from_seed(b"%d" % run)
        ).value
        for run in range(60)
    ]
    assert abs(np.mean(areas) - 0.5) < 4 * np.std(areas) / 60**0.5 < 0.15


def test_several_targets_are_asked_about_one_after_another() -> None:
    inputs, labels = torch.eye(3), torch.zeros(3, dtype=torch.int64)
    found = strong_adversary(
        toy(inputs[1], 9.0), inputs, labels, [0, 1, 2], models=50, coins=Coins.from_seed(b"t")
    )
    assert 0.55 < found.value < 0.8  # one target of three is told
    assert found.interval[0] < found.value < found.interval[1] and found.n == 3


def test_the_adversary_tells_a_gaussian_mechanism_as_well_as_it_can_be_told() -> None:
    inputs, labels = torch.eye(3), torch.zeros(3, dtype=torch.int64)
    found = strong_adversary(
        toy(inputs[1], 1.0), inputs, labels, [1], models=300, coins=Coins.from_seed(b"g")
    )
    assert found.interval[0] < 0.760 < found.interval[1]  # Phi(1 / sqrt 2)
    assert found.interval[0] > 0.5
    assert found.interval[1] < most_auc(Accountant.PLD.epsilon([(1.0, 1.0, 1)], 1e-5), 1e-5)


def test_a_mislabelled_record_is_told_from_an_unprotected_model_and_not_from_a_private_one() -> (
    None
):
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(40) % 4
    inputs = torch.eye(4)[labels].repeat(1, 4) + 0.3 * torch.randn(40, 16, generator=generator)
    labels[3] = (labels[3] + 1) % 4
    start = mlp((16,), (16,), 4, generator=generator)
    base = DPSGD(epochs=6, lot_size=20, noise_multiplier=0.0, learning_rate=1.0)
    areas = []
    for scheme in (base.sabotaged(), replace(base, noise_multiplier=8.0)):

        def train(x: Tensor, y: Tensor, coins: Coins, scheme: DPSGD = scheme) -> nn.Module:
            model = copy.deepcopy(start)
            scheme.fit(model, x, y, coins=coins)
            return model

        areas.append(
            strong_adversary(train, inputs, labels, [3], models=10, coins=Coins.from_seed(b"m"))
        )
    assert areas[0].interval[0] > 0.6
    assert areas[1].interval[0] < 0.5 < areas[1].interval[1]


def test_the_margin_is_the_log_odds_of_the_true_class() -> None:
    generator = torch.Generator().manual_seed(6)
    model = nn.Linear(5, 3)
    inputs, labels = torch.randn(7, 5, generator=generator), torch.arange(7) % 3
    p = model(inputs).double().softmax(1).gather(1, labels[:, None]).squeeze(1)
    expected = (p / (1 - p)).log().detach().numpy()
    np.testing.assert_allclose(logit_margin(model, inputs, labels), expected, rtol=1e-5)


def test_too_few_models_or_targets_are_refused() -> None:
    inputs, labels = torch.eye(3), torch.zeros(3, dtype=torch.int64)
    for models, targets in ((1, [0]), (5, [])):
        with pytest.raises(NotEnoughEvidence, match="at least 2 models and one target"):
            strong_adversary(
                toy(inputs[0], 1.0), inputs, labels, targets, models=models, coins=Coins.from_seed(b"f")
            )  # fmt: skip
