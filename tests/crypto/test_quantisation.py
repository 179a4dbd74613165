"""Stochastic rounding: by the formula, without bias, and the same in C and numpy."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, RangeError
from tacit.crypto import kernels, quantisation
from tacit.crypto.quantisation import Quantiser

FALSE_ALARM = 1e-9  # of each statistical test; the seeds are fixed, so a pass stays a pass
COINS = Coins.from_seed(b"quantisation")
steady = settings(derandomize=True, deadline=None, max_examples=100)

clips = st.floats(1e-30, 1e30) | st.sampled_from([1.0, 0.1, 3.0, 1e-30, 1e30])
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Quantiser, npt.NDArray[np.float32], npt.NDArray[np.uint32]]:
    """Values within the clip, on its edge and beyond; coins at both ends too."""
    quantiser = Quantiser(clip=draw(clips), bits=draw(st.integers(1, 32)))
    edge = float(np.float32(quantiser.clip))
    inside = st.floats(-1, 1).map(lambda unit: float(np.float32(unit * quantiser.clip)))
    values = draw(
        st.lists(inside | floats | st.sampled_from([edge, -edge, 0.0, -0.0]), max_size=40)
    )
    ends = st.sampled_from([0, 1, 2**31, 2**32 - 1])
    coins = draw(
        st.lists(st.integers(0, 2**32 - 1) | ends, min_size=len(values), max_size=len(values))
    )
    return quantiser, np.array(values, np.float32), np.array(coins, np.uint32)


def slow_quantise(quantiser: Quantiser, value: float, coin: int) -> int:
    """The formula, one value at a time, in Python's floats."""
    x = min(max(value, -quantiser.clip), quantiser.clip)
    scaled = (x + quantiser.clip) * ((2**quantiser.bits - 1) / (2 * quantiser.clip))
    return min(math.floor(scaled + coin * 2.0**-32), 2**quantiser.bits - 1)


class Scripted(Coins):
    """Coins whose draws are given."""

    __slots__ = ("_left",)

    def __init__(self, coins: npt.NDArray[np.uint32]) -> None:
        super().__init__()
        self._left = coins.astype("<u4").tobytes()

    def fill(self, buffer: npt.NDArray[np.uint8]) -> None:
        buffer[:] = np.frombuffer(self._left[: len(buffer)], np.uint8)
        self._left = self._left[len(buffer) :]


@steady
@given(cases(), st.sampled_from([np.uint32, np.uint64]), st.sampled_from(["0", "1"]))
def test_each_integer_is_that_of_the_formula(
    case: tuple[Quantiser, npt.NDArray[np.float32], npt.NDArray[np.uint32]],
    dtype: type[np.unsignedinteger],
    on: str,
) -> None:
    quantiser, values, coins = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TACIT_NATIVE", on)
        found, clamped = quantiser.quantise(values, Scripted(coins), dtype=dtype)
    assert found.dtype == dtype
    assert found.tolist() == [
        slow_quantise(quantiser, value, coin)
        for value, coin in zip(values.tolist(), coins.tolist(), strict=True)
    ]
    assert clamped == sum(abs(value) > quantiser.clip for value in values.tolist())


@steady
@given(cases(), st.sampled_from([np.uint32, np.uint64]))
def test_c_and_numpy_agree_in_every_bit(
    built: kernels.Native,
    case: tuple[Quantiser, npt.NDArray[np.float32], npt.NDArray[np.uint32]],
    dtype: type[np.unsignedinteger],
) -> None:
    quantiser, values, coins = case
    fast, slow = np.full(len(values), 7, dtype), np.full(len(values), 9, dtype)
    counts = (
        quantisation._quantise_native(built, quantiser, values, coins, fast),
        quantisation._quantise_numpy(quantiser, values, coins, slow),
    )
    assert fast.tobytes() == slow.tobytes()
    assert counts[0] == counts[1]


@pytest.mark.parametrize("bits", [1, 2, 8, 16, 20, 24, 31, 32])
def test_c_and_numpy_agree_on_many_values(built: kernels.Native, bits: int) -> None:
    for clip in (1.0, 0.1, 2.9999, 1e-7):
        quantiser = Quantiser(clip=clip, bits=bits)
        values = ((COINS.unit(30_011) - 0.5) * 2.2 * clip).astype(np.float32)
        coins = (COINS.uint64(30_011) >> np.uint64(32)).astype(np.uint32)
        for dtype in (np.uint32, np.uint64):
            fast, slow = np.empty(30_011, dtype), np.empty(30_011, dtype)
            first = quantisation._quantise_native(built, quantiser, values, coins, fast)
            second = quantisation._quantise_numpy(quantiser, values, coins, slow)
            assert (fast == slow).all() and first == second
            assert first[0] == 0 and first[1] > 1000


@pytest.mark.parametrize("count", [0, 1, 32_767, 32_768, 32_769, 70_001])
def test_both_draw_the_same_coins_four_bytes_a_value(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantiser = Quantiser(clip=1, bits=20)
    values = (COINS.unit(count) * 2 - 1).astype(np.float32)
    results = []
    for on in ("0", "1"):
        monkeypatch.setenv("TACIT_NATIVE", on)
        coins = Coins.from_seed(b"same")
        found, _ = quantiser.quantise(values, coins)
        results.append((found.tobytes(), coins.bytes(16)))
    fresh = Coins.from_seed(b"same")
    fresh.bytes(4 * count)
    assert results[0] == results[1]
    assert results[0][1] == fresh.bytes(16)


# --- no bias


@pytest.mark.parametrize("on", ["0", "1"])
@pytest.mark.parametrize("place", [0.0, 0.001, 0.3, 0.5, 0.999, 6.25, 14.75, 15.0])
def test_a_value_is_rounded_up_as_often_as_its_place_between_two_grid_points(
    place: float, on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A binomial test of the share rounded up; false alarm `FALSE_ALARM`."""
    monkeypatch.setenv("TACIT_NATIVE", on)
    quantiser = Quantiser(clip=1, bits=4)
    value = np.float32(-1 + place * quantiser.step)
    exact = (Fraction(float(value)) + 1) * 15 / 2
    below, part = math.floor(exact), float(exact - math.floor(exact))
    count = 200_000
    found, _ = quantiser.quantise(np.full(count, value), COINS.child(f"{place} {on}"))
    ups = int((found == below + 1).sum())
    assert ups + int((found == below).sum()) == count
    assert stats.binomtest(ups, count, part).pvalue > FALSE_ALARM


def test_rounding_to_the_nearest_would_be_noticed() -> None:
    assert stats.binomtest(0, 200_000, 0.3).pvalue < FALSE_ALARM
    assert stats.binomtest(int(0.31 * 200_000), 200_000, 0.3).pvalue < FALSE_ALARM


def test_the_mean_of_sums_is_the_sum_of_values() -> None:
    """A z-test over 400 sums of 5 values, false alarm `FALSE_ALARM`; the variance of one value is at most step^2 / 4."""
    quantiser = Quantiser(clip=2, bits=3)
    values = np.array([0.11, -1.7, 1.99, 0.5, -0.3], np.float32)
    coins = COINS.child("sums")
    repeats = 400
    sums = []
    for _ in range(repeats):
        found, clamped = quantiser.quantise(values, coins, dtype=np.uint64)
        assert clamped == 0
        sums.append(float(quantiser.dequantise(found.sum(keepdims=True, dtype=np.uint64), 5)[0]))
    spread = quantiser.step * math.sqrt(5 / 4 / repeats)
    assert abs(np.mean(sums) - float(values.sum(dtype=np.float64))) < spread * stats.norm.isf(
        FALSE_ALARM / 2
    )
    assert len(set(sums)) > 3


# --- there and back


@steady
@given(st.floats(-1, 1, width=32), st.integers(1, 32))
def test_what_comes_back_is_within_a_step(value: float, bits: int) -> None:
    quantiser = Quantiser(clip=1, bits=bits)
    found, clamped = quantiser.quantise(np.array([value], np.float32), COINS)
    assert clamped == 0 and 0 <= int(found[0]) < quantiser.levels
    assert abs(quantiser.dequantise(found, 1)[0] - value) <= quantiser.step * (1 + 2**-20)


def test_the_ends_of_the_clip_are_the_first_and_the_last_integer_whatever_the_coins() -> None:
    for bits in (1, 5, 20, 32):
        for clip in (1.0, 0.3, 7e-5):
            quantiser = Quantiser(clip=clip, bits=bits)
            values = np.array([-1e31, 1e31], np.float32)
            for coin in (0, 2**32 - 1):
                found, clamped = quantiser.quantise(values, Scripted(np.full(2, coin, np.uint32)))
                assert found.tolist() == [0, quantiser.levels - 1] and clamped == 2


def test_a_sum_is_read_by_the_formula() -> None:
    quantiser = Quantiser(clip=0.5, bits=8)
    assert quantiser.levels == 256 and quantiser.step == 1 / 255
    total = np.array([0, 255 * 3, 300], np.uint32)
    back = quantiser.dequantise(total, 3)
    assert back.dtype == np.float64
    assert back.tolist() == [-1.5, 255 * 3 * (1 / 255) - 1.5, 300 * (1 / 255) - 1.5]
    assert quantiser.dequantise(np.zeros(2, np.uint64), 0).tolist() == [0, 0]


# --- what is refused


@pytest.mark.parametrize("on", ["0", "1"])
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_counted_and_refused(
    odd: float, on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TACIT_NATIVE", on)
    values = np.zeros(70_000, np.float32)
    values[[0, 40_000, 69_999]] = odd
    with pytest.raises(RangeError, match="3 of 70000 values are NaN or infinite"):
        Quantiser(clip=1, bits=20).quantise(values, COINS)


@pytest.mark.parametrize("clip", [0, -1, math.nan, math.inf, 1e-31, 1e31])
def test_a_clip_out_of_range_is_refused(clip: float) -> None:
    with pytest.raises(ConfigError, match="a finite clip"):
        Quantiser(clip=clip, bits=8)


@pytest.mark.parametrize("bits", [0, -1, 33])
def test_bits_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(ConfigError, match="1 to 32 bits expected"):
        Quantiser(clip=1, bits=bits)


def test_what_is_no_vector_of_float32_or_no_word_is_refused() -> None:
    quantiser = Quantiser(clip=1, bits=8)
    for wrong in (
        np.zeros(4),
        np.zeros((2, 2), np.float32),
        np.zeros(8, np.float32)[::2],
        np.zeros(4, np.uint32),
    ):
        with pytest.raises(ConfigError, match="contiguous vector of float32"):
            quantiser.quantise(wrong, COINS)
    with pytest.raises(ConfigError, match="uint32 or uint64 expected, got int32"):
        quantiser.quantise(np.zeros(4, np.float32), COINS, dtype=np.int32)
    with pytest.raises(ConfigError, match="as uint32 or uint64 expected, got float64"):
        quantiser.dequantise(np.zeros(4), 1)
    with pytest.raises(ConfigError, match="must not be negative"):
        quantiser.dequantise(np.zeros(4, np.uint32), -1)
