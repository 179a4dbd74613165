"""What a participant contributes to a round: an update, and what makes it. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tacit.core.wire import Array

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalUpdate:
    """What a participant would send if nobody listened.

    Args:
        arrays: float32, one a model parameter, in the model's order.
        examples: records behind it.
    """

    arrays: tuple[Array, ...] = field(repr=False)
    examples: int


class LocalWork(Protocol):
    """A participant's part of a training round."""

    def update(self, model: Sequence[Array], round: int) -> LocalUpdate:
        """The update that follows from the model of that round, counted from 0.

        Raises:
            Diverged: a loss or gradient is not finite.
        """
        ...


def flattened(arrays: Sequence[Array]) -> FloatArray:
    """The arrays as one float32 vector."""
    return np.concatenate([np.asarray(a, np.float32).reshape(-1) for a in arrays])


def unflattened(vector: FloatArray, like: Sequence[Array]) -> tuple[FloatArray, ...]:
    """The vector cut into arrays of those shapes.

    Raises:
        ValueError: it is shorter or longer.
    """
    cuts = np.cumsum([a.size for a in like])
    parts = np.split(vector, cuts[:-1])
    return tuple(part.reshape(a.shape) for part, a in zip(parts, like, strict=True))
