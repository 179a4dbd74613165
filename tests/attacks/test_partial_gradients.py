"""A part of a gradient is enough: what the leading singular vector gives back, and where it must fail."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from tacit.attacks.gradient_leakage import exact_recovery, spectral_recovery
from tacit.core.errors import ConfigError
from tacit.nn.networks import mlp

RECORDS = 40
SHAPE = (1, 12, 12)


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def world() -> tuple[nn.Module, Tensor, Tensor, list[Tensor]]:
    """A small network, records with bright and dark parts, and the gradient of each record on its own."""
    net = mlp(SHAPE, (64,), 10, generator=draws(0))
    images = torch.rand(RECORDS, *SHAPE, generator=draws(1)).pow(3)
    labels = torch.randint(10, (RECORDS,), generator=draws(2))

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(net, parameters, (x[None],)), y[None])

    own = {name: value.detach() for name, value in net.named_parameters()}
    return net, images, labels, list(vmap(grad(loss), (None, 0, 0))(own, images, labels).values())


def largest(gradients: list[Tensor], theta: float) -> list[Tensor]:
    """The largest theta-th of all the values of one record's gradient; 0 elsewhere."""
    flat = torch.cat([g.flatten() for g in gradients])
    bound = flat.abs().topk(int(theta * flat.numel())).values[-1]
    return [torch.where(g.abs() >= bound, g, 0.0) for g in gradients]


def identified(found: Tensor, images: Tensor) -> float:
    """How often the record is the nearest one by angle; chance is one in their number."""
    similar = nn.functional.cosine_similarity(
        found[:, None], images.flatten(1)[None] + torch.zeros_like(found[:, None]), dim=-1
    )
    return float((similar.argmax(1) == torch.arange(len(images))).float().mean())


def recovered(world: tuple[nn.Module, Tensor, Tensor, list[Tensor]], theta: float) -> Tensor:
    gradients = world[3]
    parts = [largest([g[i] for g in gradients], theta) for i in range(RECORDS)]
    return torch.stack([spectral_recovery(weight, bias) for weight, bias, *_ in parts])


def test_one_percent_of_a_gradient_identifies_most_records(
    world: tuple[nn.Module, Tensor, Tensor, list[Tensor]],
) -> None:
    images = world[1]
    shares = {theta: identified(recovered(world, theta), images) for theta in (0.01, 0.05, 0.2)}
    assert shares[0.01] >= 0.8, shares
    assert shares[0.05] >= 0.95, shares
    assert shares[0.2] == 1.0, shares


def test_pure_noise_identifies_nobody(
    world: tuple[nn.Module, Tensor, Tensor, list[Tensor]],
) -> None:
    """Chance is 1/40; more than 6 of 40 right by chance happens once in 2e4 tries."""
    images, gradients = world[1], world[3]
    generator = draws(3)
    found = torch.stack(
        [
            spectral_recovery(
                torch.randn(gradients[0][i].shape, generator=generator),
                torch.randn(gradients[1][i].shape, generator=generator),
            )
            for i in range(RECORDS)
        ]
    )
    assert identified(found, images) <= 6 / RECORDS


def test_a_place_taken_at_random_gives_less_away_than_the_largest(
    world: tuple[nn.Module, Tensor, Tensor, list[Tensor]],
) -> None:
    images, (weights, biases, *_) = world[1], world[3]
    generator = draws(4)
    found = torch.stack(
        [
            spectral_recovery(
                torch.where(torch.rand(w.shape, generator=generator) < 0.01, w, 0.0),
                torch.where(torch.rand(b.shape, generator=generator) < 0.01, b, 0.0),
            )
            for w, b in zip(weights, biases, strict=True)
        ]
    )
    assert identified(found, images) < identified(recovered(world, 0.01), images)


def test_noise_on_every_value_is_averaged_over_units_where_division_trusts_one(
    world: tuple[nn.Module, Tensor, Tensor, list[Tensor]],
) -> None:
    images, (weights, biases, *_) = world[1].flatten(1), world[3]
    generator = draws(5)
    errors = {"spectral": 0.0, "division": 0.0}
    for i in range(RECORDS):
        scale = 0.3 * weights[i].square().mean().sqrt()
        weight = weights[i] + scale * torch.randn(weights[i].shape, generator=generator)
        bias = biases[i] + scale * torch.randn(biases[i].shape, generator=generator)
        for name, found in (
            ("spectral", spectral_recovery(weight, bias)),
            ("division", exact_recovery(weight, bias)),
        ):
            errors[name] += float((found / found.abs().max() - images[i] / images[i].max()).norm())
    assert errors["spectral"] < 0.7 * errors["division"], errors


def test_of_a_whole_gradient_it_gives_the_record_up_to_its_scale_the_largest_value_being_one(
    world: tuple[nn.Module, Tensor, Tensor, list[Tensor]],
) -> None:
    images, (weights, biases, *_) = world[1].flatten(1), world[3]
    for image, weight, bias in zip(images, weights, biases, strict=True):
        found = spectral_recovery(weight, bias)
        assert float(found.max()) == 1.0
        torch.testing.assert_close(found, image / image.max(), atol=1e-4, rtol=0)


def test_division_of_a_whole_gradient_stays_exact(
    world: tuple[nn.Module, Tensor, Tensor, list[Tensor]],
) -> None:
    images, (weights, biases, *_) = world[1].flatten(1), world[3]
    torch.testing.assert_close(exact_recovery(weights, biases), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("factor", [1.0, -1.0, -0.03, 1e-6, 1e6])
def test_neither_sign_nor_scale_of_the_update_matters(factor: float) -> None:
    """An update is the gradient times minus the learning rate, and who observes may not know that rate."""
    image = torch.rand(30, generator=draws(6))
    units = torch.randn(8, generator=draws(7))
    found = spectral_recovery(factor * torch.outer(units, image), factor * units)
    torch.testing.assert_close(found, image / image.max(), atol=1e-5, rtol=0)
    assert float(found.sum()) > 0


def test_a_record_whose_sum_is_negative_comes_back_with_its_sign_turned_as_stated() -> None:
    record = -torch.rand(30, generator=draws(8))
    units = torch.randn(8, generator=draws(9))
    found = spectral_recovery(torch.outer(units, record), units)
    torch.testing.assert_close(found, record / record.min(), atol=1e-5, rtol=0)


def test_a_gradient_of_which_nothing_was_seen_gives_finite_values() -> None:
    found = spectral_recovery(torch.zeros(4, 9), torch.zeros(4))
    assert found.shape == (9,) and bool(found.isfinite().all())


def test_the_arguments_are_not_changed() -> None:
    weight, bias = torch.randn(4, 9, generator=draws(1)), torch.randn(4, generator=draws(2))
    before = weight.clone(), bias.clone()
    spectral_recovery(weight, bias)
    assert torch.equal(weight, before[0]) and torch.equal(bias, before[1])


def test_more_units_than_inputs_and_fewer_both_work() -> None:
    for units, size in ((50, 5), (5, 50), (1, 7), (7, 1)):
        image = 0.1 + torch.rand(size, generator=draws(units))
        outer = torch.randn(units, generator=draws(size))
        found = spectral_recovery(torch.outer(outer, image), outer)
        torch.testing.assert_close(found, image / image.max(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shapes", [((4, 9), (5,)), ((9,), (9,)), ((2, 4, 9), (2, 4))])
def test_shapes_that_do_not_belong_together_are_refused(
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    with pytest.raises(ConfigError, match="expected"):
        spectral_recovery(torch.ones(shapes[0]), torch.ones(shapes[1]))
