"""Model inversion through an endpoint: MI-Face where slopes are found by asking for probabilities.

The adversary holds no more than `Scores`: it sends records near the one it stands at, and takes the slope from how the
label's probability changes. `NumericGradients` asks about every value of a record in turn, as the paper does; `SPSA` asks
about a few random directions, which is far fewer queries a step and more steps. What else holds is said in
`tacit.attacks.model_inversion`.

A policy that rounds probabilities hides every change below its last digit: slopes are then zero, and the descent stalls.

Source:
    [1] M. Fredrikson, S. Jha, T. Ristenpart. Model Inversion Attacks that Exploit Confidence Information and Basic
    Countermeasures. CCS 2015, section 5.2 (numeric gradients) and 6 (rounding), recalled. J. C. Spall. Multivariate
    Stochastic Approximation Using a Simultaneous Perturbation Gradient Approximation. IEEE Trans. Automatic Control 1992.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tacit.attacks.access import Knowledge, Scores
from tacit.attacks.model_inversion import (
    AuxTerm,
    Cost,
    Evaluation,
    Inversion,
    MIFace,
    Process,
    Start,
    auxiliary_cost,
    descend,
    inversion,
    starting_points,
)
from tacit.core.errors import ConfigError

#: (records (k, *input shape), which rows they are (k,)) -> their costs (k,).
Costs = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How many records are sent at once, the box's upper end, and where directions come from."""

    at_once: int
    high: float
    generator: torch.Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class NumericGradients:
    """Forward differences: each value of a record moved by a little, alone. d queries a slope, for d values.

    Args:
        width: how far a value is moved; backwards where the box would be left.

    Raises:
        ConfigError: a width that is not above 0.
    """

    width: float = 1e-2

    def __post_init__(self) -> None:
        _check_width(self.width)

    def slopes(
        self,
        costs: Costs,
        points: Tensor,
        rows: Tensor,
        here: Tensor,
        settings: Asking,
    ) -> Tensor:
        """Slopes (k, *input shape) float64 at ``points``, whose costs are ``here`` (k,)."""
        flat = points.flatten(1)
        values, high = flat.shape[1], settings.high
        found = torch.empty(flat.shape, dtype=here.dtype, device=here.device).view(-1)
        for which in _split(flat.numel(), settings.at_once, points):
            row, value = which // values, which % values
            probes = flat[row]
            old = probes[torch.arange(len(which)), value]
            new = torch.where(old + self.width > high, old - self.width, old + self.width)
            probes[torch.arange(len(which)), value] = new
            change = costs(probes.view(-1, *points.shape[1:]), rows[row]) - here[row]
            found[which] = change / (new - old).to(change)
        return found.view(points.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class SPSA:
    """Simultaneous perturbation: all values of a record moved at once, each by plus or minus the same, and back.

    The slope that it gives is right on average over directions. 2 ``directions`` queries a slope, whatever the size of a
    record; records that are asked about may leave the box by ``width``.

    Args:
        width: how far each value is moved.
        directions: random directions a slope is averaged over.

    Raises:
        ConfigError: a width that is not above 0, or fewer than one direction.

    Source: Spall 1992, equation 2.2.
    """

    width: float = 1e-2
    directions: int = 8

    def __post_init__(self) -> None:
        _check_width(self.width)
        if self.directions < 1:
            raise ConfigError(f"at least 1 direction expected, {self.directions} came")

    def slopes(
        self,
        costs: Costs,
        points: Tensor,
        rows: Tensor,
        here: Tensor,
        settings: Asking,
    ) -> Tensor:
        """Slopes (k, *input shape) float64 at ``points``; their costs are not needed."""
        found = torch.zeros(points.shape, dtype=here.dtype, device=here.device)
        each = max(1, settings.at_once // 2)
        for which in _split(len(points), each, points):
            for _ in range(self.directions):
                at = points[which]
                coins = torch.rand(
                    at.shape, generator=settings.generator, device=settings.generator.device
                )
                signs = torch.where(coins < 0.5, -1.0, 1.0).to(at)
                probes = torch.cat([at + self.width * signs, at - self.width * signs])
                up, down = costs(probes, rows[which].repeat(2)).chunk(2)
                rise = (up - down) / (2 * self.width * self.directions)
                found[which] += rise.view(-1, *[1] * (at.dim() - 1)) * signs
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryInversion:
    """MI-Face with slopes from queries.

    Args:
        descent: steps, stop rules, cost and box.
        slopes: how a slope is found.
        at_once: the most records sent in one call; it changes what is held in memory, and for `SPSA` which directions are
            drawn for which row.

    Raises:
        ConfigError: `at_once` is below 1.

    Cost: for each row steps + 1 times 1 + d queries by `NumericGradients`, 1 + 2 directions by `SPSA`.
    """

    name: ClassVar[str] = "model-inversion-queries"
    access: ClassVar[type[Scores]] = Scores

    descent: MIFace = field(default_factory=MIFace)
    slopes: NumericGradients | SPSA = field(default_factory=NumericGradients)
    at_once: int = 1024

    def __post_init__(self) -> None:
        if self.at_once < 1:
            raise ConfigError(f"at least 1 record at once expected, {self.at_once} came")

    def invert(
        self,
        access: Scores,
        knowledge: Knowledge,
        labels: Tensor,
        *,
        generator: torch.Generator,
        start: Start | None = None,
        auxiliary: AuxTerm | None = None,
        process: Process | None = None,
    ) -> Inversion:
        """Find a record of each label that the model is sure of. Rows still moving when the budget ends stop there.

        Args:
            access: the target.
            knowledge: `input_shape` and `classes` are used.
            labels: (n,) int64, the classes to invert.
            generator: draws the directions of `SPSA`; `NumericGradients` draws nothing.
            start: where to start (it is put into the box), and the type and device of what is sent; None for x_0 = 0 in
                float32 on the CPU.
            auxiliary: what is added to the cost (AuxTerm); it need not be differentiable.
            process: what is done to the records after each step, before the box; None for nothing.

        Raises:
            ConfigError: shapes, labels or classes do not belong together.
            BudgetExhausted: the budget does not even pay for the first slopes.
        """
        like = torch.zeros(0) if start is None else start.images
        starts, wanted = starting_points(self.name, knowledge, labels, start, like)
        box, cost = self.descent.box, self.descent.cost
        high = math.inf if box is None else box[1]
        asking = Asking(at_once=self.at_once, high=high, generator=generator)

        def evaluate(points: Tensor, rows: Tensor) -> Evaluation:
            def costs(records: Tensor, which: Tensor) -> Tensor:
                return _costs(access, knowledge, cost, auxiliary, records, wanted[which])[0]

            parts = [
                _costs(access, knowledge, cost, auxiliary, points[part], wanted[rows[part]])
                for part in _split(len(points), self.at_once, points)
            ]
            here, chosen = (torch.cat(values) for values in zip(*parts, strict=True))
            slopes = self.slopes.slopes(costs, points, rows, here, asking)
            return Evaluation(here, chosen, slopes.to(points))

        found = descend(evaluate, starts.flatten(0, 1), self.descent, process)
        return inversion(found, found.points, labels, start)


def _costs(
    access: Scores,
    knowledge: Knowledge,
    cost: Cost,
    auxiliary: AuxTerm | None,
    records: Tensor,
    labels: Tensor,
) -> tuple[Tensor, Tensor]:
    """Costs and confidences (k,) float64 of records, for one query each."""
    answers = access.scores(records)
    if answers.shape[1] != knowledge.classes:
        raise ConfigError(
            f"{knowledge.classes} probabilities expected of the target, {answers.shape[1]} came: "
            "set classes in Knowledge to what it has"
        )
    chosen = answers.gather(1, labels[:, None]).squeeze(1)
    costs = cost.of_probabilities(chosen)
    if auxiliary is not None:
        costs = costs + auxiliary_cost(auxiliary, records, labels)
    return costs, chosen


def _split(count: int, at_once: int, like: Tensor) -> tuple[Tensor, ...]:
    return torch.split(torch.arange(count, device=like.device), at_once)


def _check_width(width: float) -> None:
    if not 0 < width < math.inf:
        raise ConfigError(f"a width above 0 expected, {width} came")
