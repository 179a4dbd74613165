"""A network from labels alone: adaptive records are worth more than uniform ones, and budgets are kept to the record."""

import pytest
import torch
from torch import nn

from tacit.attacks.access import Knowledge, Labels, QueryCounter
from tacit.attacks.extraction import Box, Unfinished
from tacit.attacks.extraction_network_labels import NetworkRetraining
from tacit.audit.extraction_metrics import fidelity
from tacit.core.errors import ConfigError, DataError

BOX = Box(low=-1.0, high=1.0, dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def network(width=8, hidden=6, classes=3, seed=1):
    model = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, classes)).double()
    generator = seeded(seed)
    with torch.no_grad():
        for weights in model.parameters():
            weights.copy_(torch.randn(weights.shape, generator=generator, dtype=torch.float64))
    return model


def extracted(target, attack, *, budget=None, classes=3, seed=2, shape=(8,)):
    access = Labels(target, QueryCounter(budget))
    found = attack.extract(access, Knowledge(input_shape=shape, classes=classes), seeded(seed))
    assert access.counter.spent == found.queries
    return found


def agreement(target, found):
    return fidelity(target, found.model, BOX.drawn(5000, (8,), seeded(3))).agreement.value


def smooth(seed):
    """A network whose units are far from saturated, as after a training on scaled tables."""
    target = network(20, 5, seed=seed)
    with torch.no_grad():
        target[0].weight /= 20**0.5
    return target


def test_of_smooth_targets_adaptive_records_tell_more_than_as_many_uniform_ones():
    missed = {"adaptive": 0.0, "uniform": 0.0}
    for seed in range(2):
        target = smooth(seed)
        for choice in missed:
            attack = NetworkRetraining(
                queries=1500, box=BOX, hidden=5, rounds=4, steps=60, choice=choice
            )
            found = extracted(target, attack, seed=seed, shape=(20,))
            inputs = BOX.drawn(5000, (20,), seeded(3))
            missed[choice] += (1 - fidelity(target, found.model, inputs).agreement.value) / 2
    assert missed["adaptive"] < 0.02
    assert missed["adaptive"] < 0.75 * missed["uniform"]


def test_float64_and_other_widths_than_the_targets_do_as_well():
    target = network()
    for settings in ({"double": True}, {"hidden": 12}):
        attack = NetworkRetraining(
            **{"queries": 1000, "box": BOX, "hidden": 6, "rounds": 2, "steps": 60, **settings}
        )
        assert agreement(target, extracted(target, attack)) > 0.9


@pytest.mark.parametrize("queries", [1, 9, 100, 103])
def test_no_more_and_no_fewer_queries_than_said(queries):
    for choice in ("adaptive", "uniform"):
        attack = NetworkRetraining(queries=queries, box=BOX, hidden=3, choice=choice, steps=10)
        assert extracted(network(), attack).queries == queries


def test_a_target_of_one_class_and_one_of_duplicate_classes_end_with_a_model():
    constant, doubled = network(), network()
    with torch.no_grad():
        constant[2].bias[1] = 1e3
        doubled[2].weight[1], doubled[2].bias[1] = doubled[2].weight[0], doubled[2].bias[0]
    attack = NetworkRetraining(queries=300, box=BOX, hidden=4, steps=30)
    assert agreement(constant, extracted(constant, attack)) == 1
    assert agreement(doubled, extracted(doubled, attack)) > 0.8


def test_a_budget_that_ends_halfway_keeps_what_was_asked():
    attack = NetworkRetraining(queries=90, box=BOX, hidden=3, steps=10)
    with pytest.raises(Unfinished, match="50 records asked about") as kept:
        extracted(network(), attack, budget=55)
    model = attack.solve(kept.value.inputs, kept.value.answers, 3, seeded(4))
    assert model(kept.value.inputs).shape == (50, 3)


def test_a_label_that_is_no_class_is_refused():
    with pytest.raises(DataError, match="labels 0 to 1 expected"):
        extracted(network(), NetworkRetraining(queries=50, box=BOX), classes=2)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"queries": 0}, "1 query"),
        ({"hidden": 0}, "hidden unit"),
        ({"rounds": 0}, "round"),
        ({"steps": 0}, "step"),
        ({"ridge": 0.0}, "ridge above 0"),
        ({"choice": "random"}, "uniform or adaptive"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        NetworkRetraining(**{"queries": 9, **settings})
