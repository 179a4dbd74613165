"""MI-Face: each stop rule on costs written by hand, every row as printed, and nothing paid for rows that stopped."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from tacit.attacks.access import Knowledge, WhiteBox
from tacit.attacks.model_inversion import Cost, Evaluation, MIFace, Start, Stop, descend
from tacit.attacks.model_inversion_rows import invert_in_row_space
from tacit.core.errors import BudgetExhausted, ConfigError, UnsupportedLayer
from tacit.nn.networks import mlp, softmax_regression

SHAPE, CLASSES = (1, 6, 5), 4
KNOWN = Knowledge(input_shape=SHAPE, classes=CLASSES)
ALL = torch.arange(CLASSES)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def network(hidden=(7,), seed=1):
    model = mlp(SHAPE, hidden, CLASSES, nn.Sigmoid, generator=seeded(seed)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


class Scripted:
    """Costs from a list for each row, one entry a step; slopes of one, so that a point tells how often it moved."""

    def __init__(self, *rows):
        self.rows, self.asked = rows, []

    def __call__(self, points, rows):
        step = len(self.asked)
        self.asked.append(rows.tolist())
        costs = torch.tensor([float(self.rows[row][step]) for row in rows.tolist()])
        return Evaluation(costs, 1 - costs, -torch.ones_like(points))


def scripted(*rows, **settings):
    script = Scripted(*rows)
    settings = {"step_size": 1.0, "box": None, **settings}
    return descend(script, torch.zeros(len(rows), 1), MIFace(**settings), None), script


def quadratic(start, scale=1.0, **settings):
    """Descent on c = scale x²/2, where x_i = (1 - lambda scale)^i x_0."""

    def evaluate(points, rows):
        costs = scale * points.square().sum(1) / 2
        return Evaluation(costs, 1 - costs, scale * points)

    start = torch.tensor(start, dtype=torch.float64)
    return descend(evaluate, start, MIFace(**{"box": None, **settings}), None)


def test_stops_at_the_confidence_asked_for_and_not_before():
    found = quadratic([[1.0], [0.5]], step_size=0.1, confidence=0.99)
    # c_i = 0.81^i x_0²/2 <= 0.01
    expected = [math.ceil(math.log(0.01 * 2 / x**2) / math.log(0.81)) for x in (1.0, 0.5)]
    assert found.steps.tolist() == expected == [19, 12]
    assert found.stopped == [Stop.CONFIDENT] * 2
    assert found.points[:, 0].tolist() == pytest.approx([0.9**19, 0.5 * 0.9**12])
    assert found.confidences.tolist() == (1 - found.costs).tolist()


def test_a_cost_that_falls_never_stalls():
    found = quadratic([[1.0]], step_size=0.01, patience=1, iterations=50)
    assert (found.stopped, found.steps.item()) == ([Stop.EXHAUSTED], 50)


@pytest.mark.parametrize("step_size", [2.0, 2.01])  # neither falls: it swings, or grows
@pytest.mark.parametrize("patience", [1, 7])
def test_a_cost_that_does_not_fall_stalls_after_the_patience(step_size, patience):
    found = quadratic([[1.0]], step_size=step_size, patience=patience, iterations=50)
    assert (found.stopped, found.steps.item()) == ([Stop.STALLED], patience)
    assert found.points.item() == 1.0  # the start was the best


def test_stalls_against_the_most_of_the_last_costs_and_of_no_others():
    # 4 is below the most of all costs and above the least of the last three; only the last three count.
    found, _ = scripted([5.0, 1, 2, 2.5, 4, 0, 0], patience=3)
    assert (found.stopped, found.steps.item()) == ([Stop.STALLED], 4)
    assert (found.costs.item(), found.points.item()) == (1.0, 1.0)  # the least cost, and its point


def test_an_equal_cost_stalls_and_the_first_of_equal_ones_is_kept():
    found, _ = scripted([3.0, 3, 3], patience=2)
    assert (found.stopped, found.steps.item(), found.points.item()) == ([Stop.STALLED], 2, 0.0)


def test_a_patience_beyond_all_steps_never_stalls():
    found, _ = scripted([1.0, 2, 3, 4], patience=1000, iterations=3)
    assert (found.stopped, found.steps.item()) == ([Stop.EXHAUSTED], 3)


def test_a_row_that_stopped_is_not_asked_about_again():
    found, script = scripted(
        [9.0, 8, 7, 6, 5], [9.0, 0], [9.0, 8, 8.5, math.nan], patience=2, iterations=4
    )
    assert script.asked == [[0, 1, 2], [0, 1, 2], [0, 2], [0, 2], [0]]
    assert found.stopped == [Stop.EXHAUSTED, Stop.CONFIDENT, Stop.DIVERGED]
    assert found.steps.tolist() == [4, 1, 3]
    assert found.costs.tolist() == [5, 0, 8]
    assert found.points[:, 0].tolist() == [4, 1, 1]


def test_a_start_without_a_finite_cost_is_never_the_answer():
    found, _ = scripted([math.nan, 5, math.inf], [math.nan, math.nan], iterations=2)
    assert (found.costs.tolist(), found.points[0].item()) == ([5, math.inf], 1.0)
    assert found.stopped == [Stop.DIVERGED] * 2


def test_what_was_found_before_the_budget_ended_is_given():
    script = Scripted([9.0, 8, 7])

    def poor(points, rows):
        if len(script.asked) == 3:
            raise BudgetExhausted("no queries left")
        return script(points, rows)

    found = descend(poor, torch.zeros(1, 1), MIFace(step_size=1.0, box=None), None)
    assert (found.stopped, found.costs.item(), found.steps.item()) == ([Stop.BUDGET], 7, 2)


# --- against the printed algorithm ------------------------------------------------------------------


def printed(model, label, start, settings, auxiliary=None, process=None):
    """Algorithm 1 for one label, line by line."""

    def cost(x):
        p = model(x[None]).softmax(1)[0, label]
        c = 1 - p if settings.cost is Cost.ONE_MINUS_P else -p.log()
        return c if auxiliary is None else c + auxiliary(x[None], torch.tensor([label]))[0]

    xs, costs = [start], [cost(start).item()]
    for i in range(1, settings.iterations + 1):
        x = xs[-1].clone().requires_grad_()
        cost(x).backward()
        x = xs[-1] - settings.step_size * x.grad
        if process is not None and i % settings.process_every == 0:
            x = process(x[None])[0]
        if settings.box is not None:
            x = x.clamp(*settings.box)
        xs.append(x)
        costs.append(cost(x).item())
        if i >= settings.patience and costs[-1] >= max(costs[-1 - settings.patience : -1]):
            break
        if costs[-1] <= settings.cost.at(settings.confidence):
            break
    best = min(range(len(costs)), key=costs.__getitem__)
    return xs[best], costs[best], len(xs) - 1


def brightness(images, labels):
    return 0.05 * (1 + labels) * images.flatten(1).square().mean(1)


def blur(images):
    return nn.functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False)


@pytest.mark.parametrize("cost", list(Cost))
@pytest.mark.parametrize(
    ("settings", "auxiliary", "process"),
    [
        ({"step_size": 2.0}, None, None),
        ({"step_size": 30.0, "patience": 3, "box": None}, None, None),
        ({"step_size": 1.0, "box": (-0.5, 0.5), "confidence": 0.7}, brightness, None),
        ({"step_size": 2.0, "process_every": 3, "box": None, "iterations": 40}, None, blur),
    ],
)
def test_every_row_is_what_the_printed_algorithm_gives(cost, settings, auxiliary, process):
    model, settings = network(), MIFace(**{"cost": cost, "iterations": 60, **settings})
    start = Start(name="drawn", images=torch.rand(2, *SHAPE, generator=seeded(2)).double() / 2)
    found = settings.invert(
        WhiteBox(model), KNOWN, ALL, start=start, auxiliary=auxiliary, process=process
    )
    for label in range(CLASSES):
        each = [printed(model, label, x, settings, auxiliary, process) for x in start.images]
        assert found.restart_costs[label].tolist() == pytest.approx([c for _, c, _ in each])
        image, least, steps = min(each, key=lambda one: one[1])
        assert torch.allclose(found.images[label], image)
        assert found.costs[label].item() == pytest.approx(least)
        assert found.steps[label].item() == steps
        p = model(image[None]).softmax(1)[0, label].item()
        assert found.confidences[label].item() == pytest.approx(p)


@pytest.mark.parametrize("where", [5.0, -5.0])
def test_the_start_is_put_into_the_box(where):
    start = Start(name="outside", images=torch.full((1, *SHAPE), where))
    edge = Start(name="edge", images=start.images.clamp(0, 1))
    settings = MIFace(step_size=1e-9, iterations=3)
    found, same = (settings.invert(WhiteBox(network()), KNOWN, ALL, start=s) for s in (start, edge))
    assert found.images.min() >= 0 and found.images.max() <= 1
    assert torch.equal(found.images, same.images) and torch.equal(found.costs, same.costs)
    free = replace(settings, box=None).invert(WhiteBox(network()), KNOWN, ALL, start=start)
    assert torch.allclose(free.images, start.images.to(free.images))


def test_classes_become_sure_from_zero_and_the_label_is_the_prediction():
    model = network(hidden=()).float()
    model[1].weight.data.mul_(5)
    found = MIFace(step_size=0.5).invert(WhiteBox(model), KNOWN, ALL)
    assert found.stopped == (Stop.CONFIDENT,) * CLASSES
    assert (found.confidences >= 0.99).all()
    assert torch.equal(model(found.images).argmax(1), ALL)
    assert found.images.min() >= 0 <= 1 >= found.images.max()
    assert found.start == "zero"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_work_is_what_the_rows_took():
    model, seen = network(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    found = MIFace(step_size=5.0, confidence=0.6, iterations=400).invert(
        WhiteBox(model), KNOWN, ALL
    )
    assert len(set(found.steps.tolist())) > 1
    assert sum(seen) == found.evaluations == int((found.steps + 1).sum())


def test_the_model_is_asked_as_an_endpoint_would_answer():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(30, CLASSES))
    start = Start(name="grey", images=torch.full((1, *SHAPE), 0.5))
    once, again = (
        MIFace(iterations=5).invert(WhiteBox(model), KNOWN, ALL, start=start) for _ in range(2)
    )
    assert torch.equal(once.images, again.images)


def test_each_label_may_start_from_an_image_of_its_own():
    starts = torch.rand(CLASSES, 1, *SHAPE, generator=seeded(3))
    model, settings = network().float(), MIFace(step_size=1e-9, iterations=1)
    found = settings.invert(
        WhiteBox(model), KNOWN, ALL, start=Start(name="blurred face", images=starts)
    )
    assert torch.allclose(found.images, starts[:, 0], atol=1e-6)
    assert found.start == "blurred face"


def test_minus_log_p_moves_where_one_minus_p_is_flat():
    model = softmax_regression(SHAPE, CLASSES, generator=seeded(4))
    with torch.no_grad():
        model[1].bias[0] -= 60  # p of class 0 is about 1e-26 at zero
    by = {
        cost: MIFace(cost=cost, step_size=20.0, box=None, iterations=400).invert(
            WhiteBox(model), KNOWN, torch.tensor([0])
        )
        for cost in Cost
    }
    assert by[Cost.ONE_MINUS_P].stopped == (Stop.STALLED,)
    assert by[Cost.ONE_MINUS_P].confidences.item() < 1e-20
    assert by[Cost.MINUS_LOG_P].stopped == (Stop.CONFIDENT,)


# --- the space of the first layer's rows --------------------------------------------------------------


@pytest.mark.parametrize("cost", list(Cost))
@pytest.mark.parametrize("hidden", [(), (7,), (9, 5)])
@pytest.mark.parametrize("restarts", [0, 2])
def test_the_row_space_gives_the_plain_images(cost, hidden, restarts):
    model = network(hidden)
    settings = MIFace(cost=cost, step_size=1.5, box=None, iterations=150, patience=10)
    start = Start(name="drawn", images=torch.rand(restarts, *SHAPE, generator=seeded(5)).double())
    start = start if restarts else None
    plain = settings.invert(WhiteBox(model), KNOWN, ALL, start=start)
    fast = invert_in_row_space(settings, WhiteBox(model), KNOWN, ALL, start=start)
    assert torch.allclose(fast.images, plain.images, atol=1e-9)
    assert torch.allclose(fast.restart_costs, plain.restart_costs)
    assert fast.steps.equal(plain.steps)
    assert fast.stopped == plain.stopped
    assert plain.images.abs().max() > 0.1


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(30, 4),
        nn.Sequential(nn.Flatten(), nn.Sigmoid(), nn.Linear(30, 4)),
        nn.Sequential(nn.Flatten(2), nn.Linear(30, 4)),
        nn.Sequential(nn.Linear(5, 4)),
    ],
)
def test_the_row_space_of_another_model_is_refused(model):
    with pytest.raises(UnsupportedLayer, match="Flatten and a Linear"):
        invert_in_row_space(MIFace(box=None), WhiteBox(model), KNOWN, ALL)


def test_the_row_space_has_no_box():
    with pytest.raises(ConfigError, match="box=None"):
        invert_in_row_space(MIFace(), WhiteBox(network()), KNOWN, ALL)


# --- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting",
    [
        {"iterations": 0},
        {"patience": 0},
        {"process_every": 0},
        {"confidence": 0.0},
        {"confidence": 1.1},
        {"step_size": 0.0},
        {"step_size": math.nan},
        {"step_size": math.inf},
        {"box": (1.0, 0.0)},
    ],
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ConfigError, match="expected"):
        MIFace(**setting)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": torch.tensor([0, 4])}, "labels from 0 to 3"),
        ({"labels": torch.tensor([-1])}, "labels from 0 to 3"),
        ({"labels": torch.zeros(0, dtype=torch.int64)}, "as labels"),
        ({"labels": torch.zeros(2)}, "as labels"),
        ({"labels": torch.tensor(1)}, "as labels"),
        ({"knowledge": Knowledge(classes=4)}, "needs to know input_shape"),
        ({"knowledge": Knowledge(input_shape=SHAPE)}, "needs to know classes"),
        ({"knowledge": Knowledge(input_shape=SHAPE, classes=5)}, r"logits of shape \(4, 5\)"),
        ({"start": Start(name="small", images=torch.zeros(1, 1, 5, 5))}, "starting images"),
        ({"start": Start(name="none", images=torch.zeros(0, *SHAPE))}, "starting images"),
        ({"start": Start(name="three", images=torch.zeros(3, 1, *SHAPE))}, "starting images"),
        ({"start": Start(name="flat", images=torch.zeros(30))}, "starting images"),
        ({"auxiliary": lambda images, labels: images.mean()}, "one auxiliary cost a row"),
        ({"process": lambda images: images.flatten(1)}, "expected of the process"),
    ],
)
def test_what_does_not_fit_is_refused(changed, message):
    arguments = {"knowledge": KNOWN, "labels": ALL, **changed}
    with pytest.raises(ConfigError, match=message):
        MIFace().invert(WhiteBox(network()), **arguments)
