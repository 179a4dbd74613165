"""Model inversion on tables: a hidden attribute of a record, from a model's answers to the record with each of its values.

Holds:
    all of a record but one attribute, and its true label; the values that the attribute can take and how frequent they are;
    a model that takes the attribute as an input, by its labels (`Labels`) or class probabilities (`Scores`); and, if it has
    it, how often the model answers each class where another is true.
Recovers:
    the value that is likeliest. Where the model hardly looks at the attribute that is the most frequent one.
Protects:
    nothing here does. What a model tells of a value because it is so in the population is no leak of the record; what it
    tells of its training records beyond others is. The audit measures both.

Steps:
1. for each value, complete the record with it and ask the model (one query a value);
2. weigh each value's frequency by how well the answer fits the true label: by the confusion matrix where there is one (how
   often the model answers that where the label is true), else by the probability that the model gives to the label;
3. answer the value of most weight; of equal ones the first.

What we changed: batches of records; the probability of the label as likelihood, which needs no confusion matrix. In the
products of the printed rule the frequencies of the known attributes are common to all values, and are left out.

Source:
    [1] M. Fredrikson, S. Jha, T. Ristenpart. Model Inversion Attacks that Exploit Confidence Information and Basic
    Countermeasures. CCS 2015, section 4 (recalled). M. Fredrikson, E. Lantz, S. Jha, S. Lin, D. Page, T. Ristenpart.
    Privacy in Pharmacogenetics: An End-to-End Case Study of Personalized Warfarin Dosing. USENIX Security 2014, section 3
    (recalled).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tacit.attacks.access import Labels, Scores
from tacit.core.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenAttribute:
    """What the adversary does not know of a record, and what it knows of that.

    Args:
        name: of the attribute.
        start: its first column among a record's inputs.
        values: (v, columns): what its columns hold for each value it can take.
        prior: (v,) frequencies of the values; scaled to one.

    Raises:
        ConfigError: fewer than two values, shapes that do not fit, or frequencies that are none.
    """

    name: str
    start: int
    values: Tensor = field(repr=False)
    prior: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        if self.values.dim() != 2 or len(self.values) < 2 or not self.values.shape[1]:
            raise ConfigError(
                f"{self.name}: (v, columns) of at least 2 values expected, {tuple(self.values.shape)} came"
            )
        usable = self.prior.shape == self.values.shape[:1] and bool((self.prior >= 0).all())
        if not usable or not 0 < float(self.prior.sum()) < float("inf"):
            raise ConfigError(
                f"{self.name}: a frequency of at least 0 for each of {len(self.values)} values expected, some above 0: "
                "count them in records of the population"
            )

    @property
    def columns(self) -> slice:
        """The attribute's columns: ``records[:, attribute.columns]``."""
        return slice(self.start, self.start + self.values.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class InferredAttribute:
    """What was inferred of n records.

    Args:
        values: (n,) int64, the number of each record's value.
        posteriors: (n, v) float64, rows sum to one.
        undecided: (n,) bool: no value makes the label possible, and the posterior is the prior.
        queries: v a record.
    """

    values: Tensor
    posteriors: Tensor = field(repr=False)
    undecided: Tensor = field(repr=False)
    queries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeInference:
    """The value of most prior times likelihood.

    Args:
        at_once: the most records sent in one call.

    Raises:
        ConfigError: `at_once` is below 1.

    Cost: one query a record and value.

    Source: [1] section 4 (recalled).
    """

    name: ClassVar[str] = "attribute-inference"
    access: ClassVar[type[Scores]] = Scores

    at_once: int = 4096

    def __post_init__(self) -> None:
        if self.at_once < 1:
            raise ConfigError(f"at least 1 record at once expected, {self.at_once} came")

    def infer(
        self,
        access: Scores | Labels,
        records: Tensor,
        labels: Tensor,
        attribute: HiddenAttribute,
        *,
        confusion: Tensor | None = None,
    ) -> InferredAttribute:
        """Infer an attribute that is hidden.

        Args:
            access: the target. With `Labels` a confusion matrix is needed.
            records: (n, inputs); what stands in the attribute's columns is not looked at.
            labels: (n,) int64, the true ones.
            attribute: what is hidden.
            confusion: (classes, classes): of records of each true class (rows) the share that the model answers each class.
                None: the probability that the model gives to the true label takes its place.

        Raises:
            ConfigError: shapes do not belong together, or `Labels` come without a confusion matrix.
            DataError: an answer is not a number.
            BudgetExhausted: the query budget does not do.
        """
        _check(access, records, labels, attribute, confusion)
        count = len(attribute.values)
        likelihoods = []
        for part in torch.split(torch.arange(len(records)), max(1, self.at_once // count)):
            probes = records[part].repeat_interleave(count, 0)
            probes[:, attribute.columns] = attribute.values.to(probes).repeat(len(part), 1)
            truth = labels[part].repeat_interleave(count)
            likelihoods.append(_likelihoods(access, probes, truth, confusion).view(-1, count))
        prior = attribute.prior.double().cpu() / attribute.prior.double().sum().cpu()
        weights = torch.cat(likelihoods).cpu() * prior
        undecided = weights.sum(1) <= 0
        weights = torch.where(undecided[:, None], prior, weights)
        # The largest is scaled to one first: tiny weights must not lose digits.
        posteriors = weights / weights.amax(1, keepdim=True)
        return InferredAttribute(
            values=posteriors.argmax(1),
            posteriors=posteriors / posteriors.sum(1, keepdim=True),
            undecided=undecided,
            queries=len(records) * count,
        )


def _likelihoods(
    access: Scores | Labels, probes: Tensor, truth: Tensor, confusion: Tensor | None
) -> Tensor:
    """How likely the true label of each probe is, given the model's answer, (k,) float64."""
    if isinstance(access, Labels):
        answered = access.labels(probes)
    else:
        answers = access.scores(probes)
        if not bool(answers.isfinite().all()):
            raise DataError("finite answers expected, some are not: the target diverged")
        if int(truth.max()) >= answers.shape[1]:
            raise ConfigError(
                f"labels below {answers.shape[1]}, the target's classes, expected, {int(truth.max())} came"
            )
        if confusion is None:
            return answers.gather(1, truth[:, None]).squeeze(1).double()
        answered = answers.argmax(1)
    if confusion is None or int(answered.max()) >= len(confusion):
        rows = 0 if confusion is None else len(confusion)
        raise ConfigError(
            f"a confusion matrix of all the target's classes expected, {rows} rows came"
        )
    return confusion.double()[truth, answered]


def _check(
    access: Scores | Labels,
    records: Tensor,
    labels: Tensor,
    attribute: HiddenAttribute,
    confusion: Tensor | None,
) -> None:
    fits = records.dim() == 2 and len(records) > 0 and labels.shape == records.shape[:1]
    if not fits or labels.is_floating_point() or int(labels.min()) < 0:
        raise ConfigError(
            f"records (n, inputs) and labels (n,) from 0 expected, {tuple(records.shape)} and {tuple(labels.shape)} came"
        )
    if not 0 <= attribute.start <= records.shape[1] - attribute.values.shape[1]:
        raise ConfigError(
            f"{attribute.name}: columns within {records.shape[1]} inputs expected, {attribute.columns} came"
        )
    if confusion is None:
        if isinstance(access, Labels):
            raise ConfigError("labels alone have no likelihood: give a confusion matrix, or Scores")
        return
    square = confusion.dim() == 2 and confusion.shape[0] == confusion.shape[1]
    if not square or not bool((confusion >= 0).all()) or int(labels.max()) >= len(confusion):
        raise ConfigError(
            f"a square confusion matrix of shares expected, a row for each label up to {int(labels.max())}, "
            f"{tuple(confusion.shape)} came"
        )
