"""Who shares secrets with whom: the complete graph, and the k-regular one that needs far fewer messages.

The regular graph is Bell et al.'s: members stand on a ring in a random order, and each is joined to the k/2 before it and
the k/2 behind it. Shares of a member's secrets go to its neighbours, any t of whom recover them. Three things can go
wrong, each with a probability that is computed exactly or bounded here, over the random order alone:

* *security*: some member has t or more corrupted neighbours. The number of corrupted neighbours of one member is
  hypergeometric; the sum over members bounds the rest.
* *recovery*: some member has fewer than t neighbours left when others drop out; hypergeometric too.
* *connection*: honest survivors fall into parts that no mask joins, so that the server would learn sums over parts. The
  ring with its chords only falls apart where k/2 successive members are all corrupted or gone; the sum over places bounds
  it.

Assumes: who is corrupted and who drops out does not depend on the order, which the server draws.

Source: Bell, Bonawitz, Gascon, Lepoint, Raykova, "Secure single-server aggregation with (poly)logarithmic overhead",
CCS 2020, section 3 (the graph and the three conditions; recalled). The tails are summed in integers, not taken from the
paper's bounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """How far secrets are shared, and how sure that is.

    Args:
        degree: neighbours of each member.
        threshold: holders (a member and its neighbours) whose shares recover a secret; at least 2, since with 1 every share
            is the secret.
        dropouts: members who may drop out of a round; None where the threshold alone limits them.
        security: probability that a member has ``threshold`` corrupted neighbours.
        recovery: probability that some member has fewer than ``threshold`` neighbours left.
        connection: probability that the honest survivors fall apart.
    """

    degree: int
    threshold: int
    dropouts: int | None = None
    security: float = 0.0
    recovery: float = 0.0
    connection: float = 0.0

    @property
    def failure(self) -> float:
        """Probability that any of these happens, for one order and one set of dropouts."""
        return self.security + self.recovery + self.connection

    def failure_over(self, sessions: int, rounds: int) -> float:
        """A bound on the probability that any of these ever happens: orders are drawn by session, dropouts come by round."""
        return min(1.0, sessions * self.security + rounds * (self.recovery + self.connection))

    def __str__(self) -> str:
        said = f"{self.degree} neighbours each, threshold {self.threshold}"
        return (
            f"{said}, failure probability 2^{math.log2(self.failure):.1f}" if self.failure else said
        )


def choose_sharing(
    participants: int, *, corrupted: float, dropped: float, failure: float
) -> Sharing | None:
    """The smallest degree, and the best threshold for it, that fail with less than the wanted probability.

    Args:
        participants: members in all.
        corrupted: the share of them that may collude with the server.
        dropped: the share of them that may drop out of a round.
        failure: the wanted bound on `Sharing.failure`.

    Returns:
        None where no degree below ``participants - 1`` does it: the complete graph remains.

    Raises:
        ConfigError: a share or the probability is out of range.
    """
    if participants < 2 or not (corrupted >= 0 and dropped >= 0 and corrupted + dropped < 1):
        raise ConfigError(
            "at least 2 participants, and shares of corrupted and dropped that add up to less than 1 expected, got "
            f"{participants}, {corrupted} and {dropped}"
        )
    if not 0 < failure < 1:
        raise ConfigError(f"a failure probability between 0 and 1 expected, got {failure}")
    bad, gone = math.ceil(corrupted * participants), math.ceil(dropped * participants)
    for degree in range(2, participants - 1, 2):
        connection = _run_removed(participants, min(bad + gone, participants), degree // 2)
        if connection >= failure:
            continue
        # security[t], recovery[t]: at least t neighbours corrupted; more than degree - t of them gone
        security = _tails(participants - 1, bad, degree)
        recovery = [0.0, *reversed(_tails(participants - 1, gone, degree)[1:])]
        threshold = min(range(2, degree + 1), key=lambda t: security[t] + recovery[t])
        found = Sharing(
            degree=degree,
            threshold=threshold,
            dropouts=gone,
            security=participants * security[threshold],
            recovery=participants * recovery[threshold],
            connection=connection,
        )
        if found.failure < failure:
            return found
    return None


def _tails(population: int, marked: int, drawn: int) -> list[float]:
    """P[at least x of ``drawn`` are marked], for x from 0 to ``drawn``; sums of integers, divided once."""
    marked = min(marked, population)
    ways = [
        math.comb(marked, x) * math.comb(population - marked, drawn - x)
        for x in range(drawn, -1, -1)
    ]
    whole = math.comb(population, drawn)
    return [tail / whole for tail in accumulate(ways)][::-1]


def _run_removed(population: int, removed: int, length: int) -> float:
    """A bound on P[``length`` successive places of the ring are all removed]: the sum over where they begin."""
    return population * math.comb(removed, length) / math.comb(population, length)


def complete(participants: int) -> Numbers:
    """Each member's holders: everybody, itself included, in ascending order, (n, n)."""
    return np.broadcast_to(np.arange(participants), (participants, participants))


def regular(participants: int, degree: int, coins: Coins) -> Numbers:
    """Each member's holders in a random regular graph: itself and its neighbours, in ascending order, (n, degree + 1).

    Raises:
        ConfigError: the degree is odd or too large.
    """
    if degree % 2 or not 2 <= degree < participants:
        raise ConfigError(
            f"an even degree from 2 to {participants - 1} expected for {participants} participants, got {degree}"
        )
    order = coins.permutation(participants)
    offsets = np.arange(-(degree // 2), degree // 2 + 1)
    holders = np.empty((participants, degree + 1), np.int64)
    holders[order] = order[(np.arange(participants)[:, None] + offsets) % participants]
    return np.sort(holders, axis=1)


def slots(holders: Numbers) -> Numbers:
    """Where each member stands among the holders of its holders: ``holders[holders[v, j], slots[v, j]] == v``."""
    n, size = holders.shape
    if size == n:
        return np.broadcast_to(np.arange(n)[:, None], (n, n))
    flat = holders + np.arange(n)[:, None] * n  # sorted, as rows and within rows
    wanted = holders * n + np.arange(n)[:, None]
    found: Numbers = np.searchsorted(flat.reshape(-1), wanted) - holders * size
    return found
