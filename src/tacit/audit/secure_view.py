"""Whether a server that looks at its view of secure aggregation can tell anything but the sums.

A check runs the protocol of `tacit.parties.secure_sum` between a few members, with inputs of its own that would show at
once if nothing hid them, records what every role saw, and does what a curious server would: it recovers each secret that
the members opened, takes away each mask that follows from it, and looks at what is left. Where something must be refused,
the check plays the server by hand. Each check names the rate at which it would blame an honest member; where it has a
p-value, the threshold is that rate.

A check that nothing fails shows nothing: `tacit.audit.secure_mutants` has members with one mistake each, and each names the
check that must catch it.

Statistics find what is there to be found by frequencies of bytes and bits. They do not show that masks are
indistinguishable from noise: that is the argument in `tacit.parties.secure_sum`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from tacit.core.coins import Coins
from tacit.core.errors import CheatingDetected, ConfigError, TacitError, UnknownName
from tacit.core.wire import Array, Message
from tacit.crypto import shamir
from tacit.crypto.masks import expand_add
from tacit.crypto.packing import unpack
from tacit.nn.updates import LocalUpdate
from tacit.parties.faults import Fault, Harm
from tacit.parties.links.local import LocalHub
from tacit.parties.neighbours import Sharing
from tacit.parties.roles import SERVER, Role, owners
from tacit.parties.secure_sum.agreement import (
    BOX,
    Adversary,
    Agreement,
    Bytes,
    Flags,
    Integers,
    Masks,
    concealed,
    for_model,
    least_threshold,
    self_mask,
)
from tacit.parties.secure_sum.member import SecureAggregationMember
from tacit.parties.secure_sum.server import (
    Aggregate,
    Session,
    advertise_keys,
    aggregate,
    masked_input,
    share_keys,
)
from tacit.parties.star import ask
from tacit.parties.views import FULL, View

Floats = npt.NDArray[np.float32]
Grid = npt.NDArray[np.int64]

ENDED = "the run ended early"
FALSE_ALARM = 1e-6
"""A p-value below this fails a check."""

BITS = 16
STEP = 2.0**-15
CLIP = ((1 << BITS) - 1) * STEP / 2
"""With a step that is a power of two, values of the grid are quantised exactly, and sums can be compared exactly."""

_DEADLINE = 600.0
_NEVER = 0.0  # false-alarm rate of what has no chance in it, or less than 2^-100


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Whose protocol is checked, and how large.

    Args:
        member: the member's class.
        masks: none for the control.
        members: how many, at least 5.
        dimension: values of an update, where they are counted; the other checks take few.
        rounds: of one session, at least 2; in each, another member's masked vector comes too late.
        seed: of keys, masks and inputs.

    Raises:
        ConfigError: there are fewer members, rounds or values than the checks need.
    """

    member: type[SecureAggregationMember] = SecureAggregationMember
    masks: Masks = Masks.BOTH
    members: int = 6
    dimension: int = 60_000
    rounds: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.members < 5 or self.rounds < 2 or self.dimension < 1:
            raise ConfigError(
                f"5 members, 2 rounds and 1 value at least expected, got {self.members}, {self.rounds} and {self.dimension}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found.

    Args:
        name: of the check.
        passed: whether the server could tell nothing, or was refused what it must not get.
        says: in a sentence.
        false_alarm: how often an honest member would fail it.
        p_value: where the check is statistical.
        n: values, secrets or requests that it rests on.
    """

    name: str = ""
    passed: bool
    says: str
    false_alarm: float = _NEVER
    p_value: float | None = None
    n: int = 0


Check = Callable[[Subject], Finding]


def examine(subject: Subject, name: str) -> Finding:
    """One check. A protocol that does not come to its end fails it.

    Raises:
        UnknownName: there is no check of that name.
    """
    if name not in CHECKS:
        raise UnknownName("check", name, CHECKS)
    try:
        return replace(CHECKS[name](subject), name=name)
    except TacitError as error:
        return Finding(name=name, passed=False, says=f"{ENDED}: {error}")


def battery(subject: Subject) -> tuple[Finding, ...]:
    """All checks."""
    return tuple(examine(subject, name) for name in CHECKS)


def combined(p_values: Iterable[float | None]) -> float:
    """One p-value for several, Bonferroni's: the least times their number, at most 1. None is left out."""
    there = [p_value for p_value in p_values if p_value is not None]
    return min(1.0, len(there) * min(there)) if there else 1.0


# --- runs of the protocol


@dataclass(frozen=True, slots=True)
class _Given:
    """Work whose updates are given: (rounds, dimension)."""

    values: Floats

    def update(self, model: Sequence[Array], round: int) -> LocalUpdate:
        """The update of a round; there is no model."""
        del model
        return LocalUpdate(arrays=(self.values[round],), examples=1)


def _opened_session(
    subject: Subject,
    values: Floats,
    label: str,
    *,
    faults: Sequence[Fault] = (),
    like: Sequence[Array] = (),
) -> tuple[LocalHub, Session]:
    """A star whose members have shared their secrets of round 0.

    Args:
        subject: whose protocol.
        values: (members, rounds, dimension).
        label: of the coins: each run of a check has its own.
        faults: what goes wrong.
        like: of the model's shapes; most checks have none.
    """
    count, rounds, dimension = values.shape
    agreement = Agreement(
        participants=count,
        dimension=dimension,
        clip=CLIP,
        bits=BITS,
        max_examples=1,
        adversary=Adversary.SEMI_HONEST,
        sharing=Sharing(degree=count - 1, threshold=least_threshold(count, Adversary.SEMI_HONEST)),
    )
    coins = Coins.from_seed(f"audit/secure/{subject.seed}/{label}".encode())
    members = {
        role: subject.member(
            _Given(values[number]),
            agreement,
            number,
            coins=coins.child(f"member/{role}"),
            rounds=rounds,
            like=like,
            masks=subject.masks,
        )
        for number, role in enumerate(owners(count))
    }
    hub = LocalHub(members, recording=FULL, faults=faults)
    session = advertise_keys(
        hub, agreement, coins=coins.child("server"), deadline=_DEADLINE, masks=subject.masks
    )
    share_keys(session, round=0)
    return hub, session


def _aggregates(session: Session, rounds: int) -> list[Aggregate | None]:
    """What the server learns of each round; None where it says that the sum cannot be right, and goes on."""
    found: list[Aggregate | None] = []
    for round in range(rounds):
        try:
            found.append(aggregate(session, [], round=round, share_next=round + 1 < rounds))
        except CheatingDetected:
            found.append(None)
    return found


def _missing_in_turn(members: int, rounds: Iterable[int], harm: Harm) -> list[Fault]:
    """In each of the rounds another member's masked vector is late, or lost."""
    seconds = 1.2 * _DEADLINE if harm is Harm.DELAY else 0.0
    return [
        Fault(role=Role("owner", place % members), at=2 + 2 * round, harm=harm, seconds=seconds)
        for place, round in enumerate(rounds)
    ]


def _generator(subject: Subject) -> torch.Generator:
    return torch.Generator().manual_seed(subject.seed)


def _narrow(subject: Subject, dimension: int, middle: float = 0.25) -> Floats:
    """Inputs that differ little from each other, (members, rounds, dimension): whatever shows of them shows at once."""
    shape = (subject.members, subject.rounds, dimension)
    drawn = torch.rand(shape, generator=_generator(subject)).numpy()
    return np.asarray(middle + 0.01 * (drawn - 0.5), np.float32)


def _on_grid(subject: Subject, members: int, rounds: int, dimension: int = 64) -> Grid:
    """Integers of the quantiser's grid, the ends among them, (members, rounds, dimension)."""
    shape = (members, rounds, dimension)
    drawn = torch.randint(0, 1 << BITS, shape, generator=_generator(subject)).numpy()
    drawn[..., 0], drawn[..., 1] = 0, (1 << BITS) - 1
    return drawn


def _values(grid: Grid) -> Floats:
    return (grid * STEP - CLIP).astype(np.float32)


def _is_mean(found: Aggregate | None, grid: Grid) -> bool:
    """Whether the mean is exactly that of the survivors' integers, (members, dimension)."""
    if found is None:
        return False
    places = [role.index for role in found.survivors]
    mean = (grid[places].sum(0) * STEP - len(places) * CLIP) / len(places)
    return bool(np.abs(found.mean - mean).max() < STEP / len(places) / 1000)


# --- what the server can compute


@dataclass(frozen=True, slots=True, kw_only=True)
class Disclosed:
    """What follows from the server's view.

    Args:
        masked: vectors as they came, by (round, member).
        survivors: who is in the sum, by round.
        paired: the same vectors, opened self-masks taken away.
        bare: the same vectors, every mask taken away that follows from the opened secrets.
        secrets: opened self-mask seeds, recovery keys and pairwise seeds.
        shares: the shares that members returned.
        boxes: the sealed shares that the server relayed.
        width: bits of a vector's value.
    """

    masked: Mapping[tuple[int, int], Integers] = field(repr=False)
    survivors: Mapping[int, Flags]
    paired: Mapping[tuple[int, int], Integers] = field(repr=False)
    bare: Mapping[tuple[int, int], Integers] = field(repr=False)
    secrets: Mapping[str, list[bytes]] = field(repr=False)
    shares: frozenset[bytes] = field(repr=False)
    boxes: bytes = field(repr=False)
    width: int

    def survived(self, round: int, member: int) -> bool:
        """Whether a member is in the sum of the round."""
        return bool(self.survivors[round][member])


@dataclass(slots=True)
class _Frames:
    """The server's frames, sorted; by (round, member)."""

    masked: dict[tuple[int, int], Integers] = field(default_factory=dict)
    shared: dict[tuple[int, int], Message] = field(default_factory=dict)
    survivors: dict[int, Flags] = field(default_factory=dict)
    senders: dict[int, Flags] = field(default_factory=dict)
    models: dict[int, list[Array]] = field(default_factory=dict)
    returned: dict[tuple[int, int], list[tuple[int, Integers]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def take(self, number: int, request: Message, reply: Message, agreement: Agreement) -> None:
        """Sort in one reply of a member of the complete graph."""
        if reply.tag not in ("shares", "masked", "unmasked"):
            return
        round = request.integer("round")
        if "boxes" in reply.fields:
            self.shared[round + (reply.tag == "unmasked"), number] = reply
        if reply.tag == "masked":
            packed = np.array(reply.array("vector", dtype="u1"), np.uint8)
            self.senders[round] = np.array(request.array("senders"), np.bool_)
            self.models[round] = request.arrays("model")
            self.masked[round, number] = unpack(
                packed, agreement.length, agreement.width, agreement.dtype
            )
        if reply.tag == "unmasked" and request.tag == "unmask":
            self.survivors[round] = np.array(request.array("survivors"), np.bool_)
            shares = np.array(reply.array("shares", dtype="<u8"), np.uint64)
            dealers = np.flatnonzero(self.senders[round]).tolist()
            for dealer, share in zip(dealers, shares, strict=True):
                self.returned[round, dealer].append((number, share))


def disclosed(view: View, agreement: Agreement) -> Disclosed:
    """Compute what a curious server can from its view of a session over the complete graph.

    Written from the protocol's description, not with the server's code.
    """
    asked = {(frame.wave, frame.peer): frame.message() for frame in view.sent()}
    frames = _Frames()
    for frame in view.frames():
        request = asked[frame.wave, frame.peer]
        frames.take(frame.peer.index, request, frame.message(), agreement)
    own: dict[tuple[int, int], Bytes] = {}
    pairwise_seeds: dict[tuple[int, int], Bytes] = {}
    secrets: dict[str, list[bytes]] = {"self": [], "recovery": [], "pairwise": []}
    for (round, dealer), returned in frames.returned.items():
        secret = _recovered(returned, agreement.sharing.threshold)
        if frames.survivors[round][dealer]:
            own[round, dealer] = self_mask(secret)
            secrets["self"].append(secret.tobytes())
            continue
        secrets["recovery"].append(secret.tobytes())
        encrypted = np.array(frames.shared[round, dealer].array("recovery", dtype="u1"), np.uint8)
        seeds = concealed(encrypted, secret)
        pairwise_seeds[round, dealer] = for_model(seeds, frames.models[round])
        others = np.arange(agreement.participants) != dealer
        secrets["pairwise"] += [one.tobytes() for one in seeds[others & frames.senders[round]]]
    paired: dict[tuple[int, int], Integers] = {}
    bare: dict[tuple[int, int], Integers] = {}
    for (round, number), vector in frames.masked.items():
        mask, opened = own.get((round, number)), _of_round(pairwise_seeds, round)
        paired[round, number] = _taken_away(vector, number, mask, {}, agreement)
        bare[round, number] = _taken_away(vector, number, mask, opened, agreement)
    boxes = [m.array("boxes", dtype="u1").tobytes() for m in frames.shared.values()]
    return Disclosed(
        masked=frames.masked,
        survivors=frames.survivors,
        paired=paired,
        bare=bare,
        secrets=secrets,
        shares=frozenset(s.tobytes() for found in frames.returned.values() for _, s in found),
        boxes=b"".join(boxes),
        width=agreement.width,
    )


def _recovered(returned: Sequence[tuple[int, Integers]], threshold: int) -> Bytes:
    shares = np.stack([share for _, share in returned[:threshold]])[None]
    points = np.array([[holder + 1 for holder, _ in returned[:threshold]]], np.uint64)
    secrets, _ = shamir.recover(shares, points)
    first: Bytes = secrets[0]
    return first


def _of_round(seeds: Mapping[tuple[int, int], Bytes], round: int) -> dict[int, Bytes]:
    return {dealer: found for (when, dealer), found in seeds.items() if when == round}


def _taken_away(
    vector: Integers,
    number: int,
    own: Bytes | None,
    opened: Mapping[int, Bytes],
    agreement: Agreement,
) -> Integers:
    """A member's vector without its opened self-mask, and without the masks that it shares with whoever was opened."""
    seeds = [] if own is None else [own]
    signs = [] if own is None else [-1]
    for dealer, pairs in opened.items():
        if dealer == number:  # its own: all of them
            others = [other for other in range(agreement.participants) if other != number]
            seeds += [pairs[other] for other in others]
            signs += [-1 if other > number else 1 for other in others]
        else:
            seeds.append(pairs[number])
            signs.append(-1 if dealer > number else 1)
    left = vector.copy()
    if seeds:
        expand_add(left, np.stack(seeds), np.array(signs, np.int8))
    return _within(left, agreement.width)


def _within(vector: Integers, width: int) -> Integers:
    kept: Integers = vector & vector.dtype.type((1 << width) - 1)
    return kept


# --- statistics


def _shifts(width: int) -> list[int]:
    """Where bytes of a value begin: the low ones, and the one that ends with its highest bit."""
    return sorted({*range(0, width - 7, 8), width - 8})


def _histograms(vectors: Iterable[Integers], width: int) -> Grid:
    """How often each byte value occurs, (bytes of a value, 256)."""
    shifts = _shifts(width)
    counts = np.zeros((len(shifts), 256), np.int64)
    for vector in vectors:
        for row, shift in enumerate(shifts):
            part = (vector >> vector.dtype.type(shift)) & vector.dtype.type(255)
            counts[row] += np.bincount(part.astype(np.intp), minlength=256)
    return counts


def _p_uniform(vectors: Sequence[Integers], width: int) -> float:
    """Chi-square of every byte against the uniform distribution."""
    return combined([float(stats.chisquare(row).pvalue) for row in _histograms(vectors, width)])


def _p_same(one: Sequence[Integers], other: Sequence[Integers], width: int) -> float:
    """Chi-square of every byte for two samples of one distribution."""
    found = []
    for pair in zip(_histograms(one, width), _histograms(other, width), strict=True):
        table = np.stack(pair)
        found.append(float(stats.chi2_contingency(table[:, table.sum(0) > 0]).pvalue))
    return combined(found)


def _p_fair(secrets: Sequence[bytes]) -> float:
    """Whether every bit of the secrets falls like a coin: chi-square over the bits' places.

    For few secrets the statistic varies less than its limit does, so honest ones fail less often than stated.
    """
    bits = np.unpackbits(np.frombuffer(b"".join(secrets), np.uint8).reshape(len(secrets), -1), 1)
    n = len(secrets)
    statistic = float(((bits.sum(0) - n / 2) ** 2).sum() / (n / 4))
    return float(stats.chi2.sf(statistic, bits.shape[1]))


def _judged(p_value: float, n: int, says: str) -> Finding:
    return Finding(
        passed=p_value >= FALSE_ALARM,
        says=says,
        false_alarm=FALSE_ALARM,
        p_value=p_value,
        n=n,
    )


# --- checks: what the server sees


def _sight(subject: Subject, label: str, dimension: int | None = None) -> Disclosed:
    """A session in which one masked vector a round comes late: the server has it, and treats its sender as gone."""
    values = _narrow(subject, dimension or subject.dimension)
    late = _missing_in_turn(subject.members, range(subject.rounds), Harm.DELAY)
    hub, session = _opened_session(subject, values, label, faults=late)
    _aggregates(session, subject.rounds)
    list(hub.replies(deadline=10 * _DEADLINE))  # what is still on its way
    return disclosed(hub.views[SERVER], session.agreement)


def _size(vectors: Sequence[Integers]) -> int:
    return sum(len(vector) for vector in vectors)


def _masked(subject: Subject) -> Finding:
    seen = _sight(subject, "masked")
    vectors = list(seen.masked.values())
    p_value = _p_uniform(vectors, seen.width)
    return _judged(p_value, _size(vectors), "bytes of masked values against uniform ones")


def _self_masks_opened(subject: Subject) -> Finding:
    # Of one round's vectors the last follows from the others and the sum; any two of three or more are independent.
    seen = _sight(subject, "self-masks opened")
    kinds = [
        [left for key, left in vectors.items() if seen.survived(*key)]
        for vectors in (seen.paired, seen.bare)
    ]
    return _judged(
        combined([_p_uniform(vectors, seen.width) for vectors in kinds]),
        sum(map(_size, kinds)),
        "bytes of survivors' values, without self-masks, and without masks shared with who dropped out too",
    )


def _late(subject: Subject) -> Finding:
    seen = _sight(subject, "late")
    vectors = [left for key, left in seen.bare.items() if not seen.survived(*key)]
    p_value = _p_uniform(vectors, seen.width)
    return _judged(
        p_value,
        _size(vectors),
        "bytes of values that came late, after their sender's pairwise masks were opened",
    )


def _two_rounds(subject: Subject) -> Finding:
    # Masks of one pair that came again would cancel, so they are not taken away here, even where they were opened.
    seen = _sight(subject, "two rounds")
    masked, paired = [], []
    for number in range(subject.members):
        for first, second in pairwise(range(subject.rounds)):
            masked.append(_difference(seen.masked, first, second, number, seen.width))
            if seen.survived(first, number) and seen.survived(second, number):
                paired.append(_difference(seen.paired, first, second, number, seen.width))
    p_value = combined([_p_uniform(vectors, seen.width) for vectors in (masked, paired)])
    return _judged(
        p_value,
        _size(masked) + _size(paired),
        "bytes of the difference of a member's values of successive rounds, as they came and without self-masks",
    )


def _difference(
    vectors: Mapping[tuple[int, int], Integers], first: int, second: int, number: int, width: int
) -> Integers:
    return _within(vectors[second, number] - vectors[first, number], width)


def _opened_secrets(subject: Subject) -> Finding:
    seen = _sight(replace(subject, rounds=8), "opened secrets", dimension=16)
    everything = [secret for found in seen.secrets.values() for secret in found]
    twice = len(everything) - len(set(everything))
    p_value = (
        0.0 if twice else combined([_p_fair(found) for found in seen.secrets.values() if found])
    )
    return _judged(
        p_value,
        len(everything),
        f"bits of opened self-mask seeds, recovery keys and pairwise seeds; {twice} of {len(everything)} came again",
    )


def _two_inputs(subject: Subject) -> Finding:
    runs = []
    for middle in (-0.75, 0.75):
        values = _narrow(subject, subject.dimension, middle)
        values[0] = _narrow(subject, subject.dimension)[0]  # the adversary's own does not change
        lost = _missing_in_turn(subject.members, range(1, subject.rounds), Harm.DROP)
        hub, session = _opened_session(subject, values, f"two inputs {middle}", faults=lost)
        _aggregates(session, subject.rounds)
        seen = disclosed(hub.views[SERVER], session.agreement)
        runs.append((_shapes(hub), list(seen.masked.values()), seen.width))
    (shape, one, width), (other_shape, other, _) = runs
    p_value = _p_same(one, other, width)
    same = shape == other_shape
    says = "number, order, size, tags and destinations of messages " + (
        "are the same" if same else "differ"
    )
    found = _judged(
        p_value, _size(one) + _size(other), f"{says}; bytes of masked values, two samples"
    )
    return replace(found, passed=found.passed and same)


def _two_models(subject: Subject) -> Finding:
    # A model of which the server knows that it silences the others would open one member's update in the sum.
    models = [np.zeros(1, np.float32), np.ones(1, np.float32)]
    values = _narrow(subject, subject.dimension)
    hub, session = _opened_session(subject, values, "two models", like=models[:1])
    shared = session.of_round(0)
    requests = {
        role: Message(
            "mask",
            session=session.name,
            round=0,
            senders=shared.there,
            boxes=shared.boxes[:, number],
            model=[models[number == 0]],
        )
        for number, role in enumerate(session.roles)
    }
    ask(hub, requests, at_least=0)
    ask(hub, _asked_to_unmask(session, range(subject.members)), at_least=0)
    seen = disclosed(hub.views[SERVER], session.agreement)
    total: Integers = np.zeros(session.agreement.length, session.agreement.dtype)
    for vector in seen.paired.values():
        total += vector
    return _judged(
        _p_uniform([_within(total, seen.width)], seen.width),
        len(total),
        "bytes of the opened sum where one member was handed another model than the others",
    )


def _shapes(hub: LocalHub) -> list[tuple[Role, str, int, int, Role]]:
    """Every message, without what is in it."""
    received = [
        (sender, tag, size, wave, role)
        for role, view in hub.views.items()
        for sender, tag, size, wave in view.shape
    ]
    sent = [
        (role, frame.message().tag, len(frame.data), frame.wave, frame.peer)
        for role, view in hub.views.items()
        for frame in view.sent()
    ]
    return received + sent


# --- checks: what the sum is


def _exact_sum(subject: Subject) -> Finding:
    rounds = subject.members + 1
    grid = _on_grid(subject, subject.members, rounds)
    lost = _missing_in_turn(subject.members, range(1, rounds), Harm.DROP)
    _, session = _opened_session(subject, _values(grid), "exact sum", faults=lost)
    found = _aggregates(session, rounds)
    wrong = [r for r, one in enumerate(found) if not _is_mean(one, grid[:, r])]
    lost_one = [one is not None and len(one.survivors) < subject.members for one in found]
    return Finding(
        passed=not wrong and lost_one == [False] + [True] * subject.members,
        says=f"{len(wrong)} of {rounds} sums are not exact; in all but the first another member drops out",
        n=rounds,
    )


def _range(subject: Subject) -> Finding:
    grid = _on_grid(subject, subject.members, 1)
    beyond = grid.copy()
    size = grid.shape[2] // 2
    far = torch.randint(1, 3 << BITS, (size,), generator=_generator(subject)).numpy()
    beyond[0, 0, :size] = np.where(far % 2, (1 << BITS) - 1 + far, -far)
    _, session = _opened_session(subject, _values(beyond), "range")
    (found,) = _aggregates(session, 1)
    if found is None:
        return Finding(passed=False, says="the server refused a sum beyond the range", n=size)
    inside = float(np.abs(found.mean).max()) <= CLIP
    exact = _is_mean(found, np.clip(beyond, 0, (1 << BITS) - 1)[:, 0])
    share = size / grid.shape[2] / subject.members
    reported = abs(found.clipped - share) < 2.0 / (1 << BITS)
    return Finding(
        passed=inside and exact and reported,
        says=f"the mean lies {'within' if inside else 'beyond'} the range, is {'' if exact else 'not '}that of the limited "
        f"updates, and {found.clipped:.4%} of the values, of {share:.4%}, are reported as limited",
        n=size,
    )


def _not_finite(subject: Subject) -> Finding:
    grid = _on_grid(subject, subject.members, 1)
    values = _values(grid)
    odd = (np.nan, np.inf)
    for number, value in enumerate(odd):
        values[number, 0, 5] = value
    hub, session = _opened_session(subject, values, "not finite")
    (found,) = _aggregates(session, 1)
    sent = {f.peer.index for f in hub.views[SERVER].frames() if f.message().tag == "masked"}
    refused = not sent & set(range(len(odd)))
    exact = _is_mean(found, grid[:, 0])
    return Finding(
        passed=refused and exact,
        says=f"updates that are not finite were {'refused' if refused else 'sent'}; the others' sum is "
        f"{'' if exact else 'not '}exact",
        n=len(odd),
    )


# --- checks: what must be sealed, and refused


def _sealed_shares(subject: Subject) -> Finding:
    seen = _sight(subject, "sealed shares", dimension=16)
    open_ = sum(share in seen.boxes for share in seen.shares)
    return Finding(
        passed=not open_ and bool(seen.shares) and bool(seen.boxes),
        says=f"{open_} of {len(seen.shares)} returned shares stand in a box that the server relayed before",
        n=len(seen.shares),
    )


def _flipped_box(subject: Subject) -> Finding:
    hub, session = _opened_session(subject, _narrow(subject, 16), "flipped box")
    shared = session.shared
    for holder in range(subject.members if shared is not None else 0):
        place = holder * BOX // subject.members  # in both shares, and in the tag
        dealer = (holder + 1) % subject.members
        shared.boxes[dealer, holder, place] ^= 1 << holder % 8  # type: ignore[union-attr]
    said = ""
    try:
        masked_input(session, [], round=0)
    except TacitError as error:
        said = f" ({type(error).__name__})"
    answered = [f for f in hub.views[SERVER].frames() if f.message().tag == "masked"]
    return Finding(
        passed=not answered,
        says=f"{len(answered)} of {subject.members} members went on with a box in which a bit was flipped{said}",
        n=subject.members,
    )


def _asked_to_unmask(session: Session, survivors: Sequence[int]) -> dict[Role, Message]:
    """What the server says to those who, as it says, survived round 0."""
    flags = np.zeros(session.agreement.participants, np.bool_)
    flags[list(survivors)] = True
    request = Message("unmask", session=session.name, round=0, survivors=flags, next=0)
    return {session.roles[number]: request for number in survivors}


def _second_list(subject: Subject) -> Finding:
    hub, session = _opened_session(subject, _narrow(subject, 16), "second list")
    masked_input(session, [], round=0)
    everybody = range(subject.members)
    first = ask(hub, _asked_to_unmask(session, everybody[:-1]), at_least=0)
    second = ask(hub, _asked_to_unmask(session, everybody), at_least=0)
    again = ask(hub, _asked_to_unmask(session, everybody[:-1]), at_least=0)
    both = len(set(first) & set(second)) >= session.agreement.sharing.threshold
    answered = len(set(second) - {session.roles[-1]}) + len(again)  # the last was not asked before
    return Finding(
        passed=len(first) == subject.members - 1 and not answered,
        says=f"{len(first)} members answered the first list, {answered} requests with another or the same one were "
        f"answered after it; both secrets of a member are {'open' if both else 'not open'}",
        n=2 * (subject.members - 1),
    )


def _short_list(subject: Subject) -> Finding:
    hub, session = _opened_session(subject, _narrow(subject, 16), "short list")
    masked_input(session, [], round=0)
    few = session.agreement.sharing.threshold - 1
    answered = ask(hub, _asked_to_unmask(session, range(few)), at_least=0)
    return Finding(
        passed=not answered,
        says=f"{len(answered)} of {few} members would open a sum over fewer than the threshold",
        n=few,
    )


def _earlier_waves(subject: Subject) -> Finding:
    hub, session = _opened_session(subject, _narrow(subject, 16), "earlier waves")
    _aggregates(session, subject.rounds)
    before = [(frame.peer, frame.message()) for frame in hub.views[SERVER].sent()]
    answered = [m.tag for role, m in before if ask(hub, {role: m}, at_least=0)]
    return Finding(
        passed=not answered,
        says=f"{len(answered)} of {len(before)} requests were answered a second time"
        + (f" ({', '.join(sorted(set(answered)))})" if answered else ""),
        n=len(before),
    )


CHECKS: Mapping[str, Check] = {
    "uniformity/masked": _masked,
    "uniformity/self-masks-opened": _self_masks_opened,
    "uniformity/late": _late,
    "uniformity/two-rounds": _two_rounds,
    "uniformity/opened-secrets": _opened_secrets,
    "two-inputs": _two_inputs,
    "two-models": _two_models,
    "exact-sum": _exact_sum,
    "range": _range,
    "not-finite": _not_finite,
    "sealed-shares": _sealed_shares,
    "flipped-box": _flipped_box,
    "second-list": _second_list,
    "short-list": _short_list,
    "earlier-waves": _earlier_waves,
}
"""What is checked, by name."""
