"""Streams of bits: the bits are where they are said to be, they come back, and no other bytes are taken."""

from __future__ import annotations

import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, WireError
from tacit.crypto import kernels, packing
from tacit.crypto.packing import pack, packed_bytes, unpack, unpack_add

COINS = Coins.from_seed(b"packing")
steady = settings(derandomize=True, deadline=None, max_examples=150)
Words = npt.NDArray[np.unsignedinteger]
TILE = packing._TILE


def slow_pack(values: list[int], width: int) -> bytes:
    """One large integer, bit by bit from the definition."""
    stream = sum((value % 2**width) << (i * width) for i, value in enumerate(values))
    return stream.to_bytes(-(-len(values) * width // 8), "little")


def slow_unpack(packed: bytes, count: int, width: int) -> list[int]:
    stream = int.from_bytes(packed, "little")
    return [stream >> (i * width) & (2**width - 1) for i in range(count)]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Words, int]:
    dtype = draw(st.sampled_from([np.uint32, np.uint64]))
    width = draw(st.integers(1, 8 * np.dtype(dtype).itemsize))
    count = draw(st.integers(0, 200))
    return COINS.uint64(count).astype(dtype), width


def empty_packed(values: Words, width: int) -> npt.NDArray[np.uint8]:
    return np.full(packed_bytes(len(values), width), 0xAA, np.uint8)


@steady
@given(cases(), st.sampled_from(["0", "1"]))
def test_the_bits_are_where_the_definition_says_and_the_values_come_back(
    case: tuple[Words, int], on: str
) -> None:
    values, width = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TACIT_NATIVE", on)
        packed = pack(values, width)
        assert packed.dtype == np.uint8 and len(packed) == packed_bytes(len(values), width)
        assert packed.tobytes() == slow_pack(values.tolist(), width)
        back = unpack(packed, len(values), width, values.dtype)
        assert back.dtype == values.dtype
        assert back.tolist() == slow_unpack(packed.tobytes(), len(values), width)
        assert back.tolist() == [value % 2**width for value in values.tolist()]


@steady
@given(cases())
def test_c_and_numpy_agree_in_every_bit(built: kernels.Native, case: tuple[Words, int]) -> None:
    values, width = case
    fast, slow = empty_packed(values, width), empty_packed(values, width)
    packing._pack_native(built, values, width, fast)
    packing._pack_numpy(values, width, slow)
    assert fast.tobytes() == slow.tobytes()
    total = COINS.uint64(len(values)).astype(values.dtype)
    first, second = total.copy(), total.copy()
    packing._unpack_add_native(built, fast, first, width)
    packing._unpack_add_numpy(fast, second, width)
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("width", [1, 7, 20, 26, 32, 57, 58, 63, 64])
def test_c_and_numpy_agree_across_tiles(built: kernels.Native, width: int) -> None:
    dtype = np.uint32 if width <= 32 else np.uint64
    for count in (TILE - 1, TILE, TILE + 1, 2 * TILE + 77):
        values = COINS.uint64(count).astype(dtype)
        fast, slow = empty_packed(values, width), empty_packed(values, width)
        packing._pack_native(built, values, width, fast)
        packing._pack_numpy(values, width, slow)
        assert (fast == slow).all()
        kept = values & dtype((1 << width) - 1)
        first, second = np.zeros(count, dtype), np.zeros(count, dtype)
        packing._unpack_add_native(built, fast, first, width)
        packing._unpack_add_numpy(fast, second, width)
        assert (first == kept).all() and (second == kept).all()


@pytest.mark.parametrize("width", range(1, 65))
def test_c_writes_and_reads_nothing_beyond_its_arrays(built: kernels.Native, width: int) -> None:
    """Guards on both sides of the bytes: those written stay, and those read do not show in a value."""
    for dtype in (np.uint32, np.uint64):
        if width > 8 * np.dtype(dtype).itemsize:
            continue
        for count in range(40):
            values = COINS.uint64(count).astype(dtype)
            size = packed_bytes(count, width)
            room = np.full(size + 32, 0xFF, np.uint8)
            packing._pack_native(built, values, width, room[16 : 16 + size])
            assert (room[:16] == 0xFF).all() and (room[16 + size :] == 0xFF).all()
            total = np.zeros(count + 8, dtype)
            packing._unpack_add_native(built, room[16 : 16 + size], total[4 : 4 + count], width)
            assert (total[4 : 4 + count] == values & dtype((1 << width) - 1)).all()
            assert not total[:4].any() and not total[4 + count :].any()


@pytest.mark.parametrize("on", ["0", "1"])
@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_values_are_added_modulo_the_word(
    dtype: type[np.unsignedinteger], on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TACIT_NATIVE", on)
    bits = 8 * np.dtype(dtype).itemsize
    for width in (5, 20, 32, bits):
        values = COINS.uint64(777).astype(dtype)
        total = COINS.uint64(777).astype(dtype)
        total[:3] = 2**bits - 1
        expected = [
            (a + b % 2**width) % 2**bits
            for a, b in zip(total.tolist(), values.tolist(), strict=True)
        ]
        unpack_add(pack(values, width), total, width)
        assert total.tolist() == expected


def test_the_size_is_the_closed_form() -> None:
    assert packed_bytes(0, 64) == 0
    assert packed_bytes(3, 3) == 2
    assert packed_bytes(8, 26) == 26
    assert packed_bytes(1_000_003, 26) == 3_250_010
    for count, width in ((-1, 8), (1, 0), (1, 65)):
        with pytest.raises(ConfigError):
            packed_bytes(count, width)


# --- a peer's bytes


@pytest.mark.parametrize("on", ["0", "1"])
def test_another_length_is_refused_and_the_total_stays(
    on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TACIT_NATIVE", on)
    packed = pack(COINS.uint64(10), 13)
    total = np.zeros(10, np.uint64)
    for wrong in (packed[:-1], np.append(packed, np.uint8(0)), packed[:0]):
        with pytest.raises(WireError, match="17 bytes expected for 10 values of 13 bits"):
            unpack_add(wrong, total, 13)
    assert not total.any()


@steady
@given(cases(), st.integers(0, 7))
def test_each_bit_after_the_last_value_is_refused(case: tuple[Words, int], bit: int) -> None:
    """So that each list of values has one encoding; a bit that belongs to a value changes it instead."""
    values, width = case
    packed = pack(values, width)
    if not len(packed):
        return
    used = len(values) * width - 8 * (len(packed) - 1)  # bits of the last byte, 1 to 8
    packed[-1] ^= 1 << bit
    total = np.zeros_like(values)
    if bit >= used:
        with pytest.raises(WireError, match="bits after the last"):
            unpack_add(packed, total, width)
        assert not total.any()
    else:
        unpack_add(packed, total, width)
        assert total.tolist() == slow_unpack(packed.tobytes(), len(values), width)
        assert total.tolist() != [value % 2**width for value in values.tolist()]


def test_what_is_no_vector_of_bytes_is_refused() -> None:
    total = np.zeros(8, np.uint32)
    for wrong in (
        np.zeros(8, np.int8),
        np.zeros((2, 4), np.uint8),
        np.zeros(16, np.uint8)[::2],
        np.zeros(2, np.uint32),
    ):
        with pytest.raises(WireError, match="contiguous vector of uint8"):
            unpack_add(wrong, total, 8)


def test_a_count_that_the_bytes_cannot_hold_is_refused_before_anything_is_allocated() -> None:
    tracemalloc.start()
    with pytest.raises(WireError, match="bytes expected for"):
        unpack(np.zeros(10, np.uint8), 1 << 40, 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 16


# --- the caller's mistakes


@pytest.mark.parametrize(
    ("values", "width", "said"),
    [
        (np.zeros(4), 8, "uint32 or uint64 expected, got float64"),
        (np.zeros(4, np.int32), 8, "uint32 or uint64 expected"),
        (np.zeros(4, ">u4"), 8, "uint32 or uint64 expected"),
        (np.zeros((2, 2), np.uint32), 8, r"got uint32 \(2, 2\)"),
        (np.zeros(8, np.uint32)[::2], 8, "contiguous"),
        (np.zeros(4, np.uint32), 0, "from 1 to 32 bits expected for uint32, got 0"),
        (np.zeros(4, np.uint32), 33, "from 1 to 32 bits expected for uint32, got 33"),
        (np.zeros(4, np.uint64), 65, "from 1 to 64 bits expected for uint64, got 65"),
    ],
)
def test_what_is_wrong_is_refused(values: Words, width: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        pack(values, width)
    with pytest.raises(ConfigError, match=said):
        unpack_add(np.zeros(4, np.uint8), values, width)


def test_a_total_that_may_not_be_written_and_a_type_that_is_none_are_refused() -> None:
    frozen = np.zeros(4, np.uint32)
    frozen.flags.writeable = False
    with pytest.raises(ConfigError, match="may be written"):
        unpack_add(np.zeros(4, np.uint8), frozen, 8)
    with pytest.raises(ConfigError, match="uint32 or uint64 expected"):
        unpack(np.zeros(4, np.uint8), 4, 8, np.int64)
    with pytest.raises(ConfigError, match="must not be negative"):
        unpack(np.zeros(4, np.uint8), -1, 8)
    assert pack(frozen, 8).tolist() == [0] * 4  # reading is fine
