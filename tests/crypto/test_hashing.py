"""The tweakable hash: what it is, that C and numpy agree on it, and why it is this one."""

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
from tacit.crypto import hashing, kernels
from tacit.crypto.hashing import hash_blocks, hash_expand

COINS = Coins.from_seed(b"hashing")
KEY = COINS.bytes(16)
steady = settings(derandomize=True, deadline=None, max_examples=40)
Blocks = npt.NDArray[np.uint64]
Hash = Callable[[bytes, Blocks, int, int, Blocks], None]
Expand = Callable[[bytes, Blocks, int, Blocks], None]

# About the borders of vectors, groups in flight and tiles.
LENGTHS = st.one_of(
    st.integers(0, 70), st.sampled_from([127, 128, 129, 1023, 1024, 1025, 2047, 2048, 2049, 4100])
)
WORDS = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**32 - 1, 2**63, 2**64 - 1]))


def pi(key: bytes, block: int) -> int:
    """AES of one block."""
    aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    return int.from_bytes(aes.update(block.to_bytes(16, "little")), "little")


def inverse(key: bytes, block: int) -> int:
    aes = Cipher(algorithms.AES(key), modes.ECB()).decryptor()
    return int.from_bytes(aes.update(block.to_bytes(16, "little")), "little")


def slow_hash(key: bytes, block: int, low: int, high: int = 0) -> int:
    """Python's integers, one block at a time."""
    once = pi(key, block)
    return pi(key, once ^ (low | high << 64)) ^ once


def as_ints(blocks: Blocks) -> list[int]:
    return [low | high << 64 for low, high in blocks.reshape(-1, 2).tolist()]


def as_blocks(numbers: list[int]) -> Blocks:
    return np.array([[n % 2**64, n >> 64] for n in numbers], np.uint64).reshape(-1, 2)


def implementations(built: kernels.Native) -> list[tuple[Hash, Expand]]:
    """numpy's, and C's at each level that this processor has."""

    def at(level: int) -> tuple[Hash, Expand]:
        return (
            lambda *given: hashing._hash_blocks_native(built, level, *given),
            lambda *given: hashing._hash_expand_native(built, level, *given),
        )

    levels = range(1, built.lib.tacit_masks_level() + 1)
    numpy = hashing._hash_blocks_numpy, hashing._hash_expand_numpy
    return [numpy, *map(at, levels)]


# --- what the hash is

KNOWN = [
    "7fc7c30d9596c6d47342ee06e1915dd9",
    "d1fed0d9e5e5ecbffb562257ce433061",
    "ac51f08713ffbbfb595137f5c833065c",
    "43684f208c1f0c6bfa292403a8c60ff6",
]


@pytest.mark.parametrize("off", ["0", "1"])
def test_it_comes_to_published_blocks_of_aes(off: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the tweak pi(x) ^ y the hash of x is pi(y) ^ pi(x), and NIST SP 800-38A, F.1.1, prints both."""
    monkeypatch.setenv("TACIT_NATIVE", off)
    key = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
    plain = ["6bc1bee22e409f96e93d7e117393172a", "ae2d8a571e03ac9c9eb76fac45af8e51"]
    cipher = ["3ad77bb40d7a3660a89ecaf32466ef97", "f5d3d58503b9699de785895a96fdbaaf"]
    x, y, pi_x, pi_y = (int.from_bytes(bytes.fromhex(h), "little") for h in (*plain, *cipher))
    tweak = pi_x ^ y
    found = hash_blocks(key, as_blocks([x]), tweak % 2**64, domain=tweak >> 64)
    assert as_ints(found) == [pi_x ^ pi_y]
    found = hash_blocks(key, as_blocks([x]), (pi_x ^ x) % 2**64, domain=(pi_x ^ x) >> 64)
    assert as_ints(found) == [0]


@pytest.mark.parametrize("off", ["0", "1"])
def test_known_answers(off: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinned, so that no version hashes otherwise than the one that it talks to."""
    monkeypatch.setenv("TACIT_NATIVE", off)
    key, blocks = bytes(range(16)), as_blocks([0, 1, 1 << 64, (1 << 128) - 1])
    found = hash_blocks(key, blocks, 5, domain=2)
    assert [block.tobytes().hex() for block in found] == KNOWN
    assert found.tolist() == hash_expand(key, blocks, 2, 5)[:, 1].tolist()


@steady
@given(LENGTHS, WORDS, WORDS)
def test_each_block_is_hashed_as_one_by_one(count: int, first: int, domain: int) -> None:
    count = min(count, 130)
    first = min(first, 2**64 - count)
    blocks = COINS.uint64((count, 2))
    expected = [slow_hash(KEY, x, first + j, domain) for j, x in enumerate(as_ints(blocks))]
    assert as_ints(hash_blocks(KEY, blocks, first, domain=domain)) == expected


@steady
@given(st.integers(0, 40), st.integers(1, 9), WORDS)
def test_each_part_is_the_hash_in_its_own_domain(count: int, parts: int, first: int) -> None:
    first = min(first, 2**64 - count)
    blocks = COINS.uint64((count, 2))
    expected = [
        slow_hash(KEY, x, first + j, c + 1)
        for j, x in enumerate(as_ints(blocks))
        for c in range(parts)
    ]
    found = hash_expand(KEY, blocks, parts, first)
    assert found.shape == (count, parts, 2) and as_ints(found) == expected
    for c in range(parts):
        assert (found[:, c] == hash_blocks(KEY, blocks, first, domain=c + 1)).all()


# --- C and numpy


@steady
@given(LENGTHS, WORDS, WORDS)
def test_c_and_numpy_hash_alike(built: kernels.Native, count: int, first: int, domain: int) -> None:
    blocks, first = COINS.uint64((count, 2)), min(first, 2**64 - count)
    results = set()
    for fast, _ in implementations(built):
        out = np.zeros_like(blocks)
        fast(KEY, blocks, first, domain, out)
        results.add(out.tobytes())
    assert len(results) == 1


@steady
@given(LENGTHS, st.sampled_from([1, 2, 3, 4, 7, 8, 33, 1025]), WORDS)
def test_c_and_numpy_expand_alike(
    built: kernels.Native, count: int, parts: int, first: int
) -> None:
    count = min(count, 1 << 14 >> parts.bit_length())
    blocks, first = COINS.uint64((count, 2)), min(first, 2**64 - count)
    results = set()
    for _, fast in implementations(built):
        out = np.zeros((count, parts, 2), np.uint64)
        fast(KEY, blocks, first, out)
        results.add(out.tobytes())
    assert len(results) == 1


def test_the_result_may_take_the_place_of_the_blocks(built: kernels.Native) -> None:
    for fast, _ in implementations(built):
        for count in (1, 33, 1025, 5000):
            blocks = COINS.uint64((count, 2))
            apart, room = np.empty_like(blocks), np.full((count + 128, 2), 7, np.uint64)
            fast(KEY, blocks, 3, 4, apart)
            room[64 : 64 + count] = blocks
            fast(KEY, room[64 : 64 + count], 3, 4, room[64 : 64 + count])
            assert (room[64 : 64 + count] == apart).all() and (apart != blocks).any()
            assert (room[:64] == 7).all() and (room[64 + count :] == 7).all()


def test_blocks_that_are_not_contiguous_count_as_they_read(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = COINS.uint64((50, 4))
    for off in ("0", "1"):
        monkeypatch.setenv("TACIT_NATIVE", off)
        for view in (blocks[:, 1:3], blocks[::-2, ::3]):
            assert (hash_blocks(KEY, view, 1) == hash_blocks(KEY, view.copy(), 1)).all()
            assert (hash_expand(KEY, view, 3, 1) == hash_expand(KEY, view.copy(), 3, 1)).all()
        frozen = blocks[:, :2].copy()
        frozen.flags.writeable = False
        assert (hash_blocks(KEY, frozen, 1) == hash_blocks(KEY, blocks[:, :2], 1)).all()


def test_a_level_that_the_processor_lacks_is_refused(built: kernels.Native) -> None:
    for level in (-1, 0, built.lib.tacit_masks_level() + 1, 4):
        out = np.full((3, 2, 2), 7, np.uint64)
        with pytest.raises(ConfigError, match="no AES instructions of level"):
            hashing._hash_blocks_native(built, level, KEY, out[:, 0], 0, 0, out[:, 0].copy())
        with pytest.raises(ConfigError, match="no AES instructions of level"):
            hashing._hash_expand_native(built, level, KEY, out[:, 0], 0, out)
        assert (out == 7).all()


@pytest.mark.parametrize("kernel", ["C", "numpy", "no AES instructions"])
def test_the_public_functions_take_what_there_is(
    kernel: str, built: kernels.Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    for name in ("blocks_native", "blocks_numpy", "expand_native", "expand_numpy"):
        plain = getattr(hashing, f"_hash_{name}")
        monkeypatch.setattr(
            hashing, f"_hash_{name}", lambda *a, f=plain, n=name: (used.append(n), f(*a))
        )
    if kernel == "no AES instructions":

        class Lib:
            @staticmethod
            def tacit_masks_level() -> int:
                return 0

        monkeypatch.setattr(hashing, "native", lambda: kernels.Native(Lib, None))
    else:
        monkeypatch.setenv("TACIT_NATIVE", "1" if kernel == "C" else "0")
    if kernel == "C" and not built.lib.tacit_masks_level():
        pytest.skip("this processor has no AES instructions")
    blocks = COINS.uint64((3, 2))
    assert as_ints(hash_blocks(KEY, blocks, 9)) == [
        slow_hash(KEY, x, 9 + j) for j, x in enumerate(as_ints(blocks))
    ]
    hash_expand(KEY, blocks, 2, 9)
    kind = "native" if kernel == "C" else "numpy"
    assert used == [f"blocks_{kind}", f"expand_{kind}"]


# --- why this hash


def test_tweaks_domains_and_keys_each_change_every_hash() -> None:
    blocks = np.zeros((200, 2), np.uint64)
    others = [
        hash_blocks(KEY, blocks, 0),
        hash_blocks(KEY, blocks, 200),
        hash_blocks(KEY, blocks, 0, domain=1),
        hash_blocks(COINS.bytes(16), blocks, 0),
    ]
    assert len(set(as_ints(np.concatenate(others)))) == 800


def test_a_hash_without_its_tweak_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACIT_NATIVE", "0")

    def bare(blocks: Blocks, first: int, domain: int, out: Blocks) -> None:
        out[...] = blocks

    monkeypatch.setattr(hashing, "_add_tweaks", bare)
    with pytest.raises(AssertionError):
        test_tweaks_domains_and_keys_each_change_every_hash()
    with pytest.raises(AssertionError):
        test_each_block_is_hashed_as_one_by_one()
    with pytest.raises(AssertionError):
        test_each_part_is_the_hash_in_its_own_domain()


def delta_from(value: int, x: int, tweak: int) -> int:
    """As the module's text says: from ``H(x ^ delta) ^ delta`` and x, if H is ``pi(x) ^ x`` with the tweak added."""
    return inverse(KEY, value ^ x ^ tweak) ^ x ^ tweak


def test_the_shorter_hash_gives_delta_away_and_this_one_does_not() -> None:
    x, delta = as_ints(COINS.uint64((2, 2)))
    for tweak in (0, 12345):
        shorter = pi(KEY, x ^ delta ^ tweak) ^ x ^ delta ^ tweak
        assert delta_from(shorter ^ delta, x, tweak) == delta
        assert delta_from(slow_hash(KEY, x ^ delta, tweak) ^ delta, x, tweak) != delta


def test_hashes_of_blocks_a_delta_apart_are_balanced_and_unrelated() -> None:
    """Each of 128 bits of the sum of two is 1 half the time; 6 deviations off is one false alarm in 4 million."""
    count = 1 << 14
    blocks, delta = COINS.uint64((count, 2)), COINS.uint64(2)
    summed = hash_blocks(KEY, blocks, 0) ^ hash_blocks(KEY, blocks ^ delta, 0)
    ones = np.unpackbits(summed.view(np.uint8), axis=1).sum(axis=0, dtype=np.int64)
    assert ones.shape == (128,) and (abs(ones - count / 2) < 6 * count**0.5 / 2).all()


# --- what is refused


def wrong_calls() -> dict[str, tuple[Callable[[], object], str]]:
    blocks = np.zeros((4, 2), np.uint64)
    frozen = blocks.copy()
    frozen.flags.writeable = False
    plain = {
        "short key": (KEY[:8], blocks, 0, "16 bytes expected, got 8 bytes"),
        "long key": (KEY * 2, blocks, 0, "got 32 bytes"),
        "key of words": (np.zeros(2, np.uint64), blocks, 0, "got ndarray"),
        "signed": (KEY, blocks.astype(np.int64), 0, "got int64"),
        "big-endian": (KEY, blocks.astype(">u8"), 0, "got >u8"),
        "flat": (KEY, blocks.reshape(-1), 0, r"\(n, 2\) expected, got uint64 \(8,\)"),
        "wide": (KEY, blocks.reshape(2, 4), 0, r"got uint64 \(2, 4\)"),
        "deep": (KEY, blocks[None], 0, r"got uint64 \(1, 4, 2\)"),
        "negative tweak": (KEY, blocks, -1, "got -1 to 3"),
        "tweak past the word": (KEY, blocks, 2**64 - 3, "within 0..2"),
    }
    calls: dict[str, tuple[Callable[[], object], str]] = {}
    for name, (key, array, first, said) in plain.items():
        calls[name] = (lambda k=key, g=array, f=first: hash_blocks(k, g, f), said)
        calls[f"{name}, expanded"] = (lambda k=key, g=array, f=first: hash_expand(k, g, 2, f), said)
    for name, out, said in (
        (
            "out of another size",
            np.zeros((5, 2), np.uint64),
            r"\(4, 2\) expected, got uint64 \(5, 2\)",
        ),
        ("out of halves", np.zeros((4, 2), np.uint32), "got uint32"),
        ("frozen out", frozen, "may be written"),
        ("strided out", np.zeros((4, 4), np.uint64)[:, ::2], "contiguous"),
    ):
        calls[name] = (lambda o=out: hash_blocks(KEY, blocks, 0, out=o), said)
    for domain in (-1, 2**64):
        calls[f"domain {domain}"] = (
            lambda d=domain: hash_blocks(KEY, blocks, 0, domain=d),
            "a domain",
        )
    for count in (0, -1):
        calls[f"{count} parts"] = (
            lambda c=count: hash_expand(KEY, blocks, c, 0),
            "at least 1 block",
        )
    return calls


@pytest.mark.parametrize("case", wrong_calls())
def test_what_is_wrong_is_refused(case: str) -> None:
    call, said = wrong_calls()[case]
    with pytest.raises(ConfigError, match=said):
        call()
