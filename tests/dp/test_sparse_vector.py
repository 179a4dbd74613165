"""The sparse vector technique: line by line, and its loss measured by exact integration and by sampling.

Outcomes of a small run can be integrated: given the threshold's noise, the queries are independent. The same harness is
run on broken variants, which it must catch.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import beta, chi2

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.dp.mechanisms import laplace
from tacit.dp.sparse_vector import SparseVector

Floats = npt.NDArray[np.float64]
Outcome = tuple[int, ...]  # the places of the hits

TOY = SparseVector(
    hits=2,
    threshold=0.5,
    query_sensitivity=1.0,
    value_sensitivity=2.0,
    threshold_scale=1.5,
    query_scale=2.5,
    value_scale=3.0,
)


# --- exact probabilities


def below(x: Floats, scale: float) -> Floats:
    """P(Laplace noise < x)."""
    tail = 0.5 * np.exp(-np.abs(x) / scale)
    return np.where(x < 0, tail, 1 - tail)


def nodes(mechanism: SparseVector, queries: Sequence[float]) -> tuple[Floats, Floats]:
    """Points and weights for integrals over a noisy threshold: Gauss-Legendre between all the kinks."""
    scale = max(mechanism.threshold_scale, mechanism.query_scale)
    steps = [s * scale * m for s in (-1, 1) for m in (0.5, 1, 2, 4, 8, 16, 32)]
    cuts = sorted({mechanism.threshold, *queries, *(mechanism.threshold + s for s in steps)})
    x, w = np.polynomial.legendre.leggauss(24)
    points, weights = [], []
    for low, high in itertools.pairwise(cuts):
        points.append((high - low) / 2 * x + (high + low) / 2)
        weights.append((high - low) / 2 * w)
    at = np.concatenate(points)
    density = np.exp(-np.abs(at - mechanism.threshold) / mechanism.threshold_scale)
    return at, np.concatenate(weights) * density / (2 * mechanism.threshold_scale)


def probability(
    mechanism: SparseVector, queries: Sequence[float], outcome: Outcome, *, fresh: bool = True
) -> float:
    """P(exactly these hits), by integration; ``fresh`` False never redraws the threshold's noise."""
    at, weights = nodes(mechanism, queries)
    total, held, start = 1.0, np.ones_like(at), 0
    ends = [*outcome] if len(outcome) == mechanism.hits else [*outcome, len(queries)]
    for end in ends:
        for query in queries[start:end]:
            held = held * below(at - query, mechanism.query_scale)
        if end < len(queries):
            held = held * below(queries[end] - at, mechanism.query_scale)
        if fresh:
            total, held = total * float(weights @ held), np.ones_like(at)
        start = end + 1
    return total if fresh else float(weights @ held)


def outcomes(mechanism: SparseVector, count: int) -> list[Outcome]:
    return [
        hits
        for size in range(mechanism.hits + 1)
        for hits in itertools.combinations(range(count), size)
    ]


def loss(
    mechanism: SparseVector,
    one: Sequence[float],
    other: Sequence[float],
    outcome: Outcome,
    *,
    fresh: bool = True,
) -> float:
    """The log ratio of an outcome's probabilities, in the direction in which it is larger."""
    p, q = (probability(mechanism, x, outcome, fresh=fresh) for x in (one, other))
    return abs(math.log(p / q))


def bound(mechanism: SparseVector, hits: int) -> float:
    """What the derivation allows the places of so many hits to cost, values apart."""
    q, t, s = mechanism.query_sensitivity, mechanism.threshold_scale, mechanism.query_scale
    return hits * (q / t + 2 * q / s) + (q / t if hits < mechanism.hits else 0.0)


def neighbours(count: int, seed: int) -> tuple[list[float], list[float]]:
    """Answers that move by at most the toy's sensitivity of 1, most of them by all of it."""
    coins = Coins.from_seed(f"neighbours {seed}".encode())
    one = 4 * coins.unit(count) - 2
    move = (2 * coins.unit(count) - 1) if seed % 2 else np.sign(coins.unit(count) - 0.5)
    return one.tolist(), (one + move).tolist()


def test_the_integrated_probabilities_of_all_outcomes_sum_to_one() -> None:
    for seed in range(4):
        for queries in neighbours(5, seed):
            total = sum(probability(TOY, queries, o) for o in outcomes(TOY, 5))
            assert abs(total - 1) < 1e-10


def test_what_is_released_has_the_integrated_probabilities() -> None:
    """20,000 runs of the code itself; chi-square, false alarm 1e-5."""
    queries, runs = np.array([0.2, 1.0, -0.5, 0.9]), 20_000
    coins = Coins.from_seed(b"frequencies")
    seen = Counter(tuple(TOY.release(queries, queries, coins)[0].tolist()) for _ in range(runs))
    expected = {o: runs * probability(TOY, queries.tolist(), o) for o in outcomes(TOY, 4)}
    assert set(seen) <= set(expected)
    statistic = sum((seen[o] - e) ** 2 / e for o, e in expected.items())
    assert statistic < chi2.isf(1e-5, len(expected) - 1)


@pytest.mark.parametrize("seed", range(12))
def test_no_outcome_costs_more_than_the_derivation_says(seed: int) -> None:
    """Q/T + 2Q/S a hit, and Q/T for a last stretch that ends without one: so never more than `hits` full ones."""
    mechanism = replace(TOY, hits=1 + seed % 3)
    one, other = neighbours(6, seed)
    for outcome in outcomes(mechanism, 6):
        found = loss(mechanism, one, other, outcome)
        assert found <= bound(mechanism, len(outcome)) + 1e-9
        assert bound(mechanism, len(outcome)) <= bound(mechanism, mechanism.hits)


def test_a_stretch_without_a_hit_costs_no_more_than_the_threshold_however_many_queries_say_no() -> (
    None
):
    costs = []
    for count in (1, 5, 50, 500):
        cost = loss(TOY, [0.0] * count, [1.0] * count, ())
        assert cost <= 1 / TOY.threshold_scale + 1e-9
        costs.append(cost)
    assert costs == sorted(costs)
    assert costs[-1] > 0.98 / TOY.threshold_scale  # and the bound is met


def test_the_bound_is_met_by_many_queries_that_rise_and_one_that_falls() -> None:
    """Worst case: every no becomes likelier to be a hit, the hit less likely. 97 % of the claimed cost a hit."""
    mechanism = replace(TOY, hits=1)
    costs = {
        count: loss(mechanism, [0.0] * count + [1.0], [1.0] * count + [0.0], (count,))
        for count in (1, 30, 1000)
    }
    claimed = bound(mechanism, 1)
    assert costs[1] < costs[30] < costs[1000] <= claimed + 1e-9
    assert costs[1000] > 0.97 * claimed


def test_the_loss_of_values_is_their_sensitivity_over_their_scale_and_is_independent_of_places() -> (
    None
):
    """Given the same hits, values are the answers plus fresh noise: Kolmogorov distance, false alarm under 1e-6."""
    coins, drawn = Coins.from_seed(b"values"), []
    answers, values = np.array([9.0, -9.0, 9.0]), np.array([0.25, 7.0, -0.5])
    mechanism = replace(TOY, threshold=0.0, threshold_scale=0.1, query_scale=0.1)
    for _ in range(5000):
        places, released = mechanism.release(answers, values, coins)
        assert places.tolist() == [0, 2]
        drawn.append(released - values[places])
    for column in np.array(drawn).T:
        expected = below(np.sort(column), mechanism.value_scale)
        distance = np.abs(expected - (np.arange(5000) + 0.5) / 5000).max()
        assert distance < math.sqrt(math.log(2 / 1e-7) / (2 * 5000))
    assert abs(np.corrcoef(np.array(drawn).T)[0, 1]) < 5.5 / math.sqrt(5000)


def test_epsilon_is_the_sum_of_what_thresholds_queries_and_values_cost() -> None:
    assert TOY.epsilon == pytest.approx(2 * (1 / 1.5 + 2 / 2.5 + 2 / 3.0))
    assert TOY.epsilon == pytest.approx(bound(TOY, 2) + 2 * 2.0 / 3.0)


# --- line by line


def slow_release(
    mechanism: SparseVector, queries: Sequence[float], values: Sequence[float], coins: Coins
) -> tuple[list[int], list[float]]:
    """The printed algorithm, one step a line; it draws all the noise first, in the order of the fast code."""
    query_noise = list(laplace(coins, mechanism.query_scale, len(queries)))
    threshold_noise = list(laplace(coins, mechanism.threshold_scale, mechanism.hits))
    found: list[int] = []
    noisy_threshold = mechanism.threshold + threshold_noise.pop(0)
    for place in range(len(queries)):
        if queries[place] + query_noise[place] >= noisy_threshold:
            found.append(place)
            if len(found) >= mechanism.hits:
                break
            noisy_threshold = mechanism.threshold + threshold_noise.pop(0)
    value_noise = list(laplace(coins, mechanism.value_scale, len(found)))
    return found, [values[p] + n for p, n in zip(found, value_noise, strict=True)]


@pytest.mark.parametrize("hits", [1, 2, 7, 40])
def test_it_does_what_the_printed_algorithm_says_with_the_same_coins(hits: int) -> None:
    mechanism = replace(TOY, hits=hits)
    for seed in range(25):
        draw = Coins.from_seed(f"answers {seed}".encode())
        queries, values = 4 * draw.unit(30) - 2, draw.unit(30)
        first, second = (Coins.from_seed(f"run {seed}".encode()) for _ in range(2))
        places, released = mechanism.release(queries, values, first)
        found, expected = slow_release(mechanism, queries.tolist(), values.tolist(), second)
        assert places.tolist() == found
        assert released.tolist() == expected
        assert places.dtype == np.int64 and len(places) <= hits


def test_it_stops_after_the_agreed_number_of_hits_and_answers_nothing_beyond() -> None:
    mechanism = replace(TOY, hits=3, threshold=-1000.0)
    answers = np.zeros(50)
    places, values = mechanism.release(answers, answers, Coins.from_seed(b"stop"))
    assert places.tolist() == [0, 1, 2] and len(values) == 3


def test_where_nothing_exceeds_the_threshold_nothing_is_released() -> None:
    mechanism = replace(TOY, threshold=1000.0)
    for answers in (np.zeros(50), np.zeros(0)):
        places, values = mechanism.release(answers, answers, Coins.from_seed(b"none"))
        assert places.shape == values.shape == (0,)
        assert places.dtype == np.int64


def test_the_threshold_is_drawn_afresh_after_each_hit() -> None:
    """Almost no noise on queries: ten hits of the same answer in a row then need ten low thresholds."""
    mechanism = replace(TOY, hits=10, threshold=0.0, threshold_scale=1.0, query_scale=1e-9)
    coins, answers = Coins.from_seed(b"fresh"), np.zeros(10)
    sizes = [len(mechanism.release(answers, answers, coins)[0]) for _ in range(2000)]
    # fresh: a hit has probability 1/2, and the first high threshold ends it; shared: all or nothing
    assert 0.4 < np.mean([size == 0 for size in sizes]) < 0.6
    assert 0.2 < np.mean([size == 1 for size in sizes]) < 0.3
    assert np.mean([size == 10 for size in sizes]) < 0.01


@pytest.mark.parametrize(
    "wrong",
    [{"hits": 0}, {"hits": -1}, {"threshold": math.inf}, {"threshold": math.nan}]
    + [
        {name: value}
        for name in (
            "query_sensitivity",
            "value_sensitivity",
            "threshold_scale",
            "query_scale",
            "value_scale",
        )
        for value in (0.0, -1.0, math.inf, math.nan)
    ],
    ids=str,
)
def test_numbers_without_a_meaning_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected, got"):
        replace(TOY, **wrong)  # type: ignore[arg-type]


# --- the order of queries


def test_an_order_that_does_not_depend_on_data_costs_nothing_and_one_that_does_is_no_longer_covered() -> (
    None
):
    """Public or secret, a fixed order is one of the cases above. Sorted by answer, positions betray the answers.

    Asked in descending order, "the first is a hit" names the largest; its identity changes between neighbours for sure
    wherever it is the only one to hit.
    """
    mechanism = replace(TOY, hits=1)
    one, other = [0.6, 0.4, 0.0], [0.4, 0.6, 0.0]
    for order in itertools.permutations(range(3)):
        for outcome in outcomes(mechanism, 3):
            found = loss(mechanism, [one[i] for i in order], [other[i] for i in order], outcome)
            assert found <= bound(mechanism, 1) + 1e-9
    mixture = [
        sum(
            probability(mechanism, [x[i] for i in order], (order.index(0),))
            for order in itertools.permutations(range(3))
        )
        for x in (one, other)
    ]
    assert abs(math.log(mixture[0] / mixture[1])) <= bound(mechanism, 1)
    # 300 equal queries but for a tiny difference: sorted, which comes first is sure, and it alone is likely to hit
    low = replace(mechanism, threshold=-20.0)
    sure = probability(low, [1e-6, *[0.0] * 300], (0,))  # place 0 comes first
    last = probability(low, [*[0.0] * 300, -1e-6], (300,))  # it comes last
    assert math.log(sure / last) > bound(low, 1)


# --- sampled loss, and variants that are broken

Sampler = Callable[[SparseVector, Floats, Coins, int], tuple[Floats, Floats]]


def sampled(
    mechanism: SparseVector, queries: Floats, coins: Coins, runs: int, *, reuse: bool = False
) -> tuple[npt.NDArray[np.int64], Floats]:
    """The first hit (or the number of queries) and its value, in many runs at once; ``hits`` must be 1.

    ``reuse`` releases the noisy answer that was compared, in place of one with fresh noise.
    """
    n = len(queries)
    noisy = queries + laplace(coins, mechanism.query_scale, runs * n).reshape(runs, n)
    limit = mechanism.threshold + laplace(coins, mechanism.threshold_scale, runs)
    over = noisy >= limit[:, None]
    first = np.where(over.any(1), over.argmax(1), n)
    at = first.clip(max=n - 1)
    fresh = queries[at] + laplace(coins, mechanism.value_scale, runs)
    return first, noisy[np.arange(runs), at] if reuse else fresh


def at_least(hits: int, runs: int) -> float:
    """Clopper-Pearson, one-sided, 1e-6."""
    return float(beta.ppf(1e-6, hits, runs - hits + 1)) if hits else 0.0


def at_most(hits: int, runs: int) -> float:
    """Clopper-Pearson, one-sided, 1e-6."""
    return float(beta.ppf(1 - 1e-6, hits + 1, runs - hits))


def surely_lost(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    """A lower confidence bound on the log ratio of an event's probabilities; wrong twice in a million."""
    low = at_least(int(one.sum()), one.size)
    return math.log(low / at_most(int(other.sum()), other.size)) if low else -math.inf


LEAKY = SparseVector(
    hits=1, threshold=0.0, query_sensitivity=1.0, value_sensitivity=1.0,
    threshold_scale=2.0, query_scale=1.0, value_scale=10.0,
)  # fmt: skip


@pytest.mark.parametrize("reuse", [False, True], ids=["fresh values", "the compared value"])
def test_releasing_the_very_answer_that_was_compared_is_caught_and_a_fresh_one_is_not(
    reuse: bool,
) -> None:
    """The compared answer bounds the threshold from above, so that each "no" before it speaks for itself."""
    runs, count = 400_000, 6
    one, other = np.array([0.0] * count + [0.5]), np.array([1.0] * count + [0.5])
    events = []
    for queries, name in ((one, b"one"), (other, b"other")):
        first, value = sampled(LEAKY, queries, Coins.from_seed(name), runs, reuse=reuse)
        events.append((first == count) & (value <= 0.75))
    lost = surely_lost(*events)
    assert (lost > LEAKY.epsilon) is reuse, (lost, LEAKY.epsilon)


def test_without_noise_on_queries_an_outcome_of_one_input_is_impossible_for_its_neighbour() -> None:
    quiet = replace(TOY, hits=1, query_scale=1e-9)
    claimed = quiet.query_sensitivity / quiet.threshold_scale  # what such a variant says of itself
    one, other = np.array([0.0, 1.0]), np.array([1.0, 0.0])
    hit = [
        sampled(quiet, queries, Coins.from_seed(b"quiet"), 20_000)[0] == 1
        for queries in (one, other)
    ]
    assert surely_lost(*hit) > 3 * claimed
    noisy = [
        sampled(replace(TOY, hits=1), queries, Coins.from_seed(b"noisy"), 20_000)[0] == 1
        for queries in (one, other)
    ]
    assert surely_lost(*noisy) <= bound(replace(TOY, hits=1), 1)


def test_the_code_itself_never_surely_loses_more_than_it_claims() -> None:
    """Every outcome, with the sign of each value, in 20,000 runs on each of two neighbours."""
    mechanism = replace(TOY, threshold=0.3, threshold_scale=0.8, query_scale=1.0, value_scale=1.0)
    runs, tallies = 20_000, []
    for queries, values, name in (
        (np.array([0.0, 0.0, 1.0]), np.array([0.5, 1.0, 1.0]), b"a"),
        (np.array([1.0, 1.0, 0.0]), np.array([-1.5, -1.0, -1.0]), b"b"),
    ):
        coins, tally = Coins.from_seed(name), Counter[object]()
        for _ in range(runs):
            places, released = mechanism.release(queries, values, coins)
            tally[tuple(places.tolist()), tuple((released > 0).tolist())] += 1
        tallies.append(tally)
    worst = 0.0
    for event in set(tallies[0]) | set(tallies[1]):
        for one, other in (tallies, tallies[::-1]):
            low, high = at_least(one[event], runs), at_most(other[event], runs)
            worst = max(worst, math.log(low / high) if low else 0.0)
    assert 1.0 < worst <= mechanism.epsilon  # it is no harness that sees nothing


def test_a_threshold_that_is_not_redrawn_costs_more_than_one_hit_claims_but_never_more_than_all() -> (
    None
):
    """Variants that charge one hit for any number of them are caught. Charged by the hit, reuse would even cost less."""
    mechanism = replace(TOY, hits=6)
    one, other, outcome = [0.0, 1.0] * 6, [1.0, 0.0] * 6, tuple(range(1, 12, 2))
    assert loss(mechanism, one, other, outcome, fresh=False) > 2 * bound(replace(TOY, hits=1), 1)
    assert loss(mechanism, one, other, outcome) <= bound(mechanism, 6)
    q, t, s = 1.0, mechanism.threshold_scale, mechanism.query_scale
    for seed in range(6):
        one, other = neighbours(7, seed)
        for outcome in [o for o in outcomes(mechanism, 7) if len(o) == 6]:
            shared = loss(mechanism, one, other, outcome, fresh=False)
            assert shared <= q / t + 6 * 2 * q / s + 1e-9 < bound(mechanism, 6)


def test_scales_that_forget_to_grow_with_the_number_of_hits_are_caught() -> None:
    """The noise of one hit used for six: some outcome costs more than one hit's claim."""
    one, other = [0.0, 1.0] * 6, [1.0, 0.0] * 6
    outcome = tuple(range(1, 12, 2))
    found = loss(replace(TOY, hits=6), one, other, outcome)
    assert bound(TOY, 1) < found <= bound(replace(TOY, hits=6), 6)
    assert found > bound(replace(TOY, hits=1), 1)
