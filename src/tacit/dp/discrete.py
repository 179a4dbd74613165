"""The discrete Gaussian on the integers, P(x) proportional to exp(-x^2 / (2 s^2)), drawn from `Coins` by exact rejection.

The area under f(x) = exp(-x^2 / (2 s^2)) is covered with 2^15 rectangles of one area. The middle, to about 3 s on either
side, is cut into blocks of w integers, w the largest power of two that is at most s / 64; the tails, to about 13.5 s, into
blocks of W, the largest power of two that is at most s / 8. Over each block stand rectangles of height H (in the tails H
w / W) up to where they cover f. One draw:

1. Fifteen bits choose a rectangle, log2 w bits a place x in its block.
2. A rectangle that lies under f is accepted as it stands: 24 draws of 25 end here.
3. Otherwise a fresh uniform u chooses the height within the rectangle, and x is accepted if that point lies under f. The
   comparison is made in float64 with a margin far above its error; where it does not decide (once in about 2^32 draws) u
   gets 128 bits more and f is computed to 80 digits.
4. What is rejected, about 2 draws of 100, is replaced by the next of some spare draws.

So the law is that of the discrete Gaussian between the ends of the tails, but for the comparison's last bits:
``DiscreteGaussian.distance`` bounds both. C and numpy draw the same from the same coins: what the last bits of exp could
decide is decided by decimals.

**Not constant time**: the time of a call depends on how many draws were rejected, and memory is read at places that
depend on the coins. Who can time the draws finely learns about the noise; a release is timed as a whole at most.

Source: Canonne, Kamath, Steinke, "The discrete Gaussian for differential privacy" (NeurIPS 2020), definition 1; the cover
with rectangles is that of Ahrens, "Sampling from general distributions by suboptimal division of domains" (1993), made
exact.
"""

from __future__ import annotations

import decimal
import math
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.crypto.kernels import Native, native

Integers = npt.NDArray[np.int64]
Words = npt.NDArray[np.unsignedinteger[Any]]
Places = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float64]

LEAST, MOST = 0.3, 2.0**40  # deviations

_INDEX = 15  # bits: a rectangle's number
_RECTANGLES = 1 << _INDEX
_CORE, _END = 3.0, 13.5  # deviations: where the tails begin and end
_CLOSE = 2.0**-28  # of a rectangle's height: the margin of the float comparison
_SLACK = 2.0**-40  # above the relative error of f in float64, which is below 2^-45
_EXACT = decimal.Context(prec=80)
_SPAN = (
    1 << 15
)  # draws made together: they, their words and the table stay in the second-level cache


class _Cover(NamedTuple):
    """The rectangles: those under f, then the others of the middle, then those of the tails.

    Args:
        blocks: of each, the block's number, (2^15,): its first integer over its width.
        levels: of each, how many rectangles are below it in its block, (2^15,).
        sure: how many lie under f.
        tails: the number of the first in the tails.
        low: log2 of a block's width in the middle.
        more: log2 of how much wider the tails' blocks are.
        height: of a rectangle in the middle.
        end: the integers from -end to end - 1 are covered.
    """

    blocks: npt.NDArray[np.int16]
    levels: npt.NDArray[np.float64]
    sure: int
    tails: int
    low: int
    more: int
    height: float
    end: int


def _log2_width(size: float) -> int:
    """Log2 of the largest power of two that is at most ``size``, and at least 1."""
    return max(0, math.frexp(size)[1] - 1)


@lru_cache(maxsize=32)
def _cover(s: float) -> _Cover:
    low, wide = _log2_width(s / 64), _log2_width(s / 8)
    core = math.ceil(_CORE * s / 2**wide)  # in blocks of the tails
    end = math.ceil(_END * s / 2**wide)
    middle = np.arange(-core << wide - low, core << wide - low)
    outer = np.concatenate([np.arange(-end, -core), np.arange(core, end)])
    block = np.concatenate([middle, outer])
    width = np.repeat([2.0**low, 2.0**wide], [len(middle), len(outer)])
    first, last = block * width, (block + 1) * width - 1
    nearest, farthest = np.where(block < 0, (last, first), (first, last))
    top, bottom = (np.exp(-((x / s) ** 2) / 2) for x in (nearest, farthest))

    def counts(height: float) -> npt.NDArray[np.int64]:
        found: npt.NDArray[np.int64] = (top * width * ((1 + _SLACK) / (height * 2**low))).astype(np.int64) + 1  # fmt: skip
        return found

    few, many = 8.0 * float(top @ width) / (_RECTANGLES * 2**low), 0.0
    while few - many > 1e-9 * few:
        height = (few + many) / 2
        many, few = (many, height) if counts(height).sum() <= _RECTANGLES else (height, few)
    count = counts(few)
    blocks = np.repeat(block, count)
    levels = np.arange(len(blocks)) - np.repeat(np.cumsum(count) - count, count)
    tail = np.repeat(np.arange(len(block)) >= len(middle), count)
    under = ~tail & ((levels + 1) * few <= np.repeat(bottom, count) * (1 - _SLACK))
    order = np.argsort(np.where(tail, 2, np.where(under, 0, 1)), kind="stable")
    # what is left of the table stands above f in the last block: always rejected
    spare = _RECTANGLES - len(blocks)
    return _Cover(
        blocks=np.pad(blocks[order], (0, spare), mode="edge").astype(np.int16),
        levels=np.pad(levels[order].astype(np.float64), (0, spare), constant_values=_RECTANGLES),
        sure=int(under.sum()),
        tails=len(blocks) - int(tail.sum()),
        low=low,
        more=wide - low,
        height=few,
        end=end << wide,
    )


@dataclass(frozen=True, slots=True)
class DiscreteGaussian:
    """The discrete Gaussian on the integers around 0.

    Args:
        deviation: s, from 0.3 to 2^40. The standard deviation is below s by a share of about
            4 pi^2 s^2 exp(-2 pi^2 s^2): 5e-18 at s = 1.5.

    Raises:
        ConfigError: the deviation is out of its range.
    """

    deviation: float
    _table: _Cover = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not LEAST <= self.deviation <= MOST:
            raise ConfigError(f"a deviation from {LEAST} to 2^40 expected, got {self.deviation}")
        object.__setattr__(self, "_table", _cover(float(self.deviation)))

    @property
    def reach(self) -> int:
        """No draw is larger in size."""
        return self._table.end

    @property
    def distance(self) -> float:
        """A bound on the statistical distance of one draw from the exact law: the cut tails, and 2^-160 for comparisons.

        Beyond the end R, f falls by exp(-R / s^2) or more from each integer to the next, so that the mass there is at
        most 2 f(R) / (1 - exp(-R / s^2)), of a whole that is at least s sqrt(2 pi) and at least 1.
        """
        s, end = self.deviation, self._table.end
        beyond = 2 * math.exp(-((end / s) ** 2) / 2) / -math.expm1(-end / s**2)
        return beyond / max(1.0, s * math.sqrt(2 * math.pi)) * (1 + _SLACK) + 2.0**-160

    def draw(self, coins: Coins, count: int) -> Integers:
        """``count`` independent draws.

        Raises:
            ConfigError: the count is negative.

        **Guarantee**: each within ``distance`` of the law, as long as the coins are uniform.

        **Cost**: 4 bytes of coins a draw below a deviation of 2^24, 8 from there on, and 8 for each that step 3 decides,
        3 to 4 in 100; and 3 draws in 100, and 16, to spare.
        """
        if count < 0:
            raise ConfigError(f"a count must not be negative, got {count}")
        out = np.empty(count + _spare(min(count, _SPAN)), np.int64)
        for start in range(0, count, _SPAN):
            size = min(_SPAN, count - start)
            # with spare draws, which the next part overwrites
            part = out[start : start + size + _spare(size)]
            rejected = self._attempt(coins, part)
            cut = int(np.searchsorted(rejected, size))
            holes, spare = rejected[:cut], np.delete(part[size:], rejected[cut:] - size)
            filled = min(len(holes), len(spare))
            part[holes[:filled]] = spare[:filled]
            if filled < len(holes):
                part[holes[filled:]] = self.draw(coins, len(holes) - filled)
        return out[:count]

    def _attempt(self, coins: Coins, out: Integers) -> Places:
        """Steps 1 to 3 for all of ``out``; the places, ascending, that are rejected."""
        loaded, wide = native(), _INDEX + self._table.low > 32
        words: Words = np.empty(len(out), np.uint64) if wide else np.empty(len(out), np.uint32)
        coins.fill(words.view(np.uint8))
        if loaded is None:
            places = _propose_numpy(self._table, words, out)
        else:
            places = _propose_native(loaded, self._table, words, out)
        fresh = coins.uint64(len(places))
        if loaded is None:
            out[places], gap = self._gaps(words[places], fresh)
            close = np.flatnonzero(np.abs(gap) <= _CLOSE).astype(np.uint32)
            rejected = places[gap < -_CLOSE]
        else:
            close, rejected = self._decide_native(loaded, words, places, fresh, out)
        lost = []
        for i in close.tolist():
            place = int(places[i])
            u = (int(fresh[i]) >> 3 << 128) + int.from_bytes(coins.bytes(16), "little")
            if not self._exactly(int(out[place]), int(words[place] & (_RECTANGLES - 1)), u):
                lost.append(place)
        return np.sort(np.append(rejected, lost)) if lost else rejected

    def _gaps(self, words: Words, fresh: npt.NDArray[np.uint64]) -> tuple[Integers, Floats]:
        """Step 3: the integer of each word, and by how much f is above the point that is drawn in its rectangle."""
        table = self._table
        index = (words & (_RECTANGLES - 1)).astype(np.int64)
        place = (words >> _INDEX).astype(np.int64) & ((1 << table.low) - 1)
        extra = (fresh & np.uint64(7)).astype(np.int64) & ((1 << table.more) - 1)
        more = np.where(index >= table.tails, table.more, 0)
        first = table.blocks[index].astype(np.int64) << (table.low + more)
        x = first + np.where(more > 0, place << table.more | extra, place)
        scaled = np.exp(-((x / self.deviation) ** 2) / 2) * (2.0**more / table.height)
        return x, scaled - table.levels[index] - (fresh >> np.uint64(3)) * 2.0**-61

    def _decide_native(
        self,
        loaded: Native,
        words: Words,
        places: Places,
        fresh: npt.NDArray[np.uint64],
        out: Integers,
    ) -> tuple[Places, Places]:
        """Step 3 in C: those of ``places`` that are too close to tell, and the places that are rejected."""
        (lib, ffi), table = loaded, self._table
        rejected, close = np.empty(len(places) + 1, np.uint32), np.empty(len(places) + 1, np.uint32)
        closes = ffi.new("size_t *")
        lost = lib.tacit_gaussian_decide(
            ffi.from_buffer(words), words.itemsize == 8, ffi.from_buffer("uint32_t[]", places), len(places),
            ffi.from_buffer("uint64_t[]", fresh), ffi.from_buffer("int16_t[]", table.blocks),
            ffi.from_buffer("double[]", table.levels), _INDEX, table.low, table.more, table.tails, self.deviation,
            table.height, _CLOSE, ffi.from_buffer("int64_t[]", out, require_writable=True),
            ffi.from_buffer("uint32_t[]", rejected, require_writable=True),
            ffi.from_buffer("uint32_t[]", close, require_writable=True), closes,
        )  # fmt: skip
        return close[: closes[0]], rejected[:lost]

    def _exactly(self, x: int, index: int, u: int) -> bool:
        """Whether f(x) is above the point at ``u`` / 2^189 of that rectangle's height, by decimals of 80 digits."""
        table = self._table
        with decimal.localcontext(_EXACT):
            height = Decimal(table.height) / (1 << table.more if index >= table.tails else 1)
            f = (-(Decimal(x) ** 2) / (2 * Decimal(self.deviation) ** 2)).exp()
            return f > (int(table.levels[index]) + Decimal(u) / (1 << 189)) * height


def _spare(size: int) -> int:
    """How many more are drawn, to take the places of the rejected."""
    return size // 32 + 16


def _propose_native(loaded: Native, table: _Cover, words: Words, out: Integers) -> Places:
    """Fills ``out``; the places whose rectangles are not under f."""
    lib, ffi = loaded
    places = np.empty(len(words), np.uint32)
    found = lib.tacit_gaussian_propose(
        ffi.from_buffer(words),
        words.itemsize == 8,
        len(words),
        ffi.from_buffer("int16_t[]", table.blocks),
        _INDEX,
        table.low,
        table.sure,
        ffi.from_buffer("int64_t[]", out, require_writable=True),
        ffi.from_buffer("uint32_t[]", places, require_writable=True),
    )
    return places[:found]


def _propose_numpy(table: _Cover, words: Words, out: Integers) -> Places:
    index = words & (_RECTANGLES - 1)
    np.left_shift(table.blocks[index], table.low, out=out, dtype=np.int64)
    out |= ((words >> _INDEX) & ((1 << table.low) - 1)).astype(np.int64)
    return np.flatnonzero(index >= table.sure).astype(np.uint32)
