"""Clipping and noise on whole vectors, and what they guarantee.

Noise comes from `Coins`. It is continuous: inverse-transform samples on 52-bit uniforms, rounded to float. Rounded
continuous noise has gaps that can betray a value at very small scales (Mironov 2012), so every claim made here says so; the
discrete mechanisms that do not are not here yet.

Source: Dwork, Roth, "The algorithmic foundations of differential privacy" (2014), sections 3.3 and A.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr, ndtri

from tacit.core.claims import PrivacyLoss
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, Diverged
from tacit.core.wire import Array

FloatArray = npt.NDArray[np.float64]


class Noise(Enum):
    """The distribution of the noise, and with it the norm that is clipped."""

    GAUSSIAN = "gaussian"
    LAPLACE = "laplace"

    @property
    def norm(self) -> int:
        """2 for Gaussian noise, 1 for Laplace noise."""
        return 2 if self is Noise.GAUSSIAN else 1


def clip(vector: FloatArray, bound: float, norm: int) -> FloatArray:
    """Scale ``vector`` down, where needed, to an L1 or L2 norm of ``bound``.

    Raises:
        Diverged: the vector's norm is not finite.
    """
    # not np.linalg.norm: its threaded dot product is slower than one pass, tenfold on a busy machine
    with np.errstate(over="ignore", invalid="ignore"):
        size = float(np.abs(vector).sum() if norm == 1 else math.sqrt(np.square(vector).sum()))
    if not math.isfinite(size):
        raise Diverged(
            "a vector to be clipped has a norm that is not finite: lower the learning rate"
        )
    return vector if size <= bound else vector * (bound / size)


def laplace(coins: Coins, scale: float, count: int) -> FloatArray:
    """``count`` draws of density exp(-|x| / scale) / (2 scale)."""
    u = coins.unit(count) - 0.5
    out: FloatArray = -scale * np.sign(u) * np.log1p(-2.0 * np.abs(u))
    return out


def gaussian(coins: Coins, deviation: float, count: int) -> FloatArray:
    """``count`` draws of a normal distribution with that standard deviation."""
    out: FloatArray = ndtri(coins.unit(count)) * deviation
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyVector:
    """Clip a whole vector and add noise to every coordinate.

    Args:
        clip: bound on the L2 (Gaussian) or L1 (Laplace) norm.
        noise_multiplier: standard deviation (Gaussian) or scale (Laplace) of the noise, in units of the
            sensitivity 2 * clip. Zero adds no noise and guarantees nothing.
        noise: the distribution.
    """

    clip: float
    noise_multiplier: float
    noise: Noise = Noise.GAUSSIAN

    def __post_init__(self) -> None:
        if not (0 < self.clip < math.inf and 0 <= self.noise_multiplier < math.inf):
            raise ConfigError(
                f"clip must be positive and noise_multiplier not negative, got {self.clip} and {self.noise_multiplier}"
            )

    @property
    def sensitivity(self) -> float:
        """The most that the clipped vector can move, in its norm, when all the data behind it changes: 2 * clip."""
        return 2.0 * self.clip

    def release(self, arrays: Sequence[Array], coins: Coins) -> list[npt.NDArray[np.float32]]:
        """The arrays, clipped as one vector and made noisy, as float32.

        Raises:
            Diverged: a value is not finite.
        """
        flat = np.concatenate([np.asarray(a, np.float64).reshape(-1) for a in arrays])
        flat = clip(flat, self.clip, self.noise.norm)
        if self.noise_multiplier > 0:
            draw = gaussian if self.noise is Noise.GAUSSIAN else laplace
            flat = flat + draw(coins, self.noise_multiplier * self.sensitivity, flat.size)
        out, at = [], 0
        for array in arrays:
            out.append(flat[at : at + array.size].reshape(array.shape).astype(np.float32))
            at += array.size
        return out

    def loss(self, *, releases: int, delta: float, unit: str) -> PrivacyLoss:
        """The privacy loss of ``releases`` releases about the same unit.

        Args:
            releases: how many vectors are released, each about data that may be the same.
            delta: the probability outside the bound.
            unit: whose data it is, for the claim.
        """
        if self.noise_multiplier == 0:
            epsilon, accountant = math.inf, "none: there is no noise"
        elif self.noise is Noise.GAUSSIAN:
            epsilon = gaussian_epsilon(math.sqrt(releases) / self.noise_multiplier, delta)
            accountant = "exact Gaussian trade-off (Balle, Wang 2018, theorem 8)"
        else:
            epsilon = releases / self.noise_multiplier
            accountant = "sum of pure epsilons (Dwork, Roth 2014, theorem 3.16); delta is not used"
        return PrivacyLoss(
            epsilon=epsilon,
            delta=delta,
            neighbouring="all data of one unit replaced",
            unit=unit,
            accountant=accountant,
            composed=f"{releases} {self.noise.value} releases at noise multiplier {self.noise_multiplier:g}",
        )


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The least epsilon of Gaussian mechanisms whose sensitivities over deviations have the root sum of squares ``mu``.

    Without subsampling, Gaussian mechanisms compose exactly into one Gaussian mechanism, so this is tight.

    Args:
        mu: sqrt(releases) * sensitivity / deviation.
        delta: in (0, 1).

    Raises:
        ConfigError: ``mu`` or ``delta`` is out of range.

    Source: Balle, Wang, "Improving the Gaussian mechanism for differential privacy" (ICML 2018), theorem 8; Dong, Roth,
    Su, "Gaussian differential privacy" (2022), corollary 3.3 (composition).
    """
    if not (0 < mu < math.inf and 0 < delta < 1):
        raise ConfigError(f"mu > 0 and 0 < delta < 1 expected, got {mu} and {delta}")

    def excess(epsilon: float) -> float:
        # log of the second term, because exp(epsilon) overflows where its factor underflows
        second = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
        return float(ndtr(mu / 2 - epsilon / mu)) - math.exp(min(second, 0.0)) - delta

    if excess(0.0) <= 0:
        return 0.0
    high = mu * mu / 2 + mu * (10 - float(ndtri(delta)))
    if mu > 1e8:  # floats cannot tell the two terms apart; high is above by 20 / mu of itself
        return high
    return float(brentq(excess, 0.0, high, xtol=1e-12, rtol=1e-12))
