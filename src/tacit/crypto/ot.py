"""Oblivious transfer: 128 base transfers from X25519, and as many more as wanted from AES. Pure computation, no messages.

A transfer gives a sender two keys and a receiver the one that it chose; the sender does not learn the choice, the receiver
nothing of the other key. All here is for **semi-honest** parties: who follows the protocol learns nothing more. What one
that does not follow it could do stands with each part.

Base transfers (`offer`, `choose`, `keys`), by exponents alone, in the group that the base point G of Curve25519 generates::

    sender    a, s with s = a^-1          A = aG                        k0 = H(aB), k1 = H(sB)
    receiver  b, choice c                 B = bG if c = 0, else bA      k_c = H(bA) if c = 0, else H(bG)

Extension (`ExtensionReceiver`, `ExtensionSender`): the roles of the base transfers turn round. The extension's sender
chooses by the bits of a secret block delta, its receiver holds both keys of each. Of row j, with choice r_j, the receiver
gets t_j and the sender q_j = t_j ^ r_j * delta. As they are, the q_j and t_j are the zero-labels and active labels of a
circuit under the free-XOR offset delta; hashed, they are keys of independent transfers (`random_keys_sender`,
`random_keys_receiver`).

**Why the receiver's choice is hidden in B.** X25519 takes scalars 8m with m in [2^251, 2^252) and works on x-coordinates,
which a point and its negative share. The group's order is the prime l = 2^252 + d with d < 2^124.4, so that x has
N = (l - 1) / 2 values apart from the neutral point's. The m are distinct modulo l. Of the N pairs {m, l - m}, (d + 1) / 2
are hit twice, by the m below l / 2; d are not hit, those of 2^252 to l - 1; and each other pair is hit once. So x(bG) is
within d / N < 2^-126.6 of uniform in total variation, x(bA) is too because a factor only permutes the pairs, and the two
choices' replies are within 2^-125.6 of each other, whatever the computing power; 128 transfers are within 2^-118.6. It holds
for every A on the curve that is not of low order: each b is a multiple of 8, which takes any cofactor part away. For an A on
the twist it would not hold, so the receiver checks A.

**Why the sender's inverse exists.** By the same count, for all a but a share of 2^-126.6 there is a clamped s with
s = a^-1 or s = -a^-1 modulo l, and the sign does not show in x. The sender redraws a where there is none.

**Why the other key is hidden.** For c = 0 it is H(b a^-1 G), for c = 1 H(b a^2 G), where the receiver knows b and aG: the
inverse and the square computational Diffie-Hellman problem, each as hard as the computational Diffie-Hellman problem (Bao,
Deng, Zhu, ICICS 2003). H is SHA-256, taken as a random oracle.

Source: RFC 7748 (X25519). The base transfers are of the family of Vitse, "Simple Oblivious Transfer Protocols Compatible
with Supersingular Isogenies" (AFRICACRYPT 2019): from Diffie-Hellman, by exponents alone, on x-coordinates. Of that paper
only the abstract of its preprint was checked, and Bao, Deng, Zhu is cited from memory; whether the protocol stands there in
exactly this form was not checked, and what is claimed here rests on the reasons above. Extension: Ishai, Kilian, Nissim,
Petrank, "Extending Oblivious Transfers Efficiently" (CRYPTO 2003), section 3, with only u sent as in Asharov, Lindell,
Schneider, Zohner, "More Efficient Oblivious Transfer and Extensions for Faster Secure Computation" (CCS 2013), protocol 4.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from tacit.core.coins import Coins
from tacit.core.errors import CheatingDetected, ConfigError, WireError
from tacit.crypto.bits import COLUMNS, rows_numpy
from tacit.crypto.hashing import hash_blocks
from tacit.crypto.kernels import Native, native

Octets = npt.NDArray[np.uint8]
Planes = npt.NDArray[np.uint64]
Blocks = npt.NDArray[np.uint64]

KEY_BYTES = 16
POINT_BYTES = 32

LIMIT = 1 << 35
"""Transfers that one set of base transfers is extended to: each column's stream is then 2^28 blocks of AES, and all 256
of them together are told from random with an advantage of at most 2^8 * 2^56 / 2^129 = 2^-65 beyond AES's own."""

_PRIME = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_EIGHTH = pow(8, -1, _ORDER)
_CHUNK = 512  # words of a column at a time in numpy: 128 columns of them are 512 kB
_ROWS = 1 << 13  # rows hashed at a time: 128 kB
_ZEROS = bytes(8 * _CHUNK)


# --- base transfers


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """The sender's exponents of one run of base transfers. Its ``repr`` shows no part of the secrets.

    Args:
        secret: a.
        inverse: the clamped s with s = a^-1 or s = -a^-1 modulo the group's order.
        public: A = aG, 32 bytes to give away.
    """

    secret: X25519PrivateKey
    inverse: X25519PrivateKey
    public: bytes

    def __repr__(self) -> str:
        return f"Offer(public={self.public.hex()[:8]}...)"


def offer(coins: Coins) -> Offer:
    """A fresh offer of the sender, for one run of base transfers.

    **Leaks**: through time, how often a was redrawn (never, but with probability 2^-126), which says nothing of the a
    that is kept. The inversion works on a times a fresh uniform factor, and no branch is taken on a; the few products
    around it are Python's, whose integers are not made for constant time.
    """
    while True:
        scalar = bytearray(coins.bytes(32))
        scalar[0] &= 248
        scalar[31] = scalar[31] & 127 | 64
        inverse = _inverse(int.from_bytes(scalar, "little"), coins)
        if inverse is not None:
            secret = X25519PrivateKey.from_private_bytes(bytes(scalar))
            return Offer(
                secret,
                X25519PrivateKey.from_private_bytes(inverse.to_bytes(32, "little")),
                secret.public_key().public_bytes_raw(),
            )


def choose(
    public: bytes, choices: Sequence[bool] | Octets, coins: Coins, context: bytes
) -> tuple[Octets, Octets]:
    """The receiver's replies to an offer, and the keys that it chose.

    Args:
        public: the sender's A.
        choices: n bits; as an array uint8 (n,), each 0 or 1.
        coins: for one exponent each.
        context: names this run (session, which base transfers); must be equal at both ends.

    Returns:
        replies uint8 (n, 32), to send; keys uint8 (n, 16), to keep.

    Raises:
        ConfigError: the choices are no bits.
        WireError: ``public`` has another length.
        CheatingDetected: ``public`` is no point of the curve, or one of low order.

    **Guarantee**: the replies hide the choices from any computing power up to 2^-125.6 for each, even if A was not made
    as it should be; no branch or address depends on a choice.

    **Leaks**: how many choices there are. A sender that does not follow the protocol can make one of a pair of keys
    useless and learn the choice from whether the receiver then fails.

    **Cost**: 32 bytes and two scalar multiplications for each choice.
    """
    picked = np.asarray(choices)
    if picked.ndim != 1 or picked.dtype not in (np.bool_, np.uint8):
        raise ConfigError(
            f"choices as bool or uint8 (n,) expected, got {picked.dtype} {picked.shape}"
        )
    if bool((picked > 1).any()):
        raise ConfigError("each choice must be 0 or 1")
    _check_point(public, "the sender's offer")
    point = X25519PublicKey.from_public_bytes(public)
    scalars = coins.bytes(32 * len(picked))
    both = np.empty((len(picked), 2, POINT_BYTES), np.uint8)
    try:
        for i in range(len(picked)):
            exponent = X25519PrivateKey.from_private_bytes(scalars[32 * i : 32 * (i + 1)])
            both[i, 0] = np.frombuffer(exponent.public_key().public_bytes_raw(), np.uint8)
            both[i, 1] = np.frombuffer(exponent.exchange(point), np.uint8)
    except ValueError:
        raise CheatingDetected("the sender's offer is a point of low order") from None
    swap = (both[:, 0] ^ both[:, 1]) & (np.uint8(0) - picked.astype(np.uint8))[:, None]
    replies, shared = both[:, 0] ^ swap, both[:, 1] ^ swap
    return replies, _derive(context, public, replies, shared)


def keys(offered: Offer, replies: Octets, context: bytes) -> Octets:
    """Both keys of each transfer, for the sender: uint8 (n, 2, 16).

    Args:
        offered: what `offer` gave.
        replies: uint8 (n, 32), from the receiver.
        context: what the receiver gave to `choose`.

    Raises:
        WireError: the replies have another shape or type.
        CheatingDetected: a reply is no point of the curve, or one of low order.

    **Guarantee**: who made the replies as `choose` does cannot tell the keys that it did not choose from random ones,
    under the computational Diffie-Hellman assumption in the random oracle model.

    **Leaks**: nothing of the keys. A receiver that makes its replies otherwise gets both keys of one transfer only if it
    finds a point X other than the neutral one of which it knows aX and a^2 X. No way to do so is known to us, and no proof
    that there is none is claimed.

    **Cost**: two scalar multiplications for each reply.
    """
    if replies.dtype != np.uint8 or replies.ndim != 2 or replies.shape[1] != POINT_BYTES:
        raise WireError(
            f"replies as uint8 (n, {POINT_BYTES}) expected, got {replies.dtype} {replies.shape}"
        )
    shared = np.empty((2, len(replies), POINT_BYTES), np.uint8)
    for i, reply in enumerate(replies):
        raw = reply.tobytes()
        _check_point(raw, f"the receiver's reply {i}")
        point = X25519PublicKey.from_public_bytes(raw)
        try:
            shared[0, i] = np.frombuffer(offered.secret.exchange(point), np.uint8)
            shared[1, i] = np.frombuffer(offered.inverse.exchange(point), np.uint8)
        except ValueError:
            raise CheatingDetected(f"the receiver's reply {i} is a point of low order") from None
    pair = [_derive(context, offered.public, replies, half) for half in shared]
    return np.stack(pair, axis=1)


def _inverse(scalar: int, coins: Coins) -> int | None:
    """The clamped scalar that is +-1 / scalar modulo the order; None if there is none."""
    blind = 1 + int.from_bytes(coins.bytes(48), "little") % (_ORDER - 1)
    inverse = pow(scalar * blind % _ORDER, -1, _ORDER) * blind % _ORDER
    eighth = inverse * _EIGHTH % _ORDER
    below = ((eighth >> 251) - 1) >> 1  # -1 where it is below 2^251, else 0
    eighth ^= (eighth ^ (_ORDER - eighth)) & below
    return 8 * eighth if eighth >> 251 == 1 else None


def _check_point(raw: bytes, what: str) -> None:
    """Refuse what no honest scalar multiplication gives; points of low order are left to X25519. All here is public."""
    if len(raw) != POINT_BYTES:
        raise WireError(f"{what}: a point of {POINT_BYTES} bytes expected, got {len(raw)}")
    x = int.from_bytes(raw, "little")
    if x >= _PRIME:
        raise CheatingDetected(f"{what} is not a coordinate below 2^255 - 19")
    square = x * (x * (x + 486662) + 1) % _PRIME
    if x and pow(square, (_PRIME - 1) // 2, _PRIME) != 1:
        raise CheatingDetected(f"{what} is no point of the curve")


def _derive(context: bytes, public: bytes, replies: Octets, shared: Octets) -> Octets:
    start = hashlib.sha256(b"tacit/ot/base/1\x00" + len(context).to_bytes(8, "little"))
    start.update(context)
    start.update(public)
    out = np.empty((len(replies), KEY_BYTES), np.uint8)
    for i in range(len(replies)):
        state = start.copy()
        state.update(i.to_bytes(8, "little") + replies[i].tobytes() + shared[i].tobytes())
        out[i] = np.frombuffer(state.digest()[:KEY_BYTES], np.uint8)
    return out


# --- extension


def delta_of(coins: Coins) -> Blocks:
    """A secret block for the extension's sender, uint64 (2,): 127 uniform bits, and a one as the lowest.

    The lowest bit lets it serve as the free-XOR offset of garbled circuits: the two labels of a wire then differ in their
    lowest bits. ``unpack_plane(delta, 128)`` are the sender's choices in the base transfers.
    """
    delta = coins.uint64(2)
    delta[0] |= np.uint64(1)
    return delta


class _Secret:
    """What must not be repeated: no copy and no pickle."""

    __slots__ = ()

    def _refuse(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be copied or serialised: a copy would use its key streams twice; "
            "after a restart run the base transfers anew"
        )

    def __copy__(self) -> NoReturn:
        self._refuse()

    def __deepcopy__(self, memo: object) -> NoReturn:
        self._refuse()

    def __reduce__(self) -> NoReturn:
        self._refuse()


class _Streams(_Secret):
    """AES-128-CTR streams, one for each key, at a common place that only goes forward. A call begins on a new block."""

    __slots__ = ("_ciphers", "_ciphers_at", "_pid", "_place", "keys", "lock")

    def __init__(self, keys: Octets) -> None:
        self.keys = np.array(keys, np.uint8, order="C").reshape(-1, KEY_BYTES)
        self.lock = threading.Lock()
        self._pid = os.getpid()
        self._place = 0
        self._ciphers: list[CipherContext] = []
        self._ciphers_at = -1

    @property
    def used(self) -> int:
        """Transfers that the streams have been used for; an odd number of words counts as one more."""
        return 128 * self._place

    def take(self, words: int) -> int:
        """The first block of a range that no other call gets."""
        if self._pid != os.getpid():
            raise ConfigError(
                "this extension was begun in another process, which may use the same key streams: "
                "run the base transfers in this one"
            )
        blocks = -(-words // 2)
        if 128 * (self._place + blocks) > LIMIT:
            raise ConfigError(
                f"{self.used} transfers were made from one set of base transfers and {64 * words} more are asked for, "
                f"which passes the limit of {LIMIT}: run new base transfers"
            )
        first = self._place
        self._place += blocks
        return first

    def fill(self, block: int, words: int, buffer: Octets) -> Planes:
        """``words`` of each stream from that block on, through a buffer of at least as many octets."""
        if self._ciphers_at != block:
            counter = modes.CTR(block.to_bytes(16, "big"))
            self._ciphers = [
                Cipher(algorithms.AES(key.tobytes()), counter).encryptor() for key in self.keys
            ]
        blocks = -(-words // 2)
        self._ciphers_at = -1  # until all of them are there
        size = 16 * blocks
        zeros, view = memoryview(_ZEROS)[:size], buffer.data
        for i, cipher in enumerate(self._ciphers):
            cipher.update_into(zeros, view[size * i : size * (i + 1)])
        self._ciphers_at = block + blocks
        streams = buffer[: size * len(self.keys)].reshape(len(self.keys), size).view("<u8")
        return streams.astype(np.uint64, copy=False)[:, :words]


class ExtensionReceiver(_Secret):
    """The side that chooses. It was the *sender* of 128 base transfers and holds both keys of each.

    One set of base transfers serves a session: the key streams go on from call to call, up to `LIMIT` transfers. The state
    cannot be exported, and a forked process cannot go on with it: after a kill, run the base transfers anew. Both ends must
    make the same calls in the same order.

    Args:
        keys: uint8 (128, 2, 16), as `keys` gives them.

    Raises:
        ConfigError: the keys have another shape or type.

    **Guarantee**: to who holds no more than one key of each pair, u is indistinguishable from uniform words, whatever the
    choices, as long as AES-128 is a pseudorandom permutation. The extension's sender sends nothing that could change that.

    **Leaks**: how many choices there are.

    **Source**: Ishai et al. 2003, section 3; Asharov et al. 2013, protocol 4.
    """

    __slots__ = ("_streams",)

    def __init__(self, keys: Octets) -> None:
        if keys.dtype != np.uint8 or keys.shape != (COLUMNS, 2, KEY_BYTES):
            raise ConfigError(
                f"keys as uint8 ({COLUMNS}, 2, {KEY_BYTES}) expected, got {keys.dtype} {keys.shape}"
            )
        self._streams = _Streams(keys)

    def extend(self, choices: Planes) -> tuple[Planes, Blocks]:
        """Choose in 64 * words transfers.

        Args:
            choices: uint64 (words,), a plane: every bit counts, also those past the last that is wanted.

        Returns:
            u uint64 (128, words), to send; rows t uint64 (64 * words, 2), to keep.

        Raises:
            ConfigError: the choices have another shape or type; the limit is reached; the process is another.

        **Cost**: 16 bytes for each transfer, in one message.
        """
        if choices.dtype != np.uint64 or choices.ndim != 1:
            raise ConfigError(
                f"choices as uint64 (words,) expected, got {choices.dtype} {choices.shape}"
            )
        choices, words = np.ascontiguousarray(choices), len(choices)
        u, rows = np.empty((COLUMNS, words), np.uint64), np.empty((64 * words, 2), np.uint64)
        loaded = native()
        aes = loaded.lib.tacit_masks_level() if loaded is not None else 0
        with self._streams.lock:
            first = self._streams.take(words)
            if loaded is not None and aes > 0:
                level = loaded.lib.tacit_bits_level()
                _receive_native(loaded, (aes, level), self._streams.keys, first, choices, u, rows)
            else:
                _receive_numpy(self._streams, first, choices, u, rows)
        return u, rows

    def __repr__(self) -> str:
        return f"ExtensionReceiver(used={self._streams.used})"


class ExtensionSender(_Secret):
    """The side that offers. It was the *receiver* of 128 base transfers and chose there by the bits of delta.

    What `ExtensionReceiver` says of sessions, restarts and processes holds here too.

    Args:
        delta: uint64 (2,), as `delta_of` gives it.
        keys: uint8 (128, 16): key i is the one that bit i of delta chose.

    Raises:
        ConfigError: delta or the keys have another shape or type, or delta's lowest bit is zero.

    **Guarantee**: who made u as `ExtensionReceiver` does learns nothing of delta, and so of each transfer has one key.

    **Leaks**: to a receiver that puts different choices into the columns of u, bits of delta, as soon as it sees what
    depends on a transfer's other key: nothing here checks u.

    **Source**: Ishai et al. 2003, section 3; Asharov et al. 2013, protocol 4.
    """

    __slots__ = ("_delta", "_streams")

    def __init__(self, delta: Blocks, keys: Octets) -> None:
        _check_delta(delta)
        if keys.dtype != np.uint8 or keys.shape != (COLUMNS, KEY_BYTES):
            raise ConfigError(
                f"keys as uint8 ({COLUMNS}, {KEY_BYTES}) expected, got {keys.dtype} {keys.shape}"
            )
        self._delta = delta.copy()
        self._streams = _Streams(keys)

    def extend(self, u: Planes, *, words: int | None = None) -> Blocks:
        """The sender's rows: q_j = t_j ^ r_j * delta, uint64 (64 * words, 2).

        Args:
            u: uint64 (128, words), from the receiver.
            words: how many this side expects; whatever came, when it is None.

        Raises:
            WireError: u has another shape or type. The streams have not moved then.
            ConfigError: the limit is reached; the process is another.
        """
        wrong = u.dtype != np.uint64 or u.ndim != 2 or len(u) != COLUMNS
        if wrong or (words is not None and u.shape[1] != words):
            width = "words" if words is None else words
            raise WireError(f"u as uint64 ({COLUMNS}, {width}) expected, got {u.dtype} {u.shape}")
        u = np.ascontiguousarray(u)
        rows = np.empty((64 * u.shape[1], 2), np.uint64)
        loaded = native()
        aes = loaded.lib.tacit_masks_level() if loaded is not None else 0
        with self._streams.lock:
            first = self._streams.take(u.shape[1])
            if loaded is not None and aes > 0:
                levels = aes, loaded.lib.tacit_bits_level()
                _send_native(loaded, levels, self._streams.keys, first, self._delta, u, rows)
            else:
                _send_numpy(self._streams, first, self._delta, u, rows)
        return rows

    def __repr__(self) -> str:
        return f"ExtensionSender(used={self._streams.used})"


def random_keys_sender(rows: Blocks, delta: Blocks, key: bytes, first: int) -> Blocks:
    """Both random keys of each transfer, for the sender: uint64 (n, 2, 2), of choice 0 and of choice 1.

    Args:
        rows: uint64 (n, 2), from `ExtensionSender.extend`.
        delta: uint64 (2,), the sender's.
        key: 16 bytes, public, fresh for the session and equal at both ends.
        first: the tweak of the first row; no tweak may serve twice under one key.

    Raises:
        ConfigError: an array has another shape or type, or the key or tweak is out of its range.

    **Guarantee**: the key that the receiver did not choose is indistinguishable from random to it, as the hash is
    correlation robust (see `tacit.crypto.hashing`).

    **Source**: Ishai et al. 2003, section 3, step 4: H(j, q_j) and H(j, q_j ^ s).
    """
    _check_rows(rows)
    _check_delta(delta)
    out = np.empty((len(rows), 2, 2), np.uint64)
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        out[start : start + _ROWS, 0] = hash_blocks(key, part, first + start)
        out[start : start + _ROWS, 1] = hash_blocks(key, part ^ delta, first + start)
    return out


def random_keys_receiver(rows: Blocks, key: bytes, first: int) -> Blocks:
    """The chosen random key of each transfer, for the receiver: uint64 (n, 2).

    Args:
        rows: uint64 (n, 2), from `ExtensionReceiver.extend`.
        key: as for `random_keys_sender`.
        first: as for `random_keys_sender`.

    Raises:
        ConfigError: the rows have another shape or type, or the key or tweak is out of its range.
    """
    _check_rows(rows)
    return hash_blocks(key, rows, first)


def _check_delta(delta: Blocks) -> None:
    if delta.dtype != np.uint64 or delta.shape != (2,):
        raise ConfigError(f"delta as uint64 (2,) expected, got {delta.dtype} {delta.shape}")
    if not int(delta[0]) & 1:
        raise ConfigError("the lowest bit of delta must be 1: draw it by delta_of")


def _check_rows(rows: Blocks) -> None:
    if rows.dtype != np.uint64 or rows.ndim != 2 or rows.shape[1] != 2:
        raise ConfigError(f"rows as uint64 (n, 2) expected, got {rows.dtype} {rows.shape}")


# --- C


def _scratch(loaded: Native) -> Planes:
    return np.empty(loaded.lib.tacit_ot_scratch(), np.uint64)


def _done(failed: int, levels: tuple[int, int]) -> None:
    if failed:
        raise ConfigError(f"this processor has no instructions of levels {levels}")


def _receive_native(
    loaded: Native,
    levels: tuple[int, int],
    keys: Octets,
    first: int,
    choices: Planes,
    u: Planes,
    rows: Blocks,
) -> None:
    lib, ffi = loaded
    failed = lib.tacit_ot_receive(
        *levels,
        ffi.from_buffer("uint8_t[]", keys),
        first,
        ffi.from_buffer("uint64_t[]", choices),
        len(choices),
        ffi.from_buffer("uint64_t[]", u, require_writable=True),
        ffi.from_buffer("uint64_t[]", rows, require_writable=True),
        ffi.from_buffer("uint64_t[]", _scratch(loaded), require_writable=True),
    )
    _done(failed, levels)


def _send_native(
    loaded: Native,
    levels: tuple[int, int],
    keys: Octets,
    first: int,
    delta: Blocks,
    u: Planes,
    rows: Blocks,
) -> None:
    lib, ffi = loaded
    failed = lib.tacit_ot_send(
        *levels,
        ffi.from_buffer("uint8_t[]", keys),
        first,
        ffi.from_buffer("uint64_t[]", delta),
        ffi.from_buffer("uint64_t[]", u),
        u.shape[1],
        ffi.from_buffer("uint64_t[]", rows, require_writable=True),
        ffi.from_buffer("uint64_t[]", _scratch(loaded), require_writable=True),
    )
    _done(failed, levels)


# --- numpy


def _receive_numpy(streams: _Streams, first: int, choices: Planes, u: Planes, rows: Blocks) -> None:
    words = len(choices)
    buffer = np.empty(len(streams.keys) * 16 * (min(words, _CHUNK) // 2 + 1), np.uint8)
    for word in range(0, words, _CHUNK):
        part = slice(word, min(word + _CHUNK, words))
        both = streams.fill(first + word // 2, part.stop - word, buffer)
        np.bitwise_xor(both[::2], both[1::2], out=u[:, part])
        u[:, part] ^= choices[part]
        rows_numpy(both[::2], rows[64 * word : 64 * part.stop])


def _send_numpy(streams: _Streams, first: int, delta: Blocks, u: Planes, rows: Blocks) -> None:
    words = u.shape[1]
    buffer = np.empty(len(streams.keys) * 16 * (min(words, _CHUNK) // 2 + 1), np.uint8)
    bits = delta[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)
    masks = (np.uint64(0) - bits).reshape(COLUMNS, 1)
    for word in range(0, words, _CHUNK):
        part = slice(word, min(word + _CHUNK, words))
        columns = streams.fill(first + word // 2, part.stop - word, buffer)
        columns ^= u[:, part] & masks
        rows_numpy(columns, rows[64 * word : 64 * part.stop])
