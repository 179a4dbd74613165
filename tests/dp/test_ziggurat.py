"""Normal numbers by the ziggurat."""

from __future__ import annotations

import os

import numpy as np
import pytest
from scipy import stats

from tacit.core.coins import Coins
from tacit.crypto import kernels
from tacit.dp import ziggurat
from tacit.dp.ziggurat import normal


def test_the_layers_have_one_area() -> None:
    """A width of x_i times the curve's rise from there to the next, for all but the strip with the tail."""
    layers = ziggurat.cover()
    areas = layers.ends[1:-1] * np.diff(layers.heights)[1:]
    assert np.allclose(areas, ziggurat._AREA, rtol=1e-9)
    strip = layers.ends[1] * layers.heights[1] + stats.norm.sf(layers.ends[1]) * np.sqrt(2 * np.pi)
    assert strip == pytest.approx(ziggurat._AREA, rel=1e-9)


def test_draws_follow_the_normal_law_in_all_layers_and_in_the_tail() -> None:
    """Chi-square over the ends of the layers, on either side, and some places beyond them; a false alarm in 10^6."""
    count = 3_000_000
    drawn = normal(Coins.from_seed(b"ziggurat"), count).astype(np.float64)
    inner = ziggurat.cover().ends[2:-1:4]
    edges = np.concatenate([inner, [0.01, 0.1, ziggurat._END, 3.7, 3.8, 4.0, 4.3]])
    edges = np.sort(np.concatenate([-edges, [0.0], edges]))
    found = np.bincount(np.searchsorted(edges, drawn), minlength=len(edges) + 1)
    cdf = np.concatenate([[0.0], stats.norm.cdf(edges), [1.0]])
    expected = count * np.diff(cdf)
    assert expected.min() > 20
    statistic = float(((found - expected) ** 2 / expected).sum())
    assert stats.chi2.sf(statistic, len(edges)) > 1e-6


@pytest.mark.parametrize("count", [0, 1, 1000, 300_001])
def test_c_and_numpy_draw_the_same_from_the_same_coins(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels._load() is None:
        required = os.environ.get("TACIT_NATIVE_REQUIRED")
        (pytest.fail if required else pytest.skip)("the C kernels were not built")
    drawn = []
    for native in ("0", "1"):
        monkeypatch.setenv("TACIT_NATIVE", native)
        drawn.append(normal(Coins.from_seed(b"both"), count))
    assert np.array_equal(drawn[0], drawn[1])
