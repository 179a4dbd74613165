"""A tweakable hash of 128-bit blocks from AES-128 under a public key, safe where two inputs differ by a secret.

``H(x, i) = pi(pi(x) ^ i) ^ pi(x)``, called TMMO, where pi is AES-128 under a 16-byte key. Who garbles or extends draws the
key anew for each session and direction and sends it along: it is no secret, but what an attacker computes under one key
helps against no other. With q hashes under one delta and p evaluations of AES, an attacker's advantage is of the order of
q p / 2^127.

Why not the shorter ``pi(x) ^ x``, with or without the tweak added: garbling and oblivious transfer hash both x and
``x ^ delta`` and may add delta to the result. Who sees ``H(x ^ delta) ^ delta`` and knows x would then have
``pi(x ^ delta) ^ x``, from which the inverse of pi gives delta. In TMMO what is added last is ``pi(x ^ delta)``, which
nobody can take off again without delta.

**Guarantee**: with pi an ideal cipher, TMMO is tweakable circular correlation robust: for a secret uniform delta, the values
``H(x ^ delta, i) ^ b * delta`` of chosen x, i and bits b are indistinguishable from uniform ones, as long as no pair (x, i)
occurs with both bits. Blocks x may be public, zero among them. A tweak must not come twice under a key and delta.

A block is two little-endian words; arrays of blocks are uint64 (..., 2), and word 0 holds bits 0 to 63. A tweak is such a
block too: its low word counts, its high word names a domain.

Source: Guo, Katz, Wang, Yu, "Efficient and Secure Multiparty Computation from Fixed-Key Block Ciphers" (IEEE S&P 2020),
where it is called TMMO.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from tacit.core.errors import ConfigError
from tacit.crypto.kernels import Native, native

Blocks = npt.NDArray[np.uint64]

KEY_BYTES = 16
"""Bytes of a public key of the hash."""

_TILE = 2048  # blocks: the few buffers of this size stay in the second-level cache


def hash_blocks(
    key: bytes, blocks: Blocks, first: int, *, domain: int = 0, out: Blocks | None = None
) -> Blocks:
    """Hash block j with the tweak whose low word is ``first + j`` and whose high word is ``domain``.

    Args:
        key: `KEY_BYTES` public bytes.
        blocks: uint64 (n, 2).
        first: the low word of the first tweak, so that ``first + n`` is at most 2^64.
        domain: the high word of every tweak, 0 to 2^64 - 1.
        out: contiguous uint64 (n, 2) for the result, perhaps ``blocks`` itself; allocated if left out.

    Returns:
        uint64 (n, 2).

    Raises:
        ConfigError: a shape, dtype or length is another, or a tweak does not fit.

    **Guarantee**: that of the module. No branch or address depends on a block.

    **Cost**: two AES calls a block.

    **Source**: Guo et al. 2020, TMMO.
    """
    _check(key, blocks, first, domain)
    if out is None:
        out = np.empty(blocks.shape, np.uint64)
    elif out.dtype != np.uint64 or out.shape != blocks.shape:
        raise ConfigError(f"out as uint64 {blocks.shape} expected, got {out.dtype} {out.shape}")
    elif not out.flags.c_contiguous or not out.flags.writeable:
        raise ConfigError("a contiguous out that may be written expected")
    loaded, level = aes_level()
    if loaded is not None:
        _hash_blocks_native(loaded, level, key, blocks, first, domain, out)
    else:
        _hash_blocks_numpy(key, blocks, first, domain, out)
    return out


def hash_expand(key: bytes, blocks: Blocks, count: int, first: int) -> Blocks:
    """Expand every block into ``count`` blocks: part c of block j has the tweak words ``first + j`` and ``c + 1``.

    Part c is what `hash_blocks` gives with the domain ``c + 1``; no part is of the domain 0.

    Args:
        key: `KEY_BYTES` public bytes.
        blocks: uint64 (n, 2).
        count: parts of a block, at least 1.
        first: the low word of the first tweak, so that ``first + n`` is at most 2^64.

    Returns:
        uint64 (n, count, 2).

    Raises:
        ConfigError: a shape, dtype or length is another, or a tweak does not fit.

    **Guarantee**: that of the module. No branch or address depends on a block.

    **Cost**: ``count + 1`` AES calls a block, by C and by numpy.

    **Source**: Guo et al. 2020, TMMO.
    """
    _check(key, blocks, first, 0)
    if count < 1:
        raise ConfigError(f"a block is expanded to at least 1 block, not {count}")
    out = np.empty((len(blocks), count, 2), np.uint64)
    loaded, level = aes_level()
    if loaded is not None:
        _hash_expand_native(loaded, level, key, blocks, first, out)
    else:
        _hash_expand_numpy(key, blocks, first, out)
    return out


def aes_level() -> tuple[Native | None, int]:
    """The C kernels and the widest AES instructions they may use; None and 0 where numpy does the work."""
    loaded = native()
    level: int = loaded.lib.tacit_masks_level() if loaded is not None else 0
    return (loaded, level) if level > 0 else (None, 0)


def check_key(key: bytes) -> None:
    """Refuse what is not a public key of the hash.

    Raises:
        ConfigError: other than `KEY_BYTES` bytes.
    """
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        raise ConfigError(f"a hash key of {KEY_BYTES} bytes expected, got {_size(key)}")


def check_tweaks(first: int, count: int) -> None:
    """Refuse tweaks that do not fit their word.

    Raises:
        ConfigError: ``first`` to ``first + count - 1`` are not all within 0..2^64 - 1.
    """
    if first < 0 or first + count > 1 << 64:
        raise ConfigError(f"tweaks within 0..2^64 expected, got {first} to {first + count}")


def _size(key: object) -> str:
    return f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__


def _check(key: bytes, blocks: Blocks, first: int, domain: int) -> None:
    check_key(key)
    if blocks.dtype != np.uint64 or blocks.ndim != 2 or blocks.shape[1] != 2:
        raise ConfigError(f"blocks as uint64 (n, 2) expected, got {blocks.dtype} {blocks.shape}")
    check_tweaks(first, len(blocks))
    if not 0 <= domain < 1 << 64:
        raise ConfigError(f"a domain within 0..2^64 - 1 expected, got {domain}")


def _refused(failed: int, level: int) -> None:
    if failed:
        raise ConfigError(f"this processor has no AES instructions of level {level}")


def _hash_blocks_native(
    loaded: Native, level: int, key: bytes, blocks: Blocks, first: int, domain: int, out: Blocks
) -> None:
    lib, ffi = loaded
    source = ffi.from_buffer("uint64_t[]", np.ascontiguousarray(blocks))
    target = ffi.from_buffer("uint64_t[]", out, require_writable=True)
    _refused(lib.tacit_hash_blocks(level, key, source, len(blocks), first, domain, target), level)


def _hash_expand_native(
    loaded: Native, level: int, key: bytes, blocks: Blocks, first: int, out: Blocks
) -> None:
    lib, ffi = loaded
    source = ffi.from_buffer("uint64_t[]", np.ascontiguousarray(blocks))
    target = ffi.from_buffer("uint64_t[]", out, require_writable=True)
    _refused(
        lib.tacit_hash_expand(level, key, source, len(blocks), out.shape[1], first, target), level
    )


class Buffer:
    """Room for blocks, as numpy computes with them and as `cryptography` encrypts them.

    Args:
        count: how many blocks.
    """

    __slots__ = ("blocks", "octets")

    def __init__(self, count: int) -> None:
        # OpenSSL's wrapper asks for a block more than it writes.
        self.octets = np.empty(16 * (count + 1), np.uint8)
        self.blocks: Blocks = self.octets[: 16 * count].view("<u8").reshape(count, 2)


class Permutation:
    """pi, from buffer to buffer.

    Args:
        key: `KEY_BYTES` public bytes.
    """

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes) -> None:
        # Single blocks of a public permutation: no message is encrypted here.
        self._cipher: CipherContext = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305

    def __call__(self, source: Buffer, target: Buffer, count: int) -> None:
        """The first ``count`` blocks of ``target`` become pi of those of ``source``."""
        if count:
            self._cipher.update_into(source.octets[: 16 * count].data, target.octets.data)


def _hash_blocks_numpy(key: bytes, blocks: Blocks, first: int, domain: int, out: Blocks) -> None:
    pi = Permutation(key)
    room = min(_TILE, len(blocks))
    x, once, twice = Buffer(room), Buffer(room), Buffer(room)
    for start in range(0, len(blocks), _TILE):
        part = blocks[start : start + _TILE]
        size = len(part)
        x.blocks[:size] = part
        pi(x, once, size)
        _add_tweaks(once.blocks[:size], first + start, domain, x.blocks[:size])
        pi(x, twice, size)
        np.bitwise_xor(twice.blocks[:size], once.blocks[:size], out=out[start : start + size])


def _hash_expand_numpy(key: bytes, blocks: Blocks, first: int, out: Blocks) -> None:
    pi = Permutation(key)
    room = min(_TILE, len(blocks))
    x, once, twice = Buffer(room), Buffer(room), Buffer(room)
    for start in range(0, len(blocks), _TILE):
        part = blocks[start : start + _TILE]
        size = len(part)
        x.blocks[:size] = part
        pi(x, once, size)
        for c in range(out.shape[1]):
            _add_tweaks(once.blocks[:size], first + start, c + 1, x.blocks[:size])
            pi(x, twice, size)
            np.bitwise_xor(
                twice.blocks[:size], once.blocks[:size], out=out[start : start + size, c]
            )


def _add_tweaks(blocks: Blocks, first: int, domain: int, out: Blocks) -> None:
    lows = np.arange(len(blocks), dtype=np.uint64) + np.uint64(first)
    np.bitwise_xor(blocks[:, 0], lows, out=out[:, 0])
    np.bitwise_xor(blocks[:, 1], np.uint64(domain), out=out[:, 1])
