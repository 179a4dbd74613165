"""A task is checked when it is made, and the message names the owner."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, DataError, TacitWarning, UnsupportedLayer
from tacit.nn.federated import Task
from tacit.training.plain import Centralised, FederatedSGD


def with_second(task: Task, change) -> tuple:
    shards = list(task.shards)
    shards[1] = change(*shards[1])
    return tuple(shards)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, y: (x.double(), y), "records of owner 1 must be float32"),
        (lambda x, y: (x[:, :, :3], y), r"records of owner 1 .* shape \(1, 4, 4\)"),
        (lambda x, y: (x[:0], y[:0]), "records of owner 1 .* at least one row"),
        (lambda x, y: (x, y.int()), "labels of owner 1 must be int64"),
        (lambda x, y: (x, y[:-1]), r"labels of owner 1 .* shape \(8,\)"),
        (lambda x, y: (x, y + 4), "labels of owner 1 must be from 0 to 3"),
        (lambda x, y: (x, y - 9), "labels of owner 1 must be from 0 to 3"),
    ],
)
def test_records_and_labels_of_another_form_are_refused(task: Task, change, said: str) -> None:
    with pytest.raises(DataError, match=said):
        replace(task, shards=with_second(task, change))


def test_a_task_needs_an_owner_and_a_class(task: Task) -> None:
    for wrong in ({"shards": ()}, {"classes": 0}):
        with pytest.raises(ConfigError, match="at least one owner and one class"):
            replace(task, **wrong)


def test_a_model_that_cannot_travel_is_refused_before_anything_is_sent(task: Task) -> None:
    told: list[int] = []
    for start in (nn.Flatten(), nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 4))):
        for scheme in (Centralised(epochs=1), FederatedSGD(rounds=1)):
            with pytest.raises(UnsupportedLayer):
                scheme.train(
                    replace(task, start=start),
                    coins=Coins(),
                    progress=lambda done, total: told.append(done),
                )
    assert not told


def test_dropout_is_warned_of(task: Task) -> None:
    start = nn.Sequential(copy.deepcopy(task.start), nn.Dropout(0.0))
    FederatedSGD(rounds=1).train(replace(task, start=start), coins=Coins())
    start[1].p = 0.5
    with pytest.warns(TacitWarning, match="dropout"):
        FederatedSGD(rounds=1).train(replace(task, start=start), coins=Coins())


def test_a_restored_member_does_not_answer_another_model_with_the_same_noise(task: Task) -> None:
    from tacit.dp.mechanisms import NoisyVector
    from tacit.nn.federated import honest_work
    from tacit.nn.local_work import Share, parameters_of
    from tacit.training.local_dp import NoisyWork

    (honest, *_) = honest_work(task, Share.GRADIENT, batch_size=1).values()
    mechanism = NoisyVector(clip=1e-6, noise_multiplier=1e6)  # the answer is the noise

    def answer(model):
        work = NoisyWork(work=honest, mechanism=mechanism, examples=1, coins=Coins.from_seed(b"1"))
        return torch.from_numpy(work.update(model, 0).arrays[0])

    model = parameters_of(task.start)
    other = [array + 0.01 for array in model]
    assert torch.equal(answer(model), answer(model))
    assert not torch.allclose(answer(model), answer(other))
