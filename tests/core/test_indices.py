"""Packed indices: what they cost, that they come back, and that nothing else is taken for them."""

from __future__ import annotations

import contextlib
import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit.core import indices
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, WireError

COINS = Coins.from_seed(b"indices")
steady = settings(derandomize=True, deadline=None, max_examples=200)


def slow_encode(chosen: list[int], below: int) -> bytes:
    """Elias-Fano, bit by bit, from its definition."""
    count = len(chosen)
    if count in (0, below):
        return b""
    width = 0
    while count * 2 ** (width + 1) <= below:
        width += 1
    low = "".join(str(index >> bit & 1) for index in chosen for bit in range(width))
    buckets = [0] * math.ceil(below / 2**width)
    for index in chosen:
        buckets[index >> width] += 1
    high = "".join("1" * held + "0" for held in buckets)
    return b"".join(
        bytes(int(part[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(part), 8))
        for part in (low, high)
    )


@st.composite
def some_of_many(draw: st.DrawFn, most: int = 400) -> tuple[list[int], int]:
    below = draw(st.integers(1, most))
    chosen = draw(st.sets(st.integers(0, below - 1)))
    return sorted(chosen), below


@steady
@given(some_of_many())
def test_what_was_encoded_comes_back_and_takes_the_stated_bytes(
    case: tuple[list[int], int],
) -> None:
    chosen, below = case
    data = indices.encode(np.array(chosen, np.int64), below)
    assert len(data) == indices.encoded_bytes(len(chosen), below)
    assert indices.decode(data, len(chosen), below).tolist() == chosen


@steady
@given(some_of_many())
def test_the_bits_are_those_of_elias_fano_written_by_hand(case: tuple[list[int], int]) -> None:
    chosen, below = case
    assert indices.encode(np.array(chosen, np.int64), below) == slow_encode(chosen, below)


def test_the_size_is_the_closed_form_of_the_docstring() -> None:
    for below in (2, 3, 7, 64, 1000, 140_106):
        for count in {1, 2, below // 100, below // 10, below // 2, below - 1} - {0, below}:
            low = math.floor(math.log2(below / count))
            first, second = count * low, count + math.ceil(below / 2**low)
            assert indices.encoded_bytes(count, below) == -(-first // 8) + -(-second // 8)
    assert indices.encoded_bytes(0, 10) == indices.encoded_bytes(10, 10) == 0


@pytest.mark.parametrize(
    ("theta", "more"),
    [(0.001, 0.63), (0.003, 0.6), (0.01, 0.6), (0.05, 0.6), (0.1, 0.6), (0.2, 0.65), (0.5, 1.01)],
)
def test_an_index_takes_about_half_a_bit_more_than_a_random_set_needs_up_to_a_tenth(
    theta: float, more: float
) -> None:
    """Beyond a tenth the distance grows: a set that holds half of all places costs a bit more an index."""
    for below in (10_000, 140_106):
        count = int(theta * below)
        needed = (
            math.lgamma(below + 1) - math.lgamma(count + 1) - math.lgamma(below - count + 1)
        ) / math.log(2)
        spent = 8 * indices.encoded_bytes(count, below)
        assert needed <= spent <= needed + more * count + 16
        assert spent <= count * (2.05 + math.log2(1 / theta)) + 16


def test_every_set_of_a_small_universe_has_its_own_bytes_and_no_other_bytes_are_taken() -> None:
    """All byte strings of the right length: exactly the n choose k encodings are accepted."""
    for below, count in ((6, 2), (7, 3), (5, 1), (7, 4), (8, 6), (3, 2)):
        length = indices.encoded_bytes(count, below)
        assert 1 <= length <= 2
        accepted = {}
        for raw in itertools.product(range(256), repeat=length):
            try:
                accepted[bytes(raw)] = tuple(indices.decode(bytes(raw), count, below))
            except WireError:
                continue
        expected = {
            indices.encode(np.array(chosen, np.int64), below): chosen
            for chosen in itertools.combinations(range(below), count)
        }
        assert accepted == expected


@steady
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), st.data())
def test_bytes_are_refused_or_are_the_only_encoding_of_what_they_decode_to(
    sizes: tuple[int, int], data: st.DataObject
) -> None:
    below, count = sizes
    length = indices.encoded_bytes(count, below)
    raw = data.draw(st.binary(min_size=length, max_size=length) | st.binary(max_size=length + 2))
    try:
        found = indices.decode(raw, count, below)
    except WireError:
        return
    assert indices.encode(found, below) == raw


@steady
@given(some_of_many(100), st.data())
def test_no_flipped_bit_decodes_to_the_same_set(
    case: tuple[list[int], int], data: st.DataObject
) -> None:
    chosen, below = case
    raw = bytearray(indices.encode(np.array(chosen, np.int64), below))
    if not raw:
        return
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(WireError):
        assert indices.decode(bytes(raw), len(chosen), below).tolist() != chosen


def test_the_empty_the_full_and_the_single_set() -> None:
    nothing = np.empty(0, np.int64)
    assert indices.encode(nothing, 0) == indices.encode(nothing, 9) == b""
    assert indices.decode(b"", 0, 9).tolist() == indices.decode(b"", 0, 0).tolist() == []
    assert indices.encode(np.arange(9), 9) == b""
    assert indices.decode(b"", 9, 9).tolist() == list(range(9))
    assert indices.decode(b"", 0, 9).dtype == indices.decode(b"", 9, 9).dtype == np.int64
    for only in range(100):
        data = indices.encode(np.array([only]), 100)
        assert indices.decode(data, 1, 100).tolist() == [only]
    with pytest.raises(WireError, match="0 bytes expected for 9 of 9"):
        indices.decode(b"\0", 9, 9)


@pytest.mark.parametrize("below", [1 << 31, 1 << 33, (1 << 40) + 1, 1 << 62])
def test_huge_universes_cost_bits_by_the_index_and_not_by_the_place(below: int) -> None:
    chosen = np.array([0, 1, below // 3, below - 2, below - 1])
    tracemalloc.start()
    data = indices.encode(chosen, below)
    back = indices.decode(data, 5, below)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert back.tolist() == chosen.tolist()
    assert len(data) <= 5 * (math.log2(below) + 2) / 8 + 2
    assert peak < 1 << 20


@pytest.mark.parametrize("count", [-1, 11, 1 << 40, 1 << 80])
def test_a_count_that_no_set_has_is_refused_before_anything_is_allocated(count: int) -> None:
    for ask in (
        lambda: indices.encoded_bytes(count, 10),
        lambda: indices.decode(b"\0" * 4, count, 10),
    ):
        with pytest.raises(ConfigError, match="a count from 0 to 10 expected"):
            ask()


def test_a_count_that_the_bytes_cannot_hold_is_refused_before_anything_is_allocated() -> None:
    tracemalloc.start()
    with pytest.raises(WireError, match="bytes expected for"):
        indices.decode(b"\0" * 10, 1 << 50, 1 << 60)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 16


@pytest.mark.parametrize("wrong", [[3, 3], [4, 2], [-1, 2], [2, 10], [9, 10]], ids=str)
def test_indices_that_do_not_ascend_or_are_out_of_range_are_not_encoded(wrong: list[int]) -> None:
    with pytest.raises(ConfigError, match="strictly ascending indices from 0 to 9"):
        indices.encode(np.array(wrong), 10)


def test_a_set_that_repeats_an_index_or_passes_the_end_is_refused_though_its_bits_fit() -> None:
    def forged(chosen: list[int], below: int) -> bytes:
        return slow_encode(chosen, below)

    with pytest.raises(WireError, match="strictly ascending"):
        indices.decode(forged([3, 3], 10), 2, 10)
    with pytest.raises(WireError, match="strictly ascending"):  # 2 low bits, descending in a bucket
        indices.decode(forged([2, 1], 10), 2, 10)
    assert indices.decode(forged([8, 9], 10), 2, 10).tolist() == [8, 9]
    with pytest.raises(WireError, match="strictly ascending"):  # bucket 8..11 reaches past 9
        indices.decode(forged([8, 10], 10), 2, 10)


def test_length_tells_nothing_about_which_indices_are_meant() -> None:
    below, count = 5000, 50
    lengths = {
        len(indices.encode(np.sort(COINS.permutation(below)[:count]), below)) for _ in range(30)
    }
    lengths.add(len(indices.encode(np.arange(count), below)))
    lengths.add(len(indices.encode(np.arange(below - count, below), below)))
    assert len(lengths) == 1
