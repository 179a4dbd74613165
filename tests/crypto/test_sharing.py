"""Shares add up to the secret, and one of them says nothing of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.crypto.ring import Z32, Z64, Ring
from tacit.crypto.sharing import combine, share, share_bits

steady = settings(derandomize=True, deadline=None, max_examples=40)
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@given(ring=st.sampled_from([Z64, Z32]), shape=shapes, seed=st.binary(max_size=4))
@steady
def test_two_shares_are_the_secret_and_none_of_them_is(ring: Ring, shape, seed: bytes) -> None:
    secret = ring.uniform(Coins.from_seed(b"secret"), shape)
    first, second = share(secret, ring, Coins.from_seed(seed))
    assert first.dtype == second.dtype == ring.dtype and first.shape == second.shape == shape
    assert np.array_equal(combine(first, second), secret)
    added = (first.astype(object) + second.astype(object)) % 2**ring.bits
    assert np.array_equal(added, secret)


@given(shape=shapes, seed=st.binary(max_size=4))
@steady
def test_bits_are_shared_by_exclusive_or(shape, seed: bytes) -> None:
    secret = Coins.from_seed(b"secret").uint64(shape)
    first, second = share_bits(secret, Coins.from_seed(seed))
    assert first.shape == second.shape == shape
    assert np.array_equal(first ^ second, secret)


@pytest.mark.parametrize("ring", [Z64, Z32], ids=str)
@pytest.mark.parametrize("value", [0, 1, -1])
def test_each_share_alone_is_fair_whatever_the_secret(ring: Ring, value: int) -> None:
    """Ones at each place of 4096 shares: 5.9 sigma at 256 places would be a false alarm in 10^6, were coins not seeded."""
    secret = np.full(4096, value, np.int64).astype(ring.signed).view(ring.dtype)
    bits = share_bits(secret.astype(np.uint64), Coins.from_seed(b"b"))
    for one in (*share(secret, ring, Coins.from_seed(b"a")), *bits):
        ones = np.unpackbits(one.view(np.uint8).reshape(4096, -1), axis=1).sum(0, dtype=np.int64)
        assert (np.abs(ones - 2048) < 5.9 * 32).all()


def test_the_first_share_does_not_depend_on_the_secret() -> None:
    for shared in (lambda x, c: share(x, Z64, c), share_bits):
        first = [shared(np.full(9, v, np.uint64), Coins.from_seed(b"c"))[0] for v in (0, 7)]
        assert np.array_equal(*first)


def test_shares_of_other_shapes_or_rings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"uint64 \(3,\) and uint64 \(4,\)"):
        combine(Z64.zeros((3,)), Z64.zeros((4,)))
    with pytest.raises(ConfigError, match="one shape and ring"):
        combine(Z64.zeros((3,)), Z32.zeros((3,)))
    with pytest.raises(ConfigError, match="elements of"):
        share(np.zeros(3), Z64, Coins.from_seed(b"d"))
