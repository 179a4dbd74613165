import itertools
import math
from functools import cache

import mpmath as mp
import pytest
from dp_accounting.rdp import compute_epsilon
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit.core.errors import ConfigError, TacitWarning
from tacit.dp.accounting import (
    RDP_ORDERS,
    Accountant,
    Releases,
    largest_lot,
    least_noise,
    moments_epsilon,
    most_steps,
    pld_epsilon,
    rdp_epsilon,
    warn_of_delta,
)
from tacit.dp.mechanisms import gaussian_epsilon

steady = settings(derandomize=True, deadline=None)
every = pytest.mark.parametrize("accountant", list(Accountant))
ABADI = [(0.01, 4.0, 10_000)]

# (rate, noise multiplier), from a weak to a strong subsampling and from little to much noise
KINDS = [
    (0.01, 4.0), (0.01, 0.7), (0.001, 1.0), (1e-5, 2.0), (0.04, 6.0), (0.3, 2.0), (0.5, 0.5), (0.9, 1.0),
    (0.2, 20.0), (0.003, 0.3), (0.02, 0.1),
]  # fmt: skip


@cache
def log_ratio(rate, noise, z):
    """Log of (mu / mu0)(z), in the digits that mpmath is set to."""
    return mp.log(1 - mp.mpf(rate) + rate * mp.exp((2 * z - 1) / (2 * mp.mpf(noise) ** 2)))


@cache
def moment(rate, noise, power):
    """E_mu0[(mu / mu0)^power] in 30 digits, by the trapezoid rule with cells far below the width of anything in it."""
    with mp.workdps(30):
        cell = mp.mpf(min(noise / 12, noise**2 / 3))
        low, high = -13 * noise, max(power, 1) + 13 * noise
        points = [cell * k for k in range(int(low / cell), int(high / cell) + 1)]
        power, twice = mp.mpf(power), 2 * mp.mpf(noise) ** 2
        total = mp.fsum(mp.exp(power * log_ratio(rate, noise, z) - z * z / twice) for z in points)
        return total * cell / (mp.mpf(noise) * mp.sqrt(2 * mp.pi))


def log_moment(rate, noise, power):
    return float(mp.log(moment(rate, noise, power)))


@pytest.mark.parametrize("power", [-7, 1.1, 2.7, 33])
def test_the_oracle_agrees_with_adaptive_quadrature(power):
    q, s = mp.mpf(0.3), 2

    def integrand(z):
        return mp.exp(-z * z / 8) * (1 - q + q * mp.exp((2 * z - 1) / 8)) ** mp.mpf(power)

    with mp.workdps(30):
        adaptive = mp.quad(integrand, [-30, -8, 0, 8, 30, 62]) / (s * mp.sqrt(2 * mp.pi))
        assert mp.almosteq(adaptive, moment(0.3, 2.0, power), rel_eps=mp.mpf(10) ** -18)


# --- the moments accountant


@pytest.mark.parametrize(("rate", "noise"), KINDS)
def test_the_papers_second_integral_is_the_larger(rate, noise):
    for order in (1, 7, 32):  # E_mu0[(mu0 / mu)^l] and E_mu[(mu / mu0)^l]
        assert 1 < moment(rate, noise, -order) < moment(rate, noise, order + 1)


@pytest.mark.parametrize(("rate", "noise"), [(0.01, 4.0), (0.3, 2.0), (0.01, 0.7)])
def test_epsilon_is_the_least_over_the_orders_by_quadrature(rate, noise):
    alphas = [log_moment(rate, noise, order + 1) for order in range(1, 33)]
    for steps, orders, delta in itertools.product((1, 10_000), (1, 5, 32), (1e-3, 1e-5)):
        expected = min(
            (steps * alpha - math.log(delta)) / order
            for order, alpha in enumerate(alphas[:orders], 1)
        )
        found = moments_epsilon([(rate, noise, steps)], delta, orders=orders)
        assert found == pytest.approx(expected, rel=1e-9)


def test_the_papers_figure():
    """Section 3.2: q = 0.01, sigma = 4, T = 10000, delta = 1e-5 give epsilon 1.26 (and 9.34 by strong composition)."""
    assert round(moments_epsilon(ABADI, 1e-5), 2) == 1.26
    assert moments_epsilon(ABADI, 1e-5) == pytest.approx(1.258575, abs=1e-6)


# --- Rényi


@pytest.mark.parametrize(("rate", "noise"), KINDS)
@pytest.mark.parametrize("order", [1.1, 1.5, 2, 2.7, 10.9, 33])
def test_a_divergence_is_its_integral(rate, noise, order):
    delta, alpha = 1e-5, log_moment(rate, noise, order)
    steps = max(1, math.ceil(20 / alpha))
    divergence = steps * alpha / (order - 1)
    expected, _ = compute_epsilon([order], [divergence], delta)
    found = rdp_epsilon([(rate, noise, steps)], delta, orders=[order])
    assert found == pytest.approx(expected, abs=1e-6 * divergence)


def test_the_conversion_is_that_of_dp_accounting():
    for noise, delta in itertools.product((0.5, 3.0, 40.0, 1e3, 1e6), (1e-3, 1e-5, 1e-10)):
        divergences = [order / (2 * noise**2) for order in RDP_ORDERS]
        expected, _ = compute_epsilon(RDP_ORDERS, divergences, delta)
        assert rdp_epsilon([(1.0, noise, 1)], delta) == pytest.approx(expected, rel=1e-9, abs=1e-12)


# --- privacy loss distributions

# By prv-accountant 0.2.0: PRVAccountant(eps_error=0.002, delta_error=delta / 10^4).compute_epsilon, its estimate.
PRV = [
    ([(0.01, 4.0, 10_000)], 1e-5, 0.946867),
    ([(0.01, 4.0, 40_000)], 1e-5, 2.033065),
    ([(0.01, 2.0, 10_000)], 1e-5, 2.162705),
    ([(0.01, 8.0, 5370)], 1e-5, 0.311882),
    ([(0.04, 6.0, 2500)], 1e-5, 1.288491),
    ([(256 / 60_000, 1.1, 14_040)], 1e-5, 2.379555),
    ([(512 / 60_000, 1.23, 4680)], 1e-5, 2.361344),
    ([(0.001, 1.0, 20_000)], 1e-6, 0.793596),
    ([(0.1, 3.0, 300)], 1e-5, 2.494794),
    ([(0.02, 0.8, 500)], 1e-5, 4.668012),
    ([(0.25, 10.0, 1000)], 1e-7, 4.148077),
    ([(0.01, 4.0, 10_000), (0.02, 2.0, 200)], 1e-5, 1.127249),
    ([(0.01, 8.0, 2000), (1.0, 16.0, 1)], 1e-5, 0.282156),
    ([(0.01, 2.0, 5000), (1.0, 4.0, 1)], 1e-5, 1.797454),
    ([(0.0001, 1.0, 100_000)], 1e-6, 0.156893),
]


@pytest.mark.parametrize(("parts", "delta", "estimate"), PRV)
def test_the_privacy_loss_distribution_agrees_with_another_implementation(parts, delta, estimate):
    assert pld_epsilon(parts, delta) == pytest.approx(estimate, abs=1e-3)


@pytest.mark.parametrize("noises", [[4.0], [16.0, 16.0, 16.0], [1.0, 5.0], [50.0]])
def test_without_subsampling_it_is_the_exact_gaussian_trade_off(noises):
    parts = [(1.0, noise, 1) for noise in noises]
    exact = gaussian_epsilon(math.sqrt(sum(noise**-2 for noise in noises)), 1e-5)
    assert exact - 1e-9 <= pld_epsilon(parts, 1e-5) <= exact + 1e-4


def test_a_small_release_beside_a_large_one_needs_no_finer_grid():
    alone = pld_epsilon([(1.0, 4.0, 1)], 1e-5)
    assert alone <= pld_epsilon([(1.0, 4.0, 1), (0.01, 1e6, 100)], 1e-5) <= alone + 1e-4


def test_little_noise_has_a_bound_too():
    exact = gaussian_epsilon(math.sqrt(3) / 0.05, 1e-5)
    assert exact <= pld_epsilon([(1.0, 0.05, 3)], 1e-5) <= exact * 1.005
    parts = [(0.1, 0.05, 50)]
    assert 50 < pld_epsilon(parts, 1e-5) <= rdp_epsilon(parts, 1e-5)


# --- all three


rates = st.floats(-3, -0.7).map(lambda x: 10**x)
multipliers = st.floats(1.5, 20)
counts = st.integers(1, 2000)
deltas = st.floats(-8, -3).map(lambda x: 10**x)


@settings(steady, max_examples=60)
@given(rates, multipliers, counts, deltas)
def test_each_accountant_is_at_most_the_one_before(rate, noise, steps, delta):
    """Exactly for Rényi, whose orders hold all of the moments'; for the distributions up to a cell of their grid."""
    parts = [(rate, noise, steps)]
    assert pld_epsilon(parts, delta) <= rdp_epsilon(parts, delta) + 1e-4
    assert rdp_epsilon(parts, delta) <= moments_epsilon(parts, delta)


@every
@settings(steady, max_examples=10)
@given(rates, multipliers, counts, st.floats(1.05, 2))
def test_epsilon_grows_with_steps_and_rate_and_falls_with_noise(
    accountant, rate, noise, steps, more
):
    base = accountant.epsilon([(rate, noise, steps)], 1e-5)
    slack = 1e-4 if accountant is Accountant.PLD else 1e-12  # a cell of the grid
    assert accountant.epsilon([(rate, noise, math.ceil(steps * more))], 1e-5) >= base - slack
    assert accountant.epsilon([(rate * more, noise, steps)], 1e-5) >= base - slack
    assert accountant.epsilon([(rate, noise * more, steps)], 1e-5) <= base + slack
    assert accountant.epsilon([(rate, noise, steps)], 2e-5) <= base + slack


@every
def test_the_order_of_composition_does_not_matter(accountant):
    parts = [(0.01, 4.0, 500), (1.0, 16.0, 1), (0.02, 2.0, 30), (0.01, 4.0, 250)]
    orders = list(itertools.permutations(parts))[::5]
    found = {accountant.epsilon(order, 1e-5) for order in orders}
    assert len(found) == 1
    assert found == {accountant.epsilon([(0.02, 2.0, 30), (0.01, 4.0, 750), (1.0, 16.0, 1)], 1e-5)}
    together, alone = found.pop(), accountant.epsilon(parts[:1], 1e-5)
    assert together > alone


@every
def test_nothing_costs_nothing_and_no_noise_is_no_bound(accountant):
    assert accountant.epsilon([], 1e-5) == accountant.epsilon([(0.1, 1.0, 0)], 1e-5) == 0
    assert accountant.epsilon([(0.01, 4.0, 10), (0.01, 0.0, 1)], 1e-5) == math.inf
    assert accountant.epsilon([(1.0, 0.0, 1)], 1e-5) == math.inf


@every
def test_a_loss_says_what_it_is(accountant):
    parts = [*ABADI, Releases(1.0, 16.0, 1)]
    loss = accountant.loss(parts, 1e-5)
    assert loss.epsilon == accountant.epsilon(parts, 1e-5) and loss.unit == "record"
    assert (
        loss.neighbouring == "one record added or removed" and loss.accountant == accountant.title
    )
    assert loss.composed == (
        "10000 releases at noise multiplier 4 on Poisson lots of rate 0.01 and "
        "1 release at noise multiplier 16 on all records"
    )
    assert accountant.loss([], 1e-5).composed == "no release"
    assert Accountant(accountant.value) is accountant


@every
@pytest.mark.parametrize(
    ("parts", "delta"),
    [
        (ABADI, 0.0), (ABADI, 1.0), (ABADI, math.nan), ([(0.0, 1.0, 1)], 1e-5), ([(1.5, 1.0, 1)], 1e-5),
        ([(math.nan, 1.0, 1)], 1e-5), ([(0.1, -1.0, 1)], 1e-5), ([(0.1, math.inf, 1)], 1e-5), ([(0.1, 1.0, -1)], 1e-5),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(accountant, parts, delta):
    with pytest.raises(ConfigError, match="expected"):
        accountant.epsilon(parts, delta)


def test_settings_of_one_accountant_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="at least one moment"):
        moments_epsilon(ABADI, 1e-5, orders=0)
    with pytest.raises(ConfigError, match="orders above 1"):
        rdp_epsilon(ABADI, 1e-5, orders=[1.0, 2.0])
    with pytest.raises(ConfigError, match="use the rdp accountant"):
        pld_epsilon(ABADI, 1e-13)
    with pytest.raises(ConfigError, match="grid above 0"):
        pld_epsilon(ABADI, 1e-5, interval=0.0)


def test_a_delta_of_one_over_the_records_is_warned_of():
    with pytest.warns(TacitWarning, match="well below 0.001"):
        warn_of_delta(1e-3, 1000)
    warn_of_delta(0.9e-3, 1000)


# --- calibration

TARGETS = [(1.0, 0.01, 4000), (3.0, 0.05, 1000), (0.5, 0.005, 2000)]


@every
@pytest.mark.parametrize(("epsilon", "rate", "steps"), TARGETS)
def test_the_least_noise_meets_the_target_and_a_little_less_does_not(
    accountant, epsilon, rate, steps
):
    spent = [(1.0, 40.0, 1)]
    noise = least_noise(epsilon, 1e-5, rate=rate, steps=steps, accountant=accountant, spent=spent)

    def cost(multiplier):
        return accountant.epsilon([*spent, (rate, multiplier, steps)], 1e-5)

    assert cost(noise) <= epsilon < cost(noise * (1 - 2e-5))
    assert noise > least_noise(epsilon, 1e-5, rate=rate, steps=steps, accountant=accountant)


@every
@pytest.mark.parametrize(("epsilon", "rate", "steps"), TARGETS)
def test_the_most_steps_and_the_largest_lot_are_the_last_that_meet_it(
    accountant, epsilon, rate, steps
):
    noise = least_noise(epsilon, 1e-5, rate=rate, steps=steps, accountant=accountant)
    found = most_steps(epsilon, 1e-5, rate=rate, noise_multiplier=noise, accountant=accountant)
    assert steps <= found <= steps + 1  # noise is least up to 1e-5
    assert accountant.epsilon([(rate, noise, found)], 1e-5) <= epsilon
    assert accountant.epsilon([(rate, noise, found + 1)], 1e-5) > epsilon
    lot = largest_lot(
        epsilon, 1e-5, records=2000, noise_multiplier=noise, steps=steps, accountant=accountant
    )
    assert lot == round(rate * 2000)
    assert accountant.epsilon([((lot + 1) / 2000, noise, steps)], 1e-5) > epsilon


def test_the_bounds_of_a_search_can_be_what_it_finds():
    assert largest_lot(50.0, 1e-5, records=30, noise_multiplier=5.0, steps=1, accountant=Accountant.RDP) == 30  # fmt: skip
    assert most_steps(5.0, 1e-5, rate=1e-6, noise_multiplier=1e4, accountant=Accountant.RDP) == 10**9  # fmt: skip
    assert least_noise(1e5, 1e-5, rate=0.5, steps=1, accountant=Accountant.RDP) < 0.01


def test_what_cannot_be_met_says_what_can():
    floor = -math.log(1e-5) / 32
    with pytest.raises(
        ConfigError, match=rf"is {floor:.4g}.*rdp and pld can.*raise epsilon or delta"
    ):
        least_noise(0.3, 1e-5, rate=0.01, steps=100, accountant=Accountant.MOMENTS)
    share = pld_epsilon([(1.0, 4.0, 1)], 1e-5)
    with pytest.raises(ConfigError, match=rf"is {share:.3g}\d*; .*spend less elsewhere"):
        least_noise(0.5, 1e-5, rate=0.01, steps=9, accountant=Accountant.PLD, spent=[(1.0, 4.0, 1)])
    one = rdp_epsilon([(0.5, 1.0, 1)], 1e-5)
    with pytest.raises(ConfigError, match=rf"is {one:.4g}; add noise, or lower the rate"):
        most_steps(0.1, 1e-5, rate=0.5, noise_multiplier=1.0, accountant=Accountant.RDP)
    with pytest.raises(ConfigError, match="add noise, or take fewer steps"):
        largest_lot(0.1, 1e-5, records=9, noise_multiplier=1.0, steps=9, accountant=Accountant.RDP)
    for epsilon, steps in ((1.0, 0), (0.0, 5), (math.nan, 5), (math.inf, 5)):
        with pytest.raises(ConfigError, match="at least one step and a finite epsilon"):
            least_noise(epsilon, 1e-5, rate=0.1, steps=steps, accountant=Accountant.RDP)
