"""Plaintext exposure: which training records stand in the clear in what a role sees.

The survey's first threat: "once training data are revealed to companies providing learning services, sensitive information
might be recovered by the companies themselves". Nothing is inferred here: a record counts as exposed when its values, in
order, stand in an array of the observation, in any of the float widths, alone or beside other columns.

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


def _rows(array: Array, size: int) -> Array | None:
    if array.size < size or array.dtype.kind != "f":
        return None
    if array.size % size == 0:
        return array.reshape(-1, size)
    table = array.reshape(len(array), -1) if array.ndim > 1 else array.reshape(1, -1)
    if table.shape[1] < size:
        return None
    return np.lib.stride_tricks.sliding_window_view(table, size, axis=1).reshape(-1, size)
