"""Where an adversary's shadow data come from: records like the target's, to train shadow models on.

Shadow models imitate the target as far as their data are like the target's. Four sources, from the most knowledge to none:

- `RealRecords`: records of the same population, none of them asked about;
- `NoisyRecords`: such records with a share of their features wrong, as if the adversary knew the population roughly;
- `MarginalRecords`: each feature drawn by itself from what is known of its values, the label asked of the target;
- `SynthesisedRecords`: nothing known but the range of the features. Records are sought that the target is sure of, by hill
  climbing on its answers: what it was trained on lies among these.

What is kept secret from whom: nothing here protects. **Leaks**: what the target answered. Two of the sources ask it, which
its counter counts and its budget bounds.

What we changed: all records of all classes climb together, each with its own state, so that one call of the target serves
them all. A search that found nothing starts anew from another random record, up to `starts` times. Noise of real-valued
features is a fresh value from their range, as the paper has binary ones only.

Source:
    [14] R. Shokri, M. Stronati, C. Song, V. Shmatikov. Membership Inference Attacks against Machine Learning Models. IEEE
    S&P 2017, section V-C: algorithm 1 (synthesis by the model), statistics-based synthesis, noisy real data; defaults of
    algorithm 1 and the noise levels of section VI (recalled).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from tacit.attacks.access import Knowledge, Scores
from tacit.core.errors import BudgetExhausted, ConfigError, NotEnoughEvidence, TacitWarning

Batch = tuple[Tensor, Tensor]
Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    del done, total


class ShadowData(Protocol):
    """A source of shadow data."""

    @property
    def name(self) -> str:
        """Lower case, stable across releases."""
        ...

    def records(
        self, access: Scores | None, knowledge: Knowledge, generator: torch.Generator
    ) -> Batch:
        """Shadow data: inputs (n, *record shape) and labels (n,) int64.

        Args:
            access: the target, for sources that ask it.
            knowledge: what the adversary knows; each source says what it needs.
            generator: of all that is drawn.

        Raises:
            ConfigError: the source needs something that is not there.
            BudgetExhausted: the target's budget does not do.
        """
        ...


class Unfinished(BudgetExhausted):
    """The budget ended a synthesis; what was found until then is kept here.

    Attributes:
        inputs: (found, *record shape).
        labels: (found,) int64.
        wanted: how many records were asked for.
    """

    def __init__(self, inputs: Tensor, labels: Tensor, wanted: int, spent: int) -> None:
        self.inputs, self.labels, self.wanted = inputs, labels, wanted
        super().__init__(
            f"{len(labels)} of {wanted} records found when the query budget was spent, {spent} queries of it here: raise "
            "it, ask for fewer records per class, or use what this error holds as inputs and labels"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """The values that each feature of a record can take.

    Args:
        low: the least.
        high: the greatest.
        binary: only these two; else all between them.

    Raises:
        ConfigError: the range is empty or not finite.
    """

    low: float = 0.0
    high: float = 1.0
    binary: bool = True

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ConfigError(f"low below high expected, {self.low} and {self.high} came")

    def drawn(self, rows: int, width: int, generator: torch.Generator) -> Tensor:
        """Random records: (rows, width) float32, each value as likely as any other."""
        unit = torch.rand(rows, width, generator=generator, device=generator.device)
        if self.binary:
            unit = (unit < 0.5).float()
        return self.low + (self.high - self.low) * unit

    def changed(self, records: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
        """Copies of the records with some features changed: binary ones to the other value, others to a fresh one.

        Args:
            records: (n, width).
            counts: (n,) int64, how many features of each record; which ones is drawn.
            generator: draws.
        """
        rows, width = records.shape
        most = min(int(counts.max()), width) if rows else 0
        keys = torch.rand(rows, width, generator=generator, device=generator.device)
        places = keys.topk(most, 1).indices.to(records.device)
        chosen = torch.arange(most, device=records.device) < counts.to(records.device)[:, None]
        mask = torch.zeros_like(records, dtype=torch.bool).scatter(1, places, chosen)
        if self.binary:
            return torch.where(mask, self.low + self.high - records, records)
        fresh = self.drawn(rows, width, generator).to(records)
        return torch.where(mask, fresh, records)

    def check(self, records: Tensor) -> None:
        """That records are such.

        Raises:
            ConfigError: a value is none of those that a feature can take.
        """
        inside = (records >= self.low) & (records <= self.high)
        if self.binary:
            inside = (records == self.low) | (records == self.high)
        if not bool(inside.all()):
            kind = f"{self.low:g} or {self.high:g}" if self.binary else f"{self.low:g} to {self.high:g}"  # fmt: skip
            raise ConfigError(
                f"features {kind} expected, {records[~inside][0].item():g} came: say in Features what they can be"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RealRecords:
    """The population as it is.

    Needs `population`. Asks the target nothing.
    """

    @property
    def name(self) -> str:
        """``real``."""
        return "real"

    def records(
        self, access: Scores | None, knowledge: Knowledge, generator: torch.Generator
    ) -> Batch:
        """See `ShadowData.records`."""
        del access, generator
        return _population(self.name, knowledge)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyRecords:
    """The population with wrong features: in each record a share of them, drawn anew for each, is changed.

    Needs `population`. Asks the target nothing.

    Args:
        share: of each record's features, in (0, 1], rounded to a whole number of them; the paper has 0.1 and 0.2.
        features: what values they can take.

    Raises:
        ConfigError: the share is out of range.
    """

    share: float = 0.1
    features: Features = Features()

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"a share in (0, 1] expected, {self.share} came")

    @property
    def name(self) -> str:
        """``noisy0.1`` and the like."""
        return f"noisy{self.share:g}"

    def records(
        self, access: Scores | None, knowledge: Knowledge, generator: torch.Generator
    ) -> Batch:
        """See `ShadowData.records`; ConfigError also where the population has other values than `features` says."""
        del access
        inputs, labels = _population(self.name, knowledge)
        flat = inputs.flatten(1)
        self.features.check(flat)
        counts = torch.full((len(flat),), round(self.share * flat.shape[1]))
        return self.features.changed(flat, counts, generator).reshape(inputs.shape), labels


@dataclass(frozen=True, slots=True, kw_only=True)
class MarginalRecords:
    """Records whose features are drawn each by itself, labelled by the target.

    Needs `population`, of which only each feature's own values are used, and access to the target.

    Args:
        count: of the records.

    Raises:
        ConfigError: fewer than one record.

    Cost: `count` queries; a budget that does not do for all is refused before any.
    """

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"at least 1 record expected, {self.count} came")

    @property
    def name(self) -> str:
        """``marginal``."""
        return "marginal"

    def records(
        self, access: Scores | None, knowledge: Knowledge, generator: torch.Generator
    ) -> Batch:
        """See `ShadowData.records`."""
        target = _target(self.name, access)
        inputs, _ = _population(self.name, knowledge)
        flat = inputs.flatten(1)
        rows = torch.randint(
            len(flat), (self.count, flat.shape[1]), generator=generator, device=generator.device
        )
        drawn = flat.gather(0, rows.to(flat.device)).reshape(self.count, *inputs.shape[1:])
        return drawn, target.scores(drawn).argmax(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisedRecords:
    """Records that the target is sure of, found by hill climbing on its answers.

    Of each class, a search starts from a random record. The target is asked; if it is at least as sure of the class as of
    the best record before, the record becomes the best; if it is then surer than `confidence` and the class is its first
    choice, the record is taken, with a probability that equals the target's. The next candidate is the best record with k
    features changed. After more than `rejections` candidates in a row that were worse, k is halved.

    Needs `input_shape` and `classes`, and access to the target; no data.

    Args:
        per_class: records of each class.
        features: what values they can take.
        most_changed: k at first (k_max).
        least_changed: k at last (k_min).
        rejections: in a row before k is halved (rej_max).
        confidence: the least probability of the class, in [0, 1) (conf_min).
        iterations: of one search (iter_max).
        starts: searches for one record before it is given up.
        at_once: records that are sought at a time; bounds the memory.
        progress: told how many records of all are found.

    Raises:
        ConfigError: a setting is out of range.

    Cost: one query a candidate, at most `per_class` * classes * `iterations` * `starts`; as a rule far fewer.

    Source: [14] algorithm 1; defaults recalled, but for `iterations` and `starts`.
    """

    per_class: int
    features: Features = Features()
    most_changed: int = 128
    least_changed: int = 4
    rejections: int = 10
    confidence: float = 0.2
    iterations: int = 1000
    starts: int = 3
    at_once: int = 4096
    progress: Progress = field(default=_silent, repr=False, compare=False)

    def __post_init__(self) -> None:
        if min(self.per_class, self.iterations, self.starts, self.at_once) < 1:
            raise ConfigError(
                "at least 1 record, iteration, start and record at once expected, "
                f"{self.per_class}, {self.iterations}, {self.starts} and {self.at_once} came"
            )
        if not 1 <= self.least_changed <= self.most_changed or self.rejections < 0:
            raise ConfigError(
                "1 <= least_changed <= most_changed and rejections of at least 0 expected, "
                f"{self.least_changed}, {self.most_changed} and {self.rejections} came"
            )
        if not 0 <= self.confidence < 1:
            raise ConfigError(f"a confidence in [0, 1) expected, {self.confidence} came")

    @property
    def name(self) -> str:
        """``synthesised``."""
        return "synthesised"

    def records(
        self, access: Scores | None, knowledge: Knowledge, generator: torch.Generator
    ) -> Batch:
        """See `ShadowData.records`.

        Raises:
            ConfigError: something needed is unknown, or the target answers with another number of classes.
            Unfinished: the budget was spent before all records were found; it keeps what was.
            NotEnoughEvidence: no search found anything.

        Warns:
            TacitWarning: of some classes fewer records were found than were asked for.
        """
        target = _target(self.name, access)
        knowledge.need(f"{self.name} shadow data", ("input_shape", "classes"))
        if knowledge.input_shape is None or knowledge.classes is None:
            raise ConfigError("input_shape and classes expected: give them in Knowledge")
        shape, classes = knowledge.input_shape, knowledge.classes
        # The classes in turn, so that a budget that ends early leaves none out.
        wanted = torch.arange(classes, device=generator.device).repeat(self.per_class)
        climb = _Climb(self, target, shape, classes, generator)
        before = target.counter.spent
        waiting = wanted
        while len(waiting) or len(climb.classes):
            room = max(0, self.at_once - len(climb.classes))
            climb.start(waiting[:room])
            waiting = waiting[room:]
            if not climb.step():
                inputs, labels = climb.found()
                raise Unfinished(inputs, labels, len(wanted), target.counter.spent - before)
            self.progress(climb.count, len(wanted))
        inputs, labels = climb.found()
        if not len(labels):
            raise NotEnoughEvidence(
                f"no record found that the target is surer of than {self.confidence:g}: allow more iterations, lower the "
                "confidence, or use other shadow data; a policy that gives labels only leaves nothing to climb"
            )
        missing = self.per_class - torch.bincount(labels, minlength=classes)
        if bool(missing.any()):
            lacking = [f"{c} ({int(missing[c])})" for c in missing.nonzero().flatten().tolist()]
            more = f" and {len(lacking) - 8} more classes" if len(lacking) > 8 else ""
            warnings.warn(
                f"{len(labels)} of {len(wanted)} records found; missing of class {', '.join(lacking[:8])}{more}: allow more "
                "iterations or starts, or lower the confidence",
                TacitWarning,
                stacklevel=2,
            )
        return inputs, labels


class _Climb:
    """The searches under way, one a row; algorithm 1's variables by its names.

    Attributes:
        classes: (b,) the class c that each is for.
        count: records found.
    """

    def __init__(
        self,
        settings: SynthesisedRecords,
        target: Scores,
        shape: tuple[int, ...],
        count: int,
        generator: torch.Generator,
    ) -> None:
        self._set, self._target, self._shape, self._of = settings, target, shape, count
        self._generator, self._width = generator, math.prod(shape)
        empty = torch.zeros(0, dtype=torch.int64, device=generator.device)
        self.classes = empty
        self._starts = empty  # searches begun for this record
        self._x = self._best = torch.zeros(0, self._width, device=generator.device)
        self._y = torch.zeros(0, dtype=torch.float64, device=generator.device)
        self._j = self._k = self._iteration = empty
        self._found: list[Batch] = []
        self.count = 0

    def start(self, classes: Tensor) -> None:
        """Add searches from random records."""
        rows = len(classes)
        if not rows:
            return
        fresh = self._set.features.drawn(rows, self._width, self._generator)
        zero = torch.zeros(rows, dtype=torch.int64, device=classes.device)
        self.classes = torch.cat([self.classes, classes])
        self._starts = torch.cat([self._starts, zero + 1])
        self._x, self._best = torch.cat([self._x, fresh]), torch.cat([self._best, fresh])
        self._y = torch.cat([self._y, zero.double()])
        self._j, self._iteration = torch.cat([self._j, zero]), torch.cat([self._iteration, zero])
        self._k = torch.cat([self._k, zero + min(self._set.most_changed, self._width)])

    def step(self) -> bool:
        """One iteration of every search, or of the first ones that the budget does for; whether it did for all."""
        counter = self._target.counter
        rows = len(self.classes)
        if counter.budget is not None:
            rows = min(rows, counter.budget - counter.spent)
        answers = None
        if rows:
            answers = self._target.scores(self._x[:rows].reshape(rows, *self._shape))
            if answers.shape[1] != self._of:
                raise ConfigError(
                    f"{self._of} classes are known, the target answers with {answers.shape[1]}: correct Knowledge.classes"
                )
            answers = answers.to(self.classes.device)
        enough = rows == len(self.classes)
        if answers is not None:
            self._keep(slice(0, rows))
            self._judge(answers)
        return enough

    def found(self) -> Batch:
        """What was found so far."""
        if not self._found:
            return torch.zeros(0, *self._shape), torch.zeros(0, dtype=torch.int64)
        inputs = torch.cat([one for one, _ in self._found])
        return inputs.reshape(-1, *self._shape), torch.cat([one for _, one in self._found])

    def _judge(self, answers: Tensor) -> None:
        """Lines 8 to 27 of the algorithm."""
        own = answers.gather(1, self.classes[:, None]).squeeze(1)
        accepted = own >= self._y
        sure = accepted & (own > self._set.confidence) & (answers.argmax(1) == self.classes)
        draw = torch.rand(
            len(own), generator=self._generator, device=self._generator.device, dtype=torch.float64
        )
        taken = sure & (draw < own)
        if bool(taken.any()):
            self._found.append((self._x[taken], self.classes[taken]))
            self.count += int(taken.sum())
        self._best = torch.where(accepted[:, None], self._x, self._best)
        self._y = torch.where(accepted, own, self._y)
        self._j = torch.where(accepted, 0, self._j + 1)
        many = self._j > self._set.rejections
        least = min(self._set.least_changed, self._width)
        self._k = torch.where(many, ((self._k + 1) // 2).clamp_min(least), self._k)
        self._j = torch.where(many, 0, self._j)
        self._iteration = self._iteration + 1
        failed = ~taken & (self._iteration >= self._set.iterations)
        again = self.classes[failed & (self._starts < self._set.starts)]
        begun = self._starts[failed & (self._starts < self._set.starts)]
        self._keep(~taken & ~failed)
        if len(self.classes):
            self._x = self._set.features.changed(self._best, self._k, self._generator)
        self.start(again)
        if len(begun):
            self._starts[-len(begun) :] = begun + 1

    def _keep(self, rows: Tensor | slice) -> None:
        for name in ("classes", "_starts", "_x", "_best", "_y", "_j", "_k", "_iteration"):
            setattr(self, name, getattr(self, name)[rows])


def _population(source: str, knowledge: Knowledge) -> Batch:
    knowledge.need(f"{source} shadow data", ("population",))
    if knowledge.population is None:
        raise ConfigError("population expected: give it in Knowledge")
    inputs, labels = knowledge.population
    if len(inputs) < 1 or labels.shape != (len(inputs),):
        raise ConfigError(
            f"one label a record expected, {len(inputs)} records and labels of shape {tuple(labels.shape)} came"
        )
    return inputs, labels.long()


def _target(source: str, access: Scores | None) -> Scores:
    if access is None:
        raise ConfigError(
            f"{source} shadow data are made by asking the target: give access to its scores"
        )
    return access
