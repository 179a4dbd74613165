"""Model inversion: an image of what a model takes a class to be, found by descent on the model's own confidence.

MI-Face starts from an image that says nothing, and moves it until the model is sure that it shows the class. Where a class
is one person, the image may show that person's face.

Holds:
    the model (`WhiteBox`: this file) or its class probabilities (`Scores`: `tacit.attacks.model_inversion_queries`), the
    shape of a record and the number of classes; a starting image and an auxiliary cost where the adversary has them.
Recovers:
    for each class an image. It is like the records of the class as far as the model's confidence follows their likeness: a
    model that is sure of noise gives noise. Whether it shows anything is for the audit to say, by judges of its own.
Protects:
    nothing here does. Rounded probabilities (`tacit.nn.policies`) hide the slope from numeric gradients.

Steps, of algorithm 1: x_0 = 0; x_i = Process(x_{i-1} - lambda grad c(x_{i-1})) with c(x) = 1 - f_label(x) + AuxTerm(x);
stop after alpha steps, or when c(x_i) >= max(c(x_{i-1}), ..., c(x_{i-beta})), or when c(x_i) <= 1 - gamma; the x_i of least
cost is the answer.

What we changed, and how we read it: all classes and starting points move as one batch, and a row that has stopped is taken
out of it; costs before x_0 count as infinite, so that the second rule cannot end a row before beta steps; the third is
printed with gamma itself and read as confidence gamma, for at 0.99 the printed rule would end where the confidence is 0.01
(gamma = 0.01 is that rule); x_0 is among the candidates for the answer; values are kept in a box, x_0 among them, which the
paper does not print; -log p, under its own name, has a slope where 1 - p is flat; a row whose cost is not finite stops.

Source:
    [1] M. Fredrikson, S. Jha, T. Ristenpart. Model Inversion Attacks that Exploit Confidence Information and Basic
    Countermeasures. CCS 2015, section 5, algorithms 1 and 2; alpha, beta, gamma and lambda of section 5.2 (recalled).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from tacit.attacks.access import Knowledge, WhiteBox
from tacit.core.errors import BudgetExhausted, ConfigError

#: (records (k, *input shape), labels (k,)) -> (k,) what is added to the cost; differentiable where slopes are not numeric.
AuxTerm = Callable[[Tensor, Tensor], Tensor]
#: (k, *input shape) -> the same shape: what is done to the records after a step. Rows must not look at each other.
Process = Callable[[Tensor], Tensor]


class Cost(Enum):
    """What the descent lowers, of the probability p of the label."""

    ONE_MINUS_P = "1 - p"
    MINUS_LOG_P = "-log p"

    def of_logits(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Costs and probabilities of the labels, (k,) each, differentiable, of (k, classes) logits."""
        if self is Cost.ONE_MINUS_P:
            chosen = logits.softmax(1).gather(1, labels[:, None]).squeeze(1)
            return 1 - chosen, chosen
        chosen = logits.log_softmax(1).gather(1, labels[:, None]).squeeze(1)
        return -chosen, chosen.exp()

    def of_probabilities(self, chosen: Tensor) -> Tensor:
        """Costs of the labels' probabilities, same shape; zero counts as the smallest normal number."""
        if self is Cost.ONE_MINUS_P:
            return 1 - chosen
        return -chosen.clamp_min(torch.finfo(chosen.dtype).tiny).log()

    def at(self, confidence: float) -> float:
        """The cost of a record of this confidence."""
        return 1 - confidence if self is Cost.ONE_MINUS_P else -math.log(confidence)


class Stop(Enum):
    """Why a row stopped.

    Its cost is at most that of the confidence asked for; its cost rose to the most of the last `patience` ones, or did
    not fall in that time; it had all its steps; its cost is not finite; the query budget is spent.
    """

    CONFIDENT = "confident"
    STALLED = "stalled"
    EXHAUSTED = "exhausted"
    DIVERGED = "diverged"
    BUDGET = "budget"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where the descent starts, and what it is called in a report: auxiliary knowledge, unless it is zero.

    Args:
        name: "mean face", for instance.
        images: (restarts, *input shape): each label starts from each of them; or (labels, restarts, *input shape).
    """

    name: str
    images: Tensor = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inversion:
    """What the descent found for n labels; of several starting points the one that ended at the least cost.

    Args:
        images: (n, *input shape).
        labels: (n,) int64.
        costs: (n,) float64, of these images; infinite if no finite cost was met.
        confidences: (n,) float64, the target's probability of the label for these images.
        steps: (n,) int64, taken from that starting point; the image may be an earlier one.
        stopped: n reasons.
        restart_costs: (n, restarts) float64.
        evaluations: records whose cost and slope were formed, over all rows: steps + 1 a row.
        start: the name of the starting point.
    """

    images: Tensor = field(repr=False)
    labels: Tensor
    costs: Tensor
    confidences: Tensor
    steps: Tensor
    stopped: tuple[Stop, ...]
    restart_costs: Tensor = field(repr=False)
    evaluations: int
    start: str


class Evaluation(NamedTuple):
    """Costs (k,), confidences (k,) and slopes (k, *shape) of k points."""

    costs: Tensor
    confidences: Tensor
    slopes: Tensor


#: (points (k, *shape), which rows they are (k,) int64) -> their costs and slopes.
Evaluate = Callable[[Tensor, Tensor], Evaluation]


@dataclass(frozen=True, slots=True, kw_only=True)
class MIFace:
    """MI-Face: descent on the target's confidence, for all labels and starting points at once.

    Args:
        iterations: the most steps a row (alpha).
        patience: a row stops when its cost is no lower than the highest of so many before it (beta).
        confidence: a row stops at this confidence or above it, in (0, 1] (gamma). With an AuxTerm its cost counts too.
        step_size: what the slope is multiplied by (lambda).
        cost: 1 - p as printed, or -log p.
        box: lowest and highest value of a record, of the starting point too; None for no bounds, as printed.
        process_every: Process follows every so many steps; 1 as printed.

    Raises:
        ConfigError: a setting is out of range.

    Cost: steps + 1 evaluations of value and slope a row.

    Source: [1] algorithm 1; defaults as in section 5.2 (recalled).
    """

    name: ClassVar[str] = "model-inversion"
    access: ClassVar[type[WhiteBox]] = WhiteBox

    iterations: int = 5000
    patience: int = 100
    confidence: float = 0.99
    step_size: float = 0.1
    cost: Cost = Cost.ONE_MINUS_P
    box: tuple[float, float] | None = (0.0, 1.0)
    process_every: int = 1

    def __post_init__(self) -> None:
        if min(self.iterations, self.patience, self.process_every) < 1:
            raise ConfigError(
                "iterations, patience and process_every of at least 1 expected, "
                f"{self.iterations}, {self.patience} and {self.process_every} came"
            )
        if not 0 < self.confidence <= 1:
            raise ConfigError(f"a confidence in (0, 1] expected, {self.confidence} came")
        if not 0 < self.step_size < math.inf:
            raise ConfigError(f"a step size above 0 expected, {self.step_size} came")
        if self.box is not None and not self.box[0] < self.box[1]:
            raise ConfigError(f"a box (low, high) with low < high expected, {self.box} came")

    def invert(
        self,
        access: WhiteBox,
        knowledge: Knowledge,
        labels: Tensor,
        *,
        start: Start | None = None,
        auxiliary: AuxTerm | None = None,
        process: Process | None = None,
    ) -> Inversion:
        """Find a record of each label that the model is sure of.

        Args:
            access: the model; it is put in evaluation mode, and not changed otherwise.
            knowledge: `input_shape` and `classes` are used.
            labels: (n,) int64, the classes to invert.
            start: where to start, put into the box; None for x_0 = 0.
            auxiliary: what is added to the cost (AuxTerm).
            process: what is done to the records after each step, before the box; None for nothing.

        Raises:
            ConfigError: shapes, labels or classes do not belong together.
        """
        starts, wanted = starting_points(
            self.name, knowledge, labels, start, values_like(access.model)
        )
        forward = Forward(access.model, knowledge, self.cost, auxiliary, wanted)
        found = descend(forward, starts.flatten(0, 1), self, process)
        return inversion(found, found.points, labels, start)


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """Where n rows came to: points of least cost (n, *shape), their costs and confidences (n,), steps (n,), reasons."""

    points: Tensor
    costs: Tensor
    confidences: Tensor
    steps: Tensor
    stopped: list[Stop]


def descend(
    evaluate: Evaluate, start: Tensor, settings: MIFace, process: Process | None
) -> Descent:
    """Algorithm 1, for n rows in step; ``evaluate`` is asked about rows that still move, and no others.

    Args:
        evaluate: gives costs and slopes. If it raises `BudgetExhausted` after the start, what was found till then is given.
        start: (n, *shape); it is put into the box first.
        settings: step, stop rules and box.
        process: what is done to points after a step.

    Raises:
        ConfigError: ``process`` changes the shape.
        BudgetExhausted: the budget does not even pay for the starting points.
    """
    points, rows = _boxed(start.clone(), settings), torch.arange(len(start), device=start.device)
    now = evaluate(points, rows)
    best, found = points.clone(), now.confidences.clone()
    costs = torch.where(now.costs.isfinite(), now.costs, math.inf)
    steps, stopped = torch.zeros_like(rows), [Stop.EXHAUSTED] * len(start)
    window = min(settings.patience, settings.iterations + 1)
    recent = torch.full((len(start), window), math.inf, dtype=costs.dtype, device=costs.device)
    recent[:, 0] = costs
    for step in range(1, settings.iterations + 1):
        points = _moved(
            points, now.slopes, settings, process if step % settings.process_every == 0 else None
        )
        try:
            now = evaluate(points, rows)
        except BudgetExhausted:
            for row in rows.tolist():
                stopped[row] = Stop.BUDGET
            break
        steps[rows] = step
        better = now.costs < costs[rows]
        best[rows[better]] = points[better]
        costs[rows[better]], found[rows[better]] = now.costs[better], now.confidences[better]
        ends = {
            Stop.DIVERGED: ~now.costs.isfinite(),
            Stop.STALLED: now.costs >= recent.amax(1),
            Stop.CONFIDENT: now.costs <= settings.cost.at(settings.confidence),
        }
        moves = torch.ones_like(rows, dtype=torch.bool)
        for reason, here in ends.items():
            for row in rows[here & moves].tolist():
                stopped[row] = reason
            moves &= ~here
        recent[:, step % window] = now.costs
        if not bool(moves.all()):
            rows, points, recent = rows[moves], points[moves], recent[moves]
            now = Evaluation(*(part[moves] for part in now))
            if not len(rows):
                break
    return Descent(points=best, costs=costs, confidences=found, steps=steps, stopped=stopped)


def starting_points(
    attack: str, knowledge: Knowledge, labels: Tensor, start: Start | None, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Starting points (n, restarts, *input shape), on the device and of the type of ``like``, and each row's label.

    Raises:
        ConfigError: something that is needed is unknown, or shapes and labels do not belong together.
    """
    knowledge.need(attack, ["input_shape", "classes"])
    shape, classes = tuple(knowledge.input_shape or ()), knowledge.classes or 0
    if labels.dim() != 1 or not len(labels) or labels.is_floating_point():
        raise ConfigError(
            f"(n,) whole numbers expected as labels, {labels.dtype} {tuple(labels.shape)} came: give one class a row"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ConfigError(
            f"labels from 0 to {classes - 1} expected, {int(labels.min())} to {int(labels.max())} came"
        )
    images = torch.zeros(1, *shape) if start is None else start.images
    whole = images.expand(len(labels), *images.shape) if images.dim() == len(shape) + 1 else images
    if whole.shape[2:] != shape or len(whole) != len(labels) or not whole.numel():
        raise ConfigError(
            f"starting images (restarts, *{shape}), or with {len(labels)} labels in front, expected, "
            f"{tuple(images.shape)} came"
        )
    wanted = labels.to(like.device, torch.int64).repeat_interleave(whole.shape[1])
    return whole.detach().to(like.device, like.dtype), wanted


def values_like(model: nn.Module) -> Tensor:
    """A tensor where the model computes, and of the type in which it does."""
    return next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))


def inversion(found: Descent, images: Tensor, labels: Tensor, start: Start | None) -> Inversion:
    """Of each label's rows (equally many, together) the one of least cost."""
    costs = found.costs.view(len(labels), -1)
    best = costs.argmin(1) + torch.arange(len(labels), device=costs.device) * costs.shape[1]
    return Inversion(
        images=images[best],
        labels=labels,
        costs=found.costs[best].double(),
        confidences=found.confidences[best].double(),
        steps=found.steps[best],
        stopped=tuple(found.stopped[row] for row in best.tolist()),
        restart_costs=costs.double(),
        evaluations=int(found.steps.sum()) + found.costs.numel(),
        start="zero" if start is None else start.name,
    )


class Forward:
    """Costs and slopes of rows by one forward and one backward pass."""

    def __init__(
        self,
        model: nn.Module,
        knowledge: Knowledge,
        cost: Cost,
        auxiliary: AuxTerm | None,
        labels: Tensor,
    ) -> None:
        self.model, self.classes = model.eval(), knowledge.classes
        self.cost, self.auxiliary, self.labels = cost, auxiliary, labels

    def __call__(self, points: Tensor, rows: Tensor) -> Evaluation:
        """Costs and slopes of ``points`` (k, *input shape), which are the rows ``rows`` (k,).

        Raises:
            ConfigError: the model or the AuxTerm gives another shape than it should.
        """
        leaf, labels = points.detach().requires_grad_(), self.labels[rows]
        with torch.enable_grad():
            logits = self.model(leaf)
            if logits.shape != (len(leaf), self.classes):
                raise ConfigError(
                    f"logits of shape {(len(leaf), self.classes)} expected of the target, "
                    f"{tuple(logits.shape)} came: set classes in Knowledge to what it has"
                )
            costs, confidences = self.cost.of_logits(logits, labels)
            if self.auxiliary is not None:
                costs = costs + auxiliary_cost(self.auxiliary, leaf, labels)
            # A row's cost depends on its own record only: the sum's slope holds all of theirs.
            (slopes,) = torch.autograd.grad(costs.sum(), leaf)
        return Evaluation(costs.detach(), confidences.detach(), slopes)


def auxiliary_cost(auxiliary: AuxTerm, points: Tensor, labels: Tensor) -> Tensor:
    """``auxiliary`` of the points, (k,).

    Raises:
        ConfigError: it gives another shape.
    """
    added = auxiliary(points, labels)
    if added.shape != labels.shape:
        raise ConfigError(
            f"one auxiliary cost a row, {tuple(labels.shape)}, expected, {tuple(added.shape)} came: "
            "sum or average over the values of a record"
        )
    return added


def _moved(points: Tensor, slopes: Tensor, settings: MIFace, process: Process | None) -> Tensor:
    points = points - settings.step_size * slopes
    if process is not None:
        processed = process(points)
        if processed.shape != points.shape:
            raise ConfigError(
                f"records {tuple(points.shape)} expected of the process, {tuple(processed.shape)} came"
            )
        points = processed.detach().to(points)
    return _boxed(points, settings)


def _boxed(points: Tensor, settings: MIFace) -> Tensor:
    return points if settings.box is None else points.clamp(*settings.box)
