"""Kinks: a network of one layer of ReLU comes out as it is, and what is no such network is refused."""

import time
from itertools import pairwise

import pytest
import torch
from torch import nn

from tacit.attacks.access import Knowledge, QueryCounter, Scores
from tacit.attacks.extraction import Box, Unfinished
from tacit.attacks.extraction_relu import KinkSearch
from tacit.audit.extraction_metrics import fidelity
from tacit.core.errors import ConfigError, NotEnoughEvidence
from tacit.nn.policies import EVERYTHING, Policy

BOX = Box(low=-1.0, high=1.0, dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def network(width, hidden, classes, seed=1, activation=nn.ReLU):
    sizes = (width, *hidden, classes)
    layers: list[nn.Module] = [nn.Flatten()]
    for below, above in pairwise(sizes):
        layers += [nn.Linear(below, above), activation()]
    model, generator = nn.Sequential(*layers[:-1]).double(), seeded(seed)
    with torch.no_grad():
        for weights in model.parameters():
            drawn = torch.randn(weights.shape, generator=generator, dtype=torch.float64)
            weights.copy_(drawn / weights.shape[-1] ** 0.5 if weights.dim() > 1 else 0.3 * drawn)
    return model


def extracted(
    target, width, classes, attack=None, *, policy=EVERYTHING, budget=None, seed=2, shape=None
):
    access = Scores(target, QueryCounter(budget), policy)
    knowledge = Knowledge(input_shape=shape or (width,), classes=classes)
    found = (attack or KinkSearch(box=BOX)).extract(access, knowledge, seeded(seed))
    assert access.counter.spent == found.queries
    return found


def near(target, found, width):
    return fidelity(target, found.model, BOX.drawn(2000, (width,), seeded(3)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("hidden", "classes"), [(3, 3), (8, 2), (20, 5)])
def test_a_network_is_found_up_to_order_and_factors_of_its_units(hidden, classes, seed):
    target = network(10, (hidden,), classes, seed)
    found = extracted(target, 10, classes, seed=seed + 10)
    assert found.determined and near(target, found, 10).largest_difference < 1e-7
    first = target[1]
    truth = torch.cat([first.bias[:, None], first.weight], 1).detach()
    truth = truth / first.weight.detach().norm(dim=1, keepdim=True)
    apart = torch.cdist(truth, found.model.inner.detach())
    assert apart.shape == (hidden, hidden)
    assert float(apart.min(1).values.max()) < 1e-6  # signs, too
    assert bool((found.model.affine[:, 1:] == 0).all())


def test_a_temperature_is_undone_and_records_may_have_any_shape():
    target = network(6, (5,), 3)
    found = extracted(target, 6, 3, policy=Policy(temperature=3.0), shape=(2, 3))
    assert near(target, found, 6).largest_difference < 1e-7


def test_dead_and_linear_units_and_duplicates_do_not_keep_the_function_hidden():
    target = network(8, (10,), 4)
    with torch.no_grad():
        target[1].bias[0] = -100.0  # dead
        target[1].bias[1] = 100.0  # never switches
        target[1].weight[3] = 2 * target[1].weight[2]
        target[1].bias[3] = 2 * target[1].bias[2]
        target[3].weight[:, 4] = 0.7  # the same for all classes, which softmax forgets
    found = extracted(target, 8, 4)
    assert len(found.model.inner) == 6  # 10 less dead, linear, duplicate and forgotten
    assert near(target, found, 8).largest_difference < 1e-7
    assert not found.determined  # what is linear in the box could be anything outside
    known = extracted(target, 8, 4, KinkSearch(box=BOX, hidden=10))
    assert not known.determined and near(target, known, 8).largest_difference < 1e-7


def test_a_number_of_units_that_is_known_ends_the_search_early():
    target = network(10, (12,), 3)
    known = extracted(target, 10, 3, KinkSearch(box=BOX, hidden=12))
    open_ = extracted(target, 10, 3)
    assert known.determined and len(known.model.inner) == 12
    assert known.queries < open_.queries
    assert near(target, known, 10).largest_difference < 1e-7


def test_a_constant_and_a_linear_target_have_no_kinks():
    for weights in (0.0, 0.3):
        target = nn.Linear(5, 3).double()
        for parameter in target.parameters():
            nn.init.constant_(parameter, weights)
        with torch.no_grad():
            target.weight[1] *= -1
        found = extracted(target, 5, 3)
        assert len(found.model.inner) == 0 and found.determined
        assert near(target, found, 5).largest_difference < 1e-12


@pytest.mark.parametrize(
    "target",
    [
        network(6, (10, 8), 3),
        network(6, (10,), 3, activation=nn.Tanh),
        nn.Sequential(network(6, (10,), 3), nn.Hardtanh(-0.5, 0.5)),
    ],
    ids=["two layers", "tanh", "clipped scores"],
)
def test_what_is_no_network_of_one_hidden_layer_of_relu_is_refused_soon(target):
    began = time.thread_time()
    with pytest.raises(NotEnoughEvidence, match="ReLU"):
        extracted(target, 6, 3, KinkSearch(box=BOX, lines=40))
    assert time.thread_time() - began < 10


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.Softplus])
@pytest.mark.parametrize("size", [0.3, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_a_smooth_target_is_refused_after_the_first_lines(activation, size, seed):
    target, generator = network(10, (8,), 3, activation=activation), seeded(seed)
    with torch.no_grad():
        for weights in target.parameters():
            drawn = torch.randn(weights.shape, generator=generator, dtype=torch.float64)
            weights.copy_(size * drawn)
    counter = QueryCounter()
    with pytest.raises(NotEnoughEvidence, match="no network of ReLU"):
        KinkSearch(box=BOX).extract(
            Scores(target, counter), Knowledge(input_shape=(10,), classes=3), seeded(1)
        )
    assert counter.spent < 50_000


def test_the_search_ends_at_the_most_queries():
    with pytest.raises(NotEnoughEvidence, match=r"raise KinkSearch\.most"):
        extracted(network(10, (20,), 3), 10, 3, KinkSearch(box=BOX, most=1000))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("classes", [2, 3])
def test_units_that_few_lines_cross_are_found_where_the_solution_errs(seed, classes):
    target, generator = network(10, (8,), classes), seeded(seed)
    with torch.no_grad():
        for weights in target.parameters():
            weights.copy_(torch.randn(weights.shape, generator=generator, dtype=torch.float64))
    found = extracted(target, 10, classes, KinkSearch(box=BOX, patience=2), seed=1)
    assert near(target, found, 10).largest_difference < 1e-6


def test_a_target_that_computes_in_float32_is_refused():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = network(6, (10,), 3).float()

        def forward(self, inputs):
            return self.inside(inputs.float())

    with pytest.raises(NotEnoughEvidence, match="float64"):
        extracted(Single(), 6, 3)


def test_probabilities_that_underflow_are_refused_with_the_remedy():
    target = network(6, (4,), 3)
    with torch.no_grad():
        target[3].weight *= 5000
    with pytest.raises(NotEnoughEvidence, match="narrower box"):
        extracted(target, 6, 3)


def test_a_budget_that_ends_halfway_keeps_what_was_asked():
    with pytest.raises(Unfinished) as kept:
        extracted(network(8, (10,), 3), 8, 3, budget=300)
    assert 200 <= len(kept.value.inputs) == len(kept.value.answers) <= 300


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (Policy(labels_only=True), "labels only"),
        (Policy(digits=6), "all digits"),
        (Policy(top_k=2), "all 3 classes"),
    ],
)
def test_a_policy_that_hides_the_kinks_is_refused_before_a_query(policy, says):
    counter = QueryCounter()
    with pytest.raises(ConfigError, match=says):
        KinkSearch(box=BOX).extract(
            Scores(network(4, (3,), 3), counter, policy),
            Knowledge(input_shape=(4,), classes=3),
            seeded(1),
        )
    assert counter.spent == 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"box": Box()}, "float64"),
        ({"hidden": 0}, "1 hidden unit"),
        ({"lines": 0}, "1 line"),
        ({"most": 0}, "1 query"),
        ({"patience": 0}, "patience"),
        ({"shortest": 0.5}, "shortest"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        KinkSearch(**settings)
