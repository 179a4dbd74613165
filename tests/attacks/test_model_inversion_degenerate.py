"""Models that nothing can be learned from end in a named reason, with what was best and no number that is none."""

import math

import pytest
import torch
from torch import nn

from tacit.attacks.access import Knowledge, Scores, WhiteBox
from tacit.attacks.model_inversion import Cost, MIFace, Stop
from tacit.attacks.model_inversion_queries import SPSA, NumericGradients, QueryInversion
from tacit.attacks.model_inversion_rows import invert_in_row_space

CLASSES, SHAPE = 3, (1, 2, 3)
KNOWLEDGE = Knowledge(input_shape=SHAPE, classes=CLASSES)
LABELS = torch.arange(CLASSES)
SETTINGS = {"iterations": 60, "patience": 5, "step_size": 0.5, "box": None}


def network(seed=0, hidden=4, activation=nn.ReLU):
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(6, hidden), activation(), nn.Linear(hidden, CLASSES)
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def constant():
    model = network()
    with torch.no_grad():
        model[3].weight.zero_()
        model[3].bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    return model


def dead():
    """No unit is above zero where the descent starts, so that there is no slope."""
    model = network()
    with torch.no_grad():
        model[1].bias.fill_(-5.0)
    return model


def duplicated():
    """The last two classes are one."""
    model = network(activation=nn.Tanh)
    with torch.no_grad():
        model[3].weight[2] = model[3].weight[1]
        model[3].bias[2] = model[3].bias[1]
    return model


def broken():
    model = network()
    with torch.no_grad():
        model[3].bias[0] = math.nan
    return model


def by_images(model, cost):
    return MIFace(cost=cost, **SETTINGS).invert(WhiteBox(model), KNOWLEDGE, LABELS)


def by_rows(model, cost):
    return invert_in_row_space(MIFace(cost=cost, **SETTINGS), WhiteBox(model), KNOWLEDGE, LABELS)


def by_queries(slopes):
    def invert(model, cost):
        attack = QueryInversion(descent=MIFace(cost=cost, **SETTINGS), slopes=slopes)
        return attack.invert(
            Scores(model), KNOWLEDGE, LABELS, generator=torch.Generator().manual_seed(1)
        )

    return invert


WAYS = [
    pytest.param(by_images, id="images"),
    pytest.param(by_rows, id="rows"),
    pytest.param(by_queries(NumericGradients()), id="numeric"),
    pytest.param(by_queries(SPSA()), id="spsa"),
]


@pytest.mark.parametrize("cost", list(Cost))
@pytest.mark.parametrize("invert", WAYS)
@pytest.mark.parametrize("made", [constant, dead])
def test_without_a_slope_every_row_stalls_where_it_started(made, invert, cost):
    model = made()
    found = invert(model, cost)
    assert found.stopped == (Stop.STALLED,) * CLASSES
    assert not found.images.any()
    assert found.steps.tolist() == [SETTINGS["patience"]] * CLASSES
    wanted = model(torch.zeros(1, *SHAPE)).detach().softmax(1)[0]
    assert found.confidences.tolist() == pytest.approx(wanted.tolist(), rel=1e-4)


@pytest.mark.parametrize("cost", list(Cost))
@pytest.mark.parametrize("invert", WAYS)
def test_of_two_equal_classes_neither_is_ever_sure(invert, cost):
    found = invert(duplicated(), cost)
    assert Stop.CONFIDENT not in found.stopped[1:]
    assert found.confidences[1:].max() <= 0.5 + 1e-6
    assert found.confidences[1:].min() > 1 / CLASSES  # as sure as it can be of both
    assert found.confidences[0] > 0.5
    assert found.images.isfinite().all()


@pytest.mark.parametrize("cost", list(Cost))
@pytest.mark.parametrize("invert", WAYS)
def test_a_model_that_gives_no_numbers_diverges_at_once(invert, cost):
    found = invert(broken(), cost)
    assert found.stopped == (Stop.DIVERGED,) * CLASSES
    assert found.steps.tolist() == [1] * CLASSES
    assert found.costs.isinf().all()
    assert found.images.isfinite().all()  # the start: the best there is
