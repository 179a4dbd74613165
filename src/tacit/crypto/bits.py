"""Values as planes of bits and back, and the transpose that oblivious-transfer extension needs.

A plane is a vector of bits, one for each of many instances: instance i is bit i % 64 of word i // 64, in uint64. The
n values of a ring, sliced, are one plane for each bit of theirs, so that one word operation works on 64 instances. Instance
bits beyond n are zero.

The C kernels mirror squares of 64 x 64 bits, eight side by side; numpy does the same masked swaps on whole arrays. Neither
branches on a value, and no address depends on one.

Source: Warren, "Hacker's Delight", section 7-3 (the masked swaps).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tacit.core.errors import ConfigError
from tacit.crypto.kernels import Native, native

Words = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]
Planes = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.uint8] | npt.NDArray[np.bool_]

COLUMNS = 128
"""Columns of the transpose, one for each bit of a block."""

_SWAPS = (
    (32, 0x00000000FFFFFFFF),
    (16, 0x0000FFFF0000FFFF),
    (8, 0x00FF00FF00FF00FF),
    (4, 0x0F0F0F0F0F0F0F0F),
    (2, 0x3333333333333333),
    (1, 0x5555555555555555),
)
_CHUNK = 512  # words of a row at a time in numpy: 64 rows of them are 256 kB


def words_of(count: int) -> int:
    """How many words a plane of ``count`` instances has.

    Raises:
        ConfigError: the count is negative.
    """
    if count < 0:
        raise ConfigError(f"a count must not be negative, got {count}")
    return -(-count // 64)


def slice_bits(values: Words, bits: int | None = None) -> Planes:
    """The low ``bits`` bits of each value as planes, (bits, ceil(n / 64)): plane b holds bit b of every value.

    Args:
        values: uint32 or uint64, (n,).
        bits: how many planes; all that the type has when it is None. Higher bits of the values are dropped.

    Raises:
        ConfigError: the values are no such vector, or there are more bits than the type has, or none.
    """
    if values.dtype not in (np.uint32, np.uint64) or values.ndim != 1:
        raise ConfigError(
            f"a vector of uint32 or uint64 expected, got {values.dtype} {values.shape}"
        )
    width = 8 * values.itemsize
    bits = width if bits is None else bits
    if not 1 <= bits <= width:
        raise ConfigError(f"from 1 to {width} bits of {values.dtype} expected, got {bits}")
    planes = np.empty((bits, words_of(len(values))), np.uint64)
    loaded = native()
    if loaded is not None:
        _slice_native(loaded, loaded.lib.tacit_bits_level(), values, planes)
    else:
        _slice_numpy(values, planes)
    return planes


def join_bits(planes: Planes, count: int, dtype: npt.DTypeLike = np.uint64) -> Words:
    """The ``count`` values whose bit b is in plane b; bits without a plane are zero.

    Args:
        planes: uint64, (bits, ceil(count / 64)), with at most as many bits as ``dtype``; instances beyond ``count`` are
            ignored.
        count: how many values.
        dtype: uint32 or uint64.

    Raises:
        ConfigError: the planes have another shape or type, or ``dtype`` is another.
    """
    kind = np.dtype(dtype)
    if kind not in (np.uint32, np.uint64):
        raise ConfigError(f"values as uint32 or uint64 expected, got {kind}")
    width, words = 8 * kind.itemsize, words_of(count)
    if planes.dtype != np.uint64 or planes.ndim != 2 or planes.shape[1] != words:
        raise ConfigError(
            f"planes as uint64 (bits, {words}) expected, got {planes.dtype} {planes.shape}"
        )
    if len(planes) > width:
        raise ConfigError(f"at most {width} planes expected for {kind}, got {len(planes)}")
    planes = np.ascontiguousarray(planes)
    values: Words = np.empty(count, kind)
    loaded = native()
    if loaded is not None:
        _join_native(loaded, loaded.lib.tacit_bits_level(), planes, values)
    else:
        _join_numpy(planes, values)
    return values


def pack_plane(flags: Flags) -> Planes:
    """Flags (..., n) as planes (..., ceil(n / 64)).

    Args:
        flags: bool or uint8, with at least one axis; whatever is not zero is a one.

    Raises:
        ConfigError: the flags have another type or no axis.
    """
    if flags.dtype not in (np.bool_, np.uint8) or flags.ndim < 1:
        raise ConfigError(f"flags as bool or uint8 (..., n) expected, got {flags.dtype}")
    *others, count = flags.shape
    packed = np.zeros((*others, 8 * words_of(count)), np.uint8)
    packed[..., : -(-count // 8)] = np.packbits(flags, axis=-1, bitorder="little")
    return packed.view("<u8").astype(np.uint64, copy=False)


def unpack_plane(planes: Planes, count: int) -> npt.NDArray[np.uint8]:
    """The first ``count`` instances of planes (..., words) as uint8 (..., count), each 0 or 1.

    Args:
        planes: uint64, (..., ceil(count / 64)).
        count: how many instances.

    Raises:
        ConfigError: the planes have another type, or another length than the count needs.
    """
    words = words_of(count)
    if planes.dtype != np.uint64 or planes.ndim < 1 or planes.shape[-1] != words:
        raise ConfigError(
            f"planes as uint64 (..., {words}) expected, got {planes.dtype} {planes.shape}"
        )
    if not planes.size:  # no view of another item size
        return np.zeros((*planes.shape[:-1], count), np.uint8)
    octets = np.ascontiguousarray(planes, np.dtype("<u8")).view(np.uint8)
    return np.unpackbits(octets, axis=-1, count=count, bitorder="little")


def transpose_rows(columns: Planes) -> Planes:
    """The rows of a matrix of bits that is given by its 128 columns.

    Args:
        columns: uint64, (128, words): bit j of column i is bit j % 64 of its word j // 64.

    Returns:
        uint64, (64 * words, 2): bit i of the block in row j is bit j of column i.

    Raises:
        ConfigError: the columns have another shape or type.
    """
    if columns.dtype != np.uint64 or columns.ndim != 2 or len(columns) != COLUMNS:
        raise ConfigError(
            f"columns as uint64 ({COLUMNS}, words) expected, got {columns.dtype} {columns.shape}"
        )
    rows = np.empty((64 * columns.shape[1], 2), np.uint64)
    loaded = native()
    if loaded is not None:
        _rows_native(loaded, loaded.lib.tacit_bits_level(), np.ascontiguousarray(columns), rows)
    else:
        rows_numpy(columns, rows)
    return rows


# --- C


def _done(failed: int, level: int) -> None:
    if failed:
        raise ConfigError(f"this processor has no vectors of level {level}")


def _slice_native(loaded: Native, level: int, values: Words, planes: Planes) -> None:
    lib, ffi = loaded
    failed = lib.tacit_bits_slice(
        level,
        ffi.from_buffer("uint8_t[]", np.ascontiguousarray(values)),
        values.itemsize == 8,
        len(values),
        len(planes),
        ffi.from_buffer("uint64_t[]", planes, require_writable=True),
    )
    _done(failed, level)


def _join_native(loaded: Native, level: int, planes: Planes, values: Words) -> None:
    lib, ffi = loaded
    failed = lib.tacit_bits_join(
        level,
        ffi.from_buffer("uint64_t[]", planes),
        len(planes),
        len(values),
        values.itemsize == 8,
        ffi.from_buffer("uint8_t[]", values, require_writable=True),
    )
    _done(failed, level)


def _rows_native(loaded: Native, level: int, columns: Planes, rows: Planes) -> None:
    lib, ffi = loaded
    words = columns.shape[1]
    failed = lib.tacit_bits_rows(
        level,
        ffi.from_buffer("uint64_t[]", columns),
        words,
        words,
        ffi.from_buffer("uint64_t[]", rows, require_writable=True),
    )
    _done(failed, level)


# --- numpy


def _mirror(squares: Planes) -> None:
    """Mirror (64 * k, words), in place: each 64 rows are squares of 64 x 64 bits, side by side."""
    spare = np.empty(squares.size // 2, np.uint64)
    for distance, mask in _SWAPS:
        pairs = squares.reshape(len(squares) // (2 * distance), 2, distance, -1)
        low, high = pairs[:, 0], pairs[:, 1]
        moved = spare.reshape(low.shape)
        np.right_shift(low, np.uint64(distance), out=moved)
        moved ^= high
        moved &= np.uint64(mask)
        high ^= moved
        moved <<= np.uint64(distance)
        low ^= moved


def _slice_numpy(values: Words, planes: Planes) -> None:
    bits, words = planes.shape
    for word in range(0, words, _CHUNK):
        used = min(_CHUNK, words - word)
        part = values[64 * word : 64 * (word + used)]
        squares = np.zeros((64, used), np.uint64)
        whole = len(part) // 64
        squares[:, :whole] = part[: 64 * whole].reshape(whole, 64).T
        if whole < used:
            squares[: len(part) - 64 * whole, whole] = part[64 * whole :]
        _mirror(squares)
        planes[:, word : word + used] = squares[:bits]


def _join_numpy(planes: Planes, values: Words) -> None:
    bits, words = planes.shape
    for word in range(0, words, _CHUNK):
        used = min(_CHUNK, words - word)
        squares = np.zeros((64, used), np.uint64)
        squares[:bits] = planes[:, word : word + used]
        _mirror(squares)
        part = values[64 * word : 64 * (word + used)]
        whole = len(part) // 64
        part[: 64 * whole].reshape(whole, 64)[...] = squares[:, :whole].T
        if whole < used:
            part[64 * whole :] = squares[: len(part) - 64 * whole, whole]


def rows_numpy(columns: Planes, rows: Planes) -> None:
    """Write `transpose_rows` of contiguous or strided ``columns`` to ``rows``, by numpy."""
    words = columns.shape[1]
    for word in range(0, words, _CHUNK):
        squares = columns[:, word : word + _CHUNK].copy()
        used = squares.shape[1]
        _mirror(squares)
        out = rows[64 * word : 64 * (word + used)].reshape(used, 64, 2)
        out[...] = squares.reshape(2, 64, used).transpose(2, 1, 0)
