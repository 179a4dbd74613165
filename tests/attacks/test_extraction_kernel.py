"""Kernel regression by equations: the records that the target holds come out, and what hides them is refused."""

import pytest
import torch

from tacit.attacks.access import Knowledge, QueryCounter, Scores
from tacit.attacks.extraction import Box, Unfinished
from tacit.attacks.extraction_fit import AffineModel
from tacit.attacks.extraction_kernel import KernelEquations, KernelModel, _Problem, _step, kernel
from tacit.audit.extraction_metrics import fidelity
from tacit.core.errors import ConfigError, NotEnoughEvidence
from tacit.nn.policies import EVERYTHING, Policy

BOX = Box(dtype=torch.float64)
GAMMA = 0.5


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def drawn(representers=4, width=6, classes=3, seed=1):
    generator = seeded(seed)
    records = torch.rand(representers, width, generator=generator, dtype=torch.float64)
    weights = 3 * torch.randn(classes, 1 + representers, generator=generator, dtype=torch.float64)
    return KernelModel(records, weights, GAMMA)


def extracted(target, attack, *, width=6, classes=3, policy=EVERYTHING, budget=None, shape=None):
    access = Scores(target, QueryCounter(budget), policy)
    knowledge = Knowledge(input_shape=shape or (width,), classes=classes)
    found = attack.extract(access, knowledge, seeded(2))
    assert access.counter.spent == found.queries
    return found


def test_the_model_is_what_its_formula_says():
    model = drawn(2, 3, 2)
    record = torch.tensor([[0.1, 0.9, 0.4]], dtype=torch.float64)
    near = [
        float(torch.exp(-GAMMA * (record[0] - one).square().sum()))
        for one in model.representers.detach()
    ]
    wanted = [float(row[0] + row[1] * near[0] + row[2] * near[1]) for row in model.weights.detach()]
    assert model(record)[0].tolist() == pytest.approx(wanted, rel=1e-12)
    assert kernel(record, record, GAMMA).item() == 1


@pytest.mark.parametrize("seed", range(3))
def test_the_representers_come_out_as_they_are(seed):
    target = drawn(seed=seed)
    found = extracted(target, KernelEquations(representers=4, gamma=GAMMA))
    assert found.determined and found.residual < 1e-9
    assert found.queries == 4 * (4 * 6 + 3 * 5) // 2
    apart = torch.cdist(target.representers.detach(), found.model.representers.detach())
    assert float(apart.min(1).values.max()) < 1e-5
    inputs = BOX.drawn(1000, (6,), seeded(3))
    assert fidelity(target, found.model, inputs).largest_difference < 1e-8


def test_a_temperature_is_undone_and_records_may_have_any_shape():
    target = drawn()
    attack = KernelEquations(representers=4, gamma=GAMMA, queries=80)
    found = extracted(target, attack, policy=Policy(temperature=2.0), shape=(2, 3))
    apart = torch.cdist(target.representers.detach(), found.model.representers.detach())
    assert float(apart.min(1).values.max()) < 1e-5


def test_too_few_queries_leave_it_undetermined_and_it_says_so():
    attack = KernelEquations(representers=4, gamma=GAMMA, queries=12, starts=1, steps=30)
    assert not extracted(drawn(), attack).determined


def test_a_model_with_fewer_representers_than_the_target_leaves_a_residual():
    attack = KernelEquations(representers=2, gamma=GAMMA, queries=80, steps=40)
    assert extracted(drawn(), attack).residual > 1e-3


def test_a_constant_target_ends_with_a_model_that_is_constant():
    target = AffineModel(torch.zeros(3, 6), torch.tensor([0.0, 1.0, 2.0]))
    found = extracted(target, KernelEquations(representers=2, gamma=GAMMA, queries=40, steps=30))
    assert found.residual < 1e-9


def test_the_gradient_and_the_normal_equations_are_those_of_the_derivatives():
    generator = seeded(5)
    points = torch.rand(15, 3, generator=generator, dtype=torch.float64)
    wanted = torch.randn(15, 2, generator=generator, dtype=torch.float64)
    problem = _Problem(points, wanted, GAMMA)
    records = torch.rand(2, 3, generator=generator, dtype=torch.float64)
    weights = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    state = problem.at(records, weights)

    def errors(vector):
        return problem.at(vector[:6].view(2, 3), vector[6:].view(2, 3)).error.flatten()

    vector = torch.cat([records.flatten(), weights.flatten()])
    moves = 1e-6 * torch.eye(12, dtype=torch.float64)
    slopes = torch.stack([(errors(vector + m) - errors(vector - m)) / 2e-6 for m in moves], 1)
    normal, uphill = _step(problem, state)
    assert torch.allclose(normal, slopes.T @ slopes, atol=1e-7)
    assert torch.allclose(uphill, slopes.T @ state.error.flatten(), atol=1e-7)


def test_probabilities_that_underflow_are_refused_with_the_remedy():
    target = KernelModel(torch.full((1, 6), 0.5), torch.tensor([[0.0, 0.0], [0.0, 4000.0]]), GAMMA)
    with pytest.raises(NotEnoughEvidence, match="narrower box"):
        extracted(target, KernelEquations(representers=1, gamma=GAMMA), classes=2)


def test_a_budget_that_does_not_do_is_refused():
    with pytest.raises(Unfinished):
        extracted(drawn(), KernelEquations(representers=4, gamma=GAMMA), budget=10)


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (Policy(labels_only=True), "labels only"),
        (Policy(digits=3), "all digits"),
        (Policy(top_k=1), "all 3 classes"),
    ],
)
def test_a_policy_that_hides_the_equations_is_refused_before_a_query(policy, says):
    counter = QueryCounter()
    with pytest.raises(ConfigError, match=says):
        KernelEquations(representers=4, gamma=GAMMA).extract(
            Scores(drawn(), counter, policy), Knowledge(input_shape=(6,), classes=3), seeded(1)
        )
    assert counter.spent == 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"representers": 0}, "1 representer"),
        ({"starts": 0}, "start"),
        ({"steps": 0}, "step"),
        ({"gamma": 0.0}, "gamma above 0"),
        ({"queries": 0}, "at least 1 query"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        KernelEquations(**{"representers": 2, "gamma": 1.0, **settings})
