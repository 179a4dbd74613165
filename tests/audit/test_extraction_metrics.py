"""Agreement, total variation and the largest difference, counted by hand."""

import pytest
import torch
from torch import nn

from tacit.audit.extraction_metrics import (
    accuracy,
    agreement,
    answers,
    elsewhere,
    fidelity,
    largest_difference,
    total_variation,
)
from tacit.core.errors import ConfigError, DataError, NotEnoughEvidence
from tacit.nn.policies import Policy

THEIRS = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [0.1, 0.1, 0.8]]).double()
OWN = torch.tensor([[0.5, 0.4, 0.1], [0.2, 0.3, 0.5], [0.3, 0.5, 0.2], [0.1, 0.1, 0.8]]).double()


def test_agreement_counts_the_records_on_which_both_name_one_class():
    found = agreement(THEIRS, OWN)
    assert found.value == 0.5 and found.n == 4
    assert found.interval == pytest.approx(
        (0.0676, 0.9324), abs=1e-4
    )  # Clopper and Pearson, 2 of 4


def test_with_a_tie_a_class_that_is_as_likely_counts():
    assert agreement(THEIRS, OWN, tie=1e-9).value == 0.75
    assert agreement(THEIRS, OWN, tie=0.2 + 1e-9).value == 1
    sure = torch.tensor([[0.9, 0.1, 0.0]]).double()
    assert agreement(sure, sure.flip(1), tie=0.2).value == 0


def test_total_variation_is_half_the_sum_of_differences_of_each_record():
    assert total_variation(THEIRS, OWN).tolist() == pytest.approx([0.1, 0.2, 0.1, 0.0])


def test_the_largest_difference_is_over_records_and_classes():
    assert largest_difference(THEIRS, OWN) == pytest.approx(0.2)


def test_a_constant_and_the_records_elsewhere_are_told_apart():
    theirs = torch.eye(3).double()[[0, 0, 0, 1, 2]]
    own = torch.eye(3).double()[[0, 0, 0, 0, 2]]
    assert elsewhere(theirs, own) == (0.6, 0.5)
    assert agreement(theirs, own).value == 0.8
    assert elsewhere(theirs[:3], own[:3]) == (1.0, None)


def test_accuracy_is_the_share_of_right_labels():
    found = accuracy(THEIRS, torch.tensor([0, 1, 1, 0]))
    assert found.value == 0.5 and found.n == 4
    with pytest.raises(ConfigError, match="a label for each of 4"):
        accuracy(THEIRS, torch.tensor([0, 1]))


def test_fidelity_asks_both_models_under_one_policy_in_batches(monkeypatch):
    monkeypatch.setattr("tacit.audit.extraction_metrics.BATCH", 2)

    class Fixed(nn.Module):
        def __init__(self, rows):
            super().__init__()
            self.rows, self.sizes = rows, []

        def forward(self, inputs):
            self.sizes.append(len(inputs))
            return self.rows[inputs[:, 0].long()].log()

    target, extracted, inputs = Fixed(THEIRS), Fixed(OWN), torch.arange(4.0)[:, None]
    found = fidelity(target, extracted, inputs)
    assert target.sizes == extracted.sizes == [2, 2]
    assert found.agreement == agreement(THEIRS, OWN)
    assert found.total_variation == pytest.approx(0.1)
    assert found.largest_difference == pytest.approx(0.2)
    assert found.as_json()["agreement"] == found.agreement.as_json()
    coarse = fidelity(target, extracted, inputs, policy=Policy(labels_only=True))
    assert coarse.largest_difference == 1 and coarse.total_variation == 0.5


def test_what_cannot_be_compared_is_refused():
    for compare in (agreement, total_variation, largest_difference):
        with pytest.raises(ConfigError, match="answers of one shape"):
            compare(THEIRS, OWN[:, :2])
        with pytest.raises(NotEnoughEvidence):
            compare(THEIRS[:0], OWN[:0])
        with pytest.raises(DataError, match="the extracted model expected"):
            compare(THEIRS, OWN * torch.nan)
    with pytest.raises(NotEnoughEvidence):
        answers(nn.Linear(2, 3), torch.zeros(0, 2))
