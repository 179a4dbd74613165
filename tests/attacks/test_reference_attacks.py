"""What holds for all attacks by reference models: a planted signal is found, and nothing where none is."""

from types import SimpleNamespace

import numpy as np
import pytest
from tests.attacks.planted import evidence, world

from tacit.attacks.evidence import Evidence, Population
from tacit.attacks.likelihood_ratio import LiRA, StudentLiRA
from tacit.attacks.reference_attacks import REFERENCE_ATTACKS
from tacit.attacks.rmia import RMIA
from tacit.attacks.score_attacks import AttackP, AttackR, Loss
from tacit.audit.statistics import auc, auc_interval
from tacit.core.errors import ConfigError

STRONG = [attack for attack in REFERENCE_ATTACKS if attack.name.split("-")[0] in ("lira", "student", "rmia")]  # fmt: skip


def name_of(attack):
    return attack.name


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


def test_log_probabilities_do_as_well_as_logits():
    made = world(models=6)
    found = [attack.score(evidence(made)) for attack in REFERENCE_ATTACKS]
    for array in (made.answers, made.references.logits, made.population.answers, made.population.references):  # fmt: skip
        array[:] = array - np.log(np.exp(array).sum(-1, keepdims=True))
    for attack, before in zip(REFERENCE_ATTACKS, found, strict=True):
        np.testing.assert_allclose(attack.score(evidence(made)), before, rtol=1e-5, atol=1e-5)


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
