"""In which order a circuit is evaluated on bit-sliced shares, and which of its wires are masked."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tacit.crypto.circuits import Circuit, Kind

Numbers = npt.NDArray[np.int32]


class Level(NamedTuple):
    """One round: what is computed before it, what is opened in it, and the ANDs that it makes possible.

    Args:
        linear: what needs no round, before it, as `tacit.crypto.gates.linear_gates` takes it.
        wires: to mask and open for the first time: known to party 0 alone, to party 1 alone, and shared.
        masks: the rows of their masks, in the same three parts.
        ands: output wires and both inputs' mask rows, as `tacit.crypto.gates.and_gates` takes them.
        products: the rows of the ANDs among all ANDs.
    """

    linear: Numbers
    wires: tuple[Numbers, ...]
    masks: tuple[slice, ...]
    ands: Numbers
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
    linear: Numbers
    masks: tuple[int, int, int]
    left: Numbers
    right: Numbers


@cache
def schedule_of(circuit: Circuit) -> Schedule:
    """The schedule of a circuit; the same in every process."""
    first, gates, owners = sum(circuit.inputs), circuit.gates.tolist(), circuit.owners.tolist()
    linear: list[list[tuple[int, ...]]] = [[] for _ in range(circuit.depth + 1)]
    ands: list[list[int]] = [[] for _ in range(circuit.depth + 1)]
    for wire, (kind, a, b) in enumerate(gates, start=first):
        level, owner = circuit.levels[wire], owners[wire]
        if kind == Kind.AND and owner < 0:
            ands[level].append(wire)
        else:  # who alone knows a wire computes on it, and the other's share of it stays zero
            inverter = max(0, owner) if kind == Kind.NOT else 0
            linear[level].append((kind + inverter, wire, a, b))
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
    levels, done = [], 0
    for level, parts in enumerate(fresh):
        outs = ands[level + 1]
        reads = [[wire, *(row[gates[wire - first][side]] for side in (1, 2))] for wire in outs]
        levels.append(
            Level(
                np.array(linear[level], np.int32).reshape(-1, 4),
                tuple(np.array(part, np.int32) for part in parts),
                tuple(
                    slice(row[part[0]], row[part[-1]] + 1) if part else slice(0) for part in parts
                ),
                np.array(reads, np.int32),
                slice(done, done + len(outs)),
            )
        )
        done += len(outs)
    counts = tuple(sum(len(parts[part]) for parts in fresh) for part in range(3))
    rows = np.concatenate([np.empty((0, 3), np.int32), *(level.ands for level in levels)])
    last = np.array(linear[-1], np.int32).reshape(-1, 4)
    return Schedule(tuple(levels), last, (counts[0], counts[1], counts[2]), rows[:, 1], rows[:, 2])
