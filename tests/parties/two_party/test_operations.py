"""Each operation of two parties is what its reference in the clear is, bit for bit, with a dealer and by transfer."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.crypto.circuits import (
    Circuit,
    carries_of_sum,
    relu_of_sum,
    sign_of_sum,
    sum_of_shares,
)
from tacit.crypto.fixedpoint import FixedPoint, truncation_failure
from tacit.crypto.ring import Z32, Z64, Ring
from tacit.parties.two_party import arithmetic, boolean, garbling
from tacit.parties.two_party.session import traced
from tacit.parties.two_party.store import MemoryStore, StreamedStore

from .conftest import (
    DEALT,
    ELEMENTWISE,
    FRACTION,
    SERVERS,
    TRANSFERRED,
    Operation,
    Setting,
    agrees,
    at,
    circuits,
    drawn,
    opens,
    outputs,
    rings,
    run,
    shared,
    signed,
    sizes,
    steady,
)

few = settings(steady, max_examples=6)
more = settings(steady, max_examples=40)
prepared_by = pytest.mark.parametrize("by", [DEALT, TRANSFERRED])
seeds = st.integers(0, 2**32)
shapes = st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple)

by_either = [
    pytest.param(operation, by, id=f"{operation.name}-{by}")
    for operation in ELEMENTWISE
    for by in (DEALT, TRANSFERRED)
    if not (operation.prepared and by == DEALT)
]


@pytest.mark.parametrize("operation, by", by_either)
@given(ring=rings, size=sizes, seed=seeds)
@steady
def test_on_any_values(operation: Operation, by: str, ring: Ring, size: int, seed: int) -> None:
    """Minimum, maximum, 0 and -1 are among the values of x; those of y come in another order."""
    x, y = drawn(seed, ring, size), drawn((seed, "y"), ring, size)[::-1].copy()
    agrees(opens(x, y, work=operation.work), Setting(at(ring), by=by), operation.clear(ring, x, y))


@pytest.mark.parametrize("operation", ELEMENTWISE, ids=lambda operation: operation.name)
@given(ring=rings, shape=shapes)
@few
def test_on_any_shape(operation: Operation, ring: Ring, shape: tuple[int, ...]) -> None:
    """Arrays of no elements are among the shapes."""
    x, y = drawn("x", ring, shape), drawn("y", ring, shape)
    by = TRANSFERRED if operation.prepared else DEALT
    agrees(opens(x, y, work=operation.work), Setting(at(ring), by=by), operation.clear(ring, x, y))


@pytest.mark.parametrize("ring", [Z64, Z32], ids=str)
def test_signs_of_all_that_lies_about_the_ends_of_the_ring(ring: Ring) -> None:
    half = 1 << (ring.bits - 1)
    edges = np.array([0, half, 1 << (ring.bits - 2)], np.uint64)
    values = (edges[:, None] + np.arange(-40, 40).astype(np.uint64)).astype(ring.dtype).reshape(-1)
    expected = (signed(ring, values) < 0).astype(ring.dtype)
    for sign in (boolean.sign, garbling.sign):
        work = opens(values, work=lambda s, x, sign=sign: boolean.from_bits(s, sign(s, x)))
        agrees(work, Setting(at(ring)), expected)


@given(ring=rings, seed=seeds)
@few
def test_less_than_is_less_than_for_values_whose_difference_fits(ring: Ring, seed: int) -> None:
    x, y = (signed(ring, drawn((seed, n), ring, 70)) >> 1 for n in range(2))
    y[:9] = x[:9]
    given = x.view(ring.dtype), y.view(ring.dtype)
    below = opens(*given, work=lambda s, x, y: boolean.from_bits(s, boolean.less_than(s, x, y)))
    agrees(below, Setting(at(ring)), (x < y).astype(ring.dtype))


@pytest.mark.parametrize("ring", [Z64, Z32], ids=str)
def test_exact_truncation_by_every_number_of_bits(ring: Ring) -> None:
    x = drawn("truncated", ring, 24)
    counts = range(1, ring.bits)
    work = opens(
        x, work=lambda s, x: tuple(boolean.truncate_exactly(s, x, bits) for bits in counts)
    )
    expected = [(signed(ring, x) >> bits).view(ring.dtype) for bits in counts]
    agrees(work, Setting(at(ring)), *expected)
    for bits in (0, ring.bits):
        with pytest.raises(ConfigError, match=f"1 to {ring.bits - 1} bits"):
            one = opens(x, work=lambda s, x, bits=bits: boolean.truncate_exactly(s, x, bits))
            outputs(one, Setting(at(ring)))


# --- sharing and opening


@given(ring=rings, shape=shapes, owner=st.integers(0, 1))
@few
def test_either_party_shares_inputs_and_both_learn_what_is_opened(
    ring: Ring, shape: tuple[int, ...], owner: int
) -> None:
    x, y = drawn("x", ring, shape), drawn("y", ring, (7,))

    def work(session):
        shares = shared(session, x, y, owner=owner)
        return *arithmetic.open_to_both(session, *shares), *shares

    first, second = outputs(work, Setting(at(ring)))
    for came in (first, second):
        assert np.array_equal(came[0], x) and np.array_equal(came[1], y)
    assert all((first[i] != (x, y)[i - 2]).all() for i in (2, 3) if first[i].size)


def test_an_owner_who_gives_a_shape_or_another_rings_values_is_told_so() -> None:
    for wrong, error in (((3,), "must give its values"), (drawn("x", Z32, 3), "are uint64")):
        work = lambda s, x=wrong: arithmetic.share_input(s, s.party, x)  # noqa: E731
        ran = run(work, Setting(at(Z64)), traced(lambda session: None, at(Z64)))
        for role in SERVERS:
            with pytest.raises(ConfigError, match=error):
                raise ran.errors[role]


# --- products


@prepared_by
@given(ring=rings, m=st.integers(1, 6), k=st.integers(1, 6), n=st.integers(1, 6), seed=seeds)
@steady
def test_matmul(by: str, ring: Ring, m: int, k: int, n: int, seed: int) -> None:
    x, w = drawn(seed, ring, (m, k)), drawn((seed, 1), ring, (k, n))
    agrees(opens(x, w, work=arithmetic.matmul), Setting(at(ring), by=by), x @ w)


@pytest.mark.parametrize("ring", [Z64, Z32], ids=str)
def test_matmul_of_sizes_where_torch_multiplies(ring: Ring) -> None:
    x, w = drawn("x", ring, (20, 33)), drawn("w", ring, (33, 17))
    for by in (DEALT, TRANSFERRED):
        agrees(opens(x, w, work=arithmetic.matmul), Setting(at(ring), by=by), x @ w)


def convolved(ring: Ring, images, filters, stride: int, padding: int):
    """Six loops."""
    images = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    n, c, height, width = images.shape
    out, _, rows, columns = filters.shape
    shape = n, out, (height - rows) // stride + 1, (width - columns) // stride + 1
    result = np.zeros(shape, object)
    for i, o, y, x in np.ndindex(*shape):
        for k, r, s in np.ndindex(c, rows, columns):
            seen = int(images[i, k, y * stride + r, x * stride + s])
            result[i, o, y, x] += seen * int(filters[o, k, r, s])
    return (result % (1 << ring.bits)).astype(ring.dtype)


@prepared_by
@given(
    ring=rings,
    images=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(3, 5), st.integers(3, 5)),
    filters=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
)
@steady
def test_conv2d(by: str, ring: Ring, images, filters, stride: int, padding: int) -> None:
    x = drawn("images", ring, images)
    w = drawn("filters", ring, (filters[0], images[1], *filters[1:]))
    work = opens(
        x, w, work=lambda s, x, w: arithmetic.conv2d(s, x, w, stride=stride, padding=padding)
    )
    expected = convolved(ring, x, w, stride, padding)
    assert np.array_equal(ring.conv2d(x, w, stride=stride, padding=padding), expected)
    agrees(work, Setting(at(ring), by=by), expected)


@prepared_by
@given(ring=rings, rows=st.integers(2, 7), start=st.integers(0, 6), count=st.integers(1, 7))
@steady
def test_products_of_fixed_operands(by: str, ring: Ring, rows: int, start: int, count: int) -> None:
    """Rows, transposed rows, rows of rows, both operands fixed, an operand with itself."""
    start = min(start, rows - 1)
    stop = min(rows, start + count)
    x, w, g = drawn("x", ring, (rows, 3)), drawn("w", ring, (3, 4)), drawn("g", ring, (rows, 2))

    def work(session, x, w, g):
        fx, fw = arithmetic.fix(session, "x", x), arithmetic.fix(session, "w", w)
        some = fx.rows(start, stop)
        return (
            arithmetic.matmul(session, some, w),
            arithmetic.matmul(session, some.transposed, g[start:stop]),
            arithmetic.matmul(session, some.rows(0, 1), fw),
            arithmetic.matmul(session, fw.transposed, fx.transposed),
            arithmetic.matmul(session, fx.transposed, fx),
            arithmetic.multiply(session, some, some),
            arithmetic.matmul(session, fx.transposed.transposed, w),
        )

    agrees(
        opens(x, w, g, work=work),
        Setting(at(ring), by=by),
        x[start:stop] @ w,
        x[start:stop].T @ g[start:stop],
        x[start : start + 1] @ w,
        (x @ w).T,
        x.T @ x,
        x[start:stop] * x[start:stop],
        x @ w,
    )


def test_operands_that_do_not_fit_are_refused() -> None:
    x, y = drawn("x", Z64, (2, 3)), drawn("y", Z64, (2, 3))
    for wrong, error in (
        (arithmetic.matmul, "matrices that fit"),
        (lambda s, x, y: arithmetic.multiply(s, x, y[:1]), "one shape"),
        (arithmetic.conv2d, "images and filters that fit"),
        (lambda s, x, y: arithmetic.fix(s, "x", x).transposed.rows(0, 1), "before you transpose"),
        (lambda s, x, y: arithmetic.fix(s, "x", x).rows(1, 3), "has 2 rows"),
        (lambda s, x, y: boolean.select(s, boolean.sign(s, x), y[0]), "one bit for each"),
    ):
        with pytest.raises(ConfigError, match=error):
            outputs(opens(x, y, work=wrong), Setting(at(Z64)))


# --- circuits


def both_ways(circuit: Circuit, words: int, by: str, *, seed: object = 0) -> None:
    """Bit-sliced and garbled, a circuit comes to what it comes to in the clear."""
    coins = Coins.from_seed(f"{seed}".encode())
    own = [coins.uint64((count, words)) for count in circuit.inputs]

    def work(session):
        mine = own[session.party]
        sliced = boolean.evaluate(session, circuit, mine)
        blocks = garbling.garbled(session, circuit, mine)
        labels = garbling.Labels(blocks, (64 * words,))
        opened = boolean.open_bits(session, boolean.Bits(sliced, (64 * words,)))
        return opened, boolean.open_bits(session, garbling.to_bits(labels))

    expected = circuit.in_the_clear(*own)
    for came in outputs(work, Setting(at(Z64), by=by)):
        for planes in came:
            assert np.array_equal(planes, expected)


kernels = pytest.mark.parametrize("kernels", ["1", "0"], ids=["C", "numpy"])


@kernels
@prepared_by
@given(circuit=circuits(), words=st.integers(1, 3), seed=seeds)
@more
def test_any_circuit(kernels: str, by: str, circuit: Circuit, words: int, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TACIT_NATIVE", kernels)
        both_ways(circuit, words, by, seed=seed)


ALL = [
    *(f(bits, shallow=s) for f in (sign_of_sum, sum_of_shares) for bits in (2, 3, 17, 32, 64) for s in (True, False)),
    *(carries_of_sum(bits, low, shallow=s) for bits, low in ((2, 1), (32, 1), (64, 13), (64, 63)) for s in (True, False)),
    *(relu_of_sum(bits, shallow=s) for bits in (2, 5, 32, 64) for s in (True, False)),
]  # fmt: skip


@kernels
@pytest.mark.parametrize("circuit", ALL, ids=lambda circuit: f"{circuit.name}-{circuit.depth}")
def test_every_circuit_of_sums(circuit: Circuit, kernels: str, monkeypatch) -> None:
    monkeypatch.setenv("TACIT_NATIVE", kernels)
    both_ways(circuit, 2, DEALT)


def test_batches_of_garbling_go_on_where_the_last_ended() -> None:
    """Whole batches, one word more, one word less; more batches than are asked for ahead."""
    circuit = sign_of_sum(3, shallow=False)
    for words in (
        garbling.BATCH - 1,
        garbling.BATCH,
        garbling.BATCH + 1,
        2 * garbling.BATCH,
        6 * garbling.BATCH + 5,
    ):
        both_ways(circuit, words, DEALT, seed=words)


def test_prepared_garblings_of_several_batches() -> None:
    x = drawn("x", Z32, 64 * garbling.BATCH + 70)
    for operation in ELEMENTWISE:
        if operation.prepared:
            agrees(
                opens(x, work=lambda s, x, o=operation: o.work(s, x, x)),
                Setting(at(Z32), by=TRANSFERRED),
                operation.clear(Z32, x, x),
            )


def test_inputs_that_a_circuit_does_not_take_are_refused() -> None:
    circuit, own = sign_of_sum(4), np.zeros((3, 1), np.uint64)
    for work, error in (
        (lambda s: boolean.evaluate(s, circuit, own), r"puts in uint64 \(4, words\)"),
        (lambda s: boolean.evaluate(s, circuit, np.zeros((4, 1), np.uint32)), "got uint32"),
        (lambda s: garbling.garbled(s, circuit, own), r"bits \(inputs"),
        (lambda s: garbling.prepared_sum(s, circuit, drawn("x", Z64, 3)), "no circuit of a sum"),
    ):
        with pytest.raises(ConfigError, match=error):
            outputs(work, Setting(at(Z64)))


def test_a_dealer_does_not_garble() -> None:
    x = drawn("x", Z64, 3)
    with pytest.raises(ConfigError, match="a dealer does not garble"):
        outputs(opens(x, work=lambda s, x: ELEMENTWISE[-1].work(s, x, x)), Setting(at(Z64)))


# --- all of it after real base transfers, and all correlations at once


@prepared_by
def test_everything_after_real_base_transfers(by: str) -> None:
    operations = [one for one in ELEMENTWISE if by == TRANSFERRED or not one.prepared]
    for ring in (Z64, Z32):
        x, y = drawn("x", ring, 67), drawn("y", ring, 67)[::-1].copy()
        work = opens(x, y, work=lambda s, x, y: tuple(o.work(s, x, y) for o in operations))
        agrees(
            work, Setting(at(ring), by=by, base=True), *(o.clear(ring, x, y) for o in operations)
        )


@given(window=st.sampled_from([1, 700, 5000, 1 << 26]))
@few
def test_windows_of_any_size_give_the_same(window: int) -> None:
    """A fixed operand's mask may lie in another window than its products."""
    x, w = drawn("x", Z64, (4, 3)), drawn("w", Z64, (3, 2))

    def operations(session, x, w):
        fixed = arithmetic.fix(session, "x", x)
        products = [arithmetic.matmul(session, fixed.rows(i, i + 1), w) for i in range(4)]
        return *products, boolean.relu(session, w)[0]

    expected = *(x[i : i + 1] @ w for i in range(4)), np.where(signed(Z64, w) < 0, 0, w)
    for by in (DEALT, TRANSFERRED):
        keep = lambda store, party: StreamedStore(store._preprocessor, window)  # noqa: E731
        agrees(opens(x, w, work=operations), Setting(at(Z64), by=by, keep=keep), *expected)
        keep = lambda store, party: MemoryStore.filled(store._preprocessor)  # noqa: E731
        agrees(opens(x, w, work=operations), Setting(at(Z64), by=by, keep=keep), *expected)


# --- local truncation


def beyond(successes: int, trials: int, p: float) -> float:
    """P(X >= successes) and P(X <= successes) of a binomial X: the less of both."""
    terms = [comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(successes + 1)]
    below = sum(terms)
    return min(below, 1 - below + terms[-1])


@pytest.mark.parametrize("share_of_ring", [2.0**-6, 2.0**-5, -(2.0**-6), -(2.0**-5), 2.0**-4])
@pytest.mark.parametrize("bits", [5, 13])
def test_local_truncation_fails_as_often_as_the_value_is_large(
    share_of_ring: float, bits: int
) -> None:
    """|v| / 2^l of the time; seeded, and had the seed been drawn, a false alarm in 10^6 such tests."""
    count = 2000
    fixed = FixedPoint(13, Z32)
    value = int(share_of_ring * 2**32)
    x = np.full(count, value, np.int64).astype(np.uint64).astype(np.uint32)
    work = opens(x, work=lambda s, x: arithmetic.truncate(s, x, bits))
    came = outputs(work, Setting(fixed))[0][0]
    error = signed(Z32, came).astype(np.int64) - (value >> bits)
    wrong = np.abs(error) > 1
    assert beyond(int(wrong.sum()), count, abs(share_of_ring)) > 0.5e-6
    assert wrong.any() and (np.abs(error[wrong]) > 2 ** (31 - bits)).all()  # wrong altogether
    bound = truncation_failure(np.log2(abs(value)), Z32)
    assert bound == 2 * abs(share_of_ring)
    assert wrong.mean() <= bound


@given(seed=seeds, bits=st.integers(1, 30), ring=rings)
@steady
def test_local_truncation_of_small_values_is_within_one_unit(
    seed: int, bits: int, ring: Ring
) -> None:
    """The chance of one failure in all examples is 12 * 100 * 2^10 / 2^32 < 3e-4 with 32 bits; they are seeded."""
    x = (signed(ring, drawn(seed, ring, 100)) >> (ring.bits - 10)).view(ring.dtype)
    (came,), _ = outputs(
        opens(x, work=lambda s, x: arithmetic.truncate(s, x, bits)), Setting(at(ring))
    )
    error = signed(ring, came) - (signed(ring, x) >> bits)
    assert np.isin(error, [-1, 0, 1]).all()


def test_truncation_takes_the_fraction_away_by_default() -> None:
    x = np.arange(-5, 5).astype(np.uint64) << np.uint64(FRACTION)
    work = opens(x, work=lambda s, x: (arithmetic.truncate(s, x), boolean.truncate_exactly(s, x)))
    for local, exact in outputs(work, Setting(at(Z64))):
        assert np.array_equal(exact, np.arange(-5, 5).astype(np.uint64))
        assert (np.abs(signed(Z64, local - exact)) <= 1).all()
