"""Equation solving: exact from the fewest queries, and as near as rounding allows; what hides the equations is refused."""

import math
import time

import pytest
import torch
from torch import nn

from tacit.attacks import extraction_fit
from tacit.attacks.access import Knowledge, QueryCounter, Scores
from tacit.attacks.extraction import Box, EquationSolving, Unfinished, design, wavering
from tacit.attacks.extraction_fit import (
    POWERS,
    AffineModel,
    determines,
    equations,
    from_rounded,
    with_one,
)
from tacit.attacks.extraction_network import NetworkEquations, NetworkLoss
from tacit.audit.extraction_metrics import fidelity
from tacit.core.errors import BudgetExhausted, ConfigError, DataError
from tacit.nn.data import load
from tacit.nn.policies import EVERYTHING, Policy

FLOAT64 = Box(dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def drawn(width, classes, link="softmax", seed=1, size=1.0):
    """A target with weights of that size, in no way like what an attack would start from."""
    weights = torch.randn(classes, width + 1, generator=seeded(seed), dtype=torch.float64) * size
    return AffineModel(weights[:, 1:], weights[:, 0], link)


def extracted(target, shape, classes, attack, *, policy=EVERYTHING, budget=None, seed=2):
    access = Scores(target, QueryCounter(budget), policy)
    knowledge = Knowledge(input_shape=shape, classes=classes)
    found = attack.extract(access, knowledge, seeded(seed))
    assert access.counter.spent == found.queries
    return found


def on_uniform(target, found, width, box=FLOAT64, **how):
    return fidelity(target, found.model, box.drawn(2000, (width,), seeded(3)), **how)


@pytest.fixture(scope="module")
def digits():
    """Softmax regression on digits, trained; float64; and the test images."""
    data = load("digits")
    inputs, labels = data.inputs_train.flatten(1).double(), data.labels_train
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = nn.functional.cross_entropy(model(inputs), labels)
        value = value + 1e-3 * model[1].weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    test = data.inputs_test.double()
    assert (model(test).argmax(1) == data.labels_test).double().mean() > 0.94
    return model, test


# --- exact


def test_softmax_on_digits_is_exact_from_65_queries_in_half_a_second(digits):
    target, test = digits
    began = time.thread_time()
    found = extracted(target, (1, 8, 8), 10, EquationSolving(box=FLOAT64))
    assert time.thread_time() - began < 0.5
    assert found.queries == 65 and found.determined
    uniform = FLOAT64.drawn(10_000, (1, 8, 8), seeded(3))
    for inputs in (test, uniform):
        near = fidelity(target, found.model, inputs)
        assert near.agreement.value == 1
        assert near.total_variation < 1e-12 and near.largest_difference < 1e-12
    assert found.residual < 1e-12


def test_one_query_too_few_does_not_determine_the_model(digits):
    target, test = digits
    found = extracted(target, (1, 8, 8), 10, EquationSolving(box=FLOAT64, queries=64))
    assert not found.determined
    assert fidelity(target, found.model, test).total_variation > 1e-4


def test_a_float32_target_is_as_near_as_its_own_rounding(digits):
    target, test = digits
    single = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    single.load_state_dict({name: value.float() for name, value in target.state_dict().items()})
    few = extracted(single, (1, 8, 8), 10, EquationSolving())
    near = fidelity(single, few.model, test.float())
    assert near.agreement.value == 1 and near.total_variation < 2e-7
    assert few.queries == 65 and few.residual < 2e-6
    # In float32 the test images' own answers are off by as much; against the float64 target more queries tell more.
    exact = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    exact.load_state_dict(single.state_dict())
    many = extracted(single, (1, 8, 8), 10, EquationSolving(queries=2000))
    near, nearer = (fidelity(exact, found.model, test).total_variation for found in (few, many))
    assert nearer < near / 2


def test_binary_logistic_regression_takes_d_plus_1_queries_and_gives_the_weights():
    weight = torch.randn(30, generator=seeded(4), dtype=torch.float64)

    class Logistic(nn.Module):
        def forward(self, inputs):
            score = inputs @ weight - 0.7
            return torch.stack([torch.zeros_like(score), score], 1)

    found = extracted(Logistic(), (30,), 2, EquationSolving(box=FLOAT64))
    assert found.queries == 31
    difference = found.model.weight[1] - found.model.weight[0]
    assert torch.allclose(difference, weight, rtol=0, atol=1e-12)
    assert (found.model.bias[1] - found.model.bias[0]).item() == pytest.approx(-0.7, abs=1e-12)


@pytest.mark.parametrize(("classes", "queries"), [(5, 27), (3, 32)])
def test_one_vs_rest_is_exact_though_its_equations_are_not_linear(classes, queries):
    target = drawn(20, classes, "one-vs-rest")
    fewest = EquationSolving(link="one-vs-rest").fewest(20, classes)
    assert fewest == queries
    attack = EquationSolving(box=FLOAT64, link="one-vs-rest")
    found = extracted(target, (20,), classes, attack)
    assert found.queries == queries + math.ceil(queries / 10) + 5
    assert on_uniform(target, found, 20).total_variation < 1e-12
    assert torch.allclose(found.model.weight, target.weight, rtol=0, atol=1e-9)
    wrong = extracted(target, (20,), classes, EquationSolving(box=FLOAT64, queries=fewest + 5))
    assert wrong.residual > 1e-3
    assert on_uniform(target, wrong, 20).total_variation > 1e-3


@pytest.mark.parametrize("link", ["softmax", "one-vs-rest"])
def test_a_temperature_that_is_known_is_undone(link):
    target, policy = drawn(12, 4, link), Policy(temperature=3.0)
    attack = EquationSolving(box=FLOAT64, link=link, queries=40)
    found = extracted(target, (12,), 4, attack, policy=policy)
    assert on_uniform(target, found, 12).total_variation < 1e-12
    rounded = extracted(target, (12,), 4, attack, policy=Policy(temperature=3.0, digits=5))
    assert 0 < on_uniform(target, rounded, 12).total_variation < 1e-2
    assert rounded.residual < 1.5e-5


def test_duplicate_classes_come_out_as_duplicates():
    target = drawn(10, 4)
    with torch.no_grad():
        target.weight[3], target.bias[3] = target.weight[1], target.bias[1]
    found = extracted(target, (10,), 4, EquationSolving(box=FLOAT64))
    near = on_uniform(target, found, 10, tie=1e-9)
    assert near.total_variation < 1e-12 and near.agreement.value == 1
    assert torch.allclose(found.model.weight[3], found.model.weight[1], rtol=0, atol=1e-11)


def test_probabilities_that_underflow_are_left_out_and_more_queries_make_up_for_them():
    target = drawn(10, 5, size=300.0)
    wide = Box(low=-1.0, high=1.0, dtype=torch.float64)
    found = extracted(target, (10,), 5, EquationSolving(box=wide, queries=60))
    with torch.no_grad():
        asked = torch.softmax(target(design(wide, 60, 10, seeded(2))), 1)
    assert (asked == 0).double().mean() > 0.2
    narrow = Box(low=-1e-3, high=1e-3, dtype=torch.float64)
    assert on_uniform(target, found, 10, box=narrow).total_variation < 1e-10
    assert found.determined


def test_a_copy_that_underflow_left_open_is_not_called_determined():
    target = drawn(20, 5, size=100.0)
    wide = Box(low=-1.0, high=1.0, dtype=torch.float64)
    found = extracted(target, (20,), 5, EquationSolving(box=wide))
    assert found.queries == 21 and not found.determined
    # Over what was asked the copy is perfect.
    assert found.residual < 1e-6 and on_uniform(target, found, 20, box=wide).agreement.value < 0.9
    binary = extracted(drawn(20, 2, size=1e4), (20,), 2, EquationSolving(box=wide, queries=30))
    assert not binary.determined


@pytest.mark.parametrize("link", ["softmax", "one-vs-rest"])
def test_equations_are_counted_without_zeros(link):
    whole = torch.full((8, 3), 1 / 3, dtype=torch.float64)
    assert determines(whole, 5, link) and equations(whole) == 16
    assert not determines(whole[:4], 5, link)
    apart = whole.clone()
    apart[:4, 2] = apart[4:, 1] = 0  # of classes 1 and 2 each is known in four records
    assert equations(apart) == 8 and not determines(apart, 5, link)


def test_two_pairs_of_classes_that_never_meet_do_not_determine_a_model():
    answers = torch.zeros(40, 4, dtype=torch.float64)
    answers[:20, :2] = answers[20:, 2:] = 0.5
    assert equations(answers) == 40 and not determines(answers, 5, "softmax")
    answers[:5] = 0.25
    assert determines(answers, 5, "softmax")


def test_too_many_unknowns_to_be_solved_for_at_once_are_refused_before_a_query():
    target = nn.Linear(2001, 10).double()
    for policy, link in ((Policy(digits=2), "softmax"), (EVERYTHING, "one-vs-rest")):
        access = Scores(target, QueryCounter(), policy)
        attack = EquationSolving(box=FLOAT64, link=link)
        with pytest.raises(ConfigError, match="20,000 unknowns"):
            attack.extract(access, Knowledge(input_shape=(2001,), classes=10), seeded(1))
        assert access.counter.spent == 0
        with pytest.raises(ConfigError, match="20,000 unknowns"):
            attack.solve(torch.zeros(2, 2001), torch.full((2, 10), 0.1), policy)


def test_with_zeros_and_many_unknowns_pairs_of_classes_are_solved_for(monkeypatch):
    target = drawn(10, 5, size=200.0)
    wide = Box(low=-1.0, high=1.0, dtype=torch.float64)
    at_once = extracted(target, (10,), 5, EquationSolving(box=wide, queries=200))
    monkeypatch.setattr(extraction_fit, "MOST_UNKNOWNS", 54)
    found = extracted(target, (10,), 5, EquationSolving(box=wide, queries=200))
    assert found.determined and found.residual < 1e-9
    one, other = (model.weight - model.weight.mean(0) for model in (found.model, at_once.model))
    assert not torch.equal(one, other) and torch.allclose(one, other, rtol=0, atol=1e-6)


# --- rounded


@pytest.mark.parametrize(
    ("digits_given", "tests", "uniform", "apart"),
    [(5, 1.0, 0.999, 5e-6), (3, 1.0, 0.998, 5e-4), (2, 0.99, 0.99, 5e-3)],
)
def test_rounded_answers_of_digits(digits, digits_given, tests, uniform, apart):
    target, test = digits
    policy = Policy(digits=digits_given)
    found = extracted(target, (1, 8, 8), 10, EquationSolving(box=FLOAT64), policy=policy)
    assert found.queries == 650
    near = fidelity(target, found.model, test)
    assert near.agreement.value >= tests and near.total_variation < apart
    box = FLOAT64.drawn(10_000, (1, 8, 8), seeded(3))
    assert fidelity(target, found.model, box).agreement.value >= uniform


def test_knowing_how_rounding_errs_is_worth_more_than_least_squares():
    target, policy = drawn(20, 5, size=0.5), Policy(digits=3)
    points = FLOAT64.drawn(1000, (20,), seeded(5))
    with torch.no_grad():
        answers = policy.answers(target(points))
    far = []
    for powers in ((1,), POWERS):
        weights = from_rounded(with_one(points), answers, "softmax", 3, powers=powers)
        model = AffineModel(weights[:, 1:], weights[:, 0])
        far.append(fidelity(target, model, FLOAT64.drawn(2000, (20,), seeded(6))).total_variation)
    assert far[1] < 0.7 * far[0]


def test_records_at_which_a_sharp_target_wavers_tell_more_than_others(monkeypatch):
    target, policy = drawn(20, 5, size=8.0), Policy(digits=2)
    attack = EquationSolving(box=FLOAT64, queries=400)
    chosen = extracted(target, (20,), 5, attack, policy=policy)
    monkeypatch.setattr(
        "tacit.attacks.extraction.wavering",
        lambda model, box, rows, width, generator: box.drawn(rows, (width,), generator),
    )
    uniform = extracted(target, (20,), 5, attack, policy=policy)
    near, far = on_uniform(target, chosen, 20), on_uniform(target, uniform, 20)
    assert near.total_variation < 0.6 * far.total_variation


# --- the records


def test_wavering_records_lie_on_the_boundary_and_inside_the_box():
    box, target = Box(low=-1.0, high=3.0), drawn(12, 2, size=10.0)
    records = wavering(target, box, 50, 12, seeded(4))
    assert records.shape == (50, 12) and records.dtype == torch.float32
    assert records.min() >= -1 and records.max() <= 3
    scores, usual = (
        target(some).diff(dim=1).abs().mean()
        for some in (records, box.drawn(500, (12,), seeded(5)))
    )
    assert scores < 0.1 * usual


@pytest.mark.parametrize(("rows", "width"), [(65, 64), (2, 1), (100, 7)])
def test_the_design_is_orthogonal_and_inside_the_box(rows, width):
    box = Box(low=-3.0, high=5.0, dtype=torch.float64)
    records = design(box, rows, width, seeded(1))
    assert records.shape == (rows, width)
    assert records.min() >= -3 and records.max() <= 5
    unit = with_one((records - 1) / 4)
    expected = torch.full((width + 1,), rows / 2, dtype=torch.float64)
    expected[0] = rows
    assert torch.allclose(unit.T @ unit, expected.diag(), atol=1e-9 * rows)


def test_what_is_asked_stays_inside_the_box_and_has_its_type():
    asked = []

    class Recorder(nn.Module):
        def forward(self, inputs):
            asked.append(inputs)
            return drawn(6, 3, size=5.0)(inputs)

    box = Box(low=0.1, high=0.7)
    found = extracted(Recorder(), (2, 3), 3, EquationSolving(box=box), policy=Policy(digits=2))
    records = torch.cat(asked)
    assert records.shape == (70, 2, 3) == (found.queries, 2, 3)
    assert len(asked) == 2
    assert records.dtype == torch.float32
    assert records.min() >= 0.1 and records.max() <= torch.tensor(0.7)


# --- refused


@pytest.mark.parametrize(
    ("policy", "says"),
    [(Policy(labels_only=True), "labels only"), (Policy(top_k=3), "top 3: zeros")],
)
def test_a_policy_that_hides_the_equations_is_refused_before_a_query(policy, says):
    access = Scores(drawn(6, 4), QueryCounter(), policy)
    with pytest.raises(ConfigError, match=says):
        EquationSolving(box=FLOAT64).extract(
            access, Knowledge(input_shape=(6,), classes=4), seeded(1)
        )
    assert access.counter.spent == 0


def test_a_policy_that_gives_the_top_of_all_classes_hides_nothing():
    target = drawn(6, 4)
    found = extracted(target, (6,), 4, EquationSolving(box=FLOAT64), policy=Policy(top_k=4))
    assert on_uniform(target, found, 6).total_variation < 1e-12


def test_a_target_that_answers_nan_is_refused():
    target = drawn(6, 4)
    with torch.no_grad():
        target.bias[2] = math.nan
    with pytest.raises(DataError, match="finite answers expected, 7 of 7"):
        extracted(target, (6,), 4, EquationSolving(box=FLOAT64))


def test_a_target_of_another_type_is_refused_with_the_remedy():
    target = nn.Linear(6, 4).double()
    with pytest.raises(ConfigError, match=r"does not take torch\.float32: set Box\.dtype"):
        extracted(target, (6,), 4, EquationSolving())


def test_an_error_of_the_target_that_is_not_about_types_is_passed_on():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        extracted(nn.Linear(5, 4), (6,), 4, EquationSolving())


@pytest.mark.parametrize(
    ("knowledge", "says"),
    [
        (Knowledge(classes=4), "needs to know input_shape"),
        (Knowledge(input_shape=(6,)), "needs to know classes"),
        (Knowledge(input_shape=(6,), classes=5), "5 classes are known"),
        (Knowledge(input_shape=(6,), classes=1), "at least 2 classes"),
        (Knowledge(input_shape=(0,), classes=4), "at least 1 feature"),
    ],
)
def test_knowledge_that_does_not_fit_is_refused(knowledge, says):
    with pytest.raises(ConfigError, match=says):
        EquationSolving(box=FLOAT64).extract(Scores(drawn(6, 4)), knowledge, seeded(1))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Box(low=1.0, high=1.0), "low below high"),
        (lambda: Box(high=math.inf), "low below high"),
        (lambda: Box(dtype=torch.float16), "float32 or float64"),
        (lambda: EquationSolving(queries=0), "at least 1 query"),
        (lambda: EquationSolving(link="probit"), "'probit' came"),
    ],
)
def test_settings_out_of_range_are_refused(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


def test_a_budget_that_ends_halfway_keeps_what_was_asked():
    target, policy = drawn(6, 4), Policy(digits=3)
    attack = EquationSolving(box=FLOAT64, queries=100)
    with pytest.raises(Unfinished, match="50 records asked about") as kept:
        extracted(target, (6,), 4, attack, policy=policy, budget=60)
    error = kept.value
    assert isinstance(error, BudgetExhausted)
    assert error.inputs.shape == (50, 6) and error.wanted == 50
    with torch.no_grad():
        assert torch.equal(error.answers, policy.answers(target(error.inputs)))
        model = attack.solve(error.inputs, error.answers, policy)
    inputs = FLOAT64.drawn(2000, (6,), seeded(3))
    assert fidelity(target, model, inputs).total_variation < 1e-2
    with pytest.raises(Unfinished, match=r"^0 records") as nothing:
        extracted(target, (6,), 4, attack, policy=policy, budget=49)
    assert len(nothing.value.inputs) == len(nothing.value.answers) == 0


def test_the_same_generator_gives_the_same_model():
    target = drawn(6, 4, size=4.0)
    policy = Policy(digits=2)
    first, again, other = (
        extracted(target, (6,), 4, EquationSolving(box=FLOAT64), policy=policy, seed=seed)
        for seed in (2, 2, 5)
    )
    assert torch.equal(first.model.weight, again.model.weight)
    assert not torch.equal(first.model.weight, other.model.weight)


# --- networks


def network(width, hidden, classes, seed=1, activation=nn.Tanh):
    """A target with one hidden layer, float64."""
    layers = nn.Linear(width, hidden), activation(), nn.Linear(hidden, classes)
    model = nn.Sequential(nn.Flatten(), *layers).double()
    with torch.no_grad():
        for weights in model.parameters():
            drawn = torch.randn(weights.shape, generator=seeded(seed), dtype=torch.float64)
            weights.copy_(drawn * (1.5 / weights.shape[-1] ** 0.5 if weights.dim() > 1 else 0.3))
    return model


CENTRED = Box(low=-1.0, high=1.0, dtype=torch.float64)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid])
def test_a_network_is_recovered_from_as_many_queries_as_it_has_weights(activation):
    target = network(12, 4, 3, activation=activation)
    weights = 4 * 13 + 3 * 5
    attack = NetworkEquations(box=CENTRED, hidden=4, queries=weights)
    found = extracted(target, (3, 4), 3, attack)
    assert found.queries == attack.unknowns(12, 3) == weights
    near = fidelity(target, found.model, CENTRED.drawn(2000, (3, 4), seeded(3)))
    assert near.agreement.value == 1 and near.total_variation < 1e-4
    assert found.residual < 1e-3 and found.determined
    narrow = extracted(
        target, (3, 4), 3, NetworkEquations(box=CENTRED, hidden=2, spare=0, starts=1, steps=30)
    )
    assert narrow.residual > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_with_two_classes_as_many_are_asked_for_as_the_fitted_network_needs(seed):
    target, generator = network(30, 10, 2), seeded(seed)
    with torch.no_grad():
        for weights in target.parameters():
            drawn = torch.randn(weights.shape, generator=generator, dtype=torch.float64)
            weights.copy_(2 * drawn / weights.shape[-1] ** 0.5)
    attack = NetworkEquations(box=CENTRED, hidden=10)
    assert attack.enough(30, 2) == 2 * (13 * 31 + 2 * 14)
    found = extracted(target, (30,), 2, attack)
    assert found.queries == attack.enough(30, 2) and found.determined
    assert on_uniform(target, found, 30, box=CENTRED).agreement.value > 0.99
    few = NetworkEquations(
        box=CENTRED, hidden=10, queries=attack.unknowns(30, 2), starts=1, steps=5
    )
    assert not extracted(target, (30,), 2, few).determined
    paper = NetworkEquations(hidden=20)
    assert paper.enough(105, 5) == paper.unknowns(105, 5) == 2225


def test_a_network_whose_probabilities_underflow_is_not_called_determined():
    target = network(10, 5, 3)
    with torch.no_grad():
        target[3].weight *= 5000
    attack = NetworkEquations(box=CENTRED, hidden=5, starts=1, steps=50)
    assert not extracted(target, (10,), 3, attack).determined


def test_the_weights_come_out_up_to_order_and_sign_of_the_units():
    target = network(12, 4, 3)
    found = extracted(target, (12,), 3, NetworkEquations(box=CENTRED, hidden=4))
    theirs = torch.cat([target[1].bias[:, None], target[1].weight], 1).detach()
    own = found.model.inner.detach()
    for unit in theirs:
        apart = torch.minimum((own - unit).abs().max(1).values, (own + unit).abs().max(1).values)
        assert apart.min() < 1e-4


def test_a_spare_unit_gives_a_search_a_way_on_that_ends_beside_the_solution_without():
    left = []
    for spare in (0, None):
        attack = NetworkEquations(
            box=CENTRED, hidden=4, spare=spare, queries=120, starts=1, steps=200
        )
        left.append(extracted(network(12, 4, 3), (12,), 3, attack, seed=1).residual)
    assert left[0] > 1e-2 and left[1] < 1e-6


def test_rounded_answers_of_a_network_are_fitted_by_cross_entropy():
    target, policy = network(6, 3, 3), Policy(digits=2, temperature=0.25)
    attack = NetworkEquations(box=CENTRED, hidden=3, queries=300, steps=60)
    found = extracted(target, (6,), 3, attack, policy=policy)
    near = on_uniform(target, found, 6, box=CENTRED)
    assert near.agreement.value > 0.98 and near.total_variation < 1e-2
    assert 1e-3 < found.residual < 5e-2


def test_the_gradient_of_a_network_is_that_of_its_loss():
    target, generator = network(5, 3, 4), seeded(1)
    points = CENTRED.drawn(20, (5,), generator)
    for policy in (Policy(temperature=2.0), Policy(temperature=2.0, digits=2)):
        with torch.no_grad():
            answers = policy.answers(target(points))
        loss = NetworkLoss(with_one(points), answers, 3, policy)
        weights = loss.start(generator)
        _, gradient = loss(weights)
        for i in range(len(weights)):
            moved = weights.copy()
            moved[i] += 1e-6
            up = loss(moved)[0]
            moved[i] -= 2e-6
            assert gradient[i] == pytest.approx((up - loss(moved)[0]) / 2e-6, rel=1e-4, abs=1e-8)


def test_a_network_behind_a_policy_that_hides_its_answers_is_refused():
    with pytest.raises(ConfigError, match="labels only"):
        extracted(
            network(5, 3, 4),
            (5,),
            4,
            NetworkEquations(box=CENTRED),
            policy=Policy(labels_only=True),
        )


@pytest.mark.parametrize(
    "settings", [{"hidden": 0}, {"starts": 0}, {"steps": 0}, {"queries": 0}, {"spare": -1}]
)
def test_settings_of_the_network_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=r"at least 1|no fewer than 0"):
        NetworkEquations(**settings)
