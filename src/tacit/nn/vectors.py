"""A model's arrays as one vector, and back. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tacit.core.wire import Array

FloatArray = npt.NDArray[np.float32]


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
