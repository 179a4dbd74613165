"""Reference models as columns: trained once a seed on what is asked about, told in the cell, and blind to the truth."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tacit.attacks.likelihood_ratio import LiRA
from tacit.attacks.membership import ShadowModels
from tacit.attacks.rmia import RMIA
from tacit.attacks.shadows import ShadowEnsemble
from tacit.audit.cells import Judge, Trial
from tacit.audit.compare import Row, compare
from tacit.audit.membership_cells import MembershipFrom, ReferenceModels
from tacit.audit.world import Settings, World, deal, imitation
from tacit.core.errors import ConfigError
from tacit.nn.data import load
from tacit.nn.local_work import fit
from tacit.nn.networks import mlp
from tacit.training.plain import Centralised, FederatedAveraging

SIZES = Settings(owners=4, records=25, population=200, hidden=16, seeds=1)
LIRA = ReferenceModels(LiRA(), "by likelihood ratio", 8)
RISE = ReferenceModels(RMIA(online=True), "by RMIA", 8)
SHADOWS = MembershipFrom(ShadowModels(shadows=2, steps=5), "by shadow models", "scores")
CENTRAL = Row(name="centralised", title="", protection=Centralised(epochs=2), unprotected=True)
AVERAGE = Row(name="averaging", title="", protection=FederatedAveraging(rounds=1), unprotected=True)


@cache
def world_of(seed: int) -> World:
    return deal(load("digits"), SIZES, seed)


def trial(seed: int = 0, *, members: bool = True) -> Trial:
    """A target of the adversary's own recipe, trained on the members, or on others that nobody asks about."""
    world = world_of(seed)
    recipe = imitation(world.task, SIZES)
    trained = world.members if members else world.population
    model = recipe(*trained, torch.Generator().manual_seed(seed + 50))
    run: Any = SimpleNamespace(output=SimpleNamespace(value=model))
    return Trial(
        protection=Centralised(), run=run, task=world.task, members=world.members, nonmembers=world.nonmembers,
        population=world.population, train_fn=recipe, judge=world.judge, seed=seed, shared=world.shared,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _no_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is reconstructed, and an evaluator takes seconds to train."""
    monkeypatch.setattr(
        "tacit.audit.world.train_judge", lambda *_: Judge(model=torch.nn.Identity(), accuracy=1.0)
    )


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The inputs of every ensemble that is trained."""
    seen: list[torch.Tensor] = []
    train = ShadowEnsemble.train

    def watched(self: ShadowEnsemble, inputs: torch.Tensor, *more: Any) -> Any:
        seen.append(inputs)
        return train(self, inputs, *more)

    monkeypatch.setattr(ShadowEnsemble, "train", watched)
    return seen


def test_one_ensemble_serves_all_rows_and_attacks_of_a_seed_and_shadow_models_see_none_of_it(
    pools: list[torch.Tensor],
) -> None:
    result = compare(replace(SIZES, seeds=2), (CENTRAL, AVERAGE), (SHADOWS, LIRA, RISE))
    assert [c["error"] for p in result["protections"] for c in p["cells"].values()] == [None] * 6
    assert [len(pool) for pool in pools] == [120, 200, 120, 200]
    for of_population, asked in (pools[:2], pools[2:]):
        assert not {x.numpy().tobytes() for x in of_population} & {x.numpy().tobytes() for x in asked}  # fmt: skip


def test_what_the_adversary_holds_is_printed_in_the_cell() -> None:
    for plan, name in ((LIRA, "membership-lira@scores"), (RISE, "membership-rmia@scores")):
        found = plan.measure(trial())
        assert plan.name == name
        assert found.knowledge == {
            "input_shape": [1, 8, 8], "classes": 10, "training_recipe": True, "candidate_records": 200,
            "reference_models": 8,
        }  # fmt: skip
        assert found.queries == 200 and found.n == 200
        assert found.details["reference_models_train_on"] == 100  # as many as the target
        assert found.details["reference_models_gap"] > 0
        assert found.details["reference_models_gap_p_value"] < 0.05
    assert replace(LIRA, attack=LiRA(online=False)).name == "membership-lira-offline@scores"


def test_members_are_told_and_where_nobody_is_a_member_nobody_is() -> None:
    told, silence = ([trial(seed, members=members) for seed in range(4)] for members in (True, False))  # fmt: skip
    for plan in (LIRA, RISE):
        assert np.mean([plan.measure(one).value for one in told]) > 0.6
        assert 0.42 < np.mean([plan.measure(one).value for one in silence]) < 0.58


def test_reference_models_that_learn_nothing_show_in_the_details_and_stop_nothing() -> None:
    recipe = imitation(world_of(0).task, SIZES)
    recipe = replace(recipe, recipe=replace(recipe.recipe, epochs=1, learning_rate=1e-6))
    lazy = replace(trial(), shared={}, train_fn=recipe)
    found = LIRA.measure(lazy)
    assert found.value is not None and found.details["reference_models_gap_p_value"] > 0.05


@pytest.mark.parametrize("models", [0, 2, 7])
def test_an_odd_number_of_reference_models_or_too_few_is_refused(models: int) -> None:
    with pytest.raises(ConfigError, match="even number of models from 4 on"):
        replace(LIRA, models=models)


def test_the_imitation_is_60_epochs_of_plain_sgd() -> None:
    world = deal(load("digits"), SIZES, 0)
    generator = torch.Generator().manual_seed(3)
    literal = fit(
        mlp((1, 8, 8), (16,), 10, generator=generator), *world.members,
        epochs=60, batch_size=16, learning_rate=0.1, generator=generator,
    )  # fmt: skip
    model = imitation(world.task, SIZES)(*world.members, torch.Generator().manual_seed(3))
    for ours, theirs in zip(model.parameters(), literal.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
