"""Garbled circuits by half gates, over many instances of a circuit at once.

Party 0, who garbles, knows its own input bits; party 1, who evaluates, holds one label for each of its input bits from a
correlated oblivious transfer. A wire has a zero-label L and a one-label ``L ^ delta``, with one secret delta for all wires
(free XOR), whose low bit is 1: the low bit of a label is its colour, and tells the evaluator which halves of a table to add
(point and permute). XOR and NOT cost nothing, an AND costs 32 bytes.

The garbler's own inputs cost nothing either. On such a wire the evaluator's active label is the block 0, which needs no
sending, and the zero-label is ``bit * delta``. That is as safe as labels drawn at random: the proof of half gates needs only
that of the two labels of a wire one is known to the evaluator and the other is that one plus delta. The known one may be a
public constant, because the hash is robust for inputs ``x ^ delta`` with any chosen x, 0 among them; and the evaluator sees
the colour 0 on every such wire whatever the bit is.

No branch and no address depends on labels, delta or the garbler's bits: both follow the circuit alone, by C and by numpy.

Blocks are as in `tacit.crypto.hashing`; planes, bit vectors over instances, as in `tacit.crypto.circuits`. Instances come in
multiples of 64, whole words of planes.

**Guarantee**: against an evaluator who follows the protocol, tables and active labels tell nothing of the garbler's bits;
with the colours of the output zero-labels, they tell the outputs alone. The garbler sees nothing of the evaluator's
bits. Nothing is promised against a party that deviates: a garbler can garble another circuit, and false tables give false
labels, which are not noticed here.

Source: Zahur, Rosulek, Evans, "Two Halves Make a Whole" (EUROCRYPT 2015), figure 2; Kolesnikov, Schneider, "Improved Garbled
Circuit: Free XOR Gates and Applications" (ICALP 2008); the hash is that of Guo et al. (IEEE S&P 2020).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tacit.core.errors import ConfigError
from tacit.crypto.circuits import Circuit, Kind, Planes
from tacit.crypto.hashing import (
    Blocks,
    Buffer,
    Permutation,
    aes_level,
    check_key,
    check_tweaks,
)
from tacit.crypto.kernels import Native

LANE = 64
"""Instances come in multiples of this."""

Words = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Garbled:
    """What garbling gives.

    Args:
        tables: for the evaluator: uint64 (ands, instances, 2, 2), of each gate and instance the generator's half and the
            evaluator's.
        outputs: secret: the zero-labels of the outputs, uint64 (outputs, instances, 2).
    """

    tables: Words
    outputs: Blocks

    def __repr__(self) -> str:
        ands, instances = self.tables.shape[:2]
        return f"Garbled(ands={ands}, instances={instances}, outputs={len(self.outputs)})"


def next_tweak(circuit: Circuit, instances: int, first: int = 0) -> int:
    """The first tweak that is free after ``instances`` instances were garbled from the tweak ``first`` on."""
    return first + 2 * circuit.ands * instances


def garble(
    circuit: Circuit, own: Planes, labels: Blocks, delta: Words, key: bytes, first: int = 0
) -> Garbled:
    """Garble a circuit for many instances, as the party that knows its own input bits.

    Half h of AND number g of instance i is hashed with the tweak ``first + 2 * (g * instances + i) + h``.

    Args:
        circuit: what is computed; party 0 garbles.
        own: the garbler's input bits, uint64 planes (inputs[0], words).
        labels: zero-labels of the evaluator's input wires, uint64 (inputs[1], 64 * words, 2).
        delta: uint64 (2,), secret, its lowest bit 1, otherwise uniform.
        key: public key of the hash, fresh.
        first: the first tweak; batches under one key and delta go on at `next_tweak`.

    Returns:
        The tables and the outputs' zero-labels.

    Raises:
        ConfigError: a shape, dtype or length is another, delta is even, or the tweaks do not fit 64 bits.

    **Guarantee**: that of the module, as long as no tweak comes twice under a key and delta.

    **Leaks**: the circuit and the number of instances.

    **Cost**: 32 bytes and 8 AES calls for each AND and instance.

    **Source**: Zahur et al. 2015, figure 2, GarbleAnd.
    """
    instances = _check_labels(circuit, labels, "zero-labels")
    _expect("own bits", own, (circuit.inputs[0], instances // LANE))
    _check_delta(delta)
    public = _checked(circuit, instances, key, first)
    made = Garbled(
        _aligned((circuit.ands, instances, 2, 2)), _aligned((len(circuit.outputs), instances, 2))
    )
    own, labels = np.require(own, requirements=["C", "ALIGNED"]), _by_rows(labels)
    loaded, level = aes_level()
    if loaded is not None:
        _garble_native(loaded, level, circuit, own, labels, delta, public, made)
    else:
        _garble_numpy(circuit, own, labels, delta, public, made)
    return made


def evaluate(circuit: Circuit, labels: Blocks, tables: Words, key: bytes, first: int = 0) -> Blocks:
    """Evaluate a garbled circuit for many instances, on one label for each of the evaluator's input bits.

    Args:
        circuit: what is computed; party 1 evaluates.
        labels: active labels of the evaluator's input wires, uint64 (inputs[1], instances, 2).
        tables: uint64 (ands, instances, 2, 2), as `garble` made them.
        key: the garbler's public key of the hash.
        first: the garbler's first tweak.

    Returns:
        Active labels of the outputs, uint64 (outputs, instances, 2); their `colours` XOR those of the zero-labels are the
        output bits.

    Raises:
        ConfigError: a shape, dtype or length is another, or the tweaks do not fit 64 bits.

    **Cost**: 4 AES calls for each AND and instance.

    **Source**: Zahur et al. 2015, figure 2, Ev.
    """
    instances = _check_labels(circuit, labels, "active labels")
    _expect("tables", tables, (circuit.ands, instances, 2, 2))
    public = _checked(circuit, instances, key, first)
    out = _aligned((len(circuit.outputs), instances, 2))
    labels, tables = _by_rows(labels), np.ascontiguousarray(tables)
    loaded, level = aes_level()
    if loaded is not None:
        _evaluate_native(loaded, level, circuit, labels, tables, public, out)
    else:
        _evaluate_numpy(circuit, labels, tables, public, out)
    return out


def colours(blocks: Blocks) -> Planes:
    """The low bits of labels, as planes.

    Args:
        blocks: labels, uint64 (k, instances, 2), instances a multiple of 64.

    Returns:
        uint64 (k, instances / 64).

    Raises:
        ConfigError: a shape or dtype is another.
    """
    _check_blocks("labels", blocks)
    low = blocks[..., 0].astype(np.uint8) & np.uint8(1)
    packed = np.packbits(low, axis=1, bitorder="little")
    return packed.view("<u8").astype(np.uint64, copy=False)


def labels_of(zero: Blocks, delta: Words, planes: Planes) -> Blocks:
    """The active labels of wires with known bits: the zero-labels, plus delta where the bit is 1.

    Args:
        zero: zero-labels, uint64 (k, instances, 2).
        delta: uint64 (2,).
        planes: the bits, uint64 (k, instances / 64).

    Returns:
        uint64 (k, instances, 2).

    Raises:
        ConfigError: a shape or dtype is another, or delta is even.
    """
    _check_blocks("zero-labels", zero)
    _expect("bits", planes, (zero.shape[0], zero.shape[1] // LANE))
    _check_delta(delta)
    out = np.empty(zero.shape, np.uint64)
    chosen = _spread(planes, np.empty_like(out))
    chosen &= delta
    np.bitwise_xor(zero, chosen, out=out)
    return out


# --- what is refused


def _expect(what: str, array: Words, shape: tuple[int, ...]) -> None:
    if array.dtype != np.uint64 or array.shape != shape:
        raise ConfigError(f"{what} as uint64 {shape} expected, got {array.dtype} {array.shape}")


def _check_blocks(what: str, blocks: Blocks) -> None:
    if (
        blocks.dtype != np.uint64
        or blocks.ndim != 3
        or blocks.shape[1] % LANE
        or blocks.shape[2] != 2
    ):
        raise ConfigError(
            f"{what} as uint64 (k, multiple of {LANE}, 2) expected, got {blocks.dtype} {blocks.shape}"
        )


def _check_labels(circuit: Circuit, labels: Blocks, what: str) -> int:
    _check_blocks(what, labels)
    instances = int(labels.shape[1])
    _expect(what, labels, (circuit.inputs[1], instances, 2))
    return instances


def _check_delta(delta: Words) -> None:
    _expect("delta", delta, (2,))
    if not int(delta[0]) & 1:
        raise ConfigError(
            "a delta whose lowest bit is 1 expected: colours would not tell labels apart"
        )


class _Public(NamedTuple):
    """What both parties hash with: the key and the first tweak."""

    key: bytes
    first: int


def _checked(circuit: Circuit, instances: int, key: bytes, first: int) -> _Public:
    check_key(key)
    check_tweaks(first, 2 * circuit.ands * instances)
    return _Public(key, first)


def _by_rows(labels: Blocks) -> Blocks:
    """Labels whose rows are contiguous each, as those of a range of instances are; else a copy."""
    fitting = labels.strides[1:] == (16, 8) and labels.strides[0] >= 0
    return labels if fitting and labels.strides[0] % 8 == 0 else np.ascontiguousarray(labels)


def _address(array: Words) -> int:
    return int(array.__array_interface__["data"][0])


def _aligned(shape: tuple[int, ...]) -> Words:
    """An uninitialised array that begins at a cache line."""
    size = int(np.prod(shape))
    room = np.empty(size + 7, np.uint64)
    skipped = -_address(room) % 64 // 8
    return room[skipped : skipped + size].reshape(shape)


# --- programs: what a circuit comes to when each wire is a label plus plane * delta. XOR adds both, NOT flips the plane, the
# garbler's inputs are planes alone; the evaluator does without the planes.

_XOR, _AND, _PLANE = range(3)  # kinds of steps, as in native/garbling.c
_ZERO_LABEL = _ZERO_PLANE = 0  # the first slot is zero
_ONES = 1  # the second plane is all ones


@dataclass(frozen=True, slots=True)
class _Program:
    """Steps on slots for labels and planes.

    Args:
        steps: int32 (steps, 8): kind, slot written, two slots read, for an AND the two planes of its inputs and its number,
            and the level. ``_PLANE`` writes and reads planes.
        outputs: int32 (outputs, 2): slot and plane of each.
        slots: how many slots there are for labels. Slot 0 is zero, and from this number on they mean input rows.
        planes: how many planes; 0 is zero, 1 all ones, and from this number on they mean rows of the garbler's bits.
    """

    steps: Numbers
    outputs: Numbers
    slots: int
    planes: int


@dataclass(frozen=True, slots=True)
class _Value:
    """A label or plane that a step makes or that is there from the start, before it has a slot."""

    plane: bool
    number: int  # >= 0: made by the step of that number; -1: zero; -2: all ones; below: input row -3 - number


_NO_LABEL, _NO_PLANE, _ALL_ONES = _Value(False, -1), _Value(True, -1), _Value(True, -2)


@dataclass(frozen=True, slots=True)
class _Step:
    kind: int
    number: int
    reads: tuple[_Value, ...]  # labels, then planes
    gate: int  # the number of the AND
    level: int

    @property
    def writes(self) -> _Value:
        return _Value(self.kind == _PLANE, self.number)


def _steps_of(circuit: Circuit) -> tuple[list[_Step], list[tuple[_Value, _Value]]]:
    """The steps in the order of the gates, and the label and plane of each output."""
    mine, others = circuit.inputs
    wires = [(_NO_LABEL, _Value(True, -3 - row)) for row in range(mine)]
    wires += [(_Value(False, -3 - row), _NO_PLANE) for row in range(others)]
    steps: list[_Step] = []
    levels = [0] * sum(circuit.inputs)  # of all ANDs: those of one party's own bits are garbled too
    gate = 0

    def add(kind: int, reads: tuple[_Value, ...]) -> _Value:
        steps.append(_Step(kind, len(steps), reads, gate, levels[len(wires)]))
        return steps[-1].writes

    def xor(kind: int, nothing: _Value, a: _Value, b: _Value) -> _Value:
        if a == b:
            return nothing
        return a if b == nothing else b if a == nothing else add(kind, (a, b))

    for kind, a, b in circuit.gates.tolist():
        levels.append(max(levels[a], levels[b]) + (kind == Kind.AND))
        (label_a, plane_a), (label_b, plane_b) = wires[a], wires[b]
        if kind == Kind.AND:
            wires.append((add(_AND, (label_a, label_b, plane_a, plane_b)), _NO_PLANE))
            gate += 1
        elif kind == Kind.NOT:
            wires.append((label_a, xor(_PLANE, _NO_PLANE, plane_a, _ALL_ONES)))
        else:
            label = xor(_XOR, _NO_LABEL, label_a, label_b)
            wires.append((label, xor(_PLANE, _NO_PLANE, plane_a, plane_b)))
    return steps, [wires[out] for out in circuit.outputs.tolist()]


def _needed(steps: list[_Step], outputs: list[tuple[_Value, _Value]]) -> list[_Step]:
    """The steps whose result is used; ANDs all stay, because each has a table."""
    used = {value for pair in outputs for value in pair}
    kept = []
    for step in reversed(steps):
        if step.kind == _AND or step.writes in used:
            used.update(step.reads)
            kept.append(step)
    return kept[::-1]


class _Slots:
    """Slots for values of one sort, taken again once their value is read for the last time."""

    def __init__(self, taken: int) -> None:
        self.count = taken
        self.free: list[int] = []
        self.at: dict[_Value, int] = {}

    def take(self, value: _Value) -> int:
        if not self.free:
            self.free.append(self.count)
            self.count += 1
        self.at[value] = self.free.pop()
        return self.at[value]

    def leave(self, value: _Value) -> None:
        self.free.append(self.at.pop(value))

    def place(self, value: _Value) -> int:
        """Its slot; input rows as negative numbers, until the number of slots is known."""
        if value.number >= 0:
            return self.at[value]
        return {-1: 0, -2: _ONES}.get(value.number, value.number + 2)


@lru_cache(maxsize=64)
def _program(circuit: Circuit, *, by_level: bool) -> _Program:
    """The circuit's program: in the order of its gates or, for numpy, by level, so that independent ANDs stand together."""
    steps, outputs = _steps_of(circuit)
    steps = _needed(steps, outputs)
    if by_level:
        steps.sort(key=lambda step: (step.level, step.kind != _AND))
    last: dict[_Value, int] = {}
    for time, step in enumerate(steps):
        last.update(dict.fromkeys((*step.reads, step.writes), time))
    last.update({value: len(steps) for pair in outputs for value in pair})

    labels, planes = _Slots(1), _Slots(2)
    rows = []
    for time, step in enumerate(steps):
        row = [step.kind, 0, *((planes if v.plane else labels).place(v) for v in step.reads)]
        for value in dict.fromkeys(step.reads):
            if value.number >= 0 and last[value] == time:
                (planes if value.plane else labels).leave(value)
        made = planes if step.kind == _PLANE else labels
        row[1] = made.take(step.writes)
        if last[step.writes] == time:
            made.leave(step.writes)
        rows.append([*row, *[0] * (6 - len(row)), step.gate, step.level])
    ends = [(labels.place(label), planes.place(plane)) for label, plane in outputs]
    found = np.array(rows, np.int32).reshape(-1, 8)
    read = np.where(found[:, :1] == _PLANE, planes.count, labels.count)
    found[:, 2:4] = _numbered(found[:, 2:4], read)
    found[:, 4:6] = _numbered(found[:, 4:6], planes.count)
    at = _numbered(np.array(ends, np.int32), np.array([labels.count, planes.count]))
    return _Program(found, np.ascontiguousarray(at), labels.count, planes.count)


def _numbered(places: Numbers, count: npt.NDArray[np.int64] | int) -> Numbers:
    """Places with input rows counted from the end of the slots or planes on."""
    return np.where(places < 0, count - 1 - places, places).astype(np.int32)


# --- C


def _garble_native(
    loaded: Native,
    level: int,
    circuit: Circuit,
    own: Planes,
    labels: Blocks,
    delta: Words,
    public: _Public,
    made: Garbled,
) -> None:
    program = _program(circuit, by_level=False)
    lib, ffi = loaded
    slots, planes = _room(program, LANE)
    failed = lib.tacit_garble(
        level,
        public.key,
        ffi.from_buffer("int32_t[]", program.steps),
        len(program.steps),
        ffi.from_buffer("int32_t[]", program.outputs),
        len(program.outputs),
        ffi.from_buffer("uint64_t[]", slots),
        program.slots,
        ffi.from_buffer("uint64_t[]", planes),
        program.planes,
        ffi.from_buffer("uint64_t[]", own),
        ffi.cast("uint64_t *", _address(labels)),
        labels.strides[0] // 8,
        ffi.from_buffer("uint64_t[]", np.ascontiguousarray(delta)),
        labels.shape[1] // LANE,
        public.first,
        ffi.from_buffer("uint64_t[]", made.tables),
        ffi.from_buffer("uint64_t[]", made.outputs),
    )
    if failed:
        raise ConfigError(f"this processor has no AES instructions of level {level}")


def _evaluate_native(
    loaded: Native,
    level: int,
    circuit: Circuit,
    labels: Blocks,
    tables: Words,
    public: _Public,
    out: Blocks,
) -> None:
    program = _program(circuit, by_level=False)
    lib, ffi = loaded
    slots, _ = _room(program, LANE)
    failed = lib.tacit_evaluate(
        level,
        public.key,
        ffi.from_buffer("int32_t[]", program.steps),
        len(program.steps),
        ffi.from_buffer("int32_t[]", program.outputs),
        len(program.outputs),
        ffi.from_buffer("uint64_t[]", slots),
        program.slots,
        ffi.cast("uint64_t *", _address(labels)),
        labels.strides[0] // 8,
        ffi.from_buffer("uint64_t[]", tables),
        labels.shape[1] // LANE,
        public.first,
        ffi.from_buffer("uint64_t[]", out),
    )
    if failed:
        raise ConfigError(f"this processor has no AES instructions of level {level}")


def _room(program: _Program, instances: int) -> tuple[Blocks, Words]:
    slots = _aligned((program.slots, instances, 2))
    slots[_ZERO_LABEL] = 0
    planes = np.zeros((program.planes, instances // LANE), np.uint64)
    planes[_ONES] = ~np.uint64(0)
    return slots, planes


# --- numpy: the same steps on chunks of instances, the ANDs of a level together.

_BATCH = 1024  # ANDs at once, gates times instances: the buffers stay in the second-level cache
_ROOM = 1 << 19  # bytes for slots, where a chunk can be small enough


def _chunk(program: _Program, instances: int) -> int:
    """How many instances numpy takes at once."""
    fitting = _ROOM // (16 * program.slots) // LANE * LANE
    return max(LANE, min(_BATCH, fitting, instances))


def _batches(steps: Numbers, limit: int) -> Iterator[tuple[int, list[list[int]]]]:
    """The program's steps with ANDs of a level, which do not read one another, in groups of at most ``limit``."""
    for (kind, _), run in groupby(steps.tolist(), key=lambda step: (step[0], step[7])):
        together = list(run)
        size = limit if kind == _AND else 1
        for start in range(0, len(together), size):
            yield kind, together[start : start + size]


def _spread(planes: Planes, out: Words) -> Words:
    """Both words of block i of out are all ones where bit i of the planes is set, else zero."""
    octets = planes.astype("<u8", copy=False).view(np.uint8)
    bits = np.unpackbits(octets, axis=-1, bitorder="little")
    return _doubled(bits.astype(np.uint64), out)


def _doubled(bits: Words, out: Words) -> Words:
    """Both words of a block of out are all ones where its bit is 1, else zero."""
    np.negative(bits, out=out[..., 0])
    out[..., 1] = out[..., 0]
    return out


def _wide(blocks: Blocks) -> npt.NDArray[np.complex128]:
    """Blocks as items of 16 bytes, which numpy copies one by one whatever lies between them."""
    return blocks.view(np.complex128)[..., 0]


class _Chunk:
    """Labels and planes of a few instances, by the numbers that a program gives them."""

    def __init__(self, program: _Program, size: int) -> None:
        self.slots, self.planes = _room(program, size)

    def bind(self, labels: Blocks, own: Planes, start: int, stop: int) -> None:
        size = stop - start
        self.labels = [*self.slots[:, :size], *labels[:, start:stop]]
        words = slice(start // LANE, stop // LANE)
        self.bits = [*self.planes[:, : size // LANE], *own[:, words]]


def _hash(
    pi: Permutation, buffers: Sequence[Buffer], tweaks: Words, shape: tuple[int, ...]
) -> None:
    """The last buffer becomes the hash of the first, of blocks of that shape, whose tweaks are broadcast to it."""
    x, once, twice = buffers
    size = int(np.prod(shape[:-1]))
    pi(x, once, size)
    np.bitwise_xor(
        once.blocks[:size].reshape(shape), tweaks, out=twice.blocks[:size].reshape(shape)
    )
    pi(twice, x, size)
    np.bitwise_xor(x.blocks[:size], once.blocks[:size], out=twice.blocks[:size])


def _tweaks(group: list[list[int]], instances: int, start: int, first: int, out: Words) -> None:
    """Tweaks (2 halves, gates, instances of the chunk, 2) of a group of ANDs."""
    gates = np.array([step[6] for step in group], np.uint64)[:, None] * np.uint64(2 * instances)
    lows = np.uint64(first) + gates + 2 * np.arange(start, start + out.shape[2], dtype=np.uint64)
    out[0, ..., 0] = lows
    np.add(lows, np.uint64(1), out=out[1, ..., 0])
    out[..., 1] = 0


def _garble_numpy(
    circuit: Circuit,
    own: Planes,
    labels: Blocks,
    delta: Words,
    public: _Public,
    made: Garbled,
) -> None:
    program = _program(circuit, by_level=True)
    instances = labels.shape[1]
    size = _chunk(program, instances)
    chunk, limit = _Chunk(program, size), max(1, _BATCH // size)
    work = _GarbleWork(Permutation(public.key), delta, limit * size)
    tables = _wide(made.tables)
    for start in range(0, instances, size):
        stop = min(start + size, instances)
        chunk.bind(labels, own, start, stop)
        for kind, group in _batches(program.steps, limit):
            _, to, a, b, *_ = group[0]
            if kind == _PLANE:
                np.bitwise_xor(chunk.bits[a], chunk.bits[b], out=chunk.bits[to])
            elif kind == _XOR:
                np.bitwise_xor(chunk.labels[a], chunk.labels[b], out=chunk.labels[to])
            else:
                work.ands(chunk, group, instances, start, stop, public.first, tables)
        for out, (slot, plane) in zip(made.outputs, program.outputs.tolist(), strict=True):
            work.shift(chunk.labels[slot], chunk, plane, out[start:stop])


class _GarbleWork:
    """Buffers for the ANDs of a group; halves, colours, gates and instances are the axes.

    Args:
        pi: the permutation.
        delta: uint64 (2,).
        room: gates times instances, at most.
    """

    def __init__(self, pi: Permutation, delta: Words, room: int) -> None:
        self.pi = pi
        self.delta: Words = np.tile(delta, (room, 1))
        self.buffers = [Buffer(4 * room) for _ in range(3)]
        self.tweaks = np.empty((2 * room, 2), np.uint64)
        self.zero = np.empty((2 * room, 2), np.uint64)
        self.colours = np.empty((2 * room, 2), np.uint64)
        self.made = np.empty((2 * room, 2), np.uint64)

    def shift(self, labels: Blocks, chunk: _Chunk, plane: int, out: Blocks) -> None:
        """The zero-labels that a label and a plane stand for."""
        if plane == _ZERO_PLANE:
            out[...] = labels
            return
        mask = _spread(chunk.bits[plane], self.made[: len(labels)])
        mask &= self.delta[: len(labels)]
        np.bitwise_xor(labels, mask, out=out)

    def ands(
        self,
        chunk: _Chunk,
        group: list[list[int]],
        instances: int,
        start: int,
        stop: int,
        first: int,
        tables: npt.NDArray[np.complex128],
    ) -> None:
        size, gates = stop - start, len(group)
        room = gates * size
        half = (2, gates, size, 2)
        full = (2, *half)
        x = self.buffers[0].blocks[: 4 * room].reshape(full)
        zero, tweaks = (part[: 2 * room].reshape(half) for part in (self.zero, self.tweaks))
        mask, made = (part[: 2 * room].reshape(half) for part in (self.colours, self.made))
        delta = self.delta[:room].reshape(half[1:])
        for j, (_, _, a, b, plane_a, plane_b, *_) in enumerate(group):
            self.shift(chunk.labels[a], chunk, plane_a, zero[0, j])
            self.shift(chunk.labels[b], chunk, plane_b, zero[1, j])
        x[:, 0] = zero
        np.bitwise_xor(zero, delta, out=x[:, 1])
        _tweaks(group, instances, start, first, tweaks)
        _hash(self.pi, self.buffers, tweaks[:, None], full)
        hashed = self.buffers[2].blocks[: 4 * room].reshape(full)
        _doubled(zero[..., 0] & np.uint64(1), mask)

        np.bitwise_xor(hashed[:, 0], hashed[:, 1], out=made)
        made[0] ^= mask[1] & delta  # the generator's half
        x[:, 0] = made
        made[1] ^= zero[0]  # the evaluator's
        for j, step in enumerate(group):
            tables[step[6], start:stop, 0] = _wide(made[0, j])
            tables[step[6], start:stop, 1] = _wide(made[1, j])
        mask &= x[:, 0]
        mask ^= hashed[:, 0]
        for j, step in enumerate(group):
            np.bitwise_xor(mask[0, j], mask[1, j], out=chunk.labels[step[1]])


def _evaluate_numpy(
    circuit: Circuit, labels: Blocks, tables: Words, public: _Public, out: Blocks
) -> None:
    program = _program(circuit, by_level=True)
    instances = labels.shape[1]
    size = _chunk(program, instances)
    chunk, limit = _Chunk(program, size), max(1, _BATCH // size)
    work = _EvaluateWork(Permutation(public.key), limit * size)
    own = np.empty((0, instances // LANE), np.uint64)  # the evaluator reads no planes
    wide = _wide(tables)
    for start in range(0, instances, size):
        stop = min(start + size, instances)
        chunk.bind(labels, own, start, stop)
        for kind, group in _batches(program.steps, limit):
            _, to, a, b, *_ = group[0]
            if kind == _XOR:
                np.bitwise_xor(chunk.labels[a], chunk.labels[b], out=chunk.labels[to])
            elif kind == _AND:
                work.ands(chunk, group, instances, start, stop, public.first, wide)
        for row, (slot, _) in zip(out, program.outputs.tolist(), strict=True):
            row[start:stop] = chunk.labels[slot]


class _EvaluateWork:
    """Buffers for the ANDs of a group; halves, gates and instances are the axes.

    Args:
        pi: the permutation.
        room: gates times instances, at most.
    """

    def __init__(self, pi: Permutation, room: int) -> None:
        self.pi = pi
        self.buffers = [Buffer(2 * room) for _ in range(3)]
        self.tweaks = np.empty((2 * room, 2), np.uint64)
        self.active = np.empty((room, 2), np.uint64)
        self.colours = np.empty((2 * room, 2), np.uint64)
        self.halves = np.empty((2 * room, 2), np.uint64)

    def ands(
        self,
        chunk: _Chunk,
        group: list[list[int]],
        instances: int,
        start: int,
        stop: int,
        first: int,
        tables: npt.NDArray[np.complex128],
    ) -> None:
        size, gates = stop - start, len(group)
        room = gates * size
        shape = (2, gates, size, 2)
        x, hashed = (self.buffers[at].blocks[: 2 * room].reshape(shape) for at in (0, 2))
        tweaks, mask, halves = (
            part[: 2 * room].reshape(shape) for part in (self.tweaks, self.colours, self.halves)
        )
        active = self.active[:room].reshape(shape[1:])
        for j, (_, _, a, b, _, _, gate, _) in enumerate(group):
            x[0, j], x[1, j] = chunk.labels[a], chunk.labels[b]
            wide = _wide(halves[:, j])
            wide[0], wide[1] = tables[gate, start:stop, 0], tables[gate, start:stop, 1]
        active[...] = x[0]
        _doubled(x[..., 0] & np.uint64(1), mask)
        _tweaks(group, instances, start, first, tweaks)
        _hash(self.pi, self.buffers, tweaks, shape)
        halves[1] ^= active
        mask &= halves
        mask ^= hashed
        for j, step in enumerate(group):
            np.bitwise_xor(mask[0, j], mask[1, j], out=chunk.labels[step[1]])
