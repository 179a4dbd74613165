"""What each layer contributes to the gradient of each sample, without the gradients themselves where that is cheaper.

A `Tape` watches one forward pass from outside: it sees the calls of `torch.nn.functional` that every layer is made of, so
nothing is hung on a module, and a custom module that calls ``linear`` with its own parameter is seen too. In a call that it
knows, the parameter is replaced by a detached alias. A parameter that some other computation uses therefore stays in the
autograd graph, where `reaches` finds it: nothing is left out silently. The gradient with respect to a call's output, from
one backward pass, and the call's input then make one `Term` for each parameter of the call.

Source: Bu, Wang, Zha, Karypis, "Differentially private optimization on large model at small cost" (ICML 2023), sections
3.2 and 4 (book-keeping, ghost norm or instantiation for each layer); Goodfellow, "Efficient per-example gradient
computations" (2015); Li, Tramer, Liang, Hashimoto, "Large language models can be strong differentially private learners"
(ICLR 2022), section 4 (ghost norms over sequences and embeddings).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import FunctionType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from tacit.core.errors import UnsupportedLayer

KEPT = 1 << 23  # floats of per-sample gradients that a batch may keep: 32 MB of float32
FLOAT_COST = 16  # multiply-adds that take as long as one such float written and read again, as measured on a CPU core
BLOCK = 1 << 18  # floats of patches that are made at a time: 1 MB stays in a cache


@dataclass(frozen=True, slots=True)
class Place:
    """A run of a trainable parameter's elements: its index among them, the first element, how many, and of what shape."""

    index: int
    start: int
    shape: torch.Size

    @property
    def size(self) -> int:
        """How many elements."""
        return self.shape.numel()


@dataclass(slots=True)
class Spare:
    """How many more floats of per-sample gradients may be kept."""

    floats: int

    def take(self, floats: int) -> bool:
        """Whether so many more may be, which then counts."""
        if floats > self.floats:
            return False
        self.floats -= floats
        return True


class Term(Protocol):
    """The per-sample gradients of one use of a parameter."""

    place: Place

    def norms(self, spare: Spare) -> Tensor:
        """L2 norms, (n,). Per-sample gradients may be kept for the sum where ``spare`` allows."""

    def each(self, low: int, high: int) -> Tensor:
        """The gradients of some samples, (high - low, size)."""

    def total(self, weights: Tensor) -> Tensor:
        """Their weighted sum, of as many elements as the place."""

    def blank(self, bad: Tensor) -> None:
        """Put zeros in the place of the samples in the mask, (n,), so that their infinities meet no product."""


def wide(x: Tensor, other: Tensor | None = None) -> Tensor:
    """``x`` in the type that norms and sums are computed in: ``other``'s, or float32 where ``x`` has less."""
    if other is not None:
        return x if x.dtype is other.dtype else x.to(other.dtype)
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _zeroed(x: Tensor, bad: Tensor) -> Tensor:
    return x.masked_fill(bad.view(-1, *[1] * (x.dim() - 1)), 0)


def _row_norms(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x, dim=1)
    return norms


@dataclass(slots=True)
class Dense:
    """Gradients that are at hand, one row a sample: biases, affine parameters, whatever vmap gave."""

    place: Place
    rows: Tensor
    _norms: Tensor | None = None

    def norms(self, spare: Spare) -> Tensor:  # noqa: D102
        if self._norms is None:
            self._norms = _row_norms(self.rows)
        return self._norms

    def each(self, low: int, high: int) -> Tensor:  # noqa: D102
        return self.rows[low:high]

    def total(self, weights: Tensor) -> Tensor:  # noqa: D102
        return weights @ self.rows

    def blank(self, bad: Tensor) -> None:  # noqa: D102
        self.rows = _zeroed(self.rows, bad)


def _weighted_product(a: Tensor, g: Tensor, weights: Tensor) -> Tensor:
    """The sum of w g a^T over all rows, flat. The narrower factor is scaled and stands first, which is the faster way."""
    narrow = g.shape[-1] <= a.shape[-1]
    thin, broad = (g, a) if narrow else (a, g)
    out = (thin * weights).flatten(0, -2).T @ broad.flatten(0, -2)
    return (out if narrow else out.T).reshape(-1)


@dataclass(slots=True)
class RankOne:
    """Gradients ``g a^T``, one outer product a sample: a linear layer on rows. ``g`` holds the norms of its own rows."""

    place: Place
    a: Tensor  # (n, D)
    g: Dense  # (n, p)

    def norms(self, spare: Spare) -> Tensor:  # noqa: D102
        return _row_norms(self.a) * self.g.norms(spare)

    def each(self, low: int, high: int) -> Tensor:  # noqa: D102
        g, a = self.g.rows[low:high], self.a[low:high]
        return (g.unsqueeze(2) * a.unsqueeze(1)).flatten(1)

    def total(self, weights: Tensor) -> Tensor:  # noqa: D102
        return _weighted_product(self.a, self.g.rows, weights.unsqueeze(1))

    def blank(self, bad: Tensor) -> None:  # noqa: D102
        self.a = _zeroed(self.a, bad)
        self.g.blank(bad)


def _worth_keeping(positions: int, inner: int, outer: int) -> bool:
    """Whether writing a gradient of inner * outer elements beats two Gram matrices of positions^2."""
    ghost = positions * positions * (inner + outer + FLOAT_COST)
    return inner * outer * FLOAT_COST < ghost


def _ghost(a: Tensor, g: Tensor) -> Tensor:
    """Norms of sum_t g_t a_t^T for each sample, from (n, T, D) and (n, T, p)."""
    gram = torch.bmm(a, a.transpose(1, 2)).mul_(torch.bmm(g, g.transpose(1, 2)))
    return gram.sum((1, 2)).clamp_min_(0).sqrt_()


@dataclass(slots=True)
class Positions:
    """Gradients ``sum_t g_t a_t^T``: a linear layer at every position of a sequence."""

    place: Place
    a: Tensor  # (n, T, D)
    g: Tensor  # (n, T, p)
    kept: Tensor | None = None

    def norms(self, spare: Spare) -> Tensor:  # noqa: D102
        n, positions, inner = self.a.shape
        outer = self.g.shape[2]
        if _worth_keeping(positions, inner, outer) and spare.take(n * self.place.size):
            self.kept = self.each(0, n)
            return _row_norms(self.kept)
        if positions * (inner + outer) <= inner * outer:
            return _ghost(self.a, self.g)
        step = max(1, KEPT // (inner * outer))
        return torch.cat([_row_norms(self.each(i, i + step)) for i in range(0, n, step)])

    def each(self, low: int, high: int) -> Tensor:  # noqa: D102
        return torch.bmm(self.g[low:high].transpose(1, 2), self.a[low:high]).flatten(1)

    def total(self, weights: Tensor) -> Tensor:  # noqa: D102
        if self.kept is not None:
            return weights @ self.kept
        return _weighted_product(self.a, self.g, weights.view(-1, 1, 1))

    def blank(self, bad: Tensor) -> None:  # noqa: D102
        self.a, self.g = _zeroed(self.a, bad), _zeroed(self.g, bad)
        self.kept = None if self.kept is None else _zeroed(self.kept, bad)


@dataclass(slots=True)
class Patches:
    """Gradients of a convolution's weight: output gradients times patches of the (already padded) input."""

    place: Place
    x: Tensor  # (n, C, *space)
    g: Tensor  # (n, p, *positions)
    stride: Sequence[int]
    dilation: Sequence[int]
    groups: int
    kept: Tensor | None = None

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """Positions, and elements of a patch and of an output gradient at a position, both in one group."""
        outer = self.place.shape[0] // self.groups
        return math.prod(self.g.shape[2:]), self.place.shape[1:].numel(), outer

    def _pairs(self, size: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Patches (m * groups, T, D) and output gradients (m * groups, p, T) of m samples at a time.

        D runs over the kernel, then over the channels: with the channels last, patches are made of longer runs to copy. So
        few samples at a time that their patches stay in a cache. ``size``: floats the caller needs for a sample and group.
        """
        kernel, space = self.place.shape[2:], range(len(self.stride))
        positions, inner, outer = self._sizes
        step = max(1, BLOCK // (self.groups * max(size, positions * inner)))
        for low in range(0, len(self.x), step):
            x = self.x[low : low + step]
            x = x.reshape(len(x), self.groups, -1, *x.shape[2:])
            x = x.movedim(2, -1).contiguous()
            for i in space:
                reach = self.dilation[i] * (kernel[i] - 1) + 1
                x = x.unfold(2 + i, reach, self.stride[i])[..., :: self.dilation[i]]
                x = x.narrow(2 + i, 0, self.g.shape[2 + i])
            a = x.movedim(2 + len(space), -1).reshape(-1, positions, inner)
            yield low, a, self.g[low : low + step].reshape(-1, outer, positions)

    def norms(self, spare: Spare) -> Tensor:  # noqa: D102
        n, (positions, inner, outer) = len(self.x), self._sizes
        if _worth_keeping(positions, inner, outer) and spare.take(n * self.place.size):
            self.kept = self.g.new_empty(n, self.place.size)
            shaped = self.kept.view(n * self.groups, outer, inner)
            norms = []
            for low, a, g in self._pairs(0):
                at = low * self.groups
                out = torch.bmm(g, a, out=shaped[at : at + len(a)])
                norms.append(_row_norms(out.view(-1, self.place.size)))
            return torch.cat(norms)
        if positions * (inner + outer) <= inner * outer:
            parts = [_ghost(a, g.mT) for _, a, g in self._pairs(2 * positions * positions)]
        else:
            parts = [
                _row_norms(torch.bmm(g, a).flatten(1)) for _, a, g in self._pairs(inner * outer)
            ]
        return _row_norms(torch.cat(parts).view(n, self.groups))

    def _ordered(self, rows: Tensor) -> Tensor:
        """Rows of a gradient whose channels came last, as the weight has them."""
        out, channels, *kernel = self.place.shape
        return rows.view(-1, out, *kernel, channels).movedim(-1, 2).flatten(1)

    def each(self, low: int, high: int) -> Tensor:  # noqa: D102
        part = replace(self, x=self.x[low:high], g=self.g[low:high])
        rows = [torch.bmm(g, a).view(-1, self.place.size) for _, a, g in part._pairs(0)]
        return self._ordered(torch.cat(rows))

    def total(self, weights: Tensor) -> Tensor:  # noqa: D102
        if self.kept is not None:
            return self._ordered(weights @ self.kept)[0]
        g = self.g * weights.view(-1, *[1] * (self.g.dim() - 1))
        space = len(self.stride)
        weight = self.x.new_empty(self.place.shape)
        _, out, _ = torch.ops.aten.convolution_backward(
            g,
            self.x,
            weight,
            None,
            self.stride,
            [0] * space,
            self.dilation,
            False,
            [0] * space,
            self.groups,
            [False, True, False],
        )
        flat: Tensor = out.reshape(-1)
        return flat

    def blank(self, bad: Tensor) -> None:  # noqa: D102
        self.x, self.g = _zeroed(self.x, bad), _zeroed(self.g, bad)
        self.kept = None if self.kept is None else _zeroed(self.kept, bad)


@dataclass(slots=True)
class Lookup:
    """Gradients of an embedding's table: each sample touches the rows of its own tokens."""

    place: Place
    ids: Tensor  # (n, T)
    g: Tensor  # (n, T, d), zero at padding

    def norms(self, spare: Spare) -> Tensor:  # noqa: D102
        n, words = len(self.ids), self.place.shape[0]
        keys = self.ids + words * torch.arange(n, device=self.ids.device).unsqueeze(1)
        used, where = torch.unique(keys, return_inverse=True)
        rows = self.g.new_zeros(len(used), self.g.shape[2])
        rows.index_add_(0, where.view(-1), self.g.flatten(0, 1))
        out = self.g.new_zeros(n)
        return out.index_add_(0, used // words, rows.square_().sum(1)).sqrt_()

    def each(self, low: int, high: int) -> Tensor:  # noqa: D102
        ids, g = self.ids[low:high], self.g[low:high]
        out = g.new_zeros(len(ids), *self.place.shape)
        return out.scatter_add_(1, ids.unsqueeze(2).expand_as(g), g).flatten(1)

    def total(self, weights: Tensor) -> Tensor:  # noqa: D102
        out = self.g.new_zeros(self.place.shape)
        scaled = self.g * weights.view(-1, 1, 1)
        return out.index_add_(0, self.ids.reshape(-1), scaled.flatten(0, 1)).view(-1)

    def blank(self, bad: Tensor) -> None:  # noqa: D102
        self.g = _zeroed(self.g, bad)


_PLAIN = (Tensor, nn.Parameter)
Terms = Callable[[Tensor, Tensor], Iterable[Term]]


@dataclass(slots=True)
class Record:
    """One call of a layer: what its gradients will be made of."""

    edge: GradientEdge  # asks autograd for the gradient of the output as the call left it
    shape: torch.Size  # of that output
    x: Tensor
    version: int  # of x at the call
    free: Sequence[
        int
    ]  # sizes of the dimensions that might hold the samples as well as the one that was taken to
    terms: Terms  # from the input and the output's gradient
    by_sample: Callable[[Tensor], Tensor]  # that gradient with the samples first

    def read(self, gradient: Tensor) -> Iterable[Term]:
        """The terms, given the gradient of the output.

        Raises:
            UnsupportedLayer: the input was changed after the call.
        """
        if self.x._version != self.version:
            raise UnsupportedLayer(
                f"the input of a layer, of shape {tuple(self.x.shape)}, was changed in place after the layer had read it: "
                "its gradient cannot be known; change a copy"
            )
        return self.terms(self.x, wide(gradient.reshape(self.shape)))


def _samples_first(x: Tensor, n: int, axis: int) -> Tensor:
    """The samples, n in dimension ``axis``, or in the inner part of the first where that is -1, as the first dimension."""
    if axis == 0:
        return x
    return (x if axis == 1 else x.reshape(-1, n, *x.shape[1:])).transpose(0, 1)


def _tuple(value: int | Sequence[int], length: int) -> tuple[int, ...]:
    return (value,) * length if isinstance(value, int) else tuple(value) * (length // len(value))


@dataclass
class Tape(TorchFunctionMode):
    """Records the calls of known layers while it is entered.

    Args:
        index: the position of each trainable parameter, by ``id``.
        n: samples in the batch.
    """

    index: dict[int, int]
    n: int
    records: list[Record] = field(default_factory=list)
    sequence_first: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func``, on the record where it is a layer's."""
        reader = _READERS.get(func)
        if reader is None or not torch.is_grad_enabled():
            return func(*args, **(kwargs or {}))
        return reader(self, *args, **(kwargs or {}))

    def _place(self, p: Tensor) -> Place | None:
        """Where a parameter, or a contiguous run of one, lies; None if it is neither."""
        at = self.index.get(id(p))
        if at is not None:
            return Place(at, 0, p.shape)
        root = p._base
        at = None if root is None else self.index.get(id(root))
        if root is None or at is None or type(p) not in _PLAIN or p.dtype != root.dtype:
            return None
        if not (p.is_contiguous() and root.is_contiguous()):
            return None
        return Place(at, int(p.storage_offset() - root.storage_offset()), p.shape)

    def _record(
        self,
        run: Callable[..., Tensor],
        x: Tensor,
        parameters: Sequence[Tensor | None],
        fixed: int,
        make: Callable[..., Terms],
        axis: int = 0,
    ) -> Tensor:
        """Call a layer with aliases of its parameters.

        Args:
            run: the call, from its parameters.
            x: its input.
            parameters: weight and bias.
            fixed: how many of the last dimensions the layer mixes, which hence hold no samples.
            make: the terms, from the parameters' places.
            axis: the dimension of ``x`` that holds the samples; -1 where it is folded into the first, in the inner place.
        """
        places = [None if p is None else self._place(p) for p in parameters]
        shape = x.shape
        if axis == 0:
            held, free = shape[0] if len(shape) > fixed else -1, shape[1 : len(shape) - fixed]
        elif axis == 1:
            held, free = shape[1], shape[:1]
        else:
            positions, rest = divmod(shape[0], self.n)
            held, free = (-1 if rest else self.n), torch.Size([positions])
        plain = type(x) in _PLAIN and x.layout is torch.strided
        if held != self.n or not plain or places.count(None) == len(places):
            return run(*parameters)
        out = run(
            *(
                p if place is None or p is None else p.detach().requires_grad_()
                for p, place in zip(parameters, places, strict=True)
            )
        )
        # An output that is a view would lose its node when it is changed in place; its base does not.
        base = out._base
        root = out if base is None else base
        node = root.grad_fn
        if node is None or root.numel() != out.numel():
            return run(*parameters)
        edge = GradientEdge(node, root.output_nr)
        first = partial(_samples_first, n=self.n, axis=axis)
        self.records.append(Record(edge, out.shape, x, x._version, free, make(*places), first))
        return out

    def linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``functional.linear`` with any leading dimensions."""
        n = self.n
        axis = 0 if not self.sequence_first else (1 if input.dim() == 3 else -1)

        def make(weight_at: Place | None, bias_at: Place | None) -> Terms:
            def of_rows(a: Tensor, g: Tensor) -> Iterable[Term]:
                rows = Dense(bias_at or Place(-1, 0, g.shape[1:]), g)
                if bias_at is not None:
                    yield rows
                if weight_at is not None:
                    yield RankOne(weight_at, a, rows)

            def terms(x: Tensor, g: Tensor) -> Iterable[Term]:
                x = wide(x, g)
                if x.dim() == 2 and axis == 0:
                    yield from of_rows(x, g)
                    return
                a, g = (_samples_first(t, n, axis).reshape(n, -1, t.shape[-1]) for t in (x, g))
                if a.shape[1] == 1:
                    yield from of_rows(a[:, 0], g[:, 0])
                    return
                if bias_at is not None:
                    yield Dense(bias_at, g.sum(1))
                if weight_at is not None:
                    yield Positions(weight_at, a, g)

            return terms

        return self._record(
            lambda w, b: functional.linear(input, w, b), input, (weight, bias), 1, make, axis
        )

    def conv1d(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``functional.conv1d``."""
        return self._convolution(torch.conv1d, 1, input, *args, **kwargs)

    def conv2d(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``functional.conv2d``."""
        return self._convolution(torch.conv2d, 2, input, *args, **kwargs)

    def conv3d(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``functional.conv3d``."""
        return self._convolution(torch.conv3d, 3, input, *args, **kwargs)

    def _convolution(  # noqa: PLR0913, PLR0917
        self,
        func: Callable[..., Tensor],
        space: int,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Tensor:
        strides, dilations = _tuple(stride, space), _tuple(dilation, space)
        if padding == "valid":
            pads = [(0, 0)] * space
        elif padding == "same":
            extra = [d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=True)]
            pads = [(e // 2, e - e // 2) for e in extra]
        else:
            pads = [(p, p) for p in _tuple(padding, space)]  # type: ignore[arg-type]

        def make(weight_at: Place | None, bias_at: Place | None) -> Terms:
            def terms(x: Tensor, g: Tensor) -> Iterable[Term]:
                if bias_at is not None:
                    yield Dense(bias_at, g.flatten(2).sum(2))
                if weight_at is not None:
                    x = wide(x, g)
                    if any(map(any, pads)):
                        x = functional.pad(x, [p for pair in reversed(pads) for p in pair])
                    yield Patches(weight_at, x, g, strides, dilations, groups)

            return terms

        return self._record(
            lambda w, b: func(input, w, b, stride, padding, dilation, groups),
            input,
            (weight, bias),
            space + 1,
            make,
        )

    def embedding(
        self,
        input: Tensor,
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Tensor:
        """``functional.embedding``.

        Raises:
            UnsupportedLayer: one of the options that mix samples or make sparse gradients is on.
        """
        if self._place(weight) and (max_norm is not None or scale_grad_by_freq or sparse):
            raise UnsupportedLayer(
                "an embedding has max_norm, scale_grad_by_freq or sparse set: the first two let one sample's tokens change "
                "another's gradient, and sums of clipped gradients are dense; leave all three off"
            )
        n, padding = self.n, padding_idx
        if padding is not None and padding < 0:
            padding += weight.shape[0]

        def make(weight_at: Place) -> Terms:
            def terms(x: Tensor, g: Tensor) -> Iterable[Term]:
                ids, rows = x.reshape(n, -1).long(), g.reshape(n, -1, g.shape[-1])
                if padding is not None:
                    rows = rows.masked_fill((ids == padding).unsqueeze(2), 0)
                yield Lookup(weight_at, ids, rows)

            return terms

        return self._record(
            lambda w: functional.embedding(
                input, w, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
            ),
            input,
            (weight,),
            0,
            make,
        )

    def layer_norm(
        self,
        input: Tensor,
        normalized_shape: list[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        """``functional.layer_norm``."""
        shape = list(normalized_shape)
        return self._record(
            lambda w, b: functional.layer_norm(input, shape, w, b, eps),
            input,
            (weight, bias),
            len(shape),
            self._affine(
                lambda x: functional.layer_norm(x, shape, None, None, eps), channels=False
            ),
        )

    def rms_norm(
        self,
        input: Tensor,
        normalized_shape: list[int],
        weight: Tensor | None = None,
        eps: float | None = None,
    ) -> Tensor:
        """``functional.rms_norm``."""
        shape = list(normalized_shape)
        return self._record(
            lambda w, _: functional.rms_norm(input, shape, w, eps),
            input,
            (weight, None),
            len(shape),
            self._affine(lambda x: functional.rms_norm(x, shape, None, eps), channels=False),
        )

    def group_norm(
        self,
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        """``functional.group_norm``."""
        return self._record(
            lambda w, b: functional.group_norm(input, num_groups, w, b, eps),
            input,
            (weight, bias),
            input.dim() - 1,
            self._affine(
                lambda x: functional.group_norm(x, num_groups, None, None, eps), channels=True
            ),
        )

    def _affine(
        self, normalise: Callable[[Tensor], Tensor], *, channels: bool
    ) -> Callable[..., Terms]:
        """Terms of a scale and shift after a normalisation, of each channel or of the last dimensions."""
        n = self.n

        def make(weight_at: Place | None, bias_at: Place | None) -> Terms:
            def rows(t: Tensor, place: Place) -> Dense:
                if channels:
                    return Dense(place, t.flatten(2).sum(2) if t.dim() > 2 else t)
                return Dense(place, t.reshape(n, -1, place.size).sum(1))

            def terms(x: Tensor, g: Tensor) -> Iterable[Term]:
                if bias_at is not None:
                    yield rows(g, bias_at)
                if weight_at is not None:
                    yield rows(g * normalise(wide(x, g)), weight_at)

            return terms

        return make

    def attention(self, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        """``functional.multi_head_attention_forward``: its projections are linear layers on (positions, samples, features).

        It is written in Python and gives itself up to the tape as a whole, so a copy that does not is run under the tape.
        """
        func = functional.multi_head_attention_forward
        if query.dim() != 3 or query.shape[1] != self.n:
            return func(query, *args, **kwargs)
        inside = {**func.__globals__, "has_torch_function": lambda _: False}
        copy = FunctionType(func.__code__, inside, func.__name__, func.__defaults__)
        self.sequence_first = True
        try:
            with self:
                return copy(query, *args, **kwargs)
        finally:
            self.sequence_first = False

    def batch_norm(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``functional.batch_norm``: refused where it takes its statistics from the batch."""
        training = kwargs.get("training", args[4] if len(args) > 4 else False)
        if training:
            raise UnsupportedLayer(MIXES.format("a batch normalisation"))
        return functional.batch_norm(input, *args, **kwargs)


MIXES = (
    "{} takes its statistics from the whole batch, so that samples have no gradients of their own: "
    "use GroupNorm or LayerNorm in its place"
)

_READERS: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.linear: Tape.linear,
    torch.conv1d: Tape.conv1d,
    torch.conv2d: Tape.conv2d,
    torch.conv3d: Tape.conv3d,
    functional.embedding: Tape.embedding,
    functional.layer_norm: Tape.layer_norm,
    functional.rms_norm: Tape.rms_norm,
    functional.group_norm: Tape.group_norm,
    functional.batch_norm: Tape.batch_norm,
    functional.multi_head_attention_forward: Tape.attention,
}


def reaches(losses: Tensor, ids: Iterable[int]) -> bool:
    """Whether a tensor of those ``id``s is a leaf of the graph that ``losses`` came from."""
    wanted = frozenset(ids)
    seen = {losses.grad_fn}
    stack = [losses.grad_fn]
    while stack:
        node = stack.pop()
        for parent, _ in node.next_functions if node is not None else ():
            if parent is not None and parent not in seen:
                # the node of a leaf holds the leaf
                if id(getattr(parent, "variable", None)) in wanted:
                    return True
                seen.add(parent)
                stack.append(parent)
    return False
