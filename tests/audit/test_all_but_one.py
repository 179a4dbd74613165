"""Who knows every record but one: told where it should be, not where noise hides it, and never by what it may not see."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tacit import catalogue
from tacit.attacks.all_but_one import in_order, logit_margin
from tacit.audit import all_but_one, words
from tacit.audit.all_but_one import StrongAdversary, strong_adversary
from tacit.audit.cells import Judge, Trial, pooled
from tacit.audit.compare import Row, compare
from tacit.audit.world import Settings
from tacit.core.claims import Basis, Claim, PrivacyLoss
from tacit.core.coins import Coins
from tacit.core.cost import CostMeter
from tacit.core.errors import ConfigError, NotEnoughEvidence
from tacit.dp.accounting import Accountant
from tacit.dp.audit import most_auc
from tacit.nn.federated import Progress, Task
from tacit.nn.networks import mlp
from tacit.parties.roles import SERVER, Role
from tacit.parties.runs import Opened, Run
from tacit.parties.views import Observation, Recording, View
from tacit.training.dp_sgd import DPSGD
from tacit.training.plain import Centralised
from tacit.training.secure_aggregation import SecureAggregation

EYE, ZEROS = torch.eye(3), torch.zeros(3, dtype=torch.int64)


def flat_model(bias: float) -> nn.Module:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([bias, 0.0]))
    return model


def toy(target: Tensor, shift: float, noise: float = 1.0):
    """A training whose model tells a normal variable around ``shift`` if the target is in, around 0 if not."""

    def train(inputs: Tensor, labels: Tensor, coins: Coins) -> nn.Module:
        among = bool((inputs == target).all(1).any())
        drawn = coins.unit(12).sum() - 6
        return flat_model(noise * float(drawn) + shift * among)

    return train


def areas_of(shift: float, models: int, runs: int) -> list[Any]:
    return [
        strong_adversary(
            toy(EYE[1], shift), EYE, ZEROS, [1], models=models, coins=Coins.from_seed(b"%d" % run)
        )
        for run in range(runs)
    ]


def test_a_training_that_tells_is_seen_and_one_that_does_not_is_not() -> None:
    tells = strong_adversary(
        toy(EYE[1], 9.0), EYE, ZEROS, [1], models=20, coins=Coins.from_seed(b"t")
    )
    assert tells.value > 0.99 and tells.interval[0] > 0.5 and tells.n == 40
    none = strong_adversary(
        toy(EYE[1], 0.0), EYE, ZEROS, [1], models=100, coins=Coins.from_seed(b"t")
    )
    assert none.interval[0] < 0.5 < none.interval[1]


@pytest.mark.parametrize("models", [4, 6])
def test_where_nothing_leaks_few_models_neither_lean_nor_raise_false_alarms(models: int) -> None:
    found = areas_of(0.0, models, 200)
    areas = [one.value for one in found]
    assert abs(np.mean(areas) - 0.5) < 3.5 * np.std(areas) / len(areas) ** 0.5 < 0.06
    assert sum(one.interval[0] > 0.5 for one in found) <= 10  # one in forty are 5


def test_six_models_a_side_are_enough_to_tell_and_five_are_not() -> None:
    six, five = (areas_of(30.0, models, 1)[0] for models in (6, 5))
    assert six.value == five.value == 1 and six.interval[0] > 0.5 > five.interval[0]


@pytest.mark.parametrize("shift", [1.0, -1.0, 1e-3])
def test_a_training_that_draws_nothing_is_told_for_certain_whatever_the_direction(
    shift: float,
) -> None:
    found = strong_adversary(
        toy(EYE[1], shift, noise=0.0), EYE, ZEROS, [1], models=6, coins=Coins.from_seed(b"z")
    )
    assert found.value == 1 and 0.5 < found.interval[0] < 1 == found.interval[1]


def test_without_any_trace_a_training_that_draws_nothing_is_a_coin() -> None:
    found = strong_adversary(
        toy(EYE[1], 0.0, noise=0.0), EYE, ZEROS, [1], models=6, coins=Coins.from_seed(b"z")
    )
    assert found.value == 0.5 and found.interval[0] < 0.2 and found.interval[1] > 0.8


def test_the_direction_turns_beyond_doubt_only() -> None:
    low, high = np.array([0.0, 0.1]), np.array([1.0, 1.05])
    assert in_order(high, low)[0] is high
    assert in_order(low, high)[0] is low  # 0.9 apart is not ten times 0.1
    assert in_order(low, high + 1)[0].tolist() == (-low).tolist()
    with pytest.raises(NotEnoughEvidence, match="at least 2 models"):
        in_order(low[:1], high)


def test_several_targets_are_asked_about_one_after_another() -> None:
    found = strong_adversary(
        toy(EYE[1], 9.0), EYE, ZEROS, [0, 1, 2], models=50, coins=Coins.from_seed(b"t")
    )
    assert 0.55 < found.value < 0.8  # one target of three is told
    assert found.interval[0] < found.value < found.interval[1] and found.n == 3


def test_targets_that_are_all_told_do_not_make_the_interval_a_point() -> None:
    def train(inputs: Tensor, labels: Tensor, coins: Coins) -> nn.Module:
        return flat_model(float(len(inputs)))

    found = strong_adversary(train, EYE, ZEROS, [0, 1], models=6, coins=Coins.from_seed(b"t"))
    assert found.value == 1 and 0.5 < found.interval[0] < 0.6


def test_the_adversary_tells_a_gaussian_mechanism_as_well_as_it_can_be_told() -> None:
    found = strong_adversary(
        toy(EYE[1], 1.0), EYE, ZEROS, [1], models=300, coins=Coins.from_seed(b"g")
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


@pytest.mark.parametrize(("models", "targets"), [(1, [0]), (5, [])])
def test_too_few_models_or_targets_are_refused(models: int, targets: list[int]) -> None:
    with pytest.raises(NotEnoughEvidence, match="at least 2 models and one target"):
        strong_adversary(
            toy(EYE[0], 1.0), EYE, ZEROS, targets, models=models, coins=Coins.from_seed(b"f")
        )


def test_a_target_that_is_no_record_is_refused() -> None:
    with pytest.raises(ConfigError, match="places of 3 records"):
        strong_adversary(
            toy(EYE[0], 1.0), EYE, ZEROS, [3], models=5, coins=Coins.from_seed(b"f")
        )  # fmt: skip


# --- the column


@dataclass
class Spy:
    """A protection that notes what it is trained on, and gives a model that shows the number of records, or their labels."""

    tells: bool = True
    epsilon: float | None = None
    seen: list[tuple[Task, Coins]] = field(default_factory=list)

    def train(
        self, task: Task, *, coins: Coins, recording: Recording, progress: Progress
    ) -> Run[Opened[nn.Module]]:
        self.seen.append((task, coins))
        claims: tuple[Claim, ...] = ()
        if self.epsilon is not None:
            loss = PrivacyLoss(
                epsilon=self.epsilon, delta=0.0, neighbouring="one record added or removed", unit="record",
                accountant="none", composed="nothing",
            )  # fmt: skip
            claims = (
                Claim(statement="private", basis=Basis.ACCOUNTED, source="a test", value=loss),
            )
        bias = -sum(task.records) if self.tells else 0.0  # the wrong label is 1
        model = flat_model(bias + float(coins.unit(1)[0]))
        return Run(
            output=Opened(value=model, to=(SERVER,)), cost=CostMeter(), views={}, claims=claims, settings={},
            seeded=True,
        )  # fmt: skip

    def observe(self, view: View, role: Role) -> Observation:
        raise AssertionError("the adversary has no view")


def trial_of(protection: Any, population: int = 50) -> Trial:
    """A trial whose members and non-members may not be looked at."""
    generator = torch.Generator().manual_seed(1)
    nothing = torch.full((4, 3), math.nan), torch.zeros(4, dtype=torch.int64)
    task = Task(
        name="toy", start=flat_model(0.5), shards=(nothing,), input_shape=(3,), classes=2, seed=3
    )
    records = (
        torch.rand(population, 3, generator=generator),
        torch.zeros(population, dtype=torch.int64),
    )
    return Trial(
        protection=protection, run=None, task=task, members=nothing, nonmembers=nothing, population=records,
        train_fn=None, judge=Judge(model=flat_model(0), accuracy=1.0), seed=0,
    )  # fmt: skip


def test_the_trainings_differ_in_the_one_record_and_in_their_coins_alone() -> None:
    spy = Spy()
    trial = trial_of(spy)
    StrongAdversary(models=3).measure(trial)
    inputs, labels = trial.population
    assert [task.records for task, _ in spy.seen] == [(20, 20)] * 3 + [(19, 20)] * 3
    for task, _ in spy.seen:
        assert task.start is trial.task.start and task.seed == trial.task.seed
        kept = [k for k in range(40) if k != 19 or sum(task.records) == 40]
        assert torch.equal(torch.cat([x for x, _ in task.shards]), inputs[kept])
        wrong = [float(k == 19) for k in kept]
        assert torch.cat([y for _, y in task.shards]).tolist() == wrong
    assert len({coins.child("c").bytes(16) for _, coins in spy.seen}) == 6
    assert not labels.any()  # the population's own labels are left alone


def test_a_false_claim_is_refuted_and_a_true_one_is_not() -> None:
    lie = StrongAdversary().measure(trial_of(Spy(epsilon=0.1)))
    assert lie.value == 1 and lie.details["claim_refuted"] is True
    assert lie.details["most_auc_allowed"] == pytest.approx(0.525, abs=1e-3)
    true = StrongAdversary().measure(trial_of(Spy(epsilon=0.1, tells=False)))
    assert true.details["claim_refuted"] is False and true.interval[0] < 0.5 < true.interval[1]
    none = StrongAdversary().measure(trial_of(Spy()))
    assert none.details["claimed_epsilon"] is None and "claim_refuted" not in none.details


def test_a_bound_is_stated_only_where_the_claim_covers_a_record_left_out() -> None:
    found = StrongAdversary(models=2).measure(
        trial_of(catalogue.scheme_with("local-dp", ["rounds=3"]), 60)
    )
    assert found.details["most_auc_allowed"] <= 1
    kept = StrongAdversary(models=2).measure(
        trial_of(
            catalogue.scheme_with(
                "selective-sgd", ["epsilon_over_c=100", "gamma=0.05", "epochs=1"]
            ),
            60,
        )
    )
    assert kept.details["claimed_epsilon"] > 0 and "most_auc_allowed" not in kept.details


def test_a_row_that_would_take_too_long_is_not_run_and_says_how_long() -> None:
    spy = Spy()
    found = StrongAdversary(seconds=1e-9).measure(trial_of(spy))
    assert found.value is None and found.access and len(spy.seen) == 1
    assert "not run: 12 trainings would take" in found.why and "raise seconds" in found.why


def test_the_estimate_counts_what_is_done_once_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 0.0, 100.0, 101.0, *[1e6] * 20])  # 100 s once, then 1 s a training
    monkeypatch.setattr(all_but_one, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert StrongAdversary(seconds=111.5).measure(trial_of(Spy())).value == 1
    ticks = iter([0.0, 0.0, 100.0, 101.0, *[1e6] * 20])
    refused = StrongAdversary(seconds=110.5).measure(trial_of(Spy()))
    assert refused.value is None and "1.9 min" in refused.why


def test_too_small_a_population_or_a_row_that_cannot_train_on_so_few_is_not_run() -> None:
    few = StrongAdversary().measure(trial_of(Spy(), 39))
    assert few.value is None and "40 records" in few.why
    tight = ["batch_size=20", "rounds=2"]
    wide = StrongAdversary().measure(trial_of(catalogue.scheme_with("federated-sgd", tight)))
    assert wide.value is None and "use a smaller batch" in wide.why


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"models": 1}, {"owners": 0}, {"records": 1}, {"seconds": 0}):
        with pytest.raises(ConfigError, match="at least 2 models"):
            StrongAdversary(**wrong)


def test_three_seeds_of_four_models_are_enough_to_tell() -> None:
    one = StrongAdversary(models=4).measure(trial_of(Spy()))
    assert one.interval[0] < 0.5 < 0.6 < pooled([one] * 3).interval[0]


def test_in_the_matrix_hiding_updates_does_not_hide_the_record_and_noise_does() -> None:
    private = DPSGD(
        epochs=20,
        lot_size=64,
        clip=0.5,
        learning_rate=1.0,
        epsilon=1.0,
        delta=1e-4,
        accountant=Accountant.RDP,
    )
    rows = (
        Row(name="centralised", title="", protection=Centralised(epochs=10), unprotected=True),
        Row(name="secure", title="", protection=SecureAggregation(rounds=8)),
        Row(name="dp-sgd", title="", protection=private),
        Row(name="sabotaged", title="", protection=private.sabotaged(), control=True),
    )
    settings = Settings(owners=3, records=10, population=100, hidden=16, seeds=1)
    result = compare(settings, rows, (StrongAdversary(),))
    cells = {p["name"]: p["cells"]["all-but-one@holder"] for p in result["protections"]}
    assert {name: cell["verdict"] for name, cell in cells.items()} == {
        "centralised": "leaks",
        "secure": "leaks",
        "dp-sgd": "contained",
        "sabotaged": "leaks",
    }
    details = cells["dp-sgd"]["details"]
    assert details["claimed_epsilon"] <= 1 and details["claim_refuted"] is False
    assert cells["centralised"]["details"]["every_training_gives_one_model"] is True
    assert details["every_training_gives_one_model"] is False
    assert cells["secure"]["knowledge"]["known_records"] == 39


def test_the_catalogue_has_the_column_and_the_page_says_where_it_stands() -> None:
    (plan,) = [p for p in catalogue.plans() if p.name == "all-but-one@holder"]
    assert isinstance(plan, StrongAdversary)
    assert "every record but one" in (words.vantage({"name": plan.name}) or "")
