"""What each operation costs is what its docstring says: rounds and payload exactly, and bytes but for the framing.

A frame is its tag, 17 bytes, and for each array 3 bytes, 8 a dimension and up to 7 that align it (`tacit.core.wire`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest

from tacit.core.wire import Message, encode
from tacit.crypto.bits import slice_bits, words_of
from tacit.crypto.circuits import (
    Circuit,
    carries_of_sum,
    relu_of_sum,
    sign_of_sum,
    sum_of_shares,
)
from tacit.crypto.packing import packed_bytes
from tacit.crypto.ring import Z32, Z64, Ring
from tacit.parties.links.local import PairRun, outputs_of
from tacit.parties.roles import Role
from tacit.parties.two_party import arithmetic, boolean, garbling
from tacit.parties.two_party.correlations import Plan
from tacit.parties.two_party.schedule import schedule_of
from tacit.parties.two_party.session import OFFLINE, ONLINE, Session, traced
from tacit.parties.views import FULL, Frame

from .conftest import (
    DEALER,
    DEALT,
    FRACTION,
    S0,
    S1,
    SERVERS,
    TRANSFERRED,
    Setting,
    at,
    drawn,
    run,
    shared,
)

N = 70
"""Values: two words of instances, the second of which is not full."""
WORDS, LANES = words_of(N), 64 * words_of(N)


class Priced(NamedTuple):
    """An operation by the name under which it is booked, and what it sends online.

    Args:
        rounds: of both.
        sent: payload bytes from party 0 and from party 1.
    """

    name: str
    rounds: int
    sent: tuple[int, int]


def circuit_costs(name: str, circuit: Circuit, words: int = WORDS) -> Priced:
    """A round a level; a bit for each masked wire, from who knows it or from both."""
    first, second, both = schedule_of(circuit).masks
    return Priced(name, circuit.depth, (8 * words * (first + both), 8 * words * (second + both)))


def garbled_costs(name: str, circuit: Circuit, rounds: int = 2) -> Priced:
    asked = 16 * LANES * circuit.inputs[1] if rounds == 2 else 0
    return Priced(name, rounds, (32 * LANES * circuit.ands, asked))


def table(ring: Ring, by: str) -> list[Priced]:
    """Every operation once, as `everything` runs them; each sum is written as its docstring says it."""
    e, bits = ring.bits // 8, ring.bits
    sums = sum_of_shares(bits, shallow=False)
    out = [
        Priced("start", 1, (96, 96)),
        Priced("share x/share input", 1, (32, 0)),
        Priced("share y/share input", 1, (0, 32)),
        Priced("open", 1, (e * N, e * N)),
        Priced("open to one", 1, (e * N, 0)),
        Priced("multiply", 1, (2 * e * N, 2 * e * N)),
        Priced("square", 1, (e * N, e * N)),
        Priced("matmul", 1, (e * (6 + 10), e * (6 + 10))),
        Priced("conv2d", 1, (e * (16 + 4), e * (16 + 4))),
        Priced("fix", 1, (e * N, e * N)),
        Priced("one fixed/multiply", 1, (e * N, e * N)),
        Priced("both fixed/multiply", 0, (0, 0)),
        circuit_costs("to bits", sum_of_shares(bits)),
        Priced("from bits", 1, (8 * WORDS * bits, 8 * WORDS * bits)),
        Priced("open bits", 1, (8 * WORDS * bits, 8 * WORDS * bits)),
        circuit_costs("sign", sign_of_sum(bits)),
        Priced("select", 1, (e * N + 8 * WORDS, e * N + 8 * WORDS)),
        circuit_costs("relu/sign", sign_of_sum(bits)),
        Priced("relu/select", 1, (e * N + 8 * WORDS, e * N + 8 * WORDS)),
        circuit_costs("truncate exactly", carries_of_sum(bits, FRACTION)),
        Priced("truncation/from bits", 1, (8 * WORDS * 2, 8 * WORDS * 2)),
        circuit_costs("circuit", SMALL, 3),
        garbled_costs("to labels", sums),
        garbled_costs("from labels", sums, rounds=1),
        garbled_costs("garbled sign", sign_of_sum(bits, shallow=False)),
    ]  # fmt: skip
    if by == TRANSFERRED:
        turned = 8 * bits * WORDS
        out.append(Priced("prepared garbling", 3, (e * N + 16 * bits * LANES, turned)))
    return out


SMALL = sign_of_sum(5)


def everything(ring: Ring, by: str):
    x, y = drawn("x", ring, N), drawn("y", ring, N)
    sums = sum_of_shares(ring.bits, shallow=False)

    def computation(s: Session) -> None:
        with s.within("share x"):
            (mine,) = shared(s, x, owner=0)
        with s.within("share y"):
            (yours,) = shared(s, y, owner=1)
        arithmetic.open_to_both(s, mine)
        arithmetic.open_to(s, 1, mine)
        arithmetic.multiply(s, mine, yours)
        arithmetic.square(s, mine)
        arithmetic.matmul(s, mine[:6].reshape(3, 2), yours[:10].reshape(2, 5))
        arithmetic.conv2d(s, mine[:16].reshape(1, 1, 4, 4), yours[:4].reshape(1, 1, 2, 2))
        fixed = arithmetic.fix(s, "x", mine)
        with s.within("one fixed"):
            arithmetic.multiply(s, fixed, yours)
        with s.within("both fixed"):
            arithmetic.multiply(s, fixed, fixed)
        arithmetic.add_public(s, mine, x)
        arithmetic.truncate(s, mine)
        planes = boolean.to_bits(s, mine)
        boolean.from_bits(s, planes)
        boolean.open_bits(s, planes)
        boolean.select(s, boolean.inverted(s, boolean.sign(s, mine)), yours)
        with s.within("relu"):
            boolean.relu(s, mine)
        circuit = carries_of_sum(ring.bits, FRACTION)
        carried = boolean.evaluate(s, circuit, slice_bits(mine), name="truncate exactly")
        with s.within("truncation"):
            boolean.each_from_bits(s, boolean.Bits(carried, (N,)))
        boolean.evaluate(s, SMALL, np.zeros((5, 3), np.uint64))
        labels = garbling.to_labels(s, mine)
        garbling.garbled(s, sums, slice_bits(yours), labels=labels, name="from labels")
        garbling.to_bits(labels)
        garbling.sign(s, mine)
        if by == TRANSFERRED:
            garbling.prepared_sum(s, relu_of_sum(ring.bits), mine)

    return computation


@cache
def ran(ring: Ring, by: str) -> tuple[PairRun[None], Plan]:
    how = Setting(at(ring), by=by, recording=FULL, base=True)
    plan = traced(everything(ring, by), at(ring))
    done = run(everything(ring, by), how, plan)
    outputs_of(done)
    return done, plan


cases = pytest.mark.parametrize(
    "ring, by", [(ring, by) for ring in (Z64, Z32) for by in (DEALT, TRANSFERRED)], ids=str
)


def frames(view: Iterable[Frame], peer: Role, tag: str = ".*") -> list[Message]:
    messages = [frame.message() for frame in view if frame.peer == peer]
    return [one for one in messages if re.fullmatch(tag, one.tag)]


def payload(messages: Iterable[Message]) -> int:
    return sum(array.nbytes for one in messages for array in one.arrays("arrays"))


def framing(messages: Iterable[Message]) -> int:
    """What the frames take beyond their payload, at most."""
    return sum(
        17 + len(one.tag) + sum(10 + 8 * array.ndim for array in one.arrays("arrays"))
        for one in messages
    )


def test_the_framing_is_what_the_codec_adds() -> None:
    for arrays in ((), (np.zeros(3, "u1"),), (np.zeros((2, 3, 4), "<u4"), np.zeros(0, "<u8"))):
        one = Message("a tag", arrays=list(arrays))
        added = len(encode(one)) - payload([one])
        assert framing([one]) - 7 * len(arrays) <= added <= framing([one])


@cases
def test_rounds_and_bytes_online_are_the_tables(ring: Ring, by: str) -> None:
    done, _ = ran(ring, by)
    booked = {layer for _, phase, layer in done.cost.entries() if phase == ONLINE}
    assert booked == {priced.name for priced in table(ring, by)}
    for priced in table(ring, by):
        tag = rf"{priced.name} \d+( #\d+)?( choices)?"
        tag = "two-party start" if priced.name == "start" else tag
        for party, role in enumerate(SERVERS):
            cost = done.cost.total(role=role, phase=ONLINE, layer=priced.name)
            sent = frames(done.views[role].sent(), SERVERS[1 - party], tag)
            came = frames(done.views[role].frames(), SERVERS[1 - party], tag)
            assert cost.rounds == priced.rounds, priced
            assert payload(sent) == priced.sent[party], priced
            assert payload(came) == priced.sent[1 - party], priced
            assert cost.messages == len(sent)
            for messages, total in ((sent, cost.bytes_sent), (came, cost.bytes_received)):
                assert 0 <= total - payload(messages) <= framing(messages), priced


@cases
def test_nothing_is_booked_under_no_phase_and_all_that_is_sent_is_booked(
    ring: Ring, by: str
) -> None:
    done, _ = ran(ring, by)
    for role in SERVERS:
        total = done.cost.total(role=role)
        parts = [done.cost.total(role=role, phase=phase) for phase in (ONLINE, OFFLINE)]
        assert total.bytes_sent == sum(part.bytes_sent for part in parts)
        assert total.bytes_sent == sum(len(frame.data) for frame in done.views[role].sent())
        assert total.bytes_received == sum(part.bytes_received for part in parts)
        assert total.rounds == sum(part.rounds for part in parts)


def dealt_bytes(plan: Plan, number: int) -> int:
    """Server 1's shares of the derived fields."""
    return sum(
        int(np.prod(field.shape)) * (8 if field.bits else plan.ring.bits // 8)
        for field in plan.correlations[number].derived()
    )


@pytest.mark.parametrize("ring", [Z64, Z32], ids=str)
def test_what_a_dealer_sends_is_booked_apart_under_the_operations_that_use_it(ring: Ring) -> None:
    done, plan = ran(ring, DEALT)
    names = {plan.name(number) for number in range(len(plan.correlations))}
    assert names < {priced.name for priced in table(ring, DEALT)}
    offline = {
        (role, layer): cost for (role, phase, layer), cost in done.cost.entries().items() if phase == OFFLINE
    }  # fmt: skip
    layers = {layer for _, layer in offline}
    assert layers == {*names, "start", "end", "oblivious transfer start"}
    asked = plan.name(0)
    for name in names:
        numbers = [n for n in range(len(plan.correlations)) if plan.name(n) == name]
        owed = sum(dealt_bytes(plan, number) for number in numbers)
        came = offline[str(S1), name]
        with_data = sum(bool(plan.correlations[number].derived()) for number in numbers)
        assert 0 <= came.bytes_received - owed <= with_data * (17 + 5 + 2 * 34), name
        assert came.messages == (
            name == asked
        )  # the one window is asked for in the first operation
        nothing = offline[str(S0), name]
        assert (nothing.messages, nothing.bytes_received, nothing.rounds) == (0, 0, 0)
    assert payload(frames(done.views[S0].frames(), DEALER)) == 80
    dealt = sum(dealt_bytes(plan, number) for number in range(len(plan.correlations)))
    assert payload(frames(done.views[S1].frames(), DEALER)) == 80 + dealt
    assert payload(frames(done.views[S1].sent(), DEALER)) == 2 * 16


@pytest.mark.parametrize("by", [DEALT, TRANSFERRED])
def test_base_transfers_are_two_rounds_and_4_kb_each_way(by: str) -> None:
    done, _ = ran(Z64, by)
    for party, role in enumerate(SERVERS):
        sent = frames(done.views[role].sent(), SERVERS[1 - party], "oblivious transfer start")
        assert len(sent) == 2 and payload(sent) == 32 + 32 + 128 * 32 + 16
    layer = "oblivious transfer start" if by == DEALT else "start"
    rounds = done.cost.total(role=S0, phase=OFFLINE, layer=layer).rounds
    assert rounds == (2 if by == DEALT else 3)  # and one for the name of the preprocessing


def by_bits(ring: Ring, factors: int, numbers: int) -> tuple[int, int]:
    """Of a product by transfer, what is asked for, 16 bytes each, and what comes: numbers of fewer and fewer bits."""
    asked = 16 * ring.bits * 64 * words_of(factors)
    return asked, sum(packed_bytes(factors * numbers, width) for width in range(1, ring.bits + 1))


@pytest.mark.parametrize("ring", [Z64, Z32], ids=str)
def test_what_transfers_send_is_booked_apart_under_the_operations_that_use_it(ring: Ring) -> None:
    done, plan = ran(ring, TRANSFERRED)
    names = {plan.name(number) for number in range(len(plan.correlations))}
    e, bits = ring.bits // 8, ring.bits
    elementwise = sum(by_bits(ring, N, 1))
    products = sum(by_bits(ring, 6, 5))  # 3 x 2 by 2 x 5: each element of the smaller side takes 5
    chosen = 16 * LANES
    relu = relu_of_sum(bits)
    expected = {
        "multiply": (elementwise, elementwise),
        "one fixed/multiply": (elementwise, elementwise),
        "both fixed/multiply": (elementwise, elementwise),
        "square": by_bits(ring, N, 1),
        "matmul": (products, products),
        "select": (chosen + e * 2 * N, chosen + e * N),
        "relu/select": (chosen + e * 2 * N, chosen + e * N),
        "truncation/from bits": (packed_bytes(64 * 2 * WORDS, bits), 2 * chosen),
        "from bits": (packed_bytes(64 * bits * WORDS, bits), bits * chosen),
        "prepared garbling": (32 * LANES * relu.ands, chosen * bits),
        "fix": (0, 0),
    }
    for name, sent in expected.items():
        for party, role in enumerate(SERVERS):
            cost = done.cost.total(role=role, phase=OFFLINE, layer=name)
            most = cost.messages * (17 + 24) + 17 * max(1, bits) * cost.messages
            assert 0 <= cost.bytes_sent - sent[party] <= most, (name, party)
    layers = {layer for _, phase, layer in done.cost.entries() if phase == OFFLINE}
    assert layers == {*names, "start"}
    ands = {"to bits": sum_of_shares(bits), "sign": sign_of_sum(bits), "circuit": SMALL}
    for name, circuit in ands.items():
        words = 3 if name == "circuit" else WORDS
        sent = [done.cost.total(role=role, phase=OFFLINE, layer=name) for role in SERVERS]
        # For an AND of shared wires 16 bytes and a bit each way; 16 bytes are 128 bits.
        most = 2 * 129 * 8 * words * circuit.ands
        assert (
            0 < sum(cost.bytes_sent for cost in sent) <= most + 200 * sum(c.messages for c in sent)
        )


def test_the_numbers_that_docstrings_give() -> None:
    assert [sum_of_shares(bits).depth for bits in (64, 32)] == [6, 5]
    assert [sign_of_sum(bits).depth for bits in (64, 32)] == [6, 5]
    small = sum_of_shares(64, shallow=False)
    assert (16 * small.inputs[1], 32 * small.ands) == (1024, 2016)  # 1 kB and 2 kB for each value
    done, _ = ran(Z64, DEALT)
    for layers in (("relu/sign", "relu/select"), ("truncate exactly", "truncation/from bits")):
        both = [done.cost.total(role=S0, phase=ONLINE, layer=layer) for layer in layers]
        assert sum(cost.rounds for cost in both) == 7
