"""Access counts and limits what an attack asks."""

from __future__ import annotations

import pytest
import torch

from tacit.attacks.access import Knowledge, Labels, QueryCounter, Scores
from tacit.core.errors import BudgetExhausted, ConfigError
from tacit.nn.federated import Task
from tacit.nn.policies import Policy


def test_scores_are_probabilities_and_labels_their_maximum(task: Task) -> None:
    inputs = task.shards[0][0]
    scores = Scores(task.start).scores(inputs)
    torch.testing.assert_close(scores.sum(1), torch.ones(8, dtype=torch.float64))
    assert Labels(task.start).labels(inputs).tolist() == scores.argmax(1).tolist()


def test_a_budget_is_kept_and_nothing_is_answered_beyond_it(task: Task) -> None:
    access = Labels(task.start, QueryCounter(budget=10))
    access.labels(task.shards[0][0])
    with pytest.raises(BudgetExhausted, match="2 of 10 left"):
        access.labels(task.shards[0][0])
    assert access.counter.spent == 8


def test_the_adversary_sees_no_weights_in_a_repr(task: Task) -> None:
    assert "Linear" not in repr(Scores(task.start)) and "tensor" not in repr(
        Knowledge(population=task.shards[0], classes=4)
    )


def test_knowledge_is_described_by_sizes_and_what_lacks_is_named(task: Task) -> None:
    known = Knowledge(population=task.shards[0], classes=4, input_shape=(1, 4, 4))
    assert known.described() == {"input_shape": [1, 4, 4], "classes": 4, "population_records": 8}
    with pytest.raises(ConfigError, match="attack x needs to know train_fn"):
        known.need("attack x", ["classes", "train_fn"])


class _Elsewhere:
    """An endpoint that has applied its policy already, as one over HTTP has."""

    def scores(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[0.3, 0.7]], dtype=torch.float64).expand(len(inputs), 2)

    def labels(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(inputs), dtype=torch.int64)


def test_an_endpoint_answers_as_it_is_and_its_records_are_counted() -> None:
    inputs, counter = torch.zeros(3, 4), QueryCounter(budget=7)
    answers = Scores(_Elsewhere(), counter, Policy(digits=1)).scores(inputs)
    assert answers.tolist() == [[0.3, 0.7]] * 3
    assert Labels(_Elsewhere(), counter).labels(inputs).tolist() == [1, 1, 1]
    with pytest.raises(BudgetExhausted, match="1 of 7 left"):
        Labels(_Elsewhere(), counter).labels(inputs)
