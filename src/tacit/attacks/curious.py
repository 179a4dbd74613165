"""What a curious server, or a curious participant, does with the updates that it sees.

It ties `tacit.attacks.gradient_leakage` to an observation. The server holds every member's update; a participant holds the
models of successive rounds and so the mean update of the others. Records that arrive
in the clear are not its business: see `tacit.attacks.exposure`.

Assumes: the numbers that an `Update` carries (its scale, local steps, batch size and number of senders), which every party
of the protocol knows; that all senders weigh the same; that no record occurs twice within one update.

Per update the adversary takes the strongest road that it has:

1. one record behind an update and a fully connected first layer with a bias: division (Phong et al.). If the update is
   noisy or clipped, or only a part of it was seen, the leading singular vector weighs all units instead of trusting one;
2. otherwise: labels from the last bias (iDLG, or its greedy form for batches), then gradient matching (Geiping et al.), with
   the local steps simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from tacit.attacks.access import Knowledge, RoleView
from tacit.attacks.gradient_leakage import exact_recovery, infer_labels, spectral_recovery
from tacit.attacks.gradient_matching import (
    GradientMatching,
    SeenUpdates,
    UpdateRecipe,
    match_gradients,
)
from tacit.core.errors import ConfigError, NotEnoughEvidence
from tacit.parties.views import Arrays, Update


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaked:
    """What came back from one update.

    Args:
        update: the update.
        images: (records, *input shape).
        labels: (records,) int64, as inferred.
        road: how: "division", "singular vector" or "gradient matching".
    """

    update: Update = field(repr=False)
    images: Tensor = field(repr=False)
    labels: Tensor
    road: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientLeakage:
    """Reconstruct training records from the updates in an observation.

    Args:
        victims: stop after updates with so many records in all.
        iterations: steps of gradient matching, where that is needed.
        restarts: starting points of gradient matching.
    """

    name: ClassVar[str] = "gradient-leakage"

    victims: int = 40
    iterations: int = 600
    restarts: int = 1

    def reconstruct(
        self,
        access: RoleView,
        knowledge: Knowledge,
        generator: torch.Generator,
        progress: Callable[[float], None] | None = None,
    ) -> list[Leaked]:
        """What the updates give away, in the order in which they were seen.

        Args:
            access: the observation.
            knowledge: ``architecture``, ``input_shape`` and ``classes`` are needed.
            generator: draws starting points.
            progress: told the share of the work that is done.

        Raises:
            ConfigError: something that is needed is not known.
            NotEnoughEvidence: the observation holds no update.
        """
        knowledge.need(self.name, ["architecture", "input_shape", "classes"])
        observation = access.observation
        updates = observation.updates or observation.aggregates
        if not updates:
            raise NotEnoughEvidence("no update was seen, nor two models whose difference is one")
        alone = [u for u in updates if _divides_out(knowledge.architecture, u)]
        if alone and alone[0] is updates[0]:
            return [_divided(update, knowledge) for update in alone[: self.victims]]
        return self._match(self._first(updates), knowledge, generator, progress)

    def _first(self, updates: Sequence[Update]) -> list[Update]:
        """The first updates that make up ``victims`` records, all of one kind."""
        kept: list[Update] = []
        for update in updates:
            if kept and (len(kept) + 1) * _records(update) > self.victims:
                break
            if not kept or _recipe_key(update) == _recipe_key(kept[0]):
                kept.append(update)
        return kept

    def _match(
        self,
        seen: list[Update],
        knowledge: Knowledge,
        generator: torch.Generator,
        progress: Callable[[float], None] | None,
    ) -> list[Leaked]:
        module, shape, first = knowledge.architecture, knowledge.input_shape, seen[0]
        if module is None or shape is None:
            raise ConfigError("architecture and input_shape are needed")
        names = [name for name, _ in module.named_parameters()]
        local = first.steps > 1 or first.scale != 1.0
        recipe = UpdateRecipe(
            input_shape=shape,
            batch_size=first.batch_size,
            local_steps=first.steps,
            local_learning_rate=-first.scale if local else None,
            records=first.batch_size * first.steps,
            participants=first.senders,
            squared_error=first.squared_error,
        )
        values = [
            torch.stack(column) for column in zip(*(_tensors(u.arrays) for u in seen), strict=True)
        ]
        weights = [
            torch.stack(column) for column in zip(*(_tensors(u.model) for u in seen), strict=True)
        ]
        masks = None
        if first.seen is not None:
            masks = [
                torch.stack(column)
                for column in zip(*(_tensors(u.seen or ()) for u in seen), strict=True)
            ]
        gradients = values[-1] / (first.scale * first.steps)
        labels = infer_labels(gradients, _records(first)) if gradients.dim() == 2 else None
        settings = GradientMatching.inverting_gradients(
            _activation(module), iterations=self.iterations, restarts=self.restarts
        )
        if len(shape) < 3:  # the columns of a table are no neighbours
            settings = replace(settings, total_variation=0.0)
        found = match_gradients(
            module,
            SeenUpdates(
                values=values, masks=masks, parameters=dict(zip(names, weights, strict=True))
            ),
            recipe,
            settings=settings,
            generator=generator,
            labels=labels,
            progress=progress,
        )
        return [
            Leaked(update=update, images=images, labels=guessed, road="gradient matching")
            for update, images, guessed in zip(seen, found.images, found.labels, strict=True)
        ]


def _records(update: Update) -> int:
    return update.batch_size * update.steps * update.senders


def _recipe_key(update: Update) -> tuple[object, ...]:
    return update.scale, update.steps, update.batch_size, update.senders, update.seen is None


def _tensors(arrays: Arrays) -> list[Tensor]:
    return [torch.from_numpy(np.array(a, np.float32)) for a in arrays]


def _divides_out(module: nn.Module | None, update: Update) -> bool:
    """Whether one record is behind the update and the first layer is fully connected, with a bias."""
    if module is None or _records(update) != 1:
        return False
    layers = [m for m in module.modules() if not list(m.children()) and list(m.parameters())]
    return isinstance(layers[0], nn.Linear) and layers[0].bias is not None


def _divided(update: Update, knowledge: Knowledge) -> Leaked:
    weight, bias, *rest = (t / update.scale for t in _tensors(update.arrays))
    whole = update.seen is None and not update.noisy and not update.clipped
    image = exact_recovery(weight, bias) if whole else spectral_recovery(weight, bias)
    last = rest[-1] if rest else bias
    image = image.nan_to_num(0.0).reshape(1, *(knowledge.input_shape or ()))
    road = "division" if whole else "singular vector"
    return Leaked(update=update, images=image, labels=infer_labels(last, 1), road=road)


def _activation(module: nn.Module) -> type[nn.Module]:
    kinds = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid)
    return next((type(layer) for layer in module.modules() if isinstance(layer, kinds)), nn.ReLU)
