"""Honest local training: what an update is, which records are behind it, and when it stops."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tacit.core.errors import ConfigError, Diverged, UnsupportedLayer
from tacit.nn.federated import Task
from tacit.nn.local_work import HonestTraining, Share, accuracy, fit, load_parameters, parameters_of


def work_on(task: Task, share: Share, **settings: object) -> HonestTraining:
    inputs, labels = task.shards[0]
    return HonestTraining(
        module=copy.deepcopy(task.start), inputs=inputs, labels=labels, share=share, **settings
    )


def test_a_gradient_update_is_the_gradient_of_the_mean_loss_on_its_records(task: Task) -> None:
    work = work_on(task, Share.GRADIENT, batch_size=3)
    update = work.update(parameters_of(task.start), round=1)
    rows = work.records(1)
    loss = nn.functional.cross_entropy(task.start(work.inputs[rows]), work.labels[rows])
    expected = torch.autograd.grad(loss, list(task.start.parameters()))
    for got, want in zip(update.arrays, expected, strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-6, atol=1e-8)
    assert update.examples == 3


def test_a_change_update_is_what_local_sgd_does_to_the_model(task: Task) -> None:
    work = work_on(task, Share.CHANGE, batch_size=2, local_steps=3, learning_rate=0.2)
    update = work.update(parameters_of(task.start), round=0)
    reference = copy.deepcopy(task.start)
    optimiser = torch.optim.SGD(reference.parameters(), lr=0.2)
    for rows in work.records(0).split(2):
        optimiser.zero_grad()
        nn.functional.cross_entropy(reference(work.inputs[rows]), work.labels[rows]).backward()
        optimiser.step()
    for got, before, after in zip(
        update.arrays, parameters_of(task.start), parameters_of(reference), strict=True
    ):
        np.testing.assert_allclose(got, after - before, rtol=1e-4, atol=1e-7)


def test_an_epoch_uses_every_record_once_and_the_next_in_another_order(task: Task) -> None:
    work = work_on(task, Share.GRADIENT, batch_size=2)
    first = torch.cat([work.records(r) for r in range(4)])
    second = torch.cat([work.records(r) for r in range(4, 8)])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(8))
    assert first.tolist() != second.tolist()


def test_the_users_module_is_not_changed_by_federated_training(task: Task) -> None:
    before = [p.copy() for p in parameters_of(task.start)]
    work_on(task, Share.CHANGE, batch_size=2, local_steps=2, learning_rate=0.1).update(before, 0)
    for a, b in zip(before, parameters_of(task.start), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(p.grad is None for p in task.start.parameters())


def test_a_record_that_is_not_finite_stops_training_with_round_and_epoch(task: Task) -> None:
    work = work_on(task, Share.GRADIENT, batch_size=1)
    work.inputs = work.inputs.clone()
    work.inputs[:] = float("nan")
    with pytest.raises(Diverged, match=r"round 17 \(epoch 2"):
        work.update(parameters_of(task.start), 17)


def test_fit_that_diverges_names_the_epoch(task: Task) -> None:
    inputs, labels = task.shards[0]
    with pytest.raises(Diverged, match="epoch 0"):
        fit(
            task.start, inputs * float("inf"), labels, epochs=2, batch_size=4, learning_rate=0.1,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip


def test_fit_learns_and_accuracy_sees_it(task: Task) -> None:
    inputs, labels = task.shards[0]
    before = accuracy(task.start, inputs, labels)
    fit(
        task.start, inputs, labels, epochs=150, batch_size=4, learning_rate=0.3,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert accuracy(task.start, inputs, labels) == 1.0 > before


def test_fit_shortens_a_gradient_that_is_longer_than_the_clip(task: Task) -> None:
    inputs, labels = task.shards[0]
    before = parameters_of(task.start)
    fit(
        task.start, inputs * 100, labels, epochs=1, batch_size=len(inputs), learning_rate=1.0, clip=0.5,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    moved = [a - b for a, b in zip(parameters_of(task.start), before, strict=True)]
    assert np.sqrt(sum(float((one**2).sum()) for one in moved)) == pytest.approx(0.5, rel=1e-3)


def test_batches_larger_than_the_shard_and_steps_that_make_no_sense_are_refused(task: Task) -> None:
    with pytest.raises(ConfigError, match="batch of 9 cannot be drawn from 8"):
        work_on(task, Share.GRADIENT, batch_size=9)
    with pytest.raises(ConfigError, match="local_steps"):
        work_on(task, Share.GRADIENT, batch_size=1, local_steps=2)


def test_running_statistics_and_other_shapes_are_refused(task: Task) -> None:
    with pytest.raises(UnsupportedLayer, match="GroupNorm"):
        parameters_of(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    with pytest.raises(ConfigError, match="cannot take"):
        load_parameters(task.start, [np.zeros((1, 1), np.float32)])
