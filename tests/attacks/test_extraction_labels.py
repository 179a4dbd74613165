"""Labels alone: the plane between two classes by halving, boundaries by retraining where the model wavers."""

import math

import pytest
import torch
from torch import nn

from tacit.attacks.access import Knowledge, Labels, QueryCounter
from tacit.attacks.extraction import Box, Unfinished
from tacit.attacks.extraction_labels import LineSearch, Retraining
from tacit.audit.extraction_metrics import fidelity
from tacit.core.errors import ConfigError, DataError, NotEnoughEvidence
from tacit.nn.tables import load_table

BOX = Box(low=-1.0, high=1.0, dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def plane(width, classes=2, seed=1):
    model = nn.Sequential(nn.Flatten(), nn.Linear(width, classes)).double()
    with torch.no_grad():
        for weights in model.parameters():
            drawn = torch.randn(weights.shape, generator=seeded(seed), dtype=torch.float64)
            weights.copy_(drawn)
    return model


def extracted(target, shape, classes, attack, *, budget=None, seed=2):
    access = Labels(target, QueryCounter(budget))
    knowledge = Knowledge(input_shape=shape, classes=classes)
    found = attack.extract(access, knowledge, seeded(seed))
    assert access.counter.spent == found.queries
    return found


def agreement(target, found, shape):
    inputs = BOX.drawn(10_000, shape, seeded(3))
    return fidelity(target, found.model, inputs).agreement.value


@pytest.mark.parametrize("seed", range(3))
def test_the_plane_is_found_to_the_precision_of_the_halvings(seed):
    target = plane(12, seed=seed)
    layer = target[1]
    found = extracted(target, (12,), 2, LineSearch(box=BOX, halvings=40), seed=seed + 10)
    weight = (layer.weight[1] - layer.weight[0]).detach()
    bias = (layer.bias[1] - layer.bias[0]).detach()
    truth = torch.cat([bias[None], weight])
    own = torch.cat([found.model.bias[1:], found.model.weight[1]]).detach()
    assert torch.allclose(own / own.norm(), truth / truth.norm(), rtol=0, atol=1e-8)
    assert 12 * 41 + 2 <= found.queries <= 12 * 41 + 64
    assert found.agreement > 0.9  # the last records asked about lie on the plane itself


def test_a_line_search_takes_records_of_any_shape_and_stays_inside_the_box():
    target, asked = plane(6), []

    class Recorder(nn.Module):
        def forward(self, inputs):
            asked.append(inputs)
            return target.float()(inputs.flatten(1))

    box = Box(low=-0.5, high=1.0)
    extracted(Recorder(), (2, 3), 2, LineSearch(box=box))
    records = torch.cat(asked)
    assert records.shape[1:] == (2, 3) and records.dtype == torch.float32
    assert records.min() >= -0.5 and records.max() <= 1


def test_a_target_of_one_label_is_refused_after_the_draws():
    target = plane(4)
    with torch.no_grad():
        target[1].bias[1] = 100.0
    counter = QueryCounter()
    with pytest.raises(NotEnoughEvidence, match="both labels expected in 50 records"):
        LineSearch(box=BOX, draws=50).extract(
            Labels(target, counter), Knowledge(input_shape=(4,), classes=2), seeded(1)
        )
    assert counter.spent == 50


def test_a_line_search_between_more_than_two_classes_is_refused():
    with pytest.raises(ConfigError, match="between 2 classes, 3 came"):
        extracted(plane(4, 3), (4,), 3, LineSearch(box=BOX))


@pytest.mark.parametrize(("classes", "queries"), [(2, 210), (4, 840)])
def test_adaptive_retraining_comes_nearer_than_uniform(classes, queries):
    target = plane(20, classes)
    near, far = (
        agreement(
            target,
            extracted(target, (20,), classes, Retraining(queries=queries, box=BOX, choice=choice)),
            (20,),
        )
        for choice in ("adaptive", "uniform")
    )
    assert near > 0.99
    assert 1 - near < (1 - far) / 2


def test_the_linear_models_of_two_tables_from_ten_queries_a_weight(data_folder):
    spent = []
    for name in ("pima", "wisconsin"):
        data = load_table(name, data_folder).encoded(low=-1.0, high=1.0)
        width = data.inputs_train.shape[1]
        target = nn.Linear(width, 2).double()
        optimiser = torch.optim.LBFGS(target.parameters(), max_iter=50, line_search_fn="strong_wolfe")  # fmt: skip
        nn.init.zeros_(target.weight)
        nn.init.zeros_(target.bias)

        def loss(target=target, data=data, optimiser=optimiser):
            optimiser.zero_grad()
            value = nn.functional.cross_entropy(
                target(data.inputs_train.double()), data.labels_train
            )
            (value + 1e-3 * target.weight.square().sum()).backward()
            return value + 1e-3 * target.weight.square().sum()

        optimiser.step(loss)
        attack = Retraining(queries=10 * (width + 1), box=BOX)
        found = extracted(target, (width,), 2, attack)
        spent.append(found.queries)
        assert agreement(target, found, (width,)) > 0.99
        assert fidelity(target, found.model, data.inputs_test.double()).agreement.value > 0.99
    assert spent == [90, 100]


@pytest.mark.parametrize("queries", [1, 7, 100, 103])
def test_no_more_and_no_fewer_queries_than_said(queries):
    for choice in ("adaptive", "uniform"):
        attack = Retraining(queries=queries, box=BOX, choice=choice, rounds=9)
        found = extracted(plane(4), (2, 2), 2, attack)
        assert found.queries == queries
        assert found.agreement > 0.8


def test_a_budget_that_ends_halfway_keeps_what_was_asked():
    target, attack = plane(6), Retraining(queries=110, box=BOX, rounds=10)
    with pytest.raises(Unfinished, match="60 records asked about") as kept:
        extracted(target, (6,), 2, attack, budget=65)
    error = kept.value
    assert error.inputs.shape == (60, 6) and error.wanted == 10
    assert torch.equal(error.answers, target(error.inputs).argmax(1))
    model = attack.solve(error.inputs, error.answers, 2)
    assert (model(error.inputs).argmax(1) == error.answers).double().mean() > 0.95


def test_a_label_that_is_no_class_is_refused():
    for attack in (LineSearch(box=BOX), Retraining(queries=50, box=BOX)):
        with pytest.raises(DataError, match="labels 0 to 1 expected"):
            extracted(plane(4, 5), (4,), 2, attack)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LineSearch(halvings=0), "at least 1 halving"),
        (lambda: LineSearch(draws=1), "2 draws"),
        (lambda: Retraining(queries=0), "at least 1 query"),
        (lambda: Retraining(queries=9, rounds=0), "1 round"),
        (lambda: Retraining(queries=9, ridge=0.0), "a ridge above 0"),
        (lambda: Retraining(queries=9, ridge=math.inf), "a ridge above 0"),
        (lambda: Retraining(queries=9, choice="random"), "uniform or adaptive"),
    ],
)
def test_settings_out_of_range_are_refused(make, says):
    with pytest.raises(ConfigError, match=says):
        make()
