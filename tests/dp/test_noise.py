"""Noisy sums: the rounding is in the sensitivity, the discrete law is as good as the normal one, shares add up."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from scipy.special import ndtr

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, Diverged, RangeError
from tacit.dp import noise
from tacit.dp.discrete import DiscreteGaussian
from tacit.dp.noise import GaussianKind, NoisySum, summation_error

FALSE_ALARM = 1e-6  # of each statistical test; the seeds are fixed, so a pass stays a pass
steady = settings(derandomize=True, deadline=None, max_examples=100)
Floats = npt.NDArray[np.float64]

vectors = hnp.arrays(np.float64, st.integers(1, 12), elements=st.floats(-1e4, 1e4))
sums = st.builds(
    NoisySum,
    clip=st.floats(1e-2, 1e3),
    noise_multiplier=st.floats(0.01, 100),
    coordinates=st.just(1),
    bits=st.integers(4, 30),
)


def sized(sum_: NoisySum, coordinates: int) -> NoisySum:
    return NoisySum(
        clip=sum_.clip,
        noise_multiplier=sum_.noise_multiplier,
        coordinates=coordinates,
        bits=sum_.bits,
    )


def probabilities(s: float, end: int) -> Floats:
    """Of the discrete Gaussian on -end .. end."""
    f = np.exp(-(np.arange(-end, end + 1.0) ** 2) / (2 * s * s))
    return np.asarray(f / f.sum())


# --- the grid and the sensitivity


@steady
@given(sums)
def test_the_step_is_a_power_of_two_and_the_deviation_that_many_steps(sum_: NoisySum) -> None:
    assert math.frexp(sum_.step)[0] == 0.5
    assert 2**sum_.bits <= sum_.deviation / sum_.step < 2 ** (sum_.bits + 1)
    assert sum_.sensitivity == sum_.clip + sum_.step


@steady
@given(sums, vectors, st.data())
def test_neighbours_differ_on_the_grid_by_the_sensitivity_at_most(
    sum_: NoisySum, one: Floats, data: st.DataObject
) -> None:
    """With the same coins the noise is the same, and the difference of two shares is that of the rounded vectors."""
    sum_ = sized(sum_, len(one))
    record = data.draw(hnp.arrays(np.int64, len(one), elements=st.integers(-99, 99)))
    record = record * (sum_.clip / max(float(np.linalg.norm(record)), 1.0))
    grid = [
        sum_.share([vector], Coins.from_seed(b"same"), participants=1)
        for vector in (one, one + record)
    ]
    moved = float(np.linalg.norm((grid[0] - grid[1]).astype(np.float64))) * sum_.step
    apart = float(np.linalg.norm((one + record) - one))  # in floats not quite the clip
    assert moved <= (sum_.sensitivity - sum_.clip + apart) * (1 + 1e-12)


def test_the_rounding_can_move_neighbours_by_all_that_is_added() -> None:
    sum_ = NoisySum(clip=1e-6, noise_multiplier=1e6, coordinates=100, bits=4)
    one = np.full(100, sum_.step * 0.499999)
    grid = [
        sum_.share([v], Coins.from_seed(b"same"), participants=1)
        for v in (one, one + sum_.step * 2e-6)
    ]
    moved = float(np.linalg.norm((grid[1] - grid[0]).astype(np.float64))) * sum_.step
    assert moved == pytest.approx(10 * sum_.step)
    assert sum_.clip < moved <= sum_.sensitivity


def test_the_handed_sums_error_counts_twice() -> None:
    exact = NoisySum(clip=2.0, noise_multiplier=1.0, coordinates=9)
    loose = NoisySum(clip=2.0, noise_multiplier=1.0, coordinates=9, rounding=0.25)
    assert loose.sensitivity == exact.sensitivity + 0.5
    assert loose.accounted().noise_multiplier < exact.accounted().noise_multiplier / 1.2
    assert "within 0.25 (L2)" in loose.assumes[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sums_float_error_is_within_its_bound(dtype: type[np.floating]) -> None:
    terms = np.sin(np.arange(600 * 50.0)).reshape(600, 50)
    terms /= np.linalg.norm(terms, axis=1, keepdims=True)
    terms = terms.astype(dtype)
    total = np.zeros(50, dtype)
    for term in terms:
        total += term
    exact = np.array([math.fsum(column) for column in terms.T.tolist()])
    off = float(np.linalg.norm(total.astype(np.float64) - exact))
    assert 0 < off <= summation_error(600, 1 + 1e-6, dtype)
    with pytest.raises(ConfigError, match="too many"):
        summation_error(2**24, 1.0, np.float32)


# --- the release


@steady
@given(sums, vectors)
def test_what_is_released_is_the_sum_but_for_noise_and_rounding(
    sum_: NoisySum, vector: Floats
) -> None:
    sum_ = sized(sum_, len(vector))
    (released,) = sum_.release([vector], Coins.from_seed(b"release"))
    off = np.abs(released.astype(np.float64) - vector)
    most = 15 * sum_.deviation + sum_.step / 2
    assert (off <= most + (np.abs(vector) + most) * 2.0**-24).all()


@pytest.mark.parametrize("kind", GaussianKind)
def test_the_noise_has_its_deviation_and_arrays_keep_their_shapes(kind: GaussianKind) -> None:
    sum_ = NoisySum(clip=0.5, noise_multiplier=3.0, coordinates=300_016, kind=kind)
    arrays = [np.full((100, 3000), 7.0, np.float32), np.full(15, -2.0), np.array(3.0)]
    out = sum_.release(arrays, Coins.from_seed(b"deviation"))
    assert [a.shape for a in out] == [(100, 3000), (15,), ()]
    assert {a.dtype for a in out} == {np.dtype(np.float32)}
    scaled = (out[0].reshape(-1).astype(np.float64) - 7.0) / 1.5
    assert abs(scaled.mean()) < 5 / math.sqrt(scaled.size)
    assert abs((scaled**2).mean() - 1) < 5 * math.sqrt(2 / scaled.size)
    assert stats.kstest(scaled, "norm").pvalue > FALSE_ALARM
    np.testing.assert_allclose(out[1], -2.0, atol=8)


def test_without_noise_the_sum_goes_through() -> None:
    sum_ = NoisySum(clip=1.0, noise_multiplier=0.0, coordinates=3)
    (out,) = sum_.release([np.array([0.1, -1.0, 5.0])], Coins())
    assert out.tolist() == np.array([0.1, -1.0, 5.0], np.float32).tolist()
    assert sum_.accounted().noise_multiplier == 0


def test_two_releases_differ_and_seeded_ones_repeat() -> None:
    sum_ = NoisySum(clip=1.0, noise_multiplier=1.0, coordinates=40)
    one, other = (sum_.release([np.zeros(40)], Coins())[0] for _ in range(2))
    assert (one != other).all()
    one, other = (sum_.release([np.zeros(40)], Coins.from_seed(b"r"))[0] for _ in range(2))
    assert np.array_equal(one, other)


# --- what accountants may take it for


@pytest.mark.parametrize("r", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("more", [0.2, 2.0])
def test_a_discrete_gaussian_is_a_function_of_a_normal_draw(r: float, more: float) -> None:
    """The module's derivation at small deviations, by quadrature: the ratio is within its bound, and can come near."""
    s, x = math.hypot(r, more), np.linspace(-40, 40, 40_001)
    z = np.arange(-math.ceil(5 * s), math.ceil(5 * s) + 1.0)
    theta = np.exp(-((np.arange(-60.0, 61.0)[:, None] - x) ** 2) / (2 * r * r)).sum(0)
    around = np.exp(-((x / more) ** 2) / 2) / (math.sqrt(2 * math.pi) * more)
    centred = np.exp(-((z[:, None] - x) ** 2) / (2 * r * r)) / theta
    lifted = (centred * around).sum(1) * (x[1] - x[0])
    direct = probabilities(s, 40)[40 - len(z) // 2 : 41 + len(z) // 2]
    apart = np.abs(np.log(lifted / direct)).max()
    bound = 2 * math.atanh(noise._ripple(r))
    assert apart <= bound + 1e-12
    if more == 0.2:
        assert apart > bound / 10


@pytest.mark.parametrize("bits", [4, 5, 6])
@pytest.mark.parametrize("multiplier", [0.5, 1.0, 4.0])
def test_the_discrete_release_is_within_the_normal_ones_privacy_profile(
    bits: int, multiplier: float
) -> None:
    """In one dimension, where the greatest integer shift shows the exact delta at each epsilon."""
    sum_ = NoisySum(clip=1.0, noise_multiplier=multiplier, coordinates=1, bits=bits)
    s, shift = sum_.deviation / sum_.step, math.floor(sum_.sensitivity / sum_.step)
    p = probabilities(s, math.ceil(13 * s) + shift)
    mu = 1 / sum_.accounted().noise_multiplier
    for epsilon in (0.0, 0.1, 0.5, 1.0, 2.0, 4.0):
        exact = float(np.maximum(p[shift:] - math.exp(epsilon) * p[:-shift], 0).sum())
        normal = ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon) * ndtr(-mu / 2 - epsilon / mu)
        assert exact <= normal + sum_.accounted().delta(epsilon, 1) + 1e-14


def test_the_distance_and_what_it_adds_to_delta() -> None:
    sum_ = NoisySum(clip=1.0, noise_multiplier=4.0, coordinates=71_010)
    accounted = sum_.accounted()
    assert 3.999 < accounted.noise_multiplier < 4.0
    assert 0 < accounted.distance < 1e-33
    assert accounted.delta(2.0, 10**4) == pytest.approx((1 + math.e**2) * 1e4 * accounted.distance)


# --- shares


@pytest.mark.parametrize("t", [0.45, 0.6, 0.8])
@pytest.mark.parametrize("n", [2, 3, 7])
def test_a_sum_of_shares_is_within_its_bound_of_the_discrete_gaussian(t: float, n: int) -> None:
    law = one = probabilities(t, 12)
    for _ in range(n - 1):
        law = np.convolve(law, one)
    end, near = len(law) // 2, math.ceil(5 * t * math.sqrt(n))
    inside = slice(end - near, end + near + 1)
    apart = np.abs(np.log(law[inside] / probabilities(t * math.sqrt(n), end)[inside])).max()
    bound = sum(2 * math.atanh(noise._ripple(t * math.sqrt(k / (k + 1)))) for k in range(1, n))
    assert bound / 30 < apart <= bound


@pytest.mark.parametrize(("participants", "missing"), [(1, 0), (8, 0), (8, 3), (50, 0)])
def test_shares_add_up_to_the_sum_with_all_the_noise(participants: int, missing: int) -> None:
    d, present = 20_000, participants - missing
    sum_ = NoisySum(clip=1.0, noise_multiplier=2.0, coordinates=d, bits=8)
    coins = Coins.from_seed(b"shares")
    total = np.zeros(d, np.int64)
    for i in range(present):
        vector = np.zeros(d)
        vector[i] = 1.0
        share = sum_.share([vector], coins.child(str(i)), participants=participants)
        assert np.abs(share).max() <= sum_.reach(participants) / participants
        total += share
    s = sum_.deviation / sum_.step * math.sqrt(present / participants)
    noise_ = total.astype(np.float64)
    noise_[:present] -= 1.0 / sum_.step
    assert abs((noise_**2).mean() / s**2 - 1) < 5 * math.sqrt(2 / d)
    assert stats.kstest((noise_ + 0.5) / s, "norm").pvalue > FALSE_ALARM
    (opened,) = sum_.opened(total, [(100, 200)])
    assert opened.shape == (100, 200)
    assert np.array_equal(opened.reshape(-1), (total * sum_.step).astype(np.float32))


def test_fewer_shares_are_less_noise_and_coarse_ones_are_farther() -> None:
    sum_ = NoisySum(clip=1.0, noise_multiplier=2.0, coordinates=1000, bits=10)
    whole, lacking = (sum_.accounted(participants=50, missing=m) for m in (0, 18))
    assert lacking.noise_multiplier / whole.noise_multiplier == pytest.approx(0.8, rel=1e-5)
    assert whole.noise_multiplier == pytest.approx(sum_.accounted().noise_multiplier)
    coarse = NoisySum(clip=1.0, noise_multiplier=2.0, coordinates=1000, bits=4)
    far = coarse.accounted(participants=500)  # shares of 0.72 grid steps
    assert whole.distance < 1e-25 < 1e-3 < far.distance <= 1


def test_a_single_draw_is_a_share_of_one() -> None:
    sum_ = NoisySum(clip=1.0, noise_multiplier=2.0, coordinates=6, bits=12)
    share = sum_.share([np.zeros(6)], Coins.from_seed(b"1"), participants=1)
    drawn = DiscreteGaussian(sum_.deviation / sum_.step).draw(Coins.from_seed(b"1"), 6)
    assert np.array_equal(share, drawn)
    assert np.array_equal(sum_.opened(share, [(6,)]), sum_.release([np.zeros(6)], Coins.from_seed(b"1")))  # fmt: skip


# --- bad input


@pytest.mark.parametrize(
    "wrong",
    [
        {"clip": 0.0},
        {"clip": math.nan},
        {"clip": math.inf},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": 1e-9},
        {"noise_multiplier": 1e7},
        {"coordinates": 0},
        {"bits": 3},
        {"bits": 40},
        {"rounding": -1.0},
        {"rounding": math.inf},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected, got"):
        NoisySum(**({"clip": 1.0, "noise_multiplier": 1.0, "coordinates": 4} | wrong))  # type: ignore[arg-type]


def test_arrays_that_cannot_be_released_are_refused() -> None:
    sum_ = NoisySum(clip=1.0, noise_multiplier=1.0, coordinates=4)
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(Diverged, match="not finite"):
            sum_.release([np.array([0, 1, bad, 2])], Coins())
    for size in (0, 3, 5):
        with pytest.raises(ConfigError, match="4 coordinates expected"):
            sum_.release([np.zeros(size)], Coins())
    with pytest.raises(ConfigError, match="4 coordinates expected"):
        sum_.release([], Coins())
    with pytest.raises(RangeError, match="beyond"):
        sum_.release([np.array([0, 1, -(2.0**62) * sum_.step, 2])], Coins())
    with pytest.raises(RangeError, match="beyond"):
        NoisySum(clip=1.0, noise_multiplier=0.0, coordinates=1).release([np.array([1e39])], Coins())


def test_what_has_no_grid_has_no_shares() -> None:
    for sum_ in (
        NoisySum(clip=1.0, noise_multiplier=0.0, coordinates=4),
        NoisySum(clip=1.0, noise_multiplier=1.0, coordinates=4, kind=GaussianKind.FLOAT),
    ):
        with pytest.raises(ConfigError, match="discrete noise"):
            sum_.share([np.zeros(4)], Coins(), participants=3)
        with pytest.raises(ConfigError, match="a grid"):
            sum_.opened(np.zeros(4, np.int64), [(4,)])
        with pytest.raises(ConfigError, match="discrete noise"):
            sum_.reach(3)


def test_shares_and_totals_that_do_not_fit_are_refused() -> None:
    sum_ = NoisySum(clip=1.0, noise_multiplier=1.0, coordinates=4, bits=4)
    for participants, missing in ((0, 0), (3, 3), (3, -1)):
        with pytest.raises(ConfigError, match="not all of them missing"):
            sum_.accounted(participants=participants, missing=missing)
    with pytest.raises(ConfigError, match="take more bits"):
        sum_.accounted(participants=100, missing=98)
    with pytest.raises(ConfigError, match=r"from 0.3"):
        sum_.share([np.zeros(4)], Coins(), participants=10**6)
    with pytest.raises(ConfigError, match="4 coordinates expected"):
        sum_.opened(np.zeros(4, np.int64), [(5,)])
    with pytest.raises(ConfigError, match="4 coordinates expected"):
        sum_.opened(np.zeros(3, np.int64), [(3,)])


def test_float_noise_is_normal() -> None:
    """Kolmogorov and Smirnov's distance over 10^6 draws, and moments; a false alarm in 10^6."""
    made = NoisySum(clip=1.0, noise_multiplier=2.0, coordinates=10**6, kind=GaussianKind.FLOAT)
    drawn = np.sort(made.release([np.zeros(10**6)], Coins.from_seed(b"normal"))[0] / 2)
    steps = np.arange(10**6 + 1) / 10**6
    cdf = ndtr(drawn.astype(np.float64))
    distance = max(np.abs(cdf - steps[1:]).max(), np.abs(cdf - steps[:-1]).max())
    assert distance < 2.7e-3
    assert abs(drawn.std() - 1) < 4e-3 and abs((drawn**4).mean() - 3) < 0.05
