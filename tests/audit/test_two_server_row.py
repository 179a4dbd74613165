"""What servers that train on shares see, attacked: nothing in an honest run, everything where masks are left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tacit.core.coins import Coins
from tacit.parties.views import FULL, Observation
from tacit.training.two_server import SERVERS, Masks, TwoServer

from ..conftest import small_task  # noqa: TID252 - tests are no package

SCHEME = TwoServer(epochs=2, batch_size=4, learning_rate=0.125, fraction=20)


def observed(masks: Masks) -> list[Observation]:
    scheme = replace(SCHEME, masks=masks)
    run = scheme.train(small_task(), coins=Coins.from_seed(b"row"), recording=FULL)
    return [scheme.observe(run.views[role], role) for role in SERVERS]


def true_gradient(rows: tuple[int, ...]) -> list[np.ndarray]:
    task = small_task()
    inputs, labels = (torch.cat(part) for part in zip(*task.shards, strict=True))
    targets = torch.eye(task.classes)[labels[list(rows)]]
    errors = task.start(inputs[list(rows)]) - targets
    errors.square().sum().div(2 * len(rows)).backward()
    return [parameter.grad.numpy() for parameter in task.start.parameters()]


@pytest.mark.parametrize("party", [0, 1])
def test_without_masks_either_server_has_records_and_gradients(party: int) -> None:
    seen = observed(Masks.NONE)[party]
    records = torch.cat([inputs for inputs, _ in small_task().shards]).flatten(1).numpy()
    found = np.concatenate([array.reshape(len(array), -1) for _, array in seen.intermediates])
    assert all(np.abs(found - record).max(1).min() < 2.0**-19 for record in records)
    first = seen.aggregates[0]
    assert first.records is not None and len(first.records) == SCHEME.batch_size
    for gradient, true in zip(first.arrays, true_gradient(first.records), strict=True):
        assert np.abs(gradient - true).max() < 1e-4


@pytest.mark.parametrize("party", [0, 1])
def test_with_masks_what_a_server_sees_is_noise(party: int) -> None:
    """A uniform value of 64 bits is as small as a record once in 2^43."""
    seen = observed(Masks.UNIFORM)[party]
    assert len(seen.aggregates) == 12 and len(seen.intermediates) == 6
    assert min(np.abs(array).min() for _, array in seen.intermediates) > 2.0
    gradient = seen.aggregates[0].arrays[0]
    assert np.median(np.abs(gradient)) > 1e4
