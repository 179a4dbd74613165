"""Floats as integers of a few bits, by stochastic rounding, so that sums of them can be taken modulo a power of two.

A value in [-clip, clip] stands for a point of the grid of 2^bits integers from 0; between two grid points it is rounded up
with a probability that makes the result unbiased. What lies outside is clamped first.

The C kernel and the numpy code do the same float64 operations in the same order and agree in every bit.

Source: Konečný et al., "Federated Learning: Strategies for Improving Communication Efficiency" (2016), probabilistic
quantisation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, RangeError
from tacit.crypto.kernels import Native, native

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]
Coinage = npt.NDArray[np.uint32]

_TILE = 1 << 15  # values: a tile's temporaries stay in the second-level cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiser:
    """The grid that values are rounded to.

    Args:
        clip: values are clamped to [-clip, clip]; from 1e-30 to 1e30, rounded to float32.
        bits: of an integer, 1 to 32.

    Raises:
        ConfigError: a setting is out of its range.
    """

    clip: float
    bits: int

    def __post_init__(self) -> None:
        if not 1e-30 <= self.clip <= 1e30:
            raise ConfigError(f"a finite clip from 1e-30 to 1e30 expected, got {self.clip}")
        # values are float32: one that equals the clip as a float32 is inside
        object.__setattr__(self, "clip", float(np.float32(self.clip)))
        if not 1 <= self.bits <= 32:
            raise ConfigError(f"1 to 32 bits expected, got {self.bits}")

    @property
    def levels(self) -> int:
        """How many integers there are: 0 to ``levels - 1``."""
        return 1 << self.bits

    @property
    def step(self) -> float:
        """The distance of two grid points."""
        return 2 * self.clip / (self.levels - 1)

    def quantise(
        self,
        values: Floats,
        coins: Coins,
        *,
        dtype: npt.DTypeLike = np.uint32,
        out: Words | None = None,
    ) -> tuple[Words, int]:
        """Each value as an integer, rounded up or down at random; and how many values were clamped.

        The integer is ``floor((clamp(x) + clip) / step + u)`` with u uniform on the multiples of 2^-32 in [0, 1).

        Args:
            values: contiguous float32 vector.
            coins: four bytes a value are drawn.
            dtype: uint32 or uint64.
            out: a contiguous vector as long as the values, to be filled; a fresh one of that type by default.

        Raises:
            ConfigError: the values are not a contiguous float32 vector, or the type is another.
            RangeError: values are not finite.

        **Guarantee**: on the values within the clip, the expectation of ``dequantise`` is the value, within 2^-32 of a step
        and float64's rounding.
        """
        if values.dtype != np.float32 or values.ndim != 1 or not values.flags.c_contiguous:
            raise ConfigError(
                f"a contiguous vector of float32 expected, got {values.dtype} {values.shape}"
            )
        if out is None:
            if np.dtype(dtype) not in (np.uint32, np.uint64):
                raise ConfigError(f"uint32 or uint64 expected, got {np.dtype(dtype)}")
            out = np.empty(len(values), dtype)
        if out.dtype not in (np.uint32, np.uint64) or out.shape != values.shape:
            raise ConfigError(
                f"{len(values)} of uint32 or uint64 to fill expected, got {out.dtype} {out.shape}"
            )
        drawn = np.empty(min(_TILE, len(values)), np.dtype("<u4"))
        loaded = native()
        odd = beyond = 0
        for start in range(0, len(values), _TILE):
            part, place = values[start : start + _TILE], out[start : start + _TILE]
            coinage = drawn[: len(part)]
            coins.fill(coinage.view(np.uint8))
            if loaded is not None:
                found = _quantise_native(loaded, self, part, coinage, place)
            else:
                found = _quantise_numpy(self, part, coinage, place)
            odd, beyond = odd + found[0], beyond + found[1]
        if odd:
            raise RangeError(
                f"{odd} of {len(values)} values are NaN or infinite and cannot be quantised: "
                "lower the learning rate or clip the update"
            )
        return out, beyond

    def dequantise(
        self, total: Words, count: int, *, times: float = 1.0
    ) -> npt.NDArray[np.float64]:
        """The sum of values from the sum of their integers.

        Args:
            total: uint32 or uint64, the sum of ``count`` quantised vectors.
            count: how many were summed.
            times: the sum is multiplied by this.

        Raises:
            ConfigError: the count is negative or the type is another.
        """
        if total.dtype not in (np.uint32, np.uint64):
            raise ConfigError(f"a sum as uint32 or uint64 expected, got {total.dtype}")
        if count < 0:
            raise ConfigError(f"a count must not be negative, got {count}")
        out = np.empty(total.shape, np.float64)
        for start in range(0, len(total), _TILE):
            part = out[start : start + _TILE]
            np.multiply(total[start : start + _TILE], self.step * times, out=part)
            part -= count * self.clip * times
        return out


def _scale(quantiser: Quantiser) -> float:
    """Integers a unit, rounded so that the clip itself becomes the last integer whatever the coins."""
    top, span = quantiser.levels - 1, 2 * quantiser.clip
    scale = top / span
    return scale if span * scale >= top else math.nextafter(scale, math.inf)


def _quantise_native(
    loaded: Native, quantiser: Quantiser, values: Floats, coinage: Coinage, out: Words
) -> tuple[int, int]:
    """Fills ``out``; how many values are not finite, and how many are beyond the clip."""
    lib, ffi = loaded
    counts = ffi.new("uint64_t[2]")
    lib.tacit_quantise(
        ffi.from_buffer("float[]", values),
        ffi.from_buffer("uint32_t[]", coinage),
        len(values),
        quantiser.clip,
        _scale(quantiser),
        quantiser.levels - 1,
        out.itemsize == 8,
        ffi.from_buffer("uint8_t[]", out, require_writable=True),
        counts,
    )
    return counts[0], counts[1]


def _quantise_numpy(
    quantiser: Quantiser, values: Floats, coinage: Coinage, out: Words
) -> tuple[int, int]:
    clip = quantiser.clip
    x = values.astype(np.float64)
    odd = len(x) - int(np.count_nonzero(np.isfinite(x)))
    if odd:
        return odd, 0
    beyond = int(np.count_nonzero(np.abs(x) > clip))
    if beyond:
        np.clip(x, -clip, clip, out=x)
    x += clip
    x *= _scale(quantiser)
    x += coinage * 2.0**-32
    np.floor(x, out=x)
    np.minimum(x, quantiser.levels - 1, out=x)
    out[:] = x
    return 0, beyond
