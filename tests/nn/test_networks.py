import math

import pytest
import torch
from torch import nn

from tacit.core.errors import ConfigError, UnsupportedLayer
from tacit.nn.networks import (
    cnn,
    conv3,
    initialise,
    initialise_uniform,
    lenet,
    mlp,
    softmax_regression,
    tempered_cnn,
    wide_cnn,
)
from tacit.nn.spec import ModelSpec

IMAGES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 33, 30)]
LAYERS = [
    lambda: nn.Linear(30, 7),
    lambda: nn.Linear(30, 7, bias=False),
    lambda: nn.Conv1d(4, 6, 3),
    lambda: nn.Conv2d(3, 12, 5, stride=2, padding=2),
    lambda: nn.Conv2d(4, 6, (3, 2), groups=2),
    lambda: nn.Sequential(
        nn.Linear(5, 4), nn.LayerNorm(4), nn.Sequential(nn.Tanh(), nn.Linear(4, 3))
    ),
]


def torch_default(make, generator):
    """What PyTorch's own constructors draw when their global generator stands where ours does."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator.get_state())
        return make()


@pytest.mark.parametrize("make", LAYERS)
def test_initialise_draws_what_torchs_constructors_draw(make, generator):
    expected = torch_default(make, generator).state_dict()
    model = make()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 9.0)
    found = initialise(model, generator).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=0)


def test_initialise_resets_norms_with_and_without_weights(generator):
    model = nn.Sequential(
        nn.BatchNorm2d(3), nn.GroupNorm(3, 3), nn.BatchNorm1d(3, affine=False), nn.LayerNorm(3)
    )
    for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
        nn.init.constant_(tensor, 9.0)
    initialise(model, generator)
    fresh = nn.Sequential(
        nn.BatchNorm2d(3), nn.GroupNorm(3, 3), nn.BatchNorm1d(3, affine=False), nn.LayerNorm(3)
    )
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_initialise_keeps_type_and_gradients(generator):
    model = initialise(nn.Linear(4, 3).double(), generator)
    assert model.weight.dtype == torch.float64
    assert model.weight.requires_grad
    assert model.weight.is_leaf


def test_initialise_uniform_fills_the_interval(generator):
    model = initialise_uniform(nn.Linear(400, 100), 0.5, generator)
    assert 0.499 < model.weight.abs().max() <= 0.5
    assert model.weight.std().item() == pytest.approx(0.5 / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan])
def test_initialise_uniform_refuses_a_bound_that_is_none(bound, generator):
    with pytest.raises(ConfigError, match="bound"):
        initialise_uniform(nn.Linear(2, 2), bound, generator)


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.LSTM(3, 2), "LSTM"),
        (nn.ConvTranspose2d(3, 2, 3), "ConvTranspose2d"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), r"1\.parametrizations"),
    ],
)
def test_initialise_refuses_before_it_draws(layer, named, generator):
    model = nn.Sequential(nn.Linear(3, 3), layer)
    before = model[0].weight.clone()
    state = generator.get_state()
    with pytest.raises(UnsupportedLayer, match=named):
        initialise(model, generator)
    assert torch.equal(model[0].weight, before)
    assert torch.equal(generator.get_state(), state)


def every_network(shape, generator):
    yield softmax_regression(shape, 7, generator=generator)
    yield mlp(shape, (9, 5), 7, nn.Tanh, generator=generator)
    yield lenet(shape, 7, generator=generator)
    yield conv3(shape, 7, 8, nn.LeakyReLU, generator=generator)
    yield cnn(shape, 7, 8, generator=generator)


@pytest.mark.parametrize("shape", IMAGES)
def test_networks_give_one_finite_score_per_class_and_round_trip(shape, generator):
    for model in every_network(shape, generator):
        scores = model(torch.rand(3, *shape, generator=generator))
        assert scores.shape == (3, 7)
        assert torch.isfinite(scores).all()
        spec = ModelSpec.of(model, shape)
        assert ModelSpec.from_json(spec.to_json()) == spec
        assert spec.output_shape == (7,)


def test_networks_depend_on_their_generator_only():
    before = torch.get_rng_state()
    shape = (3, 16, 16)
    once = list(every_network(shape, torch.Generator().manual_seed(1)))
    again = list(every_network(shape, torch.Generator().manual_seed(1)))
    other = list(every_network(shape, torch.Generator().manual_seed(2)))
    for first, same, different in zip(once, again, other, strict=True):
        for name, tensor in first.state_dict().items():
            assert torch.equal(tensor, same.state_dict()[name])
            assert not torch.equal(tensor, different.state_dict()[name])
    assert torch.equal(torch.get_rng_state(), before)


def test_lenet_is_the_published_one(generator):
    model = lenet((3, 32, 32), 100, generator=generator)
    convolutions = [layer for layer in model if isinstance(layer, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size, c.stride, c.padding) for c in convolutions] == [
        (12, (5, 5), (2, 2), (2, 2)),
        (12, (5, 5), (2, 2), (2, 2)),
        (12, (5, 5), (1, 1), (2, 2)),
    ]
    assert model[-1].in_features == 768
    assert sum(isinstance(layer, nn.Sigmoid) for layer in model) == 3
    assert lenet((1, 28, 28), 10, generator=generator)[-1].in_features == 588


def test_networks_of_private_training_are_the_published_ones(generator):
    model = wide_cnn((3, 24, 24), 10, generator=generator)
    assert [tuple(p.shape) for p in model.parameters() if p.ndim > 1] == [
        (64, 3, 5, 5),
        (64, 64, 5, 5),
        (384, 64 * 6 * 6),
        (384, 384),
        (10, 384),
    ]
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in model) == 2
    assert sum(p.numel() for p in model.parameters()) == 1_144_138
    assert model(torch.zeros(2, 3, 24, 24)).shape == (2, 10)
    small = tempered_cnn((1, 28, 28), 10, generator=generator)
    assert [tuple(p.shape) for p in small.parameters() if p.ndim > 1] == [
        (16, 1, 8, 8),
        (32, 16, 4, 4),
        (32, 32 * 4 * 4),
        (10, 32),
    ]
    assert sum(p.numel() for p in small.parameters()) == 26_010
    assert small(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_mlp_uses_the_activation_and_widths_given(generator):
    model = mlp((2, 3), (5, 4), 3, nn.Tanh, generator=generator)
    assert [type(layer) for layer in model] == [
        nn.Flatten,
        nn.Linear,
        nn.Tanh,
        nn.Linear,
        nn.Tanh,
        nn.Linear,
    ]
    assert [tuple(layer.weight.shape) for layer in model if isinstance(layer, nn.Linear)] == [
        (5, 6),
        (4, 5),
        (3, 4),
    ]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda g: mlp((0,), (3,), 2, generator=g), "input_shape"),
        (lambda g: mlp((4,), (0,), 2, generator=g), "hidden"),
        (lambda g: mlp((4,), (3,), 0, generator=g), "classes"),
        (lambda g: mlp((4,), (3,), 2, nn.Softmax, generator=g), "activation.*Tanh"),
        (lambda g: lenet((28, 28), 10, generator=g), r"\(channels, height, width\).*\(28, 28\)"),
        (lambda g: cnn((1, 3, 8), 10, generator=g), "4x4.*3x8"),
        (lambda g: wide_cnn((1, 3, 8), 10, generator=g), "4x4.*3x8"),
        (lambda g: tempered_cnn((1, 19, 28), 10, generator=g), "20x20.*19x28"),
        (lambda g: conv3((1, 8, 8), 10, 0, generator=g), "width"),
    ],
)
def test_networks_refuse_sizes_that_make_none(make, said, generator):
    with pytest.raises(ConfigError, match=said):
        make(generator)


def test_cnn_learns_what_a_constant_cannot(generator):
    """Bright left half or bright right half: a network whose layers are miswired stays at one half."""
    labels = torch.arange(64) % 2
    images = torch.rand(64, 1, 8, 8, generator=generator) * 0.5
    images[labels == 0, :, :, :4] += 0.5
    images[labels == 1, :, :, 4:] += 0.5
    model = cnn((1, 8, 8), 2, 4, generator=generator)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    assert (model(images).argmax(1) == labels).float().mean() > 0.95
