"""A peer or dealer that is set otherwise, sends something else, or dies: typed errors, no hang, and nothing used twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from tests.parties.tampered import Tampering, only

from tacit.core.errors import (
    ConfigError,
    DeadlineExceeded,
    PeerDropped,
    ProtocolError,
    StoreError,
    TacitError,
    WireError,
)
from tacit.crypto.circuits import relu_of_sum
from tacit.crypto.fixedpoint import FixedPoint
from tacit.crypto.ring import Z32, Z64
from tacit.parties.faults import Fault, Harm
from tacit.parties.links.local import PairRun, outputs_of, run_pair
from tacit.parties.pair import Channel
from tacit.parties.roles import Role
from tacit.parties.two_party import arithmetic, boolean, garbling, session
from tacit.parties.two_party.correlations import Elementwise, Mask, Plan, Product, Square
from tacit.parties.two_party.dealer import Dealt, deal
from tacit.parties.two_party.session import CheckedWire, start, traced
from tacit.parties.two_party.store import MemoryStore, StreamedStore

from .conftest import (
    DEALER,
    DEALT,
    S0,
    S1,
    SERVERS,
    TRANSFERRED,
    Setting,
    at,
    between,
    coins_of,
    crew,
    drawn,
    opens,
    run,
    shared,
    typed,
)

QUICK = 10.0
"""Seconds that nobody waits: a link in one process sees at once that a conversation cannot go on."""
X, Y = drawn("x", Z64, 5), drawn("y", Z64, 5)[::-1].copy()
SQUARES = Plan(Z64, 9, (Square((2,)),) * 6)


# --- a peer with other settings


def stored(plan: Plan, party: int, name: bytes = b"the same name ..") -> MemoryStore:
    return MemoryStore(plan, name, [{} for _ in plan.correlations])


def meeting(*sides: Callable[[Channel, int], Any]) -> PairRun[Any]:
    """Two functions of a channel and a party number."""

    def live(at: int) -> Callable[[Any], Any]:
        return lambda channels: sides[at](between(channels, at), at)

    return run_pair({S0: live(0), S1: live(1)}, deadline=QUICK)


def starting(**other: Any) -> Callable[[Channel, int], Any]:
    def side(channel: Channel, party: int) -> Any:
        plan, fixed = other.get("plan", SQUARES), other.get("fixed", at(Z64))
        store = stored(plan, party, other.get("name", b"the same name .."))
        return start(channel, other.get("party", party), fixed, store, coins_of(b"s", party))

    return side


OTHERS = {
    "bits in the ring": {"plan": replace(SQUARES, ring=Z32), "fixed": at(Z32)},
    "fractional bits": {"plan": replace(SQUARES, fraction=7), "fixed": FixedPoint(7, Z64)},
    "party": {"party": 0},
    "correlations in the plan": {"plan": replace(SQUARES, correlations=(Square((2,)),) * 5)},
    "another plan": {"plan": replace(SQUARES, correlations=(Square((3,)),) * 6)},
    "another store": {"name": b"another name ..."},
}


@pytest.mark.parametrize("named", OTHERS)
def test_a_peer_with_other_settings_is_refused_at_the_start_by_name(named: str) -> None:
    ran = meeting(starting(), starting(**OTHERS[named]))
    typed(ran, S0, S1)
    for role in SERVERS:
        assert type(ran.errors[role]) is ProtocolError
        assert named in str(ran.errors[role])


def test_a_peer_of_another_version_is_refused_at_the_start_by_name() -> None:
    def newer(channel: Channel, party: int) -> None:
        said = np.array([2, party, 64, 9, 6, 0], "<i8")
        plan, name = (np.frombuffer(one, np.uint8) for one in (SQUARES.digest, b"the same name .."))
        channel.exchange("two-party start", said, plan, name)

    with pytest.raises(ProtocolError, match="server 1 must have 1 as its version and has 2"):
        raise meeting(starting(), newer).errors[S0]


def test_names_of_operations_need_not_be_the_same() -> None:
    ran = meeting(starting(), starting(plan=replace(SQUARES, names=("a",) * 6)))
    assert not ran.errors


@pytest.mark.parametrize(
    "fixed, error", [(at(Z32), "prepared for Z_2"), (FixedPoint(8, Z64), "with 9 fractional bits")]
)
def test_a_store_of_other_settings_is_refused_before_anything_is_sent(fixed, error: str) -> None:
    ran = meeting(starting(fixed=fixed), starting(fixed=fixed))
    for role in SERVERS:
        with pytest.raises(ConfigError, match=error):
            raise ran.errors[role]
    assert ran.cost.total().messages == 0
    with pytest.raises(ConfigError, match="party 0 or 1 expected, got 2"):
        raise meeting(starting(party=2), starting()).errors[S0]


@pytest.mark.parametrize("position", [-1, 7, 2**62])
def test_a_peer_at_a_place_that_the_store_does_not_have_is_refused(position: int) -> None:
    def lying(channel: Channel, party: int) -> None:
        said = np.array([session._VERSION, 1, 64, 9, 6, position], "<i8")
        plan, name = (np.frombuffer(one, np.uint8) for one in (SQUARES.digest, b"the same name .."))
        channel.exchange("two-party start", said, plan, name)

    ran = meeting(starting(), lying)
    if position < 0:
        assert ran.outputs[S0].store.position == 0  # behind: this store goes on from its own place
    else:
        with pytest.raises(ProtocolError, match="cannot go"):
            raise ran.errors[S0]


# --- a message that is not what it must be


def computation(by: str):
    """Every kind of message, on few values."""

    def work(s, x, y):
        fixed = arithmetic.fix(s, "x", x)
        product = arithmetic.multiply(s, fixed, y)
        circuit = boolean.relu(s, product)[0]
        bits = boolean.to_bits(s, y)
        boolean.open_bits(s, bits)
        arithmetic.open_to(s, 0, x)
        selected = boolean.select(s, garbling.sign(s, x), circuit)
        if by == TRANSFERRED:
            garbling.prepared_sum(s, relu_of_sum(s.ring.bits), y)
        return boolean.from_bits(s, bits), selected

    return opens(X, Y, work=work)


@cache
def honest(by: str) -> tuple[PairRun[Any], Plan, dict[Role, int]]:
    """The run without faults, and how many messages each sends."""
    work = computation(by)
    plan = traced(work, at(Z64))
    ran = run(work, Setting(at(Z64), by=by), plan)
    outputs_of(ran)
    return ran, plan, {role: ran.cost.total(role=role).messages for role in ran.views}


def agree(first: Any, second: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def _largest(change):
    """Changes the largest array; where a message has none, it gets one."""

    def changed(tag, arrays):
        if not arrays:
            return tag, [np.zeros(3, np.uint8)]
        at = max(range(len(arrays)), key=lambda number: arrays[number].size)
        arrays[at] = change(arrays[at])
        return tag, arrays

    return changed


CHANGES = {
    "another tag": lambda tag, arrays: (tag + "!", arrays),
    "a foreign tag": lambda tag, arrays: ("x", arrays),
    "one more": lambda tag, arrays: (tag, [*arrays, np.zeros(1, np.uint64)]),
    "one less": lambda tag, arrays: (tag, arrays[:-1]),
    "nothing": lambda tag, arrays: (tag, []),
    "floats": _largest(lambda one: one.astype(np.float64)),
    "signed": _largest(
        lambda one: one.astype(f"i{one.itemsize}" if one.dtype.kind == "u" else "u8")
    ),
    "half as wide": _largest(lambda one: one.astype("<u2")),
    "longer": _largest(lambda one: np.concatenate([one, one[:1]])),
    "shorter": _largest(lambda one: one[:-1]),
    "empty": _largest(lambda one: one[:0]),
    "flat": _largest(lambda one: one[None]),
    "a scalar": _largest(lambda one: np.zeros((), one.dtype)),
    "large": _largest(lambda one: np.zeros((1 << 16, 8), one.dtype)),
}


ALWAYS = ("another tag", "longer")


@pytest.mark.parametrize("culprit", [0, 1])
@pytest.mark.parametrize("by", [DEALT, TRANSFERRED])
def test_a_message_of_another_form_is_refused_whichever_it_is(by: str, culprit: int) -> None:
    """Every message to the other server in turn, another tag and shape of each, and the other changes in rotation.

    The one who gets it stops, with an error that names the sender; the other learns that it is alone.
    """
    ran, plan, _ = honest(by)
    work = computation(by)
    sender, victim = SERVERS[culprit], SERVERS[1 - culprit]
    count = ran.cost.total(role=sender).messages - ASKED[by, culprit]
    others = [name for name in CHANGES if name not in ALWAYS]
    for number in range(count):
        for name in (*ALWAYS, others[number % len(others)]):
            wrap = lambda channel, party, n=number, change=CHANGES[name]: (  # noqa: E731
                Tampering(channel, only(n, change)) if party == culprit else channel
            )
            came = run(work, Setting(at(Z64), by=by, wrap=wrap, deadline=QUICK), plan)
            error = came.errors.get(victim)
            assert type(error) is (ProtocolError if "tag" in name else WireError), (number, name)
            assert str(sender) in str(error)
            typed(came, *came.errors)


ASKED = {(DEALT, 0): 0, (DEALT, 1): 2, (TRANSFERRED, 0): 0, (TRANSFERRED, 1): 0}
"""Messages that a server sends to the dealer."""


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_dealer_sends_in_another_form_is_refused(change: str) -> None:
    _, plan, messages = honest(DEALT)
    work, how = computation(DEALT), Setting(at(Z64), deadline=QUICK)
    for number in range(messages[DEALER]):
        parties = crew(work, how, plan)
        turn = only(number, CHANGES[change])

        def tampering(channels, turn=turn):
            deal(
                plan, tuple(Tampering(channels[role], turn) for role in SERVERS), coins_of(b"d", 0)
            )

        ran = run_pair({**parties, DEALER: tampering}, deadline=QUICK)
        assert ran.errors and not set(SERVERS) <= set(ran.outputs)
        typed(ran, *ran.errors)
        kinds = {type(e) for e in ran.errors.values() if str(DEALER) in str(e)}
        assert kinds & {WireError, ProtocolError}, ran.errors


# --- a party that dies, hangs, or whose message is lost


@pytest.mark.parametrize("harm", [Harm.DIE, Harm.HANG, Harm.DROP, Harm.CUT], ids=lambda h: h.name)
@pytest.mark.parametrize("by", [DEALT, TRANSFERRED])
def test_a_fault_at_any_message_ends_in_typed_errors_at_once(by: str, harm: Harm) -> None:
    reference, plan, messages = honest(by)
    work = computation(by)
    began = time.monotonic()
    step = (
        1 if harm in (Harm.DIE, Harm.HANG) else 3
    )  # those of the message are the link's to notice
    for role, count in messages.items():
        for number in range(0, count, step):
            fault = Fault(role=role, at=number, harm=harm)
            ran = run(work, Setting(at(Z64), by=by, faults=(fault,), deadline=60.0), plan)
            last = role == S1 and by == DEALT and number == count - 1  # that no more is needed
            assert ran.errors, (role, number)
            for other, error in ran.errors.items():
                assert isinstance(error, TacitError), (role, number, error)
                if other != role and harm in (Harm.DIE, Harm.HANG) and not last:
                    assert isinstance(error, PeerDropped | DeadlineExceeded), error
            for other in SERVERS:
                if other in ran.outputs:
                    assert agree(ran.outputs[other], reference.outputs[other])
    assert (
        time.monotonic() - began < 60.0
    )  # of the deadlines, which are a minute each, none was waited for


# --- stores


def test_a_store_that_is_used_up_says_so() -> None:
    plan = traced(opens(X, work=arithmetic.square), at(Z64))
    twice = opens(X, work=lambda s, x: (arithmetic.square(s, x), arithmetic.square(s, x)))
    for by in (DEALT, TRANSFERRED):
        ran = run(twice, Setting(at(Z64), by=by, deadline=QUICK), plan)
        for role in SERVERS:
            with pytest.raises(StoreError, match="all 1 correlations of the store are used up"):
                raise ran.errors[role]


def test_a_store_that_was_prepared_for_something_else_says_what_and_gives_nothing() -> None:
    plan = traced(opens(X, work=arithmetic.square), at(Z64))
    work = opens(X, work=lambda s, x: arithmetic.multiply(s, x, x))
    ran = run(work, Setting(at(Z64), deadline=QUICK), plan)
    for role in SERVERS:
        with pytest.raises(StoreError, match=r"Square.*and Product.*is wanted"):
            raise ran.errors[role]


def test_parties_at_different_operations_stop_before_they_open_anything() -> None:
    def work(s):
        (x,) = shared(s, X)
        return arithmetic.square(s, x) if s.party == 0 else arithmetic.multiply(s, x, x)

    plan = traced(opens(X, work=arithmetic.square), at(Z64))
    ran = run(work, Setting(at(Z64), deadline=QUICK), plan)
    assert isinstance(ran.errors[S1], StoreError) and isinstance(ran.errors[S0], PeerDropped)


def test_parties_at_other_numbers_of_the_same_operation_stop() -> None:
    def work(s):
        (x,) = shared(s, X)
        if s.party == 1:
            arithmetic.open_to(s, 1, x[:0])
        return arithmetic.square(s, x)

    plan = traced(opens(X, work=arithmetic.square), at(Z64))
    ran = run(work, Setting(at(Z64), deadline=QUICK), plan)
    typed(ran, S0, S1)
    assert not set(SERVERS) & set(ran.outputs)


class Noting:
    """A store that notes which numbers it gives."""

    def __init__(self, store) -> None:
        self.store, self.given = store, []
        self.plan, self.name = store.plan, store.name

    @property
    def position(self) -> int:
        return self.store.position

    def take(self, wanted):
        number, material = self.store.take(wanted)
        self.given.append(number)
        return number, material

    def skip_to(self, position: int) -> None:
        self.store.skip_to(position)


MANY = Plan(Z64, 9, (Product(Elementwise(), (5,), (5,)),) * 8)


def filled(plan: Plan) -> list[Noting]:
    """Both servers' stores, from a dealer who is gone afterwards."""

    def server(party: int):
        def live(channels):
            made = Dealt(channels[DEALER], party, plan)
            store = MemoryStore.filled(made)
            made.close()
            return store

        return live

    def dealer(channels):
        deal(plan, (channels[S0], channels[S1]), coins_of(b"fill", "dealer"))

    stores = outputs_of(run_pair({S0: server(0), S1: server(1), DEALER: dealer}))
    return [Noting(stores[role]) for role in SERVERS]


def multiplied(stores: list[Noting], most: int, faults=()) -> PairRun[Any]:
    def server(party: int):
        def live(channels):
            s = start(
                between(channels, party), party, at(Z64), stores[party], coins_of(b"m", party)
            )
            (x,), (y,) = shared(s, X, owner=0), shared(s, Y, owner=1)
            for _ in range(most):
                if s.store.position == len(MANY.correlations):
                    break
                (z,) = arithmetic.open_to_both(s, arithmetic.multiply(s, x, y))
                assert np.array_equal(z, X * Y)
            return True

        return live

    return run_pair({S0: server(0), S1: server(1)}, faults=faults, deadline=60.0)


@pytest.mark.parametrize("harm", [Harm.DIE, Harm.DROP, Harm.FLIP], ids=lambda harm: harm.name)
@pytest.mark.parametrize("role", SERVERS, ids=str)
def test_after_a_run_that_failed_nothing_is_used_twice(role: Role, harm: Harm) -> None:
    """Either server dies, or its message is lost or changed, at each message; both go on from the further place."""
    for number in range(10):  # start, input, and four times a product and its opening
        stores = filled(MANY)
        failed = multiplied(stores, 4, [Fault(role=role, at=number, harm=harm)])
        assert failed.errors and all(isinstance(e, TacitError) for e in failed.errors.values())
        before = [list(store.given) for store in stores]
        outputs_of(multiplied(stores, 100))
        used = set(before[0]) | set(before[1])
        for store, old in zip(stores, before, strict=True):
            assert len(store.given) == len(set(store.given))
            assert not used & set(store.given[len(old) :])
        assert stores[0].given[len(before[0]) :] == stores[1].given[len(before[1]) :]
        assert stores[0].given[-1] == len(MANY.correlations) - 1
        assert len(used) <= 4


@pytest.mark.parametrize("taken", [(0, 0), (1, 1), (2, 1), (1, 2), (1, 0), (0, 1), (3, 0), (0, 3)])
@pytest.mark.parametrize("window", [1, 250, 1 << 26])
def test_streamed_stores_that_have_come_to_other_places_go_on_together(taken, window: int) -> None:
    """A run broke off when one had made a window and the other had not; the dealer is still there."""

    def server(party: int):
        def live(channels):
            made = Dealt(channels[DEALER], party, MANY)
            store = StreamedStore(made, window)
            for _ in range(taken[party]):
                store.take(MANY.correlations[0])
            s = start(between(channels, party), party, at(Z64), store, coins_of(b"m", party))
            assert s.store.position == max(taken)
            (x,), (y,) = shared(s, X, owner=0), shared(s, Y, owner=1)
            products = [arithmetic.multiply(s, x, y) for _ in range(8 - max(taken))]
            out = arithmetic.open_to_both(s, *products)
            made.close()
            return out

        return live

    def dealer(channels):
        deal(MANY, (channels[S0], channels[S1]), coins_of(b"d", 0))

    ran = run_pair({S0: server(0), S1: server(1), DEALER: dealer}, deadline=QUICK)
    out = outputs_of(ran)
    for role in SERVERS:
        assert all(np.array_equal(one, X * Y) for one in out[role])


# --- dealers


def asking(*windows: tuple[int, int]) -> PairRun[Any]:
    """A server 1 that asks for these."""

    def server(channels: Any) -> None:
        wire = CheckedWire(channels[DEALER])
        Dealt(channels[DEALER], 1, SQUARES)
        for window in windows:
            wire.send("deal", np.array(window, "<i8"))
            for _ in range(*window):
                channels[DEALER].recv("dealt")

    def dealer(channels: Any) -> None:
        deal(SQUARES, (channels[S0], channels[S1]), coins_of(b"d", 0))

    idle = lambda channels: Dealt(channels[DEALER], 0, SQUARES)  # noqa: E731
    return run_pair({S0: idle, S1: server, DEALER: dealer}, deadline=QUICK)


@pytest.mark.parametrize(
    "windows",
    [[(0, 2), (0, 2)], [(0, 2), (1, 3)], [(4, 6), (0, 2)], [(0, 7)], [(-1, 2)], [(0, 3), (2, 3)]],
)
def test_a_dealer_who_is_asked_for_something_twice_or_that_is_not_there_refuses(windows) -> None:
    ran = asking(*windows)
    with pytest.raises(ProtocolError, match="server 1 asks for correlations"):
        raise ran.errors[DEALER]
    typed(ran, S1)


def test_a_dealer_deals_windows_in_order_and_some_may_be_left_out() -> None:
    assert not asking((0, 2), (3, 4), (4, 6), (0, 0)).errors


def test_a_dealer_of_another_plan_is_noticed_by_both_servers() -> None:
    work = opens(X, work=arithmetic.square)
    plan = traced(work, at(Z64))
    for other in (replace(plan, fraction=8), replace(plan, correlations=(Square((6,)),))):
        parties = crew(work, Setting(at(Z64)), plan)
        dealer = lambda channels, other=other: deal(other, (channels[S0], channels[S1]), coins_of(b"d", 0))  # noqa: E731  # fmt: skip
        ran = run_pair({**parties, DEALER: dealer}, deadline=QUICK)
        for role in SERVERS:
            with pytest.raises(ProtocolError, match="dealer 0 deals another plan"):
                raise ran.errors[role]


def test_a_dealer_for_each_server_is_noticed_at_the_start() -> None:
    """Two preprocessings of one plan: the shares of one do not fit those of the other."""
    stores = [filled(MANY)[0], filled(MANY)[1]]
    stores[1].name = bytes(16)
    ran = multiplied(stores, 1)
    for role in SERVERS:
        with pytest.raises(ProtocolError, match="has another store"):
            raise ran.errors[role]


def test_a_product_of_a_mask_that_was_prepared_elsewhere_is_refused() -> None:
    """Windows that leave a mask out cannot make the products that need it."""

    def operations(s, x):
        fixed = arithmetic.fix(s, "x", x)
        return arithmetic.multiply(s, fixed, fixed)  # fmt: skip

    work = opens(X, work=operations)
    plan = traced(work, at(Z64))
    assert isinstance(plan.correlations[0], Mask)

    def keep(store, party):
        return StreamedStore(_Later(store._preprocessor), 1)

    for by in (DEALT, TRANSFERRED):
        ran = run(work, Setting(at(Z64), by=by, keep=keep, deadline=QUICK), plan)
        refused = [e for e in ran.errors.values() if isinstance(e, StoreError)]
        assert refused and "was not prepared with the products" in str(refused[0])
        typed(ran, *ran.errors)


class _Later:
    """A preprocessor whose first window is never made."""

    def __init__(self, made) -> None:
        self.made, self.plan, self.name = made, made.plan, made.name

    def prepare(self, numbers: range):
        if numbers.start == 0:
            return [{"a": np.zeros(5, np.uint64)}]
        return self.made.prepare(numbers)
