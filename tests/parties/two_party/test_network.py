"""A network on shares is the same network in the clear up to truncation, and that is what torch computes."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, RangeError, UnsupportedLayer
from tacit.crypto.fixedpoint import FixedPoint
from tacit.crypto.ring import Z64, Elements
from tacit.nn.layers import PiecewiseLogisticModule, SquareModule
from tacit.nn.local_work import parameters_of
from tacit.nn.networks import initialise
from tacit.nn.spec import ModelSpec
from tacit.parties.two_party import arithmetic
from tacit.parties.two_party.arithmetic import Kept
from tacit.parties.two_party.engine import InTheClear, OnShares
from tacit.parties.two_party.network import (
    Loss,
    Network,
    Rate,
    encoded,
    network_of,
    piecewise,
    relu_sum,
)
from tacit.parties.two_party.session import Session

from .conftest import DEALT, TRANSFERRED, Setting, outputs, shared

FINE = FixedPoint(20)
"""In which rounding is far below what is compared."""
PAPERS = FixedPoint(13)
RATE, COUNT, STEPS = 0.125, 4, 3

IMAGES, ROWS = (2, 6, 6), (6,)
MODELS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Sequential(nn.Linear(6, 3)), ROWS),
    "two layers": (nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), ROWS),
    "no bias": (nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)), ROWS),
    "square": (nn.Sequential(nn.Linear(6, 5), SquareModule(), nn.Linear(5, 3)), ROWS),
    "logistic": (nn.Sequential(nn.Linear(6, 5), PiecewiseLogisticModule(), nn.Linear(5, 3)), ROWS),
    "flatten": (nn.Sequential(nn.Flatten(), nn.Linear(72, 3)), IMAGES),
    "conv": (
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 2), nn.Flatten(), nn.Linear(18, 3)),
        IMAGES,
    ),
    "conv with strides": (
        nn.Sequential(
            nn.Conv2d(2, 2, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), nn.ReLU(),
            nn.Conv2d(2, 3, 2, stride=2, padding=1), nn.Flatten(), nn.Linear(18, 3),
        ),
        IMAGES,
    ),
    "average": (
        nn.Sequential(nn.Conv2d(2, 2, 1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(18, 3)),
        IMAGES,
    ),
    "average of nine": (
        nn.Sequential(nn.Conv2d(2, 2, 1), nn.AvgPool2d(3, stride=2, padding=1), nn.Flatten(), nn.Linear(18, 3)),
        IMAGES,
    ),
    "largest": (
        nn.Sequential(nn.Conv2d(2, 2, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 3)),
        IMAGES,
    ),
    "largest of overlapping": (
        nn.Sequential(nn.Conv2d(2, 2, 1), nn.MaxPool2d(3, stride=(1, 3)), nn.Flatten(), nn.Linear(16, 3)),
        IMAGES,
    ),
}  # fmt: skip
every_model = pytest.mark.parametrize("name", MODELS)


def made(name: str) -> tuple[nn.Module, ModelSpec]:
    model, shape = MODELS[name]
    model = deepcopy(model)
    initialise(model, torch.Generator().manual_seed(3))
    return model, ModelSpec.of(model, shape)


def batches(shape: Sequence[int], steps: int = STEPS) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets of each step."""
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(steps, COUNT, *shape, generator=generator).numpy()
    labels = torch.randint(0, 3, (steps, COUNT), generator=generator).numpy()
    return list(zip(x, np.eye(3)[labels], strict=True))


def network(spec: ModelSpec, model: nn.Module, fixed: FixedPoint) -> Network:
    return network_of(spec, fixed, encoded(spec, fixed, parameters_of(model)))


def learned(net: Network, engine, given, loss: Loss, rate: float = RATE) -> list[np.ndarray]:
    """The weights after a step a batch, in torch's form."""
    for step, (x, y) in enumerate(given):
        net.learn(engine, Kept(f"batch {step}", net.rows(x)), y, loss, str(step))
        net.move(engine, Rate.of(rate, len(x)))
    return net.weights()


def elements(fixed: FixedPoint, given) -> list[tuple[Elements, Elements]]:
    return [(fixed.encode(x), fixed.encode(y)) for x, y in given]


def predicted(loss: Loss, z: torch.Tensor) -> torch.Tensor:
    match loss:
        case Loss.SQUARED_ERROR:
            return z
        case Loss.LOGISTIC:
            return (z + 0.5).clamp(0, 1)
        case Loss.RELU_SUM | Loss.RELU_SUM_TANGENT:
            positive = z.clamp(min=0) + 2.0**-20
            return positive / positive.sum(1, keepdim=True)


def by_torch(model: nn.Module, given, loss: Loss) -> list[np.ndarray]:
    model = deepcopy(model).double()
    for x, y in given:
        z = model(torch.from_numpy(x).double())
        p = predicted(loss, z).detach()
        errors = p - torch.from_numpy(y)
        if loss is Loss.RELU_SUM_TANGENT:
            errors = errors - (errors * p).sum(1, keepdim=True)
        model.zero_grad()
        (z * errors).sum().backward()
        with torch.no_grad():
            for one in model.parameters():
                one.sub_(one.grad, alpha=RATE / len(x))
    return [one.detach().numpy() for one in model.parameters()]


# --- in the clear, against torch


@every_model
@pytest.mark.parametrize("loss", Loss, ids=lambda loss: loss.value)
def test_in_the_clear_it_learns_what_torch_learns(name: str, loss: Loss) -> None:
    model, spec = made(name)
    given = batches(spec.input_shape)
    came = learned(network(spec, model, FINE), InTheClear(FINE), elements(FINE, given), loss)
    begun, wanted = parameters_of(model), by_torch(model, given, loss)
    for one, expected, before in zip(came, wanted, begun, strict=True):
        assert np.abs(FINE.decode(np.ascontiguousarray(one)) - expected).max() < 2e-4
        assert np.abs(before - expected).max() > 2e-3  # it did move, by far more than is tolerated


@every_model
def test_in_the_clear_it_predicts_what_torch_predicts(name: str) -> None:
    model, spec = made(name)
    net = network(spec, model, FINE)
    x, _ = batches(spec.input_shape)[0]
    out = net.forward(InTheClear(FINE), net.rows(FINE.encode(x)), "", learning=False)
    wanted = model(torch.from_numpy(x)).detach().numpy()
    assert np.abs(FINE.decode(out) - wanted).max() < 1e-4


def test_the_shares_of_positive_parts_are_those_of_floats() -> None:
    """Also of rows of one, none, tiny and large positive values; within a thousandth."""
    rows = np.array(
        [
            [-1, -2, -3, -0.5],
            [0, 0, 0, 0],
            [1, -1, -1, -1],
            [0.01, 0.02, -5, 0.03],
            [2**-13, 0, 0, 0],
            [100, 200, 50.5, 3000],
            [16000, 0.5, 50000, 60000],
            *(10 * torch.randn(40, 4, generator=torch.Generator().manual_seed(0))).tolist(),
        ]
    )
    fixed = PAPERS
    z = fixed.decode(fixed.encode(rows))
    positive = np.maximum(z, 0) + 2.0**-13
    wanted = positive / positive.sum(1, keepdims=True)
    for coins in (None, Coins.from_seed(b"relu-sum")):
        came = fixed.decode(relu_sum(InTheClear(fixed, coins), fixed.encode(rows)))
        assert np.abs(came - wanted).max() < 1e-3
        assert np.abs(came[:2] - 0.25).max() < 1e-3  # equal parts where nothing is positive
        assert np.abs(came.sum(1) - 1).max() < 2e-3


def test_the_piecewise_function_is_the_papers() -> None:
    x = np.array([-3, -0.51, -0.5, -0.2, 0, 0.25, 0.49, 0.5, 0.51, 7])
    engine = InTheClear(PAPERS)
    out, inside = piecewise(engine, PAPERS.encode(x))
    assert np.abs(PAPERS.decode(out) - np.clip(x + 0.5, 0, 1)).max() <= 2.0**-13
    assert inside.tolist() == [False, False, True, True, True, True, True, False, False, False]


@pytest.mark.parametrize("batch", [1, 2, 64, 128])
@pytest.mark.parametrize("rate", [1.0, 0.5, 2.0**-7, 4.0])
def test_powers_of_two_are_exact_rates(rate: float, batch: int) -> None:
    found = Rate.of(rate, batch)
    assert found.mantissa == 1 and 2.0**-found.shift == rate / batch


def test_other_rates_are_near_and_times_multiplies_by_them() -> None:
    values = FINE.encode(np.array([1.0, -3.5, 0.001, 100.0]))
    for rate in (0.1, 0.3, 0.7, 0.01, 1 / 3, 1e-4, 3.0, 300.0):
        for batch in (1, 3, 100, 128):
            found = Rate.of(rate, batch)
            real = found.mantissa / 2.0**found.shift
            assert found.mantissa % 2 == 1 and abs(real / (rate / batch) - 1) < 0.004
            for extra in (0, 20):
                many = values << np.uint64(extra)
                came = FINE.decode(found.times(InTheClear(FINE), many, extra))
                exact = FINE.decode(values) * real
                # The first of its two truncations comes before a factor below 2^8, which is divided by 2^8 afterwards.
                assert np.abs(came - exact).max() <= max(1.0, real * 2**8) * 2.0**-20


# --- on shares


def on_shares(
    spec: ModelSpec, model: nn.Module, given, loss: Loss, fixed: FixedPoint, garbled: bool
):
    """Both servers' side of learning, and the weights opened at the end."""
    arrays = encoded(spec, fixed, parameters_of(model))

    def work(session: Session):
        engine = OnShares(session, garbled)
        own = [array if session.party == 0 else np.zeros_like(array) for array in arrays]
        net = network_of(spec, fixed, own)
        mine = [tuple(shared(session, *pair, owner=step % 2)) for step, pair in enumerate(given)]
        weights = learned(net, engine, mine, loss)
        return arithmetic.open_to_both(session, *map(np.ascontiguousarray, weights))

    return work


def units(one: Elements, other: Elements) -> int:
    return int(np.abs((one - other).view(np.int64)).max())


UNITS = 64
"""Of 2^-13, after three steps of these networks: an allowance, a quarter of what some weight must move at least."""


def same_in_the_clear(name: str, loss: Loss, by: str, steps: int = STEPS) -> None:
    model, spec = made(name)
    given = elements(PAPERS, batches(spec.input_shape, steps))
    clear = learned(network(spec, model, PAPERS), InTheClear(PAPERS), given, loss)
    work = on_shares(spec, model, given, loss, PAPERS, by == TRANSFERRED)
    both = outputs(work, Setting(PAPERS, by=by))
    for came in both:
        for one, wanted in zip(came, clear, strict=True):
            assert units(one, np.ascontiguousarray(wanted)) <= UNITS
    moved = [
        units(a, b)
        for a, b in zip(both[0], encoded(spec, PAPERS, parameters_of(model)), strict=True)
    ]
    assert max(moved) > 4 * UNITS


@every_model
def test_on_shares_with_a_dealer_it_is_the_same_up_to_truncation(name: str) -> None:
    same_in_the_clear(name, Loss.SQUARED_ERROR, DEALT)


@pytest.mark.parametrize(
    "loss", [Loss.RELU_SUM, Loss.RELU_SUM_TANGENT, Loss.LOGISTIC], ids=lambda loss: loss.value
)
def test_so_it_is_with_every_loss(loss: Loss) -> None:
    same_in_the_clear("two layers", loss, DEALT)


@pytest.mark.parametrize(
    "name, loss", [("two layers", Loss.RELU_SUM), ("logistic", Loss.LOGISTIC)], ids=str
)
def test_so_it_is_with_transfers_and_garbled_circuits(name: str, loss: Loss) -> None:
    same_in_the_clear(name, loss, TRANSFERRED, steps=2)


@pytest.mark.parametrize("by", [DEALT, TRANSFERRED])
def test_relu_sum_on_shares_is_that_in_the_clear(by: str) -> None:
    scores = PAPERS.encode(
        np.array([[-1, -2, -3], [0, 0, 0], [1, 2, 3], [2**-13, -1, 0], [900, 30000, 80000], [0.1, 0.7, -9]])
    )  # fmt: skip

    def work(session: Session):
        (own,) = shared(session, scores)
        engine = OnShares(session, garbled=by == TRANSFERRED)
        return arithmetic.open_to_both(session, relu_sum(engine, own))

    wanted = relu_sum(InTheClear(PAPERS), scores)
    for (came,) in outputs(work, Setting(PAPERS, by=by)):
        assert units(came, wanted) <= 8


@pytest.mark.parametrize("garbled", [False, True])
def test_the_power_of_two_that_fills_31_bits(garbled: bool) -> None:
    values = np.array([0, 1, 2, 3, 255, 256, 2**20 + 1, 2**30 - 1, 2**30, 2**31 - 1], np.uint64)
    wanted = [0] + [2 ** (31 - int(v).bit_length()) for v in values[1:]]
    assert InTheClear(PAPERS).complement(values).tolist() == wanted

    def work(session: Session):
        (own,) = shared(session, values)
        return arithmetic.open_to_both(session, OnShares(session, garbled).complement(own))

    for (came,) in outputs(work, Setting(PAPERS, by=TRANSFERRED if garbled else DEALT)):
        assert came.tolist() == wanted


# --- what there is to refuse


@pytest.mark.parametrize(
    "layers, shape, match",
    [
        ([nn.Linear(6, 3), nn.Sigmoid()], ROWS, "1 Sigmoid cannot be computed on shares: use Linear"),
        ([nn.Linear(6, 3), nn.Softmax(1)], ROWS, "softmax is the loss relu-sum"),
        ([nn.Conv2d(2, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)], IMAGES, "1 Tanh"),
        ([nn.Conv2d(2, 2, 1), nn.MaxPool2d(2, padding=1), nn.Flatten(), nn.Linear(32, 3)], IMAGES, "1 MaxPool2d"),
                ([nn.Linear(6, 3)], (2, 6), "put Flatten before it"),
    ],
)  # fmt: skip
def test_layers_that_cannot_be_computed_are_named(layers, shape, match: str) -> None:
    model = nn.Sequential(*layers)
    with pytest.raises(UnsupportedLayer, match=match):
        network(ModelSpec.of(model, shape), model, PAPERS)


def test_weights_out_of_range_name_the_layer_and_a_precision_that_fits() -> None:
    model, spec = made("two layers")
    with torch.no_grad():
        model[2].bias[1] = 2.0**37
    fixed = FixedPoint(13)
    with pytest.raises(
        RangeError, match=r"bias of layer 2 Linear: .*; 12 fractional bits would fit it"
    ):
        encoded(spec, fixed, parameters_of(model))
    assert encoded(spec, FixedPoint(12), parameters_of(model))
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(RangeError, match="weights of layer 0 Linear: a value is not finite"):
        encoded(spec, fixed, parameters_of(model))


def test_what_goes_back_before_it_went_forward_and_weights_that_do_not_fit_are_refused() -> None:
    model, spec = made("square")
    net = network(spec, model, PAPERS)
    for layer in (net.layers[0], net.layers[1]):
        with pytest.raises(ConfigError, match="goes back before it went forward"):
            layer.backward(InTheClear(PAPERS), Z64.zeros((4, 5)), "", True)
    with pytest.raises(ConfigError, match=r"0 Linear.w: weights of \(6, 5\) expected"):
        net.load([one[:1] for one in net.weights()])
    with pytest.raises(ValueError):
        net.load(net.weights()[:1])


def test_load_is_the_opposite_of_weights() -> None:
    model, spec = made("conv")
    net, other = network(spec, model, PAPERS), network(spec, model, PAPERS)
    learned(net, InTheClear(PAPERS), elements(PAPERS, batches(IMAGES)), Loss.SQUARED_ERROR)
    other.load(net.weights())
    for one, two in zip(net.weights(), other.weights(), strict=True):
        assert np.array_equal(one, two)
    for array, wanted in zip(net.weights(), parameters_of(model), strict=True):
        assert array.shape == wanted.shape
