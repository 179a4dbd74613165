"""Members of secure aggregation with one mistake each, and the check of `tacit.audit.secure_view` that must catch it.

They break the protocol on purpose and are for controls alone: never take part in a real sum with one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tacit.core.coins import Coins
from tacit.core.wire import Message
from tacit.crypto.masks import expand_add
from tacit.crypto.packing import pack, unpack
from tacit.nn.updates import LocalUpdate, flattened
from tacit.parties.secure_sum.agreement import (
    EXTRA,
    RECOVERY,
    SELF,
    Agreement,
    Bytes,
    Flags,
    Integers,
    for_model,
    self_mask,
)
from tacit.parties.secure_sum.member import SecureAggregationMember

Floats = npt.NDArray[np.float32]


class _ShortSeed(SecureAggregationMember):
    def _fresh_secrets(self, coins: Coins) -> Bytes:
        return _shortened(super()._fresh_secrets(coins))


class _ShortPairwiseSeed(SecureAggregationMember):
    def _pair_seeds(self, round: int) -> Bytes:
        return _shortened(super()._pair_seeds(round))


def _shortened(seeds: Bytes) -> Bytes:
    kept = seeds.copy()
    kept[:, 4:] = 0
    return kept


class _SameSelfSeed(SecureAggregationMember):
    def _fresh_secrets(self, coins: Coins) -> Bytes:
        same = super()._fresh_secrets(self._coins.child("same"))
        fresh = super()._fresh_secrets(coins)
        return np.stack([same[SELF], fresh[RECOVERY]])


class _SamePairwiseSeeds(SecureAggregationMember):
    def _pair_seeds(self, round: int) -> Bytes:
        return super()._pair_seeds(0)


class _NoPairwiseMasks(SecureAggregationMember):
    def _masked_input(self, request: Message, round: int) -> Message:
        own = self._own
        answer = super()._masked_input(request, round)
        senders = np.array(request.array("senders"), np.bool_)
        if own is None:
            return answer
        pairwise_seeds = for_model(own.seeds[self._others(senders)], request.arrays("model"))
        return _changed(answer, self.agreement, pairwise_seeds, -self._signs(senders)[1:])


class _OneMaskMissing(SecureAggregationMember):
    """Members 0 and 1 leave out the mask between them, so that it is missing in no sum that both are in."""

    def _masked_input(self, request: Message, round: int) -> Message:
        own = self._own
        answer = super()._masked_input(request, round)
        if own is None or self.number > 1:
            return answer
        sign = np.array([-1 if self.number == 0 else 1], np.int8)
        other = 1 - self.number
        between = for_model(own.seeds[other : other + 1], request.arrays("model"))
        return _changed(answer, self.agreement, between, sign)


class _NoSelfMask(SecureAggregationMember):
    def _masked_input(self, request: Message, round: int) -> Message:
        own = self._own
        answer = super()._masked_input(request, round)
        if own is None:
            return answer
        seed = self_mask(own.secrets[SELF])[None]
        return _changed(answer, self.agreement, seed, -np.ones(1, np.int8))


def _changed(
    answer: Message, agreement: Agreement, seeds: Bytes, signs: npt.NDArray[np.int8]
) -> Message:
    """A masked vector with masks added to it."""
    packed = np.array(answer.array("vector", dtype="u1"), np.uint8)
    vector = unpack(packed, agreement.length, agreement.width, agreement.dtype)
    expand_add(vector, seeds, signs)
    return Message("masked", vector=pack(vector, agreement.width))


class _MasksForAnyModel(SecureAggregationMember):
    def _masked_input(self, request: Message, round: int) -> Message:
        own = self._own
        answer = super()._masked_input(request, round)
        senders = np.array(request.array("senders"), np.bool_)
        if own is None:
            return answer
        plain, signs = own.seeds[self._others(senders)], self._signs(senders)[1:]
        bound = for_model(plain, request.arrays("model"))
        seeds, both = np.concatenate([bound, plain]), np.concatenate([-signs, signs])
        return _changed(answer, self.agreement, seeds, both)


class _WrongSigns(SecureAggregationMember):
    def _signs(self, senders: Flags) -> npt.NDArray[np.int8]:
        signs = super()._signs(senders)
        signs[1:] *= -1
        return signs


class _LengthFollowsInput(SecureAggregationMember):
    def _masked_input(self, request: Message, round: int) -> Message:
        answer = super()._masked_input(request, round)
        (values,) = self._work.update([], round).arrays
        high = float(np.asarray(values, np.float32).mean()) > 0
        return Message(
            "masked", **answer.fields, padding=bytes(16 * high)
        )  # arrays are aligned to 8 bytes


class _NoRangeCheck(SecureAggregationMember):
    def _quantised(self, update: LocalUpdate, coins: Coins) -> Integers:
        vector = super()._quantised(update, coins)
        values = flattened(update.arrays).astype(np.float64)
        whole = np.rint((values + self.agreement.clip) / self.agreement.quantiser.step)
        vector[:-EXTRA] = whole.astype(np.int64).astype(vector.dtype)
        return vector


class _TakesNaN(SecureAggregationMember):
    def _quantised(self, update: LocalUpdate, coins: Coins) -> Integers:
        whole = tuple(np.nan_to_num(np.asarray(a, np.float32)) for a in update.arrays)
        return super()._quantised(replace(update, arrays=whole), coins)


class _NoCipher:
    def encrypt(self, nonce: bytes, data: bytes, associated: bytes | None) -> bytes:
        del nonce, associated
        return data + bytes(16)

    def decrypt(self, nonce: bytes, data: bytes, associated: bytes | None) -> bytes:
        del nonce, associated
        return data[:-16]


class _Unsealed(SecureAggregationMember):
    def _sealing(self, place: int, *, outwards: bool) -> AESGCM:
        del place, outwards
        return cast(AESGCM, _NoCipher())


@dataclass(frozen=True, slots=True)
class _TagUnread:
    sealing: AESGCM

    def encrypt(self, nonce: bytes, data: bytes, associated: bytes | None) -> bytes:
        return self.sealing.encrypt(nonce, data, associated)

    def decrypt(self, nonce: bytes, data: bytes, associated: bytes | None) -> bytes:
        noise = self.sealing.encrypt(nonce, bytes(len(data) - 16), associated)
        return bytes(a ^ b for a, b in zip(data[:-16], noise, strict=False))


class _TagIgnored(SecureAggregationMember):
    def _sealing(self, place: int, *, outwards: bool) -> AESGCM:
        return cast(AESGCM, _TagUnread(super()._sealing(place, outwards=outwards)))


class _AnswersSecondList(SecureAggregationMember):
    """Restored after each unmasking from the state before it."""

    def handle(self, request: Message) -> Message:
        before = self.export()
        answer = super().handle(request)
        if request.tag == "unmask" and "boxes" not in answer.fields:
            self.restore(before)
        return answer


class _NoThreshold(SecureAggregationMember):
    def _enough(self, flags: Flags, round: int, what: str) -> None:
        del flags, round, what


class _AnswersEarlierRound(SecureAggregationMember):
    def _once(self, request: Message, round: int, wave: object) -> None:
        del request, round, wave


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A member with one mistake.

    Args:
        name: of its figure.
        member: its class.
        caught_by: the check that is meant for it.
        mistake: in a few words.
    """

    name: str
    member: type[SecureAggregationMember]
    caught_by: str
    mistake: str


def _mutant(
    name: str, member: type[SecureAggregationMember], caught_by: str, mistake: str
) -> Mutant:
    return Mutant(name=name, member=member, caught_by=caught_by, mistake=mistake)


MUTANTS: tuple[Mutant, ...] = (
    _mutant("short-seed", _ShortSeed, "uniformity/opened-secrets", "32-bit seeds, padded with zeros"),
    _mutant("short-pairwise-seed", _ShortPairwiseSeed, "uniformity/opened-secrets", "32-bit pairwise seeds"),
    _mutant("reused-self-mask", _SameSelfSeed, "uniformity/opened-secrets", "one self-mask seed for all rounds"),
    _mutant("reused-pairwise-masks", _SamePairwiseSeeds, "uniformity/two-rounds", "pairwise seeds without the round"),
    _mutant("missing-self-mask", _NoSelfMask, "uniformity/late", "pairwise masks alone"),
    _mutant("missing-pairwise-masks", _NoPairwiseMasks, "uniformity/self-masks-opened", "the self-mask alone"),
    _mutant("one-mask-missing", _OneMaskMissing, "exact-sum", "two members without the mask between them"),
    _mutant("wrong-signs", _WrongSigns, "exact-sum", "pairwise masks of the opposite sign, at everybody"),
    _mutant("masks-for-any-model", _MasksForAnyModel, "two-models", "pairwise masks that do not depend on the model"),
    _mutant("length-follows-input", _LengthFollowsInput, "two-inputs", "a longer reply where the update is positive"),
    _mutant("no-range-check", _NoRangeCheck, "range", "values beyond the range are not limited"),
    _mutant("takes-nan", _TakesNaN, "not-finite", "values that are not finite become 0 or large"),
    _mutant("unsealed-shares", _Unsealed, "sealed-shares", "shares in the clear"),
    _mutant("tag-ignored", _TagIgnored, "flipped-box", "boxes are opened without looking at the tag"),
    _mutant("both-secrets", _AnswersSecondList, "second-list", "a second list is answered, after a restart say"),
    _mutant("no-threshold", _NoThreshold, "short-list", "a list of however few is answered"),
    _mutant("answers-earlier-round", _AnswersEarlierRound, "earlier-waves", "waves are answered in any order"),
)  # fmt: skip
"""Members with one mistake each. Each is caught by the check that it names; the honest member passes them all."""
