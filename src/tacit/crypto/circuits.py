"""Boolean circuits, written once: evaluated on bit-sliced shares, garbled, or in the clear.

A circuit has private input bits of two parties and nothing else: a value that they share additively goes in as both
shares, and the circuit adds them. XOR and NOT cost nothing in either evaluation. Bit-sliced evaluation pays a round for each
level of ANDs of bits that no party knows (`Circuit.depth`), garbling pays 32 bytes for each AND: so circuits of sums come in
a shallow form, whose carries are found by a tree, and in a small one, whose carries ripple.

Source: the ripple carry with one AND a bit is that of Boyar and Peralta; the tree of generate and propagate bits is that of
Brent and Kung, "A Regular Layout for Parallel Adders" (1982), or, where every carry is needed, of Sklansky (1960).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt

from tacit.core.errors import ConfigError

Planes = npt.NDArray[np.uint64]
"""Bit vectors over instances, (wires, words): instance i is bit ``i % 64`` of word ``i // 64``."""


class Kind(IntEnum):
    """What a gate does."""

    XOR = 0
    AND = 1
    NOT = 2


class Circuit:
    """A Boolean circuit over the private bits of two parties.

    Args:
        name: for people.
        inputs: how many bits party 0 and party 1 put in; wires count from 0, party 0's first.
        gates: int32, (gates, 3): `Kind` and two wires; gate g writes wire ``sum(inputs) + g`` and reads earlier wires.
            NOT reads the first and repeats it as the second.
        outputs: int32, the wires that come out.

    Raises:
        ConfigError: a gate or output is not what it must be.
    """

    def __init__(
        self,
        name: str,
        inputs: tuple[int, int],
        gates: npt.NDArray[np.int32],
        outputs: npt.NDArray[np.int32],
    ) -> None:
        given = np.array(gates), np.array(outputs)
        gates, outputs = (one.astype(np.int32) for one in given)
        if not all(map(np.array_equal, given, (gates, outputs))):
            raise ConfigError(f"circuit {name}: wires and kinds of 32 bits expected")
        first = sum(inputs)
        written = first + np.arange(len(gates))
        if gates.shape != (len(gates), 3) or min(inputs) < 0:
            raise ConfigError(f"circuit {name}: gates of shape (gates, 3) expected")
        if gates.size and (
            not np.isin(gates[:, 0], list(Kind)).all()
            or (gates[:, 1:] < 0).any()
            or (gates[:, 1:] >= written[:, None]).any()
            or (gates[:, 1] != gates[:, 2])[gates[:, 0] == Kind.NOT].any()
        ):
            raise ConfigError(
                f"circuit {name}: a gate reads a wire that is not there yet, or a NOT two wires"
            )
        if not len(outputs) or outputs.min() < 0 or outputs.max() >= first + len(gates):
            raise ConfigError(f"circuit {name}: an output is no wire")
        gates.flags.writeable = outputs.flags.writeable = False
        self.name, self.inputs, self.gates, self.outputs = name, inputs, gates, outputs

    @property
    def wires(self) -> int:
        """How many wires there are, inputs and gates."""
        return sum(self.inputs) + len(self.gates)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all but the name: the same for the same circuit in every process."""
        head = np.array([*self.inputs, len(self.gates), len(self.outputs)], "<i8")
        parts = (head, self.gates.astype("<i4"), self.outputs.astype("<i4"))
        return hashlib.sha256(
            b"tacit/circuit/1" + b"".join(part.tobytes() for part in parts)
        ).digest()

    @cached_property
    def ands(self) -> int:
        """The number of AND gates."""
        return int((self.gates[:, 0] == Kind.AND).sum())

    @cached_property
    def owners(self) -> npt.NDArray[np.int8]:
        """Who knows each wire: 0 or 1 where that party's inputs alone lie behind it, else -1."""
        found = np.repeat(np.array([0, 1, -1], np.int8), (*self.inputs, len(self.gates)))
        for wire, (_, a, b) in enumerate(self.gates.tolist(), start=sum(self.inputs)):
            found[wire] = found[a] if found[a] == found[b] else -1
        return found

    @cached_property
    def levels(self) -> npt.NDArray[np.int32]:
        """For each wire, how many ANDs lie behind it, one after another; those of one party's own bits do not count."""
        found = np.zeros(self.wires, np.int32)
        for wire, (kind, a, b) in enumerate(self.gates.tolist(), start=sum(self.inputs)):
            found[wire] = max(found[a], found[b]) + (kind == Kind.AND and self.owners[wire] < 0)
        return found

    @cached_property
    def depth(self) -> int:
        """The longest chain of ANDs: the rounds of a bit-sliced evaluation."""
        return int(self.levels.max(initial=0))

    def in_the_clear(self, first: Planes, second: Planes) -> Planes:
        """Evaluate on bits that are known: the reference of every other evaluation.

        Args:
            first: party 0's bits, (inputs[0], words).
            second: party 1's, (inputs[1], words).

        Returns:
            (outputs, words).
        """
        wires = [*first, *second]
        for kind, a, b in self.gates.tolist():
            if kind == Kind.AND:
                wires.append(wires[a] & wires[b])
            else:
                wires.append(wires[a] ^ wires[b] if kind == Kind.XOR else ~wires[a])
        return np.array([wires[out] for out in self.outputs.tolist()], np.uint64)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Circuit) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Circuit({self.name}, inputs={self.inputs}, ands={self.ands}, depth={self.depth})"


class Builder:
    """Makes a circuit gate by gate; a wire is its number. A gate that is there already is not made again.

    Args:
        inputs: how many bits party 0 and party 1 put in.
    """

    def __init__(self, inputs: tuple[int, int]) -> None:
        self.inputs = inputs
        self._gates: dict[tuple[int, int, int], int] = {}

    @property
    def first(self) -> list[int]:
        """Party 0's input wires."""
        return list(range(self.inputs[0]))

    @property
    def second(self) -> list[int]:
        """Party 1's input wires."""
        return list(range(self.inputs[0], sum(self.inputs)))

    def _gate(self, kind: Kind, a: int, b: int) -> int:
        return self._gates.setdefault((kind, a, b), sum(self.inputs) + len(self._gates))

    def xor(self, a: int, b: int) -> int:
        """A wire that carries a XOR b."""
        return self._gate(Kind.XOR, a, b)

    def both(self, a: int, b: int) -> int:
        """A wire that carries a AND b."""
        return self._gate(Kind.AND, a, b)

    def invert(self, a: int) -> int:
        """A wire that carries NOT a."""
        return self._gate(Kind.NOT, a, a)

    def each(
        self, gate: Callable[[int, int], int], a: Sequence[int], b: Sequence[int]
    ) -> list[int]:
        """One gate a pair of wires."""
        return [gate(x, y) for x, y in zip(a, b, strict=True)]

    def circuit(self, name: str, outputs: Sequence[int]) -> Circuit:
        """The circuit of what was made."""
        gates = np.array(list(self._gates), np.int32).reshape(-1, 3)
        return Circuit(name, self.inputs, gates, np.array(outputs, np.int32))


# --- sums. Carries are found from generate and propagate bits: (g, p) of a run of positions says that a carry leaves it
# whatever comes in, or if one comes in.

Run = tuple[list[int], list[int]]


def _adjacent(make: Builder, x: Sequence[int], y: Sequence[int]) -> Run:
    return make.each(make.both, x, y), make.each(make.xor, x, y)


def _pairs(make: Builder, x: Sequence[int], y: Sequence[int]) -> Run:
    """The runs of two positions each, of an even number of them, in one level: each party multiplies its own two bits first.

    ``g = x1 y1 ^ (x1 x0) y0 ^ x0 (y1 y0)`` and ``p = x1 x0 ^ x1 y0 ^ x0 y1 ^ y1 y0``.
    """
    x0, x1, y0, y1 = x[0::2], x[1::2], y[0::2], y[1::2]
    both, xor = make.both, make.xor
    xx, yy = make.each(both, x1, x0), make.each(both, y1, y0)
    terms = [make.each(both, *pair) for pair in ((x1, y1), (xx, y0), (x0, yy), (x1, y0), (x0, y1))]
    generate = make.each(xor, make.each(xor, terms[0], terms[1]), terms[2])
    propagate = make.each(xor, make.each(xor, xx, yy), make.each(xor, terms[3], terms[4]))
    return generate, propagate


def _merge(make: Builder, high: Run, low: Run) -> Run:
    """Runs joined pairwise, each of ``high`` with the one below it; the last of ``low`` may lack its propagate bit."""
    generated = make.each(make.both, high[1], low[0])
    propagated = make.each(make.both, high[1][: len(low[1])], low[1])
    return make.each(make.xor, high[0], generated), propagated


def _carry_by_tree(make: Builder, x: Sequence[int], y: Sequence[int]) -> int:
    """The carry out of the top, of x + y: a balanced tree over runs of two positions."""
    even = len(x) // 2 * 2
    runs = _pairs(make, x[:even], y[:even])
    last = _adjacent(make, x[even:], y[even:])  # the highest, if it is left over
    # Highest first; nothing comes into the lowest.
    generate, propagate = (runs[0] + last[0])[::-1], (runs[1] + last[1])[::-1][:-1]
    while len(generate) > 1:
        odd = len(generate) % 2  # the highest is left over
        high = generate[odd::2], propagate[odd::2]
        merged = _merge(make, high, (generate[odd + 1 :: 2], propagate[odd + 1 :: 2]))
        generate, propagate = generate[:odd] + merged[0], propagate[:odd] + merged[1]
    return generate[0]


def _ripple(make: Builder, x: Sequence[int], y: Sequence[int]) -> list[int]:
    """The carries out of every position, one AND each."""
    carries = [make.both(x[0], y[0])]
    for a, b in zip(x[1:], y[1:], strict=True):
        carry = carries[-1]
        carries.append(make.xor(carry, make.both(make.xor(a, carry), make.xor(b, carry))))
    return carries


def _carries_by_tree(make: Builder, x: Sequence[int], y: Sequence[int]) -> list[int]:
    """The carries out of every position, in as many levels as a tree has (Sklansky), over runs of two positions."""
    even = len(x) // 2 * 2
    generate, propagate = _adjacent(make, x, y)
    generate[1:even:2], propagate[1:even:2] = _pairs(make, x[:even], y[:even])
    step = 2
    while step < len(generate):
        at = [
            i for i in range(len(generate)) if i & step
        ]  # each is joined with the run that ends below its own
        below = [(i & -step) - 1 for i in at]
        whole = sum(j < step for j in below)  # so many now reach down to position 0: done
        products = make.each(make.both, [propagate[i] for i in at], [generate[j] for j in below])
        joined = make.each(
            make.both, [propagate[i] for i in at[whole:]], [propagate[j] for j in below[whole:]]
        )
        for i, g in zip(at, make.each(make.xor, [generate[i] for i in at], products), strict=True):
            generate[i] = g
        for i, p in zip(at[whole:], joined, strict=True):
            propagate[i] = p
        step *= 2
    return generate


def _checked(bits: int) -> int:
    if not 2 <= bits <= 64:
        raise ConfigError(f"circuits of sums have 2 to 64 bits, not {bits}")
    return bits


@cache
def sign_of_sum(bits: int = 64, *, shallow: bool = True) -> Circuit:
    """The top bit of ``x + y`` modulo 2^bits, where x is party 0's and y party 1's; one output.

    Args:
        bits: of the ring, 2 to 64.
        shallow: by a tree; for 64 bits 6 levels; otherwise by a ripple: 63 ANDs in 63 levels.
    """
    make = Builder((_checked(bits), bits))
    x, y = make.first, make.second
    low = x[:-1], y[:-1]
    carry = _carry_by_tree(make, *low) if shallow else _ripple(make, *low)[-1]
    top = make.xor(make.xor(x[-1], y[-1]), carry)
    return make.circuit(f"sign of a {bits}-bit sum", [top])


def _sum(make: Builder, x: Sequence[int], y: Sequence[int], *, shallow: bool) -> list[int]:
    low = x[:-1], y[:-1]
    carries = _carries_by_tree(make, *low) if shallow else _ripple(make, *low)
    halves = make.each(make.xor, x, y)
    return [halves[0], *make.each(make.xor, halves[1:], carries)]


@cache
def sum_of_shares(bits: int = 64, *, shallow: bool = True) -> Circuit:
    """All bits of ``x + y`` modulo 2^bits, lowest first: from additive shares to shared bits."""
    make = Builder((_checked(bits), bits))
    total = _sum(make, make.first, make.second, shallow=shallow)
    return make.circuit(f"{bits}-bit sum", total)


@cache
def leading_one_of_sum(bits: int, *, shallow: bool = True) -> Circuit:
    """Which bit of ``x + y`` modulo 2^bits is the highest that is 1: one output for each bit below the top, one of them 1.

    The sum must not be negative in two's complement; of 0 all outputs are 0.
    """
    make = Builder((_checked(bits), bits))
    total = _sum(make, make.first, make.second, shallow=shallow)[-2::-1]  # the highest first
    none = [make.invert(bit) for bit in total]  # no 1 from the highest to here
    step = 1
    while step < len(none):
        if shallow:
            at = [i for i in range(len(none)) if i & step]
            below = [none[(i & -step) - 1] for i in at]
            for i, wire in zip(at, make.each(make.both, [none[i] for i in at], below), strict=True):
                none[i] = wire
            step *= 2
        else:
            none[step] = make.both(none[step], none[step - 1])
            step += 1
    first = make.each(make.xor, none[1:], none[:-1])
    return make.circuit(f"leading 1 of a {bits}-bit sum", [*first[::-1], total[0]])


@cache
def carries_of_sum(bits: int, low: int, *, shallow: bool = True) -> Circuit:
    """Two carries of ``x + y``: the one into position ``low``, and the one out of the top.

    Raises:
        ConfigError: ``low`` is not within 1..bits - 1.
    """
    if not 1 <= low < _checked(bits):
        raise ConfigError(f"a position within 1..{bits - 1} expected, got {low}")
    make = Builder((bits, bits))
    if shallow:
        x, y = make.first, make.second
        found = [_carry_by_tree(make, x[:end], y[:end]) for end in (low, bits)]
    else:
        carries = _ripple(make, make.first, make.second)
        found = [carries[low - 1], carries[-1]]
    return make.circuit(f"carries of a {bits}-bit sum", found)


@cache
def relu_of_sum(bits: int = 64, *, shallow: bool = False) -> Circuit:
    """``max(x + y, 0) - r`` in two's complement, all bits: party 0 puts in x and then r, party 1 y.

    Party 1 gets its share of the result and party 0 keeps r as its own (MiniONN, section 5.3).
    """
    make = Builder((2 * _checked(bits), bits))
    x, r = make.first[:bits], make.first[bits:]
    total = _sum(make, x, make.second, shallow=shallow)
    positive = make.invert(total[-1])
    kept = make.each(make.both, total[:-1], [positive] * (bits - 1))
    top = make.xor(total[-1], total[-1])  # 0
    # a - r = NOT(NOT a + r)
    flipped = [make.invert(bit) for bit in (*kept, top)]
    out = [make.invert(bit) for bit in _sum(make, flipped, r, shallow=shallow)]
    return make.circuit(f"ReLU of a {bits}-bit sum", out)
