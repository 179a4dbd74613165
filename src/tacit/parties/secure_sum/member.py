"""A participant of secure aggregation: see `tacit.parties.secure_sum` for the protocol."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import cast

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tacit.core.coins import Coins
from tacit.core.errors import (
    BudgetExhausted,
    CheatingDetected,
    ConfigError,
    ProtocolError,
    RangeError,
    WireError,
)
from tacit.core.wire import Array, Message, Value, decode, encode
from tacit.crypto import keys, shamir
from tacit.crypto.masks import expand_add
from tacit.crypto.packing import pack
from tacit.crypto.quantisation import Words
from tacit.dp.noise import NoisySum
from tacit.nn.updates import FloatArray, LocalUpdate, LocalWork, flattened
from tacit.parties.neighbours import Numbers
from tacit.parties.secure_sum.agreement import (
    BOX,
    EXTRA,
    RECOVERY,
    SEED,
    SELF,
    Adversary,
    Agreement,
    Bytes,
    Flags,
    Integers,
    Masks,
    commitment,
    concealed,
    for_model,
    pair_seed,
    self_mask,
)


class _Wave(Enum):
    ADVERTISE = 0
    SHARE = 1
    MASK = 2
    CHECK = 3
    UNMASK = 4


@dataclass(slots=True)
class _Own:
    """A member's own secrets of one round."""

    round: int
    secrets: Bytes  # (2, 16): b_u, q_u
    seeds: Bytes  # (holders, 16): k_uv
    share: Integers  # (2, limbs): its own share of both


@dataclass(slots=True)
class _Opened:
    """What a member holds of the others' secrets of one round."""

    round: int
    senders: Flags  # (holders,): U2
    shares: Integers  # (holders, 2, limbs)


def _nobody() -> tuple[Numbers, Bytes, Flags]:
    """Holders; their keys: for sealing, low to high number and back, and s_uv; whose key came."""
    return np.zeros(0, np.int64), np.zeros((0, 96), np.uint8), np.zeros(0, np.bool_)


class SecureAggregationMember:
    """A participant.

    Args:
        work: what it does with its data.
        agreement: what it agreed on.
        number: its number among the participants.
        coins: for its keys, masks, shares, and rounding or noise.
        rounds: rounds that it takes part in at most.
        like: arrays of the model's shapes; none where the work needs no model.
        masks: NONE sends quantised updates in the clear.
        identity: its signing key, for the active variant.
        registry: everybody's public signing keys by number, for the active variant; trusted.
        threads: in which masks are expanded.

    Raises:
        ConfigError: no such number, or keys for the active variant are missing.

    **Guarantee**: of each other member and round, at most one of its two secrets' shares ever leaves.
    """

    def __init__(  # noqa: PLR0913 - what a member is, each by name
        self,
        work: LocalWork,
        agreement: Agreement,
        number: int,
        *,
        coins: Coins,
        rounds: int,
        like: Sequence[Array] = (),
        masks: Masks = Masks.BOTH,
        identity: keys.SigningKey | None = None,
        registry: Sequence[bytes] = (),
        threads: int = 1,
    ) -> None:
        n = agreement.participants
        if not 0 <= number < n:
            raise ConfigError(f"a number from 0 to {n - 1} expected, got {number}")
        if agreement.adversary is Adversary.ACTIVE and (identity is None or len(registry) != n):
            raise ConfigError(
                f"the active variant needs the member's signing key and a registry of {n} public keys"
            )
        self.agreement = agreement
        self.number = number
        self._work = work
        self._coins = coins
        self._rounds = rounds
        self._like = like
        self._masks = masks
        self._identity = identity
        self.registry = registry
        self._threads = threads
        self._newest = (-1, -1)  # (round, wave) of the last answer
        self._session = b""
        self._key: keys.KeyPair | None = None
        self._holders, self._pairs, self._known = _nobody()
        self._roll = b""  # digest of everybody's keys
        self._own: _Own | None = None
        self._opened: _Opened | None = None
        self._signed: tuple[int, bytes] | None = None

    def handle(self, request: Message) -> Message:
        """The answer to one wave.

        Raises:
            ProtocolError: the wave or a later one was answered before, it belongs to another session or round, or the server
                agreed on something else.
            BudgetExhausted: the round is beyond those agreed on.
            CheatingDetected: a message of another member, or a list of survivors, is not what an honest party sends.
            RangeError: the update does not fit: values that are not finite, too many examples, another number of values.
            Diverged: from the work.
        """
        answers = {
            "advertise": self._advertise,
            "share": self._share,
            "mask": self._masked_input,
            "check": self._consistency_check,
            "unmask": self._unmask,
        }
        if request.tag == "finished":
            return Message("thanks")
        if request.tag not in answers:
            raise ProtocolError(f"a wave ({', '.join(answers)}) expected, came {request.tag!r}")
        round = request.integer("round", low=0, high=1 << 31)
        if round >= self._rounds:
            raise BudgetExhausted(f"round {round} asked, {self._rounds} rounds were agreed on")
        return answers[request.tag](request, round)

    def _once(self, request: Message, round: int, wave: _Wave) -> None:
        """Each wave of each round is answered once, and none before the last that was."""
        if wave is not _Wave.ADVERTISE and (
            not self._session or request.blob("session") != self._session
        ):
            raise ProtocolError(f"round {round}: {wave.name} of another session")
        if (round, wave.value) <= self._newest:
            before = _Wave(self._newest[1]).name
            raise ProtocolError(
                f"{wave.name} of round {round} asked, but {before} of round {self._newest[0]} was answered already"
            )
        self._newest = (round, wave.value)

    # R0

    def _advertise(self, request: Message, round: int) -> Message:
        """[6] R0: a fresh key pair; the active variant signs it.

        **Leaks**: the public key. **Cost**: 32 bytes (96).
        """
        self.agreement.check(request)
        session = request.blob("session", length=16)
        self._once(request, round, _Wave.ADVERTISE)
        self._session = session
        self._key = keys.generate(self._coins.child(f"key {session.hex()}"))
        self._holders, self._pairs, self._known = _nobody()
        self._roll = b""
        self._own = self._opened = self._signed = None
        signature = b""
        if self._identity is not None:
            said = self.agreement.said_of_key(session, self.number, self._key.public)
            signature = self._identity.sign(said)
        return Message("keys", public=self._key.public, signature=signature)

    # R1

    def _meet(self, request: Message) -> None:
        """[6] R1, once a session: agree on keys with every neighbour."""
        size, key, agreement = self.agreement.holders, self._key, self.agreement
        if key is None:
            raise ProtocolError("shares were asked for before keys were advertised")
        holders = request.array("holders", dtype="<i8", shape=(size,))
        known = request.array("known", dtype="?", shape=(size,))
        public = request.array("keys", dtype="u1", shape=(size, 32))
        listed = holders.tolist()
        if (
            listed != sorted(set(listed))
            or not 0 <= listed[0] <= listed[-1] < agreement.participants
            or self.number not in listed
            or not known[listed.index(self.number)]
        ):
            raise CheatingDetected(
                f"the holders of member {self.number} are not ascending numbers of members with itself among them"
            )
        if agreement.adversary is Adversary.ACTIVE:
            signatures = request.array("signatures", dtype="u1", shape=(size, 64))
            for place in np.flatnonzero(known):
                number, said = listed[place], public[place].tobytes()
                keys.verify(
                    signatures[place].tobytes(),
                    agreement.said_of_key(self._session, number, said),
                    signer=self.registry[number],
                    what=f"member {number}'s key",
                )
        if len(np.unique(public[known], axis=0)) < known.sum():
            raise CheatingDetected("two members are said to have the same key")
        # A server may give two sessions one name, but honest members draw their keys anew.
        roll = hashlib.sha256(holders.tobytes() + known.tobytes())
        roll.update(np.where(known[:, None], public, 0).astype(np.uint8).tobytes())
        digest = agreement.digest(self._session)
        pairs = np.zeros((size, 96), np.uint8)
        for place in np.flatnonzero(known):
            if listed[place] == self.number:
                continue
            other = public[place].tobytes()
            ends = sorted([(self.number, key.public), (listed[place], other)])
            info = b"tacit/secure-aggregation/1" + digest
            info += b"".join(number.to_bytes(8, "little") + public for number, public in ends)
            secret = HKDF(SHA256(), 96, None, info).derive(keys.agree(key, other))
            pairs[place] = np.frombuffer(secret, np.uint8)
        self._holders, self._known, self._pairs = np.array(holders), np.array(known), pairs
        self._roll = roll.digest()

    @property
    def _place(self) -> int:
        return int(np.searchsorted(self._holders, self.number))

    def _others(self, flags: Flags) -> list[int]:
        """Places of flagged holders, this member's own left out."""
        own = self._place
        return [place for place in np.flatnonzero(flags).tolist() if place != own]

    def _share(self, request: Message, round: int) -> Message:
        """[6] R1: shares of this round's secrets, sealed for their holders.

        **Leaks**: nothing; to holders, one share of each secret. **Cost**: 80 bytes a holder and 64.
        """
        self._once(request, round, _Wave.SHARE)
        if not self._holders.size:
            self._meet(request)  # keys that come again in a session are not looked at
        return Message("shares", **self._shares(round))

    def _shares(self, round: int) -> dict[str, Value]:
        coins = self._coins.child(f"session {self._session.hex()} round {round}")
        secrets = self._fresh_secrets(coins)
        seeds = self._pair_seeds(round)
        points = (self._holders + 1).astype(np.uint64)
        shares = shamir.split(secrets, self.agreement.sharing.threshold, points, coins)
        boxes = np.zeros((len(points), BOX), np.uint8)
        for place in self._others(self._known):
            box = self._seal(place, round, shares[place].tobytes())
            boxes[place] = np.frombuffer(box, np.uint8)
        self._own = _Own(round, secrets, seeds, shares[self._place])
        return {
            "boxes": boxes,
            "recovery": concealed(seeds, secrets[RECOVERY]),
            "commitments": np.stack(
                [commitment(one, self._session, round, self.number) for one in secrets]
            ),
        }

    def _fresh_secrets(self, coins: Coins) -> Bytes:
        """b_u and q_u, (2, 16)."""
        return np.frombuffer(coins.bytes(2 * SEED), np.uint8).reshape(2, SEED)

    def _pair_seeds(self, round: int) -> Bytes:
        """k_uv of a round for every neighbour, (holders, 16); zero at the own place and where no key came."""
        seeds = np.zeros((len(self._holders), SEED), np.uint8)
        for place in self._others(self._known):
            seeds[place] = pair_seed(self._pairs[place, 64:].tobytes(), round)
        return seeds

    def _sealing(self, place: int, *, outwards: bool) -> AESGCM:
        low_to_high = (self._holders[place] > self.number) == outwards
        key = self._pairs[place, :32] if low_to_high else self._pairs[place, 32:64]
        return AESGCM(key.tobytes())

    def _seal(self, place: int, round: int, plain: bytes) -> bytes:
        # The key is this direction's and this session's, and a member shares once a round: the nonce does not repeat.
        return self._sealing(place, outwards=True).encrypt(
            round.to_bytes(12, "little"), plain, None
        )

    def _open(self, place: int, round: int, box: bytes) -> bytes:
        try:
            cipher = self._sealing(place, outwards=False)
            return cipher.decrypt(round.to_bytes(12, "little"), box, None)
        except InvalidTag:
            raise CheatingDetected(
                f"the shares that member {self._holders[place]} sealed for member {self.number} in round {round} do not open"
            ) from None

    # R2

    def _masked_input(self, request: Message, round: int) -> Message:
        """[6] R2: the update, quantised and masked.

        **Leaks**: nothing but its length. **Cost**: ``packed_bytes(dimension + 2, width)``.
        """
        model = request.arrays("model", like=self._like)
        self._once(request, round, _Wave.MASK)
        own = self._own
        if own is None or own.round != round:
            raise ProtocolError(
                f"an update of round {round} was asked for, whose secrets were not shared"
            )
        opened = self._open_all(request, round, own)
        senders = opened.senders
        update = self._work.update(model, round)
        vector = self._quantised(update, self._coins.child(f"rounding {round}"))
        if self._masks is Masks.BOTH:
            pairwise = for_model(own.seeds[self._others(senders)], model)
            seeds = np.concatenate([self_mask(own.secrets[SELF])[None], pairwise])
            expand_add(vector, seeds, self._signs(senders), threads=self._threads)
        self._opened = opened
        return Message("masked", vector=pack(vector, self.agreement.width))

    def _open_all(self, request: Message, round: int, own: _Own) -> _Opened:
        size = self.agreement.holders
        senders = np.array(request.array("senders", dtype="?", shape=(size,)), np.bool_)
        boxes = request.array("boxes", dtype="u1", shape=(int(senders.sum()), BOX))
        if (senders & ~self._known).any() or not senders[self._place]:
            raise CheatingDetected(
                f"round {round}: members whose key never came, or not member {self.number} itself, are said to have shared"
            )
        self._enough(senders, round, "shared their secrets")
        shares = np.zeros((size, 2, shamir.LIMBS), np.uint64)
        rows = dict(zip(np.flatnonzero(senders).tolist(), boxes, strict=True))
        for place in self._others(senders):
            plain = np.frombuffer(self._open(place, round, rows[place].tobytes()), np.uint64)
            if (plain >= shamir.PRIME).any():
                raise CheatingDetected(
                    f"round {round}: member {self._holders[place]} dealt shares outside the field"
                )
            shares[place] = plain.reshape(2, shamir.LIMBS)
        shares[self._place] = own.share
        return _Opened(round, senders, shares)

    def _enough(self, flags: Flags, round: int, what: str) -> None:
        threshold = self.agreement.sharing.threshold
        if flags.sum() < threshold:
            raise ProtocolError(
                f"round {round}: {flags.sum()} of member {self.number}'s holders {what}; at least {threshold} must, or the "
                "sum could say too much"
            )

    def _signs(self, senders: Flags) -> npt.NDArray[np.int8]:
        """+1 for the own mask and for neighbours of a higher number, -1 for those of a lower one."""
        higher = self._holders[self._others(senders)] > self.number
        return np.concatenate([np.ones(1, np.int8), np.where(higher, 1, -1).astype(np.int8)])

    def _quantised(self, update: LocalUpdate, coins: Coins) -> Words:
        agreement = self.agreement
        values = flattened(update.arrays)
        if values.size != agreement.dimension:
            raise RangeError(
                f"an update of {agreement.dimension} values expected, came {values.size}"
            )
        if agreement.release is not None:
            return self._with_noise(values, agreement.release, coins)
        if not 1 <= update.examples <= agreement.max_examples:
            raise RangeError(
                f"an update over other than the 1 to {agreement.max_examples} examples agreed on: raise max_examples"
            )
        quantiser, outside = agreement.quantiser, 0
        if update.examples != agreement.max_examples:  # weigh, after clipping
            outside = int((np.abs(values) > quantiser.clip).sum())
            limited = np.clip(values, -quantiser.clip, quantiser.clip)
            limited[~np.isfinite(values)] = np.nan  # refused below
            values = limited * np.float32(update.examples / agreement.max_examples)
        vector = cast(Words, np.empty(agreement.length, agreement.dtype))
        _, beyond = quantiser.quantise(values, coins, out=vector[:-EXTRA])
        share = max(outside, beyond) / agreement.dimension
        vector[-EXTRA:] = update.examples, math.ceil(share * (quantiser.levels - 1))
        return vector

    def _with_noise(self, values: FloatArray, release: NoisySum, coins: Coins) -> Words:
        """On the grid of the noise, with this member's share of it; nothing tells how many records are behind.

        What lies beyond an honest sum, by the rounding of floats alone, is limited first, so that no modulus wraps. That
        brings the sums of two neighbours no farther apart.
        """
        agreement = self.agreement
        if not np.isfinite(values).all():
            raise RangeError("an update with values that are not finite cannot be put on a grid")
        most = agreement.max_examples * release.clip
        limited = np.clip(values.astype(np.float64), -most, most)
        share = release.share([limited], coins, participants=agreement.participants)
        vector = cast(Words, np.empty(agreement.length, agreement.dtype))
        vector[:-EXTRA] = share + agreement.reach
        vector[-EXTRA:] = 1, 0
        return vector

    # R3

    def _said_of_survivors(self, round: int, survivors: Flags) -> bytes:
        """The agreement, the session by its name and by everybody's keys, which are fresh, the round, and the list."""
        head = b"survivors" + self.agreement.digest(self._session) + self._roll
        return head + round.to_bytes(8, "little") + survivors.tobytes()

    def _consistency_check(self, request: Message, round: int) -> Message:
        """[6] R3: a signature on the list of survivors; it will unmask for no other.

        **Leaks**: the signature. **Cost**: 64 bytes.
        """
        if self._identity is None:
            raise ProtocolError("only the active variant checks for consistency")
        self._once(request, round, _Wave.CHECK)
        _, survivors = self._survivors(request, round)
        said = self._said_of_survivors(round, survivors)
        self._signed = (round, said)
        return Message("signed", signature=self._identity.sign(said))

    # R4

    def _survivors(self, request: Message, round: int) -> tuple[_Opened, Flags]:
        """What is held of the round, and U3 among the holders, checked."""
        opened = self._opened
        if opened is None or opened.round != round:
            raise ProtocolError(f"round {round} cannot be unmasked: no update of it was sent")
        flags = request.array("survivors", dtype="?", shape=(self.agreement.holders,))
        survivors = np.array(flags, np.bool_)
        if (survivors & ~opened.senders).any() or not survivors[self._place]:
            raise CheatingDetected(
                f"round {round}: the survivors are not among those who shared, or member {self.number} itself is missing"
            )
        self._enough(survivors, round, "survived")
        return opened, survivors

    def _unmask(self, request: Message, round: int) -> Message:
        """[6] R4: of each survivor the share of its self-mask, of each other the share of its recovery key.

        **Leaks**: these shares, at most one of the two of anybody. **Cost**: 24 bytes a holder.
        """
        self._once(request, round, _Wave.UNMASK)
        opened, survivors = self._survivors(request, round)
        self._check_signatures(request, round, survivors)
        answer: dict[str, Value] = {"shares": self._revealed(opened, survivors)}
        self._opened = None
        if request.integer("next", low=0, high=1) and round + 1 < self._rounds:
            self._newest = (round + 1, _Wave.SHARE.value)
            answer |= self._shares(round + 1)
        return Message("unmasked", **answer)

    def _revealed(self, opened: _Opened, survivors: Flags) -> Integers:
        """One share of each sender, which one follows from the one list: (senders, limbs)."""
        which = np.where(survivors, SELF, RECOVERY)
        chosen: Integers = opened.shares[np.arange(len(which)), which]
        return chosen[opened.senders]

    def _check_signatures(self, request: Message, round: int, survivors: Flags) -> None:
        """Active: at least t members signed this very list, this one among them."""
        if self.agreement.adversary is not Adversary.ACTIVE:
            return
        said = self._said_of_survivors(round, survivors)
        if self._signed is None or self._signed[0] != round:
            raise ProtocolError(f"round {round}: the list of survivors was not checked before")
        if self._signed[1] != said:
            raise CheatingDetected(
                f"round {round}: the list of survivors to unmask is not the one that member {self.number} signed"
            )
        n = self.agreement.participants
        signers = np.array(request.array("signers", dtype="?", shape=(n,)), np.bool_)
        signatures = request.array("signatures", dtype="u1", shape=(n, 64))
        self._enough(signers & survivors, round, "signed the list of survivors")
        for number in np.flatnonzero(signers).tolist():
            keys.verify(
                signatures[number].tobytes(),
                said,
                signer=self.registry[number],
                what=f"member {number}'s list of survivors",
            )

    # state

    def export(self) -> bytes:
        """Everything that changes; it holds keys and shares. Export before each reply leaves: see `Member`."""
        own, opened, signed = self._own, self._opened, self._signed
        size = len(self._holders)
        flags, shares = np.zeros(size, np.bool_), np.zeros((size, 2, shamir.LIMBS), np.uint64)
        return encode(
            Message(
                "state",
                agreement=self.agreement.digest(b""),
                number=self.number,
                round=self._newest[0],
                wave=self._newest[1],
                session=self._session,
                key=self._key.secret.private_bytes_raw() if self._key else b"",
                holders=self._holders,
                pairs=self._pairs,
                known=self._known,
                roll=self._roll,
                own=-1 if own is None else own.round,
                secrets=np.zeros((2, SEED), np.uint8) if own is None else own.secrets,
                seeds=np.zeros((size, SEED), np.uint8) if own is None else own.seeds,
                share=np.zeros((2, shamir.LIMBS), np.uint64) if own is None else own.share,
                opened=-1 if opened is None else opened.round,
                senders=flags if opened is None else opened.senders,
                shares=shares if opened is None else opened.shares,
                signed=-1 if signed is None else signed[0],
                list=b"" if signed is None else signed[1],
            )
        )

    def restore(self, state: bytes) -> None:
        """Continue from an exported state; where it is refused, this member stays as it was.

        Raises:
            WireError: these bytes are not one.
            ProtocolError: they are another member's, or of another agreement.
        """
        m = decode(state)
        if m.tag != "state" or m.integer("number") != self.number:
            raise ProtocolError(f"this is not the state of member {self.number}")
        if m.blob("agreement") != self.agreement.digest(b""):
            raise ProtocolError("this state belongs to a member with other settings")
        newest = m.integer("round", low=-1), m.integer("wave", low=-1, high=_Wave.UNMASK.value)
        session, secret = m.blob("session"), m.blob("key")
        own, opened, signed = (m.integer(name, low=-1) for name in ("own", "opened", "signed"))
        holders = np.array(m.array("holders", dtype="<i8", shape=(None,)), np.int64)
        size = len(holders)
        if size not in (0, self.agreement.holders) or len(session) not in (0, 16):
            raise WireError(f"{size} holders and a session of {len(session)} bytes in a state")
        if len(secret) not in (0, 32):
            raise WireError(f"a key of {len(secret)} bytes in a state")
        pairs = np.array(m.array("pairs", dtype="u1", shape=(size, 96)), np.uint8)
        known = np.array(m.array("known", dtype="?", shape=(size,)), np.bool_)
        of_own = _Own(
            own,
            np.array(m.array("secrets", dtype="u1", shape=(2, SEED)), np.uint8),
            np.array(m.array("seeds", dtype="u1", shape=(size, SEED)), np.uint8),
            np.array(m.array("share", dtype="<u8", shape=(2, shamir.LIMBS)), np.uint64),
        )
        of_others = _Opened(
            opened,
            np.array(m.array("senders", dtype="?", shape=(size,)), np.bool_),
            np.array(m.array("shares", dtype="<u8", shape=(size, 2, shamir.LIMBS)), np.uint64),
        )
        said, roll = m.blob("list"), m.blob("roll")
        self._newest, self._session = newest, session
        self._key = keys.key_pair_from(secret) if secret else None
        self._holders, self._pairs, self._known, self._roll = holders, pairs, known, roll
        self._own = of_own if own >= 0 else None
        self._opened = of_others if opened >= 0 else None
        self._signed = (signed, said) if signed >= 0 else None
