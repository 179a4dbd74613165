"""Inversion by queries: slopes are the model's, queries are counted, budgets and boxes hold, rounding blinds it."""

import math

import pytest
import torch
from torch import nn

from tacit.attacks.access import Knowledge, QueryCounter, Scores, WhiteBox
from tacit.attacks.model_inversion import Cost, MIFace, Start, Stop
from tacit.attacks.model_inversion_queries import SPSA, NumericGradients, QueryInversion
from tacit.core.errors import BudgetExhausted, ConfigError
from tacit.nn.networks import mlp, softmax_regression
from tacit.nn.policies import Policy

SHAPE, CLASSES = (1, 4, 3), 3
KNOWN = Knowledge(input_shape=SHAPE, classes=CLASSES)
ALL = torch.arange(CLASSES)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def network():
    model = mlp(SHAPE, (6,), CLASSES, nn.Sigmoid, generator=seeded(1)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


def linear():
    model = softmax_regression(SHAPE, CLASSES, generator=seeded(1)).double()
    with torch.no_grad():
        model[1].weight.mul_(8)
    return model


def drawn(restarts, seed=2):
    images = torch.rand(restarts, *SHAPE, generator=seeded(seed)).double()
    return Start(name="drawn", images=images)


def asked(attack, model=None, budget=None, policy=None, labels=ALL, **rest):
    access = Scores(model or network(), QueryCounter(budget), policy or Policy())
    rest = {"generator": seeded(3), "start": drawn(1), **rest}
    return attack.invert(access, KNOWN, labels, **rest), access.counter.spent


@pytest.mark.parametrize("cost", list(Cost))
@pytest.mark.parametrize("at_once", [7, 1000])
def test_numeric_slopes_lead_where_the_true_ones_do(cost, at_once):
    settings = MIFace(cost=cost, step_size=1.0, iterations=25, box=None)

    def aside(images, labels):
        return 0.1 * (1 + labels) * images.flatten(1).square().sum(1)

    true = settings.invert(WhiteBox(network()), KNOWN, ALL, start=drawn(2), auxiliary=aside)
    attack = QueryInversion(descent=settings, slopes=NumericGradients(width=1e-6), at_once=at_once)
    found, _ = asked(attack, start=drawn(2), auxiliary=aside)
    assert torch.allclose(found.images, true.images, atol=1e-4)
    assert torch.allclose(found.restart_costs, true.restart_costs, atol=1e-4)
    assert torch.allclose(found.confidences, true.confidences, atol=1e-4)
    assert (true.images - drawn(2).images[0]).abs().max() > 0.1


def test_spsa_is_right_on_average():
    # One step of size one: the image moves by minus the slope.
    settings = MIFace(step_size=1.0, iterations=1, box=None)
    true = settings.invert(WhiteBox(network()), KNOWN, ALL, start=drawn(1))
    moved = true.images - drawn(1).images
    errors = []
    for directions in (1, 1500):
        slopes = SPSA(width=1e-4, directions=directions)
        found, _ = asked(QueryInversion(descent=settings, slopes=slopes))
        errors.append((found.images - drawn(1).images - moved).norm() / moved.norm())
    assert errors[1] < 0.1 < errors[0]


def test_spsa_makes_a_class_sure_and_depends_on_the_generator_alone():
    attack = QueryInversion(
        descent=MIFace(cost=Cost.MINUS_LOG_P, step_size=0.3, box=None, iterations=200),
        slopes=SPSA(directions=4),
    )
    once, again = asked(attack, linear())[0], asked(attack, linear())[0]
    assert once.stopped == (Stop.CONFIDENT,) * CLASSES
    assert torch.equal(linear()(once.images).argmax(1), ALL)
    assert torch.equal(once.images, again.images)
    assert not torch.equal(once.images, asked(attack, linear(), generator=seeded(4))[0].images)


@pytest.mark.parametrize(
    ("slopes", "each"), [(NumericGradients(), 1 + 12), (SPSA(directions=5), 1 + 10)]
)
def test_queries_are_those_stated(slopes, each):
    settings = MIFace(step_size=2.0, iterations=30, confidence=0.6, box=None)
    found, spent = asked(QueryInversion(descent=settings, slopes=slopes), start=drawn(2))
    assert spent == each * found.evaluations
    # The work of rows that were not kept is counted too, and none after a row has stopped.
    assert int((found.steps + 1).sum()) < found.evaluations < CLASSES * 2 * 31


def test_nothing_outside_the_box_is_asked_about_and_no_call_is_larger_than_allowed():
    seen = []
    model = network()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    start = Start(name="white", images=torch.ones(1, *SHAPE, dtype=torch.float64))
    settings = MIFace(iterations=3, step_size=1.0)
    found, _ = asked(QueryInversion(descent=settings, at_once=5), model, start=start)
    true = settings.invert(WhiteBox(network()), KNOWN, ALL, start=start)
    assert torch.allclose(found.images, true.images, atol=5e-3)  # backwards from the upper end
    assert true.images.min() < 0.9
    assert max(len(records) for records in seen) == 5
    records = torch.cat(seen)
    assert records.min() >= 0
    assert records.max() <= 1


def test_the_best_so_far_is_given_when_the_budget_ends():
    attack = QueryInversion(descent=MIFace(step_size=0.5, box=None))
    unlimited, _ = asked(QueryInversion(descent=MIFace(step_size=0.5, box=None, iterations=4)))
    found, spent = asked(attack, budget=CLASSES * 13 * 5 + 20)
    assert found.stopped == (Stop.BUDGET,) * CLASSES
    assert found.steps.tolist() == [4] * CLASSES
    assert torch.equal(found.images, unlimited.images)
    assert spent <= CLASSES * 13 * 5 + 20
    with pytest.raises(BudgetExhausted):
        asked(attack, budget=20)


def test_coarse_rounding_blinds_it_and_fine_rounding_does_not():
    settings = MIFace(step_size=0.2, iterations=300, patience=20, box=None)
    attack = QueryInversion(descent=settings, slopes=NumericGradients(width=1e-2))
    blind, fine = (asked(attack, linear(), policy=Policy(digits=digits))[0] for digits in (1, 6))
    assert Stop.STALLED in blind.stopped
    assert torch.equal(blind.images, drawn(1).images.expand_as(blind.images))
    assert fine.stopped == (Stop.CONFIDENT,) * CLASSES


def test_a_probability_of_zero_has_a_finite_cost():
    attack = QueryInversion(descent=MIFace(cost=Cost.MINUS_LOG_P, iterations=2))
    found, _ = asked(attack, policy=Policy(labels_only=True))
    assert found.costs.isfinite().all()
    assert found.costs.max() > 700


def test_the_start_is_zero_in_single_precision_unless_given():
    found, _ = asked(QueryInversion(descent=MIFace(iterations=1)), network().float(), start=None)
    assert (found.images.dtype, found.start) == (torch.float32, "zero")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: NumericGradients(width=0.0),
        lambda: NumericGradients(width=math.nan),
        lambda: SPSA(width=-1.0),
        lambda: SPSA(directions=0),
        lambda: QueryInversion(at_once=0),
        lambda: asked(QueryInversion(), labels=torch.tensor([3])),
        lambda: asked(QueryInversion(), auxiliary=lambda images, labels: images.sum()),
        lambda: asked(QueryInversion(), mlp(SHAPE, (), 5, generator=seeded(0)).double()),
    ],
)
def test_what_does_not_fit_is_refused(wrong):
    with pytest.raises(ConfigError, match="expected"):
        wrong()
