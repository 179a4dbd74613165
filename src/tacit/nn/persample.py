"""Clipped sums of per-sample gradients, for about the price of the plain gradient.

`clipped_sum` is a function from a model, a loss and a batch to the sum over the samples of each sample's gradient, scaled
down to a bounded norm. It runs one forward and one backward pass. The norms come from each layer's input and output
gradient, by whichever of two ways is cheaper there, and the same two tensors then give the sum. The model is not changed,
wrapped or hooked.

Layers on this path: linear (any leading dimensions), convolutions (1-3 dimensions), embedding, layer, RMS and group norm,
and multi-head attention, each as a module or as a call of `torch.nn.functional` from any module, with parameters shared or
not. A model with a trainable parameter that is used in another way runs sample by sample under `torch.func.vmap`: right,
and slower.

What cannot be seen from outside: a model that mixes samples (a statistic or attention across the batch) in another way than
by the batch normalisations, which are refused. Its samples have no gradients of their own, and no bound on a sum holds for
it. `samples_apart` looks for that in a given batch.

Source: Bu, Wang, Zha, Karypis, "Differentially private optimization on large model at small cost" (ICML 2023); Bu, Wang,
Zha, Karypis, "Automatic clipping" (NeurIPS 2023); [4], algorithm 1, lines "compute gradient" and "clip gradient".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from tacit.core.errors import ConfigError, DataError, UnsupportedLayer
from tacit.nn.persample_layers import (
    KEPT,
    MIXES,
    Dense,
    Place,
    Record,
    Spare,
    Tape,
    Term,
    reaches,
    wide,
)

Batch = Tensor | tuple[Tensor, ...]
Loss = Callable[[Tensor, Tensor], Tensor]


class Clipping(Enum):
    """How a sample's gradient is scaled to a bounded norm."""

    FLAT = "flat"
    PER_LAYER = "per-layer"
    AUTOMATIC = "automatic"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRule:
    """The bound on a sample's gradient and the way to it.

    Args:
        bound: C > 0, the L2 norm that the whole clipped gradient of a sample does not exceed.
        how: FLAT: g min(1, C / |g|). PER_LAYER: so for the parameters of each module that owns some, with C / sqrt(modules).
            AUTOMATIC: g C / (|g| + gamma).
        gamma: the constant of AUTOMATIC, > 0.

    Raises:
        ConfigError: ``bound`` or ``gamma`` is not positive and finite.

    Source: [4], section 3.1; Bu et al., "Automatic clipping" (NeurIPS 2023), equation 1.1 with stability constant gamma.
    """

    bound: float
    how: Clipping = Clipping.FLAT
    gamma: float = 0.01

    def __post_init__(self) -> None:
        if not (0 < self.bound < math.inf and 0 < self.gamma < math.inf):
            raise ConfigError(
                f"bound and gamma must be positive and finite, got {self.bound} and {self.gamma}"
            )

    def weights(self, norms: Tensor) -> Tensor:
        """The factors that scale gradients of these norms: (groups, n) in, (groups, n) out.

        FLAT and AUTOMATIC expect one group, the whole gradient.
        """
        if self.how is Clipping.AUTOMATIC:
            return self.bound / (norms + self.gamma)
        return (self.bound / math.sqrt(norms.shape[0]) / norms).clamp(max=1.0)


@dataclass(slots=True)
class ClippedSum:
    """What `clipped_sum` gives.

    Attributes:
        gradients: for each trainable parameter, in the order of ``model.parameters()``, the sum over the samples of the
            clipped gradients, in the parameter's shape and type.
        norms: (n,) L2 norms of the samples' gradients before clipping.
        losses: (n,) the samples' losses.
        clipped: how many samples were scaled down.
        nonfinite: how many samples had a loss or a gradient that is not finite. They add nothing.
    """

    gradients: tuple[Tensor, ...]
    norms: Tensor
    losses: Tensor
    clipped: int
    nonfinite: int


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each sample, (n,), of logits (n, classes) or (n, classes, ...), the mean over the rest."""
    values = functional.cross_entropy(outputs, targets, reduction="none")
    return values if values.dim() == 1 else values.flatten(1).mean(1)


def clipped_sum(
    model: nn.Module,
    loss: Loss,
    inputs: Batch,
    targets: Batch,
    rule: ClipRule,
    *,
    micro: int | None = None,
) -> ClippedSum:
    """The sum over a batch of each sample's gradient, clipped.

    Args:
        model: any module; it is left as it was, in its mode, with the ``grad`` of its parameters untouched. Its frozen
            parameters take no part.
        loss: from outputs and targets to losses, one a sample, (n,).
        inputs: a tensor (n, ...), or a tuple of them for a model of several arguments.
        targets: likewise, given to ``loss`` as it is.
        rule: how gradients are clipped.
        micro: at most so many samples at a time, which bounds the memory; the result is the same. None: all at once.

    Raises:
        ConfigError: nothing is trainable, or ``micro`` < 1.
        DataError: inputs and targets differ in length, or the losses are not (n,).
        UnsupportedLayer: the model normalises over the batch, or uses a parameter in a way that can be followed neither by
            layers nor under `torch.func.vmap`; the message says which and what to do.

    Guarantee: up to rounding, replacing or removing one sample moves the whole of ``gradients`` by no more than 2 C or C in
    L2 norm, if the model does not mix samples.
    Cost: memory for the activations and their gradients, all at once, and for at most 32 MB (float32) of per-sample
    gradients; twice that where vmap is used. `torch.compile` cannot trace this; a compiled model is run as written.
    """
    setup = _Setup.of(model)
    n = _length(inputs)
    if _length(targets) != n:
        raise DataError(f"{n} inputs and {_length(targets)} targets: they must be as many")
    if micro is not None and micro < 1:
        raise ConfigError(f"micro must be at least 1, got {micro}")
    if n == 0:
        return _empty(setup)
    step = n if micro is None else min(micro, n)
    whole: ClippedSum | None = None
    for i in range(0, n, step):
        part = _clip_part(
            setup, loss, _rows(inputs, i, i + step), _rows(targets, i, i + step), rule
        )
        whole = part if whole is None else _plus(whole, part)
    if whole is None:
        return _empty(setup)
    whole.gradients = tuple(
        g.to(p.dtype) for g, p in zip(whole.gradients, setup.parameters, strict=True)
    )
    return whole


def samples_apart(model: nn.Module, loss: Loss, inputs: Batch, targets: Batch) -> bool:
    """Whether, in this batch, no sample's loss depends on another's activations at any known layer.

    One forward and one backward pass from the losses of every second sample: the other samples' activations must get no
    gradient at all. A model that fails mixes samples, and must not be trained by `clipped_sum`. One that passes may still
    mix them before its first layer, or for other data.

    Raises:
        UnsupportedLayer: as `clipped_sum`.
    """
    setup = _Setup.of(model)
    n = _length(inputs)
    losses, records, _ = _forward(setup, loss, inputs, targets)
    if not (records and losses.requires_grad):
        return True
    chosen = torch.arange(n, device=losses.device) % 2 == 0
    gradients = torch.autograd.grad(
        losses[chosen].sum(), [r.edge for r in records], allow_unused=True
    )
    others = [
        r.by_sample(g.reshape(r.shape))[~chosen]
        for r, g in zip(records, gradients, strict=True)
        if g is not None
    ]
    return not any(bool(g.count_nonzero()) for g in others)


@dataclass(slots=True)
class _Setup:
    model: nn.Module
    parameters: list[nn.Parameter]
    groups: list[int]  # of each parameter: the module that owns it, numbered from 0
    index: dict[int, int]
    compiled: bool

    @classmethod
    def of(cls, model: nn.Module) -> _Setup:
        index: dict[int, int] = {}
        parameters: list[nn.Parameter] = []
        groups: list[int] = []
        count, compiled = 0, False
        for module in model.modules():
            if _mixes(module):
                raise UnsupportedLayer(MIXES.format(f"the model's {type(module).__name__}"))
            compiled |= module._compiled_call_impl is not None or "_orig_mod" in module._modules
            for p in module._parameters.values():  # in the order of model.parameters()
                if p is not None and p.requires_grad and id(p) not in index:
                    index[id(p)] = len(parameters)
                    parameters.append(p)
                    groups.append(count)
            count += bool(groups) and groups[-1] == count
        if not parameters:
            raise ConfigError("the model has no trainable parameter: there is nothing to clip")
        return cls(model, parameters, groups, index, compiled)

    def plainly(self) -> AbstractContextManager[object]:
        """A context in which compiled parts of the model run as written, since a compiled graph shows no calls."""
        return torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()


def _mixes(module: nn.Module) -> bool:
    """Whether a module normalises over the batch, or keeps statistics of it."""
    tracked = module._buffers.get("running_mean") is not None
    return (module.training and tracked) or (isinstance(module, _BatchNorm) and not tracked)


def _length(batch: Batch) -> int:
    if isinstance(batch, Tensor):
        return batch.shape[0]
    lengths = {t.shape[0] for t in batch}
    if len(lengths) != 1:
        raise DataError(f"every tensor of a batch must be as long, got {sorted(lengths)}")
    return lengths.pop()


def _rows(batch: Batch, low: int, high: int) -> Batch:
    if isinstance(batch, Tensor):
        return batch if low == 0 and high == batch.shape[0] else batch[low:high]
    return tuple(t[low:high] for t in batch)


def _call(model: Callable[..., Tensor], inputs: Batch) -> Tensor:
    return model(inputs) if isinstance(inputs, Tensor) else model(*inputs)


def _zeros(setup: _Setup) -> tuple[Tensor, ...]:
    return tuple(wide(p.new_zeros(p.shape)) for p in setup.parameters)


def _empty(setup: _Setup) -> ClippedSum:
    first = setup.parameters[0]
    none = wide(first.new_zeros(0))
    return ClippedSum(tuple(torch.zeros_like(p) for p in setup.parameters), none, none, 0, 0)


def _plus(a: ClippedSum, b: ClippedSum) -> ClippedSum:
    for x, y in zip(a.gradients, b.gradients, strict=True):
        x.add_(y)
    return ClippedSum(
        a.gradients,
        torch.cat([a.norms, b.norms]),
        torch.cat([a.losses, b.losses]),
        a.clipped + b.clipped,
        a.nonfinite + b.nonfinite,
    )


def _no_autocast(losses: Tensor) -> AbstractContextManager[object]:
    device = losses.device.type
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def _forward(
    setup: _Setup, loss: Loss, inputs: Batch, targets: Batch
) -> tuple[Tensor, list[Record], bool]:
    """Losses, the calls of layers, and whether these account for every use of a trainable parameter."""
    n = _length(inputs)
    with torch.enable_grad(), setup.plainly():
        with Tape(setup.index, n) as tape:
            losses = loss(_call(setup.model, inputs), targets)  # type: ignore[arg-type]
        if losses.shape != (n,):
            raise DataError(
                f"the loss must give one value a sample, ({n},), and gave {tuple(losses.shape)}: use reduction='none'"
            )
        if reaches(losses, setup.index):
            return losses, tape.records, False
        # Where another dimension could hold the samples as well, one sample alone tells.
        if n > 1 and any(size % n == 0 for r in tape.records for size in r.free):
            with Tape(setup.index, 1) as probe:
                loss(_call(setup.model, _rows(inputs, 0, 1)), _rows(targets, 0, 1))  # type: ignore[arg-type]
            if [r.free for r in probe.records] != [r.free for r in tape.records]:
                return losses, tape.records, False
    return losses, tape.records, True


def _clip_part(
    setup: _Setup, loss: Loss, inputs: Batch, targets: Batch, rule: ClipRule
) -> ClippedSum:
    losses, records, complete = _forward(setup, loss, inputs, targets)
    if not complete:
        del losses, records
        return _each_alone(setup, loss, inputs, targets, rule)
    terms: list[Term] = []
    if records and losses.requires_grad:
        gradients = torch.autograd.grad(losses.sum(), [r.edge for r in records], allow_unused=True)
    with torch.no_grad(), _no_autocast(losses):
        if records and losses.requires_grad:
            for record, gradient in zip(records, gradients, strict=True):
                if gradient is not None:
                    terms.extend(record.read(gradient))
        return _finish(setup, terms, losses.detach(), rule, Spare(KEPT))


def _each_alone(
    setup: _Setup, loss: Loss, inputs: Batch, targets: Batch, rule: ClipRule
) -> ClippedSum:
    """The same with the whole model under vmap, in parts small enough for their per-sample gradients."""
    names = {id(p): name for name, p in setup.model.named_parameters()}
    own = {names[id(p)]: p.detach() for p in setup.parameters}

    def of_one(own: dict[str, Tensor], x: Batch, y: Batch) -> Tensor:
        def model(*args: Tensor) -> Tensor:
            out: Tensor = torch.func.functional_call(setup.model, own, args)
            return out

        def one(batch: Batch) -> Batch:
            if isinstance(batch, Tensor):
                return batch.unsqueeze(0)
            return tuple(t.unsqueeze(0) for t in batch)

        return loss(_call(model, one(x)), one(y)).squeeze(0)  # type: ignore[arg-type]

    several = torch.func.vmap(
        torch.func.grad_and_value(of_one), in_dims=(None, 0, 0), randomness="different"
    )
    n = _length(inputs)
    step = max(1, 2 * KEPT // sum(p.numel() for p in setup.parameters))
    whole: ClippedSum | None = None
    for i in range(0, n, step):
        x, y = _rows(inputs, i, i + step), _rows(targets, i, i + step)
        try:
            with setup.plainly():
                gradients, losses = several(own, x, y)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            raise UnsupportedLayer(
                "a trainable parameter is used by something other than the known layers (see tacit.nn.persample), and "
                f"torch.func.vmap cannot run the model: {error}. Freeze that parameter, or write its use with known layers"
            ) from error
        if losses.requires_grad or any(g.requires_grad for g in gradients.values()):
            raise UnsupportedLayer(
                "a trainable parameter reaches the loss by a way that does not lead through the model's own modules, for "
                "instance as a variable of the loss function: make it part of the model's output"
            )
        with torch.no_grad(), _no_autocast(losses):
            terms: list[Term] = [
                Dense(Place(k, 0, p.shape), wide(gradients[names[id(p)]]).flatten(1))
                for k, p in enumerate(setup.parameters)
            ]
            part = _finish(setup, terms, losses, rule, Spare(0))
        whole = part if whole is None else _plus(whole, part)
    return whole if whole is not None else _empty(setup)


def _finish(
    setup: _Setup, terms: Sequence[Term], losses: Tensor, rule: ClipRule, spare: Spare
) -> ClippedSum:
    """Norms from the terms, weights from the norms, and the weighted sum."""
    of: list[list[Term]] = [[] for _ in setup.parameters]
    for term in terms:
        if term.place.index >= 0:
            of[term.place.index].append(term)
    per_layer = rule.how is Clipping.PER_LAYER
    parts: list[list[Tensor]] = [[] for _ in range(setup.groups[-1] + 1 if per_layer else 1)]
    for group, uses, parameter in zip(setup.groups, of, setup.parameters, strict=True):
        parts[group * per_layer].extend(_norms(uses, parameter, losses.shape[0], spare))
    each = [_root_sum(p, losses) for p in parts]
    whole = _root_sum(each, losses)
    norms = torch.stack(each) if per_layer else whole.unsqueeze(0)
    weights = rule.weights(norms)
    sound = whole + losses
    nonfinite = 0
    if not math.isfinite(sound.sum().item()):
        bad = ~sound.isfinite()
        nonfinite = int(bad.sum().item())
        weights = weights.masked_fill(bad, 0)
        for term in terms:
            term.blank(bad)
    scaled = (weights < 1).any(0) if per_layer else weights < 1
    clipped = int(scaled.sum().item()) - nonfinite
    rows = weights.unbind()
    sums = [
        _total(uses, parameter, rows[group * per_layer])
        for group, uses, parameter in zip(setup.groups, of, setup.parameters, strict=True)
    ]
    return ClippedSum(tuple(sums), whole, losses, clipped, nonfinite)


def _root_sum(norms: list[Tensor], losses: Tensor) -> Tensor:
    """The norm of orthogonal parts of these norms."""
    if len(norms) < 2:
        return norms[0] if norms else wide(torch.zeros_like(losses))
    whole: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return whole


def _norms(uses: Sequence[Term], parameter: Tensor, n: int, spare: Spare) -> Iterator[Tensor]:
    """Norms of a parameter's per-sample gradients, in parts to be added up."""
    runs = sorted((u.place.start, u.place.size) for u in uses)
    if all(a + size <= b for (a, size), (b, _) in pairwise(runs)):
        yield from (use.norms(spare) for use in uses)
        return
    # Several uses of the same elements: their gradients add up before the norm is taken.
    step = max(1, KEPT // parameter.numel())
    parts = []
    for low in range(0, n, step):
        high = min(n, low + step)
        rows = wide(parameter.new_zeros(high - low, parameter.numel()))
        for use in uses:
            rows[:, use.place.start : use.place.start + use.place.size] += use.each(low, high)
        parts.append(torch.linalg.vector_norm(rows, dim=1))
    yield torch.cat(parts)


def _total(uses: Sequence[Term], parameter: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of a parameter's per-sample gradients."""
    if weights.dtype is torch.float64 and parameter.dtype is not torch.float64:
        weights = weights.float()
    if len(uses) == 1 and uses[0].place.size == parameter.numel():
        return uses[0].total(weights).view(parameter.shape)
    out = wide(parameter.new_zeros(parameter.numel()))
    for use in uses:
        out[use.place.start : use.place.start + use.place.size] += use.total(weights)
    return out.view(parameter.shape)
