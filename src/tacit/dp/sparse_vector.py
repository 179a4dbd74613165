"""The sparse vector technique: the first ``hits`` of many queries that exceed a threshold, and their noisy values.

What is run, per hit: a noisy threshold is drawn afresh; queries are asked in an order that does not depend on the
data, each with noise of its own, until one exceeds it; that query's index is released, and a separate noisy value of
it; after ``hits`` hits nothing more is answered.

Why it is private. Let each query's answer move by at most Q, and each released value by at most V, when the data
change to a neighbour's. Take one stretch between two hits: the released outcome is "no" k times, then "yes". Fix the
noise of the k queries that said no, and shift the threshold's noise by Q and the hit's by 2 Q: every "no" stays a no
(its answer rose by at most Q, as the threshold did), and the hit stays a hit (its answer fell by at most Q while the
threshold rose by Q). With Laplace noise of scales T (threshold) and S (queries) the density changes by a factor of at
most exp(Q / T + 2 Q / S), however many queries said no. A stretch that ends without a hit costs Q / T at most. The
value, with fresh noise of scale R, costs V / R. Stretches compose, so

    epsilon = hits * (Q / T + 2 Q / S + V / R),    delta = 0.

Each of these matters: variants that reuse the threshold's noise after a hit without scaling the queries' noise by
``hits``, that add no noise to the queries, or that release the very noisy answer that was compared, have a larger
epsilon than they say or none (Lyu, Su, Li).

Source: Dwork, Roth, "The algorithmic foundations of differential privacy" (2014), section 3.6, algorithms 1-3, theorems
3.23-3.25; Lyu, Su, Li, "Understanding the sparse vector technique for differential privacy" (PVLDB 2017), algorithm 7
and section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError
from tacit.dp.mechanisms import laplace

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseVector:
    """The mechanism with its noise scales.

    Args:
        hits: how many queries may exceed the threshold; then it stops.
        threshold: what they must exceed.
        query_sensitivity: Q, the most that a query's answer moves between neighbours.
        value_sensitivity: V, the most that a released value moves between neighbours.
        threshold_scale: T, of the Laplace noise on the threshold.
        query_scale: S, of the Laplace noise on each query.
        value_scale: R, of the Laplace noise on each released value.

    Raises:
        ConfigError: a number is out of range.
    """

    hits: int
    threshold: float
    query_sensitivity: float
    value_sensitivity: float
    threshold_scale: float
    query_scale: float
    value_scale: float

    def __post_init__(self) -> None:
        sizes = (
            self.query_sensitivity,
            self.value_sensitivity,
            self.threshold_scale,
            self.query_scale,
            self.value_scale,
        )
        if self.hits < 1 or not math.isfinite(self.threshold):
            raise ConfigError(
                f"at least one hit and a finite threshold expected, got {self.hits} and {self.threshold}"
            )
        if not all(0 < size < math.inf for size in sizes):
            raise ConfigError(f"finite sensitivities and scales above 0 expected, got {sizes}")

    @property
    def epsilon(self) -> float:
        """What one run costs, by the derivation above."""
        per_hit = (
            self.query_sensitivity / self.threshold_scale
            + 2 * self.query_sensitivity / self.query_scale
            + self.value_sensitivity / self.value_scale
        )
        return self.hits * per_hit

    def release(
        self, queries: FloatArray, values: FloatArray, coins: Coins
    ) -> tuple[npt.NDArray[np.int64], FloatArray]:
        """Run once.

        Args:
            queries: answers in the order in which they are asked, (n,).
            values: what is released of a query that hits, (n,).
            coins: where the noise comes from.

        Returns:
            The places of the hits, ascending, at most ``hits``, and their noisy values.
        """
        noisy = (queries + laplace(coins, self.query_scale, len(queries))).tolist()
        bounds = iter((self.threshold + laplace(coins, self.threshold_scale, self.hits)).tolist())
        found: list[int] = []
        bound = next(bounds)
        for place, answer in enumerate(noisy):
            if answer >= bound:
                found.append(place)
                if len(found) == self.hits:
                    break
                bound = next(bounds)  # fresh after each hit: the old one is used up
        places = np.array(found, np.int64)
        return places, values[places] + laplace(coins, self.value_scale, len(found))
