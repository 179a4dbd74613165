"""Oblivious transfers between two parties, in both directions, as many as a session needs; semi-honest.

At the start the parties run 128 base transfers in each direction. From then on a transfer costs its receiver 16 bytes and
some AES. In each direction the sender holds one secret block delta for the whole session; row j of an extension is q_j for
the sender and ``q_j ^ choice_j * delta`` for the receiver: labels of a garbled circuit as they are, keys of independent
transfers when hashed.

`correlated_sums` is Gilboa's multiplication: one party's bits choose between nothing and the other party's numbers, and
each ends with a share of what was chosen. Of the numbers that bit b of a factor chooses only the low ``bits - b`` matter,
and they travel packed into so many bits each (SecureML, section 4.1.2, packs them in the same way).

Source: `tacit.crypto.ot`; Gilboa, "Two Party RSA Key Generation" (CRYPTO 1999), section 4.1; Mohassel and Zhang, "SecureML"
(IEEE S&P 2017), section 4.1.2.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tacit.core.coins import Coins
from tacit.crypto.bits import pack_plane, slice_bits, unpack_plane, words_of
from tacit.crypto.circuits import Planes
from tacit.crypto.garbled import colours
from tacit.crypto.hashing import KEY_BYTES, Blocks, hash_blocks, hash_expand
from tacit.crypto.ot import (
    ExtensionReceiver,
    ExtensionSender,
    choose,
    delta_of,
    keys,
    offer,
)
from tacit.crypto.packing import pack, packed_bytes, unpack
from tacit.crypto.ring import Elements, Ring
from tacit.parties.two_party.session import OFFLINE, Expected, Session, Wire
from tacit.parties.two_party.store import check_process

BASE = 128
_BATCH = 1 << 18  # transfers in one extension: 4 MB of u
_NUMBERS = 1 << 21  # numbers of one plane that are masked at a time


@dataclass(slots=True, repr=False)
class Transfers:
    """A party's side of all transfers of a session; made by `begin`.

    Args:
        wire: to the other party.
        party: 0 or 1.
        delta: of the direction in which this party sends.
        sender: of that direction.
        receiver: of the other.
        hash_keys: public keys of the hash, of the direction in which party 0 sends and of the other.
    """

    wire: Wire
    party: int
    delta: Blocks
    sender: ExtensionSender
    receiver: ExtensionReceiver
    hash_keys: tuple[bytes, bytes]
    _hashed: list[int] = field(default_factory=lambda: [0, 0])
    _process: int = field(default_factory=os.getpid)

    def __repr__(self) -> str:
        return f"Transfers(party={self.party}, {self.sender}, {self.receiver})"

    def tweaks(self, sender: int, count: int) -> int:
        """The first of so many tweaks of the hash of that direction, which nothing else gets."""
        check_process(self._process)
        first = self._hashed[sender]
        self._hashed[sender] += count
        return first

    def choose(self, tag: str, choices: Planes) -> Blocks:
        """Ask for 64 transfers a word of choices, (words,); the receiver's rows, (64 * words, 2).

        **Cost**: one message of 1024 bytes a word.
        """
        u, rows = self.receiver.extend(choices)
        self.wire.send(tag, u)
        return rows

    def offer(self, tag: str, words: int) -> Blocks:
        """Give what the other party asks for with `choose`; the sender's rows, (64 * words, 2)."""
        (u,) = self.wire.recv(tag, [Expected((BASE, words))])
        return self.sender.extend(u, words=words)


def begin(wire: Wire, party: int, coins: Coins) -> Transfers:
    """The base transfers of both directions.

    **Leaks**: nothing, to who follows the protocol. **Cost**: 2 rounds; each way 4 kB and, for each party, 512 scalar
    multiplications on Curve25519, some 60 ms.
    """
    offered, delta = offer(coins), delta_of(coins)
    nonce = np.frombuffer(coins.bytes(32), np.uint8)
    tag = "oblivious transfer start"
    theirs, other = wire.exchange(
        tag,
        (np.frombuffer(offered.public, np.uint8), nonce),
        [Expected((32,), "u1"), Expected((32,), "u1")],
    )
    nonces = (nonce, other) if party == 0 else (other, nonce)
    session = hashlib.sha256(b"".join(part.tobytes() for part in nonces)).digest()
    contexts = [session + bytes([sender]) for sender in (0, 1)]
    hash_key = coins.bytes(KEY_BYTES)
    choices = unpack_plane(delta, BASE)
    replies, chosen = choose(theirs.tobytes(), choices, coins, contexts[party])
    came, other_key = wire.exchange(
        tag,
        (replies, np.frombuffer(hash_key, np.uint8)),
        [Expected((BASE, 32), "u1"), Expected((KEY_BYTES,), "u1")],
    )
    pairs = keys(offered, came, contexts[1 - party])
    both = hash_key, other_key.tobytes()
    return Transfers(
        wire, party, delta, ExtensionSender(delta, chosen), ExtensionReceiver(pairs), both if party == 0 else both[::-1]
    )  # fmt: skip


def transfers_of(session: Session) -> Transfers:
    """The session's transfers, begun if there are none yet: both parties must ask for them at the same place."""
    if session.transfers is None:
        with session.wire.during(OFFLINE, "oblivious transfer start"):
            session.transfers = begin(session.wire, session.party, session.coins)
    return session.transfers


# --- Gilboa


@dataclass(frozen=True, slots=True)
class Sums:
    """What is to be computed: for i below m and j below n the sum over k of ``factor[i, k] * numbers[i, k, j]``.

    Args:
        chooser: the party that has the factor.
        shape: (m, k, n).
        single: the factors are bits, not ring elements.
        same: the numbers are the same for all i, as in a product of matrices: given as (1, k, n).
    """

    chooser: int
    shape: tuple[int, int, int]
    single: bool = False
    same: bool = True

    def planes(self, ring: Ring) -> int:
        """How many bits a factor has."""
        return 1 if self.single else ring.bits


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some rows of a `Sums`: what goes through one extension."""

    of: Sums
    start: int
    stop: int

    @property
    def count(self) -> int:
        """Factors."""
        return (self.stop - self.start) * self.of.shape[1]


def _pieces(sums: Sums, ring: Ring) -> list[_Piece]:
    m, k, n = sums.shape
    rows = min(_BATCH // max(1, k * sums.planes(ring)), _NUMBERS // max(1, k * n))
    step = max(1, rows)
    return [_Piece(sums, start, min(m, start + step)) for start in range(0, m, step)]


def correlated_sums(
    transfers: Transfers, ring: Ring, sums: tuple[Sums, ...], own: tuple[Elements, ...]
) -> list[Elements]:
    """This party's shares of sums of products of one party's factors and the other's numbers.

    Args:
        transfers: the session's.
        ring: of numbers, and of factors that are no bits.
        sums: what to compute; both parties give the same.
        own: for each, this party's factors, (m, k), ring elements or single bits in uint8; or its numbers, (m or 1, k, n).

    Returns:
        For each its share of the result, (m, n).

    **Leaks**: nothing, to who follows the protocol.

    **Cost**: for each row of each factor's bit b, 16 bytes from the chooser and n numbers of ``bits - b`` bits back; two
    rounds for some hundred thousand transfers at a time, four where both directions run side by side.
    """
    out = [np.zeros((one.shape[0], one.shape[2]), ring.dtype) for one in sums]
    queues = [_pieces(one, ring) for one in sums]
    for number in range(max(map(len, queues), default=0)):
        batch = [(at, queue[number]) for at, queue in enumerate(queues) if number < len(queue)]
        asked = {
            at: _ask(transfers, ring, piece, own[at])
            for at, piece in batch
            if piece.of.chooser == transfers.party
        }
        for at, piece in batch:
            if piece.of.chooser != transfers.party:
                out[at][piece.start : piece.stop] = _answer(transfers, ring, piece, own[at])
        for at, piece in batch:
            if at in asked:
                out[at][piece.start : piece.stop] = _take(transfers, ring, piece, *asked[at])
    return out


def _ask(
    transfers: Transfers, ring: Ring, piece: _Piece, factors: Elements
) -> tuple[Planes, Blocks]:
    flat = np.ascontiguousarray(factors[piece.start : piece.stop]).reshape(-1)
    planes = pack_plane(flat)[None] if piece.of.single else slice_bits(flat)
    return planes, transfers.choose("choose", planes.reshape(-1))


def _numbers(width: int) -> np.dtype[Any]:
    """In what numbers of so many bits are computed."""
    return np.dtype(np.uint32 if width <= 32 else np.uint64)


def _masks(
    key: bytes, rows: Blocks, count: int, n: int, dtype: np.dtype[Any], first: int
) -> Elements:
    """Each row's ``n`` pseudorandom numbers, (count, n)."""
    blocks = -(-n * dtype.itemsize // 16)
    spread = hash_expand(key, rows[:count], blocks, first)
    return spread.reshape(count, -1).view(dtype)[:, :n]


def _answer(transfers: Transfers, ring: Ring, piece: _Piece, numbers: Elements) -> Elements:
    sums, sender = piece.of, transfers.party
    (_, k, n), many = sums.shape, piece.stop - piece.start
    planes = sums.planes(ring)
    words = words_of(piece.count)
    rows = transfers.offer("choose", planes * words).reshape(planes, 64 * words, 2)
    key = transfers.hash_keys[sender]
    first = transfers.tweaks(sender, planes * 64 * words)
    values = numbers if sums.same else numbers[piece.start : piece.stop]
    share = np.zeros((many, n), ring.dtype)
    packed = []
    for plane in range(planes):
        width = ring.bits - plane
        dtype = _numbers(width)
        at = first + plane * 64 * words
        zero = _masks(key, rows[plane], piece.count, n, dtype, at).reshape(many, k, n)
        one = _masks(key, rows[plane] ^ transfers.delta, piece.count, n, dtype, at)
        sent = zero + values.astype(dtype)
        sent -= one.reshape(many, k, n)
        packed.append(pack(sent.reshape(-1), width))
        total = zero.sum(axis=1, dtype=dtype).astype(ring.dtype)
        share -= total << ring.dtype.type(plane)
    transfers.wire.send("chosen", *packed)
    return share


def _take(
    transfers: Transfers, ring: Ring, piece: _Piece, choices: Planes, rows: Blocks
) -> Elements:
    sums, sender = piece.of, 1 - transfers.party
    (_, k, n), many = sums.shape, piece.stop - piece.start
    planes, words = choices.shape
    rows = rows.reshape(planes, 64 * words, 2)
    key = transfers.hash_keys[sender]
    first = transfers.tweaks(sender, planes * 64 * words)
    count = piece.count
    came = transfers.wire.recv(
        "chosen",
        [Expected((packed_bytes(count * n, ring.bits - plane),), "u1") for plane in range(planes)],
    )
    share = np.zeros((many, n), ring.dtype)
    for plane in range(planes):
        width = ring.bits - plane
        dtype = _numbers(width)
        mine = _masks(key, rows[plane], count, n, dtype, first + plane * 64 * words)
        chosen = unpack(np.ascontiguousarray(came[plane]), count * n, width, dtype)
        chosen = chosen.reshape(count, n)
        chosen *= unpack_plane(choices[plane], count).astype(dtype)[:, None]
        chosen += mine
        total = chosen.reshape(many, k, n).sum(axis=1, dtype=dtype).astype(ring.dtype)
        share += total << ring.dtype.type(plane)
    return share


# --- products of bits


def bit_products(transfers: Transfers, chooser: int, own: Planes) -> Planes:
    """This party's share of the AND of one party's bits with the other's, bit by bit.

    Args:
        transfers: the session's.
        chooser: the party whose bits choose.
        own: this party's bits, (rows, words).

    **Leaks**: nothing, to who follows the protocol. **Cost**: 2 rounds for 2^18 bits at
    a time; for each bit 16 bytes from the chooser and a bit back.
    """
    rows, words = own.shape
    key = transfers.hash_keys[1 - chooser]
    out = np.empty_like(own)
    step = max(1, _BATCH // max(1, 64 * words))
    for start in range(0, rows, step):
        part = own[start : start + step]
        shape = len(part), 64 * words, 2
        first = transfers.tweaks(1 - chooser, len(part) * 64 * words)
        if transfers.party == chooser:
            asked = transfers.choose("choose bits", part.reshape(-1))
            mine = colours(hash_blocks(key, asked, first).reshape(shape))
            (came,) = transfers.wire.recv("chosen bits", [Expected(part.shape)])
            out[start : start + step] = mine ^ (came & part)
        else:
            given = transfers.offer("choose bits", part.size)
            zero = colours(hash_blocks(key, given, first).reshape(shape))
            one = colours(hash_blocks(key, given ^ transfers.delta, first).reshape(shape))
            transfers.wire.send("chosen bits", zero ^ one ^ part)
            out[start : start + step] = zero
    return out
