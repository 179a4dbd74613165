"""Integers of any width as a stream of bits: value i occupies the bits [i * width, (i + 1) * width), the lowest first.

Bit b of the stream is bit b % 8 of byte b // 8, and what is left of the last byte is zero, so that of a given count and
width each list of values has one encoding.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tacit.core.errors import ConfigError, WireError
from tacit.crypto.kernels import Native, native

Words = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]
Packed = npt.NDArray[np.uint8]

_TILE = 1 << 17  # values: numpy's temporaries of a tile are a megabyte


def packed_bytes(count: int, width: int) -> int:
    """How many bytes ``count`` values of ``width`` bits take.

    Raises:
        ConfigError: the count is negative or the width is not from 1 to 64.
    """
    if not 1 <= width <= 64:
        raise ConfigError(f"a width from 1 to 64 bits expected, got {width}")
    if count < 0:
        raise ConfigError(f"a count must not be negative, got {count}")
    return -(-count * width // 8)


def pack(values: Words, width: int) -> Packed:
    """The low ``width`` bits of each value, as `packed_bytes` bytes; higher bits are dropped.

    Args:
        values: contiguous uint32 or uint64 vector.
        width: 1 to 64, and at most 32 for uint32.

    Raises:
        ConfigError: the values are no such vector or the width is out of its range.
    """
    _check(values, width)
    packed = np.empty(packed_bytes(len(values), width), np.uint8)
    loaded = native()
    if loaded is not None:
        _pack_native(loaded, values, width, packed)
    else:
        _pack_numpy(values, width, packed)
    return packed


def unpack_add(packed: Packed, total: Words, width: int) -> None:
    """Add the values of a stream to ``total``, in place, modulo 2^32 or 2^64.

    Args:
        packed: contiguous uint8 vector, from a peer.
        total: contiguous uint32 or uint64 vector; its length says how many values there must be.
        width: 1 to 64, and at most 32 for uint32.

    Raises:
        WireError: the stream has another length, or bits after the last value; ``total`` is as it was.
        ConfigError: ``total`` is no such vector or the width is out of its range.
    """
    _check(total, width)
    if not total.flags.writeable:
        raise ConfigError("a vector that may be written expected: pass a copy")
    _check_packed(packed, len(total), width)
    loaded = native()
    if loaded is not None:
        _unpack_add_native(loaded, packed, total, width)
    else:
        _unpack_add_numpy(packed, total, width)


def unpack(packed: Packed, count: int, width: int, dtype: npt.DTypeLike = np.uint32) -> Words:
    """The ``count`` values of a stream.

    Args:
        packed: contiguous uint8 vector, from a peer.
        count: how many it must hold.
        width: 1 to 64, and at most 32 for uint32.
        dtype: uint32 or uint64.

    Raises:
        WireError: the stream has another length, or bits after the last value.
        ConfigError: the count, width or type is out of its range.
    """
    _check(np.empty(0, dtype), width)
    _check_packed(packed, count, width)  # before anything of that count is allocated
    total: Words = np.zeros(count, dtype)
    unpack_add(packed, total, width)
    return total


def _check(values: Words, width: int) -> None:
    if values.dtype not in (np.uint32, np.uint64) or values.ndim != 1:
        raise ConfigError(
            f"a vector of uint32 or uint64 expected, got {values.dtype} {values.shape}"
        )
    if not values.flags.c_contiguous:
        raise ConfigError("a contiguous vector expected: pass a copy")
    if not 1 <= width <= 8 * values.itemsize:
        raise ConfigError(
            f"a width from 1 to {8 * values.itemsize} bits expected for {values.dtype}, got {width}"
        )


def _check_packed(packed: Packed, count: int, width: int) -> None:
    expected = packed_bytes(count, width)
    if packed.dtype != np.uint8 or packed.ndim != 1 or not packed.flags.c_contiguous:
        raise WireError(
            f"a contiguous vector of uint8 expected, came {packed.dtype} {packed.shape}"
        )
    if len(packed) != expected:
        raise WireError(
            f"{expected} bytes expected for {count} values of {width} bits, came {len(packed)}"
        )
    if (used := count * width % 8) and int(packed[-1]) >> used:
        raise WireError(f"bits after the last of {count} values of {width} bits are not zero")


def _pack_native(loaded: Native, values: Words, width: int, packed: Packed) -> None:
    lib, ffi = loaded
    lib.tacit_pack(
        ffi.from_buffer("uint8_t[]", values),
        values.itemsize == 8,
        len(values),
        width,
        ffi.from_buffer("uint8_t[]", packed, require_writable=True),
    )


def _unpack_add_native(loaded: Native, packed: Packed, total: Words, width: int) -> None:
    lib, ffi = loaded
    lib.tacit_unpack_add(
        ffi.from_buffer("uint8_t[]", packed),
        len(total),
        width,
        total.itemsize == 8,
        ffi.from_buffer("uint8_t[]", total, require_writable=True),
    )


def _period(width: int) -> tuple[int, int]:
    """After how many values, and how many 64-bit words, a value begins a word again."""
    shared = math.gcd(width, 64)
    return 64 // shared, width // shared


def _pack_numpy(values: Words, width: int, packed: Packed) -> None:
    period, words = _period(width)
    mask = np.uint64((1 << width) - 1)
    for start in range(0, len(values), _TILE):  # a multiple of every period
        part = values[start : start + _TILE]
        groups = -(-len(part) // period)
        held = np.zeros(groups * period, np.uint64)
        np.bitwise_and(part, mask, out=held[: len(part)])
        columns = np.ascontiguousarray(held.reshape(groups, period).T)
        out = np.zeros((words, groups), np.uint64)
        for i, column in enumerate(columns):
            word, shift = divmod(i * width, 64)
            out[word] |= column << np.uint64(shift)
            if shift + width > 64:
                out[word + 1] |= column >> np.uint64(64 - shift)
        stream = np.ascontiguousarray(out.T, np.dtype("<u8")).reshape(-1).view(np.uint8)
        first = start * width // 8
        last = min(first + len(stream), len(packed))
        packed[first:last] = stream[: last - first]


def _unpack_add_numpy(packed: Packed, total: Words, width: int) -> None:
    period, words = _period(width)
    mask = np.uint64((1 << width) - 1)
    for start in range(0, len(total), _TILE):
        part = total[start : start + _TILE]
        groups = -(-len(part) // period)
        stream = np.zeros(groups * words * 8, np.uint8)
        first = start * width // 8
        used = packed[first : first + len(stream)]
        stream[: len(used)] = used
        columns = np.ascontiguousarray(stream.view(np.dtype("<u8")).reshape(groups, words).T)
        out = np.empty((groups, period), total.dtype)
        for i in range(period):
            word, shift = divmod(i * width, 64)
            value = columns[word] >> np.uint64(shift)
            if shift + width > 64:
                value |= columns[word + 1] << np.uint64(64 - shift)
            out[:, i] = value & mask
        part += out.reshape(-1)[: len(part)]
