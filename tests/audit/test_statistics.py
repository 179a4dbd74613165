"""Every figure beside an oracle; every interval covers what it says; the verdict rule."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, roc_curve

from tacit.audit.statistics import (
    auc,
    auc_interval,
    balanced_accuracy,
    clopper_pearson,
    clustered_interval,
    median_interval,
    psnr,
    roc,
    ssim,
    tpr_at_fpr,
    verdict,
)
from tacit.core.errors import ConfigError, DataError, NotEnoughEvidence

# Few distinct values, so that ties are common.
scores = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=30)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 60), st.integers(0, 60), st.sampled_from([0.8, 0.95, 0.99]))
def test_clopper_pearson_is_scipys(a, b, confidence):
    hits, n = min(a, b), max(a, b, 1)
    oracle = stats.binomtest(hits, n).proportion_ci(confidence, method="exact")
    assert clopper_pearson(hits, n, confidence) == pytest.approx((oracle.low, oracle.high))


def test_clopper_pearson_of_nothing_and_of_nonsense():
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    for hits, n, confidence in [(3, 2, 0.95), (-1, 2, 0.95), (1, -2, 0.95), (1, 2, 1.0)]:
        with pytest.raises(ConfigError):
            clopper_pearson(hits, n, confidence)


@given(st.integers(6, 200), st.sampled_from([0.8, 0.9, 0.95]))
def test_median_interval_is_the_shortest_that_covers(n, confidence):
    low, high = median_interval(list(range(n)), confidence)
    assert low + high == n - 1  # symmetric ranks
    outside = 2 * stats.binom.cdf(low - 1 + 1e-9, n, 0.5)  # P(fewer than rank low+1 below median)
    tighter = 2 * stats.binom.cdf(low + 1, n, 0.5)
    missed = 2 * stats.binom.cdf(low, n, 0.5)
    assert outside <= missed <= (1 - confidence) * (1 + 1e-9) < tighter


def test_median_interval_knows_when_it_has_too_few_values():
    assert median_interval([5, 3, 1, 2, 4, 0]) == (0, 5)
    with pytest.raises(NotEnoughEvidence, match="at least 6 values, 5 came"):
        median_interval([1, 2, 3, 4, 5])


def test_median_interval_covers():
    draws = normal(0, 2000, 15)
    hits = sum(low <= 0 <= high for low, high in map(median_interval, draws))
    assert hits / 2000 >= 0.94  # 96.5 % in truth; false alarm far below 1e-6


@given(scores, scores)
def test_auc_is_sklearns(members, nonmembers):
    truth = [1] * len(members) + [0] * len(nonmembers)
    assert auc(members, nonmembers) == pytest.approx(roc_auc_score(truth, members + nonmembers))


@given(scores, scores)
def test_auc_turns_round_and_ignores_scale(members, nonmembers):
    area = auc(members, nonmembers)
    assert auc(nonmembers, members) == pytest.approx(1 - area)
    assert auc([math.exp(v) for v in members], [math.exp(v) for v in nonmembers]) == area


@given(scores, scores)
def test_auc_interval_holds_the_auc_and_has_a_width(members, nonmembers):
    low, high = auc_interval(members, nonmembers)
    assert 0 <= low <= auc(members, nonmembers) <= high <= 1
    assert high - low > 1 / (40 * max(len(members), len(nonmembers)))


def test_auc_interval_is_delongs_on_a_large_sample():
    members, nonmembers = normal(1, 400) + 0.5, normal(2, 300)
    wins = (members[:, None] > nonmembers[None, :]).double()
    variance = wins.mean(1).var() / 400 + wins.mean(0).var() / 300
    area = wins.mean()
    reach = stats.t.ppf(0.975, 299) * variance.sqrt() / (area * (1 - area))
    centre = torch.logit(area)
    oracle = torch.sigmoid(torch.stack([centre - reach, centre + reach])).tolist()
    assert auc_interval(members, nonmembers) == pytest.approx(tuple(oracle))


def test_auc_interval_of_samples_without_spread():
    assert auc_interval([1.0] * 10, [0.0] * 10) == clopper_pearson(10, 10)
    assert auc_interval([0.0] * 8, [1.0] * 10) == clopper_pearson(0, 8)
    assert auc_interval([1.0] * 10, [1.0] * 10) == clopper_pearson(5, 10)
    assert auc_interval([1.0], [0.0]) == clopper_pearson(1, 1)
    # Every member right, 16 of 20 others right: plain DeLong calls this a leak (Fisher: p 0.11).
    low, high = auc_interval([1.0] * 20, [1.0] * 16 + [0.0] * 4)
    assert low < 0.5 < high


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("n", [12, 60])
def test_auc_interval_covers(shift, n):
    truth = stats.norm.cdf(shift / math.sqrt(2))
    inside, outside = normal(3, 600, n) + shift, normal(4, 600, n)
    pairs = zip(inside, outside, strict=True)
    hits = sum(low <= truth <= high for low, high in (auc_interval(a, b) for a, b in pairs))
    assert hits / 600 >= 0.92


@pytest.mark.parametrize("rate", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("n", [20, 100])
def test_auc_interval_of_labels_raises_no_false_alarm(rate, n):
    generator = torch.Generator().manual_seed(5)
    right = torch.rand(2, 1000, n, generator=generator) < rate
    alarms = sum(auc_interval(a, b)[0] > 0.5 for a, b in zip(*right.double(), strict=True))
    assert alarms / 1000 <= 0.04  # 2.5 % nominal


@given(scores, scores)
def test_roc_is_sklearns(members, nonmembers):
    truth = [1] * len(members) + [0] * len(nonmembers)
    oracle = roc_curve(truth, members + nonmembers, drop_intermediate=False)
    fpr, tpr = roc(members, nonmembers)
    assert fpr == pytest.approx(oracle[0]) and tpr == pytest.approx(oracle[1])
    assert np.trapezoid(tpr, fpr) == pytest.approx(auc(members, nonmembers))


def test_tpr_at_fpr_counts_what_lies_above_the_threshold():
    nonmembers = list(range(100))
    members = [89.5, 89, 95, 200, -3]  # ten non-members (90..99) may be flagged
    found = tpr_at_fpr(members, nonmembers, 0.1)
    assert found.value == 3 / 5 and found.interval == clopper_pearson(3, 5)
    assert tpr_at_fpr(members, nonmembers, 1.0).value == 1
    # A score that many non-members share cannot be used as the threshold.
    assert tpr_at_fpr([1.0] * 10, [1.0] * 100, 0.1).value == 0


@given(scores, st.lists(st.integers(-4, 4).map(float), min_size=40, max_size=80))
def test_tpr_at_fpr_is_the_best_point_of_the_curve(members, nonmembers):
    fpr, tpr = roc(members, nonmembers)
    best = tpr[fpr <= 0.25 + 1e-9].max()
    assert tpr_at_fpr(members, nonmembers, 0.25).value == pytest.approx(best)


@pytest.mark.parametrize("fpr", [0.1, 0.01, 0.001, 0.03])
def test_tpr_at_fpr_needs_ten_false_positives(fpr):
    needed = math.ceil(round(10 / fpr, 6))
    assert tpr_at_fpr([1.0], normal(6, needed), fpr).n == 1
    with pytest.raises(NotEnoughEvidence, match=f"at least {needed} non-members"):
        tpr_at_fpr([1.0], normal(6, needed - 1), fpr)


def test_balanced_accuracy_at_a_fixed_threshold():
    members, nonmembers = normal(7, 300) + 1, normal(8, 100)
    found = balanced_accuracy(members, nonmembers, threshold=0.5)
    guesses = torch.cat([members, nonmembers]) > 0.5
    oracle = balanced_accuracy_score([1] * 300 + [0] * 100, guesses)
    assert found.value == pytest.approx(oracle)
    truth = (stats.norm.cdf(0.5) * 2) / 2
    assert found.interval[0] < truth < found.interval[1]


def test_empty_and_nan_samples_are_refused():
    for figure in (auc, auc_interval, roc):
        with pytest.raises(NotEnoughEvidence):
            figure([], [1.0])
        with pytest.raises(DataError, match="1 of 2 are NaN"):
            figure([1.0], [math.nan, 2.0])
    assert auc([math.inf, 0.0], [-math.inf]) == 1.0  # log 0 is a score


def test_psnr():
    image = torch.full((2, 1, 4, 4), 0.5)
    off = image + torch.tensor([0.1, 0.01])[:, None, None, None]
    assert psnr(image, off) == pytest.approx(torch.tensor([20.0, 40.0]).double(), abs=1e-4)
    assert psnr(image, image).tolist() == [100.0, 100.0]


def slow_ssim(a, b):
    """One window, one channel at a time."""
    channels, height, width = a.shape
    side = min(11, height, width) // 2 * 2 + (1 if min(11, height, width) % 2 else -1)
    steps = np.arange(side) - side // 2
    line = np.exp(-(steps**2) / 4.5)
    weight = np.outer(line, line) / np.outer(line, line).sum()
    values = []
    for c in range(channels):
        for y in range(height - side + 1):
            for x in range(width - side + 1):
                p, q = (i[c, y : y + side, x : x + side].numpy() for i in (a, b))
                mp, mq = (weight * p).sum(), (weight * q).sum()
                vp, vq = (weight * (p - mp) ** 2).sum(), (weight * (q - mq) ** 2).sum()
                cov = (weight * (p - mp) * (q - mq)).sum()
                top = (2 * mp * mq + 1e-4) * (2 * cov + 9e-4)
                values.append(top / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    return np.mean(values)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 14, 13)])
def test_ssim_is_the_formula(shape):
    generator = torch.Generator().manual_seed(9)
    a, b = torch.rand(2, *shape, generator=generator, dtype=torch.float64)
    assert ssim(a, b).item() == pytest.approx(slow_ssim(a, b))
    assert ssim(a[None], a[None]) == pytest.approx(torch.ones(1).double())
    assert ssim(torch.stack([a, b])[:, None], torch.stack([b, a])[:, None]).shape == (2, 1)


def test_images_are_checked():
    image = torch.zeros(1, 4, 4)
    for other in (image + 1.1, image - 0.1, image * math.nan, torch.zeros(1, 4, 5)):
        with pytest.raises(DataError):
            psnr(image, other)
        with pytest.raises(DataError):
            ssim(image, other)


@pytest.mark.parametrize(
    ("interval", "baseline_leaks", "expected"),
    [
        ((0.51, 0.7), True, "leaks"),
        ((0.51, 0.7), False, "leaks"),
        ((0.50, 0.7), True, "contained"),  # touching chance is including it
        ((0.40, 0.50), True, "contained"),
        ((0.40, 0.6), False, "inconclusive"),  # the attack never worked here
        ((0.30, 0.49), True, "inconclusive"),  # below chance: something is odd
    ],
)
def test_verdict(interval, baseline_leaks, expected):
    found = verdict(sum(interval) / 2, interval, 0.5, baseline_leaks=baseline_leaks)
    assert found == expected


def test_verdict_refuses_what_is_no_figure():
    for value, interval in [(math.nan, (0.4, 0.6)), (0.5, (math.nan, 1.0)), (0.5, (0.6, 0.4))]:
        with pytest.raises(DataError):
            verdict(value, interval, 0.5, baseline_leaks=True)


def test_clusters_of_one_and_equal_clusters_are_independent_trials():
    assert clustered_interval([(1, 1), (0, 1), (1, 1)]) == clopper_pearson(2, 3)
    assert clustered_interval([(3, 10), (3, 10), (3, 10)]) == clopper_pearson(9, 30)
    assert clustered_interval([(0, 9), (0, 9)]) == clopper_pearson(0, 18)
    assert clustered_interval([(4, 20)]) == clopper_pearson(4, 20)


def test_clusters_that_differ_widen_the_interval_and_never_narrow_it():
    low, high = clustered_interval([(9, 10), (1, 10), (8, 10), (2, 10)])
    plain = clopper_pearson(20, 40)
    assert low < plain[0] - 0.1 and high > plain[1] + 0.1
    for counts in ([(5, 10), (6, 10)], [(1, 9), (2, 9), (1, 9), (3, 9)]):
        hits, n = (sum(part) for part in zip(*counts, strict=True))
        low, high = clustered_interval(counts)
        assert low <= clopper_pearson(hits, n)[0] and high >= clopper_pearson(hits, n)[1]


def test_the_clustered_interval_covers_where_the_plain_one_does_not():
    """Clusters of 10 that succeed all or nothing: the plain interval misses far more often than 5 %."""
    generator = torch.Generator().manual_seed(4)
    covered = plain = 0
    for _ in range(400):
        whole = torch.rand(12, generator=generator) < 0.4
        counts = [(10 * int(w), 10) for w in whole]
        hits = sum(h for h, _ in counts)
        covered += clustered_interval(counts)[0] <= 0.4 <= clustered_interval(counts)[1]
        plain += clopper_pearson(hits, 120)[0] <= 0.4 <= clopper_pearson(hits, 120)[1]
    assert covered / 400 >= 0.95 > 0.8 > plain / 400
