"""Masks from seeds: each seed's AES-128-CTR key stream is added to a vector, or taken away, in one pass.

The key stream of a 16-byte seed is AES-128 in counter mode under the seed, from a counter block of zero, cut into
little-endian words. With the seeds of two parties equal and their signs opposite, the masks cancel in the sum.

The C kernel keeps the stream in registers and a tile of the vector in the first-level cache while it runs over the keys;
without it, or on a processor without AES instructions, numpy and OpenSSL do the same in tiles.

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017), section 3, PRG;
NIST SP 800-38A (CTR mode).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tacit.core.errors import ConfigError
from tacit.crypto.kernels import Native, native

Words = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]
Seeds = npt.NDArray[np.uint8]
Signs = npt.NDArray[np.int8]

SEED_BYTES = 16

_TILE = 1 << 18  # bytes: the stream and the vector's tile stay in the second-level cache
_ZEROS = bytes(_TILE)
_RANGE = 1 << 14  # bytes: threads get whole multiples of the C kernel's tile


def expand_add(total: Words, seeds: Seeds, signs: Signs, *, threads: int = 1) -> None:
    """Add ``signs[i] * keystream(seeds[i])`` for every i to ``total``, in place, modulo 2^32 or 2^64.

    Args:
        total: contiguous uint32 or uint64 vector, of any length.
        seeds: uint8, (m, 16).
        signs: int8, (m,), each +1 or -1.
        threads: how many share the work; the result does not depend on it.

    Raises:
        ConfigError: an array has another shape or type, or a sign is neither +1 nor -1.

    **Guarantee**: to who does not hold the seed, a masked vector is indistinguishable from uniform words, as long as AES-128
    is a pseudorandom permutation and the seed masks this one vector.

    **Source**: Bonawitz et al. 2017, figure 4, rounds 2 and 4.
    """
    _check(total, seeds, signs, threads)
    loaded = native()
    level = loaded.lib.tacit_masks_level() if loaded is not None else 0

    def work(start: int, stop: int) -> None:
        part, first = total[start:stop], start * total.itemsize // 16
        if loaded is not None and level > 0:
            _expand_add_native(loaded, level, part, seeds, signs, first)
        else:
            _expand_add_numpy(part, seeds, signs, first)

    units = -(-total.nbytes // _RANGE)
    ranges = max(1, min(threads, units))
    cuts = [units * i // ranges * _RANGE // total.itemsize for i in range(ranges)] + [len(total)]
    if ranges == 1:
        work(0, len(total))
        return
    with ThreadPoolExecutor(ranges) as pool:
        for done in [pool.submit(work, *cut) for cut in pairwise(cuts)]:
            done.result()


def _check(total: Words, seeds: Seeds, signs: Signs, threads: int) -> None:
    if total.dtype not in (np.uint32, np.uint64) or total.ndim != 1:
        raise ConfigError(f"a vector of uint32 or uint64 expected, got {total.dtype} {total.shape}")
    if not total.flags.c_contiguous or not total.flags.writeable:
        raise ConfigError("a contiguous vector that may be written expected: pass a copy")
    if seeds.dtype != np.uint8 or seeds.ndim != 2 or seeds.shape[1] != SEED_BYTES:
        raise ConfigError(f"seeds as uint8 (m, 16) expected, got {seeds.dtype} {seeds.shape}")
    if signs.dtype != np.int8 or signs.shape != seeds.shape[:1]:
        raise ConfigError(
            f"signs as int8 ({len(seeds)},) expected, got {signs.dtype} {signs.shape}"
        )
    if bool((np.abs(signs) != 1).any()):
        raise ConfigError("each sign must be +1 or -1")
    if threads < 1:
        raise ConfigError(f"at least one thread expected, got {threads}")


def _expand_add_native(
    loaded: Native, level: int, total: Words, seeds: Seeds, signs: Signs, first_block: int
) -> None:
    lib, ffi = loaded
    failed = lib.tacit_masks_expand_add(
        level,
        ffi.from_buffer("uint8_t[]", total, require_writable=True),
        total.nbytes,
        total.itemsize == 8,
        first_block,
        ffi.from_buffer("uint8_t[]", np.ascontiguousarray(seeds)),
        ffi.from_buffer("int8_t[]", np.ascontiguousarray(signs)),
        len(seeds),
    )
    if failed:
        raise ConfigError(f"this processor has no AES instructions of level {level}")


def _expand_add_numpy(total: Words, seeds: Seeds, signs: Signs, first_block: int) -> None:
    stream = np.empty(min(_TILE, -(-total.nbytes // 16) * 16), np.uint8)
    words = stream.view(total.dtype.newbyteorder("<"))
    step = max(1, _TILE // total.itemsize)
    counter = modes.CTR(first_block.to_bytes(16, "big"))
    for seed, sign in zip(seeds, signs.tolist(), strict=True):
        cipher = Cipher(algorithms.AES(seed.tobytes()), counter).encryptor()
        combine = np.add if sign > 0 else np.subtract
        for start in range(0, len(total), step):
            part = total[start : start + step]
            size = part.nbytes
            cipher.update_into(_ZEROS if size == _TILE else _ZEROS[:size], stream.data[:size])
            combine(part, words[: len(part)], out=part)
