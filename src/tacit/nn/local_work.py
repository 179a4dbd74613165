"""What a participant does with its data in a round, apart from how the update is protected.

Every collaborative member is built around one `LocalWork`. Honest training is one; an insider's attack is another, and fits
inside every scheme with nothing else changed; a protection of the update itself wraps one.

Who takes an honest one's place is given that one (`Instead`): it knows so the records, and all that was agreed on an update.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from tacit.core.errors import ConfigError, Diverged, UnsupportedLayer
from tacit.core.wire import Array
from tacit.nn.updates import LocalUpdate, LocalWork


class Share(Enum):
    """What an update is."""

    GRADIENT = "the gradient of the mean loss over one mini-batch"
    CHANGE = "the change of the model over some local steps"


def parameters_of(module: nn.Module) -> list[Array]:
    """A copy of a module's parameters as float32 arrays, in the module's order.

    Raises:
        UnsupportedLayer: the module has no parameters, or buffers (running statistics), which updates would not carry.
    """
    if not list(module.parameters()):
        raise UnsupportedLayer("the model has no parameters: there is nothing to train")
    if buffers := [name for name, _ in module.named_buffers()]:
        raise UnsupportedLayer(
            f"the model keeps {buffers[0]!r}, a buffer that updates do not carry: use GroupNorm or LayerNorm "
            "in place of batch normalisation"
        )
    return [p.detach().cpu().numpy().astype(np.float32, copy=True) for p in module.parameters()]


def load_parameters(module: nn.Module, arrays: Sequence[Array]) -> None:
    """Overwrite a module's parameters.

    Raises:
        ConfigError: number or shapes differ.
    """
    own = list(module.parameters())
    if [tuple(p.shape) for p in own] != [a.shape for a in arrays]:
        raise ConfigError(
            f"a model of shapes {[tuple(p.shape) for p in own]} cannot take arrays of shapes {[a.shape for a in arrays]}"
        )
    with torch.no_grad():
        for parameter, array in zip(own, arrays, strict=True):
            parameter.copy_(torch.from_numpy(np.array(array, np.float32)))


@dataclass(slots=True, kw_only=True)
class HonestTraining:
    """Mini-batch SGD on a participant's own records.

    The records are gone through in a fresh order every epoch; the order follows from ``seed`` and the epoch alone, so a
    member restored after a kill goes on where it stopped.

    Args:
        module: the architecture; its weights are overwritten at each update.
        inputs: records, (n, *input shape).
        labels: classes, (n,).
        share: what the update is.
        batch_size: records a step.
        local_steps: steps an update; 1 for `Share.GRADIENT`.
        learning_rate: of the local steps; unused for `Share.GRADIENT`.
        decay: the learning rate is multiplied by this after every update.
        label_smoothing: the share of each label that is spread over all classes.
        seed: of the order.
    """

    module: nn.Module = field(repr=False)
    inputs: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    share: Share
    batch_size: int
    local_steps: int = 1
    learning_rate: float = 0.0
    decay: float = 1.0
    label_smoothing: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= len(self.inputs):
            raise ConfigError(
                f"a batch of {self.batch_size} cannot be drawn from {len(self.inputs)} records: "
                "use a smaller batch or fewer owners"
            )
        if self.local_steps < 1 or (self.share is Share.GRADIENT and self.local_steps != 1):
            raise ConfigError(
                f"local_steps must be 1 for gradients and >= 1 for changes, got {self.local_steps}"
            )

    def records(self, round: int) -> Tensor:
        """Which of the own records are behind the update of a round, in the order of their use, (steps * batch,)."""
        per_epoch = len(self.inputs) // self.batch_size
        steps = range(round * self.local_steps, (round + 1) * self.local_steps)
        chosen = []
        for step in steps:
            epoch, place = divmod(step, per_epoch)
            # torch uses 32 bits of a seed, so they must depend on all of both numbers
            mixed = hashlib.sha256(f"{self.seed}/{epoch}".encode()).digest()[:4]
            generator = torch.Generator().manual_seed(int.from_bytes(mixed, "little"))
            order = torch.randperm(len(self.inputs), generator=generator)
            chosen.append(order[place * self.batch_size : (place + 1) * self.batch_size])
        return torch.cat(chosen)

    def update(self, model: Sequence[Array], round: int) -> LocalUpdate:
        """The gradient, or the change of the model, on this round's records.

        Raises:
            Diverged: a loss or gradient is not finite; names the round and the epoch.
        """
        return self.update_beside(model, round, None)

    def update_beside(
        self, model: Sequence[Array], round: int, more: Iterator[tuple[Tensor, Tensor]] | None
    ) -> LocalUpdate:
        """As `update`, with ``more`` records and labels put beside the own ones at each step; they are not counted.

        Raises:
            Diverged: a loss or gradient is not finite; names the round and the epoch.
        """
        load_parameters(self.module, model)
        parameters = list(self.module.parameters())
        self.module.train()
        gradients: Sequence[Tensor] = ()
        rate = self.learning_rate * self.decay**round
        for batch in torch.split(self.records(round), self.batch_size):
            inputs, labels = self.inputs[batch], self.labels[batch]
            if more is not None:
                others, named = next(more)
                inputs, labels = torch.cat([inputs, others]), torch.cat([labels, named])
            loss = nn.functional.cross_entropy(
                self.module(inputs), labels, label_smoothing=self.label_smoothing
            )
            gradients = torch.autograd.grad(loss, parameters)
            self._check(loss, gradients, round)
            if self.share is Share.CHANGE:
                with torch.no_grad():
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        parameter.sub_(gradient, alpha=rate)
        if self.share is Share.GRADIENT:
            arrays = tuple(g.numpy() for g in gradients)
        else:
            arrays = tuple(p.detach().numpy() - m for p, m in zip(parameters, model, strict=True))
        return LocalUpdate(arrays=arrays, examples=self.batch_size * self.local_steps)

    def _check(self, loss: Tensor, gradients: Sequence[Tensor], round: int) -> None:
        if bool(torch.isfinite(loss)) and all(bool(torch.isfinite(g).all()) for g in gradients):
            return
        epoch = round * self.local_steps * self.batch_size // len(self.inputs)
        raise Diverged(
            f"training diverged in round {round} (epoch {epoch} of the local records): loss {loss.item():g}; "
            "lower the learning rate, or look for records that are not finite"
        )


Instead = Callable[[HonestTraining], LocalWork]
"""Makes what takes the place of an owner's honest training."""


@runtime_checkable
class Stateful(Protocol):
    """Work that does not follow from its seed and the round alone, and so is kept with the member's own state."""

    def export(self) -> bytes:
        """All state that changes, for `restore`."""
        ...

    def restore(self, state: bytes) -> None:
        """Continue from an exported state."""
        ...


def fit(  # noqa: PLR0913 - the settings of SGD, each by name
    module: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    momentum: float = 0.0,
    clip: float | None = None,
    generator: torch.Generator,
    progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """Mini-batch SGD on one machine, in place; the last, smaller batch of an epoch is used too.

    Args:
        module: the model; moved from where it stands.
        inputs: records, (n, *input shape).
        labels: classes, (n,).
        epochs: passes over the records.
        batch_size: records a step.
        learning_rate: of each step.
        momentum: of plain SGD with momentum.
        clip: the most that a step's gradient may measure, L2; a longer one is shortened.
        generator: of the order.
        progress: told after each epoch.

    Raises:
        Diverged: the loss is not finite; names the epoch.
    """
    optimiser = torch.optim.SGD(module.parameters(), lr=learning_rate, momentum=momentum)
    module.train()
    for epoch in range(epochs):
        loss = torch.zeros(())
        for batch in torch.split(torch.randperm(len(inputs), generator=generator), batch_size):
            loss = nn.functional.cross_entropy(module(inputs[batch]), labels[batch])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if clip is not None:
                nn.utils.clip_grad_norm_(module.parameters(), clip)
            optimiser.step()
        if not bool(torch.isfinite(loss)):
            raise Diverged(
                f"training diverged in epoch {epoch}: loss {loss.item():g}; lower the learning rate, or look for "
                "records that are not finite"
            )
        if progress is not None:
            progress(epoch + 1, epochs)
    return module


def accuracy(module: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """The share of records whose highest score is at their label."""
    module.eval()
    with torch.no_grad():
        hits = [
            int((module(x).argmax(1) == y).sum())
            for x, y in zip(torch.split(inputs, 1024), torch.split(labels, 1024), strict=True)
        ]
    return sum(hits) / len(inputs)
