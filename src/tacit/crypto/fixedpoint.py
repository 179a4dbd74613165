"""Reals as ring elements: fixed point in two's complement, and truncation of products.

A real x is the integer nearest to ``x * 2^fraction``. A product of two of them has twice the fraction; truncation takes the
lower half away. The owner of a value shifts it; two servers who share it shift their shares, without a word, and are almost
always within one unit of the result (`truncate_share`).

Source: Mohassel and Zhang, "SecureML" (IEEE S&P 2017), section 4.1 and theorem 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tacit.core.errors import ConfigError, RangeError
from tacit.crypto.ring import Z64, Elements, Ring

Reals = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """How reals are written as ring elements.

    Args:
        fraction: fractional bits; SecureML takes 13.
        ring: the ring.

    Raises:
        ConfigError: the fraction leaves no room in the ring for a product.
    """

    fraction: int = 13
    ring: Ring = field(default=Z64)

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= self.ring.bits // 2 - 2:
            raise ConfigError(
                f"0 to {self.ring.bits // 2 - 2} fractional bits fit {self.ring}, got {self.fraction}"
            )

    @property
    def largest(self) -> float:
        """No real of larger magnitude may be encoded: a product of two that are small enough needs the fraction twice."""
        return float(2.0 ** (self.ring.bits - 2 - 2 * self.fraction))

    def encode(self, values: npt.ArrayLike, name: str = "values") -> Elements:
        """The nearest fixed-point numbers.

        Args:
            values: reals, any shape.
            name: what an error calls them.

        Raises:
            RangeError: a value is not finite, or its magnitude is beyond `largest`.
        """
        reals = np.asarray(values, np.float64)
        most = float(np.abs(reals).max(initial=0.0))
        if not np.isfinite(most):
            raise RangeError(f"{name}: a value is not finite; find out where it comes from")
        if most > self.largest:
            raise RangeError(
                f"{name}: the largest magnitude is {most:g}, and {self.largest:g} fits {self.ring} with {self.fraction} "
                f"fractional bits; divide {name} by {_up(most / self.largest)} or more, or take fewer fractional bits"
            )
        scaled = np.rint(np.ldexp(reals, self.fraction))
        return scaled.astype(self.ring.signed).view(self.ring.dtype)

    def decode(self, elements: Elements) -> npt.NDArray[np.float64]:
        """The reals that elements stand for."""
        signed = self.ring.require(elements).view(self.ring.signed)
        return np.ldexp(signed.astype(np.float64), -self.fraction)

    def truncate(self, elements: Elements, bits: int | None = None) -> Elements:
        """Divided by ``2^bits`` (the fraction, by default) and rounded down, of values that are known."""
        bits = self.fraction if bits is None else bits
        signed = self.ring.require(elements).view(self.ring.signed)
        shifted: Elements = (signed >> self.ring.signed.type(bits)).view(self.ring.dtype)
        return shifted


def _up(value: float) -> str:
    """Rounded up to three digits that count."""
    return f"{value * 1.005:.3g}"


def truncate_share(share: Elements, bits: int, party: int) -> Elements:
    """One server's share of a shared value divided by ``2^bits``: local truncation.

    Args:
        share: uint64 or uint32, any shape.
        bits: how many are taken away.
        party: 0 or 1; the two do not do the same.

    **Guarantee**: if the shared value, in two's complement, has magnitude below 2^m and shares are uniform, the result is
    within one unit of the exact one but for a probability of at most `truncation_failure`; then it is wrong altogether.

    **Leaks**: nothing as long as the result stays shared; an opened result's last unit depends on the bits that were cut off
    and on the shares. **Cost**: nothing.

    **Source**: SecureML, section 4.1.
    """
    shift = share.dtype.type(bits)
    out: Elements = share >> shift if party == 0 else -(-share >> shift)
    return out


def truncation_failure(magnitude_bits: float, ring: Ring = Z64) -> float:
    """A bound on how often `truncate_share` is wrong by more than a unit, for magnitudes below ``2^magnitude_bits``.

    A value v fails with probability |v| / 2^l: when the sum of the shares wraps around the ring's end for a positive v, or
    does not for a negative one. The paper's bound, 2^(m + 1 - l), is twice that of the largest v.

    **Source**: SecureML, theorem 1.
    """
    return float(min(1.0, 2.0 ** (magnitude_bits + 1 - ring.bits)))
