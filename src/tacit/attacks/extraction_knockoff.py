"""Knockoff nets: a network of one's own, trained on what a target answers about natural records.

Neither the target's architecture nor its training data need be known. The adversary has records of its own, asks about some,
and trains a network on the answers, probabilities or labels as they come:

1. choose records: at random, or by a bandit whose arms are the classes of the adversary's own records. Each round draws from
   the arms as their preferences say, asks, trains on, and rewards an arm by how sure the target was, how much its answers
   differ from what it said so far, and how far the network is off;
2. train a network anew on all that was answered.

What is kept secret from whom: what the target does on records like these, from whoever asks; nothing here protects.
**Leaks**: the target's predictions, more of them from probabilities than from labels; not its weights.

What we changed: an arm's reward is the mean over a round's records, and the three parts are scaled by the largest seen so
far. The bandit is flat: classes are not arranged in a tree.

Source:
    T. Orekondy, B. Schiele, M. Fritz. Knockoff Nets: Stealing Functionality of Black-Box Models. CVPR 2019, sections 4.1
    (random and adaptive choice) and 4.2 (training; numbers recalled).
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tacit.attacks.access import Knowledge, Labels, Scores
from tacit.attacks.extraction import Asked, Box, check_classes
from tacit.attacks.extraction_labels import (
    LabelExtraction,
    checked_labels,
    label_extraction,
)
from tacit.core.errors import ConfigError, Diverged
from tacit.nn.networks import initialise
from tacit.nn.stacked import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Knockoff:
    """Trains a network on a target's answers about the adversary's own records.

    Needs `architecture`, which need not be the target's, `population`, whose labels only the adaptive choice uses, and
    `classes`.

    Args:
        queries: how many records are asked about; none twice.
        recipe: of the training on all answers.
        choice: ``random`` or ``adaptive``.
        rounds: of adaptive choice; after each the network is trained on for an epoch over all answers so far.
        rate: by how much a round moves the preferences.

    Raises:
        ConfigError: a setting is out of range.

    Cost: `queries` queries and one training, adaptive `rounds` epochs more.

    Source: Orekondy, Schiele, Fritz 2019, section 4.
    """

    name: ClassVar[str] = "extraction-knockoff"
    access: ClassVar[tuple[type[Scores], type[Labels]]] = (Scores, Labels)

    queries: int
    recipe: Recipe = Recipe(epochs=50, batch_size=32, learning_rate=0.002)  # noqa: RUF009
    choice: Literal["random", "adaptive"] = "random"
    rounds: int = 20
    rate: float = 2.0

    def __post_init__(self) -> None:
        if self.choice not in ("random", "adaptive"):
            raise ConfigError(f"choice random or adaptive expected, {self.choice!r} came")
        if min(self.queries, self.rounds) < 1 or not 0 < self.rate < math.inf:
            raise ConfigError(
                "at least 1 query and 1 round and a rate above 0 expected, "
                f"{self.queries}, {self.rounds} and {self.rate} came"
            )

    def extract(
        self, access: Scores | Labels, knowledge: Knowledge, generator: torch.Generator
    ) -> LabelExtraction:
        """Ask the target and train.

        Args:
            access: the target.
            knowledge: `architecture`, `population` and `classes`.
            generator: chooses records, draws weights and orders; on the CPU.

        Raises:
            ConfigError: something needed is unknown, there are fewer records than queries, or the target answers with
                another number of classes or takes another type of number.
            DataError: an answer is not a number, or a label no class.
            Diverged: the loss is not finite.
            Unfinished: the budget does not do; what was asked is kept.
        """
        knowledge.need(self.name, ("architecture", "population", "classes"))
        network, population, classes = (
            knowledge.architecture, knowledge.population, knowledge.classes,
        )  # fmt: skip
        if network is None or population is None or classes is None or classes < 2:
            raise ConfigError(f"{self.name} expects at least 2 classes, {classes} came")
        records, labels = population
        if len(records) < self.queries:
            raise ConfigError(
                f"{self.name} expects as many own records as queries, {self.queries}, and {len(records)} came: ask less"
            )
        target = _Told(access, classes, records.dtype)
        if self.choice == "random":
            chosen = torch.randperm(len(records), generator=generator)[: self.queries]
            target.about(records[chosen])
        else:
            self._by_bandit(network, target, records, labels.cpu(), generator)
        model = initialise(deepcopy(network), generator).to(records.device)
        fit_to(model, target.inputs, target.shares, self.recipe, generator)
        return label_extraction(model, target.asked)

    def _by_bandit(
        self,
        network: nn.Module,
        target: _Told,
        records: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> None:
        """Ask round by round."""
        arms = int(labels.max()) + 1
        order = torch.randperm(len(labels), generator=generator)
        left = [order[labels[order] == arm].tolist() for arm in range(arms)]
        preferences = torch.zeros(arms, dtype=torch.float64)
        largest = torch.full((3,), 1e-12, dtype=torch.float64)
        expected = 0.0
        model = initialise(deepcopy(network), generator).to(records.device)
        for turn in range(self.rounds):
            some = (self.queries - len(target.inputs)) // (self.rounds - turn)
            if not some:
                continue
            shares = torch.softmax(preferences, 0)
            pulled = _pulled(shares, left, some, generator)
            asked = records[torch.tensor([left[arm].pop() for arm in pulled])]
            known = target.shares.mean(0) if len(target.inputs) else None
            parts = _rewards(model, asked, target.about(asked), known)
            largest = torch.maximum(largest, parts.max(0).values)
            rewards = (parts / largest).mean(1)
            gain = torch.zeros_like(preferences).index_add_(
                0, torch.tensor(pulled), rewards - (expected if turn else rewards.mean())
            )
            preferences += self.rate * (gain - gain.sum() * shares) / some
            expected += (float(rewards.mean()) - expected) / (turn + 1)
            fit_to(model, target.inputs, target.shares, replace(self.recipe, epochs=1), generator)


class _Told:
    """What the target said, as distributions over the classes."""

    def __init__(self, access: Scores | Labels, classes: int, dtype: torch.dtype) -> None:
        ask = access.labels if isinstance(access, Labels) else access.scores
        # Natural records lie where they lie: of the box only its type counts.
        self.asked = Asked(ask, Box(dtype=dtype))
        self._classes = classes

    @property
    def inputs(self) -> Tensor:
        """All records so far."""
        return self.asked.inputs

    @property
    def shares(self) -> Tensor:
        """(n, classes) float64 for all records so far."""
        return self._shares(self.asked.answers)

    def about(self, records: Tensor) -> Tensor:
        """(n, classes) float64 for these records."""
        return self._shares(self.asked.about(records))

    def _shares(self, answers: Tensor) -> Tensor:
        if answers.dim() == 1:
            checked_labels(answers, self._classes)
            return nn.functional.one_hot(answers, self._classes).double()
        check_classes(answers, self._classes)
        # A policy that rounds or cuts leaves rows that do not sum to one, or to nothing.
        sums = answers.sum(1, keepdim=True)
        return torch.where(sums > 0, answers / sums.clamp_min(1e-30), 1 / self._classes)


def _pulled(
    shares: Tensor, left: list[list[int]], some: int, generator: torch.Generator
) -> list[int]:
    """So many arms, each drawn by its share among those that have records left."""
    rooms = [len(rows) for rows in left]
    found: list[int] = []
    while len(found) < some:
        open_ = torch.tensor([room > 0 for room in rooms])
        # An arm whose share has vanished still counts where no other has a record left.
        weights = torch.where(open_, shares.clamp_min(1e-9), 0.0)
        drawn = torch.multinomial(weights, some - len(found), replacement=True, generator=generator)
        for arm in drawn.tolist():
            if rooms[arm]:
                rooms[arm] -= 1
                found.append(arm)
    return found


def _rewards(model: nn.Module, records: Tensor, shares: Tensor, known: Tensor | None) -> Tensor:
    """Of each record (n, 3): the target's margin, what is new in its answer, how far the model is off; on the CPU."""
    top = shares.topk(2, 1).values
    new = (shares - (known if known is not None else shares.mean(0))).clamp_min(0).sum(1)
    with torch.no_grad():
        logits = model.eval()(records.to(next(model.parameters()).dtype)).double()
    off = -(shares * torch.log_softmax(logits, 1)).sum(1)
    return torch.stack([top[:, 0] - top[:, 1], new, off], 1).cpu()


def fit_to(
    model: nn.Module, inputs: Tensor, shares: Tensor, recipe: Recipe, generator: torch.Generator
) -> None:
    """Train a model, in place, to answer with given distributions.

    Args:
        model: gives logits (n, classes).
        inputs: (n, *record shape).
        shares: (n, classes), rows sum to one.
        recipe: of the training.
        generator: draws each epoch's order; on the CPU.

    Raises:
        Diverged: the loss is not finite.
    """
    parameters = [weights for weights in model.parameters() if weights.requires_grad]
    optimiser = recipe.optimiser_of(parameters)
    inputs, shares = inputs.to(parameters[0].dtype), shares.to(parameters[0].dtype)
    steps = recipe.steps(len(inputs))
    model.train()
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
        for step, rows in enumerate(torch.split(order, recipe.batch_size)):
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate(epoch, step, steps)
            loss = nn.functional.cross_entropy(
                model(inputs[rows]), shares[rows], label_smoothing=recipe.label_smoothing
            )
            if not bool(loss.isfinite()):
                raise Diverged(
                    "a finite loss expected while a knockoff trains: lower the learning rate"
                )
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
    model.eval()
