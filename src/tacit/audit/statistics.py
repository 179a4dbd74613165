"""Figures with intervals: what a sample says about an attack, and what it cannot say.

Every metric here grows with the leak. Scores of an attack come as two samples: `members` (records,
or victims, where the attack should score high) and `nonmembers`. Intervals are two-sided, and do
not collapse where a small sample happens to have no spread. A sample too small for a figure raises
`NotEnoughEvidence` instead of returning a guess.

Source:
    Clopper & Pearson 1934 (exact binomial intervals); DeLong, DeLong & Clarke-Pearson 1988
    (variance of the area under the ROC curve); Carlini et al., S&P 2022 (true positives at a low
    false positive rate); Wang et al. 2004 (SSIM).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor

from tacit.core.errors import ConfigError, DataError, NotEnoughEvidence

FloatArray = npt.NDArray[np.float64]
Values = Tensor | npt.NDArray[np.floating] | Sequence[float]
Interval = tuple[float, float]
Verdict = Literal["leaks", "contained", "inconclusive"]

NEGATIVES_PER_FALSE_POSITIVE = 10
PSNR_CEILING_DB = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure with its interval.

    Args:
        value: the point estimate.
        interval: (low, high), both ends included.
        n: the size of the sample that the interval rests on.
    """

    value: float
    interval: Interval
    n: int

    def as_json(self) -> dict[str, object]:
        """The estimate as plain values: ``value``, ``interval`` and ``n``."""
        return {"value": self.value, "interval": list(self.interval), "n": self.n}


def sample(values: Values, name: str) -> FloatArray:
    """Values as (n,) float64 on the CPU.

    Args:
        values: numbers; infinities are allowed.
        name: what they are called in an error.

    Raises:
        NotEnoughEvidence: there are none.
        DataError: one is not a number.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    found = np.asarray(values, dtype=np.float64).reshape(-1)
    if not len(found):
        raise NotEnoughEvidence(f"at least one of {name} expected, none came")
    if np.isnan(found).any():
        raise DataError(
            f"numbers expected in {name}, {int(np.isnan(found).sum())} of {len(found)} are NaN: "
            "the attack or the target diverged"
        )
    return found


def paired_difference(more: int, fewer: int, n: int) -> tuple[float, float]:
    """The difference of two rates on the same records, and its standard deviation, with half a record added to each cell.

    So a sample in which the two never differ does not pretend to know.

    Args:
        more: records on which the first alone is right.
        fewer: records on which the second alone is.
        n: all records.

    Source: Agresti & Min, Simple improved confidence intervals for comparing matched proportions, Statistics in Medicine
    2005.
    """
    middle, size = (more - fewer) / (n + 2), n + 2
    return middle, math.sqrt(((more + fewer + 1) / size - middle**2) / size)


def clopper_pearson(hits: float, n: float, confidence: float = 0.95) -> Interval:
    """Exact interval of a proportion: it covers the truth at least `confidence` of the time.

    Args:
        hits: successes, 0 to `n`; parts of one (ties, effective samples) are allowed.
        n: trials; 0 gives (0, 1).
        confidence: in (0, 1).

    Raises:
        ConfigError: `hits`, `n` or `confidence` is out of range.

    Source: Clopper & Pearson 1934.
    """
    _check_confidence(confidence)
    if not (n >= 0 and 0 <= hits <= n):
        raise ConfigError(f"0 <= hits <= n expected, hits {hits} and n {n} came: count again")
    alpha = 1 - confidence
    low = 0.0 if hits == 0 else float(stats.beta.ppf(alpha / 2, hits, n - hits + 1))
    high = 1.0 if hits == n else float(stats.beta.ppf(1 - alpha / 2, hits + 1, n - hits))
    return low, high


def clustered_interval(counts: Sequence[tuple[int, int]], confidence: float = 0.95) -> Interval:
    """Interval of a proportion whose trials come in clusters that succeed or fail together.

    Clopper and Pearson's interval at the effective sample size: the trials, divided by how much more the clusters differ
    than independent trials would, and corrected for the number of clusters. Never narrower than for independent trials.
    From one cluster, or where all or none succeed, nothing can be learned about that, and trials count as independent.

    Args:
        counts: (successes, trials) of each cluster.
        confidence: in (0, 1).

    Raises:
        ConfigError: a count or `confidence` is out of range.

    Source: Korn & Graubard, Survey Methodology 1998.
    """
    hits, n, clusters = sum(h for h, _ in counts), sum(t for _, t in counts), len(counts)
    if clusters < 2 or n == clusters or hits in (0, n):
        return clopper_pearson(hits, n, confidence)
    share = hits / n
    spread = sum((h - share * t) ** 2 for h, t in counts) * clusters / (clusters - 1) / n**2
    if spread == 0:
        return clopper_pearson(hits, n, confidence)
    tail = 1 - (1 - confidence) / 2
    narrower = float(stats.t.ppf(tail, n - 1) / stats.t.ppf(tail, clusters - 1)) ** 2
    effective = min(n, max(1.0, share * (1 - share) / spread * narrower))
    return clopper_pearson(share * effective, effective, confidence)


def median_interval(values: Values, confidence: float = 0.95) -> Interval:
    """Interval of the median between two order statistics; no shape of the distribution is assumed.

    Args:
        values: (n,) independent values. At 95 % at least 6 are needed: the range of fewer misses
            the median more often than that.
        confidence: in (0, 1).

    Raises:
        NotEnoughEvidence: so few values have no such interval.
        DataError: a value is not a number.
        ConfigError: `confidence` is out of range.

    Source: the sign test inverted (Thompson 1936).
    """
    _check_confidence(confidence)
    ordered = np.sort(sample(values, "values"))
    n, alpha = len(ordered), 1 - confidence
    # The largest rank k with P(Binomial(n, 1/2) < k) <= alpha / 2 (one less on equality).
    rank = int(stats.binom.ppf(alpha / 2, n, 0.5))
    if rank < 1:
        least = math.ceil(math.log2(2 / alpha))
        raise NotEnoughEvidence(
            f"a {confidence:.0%} interval of a median needs at least {least} values, {n} came: "
            "repeat the measurement, or ask for less confidence"
        )
    return float(ordered[rank - 1]), float(ordered[n - rank])


def auc(members: Values, nonmembers: Values) -> float:
    """Chance that a member scores above a non-member; a tie counts one half (Mann-Whitney).

    Args:
        members: (m,) scores; infinities are allowed.
        nonmembers: (n,) scores.

    Returns:
        0 to 1; 0.5 is guessing.

    Raises:
        NotEnoughEvidence: a sample is empty.
        DataError: a score is not a number.
    """
    return float(_placements(members, nonmembers)[0].mean())


def auc_interval(members: Values, nonmembers: Values, confidence: float = 0.95) -> Interval:
    """Interval of `auc`: DeLong's variance on the logit scale, so that it stays inside (0, 1).

    A sample whose records all do equally well (every member is predicted right, say) has an
    estimated variance of zero, which says nothing about the next record. Its part of the variance
    is then taken with two imagined records added, one above and one below all others (Agresti &
    Caffo's remedy). Where neither sample varies (perfect separation, or one single score), or one
    has a single record, the interval is Clopper and Pearson's over min(m, n) disjoint pairs: these
    are independent, each is won with probability AUC, so it is safe, and wide.

    Args:
        members: (m,) scores.
        nonmembers: (n,) scores.
        confidence: in (0, 1).

    Raises:
        NotEnoughEvidence: a sample is empty.
        DataError: a score is not a number.
        ConfigError: `confidence` is out of range.

    Source: DeLong, DeLong & Clarke-Pearson 1988; Agresti & Caffo 2000.
    """
    _check_confidence(confidence)
    of_members, of_nonmembers = _placements(members, nonmembers)
    area = float(of_members.mean())
    pairs = min(len(of_members), len(of_nonmembers))
    varies = pairs > 1 and (np.ptp(of_members) > 0 or np.ptp(of_nonmembers) > 0)
    if not varies or not 0 < area < 1:
        return clopper_pearson(min(max(area, 0.0), 1.0) * pairs, pairs, confidence)
    variance = _variance_of_mean(of_members) + _variance_of_mean(of_nonmembers)
    # Student's t with the smaller sample's freedom keeps small samples honest; it is the normal for
    # large ones.
    quantile = float(stats.t.ppf((1 + confidence) / 2, pairs - 1))
    centre = math.log(area / (1 - area))
    reach = quantile * math.sqrt(variance) / (area * (1 - area))
    return _expit(centre - reach), _expit(centre + reach)


def roc(members: Values, nonmembers: Values) -> tuple[FloatArray, FloatArray]:
    """The ROC curve of "score at least t means member", one point per distinct score.

    Args:
        members: (m,) scores.
        nonmembers: (n,) scores.

    Returns:
        False positive rates and true positive rates, (k,) each, from (0, 0) to (1, 1), both
        non-decreasing.

    Raises:
        NotEnoughEvidence: a sample is empty.
        DataError: a score is not a number.
    """
    inside, outside = (
        np.sort(sample(members, "members")),
        np.sort(sample(nonmembers, "nonmembers")),
    )
    thresholds = np.unique(np.concatenate([inside, outside]))[::-1]
    tpr = 1 - np.searchsorted(inside, thresholds, side="left") / len(inside)
    fpr = 1 - np.searchsorted(outside, thresholds, side="left") / len(outside)
    return np.concatenate([[0.0], fpr]), np.concatenate([[0.0], tpr])


def negatives_needed(fpr: float) -> int:
    """How many non-members `tpr_at_fpr` needs: 10 / `fpr`.

    Raises:
        ConfigError: `fpr` is not in (0, 1].
    """
    if not 0 < fpr <= 1:
        raise ConfigError(f"a false positive rate in (0, 1] expected, {fpr} came")
    # The tolerance keeps 10 / 0.001 on the right side of its whole number.
    return math.ceil(NEGATIVES_PER_FALSE_POSITIVE / fpr - 1e-6)


def allowed_false_positives(fpr: float, nonmembers: int) -> int:
    """How many of so many non-members may score above the threshold of `tpr_at_fpr`."""
    return math.floor(fpr * nonmembers + 1e-6)  # 0.29 * 100 is 28.999...


def tpr_at_fpr(
    members: Values, nonmembers: Values, fpr: float, confidence: float = 0.95
) -> Estimate:
    """Share of members found by the loosest threshold that flags at most `fpr` of non-members.

    The interval is Clopper and Pearson's over the members with the threshold held fixed; the
    threshold itself rests on the non-members, of which at least 10 must lie beyond it.

    Args:
        members: (m,) scores.
        nonmembers: (n,) scores, n at least 10 / `fpr`.
        fpr: in (0, 1].
        confidence: in (0, 1).

    Raises:
        NotEnoughEvidence: too few non-members for this `fpr`, or no member.
        DataError: a score is not a number.
        ConfigError: `fpr` or `confidence` is out of range.

    Source: Carlini et al., S&P 2022, section III.
    """
    needed = negatives_needed(fpr)
    inside, outside = sample(members, "members"), sample(nonmembers, "nonmembers")
    if len(outside) < needed:
        raise NotEnoughEvidence(
            f"a false positive rate of {fpr:g} needs at least {needed} non-members, {len(outside)} "
            "came: hold more records out, or ask for a higher rate"
        )
    allowed = allowed_false_positives(fpr, len(outside))
    threshold = -math.inf if allowed >= len(outside) else np.sort(outside)[::-1][allowed]
    found = len(inside) if allowed >= len(outside) else int((inside > threshold).sum())
    interval = clopper_pearson(found, len(inside), confidence)
    return Estimate(value=found / len(inside), interval=interval, n=len(inside))


def balanced_accuracy(
    members: Values, nonmembers: Values, *, threshold: float, confidence: float = 0.95
) -> Estimate:
    """Mean of the two classes' accuracies for "score above `threshold` means member".

    The threshold must have been fixed without these records (the attack's own, or one found on its
    shadow models): the best threshold of the evaluated sample looks better than guessing even where
    nothing leaks.

    Args:
        members: (m,) scores.
        nonmembers: (n,) scores.
        threshold: fixed beforehand.
        confidence: in (0, 1); the interval joins two exact ones and covers at least this.

    Raises:
        NotEnoughEvidence: a sample is empty.
        DataError: a score is not a number.
        ConfigError: `confidence` is out of range.
    """
    _check_confidence(confidence)
    inside, outside = sample(members, "members"), sample(nonmembers, "nonmembers")
    found, spared = int((inside > threshold).sum()), int((outside <= threshold).sum())
    each = (
        1 + confidence
    ) / 2  # each misses with half the probability, so both together hold (Bonferroni)
    of_members = clopper_pearson(found, len(inside), each)
    of_nonmembers = clopper_pearson(spared, len(outside), each)
    return Estimate(
        value=(found / len(inside) + spared / len(outside)) / 2,
        interval=(
            (of_members[0] + of_nonmembers[0]) / 2,
            (of_members[1] + of_nonmembers[1]) / 2,
        ),
        n=len(inside) + len(outside),
    )


def psnr(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibel, of images with values in [0, 1].

    Args:
        original: (..., C, H, W).
        reconstruction: same shape.

    Returns:
        (...) float64, at most 100 dB: equal images have an infinite ratio, which no report can
        average.

    Raises:
        DataError: the shapes differ, are not images, or a value is outside [0, 1].
    """
    first, second = _images(original, reconstruction)
    error = (first - second).square().mean((-3, -2, -1))
    return -10 * error.clamp_min(10 ** (-PSNR_CEILING_DB / 10)).log10()


def ssim(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Structural similarity of images with values in [0, 1], averaged over channels and windows.

    A Gaussian window of 11 by 11 (deviation 1.5), or the largest odd window that fits a smaller
    image; windows lie wholly inside the image.

    Args:
        original: (..., C, H, W).
        reconstruction: same shape.

    Returns:
        (...) float64 in [-1, 1]; 1 for equal images.

    Raises:
        DataError: the shapes differ, are not images, or a value is outside [0, 1].

    Source: Wang, Bovik, Sheikh & Simoncelli 2004, equation 13, K1 = 0.01, K2 = 0.03.
    """
    first, second = _images(original, reconstruction)
    height, width = first.shape[-2:]
    side = min(11, height, width)
    side -= 1 - side % 2
    offsets = torch.arange(side, dtype=torch.float64, device=first.device) - side // 2
    line = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2

    def local_mean(values: Tensor) -> Tensor:
        flat = values.reshape(-1, 1, height, width)
        return torch.nn.functional.conv2d(flat, window[None, None])

    mean_1, mean_2 = local_mean(first), local_mean(second)
    variance_1 = local_mean(first.square()) - mean_1.square()
    variance_2 = local_mean(second.square()) - mean_2.square()
    covariance = local_mean(first * second) - mean_1 * mean_2
    c1, c2 = 0.01**2, 0.03**2
    likeness = ((2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)) / (
        (mean_1.square() + mean_2.square() + c1) * (variance_1 + variance_2 + c2)
    )
    return likeness.reshape(*first.shape[:-3], -1).mean(-1)


def verdict(value: float, interval: Interval, chance: float, *, baseline_leaks: bool) -> Verdict:
    """The one rule by which a cell is judged.

    ``leaks``: the whole interval lies above chance. ``contained``: the interval includes chance,
    and the same attack leaks on another, unprotected row of the same run, so that it was able to.
    ``inconclusive``: everything else.

    Args:
        value: the metric, inside `interval`; higher means more leak.
        interval: (low, high) at 95 %.
        chance: what the attack reaches where nothing leaks.
        baseline_leaks: the same attack's verdict on another, unprotected row is ``leaks``.

    Raises:
        DataError: a figure is not a number, or the ends of the interval are exchanged.
    """
    low, high = interval
    if any(math.isnan(figure) for figure in (value, low, high, chance)) or low > high:
        raise DataError(
            f"a value, an interval (low, high) and a chance expected, {value}, {interval} and "
            f"{chance} came: a metric that is not a number has no verdict"
        )
    if low > chance:
        return "leaks"
    if high >= chance and baseline_leaks:
        return "contained"
    return "inconclusive"


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(f"a confidence in (0, 1) expected, {confidence} came: 0.95 is usual")


def _placements(members: Values, nonmembers: Values) -> tuple[FloatArray, FloatArray]:
    """Each member's share of non-members beaten; each non-member's share of members above it."""
    inside, outside = sample(members, "members"), sample(nonmembers, "nonmembers")
    return _share_below(inside, outside), 1 - _share_below(outside, inside)


def _share_below(these: FloatArray, those: FloatArray) -> FloatArray:
    ordered = np.sort(those)
    below = np.searchsorted(ordered, these, side="left")
    not_above = np.searchsorted(ordered, these, side="right")
    share: FloatArray = (below + not_above) / (2.0 * len(ordered))
    return share


def _variance_of_mean(placements: FloatArray) -> float:
    # A sample without spread gets one imagined record at each end; see `auc_interval`.
    spread = placements if np.ptp(placements) > 0 else np.append(placements, [0.0, 1.0])
    return float(spread.var(ddof=1)) / len(placements)


def _expit(logit: float) -> float:
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    return math.exp(logit) / (1 + math.exp(logit))


def _images(original: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
    if original.shape != reconstruction.shape or original.dim() < 3:
        raise DataError(
            "two stacks of images (..., C, H, W) of one shape expected, "
            f"{tuple(original.shape)} and {tuple(reconstruction.shape)} came"
        )
    pair = original.detach().double(), reconstruction.detach().double()
    for images in pair:
        # Written so that NaN fails it too.
        if images.numel() == 0 or not bool(((images >= 0) & (images <= 1)).all()):
            raise DataError("image values in [0, 1] expected: rescale or clamp the images first")
    return pair
