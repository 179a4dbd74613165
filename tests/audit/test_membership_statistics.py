"""Tables of membership figures: only what the sample supports, and intervals that cover."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from tacit.audit import statistics
from tacit.audit.membership_statistics import (
    Unsupported,
    bootstrap_auc,
    by_slice,
    class_slices,
    epsilon_lower_bound,
    figures,
    held_out_accuracy,
    log_log_roc,
    most_exposed,
    over_targets,
    tail_p_value,
)
from tacit.core.errors import ConfigError, DataError, NotEnoughEvidence


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(seed, *shape):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64).numpy()


def test_figures_are_those_of_statistics_and_stop_where_the_non_members_do():
    inside, outside = normal(0, 300) + 1, normal(1, 1000)
    found = figures(inside, outside)
    assert list(found) == ["auc", "tpr@0.1fpr", "tpr@0.01fpr", "tpr@0.001fpr", "tpr@0.0001fpr"]
    assert found["auc"].value == statistics.auc(inside, outside)
    assert found["auc"].interval == statistics.auc_interval(inside, outside)
    assert found["tpr@0.01fpr"] == statistics.tpr_at_fpr(inside, outside, 0.01)
    assert found["tpr@0.001fpr"] == Unsupported(needs=10_000, came=1000)
    assert found["tpr@0.0001fpr"].as_json() == {
        "value": None, "interval": None, "needs": 100_000, "why": "needs 100000 non-members, 1000 came",
    }  # fmt: skip
    assert isinstance(figures(inside, outside[1:])["tpr@0.01fpr"], Unsupported)


def test_slices_have_their_own_figures_or_say_what_they_lack():
    labels = np.repeat([0, 1, 2, 3], [400, 400, 15, 15])
    members = np.arange(830) % 2 == 0
    members[800:815], members[815:] = np.arange(15) < 9, np.arange(15) < 6
    scores = normal(2, 830) + 3 * (members & (labels == 1))
    found = by_slice(scores, members, class_slices(labels, ["a", "b", "c", "d"]))
    assert list(found) == ["a", "b", "c", "d"]
    low, high = found["a"]["auc"].interval
    assert low < 0.5 < high
    assert found["b"]["auc"].interval[0] > 0.9
    of_b = labels == 1
    assert found["b"] == figures(scores[of_b & members], scores[of_b & ~members], rates=(0.1, 0.01))
    assert found["c"] == {"auc": Unsupported(needs=10, came=9, what="members")}
    assert found["d"] == {"auc": Unsupported(needs=10, came=6, what="members")}
    few = by_slice(scores, ~members, {"few": labels == 2})
    assert few == {"few": {"auc": Unsupported(needs=10, came=6, what="members")}}
    assert by_slice(scores, members, {"c": labels == 2}, least=7)["c"]["auc"].came == 6


def test_the_most_exposed_are_members_with_the_share_of_others_as_high():
    scores = np.array([5.0, 1.0, 3.0, 3.0, 9.0, 2.0, 3.0])
    members = np.array([True, True, True, False, False, False, True])
    found = most_exposed(scores, members, 3)
    assert [one.record for one in found] == [0, 2, 6]
    assert [one.false_positive_rate for one in found] == [1 / 3, 2 / 3, 2 / 3]
    for one, above in zip(found, (1, 2, 2), strict=True):
        assert one.member
        assert stats.binom.cdf(above, 3, one.at_most) == pytest.approx(0.05)  # one-sided
    assert len(most_exposed(scores, members, 100)) == 4


# --- epsilon


def test_the_bound_is_clopper_and_pearsons_on_the_half_that_judges():
    inside, outside = normal(3, 2000) + 3, normal(4, 2000)
    found = epsilon_lower_bound(inside, outside, delta=1e-5, generator=seeded(0))
    (hits, of), (false, of_false) = found.members, found.nonmembers
    assert of == of_false == 1000
    if found.says == "out":
        (false, of_false), (hits, of) = found.members, found.nonmembers
    low = stats.beta.ppf(0.025, hits, of - hits + 1)
    high = stats.beta.ppf(0.975, false + 1, of_false - false)
    assert found.epsilon == pytest.approx(math.log((low - 1e-5) / high))
    assert found.epsilon > 3
    # The threshold was chosen on other scores, so the judged rates are near the truth.
    at = found.threshold
    rate = stats.norm.sf(at - 3) if found.says == "in" else stats.norm.cdf(at)
    assert hits / of == pytest.approx(rate, abs=0.05)


def test_both_kinds_of_guess_are_tried():
    steps = np.concatenate([np.zeros(300), np.ones(700)])
    sure = {"in": (steps, np.zeros(1000)), "out": (np.ones(1000), steps)}
    for says, (inside, outside) in sure.items():
        found = epsilon_lower_bound(inside, outside, delta=0.0, generator=seeded(1))
        assert found.says == says
        assert found.epsilon > 3.5


def test_delta_lowers_the_bound_and_what_shows_nothing_is_zero():
    inside, outside = normal(5, 4000) + 2, normal(6, 4000)
    bounds = [
        epsilon_lower_bound(inside, outside, delta=delta, generator=seeded(0)).epsilon
        for delta in (0.0, 0.05, 0.9)
    ]
    assert bounds[0] > bounds[1] > bounds[2] == 0.0
    assert epsilon_lower_bound([1.0, 1.0], [1.0, 1.0], delta=0, generator=seeded(0)).epsilon == 0


def test_the_bound_exceeds_a_true_epsilon_no_oftener_than_said():
    # Randomised response with epsilon 1: the ratio of the rates is e exactly.
    right, above = math.e / (1 + math.e), 0
    for seed in range(300):
        draws = torch.rand(2, 400, generator=seeded(seed), dtype=torch.float64).numpy()
        inside, outside = (draws[0] < right).astype(float), (draws[1] > right).astype(float)
        found = epsilon_lower_bound(
            inside, outside, delta=0.0, generator=seeded(1000 + seed), confidence=0.8
        )
        above += found.epsilon > 1
        assert found.epsilon < 2
    assert (
        above <= 75
    )  # of 300 at 20 %: more once in 60 times if the bound were exact, and it is cautious


def test_the_threshold_is_chosen_on_other_scores_than_it_is_judged_by():
    above = 0
    for seed in range(100):  # nothing leaks, and every score is a threshold to choose from
        found = epsilon_lower_bound(
            normal(2 * seed, 100), normal(2 * seed + 1, 100), delta=0.0, generator=seeded(seed), confidence=0.5
        )  # fmt: skip
        above += found.epsilon > 0
    assert above <= 50  # of 100 at 50 %; by one half for both it is about 65


# --- several targets


def test_the_mean_over_targets_has_students_interval():
    found = over_targets([0.9, 0.92, 0.94, 0.88])
    expected = stats.ttest_1samp([0.9, 0.92, 0.94, 0.88], 0).confidence_interval(0.95)
    assert found.value == pytest.approx(0.91)
    assert found.interval == pytest.approx(tuple(expected))
    assert over_targets([0.99, 1.0]).interval[1] == 1.0


def test_the_bootstrap_covers_the_true_area():
    truth, covered = stats.norm.cdf(1 / math.sqrt(2)), 0
    for seed in range(40):
        targets = [(normal(2 * seed, 60) + 1, normal(2 * seed + 1, 80))]
        low, high = bootstrap_auc(targets, generator=seeded(seed), resamples=200).interval
        covered += low <= truth <= high
    assert covered >= 33  # of 40 at 95 %


def test_the_bootstrap_of_targets_is_wider_where_they_differ():
    alike = [(normal(k, 200) + 1, normal(50 + k, 200)) for k in range(8)]
    unlike = [(one + 0.3 * (k - 3.5), other) for k, (one, other) in enumerate(alike)]
    widths = []
    for targets in (alike, unlike):
        found = bootstrap_auc(targets, generator=seeded(0), resamples=300)
        assert found.value == pytest.approx(np.mean([statistics.auc(*one) for one in targets]))
        assert found.interval[0] < found.value < found.interval[1]
        widths.append(found.interval[1] - found.interval[0])
    assert widths[1] > 2 * widths[0]


def test_a_resample_with_ties_is_the_area_of_what_was_drawn():
    inside, outside = np.array([2.0, 1.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])
    found = bootstrap_auc([(inside, outside)], generator=seeded(7), resamples=100)
    generator, areas = seeded(7), []
    torch.randint(1, (100,), generator=generator)
    for _ in range(100):
        drawn = [
            one[torch.randint(len(one), (len(one),), generator=generator).numpy()]
            for one in (inside, outside)
        ]
        areas.append(statistics.auc(*drawn))
    assert found.interval == pytest.approx(tuple(np.quantile(areas, [0.025, 0.975])))


# --- the picture


def test_the_thinned_curve_consists_of_points_of_the_curve_down_to_its_lowest_rate():
    inside, outside = normal(8, 3000) + 1, normal(9, 5000)
    fpr, tpr = log_log_roc(inside, outside, 50)
    whole = dict(
        zip(*statistics.roc(inside, outside), strict=True)
    )  # the last, so the highest, of each rate
    assert len(fpr) <= 50
    assert fpr[0] == pytest.approx(1 / 5000)
    assert (fpr[-1], tpr[-1]) == (1, 1)
    assert (np.diff(fpr) > 0).all()
    assert all(whole[x] == y for x, y in zip(fpr, tpr, strict=True))
    assert (np.diff(np.log10(fpr)) < 0.4).all()  # none of the four decades is left empty
    every, _ = log_log_roc(inside[:5], outside[:7], 50)
    np.testing.assert_allclose(every, np.unique(statistics.roc(inside[:5], outside[:7])[0])[1:])


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (NotEnoughEvidence, lambda: figures([], [1.0])),
        (DataError, lambda: figures([math.nan], [1.0])),
        (ConfigError, lambda: figures([1.0], [1.0], rates=[0.0])),
        (DataError, lambda: by_slice([1.0, 2.0], np.array([True]), {})),
        (DataError, lambda: by_slice([1.0, 2.0], np.array([1, 0]), {})),
        (DataError, lambda: by_slice([1.0], np.array([True]), {"a": np.array([True, True])})),
        (ConfigError, lambda: by_slice([1.0], np.array([True]), {}, least=0)),
        (ConfigError, lambda: class_slices(np.array([0, 2]), ["a", "b"])),
        (NotEnoughEvidence, lambda: most_exposed([1.0], np.array([True]))),
        (ConfigError, lambda: most_exposed([1.0, 2.0], np.array([True, False]), 0)),
        (ConfigError, lambda: most_exposed([1.0, 2.0], np.array([True, False]), confidence=0.4)),
        (NotEnoughEvidence, lambda: epsilon_lower_bound([1.0], [1.0, 2.0], delta=0, generator=seeded(0))),
        (ConfigError, lambda: epsilon_lower_bound([1.0], [1.0], delta=1, generator=seeded(0))),
        (NotEnoughEvidence, lambda: over_targets([0.5])),
        (DataError, lambda: over_targets([0.5, 1.5])),
        (DataError, lambda: over_targets([0.5, math.nan])),
        (ConfigError, lambda: over_targets([0.5, 0.6], 1.0)),
        (NotEnoughEvidence, lambda: bootstrap_auc([], generator=seeded(0))),
        (ConfigError, lambda: bootstrap_auc([([1.0], [0.0])], generator=seeded(0), resamples=10)),
        (ConfigError, lambda: log_log_roc([1.0], [0.0], 1)),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused(error, call):
    with pytest.raises(error):
        call()


# --- low false positive rates against chance; a threshold judged on other records


def test_the_p_value_of_a_low_rate_is_that_of_all_orders() -> None:
    # 3 members and 20 non-members, of which the rate allows 10: all 1,771 places of the members, counted.
    rate, members, nonmembers = 0.5, 3, 20
    ranks = range(members + nonmembers)  # 0 is the highest score
    found = []
    for places in itertools.combinations(ranks, members):
        others = [rank for rank in ranks if rank not in places]
        found.append(sum(place < others[int(rate * nonmembers)] for place in places))
    for hits in range(members + 1):
        places = list(range(hits)) + list(
            range(members + nonmembers - (members - hits), members + nonmembers)
        )
        inside = [-float(place) for place in places]
        outside = [-float(rank) for rank in ranks if rank not in places]
        exact = sum(one >= hits for one in found) / len(found)
        assert tail_p_value(inside, outside, rate) == pytest.approx(exact, rel=1e-9)


def test_equal_scores_make_the_p_value_of_a_low_rate_larger() -> None:
    outside = [0.0] * 100
    assert tail_p_value([0.0] * 50, outside, 0.1) == pytest.approx(1.0)
    assert tail_p_value([1.0] * 50, outside, 0.1) < 1e-12


def test_a_held_out_threshold_shows_a_leak_and_none_where_there_is_none() -> None:
    drawn = torch.Generator().manual_seed(1)
    inside, outside = torch.randn(2, 400, generator=drawn).double()
    clear = held_out_accuracy(inside + 3, outside, generator=drawn)
    assert clear.value == pytest.approx(0.933, abs=0.04)  # two normals three deviations apart
    assert clear.n == 400
    values = []
    for _ in range(60):
        inside, outside = torch.randn(2, 40, generator=drawn).double()
        values.append(held_out_accuracy(inside, outside, generator=drawn).value)
    # The best threshold of the same records would look like 0.6; the error of this mean is 0.01.
    assert sum(values) / len(values) == pytest.approx(0.5, abs=0.035)


def test_one_record_cannot_be_halved() -> None:
    with pytest.raises(NotEnoughEvidence, match="at least 2 members"):
        held_out_accuracy([1.0], [0.0, 0.1], generator=torch.Generator())
