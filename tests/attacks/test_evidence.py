"""Answers are read in pieces, brought to confidences without rounding, and refused where they do not fit."""

import math
from dataclasses import replace

import numpy as np
import pytest
from tests.attacks.planted import CLASSES, evidence, world

from tacit.attacks import evidence as module
from tacit.attacks.evidence import true_class_logit
from tacit.core.errors import ConfigError, DataError


def test_logits_are_read_in_pieces_that_fit_the_memory(monkeypatch):
    made, seen = world(models=4), []
    finite = module._finite

    def watched(rows):
        seen.append(rows.shape)
        return finite(rows)

    monkeypatch.setattr(module, "_finite", watched)
    evidence(made, memory=7 * 4 * 8 * CLASSES)
    assert max(rows for rows, _ in seen) == 7
    assert (
        sum(rows for rows, _ in seen) == 5 * 2 * 70
    )  # target and 4 models, 2 queries, 40 + 30 records


def test_the_confidence_does_not_round_where_the_probability_does():
    logits = np.array([[[0.0, 50.0], [50.0, 0.0], [1e4, -1e4], [-np.inf, 0.0]]])
    found = true_class_logit(logits, np.array([1, 1, 0, 1]))
    np.testing.assert_array_equal(found, [[50.0, -50.0, 2e4, 708.0]])
    assert true_class_logit(logits[:, :1], np.array([1]), temperature=4.0) == 12.5


def bad(change):
    made = world()
    change(made)
    return made


def nan(made):
    made.references.logits[1, 0, 3, 2] = np.nan


def infinity(made):
    made.answers[0, 0, 0] = np.inf


def impossible(made):
    made.answers[0, 0] = -np.inf


def label(made):
    made.labels[3] = CLASSES


def fractions(made):
    made.labels = made.labels.astype(float)


def fewer_labels(made):
    made.labels = made.labels[1:]


def other_queries(made):
    made.references.logits = made.references.logits[:, :1]


def other_masks(made):
    made.references.inside = made.references.inside[:, 1:]


def lonely_population(made):
    made.population = replace(made.population, references=None)


def flat(made):
    made.answers = made.answers[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (nan, "NaN or plus infinity"), (infinity, "NaN or plus infinity"), (impossible, "nothing above minus infinity"),
        (label, "labels from 0 to 4"), (fractions, "whole-numbered labels"), (fewer_labels, "a label for each of 40"),
        (other_queries, "ask the reference models what the target was asked"), (other_masks, "inside .K, 40. expected"),
        (lonely_population, "those of 6 reference models"), (flat, "queries, records, classes"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)  # fmt: skip
def test_answers_that_do_not_fit_are_refused(change, says):
    with pytest.raises(DataError, match=says):
        evidence(bad(change))


@pytest.mark.parametrize(
    "make",
    [
        lambda: evidence(world(), memory=0),
        lambda: true_class_logit(np.zeros((2, 3)), np.zeros(2, int), temperature=math.nan),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ConfigError):
        make()
