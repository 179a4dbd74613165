"""A sum of vectors, released with Gaussian noise on a grid; or with shares of that noise, one from each participant.

What is done. The grid is the multiples of ``step``, a power of two. Each coordinate of the sum is rounded to the nearest
grid point, which is exact in float64; a `DiscreteGaussian` of s grid steps, s = deviation / step, is added to each in
integers; the result goes back to float32, which only processes what is already private.

**Sensitivity.** Let S and S' be the sums with and without one record, ||S - S'|| <= clip, and R the rounding to integers
after division by ``step``. Each |R(S)_i - S_i / step| <= 1/2, and so for S', so that by the triangle inequality

    ||R(S) - R(S')|| <= clip / step + 2 * sqrt(d) / 2 = clip / step + sqrt(d)

for d coordinates, whatever S is. In units of the sum: clip + sqrt(d) step. Where one participant's vector is rounded
before it is added, this also covers any change of that vector by at most ``clip``.

**Why what holds for normal noise holds here.** Let r = 3. Draw X from the normal distribution around an integer mu with
variance s^2 - r^2, then Z from the discrete Gaussian of deviation r that is centred at X: P(Z = z | X = x) =
exp(-(z - x)^2 / 2 r^2) / theta_r(x), where theta_c(x) is the sum of exp(-(k - x)^2 / 2 c^2) over all integers k. By
Poisson summation theta_c(x) = c sqrt(2 pi) (1 + 2 sum_j exp(-2 pi^2 c^2 j^2) cos(2 pi j x)), so that it is within a
factor 1 +- q(c) of c sqrt(2 pi), q(c) = 2 sum_j exp(-2 pi^2 c^2 j^2). Integrating over x, P(Z = z) is exp(-(z - mu)^2 / 2
s^2) times a constant, up to a factor in [1 / (1 + q(r)), 1 / (1 - q(r))]: the logarithm of its ratio to the discrete
Gaussian around mu is at most 2 artanh q(r), 1e-76. So the release is, within a statistical distance of artanh q(r) a
coordinate, a function of R(S) plus *continuous* normal noise of variance s^2 - r^2 alone, and every accountant of the
Gaussian mechanism, subsampled or composed, holds for it at the noise multiplier sqrt(s^2 - r^2) / (clip / step +
sqrt(d)).

**Shares.** The sum of independent discrete Gaussians of deviations a and b is not a discrete Gaussian, but its law is, at z,
exp(-z^2 / 2 (a^2 + b^2)) theta_c(z a^2 / (a^2 + b^2)) up to a constant, 1 / c^2 = 1 / a^2 + 1 / b^2: within a logarithm
of 2 artanh q(c) of the discrete Gaussian of variance a^2 + b^2. Convolving with a further law keeps a bound on a ratio,
so n shares of deviation t are, by induction, within

    sum_{k=1}^{n-1} 2 artanh q(t sqrt(k / (k + 1)))

of the discrete Gaussian of variance n t^2. (Kairouz, Liu, Steinke have 10 exp(-2 pi^2 t^2 k / (k + 1)) for each k; this
is 4 for all but very small t.)

Laws whose ratio is within exp(+-tau) have a statistical distance of at most tau / 2, and distances of coordinates and of
releases add up. `Accounted.delta` says what a distance adds to delta.

**Not counted**, and to be passed as ``rounding`` where it matters: that the sum that is handed over is not the exact one
(`summation_error`), and that a clipped vector's norm, computed in floats, exceeds the clip by a rounding. **Timing**: see
`tacit.dp.discrete`.

Source: Canonne, Kamath, Steinke, "The discrete Gaussian for differential privacy" (NeurIPS 2020); Kairouz, Liu, Steinke,
"The distributed discrete Gaussian mechanism for federated learning with secure aggregation" (ICML 2021), for the shares;
Peikert, "An efficient and parallel Gaussian sampler for lattices" (CRYPTO 2010), theorem 3.1, for the randomised
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, Diverged, RangeError
from tacit.core.wire import Array
from tacit.dp.discrete import DiscreteGaussian, Integers
from tacit.dp.mechanisms import FloatArray
from tacit.dp.ziggurat import normal

_LIFT = 3.0  # r in the module's derivation
_SPAN = 1 << 15  # coordinates of one draw: what is made of them stays in the second-level cache


class GaussianKind(Enum):
    """How the noise is drawn and added."""

    DISCRETE = "discrete"
    FLOAT = "float"


class Accounted(NamedTuple):
    """What a release is to an accountant.

    Args:
        noise_multiplier: it is the Gaussian mechanism of this deviation over sensitivity,
        distance: within this statistical distance.
    """

    noise_multiplier: float
    distance: float

    def delta(self, epsilon: float, releases: int) -> float:
        """What the distance adds to the delta of that many releases: (1 + exp(epsilon)) * releases * distance.

        With t the distance of all of them, P(M in E) <= P(N in E) + t <= exp(epsilon) P(N' in E) + delta + t, and P(N' in
        E) <= P(M' in E) + t, for the mechanism M and the Gaussian one N on two neighbours.
        """
        return (1 + math.exp(epsilon)) * releases * self.distance


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisySum:
    """Releases a sum of vectors with Gaussian noise.

    Args:
        clip: what one record moves the sum by, at most, in L2 norm, when it is added or removed; 1e-30 to 1e30.
        noise_multiplier: the noise's deviation over ``clip``; at most 1e6. Zero adds no noise and guarantees nothing: a
            control.
        coordinates: of the whole sum, all arrays together.
        kind: DISCRETE, on the grid; or FLOAT: normal noise in floats, whose gaps can betray what it was added to, for
            comparison.
        bits: the deviation is 2^bits grid steps or up to twice as many; 4 to 39. Finer costs nothing up to 23.
        rounding: bound on the L2 distance between the sum that is handed over and the exact one.

    Raises:
        ConfigError: a setting is out of its range.
    """

    clip: float
    noise_multiplier: float
    coordinates: int
    kind: GaussianKind = GaussianKind.DISCRETE
    bits: int = 23
    rounding: float = 0.0

    def __post_init__(self) -> None:
        if not (1e-30 <= self.clip <= 1e30 and 0 <= self.noise_multiplier <= 1e6):
            raise ConfigError(
                "a clip from 1e-30 to 1e30 and a noise_multiplier from 0 to 1e6 expected, "
                f"got {self.clip} and {self.noise_multiplier}"
            )
        if 0 < self.noise_multiplier < 1e-6:
            raise ConfigError(
                f"a noise_multiplier of 0, or at least 1e-6, expected, got {self.noise_multiplier}"
            )
        if self.coordinates < 1 or not 4 <= self.bits <= 39:
            raise ConfigError(
                f"at least one coordinate and 4 to 39 bits expected, got {self.coordinates} and {self.bits}"
            )
        if not 0 <= self.rounding < math.inf:
            raise ConfigError(f"a finite rounding not below 0 expected, got {self.rounding}")

    @property
    def deviation(self) -> float:
        """Of the noise, in units of the sum."""
        return self.noise_multiplier * self.clip

    @property
    def step(self) -> float:
        """Of the grid, in units of the sum: a power of two; 0 where there is none."""
        if self.kind is GaussianKind.FLOAT or self.noise_multiplier == 0:
            return 0.0
        return math.ldexp(1.0, math.frexp(self.deviation)[1] - 1 - self.bits)

    @property
    def sensitivity(self) -> float:
        """What one record moves the rounded sum by, at most, in L2 norm: clip + 2 rounding + sqrt(coordinates) step."""
        return self.clip + 2 * self.rounding + math.sqrt(self.coordinates) * self.step

    @property
    def assumes(self) -> tuple[str, ...]:
        """What a claim about these releases must say that it assumes."""
        handed = f"the sum that is made noisy is within {self.rounding:g} (L2) of the exact one"
        gaps = "noise in floats is taken for real numbers: it has gaps that attacks use"
        times = "nobody times the draws of single coordinates"
        return (handed, gaps if self.kind is GaussianKind.FLOAT else times)

    def accounted(self, *, participants: int = 1, missing: int = 0) -> Accounted:
        """What an accountant takes a release for; of FLOAT noise, as if floats were real numbers.

        Args:
            participants: among how many the noise was shared out.
            missing: how many of their shares are not in the sum, or known to who sees it: dropped out, or in collusion.
                The one whose data are protected is neither; neighbours differ in its vector, and its noise is in both.

        Raises:
            ConfigError: the counts are out of their range, or the shares' deviation, or there is too little noise on the
                grid.
        """
        if participants < 1 or not 0 <= missing < participants:
            raise ConfigError(
                f"participants, not all of them missing, expected, got {participants} and {missing}"
            )
        present = participants - missing
        deviation = self.deviation * math.sqrt(present / participants)
        if self.step == 0:
            return Accounted(deviation / self.sensitivity, 0.0)
        share = self._share(participants)
        steps = deviation / self.step
        if steps <= _LIFT:
            raise ConfigError(
                f"noise of more than {_LIFT:g} grid steps expected, got {steps:.3g} with {present} of "
                f"{participants} shares: take more bits"
            )
        apart = present * share.distance + math.atanh(_ripple(_LIFT))
        ripples = [_ripple(share.deviation * math.sqrt(k / (k + 1))) for k in range(1, present)]
        apart += sum(map(math.atanh, ripples)) if max(ripples, default=0) < 1 else 1
        return Accounted(
            math.sqrt(steps**2 - _LIFT**2) * self.step / self.sensitivity,
            min(1.0, self.coordinates * apart),
        )

    def release(self, arrays: Sequence[Array], coins: Coins) -> list[npt.NDArray[np.float32]]:
        """The arrays' sum with noise, as float32 arrays of the same shapes.

        Args:
            arrays: the sum: floats, ``coordinates`` of them in all.
            coins: where the noise comes from.

        Raises:
            ConfigError: there are more or fewer coordinates.
            Diverged: a value is not finite.
            RangeError: a value is beyond 2^61 grid steps or 1e38.
        """
        flat: npt.NDArray[np.floating] = self._flat(arrays)
        if self.step == 0:
            out = flat.astype(np.float32, copy=False)
            if self.noise_multiplier > 0:
                noise = normal(coins, len(flat))
                noise *= np.float32(self.deviation)
                out += noise
        else:
            out = np.empty(len(flat), np.float32)
            share = self._share(1)
            for start in range(0, len(flat), _SPAN):
                part = slice(start, start + _SPAN)
                noisy = self._rounded(flat[part])
                # beyond 2^53 this rounds, which processes the integer sum
                noisy += share.draw(coins, len(noisy))
                np.multiply(noisy, self.step, out=out[part], casting="same_kind")
        return _cut(out, [np.shape(array) for array in arrays])

    def share(self, arrays: Sequence[Array], coins: Coins, *, participants: int) -> Integers:
        """One participant's vector on the grid with its share of the noise, for a sum of integers.

        Args:
            arrays: its vector: floats, ``coordinates`` of them in all: a sum of vectors of L2 norm at most ``clip``.
            coins: its own.
            participants: how many share the noise out; each draws with the deviation over sqrt(participants).

        Returns:
            int64, (coordinates,), each at most ``reach(participants, vectors) / participants`` in size for a sum of so many.

        Raises:
            ConfigError: there are more or fewer coordinates; or FLOAT or no noise, which has no grid; or the shares'
                deviation is out of range.
            Diverged: a value is not finite.
            RangeError: a value is beyond 2^61 grid steps or 1e38.
        """
        share, flat = self._share(participants), self._flat(arrays)
        noise = share.draw(coins, len(flat))
        noise += self._rounded(flat).astype(np.int64)
        return noise

    def reach(self, participants: int, vectors: int = 1) -> int:
        """No coordinate of the sum of all shares is larger in size: what a modulus must leave room for, on either side.

        Args:
            participants: how many share the noise out.
            vectors: of L2 norm ``clip``, that one participant's vector is a sum of, at most.

        Raises:
            ConfigError: there is no grid, or the shares' deviation is out of range.
        """
        share, most = self._share(participants), vectors * self.clip + self.rounding
        return participants * (math.ceil(most / self.step) + share.reach)

    def opened(
        self, total: Integers, shapes: Sequence[tuple[int, ...]]
    ) -> list[npt.NDArray[np.float32]]:
        """The noisy sum from the sum of the shares.

        Args:
            total: int64, (coordinates,).
            shapes: of the arrays.

        Raises:
            ConfigError: the total or the shapes have more or fewer coordinates, or there is no grid.
        """
        size = sum(map(math.prod, shapes))
        if self.step == 0 or total.shape != (self.coordinates,) or size != self.coordinates:
            raise ConfigError(
                f"a grid and {self.coordinates} coordinates expected, got {total.shape} for shapes of {size} "
                f"and a grid of step {self.step:g}"
            )
        return _cut((total * self.step).astype(np.float32), shapes)

    def _share(self, participants: int) -> DiscreteGaussian:
        if self.step == 0 or participants < 1:
            raise ConfigError(
                f"discrete noise, shared by at least one, expected, got {self.kind.value} noise at multiplier "
                f"{self.noise_multiplier:g} and {participants} participants"
            )
        return DiscreteGaussian(self.deviation / self.step / math.sqrt(participants))

    def _flat(self, arrays: Sequence[Array]) -> FloatArray:
        flat: FloatArray = np.concatenate(
            [np.reshape(array, -1) for array in arrays] or [np.empty(0)]
        )
        if len(flat) != self.coordinates:
            raise ConfigError(f"{self.coordinates} coordinates expected, got {len(flat)}")
        limit = min(1e38, 2.0**61 * self.step) if self.step else 1e38
        size = math.sqrt(float(np.dot(flat, flat)))  # one quick pass, and no value is above it
        if not size <= limit:
            size = max(float(flat.max()), -float(flat.min()))
        if not math.isfinite(size):
            raise Diverged(
                "a sum to be made noisy has a value that is not finite: lower the learning rate"
            )
        if size > limit:
            raise RangeError(
                f"a value of the sum is beyond {limit:.3g}, the most that is released: clip the vectors, or take fewer bits"
            )
        return flat

    def _rounded(self, flat: npt.NDArray[np.floating]) -> FloatArray:
        """To grid points, in steps; the multiplication is by a power of two and exact."""
        scaled: FloatArray = np.multiply(flat, 1 / self.step, dtype=np.float64)
        return np.rint(scaled, out=scaled)


def summation_error(count: int, clip: float, dtype: npt.DTypeLike) -> float:
    """A bound on the L2 distance of a floating-point sum of vectors from the exact one, added in whatever order.

    Each coordinate is off by at most g = n u / (1 - n u) times the sum of sizes, u the unit roundoff, and by Minkowski's
    inequality the vector by at most g n clip. For 600 vectors: 2e-2 clip in float32, 4e-11 clip in float64; true errors
    are far smaller, but not bounded by less.

    Args:
        count: n, how many vectors are summed.
        clip: the largest L2 norm of one.
        dtype: of the additions, a floating type.

    Raises:
        ConfigError: n u is not below 1.

    Source: Higham, "Accuracy and stability of numerical algorithms" (2002), section 4.2.
    """
    terms = count * float(np.finfo(np.dtype(dtype)).eps) / 2
    if not 0 <= terms < 1:
        raise ConfigError(f"{count} terms are too many to be summed in {np.dtype(dtype)}")
    return terms / (1 - terms) * count * clip


def _ripple(deviation: float) -> float:
    """At least q of the module's derivation: with p = exp(-2 pi^2 c^2), the sum of p^(j^2) is below p / (1 - p^3)."""
    first = math.exp(-2 * math.pi**2 * deviation**2)
    return 2 * first / (1 - first**3)


def _cut(
    flat: npt.NDArray[np.float32], shapes: Sequence[tuple[int, ...]]
) -> list[npt.NDArray[np.float32]]:
    out, at = [], 0
    for shape in shapes:
        size = math.prod(shape)
        out.append(flat[at : at + size].reshape(shape))
        at += size
    return out
