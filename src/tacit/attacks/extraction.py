"""Model extraction by equations: a model's weights from the probabilities that it answers with.

A prediction endpoint answers with class probabilities. The adversary may send any record of the domain, and wants a model
that answers as the target does. For regression models each answer is an equation in the weights:

1. choose records that make the equations well-conditioned: orthogonal ones, inside the domain (`design`);
2. ask, and take logarithms: ln(p_i / p_j) = (w_i - w_j) x + b_i - b_j (section 4.1.1; multinomial in 4.1.2);
3. solve. For multinomial and binary logistic regression the equations are linear and each record gives one for every class
   but one, so that d + 1 records determine all weights. For one-vs-rest they are not, and c (d + 1) / (c - 1) records do;
4. where answers are rounded (section 7) half of the records are chosen after a first solution, at which it says that the
   target wavers between classes and digits tell the most; `tacit.attacks.extraction_fit` then uses how rounding errs.

What is kept secret from whom: the model's weights, from whoever asks. Nothing here protects; an output policy that gives
labels only, or the top few classes, takes away the equations. **Leaks**: everything the answers are computed from, so that
the extracted model can be attacked as a white box.

What we changed: of several classes the paper asks about c (d + 1) records drawn at random, as many as there are unknowns,
and minimises a loss; the closed form takes d + 1 and is exact, and an orthogonal design keeps it well-conditioned. Rounded
answers are fitted by what rounding can do and not as if they were exact.

Source:
    [15] F. Tramèr, F. Zhang, A. Juels, M. Reiter, T. Ristenpart. Stealing Machine Learning Models via Prediction APIs.
    USENIX Security 2016, sections 4.1 and 7 (numbers of sections recalled).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tacit.attacks.access import Knowledge, Scores
from tacit.attacks.extraction_fit import (
    POWERS,
    AffineModel,
    Link,
    check_link,
    check_unknowns,
    determines,
    from_logarithms,
    from_rounded,
    with_one,
)
from tacit.core.errors import BudgetExhausted, ConfigError, DataError
from tacit.nn.policies import Policy

#: Of rounded answers so many times the fewest records are asked for, unless a number is set.
MORE_IF_ROUNDED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """The records that an endpoint takes: every feature between two values.

    Args:
        low: the least value of a feature.
        high: the greatest.
        dtype: the type of number that the endpoint takes, float32 or float64.

    Raises:
        ConfigError: the range is empty or not finite, or the type is another.
    """

    low: float = 0.0
    high: float = 1.0
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ConfigError(f"low below high expected, {self.low} and {self.high} came")
        if self.dtype not in (torch.float32, torch.float64):
            raise ConfigError(f"float32 or float64 expected, {self.dtype} came")

    def drawn(self, rows: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Records (rows, *shape), uniform in the box; on the generator's device."""
        unit = torch.rand(
            rows, *shape, generator=generator, device=generator.device, dtype=torch.float64
        )
        return self.placed(2 * unit - 1)

    def placed(self, unit: Tensor) -> Tensor:
        """Values in [-1, 1] carried to the box and its type."""
        middle, radius = (self.low + self.high) / 2, (self.high - self.low) / 2
        return self.inside(middle + radius * unit)

    def inside(self, records: Tensor) -> Tensor:
        """Records in the box's type, values beyond its sides set to these."""
        return records.to(self.dtype).clamp(self.low, self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """A model that answers as the target does, as far as the attack could tell.

    Args:
        model: gives log-scores (n, classes) float64; their softmax is the answer.
        queries: records that were asked about.
        residual: the largest difference between an answer and the model's own, over those records. It is over what was
            asked; where `determined` is false it proves nothing about other records.
        determined: whether the answers held as many equations as there are unknowns. Probabilities of zero hold none.
    """

    model: torch.nn.Module = field(repr=False)
    queries: int
    residual: float
    determined: bool = True


class Unfinished(BudgetExhausted):
    """The budget ended an extraction; what was asked until then is kept here.

    Attributes:
        inputs: (n, *record shape), asked about.
        answers: for each what the target said.
        wanted: how many records more were to be asked.
    """

    def __init__(self, inputs: Tensor, answers: Tensor, wanted: int) -> None:
        self.inputs, self.answers, self.wanted = inputs, answers, wanted
        super().__init__(
            f"{len(answers)} records asked about when the query budget did not do for {wanted} more: raise it, ask for "
            "fewer queries, or use what this error holds as inputs and answers"
        )


class Asked:
    """A target and what it answered so far.

    Args:
        ask: `Scores.scores` or `Labels.labels` of the access.
        box: the records that it takes.
    """

    def __init__(self, ask: Callable[[Tensor], Tensor], box: Box) -> None:
        self._ask, self.box = ask, box
        self._inputs: list[Tensor] = []
        self._answers: list[Tensor] = []

    @property
    def inputs(self) -> Tensor:
        """All records so far."""
        return torch.cat(self._inputs) if self._inputs else torch.empty(0)

    @property
    def answers(self) -> Tensor:
        """All answers so far."""
        return torch.cat(self._answers) if self._answers else torch.empty(0)

    def about(self, inputs: Tensor) -> Tensor:
        """Ask about records, all or none of them.

        Raises:
            Unfinished: the budget does not do.
            ConfigError: the target takes another type of number.
            DataError: an answer is not a number.
        """
        try:
            answers = self._ask(inputs)
        except BudgetExhausted as error:
            raise Unfinished(self.inputs, self.answers, len(inputs)) from error
        except RuntimeError as error:
            if "dtype" not in str(error):
                raise
            raise ConfigError(
                f"the target does not take {self.box.dtype}: set Box.dtype to what it takes"
            ) from error
        if not bool(answers.isfinite().all()):
            broken = int((~answers.isfinite()).flatten(1).any(1).sum())
            raise DataError(
                f"finite answers expected, {broken} of {len(inputs)} are not: the target diverged, or overflows inside the "
                "box; narrow it"
            )
        self._inputs.append(inputs)
        self._answers.append(answers)
        return answers


def design(box: Box, rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Records whose features are orthogonal to each other and to the constant, all inside the box.

    Columns of the discrete cosine transform of order ``rows``, which ones and with which sign is drawn. The equations then
    have condition number √2 in units of the box. Of fewer than ``width`` + 1 records they are drawn uniformly.

    Args:
        box: the domain.
        rows: how many.
        width: features of a record.
        generator: draws, on its device.

    Returns:
        (rows, width) of the box's type.
    """
    if rows <= width:
        return box.drawn(rows, (width,), generator)
    where = generator.device
    waves = 1 + torch.randperm(rows - 1, generator=generator, device=where)[:width]
    signs = 2 * torch.randint(2, (width,), generator=generator, device=where) - 1
    places = torch.arange(rows, dtype=torch.float64, device=where)[:, None] + 0.5
    return box.placed(signs * torch.cos(math.pi / rows * places * waves))


@dataclass(frozen=True, slots=True, kw_only=True)
class EquationSolving:
    """Solves for the weights of a regression model that answers with probabilities.

    Needs `input_shape` and `classes`.

    Args:
        box: the records that the target takes. Where it is so wide that probabilities underflow, those equations are lost.
        link: ``softmax`` for multinomial and binary logistic regression, ``one-vs-rest`` for that.
        queries: how many records. None: the fewest that determine the weights (`fewest`), for ``one-vs-rest`` a tenth and 5
            more, without which the search may end beside the solution; ten times the fewest where the policy rounds. With
            fewer than determine them the shortest solution is taken. Whether the equations were solved `Extraction.residual`
            says: of ``one-vs-rest`` with two classes they are not always. Whether there were enough of them once
            probabilities of zero are left out says `Extraction.determined`.

    Raises:
        ConfigError: a setting is out of range.

    Cost: `queries` queries; the linear case takes one least-squares solution of (queries, d + 1), the others some 20 of
    c (d + 1) unknowns at once, which are refused where they are more than `MOST_UNKNOWNS`.

    Source: [15] sections 4.1.1 and 4.1.2; 7 for rounded answers.
    """

    name: ClassVar[str] = "extraction-equations"
    access: ClassVar[type[Scores]] = Scores

    box: Box = Box()
    link: Link = "softmax"
    queries: int | None = None

    def __post_init__(self) -> None:
        check_link(self.link)
        if self.queries is not None and self.queries < 1:
            raise ConfigError(f"at least 1 query expected, {self.queries} came: None takes enough")

    def fewest(self, width: int, classes: int) -> int:
        """How many records of ``width`` features determine the weights: d + 1, or c (d + 1) / (c - 1) for one-vs-rest."""
        if self.link == "softmax":
            return width + 1
        return -(-classes * (width + 1) // (classes - 1))

    def extract(
        self, access: Scores, knowledge: Knowledge, generator: torch.Generator
    ) -> Extraction:
        """Ask the target and solve.

        Args:
            access: the target.
            knowledge: `input_shape` and `classes`.
            generator: draws the records, on its device.

        Raises:
            ConfigError: something needed is unknown, the policy hides what is needed, the weights are too many to be
                solved for at once, or the target answers with another number of classes or takes another type of number.
            DataError: an answer is not a number.
            Unfinished: the budget does not do; what was asked is kept.
        """
        shape, classes = needed(self.name, knowledge)
        need_probabilities(self.name, access.policy, classes)
        width = math.prod(shape)
        if self.link == "one-vs-rest" or access.policy.digits is not None:
            check_unknowns(classes, width + 1)
        fewest = self.fewest(width, classes)
        rounded = access.policy.digits is not None
        spare = 5 + -(-fewest // 10) if self.link == "one-vs-rest" else 0
        queries = self.queries or (MORE_IF_ROUNDED * fewest if rounded else fewest + spare)
        target = Asked(access.scores, self.box)
        first = queries // 2 if rounded and queries >= 2 * fewest else queries
        records = design(self.box, first, width, generator)
        check_classes(target.about(records.reshape(-1, *shape)), classes)
        if first < queries:
            rough = self.solve(target.inputs, target.answers, access.policy, powers=POWERS[:1])
            records = wavering(rough, self.box, queries - first, width, generator)
            target.about(records.reshape(-1, *shape))
        model = self.solve(target.inputs, target.answers, access.policy)
        enough = determines(target.answers, width + 1, self.link)
        return extraction(model, target, access.policy, determined=enough)

    def solve(
        self, inputs: Tensor, answers: Tensor, policy: Policy, powers: Sequence[int] = POWERS
    ) -> AffineModel:
        """The model that gives these answers.

        Args:
            inputs: (n, *record shape).
            answers: (n, c) float64.
            policy: of the target.
            powers: see `from_rounded`; of no account where nothing is rounded.

        Raises:
            ConfigError: the weights are too many to be solved for at once.
        """
        points = with_one(inputs)
        heat = policy.temperature
        weights = (
            from_logarithms(points, answers, self.link, heat)
            if policy.digits is None
            else from_rounded(points, answers, self.link, policy.digits, heat, powers)
        )
        return AffineModel(weights[:, 1:], weights[:, 0], self.link)


def wavering(
    model: torch.nn.Module, box: Box, rows: int, width: int, generator: torch.Generator
) -> Tensor:
    """Records at which a model wavers: where Σ p (1 - p) is greatest on lines between corners of the box.

    Args:
        model: gives log-scores of (n, width).
        box: the domain.
        rows: how many; the best of four times as many lines.
        width: features of a record.
        generator: draws the corners, on its device.

    Returns:
        (rows, width) of the box's type.
    """
    drawn = torch.randint(
        2, (2, 4 * rows, width), generator=generator, device=generator.device, dtype=torch.float64
    )
    starts, ends = box.placed(2 * drawn - 1).double()
    best = torch.full((4 * rows,), -1.0, dtype=torch.float64, device=starts.device)
    chosen = starts
    with torch.no_grad():
        for part in torch.linspace(0, 1, 33).tolist():
            points = starts + part * (ends - starts)
            shares = torch.softmax(model(points), 1)
            told = (shares * (1 - shares)).sum(1)
            chosen = torch.where((told > best)[:, None], points, chosen)
            best = torch.maximum(best, told)
    return box.inside(chosen[best.topk(rows).indices])


def extraction(
    model: torch.nn.Module, target: Asked, policy: Policy, *, determined: bool
) -> Extraction:
    """The result, with the largest difference over what was asked."""
    with torch.no_grad():
        own = policy.answers(model(target.inputs))
    return Extraction(
        model=model,
        queries=len(target.inputs),
        residual=float((own - target.answers).abs().max()),
        determined=determined,
    )


def needed(attack: str, knowledge: Knowledge) -> tuple[tuple[int, ...], int]:
    """The record's shape and the number of classes.

    Raises:
        ConfigError: one is unknown, the shape is empty or there are fewer than two classes.
    """
    knowledge.need(attack, ("input_shape", "classes"))
    shape, classes = knowledge.input_shape, knowledge.classes
    if shape is None or classes is None or math.prod(shape) < 1 or classes < 2:
        raise ConfigError(
            f"{attack} expects records with at least 1 feature and at least 2 classes, {shape} and {classes} came"
        )
    return shape, classes


def need_probabilities(attack: str, policy: Policy, classes: int) -> None:
    """That a policy gives the probabilities of all classes.

    Raises:
        ConfigError: it gives labels only, or those of the top classes.
    """
    if policy.labels_only:
        raise ConfigError(
            f"{attack} needs probabilities and the policy gives labels only: extract by retraining on labels"
        )
    if policy.top_k is not None and policy.top_k < classes:
        raise ConfigError(
            f"{attack} needs the probabilities of all {classes} classes and the policy gives those of the top "
            f"{policy.top_k}: zeros stand for the others, and have no logarithm"
        )


def check_classes(answers: Tensor, classes: int) -> None:
    """That answers (n, c) are of so many classes.

    Raises:
        ConfigError: they are of another number.
    """
    if answers.dim() != 2 or answers.shape[1] != classes:
        raise ConfigError(
            f"{classes} classes are known, the target answers with shape {tuple(answers.shape)}: correct Knowledge.classes"
        )
