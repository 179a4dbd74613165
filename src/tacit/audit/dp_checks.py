"""Checks of private training itself: the law of its noise, and audits of it honest and with one mistake each.

The audits are of one small training: a linear model, 500 real records and 2,000 canaries, lots at a rate of 0.01, a noise
multiplier of 1 and one epoch, which is epsilon 0.72 (PLD) at delta 1e-5. The auditor sees each noisy sum.

The trainings with a mistake break the protection on purpose and are for controls alone: never train in earnest with one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor, nn

from tacit.audit.dp_audit import GradientCanaries, audit_run
from tacit.core.coins import Coins
from tacit.dp.discrete import DiscreteGaussian, Integers
from tacit.dp.sampling import Indices, Ledger
from tacit.nn.networks import softmax_regression
from tacit.nn.persample import ClipRule
from tacit.training.dp_sgd import DPSGD, Planned, PrivateFit

Probabilities = npt.NDArray[np.float64]

REAL, CANARIES = 500, 2000
SMALL = DPSGD(epochs=1, lot_size=25, noise_multiplier=1.0, learning_rate=0.1)
"""The training that is audited."""


# --- trainings with one mistake each


class TooQuiet(DPSGD):
    """Adds a tenth of the noise that it books."""

    def planned(self, records: int, coordinates: int, dimensions: int = 0) -> Planned:
        """What is booked, and a tenth of its noise."""
        plan = DPSGD.planned(self, records, coordinates, dimensions)
        tenth = replace(plan.release, noise_multiplier=plan.release.noise_multiplier / 10)
        return plan._replace(release=tenth)


class Unclipped(DPSGD):
    """Adds noise for gradients that are clipped, and clips none."""

    @property
    def rule(self) -> ClipRule:
        """A bound that nothing reaches."""
        return ClipRule(bound=1e6)


class InOrder(DPSGD):
    """Takes lots one after another, and books them as if they were drawn at random."""

    def fit_watched(self, *args: Any, **settings: Any) -> PrivateFit:
        """The training, while ledgers hand out lots in order."""
        booked = Ledger.draw

        def draw(ledger: Ledger, records: int) -> Indices:
            booked(ledger, records)
            start = (ledger.spent - 1) * ledger.lots.lot
            return np.arange(start, min(start + ledger.lots.lot, records))

        with patch.object(Ledger, "draw", draw):
            return DPSGD.fit_watched(self, *args, **settings)


MUTANTS: Mapping[str, type[DPSGD]] = MappingProxyType(
    {"noise-over-ten": TooQuiet, "no-clipping": Unclipped, "lots-in-order": InOrder}
)
"""Trainings with a mistake, each of which an audit must catch."""


def as_kind(kind: type[DPSGD], scheme: DPSGD) -> DPSGD:
    """The same settings for another kind of training."""
    return kind(**{field.name: getattr(scheme, field.name) for field in fields(scheme)})


# --- audits


def small_task(features: int = CANARIES // 10) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model for ten classes, and real records: random inputs with random labels."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(REAL, features, generator=generator)
    labels = torch.randint(0, 10, (REAL,), generator=generator)
    return softmax_regression((features,), 10, generator=generator), inputs, labels


def when_in_order(lot: int = SMALL.lot_size) -> npt.NDArray[np.int64]:
    """The step in which each canary is drawn, if lots are taken in order."""
    return (REAL + np.arange(CANARIES)) // lot


def audit_small(
    scheme: DPSGD, coins: Coins, canaries: GradientCanaries | None = None
) -> dict[str, object]:
    """One audit of the small training; see `tacit.audit.dp_audit.audit_run`.

    Args:
        scheme: the training.
        coins: of the training and the canaries.
        canaries: by default `CANARIES` of them, whose lots the auditor knows if the scheme takes them in order.
    """
    if canaries is None:
        steps = when_in_order(scheme.lot_size) if isinstance(scheme, InOrder) else None
        canaries = GradientCanaries(count=CANARIES, known_steps=steps)
    return audit_run(scheme, *small_task(), canaries, coins=coins)


# --- the noise


def law(s: float) -> tuple[Integers, Probabilities]:
    """The integers within 12 deviations, and their probabilities under the discrete Gaussian, by its definition."""
    end = math.ceil(12 * s)
    x = np.arange(-end, end + 1)
    f = np.exp(-(x.astype(np.float64) ** 2) / (2 * s * s))
    return x, f / f.sum()


def chi_square_p(observed: Integers, probabilities: Probabilities) -> float:
    """The p-value of the chi-square test of counts.

    Cells of fewer than ten expected are put together, in order.

    Args:
        observed: how often each value came.
        probabilities: of each value, up to a factor.
    """
    expected = probabilities / probabilities.sum() * observed.sum()
    cell = np.floor(np.cumsum(expected) / 10).astype(np.int64)
    together = np.bincount(cell, expected) > 5
    cells = np.maximum(np.cumsum(together)[cell] - 1, 0)
    found = stats.chisquare(np.bincount(cells, observed), np.bincount(cells, expected))
    return float(found.pvalue)


class Drawn(NamedTuple):
    """What draws of the sampler say.

    Args:
        p: of the chi-square test against the exact law.
        p_off: against the law of a deviation that is off by 1/200, which the test must tell.
        outside: draws beyond 12 deviations, which are in no cell; one in 10^32 is expected.
    """

    p: float
    p_off: float
    outside: int


def drawn(s: float, count: int, coins: Coins) -> Drawn:
    """Draw from the discrete Gaussian, and compare with its law.

    Args:
        s: its deviation; of some hundreds at most, as each integer is counted.
        count: of draws.
        coins: where they come from.
    """
    x, p = law(s)
    values = DiscreteGaussian(s).draw(coins, count)
    within = np.abs(values) <= x[-1]
    observed = np.bincount(values[within] - x[0], minlength=len(x))
    off = np.interp(x, *law(s * 1.005))
    return Drawn(chi_square_p(observed, p), chi_square_p(observed, off), int(count - within.sum()))


def draws_a_second(s: float, count: int, coins: Coins) -> float:
    """The sampler's speed in this thread's processor time."""
    sampler = DiscreteGaussian(s)
    sampler.draw(coins.child("warm"), 1 << 15)
    begun = time.thread_time()
    sampler.draw(coins, count)
    return count / (time.thread_time() - begun)
