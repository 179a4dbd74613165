"""Membership inference from predicted labels alone: how far can a record be perturbed and keep its right label?

A model is sure in a wider neighbourhood of the records it was trained on. The adversary asks for the labels of a record and
of perturbed copies, and scores the record by the share that is right: a cheap estimate of its distance to the decision
boundary, which label access cannot hide. Rounding, top-1 answers and confidence masking do not help against it.

What is kept secret from whom: nothing here protects. What leaks is the labels of the queries, and membership through them.

What we changed: the score is the share of right labels for every kind of perturbation; for augmentations the paper trains
a shadow model and a network on which of them are right instead. The boundary-walking attack (HopSkipJump) is not here.

Source:
    C. Choquette-Choo, F. Tramèr, N. Carlini, N. Papernot. Label-Only Membership Inference Attacks. ICML 2021, sections 3.2
    (augmentation) and 3.4 (noise; Bernoulli noise for binary features in 4.3, recalled).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tacit.attacks.access import Knowledge, Labels
from tacit.core.errors import ConfigError

Perturbation = Literal["noise", "flips", "shifts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRobustness:
    """Scores a record by the share of its perturbed copies whose label is right.

    Args:
        perturbation: ``noise``: Gaussian, added to every feature. ``flips``: a feature v of a record with values in [0, 1]
            becomes 1 - v. ``shifts``: images (..., H, W) moved by whole pixels, the freed edge zero.
        strength: the noise's deviation in units of the input, above 0; the probability of a flip, in (0, 1); how many
            pixels horizontally and vertically together, a whole number from 1. The paper chooses it on a shadow model.
        copies: perturbed copies of a record; of ``shifts`` there are 4 `strength` and this is not used.

    Raises:
        ConfigError: a setting is out of range.

    Cost: 1 + `copies` (1 + 4 `strength`) queries a record; a budget too small for all is refused before any is asked.

    Source: Choquette-Choo et al. 2021, sections 3.2 and 3.4.
    """

    name: ClassVar[str] = "membership-label-robustness"
    access: ClassVar[type[Labels]] = Labels
    threshold: ClassVar[float | None] = None

    perturbation: Perturbation = "noise"
    strength: float = 0.1
    copies: int = 32

    def __post_init__(self) -> None:
        fits = {
            "noise": 0 < self.strength < math.inf,
            "flips": 0 < self.strength < 1,
            "shifts": self.strength >= 1 and float(self.strength).is_integer(),
        }
        if self.perturbation not in fits:
            raise ConfigError(
                f"perturbation noise, flips or shifts expected, {self.perturbation!r} came"
            )
        if not fits[self.perturbation] or self.copies < 1:
            raise ConfigError(
                "noise above 0, flips in (0, 1) or whole shifts from 1, and at least 1 copy expected, "
                f"{self.perturbation} {self.strength} and {self.copies} copies came"
            )

    @property
    def queries(self) -> int:
        """How many a record costs."""
        return 1 + (4 * int(self.strength) if self.perturbation == "shifts" else self.copies)

    def score(
        self,
        access: Labels,
        knowledge: Knowledge,
        inputs: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Score records by the share of right labels.

        Args:
            access: the target; `queries` a record.
            knowledge: nothing of it is used.
            inputs: (n, *input shape).
            labels: (n,) int64, the true classes.
            generator: draws noise and flips, on its device.

        Returns:
            (n,) float64 in [0, 1], multiples of 1 / `queries`; the record itself counts as one of the copies.

        Raises:
            ConfigError: labels and inputs do not match, or shifts are asked of what are no images that large.
            BudgetExhausted: the query budget does not suffice for all records; nothing has been asked then.
        """
        if labels.shape != (len(inputs),):
            raise ConfigError(
                f"a label for each of {len(inputs)} records expected, {tuple(labels.shape)} came"
            )
        if self.perturbation == "shifts" and (
            inputs.dim() < 3 or min(inputs.shape[-2:]) <= self.strength
        ):
            raise ConfigError(
                f"images (n, ..., H, W) larger than {self.strength:g} pixels expected, {tuple(inputs.shape)} came: "
                "reshape them, shift by less, or use noise"
            )
        # Of a copy of the counter: it refuses before anything is asked, and `access` counts as it goes.
        replace(access.counter).charge(self.queries * len(inputs))
        right = torch.zeros(len(inputs), dtype=torch.float64, device=inputs.device)
        truth = labels.to(inputs.device)
        for copy in range(self.queries):
            asked = inputs if copy == 0 else self._perturbed(inputs, copy - 1, generator)
            right += access.labels(asked).to(inputs.device) == truth
        return right / self.queries

    def _perturbed(self, inputs: Tensor, copy: int, generator: torch.Generator) -> Tensor:
        if self.perturbation == "shifts":
            return _shifted(inputs, *_moves(int(self.strength))[copy])
        if self.perturbation == "noise":
            drawn = torch.randn(inputs.shape, generator=generator, device=generator.device)
            return inputs + self.strength * drawn.to(inputs)
        drawn = torch.rand(inputs.shape, generator=generator, device=generator.device)
        return torch.where((drawn < self.strength).to(inputs.device), 1 - inputs, inputs)


def _moves(distance: int) -> list[tuple[int, int]]:
    """All (down, right) with |down| + |right| = ``distance``; 4 ``distance`` of them."""
    found = []
    for down in range(-distance, distance + 1):
        across = distance - abs(down)
        found += [(down, across)] if across == 0 else [(down, across), (down, -across)]
    return found


def _shifted(images: Tensor, down: int, right: int) -> Tensor:
    height, width = images.shape[-2:]
    moved = torch.zeros_like(images)
    moved[..., max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = (
        images[..., max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
    )
    return moved
