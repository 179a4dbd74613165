"""What tests of two-party computation share: a run of both servers, inputs, random circuits, and one table of operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from tacit.core.coins import Coins
from tacit.core.errors import TacitError
from tacit.crypto.bits import join_bits, slice_bits, unpack_plane
from tacit.crypto.circuits import Circuit, Kind, relu_of_sum, sign_of_sum, sum_of_shares
from tacit.crypto.fixedpoint import FixedPoint
from tacit.crypto.ot import COLUMNS, ExtensionReceiver, ExtensionSender, delta_of
from tacit.crypto.ring import Z32, Z64, Elements, Ring
from tacit.parties.faults import Fault
from tacit.parties.links.local import PairRun, outputs_of, run_pair
from tacit.parties.pair import Channel
from tacit.parties.roles import Role
from tacit.parties.two_party import arithmetic, boolean, garbling
from tacit.parties.two_party.correlations import Plan
from tacit.parties.two_party.dealer import Dealt, deal
from tacit.parties.two_party.oblivious import ByTransfer
from tacit.parties.two_party.session import CheckedWire, Session, start, traced
from tacit.parties.two_party.store import StreamedStore, TripleStore
from tacit.parties.two_party.transfers import Transfers
from tacit.parties.views import COUNTS, Recording

S0, S1, DEALER = Role("server", 0), Role("server", 1), Role("dealer")
SERVERS = S0, S1
DEALT, TRANSFERRED = "dealer", "transfer"

steady = settings(derandomize=True, deadline=None, max_examples=12)
rings = st.sampled_from([Z64, Z32])
sizes = st.sampled_from([1, 2, 63, 64, 65, 130])

Computation = Callable[[Session], Any]


def coins_of(seed: bytes, party: object) -> Coins:
    return Coins.from_seed(seed + f"/{party}".encode())


def between(channels: Mapping[Role, Channel], party: int) -> Channel:
    """A server's channel to the other."""
    return channels[SERVERS[1 - party]]


def ready(channel: Channel, party: int, seed: bytes = b"") -> Transfers:
    """Transfers after base transfers that somebody trusted ran: 0.1 s less; `begin` itself has tests of its own."""
    coins = coins_of(seed, "base transfers")
    deltas = [delta_of(coins) for _ in SERVERS]
    pairs = [coins.uint64((COLUMNS, 2, 2)).view(np.uint8) for _ in SERVERS]
    keys = coins.bytes(16), coins.bytes(16)
    chosen = pairs[party][np.arange(COLUMNS), unpack_plane(deltas[party], COLUMNS)]
    sender = ExtensionSender(deltas[party], np.ascontiguousarray(chosen))
    receiver = ExtensionReceiver(pairs[1 - party])
    return Transfers(CheckedWire(channel), party, deltas[party], sender, receiver, keys)


@dataclass(frozen=True)
class Setting:
    """How a computation is run.

    Args:
        fixed: ring and precision.
        by: who prepares.
        seed: of all coins.
        base: whether base transfers are run, not given.
        wrap: what each server puts around its channel to the other.
        keep: what each server puts around its store.
        coins: of a party; those of the seed where there is none.
    """

    fixed: FixedPoint
    by: str = DEALT
    seed: bytes = b"two-party"
    base: bool = False
    wrap: Callable[[Channel, int], Channel] = lambda channel, party: channel
    keep: Callable[[TripleStore, int], TripleStore] = lambda store, party: store
    coins: Callable[[object], Coins] | None = None
    recording: Recording = COUNTS
    faults: Sequence[Fault] = ()
    deadline: float = 10.0

    def drawn(self, party: object) -> Coins:
        return self.coins(party) if self.coins else coins_of(self.seed, party)


def crew(work: Computation, how: Setting, plan: Plan) -> dict[Role, Callable[[Any], Any]]:
    """Both servers, and the dealer where there is one."""

    def server(party: int) -> Callable[[Any], Any]:
        def live(channels: Mapping[Role, Channel]) -> Any:
            coins, peer = how.drawn(party), how.wrap(between(channels, party), party)
            transfers = None if how.base else ready(peer, party, how.seed)
            made: ByTransfer | Dealt
            if how.by == DEALT:
                made = Dealt(channels[DEALER], party, plan)
            else:
                made = ByTransfer(peer, party, plan, coins, transfers)
                transfers = made.transfers
            store = how.keep(StreamedStore(made), party)
            session = start(peer, party, how.fixed, store, coins, transfers=transfers)
            out = work(session)
            if isinstance(made, Dealt):
                made.close()
            return out

        return live

    def dealer(channels: Mapping[Role, Channel]) -> None:
        deal(plan, (channels[S0], channels[S1]), how.drawn(DEALER))

    parties = {S0: server(0), S1: server(1)}
    return {**parties, DEALER: dealer} if how.by == DEALT else parties


def run(work: Computation, how: Setting, plan: Plan | None = None) -> PairRun[Any]:
    """A computation by both servers and whoever prepares, in one process."""
    parties = crew(work, how, plan or traced(work, how.fixed))
    return run_pair(parties, recording=how.recording, faults=how.faults, deadline=how.deadline)


def outputs(work: Computation, how: Setting) -> tuple[Any, Any]:
    """What both servers come to."""
    out = outputs_of(run(work, how))
    return out[S0], out[S1]


def shared(session: Session, *values: Elements, owner: int = 0) -> list[Elements]:
    """Shares of inputs that one party has."""
    return [
        arithmetic.share_input(session, owner, value if session.party == owner else value.shape)
        for value in values
    ]


def opens(*inputs: Elements, work: Callable[..., Any]) -> Computation:
    """Share the inputs, the first by party 0, the next by party 1 and so on; open all that comes of them."""

    def computation(session: Session) -> Any:
        own = [shared(session, value, owner=at % 2)[0] for at, value in enumerate(inputs)]
        out = work(session, *own)
        return arithmetic.open_to_both(session, *(out if isinstance(out, tuple) else (out,)))

    return computation


def agrees(work: Computation, how: Setting, *expected: Elements) -> None:
    """Both servers come to what is expected, bit for bit and of the same type."""
    for came in outputs(work, how):
        assert len(came) == len(expected)
        for one, wanted in zip(came, expected, strict=True):
            assert one.dtype == wanted.dtype and one.shape == wanted.shape
            assert np.array_equal(one, wanted)


def typed(ran: PairRun[Any], *parties: Role) -> None:
    """These parties ended in typed errors."""
    for role in parties:
        assert isinstance(ran.errors.get(role), TacitError), (role, ran.errors)


# --- values


def drawn(seed: object, ring: Ring, shape: int | tuple[int, ...]) -> Elements:
    """Elements that repeat, with the ends of the ring first."""
    shape = (shape,) if isinstance(shape, int) else shape
    values = ring.uniform(Coins.from_seed(str(seed).encode()), shape)
    ends = np.array([0, 1, -1, -(1 << (ring.bits - 1)), (1 << (ring.bits - 1)) - 1]).astype(
        ring.signed
    )
    with suppress(ValueError):  # none
        flat = values.reshape(-1)
        flat[: ends.size] = ends.view(ring.dtype)[: flat.size]
    return values


def signed(ring: Ring, values: Elements) -> Elements:
    return values.view(ring.signed)


def flags(ring: Ring, which: Any) -> Elements:
    out: Elements = np.asarray(which).astype(ring.dtype)
    return out


@st.composite
def circuits(draw: st.DrawFn) -> Circuit:
    """Any circuit: without ANDs, without inputs of a party, wires with themselves and as several outputs are among them."""
    inputs = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)).filter(any))
    gates: list[tuple[int, int, int]] = []
    for kind in draw(st.lists(st.sampled_from(list(Kind)), max_size=30)):
        wire = st.integers(0, sum(inputs) + len(gates) - 1)
        a = draw(wire)
        gates.append((kind, a, a if kind == Kind.NOT else draw(wire)))
    ends = draw(st.lists(st.integers(0, sum(inputs) + len(gates) - 1), min_size=1, max_size=5))
    table = np.array(gates, np.int32).reshape(-1, 3)
    return Circuit("any", inputs, table, np.array(ends, np.int32))


# --- the operations of shares x and y of n values each


class Operation(NamedTuple):
    """What is done to shares, and to values in the clear.

    Args:
        name: under which its costs are booked.
        work: of a session and shares of x and y.
        clear: the same of the values.
        prepared: only oblivious transfer prepares it.
    """

    name: str
    work: Callable[[Session, Elements, Elements], Any]
    clear: Callable[[Ring, Elements, Elements], Elements]
    prepared: bool = False


def _opened_to(party: int) -> Callable[[Session, Elements, Elements], Elements]:
    def work(session: Session, x: Elements, y: Elements) -> Elements:
        got = arithmetic.open_to(session, party, x, y)
        assert (got is None) == (session.party != party)
        return session.ring.zeros(x.shape) if got is None else got[0] + got[1]

    return work


def _prepared_relu(session: Session, x: Elements, y: Elements) -> Elements:
    blocks, more = garbling.prepared_sum(session, relu_of_sum(session.ring.bits), x)
    share = boolean.from_bits(session, garbling.to_bits(garbling.Labels(blocks, x.shape)))
    if session.party == 0:
        share = share + join_bits(more, x.size, session.ring.dtype).reshape(x.shape)
    return share


def _prepared_sign(session: Session, x: Elements, y: Elements) -> Elements:
    blocks, more = garbling.prepared_sum(session, sign_of_sum(session.ring.bits, shallow=False), x)
    assert len(more) == 0
    return boolean.from_bits(session, garbling.to_bits(garbling.Labels(blocks, x.shape)))


def _from_labels(session: Session, x: Elements, y: Elements) -> Elements:
    """x + y: the sum of party 0's share of y and what a second circuit adds to garbled x, then party 1's share of y."""
    labels = garbling.to_labels(session, x)
    circuit = sum_of_shares(session.ring.bits, shallow=False)
    planes = slice_bits(np.ascontiguousarray(y).reshape(-1))
    more = garbling.garbled(session, circuit, planes, labels=labels, name="from labels")
    total = boolean.from_bits(session, garbling.to_bits(garbling.Labels(more, x.shape)))
    return total + y if session.party == 1 else total


def _each(session: Session, x: Elements, y: Elements) -> Elements:
    bits = boolean.to_bits(session, x)
    weights = np.left_shift(session.ring.dtype.type(1), np.arange(len(bits.planes), dtype=x.dtype))
    each = boolean.each_from_bits(session, bits)
    assert each.shape == (session.ring.bits, x.size)
    total: Elements = (each * weights[:, None]).sum(0, dtype=x.dtype).reshape(x.shape)
    return total


def _negative(ring: Ring, x: Elements) -> Any:
    return signed(ring, x) < 0


ELEMENTWISE = [
    Operation("add public", lambda s, x, y: arithmetic.add_public(s, x, s.ring.zeros(x.shape) + s.ring.dtype.type(7)),
              lambda r, x, y: x + r.dtype.type(7)),
    Operation("open to 0", _opened_to(0), lambda r, x, y: x + y),
    Operation("open to 1", _opened_to(1), lambda r, x, y: x + y),
    Operation("multiply", arithmetic.multiply, lambda r, x, y: x * y),
    Operation("square", lambda s, x, y: arithmetic.square(s, x), lambda r, x, y: x * x),
    Operation("to bits", lambda s, x, y: boolean.from_bits(s, boolean.to_bits(s, x)), lambda r, x, y: x),
    Operation("each from bits", _each, lambda r, x, y: x),
    Operation("sign", lambda s, x, y: boolean.from_bits(s, boolean.sign(s, x)), lambda r, x, y: flags(r, _negative(r, x))),
    Operation("less than", lambda s, x, y: boolean.from_bits(s, boolean.less_than(s, x, y)),
              lambda r, x, y: flags(r, _negative(r, x - y))),
    Operation("inverted", lambda s, x, y: boolean.from_bits(s, boolean.inverted(s, boolean.sign(s, x))),
              lambda r, x, y: flags(r, ~_negative(r, x))),
    Operation("select", lambda s, x, y: boolean.select(s, boolean.sign(s, y), x),
              lambda r, x, y: np.where(_negative(r, y), x, 0)),
    Operation("relu", lambda s, x, y: boolean.relu(s, x)[0], lambda r, x, y: np.where(_negative(r, x), 0, x)),
    Operation("relu's bits", lambda s, x, y: boolean.from_bits(s, boolean.relu(s, x)[1]),
              lambda r, x, y: flags(r, ~_negative(r, x))),
    Operation("truncate exactly", lambda s, x, y: boolean.truncate_exactly(s, x),
              lambda r, x, y: (signed(r, x) >> 9).view(r.dtype)),
    Operation("garbled sign", lambda s, x, y: boolean.from_bits(s, garbling.sign(s, x)),
              lambda r, x, y: flags(r, _negative(r, x))),
    Operation("to labels", lambda s, x, y: boolean.from_bits(s, garbling.to_bits(garbling.to_labels(s, x))),
              lambda r, x, y: x),
    Operation("from labels", _from_labels, lambda r, x, y: x + y),
    Operation("prepared sign", _prepared_sign, lambda r, x, y: flags(r, _negative(r, x)), prepared=True),
    Operation("prepared ReLU", _prepared_relu, lambda r, x, y: np.where(_negative(r, x), 0, x), prepared=True),
]  # fmt: skip
"""With 9 fractional bits."""

FRACTION = 9


def at(ring: Ring) -> FixedPoint:
    return FixedPoint(FRACTION, ring)
