"""Membership inference wins on an overfitted model, guesses on another's, and pays for its queries."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from tacit.attacks.access import Knowledge, Labels, QueryCounter, Scores
from tacit.attacks.membership import (
    AttackNetworks,
    LabelGap,
    LossThreshold,
    ShadowModels,
    class_batches,
    shadow_records,
    trained_shadows,
    true_label_scores,
)
from tacit.attacks.shadow_data import NoisyRecords, SynthesisedRecords
from tacit.attacks.shadows import References
from tacit.audit.statistics import auc, auc_interval
from tacit.core.errors import BudgetExhausted, ConfigError
from tacit.nn.policies import EVERYTHING, Policy

ATTACKS = [LabelGap(), LossThreshold(), ShadowModels(shadows=4)]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def train(inputs, labels, generator):
    """An overfitted two-layer network."""
    width, hidden, classes = inputs.shape[1], 64, 10
    model = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, classes))
    with torch.no_grad():
        for weights in model.parameters():
            weights.copy_((torch.rand(weights.shape, generator=generator) - 0.5) / 4)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimiser.step()
    return model


@pytest.fixture(scope="module")
def world():
    """Members, non-members and a disjoint population of noisy digits; a fifth of the labels lies."""
    torch.set_num_threads(1)
    bunch = load_digits()
    generator = seeded(0)
    order = torch.randperm(1797, generator=generator)
    inputs = torch.tensor(bunch.data, dtype=torch.float32)[order] / 16
    labels = torch.tensor(bunch.target)[order]
    lies = torch.rand(1797, generator=generator) < 0.2
    labels = torch.where(lies, torch.randint(10, (1797,), generator=generator), labels)
    return {
        "members": (inputs[:300], labels[:300]),
        "nonmembers": (inputs[300:600], labels[300:600]),
        "population": (inputs[600:1200], labels[600:1200]),
        "elsewhere": (inputs[1200:1500], labels[1200:1500]),
    }


@pytest.fixture(scope="module")
def knowledge(world):
    return Knowledge(population=world["population"], train_fn=train, classes=10)


@pytest.fixture(scope="module")
def target(world):
    return train(*world["members"], seeded(1))


@pytest.fixture(scope="module")
def stranger(world):
    """Negative control: trained on none of the records that are asked about."""
    return train(*world["elsewhere"], seeded(1))


def scored(attack, model, knowledge, world):
    return [
        attack.score(attack.access(model), knowledge, *world[side], seeded(2))
        for side in ("members", "nonmembers")
    ]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_overfitted_model_is_attacked(attack, target, knowledge, world):
    members, nonmembers = scored(attack, target, knowledge, world)
    assert members.shape == (300,) and members.dtype == torch.float64
    assert auc_interval(members, nonmembers)[0] > 0.55


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_a_model_trained_on_other_data_gives_nothing(attack, stranger, knowledge, world):
    low, high = auc_interval(*scored(attack, stranger, knowledge, world), confidence=0.999)
    assert low < 0.5 < high


def test_probabilities_tell_more_than_labels(target, knowledge, world):
    by_name = {a.name: auc(*scored(a, target, knowledge, world)) for a in ATTACKS}
    assert by_name["membership-loss"] > by_name["membership-labels"] + 0.02
    assert by_name["membership-shadows"] > by_name["membership-labels"]


def test_loss_threshold_is_minus_the_loss(target, world):
    inputs, labels = world["members"]
    loss = nn.functional.cross_entropy(target(inputs).double(), labels, reduction="none")
    found = true_label_scores(Scores(target), inputs, labels)
    assert torch.allclose(found, -loss.detach(), atol=1e-6)


def test_a_probability_of_zero_has_a_finite_score():
    class Certain(nn.Module):
        def forward(self, x):
            return torch.tensor([[1e4, -1e4]]).expand(len(x), 2)

    found = true_label_scores(Scores(Certain()), torch.zeros(2, 3), torch.tensor([0, 1]))
    assert found[0] == 0 and -710 < found[1] < -700


class Spy(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, 0

    def forward(self, x):
        self.seen += len(x)
        return self.model(x)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_one_query_a_record_and_none_beyond_the_budget(attack, target, knowledge, world):
    spy = Spy(target)
    access = attack.access(spy, QueryCounter(budget=50))
    inputs, labels = (part[:40] for part in world["members"])
    attack.score(access, knowledge, inputs, labels, seeded(3))
    assert access.counter.spent == spy.seen == 40
    with pytest.raises(BudgetExhausted):
        attack.score(access, knowledge, inputs, labels, seeded(3))
    assert spy.seen == 40


def test_label_gap_works_on_labels_and_nothing_else(target, knowledge, world):
    inputs, labels = world["members"]

    class OnlyLabels:
        def labels(self, inputs):
            return Labels(target).labels(inputs)

    found = LabelGap().score(OnlyLabels(), knowledge, inputs, labels, seeded(3))
    assert set(found.tolist()) <= {0.0, 1.0}
    assert torch.equal(found == 1, target(inputs).argmax(1) == labels)


def test_shadow_models_see_the_population_and_nothing_else(world):
    inputs, labels = world["population"]
    told = []

    def watched(x, y, generator):
        told.append((x, y))
        return nn.Linear(64, 10)

    knowledge = Knowledge(population=world["population"], train_fn=watched, classes=10)
    references = trained_shadows(knowledge, world["population"], 3, seeded(4))
    vectors, classes, inside = shadow_records(references, EVERYTHING, torch.device("cpu"))
    assert vectors.shape == (3 * 600, 10) and inside.sum() == 3 * 300
    assert torch.equal(classes, labels.repeat(3))
    assert len({x.sum().item() for x, _ in told}) == 3  # other halves each time
    rows = {tuple(row.tolist()): int(label) for row, label in zip(inputs, labels, strict=True)}
    for x, y in told:
        assert len(x) == 300
        assert all(rows[tuple(r.tolist())] == int(c) for r, c in zip(x, y, strict=True))


def test_stacked_networks_equal_networks_trained_alone():
    generator = seeded(5)
    count, width, hidden = 4, 6, 64
    vectors = torch.softmax(torch.randn(400, width, generator=generator), 1).double()
    classes = torch.randint(count, (400,), generator=generator)
    inside = torch.rand(400, generator=generator) < 0.5
    start = AttackNetworks.drawn(count, width, hidden, generator)
    batches = list(class_batches(vectors, classes, inside, count, 16, 100, generator))
    stacked = start.trained(batches, 0.01)
    assert not torch.allclose(stacked.inner, start.inner, atol=0.01)
    for c in range(count):
        alone = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        with torch.no_grad():
            alone[0].weight.copy_(start.inner[c].T)
            alone[0].bias.copy_(start.inner_bias[c, 0])
            alone[2].weight.copy_(start.outer[c].T)
            alone[2].bias.copy_(start.outer_bias[c, 0])
        optimiser = torch.optim.Adam(alone.parameters(), lr=0.01)
        for x, y in batches:
            optimiser.zero_grad()
            logits = alone(x[c]).squeeze(1)
            nn.functional.binary_cross_entropy_with_logits(logits, y[c]).backward()
            optimiser.step()
        mine = classes == c
        oracle = alone(vectors[mine].float()).squeeze(1).double()
        found = stacked.log_odds(vectors, classes, batch=7)[mine]
        assert torch.allclose(found, oracle, atol=1e-5, rtol=1e-5)


def test_batches_hold_as_many_members_as_others_of_the_right_class():
    classes = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    inside = torch.tensor([True, False, False, True, False, True, True])
    vectors = torch.arange(7.0)[:, None]
    seen = [set(), set(), set(), set()]
    for x, y in class_batches(vectors, classes, inside, 4, 8, 50, seeded(6)):
        assert x.shape == (4, 8, 1) and y.sum(1).tolist() == [4.0] * 4
        rows = x[..., 0].long()
        assert torch.equal(inside[rows], y.bool())
        for c in range(4):
            seen[c] |= set(rows[c].tolist())
    assert seen[0] == {0, 1, 2} and seen[1] == {3, 4}
    # Class 2 has no outsider, class 3 nothing at all: both draw from everything.
    assert seen[2] == seen[3] == set(range(7))


def test_the_same_generator_gives_the_same_scores(target, knowledge, world):
    attack = ShadowModels(shadows=1, steps=20)
    runs = [
        attack.score(Scores(target), knowledge, *world["members"], seeded(s)) for s in (7, 7, 8)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_shadow_models_answer_under_the_targets_policy(target, knowledge, world):
    """The networks see the same kind of vectors from the shadow models as from the target."""
    generator = seeded(10)
    logits = torch.randn(2, 1, 6, 10, generator=generator)
    inside = torch.rand(2, 6, generator=generator) < 0.5
    references = References(
        inside=inside.numpy(), logits=logits.numpy(), labels=torch.arange(6).numpy()
    )
    vectors, classes, members = shadow_records(references, Policy(top_k=2), torch.device("cpu"))
    assert vectors.shape == (12, 10) and bool(((vectors > 0).sum(1) == 2).all())
    every = torch.softmax(logits[:, 0].flatten(0, 1), 1)
    torch.testing.assert_close(vectors[vectors > 0], every[vectors > 0])
    assert classes.tolist() == [*range(6), *range(6)]
    assert torch.equal(members, inside.flatten())

    attack, told = ShadowModels(shadows=2), {}
    trained = trained_shadows(knowledge, world["population"], 2, seeded(2))
    for policy in (EVERYTHING, Policy(labels_only=True)):
        networks = attack.taught(trained, seeded(2), policy)
        access = Scores(target, policy=policy)
        inside, outside = (
            attack.judged(networks, access, *world[side]) for side in ("members", "nonmembers")
        )
        told[policy.name] = auc(inside, outside)
    # Of a label, whether it is right: what the gap in accuracy gives, and no more.
    gap = auc(*scored(LabelGap(), target, knowledge, world))
    assert told["none"] > told["labels"] + 0.02
    assert abs(told["labels"] - gap) < 0.05
    with pytest.raises(ConfigError, match="at most 10 classes"):
        attack.taught(references, generator, Policy(top_k=11))


def test_shadow_data_come_from_the_source_that_is_given(target, world):
    seen = []

    def watched(x, y, generator):
        seen.append(x)
        return nn.Linear(64, 10)

    inputs, labels = world["population"]
    binary = ((inputs > 0.5).float(), labels)
    knowledge = Knowledge(population=binary, train_fn=watched, classes=10)
    ShadowModels(shadows=2, steps=1, data=NoisyRecords(share=0.25)).learn(knowledge, seeded(11))
    moved = torch.cdist(torch.cat(seen), binary[0], p=1).min(1).values
    assert len(moved) == 600 and bool((moved > 0).all())
    with pytest.raises(ConfigError, match="give access to its scores"):
        ShadowModels(data=SynthesisedRecords(per_class=1)).learn(knowledge, seeded(11))


def test_what_is_missing_or_wrong_is_said(target, world, knowledge):
    inputs, labels = world["members"]
    attack = ShadowModels(shadows=1, steps=1)

    def told(knowledge, labels=labels):
        return attack.score(Scores(target), knowledge, inputs, labels, seeded(9))

    with pytest.raises(ConfigError, match="train_fn, classes"):
        told(Knowledge())
    with pytest.raises(ConfigError, match="real shadow data needs to know population"):
        told(Knowledge(train_fn=train, classes=10))
    with pytest.raises(ConfigError, match="at least 4 shadow records"):
        few = tuple(part[:3] for part in world["population"])
        told(Knowledge(population=few, train_fn=train, classes=10))
    with pytest.raises(ConfigError, match="labels 0 to 9 expected"):
        told(knowledge, labels + 5)
    with pytest.raises(ConfigError, match="one label a record"):
        told(knowledge, labels[:-1])
    with pytest.raises(ConfigError, match="answers with 10"):
        told(Knowledge(population=world["population"], train_fn=train, classes=11))
    for bad in ({"shadows": 0}, {"batch_size": 5}, {"learning_rate": 0.0}, {"steps": 0}):
        with pytest.raises(ConfigError):
            ShadowModels(**bad)
