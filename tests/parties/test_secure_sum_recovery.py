"""The server recovers secrets from shares of which some are wrong, and blames whom numbers prove."""

from __future__ import annotations

import numpy as np
import pytest

from tacit.core.coins import Coins
from tacit.core.errors import CheatingDetected
from tacit.crypto import shamir
from tacit.parties.neighbours import complete
from tacit.parties.secure_sum.recovery import Returned, at_fault

N, T = 10, 5
COINS = Coins.from_seed(b"recovery")


def dealt(label: str) -> tuple[np.ndarray, np.ndarray]:
    """A secret of each member, and every share of each, (n, h, limbs)."""
    coins = COINS.child(label)
    secrets = np.frombuffer(coins.bytes(16 * N), np.uint8).reshape(N, 16)
    points = np.arange(1, N + 1).astype(np.uint64)
    return secrets, shamir.split(secrets, T, points, coins).swapaxes(0, 1).copy()


def returned(shares: np.ndarray, there: np.ndarray | None = None) -> Returned:
    return Returned(
        names=[f"owner {i}" for i in range(N)],
        holders=complete(N),
        shares=shares,
        there=np.ones((N, N), np.bool_) if there is None else there,
        wanted=np.ones(N, np.bool_),
    )


def recovered(secrets: np.ndarray, shares: np.ndarray, *, decode: int = 1):
    def fits(number: int, secret: np.ndarray) -> bool:
        return bool((secret == secrets[number]).all())

    return returned(shares).recover(T, fits, decode=decode)


def off_by_one(shares: np.ndarray, dealers, holders) -> np.ndarray:
    for dealer in dealers:
        for holder in holders:
            shares[dealer, holder] = (shares[dealer, holder] + np.uint64(1)) % np.uint64(
                shamir.PRIME
            )
    return shares


def test_right_shares_give_the_secrets_and_nothing_is_off() -> None:
    secrets, shares = dealt("right")
    found, off = recovered(secrets, shares)
    assert (found == secrets).all() and not off.any()


def test_two_who_return_wrong_shares_for_everybody_are_named_and_the_secrets_are_right() -> None:
    secrets, shares = dealt("two liars")
    found, off = recovered(secrets, off_by_one(shares, range(N), (0, 1)), decode=4)
    assert (found == secrets).all()
    liars, disputed = at_fault(off, complete(N), colluders=3)
    assert liars == {0, 1} and disputed == []


def test_a_dealer_of_more_wrong_shares_than_may_collude_is_named() -> None:
    secrets, shares = dealt("a dealer")
    found, off = recovered(secrets, off_by_one(shares, [4], (0, 2)))
    assert (found == secrets).all()
    assert at_fault(off, complete(N), colluders=1) == ({4}, [])
    assert at_fault(off, complete(N), colluders=2) == (set(), [(4, 0), (4, 2)])


@pytest.mark.parametrize("seed", range(6))
def test_who_is_honest_is_never_named_while_few_enough_shares_of_a_secret_are_wrong(
    seed: int,
) -> None:
    """Two of ten lie as they like, as dealers and as holders: within the radius (10 - 5) // 2."""
    secrets, shares = dealt(f"few {seed}")
    draws = COINS.child(f"lies {seed}")
    for dealer in range(N):
        for holder in (2, 7):
            if draws.below(3, 1)[0]:
                shares[dealer, holder] = draws.below(shamir.PRIME, 3).astype(np.uint64)
    found, off = recovered(secrets, shares, decode=3)
    assert (found == secrets).all()
    assert set(np.flatnonzero(off.any(0))) <= {2, 7}
    liars, _ = at_fault(off, complete(N), colluders=2)
    assert liars <= {2, 7}


def test_where_too_many_shares_are_wrong_no_wrong_secret_is_given() -> None:
    secrets, shares = dealt("too many")
    with pytest.raises(CheatingDetected, match="owner 3's secret"):
        recovered(secrets, off_by_one(shares, [3], range(6)))


def test_without_a_share_to_spare_a_wrong_one_ends_it() -> None:
    secrets, shares = dealt("none to spare")
    there = np.ones((N, N), np.bool_)
    there[:, T:] = False
    off_by_one(shares, [0], [1])
    with pytest.raises(CheatingDetected, match="owner 0's secret"):
        returned(shares, there).recover(T, lambda v, secret: bool((secret == secrets[v]).all()))


def test_a_share_that_is_not_used_is_not_looked_at() -> None:
    secrets, shares = dealt("unused")
    found, off = recovered(secrets, off_by_one(shares, range(N), [N - 1]))
    assert (found == secrets).all() and not off.any()
