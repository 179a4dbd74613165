"""Prediction with a model that stays shared: the client alone learns what it asked, and it is what the model says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, RangeError
from tacit.nn.federated import Task
from tacit.nn.spec import ModelSpec
from tacit.parties.roles import Role
from tacit.parties.two_party.network import Loss
from tacit.parties.views import FULL
from tacit.training.two_server import CLIENT, SERVERS, Prediction, Preprocessing, TwoServer

from ..conftest import small_task  # noqa: TID252 - tests are no package


def prepared(
    task: Task, loss: Loss, count: int, by: Preprocessing = Preprocessing.DEALER
) -> tuple[TwoServer, Prediction]:
    scheme = TwoServer(loss=loss, epochs=2, batch_size=8, learning_rate=0.125, preprocessing=by)
    spec = ModelSpec.of(task.start, task.input_shape)
    return scheme, Prediction(scheme=scheme, spec=spec, count=count, batch_size=4)


def asked(task: Task, count: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(count, *task.input_shape, generator=generator).numpy()


@pytest.mark.parametrize(
    ("loss", "by"),
    [
        (Loss.SQUARED_ERROR, Preprocessing.DEALER),
        (Loss.RELU_SUM, Preprocessing.DEALER),
        (Loss.LOGISTIC, Preprocessing.DEALER),
        (Loss.LOGISTIC, Preprocessing.TRANSFERS),
    ],
)
def test_predictions_are_those_of_the_model(loss: Loss, by: Preprocessing) -> None:
    task = small_task()
    scheme, prediction = prepared(task, loss, 6, by)  # a whole batch and a smaller one
    inputs = asked(task, 6)
    held = scheme.hold(task, coins=Coins.from_seed(b"train")).output
    found = prediction.run(held, inputs, coins=Coins.from_seed(b"predict")).output
    model = scheme.train(task, coins=Coins.from_seed(b"train")).output.value
    with torch.no_grad():
        scores = model(torch.from_numpy(inputs)).double()
    if loss is Loss.RELU_SUM:
        parts = scores.clamp(min=0) + 2.0**-scheme.fraction
        scores = parts / parts.sum(1, keepdim=True)
    if loss is Loss.LOGISTIC:
        scores = (scores + 0.5).clamp(0, 1)
    assert np.abs(found - scores.numpy()).max() < 0.01


def test_weights_are_masked_once_and_no_input_or_score_is_in_a_server_s_view() -> None:
    task = small_task()
    scheme, prediction = prepared(task, Loss.SQUARED_ERROR, 6)
    inputs = asked(task, 6)
    held = scheme.hold(task, coins=Coins.from_seed(b"train")).output
    done = prediction.run(held, inputs, coins=Coins.from_seed(b"predict"), recording=FULL)
    secrets = [
        scheme.fixed.encode(values).reshape(-1)[:8].tobytes() for values in (inputs, done.output)
    ]
    seen = {role: b"".join(f.data for f in view.frames()) for role, view in done.views.items()}
    for role in (*SERVERS, Role("dealer")):
        assert not any(secret in seen[role] for secret in secrets)
    masks = [one for one in map(str, prediction.plan().correlations) if "Mask(" in one]
    assert len(masks) == 2  # two layers, two batches
    assert CLIENT in done.views


def test_what_does_not_fit_is_refused() -> None:
    task = small_task()
    scheme, prediction = prepared(task, Loss.SQUARED_ERROR, 2)
    held = scheme.hold(task, coins=Coins.from_seed(b"train")).output
    coins = Coins.from_seed(b"predict")
    with pytest.raises(ConfigError, match="shape"):
        prediction.run(held, asked(task, 3), coins=coins)
    with pytest.raises(RangeError, match="inputs"):
        prediction.run(held, np.full((2, *task.input_shape), 1e15), coins=coins)
    with pytest.raises(ConfigError, match="count"):
        Prediction(scheme=scheme, spec=prediction.spec, count=0)
    other = ModelSpec.of(small_task(records=4).start[:2], task.input_shape)
    with pytest.raises(ConfigError, match="weights"):
        Prediction(scheme=scheme, spec=other, count=2).run(held, asked(task, 2), coins=coins)
