"""Many networks of one architecture trained at once, each as if it were trained alone.

Shadow and reference models come by the dozen and are small: trained one by one they spend their time on starting operations.
Here the weights of K models lie in one tensor each, and a step of all K is one forward pass, one backward pass and one
optimiser step:

- chains of linear layers and elementwise activations as `torch.baddbmm`;
- other modules under `torch.func.vmap`;
- what neither takes (batch normalisation, buffers that change, control flow that looks at the data) one after another.

The losses of the models are summed, and Adam and SGD work element by element, so that no model feels the others: each has
its own initial weights, its own order of batches, both from its own generator, and ends where it would have ended alone, up
to the rounding of float arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.rnn import pad_sequence

from tacit.core.errors import ConfigError, Diverged, UnsupportedLayer
from tacit.nn.networks import initialise

#: A network's architecture, drawn anew for each model; or a function that draws one from a generator.
Network = nn.Module | Callable[[torch.Generator], nn.Module]

_ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Dropout)

#: Bytes that a batch may make in the layers of a convolutional network that is stacked on a processor.
CONVOLVED = 1 << 18

#: Records whose logits are taken in one forward pass.
ANSWERED = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a model is trained: mini-batches of a fresh order every epoch, the last and smaller one included.

    Args:
        epochs: passes over the records.
        batch_size: records a step.
        learning_rate: of the first step.
        optimiser: "adam" or "sgd".
        momentum: of "sgd"; 0 for none.
        weight_decay: times each parameter, added to its gradient (torch's `weight_decay` of both).
        label_smoothing: the share of each label that is spread over all classes.
        schedule: "constant", or "cosine": half a cosine from the learning rate down to 0 over all epochs.

    Raises:
        ConfigError: a setting is out of range.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    optimiser: str = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    schedule: str = "constant"

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size) < 1:
            raise ConfigError(
                f"at least 1 epoch and 1 record a batch expected, {self.epochs} and {self.batch_size} came"
            )
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"a learning rate above 0 expected, {self.learning_rate} came")
        if self.optimiser not in ("adam", "sgd"):
            raise ConfigError(f"optimiser adam or sgd expected, {self.optimiser!r} came")
        if not 0 <= self.momentum < 1 or (self.momentum and self.optimiser == "adam"):
            raise ConfigError(
                f"a momentum from 0 to below 1, and 0 for adam, expected, {self.momentum} came"
            )
        if not 0 <= self.weight_decay < math.inf or not 0 <= self.label_smoothing < 1:
            raise ConfigError(
                "a weight decay of at least 0 and a label smoothing from 0 to below 1 expected, "
                f"{self.weight_decay} and {self.label_smoothing} came"
            )
        if self.schedule not in ("constant", "cosine"):
            raise ConfigError(f"schedule constant or cosine expected, {self.schedule!r} came")

    def steps(self, records: int) -> int:
        """Of an epoch over so many records."""
        return -(-records // self.batch_size)

    @property
    def copies(self) -> int:
        """How many numbers there are for each parameter: itself, its gradient, and what the optimiser keeps."""
        return 4 if self.optimiser == "adam" else 3 if self.momentum else 2

    def optimiser_of(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        """One optimiser of all the parameters, with one fused step."""
        if self.optimiser == "adam":
            return torch.optim.Adam(
                parameters, self.learning_rate, weight_decay=self.weight_decay, fused=True
            )
        return torch.optim.SGD(
            parameters, self.learning_rate, self.momentum, weight_decay=self.weight_decay, fused=True
        )  # fmt: skip

    def rate(self, epoch: int, step: int, steps: int) -> float:
        """The learning rate of a step of an epoch of so many steps."""
        if self.schedule == "constant":
            return self.learning_rate
        done = (epoch + step / steps) / self.epochs
        return self.learning_rate * (1 + math.cos(math.pi * done)) / 2


class Stack(Protocol):
    """Models that are trained and asked together."""

    @property
    def trained(self) -> Sequence[Tensor]:
        """What the optimiser moves; the first dimension of each counts the models, but in a stack of one."""

    def mode(self, *, training: bool) -> None:
        """Dropout and the like on or off."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits (models, b, classes) of inputs (models, b, *record shape), each model's own."""


@dataclass(frozen=True, slots=True)
class _Alone:
    """A stack of one: the module itself."""

    module: nn.Module

    @property
    def trained(self) -> Sequence[Tensor]:
        return [one for one in self.module.parameters() if one.requires_grad]

    def mode(self, *, training: bool) -> None:
        self.module.train(training)

    def __call__(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.module(inputs[0])
        return logits[None]


class _Linear:
    """A linear layer of each model: weights (models, inputs, outputs), biases (models, 1, outputs)."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        # Stored so that the product reads them in order.
        self.weight = _stacked([one.weight.detach().T for one in layers], layers[0].weight)
        self.bias = None
        if layers[0].bias is not None:
            self.bias = _stacked([one.bias.detach()[None] for one in layers], layers[0].bias)

    def __call__(self, inputs: Tensor) -> Tensor:
        if self.bias is None:
            return torch.bmm(inputs, self.weight)
        return torch.baddbmm(self.bias, inputs, self.weight)


def _stacked(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.stack(list(tensors)).contiguous().requires_grad_(like.requires_grad)


class _Chain:
    """Linear layers and elementwise activations, as batched products."""

    def __init__(self, modules: Sequence[nn.Sequential]) -> None:
        self._first = modules[0]
        self._layers: list[Callable[[Tensor], Tensor]] = []
        for layers in zip(*modules, strict=True):
            if isinstance(layers[0], nn.Linear):
                self._layers.append(_Linear(layers))
            elif not isinstance(layers[0], nn.Flatten):
                self._layers.append(layers[0])

    @property
    def trained(self) -> Sequence[Tensor]:
        linear = [one for one in self._layers if isinstance(one, _Linear)]
        both = [tensor for one in linear for tensor in (one.weight, one.bias)]
        return [one for one in both if one is not None and one.requires_grad]

    def mode(self, *, training: bool) -> None:
        self._first.train(training)

    def __call__(self, inputs: Tensor) -> Tensor:
        inputs = inputs.flatten(2)
        for layer in self._layers:
            inputs = layer(inputs)
        return inputs


class _Mapped:
    """Any module, under vmap."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._first = modules[0]
        self._parameters, self._buffers = stack_module_state(list(modules))
        self._call = vmap(self._one, randomness="different")

    def _one(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor
    ) -> Tensor:
        logits: Tensor = functional_call(self._first, (parameters, buffers), (inputs,))
        return logits

    @property
    def trained(self) -> Sequence[Tensor]:
        return [one for one in self._parameters.values() if one.requires_grad]

    def mode(self, *, training: bool) -> None:
        self._first.train(training)

    def __call__(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self._call(self._parameters, self._buffers, inputs)
        return logits


def _is_chain(module: nn.Module, record_shape: Sequence[int]) -> bool:
    if type(module) is not nn.Sequential or not len(module):
        return False
    layers = list(module)
    flat = type(layers[0]) is nn.Flatten and layers[0].start_dim == 1 and layers[0].end_dim == -1
    rest = layers[1:] if flat else layers
    return (
        (flat or len(record_shape) == 1)
        and all(type(one) is nn.Linear or type(one) in _ELEMENTWISE for one in rest)
        and len(list(module.parameters()))
        == sum(len(list(one.parameters())) for one in layers)  # none shared
    )


def _maps(modules: Sequence[nn.Module], inputs: Tensor) -> bool:
    """Whether vmap takes the module, forward and backward: tried on two records."""
    if any(isinstance(one, _BatchNorm) for one in modules[0].modules()):
        return False
    try:
        stack = _Mapped([deepcopy(modules[0]), deepcopy(modules[0])])
        both = inputs[:2].expand(2, *inputs[:2].shape)
        with torch.no_grad():
            stack.mode(training=False)
            stack(both)
        stack.mode(training=True)
        torch.autograd.grad(stack(both).sum(), stack.trained, allow_unused=True)
    except (RuntimeError, ValueError, NotImplementedError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        return False
    return True


def stackable(module: nn.Module, inputs: Tensor) -> bool:
    """Whether models of this architecture can be trained together.

    Args:
        module: one of them.
        inputs: at least two records, (n, *record shape).
    """
    return _is_chain(module, inputs.shape[1:]) or _maps([module], inputs)


def alone(module: nn.Module) -> Stack:
    """A trained module as a stack of one."""
    return _Alone(module)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the host or on an accelerator."""
    said = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError)
        and ("not enough memory" in said or "can't allocate memory" in said)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """Draws networks of one architecture and trains them by one recipe: one by a call, several by `together`.

    A call has the form of a training function (`tacit.attacks.access.TrainFunction`): what trains a target trains its shadow
    models too.

    Args:
        network: a module, whose architecture is drawn anew by `tacit.nn.networks.initialise` for each model; or a function
            that gives a model drawn from the generator it is handed.
        recipe: of the training.

    Dropout draws from torch's global generator, as PyTorch does; everything else follows from the generators.
    """

    network: Network = field(repr=False)
    recipe: Recipe

    def drawn(self, generator: torch.Generator) -> nn.Module:
        """A model with its initial weights.

        Raises:
            UnsupportedLayer: the network is a module with parameters that there is no scheme for: give a function.
        """
        if isinstance(self.network, nn.Module):
            return initialise(deepcopy(self.network), generator)
        return self.network(generator)

    def __call__(self, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> nn.Module:
        """One model, trained alone.

        Args:
            inputs: (n, *record shape); training runs on their device.
            labels: (n,) int64.
            generator: draws the weights, then each epoch's order.

        Raises:
            ConfigError: no records, or a label that the model has no logit for.
            Diverged: the loss is not finite.
        """
        module = self.drawn(generator).to(inputs.device)
        rows = torch.arange(len(inputs), device=inputs.device)
        self._fit(_Alone(module), inputs, labels, [rows], [generator])
        return module

    def together(
        self,
        inputs: Tensor,
        labels: Tensor,
        rows: Sequence[Tensor],
        generators: Sequence[torch.Generator],
    ) -> Stack:
        """Several models trained at once, each on records of its own.

        Args:
            inputs: the pool, (n, *record shape); training runs on their device.
            labels: (n,) int64.
            rows: the records of each model, (records,) int64 indices into the pool; all make the same number of steps.
            generators: of each model: draws its weights, then each epoch's order.

        Raises:
            ConfigError: the networks differ in shape or cannot be stacked, the numbers of steps differ, there are no
                records, or a label has no logit.
            Diverged: the loss of a model is not finite; names the model and the epoch.
        """
        modules = [self.drawn(one).to(inputs.device) for one in generators]
        shapes = [[(p.shape, p.dtype) for p in one.state_dict().values()] for one in modules]
        if any(one != shapes[0] for one in shapes):
            raise ConfigError(
                "networks of one shape expected, the function that draws them gave several: "
                "let only their weights depend on the generator"
            )
        stack: Stack
        if len(modules) == 1:
            stack = _Alone(modules[0])
        elif _is_chain(modules[0], inputs.shape[1:]):
            stack = _Chain([one for one in modules if isinstance(one, nn.Sequential)])
        elif _maps(modules, inputs):
            stack = _Mapped(modules)
        else:
            raise ConfigError(
                f"{type(modules[0]).__name__} cannot be stacked: train one model at a time"
            )
        self._fit(stack, inputs, labels, rows, generators)
        return stack

    def _fit(
        self,
        stack: Stack,
        inputs: Tensor,
        labels: Tensor,
        rows: Sequence[Tensor],
        generators: Sequence[torch.Generator],
    ) -> None:
        recipe, device = self.recipe, inputs.device
        sizes = [len(one) for one in rows]
        steps = recipe.steps(max(sizes))
        if min(sizes) < 1 or any(recipe.steps(one) != steps for one in sizes):
            raise ConfigError(
                f"records for every model, and as many steps for each, expected; {min(sizes)} to {max(sizes)} records came"
            )
        if not stack.trained:
            raise UnsupportedLayer("the model has no parameter to train")
        labels = labels.to(device)
        optimiser = recipe.optimiser_of(stack.trained)
        # Of the last batch, which some models may fill less than others.
        filled = torch.tensor([one - (steps - 1) * recipe.batch_size for one in sizes])
        weights = (torch.arange(int(filled.max())) < filled[:, None]) / filled[:, None]
        weights = weights.to(device)
        stack.mode(training=True)
        for epoch in range(recipe.epochs):
            order = pad_sequence(
                [
                    own[_order(len(own), one).to(device)]
                    for own, one in zip(rows, generators, strict=True)
                ],
                batch_first=True,
            )
            losses = torch.zeros(())
            for step, chosen in enumerate(torch.split(order, recipe.batch_size, 1)):
                for group in optimiser.param_groups:
                    group["lr"] = recipe.rate(epoch, step, steps)
                picked = chosen.reshape(-1)
                shape = *chosen.shape, *inputs.shape[1:]
                logits = stack(inputs.index_select(0, picked).reshape(shape))
                if not epoch and not step:
                    _check_labels(labels, logits.shape[-1])
                apart = nn.functional.cross_entropy(
                    logits.flatten(0, 1), labels[picked], reduction="none",
                    label_smoothing=recipe.label_smoothing,
                ).reshape(chosen.shape)  # fmt: skip
                losses = (apart * weights).sum(1) if step == steps - 1 else apart.mean(1)
                optimiser.zero_grad()
                torch.autograd.backward(losses.sum())
                optimiser.step()
            if not bool(torch.isfinite(losses).all()):
                first = int((~torch.isfinite(losses)).nonzero()[0])
                raise Diverged(
                    f"training of model {first} of {len(rows)} diverged in epoch {epoch}: loss {losses[first].item():g}; "
                    "lower the learning rate, or look for records that are not finite"
                )

    def worth_stacking(self, module: nn.Module, inputs: Tensor) -> bool:
        """Whether several such models are trained faster together than one after another.

        On a processor convolutions under vmap are slower than alone (by a quarter to a half, measured) once a batch makes
        more than `CONVOLVED` bytes in its layers; below that, and on an accelerator, starting operations is what takes time.

        Args:
            module: one of them.
            inputs: at least two records.
        """
        if not stackable(module, inputs):
            return False
        if inputs.device.type != "cpu" or not any(isinstance(one, _ConvNd) for one in module.modules()):  # fmt: skip
            return True
        return self.recipe.batch_size * sum(_layer_bytes(module, inputs)) <= CONVOLVED

    def bytes_of(self, module: nn.Module, inputs: Tensor) -> int:
        """An estimate of the memory that one more model in a stack takes while it is trained and asked.

        Weights, their gradients and the optimiser's state; and the larger of a training batch with what each layer makes of
        it, four times over (kept for the backward pass, its gradient, what an operation needs itself), and of a batch that
        is asked about with twice the largest layer.

        Args:
            module: one of them.
            inputs: at least one record of the pool.
        """
        made = _layer_bytes(module, inputs)
        weights = sum(one.numel() * one.element_size() for one in module.parameters())
        record = inputs[:1].numel() * inputs.element_size()
        return weights * (1 + self.recipe.copies) + max(
            self.recipe.batch_size * (record + 4 * sum(made)), ANSWERED * (record + 2 * max(made))
        )


def _layer_bytes(module: nn.Module, inputs: Tensor) -> list[int]:
    """What each layer makes of one record."""
    made: list[int] = []

    def count(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            made.append(output.numel() * output.element_size())

    layers = [one for one in module.modules() if not list(one.children())]
    hooks = [one.register_forward_hook(count) for one in layers]
    module.eval()
    try:
        with torch.no_grad():
            module(inputs[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return made or [0]


def _check_labels(labels: Tensor, classes: int) -> None:
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ConfigError(
            f"labels 0 to {classes - 1} expected, as many as the model's logits, {int(labels.min())} to "
            f"{int(labels.max())} came"
        )


def _order(count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(count, generator=generator, device=generator.device)


def logits_of(stack: Stack, inputs: Tensor, models: int) -> Tensor:
    """What each model of a stack answers, (models, n, classes), without gradients.

    Args:
        stack: trained.
        inputs: (n, *record shape), the same for all.
        models: how many the stack holds.
    """
    stack.mode(training=False)
    with torch.no_grad():
        return stack(inputs.expand(models, *inputs.shape))
