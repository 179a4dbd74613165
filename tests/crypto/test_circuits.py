"""Circuits: they compute what they say, refuse gates that are none, and have the same digest in every process."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.crypto.bits import join_bits, slice_bits
from tacit.crypto.circuits import (
    Builder,
    Circuit,
    Kind,
    carries_of_sum,
    leading_one_of_sum,
    relu_of_sum,
    sign_of_sum,
    sum_of_shares,
)

steady = settings(derandomize=True, deadline=None, max_examples=60)
widths = st.integers(2, 64)
either = pytest.mark.parametrize("shallow", [True, False])


def values(bits: int, count: int, seed: object) -> np.ndarray:
    """Of so many bits: any, and those whose sums carry far or not at all."""
    mask = np.uint64(2**bits - 1)
    ends = np.array([0, 1, 2**bits - 1, 2 ** (bits - 1), 2 ** (bits - 1) - 1], np.uint64)
    return np.concatenate([ends, Coins.from_seed(str(seed).encode()).uint64(count) & mask])


def pairs(bits: int, seed: object = 0) -> tuple[np.ndarray, np.ndarray]:
    """Every end with every end, and any with any; also sums that are 0, 1 and -1."""
    x = values(bits, 40, seed)
    a, b = (one.reshape(-1) for one in np.meshgrid(x[:5], x[:5]))
    mask = np.uint64(2**bits - 1)
    near = np.concatenate([(np.uint64(d) - x) & mask for d in (0, 1, 2**64 - 1)])
    y = values(bits, 40, (seed, "y"))
    return np.concatenate([a, x, np.tile(x, 3)]), np.concatenate([b, y, near])


def sums(x: np.ndarray, y: np.ndarray) -> list[int]:
    return [a + b for a, b in zip(x.tolist(), y.tolist(), strict=True)]


def evaluated(circuit: Circuit, x: np.ndarray, y: np.ndarray, more: np.ndarray | None = None):
    """Output bits as integers, the first output lowest."""
    bits = circuit.inputs[1]
    first = slice_bits(x, bits)
    if more is not None:
        first = np.concatenate([first, slice_bits(more, bits)])
    return join_bits(circuit.in_the_clear(first, slice_bits(y, bits)), len(x)).tolist()


@either
@given(bits=widths)
@steady
def test_signs_and_sums_are_those_of_pythons_integers(bits: int, shallow: bool) -> None:
    x, y = pairs(bits)
    total = [s % 2**bits for s in sums(x, y)]
    assert evaluated(sum_of_shares(bits, shallow=shallow), x, y) == total
    assert evaluated(sign_of_sum(bits, shallow=shallow), x, y) == [s >> (bits - 1) for s in total]


@either
@given(bits=widths, data=st.data())
@steady
def test_carries_are_those_of_pythons_integers(
    bits: int, shallow: bool, data: st.DataObject
) -> None:
    low = data.draw(st.integers(1, bits - 1))
    x, y = pairs(bits)
    rest = np.uint64(2**low - 1)
    into = [s >> low for s in sums(x & rest, y & rest)]
    out = [s >> bits for s in sums(x, y)]
    expected = [a | b << 1 for a, b in zip(into, out, strict=True)]
    assert evaluated(carries_of_sum(bits, low, shallow=shallow), x, y) == expected


@either
@given(bits=widths)
@steady
def test_relu_less_a_mask_is_that_of_pythons_integers(bits: int, shallow: bool) -> None:
    x, y = pairs(bits)
    r = values(bits, len(x) - 5, "r")
    size = 2**bits
    total = [s % size for s in sums(x, y)]
    expected = [
        ((s if s < size // 2 else 0) - m) % size for s, m in zip(total, r.tolist(), strict=True)
    ]
    assert evaluated(relu_of_sum(bits, shallow=shallow), x, y, r) == expected


@either
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_small_ones_on_every_input(bits: int, shallow: bool) -> None:
    size = 2**bits
    x, y = (one.reshape(-1) for one in np.meshgrid(*[np.arange(size, dtype=np.uint64)] * 2))
    total = [s % size for s in sums(x, y)]
    assert evaluated(sum_of_shares(bits, shallow=shallow), x, y) == total
    assert evaluated(sign_of_sum(bits, shallow=shallow), x, y) == [2 * s // size for s in total]
    for low in range(1, bits):
        into = [
            (a % 2**low + b % 2**low) >> low for a, b in zip(x.tolist(), y.tolist(), strict=True)
        ]
        expected = [a | (s >> bits) << 1 for a, s in zip(into, sums(x, y), strict=True)]
        assert evaluated(carries_of_sum(bits, low, shallow=shallow), x, y) == expected


def test_sizes_and_depths() -> None:
    """What docstrings say, and that each tree is as deep as a tree and each ripple as small as a ripple."""
    assert (sign_of_sum().ands, sign_of_sum().depth) == (275, 6)
    for bits in range(3, 65):
        deep = 1 + int(np.ceil(np.log2(bits // 2)))  # over runs of two positions
        assert sign_of_sum(bits).depth == sum_of_shares(bits).depth == deep
        small = sign_of_sum(bits, shallow=False), sum_of_shares(bits, shallow=False)
        assert [one.ands for one in small] == [bits - 1] * 2 == [one.depth for one in small]
        assert carries_of_sum(bits, bits - 1, shallow=False).ands == bits
        assert relu_of_sum(bits).ands == 3 * (bits - 1)


@pytest.mark.parametrize("bits", [-1, 0, 1, 65])
def test_widths_that_there_are_not(bits: int) -> None:
    for make in (sign_of_sum, sum_of_shares, relu_of_sum, lambda bits: carries_of_sum(bits, 1)):
        with pytest.raises(ConfigError):
            make(bits)
    for low in (-1, 0, 64):
        with pytest.raises(ConfigError, match=r"1\.\.63"):
            carries_of_sum(64, low)


# --- any circuit


def slow(circuit: Circuit, first: list[int], second: list[int]) -> list[int]:
    """One instance, single bits."""
    wires = [*first, *second]
    for kind, a, b in circuit.gates.tolist():
        x, y = wires[a], wires[b]
        wires.append({Kind.XOR: x ^ y, Kind.AND: x & y, Kind.NOT: 1 - x}[Kind(kind)])
    return [wires[out] for out in circuit.outputs.tolist()]


@st.composite
def circuits(draw: st.DrawFn) -> Circuit:
    inputs = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)).filter(any))
    gates: list[tuple[int, int, int]] = []
    for kind in draw(st.lists(st.sampled_from(list(Kind)), max_size=25)):
        wire = st.integers(0, sum(inputs) + len(gates) - 1)
        a = draw(wire)
        gates.append((kind, a, a if kind == Kind.NOT else draw(wire)))
    outputs = draw(st.lists(st.integers(0, sum(inputs) + len(gates) - 1), min_size=1, max_size=5))
    return Circuit(
        "any", inputs, np.array(gates, np.int32).reshape(-1, 3), np.array(outputs, np.int32)
    )


@given(circuit=circuits(), seed=st.integers(0, 9))
@steady
def test_planes_are_evaluated_as_single_bits_are(circuit: Circuit, seed: int) -> None:
    own = [Coins.from_seed(b"%d" % seed).uint64((count, 2)) for count in circuit.inputs]
    came = circuit.in_the_clear(*own)
    assert came.shape == (len(circuit.outputs), 2) and came.dtype == np.uint64
    for i in (0, 5, 63, 64, 100, 127):
        bits = [[int(row[i // 64]) >> i % 64 & 1 for row in planes] for planes in (*own, came)]
        assert slow(circuit, *bits[:2]) == bits[2]


@given(circuit=circuits())
@steady
def test_levels_count_the_ands_behind_a_wire_that_need_both_parties(circuit: Circuit) -> None:
    first = sum(circuit.inputs)

    def knows(wire: int) -> set[int]:
        """Whose inputs lie behind a wire."""
        if wire < first:
            return {int(wire >= circuit.inputs[0])}
        _, a, b = circuit.gates[wire - first].tolist()
        return knows(a) | knows(b)

    def behind(wire: int) -> int:
        if wire < first:
            return 0
        kind, a, b = circuit.gates[wire - first].tolist()
        return max(behind(a), behind(b)) + (kind == Kind.AND and len(knows(wire)) == 2)

    if len(circuit.gates) <= 12:  # the recursion doubles
        wires = range(circuit.wires)
        owners = [knows(wire) for wire in wires]
        assert circuit.owners.tolist() == [-1 if len(one) == 2 else one.pop() for one in owners]
        assert circuit.levels.tolist() == [behind(wire) for wire in wires]
        assert circuit.depth == max(circuit.levels.tolist(), default=0)
    assert circuit.ands == sum(kind == Kind.AND for kind, _, _ in circuit.gates.tolist())


# --- what is no circuit


MALFORMED = {
    "a gate that reads its own output": ((2, 2), [(Kind.XOR, 0, 4)], [0]),
    "a gate that reads a later wire": ((2, 2), [(Kind.AND, 5, 0), (Kind.AND, 0, 1)], [0]),
    "a gate that reads a wire below 0": ((2, 2), [(Kind.NOT, -1, -1)], [0]),
    "a gate of no kind": ((2, 2), [(3, 0, 1)], [0]),
    "a gate of a kind below 0": ((2, 2), [(-1, 0, 1)], [0]),
    "gates of two numbers": ((2, 2), [(0, 1)], [0]),
    "no outputs": ((2, 2), [(Kind.XOR, 0, 1)], []),
    "an output that is no wire": ((2, 2), [(Kind.XOR, 0, 1)], [5]),
    "an output below 0": ((2, 2), [(Kind.XOR, 0, 1)], [-1]),
    "fewer inputs than none": ((-1, 2), [], [0]),
    "NOT of two wires": ((2, 2), [(Kind.NOT, 0, 1)], [0]),
    "more than integers of 32 bits": ((2, 2), [(Kind.XOR, 2**32, 1)], [0]),
    "an output beyond 32 bits": ((2, 2), [(Kind.XOR, 0, 1)], [2**32]),
    "halves of wires": ((2, 2), [(Kind.XOR, 0.5, 1)], [0]),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_what_is_no_circuit_is_refused(what: str) -> None:
    inputs, gates, outputs = MALFORMED[what]
    with pytest.raises(ConfigError, match="circuit wrong"):
        Circuit("wrong", inputs, np.array(gates), np.array(outputs))


def test_a_circuit_cannot_be_changed() -> None:
    circuit = sign_of_sum(4)
    for array in (circuit.gates, circuit.outputs):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_a_circuit_keeps_gates_of_its_own() -> None:
    """Whoever made it may go on with its arrays."""
    gates, outputs = np.array([(Kind.XOR, 0, 1)] * 2, np.int32), np.array([2], np.int32)
    made = Circuit("x", (1, 1), gates[:1], outputs)
    before = made.digest
    gates[:], outputs[:] = 1, 0
    assert made.gates.tolist() == [[Kind.XOR, 0, 1]] and made.outputs.tolist() == [2]
    assert Circuit("x", (1, 1), made.gates, made.outputs).digest == before


# --- digests

DIGESTS = """
from tacit.crypto.circuits import *
made = [f(bits, shallow=s) for f in (sign_of_sum, sum_of_shares, relu_of_sum) for bits in (5, 32, 64) for s in (0, 1)]
made += [carries_of_sum(64, low) for low in (1, 13, 63)]
print(" ".join(circuit.digest.hex() for circuit in made))
"""


def test_digests_are_the_same_in_every_process_and_no_two_alike() -> None:
    here: dict[str, object] = {}
    lines = []
    exec(DIGESTS, here | {"print": lines.append})
    there = [
        subprocess.run(
            [sys.executable, "-c", DIGESTS], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    ]  # fmt: skip
    assert lines == [there[0]] == [there[1]]
    digests = lines[0].split()
    assert len(set(digests)) == len(digests) == 21 and {len(one) for one in digests} == {64}


def test_the_digest_is_of_all_but_the_name() -> None:
    def made(name="a", inputs=(2, 1), gates=((Kind.XOR, 0, 1), (Kind.AND, 2, 3)), outputs=(4,)):
        return Circuit(name, inputs, np.array(gates, np.int32), np.array(outputs, np.int32))

    one = made()
    assert one == made("b") and hash(one) == hash(made("b")) and one.digest == made("b").digest
    others = [
        made(inputs=(1, 2)), made(outputs=(3,)), made(outputs=(4, 4)), made(gates=((Kind.AND, 0, 1), (Kind.AND, 2, 3))),
        made(gates=((Kind.XOR, 1, 0), (Kind.AND, 2, 3))),
    ]  # fmt: skip
    assert len({one.digest, *(other.digest for other in others)}) == 6
    assert one != others[0] and one != "a circuit"
    assert one.digest.hex() == DIGEST


DIGEST = "8fa6c3a22f953e1c016aaffe038e9d267324903d6cede3cc5c80a710c512c744"


def test_a_builder_numbers_wires_as_a_circuit_does() -> None:
    make = Builder((2, 1))
    assert (make.first, make.second) == ([0, 1], [2])
    a = make.xor(0, 2)
    b = make.both(a, 1)
    circuit = make.circuit("small", [make.invert(b), b])
    assert (a, b, circuit.outputs.tolist()) == (3, 4, [5, 4])
    assert circuit.gates.tolist() == [[0, 0, 2], [1, 3, 1], [2, 4, 4]]
    assert circuit.wires == 6 and circuit.ands == circuit.depth == 1
    assert make.each(make.xor, [0, 1], [1, 2]) == [6, 7]
    assert (make.xor(0, 2), make.both(a, 1), make.xor(2, 0)) == (
        3,
        4,
        8,
    )  # what is there is not made again
    with pytest.raises(ValueError, match="zip"):
        make.each(make.xor, [0, 1], [1])


@either
@given(bits=widths)
@steady
def test_the_leading_one_is_that_of_pythons_bit_length(bits: int, shallow: bool) -> None:
    """Of sums that are not negative; of 0 there is none."""
    x, y = pairs(bits)
    total = np.array([s % 2**bits for s in sums(x, y)], object)
    there = np.array([s < 2 ** (bits - 1) for s in total], bool)
    found = np.array(evaluated(leading_one_of_sum(bits, shallow=shallow), x, y), object)
    assert there.any() and (total[there] == 0).any()
    assert [1 << s.bit_length() >> 1 for s in total[there]] == found[there].tolist()
