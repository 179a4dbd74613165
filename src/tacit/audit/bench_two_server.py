"""`tacit bench two-server`: a network on shares, forward and a step of training, beside SPU and CrypTen.

The network is the paper's: 784-128-128-10 with ReLU, without biases, 16 fractional bits, a batch of 128. Processes, turns
and metrics are those of `tacit.audit.bench_two_party`, without TLS. Each run begins with shares of inputs and weights and
masks all of them anew; a training keeps the masks of its batches from epoch to epoch, so that its steps after the first
epoch send less than `sgd-step` does. A step ends with shares of the new weights, which are opened, after the clock has
stopped, and checked against float.

`sgd-step` is squared error at a rate of 1/8: here the gradient is summed over the batch and the rate divided by its size,
and the peers divide the error, which is the same but for rounding. ``softmax=relu-sum`` divides each output's positive part
by their sum; a peer's division is its own.

The row ``without dealer`` is the same step by two parties alone, with garbled signs; SPU's CHEETAH stands beside it. It
moves gigabytes of oblivious transfers: a run a turn, at most three, one where it is quick, none for warmth. ``offline_s`` is
the time in which the slower party waits for correlations, within ``seconds``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from tacit.audit.bench_two_party import FIXED, Case, Note, beside_peers, installed
from tacit.core.coins import Coins
from tacit.crypto.ring import Elements
from tacit.parties.two_party.engine import OnShares
from tacit.parties.two_party.network import (
    Layer,
    LinearLayer,
    Loss,
    Network,
    Parameter,
    Rate,
    ReLULayer,
)
from tacit.parties.two_party.session import Session

BATCH = 128
WIDTHS = 784, 128, 128, 10
RATE = 0.125
_UNIT = 2.0**-FIXED.fraction
_BOTH = "spu", "spu-threads", "crypten"

Compute = Callable[[Session, Sequence[Elements]], Elements]


def _network(weights: Sequence[Elements]) -> Network:
    layers: list[Layer] = []
    for number, weight in enumerate(weights):
        if layers:
            layers.append(ReLULayer(f"{len(layers)} ReLU"))
        layers.append(LinearLayer(f"{len(layers)} Linear", Parameter(weight, f"{number}.w"), None))
    return Network(layers, FIXED, WIDTHS[:1])


def _use(session: Session) -> str:
    """Tells the masks of a run from those of the runs before it."""
    return str(session.store.position)


def _forward(session: Session, inputs: Sequence[Elements]) -> Elements:
    rows, *weights = inputs
    return _network(weights).forward(OnShares(session), rows, _use(session), learning=False)


def _step(loss: Loss, *, garbled: bool = False) -> Compute:
    def compute(session: Session, inputs: Sequence[Elements]) -> Elements:
        rows, targets, *weights = inputs
        engine, network = OnShares(session, garbled), _network(weights)
        network.learn(engine, rows, targets, loss, _use(session))
        network.move(engine, Rate.of(RATE, len(rows)))
        return np.concatenate([one.value.reshape(-1) for one in network.parameters])

    return compute


def _draw(batch: int, *, learning: bool) -> Callable[[Coins], list[Any]]:
    """Rows of 0 to 1, one target in ten if there are some, and weights within 1 / sqrt(inputs)."""

    def draw(coins: Coins) -> list[Any]:
        rows = coins.unit((batch, WIDTHS[0]))
        weights = [(2.0 * coins.unit(size) - 1.0) / size[0] ** 0.5 for size in pairwise(WIDTHS)]
        targets = [np.eye(WIDTHS[-1])[np.arange(batch) % WIDTHS[-1]]] if learning else []
        return [rows, *targets, *weights]

    return draw


def _passed(rows: Any, weights: Sequence[Any]) -> list[Any]:
    """What each layer gets, in float, and then the output."""
    seen = [rows]
    for weight in weights[:-1]:
        seen.append(np.maximum(seen[-1] @ weight, 0))
    return [*seen, seen[-1] @ weights[-1]]


def _expected(loss: Loss) -> Callable[[Sequence[Any]], Any]:
    """The new weights, in float."""

    def expected(values: Sequence[Any]) -> Any:
        rows, targets, *weights = values
        *seen, out = _passed(rows, weights)
        if loss is Loss.RELU_SUM:
            parts = np.maximum(out, 0) + _UNIT
            out = parts / parts.sum(axis=1, keepdims=True)
        errors, new = (out - targets) / len(rows), []
        for got, weight in zip(reversed(seen), reversed(weights), strict=True):
            new.append(weight - RATE * got.T @ errors)
            errors = (errors @ weight.T) * (got > 0)
        return np.concatenate([one.reshape(-1) for one in reversed(new)])

    return expected


def forward(batch: int) -> Case:
    """The network's output for a batch."""
    request = {"case": "mlp", "shape": [batch]}
    return Case(
        f"mlp batch={batch}", request, (), _forward, lambda x: _passed(x[0], x[1:])[-1],
        peers=_BOTH, draw=_draw(batch, learning=False), tolerance=2.0**-10,
    )  # fmt: skip


def step(batch: int, loss: Loss = Loss.SQUARED_ERROR) -> Case:
    """The weights after a step of training."""
    request: dict[str, Any] = {"case": "sgd-step", "shape": [batch]}
    name = f"sgd-step batch={batch}"
    if loss is Loss.RELU_SUM:
        request, name = request | {"softmax": loss.value}, f"{name} softmax={loss.value}"
    return Case(
        name, request, (), _step(loss), _expected(loss),
        peers=_BOTH, draw=_draw(batch, learning=True), tolerance=2.0**-12,
    )  # fmt: skip


def step_alone(batch: int) -> Case:
    """The same without a dealer, by oblivious transfer and garbled circuits."""
    loss = Loss.SQUARED_ERROR
    return Case(
        f"sgd-step batch={batch} without dealer", {"case": "sgd-step", "shape": [batch]}, (),
        _step(loss, garbled=True), _expected(loss), dealer=False, peers=("cheetah",),
        draw=_draw(batch, learning=True), in_a_row=1, turns=3, tolerance=2.0**-12, apart=True,
    )  # fmt: skip


def cases() -> tuple[Case, ...]:
    """The computations of the benchmark."""
    return (
        forward(BATCH),
        forward(1),
        step(BATCH),
        step(BATCH, Loss.RELU_SUM),
        step_alone(BATCH),
    )


def two_server(*, quick: bool, note: Note, against: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Measure every case.

    Args:
        quick: two turns instead of seven; one without a dealer.
        note: told what is being measured.
        against: peers: spu, crypten.

    Raises:
        UnknownName: no such peer.
        TacitError: a result was wrong, or a peer failed.
    """
    known = {
        case.name: replace(case, turns=1) if quick and case.turns else case for case in cases()
    }
    return beside_peers(known, installed(against, note), 2 if quick else 7, note)
