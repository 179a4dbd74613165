"""The discrete Gaussian: its cover piece by piece, its law by chi-square, and the same draws in C and numpy."""

from __future__ import annotations

import decimal
import math
import os
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tacit.audit.dp_checks import chi_square_p, law
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.crypto import kernels
from tacit.dp import discrete
from tacit.dp.discrete import DiscreteGaussian

FALSE_ALARM = 1e-6  # of each statistical test; the seeds are fixed, so a pass stays a pass
DRAWS = 10**7
steady = settings(derandomize=True, deadline=None, max_examples=60)
some = st.sampled_from([0.3, 1.0, 64.0, 2.0**16, 2.0**40])
deviations = st.floats(0.3, 2.0**40) | st.floats(0.3, 300.0) | some
both = pytest.mark.parametrize("native", ["0", "1"])


# --- the law


@both
@pytest.mark.parametrize("s", [0.3, 0.5, 3.0, 17.3, 100.0])
def test_draws_follow_the_law(s: float, native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACIT_NATIVE", native)
    drawn = DiscreteGaussian(s).draw(Coins.from_seed(b"law"), DRAWS)
    x, p = law(s)
    observed = np.bincount(drawn - x[0], minlength=len(x))
    assert len(observed) == len(x)
    assert chi_square_p(observed, p) > FALSE_ALARM
    # the test can tell: a deviation off by one in two hundred is found
    assert chi_square_p(observed, np.interp(x, *law(s * 1.005))) < FALSE_ALARM


@both
def test_draws_of_many_integers_follow_the_law(
    native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bins that do not match the blocks of the cover; and within blocks, by residues."""
    monkeypatch.setenv("TACIT_NATIVE", native)
    s = 2.0**16
    drawn = DiscreteGaussian(s).draw(Coins.from_seed(b"many"), DRAWS)
    x, p = law(s)
    for cells in (lambda v: (v - x[0]) // 777, lambda v: v % 1009, lambda v: v % 1024):
        observed = np.bincount(cells(drawn), minlength=cells(x).max() + 1)
        assert chi_square_p(observed, np.bincount(cells(x), p)) > FALSE_ALARM


@pytest.mark.parametrize("s", [2.0**23, 1.7 * 2.0**24, 2.0**40])
def test_very_wide_draws_follow_the_normal_law(s: float) -> None:
    drawn = DiscreteGaussian(s).draw(Coins.from_seed(b"wide"), 10**6)
    cells = np.floor(stats.norm.cdf((drawn + 0.5) / s) * 1000).astype(np.int64)
    assert chi_square_p(np.bincount(cells, minlength=1000), np.full(1000, 1e-3)) > FALSE_ALARM
    low = np.bincount(drawn % 512, minlength=512)
    assert chi_square_p(low, np.full(512, 1 / 512)) > FALSE_ALARM


@pytest.mark.parametrize("s", [0.5, 1.0, 40.0, 2.0**20, 2.0**40])
def test_moments(s: float) -> None:
    """Mean, variance and fourth moment, and as many above 0 as below, each within five deviations of its estimate."""
    drawn = DiscreteGaussian(s).draw(Coins.from_seed(b"moments"), 10**6) / s
    if s < 2**20:
        x, p = law(s)
        second, fourth, eighth = (float(p @ (x / s) ** k) for k in (2, 4, 8))
    else:
        second, fourth, eighth = 1.0, 3.0, 105.0
    for value, expected, variance in (
        (drawn, 0.0, second),
        (np.sign(drawn), 0.0, 1.0),
        (drawn**2, second, fourth - second**2),
        (drawn**4, fourth, eighth - fourth**2),
    ):
        assert abs(float(value.mean()) - expected) < 5 * math.sqrt(variance / 1e6)


# --- the cover


@steady
@given(deviations)
def test_rectangles_cover_the_curve_and_the_sure_ones_lie_under_it(s: float) -> None:
    """From this and from exact comparisons the law follows: each integer is accepted in proportion to f."""
    table = DiscreteGaussian(s)._table
    assert len(table.blocks) == len(table.levels) == 2**discrete._INDEX
    assert table.sure <= table.tails < len(table.blocks)
    real = (
        table.levels < 2**discrete._INDEX
    )  # the rest are always rejected: f / height is below that
    assert real[: table.tails].all()

    def f(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.exp(-((x / s) ** 2) / 2)

    covered = []
    for part, shift in (
        (slice(0, table.tails), 0),
        (slice(table.tails, int(real.sum())), table.more),
    ):
        blocks, levels = table.blocks[part].astype(np.int64), table.levels[part]
        numbers, at, count = np.unique(blocks, return_inverse=True, return_counts=True)
        order = np.lexsort((levels, blocks))
        assert np.array_equal(levels[order], np.concatenate([np.arange(n) for n in count]))
        first = numbers.astype(np.float64) * 2.0 ** (table.low + shift)
        last = first + 2.0 ** (table.low + shift) - 1
        height = table.height / 2.0**shift
        highest, lowest = f(np.where(first < 0, last, first)), f(np.where(first < 0, first, last))
        assert (count * height >= highest).all() and (count < 2**discrete._INDEX).all()
        if shift == 0 and part.start == 0:
            under = slice(0, table.sure)
            assert ((levels[under] + 1) * height <= lowest[at[under]]).all()
        covered += list(zip(first.tolist(), last.tolist(), strict=True))
    covered.sort()
    assert covered[0][0] == -table.end and covered[-1][1] == table.end - 1
    assert all(a[1] + 1 == b[0] for a, b in pairwise(covered))
    assert table.end >= 13.5 * s


@steady
@given(deviations)
def test_the_distance_bounds_the_mass_that_is_cut_off(s: float) -> None:
    gaussian = DiscreteGaussian(s)
    assert 0 < gaussian.distance < 2.0**-128
    assert gaussian.distance >= 2.0**-160
    if s < 1000:
        end = gaussian.reach
        inside, beyond = np.arange(-end, end), np.arange(end, end + math.ceil(20 * s) + 2)
        mass = [float(np.exp(-((x / s) ** 2) / 2).sum()) for x in (inside, beyond)]
        assert 2 * mass[1] / mass[0] <= gaussian.distance


def test_no_draw_is_beyond_the_reach() -> None:
    gaussian = DiscreteGaussian(0.3)
    drawn = gaussian.draw(Coins.from_seed(b"reach"), 10**6)
    assert np.abs(drawn).max() <= gaussian.reach == 5


# --- exact comparisons


@both
@pytest.mark.parametrize("s", [0.5, 90.0, 2.0**30])
def test_what_floats_decide_decimals_decide_alike(
    s: float, native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a margin that leaves nothing to floats, the same coins give the same draws, a fresh 128 bits each apart."""
    monkeypatch.setenv("TACIT_NATIVE", native)
    gaussian, rejected = DiscreteGaussian(s), []
    for margin in (discrete._CLOSE, math.inf):
        monkeypatch.setattr(discrete, "_CLOSE", margin)
        out = np.empty(10_000, np.int64)
        rejected.append((gaussian._attempt(Coins.from_seed(b"u"), out), out))
    (first, integers), (again, same) = rejected
    assert np.array_equal(integers, same) and np.array_equal(first, again)
    assert 0 < len(first) < 1000


def test_a_comparison_that_floats_cannot_make_is_exact() -> None:
    """Where the decision turns, found by bisection, is f to 54 digits."""
    gaussian = DiscreteGaussian(1.0)
    table = gaussian._table
    for x in (0, 1, 2):
        f = math.exp(-x * x / 2)
        lower, upper = 0, 2**189
        top = int(f / table.height)
        index = int(np.flatnonzero((table.blocks == x) & (table.levels == top))[0])
        while upper - lower > 1:
            middle = (lower + upper) // 2
            if gaussian._exactly(x, index, middle):
                lower = middle
            else:
                upper = middle
        with decimal.localcontext(prec=100):
            true = (decimal.Decimal(-x * x) / 2).exp() / decimal.Decimal(table.height) - top
            assert abs(true - decimal.Decimal(upper) / 2**189) < decimal.Decimal(2) ** -180


# --- C and numpy


@pytest.mark.parametrize("s", [0.3, 0.5, 7.0, 100.0, 2.0**16, 2.0**23, 2.0**24, 2.0**31, 2.0**40])
@pytest.mark.parametrize("count", [0, 1, 5, 40_000, 600_001])
def test_c_and_numpy_draw_the_same_from_the_same_coins(
    s: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels._load() is None:
        required = os.environ.get("TACIT_NATIVE_REQUIRED")
        (pytest.fail if required else pytest.skip)("the C kernels were not built")
    found = []
    for native in ("0", "1"):
        monkeypatch.setenv("TACIT_NATIVE", native)
        coins = Coins.from_seed(b"twins")
        found.append((DiscreteGaussian(s).draw(coins, count), coins.bytes(8)))
    assert found[0][0].dtype == found[1][0].dtype == np.int64 and len(found[0][0]) == count
    assert np.array_equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]


def test_each_draw_is_another() -> None:
    coins, gaussian = Coins(), DiscreteGaussian(2.0**30)
    assert len(np.unique(np.concatenate([gaussian.draw(coins, 500), gaussian.draw(coins, 500)]))) > 990  # fmt: skip


@pytest.mark.parametrize("s", [0.0, -1.0, 0.29, 2.0**40 + 1, math.inf, math.nan])
def test_a_deviation_out_of_range_is_refused(s: float) -> None:
    with pytest.raises(ConfigError, match=r"from 0.3 to 2\^40"):
        DiscreteGaussian(s)


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ConfigError, match="not be negative"):
        DiscreteGaussian(1.0).draw(Coins(), -1)
