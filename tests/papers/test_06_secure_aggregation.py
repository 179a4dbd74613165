"""Secure aggregation [6]: what the paper claims, wave by wave, against an oracle that adds integers in plain Python.

Sums are exact on purpose: with 4 bits and a clip of 7.5 the grid is the half-integers from -7.5 to 7.5, so that the update
``k - 7.5`` is the integer k and nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations, product
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from tacit.core.coins import Coins
from tacit.core.errors import (
    BudgetExhausted,
    CheatingDetected,
    ConfigError,
    ProtocolError,
    TacitError,
    TooFewParties,
    WireError,
)
from tacit.core.wire import Message, decode, encode
from tacit.crypto import keys, shamir
from tacit.crypto.packing import pack, unpack
from tacit.nn.local_work import LocalUpdate
from tacit.parties.faults import Fault, Faults, Harm, Way
from tacit.parties.links.local import LocalHub
from tacit.parties.neighbours import Sharing
from tacit.parties.roles import SERVER, Role, owners
from tacit.parties.secure_sum.agreement import (
    EXTRA,
    VERSION,
    Adversary,
    Agreement,
    Masks,
    bytes_of_round,
    least_threshold,
)
from tacit.parties.secure_sum.member import SecureAggregationMember
from tacit.parties.secure_sum.server import (
    Aggregate,
    Session,
    advertise_keys,
    aggregate,
    share_keys,
)
from tacit.parties.star import refusal
from tacit.parties.views import FULL
from tacit.training.secure_aggregation import Federated, Graph, SecureAggregation

steady = settings(derandomize=True, deadline=None)

SEMI, ACTIVE = Adversary.SEMI_HONEST, Adversary.ACTIVE
WAVES = {
    SEMI: ("AdvertiseKeys", "ShareKeys", "MaskedInput", "Unmask"),
    ACTIVE: ("AdvertiseKeys", "ShareKeys", "MaskedInput", "ConsistencyCheck", "Unmask"),
}
VARIANTS = pytest.mark.parametrize("adversary", Adversary, ids=lambda a: a.value)
SILENCE = (
    (Harm.DROP, Way.REQUEST),
    (Harm.DROP, Way.REPLY),
    (Harm.HANG, Way.REQUEST),
    (Harm.DIE, Way.REQUEST),
)
COINS = Coins.from_seed(b"secure aggregation")


# --- the parties, and ways in which they misbehave


@dataclass
class Constant:
    """Local work that sends the same update every round."""

    values: np.ndarray
    examples: int = 1

    def update(self, model, round):
        return LocalUpdate(arrays=(np.asarray(self.values, np.float32),), examples=self.examples)


def level(number: int, round: int, place: int) -> int:
    """The integer that a member sends at a place in a round."""
    return (3 + 5 * number + 11 * round + 7 * place) % 16


@dataclass
class Levels:
    """Local work on the grid, different in each round."""

    number: int
    dimension: int = 3

    def update(self, model, round):
        whole = [level(self.number, round, place) for place in range(self.dimension)]
        return LocalUpdate(arrays=(np.array(whole, np.float32) - 7.5,), examples=1)


@dataclass
class Between:
    """Stands before a member and changes what it is asked and what it answers; the wire carries both."""

    member: SecureAggregationMember
    asked: Callable[[Message], Message] = lambda request: request
    answered: Callable[[Message], Message] = lambda reply: reply

    def handle(self, request):
        return self.answered(self.member.handle(decode(encode(self.asked(request)))))


@dataclass
class Restarting:
    """A member that is killed after every message and comes back as another one, restored from its export."""

    fresh: Callable[[], SecureAggregationMember]

    def __post_init__(self):
        self.member = self.fresh()

    def handle(self, request):
        try:
            return self.member.handle(request)
        finally:
            state = self.member.export()
            self.member = self.fresh()
            self.member.restore(state)


class Fickle(LocalHub):
    """A star whose members are silent at the waves that ``silent`` names, counted from ``wave``."""

    wave = 0
    silent: Mapping[int, Sequence[Role]] = {}

    def post(self, requests):
        gone = self.silent.get(self.wave, ())
        harms = [SILENCE[(role.index + self.wave) % len(SILENCE)] for role in gone]
        faults = [
            Fault(role=role, at=0, harm=harm, way=way)
            for role, (harm, way) in zip(gone, harms, strict=True)
        ]
        self._faults = Faults(tuple(faults))  # who was silent at the last wave is back
        self.wave += 1
        return super().post(requests)


def agreed(n: int, **changes) -> Agreement:
    adversary = changes.get("adversary", SEMI)
    sharing = Sharing(degree=n - 1, threshold=least_threshold(n, adversary))
    common = {"participants": n, "dimension": 3, "clip": 7.5, "bits": 4, "max_examples": 1}
    return Agreement(**{**common, "adversary": adversary, "sharing": sharing, **changes})


def registry(n: int) -> list[keys.SigningKey]:
    return [keys.signing_key(COINS.child(f"identity {number}")) for number in range(n)]


def member_of(agreement, number, work=None, *, seed="", rounds=1, kind=None, **options):
    """A member; its coins follow from its number and the seed."""
    if agreement.adversary is ACTIVE:
        known = registry(agreement.participants)
        options = {
            "identity": known[number],
            "registry": [one.public for one in known],
            **options,
        }
    return (kind or SecureAggregationMember)(
        work or Levels(number, agreement.dimension),
        agreement,
        number,
        coins=COINS.child(f"{seed}/member {number}"),
        rounds=rounds,
        **options,
    )


def members_of(agreement, works=None, **options):
    count = agreement.participants
    works = works or [None] * count
    return {
        role: member_of(agreement, role.index, works[role.index], **options)
        for role in owners(count)
    }


def begun(hub, agreement, *, seed="", **options) -> Session:
    """A session whose keys are advertised."""
    if agreement.adversary is ACTIVE:
        listed = [one.public for one in registry(agreement.participants)]
        options = {"registry": listed, **options}
    return advertise_keys(hub, agreement, coins=COINS.child(f"{seed}/server"), **options)


def opened(hub, agreement, *, round=0, **options) -> Session:
    """A session in which the secrets of its first round are shared."""
    session = begun(hub, agreement, round=round, **options)
    share_keys(session, round=round)
    return session


def sum_once(members, agreement, *, model=(), seed="", **options) -> Aggregate:
    """One session of one round."""
    hub = Fickle(members)
    return aggregate(opened(hub, agreement, seed=seed, **options), list(model), round=0)


def plain_sums(present: Sequence[int], round: int, dimension: int = 3) -> list[int]:
    """The sums over these members that `Levels` must give."""
    return [sum(level(number, round, place) for number in present) for place in range(dimension)]


def whole_sums(found: Aggregate) -> list[int]:
    """The integers that were summed, from the mean of updates on the grid; a mean of anything else fails."""
    count = len(found.survivors)
    sums = [float(value) * count + 7.5 * count for value in found.mean]
    assert max(abs(value - round(value)) for value in sums) < 1e-10
    return [round(value) for value in sums]


def changed(message: Message, **fields) -> Message:
    """The message with other fields; None takes one away."""
    merged = {**message.fields, **fields}
    return Message(message.tag, **{k: v for k, v in merged.items() if v is not None})


def at_tag(tag: str, change: Callable[[Message], Message]) -> Callable[[Message], Message]:
    return lambda message: change(message) if message.tag == tag else message


# --- exactness


def ends_at(fates: Sequence[int], waves: int, threshold: int) -> int | None:
    """The wave that fewer than the threshold answer, from thresholds alone. A fate is the wave at which a member leaves."""
    return next((w for w in range(waves) if sum(f > w for f in fates) < threshold), None)


def patterns(
    n: int, waves: int, threshold: int
) -> Iterator[tuple[tuple[int, ...], int | None, int]]:
    """Every pattern of fates that parties can tell apart, where it ends, and for how many of all patterns it stands.

    Fates after the wave at which the round ended are the same run: nobody was asked any more.
    """
    for fates in product(range(waves + 1), repeat=n):
        end = ends_at(fates, waves, threshold)
        if end is None:
            yield fates, None, 1
        elif max(fates) <= end + 1:
            yield fates, end, (waves - end) ** fates.count(end + 1)


def grouped(sizes: Sequence[int], adversary: Adversary) -> list[tuple[int, tuple[int, ...]]]:
    """Who misses AdvertiseKeys, for every number of members: the others' fates are rounds of one session."""
    return [
        (n, absent)
        for n in sizes
        for count in range(n - least_threshold(n, adversary) + 1)
        for absent in combinations(range(n), count)
    ]


def check_patterns(n: int, absent: tuple[int, ...], adversary: Adversary) -> int:
    """All patterns in which exactly those members miss AdvertiseKeys; how many were run."""
    agreement = agreed(n, adversary=adversary)
    threshold, waves = agreement.sharing.threshold, WAVES[adversary]
    roles = owners(n)
    model = [np.arange(3, dtype=np.float32)]
    hub = Fickle(members_of(agreement, rounds=1 << 20, like=model))
    hub.silent = {0: [roles[number] for number in absent]}
    session = begun(hub, agreement, seed="patterns")
    done = 0
    for fates, end, _ in patterns(n, len(waves), threshold):
        if absent != tuple(number for number in range(n) if fates[number] == 0):
            continue
        hub.wave, session.missing = 1, {}
        hub.silent = {
            w: [r for r, f in zip(roles, fates, strict=True) if 0 < f <= w]
            for w in range(1, len(waves))
        }
        check_round(session, model, done, fates, end, waves)
        done += 1
    return done


def check_round(session, model, round, fates, end, waves) -> None:
    """Run one round and compare with what the fates and the threshold say."""
    hub, before = session.hub, [array.copy() for array in model]
    answers: list[Message] = []
    with overheard(hub, answers):
        if end is None:
            share_keys(session, round=round)
            found = aggregate(session, model, round=round)
            present = [number for number, fate in enumerate(fates) if fate > 2]
            assert whole_sums(found) == plain_sums(present, round)
            assert found.examples == len(present) and found.clipped == 0.0
            assert [role.index for role in found.survivors] == present
            gone = {number for number, fate in enumerate(fates) if 0 < fate < len(waves)}
            assert {role.index for role in found.missing} == gone
            assert found.cheated == ()
        else:
            with pytest.raises(TooFewParties) as caught:
                share_keys(session, round=round)
                aggregate(session, model, round=round)
            assert caught.type is TooFewParties and f"wave {waves[end]}" in str(caught.value)
    sent = [answer.tag for answer in answers]
    if end is not None:  # no secret's shares came from as many as open it, so no vector was opened
        assert sent.count("unmasked") < session.agreement.sharing.threshold
        assert end == len(waves) - 1 or "unmasked" not in sent
    assert all((a == b).all() for a, b in zip(model, before, strict=True))


@contextmanager
def overheard(hub: LocalHub, answers: list[Message]) -> Iterator[None]:
    """Note each answer that reaches the server."""
    view = hub.views[SERVER]
    receive = view.receive
    spy = SimpleNamespace(
        receive=lambda sender, tag, wave, data: (
            answers.append(decode(data)),
            receive(sender, tag, wave, data),
        ),
        send=view.send,
    )
    hub._views[SERVER] = spy
    try:
        yield
    finally:
        hub._views[SERVER] = view


@pytest.mark.parametrize(
    ("n", "absent"),
    [
        *grouped((2, 3, 4, 5), SEMI),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in grouped((6,), SEMI)),
    ],
    ids=str,
)
def test_the_sum_of_the_survivors_is_exact_or_the_round_ends_typed_for_every_dropout_pattern(
    n: int, absent: tuple[int, ...]
) -> None:
    assert check_patterns(n, absent, SEMI) > 0


@pytest.mark.parametrize(("n", "absent"), grouped((4,), ACTIVE), ids=str)
def test_the_same_holds_in_the_active_variant(n: int, absent: tuple[int, ...]) -> None:
    assert check_patterns(n, absent, ACTIVE) > 0


@pytest.mark.parametrize(("n", "absent"), [*grouped((3, 4), SEMI), (5, (2,))], ids=str)
def test_the_same_holds_without_the_c_kernels(
    n: int, absent: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TACIT_NATIVE", "0")
    assert check_patterns(n, absent, SEMI) > 0


@VARIANTS
@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_the_patterns_that_are_run_stand_for_all_of_them(n: int, adversary: Adversary) -> None:
    waves, threshold = len(WAVES[adversary]), least_threshold(n, adversary)
    found = list(patterns(n, waves, threshold))
    assert sum(stands_for for *_, stands_for in found) == (waves + 1) ** n
    assert len({fates for fates, *_ in found}) == len(found)
    succeed = [fates for fates, end, _ in found if end is None]
    assert all(sum(fate == waves for fate in fates) >= threshold for fates in succeed)
    absent = {tuple(i for i in range(n) if fates[i] == 0) for fates, end, _ in found if end != 0}
    assert absent == {absent for _, absent in grouped((n,), adversary)}


@pytest.mark.parametrize(
    ("n", "adversary"), [(2, SEMI), (3, SEMI), (4, SEMI), (2, ACTIVE), (3, ACTIVE)]
)
def test_a_session_of_one_round_is_exact_for_every_dropout_pattern_from_its_first_wave_on(
    n: int, adversary: Adversary
) -> None:
    agreement = agreed(n, adversary=adversary)
    waves = WAVES[adversary]
    for fates, end, _ in patterns(n, len(waves), agreement.sharing.threshold):
        faults = []
        for role, fate in zip(owners(n), fates, strict=True):
            if fate < len(waves):
                harm, way = SILENCE[(fate + role.index) % 4]
                faults += [Fault(role=role, at=fate, harm=harm, way=way)]
                faults += [Fault(role=role, at=w, harm=Harm.DIE) for w in range(fate + 1, 5)]
        hub = LocalHub(members_of(agreement), faults=faults)
        if end is None:
            found = aggregate(opened(hub, agreement), [], round=0)
            present = [number for number, fate in enumerate(fates) if fate > 2]
            assert whole_sums(found) == plain_sums(present, 0)
            assert {r.index for r in found.missing} == {
                i for i in range(n) if fates[i] < len(waves)
            }
        else:
            with pytest.raises(TooFewParties, match=waves[end]) as caught:
                aggregate(opened(hub, agreement), [], round=0)
            assert {role.index for role in caught.value.replied} == {
                i for i in range(n) if fates[i] > end
            }


@pytest.mark.parametrize(
    ("n", "degree", "threshold"),
    [
        (8, 4, 3),
        (9, 6, 3),
        (10, 4, 2),
        (11, 6, 4),
        (12, 6, 4),
    ],
)
def test_on_a_regular_graph_the_sum_is_exact_or_the_round_ends_typed(
    n: int, degree: int, threshold: int
) -> None:
    agreement = agreed(n, sharing=Sharing(degree=degree, threshold=threshold))
    roles = owners(n)
    hub = Fickle(members_of(agreement, rounds=100))
    session = begun(hub, agreement, seed=f"graph {n} {degree}")
    coins = COINS.child(f"fates {n} {degree}")
    outcomes = set()
    for round in range(60):
        leaving = coins.below(4, n) == 0
        fates = np.where(leaving, 1 + coins.below(3, n), 4).tolist()
        hub.wave, session.missing = 1, {}
        hub.silent = {w: [roles[i] for i in range(n) if fates[i] == w] for w in (1, 2, 3)}
        present = present_on_graph(session.holders.tolist(), fates, threshold)
        outcomes.add(present is not None)
        if present is None:
            with pytest.raises(ProtocolError) as caught:
                share_keys(session, round=round)
                aggregate(session, [], round=round)
            assert caught.type is TooFewParties
        else:
            share_keys(session, round=round)
            found = aggregate(session, [], round=round)
            assert [role.index for role in found.survivors] == present
            assert whole_sums(found) == plain_sums(present, round)
    assert outcomes == {True, False}


def test_on_a_regular_graph_a_round_ends_before_unmasking_if_more_drop_out_than_it_was_drawn_for() -> (
    None
):
    sharing = Sharing(degree=6, threshold=2, dropouts=3)
    agreement = agreed(12, sharing=sharing)
    assert agreement.least_sum == 9
    for gone in (3, 4):
        hub = Fickle(members_of(agreement))
        hub.silent = {1: owners(12)[:2], 2: owners(12)[2:gone]}
        session = opened(hub, agreement)
        answers: list[Message] = []
        with overheard(hub, answers):
            if gone == 3:
                found = aggregate(session, [], round=0)
                assert whole_sums(found) == plain_sums(range(3, 12), 0)
            else:
                with pytest.raises(TooFewParties, match="MaskedInput"):
                    aggregate(session, [], round=0)
                assert "unmasked" not in {answer.tag for answer in answers}


def present_on_graph(
    holders: list[list[int]], fates: list[int], threshold: int
) -> list[int] | None:
    """Who is in the sum, or None: each member counts its own holders, and each secret needs enough of its own."""
    shared = {i for i, fate in enumerate(fates) if fate > 1}
    sent = {i for i in shared if fates[i] > 2 and len(shared & set(holders[i])) >= threshold}
    answer = {i for i in sent if fates[i] > 3 and len(sent & set(holders[i])) >= threshold}
    if len(shared) < threshold or len(sent) < threshold:
        return None
    wanted = [v for v in shared if sent & set(holders[v])]
    return sorted(sent) if all(len(answer & set(holders[v])) >= threshold for v in wanted) else None


# --- the bound on the error, and the ring


@st.composite
def agreements(draw) -> Agreement:
    n = draw(st.integers(2, 9))
    bits = draw(st.integers(1, 32))
    least = n // 2 + 1
    sharing = Sharing(degree=n - 1, threshold=draw(st.integers(least, n)))
    if n >= 4 and draw(st.booleans()):
        degree = 2 * draw(st.integers(1, (n - 2) // 2))
        sharing = Sharing(degree=degree, threshold=draw(st.integers(2, degree)))
    return agreed(
        n,
        dimension=draw(st.integers(1, 70)),
        bits=bits,
        clip=draw(st.sampled_from([2.0**-10, 1.0, 7.5, 1000.0])),
        max_examples=draw(st.integers(1, min(100, (1 << bits) - 1))),
        sharing=sharing,
    )


def error_beside_float64(agreement: Agreement, seed: int, *, weighted: bool) -> tuple[float, float]:
    """The largest error of the mean, and the bound that was promised."""
    n, clip, most = agreement.participants, agreement.clip, agreement.max_examples
    coins = COINS.child(f"updates {seed}")
    values = ((2 * coins.unit((n, agreement.dimension)) - 1) * 1.2 * clip).astype(np.float32)
    examples = (1 + coins.below(most, n)).tolist() if weighted else [most] * n
    works = [Constant(v, e) for v, e in zip(values, examples, strict=True)]
    found = sum_once(members_of(agreement, works, seed=str(seed)), agreement, seed=str(seed))
    limited = np.clip(values.astype(np.float64), -clip, clip)
    mean = sum(e * x for e, x in zip(examples, limited, strict=True)) / sum(examples)
    assert found.examples == sum(examples) and len(found.survivors) == n
    slack = 1e-12 * clip * n * most / sum(examples)  # of float64
    return float(np.abs(found.mean - mean).max()), agreement.error_bound(n, sum(examples)) + slack


@settings(steady, max_examples=80)
@given(agreement=agreements(), seed=st.integers(0, 1 << 30))
def test_the_mean_of_updates_of_equal_weight_is_within_the_bound(
    agreement: Agreement, seed: int
) -> None:
    error, bound = error_beside_float64(agreement, seed, weighted=False)
    assert error <= bound


@settings(steady, max_examples=80)
@given(agreement=agreements(), seed=st.integers(0, 1 << 30))
def test_the_weighted_mean_is_within_the_bound(agreement: Agreement, seed: int) -> None:
    error, bound = error_beside_float64(agreement, seed, weighted=True)
    assert error <= bound


def fine_error(clip: float) -> tuple[float, float]:
    """The error of a mean whose step is far finer than float32, in which members weigh their updates, and its bound."""
    agreement = agreed(2, dimension=20_000, bits=32, clip=clip, max_examples=100)
    clip = agreement.clip
    values = (clip * (1 - 0.04 * COINS.child("fine").unit((2, 20_000)))).astype(np.float32)

    def rounding(examples: int) -> float:
        return float(np.float32(examples / 100)) - examples / 100

    examples = sorted(range(60, 100), key=rounding)[-2:]
    works = [Constant(v, e) for v, e in zip(values, examples, strict=True)]
    found = sum_once(members_of(agreement, works), agreement)
    limited = np.clip(values.astype(np.float64), -clip, clip)
    mean = sum(e * x for e, x in zip(examples, limited, strict=True)) / sum(examples)
    return float(np.abs(found.mean - mean).max()), agreement.error_bound(2, sum(examples))


@pytest.mark.parametrize(
    "clip",
    [1.0, 1.04, 1.5, 1.99],
)
def test_the_bound_holds_where_the_step_is_finer_than_float32(clip: float) -> None:
    error, bound = fine_error(clip)
    assert 0.2 * bound < error <= bound


def test_the_bound_is_not_loose_by_more_than_the_draws_explain() -> None:
    agreement = agreed(3, dimension=2000, bits=3, clip=1.0)
    error, bound = error_beside_float64(agreement, 1, weighted=False)
    assert 0.5 * bound < error <= bound


@settings(steady, max_examples=40)
@given(agreement=agreements())
def test_a_sum_at_the_top_of_the_ring_does_not_wrap(agreement: Agreement) -> None:
    n, most = agreement.participants, agreement.quantiser.levels - 1
    agreement = replace(agreement, max_examples=most)
    beyond = Constant(np.full(agreement.dimension, 2 * agreement.clip), most)
    found = sum_once(members_of(agreement, [beyond] * n), agreement)
    assert found.examples == n * most  # the sums of all fields are n (2^bits - 1)
    assert found.clipped == 1.0
    np.testing.assert_allclose(found.mean, agreement.clip, rtol=1e-14)
    assert (
        n * most < 1 << agreement.width <= 2 * n * most
    )  # and the ring is no wider than it must be


# --- many rounds in one session


@VARIANTS
def test_members_who_drop_out_are_back_in_the_next_round_and_every_sum_of_a_session_is_exact(
    adversary: Adversary,
) -> None:
    n, rounds = 10, 8
    agreement = agreed(n, adversary=adversary)  # three of ten may be missing in all
    each = len(WAVES[adversary]) - 2  # waves of a round
    hub = Fickle(members_of(agreement, rounds=rounds))
    # Waves 0 and 1 open the session; another member is silent at most waves that mask and unmask.
    waves = [w for w in range(1, 2 + rounds * each) if each == 2 or w % 3]
    script = {w: owners(n)[place * 3 % n] for place, w in enumerate(waves) if place % 3 != 2}
    hub.silent = {w: [role] for w, role in script.items()}
    session = opened(hub, agreement)
    everybody = set(range(n))
    shared = everybody - {script[1].index}
    for round in range(rounds):
        mask, unmask = 2 + round * each, 1 + (round + 1) * each
        present = shared - {script[mask].index if mask in script else -1}
        found = aggregate(session, [], round=round, share_next=round + 1 < rounds)
        assert [role.index for role in found.survivors] == sorted(present)
        assert whole_sums(found) == plain_sums(sorted(present), round)
        shared = everybody - {script[unmask].index if unmask in script else -1}
    assert len(set(script.values())) > 3


def test_a_member_that_missed_the_consistency_check_alone_is_in_the_next_round() -> None:
    agreement = agreed(5, adversary=ACTIVE)
    hub = Fickle(members_of(agreement, rounds=2))
    hub.silent = {3: [owners(5)[1]]}
    session = opened(hub, agreement)
    for round in range(2):
        found = aggregate(session, [], round=round, share_next=round == 0)
        assert whole_sums(found) == plain_sums(range(5), round)


@VARIANTS
def test_a_round_costs_two_waves_and_three_in_the_active_variant_and_the_first_two_more(
    adversary: Adversary,
) -> None:
    agreement = agreed(5, adversary=adversary)
    hub = LocalHub(members_of(agreement, rounds=4))
    session = opened(hub, agreement)
    assert hub.cost.rounds == 2 * 2  # messages in a chain: a request and its reply a wave
    each = 2 if adversary is SEMI else 3
    for round in range(4):
        aggregate(session, [], round=round, share_next=round < 3)
        assert hub.cost.rounds == 2 * (2 + each * (round + 1))


def test_keys_are_agreed_on_once_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    agreed_on = []
    original = keys.agree
    monkeypatch.setattr(keys, "agree", lambda *given: agreed_on.append(1) or original(*given))
    agreement = agreed(5)
    hub = LocalHub(members_of(agreement, rounds=5), recording=FULL)
    session = opened(hub, agreement)
    first = len(agreed_on)
    assert first == 5 * 4 + 5  # every member with each other, and the server's look at each key
    for round in range(5):
        aggregate(session, [], round=round, share_next=round < 4)
    assert len(agreed_on) == first
    carried = [m.tag for f in hub.views[SERVER].sent() if "keys" in (m := f.message()).fields]
    assert carried == ["share"] * 5


def test_a_member_that_missed_the_first_sharing_gets_the_keys_later_and_joins() -> None:
    agreement = agreed(5)
    hub = Fickle(members_of(agreement, rounds=3))
    late = owners(5)[2]
    hub.silent = {1: [late], 3: [late]}
    session = opened(hub, agreement)
    for round, present in enumerate(([0, 1, 3, 4], [0, 1, 3, 4], [0, 1, 2, 3, 4])):
        found = aggregate(session, [], round=round, share_next=round < 2)
        assert whole_sums(found) == plain_sums(present, round)


def test_a_second_session_of_the_same_members_has_other_keys_and_exact_sums() -> None:
    agreement = agreed(4)
    hub = LocalHub(members_of(agreement, rounds=2))
    first = opened(hub, agreement, seed="a")
    assert whole_sums(aggregate(first, [], round=0)) == plain_sums(range(4), 0)
    second = opened(hub, agreement, seed="b", round=1)
    assert whole_sums(aggregate(second, [], round=1)) == plain_sums(range(4), 1)
    assert (first.keys != second.keys).any(axis=1).all()


def test_who_is_missing_is_told_of_each_round_alone() -> None:
    agreement = agreed(4)
    hub = Fickle(members_of(agreement, rounds=2))
    hub.silent = {2: owners(4)[:2]}
    session = opened(hub, agreement)
    with pytest.raises(TooFewParties):
        aggregate(session, [], round=0)
    share_keys(session, round=1)
    found = aggregate(session, [], round=1)
    assert whole_sums(found) == plain_sums(range(4), 1)
    assert found.missing == {}


# --- what the server and the others see


def watched(
    values: np.ndarray, *, adversary=SEMI, masks=Masks.BOTH, rounds=2, seed="watched", bits=4
) -> tuple[LocalHub, Agreement]:
    """A recorded session over constant updates."""
    n, dimension = values.shape
    agreement = agreed(n, adversary=adversary, dimension=dimension, bits=bits)
    works = [Constant(row) for row in values]
    members = members_of(agreement, works, seed=seed, rounds=rounds, masks=masks)
    hub = LocalHub(members, recording=FULL)
    session = opened(hub, agreement, seed=seed, masks=masks)
    for round in range(rounds):
        aggregate(session, [], round=round, share_next=round + 1 < rounds)
    return hub, agreement


def on_grid(n: int, dimension: int, label: str) -> np.ndarray:
    return COINS.child(label).below(16, (n, dimension)).astype(np.float32) - np.float32(7.5)


def masked_vectors(hub: LocalHub, agreement: Agreement, role: Role) -> list[np.ndarray]:
    """The masked vectors of a member as the server received them, round by round."""
    frames = [f.message() for f in hub.views[SERVER].frames() if f.peer == role]
    packed = [np.array(m.array("vector")) for m in frames if m.tag == "masked"]
    return [unpack(p, agreement.length, agreement.width, agreement.dtype) for p in packed]


@VARIANTS
@pytest.mark.parametrize("same_sum", [True, False], ids=["the same sum", "other inputs"])
def test_number_order_size_and_destination_of_all_messages_do_not_depend_on_the_inputs(
    adversary: Adversary, same_sum: bool
) -> None:
    one = on_grid(4, 20, "one")
    other = on_grid(4, 20, "other")
    if same_sum:  # members 1 and 2 have each other's updates
        other = one[[0, 2, 1, 3]]
    traffic = []
    for values in (one, other):
        hub, _ = watched(values, adversary=adversary)
        traffic.append(
            {
                role: (view.shape, [(f.peer, f.wave, len(f.data)) for f in view.sent()])
                for role, view in hub.views.items()
            }
        )
    assert traffic[0] == traffic[1]
    assert len(traffic[0]) == 5 and all(shape and sent for shape, sent in traffic[0].values())


def chi_square_p(symbols: np.ndarray, count: int) -> float:
    """The probability that uniform symbols lie as unevenly as these."""
    seen = np.bincount(symbols.astype(np.int64), minlength=count)
    mean = len(symbols) / count
    return float(chi2.sf(((seen - mean) ** 2 / mean).sum(), count - 1))


def test_masked_vectors_are_uniform_and_unmasked_ones_are_not() -> None:
    # False alarms: with other coins each of the comparisons fails in 1 of 10^6 runs; these coins are fixed.
    values = np.repeat(np.arange(3, dtype=np.float32)[:, None] - np.float32(7.5), 4096, axis=1)
    for masks in Masks:
        hub, agreement = watched(values, masks=masks)
        assert agreement.width == 6
        for role in owners(3):
            for vector in masked_vectors(hub, agreement, role):
                p = chi_square_p(vector[:-EXTRA], 1 << agreement.width)
                assert p > 1e-6 if masks is Masks.BOTH else p < 1e-12


def test_masked_vectors_of_wide_values_are_uniform_in_every_byte() -> None:
    # Four bytes of 33-bit values of two members: 1 of 10^5 runs with other coins fails.
    hub, agreement = watched(np.zeros((2, 8192), np.float32), bits=32, rounds=1)
    assert agreement.width == 33 and agreement.dtype is np.uint64
    for role in owners(2):
        (vector,) = masked_vectors(hub, agreement, role)
        for byte in range(4):
            assert chi_square_p((vector >> np.uint64(8 * byte)) & np.uint64(255), 256) > 1e-6
        assert 0.4 < (vector >> np.uint64(32)).mean() < 0.6


def test_masks_of_two_rounds_and_of_two_members_have_no_relation() -> None:
    # False alarms: 1 of 10^5 runs with other coins.
    hub, agreement = watched(np.zeros((3, 4096), np.float32), rounds=3)
    vectors = [masked_vectors(hub, agreement, role) for role in owners(3)]
    ring = 1 << agreement.width
    flat = [vector[:-EXTRA].astype(np.int64) for rounds in vectors for vector in rounds]
    for a, b in combinations(flat, 2):
        assert chi_square_p((a - b) % ring, ring) > 1e-6
        assert chi_square_p((a + b) % ring, ring) > 1e-6
    # control: the same masks twice, as a member would use them that answered a round twice, give the inputs' difference
    twins = [watched(np.full((3, 4096), fill, np.float32), rounds=1) for fill in (0.5, 3.5)]
    a, b = (masked_vectors(h, g, owners(3)[0])[0][:-EXTRA].astype(np.int64) for h, g in twins)
    assert set(((b - a) % ring).tolist()) == {3}


def test_both_ends_of_a_pair_have_the_same_seeds_and_no_secret_serves_two_rounds_or_sessions() -> (
    None
):
    agreement = agreed(4)
    members = members_of(agreement, rounds=4)
    hub = LocalHub(members)
    seen: list[bytes] = []
    for start in (0, 2):
        session = opened(hub, agreement, seed=f"from {start}", round=start)
        for round in (start, start + 1):
            own = [member._own for member in members.values()]
            assert [one.round for one in own] == [round] * 4
            for u, v in combinations(range(4), 2):
                assert (own[u].seeds[v] == own[v].seeds[u]).all()
                seen.append(own[u].seeds[v].tobytes())
            seen += [secret.tobytes() for one in own for secret in one.secrets]
            aggregate(session, [], round=round, share_next=round == start)
    assert len(seen) == 4 * (6 + 8) == len(set(seen))


def test_what_the_server_holds_fits_every_input_with_the_same_sum() -> None:
    """The masks of all but the sum stay free: swapping two members' inputs changes their vectors and not the sum."""
    one = on_grid(4, 50, "one")
    sums = []
    for values in (one, one[[0, 2, 1, 3]]):
        hub, agreement = watched(values, rounds=1)
        sums.append([masked_vectors(hub, agreement, role)[0] for role in owners(4)])
    ring = np.uint64((1 << agreement.width) - 1)
    totals = [np.sum(vectors, axis=0, dtype=np.uint64) & ring for vectors in sums]
    whole = (one.sum(axis=0) + 4 * 7.5).astype(np.uint64)
    assert (totals[0] == totals[1]).all()
    assert (sums[0][1] != sums[1][1]).any()
    assert (totals[0][:-EXTRA] != whole).any()  # the self-masks are still on it


def test_no_members_update_stands_in_anybody_elses_view() -> None:
    values = on_grid(4, 40, "canary")
    for masks in Masks:
        hub, agreement = watched(values, masks=masks)
        for victim in owners(4):
            whole = (values[victim.index] + 7.5).astype(np.uint32)
            padded = np.concatenate([whole, [1, 0]]).astype(np.uint32)
            packed = pack(padded, agreement.width).tobytes()
            canaries = [
                values[victim.index].tobytes()[:64],
                values[victim.index].astype(np.float64).tobytes()[:64],
                *(
                    whole.astype(kind).tobytes()[:32]
                    for kind in (np.uint8, np.uint16, np.uint32, np.uint64)
                ),
                packed[:16],
            ]
            for role, view in hub.views.items():
                if role == victim:
                    continue
                seen = b"".join(frame.data for frame in view.frames())
                found = [canary in seen for canary in canaries]
                leaks = (
                    masks is Masks.NONE and role == SERVER
                )  # the control: packed, it stands there
                assert found == [False] * 6 + [leaks]


def test_a_member_sees_of_the_others_only_keys_sealed_shares_and_who_takes_part() -> None:
    hub, _ = watched(on_grid(3, 5, "seen"))
    received = {}
    for frame in hub.views[owners(3)[0]].frames():
        message = frame.message()
        received.setdefault(message.tag, set()).update(message.fields)
    assert received.keys() == {"advertise", "share", "mask", "unmask"}
    assert received["share"] == {"session", "round", "holders", "known", "keys"}
    assert received["mask"] == {"session", "round", "senders", "boxes", "model"}
    assert received["unmask"] == {"session", "round", "survivors", "next"}


@VARIANTS
def test_masks_of_members_who_were_given_different_models_do_not_cancel(
    adversary: Adversary,
) -> None:
    """Nobody's update is left alone by handing the others a model from which theirs is known."""
    agreement = agreed(5, adversary=adversary, dimension=60)
    model, other = [np.zeros(2, np.float32)], [np.array([0, 1], np.float32)]

    def another(number: int, request: Message) -> Message:
        return changed(request, model=other) if request.tag == "mask" and number == 3 else request

    works = [Constant(np.full(60, -7.5)) for _ in range(5)]
    with pytest.raises(CheatingDetected, match="more than 5 updates in range"):
        sum_once(between_all(agreement, another, works=works, like=model), agreement, model=model)


# --- what a member refuses


def conversation(adversary: Adversary = SEMI, *, n=4, rounds=2, number=1) -> list[Message]:
    """All that an honest server asks of one member: it can be asked again, of a fresh member with the same coins."""
    agreement = agreed(n, adversary=adversary)
    hub = LocalHub(members_of(agreement, rounds=rounds), recording=FULL)
    session = opened(hub, agreement)
    for round in range(rounds):
        aggregate(session, [], round=round, share_next=round + 1 < rounds)
    return [frame.message() for frame in hub.views[owners(n)[number]].frames()]


TALK = {adversary: conversation(adversary) for adversary in Adversary}
TAGS = {
    SEMI: ["advertise", "share", "mask", "unmask", "mask", "unmask"],
    ACTIVE: ["advertise", "share", "mask", "check", "unmask", "mask", "check", "unmask"],
}


def member_after(asked: int, adversary: Adversary = SEMI, **options) -> SecureAggregationMember:
    """Member 1 of 4 after so many of the messages of `TALK`."""
    member = member_of(agreed(4, adversary=adversary), 1, rounds=2, **options)
    for request in TALK[adversary][:asked]:
        member.handle(request)
    return member


@VARIANTS
def test_a_conversation_repeats_with_the_same_coins(adversary: Adversary) -> None:
    assert [request.tag for request in TALK[adversary]] == TAGS[adversary]
    assert len([member_after(k, adversary) for k in range(len(TALK[adversary]) + 1)]) > 6


def flags(*there: int) -> np.ndarray:
    return np.isin(np.arange(4), there)


def test_no_two_lists_of_survivors_draw_both_shares_of_anybody_from_a_member() -> None:
    own, lists = (
        TALK[SEMI][3],
        [flags(*there) for k in range(5) for there in combinations(range(4), k)],
    )
    answered = 0
    for first, second in product(lists, repeat=2):
        member = member_after(3)
        got = []
        for survivors in (first, second):
            try:
                got.append(member.handle(changed(own, survivors=survivors)))
            except TacitError:
                continue
        assert len(got) <= 1
        answered += len(got)
    assert answered > 0


def test_an_unmask_answer_holds_one_share_of_each_member_and_the_list_says_which() -> None:
    both = member_after(3)._opened.shares  # (holders, self and recovery, limbs)
    for gone in (None, 0, 2, 3):
        survivors = flags(*(set(range(4)) - {gone}))
        reply = member_after(3).handle(changed(TALK[SEMI][3], survivors=survivors))
        expected = [both[v, 1 if v == gone else 0].tolist() for v in range(4)]
        assert reply.array("shares", dtype="<u8").tolist() == expected
    assert (both[:, 0] != both[:, 1]).all()


def test_a_refused_list_uses_up_the_wave_too() -> None:
    member = member_after(3)
    with pytest.raises(ProtocolError, match="at least 3 must"):
        member.handle(changed(TALK[SEMI][3], survivors=flags(1, 2)))
    with pytest.raises(ProtocolError, match="answered already"):
        member.handle(TALK[SEMI][3])


def test_a_survivor_that_never_shared_is_refused() -> None:
    member, mask = member_after(2), TALK[SEMI][2]
    boxes = mask.array("boxes")[[0, 1, 2]]
    member.handle(changed(mask, senders=flags(0, 1, 2), boxes=boxes))
    with pytest.raises(CheatingDetected, match="not among those who shared"):
        member.handle(changed(TALK[SEMI][3], survivors=flags(0, 1, 2, 3)))


def test_a_list_without_the_members_own_number_is_refused() -> None:
    with pytest.raises(CheatingDetected, match="member 1 itself"):
        member_after(3).handle(changed(TALK[SEMI][3], survivors=flags(0, 2, 3)))


def test_a_list_of_fewer_survivors_than_the_threshold_is_refused() -> None:
    with pytest.raises(ProtocolError, match="at least 3 must"):
        member_after(3).handle(changed(TALK[SEMI][3], survivors=flags(0, 1)))


@VARIANTS
def test_no_wave_is_answered_twice(adversary: Adversary) -> None:
    for asked, request in enumerate(TALK[adversary]):
        member = member_after(asked + 1, adversary)
        with pytest.raises(ProtocolError, match="answered already"):
            member.handle(request)


@VARIANTS
def test_no_wave_or_round_is_answered_after_a_later_one(adversary: Adversary) -> None:
    talk = TALK[adversary]
    for later in range(1, len(talk)):
        for earlier in range(later):
            with pytest.raises(ProtocolError, match="answered already"):
                member_after(later + 1, adversary).handle(talk[earlier])


@VARIANTS
def test_a_wave_of_another_round_is_refused(adversary: Adversary) -> None:
    for asked, request in enumerate(TALK[adversary]):
        if request.tag in ("advertise", "share") or request.integer("round") == 1:
            continue
        with pytest.raises(ProtocolError, match="round 1"):
            member_after(asked, adversary).handle(changed(request, round=1))


def test_masks_of_one_round_are_not_opened_as_those_of_another() -> None:
    talk = TALK[SEMI]
    member = member_after(5)
    with pytest.raises(ProtocolError):
        member.handle(changed(talk[5], round=0))
    with pytest.raises(ProtocolError):  # sealed for round 0, handed out as round 1's
        member_after(4).handle(changed(talk[2], round=1))


@VARIANTS
def test_a_message_of_another_session_is_refused(adversary: Adversary) -> None:
    for asked, request in enumerate(TALK[adversary]):
        if request.tag == "advertise":
            continue
        with pytest.raises(ProtocolError, match="another session"):
            member_after(asked, adversary).handle(changed(request, session=bytes(16)))
        with pytest.raises(ProtocolError, match="another session"):
            member_of(agreed(4, adversary=adversary), 1, rounds=2).handle(request)


def test_a_new_session_forgets_the_rounds_of_the_old_one() -> None:
    member = member_after(3)
    member.handle(changed(TALK[SEMI][0], session=bytes(range(16)), round=1))
    with pytest.raises(ProtocolError):
        member.handle(changed(TALK[SEMI][3], session=bytes(range(16)), round=1))
    with pytest.raises(ProtocolError, match="another session"):
        member.handle(TALK[SEMI][3])


def test_shares_of_a_round_are_given_once_by_either_wave() -> None:
    share, unmask = TALK[SEMI][1], TALK[SEMI][3]
    assert unmask.integer("next") == 1
    with pytest.raises(ProtocolError, match="SHARE of round 0"):
        member_after(2).handle(share)
    with pytest.raises(ProtocolError, match="SHARE of round 1"):
        member_after(4).handle(changed(share, round=1))


def test_unmasking_before_masking_is_refused() -> None:
    with pytest.raises(ProtocolError, match="no update of it was sent"):
        member_after(2).handle(TALK[SEMI][3])


def test_an_update_before_its_secrets_were_shared_is_refused() -> None:
    with pytest.raises(ProtocolError, match="were not shared"):
        member_after(1).handle(TALK[SEMI][2])


def test_shares_before_keys_are_refused() -> None:
    with pytest.raises(ProtocolError, match="another session"):
        member_after(0).handle(TALK[SEMI][1])


@VARIANTS
def test_no_round_beyond_the_budget_is_answered(adversary: Adversary) -> None:
    for asked, request in enumerate(TALK[adversary]):
        with pytest.raises(BudgetExhausted, match="2 rounds were agreed on"):
            member_after(asked, adversary).handle(changed(request, round=2))


def test_secrets_of_a_round_beyond_the_budget_are_not_shared_either() -> None:
    reply = member_after(5).handle(changed(TALK[SEMI][5], next=1))
    assert reply.fields.keys() == {"shares"}


def test_an_unknown_wave_is_refused_and_a_finished_model_is_thanked_for() -> None:
    with pytest.raises(ProtocolError, match="'sum'"):
        member_after(2).handle(Message("sum", round=0))
    assert member_after(2).handle(Message("finished", model=[])).tag == "thanks"


def test_a_consistency_check_is_refused_where_none_was_agreed_on() -> None:
    with pytest.raises(ProtocolError, match="only the active variant"):
        member_after(3).handle(changed(TALK[ACTIVE][3], session=TALK[SEMI][3].blob("session")))


def test_senders_who_are_too_few_unknown_or_not_the_member_itself_are_refused() -> None:
    mask = TALK[SEMI][2]
    boxes = mask.array("boxes")
    with pytest.raises(ProtocolError, match="at least 3 must"):
        member_after(2).handle(changed(mask, senders=flags(0, 1), boxes=boxes[:2]))
    with pytest.raises(CheatingDetected, match="not member 1 itself"):
        member_after(2).handle(changed(mask, senders=flags(0, 2, 3), boxes=boxes[[0, 2, 3]]))
    member = member_after(1)
    share = TALK[SEMI][1]
    member.handle(changed(share, known=flags(0, 1, 2)))
    with pytest.raises(CheatingDetected, match="whose key never came"):
        member.handle(mask)


def test_holders_that_are_no_ascending_numbers_with_the_member_among_them_are_refused() -> None:
    share = TALK[SEMI][1]
    for holders, known in (
        ([0, 1, 1, 3], flags(0, 1, 2, 3)),
        ([1, 0, 2, 3], flags(0, 1, 2, 3)),
        ([0, 1, 2, 4], flags(0, 1, 2, 3)),
        ([-1, 1, 2, 3], flags(0, 1, 2, 3)),
        ([0, 1, 2, 3], flags(0, 2, 3)),
    ):
        with pytest.raises(CheatingDetected, match="holders of member 1"):
            member_after(1).handle(changed(share, holders=np.array(holders), known=known))
    regular = agreed(6, sharing=Sharing(degree=4, threshold=3))
    member = member_of(regular, 1)
    member.handle(Message("advertise", session=bytes(16), round=0, **regular.fields()))
    elsewhere = Message(
        "share", session=bytes(16), round=0, holders=np.array([0, 2, 3, 4, 5]), known=np.ones(5, np.bool_),
        keys=np.ones((5, 32), np.uint8),
    )  # fmt: skip
    with pytest.raises(CheatingDetected, match="holders of member 1"):
        member.handle(elsewhere)


ANY_ARRAY = st.builds(
    lambda dtype, shape, fill: np.full(shape, fill).astype(dtype),
    st.sampled_from(["<f4", "<f8", "u1", "<u4", "<u8", "<i8", "?"]),
    st.lists(st.integers(0, 5), max_size=3).map(tuple),
    st.integers(0, 100),
)
ANY_VALUE = st.recursive(
    st.one_of(
        ANY_ARRAY,
        st.booleans(),
        st.integers(-(1 << 70), 1 << 70),
        st.floats(),
        st.text(max_size=5),
        st.binary(max_size=40),
    ),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@settings(steady, max_examples=400)
@given(data=st.data())
def test_whatever_stands_in_a_message_a_member_answers_or_refuses_with_a_tacit_error(data) -> None:
    adversary = data.draw(st.sampled_from(list(Adversary)))
    asked = data.draw(st.integers(0, len(TALK[adversary]) - 1))
    request = TALK[adversary][asked]
    names = data.draw(st.sets(st.sampled_from(sorted(request.fields)), min_size=1, max_size=3))
    hostile = changed(request, **{name: data.draw(st.none() | ANY_VALUE) for name in sorted(names)})
    member = member_after(asked, adversary)
    try:
        answer = member.handle(decode(encode(hostile)))
    except TacitError as error:
        refusal(error)
    else:
        assert answer.tag in ("keys", "shares", "masked", "signed", "unmasked")


@settings(steady, max_examples=200)
@given(data=st.data())
def test_a_change_of_shape_or_dtype_of_any_array_is_refused(data) -> None:
    adversary = data.draw(st.sampled_from(list(Adversary)))
    asked = data.draw(st.integers(1, len(TALK[adversary]) - 1))
    request = TALK[adversary][asked]
    arrays = [name for name, value in request.fields.items() if isinstance(value, np.ndarray)]
    if not arrays:
        return
    name = data.draw(st.sampled_from(arrays))
    value = np.array(request.fields[name])
    other = data.draw(
        st.sampled_from(
            [
                value[:-1],
                value[None],
                value[..., None],
                value.astype("<f8"),
                np.concatenate([value, value]),
            ]
        )
    )
    with pytest.raises(WireError):
        member_after(asked, adversary).handle(changed(request, **{name: other}))


@pytest.mark.parametrize("name", sorted(agreed(4).fields()))
def test_an_agreement_with_an_array_in_the_place_of_a_number_is_refused(name: str) -> None:
    with pytest.raises(TacitError):
        member_after(0).handle(changed(TALK[SEMI][0], **{name: np.arange(2)}))


def test_bytes_that_are_no_state_are_not_restored() -> None:
    member = member_after(2)
    for state in (b"", b"state", encode(Message("state")), encode(Message("state", newest=[1]))):
        with pytest.raises(ProtocolError):
            member.restore(state)


# --- bad input


def test_fewer_parties_than_the_threshold_end_the_round_with_their_names() -> None:
    agreement = agreed(5)
    hub = Fickle(members_of(agreement))
    hub.silent = {2: owners(5)[:3]}
    session = opened(hub, agreement)
    with pytest.raises(TooFewParties, match="MaskedInput") as caught:
        aggregate(session, [], round=0)
    assert caught.value.replied == owners(5)[3:]
    assert tuple(caught.value.missing) == owners(5)[:3]


OTHERWISE = {
    "dimension": {"dimension": 4},
    "clip": {"clip": 7.0},
    "bits": {"bits": 5},
    "max_examples": {"max_examples": 2},
    "participants": {"participants": 5, "sharing": Sharing(degree=4, threshold=3)},
    "threshold": {"sharing": Sharing(degree=3, threshold=4)},
    "adversary": {"adversary": ACTIVE},
    "degree": {"sharing": Sharing(degree=2, threshold=2)},
}


@pytest.mark.parametrize(
    "name",
    list(OTHERWISE),
)
def test_a_member_that_agreed_on_something_else_is_left_out_and_told_what(name: str) -> None:
    agreement = agreed(4)
    members = members_of(agreement)
    odd = owners(4)[2]
    members[odd] = member_of(replace(agreement, **OTHERWISE[name]), 2)
    hub = LocalHub(members)
    session = opened(hub, agreement)
    assert set(session.missing) == {odd}
    assert (
        f"agreed on {name} = " in session.missing[odd] and "same settings" in session.missing[odd]
    )
    found = aggregate(session, [], round=0)
    assert whole_sums(found) == plain_sums([0, 1, 3], 0)
    assert f"agreed on {name} = " in found.missing[odd]


def test_a_member_of_another_version_is_left_out() -> None:
    agreement = agreed(4)
    members = members_of(agreement)
    newer = at_tag("advertise", lambda request: changed(request, version=VERSION + 1))
    members[owners(4)[0]] = Between(members[owners(4)[0]], asked=newer)
    session = opened(LocalHub(members), agreement)
    said = f"agreed on version = {VERSION}, the server says {VERSION + 1}"
    assert said in session.missing[owners(4)[0]]


def test_a_model_of_another_shape_is_refused_by_the_member_that_got_it() -> None:
    agreement = agreed(4)
    like = [np.zeros((3,), np.float32)]
    members = members_of(agreement, like=like)
    members[owners(4)[1]] = member_of(agreement, 1, like=[np.zeros((1, 3), np.float32)])
    found = sum_once(members, agreement, model=like)
    assert whole_sums(found) == plain_sums([0, 2, 3], 0)
    assert "float32[1, 3]" in found.missing[owners(4)[1]]


def test_a_hub_of_another_number_of_members_is_refused() -> None:
    with pytest.raises(ConfigError, match="5 members were agreed on, the hub has 4"):
        advertise_keys(LocalHub(members_of(agreed(4))), agreed(5), coins=COINS.child("x"))


@pytest.mark.parametrize("examples", [1, 4])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_keeps_its_member_out_and_the_others_go_on(
    value: float, examples: int
) -> None:
    agreement = agreed(4, max_examples=4)
    works = [Constant(np.full(3, number - 1.5), examples) for number in range(4)]
    works[1] = Constant([0.0, value, 0.0], examples)
    found = sum_once(members_of(agreement, works), agreement)
    odd = owners(4)[1]
    assert found.survivors == (owners(4)[0], *owners(4)[2:]) and set(found.missing) == {odd}
    assert "not finite" in found.missing[odd] or "NaN or infinite" in found.missing[odd]
    bound = agreement.error_bound(3, 3 * examples) + 1e-9
    assert np.abs(found.mean - (-1.5 + 0.5 + 1.5) / 3).max() <= bound


def test_too_many_values_that_are_not_finite_end_the_round() -> None:
    works = [Constant([np.nan] * 3) for _ in range(2)] + [Constant(np.zeros(3)) for _ in range(2)]
    with pytest.raises(TooFewParties, match="NaN or infinite"):
        sum_once(members_of(agreed(4), works), agreed(4))


@pytest.mark.parametrize("dimension", [3, 5, 15])
def test_values_out_of_range_are_clipped_and_their_share_is_reported_exactly(
    dimension: int,
) -> None:
    agreement = agreed(4, dimension=dimension)  # 2^4 - 1 is a multiple of the dimension
    for counts in ((0, 0, 0, 1), (1, 2, 3, 0), (3, 3, 3, 3), (dimension, 0, 1, 2)):
        works = []
        for count in counts:
            values = np.full(dimension, 0.5)
            values[:count] = np.where(np.arange(count) % 2, -100.0, 8.5)
            works.append(Constant(values))
        found = sum_once(members_of(agreement, works), agreement)
        assert found.clipped == pytest.approx(sum(counts) / dimension / 4, rel=1e-12)
        limited = [np.clip(work.values, -7.5, 7.5) for work in works]
        assert found.mean.tolist() == (np.sum(limited, axis=0) * 0.25).tolist()


def test_the_clipped_share_counts_before_weighing() -> None:
    agreement = agreed(3, max_examples=8)
    works = [Constant([10.0, 0.0, 0.0], 4), Constant([-7.5, 7.5, 8.0], 2), Constant(np.zeros(3), 8)]
    found = sum_once(members_of(agreement, works), agreement)
    assert found.clipped == pytest.approx(2 / 9, rel=1e-12) and found.examples == 14


@pytest.mark.parametrize("examples", [0, 3, 1 << 40])
def test_a_count_of_examples_out_of_range_keeps_its_member_out(examples: int) -> None:
    agreement = agreed(4, max_examples=2)
    works = [Constant(np.zeros(3), 2) for _ in range(4)]
    works[3] = Constant(np.zeros(3), examples)
    found = sum_once(members_of(agreement, works), agreement)
    said = found.missing[owners(4)[3]]  # the server learns that it refused, not its count
    assert "over other than the 1 to 2 examples" in said and found.examples == 6


def test_an_update_of_another_number_of_values_keeps_its_member_out() -> None:
    works = [Constant(np.zeros(3)), Constant(np.zeros(4)), Constant(np.zeros(3))]
    found = sum_once(members_of(agreed(3), works), agreed(3))
    assert "3 values expected, came 4" in found.missing[owners(3)[1]]


def lying(tag: str, liars: Mapping[int, Callable[[Message], Message]], agreement, **options):
    """Members of whom some change their answers to a wave."""
    members = members_of(agreement, **options)
    for number, lie in liars.items():
        role = owners(agreement.participants)[number]
        members[role] = Between(members[role], answered=at_tag(tag, lie))
    return members


@pytest.mark.parametrize(
    ("public", "why"),
    [
        (bytes(32), "low order"),
        ((1).to_bytes(32, "little"), "low order"),
        (bytes(31), "32 bytes"),
        (b"", "32 bytes"),
        (bytes(33), "32 bytes"),
    ],
)
def test_a_garbage_key_keeps_its_member_out_and_the_others_go_on(public: bytes, why: str) -> None:
    agreement = agreed(4)
    members = lying("keys", {1: lambda reply: changed(reply, public=public)}, agreement)
    session = opened(LocalHub(members), agreement)
    odd = owners(4)[1]
    assert why in session.missing[odd]
    found = aggregate(session, [], round=0)
    assert whole_sums(found) == plain_sums([0, 2, 3], 0) and why in found.missing[odd]


def test_a_key_that_is_another_members_is_refused() -> None:
    agreement = agreed(4)
    first: list[bytes] = []
    members = lying(
        "keys",
        {
            0: lambda reply: first.append(reply.blob("public")) or reply,
            2: lambda reply: changed(reply, public=first[0]),
        },
        agreement,
    )
    session = opened(LocalHub(members), agreement)
    assert "another member's key" in session.missing[owners(4)[2]]
    assert whole_sums(aggregate(session, [], round=0)) == plain_sums([0, 1, 3], 0)


def spoilt(array: np.ndarray, *rows: int) -> np.ndarray:
    """A copy in which one bit of each of these rows is another."""
    out = np.array(array)
    for row in rows or range(len(out)):
        out[row].reshape(-1)[0] ^= 1
    return out


def test_sealed_shares_that_do_not_open_for_anybody_end_the_round_with_their_dealers_name() -> None:
    agreement = agreed(4)
    lie = {2: lambda reply: changed(reply, boxes=spoilt(reply.array("boxes")))}
    with pytest.raises(CheatingDetected, match="member 2 sealed"):
        sum_once(lying("shares", lie, agreement), agreement)


def test_sealed_shares_that_do_not_open_for_one_keep_it_out_and_name_their_dealer() -> None:
    agreement = agreed(4)
    lie = {2: lambda reply: changed(reply, boxes=spoilt(reply.array("boxes"), 0))}
    found = sum_once(lying("shares", lie, agreement), agreement)
    assert whole_sums(found) == plain_sums([1, 2, 3], 0)
    assert "member 2 sealed" in found.missing[owners(4)[0]]


def other_shares(reply: Message) -> Message:
    shares = reply.array("shares", dtype="<u8")
    return changed(reply, shares=(shares + np.uint64(1)) % np.uint64(shamir.PRIME))


@pytest.mark.parametrize(("n", "liars"), [(6, [3]), (7, [0]), (10, [3, 8]), (11, [0, 10])])
def test_wrong_shares_are_found_out_and_named_where_there_are_shares_to_spare(
    n: int, liars: list[int]
) -> None:
    agreement = agreed(n)
    members = lying("unmasked", dict.fromkeys(liars, other_shares), agreement)
    found = sum_once(members, agreement)
    assert [role.index for role in found.cheated] == liars
    assert whole_sums(found) == plain_sums(range(n), 0)


def test_wrong_shares_that_are_not_needed_do_no_harm() -> None:
    members = lying(
        "unmasked", {5: other_shares}, agreed(6)
    )  # the first four holders' shares are enough
    assert whole_sums(sum_once(members, agreed(6))) == plain_sums(range(6), 0)


def test_wrong_shares_are_found_out_beside_members_who_dropped_out() -> None:
    agreement = agreed(9)
    hub = Fickle(lying("unmasked", {4: other_shares}, agreement))
    hub.silent = {2: [owners(9)[0]], 3: [owners(9)[7]]}
    found = aggregate(opened(hub, agreement), [], round=0)
    assert found.cheated == (owners(9)[4],)
    assert whole_sums(found) == plain_sums(range(1, 9), 0)


def test_wrong_shares_end_the_round_where_there_are_none_to_spare() -> None:
    for n, liars in ((4, [1]), (5, [1, 2]), (7, [0, 1])):
        agreement = agreed(n)
        with pytest.raises(CheatingDetected):
            sum_once(lying("unmasked", dict.fromkeys(liars, other_shares), agreement), agreement)


def test_returned_shares_outside_the_field_are_left_out_of_the_sum() -> None:
    agreement = agreed(5)
    beyond = {3: lambda r: changed(r, shares=np.full_like(r.array("shares"), shamir.PRIME))}
    found = sum_once(lying("unmasked", beyond, agreement), agreement)
    assert whole_sums(found) == plain_sums(range(5), 0)
    beyond |= dict.fromkeys((0, 1), beyond[3])
    with pytest.raises((CheatingDetected, TooFewParties)):
        sum_once(lying("unmasked", beyond, agreement), agreement)


def test_who_returns_shares_outside_the_field_is_named() -> None:
    agreement = agreed(5)
    beyond = {3: lambda r: changed(r, shares=np.full_like(r.array("shares"), shamir.PRIME))}
    found = sum_once(lying("unmasked", beyond, agreement), agreement)
    assert owners(5)[3] in {*found.missing, *found.cheated}


def one_other_share(dealer: int) -> Callable[[Message], Message]:
    """Returns another share of one dealer's secret and all others as they are."""

    def lie(reply: Message) -> Message:
        shares = np.array(reply.array("shares", dtype="<u8"), np.uint64)
        shares[dealer] = (shares[dealer] + np.uint64(1)) % np.uint64(shamir.PRIME)
        return changed(reply, shares=shares)

    return lie


class DealsOneWrong(SecureAggregationMember):
    """Deals member 0 another share than the one on its polynomial."""

    def _seal(self, place, round, plain):
        if self._holders[place] == 0:
            plain = bytes([plain[0] ^ 1]) + plain[1:]
        return super()._seal(place, round, plain)


def test_one_share_that_is_off_is_disputed_because_dealer_or_holder_may_be_at_fault() -> None:
    agreement = agreed(7)
    returned = sum_once(lying("unmasked", {0: one_other_share(2)}, agreement), agreement)
    members = members_of(agreement)
    members[owners(7)[2]] = member_of(agreement, 2, kind=DealsOneWrong)
    dealt = sum_once(members, agreement)
    for found in (returned, dealt):  # nobody can tell the two apart
        assert whole_sums(found) == plain_sums(range(7), 0)
        assert found.cheated == ()
        assert found.disputed == ((owners(7)[2], owners(7)[0]),)


class DealsTooHigh(SecureAggregationMember):
    """Deals shares of polynomials of a higher degree than was agreed on."""

    def _shares(self, round):
        honest = self.agreement
        self.agreement = replace(
            honest, sharing=replace(honest.sharing, threshold=honest.participants)
        )
        try:
            return super()._shares(round)
        finally:
            self.agreement = honest


class DealsOutsideTheField(SecureAggregationMember):
    """Seals numbers that are no elements of the field."""

    def _seal(self, place, round, plain):
        return super()._seal(place, round, b"\xff" * len(plain))


def test_shares_dealt_of_another_degree_end_the_round_with_their_dealers_name() -> None:
    for n in (5, 7, 10):
        members = members_of(agreed(n))
        members[owners(n)[2]] = member_of(agreed(n), 2, kind=DealsTooHigh)
        with pytest.raises(CheatingDetected, match="owner 2's secret do not open"):
            sum_once(members, agreed(n))


def test_shares_of_another_secret_than_was_committed_to_end_the_round_with_their_dealers_name() -> (
    None
):
    agreement = agreed(5)
    lie = {2: lambda reply: changed(reply, commitments=spoilt(reply.array("commitments")))}
    with pytest.raises(CheatingDetected, match="owner 2's secret do not open"):
        sum_once(lying("shares", lie, agreement), agreement)


def test_numbers_outside_the_field_in_place_of_shares_end_the_round_with_their_dealers_name() -> (
    None
):
    members = members_of(agreed(5))
    members[owners(5)[2]] = member_of(agreed(5), 2, kind=DealsOutsideTheField)
    with pytest.raises(CheatingDetected, match="member 2 dealt shares outside the field"):
        sum_once(members, agreed(5))


def test_a_masked_vector_of_garbage_is_seen_where_the_sum_leaves_its_range() -> None:
    agreement = agreed(5, dimension=60)  # a sum has 7 bits, and 76 to 127 are out of range
    junk = COINS.child("junk")

    def garbage(reply: Message) -> Message:
        size = reply.array("vector").size
        values = junk.below(1 << agreement.width, agreement.length).astype(np.uint32)
        packed = pack(values, agreement.width)
        assert packed.size == size
        return changed(reply, vector=packed)

    with pytest.raises(CheatingDetected, match="more than 5 updates in range"):
        sum_once(lying("masked", {1: garbage}, agreement), agreement)


def test_a_wrong_count_of_examples_is_seen() -> None:
    agreement = agreed(5)

    def one_more(reply: Message) -> Message:
        values = unpack(
            np.array(reply.array("vector")), agreement.length, agreement.width, np.uint32
        )
        values[-EXTRA] += 1
        return changed(reply, vector=pack(values, agreement.width))

    with pytest.raises(CheatingDetected, match="more than 5 updates in range"):
        sum_once(lying("masked", {1: one_more}, agreement), agreement)


@pytest.mark.parametrize("vector", [np.zeros(1, np.uint8), np.zeros(5, np.float32), b"12345"])
def test_a_masked_vector_of_another_length_or_type_keeps_its_member_out(vector) -> None:
    agreement = agreed(5)
    found = sum_once(
        lying("masked", {1: lambda r: changed(r, vector=vector)}, agreement), agreement
    )
    assert whole_sums(found) == plain_sums([0, 2, 3, 4], 0)
    assert "vector" in found.missing[owners(5)[1]]


def test_bits_after_the_last_value_of_a_masked_vector_keep_its_member_out() -> None:
    agreement = agreed(5)  # five values of 7 bits: 35 of 40 bits

    def trailing(reply: Message) -> Message:
        vector = np.array(reply.array("vector"))
        vector[-1] |= 0x80
        return changed(reply, vector=vector)

    found = sum_once(lying("masked", {1: trailing}, agreement), agreement)
    assert whole_sums(found) == plain_sums([0, 2, 3, 4], 0)
    assert "not zero" in found.missing[owners(5)[1]]


@settings(steady, max_examples=100)
@given(data=st.data())
def test_whatever_one_member_answers_the_sum_is_exact_or_a_tacit_error_says_why(data) -> None:
    agreement = agreed(4)
    tag = data.draw(st.sampled_from(["keys", "shares", "masked", "unmasked"]))

    def lie(reply: Message) -> Message:
        names = data.draw(st.sets(st.sampled_from(sorted(reply.fields)), min_size=1, max_size=2))
        return changed(reply, **{name: data.draw(st.none() | ANY_VALUE) for name in sorted(names)})

    try:
        found = sum_once(lying(tag, {1: lie}, agreement), agreement)
    except TacitError:
        return
    present = [role.index for role in found.survivors]
    assert whole_sums(found) == plain_sums(present, 0) and len(present) >= 3


# --- the active variant


@pytest.fixture
def active() -> Agreement:
    return agreed(5, adversary=ACTIVE)


def between_all(agreement, asked, **options):
    """A server that deviates: what each member is asked passes ``asked(number, request)``."""
    members = members_of(agreement, **options)
    return {
        role: Between(member, asked=lambda request, number=role.index: asked(number, request))
        for role, member in members.items()
    }


def test_a_key_that_its_member_did_not_sign_keeps_it_out(active: Agreement) -> None:
    members = members_of(active)
    members[owners(5)[1]] = member_of(active, 1, identity=registry(5)[3])
    session = opened(LocalHub(members), active)
    assert "owner 1's key" in session.missing[owners(5)[1]]
    assert whole_sums(aggregate(session, [], round=0)) == plain_sums([0, 2, 3, 4], 0)


def test_members_do_not_trust_the_server_with_who_signed_a_key(active: Agreement) -> None:
    members = members_of(active)
    members[owners(5)[1]] = member_of(active, 1, identity=registry(5)[3])
    fooled = [registry(5)[number].public for number in (0, 3, 2, 3, 4)]
    with pytest.raises(CheatingDetected, match="member 1's key"):
        sum_once(members, active, registry=fooled)


def test_a_server_of_the_active_variant_needs_the_registry(active: Agreement) -> None:
    for listed in ([], [one.public for one in registry(4)]):
        with pytest.raises(ConfigError, match="registry of 5"):
            begun(LocalHub(members_of(active)), active, registry=listed)


def test_a_server_that_replaces_a_key_is_caught_in_the_active_variant_only(
    active: Agreement,
) -> None:
    own = keys.generate(COINS.child("the server's"))

    def replaced(number: int, request: Message) -> Message:
        if request.tag != "share" or number == 2:
            return request
        swapped = np.array(request.array("keys"))
        swapped[2] = np.frombuffer(own.public, np.uint8)
        return changed(request, keys=swapped)

    with pytest.raises(CheatingDetected, match="member 2's key"):
        sum_once(between_all(active, replaced), active)
    session = opened(LocalHub(between_all(agreed(5), replaced)), agreed(5))
    assert session.shared.there.all()  # the control: semi-honest members have shared under it


def test_a_server_that_shows_two_lists_of_survivors_opens_nothing(active: Agreement) -> None:
    for shown in ({0, 1, 2, 3}, {0, 1, 2, 4}):

        def two_lists(number: int, request: Message, shown=frozenset(shown)) -> Message:
            if request.tag not in ("check", "unmask") or number > 1:
                return request
            return changed(request, survivors=np.isin(np.arange(5), list(shown)))

        with pytest.raises(ProtocolError, match="list of survivors"):
            sum_once(between_all(active, two_lists), active)


def test_a_member_unmasks_no_other_list_than_it_signed(active: Agreement) -> None:
    def other(number: int, request: Message) -> Message:
        if request.tag != "unmask":
            return request
        return changed(request, survivors=np.arange(5) < 4)

    with pytest.raises(ProtocolError, match="not the one that member 0 signed"):
        sum_once(between_all(active, other), active)


@pytest.mark.parametrize("damage", ["forged", "someone else's", "of another round"])
def test_a_signature_on_the_list_that_is_forged_or_borrowed_is_refused(
    damage: str, active: Agreement
) -> None:
    kept: list[np.ndarray] = []

    def bad(number: int, request: Message) -> Message:
        if request.tag != "unmask":
            return request
        signatures = np.array(request.array("signatures"))
        if request.integer("round") == 0:
            kept.append(signatures.copy())
        if damage == "of another round":
            if request.integer("round") == 0:
                return request
            signatures[4] = kept[0][4]
        elif damage == "forged":
            signatures[4] = 7
        else:
            signatures[4] = signatures[3]
        return changed(request, signatures=signatures)

    hub = LocalHub(between_all(active, bad, rounds=2))
    session = opened(hub, active)
    with pytest.raises(ProtocolError, match="member 4's list of survivors"):
        aggregate(session, [], round=0, share_next=True)
        assert damage == "of another round"
        aggregate(session, [], round=1)


def test_signatures_of_another_run_under_the_same_session_name_are_refused(
    active: Agreement,
) -> None:
    """The server names sessions, and may give two the same name; honest members' keys are fresh in each."""
    kept: list[np.ndarray] = []

    def keep(number: int, request: Message) -> Message:
        if request.tag == "unmask" and not kept:
            kept.append(np.array(request.array("signatures")))
        return request

    def borrow(number: int, request: Message) -> Message:
        return changed(request, signatures=kept[0]) if request.tag == "unmask" else request

    first = aggregate(opened(LocalHub(between_all(active, keep)), active), [], round=0)
    assert len(first.survivors) == 5
    anew = between_all(active, borrow, seed="another run")
    session = opened(LocalHub(anew), active)  # the same coins at the server: the same name
    with pytest.raises(TooFewParties, match="member 0's list of survivors"):
        aggregate(session, [], round=0)


def test_a_list_with_fewer_signatures_than_the_threshold_is_refused(active: Agreement) -> None:
    def fewer(number: int, request: Message) -> Message:
        if request.tag != "unmask":
            return request
        return changed(request, signers=np.arange(5) < 3)

    assert active.sharing.threshold == 4
    with pytest.raises(ProtocolError, match="signed the list of survivors"):
        sum_once(between_all(active, fewer), active)


def test_signatures_of_members_who_are_not_on_the_list_do_not_count(active: Agreement) -> None:
    # Four survive; the signature of one of them is left out and that of the fifth, on the same list, put in its place.
    extra = registry(5)[4]
    hub = Fickle(members_of(active))
    hub.silent = {2: [owners(5)[4]]}

    def swapped(number: int, request: Message) -> Message:
        if request.tag != "unmask":
            return request
        member = hub._members[owners(5)[number]].member
        said = member._said_of_survivors(0, np.arange(5) < 4)
        signatures = np.array(request.array("signatures"))
        signatures[4] = np.frombuffer(extra.sign(said), np.uint8)
        return changed(request, signatures=signatures, signers=np.isin(np.arange(5), [0, 1, 2, 4]))

    hub._members.update(between_all(active, swapped))
    session = opened(hub, active)
    with pytest.raises(ProtocolError, match="signed the list of survivors"):
        aggregate(session, [], round=0)


def test_a_member_of_the_active_variant_needs_its_key_and_everybodys(active: Agreement) -> None:
    known = registry(5)
    for identity, listed in ((None, known), (known[0], known[:4]), (known[0], [])):
        with pytest.raises(ConfigError, match="signing key and a registry of 5"):
            member_of(active, 0, identity=identity, registry=[one.public for one in listed])


# --- state


@VARIANTS
def test_members_that_are_restored_from_their_export_after_every_message_give_the_exact_sums(
    adversary: Adversary,
) -> None:
    n, rounds = 6, 3
    agreement = agreed(n, adversary=adversary)
    lives: list[int] = []

    def again(number: int) -> Callable[[], SecureAggregationMember]:
        def fresh() -> SecureAggregationMember:
            lives.append(number)  # with other coins each time
            return member_of(agreement, number, rounds=rounds, seed=f"life {len(lives)}")

        return fresh

    hub = Fickle({role: Restarting(again(role.index)) for role in owners(n)})
    each = len(WAVES[adversary]) - 2
    hub.silent = {2: [owners(n)[1]], 1 + 2 * each: [owners(n)[4]]}
    session = opened(hub, agreement)
    present = ([0, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 5])
    for round in range(rounds):
        found = aggregate(session, [], round=round, share_next=round + 1 < rounds)
        assert whole_sums(found) == plain_sums(present[round], round)
    assert len(lives) > n * (rounds * each)


def test_the_state_of_another_member_or_agreement_is_not_restored() -> None:
    state = member_after(3).export()
    with pytest.raises(ProtocolError, match="member 2"):
        member_of(agreed(4), 2, rounds=2).restore(state)
    with pytest.raises(ProtocolError, match="other settings"):
        member_of(agreed(4, bits=5), 1, rounds=2).restore(state)


@VARIANTS
def test_an_export_is_what_restores_to_the_same_export_at_every_message(
    adversary: Adversary,
) -> None:
    for asked in range(len(TALK[adversary]) + 1):
        state = member_after(asked, adversary).export()
        other = member_of(agreed(4, adversary=adversary), 1, rounds=2, seed="other")
        other.restore(state)
        assert other.export() == state


@VARIANTS
def test_a_restored_member_refuses_what_it_answered_before(adversary: Adversary) -> None:
    for asked, request in enumerate(TALK[adversary]):
        other = member_of(agreed(4, adversary=adversary), 1, rounds=2, seed="other")
        other.restore(member_after(asked + 1, adversary).export())
        with pytest.raises(ProtocolError, match="answered already"):
            other.handle(request)


# --- cost


@pytest.mark.parametrize(
    "agreement",
    [
        agreed(5, dimension=1000),
        agreed(20, dimension=100, bits=16),
        agreed(16, sharing=Sharing(degree=6, threshold=4)),
        agreed(7, adversary=ACTIVE, dimension=200),
        agreed(3, dimension=1, bits=32),
    ],
    ids=["complete", "many", "regular", "active", "one value"],
)
def test_the_bytes_of_a_round_are_as_stated_but_for_the_headers_of_its_frames(
    agreement: Agreement,
) -> None:
    stated = bytes_of_round(agreement)
    rounds = 3
    hub = LocalHub(members_of(agreement, rounds=rounds))
    session = opened(hub, agreement)
    for round in range(rounds):
        aggregate(session, [], round=round, share_next=round + 1 < rounds)
    costs = [hub.cost.total(role=role) for role in owners(agreement.participants)]
    moved = {cost.bytes_sent + cost.bytes_received for cost in costs}
    whole = stated["keys"] + rounds * (sum(stated.values()) - stated["keys"])
    # Headers: names, lengths and padding of a dozen fields a message, whatever the sizes.
    most = 600 + rounds * (700 if agreement.adversary is SEMI else 1000)
    assert all(0 < total - whole < most for total in moved)
    waves = len(WAVES[agreement.adversary])
    sent = {cost.messages for cost in costs}
    assert sent == {2 + rounds * (waves - 2)}


def test_each_part_of_the_stated_bytes_is_what_its_wave_carries() -> None:
    for adversary in Adversary:
        agreement = agreed(6, adversary=adversary, dimension=500)
        stated = bytes_of_round(agreement)
        hub = LocalHub(members_of(agreement))
        aggregate(opened(hub, agreement), [], round=0)
        role = owners(6)[0]
        by_phase = {
            phase: hub.cost.total(role=role, phase=phase).bytes_sent
            + hub.cost.total(role=role, phase=phase).bytes_received
            for phase in ("advertise", "share", "mask", "check", "unmask")
        }
        parts = {
            "advertise": 32 + 64 * (adversary is ACTIVE),
            "share": stated["keys"] - 32 - 64 * (adversary is ACTIVE) + stated["shares"],
            "mask": stated["boxes"] + stated["vector"],
            "check": stated["check"],
            "unmask": stated["unmask"],
        }
        assert sum(parts.values()) == sum(stated.values())
        for phase, part in parts.items():
            most = 0 if part == 0 else 450
            assert 0 <= by_phase[phase] - part <= most, phase


# --- settings


@pytest.mark.parametrize(
    "changes",
    [
        {"participants": 1, "sharing": Sharing(degree=0, threshold=1)},
        {"dimension": 0},
        {"bits": 0},
        {"bits": 33},
        {"clip": 0.0},
        {"clip": float("nan")},
        {"clip": float("inf")},
        {"clip": -1.0},
        {"max_examples": 0},
        {"max_examples": 16},
        {"bits": 1, "max_examples": 2},
        {"sharing": Sharing(degree=4, threshold=2)},
        {"sharing": Sharing(degree=4, threshold=6)},
        {"sharing": Sharing(degree=4, threshold=3), "adversary": ACTIVE},
        {"sharing": Sharing(degree=2, threshold=2), "adversary": ACTIVE},
        {"sharing": Sharing(degree=2, threshold=3)},
        {"sharing": Sharing(degree=2, threshold=0)},
        {"sharing": Sharing(degree=2, threshold=1)},
        {"sharing": Sharing(degree=5, threshold=3)},
    ],
    ids=str,
)
def test_an_agreement_that_does_not_go_together_is_refused(changes: dict) -> None:
    with pytest.raises(ConfigError):
        replace(agreed(5), **changes)


def test_the_least_thresholds_are_the_papers() -> None:
    for n in range(2, 200):
        semi, active = (least_threshold(n, adversary) for adversary in (SEMI, ACTIVE))
        assert 2 * semi > n >= 2 * (semi - 1)  # the least above n/2
        assert active == 2 * n // 3 + 1 and 3 * active > 2 * n >= 3 * (active - 1)
    for n in range(2, 60):
        assert agreed(n).colluders == n // 2  # fewer than t
        active = agreed(n, adversary=ACTIVE)
        # Two lists of survivors that t members sign each: colluders sign both, and honest members one of them.
        honest = n - active.colluders
        assert 2 * (active.sharing.threshold - active.colluders) > honest
        assert 2 * (active.sharing.threshold - active.colluders - 1) <= honest - 1


def test_a_number_that_no_participant_has_is_refused() -> None:
    for number in (-1, 4):
        with pytest.raises(ConfigError, match="from 0 to 3"):
            member_of(agreed(4), number)


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 0},
        {"local_steps": -1},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"clip": 0.0},
        {"clip": float("inf")},
        {"bits": 0},
        {"bits": 33},
        {"federated": Federated.SGD, "local_steps": 5},
        {"federated": Federated.SGD, "local_steps": 0},
        {"graph": Graph.REGULAR, "threshold": 4},
        {"graph": Graph.REGULAR, "adversary": ACTIVE},
        {"session_rounds": 0},
        {"threads": 0},
        {"deadline": 0.0},
        {"deadline": float("nan")},
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_refused(changes: dict) -> None:
    with pytest.raises(ConfigError):
        SecureAggregation(**changes)


@pytest.mark.parametrize(
    ("changes", "participants", "examples"),
    [
        ({"threshold": 2}, 5, 20),
        ({"threshold": 6}, 5, 20),
        ({"adversary": ACTIVE, "threshold": 3}, 5, 20),
        ({}, 1, 20),
        ({"bits": 4}, 5, 16),
        ({"bits": 4}, 5, 0),
        ({"graph": Graph.REGULAR, "corrupted": 0.6, "dropped": 0.5}, 1000, 20),
        ({"graph": Graph.REGULAR, "failure": 0.0}, 1000, 20),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_the_participants_are_refused(
    changes: dict, participants: int, examples: int
) -> None:
    scheme = SecureAggregation(**changes)
    with pytest.raises(ConfigError):
        scheme.agree(participants, dimension=10, max_examples=examples)


def test_a_regular_graph_is_agreed_on_with_its_failure_probability() -> None:
    scheme = SecureAggregation(graph=Graph.REGULAR)
    agreement = scheme.agree(1000, dimension=10, max_examples=20)
    assert agreement.sharing.degree < 100 and 0 < agreement.sharing.failure < 2**-30
    assert SecureAggregation().agree(1000, dimension=10, max_examples=20).sharing.degree == 999


def test_where_no_regular_graph_is_sure_enough_the_complete_one_is_agreed_on() -> None:
    sharing = SecureAggregation(graph=Graph.REGULAR).agree(5, dimension=1, max_examples=1).sharing
    assert (sharing.degree, sharing.threshold) == (4, 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pairs", np.zeros((4, 95), np.uint8)),
        ("known", np.zeros(3, np.bool_)),
        ("wave", 9),
        ("key", b"short"),
        ("session", b"short"),
        ("shares", np.zeros((4, 2, 2), np.uint64)),
        ("holders", np.zeros(2, np.int64)),
    ],
)
def test_a_state_with_a_part_of_the_wrong_size_leaves_the_member_as_it_was(name, value) -> None:
    agreement = agreed(4)
    members = members_of(agreement)
    opened(LocalHub(members), agreement)
    member = members[owners(4)[1]]
    before = member.export()
    damaged = encode(changed(decode(before), **{name: value}))
    with pytest.raises(WireError):
        member.restore(damaged)
    assert member.export() == before


def test_a_registry_that_a_semi_honest_agreement_does_not_need_changes_nothing() -> None:
    agreement = agreed(4)
    hub = LocalHub(members_of(agreement))
    session = advertise_keys(hub, agreement, coins=COINS, registry=[bytes(32)])
    assert session.known.all() and not session.missing
