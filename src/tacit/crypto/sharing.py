"""Additive shares: two uniform ring elements, or bits, whose sum or exclusive or is the secret.

Whoever holds one share holds a uniform value, whatever the secret is.

Source: Mohassel and Zhang, "SecureML" (IEEE S&P 2017), section 2.3.
"""

from __future__ import annotations

import numpy as np

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.crypto.ring import Elements, Ring

Shares = tuple[Elements, Elements]


def share(values: Elements, ring: Ring, coins: Coins) -> Shares:
    """Shares whose sum is the values; each of the same shape.

    **Guarantee**: each share alone is uniform and independent of the values.
    """
    first = ring.uniform(coins, ring.require(values).shape)
    return first, values - first


def combine(first: Elements, second: Elements) -> Elements:
    """The values of two shares.

    Raises:
        ConfigError: the shares do not fit each other.
    """
    if first.shape != second.shape or first.dtype != second.dtype:
        raise ConfigError(
            f"two shares of one shape and ring expected, got {first.dtype} {first.shape} and {second.dtype} {second.shape}"
        )
    total: Elements = first + second
    return total


def share_bits(planes: Elements, coins: Coins) -> Shares:
    """Shares of bit vectors, whose exclusive or is the vector (`tacit.crypto.circuits.Planes`)."""
    first = coins.uint64(planes.shape)
    return first, np.bitwise_xor(planes, first)
