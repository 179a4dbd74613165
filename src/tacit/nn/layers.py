"""The layers that a `tacit.nn.spec.ModelSpec` can list.

Each has the name of torch's layer, and its fields have the names of torch's arguments. It checks
them when it is made, and knows its number of parameters and which shapes it takes and gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self, get_args

import torch
from torch import nn

from tacit.core.errors import ConfigError, UnsupportedLayer

Shape = tuple[int, ...]
Pair = tuple[int, int]

MAX_SIZE = 1 << 24  #: of any one dimension
MAX_REAL = 1e30


class MisfitError(Exception):
    """An input shape that a layer cannot take; says what it takes instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """What layers do unless they say otherwise: hold no weights and keep the shape."""

    @classmethod
    def of(cls, module: Any, label: str) -> Self:
        """Describe a torch layer; ``label`` names it in the error if it cannot be described."""
        del label
        return cls(**{field.name: getattr(module, field.name) for field in fields(cls)})

    def module(self) -> nn.Module:
        """The torch layer, on the meta device."""
        kind: type[nn.Module] = getattr(nn, type(self).__name__)
        with torch.device("meta"):
            return kind(**asdict(self))

    @property
    def parameter_count(self) -> int:
        """Number of trainable scalars; running statistics are not counted."""
        return 0

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of one output for one input of ``shape``."""
        return shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear(_Layer):
    """``x @ W.T + b`` over the last axis."""

    in_features: int
    out_features: int
    bias: bool = True

    def __post_init__(self) -> None:
        _check_counts(in_features=self.in_features, out_features=self.out_features)
        _check_flags(bias=self.bias)

    @classmethod
    def of(cls, module: nn.Linear, label: str) -> Self:
        """Describe a torch layer."""
        del label
        return cls(
            in_features=module.in_features,
            out_features=module.out_features,
            bias=module.bias is not None,
        )

    @property
    def parameter_count(self) -> int:
        """Number of trainable scalars."""
        return self.out_features * (self.in_features + self.bias)

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of one output for one input of ``shape``."""
        if shape[-1] != self.in_features:
            raise MisfitError(f"inputs whose last axis has {self.in_features} features")
        return (*shape[:-1], self.out_features)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv2d(_Layer):
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

    @property
    def parameter_count(self) -> int:
        """Number of trainable scalars."""
        return self.out_channels * (self.in_channels * math.prod(self.kernel_size) + self.bias)

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of one output for one input of ``shape``."""
        if len(shape) != 3 or shape[0] != self.in_channels:
            raise MisfitError(f"inputs of shape ({self.in_channels}, height, width)")
        windows = _windows(shape[1:], self.kernel_size, self.stride, self.padding)
        return (self.out_channels, *windows)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pool2d(_Layer):
    kernel_size: Pair
    stride: Pair
    padding: Pair = (0, 0)

    def __post_init__(self) -> None:
        kernel = self.kernel_size
        _check_window(kernel, self.stride, self.padding)
        if any(2 * pad > size for pad, size in zip(self.padding, kernel, strict=True)):
            raise ConfigError(
                f"padding may be at most half of kernel_size {kernel}, not {self.padding}"
            )

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of one output for one input of ``shape``."""
        if len(shape) != 3:
            raise MisfitError("inputs of shape (channels, height, width)")
        return (shape[0], *_windows(shape[1:], self.kernel_size, self.stride, self.padding))


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxPool2d(_Pool2d):
    """The largest value of each window."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class AvgPool2d(_Pool2d):
    """The mean of each window, padding zeros included."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReLU(_Layer):
    """``max(x, 0)``, in place or not: the values are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakyReLU(_Layer):
    """``x`` where positive, ``negative_slope * x`` elsewhere; in place or not."""

    negative_slope: float = 0.01

    def __post_init__(self) -> None:
        _check_real("negative_slope", self.negative_slope)

    @classmethod
    def of(cls, module: nn.LeakyReLU, label: str) -> Self:
        """Describe a torch layer."""
        del label
        return cls(negative_slope=float(module.negative_slope))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sigmoid(_Layer):
    """``1 / (1 + exp(-x))``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tanh(_Layer):
    """The hyperbolic tangent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flatten(_Layer):
    """All axes but the batch made one."""

    @classmethod
    def of(cls, module: nn.Flatten, label: str) -> Self:
        """Describe a torch layer; a partial flattening raises `UnsupportedLayer`."""
        _require(module, label, {"start_dim": 1, "end_dim": -1})
        return cls()

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of one output for one input of ``shape``."""
        return (math.prod(shape),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Softmax(_Layer):
    """Exponentials scaled to sum to one along ``dim``, where axis 0 is the batch."""

    dim: int = -1

    def __post_init__(self) -> None:
        if type(self.dim) is not int or self.dim == 0:
            raise ConfigError(
                f"Softmax: dim must be an integer other than 0, not {short(self.dim)}"
            )

    @classmethod
    def of(cls, module: nn.Softmax, label: str) -> Self:
        """Describe a torch layer; a softmax over the batch or over no stated axis is refused."""
        if module.dim is None or module.dim == 0:
            raise _cannot_express(label, "dim", module.dim, -1)
        return cls(dim=module.dim)

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        if not -len(shape) <= self.dim <= len(shape):
            raise MisfitError(f"inputs that have an axis {self.dim} beside the batch")
        return shape


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNorm(_Layer):
    """Each example standardised over its last axes."""

    normalized_shape: Shape
    eps: float = 1e-5
    elementwise_affine: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        check_shape("normalized_shape", self.normalized_shape)
        _check_real("eps", self.eps, least=0.0)
        _check_flags(elementwise_affine=self.elementwise_affine, bias=self.bias)

    @classmethod
    def of(cls, module: nn.LayerNorm, label: str) -> Self:
        """Describe a torch layer."""
        del label
        return cls(
            normalized_shape=tuple(module.normalized_shape),
            eps=module.eps,
            elementwise_affine=module.elementwise_affine,
            bias=module.bias is not None,
        )

    @property
    def parameter_count(self) -> int:
        """Number of trainable scalars."""
        return self.elementwise_affine * (1 + self.bias) * math.prod(self.normalized_shape)

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        if shape[-len(self.normalized_shape) :] != self.normalized_shape:
            raise MisfitError(f"inputs whose last axes are {self.normalized_shape}")
        return shape


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupNorm(_Layer):
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

    @property
    def parameter_count(self) -> int:
        """Number of trainable scalars."""
        return 2 * self.num_channels * self.affine

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        if shape[0] != self.num_channels:
            raise MisfitError(f"inputs of {self.num_channels} channels")
        return shape


@dataclass(frozen=True, slots=True, kw_only=True)
class _BatchNorm(_Layer):
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
            raise MisfitError(
                f"inputs of shape ({self.num_features},) or ({self.num_features}, length)"
            )
        return shape


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNorm2d(_BatchNorm):
    """Each channel standardised over the batch and the image."""

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        if len(shape) != 3 or shape[0] != self.num_features:
            raise MisfitError(f"inputs of shape ({self.num_features}, height, width)")
        return shape


class SquareModule(nn.Module):
    """``x^2``, an activation that costs two servers one product."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Squares."""
        return x * x


class PiecewiseLogisticModule(nn.Module):
    """0 below -1/2, ``x + 1/2``, and 1 above 1/2: what stands for the logistic function where exponentials are dear.

    Source: Mohassel and Zhang, "SecureML" (IEEE S&P 2017), section 4.3 (recalled).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From 0 to 1."""
        return (x + 0.5).clamp(0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Square(_Layer):
    """``x^2``."""

    def module(self) -> nn.Module:
        """The torch layer."""
        return SquareModule()


@dataclass(frozen=True, slots=True, kw_only=True)
class PiecewiseLogistic(_Layer):
    """0 below -1/2, ``x + 1/2``, and 1 above 1/2."""

    def module(self) -> nn.Module:
        """The torch layer."""
        return PiecewiseLogisticModule()


Layer = (
    Linear
    | Conv2d
    | MaxPool2d
    | AvgPool2d
    | ReLU
    | LeakyReLU
    | Sigmoid
    | Tanh
    | Square
    | PiecewiseLogistic
    | Flatten
    | Softmax
    | LayerNorm
    | GroupNorm
    | BatchNorm1d
    | BatchNorm2d
)

KINDS: Mapping[str, type[Layer]] = {kind.__name__: kind for kind in get_args(Layer)}

OWN_MODULES: Mapping[str, type[nn.Module]] = {
    "Square": SquareModule,
    "PiecewiseLogistic": PiecewiseLogisticModule,
}
"""Of the kinds that torch does not have."""


def _windows(image: Shape, kernel: Pair, stride: Pair, padding: Pair) -> Shape:
    padded = [size + 2 * pad for size, pad in zip(image, padding, strict=True)]
    if any(size < window for size, window in zip(padded, kernel, strict=True)):
        raise MisfitError(f"images no smaller than its {kernel[0]}x{kernel[1]} window")
    steps = zip(padded, kernel, stride, strict=True)
    return tuple((size - window) // step + 1 for size, window, step in steps)


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
                f"{name} must be an integer from {least} to {MAX_SIZE}, not {short(value)}"
            )


def _check_flags(**flags: object) -> None:
    for name, value in flags.items():
        if type(value) is not bool:
            raise ConfigError(f"{name} must be true or false, not {short(value)}")


def _check_real(name: str, value: object, *, least: float = -MAX_REAL) -> None:
    # Compared, not converted: a JSON integer may be too long for a float.
    too_long = isinstance(value, int) and abs(value) >= 1 << 53
    if (
        not isinstance(value, (int, float))
        or type(value) is bool
        or too_long
        or not least <= value <= MAX_REAL
    ):
        raise ConfigError(f"{name} must be a number from {least} to {MAX_REAL}, not {short(value)}")


def check_shape(name: str, shape: object) -> None:
    """Refuse what is not the shape of one example."""
    if not isinstance(shape, tuple) or not 1 <= len(shape) <= 8:
        raise ConfigError(f"{name} must be a tuple of 1 to 8 sizes, not {short(shape)}")
    for size in shape:
        _check_counts(**{f"each size in {name}": size})


def _check_window(kernel: object, stride: object, padding: object) -> None:
    for name, pair, least in (
        ("kernel_size", kernel, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
    ):
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ConfigError(f"{name} must be a pair (down, across), not {short(pair)}")
        for side in pair:
            _check_counts(least, **{f"each side of {name}": side})


def short(value: object) -> str:
    """A value as an error message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
