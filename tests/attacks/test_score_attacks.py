"""Scores from the target's answers alone, or with a threshold from others, are the papers' formulas."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from tests.attacks.planted import confidence, evidence, softmax, world

from tacit.attacks.evidence import Evidence
from tacit.attacks.score_attacks import (
    AttackP,
    AttackR,
    Entropy,
    Loss,
    MaxConfidence,
    ModifiedEntropy,
)


def test_the_single_answer_attacks_are_their_formulas():
    made = world(queries=1)
    found = evidence(made)
    for i, (row, y) in enumerate(zip(made.answers[0], made.labels, strict=True)):
        p = softmax(row)
        entropy = -sum(v * math.log(v) for v in p)
        modified = -(1 - p[y]) * math.log(p[y])
        modified -= sum(v * math.log(1 - v) for k, v in enumerate(p) if k != y)
        beaten = [
            confidence(one[0, i], y) < confidence(row, y)
            for one, saw in zip(made.references.logits, made.references.inside[:, i], strict=True)
            if not saw
        ]
        less = [confidence(z, k) < confidence(row, y) for z, k in
                zip(made.population.answers[0], made.population.labels, strict=True)]  # fmt: skip
        expected = {
            Loss(): math.log(p[y]), MaxConfidence(): math.log(max(p)), Entropy(): -entropy,
            ModifiedEntropy(): -modified, AttackR(): np.mean(beaten), AttackP(): np.mean(less),
        }  # fmt: skip
        for attack, value in expected.items():
            assert attack.score(found)[i] == pytest.approx(value, abs=1e-9), attack.name


def test_the_single_answer_attacks_average_over_queries():
    made = world(queries=2)
    both = evidence(made)
    for attack in (Loss(), MaxConfidence(), Entropy(), ModifiedEntropy(), AttackP(), AttackR()):
        halves = []
        for q in (0, 1):
            one = SimpleNamespace(
                inside=made.references.inside, logits=made.references.logits[:, [q]]
            )
            others = replace(
                made.population, answers=made.population.answers[[q]], references=made.population.references[:, [q]]
            )  # fmt: skip
            halves.append(
                attack.score(Evidence.gather(made.answers[[q]], made.labels, one, others))
            )
        np.testing.assert_allclose(attack.score(both), np.mean(halves, 0), atol=1e-12)


def test_a_tie_with_a_reference_model_counts_one_half():
    made = world(models=4)
    made.references.logits[:] = made.answers
    assert (AttackR().score(evidence(made)) == 0.5).all()
