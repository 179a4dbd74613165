"""Graphs of who shares with whom: their probabilities by brute force and by chance, and their shape."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.parties.neighbours import (
    Sharing,
    _run_removed,
    _tails,
    choose_sharing,
    complete,
    regular,
    slots,
)

steady = settings(derandomize=True, deadline=None)
COINS = Coins.from_seed(b"neighbours")


def ring(n: int, degree: int) -> list[set[int]]:
    """The neighbours of each place of the ring, itself left out."""
    half = degree // 2
    return [{(v + d) % n for d in range(-half, half + 1)} - {v} for v in range(n)]


def marked_neighbours(n: int, degree: int, marked: set[int], v: int) -> int:
    return len(ring(n, degree)[v] & marked)


# --- probabilities


@pytest.mark.parametrize(("n", "degree", "corrupted"), [(5, 2, 2), (6, 4, 2), (6, 2, 3), (7, 4, 3)])
def test_the_tail_is_the_chance_of_a_member_over_all_orders_exactly(
    n: int, degree: int, corrupted: int
) -> None:
    """Member 0 is honest, members 1 to ``corrupted`` are not; every order of the ring is as likely."""
    counts = [0] * (degree + 1)
    graph = ring(n, degree)
    for order in permutations(range(n)):  # order[place] is the member that stands there
        around = [order[place] for place in graph[order.index(0)]]
        counts[sum(1 <= member <= corrupted for member in around)] += 1
    tails = _tails(n - 1, corrupted, degree)
    for least in range(degree + 1):
        exact = Fraction(sum(counts[least:]), math.factorial(n))
        assert Fraction(tails[least]).limit_denominator(1 << 30) == exact


@steady
@given(population=st.integers(1, 12), data=st.data())
def test_the_tail_counts_all_ways_to_draw(population: int, data) -> None:
    marked = data.draw(st.integers(0, population))
    drawn = data.draw(st.integers(0, population))
    ways = [sum(one < marked for one in hand) for hand in combinations(range(population), drawn)]
    tails = _tails(population, marked, drawn)
    assert len(tails) == drawn + 1 and tails[0] == 1.0
    assert tails == [sum(count >= x for count in ways) / len(ways) for x in range(drawn + 1)]


@pytest.mark.parametrize(("n", "bad", "degree"), [(7, 2, 2), (8, 3, 4), (9, 2, 4), (9, 4, 6)])
def test_no_threshold_fails_more_often_over_all_corrupted_sets_than_the_sum_over_members_says(
    n: int, bad: int, degree: int
) -> None:
    """A random order with a fixed corrupted set is a fixed ring with a random corrupted set: all sets are tried."""
    for threshold in range(1, degree + 1):
        failed = whole = 0
        for chosen in combinations(range(n), bad):
            marked = set(chosen)
            honest = [v for v in range(n) if v not in marked]
            failed += any(marked_neighbours(n, degree, marked, v) >= threshold for v in honest)
            whole += 1
        assert failed / whole <= n * _tails(n - 1, bad, degree)[threshold] + 1e-12


def reachable(n: int, degree: int, removed: set[int]) -> bool:
    """Whether those who are not removed hang together."""
    left = [v for v in range(n) if v not in removed]
    if not left:
        return True
    graph, seen, front = ring(n, degree), {left[0]}, [left[0]]
    while front:
        new = graph[front.pop()] - removed - seen
        seen |= new
        front += new
    return len(seen) == len(left)


@pytest.mark.parametrize(("n", "removed", "degree"), [(8, 3, 2), (9, 4, 4), (10, 5, 4), (10, 6, 6)])
def test_survivors_fall_apart_less_often_over_all_removed_sets_than_the_bound_on_runs_says(
    n: int, removed: int, degree: int
) -> None:
    sets = [set(chosen) for chosen in combinations(range(n), removed)]
    runs = [
        any(all((v + d) % n in gone for d in range(degree // 2)) for v in range(n)) for gone in sets
    ]
    apart = [not reachable(n, degree, gone) for gone in sets]
    assert all(run or not fell for run, fell in zip(runs, apart, strict=True))
    assert 0 < sum(apart) <= sum(runs)
    assert sum(runs) / len(sets) <= _run_removed(n, removed, degree // 2)


def failure_rates(n: int, bad: int, gone: int, sharing: Sharing, draws: int) -> tuple[float, ...]:
    """How often each condition fails on graphs as `regular` draws them; who is corrupted and who is gone is fixed."""
    half, threshold = sharing.degree // 2, sharing.threshold
    corrupted = np.arange(n) < bad
    left_out = np.arange(n) >= n - gone
    failed = np.zeros(3, np.int64)
    for draw in range(draws):
        holders = regular(n, sharing.degree, COINS.child(f"{n} {sharing.degree} {draw}"))
        own = corrupted[holders].sum(1) - corrupted
        left = (~left_out)[holders].sum(1) - ~left_out
        failed[0] += (own[~corrupted] >= threshold).any()
        failed[1] += (left < threshold).any()
        order = COINS.child(f"{n} {sharing.degree} {draw}").permutation(n)
        away = (corrupted | left_out)[order]
        around = np.concatenate([away, away[: half - 1]]).astype(np.int64)
        failed[2] += (np.convolve(around, np.ones(half, np.int64), "valid") == half).any()
    return tuple((failed / draws).tolist())


@pytest.mark.parametrize(
    ("n", "corrupted", "dropped", "failure"),
    [(60, 0.1, 0.2, 0.3), (100, 0.2, 0.2, 0.1), (200, 0.1, 0.3, 0.5)],
)
def test_graphs_fail_less_often_than_the_bound_says(
    n: int, corrupted: float, dropped: float, failure: float
) -> None:
    sharing = choose_sharing(n, corrupted=corrupted, dropped=dropped, failure=failure)
    assert sharing is not None
    bad, gone = math.ceil(corrupted * n), math.ceil(dropped * n)
    draws = 1500
    measured = failure_rates(n, bad, gone, sharing, draws)
    # A rate at its bound p is above p + 4.5 sqrt(p / draws) in 1 of 10^5 runs with other coins.
    for rate, bound in zip(
        measured, (sharing.security, sharing.recovery, sharing.connection), strict=True
    ):
        assert rate <= bound + 4.5 * math.sqrt(bound / draws)
    assert sharing.failure < failure
    # and the bounds are those of this threshold: one neighbour less fails much more often
    smaller = Sharing(degree=sharing.degree // 2 // 2 * 2, threshold=sharing.threshold)
    worse = failure_rates(n, bad, gone, smaller, 50)
    assert sum(worse) > 1.5 * sharing.failure


@pytest.mark.parametrize(("corrupted", "most"), [(0.1, 100), (0.33, 256)])
def test_a_thousand_of_whom_three_tenths_drop_out_need_few_neighbours_for_two_to_the_minus_30(
    corrupted: float, most: int
) -> None:
    sharing = choose_sharing(1000, corrupted=corrupted, dropped=0.3, failure=2.0**-30)
    assert sharing is not None and sharing.degree < most and 0 < sharing.failure < 2.0**-30
    degree, threshold = sharing.degree, sharing.threshold
    bad = math.ceil(1000 * corrupted)
    assert math.isclose(
        sharing.security, 1000 * hypergeom.sf(threshold - 1, 999, bad, degree), rel_tol=1e-6
    )
    assert math.isclose(
        sharing.recovery, 1000 * hypergeom.sf(degree - threshold, 999, 300, degree), rel_tol=1e-6
    )
    assert str(sharing).startswith(f"{degree} neighbours each, threshold {threshold}, failure")


def test_the_chosen_degree_is_the_smallest_and_its_threshold_the_best() -> None:
    n, bad, gone = 50, 5, 10
    sharing = choose_sharing(n, corrupted=0.1, dropped=0.2, failure=2.0**-10)
    assert sharing is not None

    def failure(degree: int, threshold: int) -> float:
        left = _tails(n - 1, gone, degree)[degree - threshold + 1]
        apart = _run_removed(n, bad + gone, degree // 2)
        return n * (_tails(n - 1, bad, degree)[threshold] + left) + apart

    assert math.isclose(failure(sharing.degree, sharing.threshold), sharing.failure, rel_tol=1e-9)
    for degree in range(2, sharing.degree + 1, 2):
        best = min(failure(degree, threshold) for threshold in range(1, degree + 1))
        if degree < sharing.degree:
            assert best >= 2.0**-10
        else:
            assert math.isclose(best, sharing.failure, rel_tol=1e-9) and best < 2.0**-10


@steady
@given(
    n=st.integers(20, 120),
    corrupted=st.sampled_from([0.0, 0.05, 0.1, 0.2]),
    dropped=st.sampled_from([0.0, 0.1, 0.2]),
    exponent=st.integers(1, 30),
)
def test_more_demands_never_need_fewer_neighbours(
    n: int, corrupted: float, dropped: float, exponent: int
) -> None:
    def degree(**changes: float) -> float:
        asked = {"corrupted": corrupted, "dropped": dropped, "failure": 2.0**-exponent, **changes}
        found = choose_sharing(n, **asked)
        assert found is None or found.failure < asked["failure"]
        return math.inf if found is None else found.degree

    least = degree()
    assert degree(corrupted=corrupted + 0.1) >= least
    assert degree(dropped=dropped + 0.1) >= least
    assert degree(failure=2.0 ** -(exponent + 5)) >= least


def test_where_no_degree_is_sure_enough_none_is_chosen() -> None:
    assert choose_sharing(5, corrupted=0.1, dropped=0.3, failure=2.0**-30) is None
    assert choose_sharing(100, corrupted=0.6, dropped=0.35, failure=2.0**-30) is None
    assert choose_sharing(3, corrupted=0.0, dropped=0.0, failure=0.5) is None


def test_without_corruption_and_dropouts_nothing_fails() -> None:
    sharing = choose_sharing(20, corrupted=0.0, dropped=0.0, failure=2.0**-40)
    assert sharing is not None and (sharing.degree, sharing.failure) == (2, 0.0)
    assert str(sharing) == f"2 neighbours each, threshold {sharing.threshold}"


@pytest.mark.parametrize(
    "asked",
    [
        {"participants": 1},
        {"corrupted": -0.1},
        {"dropped": -0.1},
        {"corrupted": 0.7, "dropped": 0.3},
        {"corrupted": float("nan")},
        {"failure": 0.0},
        {"failure": 1.0},
        {"failure": float("nan")},
    ],
    ids=str,
)
def test_shares_and_probabilities_out_of_range_are_refused(asked: dict[str, float]) -> None:
    given = {"participants": 100, "corrupted": 0.1, "dropped": 0.3, "failure": 0.01, **asked}
    with pytest.raises(ConfigError):
        choose_sharing(given.pop("participants"), **given)


# --- graphs


@steady
@given(n=st.integers(3, 40), data=st.data())
def test_a_regular_graph_is_regular_symmetric_connected_and_everybody_holds_its_own(
    n: int, data
) -> None:
    degree = 2 * data.draw(st.integers(1, (n - 1) // 2))
    seed = data.draw(st.integers(0, 1 << 20))
    holders = regular(n, degree, COINS.child(f"graph {seed}"))
    assert holders.shape == (n, degree + 1) and holders.dtype == np.int64
    sets = [set(row) for row in holders.tolist()]
    assert all(len(one) == degree + 1 and v in one for v, one in enumerate(sets))
    assert all(row == sorted(row) for row in holders.tolist())
    assert all(v in sets[u] for v in range(n) for u in sets[v])
    seen, front = {0}, [0]
    while front:
        new = sets[front.pop()] - seen
        seen |= new
        front += new
    assert len(seen) == n


def test_the_order_of_the_ring_is_random() -> None:
    graphs = [regular(8, 2, COINS.child(f"order {draw}")) for draw in range(4000)]
    together = np.mean([1 in graph[0] for graph in graphs])
    # 2 of 7 others are neighbours; 4,000 draws are within 0.04 but for 1 run in 10^7
    assert abs(together - 2 / 7) < 0.04
    assert len({graph.tobytes() for graph in graphs}) > 1500  # of 2,520 rings
    again = regular(8, 2, COINS.child("order 0"))
    assert (again == graphs[0]).all()


@steady
@given(n=st.integers(3, 40), data=st.data())
def test_slots_say_where_each_member_stands_among_its_holders_holders(n: int, data) -> None:
    degree = 2 * data.draw(st.integers(1, (n - 1) // 2))
    for holders in (regular(n, degree, COINS.child(f"slots {n} {degree}")), complete(n)):
        found = slots(holders)
        assert found.shape == holders.shape
        for v in range(n):
            for place, holder in enumerate(holders[v].tolist()):
                assert holders[holder, found[v, place]] == v


def test_in_the_complete_graph_everybody_holds_everybodys() -> None:
    assert complete(3).tolist() == [[0, 1, 2]] * 3
    assert slots(complete(3)).tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]


@pytest.mark.parametrize(("n", "degree"), [(5, 3), (5, 0), (5, 6), (6, 6), (5, -2), (2, 2)])
def test_a_degree_that_is_odd_or_out_of_range_is_refused(n: int, degree: int) -> None:
    with pytest.raises(ConfigError, match="even degree"):
        regular(n, degree, COINS.child("refused"))
