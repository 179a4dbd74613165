"""The column that trains each row again with an insider: what it counts, against what, and where it cannot stand."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tacit.audit.cells import Judge, Measurement, Trial, pooled
from tacit.audit.compare import Row, compare
from tacit.audit.gan_cells import ATTACK, InsiderAt, named, with_fresh_class
from tacit.audit.gan_metrics import GANJudges, JudgeRecipe
from tacit.audit.statistics import clopper_pearson, verdict
from tacit.audit.world import Settings, deal, imitation
from tacit.catalogue import rows
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.dp.accounting import Accountant
from tacit.nn.data import load
from tacit.nn.networks import mlp
from tacit.parties.views import FULL
from tacit.training.dp_sgd import DPSGD
from tacit.training.plain import Centralised, FederatedAveraging, FederatedSGD
from tacit.training.secure_aggregation import Federated, SecureAggregation
from tacit.training.user_level_dp import UserLevelDP

SIZES = Settings(owners=3, records=30, population=400, hidden=16, seeds=1, seed=1)
BLIND = InsiderAt(replace(ATTACK, start_accuracy=0.0), steps=1, judged=10)


@pytest.fixture(autouse=True)
def _no_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """The world's own evaluator takes seconds to train, and has no part here."""
    judge = Judge(model=nn.Linear(1, 1), accuracy=1.0)
    monkeypatch.setattr("tacit.audit.world.train_judge", lambda *_: judge)


@cache
def world_of(seed: int) -> Any:
    return deal(load("digits"), SIZES, seed)


def trial(protection: Any, seed: int = 1, **changes: Any) -> Trial:
    """A trained row; ``changes`` are to the trial."""
    world = world_of(seed)
    run = protection.train(world.task, coins=Coins.from_seed(b"row"), recording=FULL)
    return replace(
        Trial(
            protection=protection, run=run, task=world.task, members=world.members, nonmembers=world.nonmembers,
            population=world.population, train_fn=imitation(world.task, SIZES), judge=world.judge, seed=seed,
        ),
        **changes,
    )  # fmt: skip


class Sees(nn.Module):
    """A judge that takes every image for one class."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot(torch.full((len(images),), self.label), 11).float()


def judged_by(label: int) -> dict[str, Any]:
    judge = Judge(model=Sees(label), accuracy=1.0)
    return {f"{BLIND.name}/judges": GANJudges(plain=judge, aware=judge)}


def test_a_cell_tells_all_that_was_measured() -> None:
    scheme = FederatedAveraging(rounds=36, local_steps=1, batch_size=8)  # more than frames are kept
    row = Row(name="averaging", title="", protection=scheme, unprotected=True)
    quick = replace(
        BLIND, steps=72, judges=JudgeRecipe(steps=20, width=4, generators=1, steps_of_each=4)
    )
    report = compare(SIZES, [row], [quick])
    (column,), (found,) = report["attacks"], report["protections"]
    cell = found["cells"]["gan-insider@participant"]
    assert cell["error"] is None and column["about"] == "records"
    assert 0.1 <= cell["chance"] <= 1 and 0.1 <= cell["value"] <= 1
    details, passive = cell["details"], cell["details"]["passive"]
    assert details["began"] == passive["began"] == 3 and details["steps_a_round"] == 2
    assert passive["nn_ratio"] > 1
    assert cell["knowledge"]["own_records"] < SIZES.records
    assert cell["saw"] == {"models": scheme.rounds}
    images, target = cell["figures"]["images"], cell["knowledge"]["target"]
    rounds = [f"round {round}" for round in range(33, 5, -3)]  # the last ten that were watched
    assert [one["caption"] for one in images] == [
        f"class {target}, {when}" for when in ["the end", *rounds, *["the end"] * 9]
    ]
    first = images[0]
    assert len(first["original"]) == len(first["reconstruction"]) == 8


@pytest.mark.slow
def test_on_an_unprotected_row_an_insider_shows_the_class_and_a_passive_one_does_not() -> None:
    sizes = Settings(seeds=1, seed=101)
    (row,) = (one for one in rows() if one.name == "federated-averaging")
    world = deal(load("digits"), sizes, sizes.seed)
    run = row.protection.train(world.task, coins=Coins.from_seed(b"row"), recording=FULL)
    found = InsiderAt().measure(
        Trial(
            protection=row.protection, run=run, task=world.task, members=world.members, nonmembers=world.nonmembers,
            population=world.population, train_fn=imitation(world.task, sizes), judge=world.judge, seed=sizes.seed,
        )
    )  # fmt: skip
    assert found.value is not None and found.value > 0.6 and found.chance < 0.3
    details, passive = found.details, found.details["passive"]
    assert details["nn_ratio"] < 1.5 < passive["nn_ratio"]
    assert details["began"] == passive["began"] and details["accuracy"] > 0.5


def test_the_insider_holds_no_record_of_the_target_and_everybody_else_all_of_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, seen = trial(FederatedAveraging(rounds=1)), []
    train = FederatedAveraging.train

    def watched(self: FederatedAveraging, task: Any, **how: Any) -> Any:
        seen.append(task)
        return train(self, task, **how)

    monkeypatch.setattr(FederatedAveraging, "train", watched)
    found = BLIND.measure(replace(one, shared=judged_by(0)))
    target = found.knowledge["target"]
    active, passive = seen
    assert active.shards == passive.shards and active.start is passive.start
    assert active.shards[:2] == one.task.shards[:2] and active.classes == 11
    kept, before = active.shards[2][1], one.task.shards[2][1]  # type: ignore[index]
    assert kept.tolist() == [label for label in before.tolist() if label != target]
    assert found.knowledge["own_records"] == len(kept)
    assert {one.owners[-1] for one in seen} == set(active.instead)


def test_images_that_show_nothing_leave_a_guess() -> None:
    assert named(0, 10) == 0.1 and named(1, 10) == 1 and named(0.5, 2) == 0.75
    one = trial(FederatedAveraging(rounds=1))
    junk = BLIND.measure(replace(one, shared=judged_by(10)))
    assert junk.value == junk.chance == 0.1 and junk.n == 10
    target = junk.knowledge["target"]
    distinct = junk.details["distinct"]
    assert distinct > 0
    shown = BLIND.measure(replace(one, shared=judged_by(target)))  # type: ignore[arg-type]
    assert shown.value == pytest.approx(named(distinct / 10, 10), abs=0.05)
    both = pooled([junk, shown])
    assert shown.value is not None and both.value == pytest.approx((0.1 + shown.value) / 2)
    assert both.n == 20 and both.details["by_seed"] == [0.1, shown.value]


def test_seeds_that_all_show_the_target_leak_however_much_they_differ() -> None:
    cells = [
        Measurement(metric="class_shown", value=hits / 100, n=100, chance=0.1, interval=clopper_pearson(hits, 100))
        for hits in (63, 99, 100)
    ]  # fmt: skip
    both = pooled(cells)
    assert both.value is not None and both.interval[0] > 0.8
    assert verdict(both.value, both.interval, both.chance, baseline_leaks=False) == "leaks"


@pytest.mark.parametrize("target", [0, 1, 9])
def test_any_class_can_be_the_target(target: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tacit.audit.gan_cells._target", lambda _: target)
    one = trial(FederatedAveraging(rounds=1))
    found = BLIND.measure(replace(one, shared=judged_by(target)))  # type: ignore[arg-type]
    assert found.knowledge["target"] == target and found.value is not None and found.value > 0.1


@pytest.mark.parametrize(
    "protection",
    [
        Centralised(epochs=1),
        DPSGD(epochs=1, lot_size=30, noise_multiplier=1.0, accountant=Accountant.RDP),
    ],
)
def test_where_no_owner_trains_there_is_nothing_to_take_part_in(protection: Any) -> None:
    found = BLIND.measure(trial(protection))
    assert not found.access and found.value is None and "finished model alone" in found.why


def refused(one: Trial) -> Measurement:
    found = BLIND.measure(replace(one, shared=judged_by(0)))
    assert found.access and found.value is None and found.why.startswith("not run: ")
    return found


def test_a_scheme_that_lets_no_owner_train_as_it_likes_says_so() -> None:
    scheme = SecureAggregation(
        rounds=3,
        federated=Federated.SGD,
        local_steps=1,
        batch_size=8,
        noise_multiplier=1.0,
        accountant=Accountant.RDP,
    )
    assert "in place of honest training" in refused(trial(scheme)).why


def test_what_cannot_be_drawn_is_said() -> None:
    one = trial(FederatedAveraging(rounds=1))

    def shaped(*shape: int) -> Any:
        def of(records: Any) -> Any:
            return torch.zeros(len(records[0]), *shape), records[1]

        task = replace(
            one.task,
            start=mlp(shape, (4,), 10, generator=torch.Generator().manual_seed(0)),
            shards=tuple(map(of, one.task.shards)),
            input_shape=shape,
        )
        return replace(one, task=task, nonmembers=of(one.nonmembers), population=of(one.population))

    assert "no images" in refused(shaped(64)).why
    assert "cannot be halved" in refused(shaped(1, 28, 23)).why
    inputs, labels = one.task.shards[2]  # type: ignore[misc]
    alone = replace(one.task, shards=((inputs, labels * 0), (inputs, labels * 0)))
    assert "no class has two records" in refused(replace(one, task=alone)).why
    with pytest.raises(ConfigError, match="ends in Linear: a linear layer with 9 outputs"):
        with_fresh_class(one.task.start, 9, torch.Generator())


def test_a_model_is_given_one_output_and_all_of_it_is_drawn_by_the_generator() -> None:
    start = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 2, bias=False)))
    first, again = (
        with_fresh_class(start, 2, torch.Generator().manual_seed(seed)) for seed in (1, 1)
    )
    shapes = [tuple(p.shape) for p in first.parameters()]
    assert shapes == [(3, 4), (3,), (3, 3)] and start[2][0].out_features == 2
    assert first(torch.zeros(5, 4)).shape == (5, 3)
    pairs = list(zip(first.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(pairs[0][0], start[1].weight)


def test_a_training_that_diverges_is_an_outcome() -> None:
    wild = replace(
        trial(FederatedSGD(rounds=1)), protection=FederatedSGD(rounds=60, learning_rate=1e30)
    )
    found = BLIND.measure(replace(wild, shared=judged_by(10)))
    assert found.value == found.chance == 0.1 and found.details["accuracy"] is None
    assert "diverged" in found.why and found.details["diverged"] in found.why


def test_an_insider_that_never_begins_leaves_a_guess() -> None:
    patient = replace(BLIND, attack=replace(ATTACK, start_accuracy=1.0))
    one = trial(UserLevelDP(rounds=2, local_steps=1, noise_multiplier=50.0, delta=1e-3))
    found = patient.measure(replace(one, shared=judged_by(10)))
    assert found.value == 0.1 and found.details["began"] is None and "never began" in found.why
