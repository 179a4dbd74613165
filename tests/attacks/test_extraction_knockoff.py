"""Knockoffs: a network of another architecture learns what the target says about natural records."""

import math

import pytest
import torch
from torch import nn

from tacit.attacks.access import Knowledge, Labels, QueryCounter, Scores
from tacit.attacks.extraction import Unfinished
from tacit.attacks.extraction_knockoff import Knockoff, _pulled, _rewards, fit_to
from tacit.audit.extraction_metrics import fidelity
from tacit.core.errors import ConfigError, DataError, Diverged
from tacit.nn.data import load
from tacit.nn.networks import mlp
from tacit.nn.policies import Policy
from tacit.nn.stacked import Recipe, Trainer


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def world():
    """A target of 64 tanh units, trained on half of the digits; the adversary's half; the test images."""
    data = load("digits")
    order = torch.randperm(len(data.inputs_train), generator=seeded(0))
    theirs, own = order[:721], order[721:]
    trainer = Trainer(
        network=lambda draw: mlp((1, 8, 8), (64,), 10, nn.Tanh, generator=draw),
        recipe=Recipe(epochs=30, batch_size=32, learning_rate=0.002),
    )
    target = trainer(data.inputs_train[theirs], data.labels_train[theirs], seeded(1))
    return target, (data.inputs_train[own], data.labels_train[own]), data.inputs_test


def known(world, **more):
    architecture = mlp((1, 8, 8), (100,), 10, generator=seeded(9))
    return Knowledge(
        **{"architecture": architecture, "population": world[1], "classes": 10, **more}
    )


def copied(world, attack, access=Scores, *, seed=5, **settings):
    given = access(world[0], QueryCounter(), **settings)
    found = attack.extract(given, known(world), seeded(seed))
    assert given.counter.spent == found.queries == attack.queries
    return fidelity(world[0], found.model, world[2]).agreement.value


@pytest.mark.parametrize("choice", ["random", "adaptive"])
def test_a_knockoff_agrees_with_its_target_from_scores_and_from_labels(world, choice):
    attack = Knockoff(queries=300, choice=choice)
    assert copied(world, attack) > 0.93
    assert copied(world, attack, Labels) > 0.9


def test_scores_tell_more_than_labels_and_more_queries_more_than_few(world):
    many, few = Knockoff(queries=400), Knockoff(queries=60)
    scores, labels = (
        [copied(world, many, access, seed=seed) for seed in range(3)] for access in (Scores, Labels)
    )
    assert sum(scores) > sum(labels)
    assert min(scores) > copied(world, few)


def test_answers_that_are_cut_or_rounded_away_still_teach(world):
    attack = Knockoff(queries=200)
    for policy in (Policy(top_k=1), Policy(digits=1), Policy(labels_only=True)):
        assert copied(world, attack, policy=policy) > 0.85


def test_the_bandit_asks_more_about_what_pays():
    """Of two kinds of records the target always says the same about one and varied things about the other."""
    generator = seeded(3)
    dull = torch.zeros(400, 4)
    lively = 3 * torch.randn(400, 4, generator=generator)
    labels = torch.cat([torch.zeros(400), torch.ones(400)]).long()
    asked = []

    class Target(nn.Module):
        def forward(self, inputs):
            asked.append(inputs)
            return inputs @ torch.eye(4) * 4 + torch.tensor([1.0, 0, 0, 0])

    network = mlp((4,), (8,), 4, generator=seeded(1))
    knowledge = Knowledge(
        architecture=network, population=(torch.cat([dull, lively]), labels), classes=4
    )
    attack = Knockoff(queries=240, choice="adaptive", rounds=24, rate=6.0)
    attack.extract(Scores(Target()), knowledge, seeded(2))
    shares = [float((one.abs().sum(1) > 0).double().mean()) for one in asked]
    assert sum(shares[-8:]) / 8 > 0.75 > sum(shares[:2]) / 2
    every = torch.cat(asked)
    assert len(every[every.abs().sum(1) > 0].unique(dim=0)) == int((every.abs().sum(1) > 0).sum())


def test_arms_that_are_used_up_are_pulled_no_more():
    left = [[1, 2], [], [3, 4, 5]]
    pulled = _pulled(torch.tensor([0.0, 0.999, 0.001]).double(), left, 5, seeded(1))
    assert sorted(pulled) == [0, 0, 2, 2, 2]


def test_rewards_are_margin_news_and_loss():
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    shares = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).double()
    known = torch.tensor([0.6, 0.4]).double()
    found = _rewards(model, torch.zeros(2, 2), shares, known)
    assert torch.allclose(
        found, torch.tensor([[0.8, 0.3, math.log(2)], [0.0, 0.1, math.log(2)]]).double()
    )


def test_a_budget_that_ends_halfway_keeps_what_was_asked(world):
    attack = Knockoff(queries=200, choice="adaptive", rounds=10)
    with pytest.raises(Unfinished, match="60 records asked about") as kept:
        attack.extract(Scores(world[0], QueryCounter(70)), known(world), seeded(1))
    assert kept.value.answers.shape == (60, 10)


def test_what_is_lacking_or_does_not_fit_is_refused(world):
    access = Scores(world[0])
    with pytest.raises(ConfigError, match="needs to know architecture"):
        Knockoff(queries=5).extract(access, known(world, architecture=None), seeded(1))
    with pytest.raises(ConfigError, match="as many own records as queries"):
        Knockoff(queries=10_000).extract(access, known(world), seeded(1))
    with pytest.raises(ConfigError, match="9 classes are known"):
        Knockoff(queries=5).extract(access, known(world, classes=9), seeded(1))
    with pytest.raises(DataError, match="labels 0 to 4"):
        Knockoff(queries=50).extract(Labels(world[0]), known(world, classes=5), seeded(1))


def test_a_training_that_diverges_is_said():
    model = mlp((2,), (3,), 2, generator=seeded(1))
    recipe = Recipe(epochs=3, batch_size=4, learning_rate=1e30, optimiser="sgd")
    inputs = 1e15 * torch.ones(8, 2)
    shares = torch.full((8, 2), 0.5)
    shares[:4] = torch.tensor([1.0, 0.0])
    with pytest.raises(Diverged, match="lower the learning rate"):
        fit_to(model, inputs, shares, recipe, seeded(1))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"queries": 0}, "1 query"),
        ({"rounds": 0}, "1 round"),
        ({"rate": 0.0}, "a rate above 0"),
        ({"choice": "uniform"}, "random or adaptive"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        Knockoff(**{"queries": 9, **settings})
