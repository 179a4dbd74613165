"""What membership scores say: one table of figures for a target, its slices, and its most exposed records.

Scores come as two samples, of members and of others, or as scores with a truth. A figure that the sample cannot support is
an `Unsupported` entry, which says how many records it needs, and never a guess. `tacit.audit.statistics` has the figures
themselves.

Intervals hold for the given target: records are drawn, the model is not. For what holds of models trained so, ask several
targets: `over_targets`, `bootstrap_auc`.

Source:
    Carlini et al., S&P 2022, section III (true positives at a low false positive rate); Kairouz, Oh & Viswanath, ICML 2015
    (differential privacy as a bound on error rates); Jagielski, Ullman & Oprea, NeurIPS 2020, and Nasr et al., S&P 2021
    (epsilon's lower bound from Clopper and Pearson's intervals); Field & Welsh, JRSS B 2007 (bootstrap of clusters).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from tacit.audit import statistics
from tacit.audit.statistics import Estimate, FloatArray, Interval, Values, clopper_pearson
from tacit.core.errors import ConfigError, DataError, NotEnoughEvidence

Bools = npt.NDArray[np.bool_]

FALSE_POSITIVE_RATES = (0.1, 0.01, 0.001, 0.0001)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsupported:
    """A figure that the sample is too small for.

    Args:
        needs: how many of `what` it would take.
        came: how many there are.
        what: ``members`` or ``non-members``.
    """

    needs: int
    came: int
    what: str = "non-members"

    def as_json(self) -> dict[str, object]:
        """The entry as plain values: ``value`` and ``interval`` are None, ``why`` is a sentence."""
        why = f"needs {self.needs} {self.what}, {self.came} came"
        return {"value": None, "interval": None, "needs": self.needs, "why": why}


def figures(
    members: Values,
    nonmembers: Values,
    *,
    rates: Sequence[float] = FALSE_POSITIVE_RATES,
    confidence: float = 0.95,
) -> dict[str, Estimate | Unsupported]:
    """AUC and the true positive rates at low false positive rates, each with its interval.

    Args:
        members: (m,) scores.
        nonmembers: (n,) scores. A false positive rate r needs 10 / r of them.
        rates: false positive rates, in (0, 1].
        confidence: in (0, 1), of each interval on its own.

    Returns:
        ``auc`` and, for each rate, ``tpr@0.01fpr`` and the like.

    Raises:
        NotEnoughEvidence: a sample is empty.
        DataError: a score is not a number.
        ConfigError: a rate or `confidence` is out of range.
    """
    inside, outside = (
        statistics.sample(members, "members"),
        statistics.sample(nonmembers, "nonmembers"),
    )
    found: dict[str, Estimate | Unsupported] = {
        "auc": Estimate(
            value=statistics.auc(inside, outside),
            interval=statistics.auc_interval(inside, outside, confidence),
            n=len(inside) + len(outside),
        )
    }
    for rate in rates:
        needed = statistics.negatives_needed(rate)
        found[f"tpr@{rate:g}fpr"] = (
            Unsupported(needs=needed, came=len(outside))
            if len(outside) < needed
            else statistics.tpr_at_fpr(inside, outside, rate, confidence)
        )
    return found


def by_slice(
    scores: Values,
    members: Bools,
    slices: Mapping[str, Bools],
    *,
    rates: Sequence[float] = (0.1, 0.01),
    confidence: float = 0.95,
    least: int = 10,
) -> dict[str, dict[str, Estimate | Unsupported]]:
    """`figures` of parts of the records.

    Each interval holds on its own: of twenty slices where nothing leaks one is expected to show something at 95 %.

    Args:
        scores: (n,).
        members: (n,) bool, the truth.
        slices: by name, (n,) bool each: whom it holds; they may overlap. `class_slices` makes one a class.
        rates: see `figures`.
        confidence: of each interval on its own.
        least: members and non-members that a slice needs for any figure.

    Returns:
        For each slice what `figures` returns; ``auc`` alone, `Unsupported`, where a slice is too small.

    Raises:
        DataError: lengths differ, or a score is not a number.
        ConfigError: a setting is out of range.
    """
    values = _scores(scores, members)
    if least < 1:
        raise ConfigError(f"at least 1 record a slice expected, {least} came")
    found: dict[str, dict[str, Estimate | Unsupported]] = {}
    for name, chosen in slices.items():
        if chosen.shape != members.shape:
            raise DataError(f"slice {name}: shape {members.shape} expected, {chosen.shape} came")
        inside, outside = values[chosen & members], values[chosen & ~members]
        if len(inside) < least:
            found[name] = {"auc": Unsupported(needs=least, came=len(inside), what="members")}
        elif len(outside) < least:
            found[name] = {"auc": Unsupported(needs=least, came=len(outside))}
        else:
            found[name] = figures(inside, outside, rates=rates, confidence=confidence)
    return found


def class_slices(
    labels: npt.NDArray[np.integer], names: Sequence[str] | None = None
) -> dict[str, Bools]:
    """A slice for each class that occurs.

    Args:
        labels: (n,) whole numbers from 0.
        names: of the classes; by default ``class 0`` and so on.

    Raises:
        ConfigError: there are fewer names than classes.
    """
    found = {}
    for label in np.unique(labels).tolist():
        if names is not None and not 0 <= label < len(names):
            raise ConfigError(f"a name for class {label} expected, {len(names)} names came")
        found[f"class {label}" if names is None else names[label]] = labels == label
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposed:
    """One record of the most exposed.

    Args:
        record: its place.
        score: of the attack.
        member: the truth.
        false_positive_rate: share of non-members that score at least as high.
        at_most: upper end of that share's exact interval, one-sided at the confidence asked for.
    """

    record: int
    score: float
    member: bool
    false_positive_rate: float
    at_most: float


def most_exposed(
    scores: Values, members: Bools, count: int = 20, confidence: float = 0.95
) -> list[Exposed]:
    """The members that the attack is surest of, the surest first; equal scores in the order of the records.

    Each bound holds for a record fixed beforehand; the top of a ranking is chosen, so take it as a place to look.

    Args:
        scores: (n,).
        members: (n,) bool, the truth.
        count: how many at most.
        confidence: in (0, 1).

    Raises:
        NotEnoughEvidence: there is no non-member to compare with.
        DataError: lengths differ, or a score is not a number.
        ConfigError: a setting is out of range.
    """
    values = _scores(scores, members)
    if count < 1:
        raise ConfigError(f"at least 1 record expected, {count} came")
    outside = np.sort(values[~members])
    if not len(outside):
        raise NotEnoughEvidence("at least one non-member expected, none came: hold records out")
    places = np.flatnonzero(members)
    chosen = places[np.argsort(-values[places], kind="stable")[:count]]
    found = []
    for place in chosen.tolist():
        above = len(outside) - int(np.searchsorted(outside, values[place], side="left"))
        found.append(
            Exposed(
                record=place,
                score=float(values[place]),
                member=True,
                false_positive_rate=above / len(outside),
                # The upper end of a two-sided interval at 2 c - 1 is one-sided at c.
                at_most=_upper(above, len(outside), confidence),
            )
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class EpsilonBound:
    """A lower bound on epsilon, and where it comes from.

    Args:
        epsilon: 0 where the scores show nothing.
        delta: of the definition.
        confidence: the bound exceeds a true epsilon with probability at most 1 - this.
        threshold: of the scores, chosen on the other half.
        says: ``in``: of the scores above the threshold; ``out``: of those not above.
        members: (hits, of how many) on the half that counts.
        nonmembers: (hits, of how many).
    """

    epsilon: float
    delta: float
    confidence: float
    threshold: float
    says: str
    members: tuple[int, int]
    nonmembers: tuple[int, int]


def tail_p_value(members: Values, nonmembers: Values, rate: float) -> float:
    """How often as many members score above the threshold of `tacit.audit.statistics.tpr_at_fpr` where nothing leaks.

    Exact for scores whose order is random (negative hypergeometric: members that come before the first non-member that
    the rate does not allow); equal scores make it larger.

    Args:
        members: (m,) scores.
        nonmembers: (n,) scores.
        rate: false positive rate, in (0, 1].

    Raises:
        NotEnoughEvidence: a sample is empty, or too small for the rate.
        DataError: a score is not a number.
        ConfigError: `rate` is out of range.
    """
    found = statistics.tpr_at_fpr(members, nonmembers, rate)
    count = len(statistics.sample(nonmembers, "nonmembers"))
    allowed = statistics.allowed_false_positives(rate, count)
    if allowed >= count:
        return 1.0
    above = round(found.value * found.n)
    return float(stats.nhypergeom.sf(above - 1, found.n + count, found.n, allowed + 1))


def held_out_accuracy(
    members: Values, nonmembers: Values, *, generator: torch.Generator, confidence: float = 0.95
) -> Estimate:
    """Balanced accuracy of the best threshold of a random half of the records, judged on the other half.

    Args:
        members: (m,) scores.
        nonmembers: (n,) scores.
        generator: draws the halves.
        confidence: see `tacit.audit.statistics.balanced_accuracy`.

    Raises:
        NotEnoughEvidence: fewer than 2 scores of a kind.
        DataError: a score is not a number.
        ConfigError: `confidence` is out of range.
    """
    (in_1, in_2), (out_1, out_2) = _two_halves(members, nonmembers, generator)
    thresholds = np.concatenate([[-math.inf], np.unique(np.concatenate([in_1, out_1]))])
    found = 1 - np.searchsorted(in_1, thresholds, side="right") / len(in_1)
    spared = np.searchsorted(out_1, thresholds, side="right") / len(out_1)
    best = float(thresholds[int((found + spared).argmax())])
    return statistics.balanced_accuracy(in_2, out_2, threshold=best, confidence=confidence)


def epsilon_lower_bound(
    members: Values,
    nonmembers: Values,
    *,
    delta: float,
    generator: torch.Generator,
    confidence: float = 0.95,
) -> EpsilonBound:
    """The largest epsilon that the scores refute.

    (epsilon, delta)-privacy allows TPR <= exp(epsilon) FPR + delta, and likewise for guesses "out". The threshold, and
    which of the two it is, is chosen on a random half of both samples and judged on the other half, where both rates get
    one-sided Clopper-Pearson bounds that hold together.

    **Assumes** that scores are independent draws, as of many trainings that each include one record or not. Records of
    one training are not: their scores depend on one model. With records in or out by a fair coin each,
    `tacit.dp.audit.audited` needs no such assumption; this is what the literature prints.

    Args:
        members: (m,) scores.
        nonmembers: (n,) scores.
        delta: in [0, 1).
        generator: draws the halves.
        confidence: in (0, 1).

    Raises:
        NotEnoughEvidence: fewer than 2 scores of a kind.
        DataError: a score is not a number.
        ConfigError: a setting is out of range.
    """
    if not (0 <= delta < 1 and 0 < confidence < 1):
        raise ConfigError(
            f"delta in [0, 1) and confidence in (0, 1) expected, {delta} and {confidence} came"
        )
    (in_1, in_2), (out_1, out_2) = _two_halves(members, nonmembers, generator)
    each = (1 + confidence) / 2  # two one-sided bounds, each misses with half of the probability
    thresholds = np.unique(np.concatenate([in_1, out_1]))
    above_in = len(in_1) - np.searchsorted(in_1, thresholds, side="right")
    above_out = len(out_1) - np.searchsorted(out_1, thresholds, side="right")
    says_in = _epsilons(above_in, len(in_1), above_out, len(out_1), delta, each)
    says_out = _epsilons(
        len(out_1) - above_out, len(out_1), len(in_1) - above_in, len(in_1), delta, each
    )
    says = "in" if says_in.max() >= says_out.max() else "out"
    threshold = float(thresholds[int((says_in if says == "in" else says_out).argmax())])
    hits_in, hits_out = int((in_2 > threshold).sum()), int((out_2 > threshold).sum())
    if says == "out":
        hits_in, hits_out = len(in_2) - hits_in, len(out_2) - hits_out
    rows = ((hits_in, len(in_2)), (hits_out, len(out_2)))
    (right, of_right), (wrong, of_wrong) = rows if says == "in" else rows[::-1]
    bound = _epsilons(np.array([right]), of_right, np.array([wrong]), of_wrong, delta, each)
    return EpsilonBound(
        epsilon=max(0.0, float(bound[0])),
        delta=delta,
        confidence=confidence,
        threshold=threshold,
        says=says,
        members=rows[0],
        nonmembers=rows[1],
    )


def over_targets(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Mean of a figure over several targets, each trained anew, with Student's interval of it.

    Args:
        values: one of each target, in [0, 1]; at least 2.
        confidence: in (0, 1).

    Raises:
        NotEnoughEvidence: fewer than 2 targets.
        DataError: a value is outside [0, 1].
        ConfigError: `confidence` is out of range.
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"a confidence in (0, 1) expected, {confidence} came: 0.95 is usual")
    if len(values) < 2:
        raise NotEnoughEvidence(
            f"at least 2 targets expected, {len(values)} came: one says nothing of how targets differ"
        )
    each = np.asarray(values, np.float64)
    if not ((each >= 0) & (each <= 1)).all():
        raise DataError(f"figures in [0, 1] expected, {list(values)} came")
    mean = float(each.mean())
    quantile = float(stats.t.ppf((1 + confidence) / 2, len(each) - 1))
    reach = quantile * float(each.std(ddof=1)) / math.sqrt(len(each))
    return Estimate(
        value=mean, interval=(max(0.0, mean - reach), min(1.0, mean + reach)), n=len(each)
    )


def bootstrap_auc(
    targets: Sequence[tuple[Values, Values]],
    *,
    generator: torch.Generator,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Estimate:
    """Mean AUC over targets with a bootstrap interval: targets are drawn with replacement, and of each its records.

    Of one target it is the records' alone. Below about ten targets their part is too narrow: `over_targets` is safer.

    Args:
        targets: (scores of members, scores of non-members) of each.
        generator: draws on its device; results lie on the CPU.
        resamples: at least 100.
        confidence: in (0, 1).

    Raises:
        NotEnoughEvidence: there is no target, or a sample is empty.
        DataError: a score is not a number.
        ConfigError: a setting is out of range.
    """
    if resamples < 100 or not 0 < confidence < 1:
        raise ConfigError(
            f"at least 100 resamples and a confidence in (0, 1) expected, {resamples} and {confidence} came"
        )
    if not targets:
        raise NotEnoughEvidence("at least one target expected, none came")
    ranked = [
        _Ranked(statistics.sample(inside, "members"), statistics.sample(outside, "nonmembers"))
        for inside, outside in targets
    ]
    drawn = _draws(len(targets), resamples * len(targets), generator).reshape(resamples, -1)
    means = [np.mean([ranked[k].resampled(generator) for k in row]) for row in drawn.tolist()]
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail]).tolist()
    value = float(np.mean([statistics.auc(*one) for one in targets]))
    return Estimate(value=value, interval=(low, high), n=len(targets))


def log_log_roc(
    members: Values, nonmembers: Values, points: int = 200
) -> tuple[FloatArray, FloatArray]:
    """The ROC curve thinned for a picture with both axes logarithmic.

    Args:
        members: (m,) scores.
        nonmembers: (n,) scores.
        points: at most so many, at least 2.

    Returns:
        False positive rates, ascending from 1 / n at least to 1, and the highest true positive rate at each, (k,) each.
        Every point is one of the curve: nothing is interpolated. The first is that of the lowest rate with any false
        positive; what is found without any is its true positive rate at most.

    Raises:
        NotEnoughEvidence: a sample is empty.
        DataError: a score is not a number.
        ConfigError: fewer than 2 points.
    """
    if points < 2:
        raise ConfigError(f"at least 2 points expected, {points} came")
    fpr, tpr = statistics.roc(members, nonmembers)
    last = np.append(fpr[1:] > fpr[:-1], True) & (fpr > 0)  # the highest of each rate
    fpr, tpr = fpr[last], tpr[last]
    wanted = np.geomspace(fpr[0], 1.0, points)
    chosen = np.unique(np.minimum(np.searchsorted(fpr, wanted - 1e-12), len(fpr) - 1))
    return fpr[chosen], tpr[chosen]


class _Ranked:
    """Scores of one target, sorted once, for many resamples."""

    def __init__(self, inside: FloatArray, outside: FloatArray) -> None:
        self._sizes = len(inside), len(outside)
        distinct, place = np.unique(np.concatenate([inside, outside]), return_inverse=True)
        self._count = len(distinct)
        self._places = np.split(place, [len(inside)])

    def resampled(self, generator: torch.Generator) -> float:
        """AUC of as many members and non-members drawn with replacement."""
        inside, outside = (
            np.bincount(place[_draws(size, size, generator)], minlength=self._count)
            for place, size in zip(self._places, self._sizes, strict=True)
        )
        below = np.cumsum(outside) - outside / 2
        return float(inside @ below / (self._sizes[0] * self._sizes[1]))


def _draws(below: int, count: int, generator: torch.Generator) -> npt.NDArray[np.int64]:
    drawn = torch.randint(below, (count,), generator=generator, device=generator.device)
    found: npt.NDArray[np.int64] = drawn.cpu().numpy()
    return found


def _two_halves(
    members: Values, nonmembers: Values, generator: torch.Generator
) -> list[tuple[FloatArray, FloatArray]]:
    """Of members and of non-members: a random half that chooses, and one that judges; each sorted."""
    samples = [statistics.sample(members, "members"), statistics.sample(nonmembers, "nonmembers")]
    if min(map(len, samples)) < 2:
        raise NotEnoughEvidence(
            f"at least 2 members and 2 non-members expected, {len(samples[0])} and {len(samples[1])} came: "
            "one half chooses, the other judges"
        )
    return [_halves(one, generator) for one in samples]


def _halves(values: FloatArray, generator: torch.Generator) -> tuple[FloatArray, FloatArray]:
    order = torch.randperm(len(values), generator=generator, device=generator.device).cpu().numpy()
    half = len(values) // 2
    return np.sort(values[order[:half]]), np.sort(values[order[half:]])


def _epsilons(
    right: npt.NDArray[np.integer],
    of_right: int,
    wrong: npt.NDArray[np.integer],
    of_wrong: int,
    delta: float,
    each: float,
) -> FloatArray:
    """log((lower bound of the right share - delta) / upper bound of the wrong share), minus infinity where it has none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        low = np.where(right == 0, 0.0, stats.beta.ppf(1 - each, right, of_right - right + 1))
        high = np.where(wrong == of_wrong, 1.0, stats.beta.ppf(each, wrong + 1, of_wrong - wrong))
        found: FloatArray = np.where(
            low > delta, np.log(np.maximum(low - delta, 0) / high), -np.inf
        )
    return found


def _upper(hits: int, n: int, confidence: float) -> float:
    if not 0.5 <= confidence < 1:
        raise ConfigError(f"a one-sided confidence in [0.5, 1) expected, {confidence} came")
    interval: Interval = clopper_pearson(hits, n, max(2 * confidence - 1, 1e-12))
    return interval[1]


def _scores(scores: Values, members: Bools) -> FloatArray:
    values = statistics.sample(scores, "scores")
    if members.shape != values.shape or members.dtype != np.bool_:
        raise DataError(
            f"a truth (bool) for each of {len(values)} scores expected, {members.dtype} {members.shape} came"
        )
    return values
