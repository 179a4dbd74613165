"""Correlations from oblivious transfer: nobody helps, and the two parties pay in bytes.

Each party draws its share of the uniform fields. A derived field is a product of masks, ``(a0 + a1)(b0 + b1)``: each party
computes the product of its own shares, and both get shares of the two cross products, in which one party's bits choose
and the other's numbers are chosen (`tacit.parties.two_party.transfers`). Both directions run side by side.

For products of large matrices this is slow and large, as the paper's own figures are: 16 bytes and n numbers for every bit
of every element of a factor.

Source: Mohassel and Zhang, "SecureML" (IEEE S&P 2017), section 4.1.2; Gilboa (CRYPTO 1999); bits: Asharov et al. (CCS 2013),
section 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.crypto.bits import unpack_plane
from tacit.crypto.ring import Elements
from tacit.parties.pair import Channel
from tacit.parties.two_party.correlations import (
    CircuitMasks,
    Conv2d,
    Correlation,
    DaBits,
    Elementwise,
    FilterGradient,
    ImageGradient,
    Mask,
    Masks,
    Material,
    MatMul,
    Plan,
    Product,
    Scale,
    Selection,
    Square,
    all_masks,
    size_of,
    uniform,
)
from tacit.parties.two_party.dealer import NAME_BYTES
from tacit.parties.two_party.garbling import Garbling, prepare_garbling
from tacit.parties.two_party.schedule import schedule_of
from tacit.parties.two_party.session import OFFLINE, CheckedWire, Expected
from tacit.parties.two_party.transfers import (
    Sums,
    Transfers,
    begin,
    bit_products,
    correlated_sums,
)


class ByTransfer:
    """A party's side of preprocessing without a dealer.

    Args:
        channel: to the other party.
        party: 0 or 1.
        plan: the correlations.
        coins: for this party's masks and transfers.
        transfers: of the session, where there are some already.

    **Leaks**: nothing, to who follows the protocol (semi-honest).
    """

    def __init__(
        self,
        channel: Channel,
        party: int,
        plan: Plan,
        coins: Coins,
        transfers: Transfers | None = None,
    ) -> None:
        self.plan = plan
        self._party, self._coins = party, coins
        mine = np.frombuffer(coins.bytes(NAME_BYTES), np.uint8)
        wire = CheckedWire(channel)
        with wire.during(OFFLINE, "start"):
            self.transfers = transfers or begin(wire, party, coins)
            (theirs,) = wire.exchange(
                "name of the preprocessing", (mine,), [Expected((NAME_BYTES,), "u1")]
            )
        self.name = (mine ^ theirs).tobytes()
        self._masks = Masks(plan)

    def prepare(self, numbers: range) -> Sequence[Material]:
        """This party's part of these correlations, made with the other party."""
        out = []
        for number in numbers:
            with self.transfers.wire.during(OFFLINE, self.plan.name(number)):
                out.append(self._one(self.plan.correlations[number]))
            self._masks.done(number)
        return out

    def _one(self, correlation: Correlation) -> Material:
        ring, party = self.plan.ring, self._party
        if isinstance(correlation, Garbling):
            return prepare_garbling(self.transfers, correlation, self._coins)
        own = uniform(correlation.free(), ring, self._coins, party)
        self._masks.keep(correlation, own)
        match correlation:
            case Mask():
                pass
            case Product():
                own["c"] = self._product(correlation, own)
            case Square():
                own["c"] = self._square(own["a"])
            case Selection():
                own["r"], own["ra"] = self._selection(own["bits"], own["a"])
            case DaBits():
                own["r"] = self._bits(own["bits"], correlation.count)
            case CircuitMasks():
                own["products"] = self._ands(correlation, own)
            case _:
                raise ConfigError(f"oblivious transfer does not prepare {correlation}")
        return own

    def _product(self, triple: Product, own: Mapping[str, Elements]) -> Elements:
        ring = self.plan.ring
        a, b = triple.operands(own, self._masks)
        out = triple.op.apply(ring, a, b)
        match triple.op:
            case Elementwise():
                flat = [np.ascontiguousarray(part).reshape(-1, 1) for part in (a, b)]
                shape = flat[0].size, 1, 1
                crossed = self._crossed(shape, flat[0], flat[1][:, None], same=False)
                out += crossed.reshape(out.shape)
            case MatMul():
                out += self._matrices(a, b)
            case Conv2d(stride, padding):
                height, width = size_of(triple.right)[2:]
                seen = ring.patches(a, (height, width), stride=stride, padding=padding)
                n, rows, columns, k = seen.shape
                flat_b = np.ascontiguousarray(b.reshape(len(b), -1))
                crossed = self._matrices(flat_b, seen.reshape(-1, k).T)
                out += crossed.reshape(len(b), n, rows, columns).transpose(1, 0, 2, 3)
            case Scale():
                flat_a = np.ascontiguousarray(a).reshape(-1, 1)
                rows_b = np.ascontiguousarray(b)[:, None]
                shape = b.shape[0], 1, b.shape[1]
                crossed = self._crossed(shape, flat_a, rows_b, same=False)
                out += crossed.reshape(out.shape)
            case FilterGradient():
                seen, errors = triple.op.matrices(ring, a, b)
                out += self._matrices(errors, seen).reshape(out.shape)
            case ImageGradient():
                errors, filters = triple.op.matrices(a, b)
                crossed = self._matrices(errors, filters)
                out += triple.op.folded(ring, crossed, a.shape, b.shape)
            case _:
                raise ConfigError(f"oblivious transfer does not prepare products by {triple.op}")
        return out

    def _matrices(self, a: Elements, b: Elements) -> Elements:
        """This party's share of ``a0 b1 + a1 b0``; the smaller side's elements choose."""
        (m, k), n = a.shape, b.shape[1]
        if m <= n:
            return self._crossed((m, k, n), a, b[None])
        return self._crossed((n, k, m), b.T, a.T[None]).T

    def _crossed(
        self,
        shape: tuple[int, int, int],
        factors: Elements,
        numbers: Elements,
        *,
        same: bool = True,
    ) -> Elements:
        """Both parties' factors with the other's numbers, added."""
        sums = Sums(0, shape, same=same), Sums(1, shape, same=same)
        own = (factors, numbers) if self._party == 0 else (numbers, factors)
        first, second = correlated_sums(self.transfers, self.plan.ring, sums, own)
        total: Elements = first + second
        return total

    def _square(self, a: Elements) -> Elements:
        """``a0^2 + 2 a0 a1 + a1^2``."""
        flat = np.ascontiguousarray(a).reshape(-1, 1)
        sums = (Sums(0, (a.size, 1, 1), same=False),)
        own = (flat,) if self._party == 0 else (flat[:, None],)
        (crossed,) = correlated_sums(self.transfers, self.plan.ring, sums, own)
        out: Elements = a * a + (crossed + crossed).reshape(a.shape)
        return out

    def _selection(self, bits: Elements, a: Elements) -> tuple[Elements, Elements]:
        """With bit ``r0 ^ r1 = r0 + r1 - 2 r0 r1``: the bit, and ``r a0 + r a1``.

        Party 1's bit chooses party 0's ``-2 r0`` and ``a0 (1 - 2 r0)``; party 0's chooses party 1's ``a1 (1 - 2 r1)``.
        """
        ring, count = self.plan.ring, a.size
        bit = unpack_plane(bits, count)
        r = bit.astype(ring.dtype)
        turned = a - (r * a << ring.dtype.type(1))
        sums = Sums(1, (count, 1, 2), single=True, same=False), Sums(0, (count, 1, 1), single=True, same=False)  # fmt: skip
        if self._party == 0:
            pair = np.stack([-(r << ring.dtype.type(1)), turned], axis=1)[:, None]
            own = pair, bit[:, None]
        else:
            own = bit[:, None], turned[:, None, None]
        first, second = correlated_sums(self.transfers, ring, sums, own)
        return r + first[:, 0], r * a + first[:, 1] + second[:, 0]

    def _bits(self, bits: Elements, count: int) -> Elements:
        """The bit ``r0 + r1 - 2 r0 r1``: party 1's chooses party 0's ``-2 r0``."""
        ring = self.plan.ring
        bit = unpack_plane(bits, count)
        r = bit.astype(ring.dtype)
        sums = (Sums(1, (count, 1, 1), single=True, same=False),)
        own = -(r << ring.dtype.type(1))[:, None, None] if self._party == 0 else bit[:, None]
        (crossed,) = correlated_sums(self.transfers, ring, sums, (own,))
        return r + crossed[:, 0]

    def _ands(self, masks: CircuitMasks, own: Mapping[str, Elements]) -> Elements:
        """The products of two masks each: own with own, and both cross products where both parties have a share."""
        schedule, party = schedule_of(masks.circuit), self._party
        rows = all_masks(own, schedule.masks, party)
        left, right = rows[schedule.left], rows[schedule.right]
        out = left & right
        owner = np.repeat([0, 1, 2], schedule.masks)
        for chooser in (
            0,
            1,
        ):  # by the bits of its left mask; the other has a share of the right one
            needed = (owner[schedule.left] != 1 - chooser) & (owner[schedule.right] != chooser)
            mine = (left if party == chooser else right)[needed]
            if mine.size:
                out[needed] ^= bit_products(self.transfers, chooser, mine)
        return out
