"""Fixed point: exact rounding, errors that say which scale fits, and truncation that fails as often as it says."""

from __future__ import annotations

import re
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, RangeError
from tacit.crypto.fixedpoint import FixedPoint, truncate_share, truncation_failure
from tacit.crypto.ring import Z32, Z64, Ring

steady = settings(derandomize=True, deadline=None, max_examples=100)
either = pytest.mark.parametrize("ring", [Z64, Z32], ids=str)


@st.composite
def precisions(draw: st.DrawFn) -> FixedPoint:
    ring = draw(st.sampled_from([Z64, Z32]))
    return FixedPoint(draw(st.integers(0, ring.bits // 2 - 2)), ring)


def signed(fixed: FixedPoint, elements) -> list[int]:
    return elements.view(fixed.ring.signed).tolist()


@given(fixed=precisions(), data=st.data())
@steady
def test_a_real_is_the_nearest_integer_times_the_step(
    fixed: FixedPoint, data: st.DataObject
) -> None:
    """Against fractions; ties go to the even integer."""
    real = st.floats(-fixed.largest, fixed.largest)
    reals = np.array(data.draw(st.lists(real, max_size=5)))
    came = fixed.encode(reals)
    assert came.dtype == fixed.ring.dtype and came.shape == reals.shape
    exact = [Fraction(x) * 2**fixed.fraction for x in reals.tolist()]
    assert signed(fixed, came) == [round(x) for x in exact]  # of Fraction: to even too
    if fixed.ring == Z32 or all(abs(x) < 2**53 for x in exact):
        error = np.abs(fixed.decode(came) - reals)
        assert (error <= 2.0 ** -(fixed.fraction + 1)).all()


@given(fixed=precisions(), values=st.lists(st.integers(-(2**52), 2**52), max_size=5))
@steady
def test_decoding_and_encoding_again_changes_nothing(fixed: FixedPoint, values: list[int]) -> None:
    limit = 2 ** (fixed.ring.bits - 2 - fixed.fraction)
    kept = np.array([max(-limit, min(limit, v)) for v in values], np.int64)
    elements = kept.astype(fixed.ring.signed).view(fixed.ring.dtype)
    decoded = fixed.decode(elements)
    assert [Fraction(x) * 2**fixed.fraction for x in decoded.tolist()] == kept.tolist()
    assert np.array_equal(fixed.encode(decoded), elements)


@given(fixed=precisions(), data=st.data())
@steady
def test_truncation_in_the_clear_rounds_down(fixed: FixedPoint, data: st.DataObject) -> None:
    bits = data.draw(st.integers(0, fixed.ring.bits - 1))
    values = data.draw(st.lists(st.integers(-(2 ** (fixed.ring.bits - 1)), 2 ** (fixed.ring.bits - 1) - 1)))  # fmt: skip
    elements = np.array(values, fixed.ring.signed).view(fixed.ring.dtype)
    assert signed(fixed, fixed.truncate(elements, bits)) == [
        floor(Fraction(v, 2**bits)) for v in values
    ]
    assert signed(fixed, fixed.truncate(elements)) == [v >> fixed.fraction for v in values]


@given(fixed=precisions(), data=st.data())
@steady
def test_a_product_of_what_may_be_encoded_fits_the_ring(
    fixed: FixedPoint, data: st.DataObject
) -> None:
    """Of the largest real and 1: twice the fraction, and it comes back."""
    x = fixed.largest * data.draw(st.floats(-1, 1))
    other = min(1.0, fixed.largest)
    product = fixed.encode([x]) * fixed.encode([other])
    exact = round(Fraction(x) * 2**fixed.fraction) * round(Fraction(other) * 2**fixed.fraction)
    assert signed(fixed, product) == [exact]


@either
def test_what_does_not_fit_is_an_error_that_names_the_tensor_and_a_scale(ring: Ring) -> None:
    fixed = FixedPoint(13, ring)
    reals = np.array([0.5, -fixed.largest * 40, 3.0])
    with pytest.raises(RangeError, match="layer 3 weights") as caught:
        fixed.encode(reals, "layer 3 weights")
    text = str(caught.value)
    assert f"{ring} with 13" in text and "fewer fractional bits" in text
    (scale,) = re.findall(r"divide layer 3 weights by ([0-9.e+]+) or more", text)
    assert 40 <= float(scale) <= 41
    fixed.encode(reals / float(scale), "layer 3 weights")
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(RangeError, match="gradients: a value is not finite"):
            fixed.encode([1.0, value], "gradients")


@either
def test_the_scale_that_an_error_gives_is_enough_whatever_the_value(ring: Ring) -> None:
    """As it is printed, rounded."""
    fixed = FixedPoint(13, ring)
    short = []
    for factor in np.linspace(1.0001, 9.9999, 400):
        with pytest.raises(RangeError) as caught:
            fixed.encode([fixed.largest * factor], "x")
        (scale,) = re.findall(r"divide x by ([0-9.e+]+) or more", str(caught.value))
        if fixed.largest * factor / float(scale) > fixed.largest:
            short.append((factor, scale))
    assert not short


@either
def test_the_ends_of_what_fits(ring: Ring) -> None:
    for fraction in range(ring.bits // 2 - 1):
        fixed = FixedPoint(fraction, ring)
        ends = [fixed.largest, -fixed.largest]
        assert signed(fixed, fixed.encode(ends)) == [int(x * 2**fraction) for x in ends]
        with pytest.raises(RangeError):
            fixed.encode(np.nextafter(fixed.largest, np.inf))
    for wrong in (-1, ring.bits // 2 - 1, ring.bits):
        with pytest.raises(ConfigError, match="fractional bits fit"):
            FixedPoint(wrong, ring)


def test_scalars_lists_and_empty_arrays_are_encoded() -> None:
    fixed = FixedPoint(13)
    assert fixed.encode(2.0).shape == () and int(fixed.encode(2.0)) == 2 << 13
    assert fixed.encode([[1, -1]]).tolist() == [[1 << 13, 2**64 - (1 << 13)]]
    assert fixed.encode(np.zeros((0, 3))).shape == (0, 3)
    with pytest.raises(ConfigError, match="got uint32"):
        fixed.decode(np.zeros(3, np.uint32))


# --- truncation of shares


def slow_share(share: int, bits: int, party: int, ring: Ring) -> int:
    """SecureML, section 4.1, in Python's integers."""
    size = 1 << ring.bits
    return share >> bits if party == 0 else -((-share % size) >> bits) % size


@given(ring=st.sampled_from([Z64, Z32]), data=st.data())
@steady
def test_a_share_is_shifted_as_the_paper_says(ring: Ring, data: st.DataObject) -> None:
    shares = data.draw(st.lists(st.integers(0, 2**ring.bits - 1), max_size=6))
    bits = data.draw(st.integers(0, ring.bits - 1))
    for party in (0, 1):
        came = truncate_share(np.array(shares, ring.dtype), bits, party)
        assert came.dtype == ring.dtype
        assert came.tolist() == [slow_share(share, bits, party, ring) for share in shares]


@pytest.mark.parametrize(
    "value", [0, 1, -1, 37, -37, 1 << 20, -(1 << 20), (1 << 27) + 5, -(1 << 27)]
)
def test_it_is_within_a_unit_unless_the_shares_wrap_the_wrong_way(value: int) -> None:
    """Theorem 1, case by case: on 20 000 shares, and on those where wrapping begins and ends."""
    size, bits = 1 << 32, 7
    edges = [(value + d) % size for d in (-2, -1, 0, 1, 2)] + [0, 1, 2, size - 1, size - 2]
    first = np.concatenate(
        [Z32.uniform(Coins.from_seed(b"shares"), (20_000,)), np.array(edges, np.uint32)]
    )
    second = np.uint32(value % size) - first
    total = truncate_share(first, bits, 0) + truncate_share(second, bits, 1)
    error = total.view(np.int32).astype(np.int64) - (value >> bits)
    sums = first.astype(object) + second.astype(object)
    # Shares of v >= 0 must wrap, s0 + s1 = v + 2^l; those of v < 0 must not, and s1 = 0 counts as 2^l.
    wraps = (sums >= size) | (second == 0)
    wrongly = (wraps if value < 0 else ~wraps).astype(bool)
    assert (np.abs(error[~wrongly]) <= 1).all()
    assert (np.abs(error[wrongly]) > 1).all()
    assert abs(wrongly.mean() - abs(value) / size) < 0.01


def test_the_bound_is_the_papers() -> None:
    assert truncation_failure(20, Z64) == 2.0**-43 and truncation_failure(20, Z32) == 2.0**-11
    assert truncation_failure(20) == 2.0**-43
    assert truncation_failure(31, Z32) == truncation_failure(40, Z32) == 1.0
