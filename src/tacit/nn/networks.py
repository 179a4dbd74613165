"""The networks that the papers and the attacks use, drawn from an explicit generator.

Each function gives back a plain `torch.nn.Sequential` that maps a batch of inputs to unnormalised
scores (logits), one per class, and that `tacit.nn.spec.ModelSpec` can describe. Nothing here reads
or advances torch's global generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from tacit.core.errors import ConfigError, UnsupportedLayer

#: An elementwise non-linearity, given as its class.
Activation = type[nn.ReLU] | type[nn.LeakyReLU] | type[nn.Sigmoid] | type[nn.Tanh]

M = TypeVar("M", bound=nn.Module)

_ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh)
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d)


def initialise(module: M, generator: torch.Generator) -> M:
    """Draw every parameter of ``module`` in place, by PyTorch's default scheme, and give it back.

    Linear and convolutional weights and biases are uniform in ±1/√fan_in (which is what
    Kaiming-uniform with a = √5 comes to); norm layers start as the identity with fresh running
    statistics. From the same generator state the values are those that PyTorch's constructors draw.

    Args:
        module: the model; its parameters keep their device and type.
        generator: where the values come from, in the order of ``module.modules()``.

    Raises:
        UnsupportedLayer: a layer has parameters and no scheme is known for it; nothing is drawn.
    """
    return _draw(module, lambda layer: 1 / math.sqrt(_fan_in(layer)), generator)


def initialise_uniform(module: M, bound: float, generator: torch.Generator) -> M:
    """Draw every linear and convolutional parameter uniformly in ±``bound``, at any layer size.

    Weights so much larger than PyTorch's own (bound 0.5, say) keep the second derivatives of a deep
    sigmoid network from vanishing, which matters to attacks that differentiate a gradient.

    Args:
        module: the model, changed in place; norm layers start as the identity.
        bound: half the width of the interval.
        generator: where the values come from.

    Raises:
        ConfigError: ``bound`` is not positive and finite.
        UnsupportedLayer: a layer has parameters and no scheme is known for it; nothing is drawn.
    """
    if not 0 < bound < math.inf:
        raise ConfigError(f"bound must be positive and finite, not {bound}")
    return _draw(module, lambda _: bound, generator)


def softmax_regression(
    input_shape: tuple[int, ...], classes: int, *, generator: torch.Generator
) -> nn.Sequential:
    """Multinomial logistic regression: one linear layer on the flattened input.

    Args:
        input_shape: shape of one input, without the batch.
        classes: number of classes.
        generator: draws the parameters.

    Raises:
        ConfigError: a size is not positive.
    """
    return mlp(input_shape, (), classes, generator=generator)


def mlp(
    input_shape: tuple[int, ...],
    hidden: tuple[int, ...],
    classes: int,
    activation: Activation = nn.ReLU,
    *,
    generator: torch.Generator,
) -> nn.Sequential:
    """A fully connected network: flatten, then each hidden layer with its activation, then scores.

    Args:
        input_shape: shape of one input, without the batch.
        hidden: widths of the hidden layers, from input to output; may be empty.
        classes: number of classes.
        activation: the non-linearity after each hidden layer.
        generator: draws the parameters.

    Raises:
        ConfigError: a size is not positive, or ``activation`` is not one of the four.
    """
    _check_sizes(input_shape=input_shape, hidden=hidden, classes=(classes,))
    _check_activation(activation)
    layers: list[nn.Module] = [nn.Flatten()]
    width = math.prod(input_shape)
    for following in hidden:
        layers += [_linear(width, following), activation()]
        width = following
    return initialise(nn.Sequential(*layers, _linear(width, classes)), generator)


def lenet(
    input_shape: tuple[int, ...],
    classes: int,
    activation: Activation = nn.Sigmoid,
    *,
    generator: torch.Generator,
) -> nn.Sequential:
    """The LeNet of the gradient-leakage attacks: three 5x5 convolutions, strides 2, 2, 1.

    Args:
        input_shape: (channels, height, width).
        classes: number of classes.
        activation: the non-linearity; a smooth one, since the attack differentiates twice.
        generator: draws the parameters, by PyTorch's scheme (or see `initialise_uniform`).

    Raises:
        ConfigError: ``input_shape`` is not (channels, height, width), a size is not positive, or
            ``activation`` is not one of the four.

    Source: Zhu, Liu, Han, "Deep leakage from gradients", NeurIPS 2019; in the form with three
    convolutions of 12 channels, used by Zhao, Mopuri, Bilen, "iDLG: improved deep leakage from
    gradients", 2020.
    """
    channels, height, width = _check_image(input_shape, classes, activation)
    layers: list[nn.Module] = []
    for stride in (2, 2, 1):
        layers += [_conv(channels, 12, kernel=5, stride=stride, padding=2), activation()]
        channels, height, width = 12, -(-height // stride), -(-width // stride)
    layers += [nn.Flatten(), _linear(channels * height * width, classes)]
    return initialise(nn.Sequential(*layers), generator)


def tanh_cnn(
    input_shape: tuple[int, ...], classes: int, *, generator: torch.Generator
) -> nn.Sequential:
    """The convolutional network of selective SGD: for 28x28 digits, padded to 32x32, 105,506 parameters.

    5x5 convolution to 32 channels, tanh, 3x3 max-pooling; 5x5 convolution to 64 channels, tanh, 2x2 max-pooling; 200 hidden
    units, tanh. Images are padded with two pixels of 0 on each side, as its authors did with MNIST.

    Args:
        input_shape: (channels, height, width), at least 17 pixels each way.
        classes: number of classes.
        generator: draws the parameters.

    Raises:
        ConfigError: ``input_shape`` is not (channels, height, width) of at least 17 pixels each
            way, or a size is not positive.

    Source: Shokri, Shmatikov, "Privacy-preserving deep learning", CCS 2015, section 6.2 (recalled).
    """
    channels, *sides = _check_image(input_shape, classes, nn.Tanh)
    if min(sides) < 17:
        raise ConfigError(f"images of at least 17x17 pixels expected, not {sides[0]}x{sides[1]}")
    rows, columns = ((side // 3 - 4) // 2 for side in sides)
    model = nn.Sequential(
        _conv(channels, 32, kernel=5, stride=1, padding=2),
        nn.Tanh(),
        nn.MaxPool2d(3),
        _conv(32, 64, kernel=5, stride=1, padding=0),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        _linear(64 * rows * columns, 200),
        nn.Tanh(),
        _linear(200, classes),
    )
    return initialise(model, generator)


def conv3(
    input_shape: tuple[int, ...],
    classes: int,
    width: int = 32,
    activation: Activation = nn.ReLU,
    *,
    generator: torch.Generator,
) -> nn.Sequential:
    """A small network for colour images: three 3x3 convolutions of strides 1, 2, 2, then scores.

    Args:
        input_shape: (channels, height, width).
        classes: number of classes.
        width: channels of the first convolution; the two that follow have twice as many.
        activation: the non-linearity after each convolution.
        generator: draws the parameters.

    Raises:
        ConfigError: ``input_shape`` is not (channels, height, width), a size is not positive, or
            ``activation`` is not one of the four.
    """
    channels, rows, columns = _check_image(input_shape, classes, activation)
    _check_sizes(width=(width,))
    layers: list[nn.Module] = []
    for out, stride in ((width, 1), (2 * width, 2), (2 * width, 2)):
        layers += [_conv(channels, out, kernel=3, stride=stride, padding=1), activation()]
        channels, rows, columns = out, -(-rows // stride), -(-columns // stride)
    layers += [nn.Flatten(), _linear(channels * rows * columns, classes)]
    return initialise(nn.Sequential(*layers), generator)


def cnn(
    input_shape: tuple[int, ...],
    classes: int,
    width: int = 32,
    activation: Activation = nn.ReLU,
    *,
    generator: torch.Generator,
) -> nn.Sequential:
    """A network that trains well on MNIST and CIFAR-10: two convolution blocks, one hidden layer.

    A block is a 3x3 convolution, the activation and 2x2 max-pooling.

    Args:
        input_shape: (channels, height, width), at least 4 pixels each way.
        classes: number of classes.
        width: channels of the first block; the second has twice, the hidden layer four times it.
        activation: the non-linearity after each convolution and the hidden layer.
        generator: draws the parameters.

    Raises:
        ConfigError: ``input_shape`` is not (channels, height, width) of at least 4 pixels each way,
            a size is not positive, or ``activation`` is not one of the four.
    """
    channels, rows, columns = _check_image(input_shape, classes, activation)
    _check_sizes(width=(width,))
    if min(rows, columns) < 4:
        raise ConfigError(f"two poolings need images of at least 4x4 pixels, not {rows}x{columns}")
    features = 2 * width * (rows // 4) * (columns // 4)
    model = nn.Sequential(
        _conv(channels, width, kernel=3, stride=1, padding=1),
        activation(),
        nn.MaxPool2d(2),
        _conv(width, 2 * width, kernel=3, stride=1, padding=1),
        activation(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        _linear(features, 4 * width),
        activation(),
        _linear(4 * width, classes),
    )
    return initialise(model, generator)


def projected_mlp(
    input_shape: tuple[int, ...],
    components: int,
    hidden: int,
    classes: int,
    *,
    generator: torch.Generator,
) -> nn.Sequential:
    """A first layer for principal directions, without bias or activation, one hidden layer of ReLUs, scores.

    Args:
        input_shape: shape of one input, without the batch.
        components: outputs of the first layer, which a training may set and keep.
        hidden: width of the hidden layer.
        classes: number of classes.
        generator: draws the parameters.

    Raises:
        ConfigError: a size is not positive.

    Source: Abadi et al., "Deep learning with differential privacy", CCS 2016, section 5 (recalled): 60 components, 1000
    hidden units.
    """
    _check_sizes(input_shape=input_shape, hidden=(components, hidden), classes=(classes,))
    front = nn.Linear(math.prod(input_shape), components, bias=False, device="meta").to_empty(
        device="cpu"
    )
    rest = _linear(components, hidden), nn.ReLU(), _linear(hidden, classes)
    return initialise(nn.Sequential(nn.Flatten(), front, *rest), generator)


def tempered_cnn(
    input_shape: tuple[int, ...], classes: int, *, generator: torch.Generator
) -> nn.Sequential:
    """Two strided convolutions with max-pooling and one hidden layer, all with tanh, for 28x28 images.

    Args:
        input_shape: (channels, height, width), at least 20 pixels each way.
        classes: number of classes.
        generator: draws the parameters.

    Raises:
        ConfigError: ``input_shape`` is not (channels, height, width) of at least 20 pixels each way.

    Source: Papernot et al., "Tempered sigmoid activations for deep learning with differential privacy", AAAI 2021, table 1
    (recalled): 16 8x8 and 32 4x4 filters at stride 2, 2x2 pooling at stride 1, 32 hidden units.
    """
    channels, rows, columns = _check_image(input_shape, classes, nn.Tanh)
    if min(rows, columns) < 20:
        raise ConfigError(f"images of at least 20x20 pixels expected, not {rows}x{columns}")

    def after(size: int) -> int:
        return ((size + 6 - 8) // 2 + 1 - 1 - 4) // 2 + 1 - 1

    model = nn.Sequential(
        _conv(channels, 16, kernel=8, stride=2, padding=3),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        _conv(16, 32, kernel=4, stride=2, padding=0),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        _linear(32 * after(rows) * after(columns), 32),
        nn.Tanh(),
        _linear(32, classes),
    )
    return initialise(model, generator)


def wide_cnn(
    input_shape: tuple[int, ...], classes: int, *, generator: torch.Generator
) -> nn.Sequential:
    """The CIFAR-10 network of differentially private SGD: for 24x24 crops of three channels, 1,144,138 parameters.

    Two blocks of a 5x5 convolution to 64 channels, ReLU and 2x2 max-pooling; two hidden layers of 384 ReLUs.

    Args:
        input_shape: (channels, height, width), at least 4 pixels each way.
        classes: number of classes.
        generator: draws the parameters.

    Raises:
        ConfigError: ``input_shape`` is not (channels, height, width) of at least 4 pixels each way, or a size is not
            positive.

    Source: Abadi et al., "Deep learning with differential privacy", CCS 2016, section 5 (recalled).
    """
    channels, rows, columns = _check_image(input_shape, classes, nn.ReLU)
    if min(rows, columns) < 4:
        raise ConfigError(f"two poolings need images of at least 4x4 pixels, not {rows}x{columns}")
    layers: list[nn.Module] = []
    for inputs in (channels, 64):
        layers += [_conv(inputs, 64, kernel=5, stride=1, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    layers.append(nn.Flatten())
    for inputs in (64 * (rows // 4) * (columns // 4), 384):
        layers += [_linear(inputs, 384), nn.ReLU()]
    return initialise(nn.Sequential(*layers, _linear(384, classes)), generator)


def _linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")


def _conv(inputs: int, outputs: int, *, kernel: int, stride: int, padding: int) -> nn.Module:
    return nn.Conv2d(
        inputs, outputs, kernel, stride=stride, padding=padding, device="meta"
    ).to_empty(device="cpu")


def _draw(module: M, bound_of: Callable[[nn.Module], float], generator: torch.Generator) -> M:
    layers = _layers_with_parameters(module)
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, _NORMS):
                layer.reset_parameters()
                continue
            for parameter in _own_parameters(layer).values():
                _draw_uniform(parameter, bound_of(layer), generator)
    return module


def _layers_with_parameters(module: nn.Module) -> list[nn.Module]:
    layers = []
    for path, layer in module.named_modules():
        own = _own_parameters(layer)
        if not own and not isinstance(layer, _NORMS):
            continue
        drawable = isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_NORMS))
        if not drawable or not own.keys() <= {"weight", "bias"}:
            raise UnsupportedLayer(
                f"layer {path or '(the model)'} ({type(layer).__name__}) has parameters "
                f"{', '.join(own)} and no known scheme to draw them: use linear, convolution and "
                "norm layers, or initialise the model yourself"
            )
        layers.append(layer)
    return layers


def _own_parameters(layer: nn.Module) -> dict[str, nn.Parameter]:
    return dict(layer.named_parameters(recurse=False))


def _fan_in(layer: nn.Module) -> int:
    weight = _own_parameters(layer)["weight"]
    return math.prod(weight.shape[1:])


def _draw_uniform(parameter: Tensor, bound: float, generator: torch.Generator) -> None:
    # Drawn where the generator lives: a model on another device starts from the same values.
    drawn = torch.empty(parameter.shape, dtype=parameter.dtype, device=generator.device)
    parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))


def _check_image(
    input_shape: tuple[int, ...], classes: int, activation: Activation
) -> tuple[int, int, int]:
    if len(input_shape) != 3:
        raise ConfigError(
            "a convolutional network takes inputs of shape (channels, height, width), "
            f"not {input_shape}"
        )
    _check_sizes(input_shape=input_shape, classes=(classes,))
    _check_activation(activation)
    channels, height, width = input_shape
    return channels, height, width


def _check_activation(activation: Activation) -> None:
    if activation not in _ACTIVATIONS:
        known = ", ".join(f"nn.{known.__name__}" for known in _ACTIVATIONS)
        raise ConfigError(f"activation must be one of the classes {known}, not {activation!r}")


def _check_sizes(**sizes: tuple[int, ...]) -> None:
    for name, values in sizes.items():
        if any(value < 1 for value in values):
            raise ConfigError(f"{name} must be positive, not {values}")
