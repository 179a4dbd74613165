"""RMIA equals the paper's formula taken literally, and is tuned on reference models alone."""

import math

import numpy as np
import pytest
from tests.attacks.planted import evidence, softmax, world

from tacit.attacks.rmia import RMIA, Tuning
from tacit.audit.statistics import auc
from tacit.core.errors import ConfigError

# --- the paper's formula, one record and one query at a time


def literal_rmia(made, *, online, a, gamma, temperature, population):
    inside, logits = made.references.inside, made.references.logits
    never = np.zeros((len(inside), len(made.population.labels)), bool)

    def ratio(row, rows, label, saw):
        p_in, p_out = (
            [softmax(one, temperature)[label] for one, was in zip(rows, saw, strict=True) if was == side]
            for side in (True, False)
        )  # fmt: skip
        if p_out:
            mean_out = sum(p_out) / len(p_out)
            mean_in = sum(p_in) / len(p_in) if online and p_in else a * mean_out + 1 - a
        else:
            mean_in = sum(p_in) / len(p_in)
            mean_out = max(0.0, (mean_in + a - 1) / a)
        return softmax(row, temperature)[label] / ((mean_in + mean_out) / 2)

    queries, records, _ = made.answers.shape
    found = np.zeros(records)
    for q in range(queries):
        ours = [
            ratio(made.answers[q, i], logits[:, q, i], made.labels[i], inside[:, i])
            for i in range(records)
        ]
        others = made.population
        theirs = [
            ratio(others.answers[q, z], others.references[:, q, z], others.labels[z], never[:, z])
            for z in range(len(others.labels))
        ] if population else ours  # fmt: skip
        found += [np.mean([x / z >= gamma for z in theirs]) / queries for x in ours]
    return found


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize(
    ("a", "gamma", "temperature"), [(0.3, 1.0, 1.0), (0.8, 2.0, 2.0), (1.0, 1.2, 1.0), (0.3, 1.1, 3.0)]
)  # fmt: skip
def test_rmia_is_the_papers_formula_with_few_models_too(online, a, gamma, temperature):
    for models in (1, 2, 6):
        made = world(models=models, seed=models)
        attack = RMIA(online=online, a=a, gamma=gamma, temperature=temperature)
        literal = literal_rmia(
            made, online=online, a=a, gamma=gamma, temperature=temperature, population=True
        )
        np.testing.assert_allclose(attack.score(evidence(made)), literal, atol=1e-9)


def test_rmia_without_a_population_compares_with_the_records_themselves():
    made = world()
    # At gamma 1 a record is compared with itself too, which rounding may decide either way in the literal formula.
    settings = {"online": False, "a": 0.4, "gamma": 1.01, "temperature": 1.0}
    found = RMIA(**settings).score(evidence(made, population=False))
    np.testing.assert_allclose(found, literal_rmia(made, population=False, **settings), atol=1e-9)


def test_rmia_counts_a_record_that_rose_as_much():
    made = world(queries=1)
    score = RMIA(a=0.4, temperature=1.0).score(evidence(made, population=False))
    np.testing.assert_array_equal(np.sort(score), np.arange(1, 41) / 40)  # each itself too


def test_rmia_at_a_0_has_nothing_to_divide_by():
    made = world(models=2)
    assert (~made.references.inside.all(0)).sum() < 40  # some record has no OUT model
    assert np.isfinite(RMIA(a=0.0, temperature=1.0).score(evidence(made))).all()


# --- what is tuned


def test_tuning_takes_the_settings_that_attack_reference_models_best_and_never_sees_the_target():
    made = world(models=5, records=100)
    attack = RMIA(tuned_on=2)
    found = attack.tuned(evidence(made))

    def reached(a, temperature):
        one, total = RMIA(a=a, temperature=temperature), 0.0
        for k in (0, 1):
            fair = ~np.delete(made.references.inside, k, 0).all(0)
            truth, score = made.references.inside[k][fair], one.score(evidence(made).as_if(k))[fair]
            total += auc(score[truth], score[~truth])
        return total

    grid = [(a / 10, t) for a in range(11) for t in (1.0, 2.0, 4.0)]
    assert reached(*found) == pytest.approx(max(reached(*at) for at in grid), abs=1e-12)
    np.testing.assert_array_equal(
        attack.score(evidence(made)), RMIA(**found._asdict()).score(evidence(made))
    )
    made.answers[:] = world(seed=9, models=5, records=100).answers
    made.population.answers[:] = 0
    assert attack.tuned(evidence(made)) == found


def test_nothing_is_tuned_on_one_model_or_on_two_that_halve_the_records():
    assert RMIA().tuned(evidence(world(models=1))) == Tuning(0.3, 2.0)
    made = world(models=2)
    made.references.inside[1] = ~made.references.inside[0]
    assert RMIA().tuned(evidence(made)) == Tuning(0.3, 2.0)
    assert RMIA(a=0.7).tuned(evidence(made)) == Tuning(0.7, 2.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RMIA(gamma=0), lambda: RMIA(gamma=math.inf), lambda: RMIA(a=1.1), lambda: RMIA(temperature=0),
        lambda: RMIA(tuned_on=0),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ConfigError):
        make()
