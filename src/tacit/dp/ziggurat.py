"""Normal noise in floats, drawn from `Coins` by the ziggurat: for comparison, see `tacit.dp.noise.GaussianKind`.

Half of the bell, to infinity, is covered by 256 layers of one area: layer 0 is a strip along the whole axis with the tail,
the others are rectangles from 0 to x_i, of which the part below x_{i+1} lies under the curve. A word's low 8 bits choose a
layer, one the sign, and the high 23 a fraction u of x_i; u x_i is accepted as it stands if it is below x_{i+1}, as 98.8 %
are. Otherwise a second uniform number decides; what it rejects, and the tail, are drawn by the inverse of the distribution
function.

**Not private as floats go**: a draw has 2^23 values in its layer, and its product with a deviation is rounded. What is
released can betray by its last bits what the noise was added to. Time tells of rejections, as in `tacit.dp.discrete`.

Source: Marsaglia, Tsang, "The ziggurat method for generating random variables", Journal of Statistical Software 5(8),
2000 (recalled).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from tacit.core.coins import Coins
from tacit.crypto.kernels import native

_LAYERS = 256
_FRACTION = 23  # bits
_SPAN = 1 << 17  # draws made together, so that they and their words stay in a cache
_END, _AREA = 3.6541528853610088, 4.92867323399e-3  # where the tail begins, and a layer's area

Floats = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint32]


class Layers(NamedTuple):
    """The layers.

    Args:
        ends: x_i, (257,): where they end; the last is 0.
        heights: of the curve there, (257,).
        widths: x_i / 2^23 in float32, (256,).
        limits: fractions below them are accepted as they stand, (256,) uint32.
    """

    ends: Floats
    heights: Floats
    widths: npt.NDArray[np.float32]
    limits: npt.NDArray[np.uint32]


@cache
def cover() -> Layers:
    """The layers, made once."""
    ends = np.zeros(_LAYERS + 1)
    ends[:2] = _AREA / np.exp(-(_END**2) / 2), _END
    for i in range(1, _LAYERS - 1):
        ends[i + 1] = np.sqrt(-2 * np.log(_AREA / ends[i] + np.exp(-(ends[i] ** 2) / 2)))
    scale = 2.0**_FRACTION
    return Layers(
        ends=ends,
        heights=np.exp(-(ends**2) / 2),
        widths=(ends[:-1] / scale).astype(np.float32),
        limits=(ends[1:] / ends[:-1] * scale).astype(np.uint32),
    )


def normal(coins: Coins, count: int) -> npt.NDArray[np.float32]:
    """Standard normal numbers, float32, (count,).

    Args:
        coins: where they come from.
        count: how many, not negative.

    Cost: 4 bytes of coins a number, and 8 to 16 for each of 1.2 in 100.
    """
    out = np.empty(count, np.float32)
    for start in range(0, count, _SPAN):
        part = out[start : start + _SPAN]
        words = np.empty(len(part), np.uint32)
        coins.fill(words.view(np.uint8))
        left = _attempt(coins, words, part)
        last, u = words[left], coins.unit(len(left))
        tail = (last & (_LAYERS - 1)) == 0
        drawn = ndtri(np.where(tail, u * ndtr(-_END), u))
        part[left] = np.where(tail & ((last & _LAYERS) > 0), -drawn, drawn)
    return out


def _attempt(coins: Coins, words: Words, out: npt.NDArray[np.float32]) -> Words:
    """Fills ``out`` with the words' numbers; the places of those that are rejected, or in the tail."""
    layers, loaded = cover(), native()
    if loaded is None:
        index, fraction = words & (_LAYERS - 1), words >> (32 - _FRACTION)
        np.multiply(fraction.astype(np.float32), layers.widths[index], out=out)
        np.negative(out, out=out, where=(words & _LAYERS) > 0)
        places = np.flatnonzero(fraction >= layers.limits[index]).astype(np.uint32)
        layer = index[places]
        x = fraction[places] * layers.ends[layer] * 2.0**-_FRACTION
        low, high = layers.heights[layer], layers.heights[layer + 1]
        level = low + (coins.uint64(len(places)) >> np.uint64(11)) * 2.0**-53 * (high - low)
        refused: npt.NDArray[np.bool_] = (layer == 0) | (level >= np.exp(-(x * x) / 2))
        return places[refused]
    lib, ffi = loaded
    places, rejected = np.empty(len(words), np.uint32), np.empty(len(words), np.uint32)
    found = lib.tacit_ziggurat(
        ffi.from_buffer("uint32_t[]", words), len(words), ffi.from_buffer("float[]", layers.widths),
        ffi.from_buffer("uint32_t[]", layers.limits), ffi.from_buffer("float[]", out, require_writable=True),
        ffi.from_buffer("uint32_t[]", places, require_writable=True),
    )  # fmt: skip
    lost = lib.tacit_ziggurat_decide(
        ffi.from_buffer("uint32_t[]", words), ffi.from_buffer("uint32_t[]", places), found,
        ffi.from_buffer("uint64_t[]", coins.uint64(found)), ffi.from_buffer("double[]", layers.ends),
        ffi.from_buffer("double[]", layers.heights), ffi.from_buffer("uint32_t[]", rejected, require_writable=True),
    )  # fmt: skip
    return rejected[:lost]
