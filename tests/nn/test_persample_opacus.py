"""Clipped sums against Opacus's, where ``make peers`` has installed it: one process for all models."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.nn import opacus_clipped_sums as opacus
from torch import nn

from tacit.nn.persample import ClippedSum, ClipRule, clipped_sum, cross_entropy

PYTHON = Path(__file__).resolve().parents[2] / ".peers" / "opacus" / "bin" / "python"
RECORDS = 9


class Given:
    """A model with drawn weights, and records."""

    def __init__(self, name: str) -> None:
        drawn = torch.Generator().manual_seed(len(name))
        self.model: nn.Module = opacus.MODELS[name]().double()
        with torch.no_grad():
            for p in self.model.parameters():
                p.copy_(torch.randn(p.shape, generator=drawn, dtype=torch.float64) * 0.7)
        shape = (RECORDS, *opacus.SHAPES[name])
        self.inputs = (
            torch.randint(11, shape, generator=drawn)
            if name == "embedding"
            else torch.randn(shape, generator=drawn, dtype=torch.float64)
        )
        self.targets = torch.randint(opacus.CLASSES, (RECORDS,), generator=drawn)
        norms = self.clipped(1.0).norms
        self.bound = float(norms.median()) * 1.01  # some are clipped, and some are not

    def clipped(self, bound: float) -> ClippedSum:
        return clipped_sum(
            self.model, cross_entropy, self.inputs, self.targets, ClipRule(bound=bound)
        )


@pytest.fixture(scope="module")
def given() -> dict[str, Given]:
    return {name: Given(name) for name in opacus.MODELS}


@pytest.fixture(scope="module")
def theirs(
    given: dict[str, Given], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    if not PYTHON.exists():
        pytest.skip("Opacus is not installed beside tacit: make peers")
    folder = tmp_path_factory.mktemp("opacus")
    arrays: dict[str, np.ndarray] = {}
    for name, one in given.items():
        arrays |= {f"{name}/{i}": p.detach().numpy() for i, p in enumerate(one.model.parameters())}
        arrays[f"{name}/inputs"], arrays[f"{name}/targets"] = (
            one.inputs.numpy(), one.targets.numpy(),
        )  # fmt: skip
        arrays[f"{name}/bound"] = np.array(one.bound)
    np.savez(folder / "given.npz", **arrays)
    done = subprocess.run(
        [str(PYTHON), opacus.__file__, str(folder / "given.npz"), str(folder / "sums.npz")],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(folder / "sums.npz") as found:
        return dict(found)


@pytest.mark.parametrize("name", opacus.MODELS)
def test_clipped_sums_equal_opacuss(
    given: dict[str, Given], theirs: dict[str, np.ndarray], name: str
) -> None:
    """To 1e-5 of the largest value: Opacus adds 1e-6 to each norm before it divides."""
    one = given[name]
    ours = one.clipped(one.bound)
    assert 0 < ours.clipped < RECORDS
    np.testing.assert_allclose(ours.norms.numpy(), theirs[f"{name}/norms"], rtol=1e-9)
    for i, (gradient, parameter) in enumerate(
        zip(ours.gradients, one.model.parameters(), strict=True)
    ):
        their = theirs[f"{name}/{i}"]
        assert their.shape == tuple(parameter.shape)
        assert np.abs(gradient.numpy() - their).max() <= 1e-5 * np.abs(their).max()
