"""How the server recovers secrets from shares of which some may be wrong.

A recovered secret is checked against its member's commitment, so a wrong one is always noticed; a wrong share is where it
is used. Where a secret does not fit and there are shares to spare, Reed-Solomon decoding tells which of r shares lie
off the polynomial of the others, if at most (r - threshold) / 2 do; with more of them, acting together, it may name others.
It does not tell whose fault that is: a holder may return another share than it got, and a dealer may deal a wrong one.
Only numbers tell: a holder whose shares are off for more dealers than may collude lies itself, and so does a dealer
more of whose shares are off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tacit.core.errors import CheatingDetected
from tacit.crypto import shamir
from tacit.parties.neighbours import Numbers
from tacit.parties.secure_sum.agreement import SEED, Bytes, Flags, Integers

Fits = Callable[[int, Bytes], bool]
"""Whether a secret, (16,), is what the member of that number committed to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """Shares of one secret of each member, as its holders returned them.

    Args:
        names: of the members, for messages.
        holders: numbers of each member's holders, (n, h).
        shares: (n, h, limbs).
        there: which came, (n, h).
        wanted: whose secrets are wanted, (n,).
    """

    names: Sequence[object]
    holders: Numbers
    shares: Integers
    there: Flags
    wanted: Flags

    def recover(self, threshold: int, fits: Fits, *, decode: int = 1) -> tuple[Bytes, Flags]:
        """The wanted secrets.

        Args:
            threshold: shares that recover one; of each wanted secret at least so many must be there.
            fits: checks a secret.
            decode: for so many of the secrets that do not fit, tell which shares are off, even where they are not needed.

        Returns:
            The secrets, (n, 16), zero where none was wanted; and which shares are off, (n, h), as far as that was found out.

        Raises:
            CheatingDetected: the shares of a secret do not open what was committed to; names its dealer.
        """
        off = np.zeros_like(self.there)
        suspected = np.zeros(len(self.wanted), np.bool_)
        more = max(1, decode)
        while True:
            usable = self._trusted(off, suspected, threshold)
            secrets, good = self._attempt(self.wanted, usable, threshold, fits)
            bad = np.flatnonzero(self.wanted & ~good)
            if not bad.size:
                return secrets, off
            for dealer in bad[:more]:
                if off[dealer].any():
                    raise self._wrong_dealing(int(dealer))
                off[dealer] = self._off(int(dealer), threshold)
                suspected[self.holders[dealer, off[dealer]]] = True
            more = 1

    def _trusted(self, off: Flags, suspected: Flags, threshold: int) -> Flags:
        """Shares to recover from: those of suspected holders only where they are needed."""
        usable = self.there & ~off
        trusted = usable & ~suspected[self.holders]
        short = trusted.sum(1) < threshold
        trusted[short] = usable[short]
        return trusted

    def _attempt(
        self, wanted: Flags, usable: Flags, threshold: int, fits: Fits
    ) -> tuple[Bytes, Flags]:
        secrets = np.zeros((len(wanted), SEED), np.uint8)
        good = np.zeros(len(wanted), np.bool_)
        dealers = np.flatnonzero(wanted & (usable.sum(1) >= threshold))
        chosen = np.argsort(~usable[dealers], axis=1, kind="stable")[:, :threshold]
        points = (np.take_along_axis(self.holders[dealers], chosen, axis=1) + 1).astype(np.uint64)
        shares = np.take_along_axis(self.shares[dealers], chosen[..., None], axis=1)
        secrets[dealers], whole = shamir.recover(shares, points)
        good[dealers] = [
            bool(one) and fits(int(dealer), secrets[dealer])
            for dealer, one in zip(dealers, whole, strict=True)
        ]
        return secrets, good

    def _off(self, dealer: int, threshold: int) -> Flags:
        """Which of a dealer's shares lie off the polynomial of the others."""
        places = np.flatnonzero(self.there[dealer])
        found = None
        if len(places) > threshold:
            points = (self.holders[dealer, places] + 1).astype(np.uint64)
            found = shamir.find_wrong(self.shares[dealer, places], points, threshold)
        if found is None or not found.any():
            raise self._wrong_dealing(dealer)
        off = np.zeros(self.there.shape[1], np.bool_)
        off[places[found]] = True
        return off

    def _wrong_dealing(self, dealer: int) -> CheatingDetected:
        return CheatingDetected(
            f"the shares of {self.names[dealer]}'s secret do not open what it committed to: it dealt them wrongly, or too "
            "many of its holders returned others. Leave it out and start again."
        )


def at_fault(
    off: Flags, holders: Numbers, colluders: int
) -> tuple[set[int], list[tuple[int, int]]]:
    """Who must have lied, and the pairs (dealer, holder) of which either may have.

    Args:
        off: which shares are off, (n, h).
        holders: numbers of each member's holders, (n, h).
        colluders: the most members, among anybody's holders, that may lie.

    Assumes: of no secret more than (shares - threshold) / 2 were wrong, or decoding may have named the wrong ones.
    """
    pairs = [(int(v), int(holders[v, place])) for v, place in np.argwhere(off)]
    dealt = np.bincount([v for v, _ in pairs], minlength=len(off))
    returned = np.bincount([w for _, w in pairs], minlength=len(off))
    liars = set(np.flatnonzero(np.maximum(dealt, returned) > colluders).tolist())
    return liars, [(v, w) for v, w in pairs if v not in liars and w not in liars]
