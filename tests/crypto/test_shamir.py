"""Shamir's sharing beside Lagrange on Python integers: what t shares give, what t - 1 do not, and which shares are wrong."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from tacit.core.coins import Coins, Shape
from tacit.core.errors import ConfigError, WireError
from tacit.crypto import shamir
from tacit.crypto.kernels import Native
from tacit.crypto.shamir import LIMBS, PRIME, SECRET_BYTES, find_wrong, recover, split

COINS = Coins.from_seed(b"shamir")
steady = settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(params=["c", "numpy"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernels that `split` and `recover` compute with."""
    found = request.getfixturevalue("built") if request.param == "c" else None
    monkeypatch.setattr(shamir, "native", lambda: found)
    return request.param


both = pytest.mark.usefixtures("arithmetic")


def lagrange(xs: list[int], values: list[int], at: int = 0) -> int:
    total = 0
    for i, value in enumerate(values):
        above = below = 1
        for j, x in enumerate(xs):
            if i != j:
                above = above * (at - x) % PRIME
                below = below * (xs[i] - x) % PRIME
        total += value * above * pow(below, -1, PRIME)
    return total % PRIME


def limbs_of(secret: bytes) -> list[int]:
    return [int.from_bytes(part, "little") for part in (secret[:6], secret[6:12], secret[12:])]


def some_secrets(count: int, label: str) -> np.ndarray:
    raw = COINS.child(label).bytes(count * SECRET_BYTES)
    return np.frombuffer(raw, np.uint8).reshape(count, SECRET_BYTES)


def some_field(shape: Shape, label: str) -> np.ndarray:
    return COINS.child(label).below(PRIME, shape).astype(np.uint64)


def upto(count: int) -> np.ndarray:
    return np.arange(1, count + 1, dtype=np.uint64)


class Dealt(Coins):
    """Coins whose field elements were chosen beforehand."""

    __slots__ = ("dealt",)

    def below(self, bound: int, shape: Shape) -> np.ndarray:
        assert bound == PRIME
        return self.dealt.astype(np.int64).reshape(shape)


def dealt(values: object) -> Dealt:
    coins = Dealt("dealt")
    coins.dealt = np.array(values, np.uint64)
    return coins


# --- t shares


@st.composite
def sharings(draw: st.DrawFn) -> tuple[np.ndarray, int, list[int]]:
    h = draw(st.integers(1, 12))
    point = st.integers(1, 20) | st.integers(PRIME - 20, PRIME - 1) | st.integers(1, PRIME - 1)
    xs = draw(st.lists(point, min_size=h, max_size=h, unique=True))
    raw = draw(st.lists(st.binary(min_size=16, max_size=16), max_size=4))
    secrets = np.frombuffer(b"".join(raw), np.uint8).reshape(-1, SECRET_BYTES)
    return secrets, draw(st.integers(1, h)), xs


@both
@steady
@given(case=sharings(), data=st.data())
def test_any_threshold_of_shares_gives_the_secrets_back_as_lagrange_does(
    case: tuple[np.ndarray, int, list[int]], data: st.DataObject
) -> None:
    secrets, threshold, xs = case
    chosen = data.draw(st.permutations(range(len(xs))))[:threshold]
    shares = split(secrets, threshold, np.array(xs, np.uint64), Coins())
    assert shares.shape == (len(xs), len(secrets), LIMBS)
    assert shares.dtype == np.uint64
    held = [xs[holder] for holder in chosen]
    points = np.array([held] * len(secrets), np.uint64).reshape(len(secrets), threshold)
    back, whole = recover(np.swapaxes(shares[chosen], 0, 1), points)
    assert back.dtype == np.uint8
    assert back.tolist() == secrets.tolist()
    assert whole.tolist() == [True] * len(secrets)
    for number, secret in enumerate(secrets):
        values = shares[chosen, number].T.tolist()
        assert [lagrange(held, limb) for limb in values] == limbs_of(secret.tobytes())


@both
def test_every_subset_of_the_size_of_the_threshold_recovers() -> None:
    for h in range(1, 7):
        for threshold in range(1, h + 1):
            secrets = some_secrets(2, f"subsets/{h}/{threshold}")
            chosen = np.array(list(itertools.combinations(range(h), threshold)))
            shares = split(secrets, threshold, upto(h), Coins())
            for number in range(2):
                back, whole = recover(shares[chosen, number], upto(h)[chosen])
                assert whole.all()
                assert (back == secrets[number]).all()


@both
def test_shares_are_the_values_of_the_polynomial_with_the_drawn_coefficients() -> None:
    secrets, threshold, xs = some_secrets(2, "values"), 4, [1, 2, 77, PRIME - 1, PRIME // 2]
    drawn = some_field((threshold - 1, 2, LIMBS), "drawn")
    shares = split(secrets, threshold, np.array(xs, np.uint64), dealt(drawn))
    for number, limb in itertools.product(range(2), range(LIMBS)):
        line = [limbs_of(secrets[number].tobytes())[limb], *drawn[:, number, limb].tolist()]
        expected = [sum(c * pow(x, k, PRIME) for k, c in enumerate(line)) % PRIME for x in xs]
        assert shares[:, number, limb].tolist() == expected


@both
def test_secrets_at_different_points_are_recovered_each_at_its_own() -> None:
    secrets, threshold = some_secrets(7, "own points"), 3
    points = np.array([[1, 2, 3], [3, 2, 1], [1, 2, 3], [9, 8, 7], [1, 2, 4], [1, 2, 3], [9, 8, 7]])
    points = points.astype(np.uint64)
    shares = split(secrets, threshold, upto(9), Coins())
    back, whole = recover(shares[points.astype(int) - 1, np.arange(7)[:, None]], points)
    assert (back == secrets).all()
    assert whole.all()


def test_weights_of_equal_points_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    compute = shamir._weights
    monkeypatch.setattr(shamir, "_weights", lambda xs: (seen.append(len(xs)), compute(xs))[1])
    recover(some_field((50, 3, LIMBS), "once"), np.tile(upto(3), (50, 1)))
    points = np.tile(upto(3), (50, 1))
    points[20:30] += np.uint64(1)
    recover(some_field((50, 3, LIMBS), "once"), points)
    assert seen == [1, 2]


def test_a_share_takes_the_stated_bytes() -> None:
    assert split(some_secrets(1, "size"), 2, upto(3), Coins())[0].nbytes == 24


def test_nothing_to_split_and_nothing_to_recover_are_empty() -> None:
    none = np.empty((0, SECRET_BYTES), np.uint8)
    assert split(none, 2, upto(3), Coins()).shape == (3, 0, LIMBS)
    back, whole = recover(np.empty((0, 2, LIMBS), np.uint64), np.empty((0, 2), np.uint64))
    assert back.shape == (0, SECRET_BYTES)
    assert whole.shape == (0,)


# --- fewer than t shares


def coefficients_through(xs: list[int], values: list[int]) -> list[int]:
    """By Gauss, of the polynomial of degree below the number of points."""
    size = len(xs)
    rows = [[pow(x, k, PRIME) for k in range(size)] + [v] for x, v in zip(xs, values, strict=True)]
    for i in range(size):
        pivot = next(row for row in range(i, size) if rows[row][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        scale = pow(rows[i][i], -1, PRIME)
        rows[i] = [entry * scale % PRIME for entry in rows[i]]
        for j in range(size):
            if j != i:
                factor = rows[j][i]
                rows[j] = [(a - factor * b) % PRIME for a, b in zip(rows[j], rows[i], strict=True)]
    return [row[-1] for row in rows]


@both
@pytest.mark.parametrize("threshold", [2, 3, 6])
def test_fewer_shares_than_the_threshold_come_from_every_secret_by_one_draw_each(
    threshold: int,
) -> None:
    """So each value of t - 1 shares is as likely under one secret as under another: exactly, the draws being uniform."""
    h = threshold + 2
    for trial, held in enumerate(itertools.combinations(range(1, h + 1), threshold - 1)):
        target = some_field((threshold - 1, LIMBS), f"target/{threshold}/{trial}").tolist()
        for secret in (bytes(16), b"\xff" * 16, some_secrets(1, f"any/{trial}").tobytes()):
            lines = [
                coefficients_through([0, *held], [limb, *(row[k] for row in target)])
                for k, limb in enumerate(limbs_of(secret))
            ]
            coins = dealt([line[1:] for line in lines])
            coins.dealt = coins.dealt.T  # a row for each power
            secrets = np.frombuffer(secret, np.uint8)[None]
            shares = split(secrets, threshold, upto(h), coins)[:, 0]
            assert shares[[x - 1 for x in held]].tolist() == target


def uniformity(threshold: int, secret: bytes, label: str) -> float:
    """The p-value that two of the shares are uniform, over 16 x 16 cells of their highest bits."""
    count = 20_000
    secrets = np.tile(np.frombuffer(secret, np.uint8), (count, 1))
    shares = split(secrets, threshold, upto(3), COINS.child(label)).reshape(3, -1)
    cells = (shares[0] >> np.uint64(57)) * np.uint64(16) + (shares[2] >> np.uint64(57))
    found = np.bincount(cells.astype(np.int64), minlength=256)
    expected = cells.size / 256
    return float(chi2.sf(((found - expected) ** 2 / expected).sum(), 255))


def test_two_shares_of_three_are_uniform_whatever_the_secret_and_two_of_two_are_not() -> None:
    """The first fails once in a million of seeds; each limb of each secret counts as a draw."""
    for secret in (bytes(16), b"\xff" * 16):
        assert uniformity(3, secret, f"uniform/{secret[0]}") > 5e-7
        assert uniformity(2, secret, f"control/{secret[0]}") < 1e-30


def test_two_sharings_of_one_secret_have_nothing_in_common() -> None:
    secrets = np.tile(some_secrets(1, "twice"), (2, 1))
    shares = split(secrets, 2, upto(4), Coins())
    assert len(np.unique(shares)) == shares.size


# --- C beside numpy

SIZES = [1, 2, 7, 8, 9, 31, 32, 33, 64, 65, 130]


def extreme(shape: tuple[int, ...], label: str) -> np.ndarray:
    """Field elements, half of them at the ends of the range and of its halves."""
    ends = np.array([0, 1, 2**29, 2**32 - 1, 2**32, PRIME - 2, PRIME - 1], np.uint64)
    values = some_field(shape, label)
    pick = COINS.child(f"{label}/pick").below(2 * len(ends), shape)
    return np.where(pick < len(ends), ends[pick % len(ends)], values)


@pytest.mark.parametrize("threshold", SIZES)
def test_c_and_numpy_evaluate_alike(built: Native, threshold: int) -> None:
    for points, columns in ((1, 6), (7, 1), (8, 3), (21, 6)):
        coefficients = extreme((threshold, columns), f"coefficients/{points}")
        xs = extreme((points,), f"xs/{threshold}")
        one = shamir._evaluate_native(built, coefficients, xs)
        other = shamir._evaluate_numpy(coefficients, xs)
        assert one.tobytes() == other.tobytes()
        assert (one < PRIME).all()


@pytest.mark.parametrize("threshold", SIZES)
def test_c_and_numpy_combine_alike_and_as_python_does(built: Native, threshold: int) -> None:
    shares = extreme((9, threshold, LIMBS), "shares")
    weights = extreme((9, threshold), "weights")
    shares[0], weights[0] = PRIME - 1, PRIME - 1  # the greatest sums
    one, other = (
        shamir._combine_native(built, shares, weights),
        shamir._combine_numpy(shares, weights),
    )
    assert one.tobytes() == other.tobytes()
    expected = [
        [sum(map(int.__mul__, w, limb)) % PRIME for limb in zip(*s, strict=True)]
        for s, w in zip(shares.tolist(), weights.tolist(), strict=True)
    ]
    assert one.tolist() == expected


@pytest.mark.parametrize("threshold", SIZES)
def test_c_and_numpy_weigh_alike_and_as_lagrange_does(built: Native, threshold: int) -> None:
    ends = [1, 2, PRIME - 1, PRIME - 2, 2**32, 2**32 - 1, 2**60]
    rows = [
        [*ends, *some_field(threshold, f"row/{row}").tolist()][row : row + threshold]
        for row in range(5)
    ]
    xs = np.array(rows, np.uint64)
    one, other = shamir._weights_native(built, xs), shamir._weights_numpy(xs)
    assert one.tobytes() == other.tobytes()
    for i in {0, threshold // 2, threshold - 1}:
        unit = [int(j == i) for j in range(threshold)]
        assert one[:, i].tolist() == [lagrange(row, unit) for row in rows]


def test_numpy_gives_the_same_whatever_its_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    xs = np.stack([upto(6) + np.uint64(row) for row in range(11)])
    shares, coefficients = extreme((11, 6, LIMBS), "tiles"), extreme((6, 30), "tiles/2")

    def results() -> list[bytes]:
        weights = shamir._weights_numpy(xs)
        combined = shamir._combine_numpy(shares, weights)
        values = shamir._evaluate_numpy(coefficients, xs[0])
        return [weights.tobytes(), combined.tobytes(), values.tobytes()]

    whole = results()
    for tile in (1, 20, 64):
        monkeypatch.setattr(shamir, "_TILE", tile)
        assert results() == whole


def test_c_and_numpy_split_and_recover_alike_at_the_size_of_a_large_round(
    built: Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets, points = some_secrets(2, "large"), np.tile(upto(334), (2, 1))
    results = []
    for found in (built, None):
        monkeypatch.setattr(shamir, "native", lambda found=found: found)
        shares = split(secrets, 334, upto(500), Coins.from_seed(b"large"))
        back, _ = recover(np.swapaxes(shares[:334], 0, 1), points)
        assert (back == secrets).all()
        results.append(shares.tobytes())
    assert results[0] == results[1]


# --- damaged shares


@both
def test_a_secret_from_damaged_shares_is_not_whole() -> None:
    """A damaged limb passes once in 2^13, or in 2^29: more than two of 150 for one in 10^6 seeds."""
    count, threshold = 300, 4
    secrets, points = some_secrets(count, "damaged"), np.tile(upto(threshold), (count, 1))
    shares = np.swapaxes(split(secrets, threshold, upto(4), COINS.child("damage")), 0, 1)
    for limb in range(LIMBS):
        bad = shares.copy()
        bad[::2, 1, limb] = some_field(count // 2, f"noise/{limb}")
        back, whole = recover(bad, points)
        assert whole[1::2].all()
        assert (back[1::2] == secrets[1::2]).all()
        assert whole[::2].sum() <= 2
    _, whole = recover(shares[:, :3], points[:, :3])  # one too few
    assert not whole.any()


def test_the_greatest_limbs_are_whole_and_one_more_is_not() -> None:
    for limb, bits in enumerate((48, 48, 32)):
        shares = np.zeros((2, 1, LIMBS), np.uint64)
        shares[:, 0, limb] = 2**bits - 1, 2**bits
        back, whole = recover(shares, np.ones((2, 1), np.uint64))
        assert whole.tolist() == [True, False]
        assert limbs_of(back[0].tobytes())[limb] == 2**bits - 1


def wrongs(wrong: np.ndarray | None) -> list[int] | None:
    return None if wrong is None else np.flatnonzero(wrong).tolist()


@pytest.mark.parametrize(
    ("r", "threshold"), [(2, 1), (3, 1), (4, 2), (5, 3), (7, 1), (9, 4), (10, 4), (12, 11), (30, 9)]
)
def test_wrong_shares_are_found_up_to_half_of_those_to_spare_and_not_past_it(
    r: int, threshold: int
) -> None:
    coins = COINS.child(f"wrong/{r}/{threshold}")
    xs = some_field(r, f"points/{r}")
    secrets = some_secrets(1, f"wrong/{r}")
    most = (r - threshold) // 2
    for errors in range(most + 2):
        shares = split(secrets, threshold, xs, coins)[:, 0]
        chosen = np.sort(coins.permutation(r)[:errors])
        shares[chosen] = coins.below(PRIME, (errors, LIMBS))
        found = wrongs(find_wrong(shares, xs, threshold))
        assert found == (chosen.tolist() if errors <= most else None)


def test_a_share_is_wrong_if_any_of_its_limbs_is() -> None:
    shares = split(some_secrets(1, "limbs"), 4, upto(10), COINS.child("limbs"))[:, 0]
    for number, limb in ((2, 0), (5, 1), (9, 2)):
        shares[number, limb] ^= np.uint64(1)
    assert wrongs(find_wrong(shares, upto(10), 4)) == [2, 5, 9]
    shares[0, 2] ^= np.uint64(1)  # each limb could be decoded; four shares of ten are too many
    assert find_wrong(shares, upto(10), 4) is None


@pytest.mark.parametrize("secret", [bytes(16), b"\xff" * 16], ids=["zeros", "ones"])
def test_wrong_shares_of_constant_and_of_zero_polynomials_are_found(secret: bytes) -> None:
    secrets = np.frombuffer(secret, np.uint8)[None]
    shares = split(secrets, 3, upto(9), dealt(np.zeros((2, LIMBS))))[:, 0]
    shares[[0, 4, 8]] = some_field((3, LIMBS), "constant")
    assert wrongs(find_wrong(shares, upto(9), 3)) == [0, 4, 8]


def test_wrong_shares_that_agree_on_another_secret_are_found_until_they_are_too_many() -> None:
    coins, (one, other) = COINS.child("collusion"), some_secrets(2, "collusion")
    threshold, r = 4, 10
    shares = split(one[None], threshold, upto(r), coins)[:, 0]
    lines = [
        coefficients_through([0, 1, 2, 3], [limb, *shares[:3, k].tolist()])
        for k, limb in enumerate(limbs_of(other.tobytes()))
    ]
    coefficients = dealt(np.array([line[1:] for line in lines], np.uint64).T)
    forged = split(other[None], threshold, upto(r), coefficients)[:, 0]
    assert (forged[:3] == shares[:3]).all()  # the two polynomials meet in threshold - 1 points
    for errors, found in ((3, [3, 4, 5]), (4, [7, 8, 9])):  # then the honest are blamed
        mixed = shares.copy()
        mixed[3 : 3 + errors] = forged[3 : 3 + errors]
        assert wrongs(find_wrong(mixed, upto(r), threshold)) == found


def test_wrong_shares_are_found_at_the_size_of_a_large_round() -> None:
    r, threshold, coins = 200, 101, COINS.child("round")
    shares = split(some_secrets(1, "round"), threshold, upto(r), coins)[:, 0]
    chosen = np.sort(coins.permutation(r)[:49])
    shares[chosen, 1] ^= np.uint64(1 << 40)
    assert wrongs(find_wrong(shares, upto(r), threshold)) == chosen.tolist()


# --- what is refused


def points(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


@pytest.mark.parametrize(
    ("threshold", "xs", "says"),
    [
        (0, points(1, 2, 3), "from 1 to 3"),
        (-1, points(1, 2, 3), "from 1 to 3"),
        (4, points(1, 2, 3), "from 1 to 3"),
        (1, points(), "from 1 to 0"),
        (2, points(1, 2, 1), "distinct"),
        (2, points(0, 2, 3), "secret"),
        (2, points(1, PRIME, 3), "from 1 to"),
        (2, points(1, 2**64 - 1, 3), "from 1 to"),
        (2, points(1, 2, 3)[None], "shape"),
        (2, points(1, 2, 3).astype(np.int64), "uint64"),
    ],
)
def test_what_cannot_be_split_is_refused(threshold: int, xs: np.ndarray, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        split(some_secrets(1, "refused"), threshold, xs, Coins())


@pytest.mark.parametrize(
    "secrets", [np.zeros((2, 15), np.uint8), np.zeros(16, np.uint8), np.zeros((2, 16), np.uint64)]
)
def test_secrets_of_another_shape_or_dtype_are_refused(secrets: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="secrets: uint8"):
        split(secrets, 2, upto(3), Coins())


@pytest.mark.parametrize("value", [PRIME, 2**61, 2**64 - 1])
def test_shares_past_the_field_are_refused_as_a_peers_fault(value: int) -> None:
    shares = np.zeros((2, 3, LIMBS), np.uint64)
    shares[1, 2, 0] = value
    with pytest.raises(WireError, match="below") as refused:
        recover(shares, np.tile(upto(3), (2, 1)))
    assert str(value) not in str(refused.value)
    with pytest.raises(WireError, match="below"):
        find_wrong(shares[1], upto(3), 1)


@pytest.mark.parametrize(
    ("xs", "says"),
    [
        (np.array([[1, 2], [3, 3]], np.uint64), "distinct"),
        (np.array([[1, 2], [0, 3]], np.uint64), "secret"),
        (np.array([[1, 2], [PRIME, 3]], np.uint64), "from 1 to"),
        (np.array([[1, 2]], np.uint64), "shape"),
        (np.array([[1, 2], [3, 4]], np.int64), "uint64"),
    ],
)
def test_points_that_cannot_be_are_refused_when_recovering(xs: np.ndarray, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        recover(np.zeros((2, 2, LIMBS), np.uint64), xs)


def test_no_shares_and_shares_of_another_shape_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        recover(np.zeros((2, 0, LIMBS), np.uint64), np.zeros((2, 0), np.uint64))
    with pytest.raises(ConfigError, match="shares: uint64"):
        recover(np.zeros((2, 2, 2), np.uint64), np.tile(upto(2), (2, 1)))
    with pytest.raises(ConfigError, match="shares: uint64"):
        find_wrong(np.zeros((3, LIMBS), np.int64), upto(3), 1)


@pytest.mark.parametrize("threshold", [0, 3, 4])
def test_wrong_shares_cannot_be_told_without_more_than_the_threshold(threshold: int) -> None:
    with pytest.raises(ConfigError, match="from 1 to 2"):
        find_wrong(np.zeros((3, LIMBS), np.uint64), upto(3), threshold)


def test_wrong_shares_at_points_that_cannot_be_are_refused() -> None:
    for xs in (points(1, 1, 2), points(0, 1, 2), points(1, 2, PRIME)):
        with pytest.raises(ConfigError, match="points"):
            find_wrong(np.zeros((3, LIMBS), np.uint64), xs, 1)
