"""Likelihood ratios equal the papers' formulas taken literally; the Bayesian form is what it says."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from tests.attacks.planted import confidence, evidence, normal, world

from tacit.attacks import likelihood_ratio
from tacit.attacks.evidence import Evidence, true_class_logit
from tacit.attacks.likelihood_ratio import LiRA, StudentLiRA
from tacit.audit.statistics import auc
from tacit.core.errors import ConfigError

# --- the paper's formula, one record and one query at a time


def literal_lira(made, *, online, own):
    queries, records, _ = made.answers.shape
    inside, logits = made.references.inside, made.references.logits
    total = [0.0] * records
    for q in range(queries):
        phis = [[[], []] for _ in range(records)]  # of each record those of OUT and of IN models
        for i in range(records):
            for k in range(len(inside)):
                phis[i][int(inside[k, i])].append(confidence(logits[k, q, i], made.labels[i]))
        pooled = []
        for side in (0, 1):
            squares = sum(np.sum((np.array(one[side]) - np.mean(one[side])) ** 2) for one in phis)
            pooled.append(squares / sum(len(one[side]) - 1 for one in phis))
        for i in range(records):
            phi = confidence(made.answers[q, i], made.labels[i])
            fits = []
            for side in (0, 1):
                variance = pooled[side]
                if own and len(phis[i][side]) > 1:
                    variance = max(np.var(phis[i][side]), 1e-4 * pooled[side])
                fits.append((np.mean(phis[i][side]), math.sqrt(variance)))
            if online:
                total[i] += stats.norm.logpdf(phi, *fits[1]) - stats.norm.logpdf(phi, *fits[0])
            else:
                total[i] += (phi - fits[0][0]) / fits[0][1] / math.sqrt(queries)
    return total


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("variance", ["example", "fixed"])
def test_lira_is_the_papers_algorithm(online, variance):
    made = world(models=9)
    assert (made.references.inside.sum(0) > 0).all()
    assert (~made.references.inside).any(0).all()
    found = LiRA(online=online, variance=variance).score(evidence(made))
    literal = literal_lira(made, online=online, own=variance == "example")
    np.testing.assert_allclose(found, literal, rtol=1e-9, atol=1e-9)


def test_lira_takes_each_records_own_variance_from_64_models_on():
    for models, same in ((63, "fixed"), (64, "example")):
        found = evidence(world(models=models, queries=1))
        np.testing.assert_array_equal(LiRA().score(found), LiRA(variance=same).score(found))


def test_lira_offline_orders_as_the_one_sided_test():
    made = world(queries=1, models=9)
    found = LiRA(online=False, variance="fixed").score(evidence(made))
    tail = [stats.norm.cdf(z) for z in literal_lira(made, online=False, own=False)]
    np.testing.assert_allclose(stats.norm.cdf(found), tail, rtol=1e-9)


def test_lira_places_a_record_without_out_models_by_the_mean_gap():
    made = world(models=9, queries=1)
    made.references.inside[:, 7] = True
    found = LiRA(online=False, variance="fixed").score(evidence(made))
    phi = true_class_logit(made.references.logits, made.labels)[:, 0]
    inside = made.references.inside
    mean = lambda i, side: phi[inside[:, i] == side, i].mean()  # noqa: E731
    both = [i for i in range(40) if i != 7]
    gap = np.mean([mean(i, True) - mean(i, False) for i in both])
    squares = sum(((phi[~inside[:, i], i] - mean(i, False)) ** 2).sum() for i in both)
    deviation = math.sqrt(squares / sum((~inside[:, i]).sum() - 1 for i in both))
    own = confidence(made.answers[0, 7], made.labels[7])
    assert found[7] == pytest.approx((own - (phi[:, 7].mean() - gap)) / deviation, abs=1e-9)


# --- the Bayesian form


def moments(values):
    values = np.asarray(values, float)
    return likelihood_ratio._Moments(
        np.array([len(values)]), np.array([values.mean()]), np.array([values.var() * len(values)])
    )


def test_the_marginal_likelihood_is_the_integral_over_mean_and_variance():
    prior = likelihood_ratio._Prior(0.3, 0.7, 2.5, 1.4)
    values = [0.1, 1.2, -0.4]

    mean, scale = np.linspace(-12, 12, 1201)[:, None], np.linspace(-5, 7, 1201)
    variance = np.exp(scale)
    height = stats.invgamma.pdf(variance, prior.alpha, scale=prior.beta) * variance
    height = height * stats.norm.pdf(mean, prior.centre, np.sqrt(variance / prior.kappa))
    for value in values:
        height = height * stats.norm.pdf(value, mean, np.sqrt(variance))
    area = height.sum() * 0.02 * 0.01
    assert math.exp(prior.log_marginal(moments(values))[0]) == pytest.approx(area, rel=1e-4)


def test_the_slopes_are_those_of_the_marginal_likelihood():
    side, at = moments([0.1, 1.2, -0.4]), np.array([0.8, 0.7, 2.5, 1.4])
    numeric = optimize.approx_fprime(
        at, lambda at: likelihood_ratio._Prior(*at).log_marginal(side)[0], 1e-7
    )
    np.testing.assert_allclose(
        np.concatenate(likelihood_ratio._Prior(*at).slopes(side)), numeric, rtol=1e-5
    )


def test_the_predictive_density_is_the_ratio_of_two_marginal_likelihoods():
    prior = likelihood_ratio._Prior(0.3, 0.7, 2.5, 1.4)
    values = [0.1, 1.2, -0.4]
    for new in (-3.0, 0.2, 5.0):
        ratio = prior.log_marginal(moments([*values, new])) - prior.log_marginal(moments(values))
        found = prior.predictive(moments(values)).log_density(np.array([new]))
        assert found == pytest.approx(ratio, abs=1e-9)


def test_the_fitted_prior_is_the_one_that_the_records_were_drawn_from():
    generator = torch.Generator().manual_seed(3)
    centre, kappa, alpha, beta, records, models = 0.4, 0.5, 3.0, 2.0, 4000, 8
    gamma = normal(generator, records, int(2 * alpha)) ** 2  # chi-square with 2 alpha of freedom
    variance = beta / (gamma.sum(1) / 2)
    mean = centre + normal(generator, records) * np.sqrt(variance / kappa)
    phi = mean + np.sqrt(variance) * normal(generator, models, records)
    side = likelihood_ratio._moments(phi[:, None], np.ones((models, records), bool)).of(0)
    found = likelihood_ratio._Prior.fitted(side, 1.0)
    assert found.centre == pytest.approx(centre, abs=0.1)
    np.testing.assert_allclose(found[1:], (kappa, alpha, beta), rtol=0.1)


def test_the_bayesian_form_is_lira_where_models_are_many_and_better_where_they_are_few():
    made = world(models=200, queries=1, records=60)
    many = evidence(made)
    own, bayesian = LiRA(variance="example").score(many), StudentLiRA().score(many)
    assert stats.spearmanr(own, bayesian).statistic > 0.98
    reached = {LiRA(variance="example"): [], StudentLiRA(): []}
    for seed in range(8):
        made = world(seed=seed, models=4, queries=1, records=200, signal=1.5)
        for attack, areas in reached.items():
            score = attack.score(evidence(made))
            areas.append(auc(score[made.truth], score[~made.truth]))
    own, bayesian = (np.mean(areas) for areas in reached.values())
    assert bayesian > own + 0.02


@pytest.mark.parametrize("online", [True, False])
def test_the_bayesian_form_does_not_depend_on_the_unit_of_phi(online):
    first = evidence(world(queries=1, models=8))
    asked = replace(first.asked, phi=10 * first.asked.phi + 3, reference_phi=10 * first.asked.reference_phi + 3)  # fmt: skip
    scaled = StudentLiRA(online=online).score(replace(first, asked=asked))
    np.testing.assert_allclose(
        scaled, StudentLiRA(online=online).score(first), rtol=1e-4, atol=1e-4
    )


def test_the_bayesian_form_adds_up_the_ratios_of_the_queries_and_joins_their_deviates():
    made, both = world(models=8, queries=2), []
    for q in (0, 1):
        one = SimpleNamespace(inside=made.references.inside, logits=made.references.logits[:, [q]])
        found = Evidence.gather(made.answers[[q]], made.labels, one)
        both.append([StudentLiRA(online=online).score(found) for online in (True, False)])
    ratio, deviate = (StudentLiRA(online=online).score(evidence(made)) for online in (True, False))
    np.testing.assert_allclose(ratio, both[0][0] + both[1][0], atol=1e-9)
    np.testing.assert_allclose(deviate, (both[0][1] + both[1][1]) / math.sqrt(2), atol=1e-9)


def test_the_deviate_has_the_tail_of_the_t_distribution():
    freedom, t = np.array([3.0, 8.0, 30.0, 3.0]), np.array([0.5, -2.0, 4.0, 1e9])
    found = likelihood_ratio._Predictive(freedom, np.zeros(4), np.ones(4)).deviate(t)
    exact = stats.norm.isf(stats.t.sf(t[:3], freedom[:3]))
    np.testing.assert_allclose(found[:3], exact, atol=0.05)
    assert np.isfinite(found).all()


def test_a_variance_that_there_is_not_is_refused():
    with pytest.raises(ConfigError, match="auto, example or fixed"):
        LiRA(variance="own")
