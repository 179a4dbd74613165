"""Planes and transposes: each bit is where it is said to be, whoever moved it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.crypto import bits, kernels
from tacit.crypto.bits import (
    join_bits,
    pack_plane,
    slice_bits,
    transpose_rows,
    unpack_plane,
    words_of,
)

COINS = Coins.from_seed(b"bits")
steady = settings(derandomize=True, deadline=None, max_examples=60)
Words = npt.NDArray[np.unsignedinteger]
DTYPES = [np.uint32, np.uint64]

# Lengths about the borders of words, of eight words side by side, and of numpy's chunks of 512 words.
LENGTHS = st.one_of(
    st.integers(0, 200),
    st.sampled_from([447, 448, 449, 511, 512, 513, 575, 1023, 1024, 1025, 4095, 4161]),
    st.sampled_from([32_767, 32_768, 32_769, 40_001]),
)
WORDS = st.one_of(st.integers(0, 20), st.sampled_from([63, 64, 65, 511, 512, 513, 1025]))


def slow_planes(values: list[int], width: int) -> list[list[int]]:
    """Bit by bit, in Python's integers."""
    planes = [[0] * -(-len(values) // 64) for _ in range(width)]
    for i, value in enumerate(values):
        for b in range(width):
            planes[b][i // 64] |= (value >> b & 1) << (i % 64)
    return planes


def slow_rows(columns: list[list[int]]) -> list[list[int]]:
    """Bit by bit, in Python's integers."""
    rows = [[0, 0] for _ in range(64 * len(columns[0]))]
    for i, column in enumerate(columns):
        for j, row in enumerate(rows):
            row[i // 64] |= (column[j // 64] >> (j % 64) & 1) << (i % 64)
    return rows


def drawn(count: int, dtype: type[np.unsignedinteger]) -> Words:
    return COINS.uint64(count).astype(dtype)


def levels(built: kernels.Native) -> range:
    return range(built.lib.tacit_bits_level() + 1)


def slicers(built: kernels.Native) -> list[Callable[[Words, bits.Planes], None]]:
    """numpy's, and C's at each level that this processor has."""
    return [
        bits._slice_numpy,
        *(lambda v, p, n=n: bits._slice_native(built, n, v, p) for n in levels(built)),
    ]


def joiners(built: kernels.Native) -> list[Callable[[bits.Planes, Words], None]]:
    return [
        bits._join_numpy,
        *(lambda p, v, n=n: bits._join_native(built, n, p, v) for n in levels(built)),
    ]


def transposers(built: kernels.Native) -> list[Callable[[bits.Planes, bits.Planes], None]]:
    return [
        bits.rows_numpy,
        *(lambda c, r, n=n: bits._rows_native(built, n, c, r) for n in levels(built)),
    ]


@pytest.fixture(params=["C", "numpy"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Public functions by C, where it was built, and by numpy."""
    if request.param == "C":
        request.getfixturevalue("built")
    monkeypatch.setenv("TACIT_NATIVE", "1" if request.param == "C" else "0")
    assert (kernels.native() is not None) == (request.param == "C")
    return str(request.param)


# --- where each bit is


def test_a_written_out_example(kernel: str) -> None:
    values = np.zeros(70, np.uint64)
    values[0], values[1], values[69] = 0b101, 1 << 63, 0b100
    planes = slice_bits(values)
    assert planes.shape == (64, 2) and planes.dtype == np.uint64
    assert planes[0].tolist() == [1, 0]
    assert planes[2].tolist() == [1, 1 << 5]
    assert planes[63].tolist() == [2, 0]
    assert not planes[[1, *range(3, 63)]].any()


@steady
@given(LENGTHS, st.sampled_from(DTYPES), st.data())
def test_slices_are_those_of_single_bits(
    count: int, dtype: type[np.unsignedinteger], data: st.DataObject
) -> None:
    values = drawn(min(count, 1100), dtype)
    width = data.draw(st.integers(1, 8 * values.itemsize))
    planes = slice_bits(values, width)
    assert planes.shape == (width, words_of(len(values)))
    assert planes.tolist() == slow_planes(values.tolist(), width)


@steady
@given(LENGTHS, st.sampled_from(DTYPES), st.data())
def test_joined_slices_are_the_values_of_so_many_bits(
    count: int, dtype: type[np.unsignedinteger], data: st.DataObject
) -> None:
    values = drawn(count, dtype)
    width = data.draw(st.integers(1, 8 * values.itemsize))
    joined = join_bits(slice_bits(values, width), count, dtype)
    assert joined.dtype == dtype
    assert (joined == values & dtype(2**width - 1)).all()


def test_no_plane_at_all_joins_to_zeros(kernel: str) -> None:
    assert join_bits(np.zeros((0, 2), np.uint64), 100).tolist() == [0] * 100


def test_instances_beyond_the_count_are_ignored_in_joining(kernel: str) -> None:
    planes = np.full((64, 3), 2**64 - 1, np.uint64)
    assert join_bits(planes, 130).tolist() == [2**64 - 1] * 130
    assert join_bits(planes[:5], 130, np.uint32).tolist() == [31] * 130


def test_unused_instance_bits_of_a_slice_are_zero(kernel: str) -> None:
    for count in (1, 63, 65, 511, 513):
        planes = slice_bits(np.full(count, 2**64 - 1, np.uint64))
        assert unpack_plane(planes, count).all()
        unused = unpack_plane(planes, 64 * words_of(count))[:, count:]
        assert unused.size and not unused.any()


@steady
@given(st.integers(0, 12))
def test_rows_are_those_of_single_bits(words: int) -> None:
    columns = COINS.uint64((128, words))
    rows = transpose_rows(columns)
    assert rows.shape == (64 * words, 2) and rows.dtype == np.uint64
    assert rows.tolist() == slow_rows(columns.tolist())


def test_one_bit_of_a_matrix_arrives_where_it_must(kernel: str) -> None:
    for column, row in [(0, 0), (127, 0), (64, 63), (63, 64), (5, 600), (100, 639)]:
        columns = np.zeros((128, 10), np.uint64)
        columns[column, row // 64] = 1 << (row % 64)
        rows = transpose_rows(columns)
        assert int(rows[row, column // 64]) == 1 << (column % 64)
        assert np.count_nonzero(rows) == 1


def test_arrays_that_are_not_contiguous_count_as_they_read(kernel: str) -> None:
    values, columns = drawn(600, np.uint64), COINS.uint64((256, 30))
    assert (slice_bits(values[::3]) == slice_bits(values[::3].copy())).all()
    strided = columns[::2, ::3]
    assert (transpose_rows(strided) == transpose_rows(strided.copy())).all()
    planes = COINS.uint64((64, 6))[:, ::2]
    assert (join_bits(planes, 192) == join_bits(planes.copy(), 192)).all()


# --- C and numpy


@steady
@given(LENGTHS, st.sampled_from(DTYPES), st.data())
def test_c_and_numpy_agree_in_every_bit_of_slices(
    built: kernels.Native, count: int, dtype: type[np.unsignedinteger], data: st.DataObject
) -> None:
    values = drawn(count, dtype)
    width = data.draw(st.integers(1, 8 * values.itemsize))
    sliced, joined = set(), set()
    for one in slicers(built):
        planes = np.full((width, words_of(count)), 7, np.uint64)
        one(values, planes)
        sliced.add(planes.tobytes())
    planes = COINS.uint64((width, words_of(count)))
    for one in joiners(built):
        out = np.full(count, 7, dtype)
        one(planes, out)
        joined.add(out.tobytes())
    assert len(sliced) == len(joined) == 1


@steady
@given(WORDS)
def test_c_and_numpy_agree_in_every_bit_of_rows(built: kernels.Native, words: int) -> None:
    columns = COINS.uint64((128, words))
    results = set()
    for one in transposers(built):
        rows = np.full((64 * words, 2), 7, np.uint64)
        one(columns, rows)
        results.add(rows.tobytes())
    assert len(results) == 1


def test_nothing_beyond_the_result_is_written(built: kernels.Native) -> None:
    for count in (1, 63, 64, 65, 500, 513, 1030):
        words = words_of(count)
        for one in slicers(built):
            room = np.full((12, words), 7, np.uint64)
            one(drawn(count, np.uint64), room[2:10])
            assert (room[:2] == 7).all() and (room[10:] == 7).all()
        for dtype in DTYPES:
            for join in joiners(built):
                values = np.full(count + 128, 7, dtype)
                join(COINS.uint64((32, words)), values[64 : 64 + count])
                assert (values[:64] == 7).all() and (values[64 + count :] == 7).all()
                assert (values[64 : 64 + count] != 7).any()
        for transpose in transposers(built):
            rows = np.full((64 * words + 128, 2), 7, np.uint64)
            transpose(COINS.uint64((128, words)), rows[64:-64])
            assert (rows[:64] == 7).all() and (rows[-64:] == 7).all()


def test_a_level_that_the_processor_lacks_is_refused_and_changes_nothing(
    built: kernels.Native,
) -> None:
    for level in (-1, built.lib.tacit_bits_level() + 1, 3):
        values, planes = drawn(64, np.uint64), np.full((64, 1), 7, np.uint64)
        columns, rows = COINS.uint64((128, 1)), np.full((64, 2), 7, np.uint64)
        before = values.copy()
        with pytest.raises(ConfigError, match="no vectors of level"):
            bits._slice_native(built, level, values, planes)
        with pytest.raises(ConfigError, match="no vectors of level"):
            bits._join_native(built, level, planes, values)
        with pytest.raises(ConfigError, match="no vectors of level"):
            bits._rows_native(built, level, columns, rows)
        assert (planes == 7).all() and (rows == 7).all() and (values == before).all()


@pytest.mark.parametrize("chosen", ["C", "numpy"])
def test_the_public_functions_take_what_there_is(
    chosen: str, built: kernels.Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    names = {
        "C": ("_slice_native", "_join_native", "_rows_native"),
        "numpy": ("_slice_numpy", "_join_numpy", "rows_numpy"),
    }
    for name in (*names["C"], *names["numpy"]):
        plain = getattr(bits, name)
        monkeypatch.setattr(bits, name, lambda *a, f=plain, n=name: (used.append(n), f(*a)))
    monkeypatch.setenv("TACIT_NATIVE", "1" if chosen == "C" else "0")
    join_bits(slice_bits(drawn(100, np.uint64)), 100)
    transpose_rows(COINS.uint64((128, 2)))
    assert tuple(used) == names[chosen]


# --- flags


@steady
@given(st.integers(0, 300), st.lists(st.integers(0, 3), max_size=2), st.booleans())
def test_flags_packed_and_unpacked_are_the_flags(
    count: int, others: list[int], as_bool: bool
) -> None:
    flags = COINS.below(2, (*others, count)).astype(np.bool_ if as_bool else np.uint8)
    planes = pack_plane(flags)
    assert planes.dtype == np.uint64 and planes.shape == (*others, words_of(count))
    for index in np.ndindex(*others):
        number = sum(int(word) << (64 * i) for i, word in enumerate(planes[index]))
        assert number == sum(int(flag) << i for i, flag in enumerate(flags[index]))
    unpacked = unpack_plane(planes, count)
    assert unpacked.dtype == np.uint8 and unpacked.shape == flags.shape
    assert (unpacked == flags).all()


def test_a_flag_that_is_not_zero_is_a_one() -> None:
    assert pack_plane(np.array([0, 2, 255, 1], np.uint8)).tolist() == [0b1110]


def test_planes_that_are_not_contiguous_unpack_as_they_read() -> None:
    planes = COINS.uint64((4, 6))
    assert (unpack_plane(planes[::2, ::3], 128) == unpack_plane(planes[::2, ::3].copy(), 128)).all()


# --- what is refused


def wrong_calls() -> dict[str, tuple[Callable[[], object], str]]:
    values, planes = np.zeros(8, np.uint64), np.zeros((3, 2), np.uint64)
    return {
        "slice floats": (lambda: slice_bits(np.zeros(8)), "uint32 or uint64 expected, got float64"),
        "slice signed": (lambda: slice_bits(np.zeros(8, np.int64)), "got int64"),
        "slice big-endian": (lambda: slice_bits(np.zeros(8, ">u8")), "got >u8"),
        "slice a matrix": (lambda: slice_bits(np.zeros((2, 4), np.uint32)), r"got uint32 \(2, 4\)"),
        "slice no bits": (lambda: slice_bits(values, 0), "from 1 to 64 bits of uint64"),
        "slice 65 bits": (lambda: slice_bits(values, 65), "got 65"),
        "slice 33 of 32": (lambda: slice_bits(values.astype(np.uint32), 33), "from 1 to 32"),
        "join signed": (lambda: join_bits(planes, 100, np.int64), "uint32 or uint64 expected"),
        "join flat": (lambda: join_bits(values, 100), r"\(bits, 2\) expected"),
        "join narrow": (lambda: join_bits(planes, 129), r"\(bits, 3\) expected"),
        "join wide": (lambda: join_bits(planes, 64), r"\(bits, 1\) expected"),
        "join uint32": (lambda: join_bits(planes.astype(np.uint32), 100), "got uint32"),
        "join 33": (lambda: join_bits(np.zeros((33, 2), np.uint64), 100, np.uint32), "at most 32"),
        "join 65": (lambda: join_bits(np.zeros((65, 2), np.uint64), 100), "at most 64"),
        "join less than none": (lambda: join_bits(planes, -1), "must not be negative"),
        "pack words": (lambda: pack_plane(values), "bool or uint8"),
        "pack a scalar": (lambda: pack_plane(np.zeros((), np.uint8)), "bool or uint8"),
        "unpack bytes": (lambda: unpack_plane(np.zeros(2, np.uint8), 100), "got uint8"),
        "unpack too many": (lambda: unpack_plane(planes, 129), r"\(..., 3\) expected"),
        "unpack too few": (lambda: unpack_plane(planes, 64), r"\(..., 1\) expected"),
        "127 columns": (lambda: transpose_rows(np.zeros((127, 2), np.uint64)), r"\(128, words\)"),
        "narrow columns": (lambda: transpose_rows(np.zeros((128, 2), np.uint32)), "got uint32"),
        "flat columns": (lambda: transpose_rows(np.zeros(128, np.uint64)), r"\(128, words\)"),
    }


@pytest.mark.parametrize("case", wrong_calls())
def test_what_is_wrong_is_refused(case: str) -> None:
    call, said = wrong_calls()[case]
    with pytest.raises(ConfigError, match=said):
        call()
