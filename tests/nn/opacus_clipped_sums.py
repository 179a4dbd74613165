"""Clipped sums of per-sample gradients by Opacus, for test_persample_opacus.py; run where tacit is not installed.

    python opacus_clipped_sums.py GIVEN.npz SUMS.npz

Given, for each of `MODELS`: ``name/inputs``, ``name/targets``, ``name/bound`` and the parameters, ``name/0`` and so on.
Made: ``name/0`` and so on, the clipped sums, and ``name/norms``. No embedding has a padding index: Opacus 1.6.0 gives its
row a gradient, which torch does not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

CLASSES = 5


class Mean(nn.Module):
    """Over all dimensions between the first and the last."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1, -2).mean(1)


class Last(nn.Module):
    """Channels to the end."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, CLASSES)),
    "linear with leading dimensions": lambda: nn.Sequential(
        nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, CLASSES, bias=False), Mean()
    ),
    "conv1d": lambda: nn.Sequential(
        nn.Conv1d(2, 6, 3, stride=2, padding=1, groups=2), nn.Tanh(),
        nn.Conv1d(6, CLASSES, 2, dilation=2), Last(), Mean(),
    ),
    "conv2d": lambda: nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0)), nn.Tanh(),
        nn.Conv2d(4, CLASSES, 2, groups=1, bias=False), Last(), Mean(),
    ),
    "embedding": lambda: nn.Sequential(nn.Embedding(11, 6), Mean(), nn.Linear(6, CLASSES)),
    "layer norm": lambda: nn.Sequential(
        nn.Linear(7, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, CLASSES), Mean()
    ),
    "group norm": lambda: nn.Sequential(
        nn.Conv2d(2, 6, 2), nn.GroupNorm(3, 6), nn.Tanh(), Last(), Mean(), nn.Linear(6, CLASSES)
    ),
}  # fmt: skip
SHAPES: dict[str, tuple[int, ...]] = {
    "linear": (7,),
    "linear with leading dimensions": (2, 3, 7),
    "conv1d": (2, 12),
    "conv2d": (2, 7, 6),
    "embedding": (8,),  # tokens
    "layer norm": (4, 7),
    "group norm": (2, 5, 5),
}


def main(given: Path, made: Path) -> None:
    """Clip by Opacus's optimiser, without noise."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    sums: dict[str, np.ndarray] = {}
    with np.load(given) as arrays:
        for name, make in MODELS.items():
            model = make().double()
            with torch.no_grad():
                for i, parameter in enumerate(model.parameters()):
                    parameter.copy_(torch.from_numpy(arrays[f"{name}/{i}"]))
            private = GradSampleModule(model, loss_reduction="sum")
            optimiser = DPOptimizer(
                torch.optim.SGD(private.parameters(), lr=1.0), noise_multiplier=0.0,
                max_grad_norm=float(arrays[f"{name}/bound"]), expected_batch_size=1, loss_reduction="sum",
            )  # fmt: skip
            outputs = private(torch.from_numpy(arrays[f"{name}/inputs"]))
            targets = torch.from_numpy(arrays[f"{name}/targets"])
            nn.functional.cross_entropy(outputs, targets, reduction="sum").backward()
            squares = [p.grad_sample.flatten(1).square().sum(1) for p in model.parameters()]
            sums[f"{name}/norms"] = torch.stack(squares).sum(0).sqrt().numpy()
            optimiser.clip_and_accumulate()
            for i, parameter in enumerate(model.parameters()):
                sums[f"{name}/{i}"] = parameter.summed_grad.numpy()
    np.savez(made, **sums)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
