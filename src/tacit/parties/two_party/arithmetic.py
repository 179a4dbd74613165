"""Arithmetic on additive shares: sums cost nothing, a product costs one opening of masked operands.

Each function is run by both parties at the same time, each with its own share, and gives each its share of the result.

With masks a and b and their product c, all shared, ``e = x - a`` and ``f = y - b`` are opened, and
``x y = e f + e b + a f + c``, which is linear in what is shared. Opened values are uniform, since each mask is used once; an
operand that stays the same is masked and opened once (`fix`), and its products open the other operand alone.

Source: Beaver (CRYPTO 1991); Mohassel and Zhang, "SecureML" (IEEE S&P 2017), sections 2.3, 4.1 and 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.crypto.fixedpoint import truncate_share
from tacit.crypto.ring import Elements
from tacit.parties.two_party.correlations import (
    Bilinear,
    Conv2d,
    Elementwise,
    Mask,
    MatMul,
    Operand,
    Part,
    Product,
    Size,
    Square,
)
from tacit.parties.two_party.session import Expected, Session

SEED_BYTES = 32


def share_input(session: Session, owner: int, values: Elements | Size) -> Elements:
    """A party's private input, shared.

    Args:
        session: of this party.
        owner: the party that has it.
        values: the input, ring elements; of the other party its shape.

    **Leaks**: nothing. **Cost**: one message of 32 bytes from the owner: a seed, from which the other draws its share.
    """
    if owner not in (0, 1):
        raise ConfigError(f"party 0 or 1 expected, got {owner}")
    with session.step("share input") as step:
        if session.party != owner:
            shape = values.shape if isinstance(values, np.ndarray) else values
            (seed,) = step.recv(Expected((SEED_BYTES,), "u1"))
            return session.ring.uniform(_expanded(session, seed.tobytes()), shape)
        if not isinstance(values, np.ndarray):
            raise ConfigError("the owner of an input must give its values")
        key = session.coins.bytes(SEED_BYTES)
        step.send(np.frombuffer(key, np.uint8))
        theirs = session.ring.uniform(_expanded(session, key), values.shape)
        own: Elements = session.ring.require(values) - theirs
        return own


def _require(session: Session, *shares: Elements) -> None:
    """Refuse what is not in the session's ring before anything is sent: its difference to a mask would not be uniform."""
    for share in shares:
        if session.ring.require(share, "a share").ndim == 0:
            raise ConfigError("a share without dimensions: give it one, of size 1")


def open_to_both(session: Session, *shares: Elements) -> tuple[Elements, ...]:
    """The values of shares.

    **Leaks**: the values, to both. **Cost**: 1 round, an element each way for each value.
    """
    _require(session, *shares)
    with session.step("open") as step:
        return step.opened(*shares)


def open_to(session: Session, party: int, *shares: Elements) -> tuple[Elements, ...] | None:
    """The values of shares, to one party; the other gets None.

    **Leaks**: the values, to that party. **Cost**: 1 round, an element one way for each value.
    """
    _require(session, *shares)
    if party not in (0, 1):
        raise ConfigError(f"party 0 or 1 expected, got {party}")
    with session.step("open to one") as step:
        if session.party != party:
            step.send(*shares)
            return None
        theirs = step.recv(*(Expected(share.shape, share.dtype.str) for share in shares))
        return tuple(mine + other for mine, other in zip(shares, theirs, strict=True))


def _expanded(session: Session, key: bytes) -> Coins:
    return Coins.expanding(key, seeded=session.coins.seeded)


def add_public(session: Session, share: Elements, values: Elements) -> Elements:
    """A share of the sum with values that both know: one party adds them."""
    return share + values if session.party == 0 else share


# --- products


@dataclass(frozen=True, slots=True)
class Fixed:
    """An operand that stays the same for many products: its mask was opened once (`fix`).

    Args:
        part: which rows, of which mask.
        share: this party's share of the operand.
        opened: the operand less its mask, which both know.
        mask: this party's share of the mask.
    """

    part: Part
    share: Elements = field(repr=False)
    opened: Elements = field(repr=False)
    mask: Elements = field(repr=False)

    def rows(self, start: int, stop: int) -> Fixed:
        """Some of the rows, for instance a batch."""
        if self.part.transposed:
            raise ConfigError("take the rows before you transpose")
        first = self.part.start
        part = replace(self.part, start=int(first + start), stop=int(first + stop))
        return Fixed(part, *(of[start:stop] for of in (self.share, self.opened, self.mask)))

    @property
    def transposed(self) -> Fixed:
        """The transposed matrix."""
        part = replace(self.part, transposed=not self.part.transposed)
        return Fixed(part, self.share.T, self.opened.T, self.mask.T)


@dataclass(slots=True)
class Kept:
    """An operand of several products, in this party's part: its first product masks and opens it, the others use that again.

    A matrix of weights, for instance, which a network multiplies with going forward and back.

    Args:
        name: no other fixed operand of the session has it.
        share: this party's share of the operand.
    """

    name: str
    share: Elements = field(repr=False)
    fixed: Fixed | None = None

    @property
    def shape(self) -> Size:
        """Of the operand."""
        return self.share.shape

    @property
    def transposed(self) -> Fixed:
        """The transposed matrix.

        Raises:
            ConfigError: there was no product yet.
        """
        if self.fixed is None:
            raise ConfigError(f"{self.name} is transposed before its first product")
        return self.fixed.transposed


Factor = Elements | Kept | Fixed


def fix(session: Session, name: str, share: Elements) -> Fixed:
    """Mask an operand that stays the same, once for all its products.

    Args:
        session: of this party.
        name: no other fixed operand of the session has it.
        share: of the operand.

    **Leaks**: nothing: the opened value is uniform. **Cost**: 1 round, an element each way for each element.

    **Source**: SecureML, section 4.2: the data are masked once for all epochs.
    """
    _require(session, share)
    with session.step("fix", Mask(name, share.shape)) as step:
        mask = step.material["a"]
        (opened,) = step.opened(share - mask)
        return _fixed(name, share, opened, mask)


def _fixed(name: str, share: Elements, opened: Elements, mask: Elements) -> Fixed:
    return Fixed(Part(name, share.shape, 0, share.shape[0]), share, opened, mask)


def product(session: Session, op: Bilinear, left: Factor, right: Factor, name: str) -> Elements:
    """A bilinear product of two shared operands; `multiply`, `matmul` and `conv2d` are this.

    **Leaks**: nothing: what is opened is uniform.

    **Cost**: 1 round, none if both operands are fixed; an element each way for each element of the operands that are not.
    """
    ring = session.ring
    sides = [of.fixed or of if isinstance(of, Kept) else of for of in (left, right)]
    fresh = {
        key: of.share if isinstance(of, Kept) else of
        for key, of in zip("ab", sides, strict=True)
        if not isinstance(of, Fixed)
    }
    _require(session, *fresh.values())
    with session.step(name, Product(op, *map(_operand, sides))) as step:
        material = step.material
        opened = dict(
            zip(
                fresh,
                step.opened(*(share - material[key] for key, share in fresh.items()))
                if fresh
                else (),
                strict=True,
            )
        )
        for key, of in zip("ab", sides, strict=True):
            if isinstance(of, Kept):
                of.fixed = _fixed(of.name, of.share, opened[key], material[key])
        (a, e), (b, f) = (
            (of.mask, of.opened) if isinstance(of, Fixed) else (material[key], opened[key])
            for key, of in zip("ab", sides, strict=True)
        )
        if session.party == 0:
            b = b + f  # e f + e b
        out = op.apply(ring, e, b)
        out += op.apply(ring, a, f)
        out += material["c"]
        return out


def _operand(factor: Factor) -> Operand:
    match factor:
        case Fixed():
            return factor.part
        case Kept():
            return Mask(factor.name, factor.shape)
        case _:
            return factor.shape


def multiply(session: Session, left: Factor, right: Factor) -> Elements:
    """The product, element by element, of two shared arrays of one shape."""
    return product(session, Elementwise(), left, right, "multiply")


def matmul(session: Session, left: Factor, right: Factor) -> Elements:
    """The product of two shared matrices."""
    return product(session, MatMul(), left, right, "matmul")


def conv2d(
    session: Session, images: Factor, filters: Factor, *, stride: int = 1, padding: int = 0
) -> Elements:
    """The cross-correlation of shared images and filters (`tacit.crypto.ring.Ring.conv2d`)."""
    return product(session, Conv2d(stride, padding), images, filters, "conv2d")


def square(session: Session, share: Elements) -> Elements:
    """The squares of shared values.

    **Leaks**: nothing. **Cost**: 1 round, an element each way for each value: half of `multiply`.
    """
    _require(session, share)
    with session.step("square", Square(share.shape)) as step:
        (opened,) = step.opened(share - step.material["a"])
        twice = step.material["a"] + step.material["a"]
        if session.party == 0:
            twice += opened
        out: Elements = opened * twice
        out += step.material["c"]
        return out


def truncate(session: Session, share: Elements, bits: int | None = None) -> Elements:
    """A shared value divided by ``2^bits``, the fraction by default, without a word: almost always within one unit.

    `tacit.crypto.fixedpoint.truncate_share` says when and how often not; `tacit.parties.two_party.boolean.truncate_exactly`
    is exact and costs rounds.
    """
    return truncate_share(share, session.fixed.fraction if bits is None else bits, session.party)
