"""What membership attacks by reference models read: answers of the target and of the reference models, gathered once.

A reference model is trained as the target was, on records that the adversary chose; of each record it knows which
reference models saw it (IN) and which did not (OUT). `Evidence.gather` checks the answers and brings them to the
logit-scaled confidence phi = log p_y - log(1 - p_y) in the true class y, which most attacks read
(`tacit.attacks.reference_attacks` lists them).

What is kept secret from whom: nothing here protects. What leaks is what the target answered, and its training data
only through that.

Source:
    N. Carlini, S. Chien, M. Nasr, S. Song, A. Terzis, F. Tramèr. Membership Inference Attacks From First Principles.
    IEEE S&P 2022, section V-B ("logit scaling").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from tacit.core.errors import ConfigError, DataError

FloatArray = npt.NDArray[np.float64]
Logits = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.integer]
Need = Literal["population", "references-in", "references-out"]

MEMORY = 256 * 2**20  # bytes
LEAST_LOG = 708.0  # a probability of zero counts as exp(-708) of the row's largest, about the smallest normal float64

_WANTS: dict[Need, str] = {
    "population": "answers on other records: give Population",
    "references-in": "reference models that saw the records: train some on them, or attack offline",
    "references-out": "reference models that did not see the records: train some without them",
}


class References(Protocol):
    """Reference models as the attacks see them: answers only."""

    @property
    def inside(self) -> Bools:
        """(K, n) bool: whether model k was trained on record i."""
        ...

    @property
    def logits(self) -> Logits:
        """(K, q, n, classes): logits or log-probabilities; may be a memory map."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """Records that are not asked about, and that neither the target nor a reference model was trained on.

    Args:
        answers: (q, m, classes) logits or log-probabilities of the target.
        labels: (m,) true classes.
        references: (K, q, m, classes) of the K reference models; None where there are no reference models.
    """

    answers: Logits
    labels: Integers
    references: Logits | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the target and K reference models said of n records, asked q times each; K and n may be 0.

    Args:
        labels: (n,) true classes.
        raw: (q, n, classes) logits of the target, as they came.
        references: K times (q, n, classes), those of the reference models, as they came.
        inside: (K, n) bool, whether model k was trained on record i.
        phi: (q, n) logit-scaled confidences of the target.
        reference_phi: (K, q, n) of the reference models.
    """

    labels: Integers
    raw: Logits = field(repr=False)
    references: tuple[Logits, ...] = field(repr=False)
    inside: Bools = field(repr=False)
    phi: FloatArray = field(repr=False)
    reference_phi: FloatArray = field(repr=False)

    @classmethod
    def gather(
        cls,
        raw: Logits,
        labels: Integers,
        references: Sequence[Logits],
        inside: Bools,
        *,
        temperature: float = 1.0,
        memory: int = MEMORY,
    ) -> Answers:
        """Bring logits to phi; `Evidence.gather` checks them.

        Args:
            raw: (q, n, classes) logits of the target.
            labels: (n,) true classes.
            references: K times (q, n, classes).
            inside: (K, n) bool.
            temperature: what logits are divided by first.
            memory: bytes, see `true_class_logit`.

        Raises:
            DataError: see `true_class_logit`.
            ConfigError: a setting is not positive.
        """
        phi = np.empty((len(references), *raw.shape[:2]))
        for k, one in enumerate(references):
            phi[k] = true_class_logit(one, labels, temperature=temperature, memory=memory)
        own = true_class_logit(raw, labels, temperature=temperature, memory=memory)
        return cls(
            labels=labels,
            raw=raw,
            references=tuple(references),
            inside=inside,
            phi=own,
            reference_phi=phi,
        )

    def as_if(self, k: int) -> Answers:
        """Reference model k in the target's place, the others as its references."""
        rest = np.arange(len(self.inside)) != k
        return Answers(
            labels=self.labels,
            raw=self.references[k],
            references=(*self.references[:k], *self.references[k + 1 :]),
            inside=self.inside[rest],
            phi=self.reference_phi[k],
            reference_phi=self.reference_phi[rest],
        )

    def tempered(self, temperature: float, memory: int) -> Answers:
        """The same with logits divided by the temperature; 1 gives what is here, others read all logits again."""
        if temperature == 1:
            return self
        return Answers.gather(
            self.raw,
            self.labels,
            self.references,
            self.inside,
            temperature=temperature,
            memory=memory,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that a membership attack reads; made by `Evidence.gather`, once for all attacks.

    Args:
        asked: answers on the records whose membership is asked about.
        others: answers on the population, which no model was trained on; perhaps none.
        memory: bytes for work on logits.
    """

    asked: Answers
    others: Answers
    memory: int = MEMORY

    @classmethod
    def gather(
        cls,
        answers: Logits,
        labels: Integers,
        references: References | None = None,
        population: Population | None = None,
        *,
        memory: int = MEMORY,
    ) -> Evidence:
        """Check the answers and bring them to what attacks read.

        Args:
            answers: (q, n, classes) logits or log-probabilities of the target, q queries a record.
            labels: (n,) true classes.
            references: K reference models' answers to the same queries.
            population: answers on other records.
            memory: bytes for the work on logits, which are read in pieces. What is kept takes 8 K q (n + m) bytes more.

        Raises:
            DataError: shapes do not fit each other, a label is not a class, or a logit is not a number.
            ConfigError: `memory` is not positive.
        """
        if answers.ndim != 3:
            raise DataError(
                f"answers (queries, records, classes) expected, shape {answers.shape} came"
            )
        queries, records, classes = answers.shape
        logits = np.zeros((0, *answers.shape)) if references is None else references.logits
        count = len(logits)
        inside = np.zeros((0, records), bool) if references is None else references.inside
        if inside.shape != (count, records) or logits.shape[1:] != answers.shape:
            raise DataError(
                f"reference logits (K, {queries}, {records}, {classes}) and inside (K, {records}) expected, "
                f"{logits.shape} and {inside.shape} came: ask the reference models what the target was asked"
            )
        if population is None:
            nobody = np.zeros((count, queries, 0, classes))
            empty = np.zeros((queries, 0, classes))
            population = Population(answers=empty, labels=np.zeros(0, np.int64), references=nobody)
        wanted = (queries, len(population.labels), classes)
        others = population.references
        others = np.zeros((0, *wanted)) if others is None else others
        if population.answers.shape != wanted or others.shape != (count, *wanted):
            raise DataError(
                f"population answers {wanted} and those of {count} reference models expected, "
                f"{population.answers.shape} and {others.shape} came"
            )
        return cls(
            asked=Answers.gather(
                answers, labels, tuple(logits), np.asarray(inside, bool), memory=memory
            ),
            others=Answers.gather(
                population.answers,
                population.labels,
                tuple(others),
                np.zeros((count, wanted[1]), bool),
                memory=memory,
            ),
            memory=memory,
        )

    @property
    def count(self) -> int:
        """K, the number of reference models."""
        return len(self.asked.inside)

    def as_if(self, k: int) -> Evidence:
        """Reference model k in the target's place, the others as its references; nothing is read again.

        Its truth is ``asked.inside[k]``, so that settings and thresholds can be chosen without the target's truth. Where
        each record is IN exactly half of the reference models, how many of the others saw it gives that truth away: with
        two models, the only other one is the complement, and an attack on it says nothing of an attack on the target.

        Raises:
            ConfigError: there is no reference model k.
        """
        if not 0 <= k < self.count:
            raise ConfigError(f"one of {self.count} reference models expected, {k} came")
        return Evidence(asked=self.asked.as_if(k), others=self.others.as_if(k), memory=self.memory)

    def lacks(self, needs: tuple[Need, ...]) -> list[str]:
        """What an attack with these needs would have to be given; empty if it can run."""
        has: dict[Need, bool] = {
            "population": len(self.others.labels) > 0,
            "references-in": bool(self.asked.inside.any()),
            "references-out": bool((~self.asked.inside).any()),
        }
        return [_WANTS[need] for need in needs if not has[need]]


class ReferenceAttack(Protocol):
    """What all attacks here have in common."""

    @property
    def name(self) -> str:
        """Lower case, stable across releases."""
        ...

    @property
    def needs(self) -> tuple[Need, ...]:
        """What must be in the `Evidence`."""
        ...

    def score(self, evidence: Evidence) -> FloatArray:
        """(n,) finite scores; higher is more member-like.

        Raises:
            ConfigError: the evidence lacks something; the message says what to give.
        """
        ...


def true_class_logit(
    logits: Logits, labels: Integers, *, temperature: float = 1.0, memory: int = MEMORY
) -> FloatArray:
    """The logit-scaled confidence phi = log p_y - log(1 - p_y), without rounding where p_y is near 0 or 1.

    Args:
        logits: (..., n, classes) logits or log-probabilities; minus infinity is a probability of zero.
        labels: (n,) the class y of each record.
        temperature: what logits are divided by first.
        memory: bytes for temporary arrays; records are taken in pieces of this size.

    Returns:
        (..., n) float64, finite.

    Raises:
        DataError: shapes do not fit each other, a label is not a class, or a logit is not a number.
        ConfigError: `temperature` or `memory` is not positive.

    Source: Carlini et al. 2022, section V-B ("logit scaling"), the stable form.
    """
    *lead, records, classes = logits.shape
    labels = np.asarray(labels)
    if labels.shape != (records,) or classes < 2:
        raise DataError(
            f"a label for each of {records} records and at least 2 classes expected, "
            f"labels {labels.shape} and {classes} classes came"
        )
    _check_labels(labels, classes)
    if memory < 1 or not 0 < temperature < math.inf:
        raise ConfigError(
            f"memory in bytes and a temperature above 0 expected, {memory} and {temperature} came"
        )
    piece = max(
        1, memory // (4 * 8 * classes)
    )  # about four float64 copies of a piece exist at once
    phi = np.empty((*lead, records))
    for place in np.ndindex(*lead):  # the pieces of a memory map are then read in its own order
        for start in range(0, records, piece):
            here = slice(start, start + piece)
            rows, at = _finite(logits[place][here]) / temperature, labels[here, None]
            own = np.take_along_axis(rows, at, 1)[:, 0]
            np.put_along_axis(rows, at, -np.inf, 1)
            phi[place][here] = own - _logsumexp(rows)
    return phi


def needs_of(online: bool) -> tuple[Need, ...]:
    """What an attack by reference models needs: OUT models, online IN models too."""
    return ("references-out", "references-in") if online else ("references-out",)


def check_needs(attack: ReferenceAttack, evidence: Evidence) -> None:
    """Raise unless the evidence has all that the attack needs.

    Raises:
        ConfigError: names the attack, and says what to give.
    """
    lacking = evidence.lacks(attack.needs)
    if lacking:
        raise ConfigError(f"{attack.name} needs {'; and '.join(lacking)}")


def _check_labels(labels: Integers, classes: int) -> None:
    if not np.issubdtype(labels.dtype, np.integer) or (
        labels.size and not (labels.min() >= 0 and labels.max() < classes)
    ):
        raise DataError(
            f"whole-numbered labels from 0 to {classes - 1} expected, {labels.dtype} "
            f"{f'from {labels.min()} to {labels.max()} ' if labels.size else ''}came"
        )


def _finite(logits: Logits) -> FloatArray:
    """A float64 copy with minus infinity raised to a finite floor."""
    rows: FloatArray = np.array(logits, np.float64)
    top = rows.max(1, initial=-np.inf, keepdims=True)
    if not np.isfinite(top).all():  # NaN comes through max
        raise DataError(
            "logits or log-probabilities expected, a row holds NaN or plus infinity, or nothing above minus infinity: "
            "the model diverged, or the scores are of another kind"
        )
    return np.where(np.isneginf(rows), top - LEAST_LOG, rows)


def _logsumexp(rows: FloatArray) -> FloatArray:
    top = rows.max(1, keepdims=True)
    found: FloatArray = np.log(np.exp(rows - top).sum(1)) + top[:, 0]
    return found


def log_softmax(logits: Logits) -> tuple[FloatArray, FloatArray]:
    """Log p and log(1 - p) of each class, (n, classes) each; neither rounds to zero near the ends."""
    rows = _finite(logits)
    log_p = rows - _logsumexp(rows)[:, None]
    top = log_p.argmax(1)[:, None]
    with np.errstate(divide="ignore"):
        log_rest = np.log1p(-np.exp(log_p))  # exact enough for all but the top class
    np.put_along_axis(rows, top, -np.inf, 1)
    phi = np.take_along_axis(_finite(logits), top, 1)[:, 0] - _logsumexp(rows)
    np.put_along_axis(log_p, top, log_probability(phi)[:, None], 1)
    np.put_along_axis(log_rest, top, log_probability(-phi)[:, None], 1)
    return log_p, log_rest


def log_probability(phi: FloatArray) -> FloatArray:
    """Log p of a logit-scaled confidence."""
    found: FloatArray = -np.logaddexp(0.0, -phi)
    return found


def averaged(scores: FloatArray) -> FloatArray:
    """Scores (n,) from those of each query (q, n)."""
    found: FloatArray = scores.mean(0)
    return found
