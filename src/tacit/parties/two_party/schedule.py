"""In which order a circuit is evaluated on bit-sliced shares, and which of its wires are masked."""

from __future__ import annotations

from functools import cache
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tacit.crypto.circuits import Circuit, Kind

Rows = slice | npt.NDArray[np.intp]
"""Rows of an array; a slice where they are evenly spaced, since that copies nothing."""


def _rows(numbers: list[int]) -> Rows:
    steps = {b - a for a, b in pairwise(numbers)}
    if len(steps) > 1 or any(step < 1 for step in steps):
        return np.array(numbers, np.intp)
    if not numbers:
        return slice(0, 0)
    return slice(numbers[0], numbers[-1] + 1, steps.pop() if steps else 1)


class Linear(NamedTuple):
    """Gates of one kind, none of which reads another's output: XOR or NOT."""

    kind: Kind
    out: Rows
    a: Rows
    b: Rows


class Level(NamedTuple):
    """One round: what is computed before it, what is opened in it, and the ANDs that it makes possible.

    Args:
        linear: before it.
        wires: to mask and open for the first time, known to party 0 alone, to party 1 alone, and shared.
        masks: the rows of their masks, in the same three parts.
        ands: output wires, then both inputs' mask rows.
        products: the rows of the ANDs among all ANDs.
    """

    linear: tuple[Linear, ...]
    wires: tuple[Rows, Rows, Rows]
    masks: tuple[slice, slice, slice]
    ands: tuple[Rows, Rows, Rows]
    products: slice


class Schedule(NamedTuple):
    """How a circuit is evaluated.

    Args:
        levels: one a round.
        linear: what is left after the last.
        masks: how many wires are masked, known to party 0 alone, to party 1 alone, and shared; rows in this order.
        left: for each AND, in the order of the levels, the mask row of its first input.
        right: of its second.
    """

    levels: tuple[Level, ...]
    linear: tuple[Linear, ...]
    masks: tuple[int, int, int]
    left: Rows
    right: Rows


def _owners(circuit: Circuit) -> list[int]:
    """Who knows each wire: 0 or 1 where only that party's inputs lie behind it through XOR and NOT, else 2."""
    found = [0] * circuit.inputs[0] + [1] * circuit.inputs[1]
    for kind, a, b in circuit.gates.tolist():
        found.append(2 if kind == Kind.AND or found[a] != found[b] else found[a])
    return found


@cache
def schedule_of(circuit: Circuit) -> Schedule:
    """The schedule of a circuit; the same in every process."""
    first, gates, owners = sum(circuit.inputs), circuit.gates.tolist(), _owners(circuit)
    level_of = circuit.levels.tolist()
    by_level: list[list[int]] = [[] for _ in range(circuit.depth + 1)]
    ands: list[list[int]] = [[] for _ in range(circuit.depth + 1)]
    for wire, (kind, _, _) in enumerate(gates, start=first):
        (ands if kind == Kind.AND else by_level)[level_of[wire]].append(wire)
    # A wire is masked once, in the round of the first AND that reads it.
    fresh: list[tuple[list[int], ...]] = []
    seen: set[int] = set()
    for wires in ands[1:]:
        parts: tuple[list[int], ...] = ([], [], [])
        for side in (1, 2):
            for wire in wires:
                read = gates[wire - first][side]
                if read not in seen:
                    seen.add(read)
                    parts[owners[read]].append(read)
        fresh.append(parts)
    row: dict[int, int] = {}
    for part in range(3):
        for parts in fresh:
            row.update(zip(parts[part], range(len(row), len(row) + len(parts[part])), strict=True))
    levels, done, left, right = [], 0, list[int](), list[int]()
    for level, parts in enumerate(fresh):
        outs = ands[level + 1]
        u, v = ([row[gates[out - first][side]] for out in outs] for side in (1, 2))
        levels.append(
            Level(
                _linear(gates, first, by_level[level]),
                tuple(map(_rows, parts)),  # type: ignore[arg-type]
                tuple(_span([row[wire] for wire in part]) for part in parts),  # type: ignore[arg-type]
                (_rows(outs), _rows(u), _rows(v)),
                slice(done, done + len(outs)),
            )
        )
        done += len(outs)
        left += u
        right += v
    counts = tuple(sum(len(parts[part]) for parts in fresh) for part in range(3))
    last = _linear(gates, first, by_level[-1])
    return Schedule(tuple(levels), last, counts, _rows(left), _rows(right))  # type: ignore[arg-type]


def _span(rows: list[int]) -> slice:
    return slice(rows[0], rows[-1] + 1) if rows else slice(0, 0)


def _linear(gates: list[Any], first: int, wires: list[int]) -> tuple[Linear, ...]:
    """The gates in groups that can be computed at once, in order."""
    here, step = set(wires), dict[int, int]()
    for wire in wires:
        kind, *reads = gates[wire - first]
        step[wire] = 1 + max((step[read] for read in reads if read in here), default=0)
    ordered = sorted(wires, key=lambda wire: (step[wire], gates[wire - first][0], wire))
    out = []
    for (_, kind), group in groupby(ordered, key=lambda wire: (step[wire], gates[wire - first][0])):
        outs = list(group)
        a, b = ([gates[wire - first][side] for wire in outs] for side in (1, 2))
        out.append(Linear(Kind(kind), _rows(outs), _rows(a), _rows(b)))
    return tuple(out)
