import math

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, Diverged
from tacit.dp.mechanisms import Noise, NoisyVector, clip, gaussian, gaussian_epsilon, laplace

FALSE_ALARM = 1e-9  # of each statistical test; the seeds are fixed, so a pass stays a pass
steady = settings(derandomize=True, deadline=None, max_examples=200)

vectors = hnp.arrays(np.float64, st.integers(1, 12), elements=st.floats(-1e9, 1e9))
bounds = st.floats(1e-3, 1e3)
noises = st.sampled_from(list(Noise))


def norm_of(vector, norm):
    """Written out, as an oracle."""
    if norm == 1:
        return math.fsum(abs(x) for x in vector.tolist())
    return math.hypot(*vector.tolist())


# --- clipping


@steady
@given(vectors, bounds, st.sampled_from([1, 2]))
def test_a_clipped_vector_is_within_the_bound_and_points_the_same_way(vector, bound, norm):
    size = norm_of(vector, norm)
    clipped = clip(vector, bound, norm)
    assert norm_of(clipped, norm) <= bound * (1 + 1e-12)
    expected = vector * min(1.0, bound / size) if size else vector
    np.testing.assert_allclose(clipped, expected, rtol=1e-12, atol=0)


def test_a_vector_within_the_bound_is_left_as_it_is():
    vector = np.array([3.0, -4.0])
    assert clip(vector, 5.0, 2) is vector and clip(vector, 7.0, 1) is vector
    np.testing.assert_allclose(clip(vector, 1.0, 2), [0.6, -0.8], rtol=1e-15)
    np.testing.assert_allclose(clip(vector, 1.0, 1), [3 / 7, -4 / 7], rtol=1e-15)
    assert not clip(np.zeros(3), 1.0, 2).any()


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("bad", [[math.nan, 0.0], [math.inf, 0.0], [math.inf, -math.inf], [1e308] * 4])  # fmt: skip
def test_a_vector_whose_norm_is_not_finite_is_refused(bad, norm):
    with pytest.raises(Diverged, match="not finite"):
        clip(np.array(bad), 1.0, norm)


@steady
@given(vectors, st.randoms(use_true_random=False), bounds, noises)
def test_no_two_inputs_release_means_further_apart_than_the_sensitivity(one, order, bound, noise):
    """Replacing all data moves the clipped vector by 2 * clip at most; the reversed vector by exactly that."""
    mechanism = NoisyVector(clip=bound, noise_multiplier=0.0, noise=noise)
    values = one.tolist()
    order.shuffle(values)
    limit = mechanism.sensitivity * (1 + 1e-12)
    for other in (np.array(values), -one, one * 3):
        moved = clip(one, bound, noise.norm) - clip(other, bound, noise.norm)
        assert norm_of(moved, noise.norm) <= limit
    if norm_of(one, noise.norm) >= bound:
        moved = clip(one, bound, noise.norm) - clip(-one, bound, noise.norm)
        assert norm_of(moved, noise.norm) >= mechanism.sensitivity * (1 - 1e-12)


# --- noise


@pytest.mark.parametrize("scale", [0.3, 7.0])
@pytest.mark.parametrize(
    ("draw", "distribution"), [(laplace, stats.laplace), (gaussian, stats.norm)]
)
def test_noise_has_its_distribution(draw, distribution, scale):
    """Kolmogorov-Smirnov over 50,000 draws; false alarm 1e-9. Control: a scale off by a tenth is caught."""
    drawn = draw(Coins.from_seed(b"noise"), scale, 50_000)
    assert drawn.shape == (50_000,)
    assert stats.kstest(drawn, distribution(scale=scale).cdf).pvalue > FALSE_ALARM
    assert stats.kstest(drawn, distribution(scale=1.1 * scale).cdf).pvalue < FALSE_ALARM


class Extremes(Coins):
    """Coins at both ends of the unit interval."""

    def unit(self, shape):
        return np.array([2.0**-53, 1.0 - 2.0**-53])


@pytest.mark.parametrize("draw", [laplace, gaussian])
def test_noise_is_finite_and_symmetric_at_the_ends_of_the_coins(draw):
    low, high = draw(Extremes(), 1.0, 2)
    assert -40 < low < -8 and high == pytest.approx(-low, rel=1e-9)


# --- releases

ARRAYS = [np.full((2, 3), 1.0, np.float32), np.array(2.0), np.zeros((0, 4)), -np.ones(3)]


@pytest.mark.parametrize("noise", Noise)
def test_a_release_has_the_shapes_of_its_arrays_and_is_float32(noise):
    mechanism = NoisyVector(clip=1.0, noise_multiplier=0.5, noise=noise)
    released = mechanism.release(ARRAYS, Coins.from_seed(b"release"))
    assert [a.shape for a in released] == [(2, 3), (), (0, 4), (3,)]
    assert all(a.dtype == np.float32 for a in released)


@pytest.mark.parametrize("noise", Noise)
def test_without_noise_a_release_is_the_whole_vector_clipped_once(noise):
    mechanism = NoisyVector(clip=1.0, noise_multiplier=0.0, noise=noise)
    flat = np.concatenate([a.reshape(-1) for a in ARRAYS]).astype(np.float64)
    released = np.concatenate([a.reshape(-1) for a in mechanism.release(ARRAYS, Coins())])
    np.testing.assert_array_equal(released, (flat / norm_of(flat, noise.norm)).astype(np.float32))


@pytest.mark.parametrize("noise", Noise)
def test_the_noise_of_a_release_has_the_scale_of_its_multiplier_and_comes_from_the_coins(noise):
    """Kolmogorov-Smirnov over 40,000 coordinates; false alarm 1e-9. The scale is 1.5 * (2 * clip) = 6."""
    mechanism = NoisyVector(clip=2.0, noise_multiplier=1.5, noise=noise)
    arrays = [np.zeros((200, 100)), np.zeros(20_000)]
    one, same, other = (
        np.concatenate([a.reshape(-1) for a in mechanism.release(arrays, Coins.from_seed(seed))])
        for seed in (b"a", b"a", b"b")
    )
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    distribution = stats.norm if noise is Noise.GAUSSIAN else stats.laplace
    assert stats.kstest(one.astype(float), distribution(scale=6.0).cdf).pvalue > FALSE_ALARM


def test_two_releases_of_one_stream_have_different_noise():
    coins = Coins.from_seed(b"stream")
    mechanism = NoisyVector(clip=1.0, noise_multiplier=1.0)
    one, other = (mechanism.release([np.zeros(8)], coins)[0] for _ in range(2))
    assert not np.isin(one, other).any()


def test_a_release_of_what_is_not_finite_is_refused():
    with pytest.raises(Diverged):
        NoisyVector(clip=1.0, noise_multiplier=1.0).release([np.array([math.nan])], Coins())


@pytest.mark.parametrize(
    ("bound", "multiplier"),
    [(0, 1), (-1, 1), (math.inf, 1), (math.nan, 1), (1, -1), (1, math.inf), (1, math.nan)],
)
def test_settings_out_of_range_are_refused(bound, multiplier):
    with pytest.raises(ConfigError, match="clip must be positive"):
        NoisyVector(clip=bound, noise_multiplier=multiplier)


# --- epsilon


@pytest.mark.parametrize(
    ("multiplier", "releases", "delta"),
    [(0.5, 1, 1e-5), (1.0, 1, 1e-6), (2.0, 10, 1e-5), (5.0, 100, 1e-5), (10.0, 30, 1e-3)],
)
def test_gaussian_epsilon_is_that_of_dp_accounting(multiplier, releases, delta):
    """Its REPLACE_ONE doubles the unit of the multiplier; its PLD rounds epsilon up by at most a step a release."""
    mechanism = NoisyVector(clip=3.0, noise_multiplier=multiplier)
    ours = mechanism.loss(releases=releases, delta=delta, unit="participant").epsilon
    step = 1e-4
    oracle = PLDAccountant(NeighboringRelation.REPLACE_ONE, value_discretization_interval=step)
    oracle.compose(SelfComposedDpEvent(GaussianDpEvent(2 * multiplier), releases))
    theirs = oracle.get_epsilon(delta)
    assert ours <= theirs + 1e-6
    assert ours == pytest.approx(theirs, abs=2 * step * releases, rel=1e-3)


@pytest.mark.parametrize("mu", [1e-3, 0.1, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("delta", [1e-12, 1e-5, 0.01])
def test_gaussian_epsilon_is_the_least_that_keeps_within_delta(mu, delta):
    """By the definition: the mass by which one density exceeds e^epsilon times the other, integrated numerically."""
    epsilon = gaussian_epsilon(mu, delta)

    def exceeding(epsilon):
        # P[Y > t] - e^epsilon P[X > t] for X ~ N(0, 1), Y ~ N(mu, 1), where their log ratio passes epsilon
        threshold = epsilon / mu + mu / 2
        first = stats.norm.sf(threshold - mu)
        return first - math.exp(epsilon + stats.norm.logsf(threshold))

    if epsilon == 0.0:
        assert exceeding(0.0) <= delta
    else:
        assert exceeding(epsilon) == pytest.approx(delta, rel=1e-4)
        assert exceeding(epsilon * 0.99) > delta > exceeding(epsilon * 1.01)


def test_epsilon_falls_with_noise_and_delta_and_grows_with_releases():
    def epsilon(multiplier=1.0, releases=10, delta=1e-5, noise=Noise.GAUSSIAN):
        mechanism = NoisyVector(clip=1.0, noise_multiplier=multiplier, noise=noise)
        return mechanism.loss(releases=releases, delta=delta, unit="record").epsilon

    for noise in Noise:
        grown = [epsilon(multiplier=z, noise=noise) for z in (20.0, 5.0, 1.0, 0.1, 0.01)]
        assert grown == sorted(grown) and len(set(grown)) == 5
        grown = [epsilon(releases=count, noise=noise) for count in (1, 2, 10, 600, 100_000)]
        assert grown == sorted(grown) and len(set(grown)) == 5
    grown = [epsilon(delta=delta) for delta in (0.1, 1e-3, 1e-6, 1e-12, 1e-100)]
    assert grown == sorted(grown) and len(set(grown)) == 5


def test_epsilon_does_not_depend_on_the_clip():
    losses = [
        NoisyVector(clip=bound, noise_multiplier=0.7).loss(releases=3, delta=1e-5, unit="record")
        for bound in (0.01, 1.0, 50.0)
    ]
    assert len({loss.epsilon for loss in losses}) == 1


@pytest.mark.parametrize("noise", Noise)
def test_without_noise_epsilon_is_infinite(noise):
    mechanism = NoisyVector(clip=1.0, noise_multiplier=0.0, noise=noise)
    loss = mechanism.loss(releases=1, delta=1e-5, unit="record")
    assert loss.epsilon == math.inf and "no noise" in loss.accountant


def test_with_next_to_no_noise_epsilon_is_huge_or_infinite_and_never_an_error():
    for multiplier in (1e-3, 1e-7, 0.99e-8, 1e-9, 1e-100, 1e-160, 1e-300):
        mechanism = NoisyVector(clip=1.0, noise_multiplier=multiplier)
        epsilon = mechanism.loss(releases=1, delta=1e-5, unit="record").epsilon
        mu = 1 / multiplier
        assert epsilon == pytest.approx(mu * mu / 2, rel=30 / mu) and epsilon >= mu * mu / 2


def test_laplace_epsilon_is_the_sum_of_pure_ones():
    mechanism = NoisyVector(clip=4.0, noise_multiplier=2.0, noise=Noise.LAPLACE)
    loss = mechanism.loss(releases=7, delta=0.0, unit="participant")
    assert loss.epsilon == 3.5 and loss.delta == 0.0


def test_a_loss_names_what_gives_it_a_meaning():
    mechanism = NoisyVector(clip=1.0, noise_multiplier=2.0)
    loss = mechanism.loss(releases=7, delta=1e-5, unit="participant")
    assert loss.unit == "participant" and loss.neighbouring == "all data of one unit replaced"
    assert "Balle, Wang" in loss.accountant
    assert loss.composed == "7 gaussian releases at noise multiplier 2"


@pytest.mark.parametrize(
    ("mu", "delta"), [(0, 1e-5), (-1, 1e-5), (math.inf, 1e-5), (math.nan, 1e-5), (1, 0), (1, 1)]
)
def test_gaussian_epsilon_refuses_what_is_out_of_range(mu, delta):
    with pytest.raises(ConfigError, match="expected"):
        gaussian_epsilon(mu, delta)


def worst_log_ratio(multiplier):
    """How much more often +clip than -clip releases a value of a bin: the worst of ten bins, and its standard error."""
    mechanism = NoisyVector(clip=1.0, noise_multiplier=multiplier, noise=Noise.LAPLACE)
    coins = Coins.from_seed(b"ratio")
    counts = []
    for value in (1.0, -1.0):
        data = [np.array([value])]
        released = [mechanism.release(data, coins)[0][0] for _ in range(15_000)]
        counts.append(np.bincount(np.digitize(released, np.linspace(-1, 1, 9)), minlength=10))
    high, low = counts
    ratios = np.abs(np.log(high / low))
    worst = int(ratios.argmax())
    return ratios[worst], math.sqrt(1 / high[worst] + 1 / low[worst])


def test_laplace_releases_of_opposite_inputs_are_within_epsilon_of_each_other():
    """30,000 releases; beyond 6.5 standard errors in any of ten bins: false alarm below 1e-9."""
    epsilon = NoisyVector(clip=1.0, noise_multiplier=1.0, noise=Noise.LAPLACE).loss(
        releases=1, delta=0.0, unit="record"
    ).epsilon  # fmt: skip
    worst, error = worst_log_ratio(1.0)
    assert epsilon - 6.5 * error < worst < epsilon + 6.5 * error  # and it is used up
    worst, error = worst_log_ratio(0.5)  # the control: half the noise does not keep it
    assert worst - 6.5 * error > epsilon
