"""Audits of differentially private SGD: honest runs pass, broken ones are caught, and the adversary of the definition."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from tacit.audit import dp_audit
from tacit.audit.dp_audit import (
    GradientCanaries,
    RecordCanaries,
    audit_run,
)
from tacit.audit.dp_checks import (
    CANARIES,
    REAL,
    SMALL,
    InOrder,
    TooQuiet,
    Unclipped,
    as_kind,
    audit_small,
    small_task,
    when_in_order,
)
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.dp.accounting import Accountant
from tacit.dp.sampling import Indices
from tacit.nn.persample import Clipping, clipped_sum, cross_entropy
from tacit.training.dp_sgd import DPSGD


def audit(scheme: DPSGD, run: int, canaries: GradientCanaries | None = None) -> dict[str, object]:
    return audit_small(scheme, Coins.from_seed(b"%d" % run), canaries)


# --- gradients as canaries


def test_an_honest_training_is_not_accused_in_eight_of_eight_runs() -> None:
    found = [audit(SMALL, run) for run in range(8)]
    assert all(one["claim"] == pytest.approx(0.718, abs=0.001) for one in found)
    assert sum(one["lower_bound"] <= one["claim"] and not one["exceeded"] for one in found) == 8


@pytest.mark.parametrize("noise", [0.8, 4.0])
def test_an_honest_training_on_whole_lots_is_not_accused_and_the_audit_sees_a_part(
    noise: float,
) -> None:
    scheme = replace(SMALL, lot_size=REAL + CANARIES, noise_multiplier=noise, epochs=4)
    found = [audit(scheme, run) for run in range(5)]
    assert all(one["lower_bound"] <= one["claim"] for one in found)
    assert np.median([one["lower_bound"] / one["claim"] for one in found]) > 0.2


@pytest.mark.parametrize("broken", [TooQuiet, Unclipped])
@pytest.mark.parametrize("run", range(3))
def test_a_tenth_of_the_noise_and_missing_clipping_are_caught(
    broken: type[DPSGD], run: int
) -> None:
    found = audit(as_kind(broken, SMALL), run)
    assert found["claim"] == pytest.approx(0.718, abs=0.001)
    assert found["exceeded"] and found["lower_bound"] > 4  # 400 guesses, all right


@pytest.mark.parametrize("run", range(3))
def test_lots_in_fixed_order_are_caught_by_who_knows_them(run: int) -> None:
    knows = GradientCanaries(count=CANARIES, known_steps=when_in_order())
    # to know a step that is not theirs tells nothing
    assert not audit(SMALL, run, knows)["exceeded"]
    found = audit(as_kind(InOrder, SMALL), run)
    assert found["claim"] == pytest.approx(0.718, abs=0.001)
    assert found["exceeded"] and found["lower_bound"] > 1
    assert not audit(SMALL, run, knows)["exceeded"]  # others' lots are drawn as before


def test_an_epsilon_of_eight_with_a_tenth_of_the_noise_is_caught_by_many_canaries() -> None:
    count = 50_000
    model, inputs, labels = small_task(count // 10)
    scheme = DPSGD(
        epochs=10, lot_size=REAL + count, noise_multiplier=2.1, learning_rate=0.1, accountant=Accountant.RDP
    )  # fmt: skip
    for kind, accused in ((DPSGD, False), (TooQuiet, True)):
        found = audit_run(
            as_kind(kind, scheme), model, inputs, labels, GradientCanaries(count=count), coins=Coins.from_seed(b"8")
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
        SMALL, lot_size=REAL + CANARIES, noise_multiplier=0.0, clip=0.5, clipping=clipping
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
    model, inputs, labels = small_task()
    before = copy.deepcopy(model.state_dict())
    found = audit_run(
        SMALL, model, inputs, labels, GradientCanaries(count=100), coins=Coins.from_seed(b"x"),
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
        audit(SMALL, 0, GradientCanaries(count=2011))
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
    model, inputs, labels = small_task()
    start = [p.detach().clone() for p in model.parameters()]
    notes = Notes(CANARIES)
    fit = SMALL.fit_watched(model, inputs, labels, notes, coins=Coins.from_seed(b"n"))
    assert len(notes.noisy) == fit.ledger.spent == fit.ledger.lots.steps == 100
    assert fit.ledger.lots.records == REAL + CANARIES
    for was, now, *moves in zip(start, model.parameters(), *notes.noisy, strict=True):
        moved = np.sum(moves, axis=0) * SMALL.learning_rate / SMALL.lot_size
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
    model, inputs, labels = small_task()
    canaries = records(50, CANARIES // 10)
    scheme = replace(SMALL, lot_size=REAL + 50, noise_multiplier=0.0, learning_rate=5.0)
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
    model, inputs, labels = small_task(1000)
    found = audit_run(
        as_kind(kind, scheme), model, inputs[:50], labels[:50], records(1000, 1000), coins=Coins.from_seed(b"b")
    )  # fmt: skip
    assert found["claim"] < 1
    assert found["exceeded"] is accused
