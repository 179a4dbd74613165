"""The attack on noise in floats: it tells what float noise was added to, and nothing of the discrete noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtr

from tacit.attacks import float_noise
from tacit.attacks.float_noise import advantage, preimages, reached
from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.dp import ziggurat
from tacit.dp.mechanisms import Noise, gaussian, laplace
from tacit.dp.noise import GaussianKind, NoisySum

APART = 0.01  # of the scale: the noise itself allows to be right in 50.3 % of all cases at most


@pytest.mark.parametrize("noise", Noise)
def test_one_number_tells_mostly_what_noise_by_inversion_was_added_to(noise: Noise) -> None:
    found = advantage(noise, coins=Coins.from_seed(b"one"), trials=20_000, coordinates=1)
    low, high = found.interval
    assert 0.85 < low <= found.value <= high and found.allowed < 0.006
    coins, trials = Coins.from_seed(b"attacked"), 5000
    outputs = APART + (laplace if noise is Noise.LAPLACE else gaussian)(coins, 1.0, trials)
    assert reached(outputs, APART, noise).all()  # the truth is never ruled out
    assert reached(outputs, 0.0, noise).mean() < 0.2


def test_a_vector_tells_what_float_noise_was_added_to_and_discrete_noise_stays_within_its_bound() -> (
    None
):
    low, _ = advantage(GaussianKind.FLOAT, coins=Coins.from_seed(b"vector")).interval
    assert low > 0.8
    found = advantage(GaussianKind.DISCRETE, coins=Coins.from_seed(b"vector"))
    low, high = found.interval
    assert low <= found.allowed < 0.05 and high < 0.3
    assert found.allowed == pytest.approx(2 * ndtr(APART * math.sqrt(128) / 2) - 1)


@pytest.mark.parametrize(("start", "deviation"), [(0.0, 1.0), (0.25, 3.0), (1.0, 1.0)])
def test_the_words_that_lead_to_an_output_are_counted_right(
    monkeypatch: pytest.MonkeyPatch, start: float, deviation: float
) -> None:
    """By all fractions of two layers."""
    whole = ziggurat.cover()
    few = whole._replace(widths=whole.widths[[3, 254]], limits=whole.limits[[3, 254]])
    monkeypatch.setattr(float_noise, "cover", lambda: few)
    outputs = np.concatenate(
        [
            np.float32(start) + np.arange(1, limit, 2**20 + 1).astype(np.float32) * width * np.float32(s * deviation)
            for s in (-1, 1)
            for width, limit in zip(few.widths, few.limits, strict=True)
        ]
    )  # fmt: skip
    expected = np.zeros(len(outputs), np.int64)
    for width, limit in zip(few.widths, few.limits, strict=True):
        noise = np.arange(limit).astype(np.float32) * width * np.float32(deviation)
        for sign in (np.float32(-1), np.float32(1)):
            all_of_them = np.sort(np.float32(start) + sign * noise)
            expected += np.searchsorted(all_of_them, outputs, "right")
            expected -= np.searchsorted(all_of_them, outputs, "left")
    assert expected.min() >= 1 and (start == 0 or expected.max() > 1)
    assert np.array_equal(preimages(outputs, start, deviation), expected)


def test_what_float_noise_was_added_to_always_leads_to_it_by_many_words() -> None:
    made = NoisySum(clip=1.0, noise_multiplier=3.0, coordinates=4000, kind=GaussianKind.FLOAT)
    released = made.release([np.full(4000, 0.25)], Coins.from_seed(b"counted"))[0]
    right, wrong = (preimages(released, start, 3.0) for start in (0.25, 0.0))
    assert (right == 0).mean() < 0.02  # rejected words and the tail are drawn otherwise
    assert np.log((right + 1) / (wrong + 1)).mean() > 0.1


@pytest.mark.parametrize("noise", Noise)
def test_inversion_gains_nothing_on_the_discrete_noise(noise: Noise) -> None:
    """Not by what the float samplers attain, and not by what the discrete one does: both candidates attain every output."""
    trials = 20_000
    sum_ = NoisySum(clip=APART, noise_multiplier=1 / APART, coordinates=trials)
    coins = Coins.from_seed(b"attacked")
    truth = coins.unit(trials) < 0.5
    grid = sum_.share([np.where(truth, APART, 0.0)], coins, participants=1)
    zeros, others = (reached(grid * sum_.step, candidate, noise) for candidate in (0.0, APART))
    right = np.where(zeros == others, 0.5, others == truth).mean()
    assert abs(right - 0.5) < APART / math.sqrt(2 * math.pi) / 2 + 3 * 0.5 / math.sqrt(trials)
    reach = sum_.reach(1) - math.ceil(APART / sum_.step)
    for candidate in (0.0, APART):
        assert (np.abs(grid - round(candidate / sum_.step)) <= reach).all()


@pytest.mark.parametrize(
    "wrong", [{"trials": 0}, {"coordinates": 0}, {"apart": 0.0}, {"apart": 2.0}]
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="expected, got"):
        advantage(GaussianKind.FLOAT, coins=Coins(), **wrong)
