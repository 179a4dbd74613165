"""Shamir's secret sharing of 16-byte secrets over the prime field of p = 2^61 - 1, many secrets and holders at once.

A secret is cut into `LIMBS` numbers below p (its bytes 0 to 5, 6 to 11 and 12 to 15, little-endian). Each is the value at
zero of a polynomial of its own of degree ``threshold - 1`` with uniform other coefficients, and the share of the holder at
the point x is the values at x. Any ``threshold`` shares of a secret give it back.

**Guarantee**: fewer shares than the threshold are independent of the secret, whatever who holds them can compute: their
joint distribution is uniform for every secret. Nothing tells a false share from a true one while there are just as many
shares as the threshold; with more, `find_wrong` can.

**Cost**: 24 bytes a share (61 bits a limb, kept in 64).

Source: Shamir, "How to share a secret" (CACM 1979); Gao, "A new algorithm for decoding Reed-Solomon codes" (2003).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, WireError
from tacit.crypto.kernels import Native, native

PRIME = (1 << 61) - 1
"""The field's prime. Points are 1 to ``PRIME - 1``."""

SECRET_BYTES = 16
"""Bytes of a secret."""

LIMBS = 3
"""Field elements of a secret, and of a share of it."""

Words = npt.NDArray[np.uint64]
Octets = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]

_CUTS = ((0, 6), (6, 12), (12, SECRET_BYTES))  # the bytes of each limb


def split(secrets: Octets, threshold: int, xs: Words, coins: Coins) -> Words:
    """Shares of every secret for every holder.

    Args:
        secrets: uint8 (s, `SECRET_BYTES`).
        threshold: how many shares give a secret back.
        xs: uint64 (h,), the holders' points: distinct, from 1 to ``PRIME - 1``.
        coins: for the other coefficients.

    Returns:
        uint64 (h, s, `LIMBS`).

    Raises:
        ConfigError: the threshold is not from 1 to h, the points are not distinct and in range, or a shape or dtype is
            another.
    """
    _expect("secrets", secrets, np.uint8, (None, SECRET_BYTES))
    _expect("points", xs, np.uint64, (None,))
    if not 1 <= threshold <= len(xs):
        raise ConfigError(f"a threshold from 1 to {len(xs)} holders expected, got {threshold}")
    _check_points(xs[None])
    count = len(secrets)
    coefficients = np.empty((threshold, count * LIMBS), np.uint64)
    coefficients[0] = _limbs(secrets).reshape(-1)
    coefficients[1:] = coins.below(PRIME, (threshold - 1, count * LIMBS))
    return _evaluate(coefficients, xs).reshape(len(xs), count, LIMBS)


def recover(shares: Words, xs: Words) -> tuple[Octets, Flags]:
    """The secrets of which these are shares, each from exactly as many shares as its threshold.

    Args:
        shares: uint64 (g, t, `LIMBS`), t shares of each of g secrets.
        xs: uint64 (g, t), the points of their holders, distinct in each row. Equal rows are computed once.

    Returns:
        The secrets, uint8 (g, `SECRET_BYTES`), and bool (g,), whether each is whole. A secret that is not is no secret of
        anyone: some of its shares are damaged, or t is too small. Chance damage of the first or second limb passes with
        probability 2^-13, of the third with 2^-29; damage that someone chose may always pass.

    Raises:
        WireError: a share is not below `PRIME`.
        ConfigError: the points are not distinct and in range, there are none, or a shape or dtype is another.
    """
    _expect("shares", shares, np.uint64, (None, None, LIMBS))
    _expect("points", xs, np.uint64, shares.shape[:2])
    if not xs.shape[1]:
        raise ConfigError("at least one share of each secret is needed, got none")
    _check_shares(shares)
    places: dict[bytes, int] = {}
    rows = np.array([places.setdefault(row.tobytes(), len(places)) for row in xs], np.intp)
    different = np.frombuffer(b"".join(places), np.uint64).reshape(len(places), xs.shape[1])
    _check_points(different)
    limbs = _combine(shares, _weights(different)[rows])
    bounds = np.array([1 << 8 * (stop - start) for start, stop in _CUTS], np.uint64)
    whole: Flags = np.all(limbs < bounds, axis=1)
    return _octets(limbs), whole


def find_wrong(shares: Words, xs: Words, threshold: int) -> Flags | None:
    """Which shares of one secret do not lie on the polynomials that the others agree on.

    Args:
        shares: uint64 (r, `LIMBS`), more than the threshold.
        xs: uint64 (r,), the points of their holders.
        threshold: how many shares give the secret back.

    Returns:
        bool (r,), true where any limb is wrong; None where no polynomials of degree below the threshold agree with all but
        ``(r - threshold) // 2`` shares. Where at most that many are wrong, it is exactly those that are found, whoever
        chose them; where more are, others may be blamed.

    Raises:
        WireError: a share is not below `PRIME`.
        ConfigError: the threshold is not from 1 to r - 1, the points are not distinct and in range, or a shape or dtype is
            another.

    **Cost**: in the order of r^2 products of Python integers, about a second for r = 500.
    """
    _expect("shares", shares, np.uint64, (None, LIMBS))
    _expect("points", xs, np.uint64, (len(shares),))
    if not 1 <= threshold < len(xs):
        raise ConfigError(
            f"a threshold from 1 to {len(xs) - 1}, below the number of shares, expected, got {threshold}"
        )
    _check_points(xs[None])
    _check_shares(shares)
    points: list[int] = xs.tolist()
    wrong = np.zeros(len(points), np.bool_)
    for limb in range(LIMBS):
        values: list[int] = shares[:, limb].tolist()
        found = _decode(values, points, threshold)
        if found is None:
            return None
        wrong |= [_value_at(found, x) != value for x, value in zip(points, values, strict=True)]
    return wrong if wrong.sum() <= (len(points) - threshold) // 2 else None


# --- what comes in


def _expect(
    name: str, array: npt.NDArray[Any], dtype: type[np.generic], shape: tuple[int | None, ...]
) -> None:
    fits = array.ndim == len(shape) and all(
        size in (None, here) for size, here in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ConfigError(
            f"{name}: {np.dtype(dtype)} of shape ({wanted}) expected, got {array.dtype} of {array.shape}"
        )


def _check_points(xs: Words) -> None:
    ordered = np.sort(xs, axis=1)
    if ordered.size and (ordered[:, 0].min() == 0 or ordered[:, -1].max() >= PRIME):
        raise ConfigError("points from 1 to 2^61 - 2 expected; the value at 0 is the secret")
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        raise ConfigError("distinct points expected: two shares at one point count as one")


def _check_shares(shares: Words) -> None:
    if (shares >= PRIME).any():
        raise WireError(
            "shares below 2^61 - 1 expected, one is not: who sent it does not follow the protocol"
        )


def _limbs(secrets: Octets) -> Words:
    """(..., `SECRET_BYTES`) as (..., `LIMBS`)."""
    padded = np.zeros((*secrets.shape[:-1], LIMBS, 8), np.uint8)
    for limb, (start, stop) in enumerate(_CUTS):
        padded[..., limb, : stop - start] = secrets[..., start:stop]
    return padded.view("<u8")[..., 0].astype(np.uint64)


def _octets(limbs: Words) -> Octets:
    """(..., `LIMBS`) as (..., `SECRET_BYTES`); bits that do not fit are lost."""
    padded = limbs.astype("<u8")[..., None].view(np.uint8)
    return np.concatenate(
        [padded[..., limb, : stop - start] for limb, (start, stop) in enumerate(_CUTS)], axis=-1
    )


# --- arithmetic: in C where it is built, else in numpy, with the same results


def _evaluate(coefficients: Words, xs: Words) -> Words:
    """Coefficients (t, columns), the lowest first, at the points (h,): (h, columns)."""
    built = native()
    if built is None:
        return _evaluate_numpy(coefficients, xs)
    return _evaluate_native(built, coefficients, xs)


def _combine(shares: Words, weights: Words) -> Words:
    """Shares (g, t, columns) times weights (g, t), summed over t: (g, columns)."""
    built = native()
    return (
        _combine_numpy(shares, weights)
        if built is None
        else _combine_native(built, shares, weights)
    )


def _weights(xs: Words) -> Words:
    """The factors (g, t) of values at the points (g, t) in the value at zero."""
    built = native()
    return _weights_numpy(xs) if built is None else _weights_native(built, xs)


def _evaluate_native(built: Native, coefficients: Words, xs: Words) -> Words:
    lib, ffi = built
    (t, columns), h = coefficients.shape, len(xs)
    out = np.empty((h, columns), np.uint64)
    lib.tacit_shamir_evaluate(_at(ffi, coefficients), t, columns, _at(ffi, xs), h, _at(ffi, out))
    return out


def _combine_native(built: Native, shares: Words, weights: Words) -> Words:
    lib, ffi = built
    g, t, columns = shares.shape
    out = np.empty((g, columns), np.uint64)
    lib.tacit_shamir_combine(_at(ffi, shares), _at(ffi, weights), g, t, columns, _at(ffi, out))
    return out


def _weights_native(built: Native, xs: Words) -> Words:
    lib, ffi = built
    out = np.empty(xs.shape, np.uint64)
    lib.tacit_shamir_weights(_at(ffi, xs), *xs.shape, _at(ffi, out))
    return out


def _at(ffi: Any, array: Words) -> Any:
    return ffi.from_buffer("uint64_t[]", np.ascontiguousarray(array))


_P, _61, _32, _29 = np.uint64(PRIME), np.uint64(61), np.uint64(32), np.uint64(29)
_LOW_32, _LOW_29 = np.uint64((1 << 32) - 1), np.uint64((1 << 29) - 1)
_TILE = 1 << 14  # numbers at a time: temporaries stay in the cache


def _fold(a: Words) -> Words:
    """Any 64 bits to at most 2^61 + 6: 2^61 = 1 modulo p."""
    return (a & _P) + (a >> _61)


def _reduce(a: Words) -> Words:
    """Any 64 bits to the value below p."""
    folded = _fold(a)
    reduced: Words = np.minimum(folded, folded - _P)  # below p the difference wraps around, past it
    return reduced


def _up_32(a: Words) -> Words:
    """Any 64 bits times 2^32, below 2^61 + 2^35."""
    return (a >> _29) + ((a & _LOW_29) << _32)


def _times(a: Words, b: Words, plus: Words | None = None) -> Words:
    """The product, plus a number below p, at most 2^61 + 6, of factors up to that; in halves of 32 and 29 bits."""
    a_low, a_high = a & _LOW_32, a >> _32
    b_low, b_high = b & _LOW_32, b >> _32
    out = _up_32(a_low * b_high + a_high * b_low)
    out += _fold(a_low * b_low)
    out += (a_high * b_high) << np.uint64(3)  # 2^64 = 8
    if plus is not None:
        out += plus
    return _fold(out)


def _evaluate_numpy(coefficients: Words, xs: Words) -> Words:
    columns = coefficients.shape[1]
    out = np.empty((len(xs), columns), np.uint64)
    width = max(1, _TILE // len(xs))
    for start in range(0, columns, width):
        part = coefficients[:, start : start + width]
        at = np.broadcast_to(part[-1], (len(xs), part.shape[1]))
        for row in part[-2::-1]:
            at = _times(at, xs[:, None], row)
        out[:, start : start + width] = _reduce(at)
    return out


def _combine_numpy(shares: Words, weights: Words) -> Words:
    g, t, columns = shares.shape
    out = np.empty((g, columns), np.uint64)
    height = max(1, _TILE // (t * columns))
    for start in range(0, g, height):
        products = _times(shares[start : start + height], weights[start : start + height, :, None])
        low = (products & _LOW_32).sum(1, dtype=np.uint64)
        high = (products >> _32).sum(1, dtype=np.uint64)
        out[start : start + height] = _reduce(low + _up_32(high))  # for t up to 2^31
    return out


def _weights_numpy(xs: Words) -> Words:
    g, t = xs.shape
    out = np.empty((g, t), np.uint64)
    height = max(1, _TILE // t)
    for start in range(0, g, height):
        part = xs[start : start + height]
        opposite: Words = _P - np.hstack([part, np.zeros((len(part), 1), np.uint64)])
        at = np.ones_like(opposite)  # and last, at zero, the product of all points
        for j in range(t):
            factor = _reduce(part[:, j : j + 1] + opposite)
            factor[:, j] = part[:, j]
            at = _times(at, factor)
        inverses = _inverse(_reduce(at[:, :-1]).reshape(-1)).reshape(part.shape)
        out[start : start + height] = _reduce(_times(inverses, at[:, -1:]))
    return out


def _inverse(a: Words) -> Words:
    """1 / a of public numbers (n,) that are not zero: one inversion for all (Montgomery's trick, as a tree)."""
    if len(a) == 1:
        return np.array([pow(int(a[0]), -1, PRIME)], np.uint64)
    whole = a if len(a) % 2 == 0 else np.append(a, np.uint64(1))
    left, right = whole[::2], whole[1::2]
    both = _inverse(_reduce(_times(left, right)))
    out = np.empty_like(whole)
    out[::2] = _times(both, right)
    out[1::2] = _times(both, left)
    return _reduce(out)[: len(a)]


# --- decoding, on Python integers; a polynomial is its coefficients, the lowest first, the last not zero

Polynomial = list[int]


def _decode(values: list[int], points: list[int], threshold: int) -> Polynomial | None:
    """The polynomial of degree below the threshold that differs from at most (r - threshold) // 2 of r values (Gao 2003)."""
    through, vanishing = _interpolate(values, points)
    before, now = vanishing, through
    factor_before: Polynomial = []
    factor: Polynomial = [1]
    while 2 * (len(now) - 1) >= len(points) + threshold:
        quotient, rest = _divide(before, now)
        before, now = now, rest
        factor_before, factor = factor, _minus(factor_before, _product(quotient, factor))
    found, rest = _divide(now, factor)
    return found if not rest and len(found) <= threshold else None


def _interpolate(values: list[int], points: list[int]) -> tuple[Polynomial, Polynomial]:
    """The polynomial of lowest degree through all values, and the one that is zero at all points (Newton)."""
    through: Polynomial = []
    vanishing: Polynomial = [1]
    for x, value in zip(points, values, strict=True):
        factor = (_value_at(through, x) - value) * pow(_value_at(vanishing, x), -1, PRIME) % PRIME
        through = _minus(through, [factor * one % PRIME for one in vanishing])
        vanishing = _minus([0, *vanishing], [x * one % PRIME for one in vanishing])
    return through, vanishing


def _value_at(polynomial: Polynomial, x: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * x + coefficient) % PRIME
    return value


def _minus(one: Polynomial, other: Polynomial) -> Polynomial:
    size = max(len(one), len(other))
    left, right = ([*given, *[0] * (size - len(given))] for given in (one, other))
    return _trimmed([(a - b) % PRIME for a, b in zip(left, right, strict=True)])


def _product(one: Polynomial, other: Polynomial) -> Polynomial:
    out = [0] * max(0, len(one) + len(other) - 1)
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            out[i + j] = (out[i + j] + a * b) % PRIME
    return _trimmed(out)


def _divide(one: Polynomial, other: Polynomial) -> tuple[Polynomial, Polynomial]:
    """Quotient and remainder of ``one`` by ``other``, which is not zero."""
    rest, size = list(one), len(other)
    quotient = [0] * max(0, len(one) - size + 1)
    leading = pow(other[-1], -1, PRIME)
    for place in reversed(range(len(quotient))):
        quotient[place] = factor = rest[place + size - 1] * leading % PRIME
        for j, b in enumerate(other):
            rest[place + j] = (rest[place + j] - factor * b) % PRIME
    return _trimmed(quotient), _trimmed(rest)


def _trimmed(polynomial: Polynomial) -> Polynomial:
    while polynomial and not polynomial[-1]:
        polynomial.pop()
    return polynomial
