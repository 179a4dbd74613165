"""Every scripted fault at every message of real protocols: the result is exactly right, or there is a typed error.

Links are in process. What is exactly right is computed in the clear, apart from the code under test. With the check of seals
switched off the same cases do give wrong results.
"""

from __future__ import annotations

import itertools
import os
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tacit.core.coins import Coins
from tacit.core.errors import (
    ConfigError,
    OutputError,
    ProtocolError,
    TacitError,
    TooFewParties,
    WireError,
)
from tacit.core.wire import Message, decode, encode
from tacit.crypto import keys
from tacit.nn.federated import FederatedMember, Rounds, mean_update, train_federated
from tacit.nn.local_work import parameters_of
from tacit.nn.networks import mlp
from tacit.nn.turns import Schedule, Turns, serve
from tacit.nn.updates import LocalUpdate, flattened, unflattened
from tacit.parties.faults import GONE, SLOW, Fault, Faults, Harm, Way, cut, flipped
from tacit.parties.links.local import LocalHub, Timing, outputs_of, run_pair
from tacit.parties.links.tampering import Lines
from tacit.parties.neighbours import Sharing
from tacit.parties.roles import SERVER, Role, owners
from tacit.parties.secure_sum.agreement import Adversary, Agreement, least_threshold
from tacit.parties.secure_sum.member import SecureAggregationMember
from tacit.parties.secure_sum.server import advertise_keys, aggregate, share_keys
from tacit.parties.star import ask
from tacit.parties.views import FULL
from tacit.training.selective_sgd import (
    ParameterServer,
    Selection,
    SelectiveMember,
    Selector,
    share_of,
)

COINS = Coins.from_seed(b"faults")
ROLES = owners(4)
A, B = ROLES[:2]

# A message takes 2 s and its handling 1; a wave 5, if all is well, and else until its deadline.
TIMING = Timing(link=2.0, work=1.0)
DEADLINE = 30.0
SOON, LATE = 5.0, 28.0  # in time, and in the middle of the next wave


# --- the script


def test_a_fault_says_where_it_is_and_what_is_slow_how_slow() -> None:
    for wrong in (
        {"at": -1},
        {"seconds": 1.0},
        {"harm": Harm.DELAY},
        {"harm": Harm.DRIP, "seconds": -1.0},
    ):
        with pytest.raises(ConfigError, match="DELAY and DRIP"):
            Fault(**{"role": A, "at": 0, "harm": Harm.FLIP, **wrong})


def test_each_way_is_counted_by_itself_and_who_hangs_or_dies_does_so_at_a_request() -> None:
    both = [Fault(role=A, at=1, harm=Harm.FLIP, way=way) for way in Way]
    faults = Faults([*both, Fault(role=A, at=2, harm=Harm.HANG)])
    met = [faults.meet(A, way) for way in (Way.REPLY, Way.REQUEST, Way.REQUEST, Way.REPLY)]
    assert met == [None, None, *both] and not faults.hung
    assert faults.meet(B, Way.REQUEST) is faults.meet(A, Way.REPLY) is None and not faults.hung
    assert faults.meet(A, Way.REQUEST) is faults.script[2] and faults.hung == {A}
    assert faults.meet(A, Way.REQUEST) is None


def test_what_is_flipped_or_cut_follows_from_the_fault() -> None:
    frame = bytes(range(256)) * 3
    places, ends = set(), set()
    for at, way in itertools.product(range(20), Way):
        fault = Fault(role=A, at=at, harm=Harm.FLIP, way=way)
        one, other = flipped(frame, fault), flipped(frame, fault)
        assert one == other and len(one) == len(frame)
        [(place, bits)] = [
            (i, a ^ b) for i, (a, b) in enumerate(zip(one, frame, strict=True)) if a != b
        ]
        assert bits.bit_count() == 1
        places.add(place)
        short = cut(frame, Fault(role=A, at=at, harm=Harm.CUT, way=way))
        assert frame.startswith(short) and len(short) < len(frame)
        ends.add(len(short))
    assert len(places) > 30 and len(ends) > 30


# --- what arrives in a star


class Adder:
    """Adds up what it is sent."""

    def __init__(self):
        self.total = 0

    def handle(self, request):
        self.total += request.integer("add")
        return Message("total", total=self.total)


def star(*faults: Fault, **options) -> LocalHub:
    return LocalHub({role: Adder() for role in owners(3)}, faults=faults, recording=FULL, **options)


def everyone(hub: LocalHub, amount: int = 1) -> dict[Role, Message]:
    return dict.fromkeys(hub.members(), Message("add", add=amount))


REFUSED = {
    Harm.REPLAY: (ProtocolError, "what came from {} to {} is of another session"),
    Harm.FLIP: (WireError, "what came from {} to {} was changed on its way"),
    Harm.CUT: (WireError, r"{} announced \d+ bytes to {}, but \d+ came"),
    Harm.OVERSIZE: (WireError, r"{} announced \d+ bytes to {}, but \d+ came"),
    Harm.WRONG_PEER: (ProtocolError, "what {other} sent .* came from {} to {}"),
    Harm.WRONG_ROLE: (ProtocolError, "what {posing} sent .* came from {} to {}"),
    Harm.WRONG_VERSION: (WireError, "{1} has version 1 of the link, but {0} version 2"),
}


@pytest.mark.parametrize("harm", REFUSED, ids=lambda harm: harm.name)
@pytest.mark.parametrize("way", Way, ids=lambda way: way.name)
@pytest.mark.parametrize("at", [0, 1])
def test_what_does_not_fit_is_refused_and_reaches_nobody(harm: Harm, way: Way, at: int) -> None:
    hub = star(Fault(role=B, at=at, harm=harm, way=way))
    for _ in range(at):
        ask(hub, everyone(hub))
    ends = (SERVER, B) if way is Way.REQUEST else (B, SERVER)
    # the first message of all has no other party's to be taken for: a stranger sends it
    others = {Way.REQUEST: "server 0", Way.REPLY: "owner 0"}
    posing = Role(ends[0].kind, ends[0].index + 1)
    kind, text = REFUSED[harm]
    with pytest.raises(kind, match=text.format(*ends, other=others[way], posing=posing)) as caught:
        ask(hub, everyone(hub), at_least=None)
    assert caught.type is kind and str(caught.value).startswith("owner 1: ")
    assert hub._members[B].total == at + (way is Way.REPLY)
    assert len(list(hub.views[ends[1]].frames())) == (at if way is Way.REQUEST else 3 * at + 2)
    after = ask(hub, everyone(hub))  # the star goes on
    assert after[A].integer("total") == at + 2
    assert after[B].integer("total") == at + 1 + (way is Way.REPLY)


def test_a_stranger_is_refused_where_no_other_party_has_sent_anything() -> None:
    for way in Way:
        fault = Fault(role=A, at=0, harm=Harm.WRONG_PEER, way=way)
        with pytest.raises(ProtocolError, match="owner 0: what stranger 0 sent to"):
            ask(star(fault), {A: Message("add", add=1)})


def test_where_dropouts_are_allowed_a_refused_message_is_one() -> None:
    hub = star(Fault(role=B, at=0, harm=Harm.FLIP))
    assert list(ask(hub, everyone(hub), at_least=2)) == [A, Role("owner", 2)]
    hub = star(Fault(role=B, at=0, harm=Harm.CUT, way=Way.REQUEST))
    with pytest.raises(TooFewParties) as caught:
        ask(hub, everyone(hub), at_least=3)
    assert "owner 1: server 0 announced" in caught.value.missing[B]


@pytest.mark.parametrize("way", Way, ids=lambda way: way.name)
def test_what_arrives_twice_is_taken_once_and_is_nobodys_business(way: Way) -> None:
    hub = star(Fault(role=B, at=0, harm=Harm.DOUBLE, way=way), timing=TIMING)
    assert len(ask(hub, everyone(hub))) == 3 and hub._members[B].total == 1
    assert list(hub.replies(deadline=9.0)) == [] and hub.now == 5.0  # nothing is open
    assert hub.views[B].messages == 1 and hub.views[SERVER].messages == 3


@pytest.mark.parametrize("way", Way, ids=lambda way: way.name)
def test_what_is_reordered_arrives_after_the_next_and_is_told_by_its_ticket(way: Way) -> None:
    hub = star(Fault(role=B, at=0, harm=Harm.REORDER, way=way), timing=TIMING)
    tickets = [hub.post({B: Message("add", add=amount)}) for amount in (1, 10)]
    came = [(ticket, reply.integer("total")) for _, ticket, reply in hub.replies(deadline=50.0)]
    totals = (10, 11) if way is Way.REQUEST else (11, 1)
    assert came == [*zip(tickets[::-1], totals, strict=True)] and hub.now < 50.0
    hub = star(Fault(role=B, at=0, harm=Harm.REORDER, way=way), timing=TIMING)
    with pytest.raises(TooFewParties, match="owner 1: no reply in time"):
        ask(hub, everyone(hub), deadline=9.0)  # none followed


def test_what_waits_for_the_next_request_is_lost_when_the_member_is_replaced() -> None:
    for replaced in (False, True):
        hub = star(Fault(role=B, at=0, harm=Harm.REORDER, way=Way.REQUEST))
        hub.post({B: Message("add", add=1)})
        assert list(hub.replies(deadline=1.0)) == []
        if replaced:
            hub.replace(B, Adder())
        hub.post({B: Message("add", add=10)})
        came = [reply.integer("total") for _, _, reply in hub.replies(deadline=1.0)]
        assert came == ([10] if replaced else [10, 11])


@pytest.mark.parametrize("harm", SLOW, ids=lambda harm: harm.name)
def test_what_is_slow_is_late_by_its_seconds_either_way(harm: Harm) -> None:
    for way in Way:
        hub = star(Fault(role=B, at=0, harm=harm, way=way, seconds=7.0), timing=TIMING)
        assert len(ask(hub, everyone(hub))) == 3 and hub.now == 12.0


def test_only_scripted_faults_cost_a_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lines, "put", None)
    hub = star()
    assert len(ask(hub, everyone(hub))) == 3
    with pytest.raises(TypeError):
        ask(star(Fault(role=B, at=9, harm=Harm.DROP)), everyone(hub))


class Spoiling(LocalHub):
    """A star whose members' frames are what ``spoil`` makes of them, and come over good lines."""

    spoil: Callable[[bytes], bytes] = staticmethod(lambda frame: frame)

    def _send(self, delay, event):
        if event.is_reply:
            event = event._replace(frame=self.spoil(event.frame))
        super()._send(delay, event)


@pytest.mark.parametrize("scripted", [False, True])
def test_a_frame_that_is_no_message_is_its_members_refusal(scripted: bool) -> None:
    faults = [Fault(role=A, at=9, harm=Harm.DROP)] if scripted else []
    hub = Spoiling({role: Adder() for role in owners(3)}, faults=faults)
    hub.spoil = lambda frame: frame + b"?" if hub._members[B].total else frame
    with pytest.raises(WireError, match="owner 1: 1 bytes after the last field"):
        ask(hub, {A: Message("add", add=1), B: Message("add", add=1)})
    assert list(ask(hub, {B: Message("add", add=1)}, at_least=0)) == []


def test_an_answer_that_the_wire_does_not_carry_is_its_members_refusal() -> None:
    class Odd(Adder):
        def handle(self, request):
            return Message("total", total=1j)

    hub = LocalHub({A: Adder(), B: Odd()})
    assert list(ask(hub, everyone(hub), at_least=1)) == [A]
    with pytest.raises(WireError, match=r"owner 1: field 'total': the wire carries .* not complex"):
        ask(hub, everyone(hub))


def test_a_view_that_cannot_be_kept_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = star()

    def full(*frame):
        raise OutputError("the disk is full")

    hub._views[B] = SimpleNamespace(receive=full)
    with pytest.raises(OutputError, match=r"^the disk is full"):
        ask(hub, everyone(hub), at_least=0)


# --- faults, and how they are judged

EXACT, WRONG = "exact", "wrong"
"""What a case comes to, beside the name of a typed error."""


HARMS = list(Harm)


def at_each_message(role: Role, messages: int) -> Iterator[Fault]:
    """Every fault at every message of a member, either way."""
    for at, harm in itertools.product(range(messages), HARMS):
        if harm in GONE:
            yield Fault(role=role, at=at, harm=harm)
            continue
        for way, seconds in itertools.product(Way, (SOON, LATE) if harm in SLOW else (0.0,)):
            yield Fault(role=role, at=at, harm=harm, way=way, seconds=seconds)


def harmless(fault: Fault) -> bool:
    """What must not be noticed at all."""
    return fault.harm is Harm.DOUBLE or (fault.harm in SLOW and fault.seconds == SOON)


Case = Callable[[Sequence[Fault]], str]


def tally(case: Case, faults: Sequence[Fault]) -> Counter[str]:
    """What comes of each fault; no case takes long."""
    found: Counter[str] = Counter()
    for fault in faults:
        start = time.perf_counter()
        outcome = case([fault])
        assert time.perf_counter() - start < 5.0, fault
        assert outcome != WRONG, fault
        assert outcome == EXACT or not harmless(fault), (fault, outcome)
        found[outcome] += 1
    assert found.total() == len(faults)
    return found


THE_ROLES = pytest.mark.parametrize(
    "role", [B, *(pytest.param(r, marks=pytest.mark.slow) for r in ROLES if r != B)], ids=str
)
"""One member's messages to and from it stand for all in the default run."""


# --- secure aggregation

WAVES = {Adversary.SEMI_HONEST: 6, Adversary.ACTIVE: 8}
"""Requests to a member in two rounds: keys, shares, then a round of two waves or three."""


def level(number: int, round: int, place: int) -> int:
    """The integer that a member adds to the sum."""
    return (3 + 5 * number + 11 * round + 7 * place) % 16


@dataclass
class Levels:
    """With 4 bits and a clip of 7.5, the update k - 7.5 is the integer k: nothing is rounded."""

    number: int

    def update(self, model, round):
        whole = [level(self.number, round, place) for place in range(3)]
        return LocalUpdate(arrays=(np.array(whole, np.float32) - 7.5,), examples=1)


@cache
def identities() -> list[keys.SigningKey]:
    return [keys.signing_key(COINS.child(f"identity {role}")) for role in ROLES]


@cache
def agreed(adversary: Adversary) -> Agreement:
    n = len(ROLES)
    sharing = Sharing(degree=n - 1, threshold=least_threshold(n, adversary))
    return Agreement(
        participants=n, dimension=3, clip=7.5, bits=4, max_examples=1, adversary=adversary, sharing=sharing,
    )  # fmt: skip


MODEL = [np.arange(3, dtype=np.float32)]


def secure_members(adversary: Adversary) -> dict[Role, SecureAggregationMember]:
    active = adversary is Adversary.ACTIVE
    return {
        role: SecureAggregationMember(
            Levels(role.index),
            agreed(adversary),
            role.index,
            coins=COINS.child(f"member {role}"),
            rounds=2,
            like=MODEL,
            identity=identities()[role.index] if active else None,
            registry=[one.public for one in identities()] if active else (),
        )
        for role in ROLES
    }


def summed(hub: LocalHub, adversary: Adversary) -> Iterator:
    """Two rounds of a session."""
    registry = [one.public for one in identities()] if adversary is Adversary.ACTIVE else ()
    session = advertise_keys(
        hub, agreed(adversary), coins=COINS.child("server"), registry=registry, deadline=DEADLINE
    )
    share_keys(session, round=0)
    for round in range(2):
        yield aggregate(session, MODEL, round=round, share_next=round == 0)


def secure_sum(adversary: Adversary, faults: Sequence[Fault]) -> str:
    """Two rounds: each sum is that of the survivors that it names, who are all but whom the fault hit."""
    hub = LocalHub(secure_members(adversary), faults=faults, timing=TIMING)
    hit = {fault.role for fault in faults}
    try:
        for round, found in enumerate(summed(hub, adversary)):
            count = len(found.survivors)
            sums = [sum(level(r.index, round, p) for r in found.survivors) for p in range(3)]
            right = (
                np.abs(found.mean * count + 7.5 * count - sums).max() < 1e-9
                and found.examples == count
                and found.clipped == 0.0
                and set(ROLES) - set(found.survivors) <= hit
                and not (found.cheated or found.disputed)
                and (count == len(ROLES) or not harmless(faults[0]))
            )
            if not right:
                return WRONG
    except TacitError as error:
        return type(error).__name__
    finally:
        assert hub.now <= WAVES[adversary] * DEADLINE
    return EXACT


@THE_ROLES
@pytest.mark.parametrize("adversary", Adversary, ids=lambda one: one.value)
def test_the_sum_of_the_survivors_is_exact_whatever_happens_to_one_member(
    adversary: Adversary, role: Role
) -> None:
    faults = list(at_each_message(role, WAVES[adversary]))
    found = tally(partial(secure_sum, adversary), faults)
    assert found[EXACT] == found.total()  # one may always be missing


def test_two_members_at_whom_something_goes_wrong_are_one_too_many() -> None:
    found: Counter[str] = Counter()
    for harm, at in itertools.product(HARMS, range(2, 6)):
        seconds = LATE if harm in SLOW else 0.0
        faults = [Fault(role=role, at=at, harm=harm, seconds=seconds) for role in ROLES[:2]]
        found[secure_sum(Adversary.SEMI_HONEST, faults)] += 1
    assert set(found) == {EXACT, "TooFewParties"}


# --- federated averaging

ROUNDS = 2
START = mlp((1, 2, 2), (3,), 2, generator=torch.Generator().manual_seed(0))
LIKE = parameters_of(START)


@dataclass
class Moves:
    """Local work that depends on the model, the member and the round; who is behind a sum shows in its examples."""

    number: int
    log: list[tuple[int, int]] = field(default_factory=list)

    def update(self, model, round):
        self.log.append((self.number, round))
        scale = np.float32(0.1 * (self.number + 1))
        arrays = tuple(scale * np.cos(np.asarray(a, np.float32) * (round + 2)) for a in model)
        return LocalUpdate(arrays=arrays, examples=1 << self.number)


def averaging_members() -> dict[Role, FederatedMember]:
    return {role: FederatedMember(Moves(role.index), LIKE, rounds=ROUNDS) for role in ROLES}


def averaged(present: Sequence[Sequence[Role]]) -> list[np.ndarray]:
    """The model after rounds in which these took part."""
    model = list(LIKE)
    for round, roles in enumerate(present):
        made = {role: Moves(role.index).update(model, round) for role in roles}
        replies = {
            r: Message("update", update=u.arrays, examples=u.examples) for r, u in made.items()
        }
        move = mean_update(replies, model, round)
        model = [m + np.float32(1.0) * u for m, u in zip(model, move, strict=True)]
    return model


def averaging(at_least: int | None, faults: Sequence[Fault]) -> str:
    """The model is bit for bit that of those whom the rounds name, who are all but whom the fault hit."""
    hub = LocalHub(averaging_members(), faults=faults, timing=TIMING, recording=FULL)
    settings = Rounds(rounds=ROUNDS, rate=1.0, at_least=at_least, deadline=DEADLINE)
    hit = {fault.role for fault in faults}
    try:
        model = train_federated(hub, START, settings)
    except TacitError as error:
        return type(error).__name__
    finally:
        assert hub.now <= (ROUNDS + 1) * DEADLINE
    sent = [frame.message() for frame in hub.views[SERVER].sent() if frame.peer == A]
    named = [message.integer("examples") for message in sent[1:]]
    present = [[role for role in ROLES if examples >> role.index & 1] for examples in named]
    missing = {role for roles in present for role in ROLES if role not in roles}
    allowed = hit if at_least is not None and not harmless(faults[0]) else set()
    right = missing <= allowed and all(map(np.array_equal, model, averaged(present)))
    return EXACT if right else WRONG


@THE_ROLES
@pytest.mark.parametrize("at_least", [None, 3])
def test_an_averaged_model_is_that_of_those_who_took_part(at_least: int | None, role: Role) -> None:
    found = tally(partial(averaging, at_least), list(at_each_message(role, ROUNDS + 1)))
    if at_least is None:
        assert {"TooFewParties", "WireError", "ProtocolError"} <= set(found) - {EXACT}
    else:
        assert found[EXACT] == found.total()


# --- selective SGD

TURNS = 2
SIZE = flattened(LIKE).size
UP, DOWN = share_of(0.2, SIZE), share_of(0.5, SIZE)


class Watched(ParameterServer):
    """Notes whose uploads were added, as (owner, turn)."""

    __slots__ = ("added",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.added = []

    def add(self, role, upload):
        super().add(role, upload)
        self.added.append((role.index, self.taken[role] - 1))


def selective_member(role: Role, log: list[tuple[int, int]]) -> SelectiveMember:
    selector = Selector(count=UP, selection=Selection.LARGEST, tau=0.0, gamma=None, private=None)
    return SelectiveMember(
        Moves(role.index, log), LIKE, selector=selector, turns=TURNS, examples=4, coins=COINS.child(f"selective {role}"),
    )  # fmt: skip


def selected(added: Sequence[tuple[int, int]], handled: Sequence[tuple[int, int]]) -> np.ndarray:
    """The parameters, if owners handled these turns and the server added those, as (owner, turn)."""
    whole = flattened(LIKE).copy()
    counters, local = np.zeros(SIZE, np.int64), {role.index: whole.copy() for role in ROLES}
    started: set[int] = set()
    for turn, role in itertools.product(range(TURNS), ROLES):
        number = role.index
        places = np.arange(SIZE)
        if number in started:
            places = np.sort(np.argsort(-counters, kind="stable")[:DOWN])
        if (number, turn) not in handled:
            continue
        mine = local[number].copy()
        mine[places] = whole[places]
        change = flattened(Moves(number).update(unflattened(mine, LIKE), turn).arrays)
        local[number] = mine + change
        if (number, turn) in added:
            chosen = np.sort(np.argsort(np.abs(change))[-UP:])
            whole[chosen] += change[chosen]
            counters[chosen] += 1
            started.add(number)
    return whole


def selective(at_least: int | None, faults: Sequence[Fault]) -> str:
    """The parameters are bit for bit those of the turns that came, which are all but some of whom the fault hit."""
    log: list[tuple[int, int]] = []
    members = {role: selective_member(role, log) for role in ROLES}
    hub = LocalHub(members, faults=faults, timing=TIMING)
    start = flattened(LIKE).copy()
    server = Watched(like=LIKE, parameters=start, most_down=DOWN, most_up=UP)
    turns = Turns(schedule=Schedule.ROUND_ROBIN, each=TURNS, at_least=at_least, deadline=DEADLINE)
    try:
        serve(hub, server, turns)
    except TacitError as error:
        return type(error).__name__
    finally:
        assert hub.now <= (TURNS * len(ROLES) + 1) * DEADLINE
    asked = {(role.index, turn) for role in ROLES for turn in range(TURNS)}
    missing = {number for number, _ in asked - set(server.added)}
    allowed = {fault.role.index for fault in faults}
    if at_least is None or harmless(faults[0]):
        allowed = set()
    right = (
        missing <= allowed
        and len(set(log)) == len(log)
        and len(set(server.added)) == len(server.added)
        and np.array_equal(server.parameters, selected(server.added, log))
    )
    return EXACT if right else WRONG


@THE_ROLES
@pytest.mark.parametrize("at_least", [None, 2])
def test_selectively_shared_parameters_are_those_of_the_turns_that_came(
    at_least: int | None, role: Role
) -> None:
    found = tally(partial(selective, at_least), list(at_each_message(role, TURNS + 1)))
    if at_least is None:
        assert {"TooFewParties", "WireError", "ProtocolError"} <= set(found) - {EXACT}
    else:
        assert found[EXACT] == found.total()


# --- two parties, and a dealer

ONE, TWO, DEALER = Role("server", 0), Role("server", 1), Role("dealer")
SENT = {ONE: 4, TWO: 4, DEALER: 2}
"""Messages that each sends."""


def number(value: int) -> np.ndarray:
    return np.array([value], np.uint64)


def dealer(channels):
    for role in (ONE, TWO):
        channels[role].send("key", number(7 + role.index))
    return 7


def talker(role: Role):
    """Mixes what comes with what was, several times under one tag; both end with the same number."""

    def party(channels):
        peer = channels[TWO if role == ONE else ONE]
        (mine,) = channels[DEALER].recv("key")
        both = number(1)
        for turn in range(3):
            (theirs,) = peer.exchange("mix", mine * number(turn + 2))
            both = both * number(31) + theirs * mine
            mine = mine + both
        (other,) = peer.exchange("said", both)
        return int(both[0] ^ other[0]), int(both[0])

    return party


def talk(faults: Sequence[Fault] = ()):
    parties = {ONE: talker(ONE), TWO: talker(TWO), DEALER: dealer}
    return run_pair(parties, faults=faults, deadline=300.0)


UNDISTURBED = outputs_of(talk())


def talked(faults: Sequence[Fault]) -> str:
    """Who finishes, does so with the right output; who does not, with a typed error."""
    run = talk(faults)
    if any(output != UNDISTURBED[role] for role, output in run.outputs.items()):
        return WRONG
    try:
        outputs_of(run)
    except TacitError as error:
        assert all(isinstance(other, TacitError) for other in run.errors.values())
        return type(error).__name__
    return EXACT


IN_A_PAIR = [harm for harm in HARMS if harm not in SLOW]


def in_a_pair(role: Role) -> list[Fault]:
    return [Fault(role=role, at=at, harm=harm) for at in range(SENT[role]) for harm in IN_A_PAIR]


@pytest.mark.parametrize("role", SENT, ids=str)
def test_two_parties_end_with_what_is_right_or_a_typed_error(role: Role) -> None:
    found = tally(talked, in_a_pair(role))
    # who gets the last message of all, or one that came twice, has not noticed anything
    assert found[EXACT] >= SENT[role] and {"WireError", "ProtocolError"} <= set(found)


def test_a_pair_knows_no_requests_and_no_virtual_clock() -> None:
    with pytest.raises(ConfigError, match="a pair has no requests"):
        talk([Fault(role=ONE, at=0, harm=Harm.FLIP, way=Way.REQUEST)])
    for harm in SLOW:
        with pytest.raises(ConfigError, match=f"{harm.name} is for stars"):
            talk([Fault(role=ONE, at=0, harm=harm, seconds=1.0)])
    for way, harm in itertools.product(Way, GONE):  # these are at the party, not at a message
        assert talked([Fault(role=ONE, at=0, harm=harm, way=way)]) == "PeerDropped"


@pytest.mark.parametrize("harm", REFUSED, ids=lambda harm: harm.name)
def test_what_does_not_fit_in_a_pair_is_an_error_that_names_the_sender(harm: Harm) -> None:
    kind, text = REFUSED[harm]
    for role, to in ((ONE, TWO), (TWO, ONE)):
        run = talk([Fault(role=role, at=1, harm=harm)])
        other = "(dealer|stranger) 0" if role == ONE else "(dealer|stranger|server) 0"
        posing = Role(role.kind, role.index + 1)
        with pytest.raises(kind, match=text.format(role, to, other=other, posing=posing)):
            raise run.errors[to]
        assert to not in run.outputs


def test_who_waits_for_a_party_that_died_is_told_so_and_nobody_takes_it_for_a_deadlock() -> None:
    """The dealer is gone, one waits for it and the other for that one: whoever looks first."""
    for harm in (Harm.DIE, Harm.DROP):
        for _ in range(20):
            assert talked([Fault(role=DEALER, at=1, harm=harm)]) == "PeerDropped"


# --- the control


def test_without_the_check_of_seals_results_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lines, "opened", lambda self, line, came: came.frame)
    semi = Adversary.SEMI_HONEST
    cases: dict[str, tuple[Case, list[Fault]]] = {
        "secure": (partial(secure_sum, semi), list(at_each_message(B, WAVES[semi]))),
        "averaging": (partial(averaging, None), list(at_each_message(B, ROUNDS + 1))),
        "selective": (partial(selective, None), list(at_each_message(B, TURNS + 1))),
        "pair": (talked, in_a_pair(ONE) + in_a_pair(TWO)),
    }
    wrong: Counter[object] = Counter()
    for name, (case, faults) in cases.items():
        for fault in faults:
            if fault.harm in (Harm.FLIP, Harm.REPLAY, Harm.WRONG_PEER) and case([fault]) == WRONG:
                wrong[name] += 1
                wrong[fault.harm] += 1
    assert min(wrong[name] for name in cases) >= 1
    assert min(wrong[harm] for harm in (Harm.FLIP, Harm.REPLAY, Harm.WRONG_PEER)) >= 4


# --- frames that nobody made

FUZZ = int(os.environ.get("TACIT_FUZZ", "10000"))
"""Mutated frames in all; a million take half an hour: TACIT_FUZZ=1000000 pytest --timeout 0 -k mutated."""


@dataclass
class Mutations:
    """Draws mutations of frames."""

    coins: Coins
    real: Sequence[bytes]

    def below(self, bound: int) -> int:
        return int(self.coins.below(bound, 1)[0])

    def one_of(self, things):
        return things[self.below(len(things))]

    def mutated(self, frame: bytes) -> bytes:
        way = self.one_of([self.bits, self.end, self.more, self.less, self.length, self.splice, self.value])  # fmt: skip
        return way(frame)

    def bits(self, frame: bytes) -> bytes:
        body = bytearray(frame)
        for _ in range(1 + self.below(4)):
            body[self.below(len(body))] ^= 1 << self.below(8)
        return bytes(body)

    def end(self, frame: bytes) -> bytes:
        return frame[: self.below(len(frame))]

    def more(self, frame: bytes) -> bytes:
        at = self.below(len(frame) + 1)
        return frame[:at] + self.coins.bytes(1 + self.below(16)) + frame[at:]

    def less(self, frame: bytes) -> bytes:
        at = self.below(len(frame))
        return frame[:at] + frame[at + 1 + self.below(16) :]

    def length(self, frame: bytes) -> bytes:
        """A number where one may be, as large as it gets or nearly right."""
        size = self.one_of([1, 2, 4, 8])
        top = 1 << 8 * size
        number = self.one_of([0, 1, top - 1, top // 2, len(frame), len(frame) + 1, 1 << 20]) % top
        at = self.below(len(frame))
        return frame[:at] + number.to_bytes(size, "little") + frame[at + size :]

    def splice(self, frame: bytes) -> bytes:
        other = self.one_of(self.real)
        return frame[: self.below(len(frame))] + other[self.below(len(other)) :]

    def value(self, frame: bytes) -> bytes:
        """A well-formed frame with a field that is not what it must be."""
        message = decode(frame)
        if not message.fields:
            return frame
        name = self.one_of(sorted(message.fields))
        field = message.fields[name]
        changed = self.one_of(
            [True, -1, 0, (1 << 63) - 1, 1 << 63, -(1 << 200), float("nan"), "", "x" * 300, b"", bytes(16),
             bytes(32), [], [[[]]], np.zeros(0), np.zeros((2, 2), np.float32), [np.zeros(3, np.float32)]]
        )  # fmt: skip
        array = field[0] if isinstance(field, list) and field else field
        if isinstance(array, np.ndarray) and array.size and self.below(2):
            changed = self.of_shape(array)
            if isinstance(field, list):
                changed = [changed, *field[1:]]
        return encode(
            Message(self.one_of([message.tag] * 7 + ["?"]), **message.fields | {name: changed})
        )

    def of_shape(self, array: np.ndarray) -> np.ndarray:
        """An array of the same or nearly the same kind, with other values."""
        drawn = np.frombuffer(self.coins.bytes(array.nbytes), np.uint8)
        if array.dtype == bool:
            return (drawn & 1).astype(bool).reshape(array.shape)
        extreme = np.inf if array.dtype.kind == "f" else np.iinfo(array.dtype).max
        return self.one_of(
            [
                drawn.view(array.dtype).reshape(array.shape),
                np.full_like(array, extreme),
                np.full_like(array, 0),
                array[:-1],
                array[None],
                np.zeros(array.shape, np.float16),
            ]
        )


@dataclass
class Target:
    """A member, as it is before each of the requests of a real conversation.

    Args:
        fresh: makes it anew.
        requests: the conversation's.
        states: what it exported before each.
    """

    fresh: Callable[[], object]
    requests: list[bytes] = field(default_factory=list)
    states: list[bytes] = field(default_factory=list)

    def take(self, hub: LocalHub) -> Target:
        """Of the conversation that was held over a hub."""
        member = self.fresh()
        for frame in hub.views[B].frames():
            self.requests.append(frame.data)
            self.states.append(member.export())
            member.handle(decode(frame.data))
        return self

    def at(self, place: int):
        member = self.fresh()
        member.restore(self.states[place])
        return member


def recorded(members: Mapping[Role, object], hold: Callable[[LocalHub], object]) -> LocalHub:
    hub = LocalHub(members, recording=FULL)
    hold(hub)
    return hub


def hold_sums(adversary: Adversary, hub: LocalHub) -> None:
    list(summed(hub, adversary))


def hold_averaging(hub: LocalHub) -> None:
    train_federated(hub, START, Rounds(rounds=ROUNDS, rate=1.0, at_least=2, deadline=DEADLINE))


def hold_selective(hub: LocalHub) -> None:
    start = flattened(LIKE).copy()
    server = ParameterServer(like=LIKE, parameters=start, most_down=DOWN, most_up=UP)
    turns = Turns(schedule=Schedule.ROUND_ROBIN, each=TURNS, at_least=2, deadline=DEADLINE)
    serve(hub, server, turns)


def selective_members() -> dict[Role, SelectiveMember]:
    return {role: selective_member(role, []) for role in ROLES}


PROTOCOLS = {
    "semi-honest": (
        partial(secure_members, Adversary.SEMI_HONEST),
        partial(hold_sums, Adversary.SEMI_HONEST),
    ),
    "active": (
        partial(secure_members, Adversary.ACTIVE),
        partial(hold_sums, Adversary.ACTIVE),
    ),
    "selective": (selective_members, hold_selective),
    "averaging": (averaging_members, hold_averaging),
}


def typed(call: Callable[[], object]) -> object:
    """What a call gives, None for a typed error; it takes no long time."""
    start = time.perf_counter()
    try:
        return call()
    except TacitError:
        return None
    finally:
        assert time.perf_counter() - start < 1.0


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # sums of values that no float32 holds
def test_members_answer_no_mutated_frame_with_anything_but_a_typed_error(name: str) -> None:
    members, hold = PROTOCOLS[name]
    target = Target(lambda: members()[B]).take(recorded(members(), hold))
    draws = Mutations(COINS.child(f"requests {name}"), target.requests)
    decoded = answered = 0
    tracemalloc.start()
    try:
        for _ in range(FUZZ // 5):
            place = draws.below(len(target.requests))
            message = typed(partial(decode, draws.mutated(target.requests[place])))
            if message is not None:
                decoded += 1
                reply = typed(partial(target.at(place).handle, message))
                answered += reply is not None and len(encode(reply)) > 0
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 23, peak
    assert decoded > FUZZ // 50 and answered > FUZZ // 500  # the mutations are not all too coarse


def test_mutations_find_a_member_that_takes_what_comes() -> None:
    class Careless(Adder):
        def handle(self, request):
            return Message("total", total=self.total + request.fields["add"])

    frame = encode(Message("add", add=1))
    draws = Mutations(COINS.child("careless"), [frame])
    hub = LocalHub({A: Careless()})
    with pytest.raises((KeyError, TypeError)):
        for _ in range(1000):
            message = typed(partial(decode, draws.mutated(frame)))
            if message is not None:
                typed(partial(ask, hub, {A: message}))


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_mutated_frames_end_a_coordinator_with_a_typed_error_or_not_at_all(name: str) -> None:
    members, hold = PROTOCOLS[name]
    real = [frame.data for frame in recorded(members(), hold).views[SERVER].frames()]
    draws = Mutations(COINS.child(f"replies {name}"), real)
    ended: Counter[bool] = Counter()
    spoiled = 0

    def spoil(frame: bytes) -> bytes:
        nonlocal spoiled
        if draws.below(12):
            return frame
        spoiled += 1
        return draws.mutated(frame)

    while spoiled < FUZZ // 40:
        hub = Spoiling(members())
        hub.spoil = spoil
        ended[typed(lambda hub=hub: (hold(hub), True)) is not None] += 1
    assert ended[True] and ended[False]


def test_a_star_yields_a_message_for_every_mutated_reply() -> None:
    real = []
    for members, hold in PROTOCOLS.values():
        real += [frame.data for frame in recorded(members(), hold).views[SERVER].frames()]
    draws = Mutations(COINS.child("star"), real)
    hub = Spoiling({A: Adder()})
    hub.spoil = lambda frame: draws.mutated(draws.one_of(real))
    tags: Counter[bool] = Counter()
    for _ in range(FUZZ // 10):
        ticket = hub.post({A: Message("add", add=1)})
        [(role, stamp, message)] = hub.replies(deadline=1.0)
        assert (role, stamp) == (A, ticket)
        tags[message.tag == "refused"] += 1
    assert min(tags[True], tags[False]) > FUZZ // 100
