"""Which of n places are meant: a set of indices in few bits, whose number depends on the sizes alone.

Elias–Fano coding: each index is cut into ``l = floor(log2(n / count))`` low bits, which are written as they are, and
the rest, which is written in unary as the gaps of an ascending sequence. That takes count * (l + 1) + ceil(n / 2^l)
bits: where at most a tenth is meant, within 0.5 to 0.6 bit an index of the entropy of a random set (a bit at one half,
more beyond it), and, unlike gap codes, no bit more or less for one set than for another, so that the length of a
message tells nothing.

Source: Elias, "Efficient storage and retrieval by content and address of static files" (J. ACM 1974); Fano, "On the
number of bits required to implement an associative memory" (MIT 1971).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tacit.core.errors import ConfigError, WireError

Indices = npt.NDArray[np.int64]


def _low_bits(count: int, below: int) -> int:
    return (below // count).bit_length() - 1


def _sizes(count: int, below: int) -> tuple[int, int]:
    """Bits of the low parts and of the high parts."""
    if not 0 <= count <= below:
        raise ConfigError(f"a count from 0 to {below} expected, got {count}")
    if count in (0, below):  # no place, or every place: nothing to say
        return 0, 0
    low = _low_bits(count, below)
    return count * low, count + -(-below // (1 << low))


def encoded_bytes(count: int, below: int) -> int:
    """How many bytes `encode` takes for ``count`` of ``below`` places.

    Raises:
        ConfigError: the count is not from 0 to ``below``.
    """
    low, high = _sizes(count, below)
    return -(-low // 8) + -(-high // 8)


def encode(indices: Indices, below: int) -> bytes:
    """Strictly ascending indices in [0, below) as `encoded_bytes` bytes.

    Raises:
        ConfigError: they are not strictly ascending or out of range.
    """
    count = len(indices)
    low_size, high_size = _sizes(count, below)
    if count and (indices[0] < 0 or indices[-1] >= below or bool((np.diff(indices) < 1).any())):
        raise ConfigError(f"strictly ascending indices from 0 to {below - 1} expected")
    if not high_size:
        return b""
    width = _low_bits(count, below)
    ones = np.zeros(high_size, np.uint8)
    ones[(indices >> width) + np.arange(count)] = 1
    low = (indices[:, None] >> np.arange(width)) & 1
    return (
        np.packbits(low.astype(np.uint8).reshape(low_size)).tobytes() + np.packbits(ones).tobytes()
    )


def decode(data: bytes, count: int, below: int) -> Indices:
    """The indices that `encode` wrote; no other bytes are taken for any.

    Args:
        data: from a peer.
        count: how many indices it must hold.
        below: the number of places.

    Raises:
        WireError: these bytes are not ``count`` strictly ascending indices below ``below``.
        ConfigError: the count is not from 0 to ``below``.
    """
    low_size, high_size = _sizes(count, below)
    if len(data) != encoded_bytes(count, below):
        raise WireError(
            f"{encoded_bytes(count, below)} bytes expected for {count} of {below} indices, came {len(data)}"
        )
    if not high_size:
        return np.arange(count)
    width, cut = _low_bits(count, below), -(-low_size // 8)
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    low, high = bits[: 8 * cut], bits[8 * cut :]
    places = np.flatnonzero(high)
    if len(places) != count or low[low_size:].any() or high[high_size:].any():
        raise WireError(f"the bits of {count} indices expected, {len(places)} are set")
    parts = low[:low_size].reshape(count, width).astype(np.int64)
    indices: Indices = ((places - np.arange(count)) << width) + (parts << np.arange(width)).sum(1)
    if indices[-1] >= below or bool((np.diff(indices) < 1).any()):
        raise WireError(f"strictly ascending indices from 0 to {below - 1} expected")
    return indices
