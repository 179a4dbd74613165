"""Robustness of labels: counted literally, paid for in queries, and telling on an overfitted model."""

import pytest
import torch
from torch import nn

from tacit.attacks.access import Knowledge, Labels, QueryCounter
from tacit.attacks.label_only import LabelRobustness
from tacit.audit.statistics import auc, auc_interval
from tacit.core.errors import BudgetExhausted, ConfigError


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Recorder(nn.Module):
    """Class 1 where the sum of a record is positive; keeps what it was asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, inputs):
        self.asked.append(inputs.clone())
        total = inputs.flatten(1).sum(1)
        return torch.stack([-total, total], 1)


def scored(attack, model, inputs, labels, budget=None, seed=0):
    access = Labels(model, QueryCounter(budget))
    return attack.score(access, Knowledge(), inputs, labels, seeded(seed)), access.counter.spent


@pytest.mark.parametrize(
    "attack",
    [
        LabelRobustness(strength=0.5, copies=6),
        LabelRobustness(perturbation="flips", strength=0.3, copies=6),
        LabelRobustness(perturbation="shifts", strength=2),
    ],
    ids=lambda attack: attack.perturbation,
)
def test_the_score_is_the_share_of_right_labels_among_the_queries(attack):
    model, inputs = Recorder(), torch.rand(9, 1, 5, 4, generator=seeded(1)) - 0.5
    labels = torch.arange(9) % 2
    score, spent = scored(attack, model, inputs, labels)
    assert len(model.asked) == attack.queries
    assert spent == 9 * attack.queries
    assert torch.equal(model.asked[0], inputs)
    right = sum(((one.flatten(1).sum(1) > 0).long() == labels).double() for one in model.asked)
    assert torch.equal(score, right / attack.queries)
    assert 0 < score.mean() < 1


def test_noise_has_the_deviation_asked_for():
    model, inputs = Recorder(), torch.zeros(500, 20)
    scored(LabelRobustness(strength=0.25, copies=3), model, inputs, torch.zeros(500).long())
    for asked in model.asked[1:]:
        assert asked.std() == pytest.approx(0.25, rel=0.05)
    assert not torch.equal(model.asked[1], model.asked[2])


def test_flips_turn_that_share_of_features_round():
    model, inputs = Recorder(), (torch.rand(500, 20, generator=seeded(2)) < 0.5).float()
    attack = LabelRobustness(perturbation="flips", strength=0.1, copies=2)
    scored(attack, model, inputs, torch.zeros(500).long())
    for asked in model.asked[1:]:
        assert set(asked.unique().tolist()) == {0.0, 1.0}
        assert (asked != inputs).float().mean() == pytest.approx(0.1, abs=0.015)


def test_shifts_move_the_picture_by_the_distance_and_leave_zero():
    model, inputs = Recorder(), torch.zeros(1, 1, 7, 7)
    inputs[0, 0, 3, 3] = 1
    scored(LabelRobustness(perturbation="shifts", strength=2), model, inputs, torch.ones(1).long())
    places = [tuple(asked[0, 0].nonzero()[0].tolist()) for asked in model.asked[1:]]
    assert len(set(places)) == 8
    assert all(abs(down - 3) + abs(right - 3) == 2 for down, right in places)
    corner = torch.zeros(1, 1, 7, 7)
    corner[0, 0, 0, 6] = 1
    model.asked.clear()
    scored(LabelRobustness(perturbation="shifts", strength=1), model, corner, torch.ones(1).long())
    assert sorted(asked.sum().item() for asked in model.asked) == [0, 0, 1, 1, 1]


def test_it_finds_members_of_an_overfitted_model_that_right_and_wrong_alone_find_less_of():
    inputs = torch.randn(400, 20, generator=seeded(3))
    labels = (inputs[:, 0] + torch.randn(400, generator=seeded(4)) > 0).long()
    model = nn.Sequential(nn.Linear(20, 128), nn.Tanh(), nn.Linear(128, 2))
    with torch.no_grad():
        for weights in model.parameters():
            weights.copy_((torch.rand(weights.shape, generator=seeded(5)) - 0.5) / 3)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(inputs[:200]), labels[:200]).backward()
        optimiser.step()
    score, _ = scored(LabelRobustness(strength=0.7), model, inputs, labels)
    gap, _ = scored(LabelRobustness(strength=1e-6, copies=1), model, inputs, labels)
    low, _ = auc_interval(score[:200], score[200:])
    assert auc(score[:200], score[200:]) > auc(gap[:200], gap[200:]) + 0.02
    assert low > 0.55
    other, _ = scored(LabelRobustness(strength=0.7), model, torch.randn(400, 20, generator=seeded(6)), labels)  # fmt: skip
    low, high = auc_interval(other[:200], other[200:])
    assert low < 0.5 < high


def test_a_budget_too_small_for_all_records_is_refused_before_any_is_asked():
    model, attack = Recorder(), LabelRobustness(copies=4)
    with pytest.raises(BudgetExhausted):
        scored(attack, model, torch.zeros(3, 2), torch.zeros(3).long(), budget=14)
    assert not model.asked
    _, spent = scored(attack, model, torch.zeros(3, 2), torch.zeros(3).long(), budget=15)
    assert spent == 15


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"perturbation": "blur"}, "noise, flips or shifts expected"),
        ({"strength": 0.0}, "noise above 0"),
        ({"perturbation": "flips", "strength": 1.0}, "flips in"),
        ({"perturbation": "shifts", "strength": 1.5}, "whole shifts"),
        ({"copies": 0}, "at least 1 copy"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        LabelRobustness(**settings)


def test_records_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="a label for each of 3 records"):
        scored(LabelRobustness(), Recorder(), torch.zeros(3, 2), torch.zeros(2).long())
    shifts = LabelRobustness(perturbation="shifts", strength=2)
    for inputs in (torch.zeros(3, 4), torch.zeros(3, 1, 2, 9)):
        with pytest.raises(ConfigError, match="larger than 2 pixels"):
            scored(shifts, Recorder(), inputs, torch.zeros(3).long())
