"""What an endpoint gives out under each policy, and that it never changes the label."""

from __future__ import annotations

import pytest
import torch

from tacit.core.errors import ConfigError
from tacit.nn.policies import EVERYTHING, Policy

LOGITS = torch.randn(200, 7, generator=torch.Generator().manual_seed(0)) * 4
WHOLE = torch.softmax(LOGITS.double(), 1)


def test_the_default_gives_all_probabilities() -> None:
    torch.testing.assert_close(EVERYTHING.answers(LOGITS), WHOLE, atol=0, rtol=0)
    # of log-probabilities too, as of saved scores
    torch.testing.assert_close(EVERYTHING.answers(WHOLE.log()), WHOLE)


def test_the_top_classes_keep_their_probabilities_and_the_others_get_none() -> None:
    answers = Policy(top_k=3).answers(LOGITS)
    assert bool(((answers > 0).sum(1) == 3).all())
    assert torch.equal(answers.sort(1).values[:, 4:], WHOLE.sort(1).values[:, 4:])
    assert torch.equal(answers[answers > 0], WHOLE[answers > 0])


def test_of_equal_classes_the_lower_one_is_given() -> None:
    assert Policy(top_k=2).answers(torch.zeros(1, 40))[0].nonzero().flatten().tolist() == [0, 1]
    # of those that the temperature made equal, the one with the larger logit
    kept = Policy(top_k=1, temperature=1e20).answers(torch.tensor([[0.0, 5.0]]))
    assert kept.tolist() == [[0, 0.5]]


def test_rounding_is_to_the_nearest() -> None:
    probabilities = torch.tensor([[0.8749, 0.1251]], dtype=torch.float64)
    assert Policy(digits=1).answers(probabilities.log()).tolist() == [[0.9, 0.1]]
    assert Policy(digits=3).answers(probabilities.log()).tolist() == [[0.875, 0.125]]
    assert float((Policy(digits=2).answers(LOGITS) - WHOLE).abs().max()) <= 0.005 + 1e-12


def test_temperature_divides_the_logits_and_comes_before_the_rounding() -> None:
    logits = torch.tensor([[2.0, 0.0]])
    hot = 1 / (1 + torch.exp(torch.tensor(-0.4, dtype=torch.float64)))
    assert Policy(temperature=5).answers(logits)[0, 0] == pytest.approx(float(hot), abs=1e-7)
    assert Policy(temperature=5, digits=1).answers(logits)[0, 0] == pytest.approx(0.6)
    assert Policy(temperature=5, top_k=1).answers(logits)[0].tolist() == pytest.approx([float(hot), 0])  # fmt: skip


@pytest.mark.parametrize(
    "policy",
    [EVERYTHING, Policy(top_k=1), Policy(digits=3), Policy(temperature=20), Policy(labels_only=True)],
    ids=lambda one: one.name,
)  # fmt: skip
def test_no_policy_changes_the_label(policy: Policy) -> None:
    answers = policy.answers(LOGITS)
    assert answers.dtype == torch.float64 and answers.shape == LOGITS.shape
    best = answers.gather(1, LOGITS.argmax(1, keepdim=True)).squeeze(1)
    assert torch.equal(best, answers.max(1).values)
    assert bool(((answers >= 0) & (answers <= 1)).all())


def test_a_label_is_a_one_among_zeros() -> None:
    answers = Policy(labels_only=True).answers(LOGITS)
    assert torch.equal(answers, torch.nn.functional.one_hot(LOGITS.argmax(1), 7).double())


def test_names_tell_policies_apart() -> None:
    policies = [
        EVERYTHING, Policy(top_k=3), Policy(top_k=3, digits=2), Policy(temperature=0.5), Policy(labels_only=True),
    ]  # fmt: skip
    assert [one.name for one in policies] == ["none", "top3", "top3-digits2", "temperature0.5", "labels"]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"top_k": 0}, "top_k of at least 1"),
        ({"digits": 0}, "1 to 15 digits"),
        ({"digits": 16}, "1 to 15 digits"),
        ({"temperature": 0.0}, "a temperature above 0"),
        ({"temperature": float("nan")}, "a temperature above 0"),
        ({"labels_only": True, "top_k": 2}, "labels_only alone"),
        ({"labels_only": True, "temperature": 2.0}, "labels_only alone"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Policy(**settings)  # type: ignore[arg-type]


def test_more_classes_than_there_are_cannot_be_given() -> None:
    with pytest.raises(ConfigError, match="at most 7 classes expected, 8 came"):
        Policy(top_k=8).answers(LOGITS)
