"""Plaintext exposure: which training records stand in the clear in what a role sees.

The survey's first threat: "once training data are revealed to companies providing learning services, sensitive information
might be recovered by the companies themselves". Nothing is inferred here: a record counts as exposed when its values, in
order, stand in an array of the observation, in any of the float widths or as 8-bit pixels.

Holds: a `RoleView`. Knows: the shape of a record. Recovers: the rows that could be records; the audit counts how many of
them are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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

        Rows are read at each place where an array, flattened, is a whole number of records long.

        Raises:
            ConfigError: the shape of a record is not known.
        """
        knowledge.need(self.name, ["input_shape"])
        shape = knowledge.input_shape or ()
        size = math.prod(shape)
        rows = [
            torch.from_numpy(np.array(r))
            for a in access.observation.arrays()
            for r in _rows(a, size)
        ]
        return torch.cat(rows).reshape(-1, *shape) if rows else torch.zeros(0, *shape)


def _rows(array: Array, size: int) -> Iterator[Array]:
    if array.size == 0 or array.size % size or array.dtype.kind not in "fu":
        return
    flat = array.reshape(-1, size)
    if array.dtype == np.uint8:
        yield flat.astype(np.float32) / np.float32(255)
    elif array.dtype.kind == "f":
        yield flat.astype(np.float32)
