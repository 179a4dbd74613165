"""What noisy releases on Poisson lots cost: the moments accountant, Rényi DP and privacy loss distributions.

One release adds Gaussian noise of deviation ``noise_multiplier`` times the sensitivity to a sum over a lot that every record
joins independently with probability ``rate``. Two data sets are neighbours if one has one record more. All three
accountants give upper bounds on epsilon, for any list of such releases in any order, adaptively chosen:

* `moments_epsilon`, the accountant of the paper, in its own words: with mu0 = N(0, s^2) and mu = (1 - q) mu0 + q N(1, s^2),

      alpha(l) = log max( E_mu0[(mu0 / mu)^l], E_mu[(mu / mu0)^l] ),   epsilon = min_l (sum of alpha(l) - log delta) / l.

  The second moment is never the smaller (Mironov, Talwar, Zhang, theorem 5), and at integer l it is a finite binomial sum
  of positive terms: no integration is needed, and nothing cancels.
* `rdp_epsilon`: the same divergences at fractional and higher orders too, and a tighter way from there to epsilon: never
  above the moments accountant.
* `pld_epsilon`: the distribution of the privacy loss itself, rounded upwards onto a grid: the tightest. The distributions
  and their convolutions are dp-accounting's. (Its divergences at fractional orders are not used: the series that it sums
  takes all signs as positive, which makes them up to twice too large at orders below 3, or infinite.)

The central limit theorem's approximation ("Gaussian DP") falls below the true epsilon at usual settings: it is not here.

Source: Abadi et al., "Deep learning with differential privacy" (CCS 2016), section 3.2, theorem 2; Mironov, Talwar, Zhang,
"Rényi differential privacy of the sampled Gaussian mechanism" (2019), section 3; Canonne, Kamath, Steinke, "The discrete
Gaussian for differential privacy" (2020), proposition 12; Doroshenko et al., "Connect the dots" (PoPETs 2022).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from dp_accounting.pld.privacy_loss_distribution import (  # type: ignore[import-untyped]
    PrivacyLossDistribution,
    from_gaussian_mechanism,
    identity,
)
from scipy.optimize import brentq
from scipy.special import gammaln

from tacit.core.claims import PrivacyLoss
from tacit.core.errors import ConfigError, TacitWarning

ORDERS = 32  # the highest moment that the paper uses
# Every integer order up to 33 is among them, so that Rényi DP is never above the moments accountant.
RDP_ORDERS = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *range(11, 64),
    *range(64, 128, 8),
    *(128, 160, 192, 256, 384, 512, 768, 1024),
)
INTERVAL = 1e-4  # of the grid of privacy losses
LARGEST_NOISE = 1e6
MOST_STEPS = 10**9

_CELLS = 20  # of the grid of losses, at least, in the deviation of one release's loss
_MOST_CELLS = 10**6
_LEAST_DELTA = 1e-12  # the rounding of a convolution by FFT is 1e-16 of mass a cell


class Releases(NamedTuple):
    """``steps`` releases of one kind; a plain tuple of the three will do wherever one is asked for.

    Args:
        rate: the probability with which a record joins a lot, in (0, 1]; 1 where all records take part.
        noise_multiplier: standard deviation of the noise over the sensitivity to one record; 0 guarantees nothing.
        steps: how many.
    """

    rate: float
    noise_multiplier: float
    steps: int

    def __str__(self) -> str:
        times = "1 release" if self.steps == 1 else f"{self.steps} releases"
        on = "all records" if self.rate == 1 else f"Poisson lots of rate {self.rate:.4g}"
        return f"{times} at noise multiplier {self.noise_multiplier:.4g} on {on}"


FloatArray = npt.NDArray[np.float64]
Parts = Sequence[tuple[float, float, int]]


def _merged(parts: Parts, delta: float) -> tuple[Releases, ...]:
    """The parts in one order, equal ones put together; those on all records are exactly one Gaussian release."""
    if not 0 < delta < 1:
        raise ConfigError(f"0 < delta < 1 expected, got {delta}; 1e-5 is usual")
    steps: dict[tuple[float, float], int] = {}
    whole = 0.0
    for rate, noise, count in parts:
        if not (0 < rate <= 1 and 0 <= noise < math.inf and count >= 0):
            raise ConfigError(
                "a rate in (0, 1], a finite noise multiplier and a number of steps that are not negative expected, "
                f"got {rate}, {noise} and {count}"
            )
        if rate == 1 and noise > 0:
            whole = math.fsum((whole, count / noise**2))
        elif count:
            steps[rate, noise] = steps.get((rate, noise), 0) + count
    found = [Releases(*kind, count) for kind, count in steps.items()]
    if whole:
        found.append(Releases(1.0, whole**-0.5, 1))
    return tuple(sorted(found))


@lru_cache(maxsize=8)
def _log_binomials(orders: tuple[float, ...]) -> FloatArray:
    """Log of C(n, k) at each order n, (orders,), and k from 2 to the largest; -inf beyond n."""
    n, k = np.array(orders)[:, None], np.arange(2, max(orders) + 1)
    left = np.maximum(n - k, 0)
    return np.where(k > n, -np.inf, gammaln(n + 1) - gammaln(k + 1) - gammaln(left + 1))


def _log_at_integers(rate: float, noise: float, orders: tuple[float, ...]) -> FloatArray:
    """Log of E_mu0[(mu / mu0)^n] at integers n >= 2.

    It is the sum over k of C(n, k) (1-q)^(n-k) q^k exp(k (k-1) / 2 s^2). The weights sum to 1, so the moment less 1 has
    expm1 in the place of exp and no term for k < 2: all terms are positive, and a tiny moment keeps its digits.
    """
    n, k = np.array(orders)[:, None], np.arange(2, max(orders) + 1)
    exponent = k * (k - 1) / (2 * noise * noise)
    terms = _log_binomials(orders) + (n - k) * math.log1p(-rate)
    terms += k * math.log(rate) + exponent + np.log(-np.expm1(-exponent))
    out: FloatArray = np.logaddexp(0, _log_sum(terms))
    return out


def _log_sum(logs: FloatArray) -> FloatArray:
    """Log of the sum of exp(logs) in each row."""
    top = logs.max(axis=1)
    out: FloatArray = top + np.log(np.exp(logs - top[:, None]).sum(axis=1))
    return out


def _log_at(rate: float, noise: float, orders: FloatArray) -> FloatArray:
    """Log of E_mu0[(mu / mu0)^a] at any a > 1, by the trapezoid rule, whose error falls exponentially here.

    With u = mu / mu0 - 1, whose mean under mu0 is 0, the moment less 1 is the mean of (1 + u)^a - 1 - a u >= 0.
    """
    out = np.empty(len(orders))
    cell = noise / max(16.0, min(2 / noise, 200.0))
    # The mass stands around 0 and around a; ten deviations leave out 1e-23 of either.
    apart = orders > 20 * noise
    for places in np.flatnonzero(apart), np.flatnonzero(~apart):
        for few in np.array_split(places, -(-len(places) // 16)) if len(places) else ():
            a = orders[few, None]
            two = bool(apart[few[0]])
            half = 10 * noise + (0.0 if two else float(a.max()) / 2)
            offsets = np.arange(-half, half, cell)
            z = np.hstack([offsets + np.zeros_like(a), offsets + a]) if two else offsets + a / 2
            out[few] = _log_mean(rate, noise, a, z) + math.log(cell / noise)
    return np.logaddexp(0, out - math.log(2 * math.pi) / 2)


def _log_mean(rate: float, noise: float, a: FloatArray, z: FloatArray) -> FloatArray:
    """Log of the sum over z of exp(-z^2 / 2 s^2) ((1 + u)^a - 1 - a u): (orders,) for a (orders, 1), z (orders, n)."""
    w = (2 * z - 1) / (2 * noise * noise)
    u = rate * np.expm1(np.minimum(w, 60.0))
    near = np.log(np.maximum(np.expm1(a * np.log1p(u)) - a * u, 1e-300))
    power = a * np.logaddexp(math.log1p(-rate), math.log(rate) + w)
    with np.errstate(invalid="ignore"):  # where near holds
        far = power + np.log1p(-np.exp(np.logaddexp(0, np.log(a * rate) + w) - power))
    logs = np.where(w < 60, near, far) - z * z / (2 * noise * noise)
    return _log_sum(logs)


@lru_cache(maxsize=4096)
def _log_moments(rate: float, noise: float, orders: tuple[float, ...]) -> FloatArray:
    """Log of E_mu0[(mu / mu0)^a] at each order a of ``orders``, of one release."""
    if rate == 1:
        a = np.array(orders)
        exact: FloatArray = a * (a - 1) / (2 * noise * noise)
        return exact
    out, whole = np.empty(len(orders)), np.array([float(order).is_integer() for order in orders])
    if whole.any():
        integers = tuple(order for order in orders if float(order).is_integer())
        out[whole] = _log_at_integers(rate, noise, integers)
    if not whole.all():
        out[~whole] = _log_at(rate, noise, np.array(orders)[~whole])
    return out


def _composed(merged: tuple[Releases, ...], orders: tuple[float, ...]) -> FloatArray:
    total = np.zeros(len(orders))
    for rate, noise, steps in merged:
        total += steps * _log_moments(rate, noise, orders)
    return total


def moments_epsilon(parts: Parts, delta: float, *, orders: int = ORDERS) -> float:
    """Epsilon by the moments accountant.

    Args:
        parts: (rate, noise multiplier, steps) of all that is released, in any order.
        delta: in (0, 1).
        orders: the highest moment.

    Raises:
        ConfigError: a number is out of range.

    Source: Abadi et al. 2016, theorem 2.
    """
    merged = _merged(parts, delta)
    if orders < 1:
        raise ConfigError(f"at least one moment expected, got {orders}")
    if not merged or merged[0].noise_multiplier == 0:
        return math.inf if merged else 0.0
    alpha = _composed(merged, tuple(range(2, orders + 2)))
    return float(np.min((alpha - math.log(delta)) / np.arange(1, orders + 1)))


def rdp_epsilon(parts: Parts, delta: float, *, orders: Sequence[float] = RDP_ORDERS) -> float:
    """Epsilon by Rényi differential privacy.

    Args:
        parts: (rate, noise multiplier, steps) of all that is released, in any order.
        delta: in (0, 1).
        orders: of the divergences, above 1; the one that gives the least epsilon counts.

    Raises:
        ConfigError: a number is out of range.

    Source: Canonne, Kamath, Steinke 2020, proposition 12; Bretagnolle, Huber 1979 (where epsilon is 0).
    """
    merged = _merged(parts, delta)
    if not orders or min(orders) <= 1:
        raise ConfigError(f"orders above 1 expected, got {orders}")
    if not merged or merged[0].noise_multiplier == 0:
        return math.inf if merged else 0.0
    a = np.array(orders)
    divergence = _composed(merged, tuple(orders)) / (a - 1)
    if -math.expm1(-divergence.min()) <= delta * delta:  # then the total variation is at most delta
        return 0.0
    epsilon = divergence + np.log1p(-1 / a) - np.log(delta * a) / (a - 1)
    return max(0.0, float(epsilon.min()))


def pld_epsilon(parts: Parts, delta: float, *, interval: float = INTERVAL) -> float:
    """Epsilon by the privacy loss distribution, rounded upwards onto a grid.

    Args:
        parts: (rate, noise multiplier, steps) of all that is released, in any order.
        delta: in [1e-12, 1): below, the rounding of floats would show.
        interval: the cell of the grid. It is halved until rounding adds less than 1/400 to the variance of the losses, and
            made coarser where so little noise is added that 10^6 cells would not hold them: still a bound.

    Raises:
        ConfigError: a number is out of range.
    """
    merged = _merged(parts, delta)
    if not (interval > 0 and delta >= _LEAST_DELTA):
        raise ConfigError(
            f"a grid above 0 and delta >= {_LEAST_DELTA:g} expected, got {interval} and {delta}: "
            "floats do not carry the privacy loss distribution further; use the rdp accountant"
        )
    if not merged or merged[0].noise_multiplier == 0:
        return math.inf if merged else 0.0
    return _pld_epsilon(merged, delta, interval)


@lru_cache(maxsize=4096)
def _pld_epsilon(merged: tuple[Releases, ...], delta: float, interval: float) -> float:
    kinds = [
        (steps, min(1 / noise, rate * math.sqrt(math.expm1(min(noise**-2, 700.0)))))
        for rate, noise, steps in merged
    ]
    variance = sum(steps * deviation**2 for steps, deviation in kinds)
    # A release's loss, put onto the grid, varies more by about cell * min(cell, its deviation).
    while (
        interval * sum(steps * min(interval, deviation) for steps, deviation in kinds)
        > variance / _CELLS**2
    ):
        interval /= 2
    # Little noise has wide losses: a coarser grid is still a bound, and fits into memory.
    width = max(
        float(np.logaddexp(0, math.log(rate) + 10 / noise + noise**-2 / 2))
        for rate, noise, _ in merged
    )
    width += 10 * math.sqrt(variance)
    interval = max(interval, width / _MOST_CELLS)
    total = identity(value_discretization_interval=interval)
    for rate, noise, steps in merged:
        total = total.compose(_one_release(rate, noise, interval).self_compose(steps))
    return float(total.get_epsilon_for_delta(delta))


@lru_cache(maxsize=16)  # thousands of cells each, and slow to make: a search over steps needs one
def _one_release(rate: float, noise: float, interval: float) -> PrivacyLossDistribution:
    return from_gaussian_mechanism(
        noise, value_discretization_interval=interval, sampling_prob=rate, pessimistic_estimate=True
    )


class Accountant(Enum):
    """How the total is computed."""

    MOMENTS = "moments"
    RDP = "rdp"
    PLD = "pld"

    @property
    def title(self) -> str:
        """The accountant as a claim names it."""
        return {
            Accountant.MOMENTS: f"moments accountant (Abadi et al. 2016, theorem 2, {ORDERS} orders)",
            Accountant.RDP: "Rényi DP (Mironov et al. 2019; Canonne et al. 2020, proposition 12)",
            Accountant.PLD: "privacy loss distribution (dp-accounting, rounded up onto a grid)",
        }[self]

    def epsilon(self, parts: Parts, delta: float) -> float:
        """Epsilon of (rate, noise multiplier, steps) together: 0 of nothing, infinite where there is no noise.

        Raises:
            ConfigError: a number is out of range.
        """
        if self is Accountant.MOMENTS:
            return moments_epsilon(parts, delta)
        return rdp_epsilon(parts, delta) if self is Accountant.RDP else pld_epsilon(parts, delta)

    def loss(self, parts: Parts, delta: float) -> PrivacyLoss:
        """The privacy loss of one record in all of ``parts``.

        Raises:
            ConfigError: a number is out of range.
        """
        return PrivacyLoss(
            epsilon=self.epsilon(parts, delta),
            delta=delta,
            neighbouring="one record added or removed",
            unit="record",
            accountant=self.title,
            composed=" and ".join(str(Releases(*part)) for part in parts) or "no release",
        )


def warn_of_delta(delta: float, records: int) -> None:
    """Warn where delta is so large that to publish one record in ``records`` whole would be within it."""
    if delta >= 1 / records:
        warnings.warn(
            f"delta = {delta:g} is not below 1 / {records}, one over the number of records: a mechanism that publishes "
            f"one record at random meets it. Choose a delta well below {1 / records:.1g}",
            TacitWarning,
            stacklevel=3,
        )


# --- calibration: what reaches a given epsilon


def _unreachable(
    accountant: Accountant, epsilon: float, least: float, delta: float, advice: str
) -> ConfigError:
    floor = (
        f" (the moments accountant cannot state less than -log(delta) / {ORDERS} = {-math.log(delta) / ORDERS:.3g}; "
        "rdp and pld can)"
        if accountant is Accountant.MOMENTS
        else ""
    )
    return ConfigError(
        f"epsilon = {epsilon:g} at delta = {delta:g} is out of reach: the least by the {accountant.value} accountant is "
        f"{least:.4g}{floor}; {advice}"
    )


def least_noise(
    epsilon: float,
    delta: float,
    *,
    rate: float,
    steps: int,
    accountant: Accountant,
    spent: Parts = (),
) -> float:
    """The smallest noise multiplier with which ``steps`` releases on lots of that rate stay within epsilon.

    Args:
        epsilon: what all together may cost.
        delta: in (0, 1).
        rate: the probability with which a record joins a lot.
        steps: how many releases, at least one.
        accountant: how the total is computed.
        spent: what else is released about the same records.

    Returns:
        A multiplier that meets epsilon and is less than 1e-5 of itself above the smallest that does.

    Raises:
        ConfigError: no noise is enough, or a number is out of range.
    """
    if steps < 1 or not 0 < epsilon < math.inf:
        raise ConfigError(
            f"at least one step and a finite epsilon above 0 expected, got {steps} and {epsilon}"
        )

    def cost(noise: float) -> float:
        return accountant.epsilon([*spent, (rate, noise, steps)], delta)

    # The tighter accountant needs no more noise than the looser, cheaper one: a bracket to start from.
    low = high = 1.0
    if accountant is Accountant.PLD:
        if rdp_epsilon([*spent, (rate, LARGEST_NOISE, steps)], delta) <= epsilon:
            high = least_noise(
                epsilon, delta, rate=rate, steps=steps, accountant=Accountant.RDP, spent=spent
            )
        low = high / 1.3
    while cost(high) > epsilon:
        if high >= LARGEST_NOISE:
            raise _unreachable(
                accountant,
                epsilon,
                cost(high),
                delta,
                "raise epsilon or delta, or spend less elsewhere",
            )
        low, high = high, min(high * 2, LARGEST_NOISE)
    while cost(low) <= epsilon:
        low, high = low / 2, low
    # log of epsilon is nearly linear in log of noise
    root = brentq(
        lambda x: math.log(max(cost(math.exp(x)), 1e-300) / epsilon),
        math.log(low), math.log(high), xtol=2e-6,
    )  # fmt: skip
    noise = math.exp(root)
    while cost(noise) > epsilon:
        noise *= 1 + 2e-6
    return noise


def _largest(meets: Callable[[int], bool], low: int, high: int) -> int:
    """The largest whole number in [low, high] that meets what all below it meet and ``low`` does."""
    step = 1
    while low < high and meets(min(low + step, high)):
        low = min(low + step, high)
        step *= 2
    high = min(low + step, high)  # does not meet it, unless it is low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if meets(middle) else (low, middle)
    return low


def most_steps(
    epsilon: float,
    delta: float,
    *,
    rate: float,
    noise_multiplier: float,
    accountant: Accountant,
    spent: Parts = (),
) -> int:
    """The most releases on lots of that rate, with that noise, that stay within epsilon; at most 10^9.

    Args:
        epsilon: what all together may cost.
        delta: in (0, 1).
        rate: the probability with which a record joins a lot.
        noise_multiplier: of every release.
        accountant: how the total is computed.
        spent: what else is released about the same records.

    Raises:
        ConfigError: not one release is within epsilon, or a number is out of range.
    """

    def cost(steps: int, by: Accountant = accountant) -> float:
        return by.epsilon([*spent, (rate, noise_multiplier, steps)], delta)

    least = cost(1)
    if least > epsilon:
        raise _unreachable(
            accountant, epsilon, least, delta, "add noise, or lower the rate of lots"
        )
    start = 1
    if accountant is Accountant.PLD and cost(1, Accountant.RDP) <= epsilon:
        start = _largest(lambda steps: cost(steps, Accountant.RDP) <= epsilon, 1, MOST_STEPS)
    return _largest(lambda steps: cost(steps) <= epsilon, start, MOST_STEPS)


def largest_lot(
    epsilon: float,
    delta: float,
    *,
    records: int,
    noise_multiplier: float,
    steps: int,
    accountant: Accountant,
    spent: Parts = (),
) -> int:
    """The largest expected lot size with which ``steps`` releases stay within epsilon.

    Args:
        epsilon: what all together may cost.
        delta: in (0, 1).
        records: how many there are.
        noise_multiplier: of every release.
        steps: how many releases.
        accountant: how the total is computed.
        spent: what else is released about the same records.

    Raises:
        ConfigError: not even lots of one expected record are within epsilon, or a number is out of range.
    """

    def cost(lot: int) -> float:
        return accountant.epsilon([*spent, (lot / records, noise_multiplier, steps)], delta)

    if cost(1) > epsilon:
        raise _unreachable(accountant, epsilon, cost(1), delta, "add noise, or take fewer steps")
    return _largest(lambda lot: cost(lot) <= epsilon, 1, records)
