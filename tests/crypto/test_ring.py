"""The rings are integers modulo 2^64 and 2^32: exact against Python's integers and slow loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.crypto.ring import Z32, Z64, Elements, Ring

steady = settings(derandomize=True, deadline=None, max_examples=40)
rings = st.sampled_from([Z64, Z32])
either = pytest.mark.parametrize("ring", [Z64, Z32], ids=str)
COINS = Coins.from_seed(b"ring")


def extreme(ring: Ring, shape: tuple[int, ...]) -> Elements:
    """Uniform, with every third element at an end of the ring."""
    values = ring.uniform(COINS, shape)
    values.reshape(-1)[::3] = ring.dtype.type(2**ring.bits - 1)
    values.reshape(-1)[1::6] = ring.dtype.type(2 ** (ring.bits - 1))
    return values


def integers(values: Elements) -> np.ndarray:
    return values.astype(object)


def wrapped(ring: Ring, values: np.ndarray) -> Elements:
    return (values % (1 << ring.bits)).astype(ring.dtype)


@given(ring=rings, size=st.integers(0, 30))
@steady
def test_sums_and_products_of_elements_wrap(ring: Ring, size: int) -> None:
    x, y = extreme(ring, (size,)), extreme(ring, (size,))[::-1]
    a, b = integers(x), integers(y)
    for came, exact in ((x + y, a + b), (x - y, a - b), (x * y, a * b), (-x, -a)):
        assert came.dtype == ring.dtype and np.array_equal(came, wrapped(ring, exact))


@given(ring=rings, m=st.integers(1, 24), k=st.integers(0, 40), n=st.integers(1, 24))
@steady
def test_matmul_is_exact_below_and_above_where_torch_takes_over(
    ring: Ring, m: int, k: int, n: int
) -> None:
    left, right = extreme(ring, (m, k)), extreme(ring, (k, n))
    came = ring.matmul(left, right)
    exact = integers(left) @ integers(right) if k else np.zeros((m, n), object)
    assert came.dtype == ring.dtype and np.array_equal(came, wrapped(ring, exact))


@either
def test_matmul_takes_views_and_read_only_arrays_and_changes_neither(ring: Ring) -> None:
    whole, right = extreme(ring, (60, 50)), extreme(ring, (40, 30))
    views = whole[:40, :40], whole.T[:30, :40], whole[::-1, :40], whole[1:41:2, 5:45]
    right.flags.writeable = False
    before = whole.copy()
    for left in views * 5:
        came = ring.matmul(left, right)
        assert np.array_equal(came, wrapped(ring, integers(left) @ integers(right)))
        came[0, 0] += 1  # is its own
    assert np.array_equal(whole, before)
    small = extreme(ring, (3, 2))
    small.flags.writeable = False
    assert ring.matmul(small, small.T).flags.writeable


def slow_conv2d(ring: Ring, images: Elements, filters: Elements, stride: int, padding: int):
    images = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    (n, c, height, width), (out, _, rows, columns) = images.shape, filters.shape
    shape = n, out, (height - rows) // stride + 1, (width - columns) // stride + 1
    result = np.zeros(shape, object)
    for i, o, y, x in np.ndindex(*shape):
        for k, r, s in np.ndindex(c, rows, columns):
            result[i, o, y, x] += int(images[i, k, y * stride + r, x * stride + s]) * int(filters[o, k, r, s])  # fmt: skip
    return wrapped(ring, result)


@given(
    ring=rings,
    images=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    filters=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
)
@steady
def test_conv2d_is_the_slow_loops(ring: Ring, images, filters, stride: int, padding: int) -> None:
    x, w = extreme(ring, images), extreme(ring, (filters[0], images[1], *filters[1:]))
    if min(images[2] - filters[1], images[3] - filters[2]) + 2 * padding < 0:
        with pytest.raises(ConfigError, match="does not fit into images"):
            ring.conv2d(x, w, stride=stride, padding=padding)
        return
    came = ring.conv2d(x, w, stride=stride, padding=padding)
    assert came.flags.c_contiguous
    assert np.array_equal(came, slow_conv2d(ring, x, w, stride, padding))


@either
def test_conv2d_is_torchs_on_small_values(ring: Ring) -> None:
    import torch

    x, w = COINS.below(9, (2, 3, 7, 6)) - 4, COINS.below(9, (4, 3, 3, 2)) - 4
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(x.astype(np.float64)), torch.from_numpy(w.astype(np.float64)), stride=2, padding=1
    ).numpy()  # fmt: skip
    given = (one.astype(ring.signed).view(ring.dtype) for one in (x, w))
    came = ring.conv2d(*given, stride=2, padding=1)
    assert np.array_equal(came.view(ring.signed), expected.astype(ring.signed))


@either
def test_patches_are_what_each_output_sees(ring: Ring) -> None:
    x = extreme(ring, (2, 3, 5, 4))
    seen = ring.patches(x, (2, 3), stride=2, padding=1)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    assert seen.shape == (2, 3, 2, 18)
    for i, y, c in np.ndindex(2, 3, 2):
        window = padded[i, :, 2 * y : 2 * y + 2, 2 * c : 2 * c + 3]
        assert np.array_equal(seen[i, y, c], window.reshape(-1))


@either
def test_what_does_not_fit_is_refused(ring: Ring) -> None:
    other = Z32 if ring == Z64 else Z64
    x, alien = ring.zeros((2, 3)), other.zeros((3, 2))
    for wrong, error in (
        (lambda: ring.matmul(x, alien), f"right: elements of {ring}".replace("^", r"\^")),
        (lambda: ring.matmul(alien, x), "left: elements of"),
        (lambda: ring.matmul(x, x), r"\(2, 3\) and \(2, 3\)"),
        (lambda: ring.matmul(x[0], x.T), "matrices that fit"),
        (lambda: ring.require(np.zeros(2), "weights"), "weights: elements of .* got float64"),
        (lambda: ring.require(x.view(ring.signed)), "got int"),
        (lambda: ring.conv2d(x, x), "images .* expected"),
        (lambda: ring.patches(ring.zeros((1, 1, 3, 3)), (2, 2), stride=0), "stride from 1"),
        (lambda: ring.patches(ring.zeros((1, 1, 3, 3)), (2, 2), padding=-1), "padding from 0"),
        (lambda: ring.patches(ring.zeros((1, 1, 3, 3)), (4, 2)), r"window of \(4, 2\)"),
    ):
        with pytest.raises(ConfigError, match=error):
            wrong()


@pytest.mark.parametrize("bits", [0, 16, 63, 65, 128, -64])
def test_there_are_two_rings(bits: int) -> None:
    with pytest.raises(ConfigError, match=f"64 or 32 bits expected, got {bits}"):
        Ring(bits)
    assert (str(Z64), str(Z32), Ring()) == ("Z_2^64", "Z_2^32", Z64)


@either
def test_uniform_elements_are_the_bytes_of_the_coins(ring: Ring) -> None:
    drawn = ring.uniform(Coins.from_seed(b"u"), (3, 5))
    expected = Coins.from_seed(b"u").bytes(15 * ring.bits // 8)
    assert drawn.tobytes() == expected and drawn.dtype == ring.dtype
    assert ring.uniform(COINS, (0, 4)).shape == (0, 4)


@either
@pytest.mark.parametrize(
    "window, stride, padding",
    [
        ((2, 2), 2, 0),
        ((3, 2), (2, 1), (1, 0)),
        ((3, 3), 1, 1),
        ((2, 3), (3, 2), (0, 2)),
        ((1, 1), 2, 0),
    ],
)
def test_fold_is_the_transpose_of_patches(ring: Ring, window, stride, padding) -> None:
    """<patches(x), s> = <x, fold(s)> for any x and s."""
    images = extreme(ring, (2, 3, 6, 7))
    seen = ring.patches(images, window, stride=stride, padding=padding)
    other = extreme(ring, seen.shape)[..., ::-1].copy()
    folded = ring.fold(other, images.shape[1:], window, stride=stride, padding=padding)
    assert folded.shape == images.shape and folded.dtype == ring.dtype
    products = ((seen * other).sum(dtype=ring.dtype), (images * folded).sum(dtype=ring.dtype))
    assert products[0] == products[1]
