"""What guesses about canaries show: a lower bound on epsilon, to stand beside the claim.

Of m canaries each is put into the training data by a fair coin of its own. Who sees what the training releases gives each
a score, and guesses of some of them "in" or "out"; of the others nothing. Of a private training few guesses can be right:

**The bound.** Let S be the coins and T what is released, (epsilon, delta)-differentially private when one canary is added or
removed. Let the guesses, and of which canaries they are, depend on T alone, and their number r be fixed. Let f(k) be the
probability that k of them are right. Take one pair (s, t) in which k are right, and turn round the coin of one of these:
in (s', t) k - 1 are right, and each such pair is reached from r - k + 1. With P(t | s) <= exp(epsilon) P(t | s') + excess,

    k f(k) <= exp(epsilon) (r - k + 1) f(k - 1) + e(k),    sum of e(k) over all k <= m delta,

since for each of the m canaries, whatever the other coins are, the excess of all t where it is guessed "in" is at most
delta, and of those where "out", and either value of its coin has half of the weight. The probabilities b(k) of a
Binomial(r, p), p = exp(epsilon) / (1 + exp(epsilon)), have k b(k) = exp(epsilon) (r - k + 1) b(k - 1). Hence

    f(k) / b(k) <= f(k - 1) / b(k - 1) + e(k) / (k b(k)).

Go by this from each j < v to each k >= v, multiply by b(j) b(k), and add up. With F and B the probabilities of at least v
under f and b, and X a Binomial(r, p),

    F (1 - B) <= (1 - F) B + sum_i e(i) P(X < min(i, v)) P(X >= max(i, v)) / (i b(i)).

A binomial is log-concave, so P(X >= i) / b(i) falls in i and P(X < i) / (i b(i)) rises: the factor of e(i) is largest at
i = v, and

    P(at least v of r guesses are right) = F <= B + m delta B (1 - B) / (v b(v)).

Each epsilon for which the right side is at most 1 - confidence is refuted. What is (epsilon, delta)-private is so at every
larger epsilon, so the largest refuted one is a lower bound. It is above a true epsilon for certain v only, and if v is the
least of these, at least v are right with probability at most 1 - confidence.

How many to guess must be fixed before looking. `audited` tries a few numbers and pays for it: each of t has 1 / t of the
error (Bonferroni).

Source: Steinke, Nasr, Jagielski, "Privacy auditing with one (1) training run" (NeurIPS 2023), theorem 5.2 (recalled), for
the idea and for delta = 0; the derivation and its term in delta are those above.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, gammaln, xlog1py, xlogy

from tacit.core.errors import ConfigError, DataError

FloatArray = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def epsilon_lower_bound(
    guesses: int, right: int, canaries: int, delta: float, confidence: float = 0.95
) -> float:
    """The largest epsilon that so many right guesses refute; 0 where they show nothing.

    Args:
        guesses: r, fixed before looking.
        right: of these.
        canaries: m, among which the guesses were chosen.
        delta: of the claim, in [0, 1).
        confidence: in (0, 1): the bound is above a true epsilon with probability at most 1 - confidence.

    Raises:
        ConfigError: a number is out of range.

    Source: this module's derivation.
    """
    if not 0 <= right <= guesses <= canaries:
        raise ConfigError(
            f"right <= guesses <= canaries expected, got {right}, {guesses} and {canaries}"
        )
    if not (0 <= delta < 1 and 0 < confidence < 1):
        raise ConfigError(
            f"0 <= delta < 1 and 0 < confidence < 1 expected, got {delta} and {confidence}"
        )
    if right == 0:
        return 0.0
    # From above to the largest p with B (1 + m delta (1 - B) / (v b(v))) = 1 - confidence; of each p, the B is known.
    tail, last = 1 - confidence, 1.0
    p = float(betaincinv(right, guesses - right + 1, tail))
    choices = gammaln(guesses + 1) - gammaln(right + 1) - gammaln(guesses - right + 1)
    while p > 0.5 and last - p > 1e-10 * (1 - p):
        rarity = -(choices + xlogy(right, p) + xlog1py(guesses - right, -p))  # -log b(v)
        if rarity > 700:  # so far down nothing is lost by refuting nothing
            return 0.0
        factor = canaries * delta * (1 - tail) / right * math.exp(rarity)
        tail = (1 - confidence) / (1 + factor)
        last, p = p, float(betaincinv(right, guesses - right + 1, tail))
    return math.log(p / (1 - p)) if p > 0.5 else 0.0


class Audited(NamedTuple):
    """What an audit found.

    Args:
        epsilon: the lower bound.
        confidence: that it is not above the true epsilon.
        canaries: how many there were.
        guesses: how many of them were guessed, at the number that gave the bound.
        right: how many of the guesses were right.
    """

    epsilon: float
    confidence: float
    canaries: int
    guesses: int
    right: int


def guess(scores: FloatArray, most: int, least: int) -> npt.NDArray[np.int8]:
    """Guesses from scores: 1 ("in") for the highest, -1 ("out") for the lowest, 0 for the others.

    Args:
        scores: (m,); higher where the canary looks more as if it were in. Ties go by place.
        most: how many are guessed in.
        least: how many are guessed out.

    Raises:
        ConfigError: these are more than there are scores, or fewer than none.
        DataError: a score is not a number.
    """
    if min(most, least) < 0 or most + least > len(scores):
        raise ConfigError(
            f"0 to {len(scores)} guesses expected, got {most} in and {least} out: guess fewer"
        )
    if np.isnan(scores).any():
        raise DataError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are not numbers")
    order = np.argsort(scores, kind="stable")
    out = np.zeros(len(scores), np.int8)
    out[order[:least]] = -1
    out[order[len(order) - most :]] = 1
    return out


def usual_tries(canaries: int) -> tuple[tuple[int, int], ...]:
    """Numbers to guess (in, out) that serve where few canaries tell much, and where many tell a little."""
    few, many = canaries // 20, canaries // 5
    return (few, 0), (many, 0), (few, few), (many, many)


def audited(
    scores: FloatArray,
    included: Bools,
    delta: float,
    *,
    confidence: float = 0.95,
    tries: Sequence[tuple[int, int]] | None = None,
) -> Audited:
    """The best lower bound of a few numbers of guesses, each with its part of the error.

    Args:
        scores: (m,), from what was released, without the coins.
        included: (m,) bool, the coins.
        delta: of the claim, in [0, 1).
        confidence: of the result, in (0, 1).
        tries: numbers of guesses (in, out), fixed before looking; `usual_tries` by default.

    Raises:
        ConfigError: a number is out of range, or there are no tries.
        DataError: a score is not a number, or there is not one for each canary.
    """
    if scores.shape != included.shape or scores.ndim != 1:
        raise DataError(
            f"one score a canary expected, got {scores.shape} for canaries {included.shape}"
        )
    tries = usual_tries(len(scores)) if tries is None else tries
    if not tries or not 0 < confidence < 1:
        raise ConfigError(
            f"at least one number of guesses and 0 < confidence < 1 expected, got {tries} and {confidence}"
        )
    each = 1 - (1 - confidence) / len(tries)
    found = []
    for most, least in tries:
        said = guess(scores, most, least)
        right = int(((said == 1) & included).sum() + ((said == -1) & ~included).sum())
        bound = epsilon_lower_bound(most + least, right, len(scores), delta, each)
        found.append(Audited(bound, confidence, len(scores), most + least, right))
    return max(found, key=lambda one: one.epsilon)


def most_auc(epsilon: float, delta: float) -> float:
    """The largest area under the ROC curve with which anybody tells two neighbours apart.

    A test with false positives a misses with at least max(0, 1 - delta - exp(epsilon) a, exp(-epsilon) (1 - delta - a)),
    which integrates to (1 - delta)^2 / (1 + exp(epsilon)).

    Source: Kairouz, Oh, Viswanath, "The composition theorem for differential privacy" (ICML 2015), theorem 2.4 (recalled),
    for the region.
    """
    return 1 - (1 - delta) ** 2 / (1 + math.exp(min(epsilon, 700.0)))
