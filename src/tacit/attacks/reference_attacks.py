"""Membership scores from one shared set of reference models.

A reference model is trained as the target was, on records that the adversary chose; of each record it knows which
reference models saw it (IN) and which did not (OUT). All attacks here read the same answers of the same reference
models, gathered once in an `Evidence`; several of them need none. The higher a score, the more the record looks like a
member. Write phi for the logit-scaled confidence log p_y - log(1 - p_y) in the true class y:

==================  ===================================  ==================================================================
attack              needs                                score
==================  ===================================  ==================================================================
`Loss`              nothing                              log p_y
`MaxConfidence`     nothing                              log max p, the label not used
`Entropy`           nothing                              minus the entropy of the answer, the label not used
`ModifiedEntropy`   nothing                              minus the entropy modified so that a sure, wrong answer counts high
`AttackP`           population                           share of other records with a smaller p_y
`AttackR`           references OUT                       share of the record's OUT models with a smaller p_y
`LiRA`              references OUT, online IN too        likelihood ratio of phi under two Gaussians; offline one tail
`StudentLiRA`       references OUT, online IN too        the same, means and variances integrated out under a fitted prior
`RMIA`              references OUT, online IN too        share of other records whose p_y rose less over the reference models
==================  ===================================  ==================================================================

Of several queries a record (augmentations), `LiRA` and `StudentLiRA` take the answers as independent: log-likelihood
ratios add up, deviations are joined as Stouffer's sum / sqrt(q). All others average their score over the queries.

What is kept secret from whom: nothing here protects. What leaks is what the target answered, and its training data
only through that.

What we changed: LiRA's pooled variance is taken around each record's own mean (the authors' code takes all records'
together, the differences between records included); a record that no reference model saw, or that all did, is placed by
the mean gap between IN and OUT of the others; offline the score is the deviation itself and not its Gaussian tail, which
rounds to 1 where it matters: the order is the same. RMIA takes the softmax probability at a temperature, which is tuned
with its a (its authors also have a Taylor softmax, which is not here); what it does for a record without OUT model is
said there.

Source:
    N. Carlini, S. Chien, M. Nasr, S. Song, A. Terzis, F. Tramèr. Membership Inference Attacks From First Principles.
    IEEE S&P 2022. S. Zarifzadeh, P. Liu, R. Shokri. Low-Cost High-Power Membership Inference Attacks. ICML 2024.
    J. Ye, A. Maddi, S. K. Murakonda, V. Bindschaedler, R. Shokri. Enhanced Membership Inference Attacks against Machine
    Learning Models. CCS 2022 (P and R). L. Song, P. Mittal. Systematic Evaluation of Privacy Risks of Machine Learning
    Models. USENIX Security 2021 (modified entropy). S. Yeom et al., CSF 2018 (loss). A. Salem et al., NDSS 2019
    (confidence and entropy).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

from tacit.core.errors import ConfigError, DataError

FloatArray = npt.NDArray[np.float64]
Logits = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.integer]
Need = Literal["population", "references-in", "references-out"]

MEMORY = 256 * 2**20  # bytes
LEAST_LOG = 708.0  # a probability of zero counts as exp(-708) of the row's largest, about the smallest normal float64
# Reference models; with fewer, one variance for all records serves better (Carlini et al.).
OWN_VARIANCE_FROM = 64

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """The log of the true class's probability.

    Source: Yeom et al. 2018, adversary 2.
    """

    name: ClassVar[str] = "loss"
    needs: ClassVar[tuple[Need, ...]] = ()

    def score(self, evidence: Evidence) -> FloatArray:
        """(n,) scores, at most 0; see `ReferenceAttack.score`."""
        return _averaged(_log_p(evidence.asked.phi))


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxConfidence:
    """The log of the largest probability, of whatever class.

    Source: Salem et al. 2019, adversary 3.
    """

    name: ClassVar[str] = "max-confidence"
    needs: ClassVar[tuple[Need, ...]] = ()

    def score(self, evidence: Evidence) -> FloatArray:
        """(n,) scores, at most 0; see `ReferenceAttack.score`."""
        return _averaged(np.stack([_log_softmax(rows)[0].max(1) for rows in evidence.asked.raw]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Entropy:
    """Minus the entropy of the answer, in nats.

    Source: Salem et al. 2019, adversary 3.
    """

    name: ClassVar[str] = "entropy"
    needs: ClassVar[tuple[Need, ...]] = ()

    def score(self, evidence: Evidence) -> FloatArray:
        """(n,) scores, at most 0; see `ReferenceAttack.score`."""
        found = []
        for rows in evidence.asked.raw:
            log_p, _ = _log_softmax(rows)
            found.append((np.exp(log_p) * log_p).sum(1))
        return _averaged(np.stack(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModifiedEntropy:
    """Minus the modified entropy -(1 - p_y) log p_y - sum over i != y of p_i log(1 - p_i).

    One threshold serves all classes; the authors also fit one a class.

    Source: Song & Mittal 2021, equation 6.
    """

    name: ClassVar[str] = "modified-entropy"
    needs: ClassVar[tuple[Need, ...]] = ()

    def score(self, evidence: Evidence) -> FloatArray:
        """(n,) scores, at most 0; see `ReferenceAttack.score`."""
        found, at = [], evidence.asked.labels[:, None]
        for rows in evidence.asked.raw:
            log_p, log_rest = _log_softmax(rows)
            terms = np.exp(log_p) * log_rest
            own = np.exp(np.take_along_axis(log_rest, at, 1)) * np.take_along_axis(log_p, at, 1)
            np.put_along_axis(terms, at, own, 1)
            found.append(terms.sum(1))
        return _averaged(np.stack(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackP:
    """The share of the population that the target is less sure of: one threshold for all records.

    It ranks as `Loss` does, on a scale that says how many non-members a threshold would flag.

    Source: Ye et al. 2022, attack P.
    """

    name: ClassVar[str] = "population"
    needs: ClassVar[tuple[Need, ...]] = ("population",)

    def score(self, evidence: Evidence) -> FloatArray:
        """(n,) scores in [0, 1]; a tie counts one half; see `ReferenceAttack.score`."""
        _check(self, evidence)
        pairs = zip(evidence.asked.phi, evidence.others.phi, strict=True)
        return _averaged(np.stack([_share_below(one, others) for one, others in pairs]))


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackR:
    """The share of the record's OUT models that are less sure of it than the target: a threshold a record.

    With r OUT models a score takes r + 1 values (and halves), so few of them cannot tell low false positive rates. A
    record without OUT model scores 0.5, which says nothing.

    Source: Ye et al. 2022, attack R.
    """

    name: ClassVar[str] = "reference"
    needs: ClassVar[tuple[Need, ...]] = ("references-out",)

    def score(self, evidence: Evidence) -> FloatArray:
        """(n,) scores in [0, 1]; a tie counts one half; see `ReferenceAttack.score`."""
        _check(self, evidence)
        asked = evidence.asked
        beaten, count = np.zeros_like(asked.phi), (~asked.inside).sum(0)
        for phi, out in zip(asked.reference_phi, ~asked.inside, strict=True):
            beaten += out * ((phi < asked.phi) + 0.5 * (phi == asked.phi))
        return _averaged(np.where(count > 0, beaten / np.maximum(count, 1), 0.5))


@dataclass(frozen=True, slots=True, kw_only=True)
class LiRA:
    """The likelihood ratio of phi between the models that saw the record and those that did not.

    Online: log N(phi; mean IN, variance IN) - log N(phi; mean OUT, variance OUT). Offline: (phi - mean OUT) / deviation
    OUT, the deviate of the one-sided test.

    Args:
        online: use IN models too.
        variance: ``example``: each record its own, of its IN and of its OUT models (a record with fewer than 2 takes the
            pooled one; never below 1e-4 of the pooled one). ``fixed``: one for all IN and one for all OUT, pooled around
            each record's mean; where no record has 2 models of a side it is the other side's, and where no record has 2
            of either, the spread around the mean of all records, which is too wide but the same for all. ``auto``:
            ``example`` from 64 reference models on, else ``fixed``, as the authors advise.

    Raises:
        ConfigError: no such `variance`.

    Source: Carlini et al. 2022, algorithm 1; equation 4 offline; section VI-C for the variance (recalled).
    """

    online: bool = True
    variance: Literal["auto", "example", "fixed"] = "auto"

    def __post_init__(self) -> None:
        if self.variance not in ("auto", "example", "fixed"):
            raise ConfigError(f"variance auto, example or fixed expected, {self.variance!r} came")

    @property
    def name(self) -> str:
        """``lira-online`` or ``lira-offline``."""
        return "lira-online" if self.online else "lira-offline"

    @property
    def needs(self) -> tuple[Need, ...]:
        """OUT models, online IN models too."""
        return _sides(self.online)

    def score(self, evidence: Evidence) -> FloatArray:
        """(n,) log-likelihood ratios (online) or deviates (offline); see `ReferenceAttack.score`."""
        _check(self, evidence)
        phi = evidence.asked.phi
        saw, without = _both_sides(evidence.asked)
        mean_in, mean_out = _completed(saw, without)
        own = self.variance == "example" or (
            self.variance == "auto" and evidence.count >= OWN_VARIANCE_FROM
        )
        variance_in, variance_out = _variances(saw, without, own)
        if not self.online:
            return _stouffer((phi - mean_out) / np.sqrt(variance_out))
        ratio = _log_normal(phi, mean_in, variance_in) - _log_normal(phi, mean_out, variance_out)
        total: FloatArray = ratio.sum(0)
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentLiRA:
    """`LiRA` with each record's means and variances integrated out: the ratio of two Student t densities.

    Of each side (IN, OUT) the phi of a record are normal with a mean and a variance of its own; these have a
    normal-inverse-gamma prior, whose four numbers are fitted to all records by the largest marginal likelihood. What a
    record's few models say is so weighed against what holds for all records, with nothing to switch or tune: it falls
    back to one pooled variance where models are few, and to the record's own where they are many. The IN side's prior
    mean is the record's posterior OUT mean plus a constant, for a record that is hard unseen is hard seen. With one model
    of a side for each record nothing tells a record's own variance from the differences between records, and `RMIA` is
    the better choice.

    It follows the idea of BaVarIA (R. Brännvall, arXiv 2603.11799) from first principles; the prior and its fit are
    ours, not that paper's.

    Args:
        online: use IN models too. Offline the score is the Gaussian deviate of the OUT side's t (Wallace's formula,
            within 0.02 of the exact one, and finite).

    Source: Gelman et al., Bayesian Data Analysis, section 3.3, for posterior and predictive; D. L. Wallace, Annals of
    Mathematical Statistics 1959.
    """

    online: bool = True

    @property
    def name(self) -> str:
        """``student-lira-online`` or ``student-lira-offline``."""
        return "student-lira-online" if self.online else "student-lira-offline"

    @property
    def needs(self) -> tuple[Need, ...]:
        """OUT models, online IN models too."""
        return _sides(self.online)

    def score(self, evidence: Evidence) -> FloatArray:
        """(n,) log-likelihood ratios (online) or deviates (offline); see `ReferenceAttack.score`."""
        _check(self, evidence)
        saw, without = _both_sides(evidence.asked)
        found = []
        for q, phi in enumerate(evidence.asked.phi):
            out = _Predictive.fitted(without.of(q), np.zeros_like(phi))
            if self.online:
                within = _Predictive.fitted(saw.of(q), out.mean)
                found.append(within.log_density(phi) - out.log_density(phi))
            else:
                found.append(out.deviate(phi))
        scores = np.stack(found)
        total: FloatArray = scores.sum(0) if self.online else _stouffer(scores)
        return total


class Tuning(NamedTuple):
    """What `RMIA` uses: the a of its p(x), and the temperature of its probabilities."""

    a: float
    temperature: float


UNTUNED = Tuning(0.3, 2.0)  # privacy-meter's a; the paper's temperature on CIFAR-10 (recalled)
TEMPERATURES = (1.0, 2.0, 4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RMIA:
    """The share of other records z with p(x | target) / p(x) >= gamma p(z | target) / p(z).

    p(x) is the probability of the true class without knowing whether x was seen: the mean of p_IN and p_OUT. What the
    reference models do not give is estimated by p_IN = a p_OUT + 1 - a: offline p_IN, so that p(x) = ((1 + a) p_OUT +
    1 - a) / 2; for a record without OUT model p_OUT = (p_IN + a - 1) / a, at least 0, and p_IN itself is taken as it is.
    So one reference model is enough. The records z are the population or, without one, the records that are asked about,
    each with its own IN and OUT models.

    Probabilities are those of the logits divided by a temperature: at 1 a model that fits its members well is as sure of
    many others, and p tells them apart badly. With one query the order does not depend on gamma except through ties.

    Args:
        online: take p_IN from IN models where a record has some.
        gamma: above 0. 1 is privacy-meter's; the paper uses 2 for most of its figures (recalled).
        a: in [0, 1]; None tunes it, see `tuned`.
        temperature: above 0; None tunes it.
        tuned_on: how many reference models play the target in turn for that; 1 is privacy-meter's way.

    Raises:
        ConfigError: a setting is out of range.

    Source: Zarifzadeh et al. 2024, equations 4, 9 and 10, appendix B for a and the temperature (recalled); the single
    model's formula is privacy-meter's.
    """

    online: bool = False
    gamma: float = 1.0
    a: float | None = None
    temperature: float | None = None
    tuned_on: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.gamma < math.inf or self.tuned_on < 1:
            raise ConfigError(
                f"gamma above 0 and tuned_on at least 1 expected, {self.gamma} and {self.tuned_on} came"
            )
        if self.a is not None and not 0 <= self.a <= 1:
            raise ConfigError(f"a in [0, 1] expected, {self.a} came: None tunes it")
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise ConfigError(
                f"a temperature above 0 expected, {self.temperature} came: None tunes it"
            )

    @property
    def name(self) -> str:
        """``rmia-online`` or ``rmia-offline``."""
        return "rmia-online" if self.online else "rmia-offline"

    @property
    def needs(self) -> tuple[Need, ...]:
        """OUT models, online IN models too; one model that saw some of the records is both."""
        return _sides(self.online)

    def score(self, evidence: Evidence) -> FloatArray:
        """(n,) shares in [0, 1]; see `ReferenceAttack.score`."""
        _check(self, evidence)
        found = self.tuned(evidence)
        return self._ratios(evidence, found.temperature).shares(found.a, self.gamma)

    def tuned(self, evidence: Evidence) -> Tuning:
        """The a of 0, 0.1, ..., 1 and temperature of 1, 2, 4 by which attacking reference models goes best.

        Each of the first `tuned_on` reference models is attacked with the help of the others, and the mean AUC decides;
        of equals the a nearest to 0.3 and the lowest temperature. All is known of reference models: the target is not
        looked at. Only records with an OUT model among the others count. Where these are all members of the model that
        plays the target, or none (one reference model; two that halve the records), nothing can be tuned, and it is 0.3
        and 2. What is set is not tuned.

        Cost: all logits are read again for every temperature but 1.
        """
        steps = sorted((step / 10 for step in range(11)), key=lambda a: abs(a - UNTUNED.a))
        grid_a = steps if self.a is None else [self.a]
        grid_t = TEMPERATURES if self.temperature is None else (self.temperature,)
        played = range(min(self.tuned_on, evidence.count) if evidence.count > 1 else 0)
        trials = {}
        for k in played:
            fair = ~np.delete(evidence.asked.inside, k, 0).all(0)
            truth = evidence.asked.inside[k][fair]
            if truth.any() and not truth.all():
                trials[k] = (fair, truth)
        best = Tuning(
            UNTUNED.a if self.a is None else self.a,
            UNTUNED.temperature if self.temperature is None else self.temperature,
        )
        most = -math.inf
        if not trials or len(grid_a) * len(grid_t) == 1:
            return best
        for temperature in grid_t:
            tempered = self._tempered(evidence, temperature)
            ratios = {k: self._ratios(tempered.as_if(k), 1.0) for k in trials}
            for a in grid_a:
                reached = sum(
                    _auc(ratios[k].shares(a, self.gamma)[fair], truth)
                    for k, (fair, truth) in trials.items()
                )
                if reached > most:
                    best, most = Tuning(a, temperature), reached
        return best

    @staticmethod
    def _tempered(evidence: Evidence, temperature: float) -> Evidence:
        return Evidence(
            asked=evidence.asked.tempered(temperature, evidence.memory),
            others=evidence.others.tempered(temperature, evidence.memory),
            memory=evidence.memory,
        )

    def _ratios(self, evidence: Evidence, temperature: float) -> _Ratios:
        tempered = self._tempered(evidence, temperature)
        ours = _Probabilities.of(tempered.asked, self.online)
        theirs = _Probabilities.of(tempered.others, self.online)
        return _Ratios(ours, theirs if len(evidence.others.labels) else ours)


class _Probabilities(NamedTuple):
    """Logs of p(x | target), p_IN and p_OUT, (q, n) each; and of which records the last two are to be guessed, (n,)."""

    target: FloatArray
    inside: FloatArray
    outside: FloatArray
    guess_inside: Bools
    guess_outside: Bools

    @classmethod
    def of(cls, answers: Answers, online: bool) -> _Probabilities:
        mask = answers.inside
        known_in: Bools = np.asarray(mask.any(0))
        known_out: Bools = np.asarray((~mask).any(0))
        return cls(
            _log_p(answers.phi),
            _log_mean_p(answers.reference_phi, mask),
            _log_mean_p(answers.reference_phi, ~mask),
            known_out & ~known_in if online else known_out,
            ~known_out,
        )

    def log_ratio(self, a: float) -> FloatArray:
        """Log of p(x | target) / p(x), (q, n)."""
        with np.errstate(divide="ignore"):
            # At a = 0 nothing is known of p_OUT, and the untuned a stands in; at 1 it is p_IN exactly.
            slope = a or UNTUNED.a
            rest = np.exp(self.inside) - (1 - slope)
            guessed = self.inside if a == 1 else np.log(np.maximum(rest, 0) / slope)
            outside = np.where(self.guess_outside, guessed, self.outside)
            guessed = np.logaddexp(outside + np.log(a), np.log1p(-a))
        inside = np.where(self.guess_inside, guessed, self.inside)
        found: FloatArray = self.target - (np.logaddexp(inside, outside) - math.log(2))
        return found


class _Ratios(NamedTuple):
    ours: _Probabilities
    theirs: _Probabilities

    def shares(self, a: float, gamma: float) -> FloatArray:
        """The share of z that x dominates, (n,)."""
        shares = [
            np.searchsorted(np.sort(z), x - math.log(gamma), side="right") / len(z)
            for x, z in zip(self.ours.log_ratio(a), self.theirs.log_ratio(a), strict=True)
        ]
        return _averaged(np.stack(shares))


REFERENCE_ATTACKS: tuple[ReferenceAttack, ...] = (
    Loss(), MaxConfidence(), Entropy(), ModifiedEntropy(), AttackP(), AttackR(),
    LiRA(online=True), LiRA(online=False), StudentLiRA(online=True), StudentLiRA(online=False),
    RMIA(online=True), RMIA(online=False),
)  # fmt: skip


class _Moments(NamedTuple):
    """Of each record's models of one side: how many (n,); mean (q, n); sum of squares around it (q, n)."""

    models: Integers
    mean: FloatArray
    squares: FloatArray

    def of(self, q: int) -> _Moments:
        """Those of query q alone, (n,) each."""
        return _Moments(self.models, self.mean[q], self.squares[q])


def _moments(phi: FloatArray, mask: Bools) -> _Moments:
    # One model at a time: temporary arrays stay as small as one model's answers.
    count, mean = mask.sum(0), np.zeros(phi.shape[1:])
    for one, at in zip(phi, mask, strict=True):
        mean += np.where(at, one, 0.0)
    mean /= np.maximum(count, 1)
    squares = np.zeros_like(mean)
    for one, at in zip(phi, mask, strict=True):
        squares += np.where(at, one - mean, 0.0) ** 2
    return _Moments(count, mean, squares)


def _both_sides(asked: Answers) -> tuple[_Moments, _Moments]:
    """IN and OUT."""
    return _moments(asked.reference_phi, asked.inside), _moments(asked.reference_phi, ~asked.inside)


def _completed(saw: _Moments, without: _Moments) -> tuple[FloatArray, FloatArray]:
    """Means IN and OUT, (q, n) each; a missing one is the other one and the mean gap."""
    some_in, some_out = saw.models > 0, without.models > 0
    both = some_in & some_out
    if both.any():
        gap = (saw.mean - without.mean)[:, both].mean(1, keepdims=True)
    elif some_in.any() and some_out.any():
        gap = saw.mean[:, some_in].mean(1, keepdims=True) - without.mean[:, some_out].mean(
            1, keepdims=True
        )
    else:
        gap = np.zeros((len(saw.mean), 1))
    return (
        np.where(some_in, saw.mean, without.mean + gap),
        np.where(some_out, without.mean, saw.mean - gap),
    )


def _variances(saw: _Moments, without: _Moments, own: bool) -> tuple[FloatArray, FloatArray]:
    """Variances IN and OUT, (q, n) each, see `LiRA`."""
    pooled_in, pooled_out = _pooled(saw), _pooled(without)
    if pooled_in is None and pooled_out is None:
        around = [
            side.mean[:, side.models > 0] - side.mean[:, side.models > 0].mean(1, keepdims=True)
            for side in (saw, without)
            if side.models.any()
        ]
        pooled_in = np.square(np.concatenate(around, 1)).mean(1, keepdims=True)
    return (
        _variance(saw, pooled_out if pooled_in is None else pooled_in, own),
        _variance(without, pooled_in if pooled_out is None else pooled_out, own),
    )


def _pooled(side: _Moments) -> FloatArray | None:
    """Variance around each record's mean, (q, 1); None where no record has two models."""
    freedom = int(np.maximum(side.models - 1, 0).sum())
    return side.squares.sum(1, keepdims=True) / freedom if freedom else None


def _variance(side: _Moments, pooled: FloatArray | None, own: bool) -> FloatArray:
    level = np.maximum(0.0 if pooled is None else pooled, 1e-12)
    each = np.maximum(side.squares / np.maximum(side.models, 1), 1e-4 * level)
    found: FloatArray = np.where(own & (side.models > 1), each, level)
    return found


class _Predictive(NamedTuple):
    """Student t of a record's next phi, (n,) each: degrees of freedom, mean, squared scale."""

    freedom: FloatArray
    mean: FloatArray
    square: FloatArray

    @classmethod
    def fitted(cls, side: _Moments, centre: FloatArray) -> _Predictive:
        """The posterior predictive under the prior that fits all records best, its mean ``centre`` plus a constant."""
        seen = side.models > 0
        # In units of the records, so that the fit starts near its end whatever the scale of phi.
        off = (side.mean - centre)[seen]
        pooled = _pooled(_Moments(side.models, side.mean[None], side.squares[None]))
        middle, spread = float(off.mean()), max(float(off.var()), 1e-12)
        level = max(spread if pooled is None else float(pooled[0, 0]), 1e-12)
        scaled = _Moments(
            side.models,
            np.where(seen, (side.mean - centre - middle) / math.sqrt(level), 0.0),
            side.squares / level,
        )
        found = _Prior.fitted(scaled, level / spread).predictive(scaled)
        mean = centre + middle + math.sqrt(level) * found.mean
        return cls(found.freedom, mean, level * found.square)

    def log_density(self, phi: FloatArray) -> FloatArray:
        found: FloatArray = stats.t.logpdf(phi, self.freedom, self.mean, np.sqrt(self.square))
        return found

    def deviate(self, phi: FloatArray) -> FloatArray:
        """The normal deviate with as much probability beyond it (Wallace 1959)."""
        t = (phi - self.mean) / np.sqrt(self.square)
        nu = self.freedom
        found: FloatArray = (
            np.sign(t) * (8 * nu + 1) / (8 * nu + 3) * np.sqrt(nu * np.log1p(t**2 / nu))
        )
        return found


class _Prior(NamedTuple):
    """Normal-inverse-gamma: variance ~ InvGamma(alpha, beta), mean | variance ~ N(centre, variance / kappa)."""

    centre: float
    kappa: float
    alpha: float
    beta: float

    @classmethod
    def fitted(cls, side: _Moments, kappa: float) -> _Prior:
        """The largest marginal likelihood, from variance about 1 and this kappa on."""
        seen = np.flatnonzero(side.models)
        seen = seen[:: -(-len(seen) // 20_000)]  # more records than this teach it nothing
        sample = _Moments(side.models[seen], side.mean[seen], side.squares[seen])

        def loss(at: FloatArray) -> tuple[float, FloatArray]:
            prior = cls(float(at[0]), *np.exp(at[1:]).tolist())
            slopes = np.stack(prior.slopes(sample)).mean(1) * [1, *prior[1:]]  # of the logarithms
            return -float(prior.log_marginal(sample).mean()), -slopes

        start = np.array([0.0, math.log(min(max(kappa, 1e-3), 1e3)), math.log(2), 0.0])
        bounds = [(-1e3, 1e3), *[(math.log(1e-4), math.log(1e4))] * 3]
        options = {"ftol": 1e-13, "gtol": 1e-9, "maxiter": 1000}
        at = optimize.minimize(
            loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options
        ).x
        return cls(float(at[0]), *np.exp(at[1:]).tolist())

    def posterior(self, side: _Moments) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Mean, kappa, alpha and beta of each record, (n,) each."""
        n, off = side.models, side.mean - self.centre
        kappa: FloatArray = self.kappa + n.astype(np.float64)
        mean = self.centre + n * off / kappa
        beta = self.beta + side.squares / 2 + self.kappa * n * off**2 / (2 * kappa)
        return mean, kappa, self.alpha + n / 2, beta

    def predictive(self, side: _Moments) -> _Predictive:
        """What the next phi of each record is like."""
        mean, kappa, alpha, beta = self.posterior(side)
        return _Predictive(2 * alpha, mean, beta * (kappa + 1) / (alpha * kappa))

    def log_marginal(self, side: _Moments) -> FloatArray:
        """Log-density of a record's phi, (n,)."""
        _, kappa, alpha, beta = self.posterior(side)
        found: FloatArray = (
            special.gammaln(alpha)
            - special.gammaln(self.alpha)
            + self.alpha * math.log(self.beta)
            - alpha * np.log(beta)
            + (math.log(self.kappa) - np.log(kappa)) / 2
            - side.models * math.log(2 * math.pi) / 2
        )
        return found

    def slopes(self, side: _Moments) -> tuple[FloatArray, ...]:
        """Derivatives of `log_marginal` by centre, kappa, alpha and beta, (n,) each."""
        n, off = side.models, side.mean - self.centre
        _, kappa, alpha, beta = self.posterior(side)
        return (
            alpha / beta * self.kappa * n * off / kappa,
            (1 / self.kappa - 1 / kappa) / 2 - alpha / beta * (n * off / kappa) ** 2 / 2,
            special.digamma(alpha)
            - special.digamma(self.alpha)
            + math.log(self.beta)
            - np.log(beta),
            self.alpha / self.beta - alpha / beta,
        )


def _sides(online: bool) -> tuple[Need, ...]:
    return ("references-out", "references-in") if online else ("references-out",)


def _check(attack: ReferenceAttack, evidence: Evidence) -> None:
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


def _log_softmax(logits: Logits) -> tuple[FloatArray, FloatArray]:
    """Log p and log(1 - p) of each class, (n, classes) each; neither rounds to zero near the ends."""
    rows = _finite(logits)
    log_p = rows - _logsumexp(rows)[:, None]
    top = log_p.argmax(1)[:, None]
    with np.errstate(divide="ignore"):
        log_rest = np.log1p(-np.exp(log_p))  # exact enough for all but the top class
    np.put_along_axis(rows, top, -np.inf, 1)
    phi = np.take_along_axis(_finite(logits), top, 1)[:, 0] - _logsumexp(rows)
    np.put_along_axis(log_p, top, _log_p(phi)[:, None], 1)
    np.put_along_axis(log_rest, top, _log_p(-phi)[:, None], 1)
    return log_p, log_rest


def _log_p(phi: FloatArray) -> FloatArray:
    found: FloatArray = -np.logaddexp(0.0, -phi)
    return found


def _log_mean_p(phi: FloatArray, mask: Bools) -> FloatArray:
    """Log of the mean p over the models in ``mask`` (K, n); (q, n), minus infinity where there is none."""
    total = np.full(phi.shape[1:], -np.inf)
    for one, at in zip(phi, mask, strict=True):
        total = np.logaddexp(total, np.where(at, _log_p(one), -np.inf))
    found: FloatArray = total - np.log(np.maximum(mask.sum(0), 1))
    return found


def _log_normal(x: FloatArray, mean: FloatArray, variance: FloatArray) -> FloatArray:
    found: FloatArray = -0.5 * ((x - mean) ** 2 / variance + np.log(2 * math.pi * variance))
    return found


def _stouffer(deviates: FloatArray) -> FloatArray:
    found: FloatArray = deviates.sum(0) / math.sqrt(len(deviates))
    return found


def _averaged(scores: FloatArray) -> FloatArray:
    found: FloatArray = scores.mean(0)
    return found


def _share_below(these: FloatArray, those: FloatArray) -> FloatArray:
    ordered = np.sort(those)
    found: FloatArray = (
        np.searchsorted(ordered, these, "left") + np.searchsorted(ordered, these, "right")
    ) / (2.0 * len(those))
    return found


def _auc(scores: FloatArray, truth: Bools) -> float:
    ranks = stats.rankdata(scores)
    members = int(truth.sum())
    return float((ranks[truth].mean() - (members + 1) / 2) / (len(truth) - members))
