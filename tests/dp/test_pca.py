"""Private principal components: right where there is little noise, orthonormal always, one row's change bounded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.dp.noise import GaussianKind
from tacit.dp.pca import component_release, private_components


def coins(name: str = "pca") -> Coins:
    return Coins.from_seed(name.encode())


def rows(count: int = 3000, dimensions: int = 12) -> np.ndarray:
    """Nearly all of the second moment lies in three directions."""
    generator = torch.Generator().manual_seed(5)
    first, second, third = (
        torch.randn(size, generator=generator).numpy() for size in ((dimensions, 3), (count, 3), (count, dimensions))
    )  # fmt: skip
    return second * np.float32([4, 2, 1]) @ np.linalg.qr(first)[0].T + np.float32(0.01) * third


@pytest.mark.parametrize("kind", GaussianKind, ids=lambda kind: kind.value)
def test_components_span_what_the_exact_ones_do(kind: GaussianKind) -> None:
    x = rows()
    found = private_components(x, 3, component_release(12, 1.0, kind), coins())
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    exact = np.linalg.eigh(unit.T @ unit)[1].T[::-1][:3]
    assert np.abs(found @ found.T - np.eye(3)).max() < 1e-5
    assert np.linalg.svd(found @ exact.T)[1].min() > 0.999


def test_with_much_noise_nothing_of_them_is_left() -> None:
    x = rows(300)
    found = private_components(x, 3, component_release(12, 1e4, GaussianKind.DISCRETE), coins())
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    exact = np.linalg.eigh(unit.T @ unit)[1].T[::-1][:3]
    assert np.linalg.svd(found @ exact.T)[1].min() < 0.9


class _Seen(Exception):
    pass


def released(x: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """What would be made noisy."""
    seen = []

    def release(self, arrays, coins):
        seen.append(np.concatenate([np.ravel(one) for one in arrays]))
        raise _Seen

    monkeypatch.setattr("tacit.dp.noise.NoisySum.release", release)
    with pytest.raises(_Seen):
        private_components(x, 2, component_release(x.shape[1], 1.0, GaussianKind.DISCRETE), coins())
    return seen[0]


def test_a_row_more_moves_what_is_released_by_its_clip_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = rows(50)
    release = component_release(12, 1.0, GaussianKind.DISCRETE)
    for size in (1e-6, 1.0, 1e6):
        more = np.concatenate([x, size * rows(1)])
        moved = np.linalg.norm(released(more, monkeypatch) - released(x, monkeypatch))
        assert 0.999 < moved <= release.clip
    nothing = np.concatenate([x, np.zeros((1, 12), "f4")])
    assert np.array_equal(released(nothing, monkeypatch), released(x, monkeypatch))


def test_rows_that_are_not_finite_add_nothing() -> None:
    x = rows(40)
    odd = np.concatenate([x, x[:3]])
    odd[40, 4], odd[41, 0], odd[42, 5] = np.nan, np.inf, -np.inf
    release = component_release(12, 1.0, GaussianKind.DISCRETE)
    one, other = (private_components(of, 3, release, coins()) for of in (x, odd))
    assert np.array_equal(one, other)


def test_counts_that_cannot_be_are_refused() -> None:
    release = component_release(12, 1.0, GaussianKind.DISCRETE)
    for count in (0, 13):
        with pytest.raises(ConfigError, match="1 to 12 components"):
            private_components(rows(9), count, release, coins())
