"""Scores equal the papers' formulas taken literally, find a planted signal, and nothing where none is."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from tacit.attacks import reference_attacks
from tacit.attacks.reference_attacks import (
    REFERENCE_ATTACKS,
    RMIA,
    AttackP,
    AttackR,
    Entropy,
    Evidence,
    LiRA,
    Loss,
    MaxConfidence,
    ModifiedEntropy,
    Population,
    StudentLiRA,
    Tuning,
    true_class_logit,
)
from tacit.audit.statistics import auc, auc_interval
from tacit.core.errors import ConfigError, DataError

CLASSES = 5
STRONG = [attack for attack in REFERENCE_ATTACKS if attack.name.split("-")[0] in ("lira", "student", "rmia")]  # fmt: skip


def name_of(attack):
    return attack.name


def normal(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64).numpy()


def world(seed=0, models=6, queries=2, records=40, others=30, signal=4.0, target=None):
    """References, a target and a population: records of different difficulty; a model is surer of what it saw.

    ``target`` is what the target saw (records,), by default half of them.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (records + others,), generator=generator).numpy()
    inside = np.zeros((models + 1, records + others), bool)
    for k in range(models + 1):
        inside[k, torch.randperm(records, generator=generator)[: records // 2].numpy()] = True
    if target is not None:
        inside[0, :records] = target
    hard = normal(generator, records + others)
    logits = normal(generator, models + 1, queries, records + others, CLASSES)
    own = hard + 1 + signal * inside + 0.7 * normal(generator, models + 1, records + others)
    np.put_along_axis(
        logits, np.broadcast_to(labels[:, None], (*logits.shape[:3], 1)),
        np.broadcast_to(own[:, None, :, None], (*logits.shape[:3], 1)), 3,
    )  # fmt: skip
    asked, population = logits[:, :, :records], logits[:, :, records:]
    return SimpleNamespace(
        answers=asked[0], labels=labels[:records], truth=inside[0, :records],
        references=SimpleNamespace(inside=inside[1:, :records], logits=asked[1:]),
        population=Population(answers=population[0], labels=labels[records:], references=population[1:]),
    )  # fmt: skip


def evidence(made, population=True, **settings):
    others = made.population if population else None
    return Evidence.gather(made.answers, made.labels, made.references, others, **settings)


def softmax(row, temperature=1.0):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def confidence(row, label):
    p = softmax(row)[label]
    return math.log(p / (1 - p))


# --- the papers' formulas, one record and one query at a time


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


def literal_rmia(made, *, online, a, gamma, temperature, population):
    inside, logits = made.references.inside, made.references.logits
    never = np.zeros((len(inside), len(made.population.labels)), bool)

    def ratio(row, rows, label, saw):
        p_in, p_out = (
            [softmax(one, temperature)[label] for one, was in zip(rows, saw, strict=True) if was == side]
            for side in (True, False)
        )  # fmt: skip
        if p_out:
            mean_out = sum(p_out) / len(p_out)
            mean_in = sum(p_in) / len(p_in) if online and p_in else a * mean_out + 1 - a
        else:
            mean_in = sum(p_in) / len(p_in)
            mean_out = max(0.0, (mean_in + a - 1) / a)
        return softmax(row, temperature)[label] / ((mean_in + mean_out) / 2)

    queries, records, _ = made.answers.shape
    found = np.zeros(records)
    for q in range(queries):
        ours = [
            ratio(made.answers[q, i], logits[:, q, i], made.labels[i], inside[:, i])
            for i in range(records)
        ]
        others = made.population
        theirs = [
            ratio(others.answers[q, z], others.references[:, q, z], others.labels[z], never[:, z])
            for z in range(len(others.labels))
        ] if population else ours  # fmt: skip
        found += [np.mean([x / z >= gamma for z in theirs]) / queries for x in ours]
    return found


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize(
    ("a", "gamma", "temperature"), [(0.3, 1.0, 1.0), (0.8, 2.0, 2.0), (1.0, 1.2, 1.0), (0.3, 1.1, 3.0)]
)  # fmt: skip
def test_rmia_is_the_papers_formula_with_few_models_too(online, a, gamma, temperature):
    for models in (1, 2, 6):
        made = world(models=models, seed=models)
        attack = RMIA(online=online, a=a, gamma=gamma, temperature=temperature)
        literal = literal_rmia(
            made, online=online, a=a, gamma=gamma, temperature=temperature, population=True
        )
        np.testing.assert_allclose(attack.score(evidence(made)), literal, atol=1e-9)


def test_rmia_without_a_population_compares_with_the_records_themselves():
    made = world()
    # At gamma 1 a record is compared with itself too, which rounding may decide either way in the literal formula.
    settings = {"online": False, "a": 0.4, "gamma": 1.01, "temperature": 1.0}
    found = RMIA(**settings).score(evidence(made, population=False))
    np.testing.assert_allclose(found, literal_rmia(made, population=False, **settings), atol=1e-9)


def test_rmia_counts_a_record_that_rose_as_much():
    made = world(queries=1)
    score = RMIA(a=0.4, temperature=1.0).score(evidence(made, population=False))
    np.testing.assert_array_equal(np.sort(score), np.arange(1, 41) / 40)  # each itself too


def test_rmia_at_a_0_has_nothing_to_divide_by():
    made = world(models=2)
    assert (~made.references.inside.all(0)).sum() < 40  # some record has no OUT model
    assert np.isfinite(RMIA(a=0.0, temperature=1.0).score(evidence(made))).all()


def test_the_single_answer_attacks_are_their_formulas():
    made = world(queries=1)
    found = evidence(made)
    for i, (row, y) in enumerate(zip(made.answers[0], made.labels, strict=True)):
        p = softmax(row)
        entropy = -sum(v * math.log(v) for v in p)
        modified = -(1 - p[y]) * math.log(p[y])
        modified -= sum(v * math.log(1 - v) for k, v in enumerate(p) if k != y)
        beaten = [
            confidence(one[0, i], y) < confidence(row, y)
            for one, saw in zip(made.references.logits, made.references.inside[:, i], strict=True)
            if not saw
        ]
        less = [confidence(z, k) < confidence(row, y) for z, k in
                zip(made.population.answers[0], made.population.labels, strict=True)]  # fmt: skip
        expected = {
            Loss(): math.log(p[y]), MaxConfidence(): math.log(max(p)), Entropy(): -entropy,
            ModifiedEntropy(): -modified, AttackR(): np.mean(beaten), AttackP(): np.mean(less),
        }  # fmt: skip
        for attack, value in expected.items():
            assert attack.score(found)[i] == pytest.approx(value, abs=1e-9), attack.name


def test_the_single_answer_attacks_average_over_queries():
    made = world(queries=2)
    both = evidence(made)
    for attack in (Loss(), MaxConfidence(), Entropy(), ModifiedEntropy(), AttackP(), AttackR()):
        halves = []
        for q in (0, 1):
            one = SimpleNamespace(
                inside=made.references.inside, logits=made.references.logits[:, [q]]
            )
            others = replace(
                made.population, answers=made.population.answers[[q]], references=made.population.references[:, [q]]
            )  # fmt: skip
            halves.append(
                attack.score(Evidence.gather(made.answers[[q]], made.labels, one, others))
            )
        np.testing.assert_allclose(attack.score(both), np.mean(halves, 0), atol=1e-12)


def test_a_tie_with_a_reference_model_counts_one_half():
    made = world(models=4)
    made.references.logits[:] = made.answers
    assert (AttackR().score(evidence(made)) == 0.5).all()


# --- the Bayesian form


def moments(values):
    values = np.asarray(values, float)
    return reference_attacks._Moments(
        np.array([len(values)]), np.array([values.mean()]), np.array([values.var() * len(values)])
    )


def test_the_marginal_likelihood_is_the_integral_over_mean_and_variance():
    prior = reference_attacks._Prior(0.3, 0.7, 2.5, 1.4)
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
        at, lambda at: reference_attacks._Prior(*at).log_marginal(side)[0], 1e-7
    )
    np.testing.assert_allclose(
        np.concatenate(reference_attacks._Prior(*at).slopes(side)), numeric, rtol=1e-5
    )


def test_the_predictive_density_is_the_ratio_of_two_marginal_likelihoods():
    prior = reference_attacks._Prior(0.3, 0.7, 2.5, 1.4)
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
    side = reference_attacks._moments(phi[:, None], np.ones((models, records), bool)).of(0)
    found = reference_attacks._Prior.fitted(side, 1.0)
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
    found = reference_attacks._Predictive(freedom, np.zeros(4), np.ones(4)).deviate(t)
    exact = stats.norm.isf(stats.t.sf(t[:3], freedom[:3]))
    np.testing.assert_allclose(found[:3], exact, atol=0.05)
    assert np.isfinite(found).all()


# --- what holds for all


@pytest.mark.parametrize("attack", REFERENCE_ATTACKS, ids=name_of)
def test_a_planted_signal_is_found(attack):
    made = world(models=8, records=200)
    score = attack.score(evidence(made))
    assert score.shape == (200,)
    assert score.dtype == np.float64
    low, _ = auc_interval(score[made.truth], score[~made.truth])
    assert low > (0.9 if attack in STRONG else 0.6)


@pytest.mark.parametrize("attack", REFERENCE_ATTACKS, ids=name_of)
def test_where_the_target_saw_neither_set_nothing_is_found(attack):
    covered = 0
    for seed in range(20):
        made = world(seed=seed, records=100, queries=1, target=np.zeros(100, bool))
        score = attack.score(evidence(made))
        sides = np.arange(100) % 2 == 0
        low, high = auc_interval(score[sides], score[~sides])
        covered += low <= 0.5 <= high
    assert covered >= 16  # of 20 at 95 %: fewer once in 3,000 times


@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.parametrize("attack", REFERENCE_ATTACKS, ids=name_of)
def test_one_or_two_reference_models_are_enough(attack, models):
    made = world(models=models, records=200)
    if models == 2:
        made.references.inside[1] = ~made.references.inside[0]
        made = world(models=2, records=200)
    score = attack.score(evidence(made))
    assert np.isfinite(score).all()
    if attack in STRONG:
        assert auc(score[made.truth], score[~made.truth]) > 0.8


@pytest.mark.parametrize("attack", REFERENCE_ATTACKS, ids=name_of)
def test_extreme_answers_give_finite_scores(attack):
    made = world(models=4)
    for array in (made.answers, made.references.logits, made.population.answers, made.population.references):  # fmt: skip
        np.multiply(array, 1e4, out=array)
    made.answers[:, 0], made.answers[:, 0, 0] = -np.inf, 0.0
    made.references.logits[:, :, 1] = 0.0
    made.references.logits[1, :, 2, 1:] = -np.inf
    with np.errstate(over="raise", invalid="raise"):
        assert np.isfinite(attack.score(evidence(made))).all()


@pytest.mark.parametrize("attack", REFERENCE_ATTACKS, ids=name_of)
def test_memory_maps_and_small_memory_change_nothing(attack, tmp_path):
    made = world(models=4)
    whole = attack.score(evidence(made))
    np.save(tmp_path / "logits.npy", made.references.logits)
    mapped = np.load(tmp_path / "logits.npy", mmap_mode="r", allow_pickle=False)
    made.references = SimpleNamespace(inside=made.references.inside, logits=mapped)
    np.testing.assert_array_equal(attack.score(evidence(made, memory=1)), whole)


def test_logits_are_read_in_pieces_that_fit_the_memory(monkeypatch):
    made, seen = world(models=4), []
    finite = reference_attacks._finite

    def watched(rows):
        seen.append(rows.shape)
        return finite(rows)

    monkeypatch.setattr(reference_attacks, "_finite", watched)
    evidence(made, memory=7 * 4 * 8 * CLASSES)
    assert max(rows for rows, _ in seen) == 7
    assert (
        sum(rows for rows, _ in seen) == 5 * 2 * 70
    )  # target and 4 models, 2 queries, 40 + 30 records


def test_log_probabilities_do_as_well_as_logits():
    made = world(models=6)
    found = [attack.score(evidence(made)) for attack in REFERENCE_ATTACKS]
    for array in (made.answers, made.references.logits, made.population.answers, made.population.references):  # fmt: skip
        array[:] = array - np.log(np.exp(array).sum(-1, keepdims=True))
    for attack, before in zip(REFERENCE_ATTACKS, found, strict=True):
        np.testing.assert_allclose(attack.score(evidence(made)), before, rtol=1e-5, atol=1e-5)


def test_the_confidence_does_not_round_where_the_probability_does():
    logits = np.array([[[0.0, 50.0], [50.0, 0.0], [1e4, -1e4], [-np.inf, 0.0]]])
    found = true_class_logit(logits, np.array([1, 1, 0, 1]))
    np.testing.assert_array_equal(found, [[50.0, -50.0, 2e4, 708.0]])
    assert true_class_logit(logits[:, :1], np.array([1]), temperature=4.0) == 12.5


# --- references in the target's place, and what is tuned on them


def test_a_reference_in_the_targets_place_is_attacked_as_if_it_were():
    made = world(models=5)
    references, others = made.references, made.population
    rest = [0, 1, 3, 4]
    turned = Evidence.gather(
        references.logits[2], made.labels,
        SimpleNamespace(inside=references.inside[rest], logits=references.logits[rest]),
        Population(answers=others.references[2], labels=others.labels, references=others.references[rest]),
    )  # fmt: skip
    played = evidence(made).as_if(2)
    for attack in REFERENCE_ATTACKS:
        np.testing.assert_array_equal(attack.score(played), attack.score(turned))
    with pytest.raises(ConfigError, match="one of 5 reference models"):
        evidence(made).as_if(5)


def test_tuning_takes_the_settings_that_attack_reference_models_best_and_never_sees_the_target():
    made = world(models=5, records=100)
    attack = RMIA(tuned_on=2)
    found = attack.tuned(evidence(made))

    def reached(a, temperature):
        one, total = RMIA(a=a, temperature=temperature), 0.0
        for k in (0, 1):
            fair = ~np.delete(made.references.inside, k, 0).all(0)
            truth, score = made.references.inside[k][fair], one.score(evidence(made).as_if(k))[fair]
            total += auc(score[truth], score[~truth])
        return total

    grid = [(a / 10, t) for a in range(11) for t in (1.0, 2.0, 4.0)]
    assert reached(*found) == pytest.approx(max(reached(*at) for at in grid), abs=1e-12)
    np.testing.assert_array_equal(
        attack.score(evidence(made)), RMIA(**found._asdict()).score(evidence(made))
    )
    made.answers[:] = world(seed=9, models=5, records=100).answers
    made.population.answers[:] = 0
    assert attack.tuned(evidence(made)) == found


def test_nothing_is_tuned_on_one_model_or_on_two_that_halve_the_records():
    assert RMIA().tuned(evidence(world(models=1))) == Tuning(0.3, 2.0)
    made = world(models=2)
    made.references.inside[1] = ~made.references.inside[0]
    assert RMIA().tuned(evidence(made)) == Tuning(0.3, 2.0)
    assert RMIA(a=0.7).tuned(evidence(made)) == Tuning(0.7, 2.0)


# --- bad input


def test_an_attack_says_what_it_lacks():
    made = world()
    alone = Evidence.gather(made.answers, made.labels)
    assert np.isfinite(Loss().score(alone)).all()
    with pytest.raises(ConfigError, match="reference needs reference models that did not see"):
        AttackR().score(alone)
    with pytest.raises(ConfigError, match="population needs answers on other records"):
        AttackP().score(evidence(made, population=False))
    made.references.inside[:] = False
    for attack in (LiRA(), StudentLiRA(), RMIA(online=True)):
        with pytest.raises(ConfigError, match="train some on them, or attack offline"):
            attack.score(evidence(made))
    for attack in (LiRA(online=False), StudentLiRA(online=False), RMIA()):
        assert np.isfinite(attack.score(evidence(made))).all()


def bad(change):
    made = world()
    change(made)
    return made


def nan(made):
    made.references.logits[1, 0, 3, 2] = np.nan


def infinity(made):
    made.answers[0, 0, 0] = np.inf


def impossible(made):
    made.answers[0, 0] = -np.inf


def label(made):
    made.labels[3] = CLASSES


def fractions(made):
    made.labels = made.labels.astype(float)


def fewer_labels(made):
    made.labels = made.labels[1:]


def other_queries(made):
    made.references.logits = made.references.logits[:, :1]


def other_masks(made):
    made.references.inside = made.references.inside[:, 1:]


def lonely_population(made):
    made.population = replace(made.population, references=None)


def flat(made):
    made.answers = made.answers[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (nan, "NaN or plus infinity"), (infinity, "NaN or plus infinity"), (impossible, "nothing above minus infinity"),
        (label, "labels from 0 to 4"), (fractions, "whole-numbered labels"), (fewer_labels, "a label for each of 40"),
        (other_queries, "ask the reference models what the target was asked"), (other_masks, "inside .K, 40. expected"),
        (lonely_population, "those of 6 reference models"), (flat, "queries, records, classes"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)  # fmt: skip
def test_answers_that_do_not_fit_are_refused(change, says):
    with pytest.raises(DataError, match=says):
        evidence(bad(change))


@pytest.mark.parametrize(
    "make",
    [
        lambda: LiRA(variance="own"), lambda: RMIA(gamma=0), lambda: RMIA(gamma=math.inf), lambda: RMIA(a=1.1),
        lambda: RMIA(temperature=0), lambda: RMIA(tuned_on=0), lambda: evidence(world(), memory=0),
        lambda: true_class_logit(np.zeros((2, 3)), np.zeros(2, int), temperature=math.nan),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ConfigError):
        make()
