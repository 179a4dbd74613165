"""The lower bound on epsilon: its formula, its rate of false alarms, and its power."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from tacit.core.errors import ConfigError, DataError
from tacit.dp.accounting import Accountant
from tacit.dp.audit import audited, epsilon_lower_bound, guess, most_auc, usual_tries


def most(epsilon: float | np.ndarray, r: int, v: int, m: int, delta: float) -> np.ndarray:
    """What the probability of at least v right guesses of r may be."""
    p = 1 / (1 + np.exp(-np.asarray(epsilon)))
    tail, at = stats.binom.sf(v - 1, r, p), stats.binom.pmf(v, r, p)
    return np.minimum(1, tail + m * delta * tail * (1 - tail) / (v * np.maximum(at, 1e-300)))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def binomial(counts: np.ndarray, p: float, generator: torch.Generator) -> np.ndarray:
    drawn = torch.binomial(torch.from_numpy(counts).double(), torch.tensor(p).double(), generator)
    return drawn.numpy().astype(int)


def fair_coins(count: int, generator: torch.Generator) -> np.ndarray:
    return (torch.rand(count, generator=generator) < 0.5).numpy()


def too_many(alarms: int, trials: int, rate: float = 0.05) -> bool:
    """More than a true rate of at most ``rate`` gives once in a million tests."""
    return alarms > stats.binom.ppf(1 - 1e-6, trials, rate)


# --- the formula


@pytest.mark.parametrize("r", [10, 100, 1000])
def test_all_right_refutes_what_would_be_all_right_too_seldom(r: int) -> None:
    p = 0.05 ** (1 / r)
    assert epsilon_lower_bound(r, r, r, 0.0) == pytest.approx(math.log(p / (1 - p)))


@pytest.mark.parametrize(("r", "v"), [(10, 10), (50, 40), (200, 190), (800, 500), (400, 210)])
@pytest.mark.parametrize("delta", [0.0, 1e-6, 1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("confidence", [0.6, 0.95, 0.99])
def test_it_is_the_largest_epsilon_that_a_search_refutes(
    r: int, v: int, delta: float, confidence: float
) -> None:
    found = epsilon_lower_bound(r, v, 1000, delta, confidence)
    grid = np.arange(0, 8, 0.01)
    searched = grid[most(grid, r, v, 1000, delta) <= 1 - confidence]
    if len(searched):
        assert searched[-1] <= found + 1e-6 <= searched[-1] + 0.01 + 2e-6
    else:
        assert found == 0


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("r", [5, 20, 60])
def test_the_bound_is_the_optimum_of_what_it_is_derived_from(epsilon: float, r: int) -> None:
    """A linear program over f and e: k f(k) <= exp(epsilon) (r - k + 1) f(k - 1) + e(k)."""
    m, delta, k = 2 * r, 1e-4, np.arange(1, r + 1)
    rows = np.zeros((r + 1, 2 * r + 1))  # f(0) .. f(r), e(1) .. e(r)
    rows[k - 1, k] = k
    rows[k - 1, k - 1] = -math.exp(epsilon) * (r - k + 1)
    rows[k - 1, r + k] = -1
    rows[r, r + 1 :] = 1
    limits = np.append(np.zeros(r), m * delta)
    whole = (np.arange(2 * r + 1) <= r).astype(float)
    for v in (r // 2, 3 * r // 4, r):
        aim = -whole * (np.arange(2 * r + 1) >= v)
        found = optimize.linprog(aim, rows, limits, whole[None], [1.0])
        assert -found.fun == pytest.approx(most(epsilon, r, v, m, delta), rel=1e-4)


@pytest.mark.parametrize("case", range(40))
def test_no_mechanism_lets_more_guesses_be_right(case: int) -> None:
    """Drawn mechanisms on three coins, with their own delta; all coins and outputs are counted up."""
    generator = seeded(100 + case)
    epsilon, outputs = 0.3, 6
    law = torch.rand(2, 2, 2, outputs, generator=generator).double() ** (1 + case % 3)
    law = (law / law.sum(-1, keepdim=True)).numpy()
    delta = max(
        np.maximum(np.take(law, a, i) - math.exp(epsilon) * np.take(law, 1 - a, i), 0).sum(-1).max()
        for i in range(3)
        for a in (0, 1)
    )
    for r in (1, 2, 3):
        places = [torch.randperm(3, generator=generator)[:r].tolist() for _ in range(outputs)]
        right = np.zeros(r + 1)
        for t, guessed in enumerate(places):
            best = max(
                itertools.product((0, 1), repeat=r),
                key=lambda values, t=t, guessed=guessed: law[..., t][
                    tuple(dict(zip(guessed, values, strict=True)).get(i, slice(None)) for i in range(3))
                ].sum(),
            )  # fmt: skip
            for s in itertools.product((0, 1), repeat=3):
                hits = sum(s[i] == value for i, value in zip(guessed, best, strict=True))
                right[hits] += law[(*s, t)] / 8
        for v in range(1, r + 1):
            assert right[v:].sum() <= most(epsilon, r, v, 3, delta) + 1e-12


def test_nothing_right_or_no_better_than_a_coin_shows_nothing() -> None:
    assert epsilon_lower_bound(100, 0, 100, 1e-5) == 0
    assert epsilon_lower_bound(0, 0, 100, 1e-5) == 0
    assert epsilon_lower_bound(100, 50, 100, 1e-5) == 0
    assert epsilon_lower_bound(10**6, 10**6, 10**6, 0.5) == 0


def test_more_right_more_confidence_and_more_delta_move_it_as_they_must() -> None:
    bounds = [epsilon_lower_bound(200, v, 1000, 1e-5) for v in range(100, 201)]
    assert bounds == sorted(bounds)
    assert epsilon_lower_bound(200, 180, 1000, 1e-5, 0.99) < epsilon_lower_bound(
        200, 180, 1000, 1e-5
    )
    assert epsilon_lower_bound(200, 180, 1000, 1e-4) < epsilon_lower_bound(200, 180, 1000, 1e-5)


# --- false alarms


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0, 3.0])
@pytest.mark.parametrize("r", [100, 300])
def test_randomised_response_alarms_no_more_often_than_stated(epsilon: float, r: int) -> None:
    """It makes all guesses right as often as epsilon allows, so the stated rate is nearly reached."""
    bound = cache(lambda v: epsilon_lower_bound(r, v, r, 0.0))
    right = binomial(np.full(20_000, r), 1 / (1 + math.exp(-epsilon)), seeded(1))
    alarms = sum(bound(int(v)) > epsilon for v in right)
    assert not too_many(alarms, len(right))
    assert alarms > 0.01 * len(right)  # the bound is not slack


@pytest.mark.parametrize("delta", [0.01, 0.1, 0.3])
def test_a_coin_told_with_probability_delta_is_what_the_term_in_delta_allows(delta: float) -> None:
    """Told with probability delta, else through randomised response: one guess is right that often."""
    p = 1 / (1 + math.exp(-1.0))
    right = delta + (1 - delta) * p
    assert epsilon_lower_bound(1, 1, 1, delta, 1 - right) == pytest.approx(1.0, abs=1e-6)
    assert epsilon_lower_bound(1, 1, 1, delta, 1 - right + 0.01) < 1


def test_coins_that_are_told_with_probability_delta_alarm_only_who_forgets_delta() -> None:
    m, r, epsilon, delta = 10_000, 200, 0.5, 0.01
    generator = seeded(2)
    told = np.minimum(binomial(np.full(2000, m), delta, generator), r)
    right = told + binomial(r - told, 1 / (1 + math.exp(-epsilon)), generator)
    forgets = cache(lambda v: epsilon_lower_bound(r, v, m, 0.0))
    counts = cache(lambda v: epsilon_lower_bound(r, v, m, delta))
    assert sum(forgets(int(v)) > epsilon for v in right) > 1000
    assert not too_many(sum(counts(int(v)) > epsilon for v in right), len(right))


@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
def test_the_gaussian_mechanism_alarms_no_more_often_than_stated(noise: float) -> None:
    generator = seeded(3)
    epsilon, trials = Accountant.PLD.epsilon([(1.0, noise, 1)], 1e-5), 300
    bounds = []
    for _ in range(trials):
        included = fair_coins(2000, generator)
        scores = included + noise * torch.randn(2000, generator=generator).numpy()
        bounds.append(audited(scores, included, 1e-5).epsilon)
    assert not too_many(sum(bound > epsilon for bound in bounds), trials)
    assert noise > 1 or np.median(bounds) > 0.25 * epsilon  # and it finds something


def test_trying_many_numbers_of_guesses_is_paid_for() -> None:
    generator = seeded(4)
    tries = [(k, 0) for k in range(10, 500, 10)] + [(0, k) for k in range(10, 500, 10)]
    paid = unpaid = 0
    for _ in range(100):
        included = fair_coins(500, generator)
        scores = torch.randn(500, generator=generator).numpy()
        paid += audited(scores, included, 0.0, tries=tries).epsilon > 0
        unpaid += any(audited(scores, included, 0.0, tries=[one]).epsilon > 0 for one in tries)
    assert not too_many(paid, 100)
    assert too_many(unpaid, 100)


# --- guesses


def test_the_highest_are_guessed_in_and_the_lowest_out() -> None:
    scores = np.array([3.0, -1.0, 2.0, 0.0, 9.0])
    assert guess(scores, 2, 1).tolist() == [1, -1, 0, 0, 1]
    assert guess(scores, 0, 0).tolist() == [0] * 5
    assert np.abs(guess(np.zeros(6), 2, 4)).sum() == 6  # ties are all guessed, once each


def test_scores_that_tell_all_are_found_to_and_the_best_try_is_told() -> None:
    included = np.arange(1000) % 3 == 0
    found = audited(included.astype(float), included, 1e-5)
    assert (found.guesses, found.right, found.canaries) == (400, 400, 1000)
    assert found.epsilon == epsilon_lower_bound(400, 400, 1000, 1e-5, 1 - 0.05 / 4)
    assert audited(-included.astype(float), included, 1e-5).epsilon == 0


def test_the_usual_tries_fit_any_number_of_canaries() -> None:
    for canaries in (1, 7, 100, 4001):
        assert all(min(pair) >= 0 and sum(pair) <= canaries for pair in usual_tries(canaries))


# --- the area under the curve


def test_randomised_response_is_told_apart_as_well_as_its_epsilon_allows() -> None:
    for epsilon in (0.0, 1.0, 5.0):
        p = 1 / (1 + math.exp(-epsilon))
        area = p * p + 0.5 * 2 * p * (1 - p)  # one answer right and the other wrong is a tie
        assert most_auc(epsilon, 0.0) == pytest.approx(area)


def test_the_area_is_what_the_region_of_tests_has() -> None:
    epsilon, delta = 1.0, 0.05
    a = (np.arange(100_000) + 0.5) / 100_000
    misses = np.maximum(1 - delta - math.exp(epsilon) * a, math.exp(-epsilon) * (1 - delta - a))
    assert most_auc(epsilon, delta) == pytest.approx(1 - np.maximum(misses, 0).mean(), abs=1e-5)
    assert most_auc(math.inf, 1e-5) == pytest.approx(1)


# --- bad input


@pytest.mark.parametrize(
    ("numbers", "confidence"),
    [
        ((5, 6, 10, 0.0), 0.9),
        ((11, 5, 10, 0.0), 0.9),
        ((5, -1, 10, 0.0), 0.9),
        ((5, 5, 10, 1.0), 0.9),
        ((5, 5, 10, -0.1), 0.9),
        ((5, 5, 10, 0.0), 1.0),
        ((5, 5, 10, 0.0), 0.0),
    ],
)
def test_numbers_out_of_range_are_refused(numbers, confidence) -> None:
    with pytest.raises(ConfigError, match="expected, got"):
        epsilon_lower_bound(*numbers, confidence)


def test_scores_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="guess fewer"):
        guess(np.zeros(5), 3, 3)
    with pytest.raises(ConfigError, match="guess fewer"):
        guess(np.zeros(5), -1, 3)
    with pytest.raises(DataError, match="1 of 2 scores"):
        guess(np.array([0.0, math.nan]), 1, 0)
    with pytest.raises(DataError, match="one score a canary"):
        audited(np.zeros(5), np.zeros(4, bool), 1e-5)
    with pytest.raises(ConfigError, match="number of guesses"):
        audited(np.zeros(5), np.zeros(5, bool), 1e-5, tries=[])
