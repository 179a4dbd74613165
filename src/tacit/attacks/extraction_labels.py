"""Model extraction from labels alone: where the boundary is, found by asking.

Without probabilities an answer says only on which side of the boundaries a record lies. Two attacks on models whose
boundaries are planes (multinomial and binary logistic regression, linear support vector machines):

- `LineSearch` (Lowd and Meek) is for two classes. On a line between records of different labels it halves the interval in
  which the boundary lies; d points of the boundary determine the plane.
- `Retraining` trains a model on what the target said. Uniform: of records drawn from the domain. Adaptive: in rounds, each
  time of records at which the model trained so far wavers, since their labels tell the most.

What is kept secret from whom: the boundaries, from whoever asks; nothing here protects. **Leaks**: a bit or so a query. How
sure the target is cannot be found: the scale of the extracted scores means nothing.

What we changed: all lines are halved at once, from one call of the target to the next, and lines run between random records
of the box, as axis-parallel ones may leave it before they meet the boundary. Retraining is by L-BFGS from the last round's
weights, with a ridge that only keeps separable labels from driving the weights to infinity.

Source:
    [15] F. Tramèr, F. Zhang, A. Juels, M. Reiter, T. Ristenpart. Stealing Machine Learning Models via Prediction APIs.
    USENIX Security 2016, section 6 (number recalled). D. Lowd, C. Meek, Adversarial Learning, KDD 2005.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor

from tacit.attacks.access import Knowledge, Labels
from tacit.attacks.extraction import Asked, Box, needed, wavering
from tacit.attacks.extraction_fit import AffineModel, with_one
from tacit.core.errors import ConfigError, DataError, NotEnoughEvidence

#: Of L-BFGS in the last training; earlier ones get a fifth, as the next goes on from there.
STEPS = 500
#: Records given to a model at a time; bounds the memory.
BATCH = 8192

FloatArray = npt.NDArray[np.float64]

M = TypeVar("M", bound=torch.nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelExtraction:
    """A model that names the classes that the target names, as far as the attack could tell.

    Args:
        model: gives scores (n, classes) float64; the largest names the class.
        queries: records that were asked about.
        agreement: the share of them on which model and target agree.
    """

    model: torch.nn.Module = field(repr=False)
    queries: int
    agreement: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LineSearch:
    """Finds the plane between two classes by halving intervals on lines.

    Needs `input_shape` and `classes`, which must be two.

    Args:
        box: the records that the target takes.
        halvings: of each line; the boundary is then known to 2^-halvings of the line.
        draws: random records in which both labels must be found.

    Raises:
        ConfigError: a setting is out of range.

    Cost: d (1 + `halvings`) queries, and those until both labels were seen.

    Source: [15] section 6; Lowd and Meek 2005.
    """

    name: ClassVar[str] = "extraction-line-search"
    access: ClassVar[type[Labels]] = Labels

    box: Box = field(default_factory=Box)
    halvings: int = 18
    draws: int = 1000

    def __post_init__(self) -> None:
        if self.halvings < 1 or self.draws < 2:
            raise ConfigError(
                f"at least 1 halving and 2 draws expected, {self.halvings} and {self.draws} came"
            )

    def extract(
        self, access: Labels, knowledge: Knowledge, generator: torch.Generator
    ) -> LabelExtraction:
        """Ask the target and find the plane.

        Args:
            access: the target.
            knowledge: `input_shape` and `classes`.
            generator: draws the lines, on its device.

        Raises:
            ConfigError: something needed is unknown, or there are more than two classes.
            DataError: a label is not a class.
            NotEnoughEvidence: all records that were drawn have one label.
            Unfinished: the budget does not do; what was asked is kept.
        """
        shape, classes = needed(self.name, knowledge)
        if classes != 2:
            raise ConfigError(
                f"{self.name} finds the plane between 2 classes, {classes} came: extract by retraining"
            )
        width = math.prod(shape)
        target = Asked(access.labels, self.box)
        ends = self._both(target, shape, generator)
        far = self.box.drawn(width, shape, generator).flatten(1)
        labels = checked_labels(target.about(far.reshape(-1, *shape)), 2)
        # Of each line the end of label 0 and that of label 1.
        low = torch.where(labels[:, None] == 0, far, ends[0])
        high = torch.where(labels[:, None] == 1, far, ends[1])
        for _ in range(self.halvings):
            middle = self.box.inside((low.double() + high.double()) / 2)
            above = checked_labels(target.about(middle.reshape(-1, *shape)), 2)[:, None] == 1
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        points = with_one((low.double() + high.double()) / 2)
        plane = torch.linalg.svd(points).Vh[-1]
        sides = with_one(torch.stack([ends[1], ends[0]])) @ plane
        plane = plane * torch.where(sides[0] < sides[1], -1.0, 1.0)
        return label_extraction(_between(plane), target)

    def _both(
        self, target: Asked, shape: tuple[int, ...], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """A record of label 0 and one of label 1, flat."""
        seen: dict[int, Tensor] = {}
        asked = 0
        while len(seen) < 2 and asked < self.draws:
            some = min(max(2, asked), self.draws - asked)
            drawn = self.box.drawn(some, shape, generator)
            labels = checked_labels(target.about(drawn), 2)
            for label in (0, 1):
                if label not in seen and bool((labels == label).any()):
                    seen[label] = drawn.flatten(1)[labels == label][0]
            asked += some
        if len(seen) < 2:
            raise NotEnoughEvidence(
                f"both labels expected in {self.draws} records drawn from the box, only one came: allow more draws, or "
                "choose a box through which the boundary passes"
            )
        return seen[0], seen[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retraining:
    """Trains a linear model on the labels that the target gives.

    Needs `input_shape` and `classes`.

    Args:
        box: the records that the target takes.
        queries: how many in all.
        choice: ``uniform``: records drawn from the box. ``adaptive``: only the first, then in each round as many at which
            the model wavers.
        rounds: of adaptive choice, after the first records; of the uniform one there are none.
        ridge: weight of the squared weights beside the loss of a record.

    Raises:
        ConfigError: a setting is out of range.

    Cost: `queries` queries, and a training a round.

    Source: [15] section 6.
    """

    name: ClassVar[str] = "extraction-retraining"
    access: ClassVar[type[Labels]] = Labels

    queries: int
    box: Box = field(default_factory=Box)
    choice: Literal["uniform", "adaptive"] = "adaptive"
    rounds: int = 20
    ridge: float = 1e-6

    def __post_init__(self) -> None:
        if self.choice not in ("uniform", "adaptive"):
            raise ConfigError(f"choice uniform or adaptive expected, {self.choice!r} came")
        if min(self.queries, self.rounds) < 1 or not 0 < self.ridge < math.inf:
            raise ConfigError(
                "at least 1 query and 1 round and a ridge above 0 expected, "
                f"{self.queries}, {self.rounds} and {self.ridge} came"
            )

    def extract(
        self, access: Labels, knowledge: Knowledge, generator: torch.Generator
    ) -> LabelExtraction:
        """Ask the target and train.

        Args:
            access: the target.
            knowledge: `input_shape` and `classes`.
            generator: draws the records, on its device.

        Raises:
            ConfigError: something needed is unknown.
            DataError: a label is not a class.
            Unfinished: the budget does not do; what was asked is kept.
        """
        shape, classes = needed(self.name, knowledge)
        target = Asked(access.labels, self.box)
        rounds = self.rounds if self.choice == "adaptive" else 0

        def train(start: AffineModel | None, last: bool) -> AffineModel:
            steps = STEPS if last else STEPS // 5
            return self.solve(target.inputs, target.answers, classes, start, steps)

        budget = (self.queries, rounds)
        model = retrained(target, shape, classes, budget, generator, train)
        return label_extraction(model, target)

    def solve(
        self,
        inputs: Tensor,
        labels: Tensor,
        classes: int,
        start: AffineModel | None = None,
        steps: int = STEPS,
    ) -> AffineModel:
        """The model that names these labels.

        Args:
            inputs: (n, *record shape).
            labels: (n,) int64.
            classes: how many there are.
            start: where to start from; None from zero.
            steps: the most of L-BFGS.
        """
        points = with_one(inputs).cpu()
        wanted = torch.nn.functional.one_hot(labels.cpu(), classes).double()
        weights = np.zeros(classes * points.shape[1])
        if start is not None:
            rows = torch.cat([start.bias[:, None], start.weight], 1).detach()
            weights = rows.flatten().cpu().numpy()

        def loss(vector: FloatArray) -> tuple[float, FloatArray]:
            own = torch.from_numpy(vector).view(classes, -1)
            shares = torch.log_softmax(points @ own.T, 1)
            value = -(wanted * shares).sum() / len(points) + self.ridge * own.square().sum() / 2
            uphill = (shares.exp() - wanted).T @ points / len(points) + self.ridge * own
            return float(value), uphill.flatten().numpy()

        found = minimize(
            loss,
            weights,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": steps, "maxfun": 2 * steps, "ftol": 1e-12, "gtol": 1e-9},
        )
        trained = torch.from_numpy(found.x).view(classes, -1).to(inputs.device)
        return AffineModel(trained[:, 1:].clone(), trained[:, 0].clone())


def retrained(
    target: Asked,
    shape: tuple[int, ...],
    classes: int,
    budget: tuple[int, int],
    generator: torch.Generator,
    train: Callable[[M | None, bool], M],
) -> M:
    """Train on uniform records, then in each round on about as many more at which the model trained so far wavers.

    Args:
        target: what is asked; `train` finds there what it said.
        shape: of a record.
        classes: that labels may name.
        budget: queries in all, and rounds after the first.
        generator: draws the records.
        train: given the last model, and whether this is the last training.

    Raises:
        DataError: a label is not a class.
        Unfinished: the budget does not do.
    """
    queries, rounds = budget
    first = max(1, queries // (rounds + 1))
    checked_labels(target.about(target.box.drawn(first, shape, generator)), classes)
    model = train(None, rounds == 0)
    for left in range(rounds, 0, -1):
        some = (queries - len(target.inputs)) // left
        if some:
            records = wavering(model, target.box, some, math.prod(shape), generator)
            checked_labels(target.about(records.reshape(-1, *shape)), classes)
            model = train(model, left == 1)
    return model


def _between(plane: Tensor) -> AffineModel:
    """The model that names class 1 where the plane's score (bias first) is positive."""
    rows = torch.stack([torch.zeros_like(plane), plane])
    return AffineModel(rows[:, 1:], rows[:, 0])


def label_extraction(model: torch.nn.Module, target: Asked) -> LabelExtraction:
    """The result, with the share of what was asked on which model and target agree."""
    with torch.no_grad():
        parts = torch.split(target.inputs, BATCH)
        named = torch.cat([model(part).argmax(1) for part in parts])
    said = target.answers if target.answers.dim() == 1 else target.answers.argmax(1)
    return LabelExtraction(
        model=model,
        queries=len(target.inputs),
        agreement=float((named == said).double().mean()),
    )


def checked_labels(labels: Tensor, classes: int) -> Tensor:
    """Labels (n,), of so many classes.

    Raises:
        DataError: one is no class.
    """
    if labels.dim() != 1 or not bool(((labels >= 0) & (labels < classes)).all()):
        raise DataError(
            f"labels 0 to {classes - 1} expected, others came: correct Knowledge.classes"
        )
    return labels
