"""Principal components under differential privacy: those of a noisy second-moment matrix.

Each row x is scaled to norm 1, and A = sum of x x^T is released once. One row more adds a matrix of Frobenius norm 1. A is
symmetric: the entries on and above its diagonal are released, those above it times sqrt(2), a vector of the same norm; half
of the noise's variance is saved above the diagonal.

Source: Abadi et al., "Deep learning with differential privacy" (CCS 2016), section 4 (recalled); Dwork et al., "Analyze
Gauss" (STOC 2014), algorithm 1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.dp.noise import GaussianKind, NoisySum

_ROOT = float(np.sqrt(2.0))
_SLACK = 1 + 1e-6  # of a norm in floats


def component_release(dimensions: int, noise_multiplier: float, kind: GaussianKind) -> NoisySum:
    """How the second moments of rows of so many values are released: what an accountant asks."""
    return NoisySum(
        clip=_SLACK, noise_multiplier=noise_multiplier, coordinates=dimensions * (dimensions + 1) // 2, kind=kind
    )  # fmt: skip


def private_components(
    rows: npt.NDArray[np.floating], count: int, release: NoisySum, coins: Coins
) -> npt.NDArray[np.float32]:
    """The directions of the largest noisy second moments.

    Args:
        rows: (n, d); those that are not finite add nothing.
        count: how many directions, at most d.
        release: of `component_release`.
        coins: where the noise comes from.

    Returns:
        (count, d), orthonormal, largest first. A direction's sign is arbitrary.

    Raises:
        ConfigError: there are fewer than ``count`` dimensions.

    **Leaks**: one release, to be accounted at rate 1.
    """
    if not 1 <= count <= rows.shape[1]:
        raise ConfigError(f"1 to {rows.shape[1]} components expected, got {count}")
    moments = np.zeros((rows.shape[1], rows.shape[1]))
    for part in np.array_split(rows, max(1, len(rows) // 4096)):
        x = np.asarray(part, np.float64)
        norms = np.linalg.norm(x, axis=1, keepdims=True)
        whole = np.isfinite(norms) & (norms > 0)
        x = np.divide(x, norms, out=np.zeros_like(x), where=whole)
        moments += x.T @ x
    above = np.triu_indices(len(moments), 1)
    (diagonal, off) = release.release([np.diagonal(moments), _ROOT * moments[above]], coins)
    noisy = np.diag(diagonal.astype(np.float64))
    noisy[above] = off / _ROOT
    noisy.T[above] = noisy[above]
    _, directions = np.linalg.eigh(noisy)
    out: npt.NDArray[np.float32] = directions.T[::-1][:count].astype(np.float32)
    return out
