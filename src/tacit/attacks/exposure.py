"""Plaintext exposure: which training records stand in the clear in what a role sees.

The survey's first threat: "once training data are revealed to companies providing learning services, sensitive information
might be recovered by the companies themselves". Nothing is inferred here: a record counts as exposed when its values, in
order, stand in an array of the observation, in any of the float widths, alone or beside other columns, each within a
thousandth of the record's largest: fixed-point numbers round, and nobody would call the record hidden for that.

Holds: a `RoleView`. Knows: the shape of a record. Recovers: the rows that could be records; the audit counts how many of
them are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from tacit.attacks.access import Knowledge, RoleView
from tacit.core.wire import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaintextExposure:
    """Search an observation for records in the clear."""

    name: ClassVar[str] = "plaintext-exposure"

    def recover(self, access: RoleView, knowledge: Knowledge) -> Tensor:
        """Every row of the observation that has as many values as a record, as float32, (rows, *input shape).

        An array is cut into pieces as long as a record where that comes out even; otherwise its rows are read at every
        offset, so that a label or an index beside a record does not hide it.

        Raises:
            ConfigError: the shape of a record is not known.
        """
        knowledge.need(self.name, ["input_shape"])
        shape = knowledge.input_shape or ()
        size = math.prod(shape)
        found = [_rows(array, size) for array in access.observation.arrays()]
        rows = [torch.from_numpy(np.array(part, np.float32)) for part in found if part is not None]
        return torch.cat(rows).reshape(-1, *shape) if rows else torch.zeros(0, *shape)


TOLERANCE = 2.0**-10
"""Of a record's largest value."""


def standing(records: Tensor, rows: Tensor) -> list[bool]:
    """For each record whether it is one of the rows, within `TOLERANCE`.

    Args:
        records: (n, ...).
        rows: (m, ...), of as many values each.

    Only rows whose projection onto a fixed vector is near the record's are compared value by value.
    """
    wanted = records.flatten(1).numpy().astype(np.float64)
    flat = rows.flatten(1).numpy()
    flat = flat[np.isfinite(flat).all(axis=1)]
    along = np.cos(np.arange(wanted.shape[1]))
    parts = [
        part.astype(np.float64) @ along for part in np.array_split(flat, len(flat) // 65536 + 1)
    ]
    places = np.concatenate(parts)
    order = np.argsort(places)
    sorted_places = places[order]
    reach = TOLERANCE * np.abs(wanted).max(axis=1, initial=0.0)
    wide = reach * np.abs(along).sum() + 1e-9
    centres = wanted @ along
    first = np.searchsorted(sorted_places, centres - wide, "left")
    last = np.searchsorted(sorted_places, centres + wide, "right")
    return [
        any(
            bool((np.abs(flat[near] - record).max(axis=1) <= most).any())
            for near in np.array_split(order[low:high], (high - low) // 4096 + 1)
            if len(near)
        )
        for record, most, low, high in zip(wanted, reach, first, last, strict=True)
    ]


def _rows(array: Array, size: int) -> Array | None:
    if array.size < size or array.dtype.kind != "f":
        return None
    if array.size % size == 0:
        return array.reshape(-1, size)
    table = array.reshape(len(array), -1) if array.ndim > 1 else array.reshape(1, -1)
    if table.shape[1] < size:
        return None
    return np.lib.stride_tricks.sliding_window_view(table, size, axis=1).reshape(-1, size)
