"""A neural network on an engine: forward, backward, and a step of mini-batch SGD, written once for shares and for values.

Weights, activations and errors are fixed-point numbers; each product is followed by one truncation. A matrix that forward
and backward both multiply with (weights, activations, errors) is masked and opened once a step, and a batch of the training
data once for all epochs.

Layers: Linear, Conv2d, AvgPool2d, MaxPool2d, ReLU, Square, PiecewiseLogistic (the paper's 0 | x + 1/2 | 1) and Flatten.
Losses: squared error; relu-sum, in which ``max(z, 0) / sum max(z, 0)`` takes the place of softmax; and logistic, in which
the piecewise function takes that of the sigmoid. Their error at the output is prediction less target, as in the paper;
`Loss.errors` says what relu-sum-tangent does instead.

Source: Mohassel and Zhang, "SecureML" (IEEE S&P 2017), sections 2.1, 4.2 to 4.4 and 5 (section numbers are recalled).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import frexp, prod
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from tacit.core.errors import ConfigError, RangeError, UnsupportedLayer
from tacit.crypto.fixedpoint import FixedPoint
from tacit.crypto.ring import Elements, Ring
from tacit.nn import layers as described
from tacit.nn.spec import ModelSpec
from tacit.parties.two_party.arithmetic import Factor, Fixed, Kept
from tacit.parties.two_party.correlations import Conv2d, FilterGradient, ImageGradient, Scale, Size
from tacit.parties.two_party.engine import LEADING_BITS, Engine, Flags, matmul, multiply

Reals = npt.NDArray[np.floating]

_MANTISSA = 8  # bits of a learning rate


@dataclass(slots=True)
class Parameter:
    """Weights as an engine has them.

    Args:
        value: ring elements.
        name: for people and masks.
        gradient: of the last step, if any.
        extra: fractional bits of the gradient beyond those of the weights.
    """

    value: Elements = field(repr=False)
    name: str
    gradient: Elements | None = field(default=None, repr=False)
    extra: int = 0
    kept: Kept | None = field(default=None, repr=False)

    def operand(self, use: str) -> Kept:
        """The weights as an operand; masked once until they change."""
        if self.kept is None:
            self.kept = Kept(f"{use}/{self.name}", self.value)
        return self.kept


class Layer(Protocol):
    """A layer on an engine. `forward` leaves behind what `backward` needs."""

    name: str

    def forward(self, engine: Engine, values: Factor, use: str, learning: bool) -> Elements:
        """The layer's output; ``use`` tells the masks of this pass from others."""
        ...

    def backward(self, engine: Engine, errors: Elements, use: str, further: bool) -> Elements:
        """Leaves gradients at the parameters; the error of the input, if it is needed ``further`` back."""
        ...

    @property
    def parameters(self) -> Sequence[Parameter]:
        """Of the layer, in torch's order."""
        ...


def _values(factor: Factor) -> Elements:
    return factor.share if isinstance(factor, Kept | Fixed) else factor


def _kept(factor: Factor, name: str) -> Kept | Fixed:
    return factor if isinstance(factor, Kept | Fixed) else Kept(name, factor)


def _again(factor: Kept | Fixed) -> Fixed:
    """What a product has masked."""
    found = factor.fixed if isinstance(factor, Kept) else factor
    if found is None:
        raise ConfigError("an operand is used again before its first product")
    return found


@dataclass(slots=True)
class _Weighted:
    """What layers with weights and a bias have in common."""

    name: str
    weight: Parameter
    bias: Parameter | None
    _inputs: Kept | Fixed | None = field(default=None, repr=False, init=False)
    _errors: Kept | None = field(default=None, repr=False, init=False)

    @property
    def parameters(self) -> Sequence[Parameter]:
        """Weights, then bias."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def opened(self) -> tuple[Elements, Elements]:
        """The last step's inputs and errors as they were opened, less their masks: what both servers see of them."""
        if self._errors is None:
            raise ConfigError(f"{self.name} did not go back")
        return _again(self._seen()).opened, _again(self._errors).opened

    def _biased(self, engine: Engine, out: Elements, axes: tuple[int, ...]) -> Elements:
        fraction = engine.fixed.fraction
        if self.bias is not None:
            shifted = self.bias.value << self.bias.value.dtype.type(fraction)
            out = out + np.expand_dims(shifted, axes)
        return engine.truncate(out, fraction)

    def _seen(self) -> Kept | Fixed:
        if self._inputs is None:
            raise ConfigError(f"{self.name} goes back before it went forward")
        return self._inputs


@dataclass(slots=True)
class LinearLayer(_Weighted):
    """``x W + b``; weights are (inputs, outputs)."""

    def forward(self, engine: Engine, values: Factor, use: str, learning: bool) -> Elements:
        """(n, outputs)."""
        if learning:
            values = self._inputs = _kept(values, f"{use}/{self.name}.x")
        out = matmul(engine, values, self.weight.operand(use))
        return self._biased(engine, out, (0,))

    def backward(self, engine: Engine, errors: Elements, use: str, further: bool) -> Elements:
        """The gradient of the weights is ``x^T errors``."""
        operand = self._errors = Kept(f"{use}/{self.name}.e", errors)
        self.weight.gradient = matmul(engine, _again(self._seen()).transposed, operand)
        self.weight.extra = engine.fixed.fraction
        if self.bias is not None:
            self.bias.gradient = errors.sum(axis=0, dtype=errors.dtype)
        if not further:
            return errors[:0]
        back = matmul(engine, operand, self.weight.operand(use).transposed)
        return engine.truncate(back, engine.fixed.fraction)

    def opened_gradients(self, ring: Ring) -> list[Elements]:
        """The gradients of what was opened, in torch's order and shapes: the true ones, if masks hid nothing."""
        inputs, errors = self.opened()
        found = [ring.matmul(np.ascontiguousarray(errors.T), inputs)]
        return found if self.bias is None else [*found, errors.sum(axis=0, dtype=errors.dtype)]


@dataclass(slots=True)
class ConvLayer(_Weighted):
    """A convolution; filters are as torch's."""

    conv: Conv2d = field(default_factory=Conv2d)

    def forward(self, engine: Engine, values: Factor, use: str, learning: bool) -> Elements:
        """(n, out, height, width)."""
        if learning:
            values = self._inputs = _kept(values, f"{use}/{self.name}.x")
        out = engine.product(self.conv, values, self.weight.operand(use), "conv2d")
        return self._biased(engine, out, (0, 2, 3))

    def backward(self, engine: Engine, errors: Elements, use: str, further: bool) -> Elements:
        """Gradients of filters and images are convolutions themselves."""
        operand, seen = Kept(f"{use}/{self.name}.e", errors), self._seen()
        self._errors = operand
        rows, columns = self.weight.value.shape[2:]
        op = FilterGradient(self.conv, (rows, columns))
        self.weight.gradient = engine.product(op, seen, operand, "filter gradient")
        self.weight.extra = engine.fixed.fraction
        if self.bias is not None:
            self.bias.gradient = errors.sum(axis=(0, 2, 3), dtype=errors.dtype)
        if not further:
            return errors[:0]
        height, width = _values(seen).shape[2:]
        back = engine.product(
            ImageGradient(self.conv, (height, width)), operand, self.weight.operand(use), "image gradient"
        )  # fmt: skip
        return engine.truncate(back, engine.fixed.fraction)

    def opened_gradients(self, ring: Ring) -> list[Elements]:
        """The gradients of what was opened, in torch's order and shapes: the true ones, if masks hid nothing."""
        inputs, errors = self.opened()
        rows, columns = self.weight.value.shape[2:]
        found = [FilterGradient(self.conv, (rows, columns)).apply(ring, inputs, errors)]
        return (
            found if self.bias is None else [*found, errors.sum(axis=(0, 2, 3), dtype=errors.dtype)]
        )


@dataclass(slots=True)
class _Plain:
    """A layer without weights."""

    name: str
    parameters: ClassVar[Sequence[Parameter]] = ()


@dataclass(slots=True)
class ReLULayer(_Plain):
    """``max(x, 0)``. Its derivative at 0 is 1."""

    _positive: Flags = field(default=None, repr=False, init=False)

    def forward(self, engine: Engine, values: Factor, use: str, learning: bool) -> Elements:
        """The values that are not negative."""
        (self._positive,) = engine.positive(_values(values))
        return engine.select((self._positive, _values(values)))[0]

    def backward(self, engine: Engine, errors: Elements, use: str, further: bool) -> Elements:
        """The errors where the input was not negative."""
        return engine.select((self._positive, errors))[0]


def piecewise(engine: Engine, values: Elements) -> tuple[Elements, Flags]:
    """The paper's logistic function, and where its derivative is 1: ``max(x + 1/2, 0) - max(x - 1/2, 0)``."""
    half = engine.fixed.encode(np.full(1, 0.5))
    moved = engine.add_public(values, half), engine.add_public(values, -half)
    flags = engine.positive(*moved)
    upper, lower = engine.select(*zip(flags, moved, strict=True))
    out: Elements = upper - lower
    return out, engine.differ(*flags)


@dataclass(slots=True)
class PiecewiseLogisticLayer(_Plain):
    """0 | x + 1/2 | 1, the paper's logistic function."""

    _inside: Flags = field(default=None, repr=False, init=False)

    def forward(self, engine: Engine, values: Factor, use: str, learning: bool) -> Elements:
        """From 0 to 1."""
        out, self._inside = piecewise(engine, _values(values))
        return out

    def backward(self, engine: Engine, errors: Elements, use: str, further: bool) -> Elements:
        """The errors where the function is neither 0 nor 1."""
        return engine.select((self._inside, errors))[0]


@dataclass(slots=True)
class SquareLayer(_Plain):
    """``x^2``."""

    _inputs: Elements | None = field(default=None, repr=False, init=False)

    def forward(self, engine: Engine, values: Factor, use: str, learning: bool) -> Elements:
        """Squares."""
        self._inputs = _values(values)
        return engine.truncate(engine.square(self._inputs), engine.fixed.fraction)

    def backward(self, engine: Engine, errors: Elements, use: str, further: bool) -> Elements:
        """Twice the input times the errors."""
        if self._inputs is None:
            raise ConfigError(f"{self.name} goes back before it went forward")
        twice = self._inputs + self._inputs
        return engine.truncate(multiply(engine, twice, errors), engine.fixed.fraction)


@dataclass(slots=True)
class FlattenLayer(_Plain):
    """All axes but the first made one."""

    _shape: Size = field(default=(), init=False)

    def forward(self, engine: Engine, values: Factor, use: str, learning: bool) -> Elements:
        """(n, values)."""
        found = _values(values)
        self._shape = found.shape
        return found.reshape(len(found), -1)

    def backward(self, engine: Engine, errors: Elements, use: str, further: bool) -> Elements:
        """In the shape of the input."""
        return errors.reshape(self._shape)


@dataclass(slots=True)
class _Pool(_Plain):
    window: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    _shape: Size = field(default=(), init=False)

    @property
    def _count(self) -> int:
        return prod(self.window)

    def _patches(self, engine: Engine, values: Elements) -> Elements:
        """What each output position sees: (n, height, width, channels, rows * columns)."""
        self._shape = values.shape
        seen = engine.fixed.ring.patches(
            values, self.window, stride=self.stride, padding=self.padding
        )
        return seen.reshape(*seen.shape[:3], values.shape[1], self._count)

    def _folded(self, engine: Engine, seen: Elements) -> Elements:
        flat = seen.reshape(*seen.shape[:3], -1)
        return engine.fixed.ring.fold(
            flat, self._shape[1:], self.window, stride=self.stride, padding=self.padding
        )


@dataclass(slots=True)
class AvgPoolLayer(_Pool):
    """The mean of each window: sums cost nothing."""

    def _mean(self, engine: Engine, total: Elements) -> Elements:
        count, fraction = self._count, engine.fixed.fraction
        if count & (count - 1) == 0:
            return engine.truncate(total, count.bit_length() - 1) if count > 1 else total
        share = total.dtype.type(round(2**fraction / count))
        return engine.truncate(total * share, fraction)

    def forward(self, engine: Engine, values: Factor, use: str, learning: bool) -> Elements:
        """(n, channels, height, width)."""
        found = _values(values)
        total = self._patches(engine, found).sum(axis=-1, dtype=found.dtype)
        return np.ascontiguousarray(self._mean(engine, total).transpose(0, 3, 1, 2))

    def backward(self, engine: Engine, errors: Elements, use: str, further: bool) -> Elements:
        """Each window's error in equal parts."""
        each = self._mean(engine, errors).transpose(0, 2, 3, 1)[..., None]
        return self._folded(engine, np.broadcast_to(each, (*each.shape[:-1], self._count)))


@dataclass(slots=True)
class MaxPoolLayer(_Pool):
    """The largest of each window, by a tournament: who wins stays shared."""

    _won: list[Flags] = field(default_factory=list, repr=False, init=False)

    def forward(self, engine: Engine, values: Factor, use: str, learning: bool) -> Elements:
        """(n, channels, height, width)."""
        seen = self._patches(engine, _values(values))
        left = np.moveaxis(seen, -1, 0)
        self._won = []
        while len(left) > 1:
            pairs = len(left) // 2
            first, second = left[:pairs], left[pairs : 2 * pairs]
            ahead = np.ascontiguousarray(second - first)
            (won,) = engine.positive(ahead)
            self._won.append(won)
            best = first + engine.select((won, ahead))[0]
            left = np.concatenate([best, left[2 * pairs :]])
        return np.ascontiguousarray(left[0].transpose(0, 3, 1, 2))

    def backward(self, engine: Engine, errors: Elements, use: str, further: bool) -> Elements:
        """Each window's error to the winner."""
        back = np.ascontiguousarray(errors.transpose(0, 2, 3, 1)[None])
        sizes = [self._count]
        while sizes[-1] > 1:
            sizes.append(sizes[-1] - sizes[-1] // 2)
        for won, size in zip(reversed(self._won), reversed(sizes[:-1]), strict=True):
            pairs = size // 2
            second = engine.select((won, np.ascontiguousarray(back[:pairs])))[0]
            back = np.concatenate([back[:pairs] - second, second, back[pairs:]])
        return self._folded(engine, np.moveaxis(back, 0, -1))


class Loss(Enum):
    """What training makes small, and what a prediction is."""

    SQUARED_ERROR = "squared-error"
    RELU_SUM = "relu-sum"
    RELU_SUM_TANGENT = "relu-sum-tangent"
    LOGISTIC = "logistic"

    def predicted(self, engine: Engine, scores: Elements) -> Elements:
        """Predictions from the last layer's output: that itself, shares of its positive part, or 0 to 1."""
        match self:
            case Loss.SQUARED_ERROR:
                return scores
            case Loss.RELU_SUM | Loss.RELU_SUM_TANGENT:
                return relu_sum(engine, scores)
            case Loss.LOGISTIC:
                return piecewise(engine, scores)[0]

    def errors(self, engine: Engine, scores: Elements, targets: Elements) -> Elements:
        """The error at the output: prediction less target.

        Predictions of relu-sum are the same for all multiples of the scores, and a part of that error only makes the scores
        larger, without bound. relu-sum-tangent, which is ours, takes that part away: with e the error and p the prediction
        it is ``e - (e . p)``, the gradient of the squared error in p but for a factor. **Cost**: 1 round more.
        """
        predicted = self.predicted(engine, scores)
        errors: Elements = predicted - targets
        if self is not Loss.RELU_SUM_TANGENT:
            return errors
        along = multiply(engine, predicted, errors).sum(axis=1, keepdims=True, dtype=errors.dtype)
        return errors - engine.truncate(along, engine.fixed.fraction)


def relu_sum(engine: Engine, scores: Elements) -> Elements:
    """``max(z, 0) / sum max(z, 0)``, row by row; equal parts where nothing is positive.

    Each part gets one unit more, which makes equal parts of nothing. One reciprocal a row: the sum is brought to 31 bits,
    and Newton's iteration inverts what then lies within [1/2, 1). Sums from 2^(31 - fraction) on are out of range.

    **Leaks**: nothing. **Cost**: a ReLU; 11 rounds to find the size of each sum, 1 to apply it, 4 or 6 for Newton's
    iteration, 1 for the quotients.

    **Source**: SecureML, section 4.4, which divides by a garbled circuit.
    """
    fixed, dtype = engine.fixed, scores.dtype
    with engine.within("relu-sum"):
        (positive,) = engine.positive(scores)
        (parts,) = engine.select((positive, scores))
        parts = engine.add_public(parts, fixed.ring.zeros((1,)) + dtype.type(1))
        whole = parts.sum(axis=1, dtype=dtype)
        complement = engine.complement(whole)
        # The largest value of 31 bits becomes 1; so many fractional bits are kept of it.
        bits = fixed.fraction + 3
        scaled = engine.product(
            Scale(), complement, np.concatenate([whole[:, None], parts], axis=1), "scale"
        )
        scaled = engine.truncate(scaled, LEADING_BITS - 1 - bits)
        x, parts = scaled[:, 0], scaled[:, 1:]
        one = np.ones(1, dtype) << dtype.type(bits)
        # 2.9142 - 2 x is within 0.0858 of 1 / x in relative terms, and each step squares that.
        start = np.full(1, round(2.9142 * 2**bits), dtype)
        inverse = engine.add_public(-(x + x), start)
        for _ in range(2 if fixed.fraction <= 13 else 3):
            product = engine.truncate(multiply(engine, x, inverse), bits)
            error = engine.add_public(-product, one + one)
            inverse = engine.truncate(multiply(engine, inverse, error), bits)
        quotients = engine.product(Scale(), inverse, parts, "scale")
        return engine.truncate(quotients, 2 * bits - fixed.fraction)


@dataclass(slots=True)
class Network:
    """A network whose weights an engine has.

    Args:
        layers: first to last; a Flatten at the beginning is left to `rows`.
        fixed: ring and precision of the weights.
        input_shape: of one input.
    """

    layers: list[Layer]
    fixed: FixedPoint
    input_shape: Size

    def rows(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Inputs, (n, ...), in the shape that the first layer takes."""
        return np.ascontiguousarray(values.reshape(len(values), *self.input_shape))

    @property
    def parameters(self) -> list[Parameter]:
        """All parameters, in torch's order."""
        return [one for layer in self.layers for one in layer.parameters]

    def forward(self, engine: Engine, values: Factor, use: str, *, learning: bool) -> Elements:
        """The last layer's output.

        Args:
            engine: that computes.
            values: inputs, (n, ...).
            use: tells the masks of this pass from those of others.
            learning: whether `backward` follows.
        """
        out: Factor = values
        for layer in self.layers:
            with engine.within(layer.name):
                out = layer.forward(engine, out, use, learning)
        return _values(out)

    def backward(self, engine: Engine, errors: Elements, use: str) -> None:
        """From the error at the output to every parameter's gradient."""
        first = next(i for i, layer in enumerate(self.layers) if layer.parameters)
        for number in range(len(self.layers) - 1, first - 1, -1):
            layer = self.layers[number]
            with engine.within(f"{layer.name} back"):
                errors = layer.backward(engine, errors, use, number > first)

    def learn(
        self, engine: Engine, values: Factor, targets: Elements, loss: Loss, use: str
    ) -> Elements:
        """Forward and backward: leaves a gradient at each parameter, summed over the batch.

        Args:
            engine: that computes.
            values: a batch, (n, ...).
            targets: (n, outputs).
            loss: what is made small.
            use: tells the masks of this step from others.

        Returns:
            The errors at the output, (n, outputs).
        """
        scores = self.forward(engine, values, use, learning=True)
        with engine.within("loss"):
            errors = loss.errors(engine, scores, targets)
        self.backward(engine, errors, use)
        return errors

    def move(self, engine: Engine, rate: Rate) -> None:
        """Take the rate times each gradient away, and forget the gradients."""
        for parameter in self.parameters:
            if parameter.gradient is not None:
                step = rate.times(engine, parameter.gradient, parameter.extra)
                parameter.value = parameter.value - step
            parameter.gradient = parameter.kept = None

    def opened_gradients(self) -> list[Elements]:
        """What both servers can make of the last step's gradients from what was opened, in torch's order and shapes.

        Those of weights have twice the fraction, those of biases once; sums over the batch.
        """
        return [
            one
            for layer in self.layers
            if isinstance(layer, LinearLayer | ConvLayer)
            for one in layer.opened_gradients(self.fixed.ring)
        ]

    def weights(self) -> list[Elements]:
        """Parameters in torch's order and shapes."""
        return [one.value.T if one.value.ndim == 2 else one.value for one in self.parameters]

    def load(self, weights: Sequence[Elements]) -> None:
        """Replace the parameters; the opposite of `weights`.

        Raises:
            ConfigError: they do not fit.
        """
        for one, given in zip(self.parameters, weights, strict=True):
            value = np.ascontiguousarray(given.T if given.ndim == 2 else given)
            if value.shape != one.value.shape or value.dtype != one.value.dtype:
                raise ConfigError(
                    f"{one.name}: weights of {one.value.shape} expected, got {value.shape}"
                )
            one.value, one.kept, one.gradient = value, None, None


@dataclass(frozen=True, slots=True)
class Rate:
    """A learning rate over a batch's size, as ``mantissa / 2^shift``.

    Args:
        mantissa: odd.
        shift: bits.
    """

    mantissa: int
    shift: int

    @classmethod
    def of(cls, learning_rate: float, batch: int) -> Rate:
        """The nearest; exact for powers of two, else within 0.4 %."""
        mantissa, exponent = frexp(learning_rate / batch)
        whole, shift = round(mantissa * 2**_MANTISSA), _MANTISSA - exponent
        while whole % 2 == 0:
            whole, shift = whole // 2, shift - 1
        return cls(whole, shift)

    def times(self, engine: Engine, values: Elements, extra: int) -> Elements:
        """Values of ``extra`` fractional bits too many, times the rate."""
        shift = self.shift + extra
        if self.mantissa > 1 and shift > _MANTISSA:
            # The number is made small first: what is truncated should be far from the ring's size.
            values, shift = engine.truncate(values, shift - _MANTISSA), _MANTISSA
        scaled: Elements = values * values.dtype.type(self.mantissa << max(-shift, 0))
        return engine.truncate(scaled, shift) if shift > 0 else scaled


# --- from a description


def _linear(name: str, layer: described.Linear, shape: Size, arrays: list[Elements]) -> Layer:
    if len(shape) != 1:
        raise UnsupportedLayer(f"{name} takes rows, and gets {shape}: put Flatten before it")
    weight = Parameter(np.ascontiguousarray(arrays[0].T), f"{name}.w")
    return LinearLayer(name, weight, Parameter(arrays[1], f"{name}.b") if layer.bias else None)


def _conv(name: str, layer: described.Conv2d, shape: Size, arrays: list[Elements]) -> Layer:
    bias = Parameter(arrays[1], f"{name}.b") if layer.bias else None
    conv = Conv2d(layer.stride, layer.padding)
    return ConvLayer(name, Parameter(arrays[0], f"{name}.w"), bias, conv)


def _layer(name: str, layer: described.Layer, shape: Size, arrays: list[Elements]) -> Layer:
    match layer:
        case described.Linear():
            return _linear(name, layer, shape, arrays)
        case described.Conv2d():
            return _conv(name, layer, shape, arrays)
        case described.AvgPool2d():
            return AvgPoolLayer(name, layer.kernel_size, layer.stride, layer.padding)
        case described.MaxPool2d() if layer.padding == (0, 0):
            return MaxPoolLayer(name, layer.kernel_size, layer.stride)
    made = _PLAIN.get(type(layer))
    if made is None:
        raise UnsupportedLayer(f"{name} cannot be computed on shares: {_INSTEAD}")
    return made(name)


_PLAIN: Mapping[type, type[ReLULayer | SquareLayer | PiecewiseLogisticLayer | FlattenLayer]] = {
    described.ReLU: ReLULayer,
    described.Square: SquareLayer,
    described.PiecewiseLogistic: PiecewiseLogisticLayer,
    described.Flatten: FlattenLayer,
}
_INSTEAD = (
    "use Linear, Conv2d, AvgPool2d, MaxPool2d without padding, ReLU, Flatten, and tacit.nn.layers.SquareModule or "
    "PiecewiseLogisticModule; softmax is the loss relu-sum"
)


def names_of(spec: ModelSpec) -> list[str]:
    """What costs and errors call the layers: "1 Linear"."""
    return [f"{number} {type(layer).__name__}" for number, layer in enumerate(spec.layers)]


def encoded(spec: ModelSpec, fixed: FixedPoint, arrays: Sequence[Reals]) -> list[Elements]:
    """A model's parameters as ring elements.

    Raises:
        RangeError: one does not fit; names the layer, and the precision that would fit.
    """
    out: list[Elements] = []
    for name, count in zip(names_of(spec), _counts(spec), strict=True):
        for array, kind in zip(
            arrays[len(out) : len(out) + count], ("weights", "bias"), strict=False
        ):
            out.append(encode(fixed, array, f"{kind} of layer {name}"))
    return out


def encode(fixed: FixedPoint, array: Reals, name: str) -> Elements:
    """Reals as ring elements.

    Raises:
        RangeError: one does not fit; says which precision would.
    """
    try:
        return fixed.encode(array, name)
    except RangeError as error:
        most = float(np.abs(array).max(initial=0.0))
        fits = next(
            (f for f in range(fixed.fraction, -1, -1) if most <= FixedPoint(f, fixed.ring).largest),
            None,
        )
        hint = (
            ""
            if fits is None or not np.isfinite(most)
            else f"; {fits} fractional bits would fit it"
        )
        raise RangeError(f"{error}{hint}") from error


def _counts(spec: ModelSpec) -> list[int]:
    return [
        (2 if layer.bias else 1) if isinstance(layer, described.Linear | described.Conv2d) else 0
        for layer in spec.layers
    ]


def network_of(spec: ModelSpec, fixed: FixedPoint, arrays: Sequence[Elements]) -> Network:
    """The network that a description says.

    Args:
        spec: layers.
        fixed: ring and precision.
        arrays: parameters, or shares of them, in torch's order and shapes.

    Raises:
        UnsupportedLayer: one cannot be computed on shares; says what to use.
    """
    layers: list[Layer] = []
    left, first = list(arrays), spec.input_shape
    shape = first
    for name, layer, count, following in zip(
        names_of(spec), spec.layers, _counts(spec), spec.shapes(), strict=True
    ):
        if isinstance(layer, described.Flatten) and not layers:
            first = (
                following  # what is masked once for all epochs must not change its form on the way
            )
        else:
            layers.append(_layer(name, layer, shape, left[:count]))
        left, shape = left[count:], following
    if not any(layer.parameters for layer in layers):
        raise UnsupportedLayer("a model without weights has nothing to learn")
    return Network(layers, fixed, first)
