"""What model extraction is measured on: models trained on real tables and images, each from its own seed.

A target is trained on three quarters of the training records, which a seed draws, so that targets of several seeds differ.

All answer in float64. Records of tables lie in [-1, 1], of images in [0, 1], and so does the box that is asked about.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn

from tacit.attacks.extraction_fit import AffineModel, with_one
from tacit.attacks.extraction_kernel import KernelModel, kernel
from tacit.core.errors import UnknownName
from tacit.nn.data import DataSet, load, load_table
from tacit.nn.networks import mlp
from tacit.nn.stacked import Recipe, Trainer

#: Of the targets that are fitted to the minimum: times the squared weights, beside the loss of a record.
RIDGE = 1e-3
#: A target is trained on this share of the training records.
SHARE = 0.75
#: Hidden units of the networks, as in the paper.
HIDDEN = 20
#: Hidden units of ReLU networks.
RECTIFIED = 32
#: Hidden units of the network that is copied from natural records.
NATURAL = 128
#: Of the kernel, per squared unit of a pixel.
GAMMA = 0.05

#: What a target can be.
KINDS = ("softmax", "one-vs-rest", "mlp20", "relu32", "mlp128", "kernel10", "kernel20")

_TANH = Recipe(epochs=10, batch_size=20, learning_rate=0.01, optimiser="sgd")
_RELU = Recipe(epochs=15, batch_size=20, learning_rate=0.003)
_NATURAL = Recipe(epochs=5, batch_size=64, learning_rate=0.002)


M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Data:
    """Records in two parts, and the range that their features have.

    Args:
        train: records (n, *shape) float64 and labels (n,).
        test: the same for others.
        classes: how many there are.
        low: the least value of a feature.
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: int
    low: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a record."""
        return tuple(self.train[0].shape[1:])

    @property
    def width(self) -> int:
        """Features of a record."""
        return math.prod(self.shape)


@cache
def data_of(name: str) -> Data:
    """Data by name.

    Args:
        name: ``digits`` or ``mnist``, ``adult-race`` (race as the label), a table of `tacit.nn.tables`, ``moons`` or
            ``blobs``, which are generated.

    Raises:
        UnknownName: there are none of that name.
        DataError: their file is not there.
    """
    if name in ("digits", "mnist"):
        return _of(load(name), 0.0)
    if name in _GENERATED:
        return _generated(name)
    table = load_table("adult" if name == "adult-race" else name)
    label = "race" if name == "adult-race" else None
    return _of(table.encoded(label, low=-1.0, high=1.0), -1.0)


def _of(data: DataSet, low: float) -> Data:
    train = (data.inputs_train.double(), data.labels_train)
    return Data(train, (data.inputs_test.double(), data.labels_test), data.classes, low)


def _moons(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Two half circles that reach into each other."""
    angle = math.pi * torch.rand(len(labels), generator=generator, dtype=torch.float64)
    side = 1 - 2 * labels.double()
    places = torch.stack(
        [side * angle.cos() + labels, side * angle.sin() + 0.5 * labels.double()], 1
    )
    return places + 0.1 * torch.randn(places.shape, generator=generator, dtype=torch.float64)


def _blobs(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Two round heaps."""
    centres = torch.tensor([[-1.0, 2.0], [2.0, -0.5]], dtype=torch.float64)
    noise = torch.randn(len(labels), 2, generator=generator, dtype=torch.float64)
    return centres[labels] + noise


_GENERATED: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "moons": _moons,
    "blobs": _blobs,
}


def _generated(name: str) -> Data:
    """5,000 records of two features and two classes, three tenths of them for testing."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (5000,), generator=generator)
    places = _GENERATED[name](labels, generator)
    least, most = places.min(0).values, places.max(0).values
    places = 2 * (places - least) / (most - least) - 1
    return Data((places[:3500], labels[:3500]), (places[3500:], labels[3500:]), 2, -1.0)


# --- models


def target_of(kind: str, data: Data, seed: int) -> nn.Module:
    """A trained target in float64, its weights fixed.

    Args:
        kind: ``softmax``, ``one-vs-rest``, ``mlp20`` (tanh), ``relu32``, ``mlp128`` (of the first half of the training
            records), ``kernel10`` or ``kernel20``.
        data: that it is trained on: on `SHARE` of the training records.
        seed: of what is drawn, these records first.

    Raises:
        UnknownName: there is none of that kind.
    """
    generator = torch.Generator().manual_seed(seed)
    model: nn.Module
    whole, data = data, drawn_from(data, generator)
    match kind:
        case "softmax":
            model = softmax(data)
        case "one-vs-rest":
            model = one_vs_rest(data)
        case "mlp20":
            model = _network(data, HIDDEN, nn.Tanh, _TANH, generator)
        case "relu32":
            model = _network(data, RECTIFIED, nn.ReLU, _RELU, generator)
        case "mlp128":
            half = Data(theirs(whole), data.test, data.classes, data.low)
            half = drawn_from(half, generator)
            model = _network(half, NATURAL, nn.Tanh, _NATURAL, generator)
        case "kernel10" | "kernel20":
            model = kernel_regression(data, int(kind.removeprefix("kernel")), generator)
        case _:
            raise UnknownName("target", kind, KINDS)
    for weights in model.parameters():
        weights.requires_grad_(False)
    return model.eval()


def drawn_from(data: Data, generator: torch.Generator) -> Data:
    """Data with `SHARE` of the training records, drawn without repeating; the test records are all there."""
    inputs, labels = data.train
    rows = torch.randperm(len(labels), generator=generator)[: round(SHARE * len(labels))]
    return Data((inputs[rows], labels[rows]), data.test, data.classes, data.low)


def theirs(data: Data) -> tuple[Tensor, Tensor]:
    """The first half of the training records: the target's, where the adversary has natural records, too."""
    inputs, labels = data.train
    half = len(labels) // 2
    return inputs[:half], labels[:half]


def own(data: Data) -> tuple[Tensor, Tensor]:
    """The other half, the adversary's."""
    inputs, labels = data.train
    half = len(labels) // 2
    return inputs[half:], labels[half:]


def softmax(data: Data) -> nn.Sequential:
    """Multinomial logistic regression with a ridge."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(data.width, data.classes)).double()
    inputs, labels = data.train
    return _fitted(model, lambda: nn.functional.cross_entropy(model(inputs), labels))


def one_vs_rest(data: Data) -> AffineModel:
    """A logistic regression for each class against all others."""
    inputs, labels = data.train
    zeros = torch.zeros(data.classes, data.width, dtype=torch.float64)
    model = AffineModel(zeros, zeros[:, 0], "one-vs-rest")
    each = nn.functional.one_hot(labels, data.classes).double()

    def loss() -> Tensor:
        raw = nn.functional.linear(inputs.flatten(1), model.weight, model.bias)
        found = nn.functional.binary_cross_entropy_with_logits(raw, each, reduction="none")
        return found.sum(1).mean()

    return _fitted(model, loss)


def kernel_regression(data: Data, representers: int, generator: torch.Generator) -> KernelModel:
    """Kernel logistic regression whose representers are training records, as many of each class."""
    inputs, labels = data.train
    inputs = inputs.flatten(1)
    rows = []
    for label in range(data.classes):
        mine = torch.nonzero(labels == label).flatten()
        order = torch.randperm(len(mine), generator=generator)
        rows.append(mine[order[: representers // data.classes]])
    chosen = inputs[torch.cat(rows)]
    near = with_one(kernel(inputs, chosen, GAMMA))
    weights = nn.Linear(near.shape[1], data.classes, bias=False).double()
    _fitted(weights, lambda: nn.functional.cross_entropy(weights(near), labels), ridge=RIDGE / 10)
    return KernelModel(chosen, weights.weight.detach(), GAMMA)


def _network(
    data: Data,
    hidden: int,
    activation: type[nn.Tanh | nn.ReLU],
    recipe: Recipe,
    generator: torch.Generator,
) -> nn.Module:
    trainer = Trainer(
        network=lambda draw: mlp(data.shape, (hidden,), data.classes, activation, generator=draw),
        recipe=recipe,
    )
    inputs, labels = data.train
    return trainer(inputs.float(), labels, generator).double()


def _fitted(model: M, loss: Callable[[], Tensor], ridge: float = RIDGE) -> M:
    """The minimum of a convex loss with a ridge on all but the bias, by L-BFGS from zero."""
    parameters = list(model.parameters())
    for weights in parameters:
        nn.init.zeros_(weights)
    optimiser = torch.optim.LBFGS(parameters, max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        for weights in parameters:
            if weights.dim() > 1:
                value = value + ridge * weights.square().sum()
        torch.autograd.backward(value)
        return value

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return model
