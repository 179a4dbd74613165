"""MI-Face in the space of a first linear layer's rows: the same images, but for rounding, for fewer multiplications.

Every slope is a combination of the layer's rows W, so that x_i = x_0 + a_i W. The descent moves a, for which the layer's
outputs are W x_0 + b + a (W W^T): for u units and d inputs a step costs u^2 instead of 2 u d multiplications a row, once
W W^T is formed (u^2 d). That pays where steps times rows are above u / 2. There is neither box nor Process nor AuxTerm, for
these leave the space. The adversary is that of `tacit.attacks.model_inversion`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tacit.attacks.access import Knowledge, WhiteBox
from tacit.attacks.model_inversion import (
    Evaluation,
    Forward,
    Inversion,
    MIFace,
    Start,
    descend,
    inversion,
    starting_points,
    values_like,
)
from tacit.core.errors import ConfigError, UnsupportedLayer


def invert_in_row_space(
    settings: MIFace,
    access: WhiteBox,
    knowledge: Knowledge,
    labels: Tensor,
    *,
    start: Start | None = None,
) -> Inversion:
    """`MIFace.invert` without AuxTerm and Process, for a model that starts with a linear layer.

    Args:
        settings: steps and stop rules; the box must be None.
        access: a `torch.nn.Sequential` of an optional flatten, a linear layer, and more or nothing.
        knowledge: `input_shape` and `classes` are used.
        labels: (n,) int64.
        start: where to start; None for x_0 = 0.

    Raises:
        UnsupportedLayer: the model does not start so.
        ConfigError: there is a box; or shapes, labels or classes do not belong together.
    """
    if settings.box is not None:
        raise ConfigError("a box leaves the space of the layer's rows: set box=None")
    starts, wanted = starting_points(
        settings.name, knowledge, labels, start, values_like(access.model)
    )
    layer, rest = _first_linear(access.model, starts[0, 0])
    weight, flat = layer.weight.detach(), starts.flatten(2).flatten(0, 1)
    with torch.no_grad():
        outputs, gram = layer(flat), weight @ weight.T
    inner = Forward(rest, knowledge, settings.cost, None, wanted)

    def evaluate(points: Tensor, rows: Tensor) -> Evaluation:
        # The slope by the layer's outputs is the direction of a.
        return inner(outputs[rows] + points @ gram, rows)

    found = descend(evaluate, torch.zeros_like(outputs), settings, None)
    images = (flat + found.points @ weight).view(-1, *starts.shape[2:])
    return inversion(found, images, labels, start)


def _first_linear(model: nn.Module, record: Tensor) -> tuple[nn.Linear, nn.Sequential]:
    layers = list(model) if isinstance(model, nn.Sequential) else []
    flat = record.dim() == 1
    if layers and isinstance(layers[0], nn.Flatten):
        flat = (layers[0].start_dim, layers[0].end_dim) == (1, -1)
        layers = layers[1:]
    first = layers[0] if layers else None
    if not (flat and isinstance(first, nn.Linear)):
        raise UnsupportedLayer(
            "a Sequential of a Flatten and a Linear first expected: use MIFace.invert, which takes any model"
        )
    return first, nn.Sequential(*layers[1:])
