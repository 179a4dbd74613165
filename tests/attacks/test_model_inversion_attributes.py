"""A hidden attribute is the value of most prior times likelihood, whatever the model, and no more than the model tells."""

import math

import pytest
import torch
from torch import nn

from tacit.attacks.access import Labels, QueryCounter, Scores
from tacit.attacks.model_inversion_attributes import AttributeInference, HiddenAttribute
from tacit.core.errors import BudgetExhausted, ConfigError, DataError

VALUES = torch.eye(3)
PRIOR = torch.tensor([0.2, 0.5, 0.3])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def hidden(prior=PRIOR, values=VALUES, start=1):
    return HiddenAttribute(name="colour", start=start, values=values, prior=prior)


def target(seed=0, classes=2, scale=2.0):
    model = nn.Linear(5, classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=seeded(seed)))
    return model


RECORDS = torch.rand(40, 5, generator=seeded(1))
LABELS = torch.randint(2, (40,), generator=seeded(2))


def by_hand(model, record, label, attribute, confusion=None):
    """The posterior of one record, value by value."""
    weights = []
    for value, prior in zip(attribute.values, attribute.prior.tolist(), strict=True):
        whole = record.clone()
        whole[attribute.start : attribute.start + len(value)] = value
        answer = model(whole[None]).detach().double().softmax(1)[0]
        likelihood = answer[label] if confusion is None else confusion[label][int(answer.argmax())]
        weights.append(prior * float(likelihood))
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("at_once", [1, 7, 4096])
def test_posteriors_are_prior_times_the_labels_probability(at_once):
    model, counter = target(), QueryCounter()
    found = AttributeInference(at_once=at_once).infer(
        Scores(model, counter), RECORDS, LABELS, hidden()
    )
    for row, record in enumerate(RECORDS):
        wanted = by_hand(model, record, int(LABELS[row]), hidden())
        assert found.posteriors[row].tolist() == pytest.approx(wanted, rel=1e-5)
        assert found.values[row] == max(range(3), key=wanted.__getitem__)
    assert counter.spent == found.queries == 120
    assert not found.undecided.any()
    assert len(set(found.values.tolist())) > 1  # the model says something


@pytest.mark.parametrize("access", [Labels, Scores])
def test_a_confusion_matrix_takes_the_place_of_probabilities(access):
    model, confusion = target(), torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    found = AttributeInference().infer(
        access(model), RECORDS, LABELS, hidden(), confusion=confusion
    )
    for row, record in enumerate(RECORDS):
        wanted = by_hand(model, record, int(LABELS[row]), hidden(), confusion)
        assert found.posteriors[row].tolist() == pytest.approx(wanted, rel=1e-5)


def test_what_stood_in_the_columns_is_not_looked_at_and_records_stay_as_they_are():
    other, before = RECORDS.clone(), RECORDS.clone()
    other[:, 1:4] = 77.0
    one, two = (
        AttributeInference().infer(Scores(target()), records, LABELS, hidden())
        for records in (RECORDS, other)
    )
    assert torch.equal(one.posteriors, two.posteriors)
    assert torch.equal(RECORDS, before)


def test_a_model_that_depends_on_the_attribute_alone_gives_it_away():
    model = nn.Linear(5, 3)
    with torch.no_grad():
        model.bias.zero_()
        model.weight.zero_()
        model.weight[:, 1:4] = 10 * torch.eye(3)
    truth = torch.randint(3, (40,), generator=seeded(4))
    found = AttributeInference().infer(Scores(model), RECORDS, truth, hidden())
    assert torch.equal(found.values, truth)
    assert found.posteriors.amax(1).min() > 0.99


@pytest.mark.parametrize("classes", [2, 4])
def test_a_constant_model_leaves_the_prior(classes):
    model = nn.Linear(5, classes)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    found = AttributeInference().infer(Scores(model), RECORDS, LABELS, hidden())
    assert torch.allclose(found.posteriors, PRIOR.double().expand(40, 3))
    assert found.values.unique().tolist() == [1]


def test_of_equal_values_the_first_is_said_and_frequencies_may_be_counts():
    model = nn.Linear(5, 2)
    nn.init.zeros_(model.weight)
    even = hidden(prior=torch.tensor([7, 7, 7]))
    found = AttributeInference().infer(Scores(model), RECORDS, LABELS, even)
    assert found.values.unique().tolist() == [0]
    assert found.posteriors.sum(1).tolist() == pytest.approx([1.0] * 40)


def test_where_no_value_makes_the_label_possible_the_prior_is_said():
    confusion = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    always = nn.Linear(5, 2)
    with torch.no_grad():
        always.weight.zero_()
        always.bias.copy_(torch.tensor([0.0, 5.0]))  # says 1, which the matrix says never happens
    found = AttributeInference().infer(
        Labels(always), RECORDS, LABELS, hidden(), confusion=confusion
    )
    assert found.undecided.all()
    assert torch.allclose(found.posteriors, PRIOR.double().expand(40, 3))


def test_tiny_probabilities_are_compared_and_not_lost():
    model = nn.Linear(5, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.weight[1, 1:4] = torch.tensor([-700.0, -690.0, -710.0])
        model.bias.zero_()
    found = AttributeInference().infer(
        Scores(model.double()), RECORDS.double(), torch.ones(40, dtype=torch.int64), hidden()
    )
    assert found.values.unique().tolist() == [1]
    assert not found.undecided.any()


def test_a_value_that_never_occurs_is_never_said():
    found = AttributeInference().infer(
        Scores(target(scale=30.0)), RECORDS, LABELS, hidden(prior=torch.tensor([1.0, 0.0, 1.0]))
    )
    assert 1 not in found.values


def test_a_target_that_is_not_a_number_is_refused():
    model = target()
    with torch.no_grad():
        model.bias[0] = math.nan
    with pytest.raises(DataError, match="finite"):
        AttributeInference().infer(Scores(model), RECORDS, LABELS, hidden())


def test_a_budget_that_does_not_do_is_said():
    with pytest.raises(BudgetExhausted):
        AttributeInference().infer(Scores(target(), QueryCounter(100)), RECORDS, LABELS, hidden())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: AttributeInference(at_once=0),
        lambda: hidden(values=torch.eye(3)[:1], prior=PRIOR[:1]),
        lambda: hidden(values=torch.ones(3)),
        lambda: hidden(prior=PRIOR[:2]),
        lambda: hidden(prior=-PRIOR),
        lambda: hidden(prior=torch.zeros(3)),
        lambda: hidden(prior=torch.tensor([1.0, math.nan, 1.0])),
        lambda: AttributeInference().infer(Scores(target()), RECORDS[0], LABELS, hidden()),
        lambda: AttributeInference().infer(Scores(target()), RECORDS[:0], LABELS[:0], hidden()),
        lambda: AttributeInference().infer(Scores(target()), RECORDS, LABELS[1:], hidden()),
        lambda: AttributeInference().infer(Scores(target()), RECORDS, LABELS - 1, hidden()),
        lambda: AttributeInference().infer(Scores(target()), RECORDS, LABELS + 2, hidden()),
        lambda: AttributeInference().infer(Scores(target()), RECORDS, LABELS.float(), hidden()),
        lambda: AttributeInference().infer(Scores(target()), RECORDS, LABELS, hidden(start=3)),
        lambda: AttributeInference().infer(Labels(target()), RECORDS, LABELS, hidden()),
        lambda: AttributeInference().infer(
            Labels(target()), RECORDS, LABELS, hidden(), confusion=torch.ones(2, 3)
        ),
        lambda: AttributeInference().infer(
            Labels(target()), RECORDS, LABELS * 0, hidden(), confusion=torch.ones(1, 1)
        ),
    ],
)
def test_what_does_not_fit_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"expected|likelihood"):
        wrong()
