"""A model as a list of layers, to and from torch.

A `ModelSpec` says what a feed-forward network computes and holds none of its weights. Protocols
walk it to know what they have to evaluate, parties send it as JSON, and a saved model carries it,
so that no code has to be unpickled to load a model.

It covers what it can describe exactly and refuses the rest. `torch.nn.Identity` and
`torch.nn.Dropout(p=0)` compute nothing and are left out. Any other dropout is refused: its masks
come from torch's global generator, so a run with it could not be repeated.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from tacit.core.errors import ConfigError, OutputError, UnsupportedLayer

Shape = tuple[int, ...]
Pair = tuple[int, int]

FORMAT = "tacit.model/1"
MAX_JSON_CHARACTERS = 1 << 20
MAX_LAYERS = 1024
MAX_SIZE = 1 << 24  #: of any one dimension
MAX_ELEMENTS = 1 << 28  #: of the input or any layer's output, per example
MAX_PARAMETERS = 1 << 32
MAX_REAL = 1e30


class _NoParameters:
    """What layers have in common that hold no weights and, unless they say so, keep the shape."""

    __slots__ = ()

    @property
    def parameter_count(self) -> int:
        """Number of trainable scalars: none."""
        return 0

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of one output for one input of ``shape``."""
        return shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """``x @ W.T + b`` over the last axis."""

    in_features: int
    out_features: int
    bias: bool = True

    def __post_init__(self) -> None:
        _check_counts(in_features=self.in_features, out_features=self.out_features)
        _check_flags(bias=self.bias)

    @classmethod
    def of(cls, module: nn.Linear, _label: str) -> Self:
        """Describe a torch layer."""
        return cls(
            in_features=module.in_features,
            out_features=module.out_features,
            bias=module.bias is not None,
        )

    def module(self) -> nn.Module:
        """The torch layer, on the meta device."""
        return nn.Linear(self.in_features, self.out_features, self.bias, device="meta")

    @property
    def parameter_count(self) -> int:
        """Number of trainable scalars."""
        return self.out_features * (self.in_features + self.bias)

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of one output for one input of ``shape``."""
        if shape[-1] != self.in_features:
            raise _MisfitError(f"inputs whose last axis has {self.in_features} features")
        return (*shape[:-1], self.out_features)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv2d:
    """A two-dimensional convolution with zero padding, one group and no dilation."""

    in_channels: int
    out_channels: int
    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    bias: bool = True

    def __post_init__(self) -> None:
        _check_counts(in_channels=self.in_channels, out_channels=self.out_channels)
        _check_window(self.kernel_size, self.stride, self.padding)
        _check_flags(bias=self.bias)

    @classmethod
    def of(cls, module: nn.Conv2d, label: str) -> Self:
        """Describe a torch layer; dilation, groups and other paddings raise `UnsupportedLayer`."""
        _require(module, label, {"dilation": (1, 1), "groups": 1, "padding_mode": "zeros"})
        kernel = _pair(module.kernel_size)
        return cls(
            in_channels=module.in_channels,
            out_channels=module.out_channels,
            kernel_size=kernel,
            stride=_pair(module.stride),
            padding=_conv_padding(module.padding, kernel, label),
            bias=module.bias is not None,
        )

    def module(self) -> nn.Module:
        """The torch layer, on the meta device."""
        return nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            bias=self.bias,
            device="meta",
        )

    @property
    def parameter_count(self) -> int:
        """Number of trainable scalars."""
        return self.out_channels * (self.in_channels * math.prod(self.kernel_size) + self.bias)

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of one output for one input of ``shape``."""
        if len(shape) != 3 or shape[0] != self.in_channels:
            raise _MisfitError(f"inputs of shape ({self.in_channels}, height, width)")
        windows = _windows(shape[1:], self.kernel_size, self.stride, self.padding)
        return (self.out_channels, *windows)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxPool2d(_NoParameters):
    """The largest value of each window."""

    kernel_size: Pair
    stride: Pair
    padding: Pair = (0, 0)

    def __post_init__(self) -> None:
        _check_pool(self.kernel_size, self.stride, self.padding)

    @classmethod
    def of(cls, module: nn.MaxPool2d, label: str) -> Self:
        """Describe a torch layer; dilation, ceil_mode and indices raise `UnsupportedLayer`."""
        if _pair(module.dilation) != (1, 1):
            raise _cannot_express(label, "dilation", module.dilation, 1)
        _require(module, label, {"ceil_mode": False, "return_indices": False})
        return cls(
            kernel_size=_pair(module.kernel_size),
            stride=_pair(module.stride),
            padding=_pair(module.padding),
        )

    def module(self) -> nn.Module:
        """The torch layer."""
        return nn.MaxPool2d(self.kernel_size, self.stride, self.padding)

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of one output for one input of ``shape``."""
        return _pooled(shape, self.kernel_size, self.stride, self.padding)


@dataclass(frozen=True, slots=True, kw_only=True)
class AvgPool2d(_NoParameters):
    """The mean of each window, padding zeros included."""

    kernel_size: Pair
    stride: Pair
    padding: Pair = (0, 0)

    def __post_init__(self) -> None:
        _check_pool(self.kernel_size, self.stride, self.padding)

    @classmethod
    def of(cls, module: nn.AvgPool2d, label: str) -> Self:
        """Describe a torch layer; ceil_mode and other divisors raise `UnsupportedLayer`."""
        _require(module, label, {"ceil_mode": False, "divisor_override": None})
        padding = _pair(module.padding)
        if padding != (0, 0):
            _require(module, label, {"count_include_pad": True})
        return cls(
            kernel_size=_pair(module.kernel_size), stride=_pair(module.stride), padding=padding
        )

    def module(self) -> nn.Module:
        """The torch layer."""
        return nn.AvgPool2d(self.kernel_size, self.stride, self.padding)

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of one output for one input of ``shape``."""
        return _pooled(shape, self.kernel_size, self.stride, self.padding)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReLU(_NoParameters):
    """``max(x, 0)``."""

    @classmethod
    def of(cls, _module: nn.ReLU, _label: str) -> Self:
        """Describe a torch layer (in place or not: the values are the same)."""
        return cls()

    def module(self) -> nn.Module:
        """The torch layer."""
        return nn.ReLU()


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakyReLU(_NoParameters):
    """``x`` where positive, ``negative_slope * x`` elsewhere."""

    negative_slope: float = 0.01

    def __post_init__(self) -> None:
        _check_real("negative_slope", self.negative_slope)

    @classmethod
    def of(cls, module: nn.LeakyReLU, _label: str) -> Self:
        """Describe a torch layer (in place or not: the values are the same)."""
        return cls(negative_slope=float(module.negative_slope))

    def module(self) -> nn.Module:
        """The torch layer."""
        return nn.LeakyReLU(self.negative_slope)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sigmoid(_NoParameters):
    """``1 / (1 + exp(-x))``."""

    @classmethod
    def of(cls, _module: nn.Sigmoid, _label: str) -> Self:
        """Describe a torch layer."""
        return cls()

    def module(self) -> nn.Module:
        """The torch layer."""
        return nn.Sigmoid()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tanh(_NoParameters):
    """The hyperbolic tangent."""

    @classmethod
    def of(cls, _module: nn.Tanh, _label: str) -> Self:
        """Describe a torch layer."""
        return cls()

    def module(self) -> nn.Module:
        """The torch layer."""
        return nn.Tanh()


@dataclass(frozen=True, slots=True, kw_only=True)
class Flatten(_NoParameters):
    """All axes but the batch made one."""

    @classmethod
    def of(cls, module: nn.Flatten, label: str) -> Self:
        """Describe a torch layer; a partial flattening raises `UnsupportedLayer`."""
        _require(module, label, {"start_dim": 1, "end_dim": -1})
        return cls()

    def module(self) -> nn.Module:
        """The torch layer."""
        return nn.Flatten()

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of one output for one input of ``shape``."""
        return (math.prod(shape),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Softmax(_NoParameters):
    """Exponentials scaled to sum to one along ``dim``, where axis 0 is the batch."""

    dim: int = -1

    def __post_init__(self) -> None:
        if type(self.dim) is not int or self.dim == 0:
            raise ConfigError(
                f"Softmax: dim must be an integer other than 0, not {_short(self.dim)}"
            )

    @classmethod
    def of(cls, module: nn.Softmax, label: str) -> Self:
        """Describe a torch layer; a softmax over the batch or over no stated axis is refused."""
        if module.dim is None or module.dim == 0:
            raise _cannot_express(label, "dim", module.dim, -1)
        return cls(dim=module.dim)

    def module(self) -> nn.Module:
        """The torch layer."""
        return nn.Softmax(self.dim)

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        if not -len(shape) <= self.dim <= len(shape):
            raise _MisfitError(f"inputs that have an axis {self.dim} beside the batch")
        return shape


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNorm:
    """Each example standardised over its last axes."""

    normalized_shape: Shape
    eps: float = 1e-5
    elementwise_affine: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        _check_shape("normalized_shape", self.normalized_shape)
        _check_real("eps", self.eps, least=0.0)
        _check_flags(elementwise_affine=self.elementwise_affine, bias=self.bias)

    @classmethod
    def of(cls, module: nn.LayerNorm, _label: str) -> Self:
        """Describe a torch layer."""
        return cls(
            normalized_shape=tuple(module.normalized_shape),
            eps=module.eps,
            elementwise_affine=module.elementwise_affine,
            bias=module.bias is not None,
        )

    def module(self) -> nn.Module:
        """The torch layer, on the meta device."""
        return nn.LayerNorm(
            self.normalized_shape, self.eps, self.elementwise_affine, self.bias, device="meta"
        )

    @property
    def parameter_count(self) -> int:
        """Number of trainable scalars."""
        return self.elementwise_affine * (1 + self.bias) * math.prod(self.normalized_shape)

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        if shape[-len(self.normalized_shape) :] != self.normalized_shape:
            raise _MisfitError(f"inputs whose last axes are {self.normalized_shape}")
        return shape


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupNorm:
    """Each example standardised over groups of channels."""

    num_groups: int
    num_channels: int
    eps: float = 1e-5
    affine: bool = True

    def __post_init__(self) -> None:
        _check_counts(num_groups=self.num_groups, num_channels=self.num_channels)
        _check_real("eps", self.eps, least=0.0)
        _check_flags(affine=self.affine)
        if self.num_channels % self.num_groups:
            raise ConfigError(
                f"num_channels must be a multiple of num_groups, not {self.num_channels} "
                f"channels in {self.num_groups} groups"
            )

    @classmethod
    def of(cls, module: nn.GroupNorm, _label: str) -> Self:
        """Describe a torch layer."""
        return cls(
            num_groups=module.num_groups,
            num_channels=module.num_channels,
            eps=module.eps,
            affine=module.affine,
        )

    def module(self) -> nn.Module:
        """The torch layer, on the meta device."""
        return nn.GroupNorm(
            self.num_groups, self.num_channels, self.eps, self.affine, device="meta"
        )

    @property
    def parameter_count(self) -> int:
        """Number of trainable scalars."""
        return 2 * self.num_channels * self.affine

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        if shape[0] != self.num_channels:
            raise _MisfitError(f"inputs of {self.num_channels} channels")
        return shape


@dataclass(frozen=True, slots=True, kw_only=True)
class _BatchNorm:
    num_features: int
    eps: float = 1e-5
    momentum: float | None = 0.1
    affine: bool = True
    track_running_stats: bool = True

    def __post_init__(self) -> None:
        _check_counts(num_features=self.num_features)
        _check_real("eps", self.eps, least=0.0)
        if self.momentum is not None:
            _check_real("momentum", self.momentum, least=0.0)
        _check_flags(affine=self.affine, track_running_stats=self.track_running_stats)

    @classmethod
    def of(cls, module: nn.BatchNorm1d | nn.BatchNorm2d, _label: str) -> Self:
        """Describe a torch layer."""
        return cls(
            num_features=module.num_features,
            eps=module.eps,
            momentum=module.momentum,
            affine=module.affine,
            track_running_stats=module.track_running_stats,
        )

    def module(self) -> nn.Module:
        """The torch layer, on the meta device."""
        kind = nn.BatchNorm1d if isinstance(self, BatchNorm1d) else nn.BatchNorm2d
        return kind(
            self.num_features,
            eps=self.eps,
            momentum=self.momentum,
            affine=self.affine,
            track_running_stats=self.track_running_stats,
            device="meta",
        )

    @property
    def parameter_count(self) -> int:
        """Number of trainable scalars; running statistics are not counted."""
        return 2 * self.num_features * self.affine


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNorm1d(_BatchNorm):
    """Each feature standardised over the batch; inputs are vectors, or channels by length."""

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        if len(shape) > 2 or shape[0] != self.num_features:
            raise _MisfitError(
                f"inputs of shape ({self.num_features},) or ({self.num_features}, length)"
            )
        return shape


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNorm2d(_BatchNorm):
    """Each channel standardised over the batch and the image."""

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        if len(shape) != 3 or shape[0] != self.num_features:
            raise _MisfitError(f"inputs of shape ({self.num_features}, height, width)")
        return shape


Layer = (
    Linear
    | Conv2d
    | MaxPool2d
    | AvgPool2d
    | ReLU
    | LeakyReLU
    | Sigmoid
    | Tanh
    | Flatten
    | Softmax
    | LayerNorm
    | GroupNorm
    | BatchNorm1d
    | BatchNorm2d
)

_KINDS: Mapping[str, type[Layer]] = {kind.__name__: kind for kind in get_args(Layer)}
_READERS: Mapping[type[nn.Module], Callable[[Any, str], Layer]] = {
    getattr(nn, name): kind.of for name, kind in _KINDS.items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What a feed-forward network computes: the shape of an input and the layers in order.

    A spec that exists fits together: the constructor follows the shapes through every layer.

    Attributes:
        input_shape: shape of one input, without the batch.
        layers: the layers, first to last; at least one.

    Raises:
        ConfigError: a layer does not fit the output of the one before, or a bound is exceeded.
    """

    input_shape: Shape
    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.layers, tuple) or not 1 <= len(self.layers) <= MAX_LAYERS:
            raise ConfigError(f"layers must be a tuple of 1 to {MAX_LAYERS} layers")
        for layer in self.layers:
            if not isinstance(layer, Layer):
                raise ConfigError(f"layers must hold tacit.nn.spec layers, not {_short(layer)}")
        if self.parameter_count > MAX_PARAMETERS:
            raise ConfigError(
                f"a model may have at most {MAX_PARAMETERS} parameters, not {self.parameter_count}"
            )
        self.shapes()

    @classmethod
    def of(cls, module: nn.Module, input_shape: Sequence[int]) -> ModelSpec:
        """Describe a torch model: one supported layer, or (nested) `torch.nn.Sequential` of them.

        Nested sequentials are flattened, and layers that compute nothing are left out. Whether the
        module is in training or evaluation mode is not part of the description.

        Args:
            module: the model; it is not changed.
            input_shape: shape of one input, without the batch.

        Raises:
            UnsupportedLayer: a layer, or an option of one, that a spec cannot express; or weights
                that two layers share.
            ConfigError: the layers do not fit each other or ``input_shape``.
        """
        named = list(_leaves(module))
        _check_unshared(named)
        layers = tuple(_read(path, leaf) for path, leaf in named)
        shape = tuple(input_shape)
        # Once with the module's own paths in the messages; the constructor only knows positions.
        _follow(shape, layers, [_label(path, leaf) for path, leaf in named])
        return cls(input_shape=shape, layers=layers)

    @property
    def parameter_count(self) -> int:
        """Number of trainable scalars."""
        return sum(layer.parameter_count for layer in self.layers)

    @property
    def output_shape(self) -> Shape:
        """Shape of one output, without the batch."""
        return self.shapes()[-1]

    def shapes(self) -> tuple[Shape, ...]:
        """Output shape of every layer, without the batch. No data run through the model."""
        labels = [f"{n} ({type(layer).__name__})" for n, layer in enumerate(self.layers)]
        return _follow(self.input_shape, self.layers, labels)

    def build(self) -> nn.Sequential:
        """The torch model, on the CPU in float32, with every parameter zero.

        Load or initialise it before use. Torch's global generator is neither read nor advanced.
        """
        model = self._on_meta().to_empty(device="cpu")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        for layer in model:
            if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
                layer.reset_running_stats()
        return model

    def to_json(self) -> str:
        """One line of JSON; equal specs give equal text."""
        layers = [{"type": type(layer).__name__, **asdict(layer)} for layer in self.layers]
        document = {"format": FORMAT, "input_shape": self.input_shape, "layers": layers}
        return json.dumps(document, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Read what `to_json` wrote; the text may come from anyone.

        Raises:
            ConfigError: the text is too long, is not JSON, or does not describe a model that fits.
        """
        document = _parse(text)
        _check_keys("the description", document, {"format", "input_shape", "layers"})
        if document["format"] != FORMAT:
            raise ConfigError(
                f"the description's format must be {FORMAT!r}, not {_short(document['format'])}"
            )
        listed = document["layers"]
        if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_LAYERS:
            raise ConfigError(f"the description's layers must be a list of 1 to {MAX_LAYERS}")
        layers = tuple(_layer_from(entry, position) for position, entry in enumerate(listed))
        return cls(input_shape=_as_tuple(document["input_shape"]), layers=layers)

    def _on_meta(self) -> nn.Sequential:
        return nn.Sequential(*(layer.module() for layer in self.layers))


def save_model(module: nn.Module, input_shape: Sequence[int], path: Path | str) -> ModelSpec:
    """Write a model's weights and description to one safetensors file, whole or not at all.

    Args:
        module: the model, on any device; buffers (running statistics) are written too.
        input_shape: shape of one input, without the batch.
        path: the file; replaced if it exists.

    Returns:
        The description that was written.

    Raises:
        UnsupportedLayer: see `ModelSpec.of`; or parameters that are not all of one float type.
        ConfigError: the layers do not fit each other or ``input_shape``.
        OutputError: the file cannot be written.
    """
    spec = ModelSpec.of(module, input_shape)
    flat = nn.Sequential(*(leaf for _, leaf in _leaves(module)))
    # Copied, since weights may be views of one flat vector, which the format refuses.
    tensors = {
        name: tensor.cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in flat.state_dict().items()
    }
    _check_one_float_type(tensors, UnsupportedLayer, "the model")
    _write_whole(Path(path), safetensors_bytes(tensors, metadata={"tacit.spec": spec.to_json()}))
    return spec


def load_model(path: Path | str) -> nn.Sequential:
    """Read a model that `save_model` wrote; the file may come from anyone.

    Args:
        path: the safetensors file.

    Returns:
        The model on the CPU, in the float type it was saved in and in evaluation mode.

    Raises:
        ConfigError: the file cannot be read, is not a model of tacit, or its tensors do not match
            its description.
    """
    text, tensors = _read_safetensors(Path(path))
    try:
        model = ModelSpec.from_json(text)._on_meta()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    _check_tensors(path, tensors, model.state_dict())
    # The file's tensors become the parameters: nothing is allocated on the description's word.
    model.load_state_dict(tensors, assign=True)
    return model.eval()


class _MisfitError(Exception):
    """An input shape that a layer cannot take; says what it takes instead."""


def _follow(shape: Shape, layers: Sequence[Layer], labels: Sequence[str]) -> tuple[Shape, ...]:
    _check_shape("input_shape", shape)
    _check_elements("the input", shape)
    shapes = []
    for layer, label in zip(layers, labels, strict=True):
        try:
            following = layer.output_shape(shape)
        except _MisfitError as misfit:
            raise ConfigError(
                f"layer {label} takes {misfit}, but gets shape {shape}: "
                "correct the layer or input_shape"
            ) from None
        _check_elements(f"the output of layer {label}", following)
        shapes.append(following)
        shape = following
    return tuple(shapes)


def _windows(image: Shape, kernel: Pair, stride: Pair, padding: Pair) -> Shape:
    padded = [size + 2 * pad for size, pad in zip(image, padding, strict=True)]
    if any(size < window for size, window in zip(padded, kernel, strict=True)):
        raise _MisfitError(f"images no smaller than its {kernel[0]}x{kernel[1]} window")
    steps = zip(padded, kernel, stride, strict=True)
    return tuple((size - window) // step + 1 for size, window, step in steps)


def _pooled(shape: Shape, kernel: Pair, stride: Pair, padding: Pair) -> Shape:
    if len(shape) != 3:
        raise _MisfitError("inputs of shape (channels, height, width)")
    return (shape[0], *_windows(shape[1:], kernel, stride, padding))


def _leaves(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    is_plain = type(module).forward is nn.Sequential.forward
    if isinstance(module, nn.Sequential) and is_plain:
        for name, child in zip(module._modules, module, strict=True):
            yield from _leaves(child, f"{path}.{name}" if path else name)
    elif not _computes_nothing(module):
        yield path, module


def _computes_nothing(module: nn.Module) -> bool:
    return type(module) is nn.Identity or (type(module) is nn.Dropout and module.p == 0)


def _label(path: str, module: nn.Module) -> str:
    return f"{path or 'of the model'} ({type(module).__name__})"


def _read(path: str, module: nn.Module) -> Layer:
    label = _label(path, module)
    if type(module) is nn.Dropout:
        raise UnsupportedLayer(
            f"layer {label} draws its masks from torch's global generator, so a run cannot be "
            "repeated: put nn.Identity() in its place (in evaluation mode it is that already)"
        )
    reader = _READERS.get(type(module))
    if reader is None:
        raise UnsupportedLayer(
            f"layer {label} cannot be described: use nn.Sequential of {', '.join(_KINDS)}"
        )
    layer = reader(module, label)
    expected = {name: t.shape for name, t in layer.module().state_dict().items()}
    found = {name: t.shape for name, t in module.state_dict().items()}
    if found != expected:
        raise UnsupportedLayer(
            f"layer {label} should hold the tensors {_listed(expected)} but holds "
            f"{_listed(found)}: undo what was added to it (weight norm, pruning, adapters)"
        )
    return layer


def _check_unshared(named: Sequence[tuple[str, nn.Module]]) -> None:
    owners: dict[int, str] = {}
    for path, leaf in named:
        for tensor in (*leaf.parameters(), *leaf.buffers()):
            other = owners.setdefault(id(tensor), path)
            if other != path:
                raise UnsupportedLayer(
                    f"layers {other} and {_label(path, leaf)} share weights, which a list of "
                    "layers cannot express: give each its own"
                )


def _require(module: nn.Module, label: str, options: Mapping[str, object]) -> None:
    for name, only in options.items():
        if getattr(module, name) != only:
            raise _cannot_express(label, name, getattr(module, name), only)


def _cannot_express(label: str, option: str, value: object, only: object) -> UnsupportedLayer:
    return UnsupportedLayer(
        f"layer {label} has {option}={value!r}, which cannot be described: "
        f"use a layer with {option}={only!r}"
    )


def _pair(value: int | tuple[int, ...]) -> Pair:
    first, second = (value, value) if isinstance(value, int) else value
    return first, second


def _conv_padding(padding: str | tuple[int, ...], kernel: Pair, label: str) -> Pair:
    if padding == "valid":
        return (0, 0)
    if padding == "same":
        if any(size % 2 == 0 for size in kernel):
            # An even window pads more on one side than on the other.
            raise _cannot_express(label, "padding", padding, 0)
        return (kernel[0] // 2, kernel[1] // 2)
    return _pair(tuple(int(side) for side in padding))


def _check_counts(least: int = 1, **counts: object) -> None:
    for name, value in counts.items():
        if type(value) is not int or not least <= value <= MAX_SIZE:
            raise ConfigError(
                f"{name} must be an integer from {least} to {MAX_SIZE}, not {_short(value)}"
            )


def _check_flags(**flags: object) -> None:
    for name, value in flags.items():
        if type(value) is not bool:
            raise ConfigError(f"{name} must be true or false, not {_short(value)}")


def _check_real(name: str, value: object, *, least: float = -MAX_REAL) -> None:
    # Compared, not converted: a JSON integer may be too long for a float.
    if not isinstance(value, (int, float)) or type(value) is bool or not least <= value <= MAX_REAL:
        raise ConfigError(
            f"{name} must be a number from {least} to {MAX_REAL}, not {_short(value)}"
        )


def _check_shape(name: str, shape: object) -> None:
    if not isinstance(shape, tuple) or not 1 <= len(shape) <= 8:
        raise ConfigError(f"{name} must be a tuple of 1 to 8 sizes, not {_short(shape)}")
    for size in shape:
        _check_counts(**{f"each size in {name}": size})


def _check_window(kernel: object, stride: object, padding: object) -> None:
    for name, pair, least in (
        ("kernel_size", kernel, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
    ):
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ConfigError(f"{name} must be a pair (down, across), not {_short(pair)}")
        for side in pair:
            _check_counts(least, **{f"each side of {name}": side})


def _check_pool(kernel: Pair, stride: Pair, padding: Pair) -> None:
    _check_window(kernel, stride, padding)
    if any(2 * pad > size for pad, size in zip(padding, kernel, strict=True)):
        raise ConfigError(f"padding may be at most half of kernel_size {kernel}, not {padding}")


def _check_elements(what: str, shape: Shape) -> None:
    if math.prod(shape) > MAX_ELEMENTS:
        raise ConfigError(f"{what} may have at most {MAX_ELEMENTS} values, not shape {shape}")


def _parse(text: str) -> Any:
    if len(text) > MAX_JSON_CHARACTERS:
        raise ConfigError(
            f"the description of a model has at most {MAX_JSON_CHARACTERS} characters, "
            f"not {len(text)}"
        )
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the description of a model must be JSON, but: {error}") from error


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("an object names a key twice")
    return entries


def _check_keys(what: str, entry: object, keys: set[str]) -> None:
    if not isinstance(entry, dict):
        raise ConfigError(f"{what} must be an object, not {_short(entry)}")
    if entry.keys() != keys:
        raise ConfigError(
            f"{what} must have exactly the keys {sorted(keys)}, not {_short(sorted(entry))}"
        )


def _layer_from(entry: Any, position: int) -> Layer:
    what = f"layer {position} of the description"
    name = entry.get("type") if isinstance(entry, dict) else None
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ConfigError(f"{what} must have a type out of {', '.join(_KINDS)}, not {_short(name)}")
    _check_keys(what, entry, {"type"} | {field.name for field in fields(kind)})
    options = {key: _as_tuple(value) for key, value in entry.items() if key != "type"}
    try:
        return kind(**options)
    except ConfigError as error:
        raise ConfigError(f"{what} ({name}): {error}") from error


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _listed(tensors: Mapping[str, torch.Size]) -> str:
    return ", ".join(f"{name} {tuple(shape)}" for name, shape in tensors.items()) or "none"


def _check_one_float_type(
    tensors: Mapping[str, Tensor], error: type[ConfigError | UnsupportedLayer], what: object
) -> None:
    allowed = {torch.float32, torch.float64, torch.float16, torch.bfloat16}
    found = {t.dtype for name, t in tensors.items() if not name.endswith("num_batches_tracked")}
    if len(found) > 1 or not found <= allowed:
        raise error(
            f"{what} must hold numbers of one type out of float32, float64, float16 and bfloat16, "
            f"not {', '.join(sorted(str(dtype) for dtype in found))}"
        )


def _check_tensors(
    path: Path | str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    wanted = {name: t.shape for name, t in expected.items()}
    found = {name: t.shape for name, t in tensors.items()}
    differing = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    if differing:
        name = differing[0]
        raise ConfigError(
            f"{path}: tensor {_short(name)} should be {_shape_or_absent(wanted, name)} by the "
            f"description but is {_shape_or_absent(found, name)}: the file is damaged or forged"
        )
    _check_one_float_type(tensors, ConfigError, path)
    for name, tensor in tensors.items():
        if name.endswith("num_batches_tracked") and tensor.dtype != torch.int64:
            raise ConfigError(f"{path}: tensor {name} must be int64, not {tensor.dtype}")


def _shape_or_absent(shapes: Mapping[str, torch.Size], name: str) -> str:
    return f"of shape {tuple(shapes[name])}" if name in shapes else "absent"


def _read_safetensors(path: Path) -> tuple[str, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("tacit.spec")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read as a safetensors file: {error}") from error
    if text is None:
        raise ConfigError(
            f"{path} has no description of its model (metadata key tacit.spec): "
            "write it with tacit.nn.spec.save_model"
        )
    return text, tensors


def _write_whole(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write the model to {path}: {error}") from error
    finally:
        draft.unlink(missing_ok=True)
