"""The server of secure aggregation, wave by wave: see `tacit.parties.secure_sum` for the protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tacit.core.coins import Coins
from tacit.core.errors import (
    CheatingDetected,
    ConfigError,
    DecryptionFailed,
    Diverged,
    ProtocolError,
    TacitError,
    TooFewParties,
)
from tacit.core.wire import Array, Message, Value
from tacit.crypto import keys, shamir
from tacit.crypto.masks import expand_add
from tacit.crypto.packing import packed_bytes, unpack_add
from tacit.parties.neighbours import Numbers, complete, regular, slots
from tacit.parties.roles import Role
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
    self_mask,
)
from tacit.parties.secure_sum.recovery import Returned, at_fault
from tacit.parties.star import REFUSED, SILENT, Hub, Seconds, as_error, first_replies

_DECODED = 16
"""Secrets whose wrong shares are told apart at most, beyond what recovery needs: decoding takes a second at 500 holders."""


@dataclass(slots=True)
class _Shared:
    """What members shared for a round, by number."""

    round: int
    there: Flags  # (n,): U2
    boxes: Bytes  # (n, holders, box)
    recovery: Bytes  # (n, holders, 16)
    commitments: Bytes  # (n, 2, 32)

    @classmethod
    def empty(cls, round: int, agreement: Agreement) -> _Shared:
        n, size = agreement.participants, agreement.holders
        return cls(
            round,
            np.zeros(n, np.bool_),
            np.zeros((n, size, BOX), np.uint8),
            np.zeros((n, size, SEED), np.uint8),
            np.zeros((n, 2, 32), np.uint8),
        )

    def take(self, number: int, reply: Message) -> None:
        """Keep a member's shares."""
        _, size, _ = self.boxes.shape
        boxes = reply.array("boxes", dtype="u1", shape=(size, BOX))
        recovery = reply.array("recovery", dtype="u1", shape=(size, SEED))
        self.commitments[number] = reply.array("commitments", dtype="u1", shape=(2, 32))
        self.boxes[number], self.recovery[number] = boxes, recovery
        self.there[number] = True


@dataclass(slots=True, kw_only=True)
class Session:
    """The server's side of a session: keys that serve many rounds.

    Args:
        hub: the star.
        agreement: what was agreed on.
        name: 16 random bytes.
        roles: the members by number.
        holders: each member's holders, (n, k + 1).
        deadline: seconds that a wave may take.
        masks: as the members were told.
        threads: in which masks are expanded.
        opened: its first round.
        keep: called whenever what a later message depends on has changed, before that message is sent.

    Attributes:
        masked: the sum of this round's masked vectors, and whose they are, once that wave is over.
        signed: what the consistency check gave, once that wave is over.
    """

    hub: Hub
    agreement: Agreement
    name: bytes
    roles: tuple[Role, ...]
    holders: Numbers
    deadline: Seconds
    masks: Masks = Masks.BOTH
    threads: int = 1
    opened: int = 0
    keep: Callable[[], None] = field(default=lambda: None, repr=False)
    advertised: bool = field(init=False, default=False)
    masked: tuple[Integers, Flags] | None = field(init=False, default=None)
    signed: dict[str, Value] | None = field(init=False, default=None)
    slots: Numbers = field(init=False)
    keys: Bytes = field(init=False)
    signatures: Bytes = field(init=False)
    known: Flags = field(init=False)
    shared: _Shared | None = field(init=False, default=None)
    missing: dict[Role, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        n = self.agreement.participants
        self.slots = slots(self.holders)
        self.keys = np.zeros((n, 32), np.uint8)
        self.signatures = np.zeros((n, 64), np.uint8)
        self.known = np.zeros(n, np.bool_)

    def export(self) -> Message:
        """Everything that changes, for `restore`: public keys, ciphertexts, and what members answered in this round."""
        shared, masked, signed = self.shared, self.masked, self.signed or {}
        parts: dict[str, Value] = {}
        if shared is not None:
            parts |= {
                "shared": shared.round, "there": shared.there, "boxes": shared.boxes,
                "recovery": shared.recovery, "commitments": shared.commitments,
            }  # fmt: skip
        if masked is not None:
            parts |= {"total": masked[0], "survivors": masked[1]}
        if signed:
            parts |= {"signers": signed["signers"], "signed": signed["signatures"]}
        return Message(
            "session", name=self.name, holders=self.holders, opened=self.opened, advertised=self.advertised, keys=self.keys,
            signatures=self.signatures, known=self.known, checked=self.signed is not None, **parts,
        )  # fmt: skip

    def restore(self, state: Message) -> None:
        """Continue from an exported state.

        Raises:
            WireError: it is not that of a session with this agreement.
        """
        agreement = self.agreement
        n, size = agreement.participants, agreement.holders

        def flags(name: str) -> Flags:
            return np.array(state.array(name, dtype="?", shape=(n,)), np.bool_)

        def octets(name: str, *shape: int) -> Bytes:
            return np.array(state.array(name, dtype="u1", shape=(n, *shape)), np.uint8)

        self.name = state.blob("name", length=16)
        self.holders = np.array(state.array("holders", dtype="<i8", shape=(n, size)), np.int64)
        self.slots = slots(self.holders)
        self.opened = state.integer("opened", low=0)
        self.advertised = state.fields.get("advertised") is True
        self.keys, self.signatures = octets("keys", 32), octets("signatures", 64)
        self.known = flags("known")
        self.shared = self.masked = self.signed = None
        if "shared" in state.fields:
            self.shared = _Shared(
                state.integer("shared", low=0),
                flags("there"),
                octets("boxes", size, BOX),
                octets("recovery", size, SEED),
                octets("commitments", 2, 32),
            )
        if "total" in state.fields:
            total = state.array("total", shape=(agreement.length,))
            self.masked = np.array(total, agreement.dtype), flags("survivors")
        if state.fields.get("checked") is True:
            self.signed = {}
            if agreement.adversary is Adversary.ACTIVE:
                found = {"signers": flags("signers"), "signatures": octets("signed", 64)}
                self.signed |= found

    def of_round(self, round: int) -> _Shared:
        """What was shared for a round.

        Raises:
            ProtocolError: nothing was.
        """
        if self.shared is None or self.shared.round != round:
            raise ProtocolError(f"nothing was shared for round {round}: ShareKeys comes first")
        return self.shared

    def numbered(self, flags: Flags) -> Iterable[tuple[int, Role]]:
        """The flagged members."""
        return ((int(number), self.roles[number]) for number in np.flatnonzero(flags))


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """What the server learns of a round.

    Args:
        mean: the mean of the survivors' clipped updates, weighted by examples, float64; with noise: see
            `Agreement.decoded`.
        examples: behind it, in all; with noise: how many survived.
        survivors: who is in it.
        clipped: the share of their values that had to be clipped; with noise: 0, since that is not told.
        missing: who did not take part, or not to the end, and why.
        cheated: who returned wrong shares, or dealt them: more are off than others who collude could make it seem. Assumes
            that of no secret more than (shares - threshold) / 2 are wrong.
        disputed: dealer and holder of other shares that are off, where either may be at fault.
    """

    mean: npt.NDArray[np.float64] = field(repr=False)
    examples: int
    survivors: tuple[Role, ...]
    clipped: float
    missing: Mapping[Role, str]
    cheated: tuple[Role, ...] = ()
    disputed: tuple[tuple[Role, Role], ...] = ()


def _wave(
    session: Session,
    requests: Mapping[Role, Message],
    take: Callable[[int, Message], None],
    *,
    at_least: int,
    name: str,
) -> None:
    """Post, and hand each reply on as it comes; a member whose reply is a refusal, or refused by ``take``, is missing.

    Raises:
        TooFewParties: fewer than ``at_least`` are left.
        CheatingDetected, Diverged: the same, and a member says so: its own error says more.
    """
    hub = session.hub
    numbers = {role: number for number, role in enumerate(session.roles)}
    missing = dict.fromkeys(sorted(requests), f"{name}: {SILENT}")
    telling: list[TacitError] = []
    ticket = hub.post(requests)
    for role, reply in first_replies(hub, ticket, requests, deadline=session.deadline):
        try:
            if reply.tag == REFUSED:
                raise as_error(role, reply)
            with hub.cost.timed(hub.coordinator):
                take(numbers[role], reply)
            del missing[role]
        except TacitError as error:
            missing[role] = f"{name}: {error}"
            telling += [error] if isinstance(error, CheatingDetected | Diverged) else []
    session.missing |= missing
    if len(requests) - len(missing) < at_least:
        for told in telling:
            raise told
        replied = sorted(role for role in requests if role not in missing)
        raise TooFewParties(at_least, replied, missing, wave=name)


def open_session(
    hub: Hub,
    agreement: Agreement,
    *,
    coins: Coins,
    round: int = 0,
    deadline: Seconds = 600.0,
    masks: Masks = Masks.BOTH,
    threads: int = 1,
) -> Session:
    """A session with a name and a graph, in which nothing was sent so far.

    Args:
        hub: the star; its members, in order, have the numbers from 0.
        agreement: what was agreed on.
        coins: for the session's name and the graph.
        round: the first round.
        deadline: seconds that each wave of the session may take.
        masks: NONE for controls.
        threads: in which masks are expanded.

    Raises:
        ConfigError: the hub has another number of members.
    """
    n, sharing = agreement.participants, agreement.sharing
    roles = tuple(hub.members())
    if len(roles) != n:
        raise ConfigError(f"{n} members were agreed on, the hub has {len(roles)}")
    return Session(
        hub=hub,
        agreement=agreement,
        name=coins.bytes(16),
        roles=roles,
        holders=complete(n) if sharing.degree == n - 1 else regular(n, sharing.degree, coins),
        deadline=deadline,
        masks=masks,
        threads=threads,
        opened=round,
    )


def collect_keys(session: Session, *, coins: Coins, registry: Sequence[bytes] = ()) -> None:
    """[6] R0: have the members advertise their keys.

    Args:
        session: one that was opened.
        coins: for a key pair that tells keys of low order.
        registry: everybody's public signing keys by number, for the active variant: who did not sign its key is left out.

    Raises:
        ConfigError: the active variant's registry is missing.
        TooFewParties: fewer than the threshold advertised a usable key.

    **Leaks**: to the server, public keys. **Cost**: 1 wave.
    """
    agreement, roles = session.agreement, session.roles
    n, name = agreement.participants, session.name
    if agreement.adversary is Adversary.ACTIVE and len(registry) != n:
        raise ConfigError(f"the active variant needs a registry of {n} public signing keys")
    probe = keys.generate(coins)
    seen: set[bytes] = set()

    def take(number: int, reply: Message) -> None:
        public = reply.blob("public", length=32)
        signature = reply.blob("signature")
        try:
            keys.agree(probe, public)
        except DecryptionFailed:
            raise CheatingDetected(f"{roles[number]} advertised a key of low order") from None
        if public in seen:
            raise CheatingDetected(f"{roles[number]} advertised another member's key")
        if agreement.adversary is Adversary.ACTIVE:
            said = agreement.said_of_key(name, number, public)
            keys.verify(signature, said, signer=registry[number], what=f"{roles[number]}'s key")
            session.signatures[number] = np.frombuffer(signature, np.uint8)
        seen.add(public)
        session.keys[number] = np.frombuffer(public, np.uint8)
        session.known[number] = True

    request = Message("advertise", session=name, round=session.opened, **agreement.fields())
    session.keep()
    with session.hub.cost.during(phase="advertise"):
        _wave(
            session, dict.fromkeys(roles, request), take, at_least=agreement.sharing.threshold,
            name="AdvertiseKeys",
        )  # fmt: skip
    session.advertised = True
    session.keep()


def advertise_keys(
    hub: Hub,
    agreement: Agreement,
    *,
    coins: Coins,
    round: int = 0,
    registry: Sequence[bytes] = (),
    deadline: Seconds = 600.0,
    masks: Masks = Masks.BOTH,
    threads: int = 1,
) -> Session:
    """Open a session, and [6] R0: see `open_session` and `collect_keys`."""
    session = open_session(
        hub, agreement, coins=coins, round=round, deadline=deadline, masks=masks, threads=threads
    )
    collect_keys(session, coins=coins, registry=registry)
    return session


def share_keys(session: Session, *, round: int) -> None:
    """[6] R1: have the members share their secrets of a round.

    Raises:
        TooFewParties: fewer than the threshold did.

    **Leaks**: to the server, ciphertexts. **Cost**: 1 wave.
    """
    shared = _Shared.empty(round, session.agreement)
    requests = {
        role: _ask_to_share(session, number, round)
        for number, role in session.numbered(session.known)
    }
    with session.hub.cost.during(phase="share"):
        _wave(
            session, requests, shared.take, at_least=session.agreement.sharing.threshold,
            name=f"ShareKeys of round {round}",
        )  # fmt: skip
    session.shared = shared
    session.keep()


def _ask_to_share(session: Session, number: int, round: int) -> Message:
    """With the neighbours' keys, which only a member that never got them looks at."""
    before = session.shared
    if before is not None and before.there[number]:
        return Message("share", session=session.name, round=round)
    holders = session.holders[number]
    signed: dict[str, Value] = {}
    if session.agreement.adversary is Adversary.ACTIVE:
        signed["signatures"] = session.signatures[holders]
    return Message(
        "share", session=session.name, round=round, holders=holders, known=session.known[holders],
        keys=session.keys[holders], **signed,
    )  # fmt: skip


def masked_input(session: Session, model: Sequence[Array], *, round: int) -> tuple[Integers, Flags]:
    """[6] R2: hand out the shares and the model, and sum the masked updates as they come.

    Returns:
        The sum of the survivors' masked vectors, (dimension + 2,), and who they are, (n,).

    Raises:
        TooFewParties: fewer than `Agreement.least_sum` sent one.
        CheatingDetected: the same, because a member's sealed shares do not open.

    **Leaks**: to the server, masked vectors; to members, who shared. **Cost**: 1 wave.
    """
    agreement, shared = session.agreement, session.of_round(round)
    total: Integers = np.zeros(agreement.length, agreement.dtype)
    survivors = np.zeros(agreement.participants, np.bool_)
    length = packed_bytes(agreement.length, agreement.width)

    def take(number: int, reply: Message) -> None:
        packed = reply.array("vector", dtype="u1", shape=(length,))
        unpack_add(packed.view(np.uint8), total, agreement.width)
        survivors[number] = True

    requests = {}
    for number, role in session.numbered(shared.there):
        holders = session.holders[number]
        senders = shared.there[holders]
        boxes = shared.boxes[holders[senders], session.slots[number][senders]]
        requests[role] = Message(
            "mask",
            session=session.name,
            round=round,
            senders=senders,
            boxes=boxes,
            model=list(model),
        )
    with session.hub.cost.during(phase="mask"):
        _wave(
            session, requests, take, at_least=agreement.least_sum,
            name=f"MaskedInput of round {round}",
        )  # fmt: skip
    return total, survivors


def consistency_check(session: Session, survivors: Flags, *, round: int) -> dict[str, Value]:
    """[6] R3, active variant: have the survivors sign who they are.

    Returns:
        Fields of the next wave: who signed, (n,), and the signatures, (n, 64).

    Raises:
        TooFewParties: fewer than the threshold signed.

    **Leaks**: to members, who survived. **Cost**: 1 wave.
    """
    n = session.agreement.participants
    signers, signatures = np.zeros(n, np.bool_), np.zeros((n, 64), np.uint8)

    def take(number: int, reply: Message) -> None:
        signature = reply.blob("signature", length=64)
        signatures[number] = np.frombuffer(signature, np.uint8)
        signers[number] = True

    request = Message("check", session=session.name, round=round, survivors=survivors)
    requests = {role: request for _, role in session.numbered(survivors)}
    with session.hub.cost.during(phase="check"):
        _wave(
            session, requests, take, at_least=session.agreement.sharing.threshold,
            name=f"ConsistencyCheck of round {round}",
        )  # fmt: skip
    return {"signers": signers, "signatures": signatures}


def unmask(
    session: Session,
    survivors: Flags,
    signed: Mapping[str, Value],
    *,
    round: int,
    share_next: bool,
) -> tuple[Bytes, Flags]:
    """[6] R4: collect the shares that open this sum, and recover one secret of everybody in U2.

    With ``share_next``, the members' shares for the next round come on the same wave, and those who dropped out
    are asked for theirs, so that they are back in the next round.

    Returns:
        The secrets, (n, 16): b_v of survivors, q_v of those who dropped out, zero elsewhere; and which shares were off, by
        dealer and place among its holders.

    Raises:
        TooFewParties: a secret has fewer than the threshold of shares.
        CheatingDetected: shares do not open what was committed to; names who dealt them.

    **Leaks**: to the server, these secrets. **Cost**: 1 wave.
    """
    agreement, shared = session.agreement, session.of_round(round)
    n, size, threshold = agreement.participants, agreement.holders, agreement.sharing.threshold
    table = np.zeros((n, size, shamir.LIMBS), np.uint64)
    there = np.zeros((n, size), np.bool_)
    following = _Shared.empty(round + 1, agreement) if share_next else None
    requests: dict[Role, Message] = {}
    asked = survivors.copy()
    if "signers" in signed:  # who did not sign the list cannot unmask by it
        asked &= np.asarray(signed["signers"], np.bool_)
    for number, role in session.numbered(session.known):
        if asked[number]:
            requests[role] = Message(
                "unmask", session=session.name, round=round, survivors=survivors[session.holders[number]],
                next=int(share_next), **signed,
            )  # fmt: skip
        elif share_next:
            requests[role] = _ask_to_share(session, number, round + 1)

    def take(number: int, reply: Message) -> None:
        inside: Flags = np.ones(1, np.bool_)
        if asked[number]:  # these shares count, even if those for the next round are no good
            senders = shared.there[session.holders[number]]
            shares = reply.array("shares", dtype="<u8", shape=(int(senders.sum()), shamir.LIMBS))
            dealers, places = session.holders[number][senders], session.slots[number][senders]
            inside = np.all(shares.view(np.uint64) < shamir.PRIME, axis=1)
            table[dealers, places], there[dealers, places] = shares, inside
        if following is not None:
            following.take(number, reply)
        if not inside.all():
            raise CheatingDetected(f"{session.roles[number]} returned shares outside the field")

    name = f"Unmask of round {round}"
    hub = session.hub
    with hub.cost.during(phase="unmask"):
        _wave(session, requests, take, at_least=0, name=name)
        session.shared = following
        with hub.cost.timed(hub.coordinator):
            wanted = shared.there & survivors[session.holders].any(1)
            few = np.flatnonzero(wanted & (there.sum(1) < threshold))
            if few.size:
                replied = [session.roles[i] for i in session.holders[few[0]][there[few[0]]]]
                where = f"{name}, secret of {session.roles[few[0]]}"
                raise TooFewParties(threshold, replied, session.missing, wave=where)
            which = np.where(survivors, SELF, RECOVERY)

            def fits(number: int, secret: Bytes) -> bool:
                committed = shared.commitments[number, which[number]]
                return bool((commitment(secret, session.name, round, number) == committed).all())

            table[~there] = 0
            returned = Returned(
                names=session.roles,
                holders=session.holders,
                shares=table,
                there=there,
                wanted=wanted,
            )
            # to tell a holder that lies from dealers who do, its shares must be off for more of these than may collude
            return returned.recover(threshold, fits, decode=min(agreement.colluders + 1, _DECODED))


def _take_masks_away(
    session: Session,
    shared: _Shared,
    total: Integers,
    survivors: Flags,
    secrets: Bytes,
    model: Sequence[Array],
) -> None:
    """[6] R4: subtract PRG(b_u) of survivors, and what survivors added for those who dropped out."""
    alive = np.flatnonzero(survivors)
    own = np.stack([self_mask(secrets[u]) for u in alive])
    pairwise, signs = [np.zeros((0, SEED), np.uint8)], [np.full(len(alive), -1, np.int8)]
    for v in np.flatnonzero(shared.there & ~survivors):
        holders = session.holders[v]
        left = survivors[holders]
        pairwise.append(concealed(shared.recovery[v], secrets[v])[left])
        signs.append(np.where(holders[left] < v, -1, 1).astype(np.int8))
    seeds = np.concatenate([own, for_model(np.concatenate(pairwise), model)])
    expand_add(total, seeds, np.concatenate(signs), threads=session.threads)


def aggregate(
    session: Session, model: Sequence[Array], *, round: int, share_next: bool = False
) -> Aggregate:
    """One round: masked inputs, the consistency check where that was agreed on, unmasking.

    Args:
        session: an open session in which secrets of the round were shared.
        model: what the members' work starts from.
        round: its number.
        share_next: another round of this session follows.

    Raises:
        TooFewParties: too few were left at some wave.
        CheatingDetected: somebody's messages do not fit; names who.

    After an error the session's round is lost, and its secrets are never used again; no part of an update was opened.

    **Cost**: 2 waves, 3 in the active variant.
    """
    agreement, hub = session.agreement, session.hub
    try:
        shared = session.of_round(round)
        if session.masked is None:
            session.masked = masked_input(session, model, round=round)
            session.keep()
        total, survivors = session.masked[0].copy(), session.masked[1]
        if session.signed is None:
            session.signed = {}
            if agreement.adversary is Adversary.ACTIVE:
                session.signed = consistency_check(session, survivors, round=round)
            session.keep()
        signed = session.signed
        secrets, off = unmask(session, survivors, signed, round=round, share_next=share_next)
        with hub.cost.during(phase="unmask"), hub.cost.timed(hub.coordinator):
            if session.masks is Masks.BOTH:
                _take_masks_away(session, shared, total, survivors, secrets, model)
            total &= agreement.dtype((1 << agreement.width) - 1)
            count = int(survivors.sum())
            most, examples = count * agreement.most, int(total[-EXTRA])
            if int(total.max()) > most or not count <= examples <= count * agreement.max_examples:
                raise CheatingDetected(
                    f"round {round}: the sum is more than {count} updates in range can give: a member sent something else"
                )
            mean = agreement.decoded(total[:-EXTRA], count, examples)
        cheated, disputed = at_fault(off, session.holders, agreement.colluders)
        return Aggregate(
            mean=mean,
            examples=examples,
            survivors=tuple(role for _, role in session.numbered(survivors)),
            clipped=int(total[-1]) / agreement.most / count,
            missing=session.missing,
            cheated=tuple(session.roles[number] for number in sorted(cheated)),
            disputed=tuple((session.roles[v], session.roles[w]) for v, w in disputed),
        )
    finally:  # a later round's account begins anew
        session.missing, session.masked, session.signed = {}, None, None
