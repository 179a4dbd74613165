"""SecureML [5]: what the paper claims, each in small. (Section numbers are recalled.)"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.conftest import small_task

from tacit.core.coins import Coins
from tacit.crypto.fixedpoint import FixedPoint
from tacit.parties.two_party.correlations import Part, Product, masks_made
from tacit.parties.two_party.engine import InTheClear
from tacit.parties.two_party.network import Loss, piecewise, relu_sum
from tacit.training.two_server import SERVERS, Preprocessing, Terms, TwoServer, plan_of

SCHEME = TwoServer(epochs=3, batch_size=6, loss=Loss.RELU_SUM)
PAPERS = FixedPoint(13)


def coins() -> Coins:
    return Coins.from_seed(b"SecureML")


def correct(model, task) -> int:
    x, y = (torch.cat(part) for part in zip(*task.shards, strict=True))
    with torch.no_grad():
        return int((model(x).argmax(1) == y).sum())


def test_the_data_are_masked_once_for_all_epochs() -> None:
    """Section 4.2: each batch's mask is made once, and used again by all later products of it."""
    terms = Terms.of(SCHEME, small_task())
    plan = plan_of(terms)
    made = [name for one in plan.correlations for _, name in masks_made(one)]
    batches = [name for name in made if name.startswith("batch ")]
    assert sorted(batches) == [f"batch {k}" for k in range(4)]
    uses = [
        of.mask
        for one in plan.correlations
        if isinstance(one, Product)
        for of in (one.left, one.right)
        if isinstance(of, Part) and of.mask.startswith("batch ")
    ]
    # Forward and back in each of three epochs, but for the first time forward, which makes the mask.
    assert sorted(uses) == sorted(f"batch {k}" for k in range(4) for _ in range(5))
    assert len(made) == len(set(made))


def test_no_message_of_a_later_epoch_is_of_the_size_of_a_batch() -> None:
    """So that later epochs open weights, activations and errors alone."""
    task = small_task()
    once, twice = (
        replace(SCHEME, epochs=epochs, loss=Loss.SQUARED_ERROR).train(task, coins=coins())
        for epochs in (1, 2)
    )
    first, both = (
        run.cost.total(role=SERVERS[0], phase="online").bytes_sent for run in (once, twice)
    )
    assert both - first < first - 24 * 16 * 8  # 24 records of 16 values less


def test_truncation_on_shares_is_local_and_within_a_unit() -> None:
    """Theorem 1, on values of 20 bits: a chance of 2^-44 each that one is wrong altogether."""
    values = PAPERS.ring.uniform(coins(), (2000,)) >> np.uint64(44)
    values[::2] = -values[::2]
    engine = InTheClear(PAPERS, coins())
    came = engine.truncate(values, 13).view(np.int64)
    exact = values.view(np.int64) / 2**13
    assert np.abs(came - exact).max() < 1
    assert engine.failures < 1e-9


def test_the_logistic_function_has_three_pieces() -> None:
    """Section 4.3: 0 below -1/2, x + 1/2 between, 1 above 1/2."""
    x = np.linspace(-2, 2, 41)
    out, _ = piecewise(InTheClear(PAPERS), PAPERS.encode(x))
    assert np.abs(PAPERS.decode(out) - np.clip(x + 0.5, 0, 1)).max() <= 2.0**-13


def test_softmax_is_replaced_by_shares_of_the_positive_parts() -> None:
    """Section 4.4: equal parts where nothing is positive."""
    rows = np.array([[1.0, 2.0, 5.0], [-1.0, 3.0, -2.0], [-1.0, -1.0, -1.0]])
    came = PAPERS.decode(relu_sum(InTheClear(PAPERS), PAPERS.encode(rows)))
    wanted = [[1 / 8, 2 / 8, 5 / 8], [0, 1, 0], [1 / 3, 1 / 3, 1 / 3]]
    assert np.abs(came - wanted).max() < 1e-3


@pytest.mark.parametrize("preprocessing", Preprocessing, ids=lambda p: p.value)
def test_a_network_learns_on_shares(preprocessing: Preprocessing) -> None:
    """Section 5: more records are told right than before. Client-aided (section 7), or by transfers (4.1.2)."""
    task = small_task()
    epochs = 40 if preprocessing is Preprocessing.DEALER else 3
    scheme = replace(
        SCHEME,
        epochs=epochs,
        learning_rate=0.5,
        preprocessing=preprocessing,
        loss=Loss.SQUARED_ERROR,
    )
    model = scheme.train(task, coins=coins()).output.value
    assert correct(model, task) > correct(task.start, task)
    if preprocessing is Preprocessing.DEALER:
        assert correct(model, task) > 18  # of 24


def test_what_needs_no_data_is_made_before() -> None:
    """Section 4.1: offline and online; the plan is the same whatever the records are, and with a dealer needs no owner."""
    one, other = (plan_of(Terms.of(SCHEME, small_task(seed=0))) for _ in range(2))
    assert one.digest == other.digest
    run = SCHEME.train(small_task(), coins=coins())
    offline, online = (run.cost.total(role=SERVERS[1], phase=p) for p in ("offline", "online"))
    assert offline.bytes_received > 0 and online.bytes_received > 0
