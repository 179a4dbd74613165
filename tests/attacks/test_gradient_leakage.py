"""Gradient leakage: what divides out, what a label costs, and what a search brings back."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F  # noqa: N812

from tacit.attacks.gradient_leakage import (
    exact_candidates,
    exact_recovery,
    infer_label,
    infer_label_from_weights,
    infer_labels,
)
from tacit.attacks.gradient_matching import (
    Distance,
    GradientMatching,
    Optimiser,
    SeenUpdates,
    UpdateRecipe,
    match_batch,
    match_gradients,
)
from tacit.core.errors import ConfigError, UnsupportedLayer
from tacit.nn.networks import initialise, initialise_uniform, lenet, mlp

SHAPE = (1, 6, 6)
CLASSES = 4


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny operations: handing them to threads costs more than they do
    yield
    torch.set_num_threads(before)


def draws(seed):
    return torch.Generator().manual_seed(seed)


def tiny(seed=0, activation=nn.Tanh):
    """A 3x3 convolution of 8 channels, then scores: 36 pixels against 300 gradients."""
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), activation(), nn.Flatten(), nn.Linear(288, CLASSES)
    )
    return initialise(net, draws(seed))


def records(victims, batch=1, seed=1, shape=SHAPE):
    generator = draws(seed)
    images = torch.rand(victims, batch, *shape, generator=generator)
    return images, torch.randint(CLASSES, (victims, batch), generator=generator)


def gradients(net, images, labels):
    def loss(parameters, x, y):
        return F.cross_entropy(functional_call(net, parameters, (x,)), y)

    own = {name: value.detach() for name, value in net.named_parameters()}
    return list(vmap(grad(loss), (None, 0, 0))(own, images, labels).values())


def recipe(**changed):
    return UpdateRecipe(**({"input_shape": SHAPE} | changed))


def search(net, updates, labels, settings=None, how=None, seed=5, **more):
    masks, parameters = more.pop("masks", None), more.pop("parameters", None)
    return match_gradients(
        net,
        SeenUpdates(values=updates, masks=masks, parameters=parameters),
        how or recipe(),
        settings=settings or GradientMatching(iterations=300),
        generator=draws(seed),
        labels=labels,
        **more,
    )


def error(found, images):
    """Root mean square error of each victim."""
    return (found.images - images).square().flatten(1).mean(1).sqrt()


# --- closed forms ---


def test_division_is_exact_for_any_activation_and_keeps_leading_dimensions():
    for seed, activation in enumerate((nn.ReLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU)):
        net = mlp(SHAPE, (20,), CLASSES, activation, generator=draws(seed)).double()
        images, labels = records(5)
        weight, bias, *_ = gradients(net, images.double(), labels)
        found = exact_recovery(weight, bias)
        torch.testing.assert_close(found, images.double().flatten(1), atol=1e-10, rtol=0)
        assert torch.equal(exact_recovery(weight[2], bias[2]), found[2])


def test_units_that_one_record_of_a_batch_activates_give_that_record():
    net = mlp((6,), (3,), 2, generator=draws(0)).double()
    first = net[1]
    with (
        torch.no_grad()
    ):  # unit 0 fires for the first record, unit 1 for the second, unit 2 for both
        first.weight.copy_(
            torch.tensor([[1.0, -1, 0, 0, 0, 0], [-1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]])
        )
        first.bias.zero_()
    images = torch.tensor([[0.9, 0.1, 0.3, 0.5, 0.2, 0.7], [0.2, 0.8, 0.6, 0.1, 0.4, 0.9]]).double()
    weight, bias, *_ = gradients(net, images[None], torch.tensor([[0, 1]]))
    candidates = exact_candidates(weight[0], bias[0])
    torch.testing.assert_close(candidates[:2], images, atol=1e-12, rtol=0)
    assert (candidates[2] - images).abs().amax(1).min() > 0.01


def test_a_unit_that_never_fired_gives_nan_and_mismatched_shapes_are_refused():
    assert exact_recovery(torch.zeros(3, 2), torch.zeros(3)).isnan().all()
    with pytest.raises(ConfigError, match="fully connected"):
        exact_recovery(torch.zeros(3, 2), torch.zeros(4))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid])
def test_the_label_is_the_negative_bias_gradient(activation):
    net = lenet((1, 12, 12), 10, activation, generator=draws(3))
    images = torch.rand(40, 1, 1, 12, 12, generator=draws(4))
    labels = torch.randint(10, (40,), generator=draws(5))
    *_, weight, bias = gradients(net, images, labels[:, None])
    assert torch.equal(infer_label(bias), labels)
    if activation is not nn.Tanh:  # the sign rule needs features that are not negative
        assert torch.equal(infer_label_from_weights(weight), labels)


def test_the_sign_rule_fails_without_its_condition():
    gradient = torch.tensor([[0.3, 0.3], [-0.9, -0.9], [0.6, 0.6]])  # label 1, positive features
    assert infer_label_from_weights(gradient) == 1
    assert infer_label_from_weights(-gradient) != 1


def test_labels_of_a_batch_are_counted():
    net = lenet((1, 12, 12), 10, generator=draws(3))
    images = torch.rand(20, 8, 1, 12, 12, generator=draws(4))
    labels = torch.randint(10, (20, 8), generator=draws(5))
    found = infer_labels(gradients(net, images, labels)[-1], 8)
    assert (found == labels.sort(1).values).float().mean() >= 0.95
    assert torch.equal(infer_labels(torch.tensor([0.4, -0.9, 0.5]), 1), torch.tensor([1]))
    with pytest.raises(ConfigError):
        infer_labels(torch.zeros(3), 0)


# --- searches ---


def test_signed_adam_recovers_every_victim_and_is_the_same_in_any_stacking():
    net, (images, labels) = tiny(), records(5)
    updates = gradients(net, images, labels)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    told = []
    found = search(net, updates, labels, progress=told.append)
    assert error(found, images).max() < 0.01
    assert found.images.shape == images.shape and torch.equal(found.labels, labels)
    one_by_one = search(net, updates, labels, at_once=1)
    assert (found.images - one_by_one.images).abs().max() < 0.02
    assert told == sorted(told) and told[-1] == pytest.approx(1)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(value.grad is None for value in net.parameters())


def test_large_noise_on_the_gradient_stops_the_same_search():
    net, (images, labels) = tiny(), records(4)
    updates = gradients(net, images, labels)
    noise = draws(9)
    noisy = [u + 10 * u.std() * torch.randn(u.shape, generator=noise) for u in updates]
    found = search(net, noisy, labels)
    assert error(search(net, updates, labels), images).max() < 0.01
    assert error(found, images).min() > 0.2
    assert found.distances.isfinite().all()


def test_a_part_of_the_gradient_is_enough_and_the_rest_is_not_looked_at():
    net, (images, labels) = tiny(), records(3)
    updates = gradients(net, images, labels)
    coins = draws(7)
    masks = [torch.rand(u.shape, generator=coins) < 0.5 for u in updates]
    hidden = [torch.where(m, u, math.nan) for u, m in zip(updates, masks, strict=True)]
    found = search(net, hidden, labels, masks=masks)
    assert error(found, images).max() < 0.02


def test_nothing_seen_is_nothing_found():
    net, (images, labels) = tiny(), records(2)
    updates = gradients(net, images, labels)
    blind = [torch.zeros_like(u, dtype=torch.bool) for u in updates]
    found = search(net, updates, labels, GradientMatching(iterations=20), masks=blind)
    assert error(found, images).min() > 0.2
    assert found.images.isfinite().all()


def test_victims_may_have_weights_of_their_own():
    nets, (images, labels) = [tiny(0), tiny(1)], records(2)
    each = [gradients(net, images[i, None], labels[i, None]) for i, net in enumerate(nets)]
    updates = [torch.cat(pair) for pair in zip(*each, strict=True)]
    own = {
        name: torch.stack([dict(net.named_parameters())[name].detach() for net in nets])
        for name, _ in nets[0].named_parameters()
    }
    assert error(search(nets[0], updates, labels, parameters=own), images).max() < 0.01
    # With the wrong weights the second victim is not found.
    assert error(search(nets[0], updates, labels), images)[1] > 0.1


def test_a_batch_is_recovered_up_to_its_order():
    net = mlp(SHAPE, (64,), CLASSES, nn.Tanh, generator=draws(0))
    images, _ = records(1, 3)
    labels = torch.tensor([[0, 1, 2]])
    found = search(
        net,
        gradients(net, images, labels),
        labels,
        GradientMatching(iterations=600),
        recipe(batch_size=3),
    )
    order = match_batch(found.images[0], images[0])
    assert (found.images[0][order] - images[0]).abs().mean() < 0.02


def test_hungarian_matching_finds_a_permutation_and_survives_nan():
    originals = torch.rand(6, *SHAPE, generator=draws(0))
    shuffle = torch.tensor([3, 1, 5, 0, 2, 4])
    shuffled = originals[shuffle] + 0.01
    order = match_batch(shuffled, originals)
    assert torch.equal(shuffle[order], torch.arange(6))
    shuffled[2] = math.nan
    assert torch.equal(shuffle[match_batch(shuffled, originals)], torch.arange(6))
    some = match_batch(shuffled, originals[:3])  # a record used twice is reconstructed twice
    assert shuffle[some].tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match="a reconstruction for each original"):
        match_batch(originals[:3], originals)


def sgd(net, images, labels, *, steps, batch, rate):
    """The weights after minus before, by torch's own SGD, batch after batch in order."""
    before = [value.detach().clone() for value in net.parameters()]
    optimiser = torch.optim.SGD(net.parameters(), rate)
    for step in range(steps):
        rows = [(step * batch + i) % len(images) for i in range(batch)]
        optimiser.zero_grad()
        F.cross_entropy(net(images[rows]), labels[rows]).backward()
        optimiser.step()
    return [now.detach() - then for now, then in zip(net.parameters(), before, strict=True)]


@pytest.mark.parametrize("kept, steps, batch", [(2, 3, 2), (6, 3, 2), (4, 3, 2), (2, 1, 2)])
@pytest.mark.parametrize("participants", [1, 2])
def test_simulated_local_steps_are_what_sgd_does(kept, steps, batch, participants):
    # At the true records the simulated update equals the real one, so the distance vanishes.
    images, labels = records(1, kept * participants)
    changes = [
        sgd(tiny().double(), x.double(), y, steps=steps, batch=batch, rate=0.5)
        for x, y in zip(images[0].split(kept), labels[0].split(kept), strict=True)
    ]
    mean = [torch.stack(same).mean(0)[None] for same in zip(*changes, strict=True)]
    how = recipe(
        batch_size=batch, local_steps=steps, records=kept, participants=participants,
        local_learning_rate=0.5,
    )  # fmt: skip
    settings = GradientMatching(distance=Distance.EUCLIDEAN, iterations=1, step_size=1e-12)
    net = tiny().double()
    assert at(images.double(), net, mean, how, settings, labels) < 1e-20
    if steps > 1:
        one_step = recipe(batch_size=kept * participants, local_learning_rate=0.5 * steps)
        assert at(images.double(), net, mean, one_step, settings, labels) > 1e-6


def at(images, net, updates, how, settings, labels):
    """Distance at the true records: a box that holds nothing else starts the search there."""
    from tacit.attacks import gradient_matching

    seen = SeenUpdates(values=updates)
    targets = gradient_matching._checked_targets(net, seen, how, torch.float64)
    problem = gradient_matching._Search(net, targets, seen, how, settings, labels)
    _, distance, _ = problem.stack(torch.tensor([0])).evaluate(images.flatten(1))
    return float(distance[0])


def test_records_come_back_from_several_local_steps():
    images, labels = records(1, 2)
    labels = torch.tensor([[0, 3]])
    change = sgd(tiny(), images[0], labels[0], steps=3, batch=2, rate=0.3)
    how = recipe(batch_size=2, local_steps=3, local_learning_rate=0.3)
    found = search(tiny(), [c[None] for c in change], labels, GradientMatching(iterations=500), how)
    order = match_batch(found.images[0], images[0])
    assert (found.images[0][order] - images[0]).abs().mean() < 0.03


def test_l_bfgs_finds_record_and_label_together():
    net = initialise_uniform(tiny(activation=nn.Sigmoid), 0.5, draws(2))
    images, labels = records(3)
    settings = GradientMatching.dlg(iterations=300)
    found = search(net, gradients(net, images, labels), None, settings)
    assert found.images.dtype == torch.float64
    assert error(found, images).max() < 1e-3
    assert torch.equal(found.labels, labels)
    # A victim whose first start sufficed needed no other.
    sufficed = found.restart_distances[:, 0] <= settings.tolerance
    assert sufficed.any() and found.restart_distances[sufficed, 1:].isinf().all()


def test_signed_adam_also_searches_labels():
    net, (images, labels) = tiny(), records(3)
    settings = GradientMatching(distance=Distance.EUCLIDEAN, iterations=500)
    found = search(net, gradients(net, images, labels), None, settings)
    assert torch.equal(found.labels, labels)
    assert error(found, images).max() < 0.1


def test_the_nearest_restart_is_kept():
    net = tiny(activation=nn.ReLU)
    images, labels = records(6)
    updates = gradients(net, images, labels)
    found = search(net, updates, labels, GradientMatching(iterations=25, restarts=4))
    assert found.restart_distances.shape == (6, 4)
    assert torch.equal(found.distances, found.restart_distances.min(1).values)
    assert (found.restart_distances.argmin(1) != 0).any()
    # The distance of what came back is the distance that was told.
    ours, theirs = (
        torch.cat([g.flatten(1) for g in each], 1)
        for each in (gradients(net, found.images, labels), updates)
    )
    torch.testing.assert_close(
        1 - F.cosine_similarity(ours, theirs), found.distances, atol=1e-5, rtol=1e-3
    )


class Cliff(nn.Module):
    """Scores that stop being finite outside a region."""

    def __init__(self, inner, edge):
        super().__init__()
        self.inner, self.edge = inner, edge

    def forward(self, x):
        return self.inner(x) + torch.log(self.edge - x.mean((1, 2, 3))).clamp(max=0)[:, None] * 0


@pytest.mark.parametrize("optimiser", list(Optimiser))
def test_points_that_are_not_finite_do_not_poison_the_result(optimiser):
    boxed = optimiser is Optimiser.SIGNED_ADAM
    images, labels = records(3)
    # Some starting points, uniform in the box or normal without one, lie beyond the edge.
    images, edge = (images * 0.8, 0.52) if boxed else (images * 0.2, 0.15)
    net = Cliff(tiny(), edge)
    updates = gradients(net, images, labels)
    settings = GradientMatching(
        optimiser=optimiser, iterations=200, restarts=3, box=(0.0, 1.0) if boxed else None,
        distance=Distance.EUCLIDEAN,
    )  # fmt: skip
    found = search(net, updates, labels, settings)
    assert found.images.isfinite().all() and found.distances.isfinite().all()
    assert error(found, images).median() < 0.1


def test_total_variation_is_that_of_autograd():
    from tacit.attacks.gradient_matching import _total_variation

    images = torch.rand(3, 2, 1, 5, 7, generator=draws(0), dtype=torch.float64).requires_grad_()
    rows, columns = images.diff(dim=-2).abs(), images.diff(dim=-1).abs()
    expected = rows.mean((1, 2, 3, 4)) + columns.mean((1, 2, 3, 4))
    (slope,) = torch.autograd.grad(expected.sum(), images)
    value, by_hand = _total_variation(images.detach())
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(by_hand, slope)


def test_wrong_settings_say_what_was_expected():
    for wrong in (
        {"iterations": 0}, {"restarts": 0}, {"step_size": 0.0}, {"box": (1.0, 0.0)},
        {"total_variation": -1.0}, {"optimiser": Optimiser.L_BFGS},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            GradientMatching(**wrong)
    for wrong in (
        {"batch_size": 0}, {"local_steps": 2}, {"local_learning_rate": -1.0}, {"records": 2},
        {"local_steps": 2, "local_learning_rate": 0.1, "records": 3},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            recipe(**wrong)


def test_wrong_updates_say_what_was_expected():
    net, (images, labels) = tiny(), records(2)
    updates = gradients(net, images, labels)
    with pytest.raises(ConfigError, match="values of the seen updates"):
        search(net, updates[:-1], labels)
    with pytest.raises(ConfigError, match="masks of the seen updates"):
        search(net, updates, labels, masks=[u[:1] > 0 for u in updates])
    with pytest.raises(ConfigError, match="labels of shape"):
        search(net, updates, labels[:1])
    with pytest.raises(ConfigError, match="finite"):
        search(net, [u * math.nan for u in updates], labels)
    with pytest.raises(ConfigError, match="weights named"):
        search(net, updates, labels, parameters={"other": updates[0]})
    with pytest.raises(UnsupportedLayer, match="Dropout"):
        search(nn.Sequential(net, nn.Dropout()), updates, labels)
