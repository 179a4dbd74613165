"""What a network is computed with: the operations of two servers on shares, or the same ones in the clear.

`tacit.parties.two_party.network` is written once, over an `Engine`. `OnShares` is the protocol; `InTheClear` computes the
same integers from values that are known, for tests and as the plain fixed-point run that a protected one is compared with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tacit.core.coins import Coins
from tacit.crypto.bits import slice_bits, words_of
from tacit.crypto.circuits import leading_one_of_sum
from tacit.crypto.fixedpoint import FixedPoint, truncate_share
from tacit.crypto.ring import Elements
from tacit.parties.two_party import arithmetic, boolean, garbling
from tacit.parties.two_party.arithmetic import Factor, Fixed, Kept
from tacit.parties.two_party.boolean import Bits
from tacit.parties.two_party.correlations import Bilinear, Elementwise, MatMul, Part
from tacit.parties.two_party.session import Session

LEADING_BITS = 32
"""Bits of the numbers that `Engine.complement` takes; 2^31 is beyond its range."""

Flags = Any
"""One bit for each of an array's elements: `Bits` on shares, booleans in the clear."""


class Engine(Protocol):
    """Computes with ring elements: shares, or values."""

    @property
    def fixed(self) -> FixedPoint:
        """Ring and precision."""
        ...

    def within(self, layer: str) -> AbstractContextManager[None]:
        """Name what is done inside."""
        ...

    def product(self, op: Bilinear, left: Factor, right: Factor, name: str) -> Elements:
        """A bilinear product; its fraction is that of both operands together."""
        ...

    def square(self, values: Elements) -> Elements:
        """Squares, with twice the fraction."""
        ...

    def truncate(self, values: Elements, bits: int) -> Elements:
        """Divided by ``2^bits``, within one unit."""
        ...

    def add_public(self, values: Elements, known: Elements) -> Elements:
        """The sum with what everybody knows; it must have the values' shape, or be spread to it."""
        ...

    def positive(self, *values: Elements) -> Sequence[Flags]:
        """Where values are at least 0, in two's complement; of several arrays at once, in no more rounds."""
        ...

    def differ(self, first: Flags, second: Flags) -> Flags:
        """Where two flags differ."""
        ...

    def select(self, *pairs: tuple[Flags, Elements]) -> Sequence[Elements]:
        """Values where flags are set, else 0; of several pairs at once, in no more rounds."""
        ...

    def complement(self, values: Elements) -> Elements:
        """For each v of a vector, 0 < v < 2^31, the power of two with which it has 31 bits."""
        ...


def _joined(values: Sequence[Elements]) -> Elements:
    """Arrays one after another, each but the last filled up to whole words of 64 bits."""
    if len(values) == 1:
        return np.ascontiguousarray(values[0]).reshape(-1)
    parts: list[Elements] = []
    for of in values:
        parts += [of.reshape(-1), np.zeros(64 * words_of(of.size) - of.size, of.dtype)]
    return np.concatenate(parts[:-1])


def matmul(engine: Engine, left: Factor, right: Factor) -> Elements:
    """The product of two matrices."""
    return engine.product(MatMul(), left, right, "matmul")


def multiply(engine: Engine, left: Factor, right: Factor) -> Elements:
    """The product, element by element."""
    return engine.product(Elementwise(), left, right, "multiply")


@dataclass(frozen=True, slots=True)
class OnShares:
    """One server's side.

    Args:
        session: of this server.
        garbled: find signs by garbled circuits, as the paper does, instead of bit-sliced ones: 2 rounds instead of 6, for
            sessions with oblivious transfers.
    """

    session: Session
    garbled: bool = False

    @property
    def fixed(self) -> FixedPoint:
        """Ring and precision."""
        return self.session.fixed

    def within(self, layer: str) -> AbstractContextManager[None]:
        """Name what is done inside."""
        return self.session.within(layer)

    def product(self, op: Bilinear, left: Factor, right: Factor, name: str) -> Elements:
        """A bilinear product of shares."""
        return arithmetic.product(self.session, op, left, right, name)

    def square(self, values: Elements) -> Elements:
        """Squares."""
        return arithmetic.square(self.session, values)

    def truncate(self, values: Elements, bits: int) -> Elements:
        """Local truncation (`tacit.crypto.fixedpoint.truncate_share`)."""
        return arithmetic.truncate(self.session, values, bits)

    def add_public(self, values: Elements, known: Elements) -> Elements:
        """One server adds it."""
        return arithmetic.add_public(self.session, values, known)

    def positive(self, *values: Elements) -> list[Bits]:
        """The sign's opposite, shared."""
        sign = garbling.sign if self.garbled else boolean.sign
        planes = boolean.inverted(self.session, sign(self.session, _joined(values))).planes
        cuts = np.cumsum([words_of(of.size) for of in values])[:-1]
        parts = np.split(planes, cuts, axis=1)
        return [Bits(part, of.shape) for part, of in zip(parts, values, strict=True)]

    def differ(self, first: Bits, second: Bits) -> Bits:
        """The exclusive or."""
        return Bits(first.planes ^ second.planes, first.shape)

    def select(self, *pairs: tuple[Bits, Elements]) -> list[Elements]:
        """Shared values where shared bits are set."""
        values = _joined([values for _, values in pairs])
        planes = np.concatenate([flags.planes for flags, _ in pairs], axis=1)
        chosen = boolean.select(self.session, Bits(planes, values.shape), values)
        out, at = [], 0
        for _, of in pairs:
            out.append(chosen[at : at + of.size].reshape(of.shape))
            at += 64 * words_of(of.size)
        return out

    def complement(self, values: Elements) -> Elements:
        """By a circuit on the low bits of both shares.

        **Cost**: 11 rounds; garbled, 3.
        """
        session, count = self.session, len(values)
        low = slice_bits(np.ascontiguousarray(values.astype(np.uint32)))
        if self.garbled:
            circuit = leading_one_of_sum(LEADING_BITS, shallow=False)
            blocks = garbling.garbled(session, circuit, low, name="leading 1")
            planes = garbling.to_bits(garbling.Labels(blocks, (count,))).planes
        else:
            circuit = leading_one_of_sum(LEADING_BITS)
            planes = boolean.evaluate(session, circuit, low, name="leading 1")
        ones = boolean.each_from_bits(session, Bits(planes, (count,)))
        dtype = session.ring.dtype
        weights = dtype.type(1) << np.arange(len(planes), dtype=dtype)[::-1]
        total: Elements = (ones * weights[:, None]).sum(axis=0, dtype=dtype)
        return total


@dataclass(slots=True)
class InTheClear:
    """The same on values that are known.

    Truncation rounds to the nearest; with coins, it shares each value, truncates both shares as two servers do, and adds
    them: up or down at random, by the fraction that is cut off, and wrong altogether as often as theirs.

    Args:
        fixed: ring and precision.
        coins: for shares.
    """

    fixed: FixedPoint
    coins: Coins | None = None
    failures: float = field(default=0.0, init=False)
    """How many truncations of shares would be wrong altogether, on average, up to here."""

    @contextmanager
    def within(self, layer: str) -> Iterator[None]:
        """Nothing is booked."""
        del layer
        yield

    def product(self, op: Bilinear, left: Factor, right: Factor, name: str) -> Elements:
        """A bilinear product."""
        del name
        sides = []
        for of in (left, right):
            if isinstance(of, Kept) and of.fixed is None:
                rows = of.shape[0]
                nothing = np.empty(0, of.share.dtype)
                of.fixed = Fixed(Part(of.name, of.shape, 0, rows), of.share, nothing, nothing)
            sides.append(of.share if isinstance(of, Kept | Fixed) else of)
        return op.apply(self.fixed.ring, *sides)

    def square(self, values: Elements) -> Elements:
        """Squares."""
        out: Elements = values * values
        return out

    def truncate(self, values: Elements, bits: int) -> Elements:
        """To the nearest, or as shares are."""
        ring = self.fixed.ring
        signed = values.view(ring.signed)
        self.failures += float(np.abs(signed.astype(np.float64)).sum()) * 2.0**-ring.bits
        if self.coins is None:
            half = ring.signed.type((1 << bits) >> 1)
            rounded: Elements = ((signed + half) >> ring.signed.type(bits)).view(ring.dtype)
            return rounded
        first = ring.uniform(self.coins, values.shape)
        out: Elements = truncate_share(first, bits, 0) + truncate_share(values - first, bits, 1)
        return out

    def add_public(self, values: Elements, known: Elements) -> Elements:
        """The sum."""
        out: Elements = values + known
        return out

    def positive(self, *values: Elements) -> list[npt.NDArray[np.bool_]]:
        """Where values are at least 0."""
        return [of.view(self.fixed.ring.signed) >= 0 for of in values]

    def differ(
        self, first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        """Where two flags differ."""
        return first ^ second

    def select(self, *pairs: tuple[npt.NDArray[np.bool_], Elements]) -> list[Elements]:
        """Values where flags are set."""
        return [np.where(flags, values, values.dtype.type(0)) for flags, values in pairs]

    def complement(self, values: Elements) -> Elements:
        """The power of two with which each has 31 bits; 0 for 0."""
        low = values.astype(np.uint32).view(np.int32)
        _, length = np.frexp(np.maximum(low, 0).astype(np.float64))
        dtype = self.fixed.ring.dtype
        out: Elements = np.where(
            low > 0,
            np.left_shift(dtype.type(1), (LEADING_BITS - 1 - length).astype(dtype)),
            dtype.type(0),
        )
        return out
