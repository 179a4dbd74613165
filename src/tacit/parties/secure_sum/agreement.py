"""What the parties of secure aggregation agree on, and what follows from it."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from tacit.core.errors import ConfigError, ProtocolError
from tacit.core.wire import Array, Message, Value, encode
from tacit.crypto import shamir
from tacit.crypto.masks import expand_add
from tacit.crypto.packing import packed_bytes
from tacit.crypto.quantisation import Quantiser
from tacit.dp.noise import NoisySum
from tacit.parties.neighbours import Sharing

Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.unsignedinteger]
FloatArray = npt.NDArray[np.float64]

VERSION = 2
SEED = shamir.SECRET_BYTES
SHARE = 8 * shamir.LIMBS
"""Bytes of a share of one secret."""
BOX = 2 * SHARE + 16
"""Bytes of a sealed pair of shares, of b_v and of q_v, with the tag."""
EXTRA = 2
"""Values beside the update: examples, and the share of its values that was clipped. With noise they are 1 and 0."""
SELF, RECOVERY = 0, 1
"""Which of a member's two secrets."""


class Adversary(Enum):
    """Whom the server's learning nothing but the sum holds against."""

    SEMI_HONEST = "semi-honest"
    ACTIVE = "active"


class Masks(Enum):
    """What is added to an update before it leaves. NONE is for controls: it protects nothing."""

    BOTH = "both"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What all parties must have agreed on before they begin.

    Args:
        participants: enrolled members, n; each has a number from 0 to n - 1, in the order of roles.
        dimension: values of an update.
        clip: values are limited to [-clip, clip]; with noise: the L2 norm of one record's vector.
        bits: of a quantised value; with noise: the deviation of all of it is 2^bits grid steps, or up to twice as many.
        max_examples: the most examples that an update may count; with noise: the most records that one may be a sum over.
        adversary: semi-honest, or active.
        sharing: neighbours and threshold; a degree of n - 1 is the complete graph.
        noise_multiplier: deviation of the noise of all members together over ``clip``; 0 for none.
        records: with noise: of all members together.
        lot: with noise: so many of them are behind a round's sum, on average.

    Raises:
        ConfigError: numbers that do not go together; says which.

    Source: thresholds, [6] section 6 (recalled): semi-honest t > n/2, active t > 2n/3.
    """

    participants: int
    dimension: int
    clip: float
    bits: int
    max_examples: int
    adversary: Adversary
    sharing: Sharing
    noise_multiplier: float = 0.0
    records: int = 0
    lot: int = 0

    def __post_init__(self) -> None:
        n, t, degree = self.participants, self.sharing.threshold, self.sharing.degree
        if n < 2 or self.dimension < 1:
            raise ConfigError(
                f"at least 2 participants and one value expected, got {n} and {self.dimension}"
            )
        if self.most < 1 or (n * self.most).bit_length() > 63:  # checks clip and bits too
            raise ConfigError(
                f"sums below 2^63 expected, got {n} participants, {self.bits} bits and {self.max_examples} examples: take "
                "fewer bits"
            )
        if self.release is not None:
            if not 1 <= self.lot <= self.records or not 1 <= self.max_examples <= self.records:
                raise ConfigError(
                    "an expected lot, and records of one participant, of 1 to all records expected, got "
                    f"{self.lot} and {self.max_examples} of {self.records}"
                )
        elif not 1 <= self.max_examples < self.quantiser.levels:
            raise ConfigError(
                f"max_examples from 1 to 2^bits - 1 = {self.quantiser.levels - 1} expected, got {self.max_examples}: "
                "more bits make room for more"
            )
        if degree == n - 1:
            least = least_threshold(n, self.adversary)
            if not least <= t <= n:
                raise ConfigError(
                    f"a threshold from {least} to {n} expected for {n} participants ({self.adversary.value}), got {t}"
                )
        elif self.adversary is Adversary.ACTIVE:
            raise ConfigError("the active variant needs the complete graph: graph=complete")
        elif not 2 <= t <= degree < n:
            raise ConfigError(
                f"a threshold from 2 to the degree, and that below {n}, expected, got {t} and {degree}"
            )

    @property
    def quantiser(self) -> Quantiser:
        """Values <-> integers, without noise."""
        return Quantiser(clip=self.clip, bits=self.bits)

    @property
    def release(self) -> NoisySum | None:
        """Values <-> integers with noise, all members' together; none without."""
        if self.noise_multiplier == 0:
            return None
        return NoisySum(
            clip=self.clip, noise_multiplier=self.noise_multiplier, coordinates=self.dimension, bits=self.bits,
        )  # fmt: skip

    @property
    def reach(self) -> int:
        """No integer of one member is larger in size, with noise; what it sends is that much higher, and so not negative."""
        n = self.participants
        return 0 if self.release is None else self.release.reach(n, self.max_examples) // n

    @property
    def most(self) -> int:
        """The largest integer that a member sends for a value; the least is 0."""
        return 2 * self.reach or self.quantiser.levels - 1

    @property
    def width(self) -> int:
        """Bits of a summed value: the sum of n integers from 0 to ``most`` fits."""
        return (self.participants * self.most).bit_length()

    @property
    def dtype(self) -> type[np.uint32] | type[np.uint64]:
        """In which sums are computed."""
        return np.uint32 if self.width <= 32 else np.uint64

    @property
    def length(self) -> int:
        """Values that are summed: the update's, and two more."""
        return self.dimension + EXTRA

    @property
    def holders(self) -> int:
        """Holders of each member's shares."""
        return self.sharing.degree + 1

    @property
    def colluders(self) -> int:
        """The most of a member's holders that may collude with the server.

        Active: two lists of survivors need t signatures each, so that colluders, who sign both, and honest members, who sign
        one, must be too few for that: 2 t > n + colluders.
        """
        t = self.sharing.threshold
        return t - 1 if self.adversary is Adversary.SEMI_HONEST else 2 * t - self.participants - 1

    @property
    def least_sum(self) -> int:
        """The fewest updates that a sum may be over."""
        dropouts = self.sharing.dropouts
        if dropouts is None:
            return self.sharing.threshold
        return max(self.sharing.threshold, self.participants - dropouts)

    def fields(self) -> dict[str, Value]:
        """The agreement as fields of a message."""
        return {  # in the order in which `check` compares: a number of participants changes the degree and threshold too
            "version": VERSION, "participants": self.participants, "dimension": self.dimension, "clip": float(self.clip),
            "bits": self.bits, "max_examples": self.max_examples, "adversary": self.adversary.value,
            "degree": self.sharing.degree, "threshold": self.sharing.threshold,
            "noise_multiplier": float(self.noise_multiplier), "records": self.records, "lot": self.lot,
        }  # fmt: skip

    def digest(self, session: bytes) -> bytes:
        """Binds keys and signatures to the agreement and the session."""
        return hashlib.sha256(session + encode(Message("agreement", **self.fields()))).digest()

    def said_of_key(self, session: bytes, number: int, public: bytes) -> bytes:
        """What a member signs of its public key."""
        return b"key" + self.digest(session) + number.to_bytes(4, "little") + public

    def check(self, request: Message) -> None:
        """Raise unless the server's agreement is this one.

        Raises:
            ProtocolError: names the field that differs.
        """
        for name, own in self.fields().items():
            theirs = request.fields.get(name)
            if type(theirs) is not type(own) or theirs != own:
                huge = isinstance(theirs, int) and theirs.bit_length() > 64
                said = "a huge number" if huge else repr(theirs)[:40]
                raise ProtocolError(
                    f"this member agreed on {name} = {own!r}, the server says {said}: give all the same settings"
                )

    def decoded(self, total: Integers, survivors: int, examples: int) -> FloatArray:
        """The mean of the updates, (dimension,), from the sum of the members' integers.

        Without noise it is weighted by examples. With noise it is their sum, noise included, over the expected lot: what is
        drawn stays secret.

        Args:
            total: (dimension,), uint32 or uint64.
            survivors: how many are in it.
            examples: behind it, in all.
        """
        release = self.release
        if release is None:
            times = self.max_examples / examples
            return self.quantiser.dequantise(total, survivors, times=times)
        whole = total.astype(np.int64) - survivors * self.reach
        (noisy,) = release.opened(whole, [(self.dimension,)])
        return noisy.astype(np.float64) / self.lot

    def error_bound(self, survivors: int, examples: int) -> float:
        """The most by which a value of the weighted mean differs from that of the clipped updates, without noise.

        A step of the quantiser for each survivor, and the two roundings of float32, in which they weigh.
        """
        each = self.quantiser.step + self.clip * 2.0**-23
        return survivors * each * self.max_examples / examples


def least_threshold(participants: int, adversary: Adversary) -> int:
    """The least threshold of the complete graph.

    Source: [6] section 6.
    """
    if adversary is Adversary.ACTIVE:
        return 2 * participants // 3 + 1
    return participants // 2 + 1


def bytes_of_round(agreement: Agreement) -> dict[str, int]:
    """Bytes of the values in one member's messages of a round in which nobody drops out, frames' headers left out.

    Without the model. ``keys`` is sent and received once a session. The whole is the sum of all of them.
    """
    n, active = agreement.holders, agreement.adversary is Adversary.ACTIVE
    signature = 64 * active
    return {
        "keys": 32 + signature + n * (8 + 1 + 32 + signature),
        "shares": n * (BOX + SEED) + 64,
        "boxes": n * (1 + BOX),
        "vector": packed_bytes(agreement.length, agreement.width),
        "check": active * (agreement.participants + 64),
        "unmask": n + active * n * 65 + n * SHARE,
    }


# --- what follows from secrets, computed by members and by the server who recovered them


def self_mask(secret: Bytes) -> Bytes:
    """The seed of PRG(b_u), (16,), from b_u."""
    return _derived(secret, b"mask")[:SEED]


def concealed(seeds: Bytes, secret: Bytes) -> Bytes:
    """E(q_u; .) of a member's pairwise seeds, (n, 16); the same again opens it."""
    words = np.zeros(seeds.size // 4, np.uint32)
    key = _derived(secret, b"recovery")[:SEED]
    expand_add(words, key.reshape(1, SEED), np.ones(1, np.int8))
    return seeds ^ words.view(np.uint8).reshape(seeds.shape)


def commitment(secret: Bytes, session: bytes, round: int, number: int) -> Bytes:
    """What a member commits to a secret by, (32,)."""
    return _derived(secret, b"commit" + session + _eight(round) + _eight(number))


def pair_seed(secret: bytes, round: int) -> Bytes:
    """k_uv of a round, (16,), from s_uv."""
    label = b"pair" + _eight(round)
    return np.frombuffer(hmac.digest(secret, label, "sha256"), np.uint8)[:SEED]


def for_model(seeds: Bytes, model: Sequence[Array]) -> Bytes:
    """Seeds of the pairwise masks: k_uv bound to the model, so that masks only cancel among members who got the same one."""
    if not len(seeds):  # nobody dropped out: nothing to bind, and no model to read
        return seeds
    digest = hashlib.sha256(encode(Message("model", model=list(model)))).digest()
    made = [hmac.digest(seed.tobytes(), digest, "sha256")[:SEED] for seed in seeds]
    return np.frombuffer(b"".join(made), np.uint8).reshape(-1, SEED)


def _derived(secret: Bytes, label: bytes) -> Bytes:
    """HMAC-SHA-256 under the secret: what is derived for one purpose tells nothing of another."""
    return np.frombuffer(hmac.digest(secret.tobytes(), label, "sha256"), np.uint8)


def _eight(number: int) -> bytes:
    return number.to_bytes(8, "little")
