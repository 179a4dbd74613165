"""Masks: each key stream is AES-CTR's, whoever computes it, and signs, lengths and threads do what they say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.crypto import kernels, masks
from tacit.crypto.masks import expand_add

COINS = Coins.from_seed(b"masks")
steady = settings(derandomize=True, deadline=None, max_examples=60)
Words = npt.NDArray[np.unsignedinteger]
Expand = Callable[[Words, masks.Seeds, masks.Signs, int], None]

# Lengths about the borders of words, blocks, groups in flight and tiles of 16 kB.
LENGTHS = st.one_of(
    st.integers(0, 300),
    st.sampled_from([2047, 2048, 2049, 4095, 4096, 4097, 4100, 8191, 8192, 8193, 12_345]),
)


def slow_stream(seed: bytes, size: int, first_block: int = 0) -> bytes:
    """AES-CTR from single blocks: the cipher of each counter, written out."""
    ecb = Cipher(algorithms.AES(seed), modes.ECB()).encryptor()
    blocks = range(first_block, first_block + -(-size // 16))
    return b"".join(ecb.update(block.to_bytes(16, "big")) for block in blocks)[:size]


def slow_expand_add(
    total: list[int], bits: int, seeds: list[bytes], signs: list[int], first_block: int = 0
) -> list[int]:
    """Python's integers, one word at a time."""
    size = bits // 8
    out = list(total)
    for seed, sign in zip(seeds, signs, strict=True):
        stream = slow_stream(seed, size * len(out), first_block)
        for i in range(len(out)):
            word = int.from_bytes(stream[size * i : size * (i + 1)], "little")
            out[i] = (out[i] + sign * word) % 2**bits
    return out


def drawn(
    count: int, keys: int, dtype: type[np.unsignedinteger]
) -> tuple[Words, masks.Seeds, masks.Signs]:
    total = COINS.uint64(count).astype(dtype)
    seeds = COINS.uint64((keys, 2)).view(np.uint8)
    signs = (2 * COINS.below(2, keys) - 1).astype(np.int8)
    return total, seeds, signs


def by_level(built: kernels.Native, level: int) -> Expand:
    def expand(total: Words, seeds: masks.Seeds, signs: masks.Signs, first: int) -> None:
        masks._expand_add_native(built, level, total, seeds, signs, first)

    return expand


def implementations(built: kernels.Native) -> list[Expand]:
    """numpy's, and C's at each level that this processor has."""
    levels = range(1, built.lib.tacit_masks_level() + 1)
    return [masks._expand_add_numpy, *(by_level(built, level) for level in levels)]


# --- what the stream is


def test_the_stream_is_aes_of_a_published_vector() -> None:
    """FIPS 197, AES-128 of the zero block under the zero key; and NIST SP 800-38A, F.5.1, from its counter."""
    zero = np.zeros(4, np.uint32)
    expand_add(zero, np.zeros((1, 16), np.uint8), np.ones(1, np.int8))
    assert zero.tobytes().hex() == "66e94bd4ef8a2c3b884cfa59ca342b2e"

    key = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172a")
    stream = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor().update(bytes(16))
    cipher = bytes(a ^ b for a, b in zip(plain, stream, strict=True))
    assert cipher.hex() == "874d6191b620e3261bef6864990db6ce"
    assert slow_stream(key, 16, int.from_bytes(counter, "big")) == stream


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_one_seed_gives_what_the_library_gives_on_zeros(dtype: type[np.unsignedinteger]) -> None:
    seed = bytes(range(16))
    total = np.zeros(10_001, dtype)
    expand_add(total, np.frombuffer(seed, np.uint8)[None], np.ones(1, np.int8))
    library = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
    assert total.tobytes() == library.update(bytes(total.nbytes))


@steady
@given(LENGTHS, st.integers(0, 5), st.sampled_from([np.uint32, np.uint64]), st.integers(1, 3))
def test_a_sum_of_masks_is_that_of_single_blocks_and_words(
    count: int, keys: int, dtype: type[np.unsignedinteger], threads: int
) -> None:
    total, seeds, signs = drawn(min(count, 3000), keys, dtype)
    expected = slow_expand_add(
        total.tolist(), 8 * total.itemsize, [seed.tobytes() for seed in seeds], signs.tolist()
    )
    expand_add(total, seeds, signs, threads=threads)
    assert total.tolist() == expected


# --- C and numpy


@steady
@given(
    LENGTHS,
    st.one_of(st.integers(0, 4), st.sampled_from([255, 256, 257])),
    st.sampled_from([np.uint32, np.uint64]),
    st.sampled_from([0, 1, 1023, 2**32 - 2, 2**40]),
)
def test_c_and_numpy_agree_in_every_bit(
    built: kernels.Native,
    count: int,
    keys: int,
    dtype: type[np.unsignedinteger],
    first: int,
) -> None:
    total, seeds, signs = drawn(count, keys, dtype)
    results = []
    for expand in implementations(built):
        mine = total.copy()
        expand(mine, seeds, signs, first)
        results.append(mine.tobytes())
    assert len(results) >= 1 and len(set(results)) == 1


def test_a_counter_passes_32_bits(built: kernels.Native) -> None:
    """Where a 32-bit counter would begin again."""
    _, seeds, signs = drawn(0, 1, np.uint32)
    first = 2**32 - 2
    expected = slow_expand_add([0] * 64, 32, [seeds.tobytes()], signs.tolist(), first)
    for expand in implementations(built):
        total = np.zeros(64, np.uint32)
        expand(total, seeds, signs, first)
        assert total.tolist() == expected


def test_nothing_beyond_the_vector_is_written(built: kernels.Native) -> None:
    for expand in implementations(built):
        for count in (1, 3, 5, 31, 129, 4097):
            room = np.full(count + 256, 7, np.uint32)
            _, seeds, signs = drawn(0, 3, np.uint32)
            expand(room[128 : 128 + count], seeds, signs, 0)
            assert (room[:128] == 7).all() and (room[128 + count :] == 7).all()
            assert (room[128 : 128 + count] != 7).any()


def test_a_level_that_the_processor_lacks_is_refused_and_changes_nothing(
    built: kernels.Native,
) -> None:
    for level in (-1, 0, built.lib.tacit_masks_level() + 1, 4):
        total, seeds, signs = drawn(100, 2, np.uint32)
        before = total.copy()
        with pytest.raises(ConfigError, match="no AES instructions of level"):
            masks._expand_add_native(built, level, total, seeds, signs, 0)
        assert (total == before).all()


@pytest.mark.parametrize("kernel", ["C", "numpy", "no AES instructions"])
def test_the_public_function_takes_what_there_is(
    kernel: str, built: kernels.Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    for name in ("_expand_add_native", "_expand_add_numpy"):
        plain = getattr(masks, name)
        monkeypatch.setattr(masks, name, lambda *a, f=plain, n=name: (used.append(n), f(*a)))
    if kernel == "no AES instructions":

        class Lib:
            @staticmethod
            def tacit_masks_level() -> int:
                return 0

        monkeypatch.setattr(masks, "native", lambda: kernels.Native(Lib, None))
    else:
        monkeypatch.setenv("TACIT_NATIVE", "1" if kernel == "C" else "0")
    if kernel == "C" and not built.lib.tacit_masks_level():
        pytest.skip("this processor has no AES instructions")
    total, seeds, signs = drawn(50, 2, np.uint64)
    expected = slow_expand_add(
        total.tolist(), 64, [seed.tobytes() for seed in seeds], signs.tolist()
    )
    expand_add(total, seeds, signs)
    assert total.tolist() == expected
    assert used == ["_expand_add_native" if kernel == "C" else "_expand_add_numpy"]


# --- threads


@pytest.mark.parametrize("off", ["0", "1"])
@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
@pytest.mark.parametrize("count", [0, 1, 5, 4096, 8193, 100_003])
def test_the_number_of_threads_changes_nothing(
    count: int, dtype: type[np.unsignedinteger], off: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TACIT_NATIVE", off)
    total, seeds, signs = drawn(count, 3, dtype)
    results = []
    for threads in (1, 2, 3, 7, 64):
        mine = total.copy()
        expand_add(mine, seeds, signs, threads=threads)
        results.append(mine.tobytes())
    assert len(set(results)) == 1
    assert not count or results[0] != total.tobytes()


# --- what masks are for


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_a_seed_added_and_taken_away_leaves_the_vector(dtype: type[np.unsignedinteger]) -> None:
    total, seeds, signs = drawn(5000, 4, dtype)
    before = total.copy()
    expand_add(total, seeds, signs)
    assert (total != before).mean() > 0.99
    expand_add(total, seeds[::-1], -signs[::-1])
    assert (total == before).all()


def test_a_wrong_sign_or_a_flipped_bit_of_a_seed_does_not_cancel() -> None:
    for wrong in ("sign", "seed"):
        total, seeds, signs = drawn(5000, 2, np.uint32)
        before = total.copy()
        expand_add(total, seeds, signs)
        if wrong == "sign":
            signs = signs * np.array([1, -1], np.int8)
        else:
            seeds[1, 15] ^= 1
        expand_add(total, seeds, -signs)
        assert (total != before).mean() > 0.99


def test_seeds_and_signs_that_are_not_contiguous_count_as_they_read() -> None:
    _, seeds, signs = drawn(0, 8, np.uint32)
    strided, plain = np.zeros(100, np.uint32), np.zeros(100, np.uint32)
    expand_add(strided, seeds[::2], signs[::2])
    expand_add(plain, seeds[::2].copy(), signs[::2].copy())
    assert (strided == plain).all()


# --- what is refused


def wrong_calls() -> dict[str, tuple[object, object, object, int, str]]:
    total, seeds, signs = np.zeros(8, np.uint32), np.zeros((2, 16), np.uint8), np.ones(2, np.int8)
    frozen = np.zeros(8, np.uint32)
    frozen.flags.writeable = False
    return {
        "floats": (np.zeros(8), seeds, signs, 1, "uint32 or uint64 expected, got float64"),
        "signed": (np.zeros(8, np.int64), seeds, signs, 1, "uint32 or uint64 expected"),
        "big-endian": (np.zeros(8, ">u4"), seeds, signs, 1, "uint32 or uint64 expected"),
        "a matrix": (np.zeros((2, 4), np.uint32), seeds, signs, 1, r"got uint32 \(2, 4\)"),
        "strided": (np.zeros(16, np.uint32)[::2], seeds, signs, 1, "contiguous"),
        "frozen": (frozen, seeds, signs, 1, "may be written"),
        "seeds of words": (total, seeds.view(np.uint32), signs, 1, r"uint8 \(m, 16\)"),
        "short seeds": (total, np.zeros((2, 8), np.uint8), signs, 1, r"got uint8 \(2, 8\)"),
        "a flat seed": (total, np.zeros(16, np.uint8), signs, 1, r"uint8 \(m, 16\)"),
        "too few signs": (total, seeds, signs[:1], 1, r"signs as int8 \(2,\) expected"),
        "wide signs": (total, seeds, np.ones(2, np.int64), 1, "got int64"),
        "sign 0": (total, seeds, np.array([1, 0], np.int8), 1, r"\+1 or -1"),
        "sign -128": (total, seeds, np.array([1, -128], np.int8), 1, r"\+1 or -1"),
        "no thread": (total, seeds, signs, 0, "at least one thread"),
    }


@pytest.mark.parametrize("case", wrong_calls())
def test_what_is_wrong_is_refused(case: str) -> None:
    total, seeds, signs, threads, said = wrong_calls()[case]
    with pytest.raises(ConfigError, match=said):
        expand_add(total, seeds, signs, threads=threads)
