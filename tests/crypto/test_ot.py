"""Oblivious transfer against slow ones written out here: Montgomery's ladder in integers, AES block by block, bit by bit."""

from __future__ import annotations

import copy
import hashlib
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit.core.coins import Coins
from tacit.core.errors import CheatingDetected, ConfigError, ProtocolError, WireError
from tacit.crypto import kernels, ot
from tacit.crypto.bits import pack_plane, unpack_plane
from tacit.crypto.ot import (
    ExtensionReceiver,
    ExtensionSender,
    choose,
    delta_of,
    offer,
    random_keys_receiver,
    random_keys_sender,
)

COINS = Coins.from_seed(b"ot")
CONTEXT = b"a session"
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
EXCESS = L - 2**252
BASE = (9).to_bytes(32, "little")
Blocks = npt.NDArray[np.uint64]
Octets = npt.NDArray[np.uint8]
steady = settings(derandomize=True, deadline=None, max_examples=30)


@pytest.fixture(params=["C", "numpy"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Public functions by C, where it was built, and by numpy."""
    if request.param == "C":
        request.getfixturevalue("built")
    monkeypatch.setenv("TACIT_NATIVE", "1" if request.param == "C" else "0")
    return str(request.param)


# --- a slow X25519


def ladder(scalar: int, x: int) -> tuple[int, int]:
    """RFC 7748, section 5: the x-coordinate of a multiple, as a fraction (numerator, denominator); 0 below is neutral."""
    x2, z2, x3, z3, swap = 1, 0, x, 1, 0
    for t in reversed(range(256)):
        bit = scalar >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % P, b * b % P, d * a % P, c * b % P
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % P, x * (da - cb) ** 2 % P
        x2, z2 = aa * bb % P, e * (aa + 121665 * e) % P
    return (x3, z3) if swap else (x2, z2)


def clamp(raw: bytes) -> int:
    return int.from_bytes(raw, "little") & ~7 & (2**254 - 1) | 2**254


def slow_x25519(scalar: bytes, point: bytes) -> bytes:
    x, z = ladder(clamp(scalar), int.from_bytes(point, "little") % 2**255)
    return (x * pow(z, P - 2, P) % P).to_bytes(32, "little")


def on_curve(raw: bytes) -> bool:
    x = int.from_bytes(raw, "little")
    return x < P and pow(x**3 + 486662 * x**2 + x, (P - 1) // 2, P) in (0, 1)


def order_divides(order: int, raw: bytes) -> bool:
    return ladder(order, int.from_bytes(raw, "little"))[1] == 0


def in_prime_subgroup(raw: bytes) -> bool:
    return on_curve(raw) and order_divides(L, raw) and not order_divides(1, raw)


def slow_key(context: bytes, public: bytes, index: int, reply: bytes, shared: bytes) -> bytes:
    text = b"tacit/ot/base/1\x00" + len(context).to_bytes(8, "little") + context + public
    return hashlib.sha256(text + index.to_bytes(8, "little") + reply + shared).digest()[:16]


@pytest.mark.parametrize(
    ("scalar", "point", "result"),
    [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
        (
            "0900000000000000000000000000000000000000000000000000000000000000",
            "0900000000000000000000000000000000000000000000000000000000000000",
            "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079",
        ),
    ],
)
def test_the_slow_ladder_gives_the_published_vectors(scalar: str, point: str, result: str) -> None:
    """RFC 7748, section 5.2."""
    assert slow_x25519(bytes.fromhex(scalar), bytes.fromhex(point)).hex() == result


def test_the_checks_of_this_file_tell_points_apart() -> None:
    assert in_prime_subgroup(BASE) and not order_divides(8, BASE)
    assert not on_curve((2).to_bytes(32, "little"))  # on the twist
    assert on_curve(bytes(32)) and order_divides(2, bytes(32)) and not in_prime_subgroup(bytes(32))
    assert in_prime_subgroup(slow_x25519(COINS.bytes(32), BASE))


# --- base transfers


def run(choices: Octets, context: bytes = CONTEXT) -> tuple[ot.Offer, Octets, Octets, Octets]:
    """An offer, the replies, the chosen keys and both keys."""
    offered = offer(COINS)
    replies, chosen = choose(offered.public, choices, COINS, context)
    return offered, replies, chosen, ot.keys(offered, replies, context)


def test_base_transfers_are_those_of_the_slow_ladder() -> None:
    coins, slow = Coins.from_seed(b"one run"), Coins.from_seed(b"one run")
    choices = np.array([0, 1, 1, 0, 1], np.uint8)
    offered = offer(coins)
    replies, chosen = choose(offered.public, choices, coins, CONTEXT)
    both = ot.keys(offered, replies, CONTEXT)

    a = slow.bytes(32)
    slow.bytes(48)  # what blinds the inversion
    public = slow_x25519(a, BASE)
    assert offered.public == public
    scalars = slow.bytes(32 * 5)
    inverse = pow(clamp(a), -1, L)
    for i, choice in enumerate(choices.tolist()):
        b = scalars[32 * i : 32 * (i + 1)]
        reply = slow_x25519(b, public if choice else BASE)
        assert replies[i].tobytes() == reply
        shared = [slow_x25519(b, BASE if choice else public)]
        x, z = ladder(inverse, int.from_bytes(reply, "little"))  # not clamped: the inverse itself
        shared += [slow_x25519(a, reply), (x * pow(z, P - 2, P) % P).to_bytes(32, "little")]
        own, first, second = (slow_key(CONTEXT, public, i, reply, s) for s in shared)
        assert chosen[i].tobytes() == own == (second if choice else first)
        assert both[i].tobytes() == first + second and first != second


def test_the_chosen_key_is_right_and_the_other_is_another() -> None:
    choices = COINS.below(2, 64).astype(np.uint8)
    _, replies, chosen, both = run(choices)
    assert replies.shape == (64, 32) and chosen.shape == (64, 16) and both.shape == (64, 2, 16)
    place = np.arange(64)
    assert (both[place, choices] == chosen).all()
    assert not (both[place, 1 - choices] == chosen).all(axis=1).any()
    assert len({key.tobytes() for key in both.reshape(-1, 16)}) == 128


def test_replies_of_both_choices_are_in_the_prime_subgroup() -> None:
    """The same checks pass for both choices, so that no check tells them apart."""
    for choice in (0, 1):
        _, replies, _, _ = run(np.full(6, choice, np.uint8))
        assert all(in_prime_subgroup(reply.tobytes()) for reply in replies)


def test_a_cofactor_part_in_the_offer_does_not_show_in_replies() -> None:
    """A of order 8 * l: the replies are in the prime subgroup all the same, for both choices."""
    x = next(
        x
        for x in range(10, 1000)
        if on_curve(x.to_bytes(32, "little"))
        and not any(order_divides(k * L, x.to_bytes(32, "little")) for k in (1, 2, 4))
    )
    public = x.to_bytes(32, "little")
    assert order_divides(8 * L, public)
    for choice in (0, 1):
        replies, _ = choose(public, np.full(3, choice, np.uint8), COINS, CONTEXT)
        assert all(in_prime_subgroup(reply.tobytes()) for reply in replies)


def test_an_offer_on_the_twist_would_show_the_choices_and_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    public = (2).to_bytes(32, "little")
    choices = np.array([0, 1, 1, 0, 0, 1], np.uint8)
    with pytest.raises(CheatingDetected, match="sender's offer is no point of the curve"):
        choose(public, choices, COINS, CONTEXT)
    monkeypatch.setattr(ot, "_check_point", lambda raw, what: None)
    replies, _ = choose(public, choices, COINS, CONTEXT)
    assert [not on_curve(reply.tobytes()) for reply in replies] == choices.astype(bool).tolist()


def test_an_exponent_and_its_inverse_are_clamped_and_cancel() -> None:
    for _ in range(200):
        scalar = clamp(COINS.bytes(32))
        inverse = ot._inverse(scalar, COINS)
        assert inverse is not None
        assert clamp(inverse.to_bytes(32, "little")) == inverse
        assert scalar * inverse % L in (1, L - 1)
    signs = {
        scalar * (ot._inverse(scalar, COINS) or 0) % L
        for scalar in (clamp(COINS.bytes(32)) for _ in range(40))
    }
    assert signs == {1, L - 1}


@pytest.mark.parametrize(
    ("eighth", "exists"),
    [
        (2**251, True),
        (2**251 - 1, True),  # by its negative
        (2**251 + 1, True),
        (2**252 - 1, True),
        (2**252, False),
        (L - 1, False),
        (1, False),
        (EXCESS, False),
        (EXCESS + 1, True),
        ((L - 1) // 2, True),
        ((L + 1) // 2, True),
    ],
)
def test_an_inverse_is_missing_exactly_where_it_is_said(eighth: int, exists: bool) -> None:
    """``eighth`` is the inverse divided by 8: clamped are those of 2^251 to 2^252 - 1, and their negatives serve."""
    scalar = pow(8 * eighth, -1, L)
    inverse = ot._inverse(scalar, COINS)
    assert (inverse is not None) == exists
    if inverse is not None:
        assert clamp(inverse.to_bytes(32, "little")) == inverse
        assert scalar * inverse % L in (1, L - 1)


def test_an_exponent_without_an_inverse_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, seen = ot._inverse, []

    def missing_twice(scalar: int, coins: Coins) -> int | None:
        seen.append(scalar)
        return plain(scalar, coins) if len(seen) > 2 else None

    monkeypatch.setattr(ot, "_inverse", missing_twice)
    offered = offer(COINS)
    assert len(set(seen)) == 3
    assert offered.public == slow_x25519(seen[-1].to_bytes(32, "little"), BASE)
    replies, chosen = choose(offered.public, [True], COINS, CONTEXT)
    assert ot.keys(offered, replies, CONTEXT)[0, 1].tobytes() == chosen[0].tobytes()


def distance_from_uniform(order: int, scalars: range) -> tuple[int, int]:
    """Total variation of the pair {m, -m}, m uniform in ``scalars``, from uniform pairs, as a fraction; by counting."""
    pairs = (order - 1) // 2
    hits = dict.fromkeys(range(1, pairs + 1), 0)
    for m in scalars:
        hits[min(m, order - m)] += 1
    below = sum(max(0, len(scalars) - h * pairs) for h in hits.values())
    return below, pairs * len(scalars)


@pytest.mark.parametrize(("order", "power"), [(67, 6), (131, 7), (71, 6), (521, 9), (8209, 13)])
def test_clamped_scalars_miss_as_many_pairs_as_the_count_says(order: int, power: int) -> None:
    """The module's count, d / N, by trying all scalars of small groups of the same kind: order 2^power + d."""
    below, whole = distance_from_uniform(order, range(2 ** (power - 1), 2**power))
    assert below * ((order - 1) // 2) == (order - 2**power) * whole


def test_the_distances_that_are_stated() -> None:
    share = math.log2(EXCESS) - math.log2((L - 1) // 2)
    assert math.log2(EXCESS) < 124.4
    assert share < -126.6 and share + 1 < -125.6 and share + 1 + 7 < -118.6


@pytest.mark.parametrize("what", ["context", "index", "offer"])
def test_keys_depend_on_context_index_and_offer(what: str) -> None:
    offered = offer(COINS)
    replies, chosen = choose(offered.public, np.zeros(2, np.uint8), COINS, CONTEXT)
    context = CONTEXT
    if what == "context":
        context = b"another session"
    elif what == "index":
        replies = replies[::-1]
    else:
        offered = ot.Offer(offered.secret, offered.inverse, offer(COINS).public)
    both = ot.keys(offered, replies, context)
    assert not {key.tobytes() for key in chosen} & {key.tobytes() for key in both.reshape(-1, 16)}


def test_choices_as_booleans_and_as_octets_are_the_same() -> None:
    offered = offer(COINS)
    results = [
        choose(offered.public, choices, Coins.from_seed(b"same"), CONTEXT)
        for choices in ([True, False, True], np.array([1, 0, 1], np.uint8))
    ]
    assert all((a == b).all() for a, b in zip(*results, strict=True))


def test_no_transfers_at_all() -> None:
    _, replies, chosen, both = run(np.zeros(0, np.uint8))
    assert replies.shape == (0, 32) and chosen.shape == (0, 16) and both.shape == (0, 2, 16)


# On the curve: 0, 1 and the two of order 8; then p - 1, of order 4 on the twist, and encodings that are not canonical.
LOW_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
]
NO_HONEST_POINT = [
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0900000000000000000000000000000000000000000000000000000000000080",
    "0200000000000000000000000000000000000000000000000000000000000000",
]


@pytest.mark.parametrize("point", LOW_ORDER + NO_HONEST_POINT)
def test_hostile_points_are_refused_on_both_sides(point: str) -> None:
    raw = bytes.fromhex(point)
    if point in LOW_ORDER:
        assert order_divides(8, raw) and on_curve(raw)
    said = "low order" if point in LOW_ORDER else "no point of the curve|below 2\\^255"
    with pytest.raises(CheatingDetected, match=f"the sender's offer.*({said})"):
        choose(raw, np.zeros(2, np.uint8), COINS, CONTEXT)
    offered, replies, _, _ = run(np.zeros(3, np.uint8))
    replies[1] = np.frombuffer(raw, np.uint8)
    with pytest.raises(CheatingDetected, match=f"the receiver's reply 1.*({said})"):
        ot.keys(offered, replies, CONTEXT)


def test_points_of_another_length_are_refused() -> None:
    for size in (0, 31, 33):
        with pytest.raises(WireError, match=f"32 bytes expected, got {size}"):
            choose(bytes(size), np.zeros(1, np.uint8), COINS, CONTEXT)
    offered = offer(COINS)
    wrong = (np.zeros((2, 31), np.uint8), np.zeros(32, np.uint8), np.zeros((2, 32), np.int8))
    for replies in wrong:
        with pytest.raises(WireError, match=r"uint8 \(n, 32\) expected"):
            ot.keys(offered, replies, CONTEXT)


@pytest.mark.parametrize(
    "choices", [np.array([0, 2], np.uint8), np.zeros((2, 2), np.uint8), [0, 1]]
)
def test_choices_that_are_no_bits_are_refused(choices: Octets) -> None:
    with pytest.raises(ConfigError, match=r"0 or 1|bool or uint8"):
        choose(offer(COINS).public, choices, COINS, CONTEXT)


# --- a slow extension


def slow_stream(key: bytes, first_block: int, words: int) -> int:
    """AES-CTR from single blocks, as one little-endian integer."""
    ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    blocks = range(first_block, first_block + -(-words // 2))
    raw = b"".join(ecb.update(block.to_bytes(16, "big")) for block in blocks)
    return int.from_bytes(raw[: 8 * words], "little")


def slow_transpose(columns: list[int], count: int) -> list[int]:
    """Row j has as bit i the bit j of column i: as text, the first bit first."""
    texts = [format(column, f"0{count}b")[::-1] for column in columns] if count else []
    return [int("".join(bits)[::-1], 2) for bits in zip(*texts, strict=True)]


def integers(blocks: Blocks) -> list[int]:
    return [int(low) | int(high) << 64 for low, high in blocks]


def column_integers(columns: Blocks) -> list[int]:
    return [int.from_bytes(column.astype("<u8").tobytes(), "little") for column in columns]


def slow_receive(
    pairs: Octets, first_block: int, choices: int, words: int
) -> tuple[list[int], list[int]]:
    """Ishai et al. 2003, section 3: the columns u and the rows t."""
    u, kept = [], []
    for zero, one in pairs:
        kept.append(slow_stream(zero.tobytes(), first_block, words))
        u.append(kept[-1] ^ slow_stream(one.tobytes(), first_block, words) ^ choices)
    return u, slow_transpose(kept, 64 * words)


def slow_send(keys: Octets, delta: int, first_block: int, u: list[int], words: int) -> list[int]:
    columns = [
        slow_stream(key.tobytes(), first_block, words) ^ (sent if delta >> i & 1 else 0)
        for i, (key, sent) in enumerate(zip(keys, u, strict=True))
    ]
    return slow_transpose(columns, 64 * words)


def session(coins: Coins = COINS) -> tuple[Octets, Blocks, Octets]:
    """Keys of 128 base transfers: both, delta, and those that delta chose."""
    pairs = coins.uint64((128, 2, 2)).view(np.uint8).reshape(128, 2, 16)
    delta = delta_of(coins)
    return pairs, delta, pairs[np.arange(128), unpack_plane(delta, 128)]


def check_against_the_slow_one(calls: list[int]) -> None:
    """Several calls, one after the other, of so many words each."""
    pairs, delta, chosen = session()
    receiver, sender = ExtensionReceiver(pairs), ExtensionSender(delta, chosen)
    (offset,) = integers(delta[None])
    block = 0
    for words in calls:
        choices = COINS.uint64(words)
        u, t = receiver.extend(choices)
        q = sender.extend(u)
        r = column_integers(choices[None])[0]
        slow_u, slow_t = slow_receive(pairs, block, r, words)
        assert column_integers(u) == slow_u
        assert integers(t) == slow_t
        assert integers(q) == slow_send(chosen, offset, block, slow_u, words)
        block += -(-words // 2)


def check_correlation(words: int) -> None:
    """q = t ^ r * delta in every row, with base transfers by X25519."""
    delta = delta_of(COINS)
    offered = offer(COINS)
    replies, chosen = choose(offered.public, unpack_plane(delta, 128), COINS, CONTEXT)
    receiver = ExtensionReceiver(ot.keys(offered, replies, CONTEXT))
    sender = ExtensionSender(delta, chosen)
    for _ in range(2):
        choices = COINS.uint64(words)
        u, t = receiver.extend(choices)
        q = sender.extend(u, words=words)
        r = unpack_plane(choices, 64 * words).astype(np.uint64)
        assert 0 < r.sum() < len(r)
        assert (q == t ^ (np.uint64(0) - r)[:, None] & delta).all()
        low = (q ^ t)[:, 0] & np.uint64(1)
        assert (low == r).all(), "the lowest bit of delta is one"


def check_fresh_streams() -> None:
    """No two calls use the same range: otherwise u ^ u' gives r ^ r' away."""
    pairs, _, _ = session()
    receiver = ExtensionReceiver(pairs)
    zeros = np.zeros(4, np.uint64)
    sent = [receiver.extend(zeros)[0].reshape(128, 2, 2) for _ in range(3)]
    ranges = {part[:, i].tobytes() for part in sent for i in range(2)}
    assert len(ranges) == 6


def test_extension_is_the_slow_one_bit_by_bit(kernel: str) -> None:
    check_against_the_slow_one([1, 2, 3, 0, 5, 1, 4])


def test_extension_passes_the_borders_of_chunks_as_the_slow_one(kernel: str) -> None:
    check_against_the_slow_one([513, 1])


@pytest.mark.parametrize("words", [1, 2, 7, 300, 1027])
def test_rows_correlate_by_delta(kernel: str, words: int) -> None:
    check_correlation(words)


def test_no_stream_is_used_twice(kernel: str) -> None:
    check_fresh_streams()


def test_nothing_extended_is_nothing(kernel: str) -> None:
    pairs, delta, chosen = session()
    u, t = ExtensionReceiver(pairs).extend(np.zeros(0, np.uint64))
    assert u.shape == (128, 0) and t.shape == (0, 2)
    assert ExtensionSender(delta, chosen).extend(u).shape == (0, 2)


def test_a_session_may_change_between_c_and_numpy(
    built: kernels.Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, delta, chosen = session()
    receiver, sender = ExtensionReceiver(pairs), ExtensionSender(delta, chosen)
    for call in range(6):
        monkeypatch.setenv("TACIT_NATIVE", "01"[call // 2 % 2])
        choices = COINS.uint64(3)
        u, t = receiver.extend(choices)
        monkeypatch.setenv("TACIT_NATIVE", "01"[call % 2])
        r = unpack_plane(choices, 192).astype(np.uint64)
        assert (sender.extend(u) == t ^ (np.uint64(0) - r)[:, None] & delta).all()


WORDS = st.one_of(st.integers(0, 12), st.sampled_from([255, 256, 257, 511, 512, 513, 1025]))


@steady
@given(WORDS, st.sampled_from([0, 1, 2**27 - 1, 2**32 - 2, 2**40]))
def test_c_and_numpy_agree_in_every_bit(built: kernels.Native, words: int, first: int) -> None:
    pairs, delta, chosen = session()
    choices = COINS.uint64(words)
    aes, level = built.lib.tacit_masks_level(), built.lib.tacit_bits_level()
    if not aes:
        pytest.skip("this processor has no AES instructions")
    received, sent = set(), set()
    for levels in [None, *((a, b) for a in range(1, aes + 1) for b in (0, level))]:
        u, rows = np.full((128, words), 7, np.uint64), np.full((64 * words, 2), 7, np.uint64)
        if levels is None:
            ot._receive_numpy(ot._Streams(pairs), first, choices, u, rows)
        else:
            ot._receive_native(built, levels, pairs, first, choices, u, rows)
        received.add(u.tobytes() + rows.tobytes())
        if levels is None:
            ot._send_numpy(ot._Streams(chosen), first, delta, u, rows)
        else:
            ot._send_native(built, levels, chosen, first, delta, u, rows)
        sent.add(rows.tobytes())
    assert len(received) == len(sent) == 1


def test_nothing_beyond_the_result_is_written(built: kernels.Native) -> None:
    levels = built.lib.tacit_masks_level(), built.lib.tacit_bits_level()
    if not levels[0]:
        pytest.skip("this processor has no AES instructions")
    pairs, delta, chosen = session()
    for words in (1, 2, 5, 8, 255, 257):
        u, rows = np.full((130, words), 7, np.uint64), np.full((64 * words + 128, 2), 7, np.uint64)
        inner, between = u[1:-1], rows[64:-64]
        ot._receive_native(built, levels, pairs, 0, COINS.uint64(words), inner, between)
        assert (u[0] == 7).all() and (u[-1] == 7).all() and (inner != 7).all()
        assert (rows[:64] == 7).all() and (rows[-64:] == 7).all() and (between != 7).all()
        between[...] = 7
        ot._send_native(built, levels, chosen, 0, delta, inner, between)
        assert (rows[:64] == 7).all() and (rows[-64:] == 7).all() and (between != 7).all()


def test_levels_that_the_processor_lacks_are_refused_and_change_nothing(
    built: kernels.Native,
) -> None:
    pairs, delta, chosen = session()
    aes, level = built.lib.tacit_masks_level(), built.lib.tacit_bits_level()
    for levels in [(0, 0), (-1, 0), (aes + 1, 0), (aes, level + 1), (aes, -1)]:
        u, rows = np.full((128, 2), 7, np.uint64), np.full((128, 2), 7, np.uint64)
        with pytest.raises(ConfigError, match="no instructions of levels"):
            ot._receive_native(built, levels, pairs, 0, np.zeros(2, np.uint64), u, rows)
        with pytest.raises(ConfigError, match="no instructions of levels"):
            ot._send_native(built, levels, chosen, 0, delta, u, rows)
        assert (u == 7).all() and (rows == 7).all()


@pytest.mark.parametrize("chosen", ["C", "numpy", "no AES instructions"])
def test_the_public_classes_take_what_there_is(
    chosen: str, built: kernels.Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    for name in ("_receive_native", "_send_native", "_receive_numpy", "_send_numpy"):
        plain = getattr(ot, name)
        monkeypatch.setattr(ot, name, lambda *a, f=plain, n=name: (used.append(n), f(*a)))
    if chosen == "no AES instructions":

        class Lib:
            @staticmethod
            def tacit_masks_level() -> int:
                return 0

        monkeypatch.setattr(ot, "native", lambda: kernels.Native(Lib, None))
    else:
        monkeypatch.setenv("TACIT_NATIVE", "1" if chosen == "C" else "0")
    if chosen == "C" and not built.lib.tacit_masks_level():
        pytest.skip("this processor has no AES instructions")
    check_correlation(3)
    kind = "native" if chosen == "C" else "numpy"
    assert used == [f"_receive_{kind}", f"_send_{kind}"] * 2


# --- random keys


def slow_hash(key: bytes, block: int, tweak: int) -> int:
    """TMMO: pi(pi(x) ^ i) ^ pi(x)."""
    ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    once = ecb.update(block.to_bytes(16, "little"))
    mixed = int.from_bytes(once, "little") ^ tweak
    twice = ecb.update(mixed.to_bytes(16, "little"))
    return int.from_bytes(twice, "little") ^ int.from_bytes(once, "little")


def check_random_keys(words: int, first: int) -> None:
    pairs, delta, chosen = session()
    key, choices = COINS.bytes(16), COINS.uint64(words)
    u, t = ExtensionReceiver(pairs).extend(choices)
    q = ExtensionSender(delta, chosen).extend(u)
    both = random_keys_sender(q, delta, key, first)
    own = random_keys_receiver(t, key, first)
    count = 64 * words
    assert both.shape == (count, 2, 2) and own.shape == (count, 2)
    r, place = unpack_plane(choices, count), np.arange(count)
    assert (both[place, r] == own).all()
    assert not (both[place, 1 - r] == own).all(axis=1).any()
    assert len({block.tobytes() for block in both.reshape(-1, 2)}) == 2 * count
    (offset,) = integers(delta[None])
    for j in (0, 1, count // 2, count - 1):
        (row,) = integers(q[j : j + 1])
        expected = [slow_hash(key, row ^ x, first + j) for x in (0, offset)]
        assert integers(both[j]) == expected


def check_tweaks() -> None:
    """Equal rows give other keys at other places."""
    rows = np.broadcast_to(COINS.uint64(2), (50, 2)).copy()
    delta, key = delta_of(COINS), COINS.bytes(16)
    for blocks in (
        random_keys_receiver(rows, key, 5),
        random_keys_sender(rows, delta, key, 5).reshape(-1, 2),
    ):
        assert len({block.tobytes() for block in blocks}) == len(blocks)


@pytest.mark.parametrize("words", [1, 3, 129])
def test_random_keys_are_right_and_never_equal(kernel: str, words: int) -> None:
    check_random_keys(words, 0)
    check_random_keys(words, 12_345)


def test_each_transfer_has_a_tweak_of_its_own(kernel: str) -> None:
    check_tweaks()


def test_no_rows_give_no_keys() -> None:
    none = np.zeros((0, 2), np.uint64)
    assert random_keys_sender(none, delta_of(COINS), bytes(16), 0).shape == (0, 2, 2)
    assert random_keys_receiver(none, bytes(16), 0).shape == (0, 2)


# --- what the extension's sender sees


def deviations(choices: Blocks, sessions: int, *, broken: bool = False) -> npt.NDArray[np.float64]:
    """How far the ones in what the sender sees of u are from half, in standard deviations: of each column, and of all.

    What it sees: u, and u without the streams that it knows.
    """
    words = len(choices)
    ones = np.zeros((2, 128))
    for _ in range(sessions):
        pairs, _, chosen = session()
        if broken:
            pairs = np.stack([chosen, chosen], axis=1)
        u, _ = ExtensionReceiver(pairs).extend(choices)
        known = np.array(
            [
                np.frombuffer(
                    slow_stream(key.tobytes(), 0, words).to_bytes(8 * words, "little"), "<u8"
                )
                for key in chosen
            ]
        )
        for view, seen in enumerate((u, u ^ known)):
            ones[view] += unpack_plane(seen, 64 * words).sum(axis=1)
    bits = 64 * words * sessions
    columns = (ones - bits / 2) / math.sqrt(bits / 4)
    whole = (ones.sum(axis=1) - 64 * bits) / math.sqrt(32 * bits)
    return np.concatenate([columns.ravel(), whole])


@pytest.mark.parametrize("word", [0, 2**64 - 1, 0x5555555555555555])
def test_what_the_sender_sees_does_not_depend_on_the_choices(word: int) -> None:
    """258 counts of fair coins, none beyond 5.5 deviations: a false alarm in 100,000 runs, and none under these coins."""
    choices = np.full(2, word, np.uint64)
    assert np.abs(deviations(choices, 30)).max() < 5.5


def test_the_test_above_finds_a_message_that_is_not_masked() -> None:
    choices = np.full(2, 2**64 - 1, np.uint64)
    assert np.abs(deviations(choices, 30, broken=True)).max() > 50


def test_messages_of_any_choices_have_one_size() -> None:
    sizes = set()
    for word in (0, 2**64 - 1):
        pairs, _, _ = session()
        u, _ = ExtensionReceiver(pairs).extend(np.full(3, word, np.uint64))
        replies, _ = choose(offer(COINS).public, np.full(9, word & 1, np.uint8), COINS, CONTEXT)
        sizes.add((u.nbytes, replies.nbytes))
    assert sizes == {(128 * 3 * 8, 9 * 32)}


# --- mutants: what is broken on purpose is found


@pytest.fixture
def mutant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = str(request.param)
    start, take, hashed = ot._Streams.__init__, ot._Streams.take, ot.hash_blocks
    begin = ExtensionSender.__init__
    if name == "another delta":
        monkeypatch.setattr(
            ExtensionSender,
            "__init__",
            lambda self, delta, keys: begin(self, delta ^ np.array([0, 2], np.uint64), keys),
        )
    elif name == "short seeds":
        short = np.array([255] * 4 + [0] * 12, np.uint8)
        monkeypatch.setattr(ot._Streams, "__init__", lambda self, keys: start(self, keys & short))
    elif name == "streams from the start":

        def again(self: ot._Streams, words: int) -> int:
            self._place = 0
            return take(self, words)

        monkeypatch.setattr(ot._Streams, "take", again)
    elif name == "ranges that overlap":

        def half(self: ot._Streams, words: int) -> int:
            first = take(self, words)
            self._place -= -(-words // 2) // 2
            return first

        monkeypatch.setattr(ot._Streams, "take", half)
    elif name == "no tweak":
        monkeypatch.setattr(
            ot, "hash_blocks", lambda key, blocks, first: _each(hashed, key, blocks)
        )
    elif name == "no hash":
        monkeypatch.setattr(ot, "hash_blocks", lambda key, blocks, first: blocks)
    yield name


def _each(hashed: object, key: bytes, blocks: Blocks) -> Blocks:
    return np.concatenate([hashed(key, blocks[i : i + 1], 0) for i in range(len(blocks))])  # type: ignore[operator]


@pytest.mark.parametrize(
    "mutant",
    ["another delta", "short seeds", "streams from the start", "ranges that overlap"],
    indirect=True,
)
def test_a_broken_extension_is_not_the_slow_one(mutant: str, kernel: str) -> None:
    with pytest.raises(AssertionError):
        check_against_the_slow_one([4, 4, 4])


@pytest.mark.parametrize("mutant", ["another delta"], indirect=True)
def test_another_delta_does_not_correlate(mutant: str, kernel: str) -> None:
    with pytest.raises(AssertionError):
        check_correlation(4)


@pytest.mark.parametrize("mutant", ["streams from the start", "ranges that overlap"], indirect=True)
def test_streams_that_are_used_twice_are_found(mutant: str, kernel: str) -> None:
    with pytest.raises(AssertionError):
        check_fresh_streams()


@pytest.mark.parametrize("mutant", ["no tweak", "no hash"], indirect=True)
def test_keys_without_a_tweak_or_a_hash_are_found(mutant: str) -> None:
    with pytest.raises(AssertionError):
        check_tweaks()
    with pytest.raises(AssertionError):
        check_random_keys(2, 3)


def test_a_receiver_that_mixes_choices_learns_a_bit_of_delta_as_is_said() -> None:
    """The sender's **Leaks**: one column with other choices, and the row differs by what delta has there."""
    pairs, delta, chosen = session()
    u, t = ExtensionReceiver(pairs).extend(np.zeros(1, np.uint64))
    for column in (1, 70, 100):
        sender = ExtensionSender(delta, chosen)
        bent = u.copy()
        bent[column, 0] ^= np.uint64(1)
        (difference,) = integers((sender.extend(bent) ^ t)[:1])
        (offset,) = integers(delta[None])
        assert difference == offset & 1 << column


# --- state and secrets


def test_delta_has_a_one_as_its_lowest_bit_and_is_random_elsewhere() -> None:
    drawn = np.array([delta_of(COINS) for _ in range(200)])
    ones = unpack_plane(drawn, 128).sum(axis=0)
    assert ones[0] == 200
    assert (np.abs(ones[1:] - 100.0) < 5.5 * math.sqrt(50)).all()


def test_delta_chooses_in_the_base_transfers_by_its_bits() -> None:
    delta = delta_of(COINS)
    (offset,) = integers(delta[None])
    choices = unpack_plane(delta, 128)
    assert choices.tolist() == [offset >> i & 1 for i in range(128)]
    assert (pack_plane(choices) == delta).all()


def test_neither_end_can_be_copied_or_serialised() -> None:
    pairs, delta, chosen = session()
    for end in (ExtensionReceiver(pairs), ExtensionSender(delta, chosen), ot._Streams(chosen)):
        for attempt in (
            copy.copy,
            copy.deepcopy,
            lambda e: e.__reduce__(),
            lambda e: e.__reduce_ex__(2),
        ):
            with pytest.raises(TypeError, match="run the base transfers anew"):
                attempt(end)


def test_no_repr_shows_a_secret() -> None:
    pairs, delta, chosen = session()
    receiver = ExtensionReceiver(pairs)
    receiver.extend(np.zeros(3, np.uint64))
    assert repr(receiver) == "ExtensionReceiver(used=256)"
    assert repr(ExtensionSender(delta, chosen)) == "ExtensionSender(used=0)"
    offered = offer(COINS)
    assert repr(offered) == f"Offer(public={offered.public.hex()[:8]}...)"


def test_what_is_given_may_be_overwritten_afterwards() -> None:
    pairs, delta, chosen = session()
    receiver, sender = ExtensionReceiver(pairs), ExtensionSender(delta, chosen)
    offset = delta.copy()
    for array in (pairs, delta, chosen):
        array[...] = 0
    choices = COINS.uint64(2)
    u, t = receiver.extend(choices)
    r = unpack_plane(choices, 128).astype(np.uint64)
    assert (sender.extend(u) == t ^ (np.uint64(0) - r)[:, None] & offset).all()


def test_threads_never_get_the_same_range(kernel: str) -> None:
    pairs, _, _ = session()
    receiver = ExtensionReceiver(pairs)
    with ThreadPoolExecutor(4) as pool:
        sent = list(pool.map(lambda _: receiver.extend(np.zeros(2, np.uint64))[0], range(40)))
    assert len({u.tobytes() for u in sent}) == 40
    assert repr(receiver) == f"ExtensionReceiver(used={40 * 128})"


def test_a_call_waits_for_the_one_before(kernel: str) -> None:
    pairs, delta, chosen = session()
    receiver, sender = ExtensionReceiver(pairs), ExtensionSender(delta, chosen)
    u, zeros = np.zeros((128, 2), np.uint64), np.zeros(2, np.uint64)
    for end, call in (
        (receiver, lambda: receiver.extend(zeros)),
        (sender, lambda: sender.extend(u)),
    ):
        with ThreadPoolExecutor(1) as pool:
            with end._streams.lock:
                late = pool.submit(call)
                with pytest.raises(TimeoutError):
                    late.result(0.05)
                assert end._streams.used == 0
            late.result(10)
        assert end._streams.used == 128


def test_numpy_makes_its_ciphers_once_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACIT_NATIVE", "0")
    made = []
    monkeypatch.setattr(ot, "Cipher", lambda *a: (made.append(1), Cipher(*a))[1])
    pairs, _, _ = session()
    receiver = ExtensionReceiver(pairs)
    for words in (1, 2, 600, 3):
        receiver.extend(np.zeros(words, np.uint64))
    assert len(made) == 256


def test_a_forked_process_cannot_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, delta, chosen = session()
    receiver, sender = ExtensionReceiver(pairs), ExtensionSender(delta, chosen)
    u, _ = receiver.extend(np.zeros(1, np.uint64))
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    with pytest.raises(ConfigError, match="another process"):
        receiver.extend(np.zeros(1, np.uint64))
    with pytest.raises(ConfigError, match="another process"):
        sender.extend(u)


def test_the_limit_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, delta, chosen = session()
    monkeypatch.setattr(ot, "LIMIT", 1024)
    receiver, sender = ExtensionReceiver(pairs), ExtensionSender(delta, chosen)
    u, _ = receiver.extend(np.zeros(14, np.uint64))
    sender.extend(u)
    for extend, more in ((receiver.extend, np.zeros(3, np.uint64)), (sender.extend, u)):
        with pytest.raises(ConfigError, match=r"896 transfers .* limit of 1024"):
            extend(more)
    u, _ = receiver.extend(np.zeros(2, np.uint64))
    assert len(sender.extend(u)) == 128
    with pytest.raises(ConfigError, match="1024 transfers"):
        receiver.extend(np.zeros(1, np.uint64))


# --- what is refused


@pytest.mark.parametrize(
    "u",
    [
        np.zeros((127, 2), np.uint64),
        np.zeros((2, 128), np.uint64),
        np.zeros(256, np.uint64),
        np.zeros((128, 2, 1), np.uint64),
        np.zeros((128, 2), np.int64),
        np.zeros((128, 2), np.uint32),
        np.zeros((128, 2), ">u8"),
        np.zeros((128, 2)),
        np.zeros((128, 3), np.uint64),
        np.zeros((128, 1), np.uint64),
    ],
)
def test_a_hostile_u_is_refused_and_moves_nothing(u: Blocks) -> None:
    pairs, delta, chosen = session()
    sender = ExtensionSender(delta, chosen)
    with pytest.raises(WireError, match=r"u as uint64 \(128, 2\) expected, got") as caught:
        sender.extend(u, words=2)
    assert isinstance(caught.value, ProtocolError)
    choices = COINS.uint64(2)
    good, t = ExtensionReceiver(pairs).extend(choices)
    r = unpack_plane(choices, 128).astype(np.uint64)
    assert (sender.extend(good, words=2) == t ^ (np.uint64(0) - r)[:, None] & delta).all()


def test_a_u_that_is_not_contiguous_counts_as_it_reads(kernel: str) -> None:
    pairs, delta, chosen = session()
    choices = COINS.uint64(10)[::2]
    u, t = ExtensionReceiver(pairs).extend(choices)
    wide = np.zeros((128, 10), np.uint64)
    wide[:, ::2] = u
    r = unpack_plane(choices, 320).astype(np.uint64)
    q = ExtensionSender(delta, chosen).extend(wide[:, ::2])
    assert (q == t ^ (np.uint64(0) - r)[:, None] & delta).all()


def test_what_this_side_gives_wrong_is_refused() -> None:
    pairs, delta, chosen = session()
    even = delta ^ np.array([1, 0], np.uint64)
    receiver, rows = ExtensionReceiver(pairs), np.zeros((3, 2), np.uint64)
    for call, said in [
        (lambda: ExtensionReceiver(chosen), r"uint8 \(128, 2, 16\) expected"),
        (lambda: ExtensionReceiver(pairs.view(np.int8)), "got int8"),
        (lambda: ExtensionSender(delta, pairs), r"uint8 \(128, 16\) expected"),
        (lambda: ExtensionSender(delta, chosen[:127]), r"got uint8 \(127, 16\)"),
        (lambda: ExtensionSender(delta[:1], chosen), r"delta as uint64 \(2,\)"),
        (lambda: ExtensionSender(delta.view(np.int64), chosen), "got int64"),
        (lambda: ExtensionSender(even, chosen), "lowest bit of delta must be 1"),
        (lambda: receiver.extend(np.zeros(2, np.uint8)), r"uint64 \(words,\) expected"),
        (lambda: receiver.extend(np.zeros((2, 2), np.uint64)), r"got uint64 \(2, 2\)"),
        (lambda: random_keys_sender(rows[:, :1], delta, bytes(16), 0), r"uint64 \(n, 2\)"),
        (lambda: random_keys_sender(rows, even, bytes(16), 0), "lowest bit"),
        (lambda: random_keys_receiver(rows.ravel(), bytes(16), 0), r"uint64 \(n, 2\)"),
        (lambda: random_keys_receiver(rows.astype(np.uint32), bytes(16), 0), "got uint32"),
        (lambda: random_keys_receiver(rows, bytes(15), 0), "16"),
    ]:
        with pytest.raises(ConfigError, match=said):
            call()
