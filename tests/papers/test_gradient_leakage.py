"""What the papers on gradient leakage claim, on their own data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from tacit.attacks.gradient_leakage import exact_recovery, infer_label
from tacit.audit.figures import Effort
from tacit.audit.reproduce import REPRODUCTIONS, reproduce
from tacit.core.errors import UnknownName
from tacit.nn.data import DataSet, load
from tacit.nn.networks import lenet, mlp


def gradients(model: nn.Module, inputs: Tensor, labels: Tensor) -> list[Tensor]:
    """The gradient of each record on its own, in one stack."""

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, parameters, x[None]), y[None])

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return list(vmap(grad(loss), (None, 0, 0))(parameters, inputs, labels).values())


@pytest.fixture(scope="module")
def mnist(data_folder: Path) -> DataSet:
    return load("mnist", data_folder)


def test_phong_one_unit_gives_a_record_back_exactly_in_float32(mnist: DataSet) -> None:
    inputs, labels = mnist.inputs_train[:200], mnist.labels_train[:200]
    model = mlp((1, 28, 28), (64,), 10, generator=torch.Generator().manual_seed(3))
    weight, bias, *_ = gradients(model, inputs, labels)
    found = exact_recovery(weight, bias)
    assert float((found - inputs.flatten(1)).abs().max()) < 1e-5


def test_idlg_every_label_is_read_off_the_last_bias(mnist: DataSet) -> None:
    inputs, labels = mnist.inputs_train[:200], mnist.labels_train[:200]
    model = lenet((1, 28, 28), 10, generator=torch.Generator().manual_seed(3))
    assert torch.equal(infer_label(gradients(model, inputs, labels)[-1]), labels)


def test_a_reproduction_that_does_not_exist_names_the_close_ones() -> None:
    with pytest.raises(UnknownName, match="did you mean leakage"):
        reproduce("leekage", Effort(quick=True))
    assert "leakage" in REPRODUCTIONS
