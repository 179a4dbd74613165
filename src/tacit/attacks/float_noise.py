"""An attack on noise in floats: of two candidates for what it was added to, the last bits often rule one out.

A sampler of floats has finitely many outcomes, and not every float is among them. An adversary who knows the sampler, and
that the noise was added to one of two candidates, counts for each released number the sampler's coins that lead to just
these bits from either candidate, and takes the likelier. Where no coins lead there from a candidate, it was not that one,
however much noise there is: the guarantee of continuous noise does not hold for its floats.

* `reached` inverts `tacit.dp.mechanisms.laplace` and `gaussian`, which apply an inverse distribution function to 52 bits:
  the numbers around the right one are tried.
* `preimages` inverts `GaussianKind.FLOAT`, the ziggurat of `tacit.dp.ziggurat`, whose product with the deviation is added in
  float32: the fractions around the right one, in each layer.
* `advantage` releases one of two vectors many times and measures how often their likelihood, over all coordinates, tells
  which; against `GaussianKind.DISCRETE` as well, whose grid is the same for all sums.

Holds: what is released. Knows: the deviation, and two candidates. Recovers: which of them it was.

What we changed: Mironov enumerates what the logarithm in floats attains, and Jin et al. the outcomes of other normal
samplers (polar, Box and Muller, ziggurat in 64 bits); here it is this package's samplers, and likelihoods instead of
certainties alone.

Source: I. Mironov. On significance of the least significant bits for differential privacy. CCS 2012, section 4 (Laplace).
J. Jin, E. McMurtry, B. Rubinstein, O. Ohrimenko. Are we there yet? Timing and floating-point attacks on differential privacy
systems. IEEE S&P 2022 (Gaussian). Both recalled.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.special import ndtr

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.dp.mechanisms import Noise, gaussian, laplace
from tacit.dp.noise import GaussianKind, NoisySum
from tacit.dp.ziggurat import cover

Floats = npt.NDArray[np.float64]
Float32s = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

_NEAR = 32  # uniform numbers on either side of the right one, which are tried
_STEPS = 4  # fractions, likewise: a float of the sum holds fewer in the layers where it can lie
_SPAN = 2048


class Advantage(NamedTuple):
    """How well two candidates are told apart.

    Args:
        value: 2 P(right) - 1: 0 by guessing, 1 always.
        interval: of 95 % (Clopper, Pearson).
        allowed: the most that the continuous noise of the same deviation allows anybody.
        trials: how many releases.
    """

    value: float
    interval: tuple[float, float]
    allowed: float
    trials: int


class _Chosen(Coins):
    """Coins whose uniform numbers are given."""

    __slots__ = ("_unit",)

    def __init__(self, unit: Floats) -> None:
        super().__init__()
        self._unit = unit

    def unit(self, shape: int | tuple[int, ...]) -> Floats:
        return self._unit.reshape(shape)


def _draw(noise: Noise, coins: Coins, count: int) -> Floats:
    return laplace(coins, 1.0, count) if noise is Noise.LAPLACE else gaussian(coins, 1.0, count)


def reached(outputs: Floats, candidate: float, noise: Noise) -> Flags:
    """Which outputs some coins of the sampler lead to from the candidate, (n,).

    Args:
        outputs: float64, (n,): what noise of scale 1 was added to, plus that noise.
        candidate: what it may have been added to.
        noise: which sampler of `tacit.dp.mechanisms`.
    """
    x = outputs - candidate
    below = stats.laplace.cdf(x) if noise is Noise.LAPLACE else ndtr(x)
    near = np.floor(below * 2.0**52) + np.arange(-_NEAR, _NEAR + 1.0)[:, None]
    unit = (np.clip(near, 0, 2.0**52 - 1) + 0.5) * 2.0**-52
    drawn = _draw(noise, _Chosen(unit), unit.size).reshape(unit.shape)
    return np.asarray((candidate + drawn == outputs).any(0))


def preimages(outputs: Float32s, candidate: float, deviation: float) -> npt.NDArray[np.int64]:
    """How many words of the ziggurat, of 2^32, lead to each output from the candidate at once, (n,).

    Args:
        outputs: float32, (n,), by `NoisySum.release` of kind FLOAT.
        candidate: what the noise may have been added to, not larger than the deviation in size.
        deviation: of the noise.
    """
    layers, start, scale = cover(), np.float32(candidate), np.float32(deviation)
    counts = np.zeros(len(outputs), np.int64)
    for first in range(0, len(outputs), _SPAN):
        part = outputs[first : first + _SPAN, None]
        x = (part.astype(np.float64) - float(start)) / float(scale)
        middle = np.rint(x / layers.widths.astype(np.float64))
        for step in range(-_STEPS, _STEPS + 1):
            fraction = middle + step  # with its sign; 0 has two
            drawn = fraction.astype(np.float32) * layers.widths
            hit = (start + drawn * scale == part) & (np.abs(fraction) < layers.limits)
            counts[first : first + _SPAN] += hit.sum(1) + (hit & (fraction == 0)).sum(1)
    return counts


def _log_likelihoods(outputs: Floats, candidate: float, noise: Noise | GaussianKind) -> Floats:
    """Up to a constant, coordinate by coordinate, for noise of deviation 1."""
    if isinstance(noise, Noise):
        return np.where(reached(outputs, candidate, noise), 0.0, -50.0)
    released = outputs.astype(np.float32)
    # what the ziggurat decides or draws otherwise, as if it could be any float
    lost = 1 - float(cover().limits.mean()) * 2.0**-23
    density = np.exp(-((outputs - candidate) ** 2) / 2) / math.sqrt(2 * math.pi)
    other = lost * 2.0**32 * density * np.spacing(np.abs(released))
    return np.log(preimages(released, candidate, 1.0) + other + 1e-300)


def advantage(
    noise: Noise | GaussianKind,
    *,
    coins: Coins,
    trials: int = 200,
    coordinates: int = 128,
    apart: float = 0.01,
) -> Advantage:
    """How well the attack tells a vector of zeros from one of ``apart`` everywhere, each released with noise of scale 1.

    Args:
        noise: a sampler of `tacit.dp.mechanisms`, or a kind of `NoisySum`; DISCRETE is attacked as if it were FLOAT.
        coins: choose the vectors, and make the noise and guesses where both are as likely.
        trials: how many releases.
        coordinates: of a vector.
        apart: in (0, 1].

    Raises:
        ConfigError: a number is out of range.

    Cost: trials * coordinates * 40 microseconds of CPU time for `GaussianKind`, a third of that for `Noise`.
    """
    if trials < 1 or coordinates < 1 or not 0 < apart <= 1:
        raise ConfigError(
            f"trials, coordinates and a distance in (0, 1] expected, got {trials}, {coordinates} and {apart}"
        )
    second = coins.unit(trials) < 0.5
    sums = np.repeat(np.where(second, apart, 0.0), coordinates)
    distance = apart * math.sqrt(coordinates)  # L2
    if isinstance(noise, Noise):
        outputs = sums + _draw(noise, coins, sums.size)
    else:
        release = NoisySum(clip=1.0, noise_multiplier=1.0, coordinates=sums.size, kind=noise)
        outputs = release.release([sums], coins)[0].astype(np.float64)
    zeros, others = (
        _log_likelihoods(outputs, candidate, noise).reshape(trials, coordinates).sum(1)
        for candidate in (0.0, apart)
    )
    guess = np.where(zeros == others, coins.unit(trials) < 0.5, others > zeros)
    right = int((guess == second).sum())
    interval = stats.binomtest(right, trials).proportion_ci(0.95, method="exact")
    allowed = (
        math.tanh(apart * coordinates / 2)
        if noise is Noise.LAPLACE
        else 2 * float(ndtr(distance / 2)) - 1
    )
    return Advantage(
        2 * right / trials - 1, (2 * interval.low - 1, 2 * interval.high - 1), allowed, trials
    )
